/* SPDX-License-Identifier: MIT */
#include "cuda.h"
#include "gemm.h"
#include "sdpa.h"
#include "../src/base/mem.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MIB = 1 << 20, CONTEXT_MIB = 1024 };

int cuda_failed(cudaError_t e, const char *what)
{
    (void)cudaGetLastError(); /* told once */
    return err_set(e == cudaErrorMemoryAllocation ? ERR_OOM : ERR_DEVICE, "CUDA: %s: %s", what,
                   cudaGetErrorString(e));
}

/* --- memory ------------------------------------------------------------------------------------------------------------- */
static int mem_alloc(struct ctx *cx, void **out, int64_t bytes)
{
    *out = NULL;
    if (bytes < 0) return err_set(ERR_OOM, "a size overflows 64 bits");
    const cudaError_t e = cudaMalloc(out, (size_t)MAX(bytes, (int64_t)1));
    if (e == cudaErrorMemoryAllocation) {
        size_t left = 0, total = 0;
        (void)cudaGetLastError();
        CUDA_TRY(cudaMemGetInfo(&left, &total));
        return err_set(ERR_OOM,
                       "out of memory: %lld MiB on the device, of whose %lld MiB %lld are free",
                       (long long)(bytes / MIB), (long long)(total / MIB), (long long)(left / MIB));
    }
    if (e != cudaSuccess) return cuda_failed(e, "cudaMalloc");
    cx->allocations++;
    if (bytes) CUDA_TRY(cudaMemsetAsync(*out, 0, (size_t)bytes, cx->stream));
    return 0;
}

static void mem_release(struct ctx *cx, void *p)
{
    (void)cx;
    if (p) (void)cudaFree(p); /* waits for what uses it */
}

/* The next stage, free to be written. */
static int next_stage(struct ctx *cx, int32_t *at)
{
    *at = cx->next_stage;
    cx->next_stage = (cx->next_stage + 1) % STAGES;
    CUDA_TRY(cudaEventSynchronize(cx->staged[*at]));
    return 0;
}

static int to_device(struct ctx *cx, void *dst, const void *host, int64_t bytes)
{
    BUG_IF(bytes < 0);
    for (int64_t i = 0; i < bytes; i += STAGE_BYTES) {
        const size_t n = (size_t)MIN(STAGE_BYTES, bytes - i);
        int32_t s;
        TRY(next_stage(cx, &s));
        memcpy(cx->stage[s], (const char *)host + i, n);
        CUDA_TRY(
            cudaMemcpyAsync((char *)dst + i, cx->stage[s], n, cudaMemcpyHostToDevice, cx->stream));
        CUDA_TRY(cudaEventRecord(cx->staged[s], cx->stream));
    }
    return 0;
}

/* a piece is fetched while the one before is copied out */
static int to_host(struct ctx *cx, void *host, const void *src, int64_t bytes)
{
    BUG_IF(bytes < 0);
    const int64_t parts = div_up(bytes, STAGE_BYTES);
    int32_t stage[2] = { 0, 0 };
    for (int64_t i = 0; i <= parts; i++) {
        if (i < parts) {
            const int64_t at = i * STAGE_BYTES;
            int32_t *s = &stage[i % 2];
            TRY(next_stage(cx, s));
            CUDA_TRY(cudaMemcpyAsync(cx->stage[*s], (const char *)src + at,
                                     (size_t)MIN(STAGE_BYTES, bytes - at), cudaMemcpyDeviceToHost,
                                     cx->stream));
            CUDA_TRY(cudaEventRecord(cx->staged[*s], cx->stream));
        }
        if (i > 0) {
            const int64_t at = (i - 1) * STAGE_BYTES;
            const int32_t s = stage[(i - 1) % 2];
            CUDA_TRY(cudaEventSynchronize(cx->staged[s]));
            memcpy((char *)host + at, cx->stage[s], (size_t)MIN(STAGE_BYTES, bytes - at));
        }
    }
    return 0;
}

