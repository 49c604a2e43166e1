/* SPDX-License-Identifier: MIT */
#include "stage.h"
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

static struct loss_pair pair_of(const struct stage *st, const struct dataset *d, int64_t i,
                                double lw, double ll, const struct scores *ref)
{
    const bool has = ref && (st->loss->flags & LOSS_REF);
    return (struct loss_pair){ .lw = lw,
                               .ll = ll,
                               .rw = has ? ref->w[i] : 0,
                               .rl = has ? ref->l[i] : 0,
                               .nw = d->ex[i].nw,
                               .nl = d->ex[i].nl };
}

/* coef[S] = dL/dlogp of every sequence of the micro-batch, for a loss that is a mean over `total` pairs (SFT: tokens). */
static void loss_batch(struct stage *st, double total, double kink_tolerance, struct metrics *m)
{
    const struct batch *b = &st->batch;
    for (int32_t p = 0; p < b->P; p++) {
        const int64_t i = b->example[p];
        if (st->kind == STAGE_SFT) {
            metrics_add_row(m, st->logp[p], st->data->ex[i].nw);
            st->coef[p] = -1 / total;
            continue;
        }
        const struct loss_pair pair =
            pair_of(st, st->data, i, st->logp[2 * p], st->logp[2 * p + 1], &st->ref);
        struct loss_grad g;
        st->loss->eval(&g, &pair, &st->cfg->loss_opts, kink_tolerance);
        metrics_add_pair(m, st->loss, &st->cfg->loss_opts, &pair, &g);
        st->coef[2 * p] = g.d_lw / total;
        st->coef[2 * p + 1] = g.d_ll / total;
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
static int check_self(struct stage *st, double *tolerance)
{
    const struct batch *b = &st->batch;
    const double share = stage_tolerance(st->cfg);
    *tolerance = 0;
    for (int32_t s = 0; s < b->S; s++) {
        const int64_t i = b->example[s / 2];
        const double r = s % 2 ? st->ref.l[i] : st->ref.w[i], d = fabs(st->logp[s] - r);
        const double size = fmax(1, fabs(r));
        if (!isfinite(st->logp[s]) && !isfinite(r)) continue; /* the step is skipped for that */
        if (!(d <= share * size)) return not_itself(st, i, s % 2, st->logp[s], r, share * size);
        st->self_difference = fmax(st->self_difference, d / size);
        *tolerance = fmax(*tolerance, d);
    }
    return 0;
}

static int micro_batch(struct stage *st, double total, struct metrics *m)
{
    double tolerance = 0;
    TRY(model_forward(&st->model, &st->batch));
    TRY(model_logp(&st->model, &st->batch, st->logp));
    if (st->at_reference && st->step == 0) TRY(check_self(st, &tolerance));
    loss_batch(st, total, tolerance, m);
    return model_backward(&st->model, &st->batch, st->coef, NULL, NULL);
}

int stage_step(struct stage *st, struct metrics *m, double *norm, double *lr, bool *applied)
{
    const int64_t *idx;
    const int64_t n = order_step(&st->order, st->step, &idx);
    const double total = st->kind == STAGE_SFT ? response_tokens(st->data, idx, n) : (double)n;
    memset(m, 0, sizeof *m);
    m->tokens = all_tokens(st->data, idx, n);
    TRY(op_fill(&st->su->be, &st->model.grads, 0));
    for (int64_t at = 0; at < n;) {
        const int64_t k = batch_fit(st->data, idx + at, n - at, st->micro_tokens);
        batch_fill(&st->batch, st->data, idx + at, k);
        TRY(micro_batch(st, total, m));
        at += k;
    }
    *lr = schedule_lr((enum schedule)st->sc->schedule, st->sc->learning_rate, st->sc->warmup_ratio,
                      st->step, st->steps);
    TRY(optim_norm(&st->model, norm));
    *applied = isfinite(metrics_loss(m, st->loss)) && isfinite(*norm);
    if (*applied) TRY(optim_step(&st->optim, &st->model, *norm, *lr));
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
        const struct loss_pair p = pair_of(st, d, i, pi->w[i], pi->l[i], ref);
        st->loss->eval(&g, &p, &st->cfg->loss_opts, 0);
        metrics_add_pair(m, st->loss, &st->cfg->loss_opts, &p, &g);
    }
}

int stage_evaluate(struct stage *st, struct metrics *m)
{
    struct scores s = { 0 };
    int rc = scores_init(&s, st->eval->n);
    if (rc == 0) rc = score_all(&s, &st->model, &st->batch, st->eval, st->micro_tokens);
    if (rc == 0) stage_metrics(st, st->eval, &s, &st->ref_eval, m);
    scores_release(&s);
    return rc;
}
