/* SPDX-License-Identifier: MIT */
#include "cpu.h"
#include <omp.h>
#include <oneapi/dnnl/dnnl.h>
#include <string.h>

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
    if (omp_get_max_threads() != cx->threads) omp_set_num_threads(cx->threads);
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

int cpu_gemm(struct ctx *cx, struct tensor *y, const struct tensor *a, bool ta,
             const struct tensor *b, bool tb, const void *packed, float alpha, float beta)
{
    BUG_IF(packed);
    return cpu_sgemm(cx, ta, tb, y->dim[0], y->dim[1], ta ? a->dim[0] : a->dim[1], alpha, a->data,
                     MAX(a->ld, 1), b->data, MAX(b->ld, 1), beta, y->data, MAX(y->ld, 1));
}
