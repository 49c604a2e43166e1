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

int stage_open(struct stage *st, struct setup *su, enum stage_kind kind, const struct dataset *data,
               const struct dataset *eval, bool train)
{
    const struct config *c = su->cfg;
    struct model_size size = { .train = train,
                               .recompute =
                                   train && c->memory.gradient_checkpointing == CHECKPOINTING_ON };
    int64_t P, eT = 0, eN = 0, eP = 0;
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
    TRY(model_init(&st->model, &su->be, &su->arch, setup_dtype(c)));
    batch_bounds(data, st->micro_tokens, &size.T, &size.N, &P);
    size.positions = setup_positions(data);
    if (eval) {
        batch_bounds(eval, st->micro_tokens, &eT, &eN, &eP);
        size.positions = MAX(size.positions, setup_positions(eval));
    }
    size.T = MAX(size.T, eT);
    size.N = MAX(size.N, eN);
    P = MAX(P, eP);
    TRY(model_plan_weights(&st->model, &st->plan, train));
    TRY(model_plan_buffers(&st->model, &st->plan, &size));
    if (train) TRY(optim_plan(&st->optim, &st->plan, &st->model, st->sc));
    TRY(plan_grant(&st->plan, &su->be));
    TRY(model_ready(&st->model));
    TRY(batch_init(&st->batch, size.T, size.N, P));
    TRY(order_init(&st->order, data->n, st->sc->batch_size, st->sc->shuffle, c->seed));
    TRY(MEM_NEW(&st->logp, 2 * P));
    TRY(MEM_NEW(&st->coef, 2 * P));
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
