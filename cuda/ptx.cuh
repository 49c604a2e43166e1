/* SPDX-License-Identifier: MIT
 * ptx.cuh - all PTX of the backend. Each function has a twin in C++, with which the kernels run on a CPU
 * (test/cuda_emu/include/emu_ptx.h). sm_80 or newer. */
#ifndef BDPO_CUDA_PTX_CUH
#define BDPO_CUDA_PTX_CUH
#include <cuda_runtime.h>
#include <stdint.h>
#ifdef CUDA_EMU
#include "emu_ptx.h"
#else

/* The nearest bfloat16, ties to even; a NaN becomes 0x7fff. */
__device__ static inline uint16_t ptx_f32_to_bf16(float x)
{
    uint16_t r;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r) : "f"(x));
    return r;
}
/* Two at once: lo in the lower half. */
__device__ static inline uint32_t ptx_pack_bf16(float lo, float hi)
{
    uint32_t r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
    return r;
}

/* 2^x, to within 2 units of the last place; denormals are 0. */
__device__ static inline float ptx_exp2(float x)
{
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}

/* d[16,8] += a[16,16] b[16,8]; a row-major, b column-major bfloat16, d f32; all 32 lanes. With g = lane / 4,
 * t = lane % 4, each word two neighbours, the first in the lower half: a0 a[g][2t..], a1 a[g+8][2t..], a2 a[g][2t+8..],
 * a3 a[g+8][2t+8..]; b0 b[2t..][g], b1 b[2t+8..][g]; d0, d1 d[g][2t..]; d2, d3 d[g+8][2t..]. */
__device__ static inline void ptx_mma_bf16(float d[4], const uint32_t a[4], const uint32_t b[2])
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* Four 8x8 matrices of 16-bit elements from shared memory; row: this lane's row (16 bytes, at a multiple of 16) of matrix
 * lane / 8. The lane gets, of each matrix, row lane / 4, elements 2 (lane % 4) and the next in one word; _trans: of the
 * transposed matrix. All 32 lanes. */
__device__ static inline uint32_t ptx_shared_address(const void *p)
{
    return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}
__device__ static inline void ptx_ldmatrix(uint32_t r[4], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(ptx_shared_address(row))
                 : "memory");
}
__device__ static inline void ptx_ldmatrix_trans(uint32_t r[4], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(ptx_shared_address(row))
                 : "memory");
}

/* 16 bytes of shared memory = 16 bytes of global memory where `there`, else zeros (global is not read); both at multiples of
 * 16. They arrive some time before a wait for their group returns; other threads see them after a barrier that follows. */
__device__ static inline void ptx_copy_async(void *shared, const void *global, bool there)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(ptx_shared_address(shared)), "l"(global), "r"(there ? 16 : 0)
                 : "memory");
}
/* What this thread began since the last commit is a group. */
__device__ static inline void ptx_copy_commit()
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}
/* Wait until at most PENDING of this thread's newest groups are on their way. */
template <int PENDING> __device__ static inline void ptx_copy_wait()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}
#endif
#endif
