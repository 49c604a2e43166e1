/* SPDX-License-Identifier: MIT
 * nf4.h - the 4-bit NormalFloat of Dettmers et al., QLoRA (2023): a block of 64 elements shares its largest absolute value, and an element is one of
 * sixteen quantiles of the normal distribution, scaled to [-1, 1]. Two elements a byte, the first in the upper half. The numbers, and which one an
 * element becomes, are bitsandbytes'. */
#ifndef BDPO_NF4_H
#define BDPO_NF4_H

#ifdef __cplusplus
extern "C" {
#endif

/* NF4_GROUP: blocks whose scales, where these are held in 8 bits, share a scale of their own */
enum { NF4_BLOCK = 64, NF4_CODES = 16, NF4_GROUP = 256, NF4_SCALE_CODES = 256 };
#define NF4_TABLE                                                                                                   \
    {                                                                                                               \
        -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f, -0.28444138169288635f,            \
            -0.18477343022823334f, -0.09105003625154495f, 0.0f, 0.07958029955625534f, 0.16093020141124725f,         \
            0.24611230194568634f, 0.33791524171829224f, 0.44070982933044434f, 0.5626170039176941f,                  \
            0.7229568362236023f, 1.0f                                                                               \
    }
/* [NF4_SCALE_CODES] the values in [-1, 1] of a scale's 8 bits, ascending: the dynamic data type of Dettmers, 8-bit Approximations (2015), sign, decade and
 * fraction, as bitsandbytes has them. Static. */
const float *nf4_scale_table(void);
#ifdef __cplusplus
}
#endif
#endif
