/* SPDX-License-Identifier: MIT
 * split.h - a float as a bfloat16, its rounding to the nearest even, and 16 bits more: 6 bytes of weight and master in 4. x = the number whose bits are those of
 * the bfloat16, followed by 16 zeros, plus the signed lower half. Only a tie that rounds down (one float of 2^17) does not fit,
 * and is held one unit in its last place nearer to zero. A NaN stays one. */
#ifndef BDPO_SPLIT_H
#define BDPO_SPLIT_H
#include <stdint.h>
#include <string.h>

#ifndef SPLIT_FUNCTION
#define SPLIT_FUNCTION static inline
#endif

/* *upper = x as bfloat16; returns the lower half */
SPLIT_FUNCTION int16_t split_float(float x, uint16_t *upper)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    const int nan = (u & 0x7fffffffu) > 0x7f800000u;
    const uint32_t near = (u + 0x7fffu + (u >> 16 & 1)) >> 16;
    const int32_t rest = (int32_t)(u - (near << 16));
    *upper = (uint16_t)(nan ? u >> 16 | 0x40u : near);
    return (int16_t)(nan ? 0 : rest < 0x7fff ? rest : 0x7fff);
}

SPLIT_FUNCTION float split_join(uint16_t upper, int16_t lower)
{
    const uint32_t u = ((uint32_t)upper << 16) + (uint32_t)(int32_t)lower;
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}
#endif
