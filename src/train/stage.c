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

int stage_measure(struct batch_size *s, const struct config *c, enum stage_kind kind,
                  const struct dataset *data, const struct dataset *eval, int64_t micro_tokens)
{
    const struct stage_config *sc = kind == STAGE_SFT ? &c->sft : &c->preference;
    struct order o = { 0 };
    int rc = order_init(&o, data->n, sc->batch_size, sc->shuffle, c->seed);
    memset(s, 0, sizeof *s);
    if (rc == 0) order_measure(&o, s, data, stage_steps(sc, data->n), micro_tokens);
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
    batch_measure(&in_order, eval, idx, eval->n, micro_tokens);
    free(idx);
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
    struct model_size size = { .T = b->T, .N = b->N, .train = train, .recompute = su->recompute };
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
                                   .A = setup_dtype(c),
                                   .train = train };
    size.positions = setup_positions(data);
    if (eval) size.positions = MAX(size.positions, setup_positions(eval));
    TRY(model_init(&st->model, &su->be, a, setup_dtype(c)));
    TRY(model_plan_weights(&st->model, &st->plan, train));
    TRY(model_plan_buffers(&st->model, &st->plan, &size));
    return train ? optim_plan(&st->optim, &st->plan, &st->model, st->sc) : 0;
}

int stage_open(struct stage *st, struct setup *su, enum stage_kind kind, const struct dataset *data,
               const struct dataset *eval, bool train)
{
    const struct backend *be = &su->be;
    struct batch_size b;
    memset(st, 0, sizeof *st);
    TRY(stage_measure(&b, su->cfg, kind, data, eval, su->micro_tokens));
    TRY(stage_plan(st, su, kind, &b, data, eval, train));
    TRY(plan_grant(&st->plan, be));
    TRY(be->mem->reserve(be->cx, &st->sizes));
    TRY(model_ready(&st->model));
    TRY(batch_init(&st->batch, b.T, b.N, b.P));
    TRY(order_init(&st->order, data->n, st->sc->batch_size, st->sc->shuffle, su->cfg->seed));
    TRY(MEM_NEW(&st->logp, 2 * b.P));
    TRY(MEM_NEW(&st->coef, 2 * b.P));
    TRY(scores_init(&st->ref, data->n));
    return scores_init(&st->ref_eval, eval ? eval->n : 0);
}

void stage_release(struct stage *st)
{
    if (!st->su) return;
    free(st->logp);
    free(st->coef);
    free(st->ref_file);
    scores_release(&st->ref);
    scores_release(&st->ref_eval);
    order_release(&st->order);
    batch_release(&st->batch);
    plan_release(&st->plan, &st->su->be); /* first: it writes into the views that the model books */
    model_release(&st->model);
    memset(st, 0, sizeof *st);
}