static int copy(struct ctx *cx, void *dst, const void *src, int64_t bytes)
{
    BUG_IF(bytes < 0);
    if (bytes)
        CUDA_TRY(cudaMemcpyAsync(dst, src, (size_t)bytes, cudaMemcpyDeviceToDevice, cx->stream));
    return 0;
}

int cuda_scratch(struct ctx *cx, int64_t bytes, void **p)
{
    if (bytes > cx->scratch_bytes) {
        void *more;
        CUDA_TRY(cudaMalloc(&more, (size_t)bytes));
        cx->allocations++;
        CUDA_TRY(cudaFree(cx->scratch));
        cx->scratch = more;
        cx->scratch_bytes = bytes;
    }
    *p = cx->scratch;
    return 0;
}

static int grow_copy(struct ctx *cx, struct cuda_copy *c, int64_t bytes)
{
    const int64_t room = round_up(MAX(2 * c->room, bytes), 4096);
    void *device, *host = malloc((size_t)room);
    if (!host) return err_set(ERR_OOM, "out of memory: %lld bytes", (long long)room);
    const cudaError_t e = cudaMalloc(&device, (size_t)room);
    if (e != cudaSuccess) {
        free(host);
        return cuda_failed(e, "cudaMalloc");
    }
    cx->allocations++;
    free(c->host);
    (void)cudaFree(c->device);
    *c = (struct cuda_copy){ .host = host, .device = device, .room = room };
    return 0;
}

int cuda_upload(struct ctx *cx, enum cuda_table which, const void *host, int64_t bytes,
                const void **device)
{
    struct cuda_copy *c = &cx->table[which];
    if (bytes > c->room) TRY(grow_copy(cx, c, bytes));
    *device = c->device;
    if (bytes == 0 || (bytes == c->bytes && memcmp(host, c->host, (size_t)bytes) == 0)) return 0;
    c->bytes = 0; /* nothing is there if this fails */
    memcpy(c->host, host, (size_t)bytes);
    TRY(to_device(cx, c->device, host, bytes));
    c->bytes = bytes;
    return 0;
}

static int64_t mem_scratch(const struct ctx *cx, const struct op_sizes *s)
{
    (void)cx;
    return cuda_need(s) + gemm_bytes() + (SUMSQ_BLOCKS + 1) * (int64_t)sizeof(double);
}

static int mem_reserve(struct ctx *cx, const struct op_sizes *s)
{
    void *p;
    return cuda_scratch(cx, cuda_need(s), &p);
}

static int64_t mem_allocations(const struct ctx *cx)
{
    return cx->allocations;
}

/* The device's memory less what the context and the library's code take; what others have of it at this moment does not count, so
 * that one config is given the same sizes each time. */
static int mem_memory(struct ctx *cx, int64_t *limit, int64_t *used)
{
    size_t left, total;
    CUDA_TRY(cudaMemGetInfo(&left, &total));
    *limit = MAX(cx->memory - ((int64_t)CONTEXT_MIB << 20) - cx->net_bytes, (int64_t)1);
    *used = cx->free_at_open - (int64_t)left;
    return 0;
}

const struct memops cuda_mem = {
    .alloc = mem_alloc,
    .release = mem_release,
    .to_device = to_device,
    .to_host = to_host,
    .copy = copy,
    .scratch = mem_scratch,
    .reserve = mem_reserve,
    .allocations = mem_allocations,
    .memory = mem_memory,
};

