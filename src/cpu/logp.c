/* SPDX-License-Identifier: MIT */
#include "cpu.h"
#include "../ops/tiles.h"
#include <math.h>

struct run {     /* a call's scratch */
    float *z;    /* a tile of logits, rows ld apart */
    double *sum; /* of each row, the running log-sum-exp: exp(top) sum */
    double *hit; /* the target's logit */
    float *top;
    int64_t ld;
    uint16_t *dz; /* the tile's gradient as products take it; with BF16 only */
    float *dh;    /* [N,C]: dL/dh, which grows with every tile; with BF16 only */
};

static struct run carve(struct tensor *scratch, int64_t N, int64_t V)
{
    struct run r;
    const int64_t n = MIN(N, LOGP_TILE_N);
    r.ld = MIN(V, LOGP_TILE_V);
    r.z = scratch->data;
    r.sum = (double *)(void *)((char *)scratch->data + round_up(n * r.ld * 4, 64));
    r.hit = r.sum + N;
    r.top = (float *)(void *)(r.hit + N);
    char *end = (char *)r.sum + round_up(N * 20, 64);
    r.dz = (uint16_t *)(void *)end;
    r.dh = (float *)(void *)(end + round_up(n * r.ld * 2, 64));
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

struct tile { /* rows [n0, n0 + n) by words [v0, v0 + v) */
    int64_t n0, n, v0, v;
};

static struct tile tile_at(int64_t n0, int64_t v0, int64_t N, int64_t V)
{
    return (struct tile){ n0, MIN(LOGP_TILE_N, N - n0), v0, MIN(LOGP_TILE_V, V - v0) };
}

/* rows [first, ...) of x, as a factor of a product */
static struct mat factor(const struct tensor *x, int64_t first, bool t)
{
    const int64_t C = x->dim[1];
    return (struct mat){ cpu_at_const(x->data, x->dtype, first * C), MAX(C, 1), x->dtype, t };
}

static int logits(struct ctx *cx, const struct run *r, const struct tile *t, const struct tensor *h,
                  const struct tensor *w)
{
    const struct product p = { .M = t->n,
                               .N = t->v,
                               .K = h->dim[1],
                               .alpha = 1,
                               .a = factor(h, t->n0, false),
                               .b = factor(w, t->v0, true),
                               .y = r->z,
                               .ldy = r->ld };
    return cpu_product(cx, &p);
}

int cpu_logp_fwd(struct ctx *cx, struct tensor *logp, struct tensor *lse, const struct tensor *h,
                 const struct tensor *w, const struct tensor *target, struct tensor *scratch)
{
    const int64_t N = h->dim[0], V = w->dim[0];
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
            const struct tile t = tile_at(n0, v0, N, V);
            TRY(logits(cx, &r, &t, h, w));
#pragma omp parallel for schedule(static) num_threads(cpu_team(cx, 8 * t.n * t.v))
            for (int64_t i = 0; i < t.n; i++)
                add_row(cx->rows, &r, r.z + i * r.ld, n0 + i, at[n0 + i], v0, t.v);
        }
    for (int64_t i = 0; i < N; i++) {
        const double l = (double)r.top[i] + log(r.sum[i]);
        pl[i] = (float)l;
        out[i] = (float)(r.hit[i] - l);
    }
    return 0;
}

/* z of the tile becomes its gradient, which *dz says how to read */
static void tile_gradient(const struct ctx *cx, const struct run *r, const struct tile *t,
                          const struct tensor *coef, const struct tensor *lse, const int32_t *at,
                          struct mat *dz, enum dtype dtype)
{
    const float *pc = coef->data, *pl = lse->data;
#pragma omp parallel for schedule(static) num_threads(cpu_team(cx, 8 * t->n * t->v))
    for (int64_t i = 0; i < t->n; i++) {
        float *z = r->z + i * r->ld;
        const int64_t n = t->n0 + i, hit = at[n] - t->v0;
        cx->rows->logp_grad(z, pl[n], pc[n], t->v);
        if (hit >= 0 && hit < t->v) z[hit] += pc[n];
        if (dtype == DT_BF16) cx->rows->narrow(r->dz + i * r->ld, z, t->v);
    }
    *dz = (struct mat){ dtype == DT_BF16 ? (void *)r->dz : (void *)r->z, r->ld, dtype, false };
}

int cpu_logp_bwd(struct ctx *cx, struct tensor *dh, struct tensor *dw, const struct tensor *coef,
                 const struct tensor *lse, const struct tensor *h, const struct tensor *w,
                 const struct tensor *target, struct tensor *scratch)
{
    const int64_t N = h->dim[0], C = h->dim[1], V = w->dim[0];
    const int32_t *at = target->data;
    const struct run r = carve(scratch, N, V);
    struct tensor sum = *dh; /* in float where dh is not */
    if (dh->dtype != DT_F32) sum = tensor_view(r.dh, DT_F32, N, C, 1, 1);
    float *pdh = sum.data, *pdw = dw->data;
    for (int64_t i = 0; i < N; i++)
        BUG_IF(at[i] < 0 || at[i] >= V);
    for (int64_t v0 = 0; v0 < V; v0 += LOGP_TILE_V)
        for (int64_t n0 = 0; n0 < N; n0 += LOGP_TILE_N) {
            const struct tile t = tile_at(n0, v0, N, V);
            struct product p = { .M = t.n, .N = C, .K = t.v, .alpha = 1, .beta = v0 ? 1 : 0 };
            TRY(logits(cx, &r, &t, h, w));
            tile_gradient(cx, &r, &t, coef, lse, at, &p.a, h->dtype);
            p.b = factor(w, v0, false);
            p.y = pdh + n0 * C;
            p.ldy = MAX(C, 1);
            TRY(cpu_product(cx, &p));
            p.M = t.v;
            p.K = t.n;
            p.beta = 1;
            p.a.t = true;
            p.b = factor(h, n0, false);
            p.y = pdw + v0 * C;
            TRY(cpu_product(cx, &p));
        }
    return dh->dtype == DT_F32 ? 0 : cpu_cast(cx, dh, &sum);
}
