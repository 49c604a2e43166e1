/* SPDX-License-Identifier: MIT */
#include "nf4.h"
#include "../ops/nf4.h"
#include <math.h>

enum { BLOCKS = 128 }; /* on the stack at a time */
static const float CODE[NF4_CODES] = NF4_TABLE;

/* The number of midpoints between neighbouring codes that lie below x. */
static uint8_t code_of(float x, const float *middle)
{
    int k = 0;
    for (int step = 8; step > 0; step /= 2)
        if (k + step < NF4_CODES && middle[k + step - 1] < x) k += step;
    return (uint8_t)k;
}

void nf4_quantise(uint8_t *q, float *absmax, const float *x, int64_t blocks)
{
    float middle[NF4_CODES - 1];
    for (int k = 0; k + 1 < NF4_CODES; k++)
        middle[k] = (CODE[k] + CODE[k + 1]) / 2;
    for (int64_t b = 0; b < blocks; b++, x += NF4_BLOCK, q += NF4_BLOCK / 2) {
        float most = 0;
        for (int i = 0; i < NF4_BLOCK; i++)
            most = fmaxf(most, fabsf(x[i]));
        absmax[b] = most;
        const float scale = 1.0f / fmaxf(most, 1e-38f);
        for (int i = 0; i < NF4_BLOCK; i += 2) {
            const uint8_t hi = code_of(fminf(fmaxf(x[i] * scale, -1), 1), middle),
                          lo = code_of(fminf(fmaxf(x[i + 1] * scale, -1), 1), middle);
            q[i / 2] = (uint8_t)(hi << 4 | lo);
        }
    }
}

int nf4_put(struct model *m, int64_t at, int64_t n, const float *in)
{
    const struct backend *be = m->be;
    uint8_t q[BLOCKS * NF4_BLOCK / 2];
    float absmax[BLOCKS];
    BUG_IF(at % NF4_BLOCK != 0 || n % NF4_BLOCK != 0);
    for (int64_t i = 0; i < n; i += BLOCKS * NF4_BLOCK) {
        const int64_t k = MIN((int64_t)BLOCKS * NF4_BLOCK, n - i), to = at + i;
        nf4_quantise(q, absmax, in + i, k / NF4_BLOCK);
        TRY(be->mem->to_device(be->cx, (uint8_t *)m->quant.data + to / 2, q, k / 2));
        TRY(be->mem->to_device(be->cx, (float *)m->absmax.data + to / NF4_BLOCK, absmax,
                               k / NF4_BLOCK * (int64_t)sizeof *absmax));
    }
    return 0;
}

static void round_weight(const struct model *m, const struct linear *l)
{
    const struct tensor *w = &m->params[l->w].w;
    float *x = w->data;
    for (int64_t b = 0; b < tensor_count(w) / NF4_BLOCK; b++, x += NF4_BLOCK) {
        uint8_t q[NF4_BLOCK / 2];
        float absmax;
        nf4_quantise(q, &absmax, x, 1);
        for (int i = 0; i < NF4_BLOCK; i += 2) {
            x[i] = CODE[q[i / 2] >> 4] * absmax;
            x[i + 1] = CODE[q[i / 2] & 15] * absmax;
        }
    }
}

void nf4_round_weights(struct model *m)
{
    BUG_IF(m->dtype != DT_F32 || m->arch.nf4);
    for (int64_t l = 0; l < m->arch.L; l++) {
        const struct layer *y = &m->layers[l];
        round_weight(m, &y->qkv);
        round_weight(m, &y->o);
        round_weight(m, &y->gate_up);
        round_weight(m, &y->down);
    }
}
