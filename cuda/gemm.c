/* SPDX-License-Identifier: MIT
 * Matrix products by cuBLASLt. A plan (descriptor, layouts, algorithm) is made at the first product of a shape and kept. The
 * algorithm is the library's own first choice, which is a function of the shape: timing the candidates would let two runs
 * of the same config choose differently, and differ in their bits. A bias, or its gradient, is part of the product where the
 * library has an algorithm for that, else kernels of reduce.cu make it. */
#include "cuda.h"
#include "gemm.h"
#include "../src/base/mem.h"
#include <stdlib.h>
#include <string.h>

enum { PLANS = 1024, WORKSPACE = 32 << 20, ALIGN_MAX = 256 };

struct shape { /* no padding, so that plans compare as bytes */
    int64_t M, N, K, lda, ldb, ldy;
    int32_t ta, tb, dtype, y_dtype, align_a, align_b, align_y, align_bias, add, epilogue;
};
struct plan_of {
    struct shape shape;
    bool made, none; /* none: the library has no algorithm with this epilogue */
    lt_desc desc;
    lt_layout a, b, y;
    struct lt_algo algo;
};
struct gemm {
    struct lt lt;
    lt_handle handle;
    lt_preference pref;
    void *workspace; /* device */
    struct plan_of plan[PLANS];
};

static int failed(int status, const struct shape *s, const char *what)
{
    return err_set(ERR_DEVICE,
                   "cuBLASLt failed (status %d) to %s a %lld x %lld x %lld matrix product", status,
                   what, (long long)s->M, (long long)s->N, (long long)s->K);
}

static void drop(const struct lt *lt, struct plan_of *p)
{
    if (p->a) lt->layout_destroy(p->a);
    if (p->b) lt->layout_destroy(p->b);
    if (p->y) lt->layout_destroy(p->y);
    if (p->desc) lt->desc_destroy(p->desc);
    memset(p, 0, sizeof *p);
}

int gemm_open(struct ctx *cx)
{
    struct gemm *g;
    const size_t workspace = WORKSPACE;
    TRY(MEM_NEW(&cx->gemm, 1));
    g = cx->gemm;
    TRY(lt_open(&g->lt));
    int rc = g->lt.create(&g->handle);
    if (rc == 0) rc = g->lt.pref_create(&g->pref);
    if (rc == 0) rc = g->lt.pref_set(g->pref, LT_PREF_WORKSPACE, &workspace, sizeof workspace);
    if (rc != 0)
        return err_set(ERR_INPUT, "cuBLASLt (%s) does not start on this device (status %d)",
                       g->lt.path, rc);
    CUDA_TRY(cudaMalloc(&g->workspace, WORKSPACE));
    cx->allocations++;
    return 0;
}

void gemm_close(struct ctx *cx)
{
    struct gemm *g = cx->gemm;
    if (!g) return;
    for (int i = 0; i < PLANS; i++)
        drop(&g->lt, &g->plan[i]);
    if (g->pref) g->lt.pref_destroy(g->pref);
    if (g->handle) g->lt.destroy(g->handle);
    cudaFree(g->workspace);
    lt_close(&g->lt);
    free(g);
    cx->gemm = NULL;
}

int64_t gemm_bytes(void)
{
    return WORKSPACE;
}

int64_t gemm_version(const struct ctx *cx)
{
    return (int64_t)cx->gemm->lt.version();
}

static int32_t alignment(const void *p)
{
    const uintptr_t bits = (uintptr_t)p | ALIGN_MAX;
    return (int32_t)(bits & (~bits + 1));
}

static uint64_t hash(const struct shape *s)
{
    const unsigned char *p = (const void *)s;
    uint64_t h = 14695981039346656037u;
    for (size_t i = 0; i < sizeof *s; i++)
        h = (h ^ p[i]) * 1099511628211u;
    return h ^ h >> 32;
}

static int type_of(int32_t dtype)
{
    return dtype == DT_BF16 ? LT_R_16BF : LT_R_32F;
}

