/* SPDX-License-Identifier: MIT */
#include "cpu.h"
#include "../ops/tiles.h"
#include <math.h>

struct run { /* running log-sum-exp of each row */
    float *z;
    double *sum, *hit;
    float *top;
    int64_t ld;
};

static struct run carve(struct tensor *scratch, int64_t N, int64_t V)
{
    struct run r;
    r.ld = MIN(V, LOGP_TILE_V);
    r.z = scratch->data;
    r.sum =
        (double *)(void *)((char *)scratch->data + round_up(MIN(N, LOGP_TILE_N) * r.ld * 4, 64));
    r.hit = r.sum + N;
    r.top = (float *)(void *)(r.hit + N);
    return r;
}

/* row i of the tile, columns [v0, v0 + n) of z */
static void add_row(const struct rows *k, const struct run *r, const float *z, int64_t i,
                    int64_t target, int64_t v0, int64_t n)
{
    const float top = k->max(z, n);
    if (top > r->top[i]) {
        r->sum[i] *= exp((double)r->top[i] - (double)top);
        r->top[i] = top;
    }
    r->sum[i] += k->lse_sum(z, r->top[i], n);
    if (target >= v0 && target < v0 + n) r->hit[i] = (double)z[target - v0];
}

int cpu_logp_fwd(struct ctx *cx, struct tensor *logp, struct tensor *lse, const struct tensor *h,
                 const struct tensor *w, const struct tensor *target, struct tensor *scratch)
{
    const int64_t N = h->dim[0], C = h->dim[1], V = w->dim[0];
    const float *ph = h->data, *pw = w->data;
    const int32_t *at = target->data;
    float *out = logp->data, *pl = lse->data;
    const struct run r = carve(scratch, N, V);
    for (int64_t i = 0; i < N; i++) {
        BUG_IF(at[i] < 0 || at[i] >= V);
        r.sum[i] = 0;
        r.hit[i] = 0;
        r.top[i] = -INFINITY;
    }
    for (int64_t v0 = 0; v0 < V; v0 += LOGP_TILE_V)
        for (int64_t n0 = 0; n0 < N; n0 += LOGP_TILE_N) {
            const int64_t n = MIN(LOGP_TILE_N, N - n0), v = MIN(LOGP_TILE_V, V - v0);
            TRY(cpu_sgemm(cx, false, true, n, v, C, 1, ph + n0 * C, C, pw + v0 * C, C, 0, r.z,
                          r.ld));
#pragma omp parallel for schedule(static) num_threads(cpu_team(cx, 8 * n * v))
            for (int64_t i = 0; i < n; i++)
                add_row(cx->rows, &r, r.z + i * r.ld, n0 + i, at[n0 + i], v0, v);
        }
    for (int64_t i = 0; i < N; i++) {
        const double l = (double)r.top[i] + log(r.sum[i]);
        pl[i] = (float)l;
        out[i] = (float)(r.hit[i] - l);
    }
    return 0;
}

int cpu_logp_bwd(struct ctx *cx, struct tensor *dh, struct tensor *dw, const struct tensor *coef,
                 const struct tensor *lse, const struct tensor *h, const struct tensor *w,
                 const struct tensor *target, struct tensor *scratch)
{
    const int64_t N = h->dim[0], C = h->dim[1], V = w->dim[0];
    const float *ph = h->data, *pw = w->data, *pc = coef->data, *pl = lse->data;
    const int32_t *at = target->data;
    float *pdh = dh->data, *pdw = dw->data;
    const struct run r = carve(scratch, N, V);
    for (int64_t i = 0; i < N; i++)
        BUG_IF(at[i] < 0 || at[i] >= V);
    for (int64_t v0 = 0; v0 < V; v0 += LOGP_TILE_V)
        for (int64_t n0 = 0; n0 < N; n0 += LOGP_TILE_N) {
            const int64_t n = MIN(LOGP_TILE_N, N - n0), v = MIN(LOGP_TILE_V, V - v0);
            TRY(cpu_sgemm(cx, false, true, n, v, C, 1, ph + n0 * C, C, pw + v0 * C, C, 0, r.z,
                          r.ld));
#pragma omp parallel for schedule(static) num_threads(cpu_team(cx, 8 * n * v))
            for (int64_t i = 0; i < n; i++) {
                float *z = r.z + i * r.ld;
                const int64_t t = at[n0 + i] - v0;
                cx->rows->logp_grad(z, pl[n0 + i], pc[n0 + i], v);
                if (t >= 0 && t < v) z[t] += pc[n0 + i];
            }
            TRY(cpu_sgemm(cx, false, false, n, C, v, 1, r.z, r.ld, pw + v0 * C, C, v0 ? 1 : 0,
                          pdh + n0 * C, C));
            TRY(cpu_sgemm(cx, true, false, v, C, n, 1, r.z, r.ld, ph + n0 * C, C, 1, pdw + v0 * C,
                          C));
        }
    return 0;
}
