/* SPDX-License-Identifier: MIT
 * immintrin.h - the instructions of AVX-512 and AMX that src/cpu/rows.c uses, in plain C: its tables for these are tested on
 * processors without them. Found before the compiler's own header, whose types and smaller vectors it keeps. What an
 * instruction does is as in Intel's Intrinsics Guide. */
#ifndef BDPO_ISA_EMU
#define BDPO_ISA_EMU
#include_next <immintrin.h>
#include "../../src/base/base.h"
#include <math.h>
#include <stdint.h>
#include <string.h>
#define EMU static __attribute__((noinline, unused)) /* inlined, they take a compiler minutes */

/* lanes of vectors, by their size in bits and what they hold */
typedef uint16_t emu_u16x16 __attribute__((vector_size(32)));
typedef uint8_t emu_u8x32 __attribute__((vector_size(32)));
typedef uint16_t emu_u16x32 __attribute__((vector_size(64)));
typedef uint32_t emu_u32x16 __attribute__((vector_size(64)));
typedef uint64_t emu_u64x8 __attribute__((vector_size(64)));
typedef float emu_f32x16 __attribute__((vector_size(64)));
typedef double emu_f64x8 __attribute__((vector_size(64)));

/* return a vector of type T whose n lanes are EACH, an expression in i */
#define EMU_LANES(T, n, EACH)     \
    T r_;                         \
    for (int i = 0; i < (n); i++) \
        r_[i] = (EACH);           \
    return r_

/* loads and stores: lanes outside of a mask are not touched */
EMU emu_f32x16 emu_mask_loadu_ps(emu_f32x16 other, unsigned k, const void *p)
{
    for (int i = 0; i < 16; i++)
        if (k >> i & 1) {
            uint32_t u;
            memcpy(&u, (const char *)p + 4 * i, sizeof u);
            other[i] = float_of(u);
        }
    return other;
}

EMU void emu_mask_storeu_ps(void *p, unsigned k, emu_f32x16 x)
{
    for (int i = 0; i < 16; i++) {
        const uint32_t u = bits_of(x[i]);
        if (k >> i & 1) memcpy((char *)p + 4 * i, &u, sizeof u);
    }
}

EMU emu_u32x16 emu_load(const void *p)
{
    emu_u32x16 x;
    memcpy(&x, p, sizeof x);
    return x;
}

EMU void emu_store(void *p, emu_u32x16 x)
{
    memcpy(p, &x, sizeof x);
}

EMU emu_u16x32 emu_maskz_loadu_epi16(uint32_t k, const void *p, int n)
{
    emu_u16x32 x = { 0 };
    for (int i = 0; i < n; i++)
        if (k >> i & 1) {
            uint16_t u;
            memcpy(&u, (const char *)p + 2 * i, sizeof u);
            x[i] = u;
        }
    return x;
}

EMU void emu_mask_storeu_epi16(void *p, unsigned k, emu_u16x16 x)
{
    for (int i = 0; i < 16; i++) {
        const uint16_t u = x[i];
        if (k >> i & 1) memcpy((char *)p + 2 * i, &u, sizeof u);
    }
}

EMU emu_u16x16 emu_mask_mov_epi16(emu_u16x16 x, unsigned k, emu_u16x16 y)
{
    for (int i = 0; i < 16; i++)
        if (k >> i & 1) x[i] = y[i];
    return x;
}

/* halves and widths */
EMU __m256i emu_half(emu_u64x8 x, int upper)
{
    __m256i y;
    memcpy(&y, (const char *)&x + 32 * upper, sizeof y);
    return y;
}

EMU emu_u64x8 emu_twice(__m256i x)
{
    emu_u64x8 y;
    memcpy(&y, &x, sizeof x);
    memcpy((char *)&y + 32, &x, sizeof x);
    return y;
}

EMU emu_f64x8 emu_cvtps_pd(__m256 x)
{
    EMU_LANES(emu_f64x8, 8, (double)x[i]);
}

EMU emu_u32x16 emu_cvtepu16_epi32(emu_u16x16 x)
{
    EMU_LANES(emu_u32x16, 16, x[i]);
}

EMU emu_u16x32 emu_cvtepu8_epi16(emu_u8x32 x)
{
    EMU_LANES(emu_u16x32, 32, x[i]);
}

