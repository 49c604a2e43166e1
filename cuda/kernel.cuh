/* SPDX-License-Identifier: MIT
 * kernel.cuh - what every kernel file of this folder starts from: elements, reductions, launching. */
#ifndef BDPO_CUDA_KERNEL_CUH
#define BDPO_CUDA_KERNEL_CUH
#include "cuda.h"
#include "ptx.cuh"
#include <cuda_runtime.h>

/* --- elements: kernels are templates of A, float or bf16, and compute in float ----------------------------------------- */
struct bf16 {
    uint16_t bits;
};
__device__ static inline float load(const float *p) { return *p; }
__device__ static inline float load(const bf16 *p) { return __uint_as_float((uint32_t)p->bits << 16); }
__device__ static inline void store(float *p, float x) { *p = x; }
__device__ static inline void store(bf16 *p, float x) { p->bits = ptx_f32_to_bf16(x); }
/* x as it is stored in A. */
__device__ static inline float round_to(const float *, float x) { return x; }
__device__ static inline float round_to(const bf16 *, float x) { return __uint_as_float((uint32_t)ptx_f32_to_bf16(x) << 16); }

/* Eight elements: what a thread moves at a time, 16 bytes of bf16 or two times 16 of float. */
enum { OCT = 8 };
struct oct {
    float v[OCT];
};
__device__ static inline bool aligned16(const void *p) { return ((uintptr_t)p & 15) == 0; }
/* p[0 .. min(n, 8)); the rest is 0. n >= 1. */
__device__ static inline oct load8(const float *p, int64_t n)
{
    oct o;
    if (n >= OCT && aligned16(p)) {
        const float4 a = reinterpret_cast<const float4 *>(p)[0], b = reinterpret_cast<const float4 *>(p)[1];
        o.v[0] = a.x, o.v[1] = a.y, o.v[2] = a.z, o.v[3] = a.w;
        o.v[4] = b.x, o.v[5] = b.y, o.v[6] = b.z, o.v[7] = b.w;
        return o;
    }
#pragma unroll
    for (int i = 0; i < OCT; i++)
        o.v[i] = i < n ? p[i] : 0.0f;
    return o;
}
__device__ static inline oct load8(const bf16 *p, int64_t n)
{
    oct o;
    if (n >= OCT && aligned16(p)) {
        const uint4 u = *reinterpret_cast<const uint4 *>(p);
        const uint32_t w[4] = { u.x, u.y, u.z, u.w };
#pragma unroll
        for (int i = 0; i < 4; i++) {
            o.v[2 * i] = __uint_as_float(w[i] << 16);
            o.v[2 * i + 1] = __uint_as_float(w[i] & 0xffff0000u);
        }
        return o;
    }
#pragma unroll
    for (int i = 0; i < OCT; i++)
        o.v[i] = i < n ? load(p + i) : 0.0f;
    return o;
}
/* p[0 .. min(n, 8)) = o */
__device__ static inline void store8(float *p, const oct &o, int64_t n)
{
    if (n >= OCT && aligned16(p)) {
        reinterpret_cast<float4 *>(p)[0] = make_float4(o.v[0], o.v[1], o.v[2], o.v[3]);
        reinterpret_cast<float4 *>(p)[1] = make_float4(o.v[4], o.v[5], o.v[6], o.v[7]);
        return;
    }
#pragma unroll
    for (int i = 0; i < OCT; i++)
        if (i < n) p[i] = o.v[i];
}
__device__ static inline void store8(bf16 *p, const oct &o, int64_t n)
{
    if (n >= OCT && aligned16(p)) {
        *reinterpret_cast<uint4 *>(p) =
            make_uint4(ptx_pack_bf16(o.v[0], o.v[1]), ptx_pack_bf16(o.v[2], o.v[3]),
                       ptx_pack_bf16(o.v[4], o.v[5]), ptx_pack_bf16(o.v[6], o.v[7]));
        return;
    }
#pragma unroll
    for (int i = 0; i < OCT; i++)
        if (i < n) store(p + i, o.v[i]);
}

