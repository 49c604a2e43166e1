/* SPDX-License-Identifier: MIT
 * rows_dots.h - products of few rows, as in decoding: y = x w^T. Blocks of x stay in the L1 cache while w passes; K runs
 * along the vectors' lanes, so w is read as it lies. Private to rows.c. */
#ifndef BDPO_ROWS_DOTS_H
#define BDPO_ROWS_DOTS_H
#include "rows_vec.h"

/* DM rows of x by DN of w are summed in registers, or one by DN_FEW and two by DN_TWO, which read from more places at a time; UNIT
 * elements a step. */
enum {
    DM = W == 16 ? 8 : 6,
    DN = W == 16 ? 3 : 2,
    DN_FEW = 6,
    DN_TWO = 4,
    UNIT = 2 * W,
    L1 = 28 * 1024,
    COLUMNS = 64 /* the most rows of w at a time */
};
/* w is float; w is bfloat16; both are, and the processor multiplies pairs of them */
enum dots_kind { DOTS_FLOATS, DOTS_HALVES, DOTS_PAIRS };

typedef vi vi_mem __attribute__((aligned(1), may_alias));

/* v stays in its register: a load that several products use would be repeated in each */
#if !defined(KEEP)
#define KEEP(v) __asm__("" : "+v"(v))
#endif

INLINE enum dots_kind dots_kind(bool xhalf, bool whalf)
{
#if defined(__AVX512BF16__)
    if (xhalf && whalf) return DOTS_PAIRS;
#endif
    (void)xhalf;
    return whalf ? DOTS_HALVES : DOTS_FLOATS;
}

/* vectors of a step */
INLINE int64_t per_step(enum dots_kind kind)
{
    return kind == DOTS_PAIRS ? 1 : 2;
}

/* A panel of x has blocks of DM rows: [steps][per_step][DM][W], 0 behind K. For halves a step's even elements come first,
 * then its odd ones: these are the lower and the upper halves of w's words. */
INLINE void pack_step(float *to, const float *x, enum dots_kind kind)
{
    for (int i = 0; i < W; i++) {
        to[i] = x[kind == DOTS_HALVES ? 2 * i : i];
        to[DM * W + i] = x[kind == DOTS_HALVES ? 2 * i + 1 : W + i];
    }
}

INLINE void pack_row(float *to, const void *x, bool xhalf, enum dots_kind kind, int64_t K)
{
    for (int64_t k = 0; k < K; k += UNIT, to += per_step(kind) * DM * W) {
        const int64_t n = MIN(UNIT, K - k);
        float t[UNIT] = { 0 };
        if (kind == DOTS_PAIRS) {
            memcpy(t, (const uint16_t *)x + k, (size_t)n * 2);
            st(to, ld(t));
            continue;
        }
        if (!xhalf)
            memcpy(t, (const float *)x + k, (size_t)n * 4);
        else if (n == UNIT) {
            st(t, ld_half((const uint16_t *)x + k));
            st(t + W, ld_half((const uint16_t *)x + k + W));
        } else {
            st(t, ld_half_n((const uint16_t *)x + k, n));
            if (n > W) st(t + W, ld_half_n((const uint16_t *)x + k + W, n - W));
        }
        pack_step(to, t, kind);
    }
}

static void dots_pack(float *panel, int64_t i, const void *x, bool xhalf, bool whalf, int64_t K)
{
    const enum dots_kind kind = dots_kind(xhalf, whalf);
    const int64_t row = (K + UNIT - 1) / UNIT * per_step(kind) * W;
    float *to = panel + i / DM * DM * row + i % DM * W;
    if (kind == DOTS_HALVES)
        pack_row(to, x, xhalf, DOTS_HALVES, K);
    else if (kind == DOTS_FLOATS)
        pack_row(to, x, xhalf, DOTS_FLOATS, K);
    else
        pack_row(to, x, true, DOTS_PAIRS, K);
}

/* One vector of each of c rows of w against m of x */
INLINE void dots_add(int m, int c, vf *s, const float *x, const vf *b, enum dots_kind kind)
{
    UNROLL
    for (int i = 0; i < m; i++) {
        vf a = ld(x + i * W);
        KEEP(a);
        for (int j = 0; j < c; j++) {
#if defined(__AVX512BF16__)
            if (kind == DOTS_PAIRS) {
                vf *t = &s[c * i + j];
                *t = (vf)_mm512_dpbf16_ps((vreg)*t, (__m512bh)a, (__m512bh)b[j]);
                continue;
            }
#endif
            s[c * i + j] += a * b[j];
        }
    }
    (void)kind;
}

