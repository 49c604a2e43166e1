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

int cpu_rmsnorm_fwd(struct ctx *cx, struct tensor *y, struct tensor *rstd, struct tensor *sum,
                    const struct tensor *x, const struct tensor *r, const struct tensor *w,
                    float eps)
{
    const int64_t T = y->dim[0], C = y->dim[1];
    float *py = y->data, *pr = rstd->data, *ps = r ? sum->data : NULL;
    const float *px = x->data, *pres = r ? r->data : NULL, *pw = w->data;
#pragma omp parallel for schedule(static) num_threads(cpu_team(cx, T *C))
    for (int64_t t = 0; t < T; t++) {
        const float *s = ps ? ps + t * C : px + t * C;
        const float q =
            cx->rows->rms_sum(ps ? ps + t * C : NULL, px + t * C, pres ? pres + t * C : NULL, C);
        pr[t] = rstd_of(q, C, eps);
        cx->rows->rms_scale(py + t * C, s, pw, pr[t], C);
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

int cpu_rmsnorm_bwd(struct ctx *cx, struct tensor *dx, struct tensor *dw, const struct tensor *dy,
                    const struct tensor *x, const struct tensor *w, const struct tensor *rstd,
                    struct tensor *scratch)
{
    const int64_t T = dy->dim[0], C = dy->dim[1], blocks = div_up(T, ROWS);
    float *part = scratch->data, *pd = dx->data;
    const float *py = dy->data, *px = x->data, *pw = w->data, *pr = rstd->data;
#pragma omp parallel for schedule(static) num_threads(cpu_team(cx, T *C))
    for (int64_t b = 0; b < blocks; b++) {
        memset(part + b * C, 0, (size_t)C * sizeof *part);
        for (int64_t t = b * ROWS; t < MIN((b + 1) * ROWS, T); t++)
            cx->rows->rms_bwd(pd + t * C, part + b * C, py + t * C, px + t * C, pw, pr[t], C, true);
    }
    sum_blocks(cx, dw->data, part, blocks, C);
    return 0;
}

int cpu_headnorm_fwd(struct ctx *cx, struct tensor *y, struct tensor *rstd, const struct tensor *x,
                     const struct tensor *w, float eps)
{
    const int64_t T = y->dim[0], D = w->dim[0], n = y->dim[1] / D;
    float *py = y->data, *pr = rstd->data;
    const float *px = x->data, *pw = w->data;
#pragma omp parallel for schedule(static) num_threads(cpu_team(cx, T *n *D))
    for (int64_t t = 0; t < T; t++)
        for (int64_t h = 0; h < n; h++) {
            const float *s = px + t * x->ld + h * D;
            pr[t * n + h] = rstd_of(cx->rows->dot(s, s, D), D, eps);
            cx->rows->rms_scale(py + t * y->ld + h * D, s, pw, pr[t * n + h], D);
        }
    return 0;
}

int cpu_headnorm_bwd(struct ctx *cx, struct tensor *dx, struct tensor *dw, const struct tensor *dy,
                     const struct tensor *x, const struct tensor *w, const struct tensor *rstd,
                     struct tensor *scratch)
{
    const int64_t T = dy->dim[0], D = w->dim[0], n = dy->dim[1] / D, blocks = div_up(T, ROWS);
    float *part = scratch->data, *pd = dx->data;
    const float *py = dy->data, *px = x->data, *pw = w->data, *pr = rstd->data;
#pragma omp parallel for schedule(static) num_threads(cpu_team(cx, T *n *D))
    for (int64_t b = 0; b < blocks; b++) {
        memset(part + b * D, 0, (size_t)D * sizeof *part);
        for (int64_t t = b * ROWS; t < MIN((b + 1) * ROWS, T); t++)
            for (int64_t h = 0; h < n; h++)
                cx->rows->rms_bwd(pd + t * dx->ld + h * D, part + b * D, py + t * dy->ld + h * D,
                                  px + t * x->ld + h * D, pw, pr[t * n + h], D, false);
    }
    sum_blocks(cx, dw->data, part, blocks, D);
    return 0;
}
