/* SPDX-License-Identifier: MIT
 * sdpa.h - attention by a library (cuDNN): sequences of packed rows. attention_cudnn.cpp does it, sdpa_none.c takes its place in
 * a build without cuDNN's headers, and attention_sdpa.cu brings segments to this form. Private to cuda/. */
#ifndef BDPO_CUDA_SDPA_H
#define BDPO_CUDA_SDPA_H
#include "cuda.h"
#ifdef __cplusplus
extern "C" {
#endif

/* n sequences, n >= 1. Sequence i has q_len[i] queries, kv_len[i] >= q_len[i] keys; the last query sees all keys, the one before it all
 * but the last, and so on. Query head h reads kv head h / (H/K). All memory is the device's, BF16 but for lse (F32, natural logarithm).
 * Row r of sequence i and head h of x begin at x[x_at[i] + r ldx + h D]; of lse at lse[lse_at[i] + r H + h]. The x_at
 * [n + 1] rise and are elements; k, v, dk, dv are [kv_rows, K D], contiguous. */
struct sdpa {
    int32_t n, H, K, D;
    int32_t q_most, kv_most; /* upper bounds of q_len, kv_len */
    float scale;
    const int32_t *q_len, *kv_len;
    const int64_t *q_at, *o_at, *dout_at, *dq_at, *lse_at, *kv_at;
    int64_t ldq, ldo, lddout, lddq;
    const void *q, *k, *v;
    void *o; /* written by the forward, read by the backward, as lse is */
    float *lse;
    const void *dout; /* from here on: the backward's */
    void *dq, *dk, *dv;
};

struct sdpa_library;
/* Find and start the library: cx->sdpa. ERR_INPUT: it cannot be used, and why. */
int sdpa_open(struct ctx *cx);
void sdpa_close(struct ctx *cx);
/* *bytes: the workspace that sdpa_run takes. What is made for a shape is kept. ERR_DEVICE: the library does not do it. */
int sdpa_plan(struct ctx *cx, const struct sdpa *s, bool backward, int64_t *bytes);
/* Queue it. Deterministic. workspace: at a multiple of 256 bytes. */
int sdpa_run(struct ctx *cx, const struct sdpa *s, bool backward, void *workspace);

/* Attention through it, as cuda_attention_fwd and _bwd; sdpa_takes: the shapes that it is meant for. */
bool sdpa_takes(const struct ctx *cx, const struct tensor *q, const struct tensor *k, int32_t head_size);
int sdpa_attention_fwd(struct ctx *cx, struct tensor *o, struct tensor *lse, const struct tensor *q, const struct tensor *k,
                       const struct tensor *v, const struct segments *segs, int32_t head_size, float scale);
int sdpa_attention_bwd(struct ctx *cx, struct tensor *dq, struct tensor *dk, struct tensor *dv, const struct tensor *dout,
                       const struct tensor *o, const struct tensor *lse, const struct tensor *q, const struct tensor *k,
                       const struct tensor *v, const struct segments *segs, int32_t head_size, float scale);
#ifdef __cplusplus
}
#endif
#endif