/* --- opening --------------------------------------------------------------------------------------------------------------- */
/* Which device, or why none. The runtime leaves the count alone where there is no driver. */
static int find_device(int *n)
{
    *n = 0;
    const cudaError_t e = cudaGetDeviceCount(n);
    (void)cudaGetLastError();
    if (e == cudaErrorInsufficientDriver) {
        int driver = 0, runtime = 0;
        (void)cudaDriverGetVersion(&driver);
        (void)cudaRuntimeGetVersion(&runtime);
        if (driver == 0)
            return err_set(ERR_INPUT,
                           "no CUDA device can be used: NVIDIA's driver is not installed");
        return err_set(ERR_INPUT,
                       "no CUDA device can be used: the driver is for CUDA %d.%d and this build "
                       "needs %d.%d; update the driver",
                       driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
    }
    if (e != cudaSuccess)
        return err_set(ERR_INPUT, "no CUDA device can be used: %s", cudaGetErrorString(e));
    return *n > 0 ? 0 : err_set(ERR_INPUT, "no CUDA device can be used: the driver sees none");
}

static int describe(struct ctx *cx, const struct cudaDeviceProp *p)
{
    int driver = 0;
    const int64_t lt = gemm_version(cx);
    CUDA_TRY(cudaDriverGetVersion(&driver));
    snprintf(cx->about, sizeof cx->about,
             "%s, %.1f GiB, compute capability %d.%d, driver for CUDA %d.%d, cuBLASLt %d.%d.%d",
             p->name, (double)p->totalGlobalMem / (1024.0 * MIB), p->major, p->minor, driver / 1000,
             driver % 1000 / 10, (int)(lt / 10000), (int)(lt / 100 % 100), (int)(lt % 100));
    return 0;
}

static int open_device(struct ctx *cx, int32_t place)
{
    struct cudaDeviceProp p;
    size_t left, total;
    int n;
    TRY(find_device(&n));
    cx->device = place % n;
    CUDA_TRY(cudaSetDevice(cx->device));
    CUDA_TRY(cudaGetDeviceProperties(&p, cx->device));
    if (p.major < 8)
        return err_set(
            ERR_INPUT,
            "no CUDA device can be used: %s has compute capability %d.%d; 8.0 or more is needed",
            p.name, p.major, p.minor);
    cx->sms = p.multiProcessorCount;
    cx->memory = (int64_t)p.totalGlobalMem;
    CUDA_TRY(cudaStreamCreateWithFlags(&cx->stream, cudaStreamNonBlocking));
    CUDA_TRY(cudaMemGetInfo(&left, &total)); /* the context is there now */
    cx->free_at_open = (int64_t)left;
    for (int i = 0; i < STAGES; i++) {
        CUDA_TRY(cudaMallocHost(&cx->stage[i], STAGE_BYTES));
        CUDA_TRY(cudaEventCreateWithFlags(&cx->staged[i], cudaEventDisableTiming));
    }
    CUDA_TRY(cudaMalloc((void **)&cx->partial, (SUMSQ_BLOCKS + 1) * sizeof(double)));
    TRY(gemm_open(cx));
    return describe(cx, &p);
}

const bool cuda_built = true;

int cuda_open_at(struct backend *be, int32_t threads, int32_t place)
{
    struct ctx *cx;
    memset(be, 0, sizeof *be);
    TRY(MEM_NEW(&cx, 1));
    const int rc = open_device(cx, place);
    if (rc < 0) {
        cuda_close(cx);
        return rc;
    }
    be->name = "cuda";
    be->about = cx->about;
    be->cx = cx;
    be->op = &cuda_ops;
    be->mem = &cuda_mem;
    be->net = &cuda_net;
    be->threads = MAX(threads, 1);
    return 0;
}

void cuda_close(struct ctx *cx)
{
    if (!cx) return;
    cuda_net.close(cx);
    if (cx->stream) (void)cudaStreamSynchronize(cx->stream);
    gemm_close(cx);
    cuda_attention_close(cx);
    sdpa_close(cx);
    for (int i = 0; i < TABLES; i++) {
        free(cx->table[i].host);
        (void)cudaFree(cx->table[i].device);
    }
    (void)cudaFree(cx->scratch);
    (void)cudaFree(cx->partial);
    for (int i = 0; i < STAGES; i++) {
        if (cx->staged[i]) (void)cudaEventDestroy(cx->staged[i]);
        (void)cudaFreeHost(cx->stage[i]);
    }
    if (cx->stream) (void)cudaStreamDestroy(cx->stream);
    free(cx);
}
