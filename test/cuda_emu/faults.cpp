/* SPDX-License-Identifier: MIT
 * Kernels that are wrong, each in one way that the emulated device must find; and right ones that show what it does. */
#include "../../cuda/kernel.cuh"
#include "emu.h"

__global__ static void branch_barrier_kernel(int *)
{
    if (threadIdx.x < 16) __syncthreads();
}
__global__ static void two_barriers_kernel(int *)
{
    if (threadIdx.x < 32)
        __syncthreads();
    else
        __syncthreads();
}
__global__ static void lost_lane_kernel(int *p)
{
    if (threadIdx.x != 5) p[threadIdx.x] = __shfl_sync(ALL_LANES, (int)threadIdx.x, 5);
    __syncthreads();
}
__global__ static void two_shuffles_kernel(int *p)
{
    if (threadIdx.x < 16)
        p[threadIdx.x] = __shfl_sync(ALL_LANES, 1, 0);
    else
        __syncwarp();
}
__global__ static void wrong_mask_kernel(int *p)
{
    p[threadIdx.x] = __shfl_sync(0xffffu, 1, 0);
}
__global__ static void past_shared_kernel(int *p)
{
    CUDA_SHARED(int, s, [8]);
    for (int i = 0; i <= 8; i++)
        if (threadIdx.x == 0) s[i] = i;
    __syncthreads();
    p[threadIdx.x] = s[0];
}
__global__ static void past_dynamic_kernel(int *p)
{
    CUDA_DYNAMIC_SHARED(int, s);
    if (threadIdx.x == 0) s[4] = 1;
    __syncthreads();
    p[threadIdx.x] = s[0];
}
__global__ static void past_global_kernel(int *p)
{
    if (threadIdx.x == 0) p[64] = 1;
}
__global__ static void trap_kernel(int *p)
{
    DEVICE_BUG_IF(p != NULL);
}
__global__ static void late_wait_kernel(int *p)
{
    CUDA_DYNAMIC_SHARED(int, s);
    if (threadIdx.x == 0) {
        ptx_copy_async(s, p, true);
        ptx_copy_commit();
        p[0] = s[0]; /* too early: NaN, all bits set */
        ptx_copy_wait<0>();
        p[1] = s[1];
    }
}
/* a neighbour's value, read without a barrier: depends on the order */
__global__ static void race_kernel(int *p)
{
    CUDA_SHARED(int, s, [64]);
    s[threadIdx.x] = (int)threadIdx.x;
    p[threadIdx.x] = s[(threadIdx.x + 1) % 64];
}
/* the same between the lanes of a warp and between warps, with barriers */
__global__ static void right_kernel(int *p)
{
    CUDA_SHARED(int, s, [64]);
    CUDA_SHARED(int, fresh, [2]);
    const int lane = (int)threadIdx.x % 32;
    s[threadIdx.x] = __shfl_xor_sync(ALL_LANES, lane, 1);
    __syncthreads();
    int v = s[(threadIdx.x + 1) % 64] + 100 * (fresh[0] == -1);
    if (lane < 8) v += __popc(__ballot_sync(0xff, lane & 1)) * 1000;
    p[threadIdx.x] = v;
    atomicAdd(&p[0], 0);
}

typedef void kernel(int *p);
static const struct {
    kernel *k;
    const char *name;
    unsigned shared;
} kernels[] = {
    { branch_barrier_kernel, "branch_barrier", 0 }, { two_barriers_kernel, "two_barriers", 0 }, { lost_lane_kernel, "lost_lane", 0 },
    { two_shuffles_kernel, "two_shuffles", 0 },     { wrong_mask_kernel, "wrong_mask", 0 },     { past_shared_kernel, "past_shared", 0 },
    { past_dynamic_kernel, "past_dynamic", 16 },    { past_global_kernel, "past_global", 0 },   { trap_kernel, "trap", 0 },
    { late_wait_kernel, "late_wait", 16 },          { race_kernel, "race", 0 },                 { right_kernel, "right", 0 },
};

int emu_faulty(const char *name, int out[64])
{
    void *p;
    for (const auto &f : kernels) {
        if (strcmp(f.name, name) != 0) continue;
        if (cudaMalloc(&p, 64 * sizeof(int)) != cudaSuccess || cudaMemsetAsync(p, 0, 64 * sizeof(int), 0) != cudaSuccess) return -1;
        if (emu_launch(f.name, f.k, 1, 64, f.shared, 0, static_cast<int *>(p)) != cudaSuccess) return -1;
        if (cudaMemcpyAsync(out, p, 64 * sizeof(int), cudaMemcpyDeviceToHost, 0) != cudaSuccess) return -1;
        return cudaFree(p) == cudaSuccess ? 0 : -1;
    }
    return -1;
}

int emu_bad_launch(int which)
{
    switch (which) {
    case 0:
        return emu_launch("right", right_kernel, 0, 64, 0, 0, static_cast<int *>(nullptr));
    case 1:
        return emu_launch("right", right_kernel, 1, 2048, 0, 0, static_cast<int *>(nullptr));
    default:
        return emu_launch("right", right_kernel, 1, 64, 100 << 10, 0, static_cast<int *>(nullptr)); /* not asked for */
    }
}