/* A step: w holds addresses of c rows' elements, `at` bytes further on. */
INLINE void dots_step(int m, int c, vf *s, const float *x, const char *const *w, int64_t at, vi upper,
                      enum dots_kind kind)
{
    vf b[DN_FEW];
    for (int j = 0; j < c; j++) {
        const vi word = *(const vi_mem *)(w[j] + at);
        b[j] = (vf)(kind == DOTS_HALVES ? word << 16 : word);
        KEEP(b[j]);
    }
    dots_add(m, c, s, x, b, kind);
    if (kind == DOTS_PAIRS) return;
    for (int j = 0; j < c; j++) {
        const vi word = *(const vi_mem *)(w[j] + at + (kind == DOTS_HALVES ? 0 : W * 4));
        b[j] = (vf)(kind == DOTS_HALVES ? word & upper : word);
        KEEP(b[j]);
    }
    dots_add(m, c, s, x + DM * W, b, kind);
}

/* The sums of four vectors' lanes */
INLINE __m128 sums4(const vf *s, int64_t step, int n)
{
    vf v[4] = { { 0 } };
    for (int i = 0; i < n; i++)
        v[i] = s[i * step];
#if defined(__AVX512F__)
    const __m512 p = _mm512_add_ps(_mm512_unpacklo_ps((vreg)v[0], (vreg)v[1]),
                                   _mm512_unpackhi_ps((vreg)v[0], (vreg)v[1]));
    const __m512 q = _mm512_add_ps(_mm512_unpacklo_ps((vreg)v[2], (vreg)v[3]),
                                   _mm512_unpackhi_ps((vreg)v[2], (vreg)v[3]));
    const __m512 r = _mm512_add_ps((vreg)_mm512_unpacklo_pd((vd)p, (vd)q),
                                   (vreg)_mm512_unpackhi_pd((vd)p, (vd)q));
    const __m256 y = _mm256_add_ps(_mm512_castps512_ps256(r), _mm512_extractf32x8_ps(r, 1));
#elif defined(__AVX2__)
    const __m256 p = _mm256_add_ps(_mm256_unpacklo_ps((vreg)v[0], (vreg)v[1]),
                                   _mm256_unpackhi_ps((vreg)v[0], (vreg)v[1]));
    const __m256 q = _mm256_add_ps(_mm256_unpacklo_ps((vreg)v[2], (vreg)v[3]),
                                   _mm256_unpackhi_ps((vreg)v[2], (vreg)v[3]));
    const __m256 y = _mm256_add_ps((vreg)_mm256_unpacklo_pd((vd)p, (vd)q),
                                   (vreg)_mm256_unpackhi_pd((vd)p, (vd)q));
#endif
#if defined(__AVX2__)
    return _mm_add_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
#else
    __m128 a = (vreg)v[0], b = (vreg)v[1], c = (vreg)v[2], d = (vreg)v[3];
    _MM_TRANSPOSE4_PS(a, b, c, d);
    return _mm_add_ps(_mm_add_ps(a, b), _mm_add_ps(c, d));
#endif
}

struct dots_part {         /* steps [from, end) of a block of x and some rows of w */
    const float *x;        /* the block's panel */
    const char *w[DN_FEW]; /* the rows */
    int64_t from, end, K;  /* steps; K in elements */
    vf *sums;              /* of earlier steps, unless from is 0, and of these, unless they are the last */
};

/* m rows by c, of which n count: y[m, n] where these steps are the last */
INLINE void dots_tile(int m, int c, int n, float *y, int64_t ldy, const struct dots_part *p,
                      enum dots_kind kind)
{
    const int64_t size = kind == DOTS_FLOATS ? 4 : 2, step = per_step(kind) * DM * W;
    const int64_t whole = MIN(p->end, p->K / UNIT);
    const vi upper = (vi){ 0 } + INT32_C(-65536);
    vf s[DM * DN];
    UNROLL
    for (int i = 0; i < m * c; i++)
        s[i] = p->from ? p->sums[i] : (vf){ 0 };
    for (int64_t k = p->from; k < whole; k++)
        dots_step(m, c, s, p->x + k * step, p->w, k * UNIT * size, upper, kind);
    if (whole < p->end) { /* the last one is cut */
        float t[DN_FEW][UNIT] = { { 0 } };
        const char *at[DN_FEW];
        for (int j = 0; j < c; j++) {
            memcpy(t[j], p->w[j] + whole * UNIT * size, (size_t)((p->K - whole * UNIT) * size));
            at[j] = (const char *)t[j];
        }
        dots_step(m, c, s, p->x + whole * step, at, 0, upper, kind);
    }
    if (p->end * UNIT < p->K) {
        UNROLL
        for (int i = 0; i < m * c; i++)
            p->sums[i] = s[i];
        return;
    }
    for (int i = 0; i < m && m <= 2; i++) { /* four of a row */
        UNROLL
        for (int j = 0; j < c; j += 4) {
            float t[4];
            _mm_storeu_ps(t, sums4(s + c * i + j, 1, MIN(4, c - j)));
            for (int q = 0; q < MIN(4, n - j); q++)
                y[i * ldy + j + q] = t[q];
        }
    }
    UNROLL
    for (int i = 0; i < m && m > 2; i += 4) { /* of four rows */
        const int rows = MIN(4, m - i);
        UNROLL
        for (int j = 0; j < c; j++) {
            float t[4];
            _mm_storeu_ps(t, sums4(s + c * i + j, c, rows));
            for (int r = 0; r < rows && j < n; r++)
                y[(i + r) * ldy + j] = t[r];
        }
    }
}

