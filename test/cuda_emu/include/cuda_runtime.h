/* SPDX-License-Identifier: MIT
 * cuda_runtime.h - of CUDA C++, what the kernels of cuda/ are written in, for a C++17 compiler. A thread of a block is a
 * fiber (block.cpp). What is not here does not compile, float atomics among them: results would depend on the order. */
#ifndef EMU_CUDA_RUNTIME_H
#define EMU_CUDA_RUNTIME_H
#include "cuda_runtime_api.h"
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};
struct uint2 { unsigned x, y; } __attribute__((aligned(8)));
struct uint4 { unsigned x, y, z, w; } __attribute__((aligned(16)));
struct float2 { float x, y; } __attribute__((aligned(8)));
struct float4 { float x, y, z, w; } __attribute__((aligned(16)));
static inline uint2 make_uint2(unsigned x, unsigned y) { return { x, y }; }
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return { x, y, z, w }; }
static inline float2 make_float2(float x, float y) { return { x, y }; }
static inline float4 make_float4(float x, float y, float z, float w) { return { x, y, z, w }; }

/* --- the running thread -------------------------------------------------------------------------------------------- */
struct emu_thread {
    void *sp;        /* of a fiber that does not run */
    dim3 idx;
    int linear, state;
    const char *site; /* of the barrier where it waits */
    uint32_t mask;    /* of the collective where it waits */
    void (*collective)(struct emu_thread *warp, uint32_t mask);
    uint64_t in[8], out[8]; /* what it brings to a collective and takes from it */
    struct emu_copy *copies; /* cp.async on its way */
    int group;
    void *fake_stack; /* the address sanitizer's */
};
extern struct emu_thread *emu_cur;
extern dim3 emu_block_idx, emu_block_dim, emu_grid_dim;
#define threadIdx (emu_cur->idx)
#define blockIdx emu_block_idx
#define blockDim emu_block_dim
#define gridDim emu_grid_dim
enum { warpSize = 32 };

/* --- barriers and what the lanes of a warp do together ---------------------------------------------------------------- */
void emu_syncthreads(const char *site);
/* The last lane of `mask` that comes runs `f` for all, with `in` of each lane, and fills `out` of each. */
void emu_collect(uint32_t mask, void (*f)(struct emu_thread *warp, uint32_t mask));
[[noreturn]] void emu_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
#define EMU_STR(x) #x
#define EMU_LINE(x) EMU_STR(x)
#define __syncthreads() emu_syncthreads(__FILE__ ":" EMU_LINE(__LINE__))
#define __trap() emu_fail("trap at %s:%d", __FILE__, __LINE__)

static inline void emu_nothing(emu_thread *, uint32_t) {}
static inline void __syncwarp(uint32_t mask = 0xffffffffu) { emu_collect(mask, emu_nothing); }
static inline int emu_lane() { return emu_cur->linear & 31; }

