/* SPDX-License-Identifier: MIT */
#include "cpu.h"
#include "../ops/nf4.h"
#include "../ops/stochastic.h"
#include <math.h>
#include <string.h>

/* COLS: elements that are widened at a time; ROWS: of a partial sum of bias_sums */
enum { COLS = 256, ROWS = 64, PART = 16384 };

/* y[0..n) += x[0..n) from element `at` and `from` of y and x */
static void add_part(const struct rows *r, void *y, enum dtype y_dtype, int64_t at, const void *x,
                     enum dtype x_dtype, int64_t from, int64_t n)
{
    float a[COLS], b[COLS];
    if (y_dtype == DT_F32 && x_dtype == DT_F32) {
        r->add((float *)y + at, (const float *)x + from, n);
        return;
    }
    for (int64_t i = 0; i < n; i += COLS) {
        const int64_t k = MIN(COLS, n - i);
        float *sum = cpu_write(a, y, y_dtype, at + i);
        if (sum == a) r->widen(a, (const uint16_t *)y + at + i, k);
        r->add(sum, cpu_read(r, b, x, x_dtype, from + i, k), k);
        cpu_wrote(r, sum, y, y_dtype, at + i, k);
    }
}

/* columns [c, c + n): rows are summed by 64, so that a long batch loses no bits */
static void bias_cols(const struct rows *r, float *db, const struct tensor *dy, int64_t c,
                      int64_t n)
{
    float all[COLS] = { 0 }, buf[COLS];
    for (int64_t t0 = 0; t0 < dy->dim[0]; t0 += ROWS) {
        float part[COLS] = { 0 };
        for (int64_t t = t0; t < MIN(t0 + ROWS, dy->dim[0]); t++)
            r->add(part, cpu_read(r, buf, dy->data, dy->dtype, t * dy->ld + c, n), n);
        r->add(all, part, n);
    }
    r->add(db + c, all, n);
}

void cpu_bias_sums(const struct ctx *cx, struct tensor *db, const struct tensor *dy)
{
    const int64_t T = dy->dim[0], N = dy->dim[1], blocks = div_up(N, COLS);
    float *pb = db->data;
#pragma omp parallel for schedule(static) num_threads(cpu_team(cx, T *N))
    for (int64_t c = 0; c < blocks; c++)
        bias_cols(cx->rows, pb, dy, c * COLS, MIN(COLS, N - c * COLS));
}

int cpu_put_rows(struct ctx *cx, struct tensor *y, const struct tensor *x,
                 const struct tensor *index)
{
    const int64_t n = x->dim[0], C = x->dim[1], rows = y->dim[0], size = dtype_size(y->dtype);
    const int32_t *at = index->data;
#pragma omp parallel for schedule(static) num_threads(cpu_team(cx, n *C))
    for (int64_t i = 0; i < n; i++) {
        BUG_IF(at[i] < 0 || at[i] >= rows);
        memcpy((char *)y->data + at[i] * C * size, (const char *)x->data + i * x->ld * size,
               (size_t)(C * size));
    }
    return 0;
}

int cpu_gather(struct ctx *cx, struct tensor *y, const struct tensor *x, const struct tensor *index)
{
    const int64_t n = y->dim[0], C = tensor_row(y), rows = x->dim[0], size = dtype_size(y->dtype);
    char *py = y->data;
    const char *px = x->data;
    const int32_t *at = index->data;
#pragma omp parallel for schedule(static) num_threads(cpu_team(cx, n *C))
    for (int64_t i = 0; i < n; i++) {
        BUG_IF(at[i] < 0 || at[i] >= rows);
        memcpy(py + i * C * size, px + at[i] * C * size, (size_t)(C * size));
    }
    return 0;
}

int cpu_scatter_add(struct ctx *cx, struct tensor *dx, const struct tensor *dy,
                    const struct tensor *index)
{
    const int64_t n = dy->dim[0], C = tensor_row(dy), rows = dx->dim[0], blocks = div_up(C, COLS);
    const int32_t *at = index->data;
    /* by columns: each thread walks all rows in order, so repeated indices add in that order */
#pragma omp parallel for schedule(static) num_threads(cpu_team(cx, n *C))
    for (int64_t b = 0; b < blocks; b++)
        for (int64_t i = 0; i < n; i++) {
            BUG_IF(at[i] < 0 || at[i] >= rows);
            add_part(cx->rows, dx->data, dx->dtype, at[i] * C + b * COLS, dy->data, dy->dtype,
                     i * C + b * COLS, MIN(COLS, C - b * COLS));
        }
    return 0;
}

/* one head of bfloat16 at element `at`: a piece of each half beside the other, as rows->rope wants
 * them */
static void rope_half(const struct rows *r, uint16_t *x, const float *c, const float *s, float sign,
                      int64_t half)
{
    float buf[2 * COLS];
    for (int64_t i = 0; i < half; i += COLS) {
        const int64_t n = MIN(COLS, half - i);
        r->widen(buf, x + i, n);
        r->widen(buf + n, x + half + i, n);
        r->rope(buf, c + i, s + i, sign, n);
        r->narrow(x + i, buf, n);
        r->narrow(x + half + i, buf + n, n);
    }
}

