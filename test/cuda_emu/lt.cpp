/* SPDX-License-Identifier: MIT
 * The twin of cuda/lt.c: cuBLASLt's calls, column-major as the library's, checked as strictly as it does. */
#include "../../cuda/lt.h"
#include "../../src/ops/ops.h"
#include "block.h"
#include <stdlib.h>

enum { INVALID = 7, NOT_SUPPORTED = 15, MAGIC = 0x17 };
struct desc {
    int compute, scale, ta, tb;
    uint32_t epilogue;
    void *bias; /* of the type of d: BIAS [rows of d], read; BGRADB [columns of d], written */
};
struct layout {
    int type;
    int64_t rows, cols, ld;
};
struct preference {
    size_t workspace;
    uint32_t align[4];
};
struct product { /* d = alpha op(a) op(b) + beta d (+ bias in every column), column-major */
    desc op;
    layout la, lb, ld;
    const void *a, *b;
    void *d;
    float alpha, beta;
};

static int create(lt_handle *h)
{
    *h = malloc(1);
    return 0;
}

static int destroy(void *p)
{
    free(p);
    return 0;
}

static size_t version()
{
    return 130002;
}

static int desc_create(lt_desc *d, int compute, int scale)
{
    if (compute != LT_COMPUTE_32F || scale != LT_R_32F) return NOT_SUPPORTED;
    desc *p = static_cast<desc *>(malloc(sizeof *p));
    *p = { compute, scale, LT_OP_N, LT_OP_N, LT_EPILOGUE_DEFAULT, nullptr };
    *d = p;
    return 0;
}

static int desc_set(lt_desc d, int attribute, const void *value, size_t bytes)
{
    desc *p = static_cast<desc *>(d);
    int v;
    if (attribute == LT_DESC_BIAS_POINTER && bytes == sizeof p->bias) {
        memcpy(&p->bias, value, bytes);
        return 0;
    }
    if (bytes != sizeof v) return INVALID;
    memcpy(&v, value, sizeof v);
    if (attribute == LT_DESC_EPILOGUE) {
        p->epilogue = (uint32_t)v;
        return v == LT_EPILOGUE_DEFAULT || v == LT_EPILOGUE_BIAS || v == LT_EPILOGUE_BGRADB ? 0 : INVALID;
    }
    if (v != LT_OP_N && v != LT_OP_T) return INVALID;
    if (attribute == LT_DESC_TRANSA)
        p->ta = v;
    else if (attribute == LT_DESC_TRANSB)
        p->tb = v;
    else
        return INVALID;
    return 0;
}

static int layout_create(lt_layout *l, int type, uint64_t rows, uint64_t cols, int64_t ld)
{
    if ((type != LT_R_32F && type != LT_R_16BF) || rows == 0 || cols == 0 || ld < (int64_t)rows) return INVALID;
    layout *p = static_cast<layout *>(malloc(sizeof *p));
    *p = { type, (int64_t)rows, (int64_t)cols, ld };
    *l = p;
    return 0;
}

static int pref_create(lt_preference *p)
{
    preference *q = static_cast<preference *>(malloc(sizeof *q));
    *q = { 0, { 256, 256, 256, 256 } };
    *p = q;
    return 0;
}

static int pref_set(lt_preference p, int attribute, const void *value, size_t bytes)
{
    preference *q = static_cast<preference *>(p);
    if (attribute == LT_PREF_WORKSPACE && bytes == sizeof q->workspace)
        memcpy(&q->workspace, value, bytes);
    else if (attribute >= LT_PREF_ALIGN_A && attribute <= LT_PREF_ALIGN_D && bytes == sizeof q->align[0])
        memcpy(&q->align[attribute - LT_PREF_ALIGN_A], value, bytes);
    else
        return INVALID;
    return 0;
}

/* sizes of d = op(a) op(b), and dtypes that the library has */
static bool fits(const desc *d, const layout *a, const layout *b, const layout *y)
{
    const int64_t m = d->ta ? a->cols : a->rows, k = d->ta ? a->rows : a->cols, k2 = d->tb ? b->cols : b->rows,
                  n = d->tb ? b->rows : b->cols;
    return m == y->rows && n == y->cols && k == k2 && a->type == b->type && (y->type == a->type || y->type == LT_R_32F);
}

/* Some shapes have no algorithm with an epilogue: here those whose bias is not of whole pieces of 8. */
static bool has_epilogue(const desc *d, const layout *y)
{
    return d->epilogue == LT_EPILOGUE_DEFAULT || (d->epilogue == LT_EPILOGUE_BIAS ? y->rows : y->cols) % 8 == 0;
}

static size_t alignment_of(const void *p)
{
    return (uintptr_t)p & -(uintptr_t)p & 255;
}

