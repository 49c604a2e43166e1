/* SPDX-License-Identifier: MIT */
#include "cpu.h"
#include <math.h>
#include <string.h>

enum {
    ROWS = 64
}; /* rows of a block of dw: fixed, so that the sum does not depend on the threads */

static float rstd_of(float sumsq, int64_t n, float eps)
{
    return 1.0f / sqrtf(sumsq / (float)n + eps);
}

int64_t cpu_norm_arena(int64_t n)
{
    return 3 * n * (int64_t)sizeof(float);
}

/* What both directions need where the tensors are bfloat16: the weight as floats (shared), and
 * three rows of n floats for each thread. */
static int prepare(struct ctx *cx, const float **w, const struct tensor *weight, int64_t n)
{
    *w = weight->data;
    if (weight->dtype == DT_F32) return 0;
    TRY(cpu_shared(cx, n * (int64_t)sizeof **w));
    TRY(cpu_arena(cx, cpu_norm_arena(n)));
    cx->rows->widen(cx->shared, weight->data, n);
    *w = cx->shared;
    return 0;
}

struct line { /* a row of x, r, sum: element `at` of each */
    const struct tensor *x, *r;
    struct tensor *sum;
    int64_t at, n;
};

/* s of one row (in the tensors, or in buf[2 n]) and its sum of squares */
static const float *sum_row(const struct rows *r, const struct line *l, float *buf, float *sumsq)
{
    const enum dtype A = l->x->dtype;
    const float *x = cpu_read(r, buf, l->x->data, A, l->at, l->n);
    if (!l->r) {
        *sumsq = r->dot(x, x, l->n);
        return x;
    }
    const float *y = cpu_read(r, buf + l->n, l->r->data, A, l->at, l->n);
    float *s = cpu_write(buf, l->sum->data, A, l->at);
    *sumsq = r->rms_sum(s, x, y, l->n);
    if (A == DT_F32) return s;
    /* s is what was stored: the backward will read it */
    r->narrow((uint16_t *)l->sum->data + l->at, s, l->n);
    r->widen(s, (const uint16_t *)l->sum->data + l->at, l->n);
    *sumsq = r->dot(s, s, l->n);
    return s;
}

int cpu_rmsnorm_fwd(struct ctx *cx, struct tensor *y, struct tensor *rstd, struct tensor *sum,
                    const struct tensor *x, const struct tensor *r, const struct tensor *w,
                    float eps)
{
    const int64_t T = y->dim[0], C = y->dim[1];
    float *pr = rstd->data;
    const float *pw;
    TRY(prepare(cx, &pw, w, C));
#pragma omp parallel for schedule(static) num_threads(cpu_team(cx, 4 * T * C))
    for (int64_t t = 0; t < T; t++) {
        const struct line l = { x, r, sum, t * C, C };
        float *buf = cpu_thread_arena(cx), q, *out = cpu_write(buf, y->data, y->dtype, t * C);
        const float *s = sum_row(cx->rows, &l, buf, &q);
        pr[t] = rstd_of(q, C, eps);
        cx->rows->rms_scale(out, s, pw, pr[t], C);
        cpu_wrote(cx->rows, out, y->data, y->dtype, t * C, C);
    }
    return 0;
}

int cpu_rmsnorm_apply(struct ctx *cx, struct tensor *y, const struct tensor *x,
                      const struct tensor *rstd, const struct tensor *w)
{
    const int64_t T = y->dim[0], C = y->dim[1];
    const float *pr = rstd->data, *pw;
    TRY(prepare(cx, &pw, w, C));
#pragma omp parallel for schedule(static) num_threads(cpu_team(cx, 4 * T * C))
    for (int64_t t = 0; t < T; t++) {
        float *buf = cpu_thread_arena(cx), *out = cpu_write(buf, y->data, y->dtype, t * C);
        cx->rows->rms_scale(out, cpu_read(cx->rows, buf, x->data, x->dtype, t * C, C), pw, pr[t],
                            C);
        cpu_wrote(cx->rows, out, y->data, y->dtype, t * C, C);
    }
    return 0;
}

/* dw[n] += the blocks' partial sums in order; a thread owns some columns */
static void sum_blocks(const struct ctx *cx, float *dw, const float *part, int64_t blocks,
                       int64_t n)
{
    enum { COLS = 256 };
    const int64_t strips = div_up(n, COLS);
#pragma omp parallel for schedule(static) num_threads(cpu_team(cx, blocks *n))
    for (int64_t c = 0; c < strips; c++) {
        const int64_t k = MIN(COLS, n - c * COLS);
        float all[COLS] = { 0 };
        for (int64_t b = 0; b < blocks; b++)
            cx->rows->add(all, part + b * n + c * COLS, k);
        cx->rows->add(dw + c * COLS, all, k);
    }
}

