/* SPDX-License-Identifier: MIT */
#include "cpu.h"
#include "../ops/tiles.h"
#include <math.h>
#include <string.h>

struct run {     /* a call's scratch */
    float *z;    /* a tile of logits, rows ld apart */
    double *sum; /* of each row, the running log-sum-exp: exp(top) sum */
    double *hit; /* the target's logit */
    float *top;
    int64_t ld;
    uint16_t *dz; /* the tile's gradient as products take it; with BF16 only */
    float *dh;    /* [N,C]: dL/dh, which grows with every tile; with BF16 only */
};

struct kept {   /* what the forward leaves to the backward; e NULL: nothing */
    void *e;    /* [N,V] of A: exp(z - the running maximum) */
    float *top; /* [tiles,N]: that maximum, of each tile of the vocabulary */
    float *hit; /* [N]: the target's logit */
    int64_t V, N;
    enum dtype dtype;
};

static struct kept kept_at(struct tensor *t, int64_t N, int64_t V, enum dtype A)
{
    struct kept k = { .V = V, .N = N, .dtype = A };
    if (!t) return k;
    k.e = t->data;
    k.top = (float *)(void *)((char *)t->data + round_up(N * V * dtype_size(A), 64));
    k.hit = k.top + N * div_up(V, LOGP_TILE_V);
    return k;
}

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

/* row i, columns [v0, v0 + n) of z, which is used up where something is kept */
static void add_row(const struct rows *k, const struct run *r, const struct kept *kept, float *z,
                    int64_t i, int64_t target, int64_t v0, int64_t n)
{
    const float top = k->max(z, n);
    if (top > r->top[i]) {
        r->sum[i] *= exp((double)r->top[i] - (double)top);
        r->top[i] = top;
    }
    if (target >= v0 && target < v0 + n) r->hit[i] = (double)z[target - v0];
    if (!kept->e) {
        r->sum[i] += k->lse_sum(NULL, z, r->top[i], n);
        return;
    }
    const int64_t at = i * kept->V + v0;
    float *e = cpu_write(z, kept->e, kept->dtype, at);
    r->sum[i] += k->lse_sum(e, z, r->top[i], n);
    cpu_wrote(k, e, kept->e, kept->dtype, at, n);
    kept->top[v0 / LOGP_TILE_V * kept->N + i] = r->top[i];
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

int cpu_logp_fwd(struct ctx *cx, struct tensor *logp, struct tensor *lse, struct tensor *keep,
                 const struct tensor *h, const struct tensor *w, const struct tensor *target,
                 struct tensor *scratch)
{
    const int64_t N = h->dim[0], V = w->dim[0];
    const int32_t *at = target->data;
    float *out = logp->data, *pl = lse->data;
    const struct run r = carve(scratch, N, V);
    const struct kept kept = kept_at(keep, N, V, h->dtype);
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
                add_row(cx->rows, &r, &kept, r.z + i * r.ld, n0 + i, at[n0 + i], v0, t.v);
        }
    for (int64_t i = 0; i < N; i++) {
        const double l = (double)r.top[i] + log(r.sum[i]);
        pl[i] = (float)l;
        out[i] = (float)(r.hit[i] - l);
        if (kept.e) kept.hit[i] = (float)r.hit[i];
    }
    return 0;
}

/* z = the gradient of row n, columns [v0, v0 + count): coef (onehot(hit) - exp(z - lse)) */
static void row_gradient(const struct rows *k, float *z, const struct kept *kept, int64_t n,
                         int64_t v0, int64_t count, float coef, float lse, int64_t hit)
{
    const bool has_hit = hit >= 0 && hit < count;
    if (!kept->e) {
        k->logp_grad(z, lse, coef, count);
        if (has_hit) z[hit] += coef;
        return;
    }
    const double top = (double)kept->top[v0 / LOGP_TILE_V * kept->N + n];
    const float *e = cpu_read(k, z, kept->e, kept->dtype, n * kept->V + v0, count);
    if (e != z) memcpy(z, e, (size_t)count * sizeof *z);
    k->scale(z, -coef * (float)exp(top - (double)lse), count);
    /* not from e, whose rounding would be all that is left of 1 - p where p is near 1 */
    if (has_hit) z[hit] = (float)(-(double)coef * expm1((double)kept->hit[n] - (double)lse));
}

/* z of the tile becomes its gradient, which *dz says how to read */
static void tile_gradient(const struct ctx *cx, const struct run *r, const struct kept *kept,
                          const struct tile *t, const struct tensor *coef, const struct tensor *lse,
                          const int32_t *at, struct mat *dz)
{
    const float *pc = coef->data, *pl = lse->data;
    const bool half = kept->dtype == DT_BF16;
#pragma omp parallel for schedule(static) num_threads(cpu_team(cx, 8 * t->n * t->v))
    for (int64_t i = 0; i < t->n; i++) {
        float *z = r->z + i * r->ld;
        const int64_t n = t->n0 + i;
        row_gradient(cx->rows, z, kept, n, t->v0, t->v, pc[n], pl[n], at[n] - t->v0);
        if (half) cx->rows->narrow(r->dz + i * r->ld, z, t->v);
    }
    *dz = (struct mat){ half ? (void *)r->dz : (void *)r->z, r->ld, kept->dtype, false };
}

int cpu_logp_bwd(struct ctx *cx, struct tensor *dh, struct tensor *dw, const struct tensor *coef,
                 const struct tensor *lse, struct tensor *keep, const struct tensor *h,
                 const struct tensor *w, const struct tensor *target, struct tensor *scratch)
{
    const int64_t N = h->dim[0], C = h->dim[1], V = w->dim[0];
    const int32_t *at = target->data;
    const struct run r = carve(scratch, N, V);
    const struct kept kept = kept_at(keep, N, V, h->dtype);
    struct tensor sum = *dh; /* in float where dh is not */
    if (dh->dtype != DT_F32) sum = tensor_view(r.dh, DT_F32, N, C, 1, 1);
    float *pdh = sum.data;
    for (int64_t i = 0; i < N; i++)
        BUG_IF(at[i] < 0 || at[i] >= V);
    for (int64_t v0 = 0; v0 < V; v0 += LOGP_TILE_V)
        for (int64_t n0 = 0; n0 < N; n0 += LOGP_TILE_N) {
            const struct tile t = tile_at(n0, v0, N, V);
            struct product p = { .M = t.n, .N = C, .K = t.v, .alpha = 1, .beta = v0 ? 1 : 0 };
            if (!kept.e) TRY(logits(cx, &r, &t, h, w));
            tile_gradient(cx, &r, &kept, &t, coef, lse, at, &p.a);
            p.b = factor(w, v0, false);
            p.y = pdh + n0 * C;
            p.ldy = MAX(C, 1);
            TRY(cpu_product(cx, &p));
            if (!dw) continue;
            p.M = t.v;
            p.K = t.n;
            p.beta = 1;
            p.a.t = true;
            p.b = factor(h, n0, false);
            p.y = (float *)dw->data + v0 * C;
            TRY(cpu_product(cx, &p));
        }
    return dh->dtype == DT_F32 ? 0 : cpu_cast(cx, dh, &sum);
}
