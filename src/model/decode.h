/* SPDX-License-Identifier: MIT
 * decode.h - generation's forward pass with a KV cache: B slots, each one sequence. */
#ifndef BDPO_DECODE_H
#define BDPO_DECODE_H
#include "model.h"

struct decoder { /* valid when zeroed */
    struct model *m;        /* weights only (model_plan_weights with train false) */
    int64_t B, cap;         /* slots; kv rows of a slot */
    int64_t T_max;          /* rows of one forward call */
    struct tensor *k, *v;   /* [L], each [B * cap, K*D] */
    int32_t *len;           /* [B] rows filled */
    struct tensor x, sum, h, rstd, qkv, rstd_h, att, lse, gu, act, logits, ids, pos;
    float *host;            /* [B, V] logits of the last call */
    int32_t *host_pos;      /* [T_max] */
    struct segment *seg;    /* [B] */
    int32_t *group;         /* [B + 1] */
};
/* Book the cache and buffers for `batch` slots of `positions` tokens and prefills of up to `prefill` tokens. m->rope is booked too
 * (no model_plan_buffers is needed). */
int decoder_plan(struct decoder *d, struct model *m, struct plan *p, int64_t batch, int64_t positions, int64_t prefill);
/* After plan_grant and model_ready: host arrays, rope table. */
int decoder_ready(struct decoder *d);
void decoder_release(struct decoder *d); /* after plan_release */
/* Empty a slot. */
void decoder_reset(struct decoder *d, int64_t slot);
/* Append n ids (1 <= n <= prefill) to a slot; *logits: [V] of the last position (borrowed until the next call). */
int decoder_prefill(struct decoder *d, int64_t slot, const int32_t *ids, int64_t n, const float **logits);
/* Append ids[i] to slots[i] for i in 0..n (distinct slots); *logits: [n, V]. */
int decoder_step(struct decoder *d, const int32_t *slots, const int32_t *ids, int64_t n, const float **logits);
#endif
