/* SPDX-License-Identifier: MIT */
#include "stage.h"
#include "../base/rng.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

double stage_tolerance(const struct config *c)
{
    return c->model.dtype == DTYPE_FLOAT32 ? 1e-5 : 4e-3;
}

/* Response tokens that the loss's mean is over: known before the first micro-batch runs. */
static double response_tokens(const struct dataset *d, const int64_t *idx, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += d->ex[idx[i]].nw;
    return sum;
}

static int64_t all_tokens(const struct dataset *d, const int64_t *idx, int64_t n)
{
    int64_t sum = 0;
    for (int64_t i = 0; i < n; i++) {
        const struct example *e = &d->ex[idx[i]];
        sum += (int64_t)e->np + e->nw + e->nl;
    }
    return sum;
}

struct loss_pair stage_pair(const struct stage *st, const struct dataset *d, int64_t i, double lw,
                            double ll, const struct scores *ref)
{
    const bool has = ref && (st->loss->flags & LOSS_REF);
    return (struct loss_pair){ .lw = lw,
                               .ll = ll,
                               .rw = has ? ref->w[i] : 0,
                               .rl = has ? ref->l[i] : 0,
                               .nw = d->ex[i].nw,
                               .nl = d->ex[i].nl };
}

/* coef[S] = dL/dlogp of every sequence of the micro-batch, for a loss that is a mean over `total` pairs (SFT: tokens); what the metrics need
 * goes to seen[P, 3]. */
static void loss_batch(struct stage *st, double total, double kink_tolerance, double *seen)
{
    const struct batch *b = &st->batch;
    for (int32_t p = 0; p < b->P; p++) {
        const int64_t i = b->example[p];
        if (st->kind == STAGE_SFT) {
            seen[3 * p] = st->logp[p];
            st->coef[p] = -1 / total;
            continue;
        }
        const struct loss_pair pair =
            stage_pair(st, st->data, i, st->logp[2 * p], st->logp[2 * p + 1], &st->ref);
        struct loss_grad g;
        st->loss->eval(&g, &pair, &st->cfg->loss_opts, kink_tolerance);
        st->coef[2 * p] = g.d_lw / total;
        st->coef[2 * p + 1] = g.d_ll / total;
        seen[3 * p] = pair.lw;
        seen[3 * p + 1] = pair.ll;
        seen[3 * p + 2] = kink_tolerance;
    }
}

static int not_itself(const struct stage *st, int64_t i, bool rejected, double logp, double r,
                      double allowed)
{
    const struct example *e = &st->data->ex[i];
    char *mend = NULL;
    if (st->ref_file)
        TRY(mem_asprintf(&mend, "the values in the reference cache %s may be wrong: delete it",
                         st->ref_file));
    err_set(ERR_DEVICE,
            "%s:%lld: at the first step the policy is the reference, yet its log-probability of "
            "the %s response is %.9g and the reference's %.9g (allowed %.2g): %s",
            st->data->files[e->file], (long long)e->line, rejected ? "rejected" : "chosen", logp, r,
            allowed, mend ? mend : "please report this");
    free(mend);
    return ERR_DEVICE;
}

/* Where the policy is the reference, u = v = 0 for every pair, up to the rounding of a reference that was computed in other company:
 * anything else is a bug or a stale reference. *tolerance: what counted as 0. */
static int check_self(const struct stage *st, double *tolerance)
{
    const struct batch *b = &st->batch;
    const double share = stage_tolerance(st->cfg);
    *tolerance = 0;
    for (int32_t s = 0; s < b->S; s++) {
        const int64_t i = b->example[s / 2];
        const double r = s % 2 ? st->ref.l[i] : st->ref.w[i], d = fabs(st->logp[s] - r);
        const double size = fmax(1, fabs(r));
        if (!isfinite(st->logp[s]) || !isfinite(r)) continue; /* the step is skipped for that */
        if (!(d <= share * size)) return not_itself(st, i, s % 2, st->logp[s], r, share * size);
        *tolerance = fmax(*tolerance, d);
    }
    return 0;
}

