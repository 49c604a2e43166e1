/* SPDX-License-Identifier: MIT */
#include "cpu.h"
#include <string.h>

enum { COLS = 256, ROWS = 64 };

int cpu_bias_fwd(struct ctx *cx, struct tensor *y, const struct tensor *b)
{
    const int64_t T = y->dim[0], N = y->dim[1];
    float *py = y->data;
    const float *pb = b->data;
#pragma omp parallel for schedule(static) num_threads(cpu_team(cx, T *N))
    for (int64_t t = 0; t < T; t++)
        cx->rows->add(py + t * y->ld, pb, N);
    return 0;
}

/* one block of columns: rows are summed by 64, so that a long batch loses no bits */
static void bias_cols(const struct rows *r, float *db, const float *dy, int64_t ld, int64_t T,
                      int64_t n)
{
    float all[COLS] = { 0 };
    for (int64_t t0 = 0; t0 < T; t0 += ROWS) {
        float part[COLS] = { 0 };
        for (int64_t t = t0; t < MIN(t0 + ROWS, T); t++)
            r->add(part, dy + t * ld, n);
        r->add(all, part, n);
    }
    r->add(db, all, n);
}

int cpu_bias_bwd(struct ctx *cx, struct tensor *db, const struct tensor *dy)
{
    const int64_t T = dy->dim[0], N = dy->dim[1], blocks = div_up(N, COLS);
    float *pb = db->data;
    const float *py = dy->data;
#pragma omp parallel for schedule(static) num_threads(cpu_team(cx, T *N))
    for (int64_t c = 0; c < blocks; c++)
        bias_cols(cx->rows, pb + c * COLS, py + c * COLS, dy->ld, T, MIN(COLS, N - c * COLS));
    return 0;
}

int cpu_gather(struct ctx *cx, struct tensor *y, const struct tensor *x, const struct tensor *index)
{
    const int64_t n = y->dim[0], C = tensor_row(y), rows = x->dim[0];
    float *py = y->data;
    const float *px = x->data;
    const int32_t *at = index->data;
#pragma omp parallel for schedule(static) num_threads(cpu_team(cx, n *C))
    for (int64_t i = 0; i < n; i++) {
        BUG_IF(at[i] < 0 || at[i] >= rows);
        memcpy(py + i * C, px + at[i] * C, (size_t)C * sizeof *py);
    }
    return 0;
}

int cpu_scatter_add(struct ctx *cx, struct tensor *dx, const struct tensor *dy,
                    const struct tensor *index)
{
    const int64_t n = dy->dim[0], C = tensor_row(dy), rows = dx->dim[0], blocks = div_up(C, COLS);
    float *px = dx->data;
    const float *py = dy->data;
    const int32_t *at = index->data;
    /* by columns: each thread walks all rows in order, so repeated indices add in that order */
#pragma omp parallel for schedule(static) num_threads(cpu_team(cx, n *C))
    for (int64_t b = 0; b < blocks; b++)
        for (int64_t i = 0; i < n; i++) {
            BUG_IF(at[i] < 0 || at[i] >= rows);
            cx->rows->add(px + at[i] * C + b * COLS, py + i * C + b * COLS,
                          MIN(COLS, C - b * COLS));
        }
    return 0;
}

int cpu_rope(struct ctx *cx, struct tensor *x, int32_t head_size, const struct tensor *pos,
             const struct tensor *table, bool inverse)
{
    const int64_t T = x->dim[0], D = head_size, n = x->dim[1] / D, positions = table->dim[0];
    float *px = x->data;
    const float *tab = table->data;
    const int32_t *at = pos->data;
#pragma omp parallel for schedule(static) num_threads(cpu_team(cx, T *n *D))
    for (int64_t t = 0; t < T; t++) {
        BUG_IF(at[t] < 0 || at[t] >= positions);
        const float *c = tab + at[t] * D, *s = c + D / 2;
        for (int64_t h = 0; h < n; h++)
            cx->rows->rope(px + t * x->ld + h * D, c, s, inverse ? -1.0f : 1.0f, D / 2);
    }
    return 0;
}

int cpu_swiglu_fwd(struct ctx *cx, struct tensor *y, const struct tensor *gu)
{
    const int64_t T = y->dim[0], F = y->dim[1];
    float *py = y->data;
    const float *pg = gu->data;
#pragma omp parallel for schedule(static) num_threads(cpu_team(cx, 8 * T * F))
    for (int64_t t = 0; t < T; t++)
        cx->rows->swiglu(py + t * F, pg + t * 2 * F, pg + t * 2 * F + F, F);
    return 0;
}

int cpu_swiglu_bwd(struct ctx *cx, struct tensor *dgu, const struct tensor *dy,
                   const struct tensor *gu)
{
    const int64_t T = dy->dim[0], F = dy->dim[1];
    float *pd = dgu->data;
    const float *py = dy->data, *pg = gu->data;
#pragma omp parallel for schedule(static) num_threads(cpu_team(cx, 8 * T * F))
    for (int64_t t = 0; t < T; t++)
        cx->rows->swiglu_bwd(pd + t * 2 * F, pd + t * 2 * F + F, py + t * F, pg + t * 2 * F,
                             pg + t * 2 * F + F, F);
    return 0;
}

int cpu_add(struct ctx *cx, struct tensor *y, const struct tensor *x)
{
    enum { PART = 16384 };
    const int64_t n = tensor_count(y), parts = div_up(n, PART);
    float *py = y->data;
    const float *px = x->data;
#pragma omp parallel for schedule(static) num_threads(cpu_team(cx, n))
    for (int64_t i = 0; i < parts; i++)
        cx->rows->add(py + i * PART, px + i * PART, MIN(PART, n - i * PART));
    return 0;
}

int cpu_cast(struct ctx *cx, struct tensor *y, const struct tensor *x)
{
    (void)cx;
    BUG_IF(y->dtype != DT_F32 || x->dtype != DT_F32);
    memcpy(y->data, x->data, (size_t)tensor_count(y) * 4);
    return 0;
}

int cpu_fill(struct ctx *cx, struct tensor *y, float value)
{
    const int64_t n = tensor_count(y);
    if (y->dtype == DT_I32) {
        int32_t *p = y->data;
        const int32_t v = (int32_t)value;
#pragma omp parallel for schedule(static) num_threads(cpu_team(cx, n))
        for (int64_t i = 0; i < n; i++)
            p[i] = v;
    } else {
        float *p = y->data;
#pragma omp parallel for schedule(static) num_threads(cpu_team(cx, n))
        for (int64_t i = 0; i < n; i++)
            p[i] = value;
    }
    return 0;
}
