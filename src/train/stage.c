/* SPDX-License-Identifier: MIT */
#include "stage.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int64_t stage_steps(const struct stage_config *c, int64_t n)
{
    const int64_t batch = MIN(c->batch_size, n);
    const double steps = ceil(c->epochs * (double)div_up(n, batch));
    int64_t total = steps < 0x1p62 ? (int64_t)steps : (int64_t)1 << 62;
    if (c->max_steps > 0) total = MIN(total, c->max_steps);
    return total;
}

/* A backward finishes the head and final norm first, then the layers from the last on, then the embedding. */
static int add_group(struct stage *st, int32_t first, int32_t end)
{
    const struct model *m = &st->model;
    return zero_add_group(&st->zero, m->params[first].offset,
                          end < m->n_params ? m->params[end].offset : m->n_flat);
}

static int fetch_master(void *payload, int64_t at, int64_t n, float *out)
{
    return zero_fetch(payload, ZERO_MASTER, at, n, out);
}

static int open_shard(struct stage *st)
{
    struct model *m = &st->model;
    struct zero *z = &st->zero;
    TRY(zero_init(z, st->su->dist, &st->su->be, m->n_flat));
    TRY(add_group(st, m->final_norm, m->n_params));
    for (int64_t l = m->arch.L - 1; l >= 0; l--)
        TRY(add_group(st, m->layers[l].norm1, m->layers[l].end));
    TRY(add_group(st, m->embed, m->layers[0].norm1));
    TRY(zero_split(z));
    z->state[ZERO_MASTER] = &m->master;
    z->state[ZERO_MOMENT1] = &st->optim.m;
    z->state[ZERO_MOMENT2] = &st->optim.v;
    if (dist_size(st->su->dist) > 1)
        m->shard = (struct model_shard){ z->part, z->n_buckets, z->n_shard, fetch_master, z };
    return 0;
}

/* "auto": a whole gradient a rank where the ranks of this machine then stay below four fifths of its memory. */
static int choose_gradients(struct stage *st)
{
    const struct model *m = &st->model;
    const struct config *c = st->cfg;
    const double each = (double)plan_total(&st->plan) +
                        (double)m->n_flat * (double)(dtype_size(m->dtype) + 4) +
                        (double)st->zero.n_shard * (m->dtype == DT_F32 ? 8 : 12);
    const double memory = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE);
    int64_t sharded = c->dist.gradients == GRADIENTS_SHARDED;
    if (c->dist.gradients == GRADIENTS_AUTO && dist_size(st->su->dist) > 1)
        sharded = each * st->su->dist->node_ranks > 0.8 * memory;
    TRY(dist_vote(st->su->dist, 0, &sharded, 1)); /* machines may differ */
    st->model.grad_windows = sharded;
    return 0;
}

static int plan_training(struct stage *st)
{
    struct model *m = &st->model;
    const bool fixed = st->cfg->dist.deterministic;
    TRY(open_shard(st));
    TRY(choose_gradients(st));
    TRY(model_plan_weights(m, &st->plan, true));
    TRY(zero_plan(&st->zero, &st->plan, &m->grads, fixed || m->grad_windows, m->grad_windows));
    return optim_plan(&st->optim, &st->plan, st->zero.n_shard, st->sc);
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
    TRY(model_plan_buffers(&st->model, &st->plan, &size));
    TRY(train ? plan_training(st) : model_plan_weights(&st->model, &st->plan, false));
    TRY(plan_grant(&st->plan, &su->be));
    TRY(model_ready(&st->model));
    TRY(batch_init(&st->batch, size.T, size.N, P));
    TRY(order_init(&st->order, data->n, st->sc->batch_size, st->sc->shuffle, c->seed));
    TRY(MEM_NEW(&st->logp, 2 * P));
    TRY(MEM_NEW(&st->coef, 2 * P));
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
    model_release(&st->model);
    zero_release(&st->zero);
    memset(st, 0, sizeof *st);
}
