/* SPDX-License-Identifier: MIT */
#include "arch.h"
#include <math.h>

/* Everything in float32 and in transformers' order of operations, so that the angles agree to the
 * last bits. */
static float inverse_frequency(const struct arch *a, int64_t i)
{
    const float pi2 = 6.283185307179586f;
    const float f = 1.0f / powf((float)a->rope_theta, (float)(2 * i) / (float)a->D);
    if (!a->rope_llama3) return f;
    const float factor = (float)a->rope_factor, length = (float)a->rope_original;
    const float wave = pi2 / f;
    if (wave < (float)((double)a->rope_original / a->rope_high)) return f;
    if (wave > (float)((double)a->rope_original / a->rope_low)) return f / factor;
    const float smooth = (length / wave - (float)a->rope_low) / (float)(a->rope_high - a->rope_low);
    return (1.0f - smooth) * f / factor + smooth * f;
}

void arch_rope_table(const struct arch *a, float *table, int64_t positions)
{
    const int64_t half = a->D / 2;
    for (int64_t i = 0; i < half; i++) {
        const float f = inverse_frequency(a, i);
        for (int64_t p = 0; p < positions; p++) {
            const float angle = (float)p * f;
            table[p * a->D + i] = cosf(angle);
            table[p * a->D + half + i] = sinf(angle);
        }
    }
}