/* in[0]: the value, in[1]: the lane that it wants, -1: its own. A lane outside the mask, or gone, gives rubbish. */
static inline void emu_shuffle(emu_thread *warp, uint32_t mask)
{
    for (int l = 0; l < 32; l++) {
        if (!(mask >> l & 1)) continue;
        const int64_t from = (int64_t)warp[l].in[1];
        const bool there = from < 0 || (mask >> (from & 31) & 1);
        warp[l].out[0] = from < 0 ? warp[l].in[0] : there ? warp[from & 31].in[0] : 0xfff9fffffff9ffffu;
    }
}
template <class T> static inline T emu_exchange(uint32_t mask, T v, int from)
{
    static_assert(sizeof(T) <= 8, "a shuffle moves up to 8 bytes");
    T r;
    emu_cur->in[0] = 0;
    memcpy(emu_cur->in, &v, sizeof v);
    emu_cur->in[1] = (uint64_t)(int64_t)from;
    emu_collect(mask, emu_shuffle);
    memcpy(&r, emu_cur->out, sizeof r);
    return r;
}
template <class T> static inline T __shfl_sync(uint32_t mask, T v, int lane, int width = 32)
{
    return emu_exchange(mask, v, (emu_lane() & ~(width - 1)) | (lane & (width - 1)));
}
template <class T> static inline T __shfl_xor_sync(uint32_t mask, T v, int x, int width = 32)
{
    const int to = emu_lane() ^ x;
    return emu_exchange(mask, v, (to & ~(width - 1)) > (emu_lane() | (width - 1)) ? -1 : to);
}
template <class T> static inline T __shfl_down_sync(uint32_t mask, T v, unsigned d, int width = 32)
{
    const int to = emu_lane() + (int)d;
    return emu_exchange(mask, v, to > (emu_lane() | (width - 1)) ? -1 : to);
}
template <class T> static inline T __shfl_up_sync(uint32_t mask, T v, unsigned d, int width = 32)
{
    const int to = emu_lane() - (int)d;
    return emu_exchange(mask, v, to < (emu_lane() & ~(width - 1)) ? -1 : to);
}
static inline void emu_vote(emu_thread *warp, uint32_t mask)
{
    uint32_t votes = 0;
    for (int l = 0; l < 32; l++)
        if ((mask >> l & 1) && warp[l].in[0]) votes |= 1u << l;
    for (int l = 0; l < 32; l++)
        if (mask >> l & 1) warp[l].out[0] = votes;
}
static inline uint32_t __ballot_sync(uint32_t mask, int yes)
{
    emu_cur->in[0] = yes != 0;
    emu_collect(mask, emu_vote);
    return (uint32_t)emu_cur->out[0];
}
static inline int __any_sync(uint32_t mask, int yes) { return __ballot_sync(mask, yes) != 0; }
static inline int __all_sync(uint32_t mask, int yes) { return __ballot_sync(mask, !yes) == 0; }

/* --- atomics (integers), memory -------------------------------------------------------------------------------------- */
template <class T> static inline T emu_atomic_add(T *p, T v)
{
    const T old = *p;
    *p = old + v;
    return old;
}
static inline int atomicAdd(int *p, int v) { return emu_atomic_add(p, v); }
static inline unsigned atomicAdd(unsigned *p, unsigned v) { return emu_atomic_add(p, v); }
static inline unsigned long long atomicAdd(unsigned long long *p, unsigned long long v) { return emu_atomic_add(p, v); }
static inline int atomicMin(int *p, int v)
{
    const int old = *p;
    if (v < old) *p = v;
    return old;
}
static inline int atomicMax(int *p, int v)
{
    const int old = *p;
    if (v > old) *p = v;
    return old;
}
static inline void __threadfence() {}
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline float __uint_as_float(unsigned u)
{
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}
static inline unsigned __float_as_uint(float f)
{
    unsigned u;
    memcpy(&u, &f, sizeof u);
    return u;
}

/* --- shared memory: filled with NaN when a block starts, guard bytes behind each array --------------------------------- */
void *emu_shared(const void *key, size_t bytes, size_t align);
void *emu_dynamic_shared(void);
#define CUDA_SHARED(type, name, dims)                                      \
    using name##_type = type dims;                                         \
    static const char name##_key = 0;                                      \
    name##_type &name = *static_cast<name##_type *>(                       \
        emu_shared(&name##_key, sizeof(name##_type), alignof(name##_type)))
#define CUDA_DYNAMIC_SHARED(type, name) type *name = static_cast<type *>(emu_dynamic_shared())

/* --- launching: `body` is queued on the stream and run block by block ---------------------------------------------------- */
struct emu_launch_info {
    const char *name; /* as it stands in the source, with template arguments */
    const void *kernel;
    dim3 grid, block;
    size_t shared;
};
cudaError_t emu_enqueue(const emu_launch_info *l, cudaStream_t s, void (*run)(const void *body), const void *body, size_t bytes);
template <class... P, class... A>
static cudaError_t emu_launch(const char *name, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, cudaStream_t s, A... args)
{
    const emu_launch_info l = { name, reinterpret_cast<const void *>(kernel), grid, block, shared };
    const auto body = [=] { kernel(static_cast<P>(args)...); };
    using B = decltype(body);
    return emu_enqueue(&l, s, [](const void *b) { (*static_cast<B *>(b))(); }, &body, sizeof body);
}
#endif