static int grads_ready(void *payload, int32_t first, int32_t n)
{
    struct stage *st = payload;
    (void)n; /* the groups are those of stage.c */
    return zero_reduce(&st->zero, st->model.params[first].offset,
                       model_grad(&st->model, first).data);
}

/* What a micro-batch that begins at example `at` of the step drops: the same on any number of ranks. */
static struct dropout dropout_of(const struct stage *st, const int64_t *idx, int64_t at)
{
    struct dropout d = { .p = st->model.arch.lora.dropout };
    if (d.p == 0) return d;
    d.key =
        rng_u64(st->cfg->seed, rng_stream_of(RNG_DROPOUT, (uint64_t)st->kind), (uint64_t)st->step);
    for (int64_t i = 0; i < at; i++)
        d.first += example_tokens(&st->data->ex[idx[i]]);
    return d;
}

/* One of this rank's micro-batches; `last`: of the round, so that its gradients are reduced as they become final. */
static int micro_batch(struct stage *st, const int64_t *idx, const struct slot *s, double total,
                       bool last)
{
    double tolerance = 0;
    batch_fill(&st->batch, st->data, idx + s->at, s->n);
    if (st->zero.rounds) TRY(op_fill(&st->su->be, &st->model.grads, 0));
    st->model.drop = dropout_of(st, idx, s->at);
    TRY(model_forward(&st->model, &st->batch));
    TRY(model_logp(&st->model, &st->batch, st->logp, true));
    if (st->at_reference && st->step == 0) TRY(check_self(st, &tolerance));
    loss_batch(st, total, tolerance, st->seen + 3 * s->at);
    TRY(model_backward(&st->model, &st->batch, st->coef, last ? grads_ready : NULL, st));
    st->model.drop.p = 0;
    return 0;
}

/* Is slot s computed in this round of reduction? */
static bool in_round(const struct stage *st, const struct slot *s, int32_t round)
{
    return !st->zero.rounds || s->round == round;
}

/* This rank's micro-batches of a round. */
static int own_slots(struct stage *st, const int64_t *idx, int64_t n_slots, int32_t round,
                     double total)
{
    const int32_t rank = dist_rank(st->su->dist);
    int64_t last = -1;
    for (int64_t i = 0; i < n_slots; i++)
        if (st->slot[i].rank == rank && in_round(st, &st->slot[i], round)) last = i;
    for (int64_t i = 0; i <= last; i++)
        if (st->slot[i].rank == rank && in_round(st, &st->slot[i], round))
            TRY(micro_batch(st, idx, &st->slot[i], total, i == last));
    return 0;
}

/* The gradient of the whole step, each rank's share of it with its owner. A rank that fails goes on talking, so that no other one waits for
 * it; *failed has its error, which the caller brings to all. */
static int gradient(struct stage *st, const int64_t *idx, int64_t n_slots, double total,
                    int *failed)
{
    int32_t rounds = 1;
    for (int64_t i = 0; i < n_slots && st->zero.rounds; i++)
        rounds = MAX(rounds, st->slot[i].round + 1);
    *failed = st->zero.rounds ? zero_begin(&st->zero) : op_fill(&st->su->be, &st->model.grads, 0);
    for (int32_t round = 0; round < rounds; round++) {
        memset(st->active, 0, (size_t)dist_size(st->su->dist) * sizeof *st->active);
        for (int64_t i = 0; i < n_slots; i++)
            if (in_round(st, &st->slot[i], round)) st->active[st->slot[i].rank] = true;
        zero_round(&st->zero, st->active);
        if (*failed == 0) *failed = own_slots(st, idx, n_slots, round, total);
        TRY(zero_finish(&st->zero));
    }
    return 0;
}

