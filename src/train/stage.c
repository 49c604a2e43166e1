/* SPDX-License-Identifier: MIT */
#include "stage.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

int64_t stage_steps(const struct stage_config *c, int64_t n)
{
    const int64_t batch = MIN(c->batch_size, n);
    const double steps = ceil(c->epochs * (double)div_up(n, batch));
    int64_t total = steps < 0x1p62 ? (int64_t)steps : (int64_t)1 << 62;
    if (c->max_steps > 0) total = MIN(total, c->max_steps);
    return total;
}

int stage_load_base(struct model *m, const struct config *c)
{
    return c->model.init == MODEL_RANDOM ? model_random(m, c->seed) : model_load(m, c->model.path);
}

int stage_load_start(struct model *m, const struct config *c, enum stage_kind kind)
{
    const bool from_sft = kind == STAGE_PREFERENCE && c->sft.present;
    char *sft = NULL;
    int rc = 0;
    if (from_sft) TRY(path_join(&sft, c->output, "sft"));
    if (from_sft && !c->model.lora.present)
        TRY_OUT(model_load(m, sft));
    else if (!m->base)
        TRY_OUT(stage_load_base(m, c));
    if (!c->model.lora.present) goto out;
    if (from_sft)
        TRY_OUT(lora_load(m, sft));
    else if (c->model.lora.path)
        TRY_OUT(lora_load(m, c->model.lora.path));
    else
        TRY_OUT(lora_init(m, c->seed));
out:
    free(sft);
    return rc;
}

static int plan_kl(struct stage *st)
{
    const struct setup *su = st->su;
    struct arch ref = su->arch;
    /* deterministic: logits may differ by rounding with what else is in the batch */
    const struct kl_opts o = { .samples = su->kl_samples,
                               .dist = su->cfg->dist.deterministic ? NULL : su->dist,
                               .max_tokens = KL_TOKENS_MAX,
                               .seed = su->cfg->seed,
                               .same_base = su->arch.lora.rank > 0 && !su->kl_reference,
                               .eos = tokenizer_eos(su->tok),
                               .end = template_end(su->tmpl, true) };
    if (su->kl_reference) TRY(setup_arch(&ref, su->cfg, su->kl_reference));
    return kl_plan(&st->kl, &st->plan, &st->model, &ref, st->eval, &o);
}

static int load_kl_reference(struct stage *st)
{
    if (st->kl.loaded) return 0;
    if (st->su->kl_reference)
        TRY(model_load(&st->kl.ref, st->su->kl_reference));
    else
        TRY(stage_load_start(&st->kl.ref, st->cfg, STAGE_PREFERENCE));
    st->kl.loaded = true;
    return 0;
}

int stage_measure_kl(struct stage *st, struct metrics *m, struct buf *answers)
{
    struct kl_result r;
    if (!st->has_kl) return 0;
    TRY(dist_agree(st->su->dist, load_kl_reference(st)));
    TRY(kl_measure(&st->kl, &r, NULL));
    m->has_kl = true;
    m->kl = r.mean;
    m->kl_stderr = r.error;
    return answers ? kl_answers(&st->kl, st->su->tok, answers) : 0;
}

/* The trained ones of parameters [first, end). */
static int add_group(struct stage *st, int32_t first, int32_t end)
{
    const struct model *m = &st->model;
    if (end <= first || !model_trains(m, first)) return 0;
    return zero_add_group(&st->zero, m->params[first].offset,
                          end < m->end_trained ? m->params[end].offset : m->n_trained);
}

static int fetch_master(void *payload, int64_t at, int64_t n, float *out)
{
    return zero_fetch(payload, ZERO_MASTER, at, n, out);
}

static int open_shard(struct stage *st)
{
    struct model *m = &st->model;
    struct zero *z = &st->zero;
    TRY(zero_init(z, st->su->dist, &st->su->be, m->n_trained));
    /* as a backward finishes them: the head and final norm first, then the layers from the last on, then the embedding */
    TRY(add_group(st, m->final_norm, m->n_base));
    for (int64_t l = m->arch.L - 1; l >= 0; l--) {
        TRY(add_group(st, m->layers[l].norm1, m->layers[l].end));
        TRY(add_group(st, m->layers[l].lora, m->layers[l].lora_end));
    }
    TRY(add_group(st, m->embed, m->layers[0].norm1));
    TRY(zero_split(z));
    z->state[ZERO_MASTER] = &m->low;
    z->weights = &m->weights;
    z->state[ZERO_MOMENT1] = &st->optim.m;
    z->state[ZERO_MOMENT2] = &st->optim.v;
    if (dist_size(st->su->dist) > 1)
        m->shard = (struct model_shard){ z->part, z->n_buckets, z->n_shard, fetch_master, z };
    return 0;
}

