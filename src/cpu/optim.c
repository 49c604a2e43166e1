/* SPDX-License-Identifier: MIT */
#include "cpu.h"
#include <math.h>

int cpu_adamw(struct ctx *cx, struct tensor *w, struct tensor *m, struct tensor *v,
              const struct tensor *g, const struct adamw *opt, struct tensor *copy)
{
    enum { PART = 4096 }; /* the copy reads w from the cache */
    const int64_t n = tensor_count(w), parts = div_up(n, PART);
    const double c1 = 1 - pow(opt->beta1, (double)opt->step),
                 c2 = 1 - pow(opt->beta2, (double)opt->step);
    const struct adamw_row k = {
        .scale = (float)opt->grad_scale,
        .mix1 = (float)(1 - opt->beta1),
        .beta2 = (float)opt->beta2,
        .mix2 = (float)(1 - opt->beta2),
        .keep = (float)(1 - opt->lr * opt->weight_decay),
        .step = (float)(opt->lr / c1),
        .root = (float)(1 / sqrt(c2)),
        .eps = (float)opt->eps,
    };
    uint16_t *half = copy ? copy->data : NULL;
    float *pw = w->data, *pm = m->data, *pv = v->data;
    const float *pg = g->data;
#pragma omp parallel for schedule(static) num_threads(cpu_team(cx, n))
    for (int64_t i = 0; i < parts; i++) {
        const int64_t at = i * PART;
        cx->rows->adamw(pw + at, pm + at, pv + at, pg + at, &k, MIN(PART, n - at));
        if (half) cx->rows->narrow(half + at, pw + at, MIN(PART, n - at));
    }
    return 0;
}

int cpu_sumsq(struct ctx *cx, double *out, const struct tensor *x)
{
    const int64_t n = tensor_count(x), size = round_up(div_up(n, SUMSQ_BLOCKS), 64),
                  blocks = n ? div_up(n, size) : 0;
    const float *px = x->data;
#pragma omp parallel for schedule(static) num_threads(cpu_team(cx, n))
    for (int64_t b = 0; b < blocks; b++)
        cx->partial[b] = cx->rows->sumsq(px + b * size, MIN(size, n - b * size));
    double all = 0;
    for (int64_t b = 0; b < blocks; b++)
        all += cx->partial[b];
    *out = all;
    return 0;
}
