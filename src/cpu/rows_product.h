/* SPDX-License-Identifier: MIT
 * rows_product.h - the inner loops of matrix products, for float and bfloat16. Private to rows.c. */
#ifndef BDPO_ROWS_PRODUCT_H
#define BDPO_ROWS_PRODUCT_H
#include "rows_vec.h"

/* TB x TB elements, transposed in registers */
#if defined(__AVX2__)
enum { TB = 8 };
typedef __m256 tvec;
INLINE tvec tvec_ld(const void *p, int64_t at, bool half)
{
    if (!half) return _mm256_loadu_ps((const float *)p + at);
    const __m128i x = _mm_loadu_si128((const __m128i_u *)((const uint16_t *)p + at));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
}
INLINE void transpose_tile(float *out, int64_t lo, tvec *r)
{
    __m256 t[8];
    for (int i = 0; i < 4; i++) {
        t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 2; i++) {
        r[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
        r[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
        r[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
        r[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
    }
    for (int i = 0; i < 4; i++) {
        _mm256_storeu_ps(out + i * lo, _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
        _mm256_storeu_ps(out + (i + 4) * lo, _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
    }
}
#else
enum { TB = 4 };
typedef __m128 tvec;
INLINE tvec tvec_ld(const void *p, int64_t at, bool half)
{
    return half ? (tvec)ld_half((const uint16_t *)p + at) : _mm_loadu_ps((const float *)p + at);
}
INLINE void transpose_tile(float *out, int64_t lo, tvec *r)
{
    _MM_TRANSPOSE4_PS(r[0], r[1], r[2], r[3]);
    for (int i = 0; i < 4; i++)
        _mm_storeu_ps(out + i * lo, r[i]);
}
#endif

INLINE float at_half(const uint16_t *p)
{
    return float_of((uint32_t)*p << 16);
}

/* mr x (2 W or c) of the product, all in registers */
INLINE void tile2(int mr, float *c, int64_t ldc, const float *a, int64_t row, int64_t col,
                  const float *b, int64_t ldb, int64_t K, bool add_c)
{
    vf s[MR][2];
    for (int i = 0; i < mr; i++)
        s[i][0] = s[i][1] = (vf){ 0 };
    for (int64_t k = 0; k < K; k++) {
        const vf b0 = ld(b + k * ldb), b1 = ld(b + k * ldb + W);
        for (int i = 0; i < mr; i++) {
            const float x = a[i * row + k * col];
            s[i][0] += b0 * x;
            s[i][1] += b1 * x;
        }
    }
    UNROLL
    for (int i = 0; i < mr; i++) {
        float *p = c + i * ldc;
        if (add_c) s[i][0] += ld(p), s[i][1] += ld(p + W);
        st(p, s[i][0]);
        st(p + W, s[i][1]);
    }
}

INLINE void tile1(int mr, float *c, int64_t ldc, const float *a, int64_t row, int64_t col,
                  const float *b, int64_t ldb, int64_t n, int64_t K, bool add_c)
{
    vf s[MR];
    for (int i = 0; i < mr; i++)
        s[i] = (vf){ 0 };
    for (int64_t k = 0; k < K; k++) {
        const vf b0 = ld_n(b + k * ldb, n, 0);
        for (int i = 0; i < mr; i++)
            s[i] += b0 * a[i * row + k * col];
    }
    UNROLL
    for (int i = 0; i < mr; i++) {
        float *p = c + i * ldc;
        if (add_c) s[i] += ld_n(p, n, 0);
        st_n(p, s[i], n);
    }
}

INLINE void strip(int mr, float *c, int64_t ldc, const float *a, int64_t row, int64_t col,
                  const float *b, int64_t ldb, int64_t N, int64_t K, bool add_c)
{
    int64_t j = 0;
    for (; j + 2 * W <= N; j += 2 * W)
        tile2(mr, c + j, ldc, a, row, col, b + j, ldb, K, add_c);
    for (; j < N; j += W)
        tile1(mr, c + j, ldc, a, row, col, b + j, ldb, N - j, K, add_c);
}

static void block(float *c, int64_t ldc, const float *a, int64_t row, int64_t col, const float *b,
                  int64_t ldb, int64_t M, int64_t N, int64_t K, bool add_c)
{
    int64_t i = 0;
    /* the last 8 are taken as 4 and 4: a strip of 2 waits for its sums */
    for (; i + MR <= M && M - i != 8; i += MR)
        strip(MR, c + i * ldc, ldc, a + i * row, row, col, b, ldb, N, K, add_c);
    for (; i + 4 <= M; i += 4)
        strip(4, c + i * ldc, ldc, a + i * row, row, col, b, ldb, N, K, add_c);
    for (; i + 2 <= M; i += 2)
        strip(2, c + i * ldc, ldc, a + i * row, row, col, b, ldb, N, K, add_c);
    if (i < M) strip(1, c + i * ldc, ldc, a + i * row, row, col, b, ldb, N, K, add_c);
}

/* rows of x are its columns in the panel */
INLINE void pack_across(float *out, int64_t width, const void *x, int64_t ldx, bool half, int64_t n,
                        int64_t K)
{
    const int64_t full = K - K % TB;
    for (int64_t i0 = 0; i0 < width; i0 += TB) {
        const int64_t m = MAX(MIN(n - i0, TB), 0);
        for (int64_t k = 0; k < full; k += TB) {
            tvec r[TB];
            for (int i = 0; i < TB; i++)
                r[i] = i < m ? tvec_ld(x, (i0 + i) * ldx + k, half) : (tvec){ 0 };
            transpose_tile(out + k * width + i0, width, r);
        }
        for (int64_t k = full; k < K; k++)
            for (int64_t i = 0; i < TB; i++) {
                const int64_t at = (i0 + i) * ldx + k;
                float v = 0;
                if (i < m) v = half ? at_half((const uint16_t *)x + at) : ((const float *)x)[at];
                out[k * width + i0 + i] = v;
            }
    }
}

INLINE void pack_along(float *out, int64_t width, const void *x, int64_t ldx, bool half, int64_t n,
                       int64_t K)
{
    const bool whole = n >= width && width % W == 0;
    for (int64_t k = 0; k < K && whole; k++)
        for (int64_t i = 0; i < width; i += W) {
            const int64_t at = k * ldx + i;
            st(out + k * width + i,
               half ? ld_half((const uint16_t *)x + at) : ld((const float *)x + at));
        }
    if (whole) return;
    for (int64_t k = 0; k < K; k++) {
        int64_t i = 0;
        float *p = out + k * width;
        for (; i < n; i += W) {
            const int64_t at = k * ldx + i, c = n - i;
            const vf v = half ? ld_half_n((const uint16_t *)x + at, c)
                              : ld_n((const float *)x + at, c, 0);
            st_n(p + i, v, width - i);
        }
        for (; i < width; i++)
            p[i] = 0;
    }
}

static void pack(float *out, int64_t width, const void *x, int64_t ldx, bool half, bool across,
                 int64_t n, int64_t K)
{
    if (across && half)
        pack_across(out, width, x, ldx, true, n, K);
    else if (across)
        pack_across(out, width, x, ldx, false, n, K);
    else if (half)
        pack_along(out, width, x, ldx, true, n, K);
    else
        pack_along(out, width, x, ldx, false, n, K);
}

enum { PANEL_A = (MR + 7) / 8 * 8, PANEL_B = 2 * W };

static void tile(float *c, int64_t ldc, const float *a, int64_t step, const float *b, int64_t R,
                 bool add_c)
{
    vf s[MR][2];
    (void)step;
    for (int i = 0; i < MR; i++) {
        s[i][0] = s[i][1] = (vf){ 0 };
        __builtin_prefetch(c + i * ldc, 1);
        __builtin_prefetch(c + i * ldc + PANEL_B - 1, 1);
    }
    for (int64_t k = 0; k < R; k++) {
        const vf b0 = ld(b), b1 = ld(b + W);
        for (int i = 0; i < MR; i++) {
            s[i][0] += b0 * a[i];
            s[i][1] += b1 * a[i];
        }
        a += PANEL_A;
        b += PANEL_B;
    }
    for (int i = 0; i < MR; i++) {
        float *p = c + i * ldc;
        if (add_c) s[i][0] += ld(p), s[i][1] += ld(p + W);
        st(p, s[i][0]);
        st(p + W, s[i][1]);
    }
}

static const struct panels panels_floats = {
    .pack = pack,
    .tile = tile,
    .per = 1,
    .panel_a = PANEL_A,
    .panel_b = PANEL_B,
    .tile_rows = MR,
    .unit = 1,
    .depth = 256,
    .chunk = 256,
    .task_rows = 120 / MR * MR,
};

#if defined(__AVX512BF16__)
enum { PAIR_MR = 14, PAIR_A = 16, PAIR_B = 32, PAIR_TB = 16 };

/* 16 x 16 elements of 4 bytes, transposed in registers */
INLINE void transpose_pairs(float *out, int64_t lo, __m512i *r)
{
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; j++) {
            r[i + 2 * j] = _mm512_unpacklo_epi64(t[i + j], t[i + j + 2]);
            r[i + 2 * j + 1] = _mm512_unpackhi_epi64(t[i + j], t[i + j + 2]);
        }
    for (int i = 0; i < 4; i++) { /* r[i + 4 q]: columns i, 4 + i, 8 + i, 12 + i of rows 4 q.. */
        const __m512i x = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88),
                      y = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd),
                      z = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88),
                      w = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
        t[i] = _mm512_shuffle_i32x4(x, z, 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(y, w, 0x88);
        t[i + 8] = _mm512_shuffle_i32x4(x, z, 0xdd);
        t[i + 12] = _mm512_shuffle_i32x4(y, w, 0xdd);
    }
    for (int i = 0; i < 16; i++)
        _mm512_storeu_si512(out + i * lo, t[i]);
}

/* n lanes of 32 */
INLINE __mmask32 lanes32(int64_t n)
{
    return n >= 32 ? 0xffffffff : n <= 0 ? 0 : (1u << n) - 1;
}

static void pairs_across(float *out, int64_t width, const uint16_t *x, int64_t ldx, int64_t n,
                         int64_t K)
{
    for (int64_t i0 = 0; i0 < width; i0 += 16) {
        const int64_t m = MAX(MIN(n - i0, (int64_t)16), 0);
        for (int64_t k = 0; k < K; k += 32) {
            const __mmask32 some = lanes32(K - k);
            const int64_t rows = MIN((K - k + 1) / 2, (int64_t)16);
            __m512i r[16];
            float t[256];
            for (int i = 0; i < 16; i++)
                r[i] = _mm512_maskz_loadu_epi16(i < m ? some : 0, x + (i < m ? i0 + i : 0) * ldx + k);
            if (rows == 16) {
                transpose_pairs(out + k / 2 * width + i0, width, r);
                continue;
            }
            transpose_pairs(t, 16, r);
            for (int64_t i = 0; i < rows; i++)
                memcpy(out + (k / 2 + i) * width + i0, t + i * 16, 16 * sizeof *t);
        }
    }
}

/* Rows k and k + 1 of x, as pairs; behind K they are 0 */
INLINE __m512i pair_rows(const uint16_t *x, int64_t ldx, int64_t k, int64_t K, __mmask16 some)
{
    const __mmask16 first = k < K ? some : 0, second = k + 1 < K ? some : 0;
    const uint16_t *p = first ? x + k * ldx : x, *q = second ? p + ldx : p;
    const __m512i a = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first, p)),
                  b = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(second, q));
    return _mm512_or_si512(a, _mm512_slli_epi32(b, 16));
}

