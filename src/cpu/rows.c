/* SPDX-License-Identifier: MIT */
#include "rows_dots.h"
#include "rows_product.h"
#include "rows_tiles.h"
#include "../ops/split.h"
#include "../ops/stochastic.h"

enum { DROPOUT_WORDS = 16 };

#ifndef ROWS_ISA
#define ROWS_ISA base
#endif
#define PASTE_(a, b) a##b
#define PASTE(a, b)  PASTE_(a, b)
#define TEXT_(a)     #a
#define TEXT(a)      TEXT_(a)

/* These loops and others are written by hand: a compiler's is made for long rows, and many are short. */
static void add(float *y, const float *x, int64_t n)
{
#define STEP(i, c) st_n(y + (i), ld_n(y + (i), (c), 0) + ld_n(x + (i), (c), 0), (c))
    EACH(n, STEP);
#undef STEP
}

typedef uint32_t bits_mem __attribute__((may_alias));

static void widen(float *y, const uint16_t *x, int64_t n)
{
#define STEP(i, c) st_n(y + (i), ld_half_n(x + (i), (c)), (c))
    EACH(n, STEP);
#undef STEP
}

#if defined(__AVX512BF16__)
/* The instruction takes denormals as zero, so a block that has one goes the long way. */
static void narrow(uint16_t *y, const float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i += 16) {
        const __mmask16 some = first_lanes(n - i);
        const __m512 v = _mm512_maskz_loadu_ps(some, x + i);
        __m256i out = (__m256i)_mm512_cvtneps_pbh(v);
        if (_mm512_fpclass_ps_mask(v, 0x20)) {
            const __m512i u = _mm512_castps_si512(v),
                          odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1)),
                          near =
                              _mm512_add_epi32(_mm512_add_epi32(u, odd), _mm512_set1_epi32(0x7fff));
            const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
            out = _mm512_cvtepi32_epi16(_mm512_srli_epi32(near, 16));
            out = _mm256_mask_mov_epi16(out, nan, (__m256i)_mm512_cvtneps_pbh(v));
        }
        _mm256_mask_storeu_epi16(y + i, some, out);
    }
}
#else
#if defined(__AVX2__)
/* 8 halves, each in a lane of 32 bits */
INLINE __m256i near_halves(const float *x)
{
    const __m256 v = _mm256_loadu_ps(x);
    const __m256i u = _mm256_castps_si256(v), upper = _mm256_srli_epi32(u, 16);
    const __m256i odd = _mm256_and_si256(upper, _mm256_set1_epi32(1)),
                  near = _mm256_add_epi32(_mm256_add_epi32(u, odd), _mm256_set1_epi32(0x7fff)),
                  quiet = _mm256_or_si256(upper, _mm256_set1_epi32(0x40));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(_mm256_srli_epi32(near, 16), quiet, nan);
}
#endif

static void narrow(uint16_t *y, const float *x, int64_t n)
{
    const bits_mem *in = (const bits_mem *)x;
    int64_t i = 0;
#if defined(__AVX2__)
    for (; i + 16 <= n; i += 16) {
        const __m256i both = _mm256_packus_epi32(near_halves(x + i), near_halves(x + i + 8));
        _mm256_storeu_si256((__m256i_u *)(y + i), _mm256_permute4x64_epi64(both, 0xd8));
    }
    for (; i + 8 <= n; i += 8) {
        const __m256i h = near_halves(x + i);
        _mm_storeu_si128((__m128i_u *)(y + i), _mm_packus_epi32(_mm256_castsi256_si128(h),
                                                                _mm256_extracti128_si256(h, 1)));
    }
#endif
    for (; i < n; i++) {
        const uint32_t u = in[i], near = (u + 0x7fff + (u >> 16 & 1)) >> 16;
        const uint32_t quiet = u >> 16 | 0x40; /* a NaN must not round to infinity */
        y[i] = (uint16_t)((u & 0x7fffffff) > 0x7f800000 ? quiet : near);
    }
}
#endif