/* rows of w that meet m rows of x at a time */
INLINE int columns_of(int64_t m)
{
    return m == 1 ? DN_FEW : m == 2 ? DN_TWO : DN;
}

/* dots_tile with constants, so that the sums stay in registers */
INLINE void dots_rows(int64_t m, int n, float *y, int64_t ldy, const struct dots_part *p,
                      enum dots_kind kind)
{
#define CASE(k)                                          \
    case k:                                              \
        dots_tile(k, columns_of(k), n, y, ldy, p, kind); \
        break
    switch (m) {
        CASE(1);
        CASE(2);
        CASE(3);
        CASE(4);
        CASE(5);
#if defined(__AVX512F__)
        CASE(6);
        CASE(7);
#endif
    default:
        dots_tile(DM, DN, n, y, ldy, p, kind);
    }
#undef CASE
}

/* The share i of n of some rows of w, `size` bytes each and ld apart */
INLINE void fetch(const char *w, int64_t ld, int64_t rows, int64_t size, int64_t i, int64_t n)
{
    for (int64_t r = 0; r < rows; r++)
        for (int64_t at = size * i / n; at < size * (i + 1) / n; at += 64)
            __builtin_prefetch(w + r * ld + at, 0, 2);
}

/* Blocks of x outside: they stay in the L1 cache, and w in the L2 cache, where each block fetches its share of the rows
 * that come next, so that memory is read at an even rate. */
INLINE void dots_of(float *y, int64_t ldy, const float *panel, int64_t M, const void *w,
                    int64_t ldw, int64_t N, int64_t next, int64_t K, enum dots_kind kind)
{
    vf sums[(COLUMNS + DN - 1) / DN][DM * DN];
    const int64_t size = kind == DOTS_FLOATS ? 4 : 2, row = ldw * size;
    /* a block of x, the rows of w that meet it and the next ones */
    const int64_t step = DM * per_step(kind) * W * 4 + 2 * DN * UNIT * size, most = L1 / step;
    const int64_t steps = (K + UNIT - 1) / UNIT, cuts = (steps + most - 1) / most,
                  depth = (steps + cuts - 1) / cuts, shares = (M + DM - 1) / DM * cuts;
    for (int64_t i = 0, share = 0; i < M; i += DM)
        for (int64_t from = 0; from < steps; from += depth, share++)
            for (int64_t j = 0, c = columns_of(M - i); j < N; j += c) {
                const int64_t n = MIN(c, N - j), end = MIN(from + depth, steps);
                struct dots_part p = { .x = panel + i * steps * per_step(kind) * W,
                                       .from = from,
                                       .end = end,
                                       .K = K,
                                       .sums = sums[j / DN] };
                for (int64_t q = 0; q < c; q++)
                    p.w[q] = (const char *)w + MIN(j + q, N - 1) * row;
                dots_rows(M - i, (int)n, y + i * ldy + j, ldy, &p, kind);
                if (M > 2) /* else w comes faster without */
                    fetch((const char *)w + (N + j) * row, row, MIN(c, next - j), K * size, share,
                          shares);
            }
}

static void dots(float *y, int64_t ldy, const float *panel, bool xhalf, int64_t M, const void *w,
                 int64_t ldw, bool whalf, int64_t N, int64_t next, int64_t K)
{
    switch (dots_kind(xhalf, whalf)) {
    case DOTS_FLOATS:
        dots_of(y, ldy, panel, M, w, ldw, N, next, K, DOTS_FLOATS);
        break;
    case DOTS_HALVES:
        dots_of(y, ldy, panel, M, w, ldw, N, next, K, DOTS_HALVES);
        break;
    case DOTS_PAIRS:
#if defined(__AVX512BF16__)
        dots_of(y, ldy, panel, M, w, ldw, N, next, K, DOTS_PAIRS);
#endif
        break;
    }
}
#define DOTS      dots
#define DOTS_PACK dots_pack
#define DOTS_UNIT 6 /* of DN, 2 and 3 */
#endif
