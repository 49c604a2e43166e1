/* SPDX-License-Identifier: MIT */
#include "rows.h"
#include <immintrin.h>
#include <math.h>
#include <string.h>

#ifndef ROWS_ISA
#define ROWS_ISA base
#endif
#define PASTE_(a, b) a##b
#define PASTE(a, b)  PASTE_(a, b)
#define TEXT_(a)     #a
#define TEXT(a)      TEXT_(a)
#define INLINE       static inline __attribute__((always_inline))

/* W lanes a vector; MR x 2 vectors of accumulators fit the registers */
#if defined(__AVX512F__)
enum { W = 16, MR = 12 };
#define SQRT(x) (vf) _mm512_sqrt_ps((__m512)(x))
#elif defined(__AVX2__)
enum { W = 8, MR = 6 };
#define SQRT(x) (vf) _mm256_sqrt_ps((__m256)(x))
#else
enum { W = 4, MR = 6 };
#define SQRT(x) (vf) _mm_sqrt_ps((__m128)(x))
#endif
typedef float vf __attribute__((vector_size(W * 4)));
typedef float vf_mem __attribute__((vector_size(W * 4), aligned(4), may_alias));
typedef int32_t vi __attribute__((vector_size(W * 4)));
typedef float vh_mem __attribute__((vector_size(W * 2), aligned(4), may_alias));
typedef double vd __attribute__((vector_size(W * 4)));

INLINE vf ld(const float *p)
{
    return *(const vf_mem *)p;
}

INLINE void st(float *p, vf x)
{
    *(vf_mem *)p = x;
}

/* c valid lanes; the others read as `fill` */
INLINE vf ld_n(const float *p, int64_t c, float fill)
{
    if (__builtin_expect(c >= W, 1)) return ld(p);
    vf v = (vf){ 0 } + fill;
    float t[W];
    st(t, v);
    for (int64_t i = 0; i < c; i++)
        t[i] = p[i];
    return ld(t);
}

INLINE void st_n(float *p, vf x, int64_t c)
{
    if (__builtin_expect(c >= W, 1)) {
        st(p, x);
        return;
    }
    float t[W];
    st(t, x);
    for (int64_t i = 0; i < c; i++)
        p[i] = t[i];
}

INLINE float sum_lanes(vf x)
{
    float t[W];
    st(t, x);
    for (int k = W / 2; k > 0; k /= 2)
        for (int i = 0; i < k; i++)
            t[i] += t[i + k];
    return t[0];
}

INLINE vf pick(vi mask, vf yes, vf no)
{
    return (vf)((mask & (vi)yes) | (~mask & (vi)no));
}

/* exp(x) = 2^n e^r, |r| <= ln(2)/2; 2^n in two factors so that n = 128 does not overflow early */
INLINE vf vexp(vf x)
{
    const float magic =
        12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer in the low bits */
    const vf zero = { 0 };
    const vi low = x<-87.3365447505f, high = x> 88.7228390f;
    const vf lo_bound = zero - 87.3365447505f, hi_bound = zero + 88.7228390f;
    x = pick(low, lo_bound, pick(high, hi_bound, x));
    const vf t = x * 1.44269504088896341f + magic;
    const vf n = t - magic;
    vf r = x - n * 0.693145751953125f;
    r = r - n * 1.42860682030941723e-6f;
    vf p = zero + 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    const vi e = (vi)t - (vi)(zero + magic);
    const vi half = e >> 1;
    const vf a = (vf)((half + 127) << 23), b = (vf)((e - half + 127) << 23);
    const vf y = p * a * b;
    return pick(low, zero, pick(high, zero + INFINITY, y));
}

static void add(float *y, const float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        y[i] += x[i];
}