static void join(float *y, const uint16_t *upper, const int16_t *lower, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        y[i] = split_join(upper[i], lower[i]);
}

static void split(uint16_t *restrict upper, int16_t *restrict lower, const float *restrict x,
                  int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        lower[i] = split_float(x[i], &upper[i]);
}

static void scale(float *y, float a, int64_t n)
{
#define STEP(i, c) st_n(y + (i), ld_n(y + (i), (c), 0) * a, (c))
    EACH(n, STEP);
#undef STEP
}

static float dot(const float *x, const float *y, int64_t n)
{
    vf s0 = { 0 }, s1 = { 0 }, s2 = { 0 }, s3 = { 0 };
    int64_t i = 0;
    for (; i + 4 * W <= n; i += 4 * W) {
        s0 += ld(x + i) * ld(y + i);
        s1 += ld(x + i + W) * ld(y + i + W);
        s2 += ld(x + i + 2 * W) * ld(y + i + 2 * W);
        s3 += ld(x + i + 3 * W) * ld(y + i + 3 * W);
    }
    for (; i < n; i += W)
        s0 += ld_n(x + i, n - i, 0) * ld_n(y + i, n - i, 0);
    return sum_lanes((s0 + s1) + (s2 + s3));
}

INLINE double sum_doubles(const vd *s, int n)
{
    double all = 0;
    for (int k = 0; k < W / 2; k++) {
        double lane = 0;
        for (int i = 0; i < n; i++)
            lane += s[i][k];
        all += lane;
    }
    return all;
}

static double sumsq(const float *x, int64_t n)
{
    vd s[4] = { { 0 }, { 0 }, { 0 }, { 0 } };
    int64_t i = 0;
    for (; i + 2 * W <= n; i += 2 * W) {
        const vf p = ld(x + i), q = ld(x + i + W);
        const vd a = LOW(p), b = HIGH(p), c = LOW(q), d = HIGH(q);
        s[0] += a * a;
        s[1] += b * b;
        s[2] += c * c;
        s[3] += d * d;
    }
    for (; i < n; i += W) {
        const vf p = ld_n(x + i, n - i, 0);
        const vd a = LOW(p), b = HIGH(p);
        s[0] += a * a;
        s[1] += b * b;
    }
    return sum_doubles(s, 4);
}

static float max(const float *x, int64_t n)
{
    vf m0 = (vf){ 0 } - INFINITY, m1 = m0, m2 = m0, m3 = m0;
    int64_t i = 0;
    for (; i + 4 * W <= n; i += 4 * W) {
        m0 = VMAX(ld(x + i), m0);
        m1 = VMAX(ld(x + i + W), m1);
        m2 = VMAX(ld(x + i + 2 * W), m2);
        m3 = VMAX(ld(x + i + 3 * W), m3);
    }
    for (; i < n; i += W)
        m0 = VMAX(ld_n(x + i, n - i, -INFINITY), m0);
    m0 = VMAX(VMAX(m1, m0), VMAX(m2, m3));
    float t[W];
    st(t, m0);
    for (int k = W / 2; k > 0; k /= 2)
        for (int j = 0; j < k; j++)
            t[j] = t[j + k] > t[j] ? t[j + k] : t[j];
    return t[0];
}

static void exp_row(float *y, const float *x, int64_t n)
{
    int64_t i = 0;
    for (; i + EXPS * W <= n; i += EXPS * W) {
        vf p[EXPS];
        exps_of(p, x + i, W, 1, (vf){ 0 });
        sts(y + i, W, p);
    }
    for (; i < n; i += W)
        st_n(y + i, vexp(ld_n(x + i, n - i, 0)), n - i);
}

