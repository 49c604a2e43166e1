/* SPDX-License-Identifier: MIT */
#include "cpu.h"
#include <omp.h>
#include <oneapi/dnnl/dnnl.h>
#include <string.h>

/* FEW: rows that few_rows takes, in pieces of at most STRIP columns; SMALL: multiplications that
 * are not worth a team */
enum { FEW = 8, STRIP = 64, SMALL = 1 << 20 };

int cpu_sgemm(struct ctx *cx, bool ta, bool tb, int64_t M, int64_t N, int64_t K, float alpha,
              const float *a, int64_t lda, const float *b, int64_t ldb, float beta, float *y,
              int64_t ldy)
{
    if (M == 0 || N == 0) return 0;
    if (K == 0) {
        for (int64_t i = 0; i < M && beta == 0; i++)
            memset(y + i * ldy, 0, (size_t)N * sizeof *y);
        return 0;
    }
    /* oneDNN takes its team size from this thread's setting */
    const int team = M * N <= SMALL / K ? 1 : cx->threads;
    if (omp_get_max_threads() != team) omp_set_num_threads(team);
    const dnnl_status_t rc =
        dnnl_sgemm(ta ? 'T' : 'N', tb ? 'T' : 'N', M, N, K, alpha, a, lda, b, ldb, beta, y, ldy);
    if (rc == dnnl_out_of_memory)
        return err_set(ERR_OOM, "oneDNN is out of memory in a matrix product");
    if (rc != dnnl_success)
        return err_set(ERR_DEVICE,
                       "oneDNN failed (status %d) in a %lld x %lld x %lld matrix product", (int)rc,
                       (long long)M, (long long)N, (long long)K);
    return 0;
}

/* Few rows against all of b, as in decoding: reading b once is all that counts. */
static int few_rows(struct ctx *cx, int64_t M, int64_t N, int64_t K, float alpha,
                    const struct tensor *a, const struct tensor *b, float beta, struct tensor *y)
{
    /* a piece of b stays in the L2 cache for all rows */
    const int64_t strip = MAX(2, MIN(STRIP, (1 << 16) / K)), parts = div_up(N, strip);
    const float *pa = a->data, *pb = b->data;
    float *py = y->data;
#pragma omp parallel for schedule(static) num_threads(cpu_team(cx, N *K))
    for (int64_t p = 0; p < parts; p++) {
        const int64_t j0 = p * strip, n = MIN(strip, N - j0);
        float t[FEW * STRIP];
        cx->rows->dots(t, STRIP, pa, a->ld, M, pb + j0 * b->ld, b->ld, n, K);
        for (int64_t i = 0; i < M; i++)
            for (int64_t j = 0; j < n; j++) {
                float *out = py + i * y->ld + j0 + j;
                *out = alpha * t[i * STRIP + j] + (beta == 0 ? 0 : *out);
            }
    }
    return 0;
}

int cpu_gemm(struct ctx *cx, struct tensor *y, const struct tensor *a, bool ta,
             const struct tensor *b, bool tb, const void *packed, float alpha, float beta)
{
    BUG_IF(packed);
    if (!ta && tb && y->dim[0] <= FEW && a->dim[1] > 0)
        return few_rows(cx, y->dim[0], y->dim[1], a->dim[1], alpha, a, b, beta, y);
    return cpu_sgemm(cx, ta, tb, y->dim[0], y->dim[1], ta ? a->dim[0] : a->dim[1], alpha, a->data,
                     MAX(a->ld, 1), b->data, MAX(b->ld, 1), beta, y->data, MAX(y->ld, 1));
}

int cpu_pack_bytes(struct ctx *cx, int64_t *bytes, const struct tensor *b, bool tb)
{
    (void)cx;
    (void)b;
    (void)tb;
    *bytes = 0;
    return 0;
}

int cpu_pack(struct ctx *cx, void *packed, const struct tensor *b, bool tb)
{
    (void)cx;
    (void)packed;
    (void)b;
    (void)tb;
    return 0;
}