/* Sums over the step, pair by pair in its order from the log-probabilities of all ranks: the same on each, whatever their number. */
static void measure_step(struct stage *st, const int64_t *idx, int64_t n, struct metrics *m)
{
    memset(m, 0, sizeof *m);
    m->tokens = all_tokens(st->data, idx, n);
    for (int64_t i = 0; i < n; i++) {
        const double *seen = st->seen + 3 * i;
        struct loss_grad g;
        if (st->kind == STAGE_SFT) {
            metrics_add_row(m, seen[0], st->data->ex[idx[i]].nw);
            continue;
        }
        const struct loss_pair p = stage_pair(st, st->data, idx[i], seen[0], seen[1], &st->ref);
        st->loss->eval(&g, &p, &st->cfg->loss_opts, seen[2]);
        metrics_add_pair(m, st->loss, &st->cfg->loss_opts, &p, &g);
        if (!st->at_reference || st->step > 0) continue;
        const double dw = fabs(p.lw - p.rw) / fmax(1, fabs(p.rw)),
                     dl = fabs(p.ll - p.rl) / fmax(1, fabs(p.rl));
        st->self_difference = fmax(st->self_difference, fmax(dw, dl));
    }
}

int stage_step(struct stage *st, struct metrics *m, double *norm, double *lr, bool *applied)
{
    struct dist *dist = st->su->dist;
    const int64_t *idx;
    const int64_t n = order_step(&st->order, st->step, &idx);
    const double total = st->kind == STAGE_SFT ? response_tokens(st->data, idx, n) : (double)n;
    const int64_t n_slots = share_step(st->slot, st->data, idx, n, st->micro_tokens,
                                       dist_size(dist), st->cfg->dist.deterministic);
    int failed = 0;
    memset(st->seen, 0, (size_t)(3 * n) * sizeof *st->seen);
    TRY(gradient(st, idx, n_slots, total, &failed));
    TRY(dist_agree(dist, failed));
    TRY(dist_sum(dist, st->seen, 3 * n));
    measure_step(st, idx, n, m);
    *lr = schedule_lr((enum schedule)st->sc->schedule, st->sc->learning_rate, st->sc->warmup_ratio,
                      st->step, st->steps);
    TRY(zero_norm(&st->zero, st->cfg->dist.deterministic, norm));
    *applied = isfinite(metrics_loss(m, st->loss)) && isfinite(*norm);
    if (*applied) TRY(optim_step(&st->optim, &st->model, &st->zero, *norm, *lr));
    st->skipped += !*applied;
    st->skipped_run = *applied ? 0 : st->skipped_run + 1;
    st->step++;
    return 0;
}

void stage_metrics(const struct stage *st, const struct dataset *d, const struct scores *pi,
                   const struct scores *ref, struct metrics *m)
{
    memset(m, 0, sizeof *m);
    for (int64_t i = 0; i < d->n; i++) {
        struct loss_grad g;
        m->tokens += (int64_t)d->ex[i].np + d->ex[i].nw + d->ex[i].nl;
        if (st->kind == STAGE_SFT) {
            metrics_add_row(m, pi->w[i], d->ex[i].nw);
            continue;
        }
        const struct loss_pair p = stage_pair(st, d, i, pi->w[i], pi->l[i], ref);
        st->loss->eval(&g, &p, &st->cfg->loss_opts, 0);
        metrics_add_pair(m, st->loss, &st->cfg->loss_opts, &p, &g);
    }
}

int stage_evaluate(struct stage *st, struct metrics *m)
{
    struct scores s = { 0 };
    int rc = scores_init(&s, st->eval->n);
    if (rc == 0)
        rc = score_all(&s, st->su->dist, st->cfg->dist.deterministic, &st->model, &st->batch,
                       st->eval, st->micro_tokens);
    if (rc == 0) stage_metrics(st, st->eval, &s, &st->ref_eval, m);
    scores_release(&s);
    return rc;
}