/* "auto": a whole gradient a rank where it fits what the run may take. */
static bool shard_gradients(const struct stage *st)
{
    const struct model *m = &st->model;
    const int64_t each = plan_total(&st->plan) + m->n_flat * dtype_size(m->dtype) +
                         m->n_trained * 4 + st->zero.n_shard * (m->dtype == DT_F32 ? 8 : 10);
    if (st->cfg->dist.gradients != GRADIENTS_AUTO)
        return st->cfg->dist.gradients == GRADIENTS_SHARDED;
    return dist_size(st->su->dist) > 1 && st->su->limit > 0 && each > st->su->limit;
}

static int plan_training(struct stage *st)
{
    struct model *m = &st->model;
    const bool fixed = st->cfg->dist.deterministic;
    m->no_master = st->cfg->optimizer.master == MASTER_NONE;
    TRY(open_shard(st));
    const bool sharded = shard_gradients(st);
    m->grad_windows = sharded && m->n_trained == m->n_flat; /* those of adapters are small */
    TRY(model_plan_weights(m, &st->plan, true));
    TRY(zero_plan(&st->zero, &st->plan, &m->grads, fixed || sharded, m->grad_windows));
    return optim_plan(&st->optim, &st->plan, st->zero.n_shard, st->sc,
                      st->cfg->optimizer.moments == DTYPE_BFLOAT16 ? DT_BF16 : DT_F32,
                      st->cfg->seed, st->kind);
}

/* As order_measure, over the shares of all ranks; batches are those of the rank that has most. */
static int measure_steps(struct batch_size *s, const struct setup *su, struct order *o,
                         const struct dataset *d, int64_t steps, int64_t micro_tokens)
{
    struct slot *slot = NULL;
    int64_t rounds = 0;
    if (dist_size(su->dist) == 1) {
        order_measure(o, s, d, steps, micro_tokens);
        return 0;
    }
    TRY(MEM_NEW(&slot, o->batch_size));
    for (int64_t t = 0; t < steps; t++) {
        const int64_t *idx;
        const int64_t n = order_step(o, t, &idx);
        const int64_t k = share_step(slot, d, idx, n, micro_tokens, dist_size(su->dist),
                                     su->cfg->dist.deterministic);
        int64_t most = 0;
        for (int64_t i = 0; i < k; i++) {
            batch_measure(s, d, idx + slot[i].at, slot[i].n, micro_tokens);
            most = MAX(most, (int64_t)slot[i].round + 1);
        }
        rounds += most;
        if (!o->shuffle && t + 1 == order_steps_per_epoch(o)) break; /* the epochs are alike */
    }
    s->batches = rounds;
    free(slot);
    return 0;
}

int stage_measure(struct batch_size *s, const struct setup *su, enum stage_kind kind,
                  const struct dataset *data, const struct dataset *eval, int64_t micro_tokens)
{
    const struct config *c = su->cfg;
    const struct stage_config *sc = kind == STAGE_SFT ? &c->sft : &c->preference;
    struct order o = { 0 };
    int rc = order_init(&o, data->n, sc->batch_size, sc->shuffle, c->seed);
    memset(s, 0, sizeof *s);
    if (rc == 0) rc = measure_steps(s, su, &o, data, stage_steps(sc, data->n), micro_tokens);
    order_release(&o);
    for (int64_t i = 0; rc == 0 && i < data->n; i++) { /* rows are scored by themselves too */
        const struct example *e = &data->ex[i];
        s->T = MAX(s->T, example_tokens(e));
        s->N = MAX(s->N, (int64_t)e->nw + e->nl);
    }
    s->P = MAX(s->P, (int64_t)1);
    if (rc < 0 || !eval) return rc;
    struct batch_size in_order = { 0 };
    int64_t *idx;
    TRY(MEM_NEW(&idx, eval->n));
    for (int64_t i = 0; i < eval->n; i++)
        idx[i] = i;
    struct order whole = { .n = eval->n, .batch_size = eval->n, .epoch = 0, .perm = idx };
    rc = measure_steps(&in_order, su, &whole, eval, 1, micro_tokens);
    free(idx);
    TRY(rc);
    s->T = MAX(s->T, in_order.T);
    s->N = MAX(s->N, in_order.N);
    s->P = MAX(s->P, in_order.P);
    return 0;
}

int64_t stage_longest(const struct dataset *data, const struct dataset *eval)
{
    int64_t longest = 1;
    for (int64_t i = 0; i < data->n; i++)
        longest = MAX(longest, example_tokens(&data->ex[i]));
    for (int64_t i = 0; eval && i < eval->n; i++)
        longest = MAX(longest, example_tokens(&eval->ex[i]));
    return longest;
}