static void scale(float *y, float a, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        y[i] *= a;
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

static double sumsq(const float *x, int64_t n)
{
    enum { H = W / 2 };
    vd s0 = { 0 }, s1 = { 0 }, s2 = { 0 }, s3 = { 0 };
    int64_t i = 0;
    for (; i + 4 * H <= n; i += 4 * H) {
        const vd a = __builtin_convertvector(*(const vh_mem *)(x + i), vd);
        const vd b = __builtin_convertvector(*(const vh_mem *)(x + i + H), vd);
        const vd c = __builtin_convertvector(*(const vh_mem *)(x + i + 2 * H), vd);
        const vd d = __builtin_convertvector(*(const vh_mem *)(x + i + 3 * H), vd);
        s0 += a * a;
        s1 += b * b;
        s2 += c * c;
        s3 += d * d;
    }
    const vd s = (s0 + s1) + (s2 + s3);
    double t = 0;
    for (int k = 0; k < H; k++)
        t += s[k];
    for (; i < n; i++)
        t += (double)x[i] * x[i];
    return t;
}

static float max(const float *x, int64_t n)
{
    vf m0 = (vf){ 0 } - INFINITY, m1 = m0;
    int64_t i = 0;
    for (; i + 2 * W <= n; i += 2 * W) {
        const vf a = ld(x + i), b = ld(x + i + W);
        m0 = pick(a > m0, a, m0);
        m1 = pick(b > m1, b, m1);
    }
    for (; i < n; i += W) {
        const vf a = ld_n(x + i, n - i, -INFINITY);
        m0 = pick(a > m0, a, m0);
    }
    float t[W], best = -INFINITY;
    st(t, pick(m1 > m0, m1, m0));
    for (int k = 0; k < W; k++)
        best = t[k] > best ? t[k] : best;
    return best;
}

static void exp_row(float *y, const float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i += W)
        st_n(y + i, vexp(ld_n(x + i, n - i, 0)), n - i);
}

