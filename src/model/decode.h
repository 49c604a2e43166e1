/* SPDX-License-Identifier: MIT
 * decode.h - generation's forward pass with a KV cache: B slots, each one sequence. */
#ifndef BDPO_DECODE_H
#define BDPO_DECODE_H
#include "model.h"

struct decoder { /* valid when zeroed */
    struct model *m;        /* weights only (model_plan_weights with train false) */
    int64_t B, cap;         /* slots; kv rows of a slot */
    int64_t T_max;          /* rows of one pass */
    struct tensor *k, *v;   /* [L], each [B * cap, K*D] */
    int32_t *len;           /* [B] rows filled */
    struct tensor x, sum, h, rstd, qkv, rstd_h, att, lse, gu, act, logits, ids, pos, place, last; /* place [T]: row of k and v */
    float *host;            /* [B, V] logits of the last pass */
    int32_t *host_ids;      /* [T_max] ids, [T_max] positions, [T_max] places, [B] last rows */
    struct segment *seg;    /* [B] */
    int32_t *group;         /* [B + 1] */
};
struct decoder_part { /* what one slot reads in a pass */
    int32_t slot;
    const int32_t *ids; /* [n], borrowed */
    int64_t n;
};
/* Book the cache and buffers for `batch` slots of `positions` tokens and passes of up to `rows` tokens (at least one of each slot). m->rope is booked too
 * (no model_plan_buffers is needed). */
int decoder_plan(struct decoder *d, struct model *m, struct plan *p, int64_t batch, int64_t positions, int64_t rows);
/* After plan_grant and model_ready: host arrays, rope table. */
int decoder_ready(struct decoder *d);
void decoder_release(struct decoder *d); /* after plan_release */
/* Empty a slot. */
void decoder_reset(struct decoder *d, int64_t slot);
/* One pass over the weights for all parts (distinct slots, whose rows it fills): prompts and single tokens side by side. sum(n) <= T_max, each n >= 1 and within its
 * slot's room. *logits: [n_parts, V] after each part's last token, borrowed until the next pass. */
int decoder_pass(struct decoder *d, const struct decoder_part *parts, int64_t n_parts, const float **logits);
#endif
