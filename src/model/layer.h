/* SPDX-License-Identifier: MIT
 * layer.h - what forward.c, backward.c and decode.c share inside this folder. */
#ifndef BDPO_LAYER_H
#define BDPO_LAYER_H
#include "model.h"

/* The first T rows of layer l's activations; x and rstd1 are the layer's own wherever these are kept. */
struct acts layer_acts(const struct model *m, int64_t l, int64_t T);
/* q [T, H*D], k, v [T, K*D]: columns of qkv, or q and k of qk where that holds them (qk NULL otherwise). */
void layer_qkv(const struct arch *a, const struct tensor *qkv, const struct tensor *qk, struct tensor *q, struct tensor *k,
               struct tensor *v);
/* x: qkv, or what holds q and k normed. Both are rotated in place, by pos [T], in one call (inverse: their gradients). */
int layer_rope(const struct model *m, const struct tensor *x, const struct tensor *pos, bool inverse);
/* From m->h, the layer's input normed, on: qkv, norms, rope, attention, o, x2, the MLP up to t->gu. */
int layer_forward(const struct model *m, int64_t l, struct acts *t, const struct segments *segs);
/* 1 / sqrt(D) */
float layer_scale(const struct arch *a);
static inline struct segments batch_segments(const struct batch *b)
{
    return (struct segments){ b->seg, b->group, b->n_seg, b->n_groups };
}
#endif