EMU emu_u16x16 emu_cvtepi32_epi16(emu_u32x16 x)
{
    EMU_LANES(emu_u16x16, 16, (uint16_t)x[i]);
}

/* arithmetic */
EMU emu_f32x16 emu_min_ps(emu_f32x16 a, emu_f32x16 b)
{
    EMU_LANES(emu_f32x16, 16, a[i] < b[i] ? a[i] : b[i]);
}

EMU emu_f32x16 emu_max_ps(emu_f32x16 a, emu_f32x16 b)
{
    EMU_LANES(emu_f32x16, 16, a[i] > b[i] ? a[i] : b[i]);
}

EMU emu_f32x16 emu_sqrt_ps(emu_f32x16 a)
{
    EMU_LANES(emu_f32x16, 16, sqrtf(a[i]));
}

EMU unsigned emu_unordered(emu_f32x16 a, emu_f32x16 b)
{
    unsigned k = 0;
    for (int i = 0; i < 16; i++)
        k |= (unsigned)(isnan(a[i]) || isnan(b[i])) << i;
    return k;
}

EMU unsigned emu_denormals(emu_f32x16 a)
{
    unsigned k = 0;
    for (int i = 0; i < 16; i++)
        k |= (unsigned)(fpclassify(a[i]) == FP_SUBNORMAL) << i;
    return k;
}

/* bfloat16: denormals are zero on both ways, a sum is rounded for each product, the odd one first */
EMU float emu_flush(float x)
{
    return fpclassify(x) == FP_SUBNORMAL ? copysignf(0, x) : x;
}

EMU emu_f32x16 emu_dpbf16(emu_f32x16 s, emu_u32x16 a, emu_u32x16 b)
{
    for (int i = 0; i < 16; i++) {
        const float a1 = emu_flush(float_of(a[i] & 0xffff0000)), b1 = emu_flush(float_of(b[i] & 0xffff0000));
        const float a0 = emu_flush(float_of(a[i] << 16)), b0 = emu_flush(float_of(b[i] << 16));
        s[i] = emu_flush(fmaf(a0, b0, emu_flush(fmaf(a1, b1, emu_flush(s[i])))));
    }
    return s;
}

EMU emu_u16x16 emu_cvtneps(emu_f32x16 x)
{
    emu_u16x16 y;
    for (int i = 0; i < 16; i++) {
        const uint32_t u = bits_of(emu_flush(x[i]));
        y[i] = (uint16_t)(isnan(x[i]) ? u >> 16 | 0x40 : (u + 0x7fff + (u >> 16 & 1)) >> 16);
    }
    return y;
}

/* shuffles, within 128 bits unless they say otherwise */
EMU emu_u32x16 emu_unpack32(emu_u32x16 a, emu_u32x16 b, int upper)
{
    EMU_LANES(emu_u32x16, 16, (i & 1 ? b : a)[(i & ~3) + 2 * upper + (i >> 1 & 1)]);
}

EMU emu_u64x8 emu_unpack64(emu_u64x8 a, emu_u64x8 b, int upper)
{
    EMU_LANES(emu_u64x8, 8, (i & 1 ? b : a)[(i & ~1) + upper]);
}

EMU emu_u32x16 emu_shuffle128(emu_u32x16 a, emu_u32x16 b, int imm)
{
    EMU_LANES(emu_u32x16, 16, (i < 8 ? a : b)[4 * (imm >> 2 * (i / 4) & 3) + i % 4]);
}

EMU emu_u16x32 emu_permute16(emu_u16x32 at, emu_u16x32 x)
{
    EMU_LANES(emu_u16x32, 32, x[at[i] & 31]);
}

