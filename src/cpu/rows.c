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

/* W lanes a vector; MR x 2 vectors of accumulators fit the registers. VMIN and VMAX give y where x
 * is NaN or y is, so the value that may be NaN goes second. Halves are converted by hand: compilers
 * split __builtin_convertvector. */
#if defined(__AVX512F__)
enum { W = 16, MR = 12 };
typedef __m512 vreg;
typedef __m512d vd;
#define SQRT(x)    (vf) _mm512_sqrt_ps((vreg)(x))
#define VMIN(x, y) (vf) _mm512_min_ps((vreg)(x), (vreg)(y))
#define VMAX(x, y) (vf) _mm512_max_ps((vreg)(x), (vreg)(y))
#define LOW(x)     _mm512_cvtps_pd(_mm512_castps512_ps256((vreg)(x)))
#define HIGH(x)    _mm512_cvtps_pd(_mm512_extractf32x8_ps((vreg)(x), 1))
#elif defined(__AVX2__)
enum { W = 8, MR = 6 };
typedef __m256 vreg;
typedef __m256d vd;
#define SQRT(x)    (vf) _mm256_sqrt_ps((vreg)(x))
#define VMIN(x, y) (vf) _mm256_min_ps((vreg)(x), (vreg)(y))
#define VMAX(x, y) (vf) _mm256_max_ps((vreg)(x), (vreg)(y))
#define LOW(x)     _mm256_cvtps_pd(_mm256_castps256_ps128((vreg)(x)))
#define HIGH(x)    _mm256_cvtps_pd(_mm256_extractf128_ps((vreg)(x), 1))
#else
enum { W = 4, MR = 6 };
typedef __m128 vreg;
typedef __m128d vd;
#define SQRT(x)    (vf) _mm_sqrt_ps((vreg)(x))
#define VMIN(x, y) (vf) _mm_min_ps((vreg)(x), (vreg)(y))
#define VMAX(x, y) (vf) _mm_max_ps((vreg)(x), (vreg)(y))
#define LOW(x)     _mm_cvtps_pd((vreg)(x))
#define HIGH(x)    _mm_cvtps_pd(_mm_movehl_ps((vreg)(x), (vreg)(x)))
#endif
typedef float vf __attribute__((vector_size(W * 4)));
typedef float vf_mem __attribute__((vector_size(W * 4), aligned(4), may_alias));
typedef int32_t vi __attribute__((vector_size(W * 4)));
/* for all i < n in steps of W: STEP(i, lanes that count), W as a constant in all but the last */
#define EACH(n, STEP)                   \
    do {                                \
        int64_t i_ = 0;                 \
        for (; i_ + W <= (n); i_ += W)  \
            STEP(i_, W);                \
        if (i_ < (n)) STEP(i_, (n)-i_); \
    } while (0)

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
    if (c >= W) return ld(p);
    vf v = (vf){ 0 } + fill;
    float t[W];
    st(t, v);
    for (int64_t i = 0; i < c; i++)
        t[i] = p[i];
    return ld(t);
}