struct norm_bwd { /* the tensors of a backward; n: elements that are normed together */
    struct tensor *dx;
    const struct tensor *dy, *x;
    const float *w, *rstd;
    float *part;
    int64_t n;
    bool add;
};

/* the run of n elements from column c of row t; rstd is its own */
static void bwd_run(const struct rows *r, const struct norm_bwd *a, int64_t t, int64_t c,
                    float rstd, float *part, float *buf)
{
    const int64_t n = a->n, at = t * a->dx->ld + c;
    float *dx = cpu_write(buf, a->dx->data, a->dx->dtype, at);
    if (a->add && dx == buf) r->widen(dx, (const uint16_t *)a->dx->data + at, n);
    r->rms_bwd(dx, part, cpu_read(r, buf + n, a->dy->data, a->dy->dtype, t * a->dy->ld + c, n),
               cpu_read(r, buf + 2 * n, a->x->data, a->x->dtype, t * a->x->ld + c, n), a->w, rstd,
               n, a->add);
    cpu_wrote(r, dx, a->dx->data, a->dx->dtype, at, n);
}

static void norm_bwd(const struct ctx *cx, const struct norm_bwd *a, struct tensor *dw)
{
    const int64_t T = a->dy->dim[0], n = a->n, runs = a->dy->dim[1] / n, blocks = div_up(T, ROWS);
#pragma omp parallel for schedule(static) num_threads(cpu_team(cx, 4 * T * runs * n))
    for (int64_t b = 0; b < blocks; b++) {
        float *part = a->part + b * n, *buf = cpu_thread_arena(cx);
        memset(part, 0, (size_t)n * sizeof *part);
        for (int64_t t = b * ROWS; t < MIN((b + 1) * ROWS, T); t++)
            for (int64_t h = 0; h < runs; h++)
                bwd_run(cx->rows, a, t, h * n, a->rstd[t * runs + h], part, buf);
    }
    if (dw) sum_blocks(cx, dw->data, a->part, blocks, n);
}

int cpu_rmsnorm_bwd(struct ctx *cx, struct tensor *dx, struct tensor *dw, const struct tensor *dy,
                    const struct tensor *x, const struct tensor *w, const struct tensor *rstd,
                    struct tensor *scratch)
{
    struct norm_bwd a = { .dx = dx,
                          .dy = dy,
                          .x = x,
                          .rstd = rstd->data,
                          .part = scratch->data,
                          .n = dy->dim[1],
                          .add = true };
    if (a.n == 0) return 0;
    TRY(prepare(cx, &a.w, w, a.n));
    norm_bwd(cx, &a, dw);
    return 0;
}

int cpu_headnorm_fwd(struct ctx *cx, struct tensor *y, struct tensor *rstd, const struct tensor *x,
                     const struct tensor *w, float eps)
{
    const int64_t T = y->dim[0], D = w->dim[0], n = y->dim[1] / D;
    float *pr = rstd->data;
    const float *pw;
    TRY(prepare(cx, &pw, w, D));
#pragma omp parallel for schedule(static) num_threads(cpu_team(cx, 4 * T * n * D))
    for (int64_t t = 0; t < T; t++)
        for (int64_t h = 0; h < n; h++) {
            const int64_t at = t * y->ld + h * D;
            float *buf = cpu_thread_arena(cx), *out = cpu_write(buf, y->data, y->dtype, at);
            const float *s = cpu_read(cx->rows, buf, x->data, x->dtype, t * x->ld + h * D, D);
            pr[t * n + h] = rstd_of(cx->rows->dot(s, s, D), D, eps);
            cx->rows->rms_scale(out, s, pw, pr[t * n + h], D);
            cpu_wrote(cx->rows, out, y->data, y->dtype, at, D);
        }
    return 0;
}

int cpu_headnorm_bwd(struct ctx *cx, struct tensor *dx, struct tensor *dw, const struct tensor *dy,
                     const struct tensor *x, const struct tensor *w, const struct tensor *rstd,
                     struct tensor *scratch)
{
    struct norm_bwd a = { .dx = dx,
                          .dy = dy,
                          .x = x,
                          .rstd = rstd->data,
                          .part = scratch->data,
                          .n = w->dim[0],
                          .add = false };
    TRY(prepare(cx, &a.w, w, a.n));
    norm_bwd(cx, &a, dw);
    return 0;
}