static int set_bias(const struct gemm *g, const struct plan_of *p, const void *bias)
{
    return g->lt.desc_set(p->desc, LT_DESC_BIAS_POINTER, &bias, sizeof bias);
}

/* The library's matrices are column-major: a row-major [r,c] is its c x r. So y^T = op(b)^T op(a)^T, b is its first factor,
 * and what is transposed stays so. A bias has the type of y. Its address is read for its alignment. */
static int make(struct gemm *g, struct plan_of *p, const void *bias)
{
    const struct shape *s = &p->shape;
    const struct lt *lt = &g->lt;
    const int ta = s->ta ? LT_OP_T : LT_OP_N, tb = s->tb ? LT_OP_T : LT_OP_N;
    const uint32_t align[3] = { (uint32_t)s->align_b, (uint32_t)s->align_a, (uint32_t)s->align_y };
    const uint32_t epilogue = (uint32_t)s->epilogue;
    struct lt_heuristic best;
    int n = 0, rc = lt->desc_create(&p->desc, LT_COMPUTE_32F, LT_R_32F);
    if (rc == 0) rc = lt->desc_set(p->desc, LT_DESC_TRANSA, &tb, sizeof tb);
    if (rc == 0) rc = lt->desc_set(p->desc, LT_DESC_TRANSB, &ta, sizeof ta);
    if (rc == 0) rc = lt->desc_set(p->desc, LT_DESC_EPILOGUE, &epilogue, sizeof epilogue);
    if (rc == 0 && bias) rc = set_bias(g, p, bias);
    if (rc == 0)
        rc = lt->layout_create(&p->b, type_of(s->dtype), (uint64_t)(s->tb ? s->K : s->N),
                               (uint64_t)(s->tb ? s->N : s->K), s->ldb);
    if (rc == 0)
        rc = lt->layout_create(&p->a, type_of(s->dtype), (uint64_t)(s->ta ? s->M : s->K),
                               (uint64_t)(s->ta ? s->K : s->M), s->lda);
    if (rc == 0)
        rc = lt->layout_create(&p->y, type_of(s->y_dtype), (uint64_t)s->N, (uint64_t)s->M, s->ldy);
    if (rc == 0) rc = lt->pref_set(g->pref, LT_PREF_ALIGN_A, &align[0], sizeof align[0]);
    if (rc == 0) rc = lt->pref_set(g->pref, LT_PREF_ALIGN_B, &align[1], sizeof align[1]);
    if (rc == 0) rc = lt->pref_set(g->pref, LT_PREF_ALIGN_C, &align[2], sizeof align[2]);
    if (rc == 0) rc = lt->pref_set(g->pref, LT_PREF_ALIGN_D, &align[2], sizeof align[2]);
    if (rc == 0)
        rc = lt->heuristic(g->handle, p->desc, p->b, p->a, p->y, p->y, g->pref, 1, &best, &n);
    if (rc == 0 && n < 1) rc = 15; /* not supported */
    if (rc != 0) {
        const struct shape shape = *s;
        drop(lt, p);
        if (!bias) return failed(rc, &shape, "plan");
        p->shape = shape;
        p->made = p->none = true;
        return 0;
    }
    p->algo = best.algo;
    p->made = true;
    return 0;
}

static int plan_for(struct gemm *g, const struct shape *s, const void *bias, struct plan_of **out)
{
    struct plan_of *p = &g->plan[hash(s) % PLANS];
    *out = p;
    if (p->made && memcmp(&p->shape, s, sizeof *s) == 0) return 0;
    drop(&g->lt, p);
    p->shape = *s;
    return make(g, p, bias);
}

static struct shape shape_of(const struct tensor *y, const struct tensor *a, bool ta,
                             const struct tensor *b, bool tb, bool add)
{
    return (struct shape){ .M = y->dim[0],
                           .N = y->dim[1],
                           .K = a->dim[ta ? 0 : 1],
                           .lda = MAX(a->ld, a->dim[1]),
                           .ldb = MAX(b->ld, b->dim[1]),
                           .ldy = MAX(y->ld, y->dim[1]),
                           .ta = ta,
                           .tb = tb,
                           .dtype = (int32_t)a->dtype,
                           .y_dtype = (int32_t)y->dtype,
                           .align_a = alignment(a->data),
                           .align_b = alignment(b->data),
                           .align_y = alignment(y->data),
                           .add = add,
                           .epilogue = LT_EPILOGUE_DEFAULT };
}

