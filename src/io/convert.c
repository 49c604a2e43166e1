/* SPDX-License-Identifier: MIT */
#include "safetensors.h"
#include <string.h>

uint16_t f32_to_bf16(float x)
{
    const uint32_t u = bits_of(x);
    if ((u & 0x7fffffff) > 0x7f800000) return (uint16_t)(u >> 16 | 0x40); /* a quiet NaN */
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

float bf16_to_f32(uint16_t x)
{
    return float_of((uint32_t)x << 16);
}

uint16_t f32_to_f16(float x)
{
    const uint32_t u = bits_of(x), a = u & 0x7fffffff, sign = u >> 16 & 0x8000;
    if (a > 0x7f800000) return (uint16_t)(sign | 0x7e00 | (a >> 13 & 0x1ff));
    if (a >= 0x477ff000) return (uint16_t)(sign | 0x7c00); /* 65520 and more rounds to infinity */
    if (a < 0x38800000) /* below 2^-14: one ulp of 0.5 is 2^-24, the step of subnormals */
        return (uint16_t)(sign | (bits_of(float_of(a) + 0.5f) - 0x3f000000));
    return (uint16_t)(sign | ((a + 0xfff + (a >> 13 & 1) - (112u << 23)) >> 13));
}

float f16_to_f32(uint16_t x)
{
    const uint32_t sign = (uint32_t)(x & 0x8000) << 16, a = x & 0x7fff;
    if (a >= 0x7c00) return float_of(sign | 0x7f800000 | (a & 0x3ff) << 13);
    if (a < 0x400) return float_of(sign | bits_of((float)a * 0x1p-24f));
    return float_of(sign | ((a << 13) + (112u << 23)));
}

void st_to_f32(float *out, const void *in, int64_t n, enum st_dtype dtype)
{
    const char *p = in;
    for (int64_t i = 0; i < n; i++) {
        uint16_t h;
        double d;
        switch (dtype) {
        case ST_F16:
            memcpy(&h, p + 2 * i, sizeof h);
            out[i] = f16_to_f32(h);
            break;
        case ST_BF16:
            memcpy(&h, p + 2 * i, sizeof h);
            out[i] = bf16_to_f32(h);
            break;
        case ST_F64:
            memcpy(&d, p + 8 * i, sizeof d);
            out[i] = (float)d;
            break;
        default:
            memcpy(&out[i], p + 4 * i, sizeof out[i]);
        }
    }
}

void st_from_f32(void *out, const float *in, int64_t n, enum st_dtype dtype)
{
    uint16_t *h = out;
    if (dtype == ST_F32)
        memcpy(out, in, (size_t)n * sizeof *in);
    else if (dtype == ST_BF16)
        for (int64_t i = 0; i < n; i++)
            h[i] = f32_to_bf16(in[i]);
    else
        for (int64_t i = 0; i < n; i++)
            h[i] = f32_to_f16(in[i]);
}
