/* SPDX-License-Identifier: MIT
 * rng.h - counter-based random numbers: a value is a pure function of (seed, stream, index), so that
 * nothing has to be saved to resume and no order of evaluation matters. */
#ifndef BDPO_RNG_H
#define BDPO_RNG_H
#include "base.h"
#ifdef __cplusplus
extern "C" {
#endif

enum rng_stream { /* the high byte of a stream; lower bits number the epoch, tensor, row ... */
    RNG_ORDER = 1, RNG_SUBSAMPLE, RNG_INIT, RNG_SAMPLE, RNG_TEST, RNG_VERIFY, RNG_BOOTSTRAP, RNG_TOY, RNG_KL, RNG_LORA, RNG_ROUND, RNG_DROPOUT
};
static inline uint64_t rng_stream_of(enum rng_stream kind, uint64_t sub) { return ((uint64_t)kind << 56) | sub; }

/* 64 random bits: Philox4x32-10 (Salmon et al., SC 2011) with key = seed, counter = (index, stream). */
uint64_t rng_u64(uint64_t seed, uint64_t stream, uint64_t index);
/* Uniform in [0, 1), 53 bits. */
double rng_uniform(uint64_t seed, uint64_t stream, uint64_t index);
/* Standard normal, Box-Muller from one 128-bit block. */
double rng_normal(uint64_t seed, uint64_t stream, uint64_t index);
/* perm[0..n) = a permutation of 0..n-1 (Fisher-Yates; pure function of seed and stream). n < 2^31. */
void rng_permutation(int64_t *perm, int64_t n, uint64_t seed, uint64_t stream);

#ifdef __cplusplus
}
#endif
#endif
