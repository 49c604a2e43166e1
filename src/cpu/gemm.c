/* SPDX-License-Identifier: MIT */
#include "cpu.h"
#include <omp.h>
#include <oneapi/dnnl/dnnl.h>
#include <string.h>

/* FEW: rows that few_rows takes, in pieces of at most STRIP columns; SMALL: multiplications that
 * are not worth a team */
enum { FEW = 32, STRIP = 64, SMALL = 1 << 18 };

static int sgemm(struct ctx *cx, const struct product *p)
{
    /* oneDNN takes its team size from this thread's setting */
    const int team = p->M * p->N <= SMALL / p->K ? 1 : cx->threads;
    if (omp_get_max_threads() != team) omp_set_num_threads(team);
    const dnnl_status_t rc =
        dnnl_sgemm(p->a.t ? 'T' : 'N', p->b.t ? 'T' : 'N', p->M, p->N, p->K, p->alpha, p->a.p,
                   p->a.ld, p->b.p, p->b.ld, p->beta, p->y, p->ldy);
    if (rc == dnnl_out_of_memory)
        return err_set(ERR_OOM, "oneDNN is out of memory in a matrix product");
    if (rc != dnnl_success)
        return err_set(ERR_DEVICE,
                       "oneDNN failed (status %d) in a %lld x %lld x %lld matrix product", (int)rc,
                       (long long)p->M, (long long)p->N, (long long)p->K);
    return 0;
}

static bool by_panels(const struct product *p)
{
    return p->a.dtype == DT_BF16 || p->b.dtype == DT_BF16 || p->y_dtype == DT_BF16;
}

int64_t cpu_product_shared(const struct ctx *cx, const struct product *p)
{
    if (!by_panels(p) || p->M == 0 || p->N == 0 || p->K == 0) return 0;
    return cpu_panels_shared(cx, p);
}

int cpu_product(struct ctx *cx, const struct product *p)
{
    if (p->M == 0 || p->N == 0) return 0;
    if (p->K == 0) {
        for (int64_t i = 0; i < p->M && p->beta == 0; i++)
            memset(cpu_at(p->y, p->y_dtype, i * p->ldy), 0,
                   (size_t)(p->N * dtype_size(p->y_dtype)));
        return 0;
    }
    return by_panels(p) ? cpu_panels(cx, p) : sgemm(cx, p);
}

int64_t cpu_few_shared(int64_t K)
{
    return dots_panel(FEW, K) * (int64_t)sizeof(float);
}

/* Few rows against all of b, as in decoding: reading b once is all that counts. */
static int few_rows(struct ctx *cx, const struct product *p)
{
    const int64_t M = p->M, N = p->N, K = p->K;
    /* a piece of b stays in the L2 cache for all rows */
    const int64_t unit = cx->rows->dots_unit,
                  strip = MAX(unit, MIN(STRIP, (1 << 16) / K) / unit * unit),
                  parts = div_up(N, strip);
    const bool ahalf = p->a.dtype == DT_BF16, bhalf = p->b.dtype == DT_BF16;
    TRY(cpu_shared(cx, cpu_few_shared(K)));
    float *panel = cx->shared;
#pragma omp parallel num_threads(cpu_team(cx, N *K))
    {
#pragma omp for schedule(static)
        for (int64_t i = 0; i < M; i++)
            cx->rows->dots_pack(panel, i, cpu_at_const(p->a.p, p->a.dtype, i * p->a.ld), ahalf,
                                bhalf, K);
#pragma omp for schedule(static)
        for (int64_t s = 0; s < parts; s++) {
            const int64_t j0 = s * strip, n = MIN(strip, N - j0), next = MIN(strip, N - j0 - n);
            float t[FEW * STRIP];
            cx->rows->dots(t, STRIP, panel, ahalf, M,
                           cpu_at_const(p->b.p, p->b.dtype, j0 * p->b.ld), p->b.ld, bhalf, n, next,
                           K);
            for (int64_t i = 0; i < M; i++) {
                const int64_t at = i * p->ldy + j0;
                float was[STRIP], *row = t + i * STRIP, *out = cpu_write(row, p->y, p->y_dtype, at);
                const float *old =
                    p->beta == 0 ? NULL : cpu_read(cx->rows, was, p->y, p->y_dtype, at, n);
                for (int64_t j = 0; j < n && old; j++)
                    out[j] = p->alpha * row[j] + old[j];
                for (int64_t j = 0; j < n && !old; j++)
                    out[j] = p->alpha * row[j];
                cpu_wrote(cx->rows, out, p->y, p->y_dtype, at, n);
            }
        }
    }
    return 0;
}

int cpu_gemm(struct ctx *cx, struct tensor *y, const struct tensor *a, bool ta,
             const struct tensor *b, bool tb, const void *packed, float alpha, float beta)
{
    BUG_IF(packed);
    const struct product p = { .M = y->dim[0],
                               .N = y->dim[1],
                               .K = a->dim[ta ? 0 : 1],
                               .alpha = alpha,
                               .beta = beta,
                               .a = { a->data, MAX(a->ld, 1), a->dtype, ta },
                               .b = { b->data, MAX(b->ld, 1), b->dtype, tb },
                               .y = y->data,
                               .ldy = MAX(y->ld, 1),
                               .y_dtype = y->dtype };
    if (!ta && tb && p.M <= FEW && p.M > 0 && p.K > 0) return few_rows(cx, &p);
    return cpu_product(cx, &p);
}

/* The bias stands in y when the product is added, so that the sum is rounded once. */
int cpu_gemm_bias(struct ctx *cx, struct tensor *y, const struct tensor *a, const struct tensor *b,
                  const struct tensor *bias)
{
    const int64_t M = y->dim[0], N = y->dim[1], size = dtype_size(y->dtype);
#pragma omp parallel for schedule(static) num_threads(cpu_team(cx, M *N))
    for (int64_t i = 0; i < M; i++)
        memcpy((char *)y->data + i * y->ld * size, bias->data, (size_t)(N * size));
    return cpu_gemm(cx, y, a, false, b, true, NULL, 1, 1);
}

int cpu_gemm_bgrad(struct ctx *cx, struct tensor *y, struct tensor *db, const struct tensor *a,
                   const struct tensor *b)
{
    TRY(cpu_gemm(cx, y, a, true, b, false, NULL, 1, 1));
    cpu_bias_sums(cx, db, a);
    return 0;
}

/* Panels are made in passing and cost a few hundredths of the product, so no copy is kept. */
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
