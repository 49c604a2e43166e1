/* SPDX-License-Identifier: MIT */
#include "cpu.h"
#include "../ops/stochastic.h"
#include <math.h>

enum { PART = 4096 }; /* what is stored besides reads from the cache */

struct state { /* the tensors of an update; low: NULL, or the lower halves of w */
    struct tensor *w, *m, *v, *low;
    const struct adamw *opt;
};

/* Elements [at, at + n) of t: where they are, or widened into buf. */
static float *part_of(const struct rows *r, const struct tensor *t, float *buf, int64_t at,
                      int64_t n)
{
    if (t->dtype == DT_F32) return (float *)t->data + at;
    r->widen(buf, (const uint16_t *)t->data + at, n);
    return buf;
}

static float *weights_of(const struct rows *r, const struct state *s, float *buf, int64_t at,
                         int64_t n)
{
    if (!s->low) return part_of(r, s->w, buf, at, n);
    r->join(buf, (const uint16_t *)s->w->data + at, (const int16_t *)s->low->data + at, n);
    return buf;
}

/* What is BF16 and has no lower half gets its new values, from floats. */
static void round_part(const struct state *s, const float *w, const float *m, const float *v,
                       int64_t at, int64_t n)
{
    uint16_t *hw = s->w->dtype == DT_BF16 && !s->low ? (uint16_t *)s->w->data + at : NULL;
    uint16_t *hm = s->m->dtype == DT_BF16 ? (uint16_t *)s->m->data + at : NULL;
    uint16_t *hv = s->m->dtype == DT_BF16 ? (uint16_t *)s->v->data + at : NULL;
    for (int64_t i = 0; i < n; i++) {
        const uint64_t bits = stochastic_bits(s->opt->key, (uint64_t)(s->opt->first + at + i));
        if (hw) hw[i] = stochastic_bf16(w[i], bits & 0xffff);
        if (!hm) continue;
        hm[i] = stochastic_bf16(m[i], bits >> 16 & 0xffff);
        hv[i] = stochastic_bf16(v[i], bits >> 32 & 0xffff);
    }
}

int cpu_adamw(struct ctx *cx, struct tensor *w, struct tensor *m, struct tensor *v,
              const struct tensor *g, const struct adamw *opt, struct tensor *low)
{
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
    const struct state st = { .w = w, .m = m, .v = v, .low = low, .opt = opt };
    const float *pg = g->data;
#pragma omp parallel for schedule(static) num_threads(cpu_team(cx, 4 * n))
    for (int64_t i = 0; i < parts; i++) {
        const int64_t at = i * PART, k_n = MIN(PART, n - at);
        float buf[3][PART];
        float *pw = weights_of(cx->rows, &st, buf[0], at, k_n),
              *pm = part_of(cx->rows, m, buf[1], at, k_n),
              *pv = part_of(cx->rows, v, buf[2], at, k_n);
        cx->rows->adamw(pw, pm, pv, pg + at, &k, k_n);
        if (low) cx->rows->split((uint16_t *)w->data + at, (int16_t *)low->data + at, pw, k_n);
        if ((w->dtype == DT_BF16 && !low) || m->dtype == DT_BF16)
            round_part(&st, pw, pm, pv, at, k_n);
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

int cpu_sumsq_blocks(struct ctx *cx, double *out, const struct tensor *x, int64_t block)
{
    const int64_t n = tensor_count(x), blocks = div_up(n, block);
    const float *px = x->data;
#pragma omp parallel for schedule(static) num_threads(cpu_team(cx, n))
    for (int64_t b = 0; b < blocks; b++)
        out[b] = cx->rows->sumsq(px + b * block, MIN(block, n - b * block));
    return 0;
}