static void pairs_along(float *out, int64_t width, const uint16_t *x, int64_t ldx, int64_t n,
                        int64_t K)
{
    for (int64_t k = 0; k < K; k += 2)
        for (int64_t i = 0; i < width; i += 16) {
            const __mmask16 some = (__mmask16)lanes32(MIN(n - i, (int64_t)16));
            _mm512_storeu_si512(out + k / 2 * width + i, pair_rows(x + i, ldx, k, K, some));
        }
}

static void pack_pairs(float *out, int64_t width, const void *x, int64_t ldx, bool half,
                       bool across, int64_t n, int64_t K)
{
    (void)half;
    if (across)
        pairs_across(out, width, x, ldx, n, K);
    else
        pairs_along(out, width, x, ldx, n, K);
}

static void tile_pairs(float *c, int64_t ldc, const float *a, int64_t step, const float *b,
                       int64_t R, bool add_c)
{
    __m512 s[PAIR_MR][2];
    (void)step;
    for (int i = 0; i < PAIR_MR; i++) {
        s[i][0] = s[i][1] = _mm512_setzero_ps();
        __builtin_prefetch(c + i * ldc, 1);
        __builtin_prefetch(c + i * ldc + PAIR_B - 1, 1);
    }
    for (int64_t k = 0; k < R; k++) {
        const __m512bh b0 = (__m512bh)_mm512_loadu_ps(b), b1 = (__m512bh)_mm512_loadu_ps(b + 16);
        for (int i = 0; i < PAIR_MR; i++) {
            const __m512bh x = (__m512bh)_mm512_set1_ps(a[i]);
            s[i][0] = _mm512_dpbf16_ps(s[i][0], x, b0);
            s[i][1] = _mm512_dpbf16_ps(s[i][1], x, b1);
        }
        a += PAIR_A;
        b += PAIR_B;
    }
    for (int i = 0; i < PAIR_MR; i++) {
        float *p = c + i * ldc;
        if (add_c) {
            s[i][0] = _mm512_add_ps(s[i][0], _mm512_loadu_ps(p));
            s[i][1] = _mm512_add_ps(s[i][1], _mm512_loadu_ps(p + 16));
        }
        _mm512_storeu_ps(p, s[i][0]);
        _mm512_storeu_ps(p + 16, s[i][1]);
    }
}

