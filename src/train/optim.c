/* SPDX-License-Identifier: MIT */
#include "optim.h"
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

int optim_plan(struct optim *o, struct plan *p, const struct model *m, const struct stage_config *c)
{
    o->max_grad_norm = c->max_grad_norm;
    o->opt = (struct adamw){ .beta1 = c->adam_beta1,
                             .beta2 = c->adam_beta2,
                             .eps = c->adam_epsilon,
                             .weight_decay = c->weight_decay };
    TRY(plan_book(p, PLAN_MOMENTS, &o->m, DT_F32, m->n_flat, 1, 1, 1));
    return plan_book(p, PLAN_MOMENTS, &o->v, DT_F32, m->n_flat, 1, 1, 1);
}

int optim_norm(const struct model *m, double *norm)
{
    double ss;
    TRY(op_sumsq(m->be, &ss, &m->grads));
    *norm = sqrt(ss);
    return 0;
}

int optim_step(struct optim *o, struct model *m, double norm, double lr)
{
    struct adamw opt = o->opt;
    const bool master = m->master.data;
    opt.lr = lr;
    opt.step = ++o->opt.step;
    opt.grad_scale = o->max_grad_norm > 0 ? fmin(1, o->max_grad_norm / (norm + 1e-6)) : 1;
    for (int32_t i = 0; i < m->n_params; i++) {
        const struct param *p = &m->params[i];
        const int64_t at = p->offset, n = tensor_count(&p->w);
        struct tensor w = tensor_rows(master ? &m->master : &m->weights, at, n);
        struct tensor copy = tensor_rows(&m->weights, at, n), g = tensor_rows(&m->grads, at, n);
        struct tensor mm = tensor_rows(&o->m, at, n), v = tensor_rows(&o->v, at, n);
        opt.weight_decay = p->decay ? o->opt.weight_decay : 0;
        TRY(op_adamw(m->be, &w, &mm, &v, &g, &opt, master ? &copy : NULL));
    }
    return 0;
}