static float exp_sum(float *y, const float *x, float a, float b, int64_t n)
{
    vf s0 = { 0 }, s1 = { 0 };
    int64_t i = 0;
    for (; i + EXPS * W <= n; i += EXPS * W) {
        vf p[EXPS];
        exps_of(p, x + i, W, a, (vf){ 0 } + b);
        sts(y + i, W, p);
        s0 += p[0] + p[1];
        s1 += p[2] + p[3];
    }
    for (; i < n; i += W) {
        const int64_t c = n - i;
        vf p = vexp(ld_n(x + i, c, 0) * a - b);
        st_n(y + i, p, c);
        if (c < W) p = ld_n(y + i, c, 0);
        s0 += p;
    }
    return sum_lanes(s0 + s1);
}

static double lse_sum(float *y, const float *x, float b, int64_t n)
{
    vd s[4] = { { 0 }, { 0 }, { 0 }, { 0 } };
    int64_t i = 0;
    for (; i + EXPS * W <= n; i += EXPS * W) {
        vf p[EXPS];
        exps_of(p, x + i, W, 1, (vf){ 0 } + b);
        if (y) sts(y + i, W, p);
        UNROLL
        for (int j = 0; j < EXPS; j++) {
            s[j % 2 * 2] += LOW(p[j]);
            s[j % 2 * 2 + 1] += HIGH(p[j]);
        }
    }
    for (; i < n; i += W) {
        float t[W];
        st(t, vexp(ld_n(x + i, n - i, 0) - b));
        const vf p = ld_n(t, n - i, 0);
        if (y) st_n(y + i, p, n - i);
        s[0] += LOW(p);
        s[1] += HIGH(p);
    }
    return sum_doubles(s, 4);
}

static void logp_grad(float *z, float lse, float coef, int64_t n)
{
    int64_t i = 0;
    for (; i + EXPS * W <= n; i += EXPS * W) {
        vf p[EXPS];
        exps_of(p, z + i, W, 1, (vf){ 0 } + lse);
        UNROLL
        for (int j = 0; j < EXPS; j++)
            p[j] *= -coef;
        sts(z + i, W, p);
    }
    for (; i < n; i += W)
        st_n(z + i, vexp(ld_n(z + i, n - i, 0) - lse) * -coef, n - i);
}

/* W queries from the i-th on; see rows.h */
INLINE void softmax_lanes(float *s, float *acc, int64_t ldc, float *m, float *l, float a,
                          int64_t ahead, int64_t i, int64_t n, int64_t D)
{
    const int64_t all = MAX(MIN(i + ahead + 1, n), 0); /* keys that every lane sees */
    const int64_t some = MAX(MIN(i + ahead + W, n), 0);
    const vf none = (vf){ 0 } - INFINITY, old = ld(m);
    vf t0 = none, t1 = none, e0 = { 0 }, e1 = { 0 };
    vi lane;
    for (int k = 0; k < W; k++)
        lane[k] = k;
    int64_t j = 0;
    for (; j + 2 <= all; j += 2) {
        t0 = VMAX(ld(s + j * ldc), t0);
        t1 = VMAX(ld(s + (j + 1) * ldc), t1);
    }
    for (; j < all; j++)
        t0 = VMAX(ld(s + j * ldc), t0);
    for (; j < some; j++) {
        const vi hide = lane < (int32_t)(j - (i + ahead));
        const vf x = (vf)(((vi)ld(s + j * ldc) & ~hide) | ((vi)none & hide));
        st(s + j * ldc, x);
        t0 = VMAX(x, t0);
    }
    const vf top = VMAX(VMAX(t1, t0) * a, old), c = vexp(old - top);
    for (j = 0; j + EXPS <= some; j += EXPS) {
        vf p[EXPS];
        exps_of(p, s + j * ldc, ldc, a, top);
        sts(s + j * ldc, ldc, p);
        e0 += p[0] + p[1];
        e1 += p[2] + p[3];
    }
    for (; j < some; j++) {
        const vf x = vexp(ld(s + j * ldc) * a - top);
        st(s + j * ldc, x);
        e0 += x;
    }
    for (; j < n; j++)
        st(s + j * ldc, (vf){ 0 });
    st(m, top);
    st(l, ld(l) * c + (e0 + e1));
    for (int64_t d = 0; d < D; d++)
        st(acc + d * ldc, ld(acc + d * ldc) * c);
}