int cpu_rope(struct ctx *cx, struct tensor *x, int32_t head_size, const struct tensor *pos,
             const struct tensor *table, bool inverse)
{
    const int64_t T = x->dim[0], D = head_size, n = x->dim[1] / D, positions = table->dim[0];
    const float *tab = table->data, sign = inverse ? -1.0f : 1.0f;
    const int32_t *at = pos->data;
#pragma omp parallel for schedule(static) num_threads(cpu_team(cx, 4 * T * n * D))
    for (int64_t t = 0; t < T; t++) {
        BUG_IF(at[t] < 0 || at[t] >= positions);
        const float *c = tab + at[t] * D, *s = c + D / 2;
        for (int64_t h = 0; h < n; h++) {
            void *p = cpu_at(x->data, x->dtype, t * x->ld + h * D);
            if (x->dtype == DT_BF16)
                rope_half(cx->rows, p, c, s, sign, D / 2);
            else
                cx->rows->rope(p, c, s, sign, D / 2);
        }
    }
    return 0;
}

int cpu_swiglu_fwd(struct ctx *cx, struct tensor *y, const struct tensor *gu)
{
    const int64_t T = y->dim[0], F = y->dim[1], step = y->dtype == DT_F32 ? MAX(F, 1) : COLS;
    const struct rows *r = cx->rows;
#pragma omp parallel for schedule(static) num_threads(cpu_team(cx, 8 * T * F))
    for (int64_t t = 0; t < T; t++)
        for (int64_t i = 0; i < F; i += step) {
            float g[COLS], u[COLS], buf[COLS];
            const int64_t n = MIN(step, F - i), at = t * 2 * F + i;
            float *out = cpu_write(buf, y->data, y->dtype, t * F + i);
            r->swiglu(out, cpu_read(r, g, gu->data, gu->dtype, at, n),
                      cpu_read(r, u, gu->data, gu->dtype, at + F, n), n);
            cpu_wrote(r, out, y->data, y->dtype, t * F + i, n);
        }
    return 0;
}

int cpu_swiglu_bwd(struct ctx *cx, struct tensor *dgu, struct tensor *y, const struct tensor *dy,
                   const struct tensor *gu)
{
    const int64_t T = dy->dim[0], F = dy->dim[1], step = dy->dtype == DT_F32 ? MAX(F, 1) : COLS;
    const struct rows *r = cx->rows;
#pragma omp parallel for schedule(static) num_threads(cpu_team(cx, 8 * T * F))
    for (int64_t t = 0; t < T; t++)
        for (int64_t i = 0; i < F; i += step) {
            float g[COLS], u[COLS], d[COLS];
            const int64_t n = MIN(step, F - i), at = t * 2 * F + i, from = t * F + i;
            float *out = y ? cpu_write(d, y->data, y->dtype, from) : NULL;
            float *dg = cpu_write(g, dgu->data, dgu->dtype, at),
                  *du = cpu_write(u, dgu->data, dgu->dtype, at + F);
            r->swiglu_bwd(dg, du, out, cpu_read(r, d, dy->data, dy->dtype, from, n),
                          cpu_read(r, g, gu->data, gu->dtype, at, n),
                          cpu_read(r, u, gu->data, gu->dtype, at + F, n), n);
            cpu_wrote(r, dg, dgu->data, dgu->dtype, at, n);
            cpu_wrote(r, du, dgu->data, dgu->dtype, at + F, n);
            if (y) cpu_wrote(r, out, y->data, y->dtype, from, n);
        }
    return 0;
}

int cpu_add(struct ctx *cx, struct tensor *y, const struct tensor *x)
{
    const int64_t n = tensor_count(y), parts = div_up(n, PART);
#pragma omp parallel for schedule(static) num_threads(cpu_team(cx, n))
    for (int64_t i = 0; i < parts; i++)
        add_part(cx->rows, y->data, y->dtype, i * PART, x->data, x->dtype, i * PART,
                 MIN(PART, n - i * PART));
    return 0;
}

int cpu_cast(struct ctx *cx, struct tensor *y, const struct tensor *x)
{
    const int64_t n = tensor_count(y), parts = div_up(n, PART), sy = dtype_size(y->dtype),
                  sx = dtype_size(x->dtype);
#pragma omp parallel for schedule(static) num_threads(cpu_team(cx, n))
    for (int64_t i = 0; i < parts; i++) {
        const int64_t k = MIN(PART, n - i * PART);
        char *to = (char *)y->data + i * PART * sy;
        const char *from = (const char *)x->data + i * PART * sx;
        if (y->dtype == x->dtype)
            memcpy(to, from, (size_t)(k * sy));
        else if (y->dtype == DT_F32)
            cx->rows->widen((float *)(void *)to, (const uint16_t *)(const void *)from, k);
        else
            cx->rows->narrow((uint16_t *)(void *)to, (const float *)(const void *)from, k);
    }
    return 0;
}

