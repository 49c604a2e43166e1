/* SPDX-License-Identifier: MIT
 * emu_ptx.h - the twins in C++ of what cuda/ptx.cuh writes in PTX. Included by it alone. */
#ifndef EMU_PTX_H
#define EMU_PTX_H
#include "cuda_runtime.h"

__device__ static inline uint16_t ptx_f32_to_bf16(float x)
{
    const uint32_t u = __float_as_uint(x);
    if (x != x) return 0x7fff;
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
__device__ static inline uint32_t ptx_pack_bf16(float lo, float hi)
{
    return (uint32_t)ptx_f32_to_bf16(hi) << 16 | ptx_f32_to_bf16(lo);
}

__device__ static inline float ptx_exp2(float x) { return exp2f(x); }

static inline float emu_half_of(uint32_t pair, int i) { return __uint_as_float(i ? pair & 0xffff0000u : pair << 16); }
static inline uint32_t emu_word(const uint64_t *slots, int i)
{
    uint32_t w;
    memcpy(&w, (const char *)slots + 4 * i, 4);
    return w;
}
static inline void emu_put(uint64_t *slots, int i, uint32_t w) { memcpy((char *)slots + 4 * i, &w, 4); }

/* words of `in`: a0 to a3, b0, b1, d0 to d3; of `out`: d0 to d3 */
static inline void emu_mma(emu_thread *w, uint32_t mask)
{
    float a[16][16], b[16][8];
    if (mask != 0xffffffffu) emu_fail("mma with lanes %08x only", mask);
    for (int l = 0; l < 32; l++)
        for (int i = 0; i < 2; i++)
            for (int r = 0; r < 4; r++) {
                a[l / 4 + (r & 1) * 8][l % 4 * 2 + i + (r >> 1) * 8] = emu_half_of(emu_word(w[l].in, r), i);
                if (r < 2) b[l % 4 * 2 + i + r * 8][l / 4] = emu_half_of(emu_word(w[l].in, 4 + r), i);
            }
    for (int l = 0; l < 32; l++)
        for (int r = 0; r < 4; r++) {
            const int row = l / 4 + (r >> 1) * 8, col = l % 4 * 2 + (r & 1);
            float s = __uint_as_float(emu_word(w[l].in, 6 + r));
            for (int k = 0; k < 16; k++)
                s += a[row][k] * b[k][col];
            emu_put(w[l].out, r, __float_as_uint(s));
        }
}
__device__ static inline void ptx_mma_bf16(float d[4], const uint32_t a[4], const uint32_t b[2])
{
    for (int i = 0; i < 4; i++)
        emu_put(emu_cur->in, i, a[i]);
    for (int i = 0; i < 2; i++)
        emu_put(emu_cur->in, 4 + i, b[i]);
    for (int i = 0; i < 4; i++)
        emu_put(emu_cur->in, 6 + i, __float_as_uint(d[i]));
    emu_collect(0xffffffffu, emu_mma);
    for (int i = 0; i < 4; i++)
        d[i] = __uint_as_float(emu_word(emu_cur->out, i));
}

/* in[0]: the lane's row of 8 halves; matrix m has its rows from lanes 8m to 8m+7. Lane l gets of each matrix row l/4,
 * elements 2(l%4) and the next; transposed: column l/4, rows 2(l%4) and the next. */
template <bool TRANS> static void emu_ldmatrix(emu_thread *w, uint32_t mask)
{
    if (mask != 0xffffffffu) emu_fail("ldmatrix with lanes %08x only", mask);
    for (int l = 0; l < 32; l++)
        for (int m = 0; m < 4; m++) {
            uint16_t h[2];
            for (int i = 0; i < 2; i++) {
                const int row = TRANS ? l % 4 * 2 + i : l / 4, col = TRANS ? l / 4 : l % 4 * 2 + i;
                const uint64_t p = w[m * 8 + row].in[0];
                if (p % 16) emu_fail("ldmatrix: a row that is not at a multiple of 16 bytes");
                h[i] = ((const uint16_t *)p)[col];
            }
            emu_put(w[l].out, m, (uint32_t)h[1] << 16 | h[0]);
        }
}
template <bool TRANS> static inline void emu_ldmatrix_call(uint32_t *r, const void *row)
{
    emu_cur->in[0] = (uint64_t)row;
    emu_collect(0xffffffffu, emu_ldmatrix<TRANS>);
    for (int i = 0; i < 4; i++)
        r[i] = emu_word(emu_cur->out, i);
}
__device__ static inline void ptx_ldmatrix(uint32_t r[4], const void *row) { emu_ldmatrix_call<false>(r, row); }
__device__ static inline void ptx_ldmatrix_trans(uint32_t r[4], const void *row) { emu_ldmatrix_call<true>(r, row); }

/* The copy happens when it is waited for; until then the destination holds NaN. */
void emu_copy_async(void *shared, const void *global, bool there);
void emu_copy_commit(void);
void emu_copy_wait(int pending);
__device__ static inline void ptx_copy_async(void *shared, const void *global, bool there) { emu_copy_async(shared, global, there); }
__device__ static inline void ptx_copy_commit() { emu_copy_commit(); }
template <int PENDING> __device__ static inline void ptx_copy_wait() { emu_copy_wait(PENDING); }
#endif