static int heuristic(lt_handle, lt_desc d, lt_layout a, lt_layout b, lt_layout c, lt_layout y, lt_preference p, int wanted,
                     struct lt_heuristic *found, int *n_found)
{
    *n_found = 0;
    if (wanted < 1 || c != y) return INVALID;
    if (!fits(static_cast<desc *>(d), static_cast<layout *>(a), static_cast<layout *>(b), static_cast<layout *>(y))) return INVALID;
    const preference *q = static_cast<preference *>(p);
    const desc *op = static_cast<desc *>(d);
    if (!has_epilogue(op, static_cast<layout *>(y))) return NOT_SUPPORTED;
    memset(found, 0, sizeof *found);
    found->algo.data[0] = MAGIC;
    for (int i = 0; i < 4; i++)
        found->algo.data[1 + i] = q->align[i];
    found->algo.data[5] = alignment_of(op->bias);
    found->workspace = q->workspace / 2;
    *n_found = 1;
    return 0;
}

/* element (i, j) of a column-major matrix */
static float element(const layout *l, const void *p, int64_t i, int64_t j)
{
    const int64_t at = j * l->ld + i;
    return l->type == LT_R_32F ? static_cast<const float *>(p)[at] : __uint_as_float((uint32_t) static_cast<const uint16_t *>(p)[at] << 16);
}

static void put(const layout *l, void *p, int64_t at, float x)
{
    if (l->type == LT_R_32F)
        static_cast<float *>(p)[at] = x;
    else
        static_cast<uint16_t *>(p)[at] = ptx_f32_to_bf16(x);
}

/* k runs inside, over copies that stand in its order */
static void run(void *arguments)
{
    const product *p = static_cast<product *>(arguments);
    const int64_t m = p->ld.rows, n = p->ld.cols, k = p->op.ta ? p->la.rows : p->la.cols;
    float *a = static_cast<float *>(malloc((size_t)(m * k + k) * sizeof(float))), *b = a + m * k;
    if (!a) emu_fail("no memory for a product");
    for (int64_t i = 0; i < m; i++)
        for (int64_t l = 0; l < k; l++)
            a[i * k + l] = p->op.ta ? element(&p->la, p->a, l, i) : element(&p->la, p->a, i, l);
    for (int64_t j = 0; j < n; j++) {
        for (int64_t l = 0; l < k; l++)
            b[l] = p->op.tb ? element(&p->lb, p->b, j, l) : element(&p->lb, p->b, l, j);
        if (p->op.epilogue == LT_EPILOGUE_BGRADB) {
            float sum = 0;
            for (int64_t l = 0; l < k; l++)
                sum += b[l];
            put(&p->ld, p->op.bias, j, sum);
        }
        for (int64_t i = 0; i < m; i++) {
            float s[8] = { 0 };
            for (int64_t l = 0; l < k; l++)
                s[l % 8] += a[i * k + l] * b[l];
            float y = p->alpha * (((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7])));
            if (p->beta != 0) y += p->beta * element(&p->ld, p->d, i, j);
            if (p->op.epilogue == LT_EPILOGUE_BIAS) y += element(&p->ld, p->op.bias, i, 0);
            put(&p->ld, p->d, j * p->ld.ld + i, y);
        }
    }
    free(a);
}

static int matmul(lt_handle, lt_desc d, const void *alpha, const void *a, lt_layout la, const void *b, lt_layout lb, const void *beta,
                  const void *c, lt_layout lc, void *y, lt_layout ly, const struct lt_algo *algo, void *workspace, size_t bytes,
                  cudaStream_t s)
{
    product p = { *static_cast<desc *>(d), *static_cast<layout *>(la), *static_cast<layout *>(lb), *static_cast<layout *>(ly), a, b, y, 0, 0 };
    memcpy(&p.alpha, alpha, sizeof p.alpha);
    memcpy(&p.beta, beta, sizeof p.beta);
    if (!fits(&p.op, &p.la, &p.lb, &p.ld) || c != y || lc != ly || algo->data[0] != MAGIC || !workspace || !bytes) return INVALID;
    if ((p.op.epilogue != LT_EPILOGUE_DEFAULT && !p.op.bias) || alignment_of(p.op.bias) != algo->data[5]) return INVALID;
    const void *of[4] = { a, b, c, y };
    for (int i = 0; i < 4; i++)
        if ((uintptr_t)of[i] % algo->data[1 + i]) return INVALID; /* less aligned than the algorithm was asked for */
    emu_host_work(run, &p, sizeof p, s);
    return 0;
}

int lt_open(struct lt *lt)
{
    *lt = {};
    lt->create = create;
    lt->destroy = destroy;
    lt->version = version;
    lt->desc_create = desc_create;
    lt->desc_set = desc_set;
    lt->desc_destroy = destroy;
    lt->layout_create = layout_create;
    lt->layout_destroy = destroy;
    lt->pref_create = pref_create;
    lt->pref_set = pref_set;
    lt->pref_destroy = destroy;
    lt->heuristic = heuristic;
    lt->matmul = matmul;
    return 0;
}

void lt_close(struct lt *lt)
{
    *lt = {};
}