/* --- threads ----------------------------------------------------------------------------------------------------------- */
#define ALL_LANES 0xffffffffu
/* This thread among all of a one-dimensional grid. */
__device__ static inline int64_t global_thread() { return (int64_t)blockIdx.x * blockDim.x + threadIdx.x; }
/* The sum over the warp, in every lane, the same bits in each. */
template <class T> __device__ static inline T warp_sum(T v)
{
#pragma unroll
    for (int x = 16; x; x >>= 1)
        v += __shfl_xor_sync(ALL_LANES, v, x);
    return v;
}
__device__ static inline float warp_max(float v)
{
#pragma unroll
    for (int x = 16; x; x >>= 1)
        v = fmaxf(v, __shfl_xor_sync(ALL_LANES, v, x));
    return v;
}
/* The sum over a block of `threads` (a multiple of 32) in every thread, in a fixed order. warps: shared memory for
 * threads / 32 sums, which may be used again after the call. */
template <class T> __device__ static inline T block_sum(T v, T *warps)
{
    const int n = (int)blockDim.x / 32, warp = (int)threadIdx.x / 32;
    v = warp_sum(v);
    if (threadIdx.x % 32 == 0) warps[warp] = v;
    __syncthreads();
    T all = warps[0];
    for (int i = 1; i < n; i++)
        all += warps[i];
    __syncthreads();
    return all;
}
/* A broken invariant in a kernel: the launch fails. */
#define DEVICE_BUG_IF(cond)   \
    do {                      \
        if (cond) __trap();   \
    } while (0)

/* --- shared memory: CUDA_SHARED(float, tile, [8][33]); and CUDA_DYNAMIC_SHARED(float, p), at a multiple of 16 bytes --- */
#ifndef CUDA_EMU
#define CUDA_SHARED(type, name, dims) __shared__ type name dims
#define CUDA_DYNAMIC_SHARED(type, name)                                       \
    extern __shared__ __align__(16) unsigned char cuda_dynamic_shared_bytes[]; \
    type *name = reinterpret_cast<type *>(cuda_dynamic_shared_bytes)
#endif

/* --- launching --------------------------------------------------------------------------------------------------------- */
template <class... P, class... A>
static int cuda_launch(struct ctx *cx, const char *name, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, A... args)
{
    enum { UNASKED = 48 << 10 }; /* more dynamic shared memory must be asked for */
    if (shared > UNASKED) {
        const cudaError_t e = cudaFuncSetAttribute(reinterpret_cast<const void *>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared);
        if (e != cudaSuccess) return cuda_failed(e, name);
    }
#ifdef CUDA_EMU
    const cudaError_t e = emu_launch(name, kernel, grid, block, shared, cx->stream, args...);
#else
    kernel<<<grid, block, shared, cx->stream>>>(static_cast<P>(args)...);
    const cudaError_t e = cudaGetLastError();
#endif
    return e == cudaSuccess ? 0 : cuda_failed(e, name);
}
/* LAUNCH(cx, (rope_kernel<A>), grid, block, shared bytes, arguments): queue a kernel on the backend's stream. 0 or ERR_DEVICE. The
 * grid may not be empty. */
#define LAUNCH(cx, kernel, grid, block, shared, ...) cuda_launch(cx, #kernel, kernel, grid, block, shared, __VA_ARGS__)
/* fn<A>(...) for the dtype of activations. */
#define BY_DTYPE(dtype, fn, ...) ((dtype) == DT_BF16 ? fn<bf16>(__VA_ARGS__) : fn<float>(__VA_ARGS__))
/* Blocks of `block` threads for n of them, n >= 1. */
static inline dim3 blocks_for(int64_t n, int64_t block)
{
    return dim3((unsigned)div_up(n, block));
}
template <class T> static inline T *data_of(const struct tensor *t)
{
    return static_cast<T *>(t->data);
}
#endif