int stage_plan(struct stage *st, struct setup *su, enum stage_kind kind, const struct batch_size *b,
               const struct dataset *data, const struct dataset *eval, bool train)
{
    const struct config *c = su->cfg;
    const struct arch *a = &su->arch;
    struct model_size size = { .T = b->T,
                               .N = b->N,
                               .train = train,
                               .recompute = su->recompute,
                               .keep_logits = train && su->keep_logits };
    memset(st, 0, sizeof *st);
    st->su = su;
    st->cfg = c;
    st->kind = kind;
    st->sc = kind == STAGE_SFT ? &c->sft : &c->preference;
    st->name = kind == STAGE_SFT ? "sft" : "preference";
    st->loss = kind == STAGE_SFT ? NULL : loss_find(c->loss);
    st->data = data;
    st->eval = eval;
    st->micro_tokens = su->micro_tokens;
    st->steps = stage_steps(st->sc, data->n);
    st->size = *b;
    st->sizes = (struct op_sizes){ .T = b->T,
                                   .C = a->C,
                                   .F = a->F,
                                   .H = a->H,
                                   .K = a->K,
                                   .D = a->D,
                                   .V = a->V,
                                   .group = stage_longest(data, eval),
                                   .rank = a->lora.rank,
                                   .A = setup_dtype(c),
                                   .train = train };
    size.positions = setup_positions(data);
    if (eval) size.positions = MAX(size.positions, setup_positions(eval));
    st->has_kl = su->kl_samples > 0 && eval && st->loss && (st->loss->flags & LOSS_REF);
    if (st->has_kl) {
        const int64_t longest = kl_longest(eval, a, KL_TOKENS_MAX);
        size.T = st->sizes.T = MAX(size.T, longest);
        size.N = MAX(size.N, longest);
        size.positions = MAX(size.positions, longest);
        st->sizes.group = MAX(st->sizes.group, longest);
    }
    TRY(model_init(&st->model, &su->be, a, setup_dtype(c)));
    TRY(model_plan_buffers(&st->model, &st->plan, &size));
    TRY(train ? plan_training(st) : model_plan_weights(&st->model, &st->plan, false));
    return st->has_kl ? plan_kl(st) : 0;
}

int stage_open(struct stage *st, struct setup *su, enum stage_kind kind, const struct dataset *data,
               const struct dataset *eval, bool train)
{
    const struct backend *be = &su->be;
    struct batch_size b;
    memset(st, 0, sizeof *st);
    TRY(stage_measure(&b, su, kind, data, eval, su->micro_tokens));
    TRY(stage_plan(st, su, kind, &b, data, eval, train));
    TRY(plan_grant(&st->plan, be));
    TRY(be->mem->reserve(be->cx, &st->sizes));
    TRY(model_ready(&st->model));
    if (train) TRY(zero_ready(&st->zero));
    if (st->has_kl) TRY(kl_ready(&st->kl));
    TRY(batch_init(&st->batch, b.T, b.N, b.P));
    TRY(order_init(&st->order, data->n, st->sc->batch_size, st->sc->shuffle, su->cfg->seed));
    TRY(MEM_NEW(&st->logp, 2 * b.P));
    TRY(MEM_NEW(&st->coef, 2 * b.P));
    TRY(MEM_NEW(&st->seen, 3 * st->order.batch_size));
    TRY(MEM_NEW(&st->slot, st->order.batch_size));
    TRY(MEM_NEW(&st->active, dist_size(su->dist)));
    TRY(scores_init(&st->ref, data->n));
    return scores_init(&st->ref_eval, eval ? eval->n : 0);
}

int stage_gather(struct stage *st)
{
    struct model *m = &st->model;
    for (int32_t b = 0; b < st->zero.n_buckets; b++)
        TRY(zero_gather(&st->zero, b, m->weights.data, dtype_size(m->dtype)));
    return zero_gather_end(&st->zero);
}

void stage_release(struct stage *st)
{
    if (!st->su) return;
    free(st->logp);
    free(st->coef);
    free(st->seen);
    free(st->slot);
    free(st->active);
    free(st->ref_file);
    scores_release(&st->ref);
    scores_release(&st->ref_eval);
    order_release(&st->order);
    batch_release(&st->batch);
    plan_release(&st->plan, &st->su->be); /* first: it writes into the views that the model books */
    kl_release(&st->kl);
    model_release(&st->model);
    zero_release(&st->zero);
    memset(st, 0, sizeof *st);
}
