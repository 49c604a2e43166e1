/* SPDX-License-Identifier: MIT */
#include "optim.h"
#include "../base/rng.h"
#include <math.h>

double schedule_lr(enum schedule s, double lr, double warmup_ratio, int64_t t, int64_t T)
{
    const int64_t W = (int64_t)ceil(warmup_ratio * (double)T);
    const double rest = (double)MAX((int64_t)1, T - W);
    if (t < W) return lr * (double)t / (double)MAX((int64_t)1, W);
    switch (s) {
    case SCHEDULE_LINEAR:
        return lr * fmax(0, (double)(T - t) / rest);
    case SCHEDULE_COSINE:
        return lr * fmax(0, 0.5 * (1 + cos(3.14159265358979323846 * (double)(t - W) / rest)));
    case SCHEDULE_CONSTANT:
        return lr;
    }
    return lr;
}

int optim_plan(struct optim *o, struct plan *p, int64_t n_shard, const struct stage_config *c,
               enum dtype moments, uint64_t seed, uint64_t stage)
{
    o->seed = seed;
    o->stream = rng_stream_of(RNG_ROUND, stage);
    o->max_grad_norm = c->max_grad_norm;
    o->opt = (struct adamw){ .beta1 = c->adam_beta1,
                             .beta2 = c->adam_beta2,
                             .eps = c->adam_epsilon,
                             .weight_decay = c->weight_decay };
    TRY(plan_book(p, PLAN_MOMENTS, &o->m, moments, n_shard, 1, 1, 1));
    return plan_book(p, PLAN_MOMENTS, &o->v, moments, n_shard, 1, 1, 1);
}

/* What part b of the shard holds of parameter p. */
static int update(struct optim *o, struct model *m, const struct zero *z, int32_t b,
                  const struct param *p, struct adamw *opt)
{
    const struct flat_part *part = &z->part[b];
    const int64_t begin = MAX(part->begin, p->offset),
                  n = MIN(part->end, p->offset + tensor_count(&p->w)) - begin,
                  at = part->at + (begin - part->begin);
    const struct tensor all = zero_gradient(z, b);
    if (n <= 0) return 0;
    struct tensor w = tensor_rows(&m->weights, begin, n);
    struct tensor low = m->low.data ? tensor_rows(&m->low, at, n) : m->low;
    struct tensor g = tensor_rows(&all, begin - part->begin, n);
    struct tensor mm = tensor_rows(&o->m, at, n), v = tensor_rows(&o->v, at, n);
    opt->first = begin;
    opt->weight_decay = p->decay ? o->opt.weight_decay : 0;
    return op_adamw(m->be, &w, &mm, &v, &g, opt, low.data ? &low : NULL);
}

int optim_step(struct optim *o, struct model *m, struct zero *z, double norm, double lr)
{
    struct adamw opt = o->opt;
    int32_t i = m->first_trained; /* the first parameter that reaches into the bucket */
    opt.lr = lr;
    opt.step = ++o->opt.step;
    opt.key = rng_u64(o->seed, o->stream, (uint64_t)opt.step);
    opt.grad_scale = o->max_grad_norm > 0 ? fmin(1, o->max_grad_norm / (norm + 1e-6)) : 1;
    for (int32_t b = 0; b < z->n_buckets; b++) {
        const struct zero_bucket *k = &z->bucket[b];
        while (i + 1 < m->end_trained && m->params[i + 1].offset <= k->begin)
            i++;
        for (int32_t j = i; j < m->end_trained && m->params[j].offset < k->end; j++)
            TRY(update(o, m, z, b, &m->params[j], &opt));
        TRY(zero_gather(z, b, m->weights.data, dtype_size(m->dtype)));
    }
    return zero_gather_end(z);
}