/* *done: false where the library has no algorithm with the epilogue; then nothing has run. */
static int run(struct ctx *cx, const struct shape *s, struct tensor *y, const struct tensor *a,
               const struct tensor *b, float alpha, void *bias, bool *done)
{
    struct gemm *g = cx->gemm;
    const float beta = (float)s->add;
    struct plan_of *p;
    TRY(plan_for(g, s, bias, &p));
    *done = !p->none;
    if (p->none) return 0;
    int rc = bias ? set_bias(g, p, bias) : 0; /* another one than the plan's last */
    if (rc == 0)
        rc = g->lt.matmul(g->handle, p->desc, &alpha, b->data, p->b, a->data, p->a, &beta, y->data,
                          p->y, y->data, p->y, &p->algo, g->workspace, WORKSPACE, cx->stream);
    return rc == 0 ? 0 : failed(rc, s, "run");
}

int cuda_gemm(struct ctx *cx, struct tensor *y, const struct tensor *a, bool ta,
              const struct tensor *b, bool tb, const void *packed, float alpha, float beta)
{
    BUG_IF(packed);
    const struct shape s = shape_of(y, a, ta, b, tb, beta != 0);
    bool done;
    if (s.M == 0 || s.N == 0) return 0;
    if (s.K == 0) {
        const size_t size = (size_t)dtype_size(y->dtype);
        if (beta == 0)
            CUDA_TRY(cudaMemset2DAsync(y->data, (size_t)s.ldy * size, 0, (size_t)s.N * size,
                                       (size_t)s.M, cx->stream));
        return 0;
    }
    return run(cx, &s, y, a, b, alpha, NULL, &done);
}

/* The bias in the product, else in y when the product is added: either way the sum is rounded once. */
int cuda_gemm_bias(struct ctx *cx, struct tensor *y, const struct tensor *a, const struct tensor *b,
                   const struct tensor *bias)
{
    struct shape s = shape_of(y, a, false, b, true, false);
    bool done = false;
    s.epilogue = LT_EPILOGUE_BIAS;
    s.align_bias = alignment(bias->data);
    if (s.M && s.N && s.K) TRY(run(cx, &s, y, a, b, 1, bias->data, &done));
    if (done) return 0;
    TRY(cuda_bias_rows(cx, y, bias));
    return cuda_gemm(cx, y, a, false, b, true, NULL, 1, 1);
}

/* The library stores the sums, so they are added to db in a second step. */
int cuda_gemm_bgrad(struct ctx *cx, struct tensor *y, struct tensor *db, const struct tensor *a,
                    const struct tensor *b)
{
    struct shape s = shape_of(y, a, true, b, false, true);
    bool done = false;
    if (s.M && s.N && s.K) {
        void *sums;
        TRY(cuda_scratch(cx, s.M * (int64_t)sizeof(float), &sums));
        s.epilogue = LT_EPILOGUE_BGRADB;
        s.align_bias = alignment(sums);
        TRY(run(cx, &s, y, a, b, 1, sums, &done));
        if (done) return cuda_sum_blocks(cx, db->data, sums, 1, s.M);
    }
    TRY(cuda_gemm(cx, y, a, true, b, false, NULL, 1, 1));
    return cuda_bias_sums(cx, db, a);
}

/* cuBLASLt takes matrices as they are, so no copy is kept. */
int cuda_pack_bytes(struct ctx *cx, int64_t *bytes, const struct tensor *b, bool tb)
{
    (void)cx;
    (void)b;
    (void)tb;
    *bytes = 0;
    return 0;
}

int cuda_pack(struct ctx *cx, void *packed, const struct tensor *b, bool tb)
{
    (void)cx;
    (void)packed;
    (void)b;
    (void)tb;
    return 0;
}