static void zero(void *p, int64_t bytes, int team)
{
#pragma omp parallel for schedule(static) num_threads(team)
    for (int i = 0; i < team; i++) {
        const int64_t from = bytes * i / team, to = bytes * (i + 1) / team;
        memset((char *)p + from, 0, (size_t)(to - from));
    }
}

int cpu_fill(struct ctx *cx, struct tensor *y, float value)
{
    const int64_t n = tensor_count(y);
    if (value == 0 && !signbit(value)) { /* nearly always, and memset is the fastest */
        zero(y->data, n * dtype_size(y->dtype), cpu_team(cx, n));
        return 0;
    }
    if (y->dtype == DT_BF16) {
        uint16_t *p = y->data, v;
        cx->rows->narrow(&v, &value, 1);
#pragma omp parallel for schedule(static) num_threads(cpu_team(cx, n))
        for (int64_t i = 0; i < n; i++)
            p[i] = v;
        return 0;
    }
    uint32_t v;
    uint32_t *p = y->data;
    const int32_t whole = y->dtype == DT_I32 ? (int32_t)value : 0;
    if (y->dtype == DT_I32)
        memcpy(&v, &whole, sizeof v);
    else
        memcpy(&v, &value, sizeof v);
#pragma omp parallel for schedule(static) num_threads(cpu_team(cx, n))
    for (int64_t i = 0; i < n; i++)
        p[i] = v;
    return 0;
}

/* The sixteen values of a block are made once, and its elements looked up. */
int cpu_nf4(struct ctx *cx, struct tensor *y, const struct tensor *q, const struct tensor *absmax)
{
    static const float code[NF4_CODES] = NF4_TABLE;
    const int64_t blocks = tensor_count(absmax);
    const uint8_t *pq = q->data;
    const float *pa = absmax->data;
#pragma omp parallel for schedule(static) num_threads(cpu_team(cx, blocks *NF4_BLOCK))
    for (int64_t b = 0; b < blocks; b++) {
        const uint8_t *in = pq + b * (NF4_BLOCK / 2);
        uint16_t half[NF4_CODES];
        float full[NF4_CODES];
        for (int k = 0; k < NF4_CODES; k++)
            full[k] = code[k] * pa[b];
        if (y->dtype == DT_F32) {
            float *out = (float *)y->data + b * NF4_BLOCK;
            for (int i = 0; i < NF4_BLOCK / 2; i++) {
                out[2 * i] = full[in[i] >> 4];
                out[2 * i + 1] = full[in[i] & 15];
            }
            continue;
        }
        uint16_t *out = (uint16_t *)y->data + b * NF4_BLOCK;
        cx->rows->narrow(half, full, NF4_CODES);
        cx->rows->nf4(out, in, half);
    }
    return 0;
}

int cpu_nf4_scales(struct ctx *cx, struct tensor *absmax, const struct tensor *codes,
                   const struct tensor *most)
{
    const int64_t n = tensor_count(absmax);
    const float *table = nf4_scale_table(), *pm = most->data;
    const uint8_t *pc = codes->data;
    float *pa = absmax->data;
#pragma omp parallel for schedule(static) num_threads(cpu_team(cx, n))
    for (int64_t i = 0; i < n; i++)
        pa[i] = table[pc[i]] * pm[1 + i / NF4_GROUP] + pm[0];
    return 0;
}

/* One row, COLS at a time, which whole words of four elements decide. */
static void dropout_row(const struct rows *r, struct tensor *y, const struct tensor *x,
                        const struct dropout *drop, int64_t t, bool add)
{
    const int64_t K = x->dim[1];
    const uint32_t below = dropout_below(drop->p);
    const uint64_t word = (uint64_t)((drop->first + t) * div_up(K, 4));
    float in[COLS], out[COLS];
    for (int64_t c = 0; c < K; c += COLS) {
        const int64_t n = MIN(COLS, K - c), at = t * K + c;
        float *kept = add ? out : cpu_write(out, y->data, y->dtype, at);
        r->dropout(kept, cpu_read(r, in, x->data, x->dtype, at, n), drop->key,
                   word + (uint64_t)c / 4, below, n);
        if (add)
            add_part(r, y->data, y->dtype, at, kept, DT_F32, 0, n);
        else
            cpu_wrote(r, kept, y->data, y->dtype, at, n);
    }
}

int cpu_dropout(struct ctx *cx, struct tensor *y, const struct tensor *x,
                const struct dropout *drop, bool add)
{
    const int64_t T = x->dim[0], K = x->dim[1];
#pragma omp parallel for schedule(static) num_threads(cpu_team(cx, T *K))
    for (int64_t t = 0; t < T; t++)
        dropout_row(cx->rows, y, x, drop, t, add);
    return 0;
}
