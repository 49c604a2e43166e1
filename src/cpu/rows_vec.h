/* SPDX-License-Identifier: MIT
 * rows_vec.h - vectors of the instruction set that rows.c is compiled for. Private to rows.c. */
#ifndef BDPO_ROWS_VEC_H
#define BDPO_ROWS_VEC_H
#include "rows.h"
#include <immintrin.h>
#include <math.h>
#include <string.h>

#define INLINE       static inline __attribute__((always_inline))

/* before a loop over an array of vectors: without it they leave the registers */
#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

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

#if defined(__AVX512F__)
/* the first c lanes, 0 < c */
INLINE __mmask16 first_lanes(int64_t c)
{
    return c >= W ? 0xffff : (__mmask16)((1u << c) - 1);
}
#elif defined(__AVX2__)
/* the first c lanes, 0 < c <= 8 */
INLINE __m256i first_lanes(int64_t c)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)c), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
#endif

/* c valid lanes; the others read as `fill` */
INLINE vf ld_n(const float *p, int64_t c, float fill)
{
    if (c >= W) return ld(p);
#if defined(__AVX512F__)
    return (vf)_mm512_mask_loadu_ps(_mm512_set1_ps(fill), first_lanes(c), p);
#elif defined(__AVX2__)
    const __m256i some = first_lanes(c);
    const __m256 v = _mm256_maskload_ps(p, some);
    return (vf)(fill == 0 ? v : _mm256_blendv_ps(_mm256_set1_ps(fill), v, (vreg)some));
#else
    vf v = (vf){ 0 } + fill;
    float t[W];
    st(t, v);
    for (int64_t i = 0; i < c; i++)
        t[i] = p[i];
    return ld(t);
#endif
}

INLINE void st_n(float *p, vf x, int64_t c)
{
    if (c >= W) {
        st(p, x);
        return;
    }
#if defined(__AVX512F__)
    _mm512_mask_storeu_ps(p, first_lanes(c), (vreg)x);
#elif defined(__AVX2__) /* the instruction that stores by a mask is slow on some processors */
    __m128 v = _mm256_castps256_ps128((vreg)x);
    if (c & 4) {
        _mm_storeu_ps(p, v);
        v = _mm256_extractf128_ps((vreg)x, 1);
        p += 4;
    }
    if (c & 2) {
        _mm_storel_pi((__m64 *)p, v);
        v = _mm_movehl_ps(v, v);
        p += 2;
    }
    if (c & 1) _mm_store_ss(p, v);
#else
    float t[W];
    st(t, x);
    for (int64_t i = 0; i < c; i++)
        p[i] = t[i];
#endif
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

enum { EXPS = 4 };

/* x = exp(x) for n <= EXPS vectors: 0 below -87.33 (no denormals, which are slow), exp(88.37) above 88.37; between them 2^k
 * is normal. NaN stays. exp(x) = 2^k e^r, |r| <= ln(2) / 2, and a polynomial for e^r. Step by step for all, since one
 * vector's chain of operations is long and leaves the processor idle. */
INLINE void vexps(vf *x, int n)
{
#define ALL UNROLL for (int i = 0; i < n; i++)
    /* 1.5 * 2^23: adding it rounds to an integer in the low bits */
    const float magic = 12582912.0f;
    const vf zero = { 0 };
    vi low[EXPS];
    vf t[EXPS], r[EXPS], p[EXPS];
    ALL low[i] = x[i] < -87.3365447505f;
    ALL x[i] = VMIN(zero + 88.3762626647f, VMAX(zero - 87.3365447505f, x[i]));
    ALL t[i] = x[i] * 1.44269504088896341f + magic;
    ALL p[i] = t[i] - magic;
    ALL r[i] = x[i] - p[i] * 0.693145751953125f;
    ALL r[i] = r[i] - p[i] * 1.42860682030941723e-6f;
    ALL p[i] = r[i] * 1.9875691500e-4f + 1.3981999507e-3f;
    ALL p[i] = p[i] * r[i] + 8.3334519073e-3f;
    ALL p[i] = p[i] * r[i] + 4.1665795894e-2f;
    ALL p[i] = p[i] * r[i] + 1.6666665459e-1f;
    ALL p[i] = p[i] * r[i] + 5.0000001201e-1f;
    ALL p[i] = p[i] * (r[i] * r[i]) + r[i] + 1.0f;
    ALL x[i] = (vf)(((vi)p[i] + ((vi)t[i] << 23)) & ~low[i]); /* k lands in the exponent */
#undef ALL
}

/* EXPS vectors, `step` floats apart */
INLINE void lds(vf *x, const float *p, int64_t step)
{
    UNROLL
    for (int i = 0; i < EXPS; i++)
        x[i] = ld(p + i * step);
}

INLINE void sts(float *p, int64_t step, const vf *x)
{
    UNROLL
    for (int i = 0; i < EXPS; i++)
        st(p + i * step, x[i]);
}

/* p = exp(a x - b) of such vectors */
INLINE void exps_of(vf *p, const float *x, int64_t step, float a, vf b)
{
    lds(p, x, step);
    UNROLL
    for (int i = 0; i < EXPS; i++)
        p[i] = p[i] * a - b;
    vexps(p, EXPS);
}

INLINE vf vexp(vf x)
{
    vexps(&x, 1);
    return x;
}

/* bfloat16, the upper half of a float: W of them, exact */
INLINE vf ld_half(const uint16_t *p)
{
#if defined(__AVX512F__)
    const __m512i x = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i_u *)p));
    return (vf)_mm512_slli_epi32(x, 16);
#elif defined(__AVX2__)
    const __m256i x = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i_u *)p));
    return (vf)_mm256_slli_epi32(x, 16);
#else
    return (vf)_mm_unpacklo_epi16(_mm_setzero_si128(), _mm_loadl_epi64((const __m128i_u *)p));
#endif
}

/* c valid lanes; the others read as 0 */
INLINE vf ld_half_n(const uint16_t *p, int64_t c)
{
    if (c >= W) return ld_half(p);
#if defined(__AVX512F__)
    const __m256i x = _mm256_maskz_loadu_epi16(first_lanes(c), p);
    return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16);
#else
    uint16_t t[W] = { 0 };
    for (int64_t i = 0; i < c; i++)
        t[i] = p[i];
    return ld_half(t);
#endif
}
#endif