static const struct panels panels_pairs = {
    .pack = pack_pairs,
    .tile = tile_pairs,
    .per = 2,
    .panel_a = PAIR_A,
    .panel_b = PAIR_B,
    .tile_rows = PAIR_MR,
    .unit = 1,
    .depth = 512,
    .chunk = 512,
    .task_rows = 168,
};

INLINE __m512bh pair_at(const uint16_t *p)
{
    int32_t x;
    memcpy(&x, p, sizeof x);
    return (__m512bh)_mm512_set1_epi32(x);
}

/* mr rows by v vectors */
INLINE void strip_pairs(int mr, int v, float *c, int64_t ldc, const uint16_t *a, int64_t row,
                        const float *b, int64_t ldb, int64_t K)
{
    __m512 s[MR][2];
    for (int i = 0; i < mr; i++)
        s[i][0] = s[i][1] = _mm512_setzero_ps();
    for (int64_t k = 0; k < K; k += 2, b += ldb) {
        const __m512bh b0 = (__m512bh)_mm512_loadu_ps(b);
        const __m512bh b1 = v > 1 ? (__m512bh)_mm512_loadu_ps(b + 16) : b0;
        for (int i = 0; i < mr; i++) {
            const __m512bh x = pair_at(a + i * row + k);
            s[i][0] = _mm512_dpbf16_ps(s[i][0], x, b0);
            if (v > 1) s[i][1] = _mm512_dpbf16_ps(s[i][1], x, b1);
        }
    }
    UNROLL
    for (int i = 0; i < mr; i++) {
        _mm512_storeu_ps(c + i * ldc, s[i][0]);
        if (v > 1) _mm512_storeu_ps(c + i * ldc + 16, s[i][1]);
    }
}

