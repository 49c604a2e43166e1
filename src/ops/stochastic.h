/* SPDX-License-Identifier: MIT
 * stochastic.h - random bits of the kernels, a pure function of (key, index): SplitMix64's output function (Steele, Lea and Flood, 2014) of its index-th
 * state. Stochastic rounding to bfloat16: up with the probability of the part that is cut off, so that small updates count on average. Dropout. */
#ifndef BDPO_STOCHASTIC_H
#define BDPO_STOCHASTIC_H
#include <stdint.h>
#include <string.h>

#ifndef STOCHASTIC_FUNCTION
#define STOCHASTIC_FUNCTION static inline
#endif

/* 64 bits. Of an update bits 0 to 15 round a weight, 16 to 31 its first moment, 32 to 47 its second; of a dropout they decide four elements. */
STOCHASTIC_FUNCTION uint64_t stochastic_bits(uint64_t key, uint64_t index)
{
    uint64_t z = key + (index + 1) * UINT64_C(0x9E3779B97F4A7C15);
    z = (z ^ z >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ z >> 27) * UINT64_C(0x94D049BB133111EB);
    return z ^ z >> 31;
}

/* Of 2^16 values of 16 random bits these many, the lowest, drop an element. */
STOCHASTIC_FUNCTION uint32_t dropout_below(double p)
{
    const uint32_t n = (uint32_t)(p * 65536 + 0.5);
    return n < 65535 ? n : 65535;
}

/* What element i of the four that `bits` decide is multiplied by: 0, or what keeps the mean, with `below` of the values dropped. */
STOCHASTIC_FUNCTION float dropout_factor(uint64_t bits, int i, uint32_t below)
{
    return (uint32_t)(bits >> 16 * i & 0xffff) < below ? 0.0f : 65536.0f / (float)(65536 - below);
}

/* x as bfloat16, up where its lower half and the 16 random bits carry. Infinities stay, and a NaN stays one. */
STOCHASTIC_FUNCTION uint16_t stochastic_bf16(float x, uint32_t random16)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    if ((u & 0x7f800000u) == 0x7f800000u)
        return (uint16_t)(u >> 16 | ((u & 0x7fffffu) != 0 ? 0x40u : 0));
    return (uint16_t)((u + random16) >> 16);
}
#endif