static void softmax(float *s, float *acc, int64_t ldc, float *m, float *l, float a, int64_t ahead,
                    int64_t n, int64_t cols, int64_t D)
{
    for (int64_t i = 0; i < cols; i += W)
        softmax_lanes(s + i, acc + i, ldc, m + i, l + i, a, ahead, i, n, D);
}

static void attn_grad(float *s, float *dp, float a, float lse, float delta, int64_t n)
{
    int64_t i = 0;
    for (; i + EXPS * W <= n; i += EXPS * W) {
        vf p[EXPS];
        exps_of(p, s + i, W, a, (vf){ 0 } + lse);
        sts(s + i, W, p);
        UNROLL
        for (int j = 0; j < EXPS; j++)
            p[j] = p[j] * (ld(dp + i + j * W) - delta) * a;
        sts(dp + i, W, p);
    }
    for (; i < n; i += W) {
        const int64_t c = n - i;
        const vf p = vexp(ld_n(s + i, c, 0) * a - lse);
        st_n(dp + i, p * (ld_n(dp + i, c, 0) - delta) * a, c);
        st_n(s + i, p, c);
    }
}

static float rms_sum(float *sum, const float *x, const float *r, int64_t n)
{
    if (!r) return dot(x, x, n);
    vf s0 = { 0 }, s1 = { 0 };
    int64_t i = 0;
    for (; i + 2 * W <= n; i += 2 * W) {
        const vf a = ld(x + i) + ld(r + i), b = ld(x + i + W) + ld(r + i + W);
        st(sum + i, a);
        st(sum + i + W, b);
        s0 += a * a;
        s1 += b * b;
    }
    for (; i < n; i += W) {
        const vf a = ld_n(x + i, n - i, 0) + ld_n(r + i, n - i, 0);
        st_n(sum + i, a, n - i);
        s0 += a * a;
    }
    return sum_lanes(s0 + s1);
}

static void rms_scale(float *y, const float *s, const float *w, float rstd, int64_t n)
{
#define STEP(i, c) st_n(y + (i), ld_n(s + (i), (c), 0) * rstd * ld_n(w + (i), (c), 0), (c))
    EACH(n, STEP);
#undef STEP
}

INLINE void rms_bwd_step(float *dx, float *dw, const float *dy, const float *s, const float *w,
                         float rstd, float k, bool add_dx, int64_t c)
{
    const vf g = ld_n(dy, c, 0), x = ld_n(s, c, 0);
    vf d = g * ld_n(w, c, 0) * rstd - x * k;
    if (add_dx) d += ld_n(dx, c, 0);
    st_n(dw, ld_n(dw, c, 0) + g * x * rstd, c);
    st_n(dx, d, c);
}

static void rms_bwd(float *dx, float *dw, const float *dy, const float *s, const float *w,
                    float rstd, int64_t n, bool add_dx)
{
    vf t0 = { 0 }, t1 = { 0 };
    int64_t i = 0;
    for (; i + 2 * W <= n; i += 2 * W) {
        t0 += ld(dy + i) * ld(w + i) * ld(s + i);
        t1 += ld(dy + i + W) * ld(w + i + W) * ld(s + i + W);
    }
    for (; i < n; i += W)
        t0 += ld_n(dy + i, n - i, 0) * ld_n(w + i, n - i, 0) * ld_n(s + i, n - i, 0);
    const float k = sum_lanes(t0 + t1) * rstd * rstd * rstd / (float)n;
#define STEP(i, c) \
    rms_bwd_step(dx + (i), dw + (i), dy + (i), s + (i), w + (i), rstd, k, add_dx, (c))
    EACH(n, STEP);
#undef STEP
}

