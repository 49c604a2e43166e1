/* SPDX-License-Identifier: MIT */
#include "nf4.h"
#include "../ops/nf4.h"
#include <math.h>
#include <stdlib.h>

enum { BLOCKS = 128 }; /* on the stack at a time */
static const float CODE[NF4_CODES] = NF4_TABLE;

/* middle[codes - 1] between neighbouring ones of code[codes] */
static void midpoints(float *middle, const float *code, int codes)
{
    for (int k = 0; k + 1 < codes; k++)
        middle[k] = (code[k] + code[k + 1]) / 2;
}

/* The number of midpoints between the codes, a power of two, that lie below x. */
static uint8_t code_of(float x, const float *middle, int codes)
{
    int k = 0;
    for (int step = codes / 2; step > 0; step /= 2)
        if (middle[k + step - 1] < x) k += step;
    return (uint8_t)k;
}

void nf4_quantise(uint8_t *q, float *absmax, const float *x, int64_t blocks)
{
    float middle[NF4_CODES - 1];
    midpoints(middle, CODE, NF4_CODES);
    for (int64_t b = 0; b < blocks; b++, x += NF4_BLOCK, q += NF4_BLOCK / 2) {
        float most = 0;
        for (int i = 0; i < NF4_BLOCK; i++)
            most = fmaxf(most, fabsf(x[i]));
        absmax[b] = most;
        const float scale = 1.0f / fmaxf(most, 1e-38f);
        for (int i = 0; i < NF4_BLOCK; i += 2) {
            const uint8_t hi = code_of(fminf(fmaxf(x[i] * scale, -1), 1), middle, NF4_CODES),
                          lo = code_of(fminf(fmaxf(x[i + 1] * scale, -1), 1), middle, NF4_CODES);
            q[i / 2] = (uint8_t)(hi << 4 | lo);
        }
    }
}

void nf4_compress(uint8_t *codes, float *most, const float *absmax, int64_t n)
{
    float middle[NF4_SCALE_CODES - 1];
    double sum = 0;
    midpoints(middle, nf4_scale_table(), NF4_SCALE_CODES);
    for (int64_t i = 0; i < n; i++)
        sum += (double)absmax[i];
    const float mean = (float)(sum / (double)MAX(n, (int64_t)1));
    most[0] = mean;
    for (int64_t g = 0; g * NF4_GROUP < n; g++) {
        const int64_t from = g * NF4_GROUP, end = MIN(from + NF4_GROUP, n);
        float top = 0;
        for (int64_t i = from; i < end; i++)
            top = fmaxf(top, fabsf(absmax[i] - mean));
        most[1 + g] = top;
        const float scale = top > 0 ? 1.0f / top : 0;
        for (int64_t i = from; i < end; i++)
            codes[i] = code_of((absmax[i] - mean) * scale, middle, NF4_SCALE_CODES);
    }
}

static int64_t slice_blocks(const struct param *p, int32_t j)
{
    return p->slice[j].rows * tensor_row(&p->w) / NF4_BLOCK;
}

int64_t nf4_most(const struct param *p, int32_t j)
{
    return 1 + div_up(slice_blocks(p, j), NF4_GROUP);
}

/* Where slice j of p begins: its blocks among p's, its part of model.most. */
static void slice_at(const struct param *p, int32_t j, int64_t *block, int64_t *most)
{
    *block = 0;
    *most = p->most_at;
    for (int32_t i = 0; i < j; i++) {
        *block += slice_blocks(p, i);
        *most += nf4_most(p, i);
    }
}

void nf4_most_of(const struct model *m, const struct param *p, struct tensor *most)
{
    int64_t block, end;
    *most = (struct tensor){ 0 };
    if (!m->arch.nf4_double) return;
    slice_at(p, p->n_slices, &block, &end);
    *most = tensor_rows(&m->most, p->most_at, end - p->most_at);
}

int nf4_put(struct model *m, const struct param *p, int64_t at, int64_t n, const float *in)
{
    const struct backend *be = m->be;
    struct tensor scales = m->arch.nf4_double ? m->scales : p->absmax;
    uint8_t q[BLOCKS * NF4_BLOCK / 2];
    float absmax[BLOCKS];
    BUG_IF(at % NF4_BLOCK != 0 || n % NF4_BLOCK != 0);
    for (int64_t i = 0; i < n; i += BLOCKS * NF4_BLOCK) {
        const int64_t k = MIN((int64_t)BLOCKS * NF4_BLOCK, n - i), to = at + i;
        nf4_quantise(q, absmax, in + i, k / NF4_BLOCK);
        TRY(be->mem->to_device(be->cx, (uint8_t *)p->q.data + to / 2, q, k / 2));
        TRY(be->mem->to_device(be->cx, (float *)scales.data + to / NF4_BLOCK, absmax,
                               k / NF4_BLOCK * (int64_t)sizeof *absmax));
    }
    return 0;
}

