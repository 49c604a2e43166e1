/* SPDX-License-Identifier: MIT
 * cuda.h - the CUDA backend's private state. Private to cuda/ and its tests. One device, one stream: work is queued in the
 * order of the calls, and only to_host, sumsq and a full staging ring wait for it. Several ranks have a second stream for what goes
 * between them (net.c). */
#ifndef BDPO_CUDA_H
#define BDPO_CUDA_H
#include "../src/ops/ops.h"
#include <cuda_runtime_api.h>
#ifdef __cplusplus
extern "C" {
#endif

/* STAGES: more than a micro-batch uses, so that the oldest is always free (its arrays, lists of work, coefficients: 9). */
enum { STAGES = 16, STAGE_BYTES = 512 << 10, SUMSQ_BLOCKS = 1024 };
/* Host arrays that kernels of one call read, uploaded once for all calls with the same bytes. */
enum cuda_table {
    TABLE_ATTENTION_FWD, TABLE_ATTENTION_DQ, TABLE_ATTENTION_DKV, TABLE_SDPA_FWD, TABLE_SDPA_BWD, TABLES
};
struct cuda_copy { /* on the device */
    void *host, *device; /* bytes; owned */
    int64_t bytes, room;
};
struct gemm;
struct net;
struct ctx {
    int32_t device, sms;
    int64_t memory, free_at_open; /* of the device: bytes in all, bytes free before this backend took any */
    cudaStream_t stream;
    void *stage[STAGES]; /* pinned, STAGE_BYTES each */
    cudaEvent_t staged[STAGES]; /* what uses the stage has run */
    int32_t next_stage;
    void *scratch; /* device; of one op at a time */
    int64_t scratch_bytes;
    double *partial; /* device [SUMSQ_BLOCKS + 1] */
    struct cuda_copy table[TABLES];
    struct gemm *gemm;
    struct att_work *att; /* attention.cuh; NULL before its first call */
    struct sdpa_library *sdpa; /* sdpa.h; NULL: attention is the backend's own */
    struct net *net; /* net.c; NULL: one rank, or no messages yet */
    int64_t net_bytes; /* of the device's memory, that the library for messages takes */
    int64_t allocations; /* made so far */
    char about[512];     /* of the device, for the user */
};

/* The error of a runtime call: "CUDA: WHAT: ...". ERR_OOM for memory, else ERR_DEVICE. */
int cuda_failed(cudaError_t e, const char *what);
#define CUDA_TRY(call)                                                \
    do {                                                              \
        const cudaError_t cuda_rc_ = (call);                          \
        if (cuda_rc_ != cudaSuccess) return cuda_failed(cuda_rc_, #call); \
    } while (0)
/* *p = at least `bytes` of device memory that the running op alone uses; what it held is lost. Valid until the next call of
 * any op. What an op takes belongs into cuda_need (scratch.c). */
int cuda_scratch(struct ctx *cx, int64_t bytes, void **p);
/* *device = a copy on the device of `bytes` bytes at host (which may change after the return). Queued before later kernels. */
int cuda_upload(struct ctx *cx, enum cuda_table which, const void *host, int64_t bytes, const void **device);
/* Bytes of scratch that the ops of a family take, by the largest sizes, and the most of them (scratch.c). */
int64_t cuda_bias_scratch(const struct op_sizes *s);
int64_t cuda_scatter_scratch(const struct op_sizes *s);
int64_t cuda_attention_scratch(const struct op_sizes *s);
int64_t cuda_logp_scratch(const struct op_sizes *s);
void cuda_attention_close(struct ctx *cx); /* what attention keeps on the host */
int64_t cuda_need(const struct op_sizes *s);
/* out[n] += part[0][n] + part[1][n] + ... + part[blocks - 1][n], in this order. n >= 1. */
int cuda_sum_blocks(struct ctx *cx, float *out, const float *part, int64_t blocks, int64_t n);
/* What a product does not do with a bias: y[T,N] = b[N] in every row, both A; db[N] += sum_T dy[T,N], db F32, dy A. */
int cuda_bias_rows(struct ctx *cx, struct tensor *y, const struct tensor *b);
int cuda_bias_sums(struct ctx *cx, struct tensor *db, const struct tensor *dy);

extern const struct ops cuda_ops;
extern const struct memops cuda_mem;
extern const struct netops cuda_net;
#ifdef __cplusplus
}
#endif
#endif