#undef _mm512_cmp_ps_mask
#undef _mm512_extractf32x8_ps
#undef _mm512_fpclass_ps_mask
#undef _mm512_shuffle_i32x4
#undef _mm512_slli_epi32
#undef _mm512_srli_epi32
#define _mm512_add_epi32(a, b)               ((__m512i)((emu_u32x16)(a) + (emu_u32x16)(b)))
#define _mm512_add_ps(a, b)                  ((__m512)((emu_f32x16)(a) + (emu_f32x16)(b)))
#define _mm512_and_si512(a, b)               ((__m512i)((emu_u64x8)(a) & (emu_u64x8)(b)))
#define _mm512_or_si512(a, b)                ((__m512i)((emu_u64x8)(a) | (emu_u64x8)(b)))
#define _mm512_slli_epi32(a, n)              ((__m512i)((emu_u32x16)(a) << (n)))
#define _mm512_srli_epi32(a, n)              ((__m512i)((emu_u32x16)(a) >> (n)))
#define _mm512_set1_epi32(x)                 ((__m512i)((emu_u32x16){ 0 } + (uint32_t)(x)))
#define _mm512_set1_ps(x)                    ((__m512)((emu_f32x16){ 0 } + (float)(x)))
#define _mm512_setzero_ps()                  ((__m512)(emu_f32x16){ 0 })
#define _mm512_min_ps(a, b)                  ((__m512)emu_min_ps((emu_f32x16)(a), (emu_f32x16)(b)))
#define _mm512_max_ps(a, b)                  ((__m512)emu_max_ps((emu_f32x16)(a), (emu_f32x16)(b)))
#define _mm512_sqrt_ps(a)                    ((__m512)emu_sqrt_ps((emu_f32x16)(a)))
#define _mm512_cmp_ps_mask(a, b, unordered)  ((__mmask16)emu_unordered((emu_f32x16)(a), (emu_f32x16)(b)))
#define _mm512_fpclass_ps_mask(a, denormals) ((__mmask16)emu_denormals((emu_f32x16)(a)))
#define _mm512_castps512_ps256(x)            ((__m256)emu_half((emu_u64x8)(x), 0))
#define _mm512_castps_si512(x)               ((__m512i)(x))
#define _mm512_extractf32x8_ps(x, n)         ((__m256)emu_half((emu_u64x8)(x), n))
#define _mm512_broadcast_i64x4(x)            ((__m512i)emu_twice(x))
#define _mm512_cvtps_pd(x)                   ((__m512d)emu_cvtps_pd(x))
#define _mm512_cvtepu16_epi32(x)             ((__m512i)emu_cvtepu16_epi32((emu_u16x16)(x)))
#define _mm512_cvtepu8_epi16(x)              ((__m512i)emu_cvtepu8_epi16((emu_u8x32)(x)))
#define _mm512_cvtepi32_epi16(x)             ((__m256i)emu_cvtepi32_epi16((emu_u32x16)(x)))
#define _mm512_cvtneps_pbh(x)                ((__m256bh)emu_cvtneps((emu_f32x16)(x)))
#define _mm512_dpbf16_ps(s, a, b)            ((__m512)emu_dpbf16((emu_f32x16)(s), (emu_u32x16)(a), (emu_u32x16)(b)))
#define _mm512_loadu_ps(p)                   ((__m512)emu_load(p))
#define _mm512_storeu_ps(p, x)               emu_store(p, (emu_u32x16)(x))
#define _mm512_storeu_si512(p, x)            emu_store(p, (emu_u32x16)(x))
#define _mm512_mask_loadu_ps(other, k, p)    ((__m512)emu_mask_loadu_ps((emu_f32x16)(other), k, p))
#define _mm512_maskz_loadu_ps(k, p)          ((__m512)emu_mask_loadu_ps((emu_f32x16){ 0 }, k, p))
#define _mm512_mask_storeu_ps(p, k, x)       emu_mask_storeu_ps(p, k, (emu_f32x16)(x))
#define _mm512_maskz_loadu_epi16(k, p)       ((__m512i)emu_maskz_loadu_epi16(k, p, 32))
#define _mm256_maskz_loadu_epi16(k, p)       emu_half((emu_u64x8)emu_maskz_loadu_epi16(k, p, 16), 0)
#define _mm256_mask_storeu_epi16(p, k, x)    emu_mask_storeu_epi16(p, k, (emu_u16x16)(x))
#define _mm256_mask_mov_epi16(x, k, y)       ((__m256i)emu_mask_mov_epi16((emu_u16x16)(x), k, (emu_u16x16)(y)))
#define _mm512_unpacklo_epi32(a, b)          ((__m512i)emu_unpack32((emu_u32x16)(a), (emu_u32x16)(b), 0))
#define _mm512_unpackhi_epi32(a, b)          ((__m512i)emu_unpack32((emu_u32x16)(a), (emu_u32x16)(b), 1))
#define _mm512_unpacklo_epi64(a, b)          ((__m512i)emu_unpack64((emu_u64x8)(a), (emu_u64x8)(b), 0))
#define _mm512_unpackhi_epi64(a, b)          ((__m512i)emu_unpack64((emu_u64x8)(a), (emu_u64x8)(b), 1))
#define _mm512_unpacklo_ps(a, b)             ((__m512)emu_unpack32((emu_u32x16)(a), (emu_u32x16)(b), 0))
#define _mm512_unpackhi_ps(a, b)             ((__m512)emu_unpack32((emu_u32x16)(a), (emu_u32x16)(b), 1))
#define _mm512_unpacklo_pd(a, b)             ((__m512d)emu_unpack64((emu_u64x8)(a), (emu_u64x8)(b), 0))
#define _mm512_unpackhi_pd(a, b)             ((__m512d)emu_unpack64((emu_u64x8)(a), (emu_u64x8)(b), 1))
#define _mm512_shuffle_i32x4(a, b, imm)      ((__m512i)emu_shuffle128((emu_u32x16)(a), (emu_u32x16)(b), imm))
#define _mm512_permutexvar_epi16(at, x)      ((__m512i)emu_permute16((emu_u16x32)(at), (emu_u16x32)(x)))