INLINE void rope_step(float *a, float *b, const float *c, const float *s, float sign, int64_t k)
{
    const vf x = ld_n(a, k, 0), y = ld_n(b, k, 0), cs = ld_n(c, k, 0), sn = ld_n(s, k, 0) * sign;
    st_n(a, x * cs - y * sn, k);
    st_n(b, y * cs + x * sn, k);
}

typedef float quad __attribute__((vector_size(16), aligned(4), may_alias));

static void rope(float *x, const float *c, const float *s, float sign, int64_t half)
{
    int64_t i = 0;
    for (; i + W <= half; i += W)
        rope_step(x + i, x + half + i, c + i, s + i, sign, W);
    for (; i + 4 <= half; i += 4) { /* small heads */
        quad *a = (quad *)(x + i), *b = (quad *)(x + half + i);
        const quad p = *a, q = *b, cs = *(const quad *)(c + i), sn = *(const quad *)(s + i) * sign;
        *a = p * cs - q * sn;
        *b = q * cs + p * sn;
    }
    if (i < half) rope_step(x + i, x + half + i, c + i, s + i, sign, half - i);
}

static void swiglu(float *y, const float *g, const float *u, int64_t n)
{
    int64_t i = 0;
    for (; i + EXPS * W <= n; i += EXPS * W) {
        vf p[EXPS];
        exps_of(p, g + i, W, -1, (vf){ 0 });
        UNROLL
        for (int j = 0; j < EXPS; j++)
            p[j] = ld(g + i + j * W) / (p[j] + 1.0f) * ld(u + i + j * W);
        sts(y + i, W, p);
    }
    for (; i < n; i += W) {
        const vf a = ld_n(g + i, n - i, 0);
        st_n(y + i, a / (vexp(-a) + 1.0f) * ld_n(u + i, n - i, 0), n - i);
    }
}

/* e = exp(-g) */
INLINE void swiglu_bwd_step(float *dg, float *du, float *y, const float *dy, const float *g,
                            const float *u, vf e, int64_t c)
{
    const vf a = ld_n(g, c, 0), b = ld_n(u, c, 0), d = ld_n(dy, c, 0);
    /* 1 - s as e s keeps its digits where s is near 1 */
    const vf s = 1.0f / (e + 1.0f);
    st_n(dg, d * b * s * (a * (e * s) + 1.0f), c);
    st_n(du, d * a * s, c);
    if (y) st_n(y, a / (e + 1.0f) * b, c);
}

static void swiglu_bwd(float *dg, float *du, float *y, const float *dy, const float *g,
                       const float *u, int64_t n)
{
    int64_t i = 0;
    for (; i + EXPS * W <= n; i += EXPS * W) {
        vf e[EXPS];
        exps_of(e, g + i, W, -1, (vf){ 0 });
        UNROLL
        for (int j = 0; j < EXPS; j++) {
            const int64_t k = i + j * W;
            swiglu_bwd_step(dg + k, du + k, y ? y + k : NULL, dy + k, g + k, u + k, e[j], W);
        }
    }
    for (; i < n; i += W)
        swiglu_bwd_step(dg + i, du + i, y ? y + i : NULL, dy + i, g + i, u + i,
                        vexp(-ld_n(g + i, n - i, 0)), n - i);
}

INLINE void adamw_step(float *w, float *m, float *v, const float *g, const struct adamw_row *k,
                       int64_t c)
{
    const vf d = ld_n(g, c, 0) * k->scale;
    vf p = ld_n(m, c, 0), q = ld_n(v, c, 0);
    p += (d - p) * k->mix1;
    q = q * k->beta2 + d * d * k->mix2;
    st_n(m, p, c);
    st_n(v, q, c);
    st_n(w, ld_n(w, c, 0) * k->keep - p * k->step / (SQRT(q) * k->root + k->eps), c);
}