static float exp_sum(float *y, const float *x, float a, float b, int64_t n)
{
    vf s0 = { 0 }, s1 = { 0 };
    int64_t i = 0;
    for (; i + 2 * W <= n; i += 2 * W) {
        const vf p = vexp(ld(x + i) * a - b), q = vexp(ld(x + i + W) * a - b);
        st(y + i, p);
        st(y + i + W, q);
        s0 += p;
        s1 += q;
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

INLINE void add_halves(vd *s, vf x)
{
    float t[W];
    st(t, x);
    s[0] += __builtin_convertvector(*(const vh_mem *)t, vd);
    s[1] += __builtin_convertvector(*(const vh_mem *)(t + W / 2), vd);
}

static double lse_sum(const float *x, float b, int64_t n)
{
    vd s[4] = { { 0 }, { 0 }, { 0 }, { 0 } };
    int64_t i = 0;
    for (; i + 2 * W <= n; i += 2 * W) {
        add_halves(s, vexp(ld(x + i) - b));
        add_halves(s + 2, vexp(ld(x + i + W) - b));
    }
    for (; i < n; i += W)
        add_halves(s, vexp(ld_n(x + i, n - i, -INFINITY) - b));
    const vd all = (s[0] + s[1]) + (s[2] + s[3]);
    double t = 0;
    for (int k = 0; k < W / 2; k++)
        t += all[k];
    return t;
}

static void logp_grad(float *z, float lse, float coef, int64_t n)
{
    const float c = -coef;
    for (int64_t i = 0; i < n; i += W)
        st_n(z + i, vexp(ld_n(z + i, n - i, 0) - lse) * c, n - i);
}

static void attn_grad(float *s, float *dp, float a, float lse, float delta, int64_t n)
{
    for (int64_t i = 0; i < n; i += W) {
        const vf p = vexp(ld_n(s + i, n - i, 0) * a - lse);
        st_n(dp + i, p * (ld_n(dp + i, n - i, 0) - delta) * a, n - i);
        st_n(s + i, p, n - i);
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
    for (int64_t i = 0; i < n; i++)
        y[i] = s[i] * rstd * w[i];
}

static void rms_bwd(float *dx, float *dw, const float *dy, const float *s, const float *w,
                    float rstd, int64_t n, bool add_dx)
{
    vf t = { 0 };
    for (int64_t i = 0; i < n; i += W)
        t += ld_n(dy + i, n - i, 0) * ld_n(w + i, n - i, 0) * ld_n(s + i, n - i, 0);
    const float c = sum_lanes(t) * rstd * rstd * rstd / (float)n;
    for (int64_t i = 0; i < n; i += W) {
        const int64_t k = n - i;
        const vf g = ld_n(dy + i, k, 0), x = ld_n(s + i, k, 0);
        vf d = g * ld_n(w + i, k, 0) * rstd - x * c;
        if (add_dx) d += ld_n(dx + i, k, 0);
        st_n(dw + i, ld_n(dw + i, k, 0) + g * x * rstd, k);
        st_n(dx + i, d, k);
    }
}

static void rope(float *x, const float *c, const float *s, float sign, int64_t half)
{
    for (int64_t i = 0; i < half; i += W) {
        const int64_t k = half - i;
        const vf a = ld_n(x + i, k, 0), b = ld_n(x + half + i, k, 0);
        const vf cs = ld_n(c + i, k, 0), sn = ld_n(s + i, k, 0) * sign;
        st_n(x + i, a * cs - b * sn, k);
        st_n(x + half + i, b * cs + a * sn, k);
    }
}

static void swiglu(float *y, const float *g, const float *u, int64_t n)
{
    for (int64_t i = 0; i < n; i += W) {
        const vf a = ld_n(g + i, n - i, 0);
        st_n(y + i, a / (vexp(-a) + 1.0f) * ld_n(u + i, n - i, 0), n - i);
    }
}

static void swiglu_bwd(float *dg, float *du, const float *dy, const float *g, const float *u,
                       int64_t n)
{
    for (int64_t i = 0; i < n; i += W) {
        const int64_t k = n - i;
        const vf a = ld_n(g + i, k, 0), b = ld_n(u + i, k, 0), d = ld_n(dy + i, k, 0);
        /* 1 - s as e s keeps its digits where s is near 1; e stays finite */
        const vf e = vexp(pick(a < -88.0f, (vf){ 0 } + 88.0f, -a)), s = 1.0f / (e + 1.0f);
        st_n(dg + i, d * b * s * (a * (e * s) + 1.0f), k);
        st_n(du + i, d * a * s, k);
    }
}

static void adamw(float *w, float *m, float *v, const float *g, const struct adamw_row *k,
                  int64_t n)
{
    const struct adamw_row a = *k; /* a copy, so that the stores cannot change it */
    for (int64_t i = 0; i < n; i += W) {
        const int64_t c = n - i;
        const vf d = ld_n(g + i, c, 0) * a.scale;
        vf p = ld_n(m + i, c, 0), q = ld_n(v + i, c, 0);
        p += (d - p) * a.mix1;
        q = q * a.beta2 + d * d * a.mix2;
        st_n(m + i, p, c);
        st_n(v + i, q, c);
        st_n(w + i, ld_n(w + i, c, 0) * a.keep - p * a.step / (SQRT(q) * a.root + a.eps), c);
    }
}

#if defined(__AVX2__)
enum { TB = 8 };
INLINE void transpose_tile(float *out, int64_t lo, const float *in, int64_t li)
{
    __m256 r[8], t[8];
    for (int i = 0; i < 8; i++)
        r[i] = _mm256_loadu_ps(in + i * li);
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
INLINE void transpose_tile(float *out, int64_t lo, const float *in, int64_t li)
{
    __m128 a = _mm_loadu_ps(in), b = _mm_loadu_ps(in + li), c = _mm_loadu_ps(in + 2 * li);
    __m128 d = _mm_loadu_ps(in + 3 * li);
    _MM_TRANSPOSE4_PS(a, b, c, d);
    _mm_storeu_ps(out, a);
    _mm_storeu_ps(out + lo, b);
    _mm_storeu_ps(out + 2 * lo, c);
    _mm_storeu_ps(out + 3 * lo, d);
}
#endif

static void transpose(float *out, int64_t ld_out, const float *in, int64_t ld_in, int64_t n,
                      int64_t cols)
{
    const int64_t full_n = n - n % TB, full_c = cols - cols % TB;
    for (int64_t i = 0; i < full_n; i += TB)
        for (int64_t j = 0; j < full_c; j += TB)
            transpose_tile(out + j * ld_out + i, ld_out, in + i * ld_in + j, ld_in);
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = i < full_n ? full_c : 0; j < cols; j++)
            out[j * ld_out + i] = in[i * ld_in + j];
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
    for (; i + MR <= M; i += MR)
        strip(MR, c + i * ldc, ldc, a + i * row, row, col, b, ldb, N, K, add_c);
    for (; i + 4 <= M; i += 4)
        strip(4, c + i * ldc, ldc, a + i * row, row, col, b, ldb, N, K, add_c);
    for (; i + 2 <= M; i += 2)
        strip(2, c + i * ldc, ldc, a + i * row, row, col, b, ldb, N, K, add_c);
    if (i < M) strip(1, c + i * ldc, ldc, a + i * row, row, col, b, ldb, N, K, add_c);
}

const struct rows PASTE(rows_, ROWS_ISA) = {
    .name = TEXT(ROWS_ISA),
    .add = add,
    .scale = scale,
    .dot = dot,
    .sumsq = sumsq,
    .max = max,
    .exp = exp_row,
    .exp_sum = exp_sum,
    .lse_sum = lse_sum,
    .logp_grad = logp_grad,
    .attn_grad = attn_grad,
    .rms_sum = rms_sum,
    .rms_scale = rms_scale,
    .rms_bwd = rms_bwd,
    .rope = rope,
    .swiglu = swiglu,
    .swiglu_bwd = swiglu_bwd,
    .adamw = adamw,
    .transpose = transpose,
    .block = block,
};