INLINE void st_n(float *p, vf x, int64_t c)
{
    if (c >= W) {
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
#if defined(__AVX512F__)
    const __m256 y =
        _mm256_add_ps(_mm512_castps512_ps256((vreg)x), _mm512_extractf32x8_ps((vreg)x, 1));
#elif defined(__AVX2__)
    const __m256 y = (vreg)x;
#endif
#if defined(__AVX2__)
    __m128 z = _mm_add_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
#else
    __m128 z = (vreg)x;
#endif
    z = _mm_add_ps(z, _mm_movehl_ps(z, z));
    return _mm_cvtss_f32(_mm_add_ss(z, _mm_shuffle_ps(z, z, 1)));
}

/* exp(x): 0 below -87.33 (no denormals, which are slow), exp(88.37) above 88.37; between them 2^n
 * is normal. NaN stays. exp(x) = 2^n e^r, |r| <= ln(2) / 2, and a polynomial for e^r. */
INLINE vf vexp(vf x)
{
    const float magic =
        12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer in the low bits */
    const vf zero = { 0 };
    const vi low = x < -87.3365447505f;
    x = VMAX(zero - 87.3365447505f, x);
    x = VMIN(zero + 88.3762626647f, x);
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
    return (vf)(((vi)p + ((vi)t << 23)) & ~low); /* n lands in the exponent */
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
#define STEP(i, c) st_n(y + (i), vexp(ld_n(x + (i), (c), 0)), (c))
    EACH(n, STEP);
#undef STEP
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

static double lse_sum(const float *x, float b, int64_t n)
{
    vd s[4] = { { 0 }, { 0 }, { 0 }, { 0 } };
    int64_t i = 0;
    for (; i + 2 * W <= n; i += 2 * W) {
        const vf p = vexp(ld(x + i) - b), q = vexp(ld(x + i + W) - b);
        s[0] += LOW(p);
        s[1] += HIGH(p);
        s[2] += LOW(q);
        s[3] += HIGH(q);
    }
    for (; i < n; i += W) {
        float t[W];
        st(t, vexp(ld_n(x + i, n - i, 0) - b));
        const vf p = ld_n(t, n - i, 0);
        s[0] += LOW(p);
        s[1] += HIGH(p);
    }
    return sum_doubles(s, 4);
}

static void logp_grad(float *z, float lse, float coef, int64_t n)
{
#define STEP(i, c) st_n(z + (i), vexp(ld_n(z + (i), (c), 0) - lse) * -coef, (c))
    EACH(n, STEP);
#undef STEP
}

INLINE void attn_grad_step(float *s, float *dp, float a, float lse, float delta, int64_t c)
{
    const vf p = vexp(ld_n(s, c, 0) * a - lse);
    st_n(dp, p * (ld_n(dp, c, 0) - delta) * a, c);
    st_n(s, p, c);
}

static void attn_grad(float *s, float *dp, float a, float lse, float delta, int64_t n)
{
#define STEP(i, c) attn_grad_step(s + (i), dp + (i), a, lse, delta, (c))
    EACH(n, STEP);
#undef STEP
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

static void rope(float *x, const float *c, const float *s, float sign, int64_t half)
{
#define STEP(i, k) rope_step(x + (i), x + half + (i), c + (i), s + (i), sign, (k))
    EACH(half, STEP);
#undef STEP
}

static void swiglu(float *y, const float *g, const float *u, int64_t n)
{
#define STEP(i, c)                                                           \
    do {                                                                     \
        const vf a_ = ld_n(g + (i), (c), 0);                                 \
        st_n(y + (i), a_ / (vexp(-a_) + 1.0f) * ld_n(u + (i), (c), 0), (c)); \
    } while (0)
    EACH(n, STEP);
#undef STEP
}

INLINE void swiglu_bwd_step(float *dg, float *du, const float *dy, const float *g, const float *u,
                            int64_t c)
{
    const vf a = ld_n(g, c, 0), b = ld_n(u, c, 0), d = ld_n(dy, c, 0);
    /* 1 - s as e s keeps its digits where s is near 1 */
    const vf e = vexp(-a), s = 1.0f / (e + 1.0f);
    st_n(dg, d * b * s * (a * (e * s) + 1.0f), c);
    st_n(du, d * a * s, c);
}

static void swiglu_bwd(float *dg, float *du, const float *dy, const float *g, const float *u,
                       int64_t n)
{
#define STEP(i, c) swiglu_bwd_step(dg + (i), du + (i), dy + (i), g + (i), u + (i), (c))
    EACH(n, STEP);
#undef STEP
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

static void adamw(float *w, float *m, float *v, const float *g, const struct adamw_row *k,
                  int64_t n)
{
    const struct adamw_row a = *k; /* a copy, so that the stores cannot change it */
#define STEP(i, c) adamw_step(w + (i), m + (i), v + (i), g + (i), &a, (c))
    EACH(n, STEP);
#undef STEP
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

/* m x 2 dot products side by side: y[m, 2] */
INLINE void dots2(int m, float *y, const float *x, int64_t ldx, const float *w0, const float *w1,
                  int64_t K)
{
    vf s[4][2];
    for (int i = 0; i < m; i++)
        s[i][0] = s[i][1] = (vf){ 0 };
    int64_t k = 0;
    for (; k + W <= K; k += W) {
        const vf a = ld(w0 + k), b = ld(w1 + k);
        for (int i = 0; i < m; i++) {
            const vf v = ld(x + i * ldx + k);
            s[i][0] += v * a;
            s[i][1] += v * b;
        }
    }
    if (k < K) {
        const vf a = ld_n(w0 + k, K - k, 0), b = ld_n(w1 + k, K - k, 0);
        for (int i = 0; i < m; i++) {
            const vf v = ld_n(x + i * ldx + k, K - k, 0);
            s[i][0] += v * a;
            s[i][1] += v * b;
        }
    }
    for (int i = 0; i < m; i++) {
        y[2 * i] = sum_lanes(s[i][0]);
        y[2 * i + 1] = sum_lanes(s[i][1]);
    }
}

static void dots(float *y, int64_t ldy, const float *x, int64_t ldx, int64_t M, const float *w,
                 int64_t ldw, int64_t N, int64_t K)
{
    for (int64_t i = 0; i < M; i += 4)
        for (int64_t j = 0; j < N; j += 2) {
            const float *p = x + i * ldx, *w0 = w + j * ldw, *w1 = j + 1 < N ? w0 + ldw : w0;
            float t[4][2];
            switch (M - i) {
            case 1:
                dots2(1, t[0], p, ldx, w0, w1, K);
                break;
            case 2:
                dots2(2, t[0], p, ldx, w0, w1, K);
                break;
            case 3:
                dots2(3, t[0], p, ldx, w0, w1, K);
                break;
            default:
                dots2(4, t[0], p, ldx, w0, w1, K);
                break;
            }
            for (int64_t k = 0; k < MIN(4, M - i); k++) {
                y[(i + k) * ldy + j] = t[k][0];
                if (j + 1 < N) y[(i + k) * ldy + j + 1] = t[k][1];
            }
        }
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
    .dots = dots,
};