static void nf4(uint16_t *out, const uint8_t *in, const uint16_t table[16])
{
#if defined(__AVX512BW__)
    const __m256i low = _mm256_set1_epi8(15), t = _mm256_loadu_si256((const __m256i_u *)table);
    const __m256i b = _mm256_loadu_si256((const __m256i_u *)in);
    const __m256i hi = _mm256_and_si256(_mm256_srli_epi16(b, 4), low),
                  lo = _mm256_and_si256(b, low);
    const __m512i all = _mm512_broadcast_i64x4(t);
    /* codes of bytes 0 to 7 and 16 to 23, and of 8 to 15 and 24 to 31, in pairs */
    const __m256i p = _mm256_unpacklo_epi8(hi, lo), q = _mm256_unpackhi_epi8(hi, lo);
    const __m256i first = _mm256_permute2x128_si256(p, q, 0x20),
                  second = _mm256_permute2x128_si256(p, q, 0x31);
    _mm512_storeu_si512(out, _mm512_permutexvar_epi16(_mm512_cvtepu8_epi16(first), all));
    _mm512_storeu_si512(out + 32, _mm512_permutexvar_epi16(_mm512_cvtepu8_epi16(second), all));
#else
    for (int i = 0; i < 32; i += 2) { /* one store for four elements */
        const uint64_t four = table[in[i] >> 4] | (uint64_t)table[in[i] & 15] << 16 |
                              (uint64_t)table[in[i + 1] >> 4] << 32 |
                              (uint64_t)table[in[i + 1] & 15] << 48;
        memcpy(out + 2 * i, &four, sizeof four);
    }
#endif
}

static void dropout(float *y, const float *x, uint64_t key, uint64_t word, uint32_t below,
                    int64_t n)
{
    float factor[4 * DROPOUT_WORDS];
    for (int64_t at = 0; at < n; at += 4 * DROPOUT_WORDS) {
        const int64_t k = MIN((int64_t)4 * DROPOUT_WORDS, n - at);
        for (int64_t i = 0; i < (k + 3) / 4; i++) {
            const uint64_t bits = stochastic_bits(key, word + (uint64_t)(at / 4 + i));
            for (int j = 0; j < 4; j++)
                factor[4 * i + j] = dropout_factor(bits, j, below);
        }
        for (int64_t i = 0; i < k; i++)
            y[at + i] = x[at + i] * factor[i];
    }
}

static void adamw(float *w, float *m, float *v, const float *g, const struct adamw_row *k,
                  int64_t n)
{
    const struct adamw_row a = *k; /* a copy, so that the stores cannot change it */
#define STEP(i, c) adamw_step(w + (i), m + (i), v + (i), g + (i), &a, (c))
    EACH(n, STEP);
#undef STEP
}

const struct rows PASTE(rows_, ROWS_ISA) = {
    .name = TEXT(ROWS_ISA),
    .widen = widen,
    .narrow = narrow,
    .join = join,
    .split = split,
    .add = add,
    .scale = scale,
    .dot = dot,
    .sumsq = sumsq,
    .max = max,
    .exp = exp_row,
    .exp_sum = exp_sum,
    .lse_sum = lse_sum,
    .logp_grad = logp_grad,
    .softmax = softmax,
    .attn_grad = attn_grad,
    .rms_sum = rms_sum,
    .rms_scale = rms_scale,
    .rms_bwd = rms_bwd,
    .rope = rope,
    .swiglu = swiglu,
    .swiglu_bwd = swiglu_bwd,
    .nf4 = nf4,
    .dropout = dropout,
    .adamw = adamw,
    .block = block,
    .block_pairs = BLOCK_PAIRS,
    .dots_pack = DOTS_PACK,
    .dots = DOTS,
    .dots_unit = DOTS_UNIT,
    .floats = &panels_floats,
    .pairs = PANELS_PAIRS,
};
