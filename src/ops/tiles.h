/* SPDX-License-Identifier: MIT
 * tiles.h - the tile of logits that op_logp_* hold at a time, for the backends and op_logp_scratch.
 */
#ifndef BDPO_TILES_H
#define BDPO_TILES_H
#include "ops.h"

enum { LOGP_TILE_N = 512, LOGP_TILE_V = 1024 };
/* Scratch: z [min(N, LOGP_TILE_N), min(V, LOGP_TILE_V)] f32, then two f64 [N] (running sum, and the
 * target's logit), then f32 [N] (running maximum); with BF16 then the tile's gradient, bf16, and the sum of dh,
 * f32 [N,C]. What is kept: exp(z - running maximum) [N,V] of A, padded to 64 bytes, the running maximum [tiles of V][N] and the
 * target's logit [N], f32. */
#endif
