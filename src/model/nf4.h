/* SPDX-License-Identifier: MIT
 * nf4.h - weights in 4 bits: from numbers to codes (op_nf4 is the way back). */
#ifndef BDPO_MODEL_NF4_H
#define BDPO_MODEL_NF4_H
#include "model.h"

/* q[32 blocks], absmax[blocks] of x[64 blocks]: absmax the largest |x| of a block, and of x / absmax the nearest code, the lower one at a midpoint; in float32,
 * as bitsandbytes rounds. */
void nf4_quantise(uint8_t *q, float *absmax, const float *x, int64_t blocks);
/* codes[n] and most[1 + ceil(n / 256)] that stand for absmax[n]: the mean, and of 256 differences from it the largest and of each the nearest value of
 * nf4_scale_table, the lower one at a midpoint; in float32, as bitsandbytes' kernels round (its CPU library takes a neighbour for one in 600). */
void nf4_compress(uint8_t *codes, float *most, const float *absmax, int64_t n);
/* Elements of `most` that slice j of p has. */
int64_t nf4_most(const struct param *p, int32_t j);
/* All of p's in model.most; data NULL: it has none. */
void nf4_most_of(const struct model *m, const struct param *p, struct tensor *most);
/* Elements [at, at + n) of p, which is held in 4 bits, from in[n]; at and n multiples of 64. */
int nf4_put(struct model *m, const struct param *p, int64_t at, int64_t n, const float *in);
/* After all elements of slice j of p. */
int nf4_slice_done(struct model *m, const struct param *p, int32_t j);
/* *scales: the F32 scales of p, in m->scales where they are held in 8 bits. */
int nf4_scales(const struct model *m, const struct param *p, struct tensor *scales);
/* Of a model in DT_F32 on the CPU that is not quantised: every weight that would be (`with_scales`: in arch.nf4_double) becomes what it would compute as. */
int nf4_round_weights(struct model *m, bool with_scales);
#endif
