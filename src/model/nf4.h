/* SPDX-License-Identifier: MIT
 * nf4.h - weights in 4 bits: from numbers to codes (op_nf4 is the way back). */
#ifndef BDPO_MODEL_NF4_H
#define BDPO_MODEL_NF4_H
#include "model.h"

/* q[32 blocks], absmax[blocks] of x[64 blocks]: absmax the largest |x| of a block, and of x / absmax the nearest code, the lower one at a midpoint; in float32,
 * as bitsandbytes rounds. */
void nf4_quantise(uint8_t *q, float *absmax, const float *x, int64_t blocks);
/* Elements [at, at + n) of m's quantised weights from in[n]; at and n multiples of 64. */
int nf4_put(struct model *m, int64_t at, int64_t n, const float *in);
/* Of a model in DT_F32 on the host that is not quantised: every weight that would be becomes what it would compute as. */
void nf4_round_weights(struct model *m);
#endif