INLINE void rows_pairs(int mr, float *c, int64_t ldc, const uint16_t *a, int64_t row,
                       const float *b, int64_t ldb, int64_t N, int64_t K)
{
    int64_t j = 0;
    for (; j + 32 <= N; j += 32)
        strip_pairs(mr, 2, c + j, ldc, a, row, b + j, ldb, K);
    for (; j < N; j += 16)
        strip_pairs(mr, 1, c + j, ldc, a, row, b + j, ldb, K);
}

static void block_pairs(float *c, int64_t ldc, const uint16_t *a, int64_t row, const float *b,
                        int64_t ldb, int64_t M, int64_t N, int64_t K)
{
    int64_t i = 0;
    for (; i + MR <= M; i += MR)
        rows_pairs(MR, c + i * ldc, ldc, a + i * row, row, b, ldb, N, K);
    for (; i + 4 <= M; i += 4)
        rows_pairs(4, c + i * ldc, ldc, a + i * row, row, b, ldb, N, K);
    for (; i < M; i++)
        rows_pairs(1, c + i * ldc, ldc, a + i * row, row, b, ldb, N, K);
}

#define PANELS_PAIRS &panels_pairs
#define BLOCK_PAIRS  block_pairs
#else
#define PANELS_PAIRS NULL
#define BLOCK_PAIRS  NULL
#endif
#endif