#if defined(EMU_AMX)
static _Thread_local struct {
    bool ready; /* between loadconfig and release */
    unsigned char at[8][16][64];
} emu_tiles;

/* 8 tiles of 16 rows of 64 bytes, the only configuration that is known here */
EMU void emu_tile_loadconfig(const void *p)
{
    const uint8_t *c = p;
    BUG_IF(c[0] != 1 || c[1] != 0);
    for (int i = 0; i < 8; i++)
        BUG_IF(c[16 + 2 * i] != 64 || c[17 + 2 * i] != 0 || c[48 + i] != 16);
    memset(&emu_tiles, 0, sizeof emu_tiles);
    emu_tiles.ready = true;
}

EMU void emu_tile_release(void)
{
    emu_tiles.ready = false;
}

EMU void emu_tile_zero(int t)
{
    BUG_IF(!emu_tiles.ready);
    memset(emu_tiles.at[t], 0, sizeof emu_tiles.at[t]);
}

EMU void emu_tile_load(int t, const void *p, int64_t step)
{
    BUG_IF(!emu_tiles.ready);
    for (int i = 0; i < 16; i++)
        memcpy(emu_tiles.at[t][i], (const char *)p + i * step, 64);
}

EMU void emu_tile_store(int t, void *p, int64_t step)
{
    BUG_IF(!emu_tiles.ready);
    for (int i = 0; i < 16; i++)
        memcpy((char *)p + i * step, emu_tiles.at[t][i], 64);
}

EMU float emu_tile_half(int t, int i, int k)
{
    uint16_t u;
    memcpy(&u, &emu_tiles.at[t][i][2 * k], sizeof u);
    return float_of((uint32_t)u << 16);
}

EMU void emu_tile_dpbf16(int c, int a, int b)
{
    BUG_IF(!emu_tiles.ready);
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 16; j++) {
            float sum, even = 0, odd = 0;
            for (int k = 0; k < 16; k++) {
                even += emu_tile_half(a, i, 2 * k) * emu_tile_half(b, k, 2 * j);
                odd += emu_tile_half(a, i, 2 * k + 1) * emu_tile_half(b, k, 2 * j + 1);
            }
            memcpy(&sum, &emu_tiles.at[c][i][4 * j], sizeof sum);
            sum += even + odd;
            memcpy(&emu_tiles.at[c][i][4 * j], &sum, sizeof sum);
        }
}

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#define _tile_loadconfig       emu_tile_loadconfig
#define _tile_release          emu_tile_release
#define _tile_zero             emu_tile_zero
#define _tile_loadd            emu_tile_load
#define _tile_stored(t, p, n)  emu_tile_store(t, p, n)
#define _tile_dpbf16ps         emu_tile_dpbf16
#define __AMX_BF16__           1
#endif

/* a vector of 512 bits fits no register here */
#define KEEP(v)         (void)0
#define __AVX512F__     1
#define __AVX512BW__    1
#if defined(EMU_BF16)
#define __AVX512BF16__  1
#endif
#endif