int nf4_slice_done(struct model *m, const struct param *p, int32_t j)
{
    const struct backend *be = m->be;
    const int64_t n = slice_blocks(p, j), groups = nf4_most(p, j);
    int64_t block, most_at;
    float *absmax = NULL, *most = NULL;
    uint8_t *codes = NULL;
    int rc;
    if (!m->arch.nf4_double) return 0;
    slice_at(p, j, &block, &most_at);
    TRY_OUT(MEM_NEW(&absmax, n));
    TRY_OUT(MEM_NEW(&most, groups));
    TRY_OUT(MEM_NEW(&codes, n));
    TRY_OUT(be->mem->to_host(be->cx, absmax, (const float *)m->scales.data + block, n * 4));
    nf4_compress(codes, most, absmax, n);
    TRY_OUT(be->mem->to_device(be->cx, (uint8_t *)p->absmax.data + block, codes, n));
    TRY_OUT(be->mem->to_device(be->cx, (float *)m->most.data + most_at, most, groups * 4));
out:
    free(absmax);
    free(most);
    free(codes);
    return rc;
}

int nf4_scales(const struct model *m, const struct param *p, struct tensor *scales)
{
    *scales = p->absmax;
    if (!m->arch.nf4_double) return 0;
    *scales = tensor_rows(&m->scales, 0, tensor_count(&p->absmax));
    for (int32_t j = 0; j < p->n_slices; j++) {
        const int64_t n = slice_blocks(p, j);
        int64_t block, most_at;
        slice_at(p, j, &block, &most_at);
        const struct tensor codes = tensor_rows(&p->absmax, block, n),
                            most = tensor_rows(&m->most, most_at, nf4_most(p, j));
        struct tensor out = tensor_rows(scales, block, n);
        TRY(op_nf4_scales(m->be, &out, &codes, &most));
    }
    return 0;
}

static int round_slice(const struct model *m, const struct param *p, int32_t j, bool with_scales)
{
    const int64_t n = slice_blocks(p, j), groups = nf4_most(p, j);
    float *absmax = NULL, *most = NULL,
          *x = (float *)p->w.data + p->slice[j].row * tensor_row(&p->w);
    uint8_t *codes = NULL, *q = NULL;
    int rc;
    TRY_OUT(MEM_NEW(&absmax, n));
    TRY_OUT(MEM_NEW(&q, n * NF4_BLOCK / 2));
    nf4_quantise(q, absmax, x, n);
    struct tensor y = tensor_view(x, DT_F32, n * NF4_BLOCK, 1, 1, 1),
                  scales = tensor_view(absmax, DT_F32, n, 1, 1, 1);
    const struct tensor tq = tensor_view(q, DT_U8, n * NF4_BLOCK / 2, 1, 1, 1);
    if (with_scales) {
        TRY_OUT(MEM_NEW(&most, groups));
        TRY_OUT(MEM_NEW(&codes, n));
        nf4_compress(codes, most, absmax, n);
        const struct tensor tc = tensor_view(codes, DT_U8, n, 1, 1, 1),
                            tm = tensor_view(most, DT_F32, groups, 1, 1, 1);
        TRY_OUT(op_nf4_scales(m->be, &scales, &tc, &tm));
    }
    TRY_OUT(op_nf4(m->be, &y, &tq, &scales));
out:
    free(absmax);
    free(most);
    free(codes);
    free(q);
    return rc;
}

int nf4_round_weights(struct model *m, bool with_scales)
{
    BUG_IF(m->dtype != DT_F32 || m->arch.nf4);
    for (int64_t l = 0; l < m->arch.L; l++) {
        const struct layer *y = &m->layers[l];
        const int32_t of[] = { y->qkv.w, y->o.w, y->gate_up.w, y->down.w };
        for (size_t i = 0; i < COUNT_OF(of); i++)
            for (int32_t j = 0; j < m->params[of[i]].n_slices; j++)
                TRY(round_slice(m, &m->params[of[i]], j, with_scales));
    }
    return 0;
}
