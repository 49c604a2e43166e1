/* SPDX-License-Identifier: MIT */
#include "ops.h"
#include "tiles.h"

int64_t dtype_size(enum dtype t)
{
    BUG_IF(t != DT_F32 && t != DT_I32);
    return 4;
}

int64_t tensor_row(const struct tensor *t)
{
    return t->dim[1] * t->dim[2] * t->dim[3];
}

int64_t tensor_count(const struct tensor *t)
{
    return t->dim[0] * tensor_row(t);
}

bool tensor_contiguous(const struct tensor *t)
{
    return t->ld == tensor_row(t) || t->dim[0] <= 1;
}

struct tensor tensor_view(void *data, enum dtype dtype, int64_t d0, int64_t d1, int64_t d2,
                          int64_t d3)
{
    struct tensor t = {
        .data = data, .dim = { d0, d1, d2, d3 }, .ld = d1 * d2 * d3, .dtype = dtype
    };
    return t;
}

struct tensor tensor_rows(const struct tensor *t, int64_t first, int64_t n)
{
    struct tensor r = *t;
    BUG_IF(first < 0 || n < 0 || first > t->dim[0] - n);
    if (r.data) r.data = (char *)r.data + first * t->ld * dtype_size(t->dtype);
    r.dim[0] = n;
    return r;
}

struct tensor tensor_cols(const struct tensor *t, int64_t first, int64_t n)
{
    struct tensor r = *t;
    BUG_IF(t->dim[2] != 1 || t->dim[3] != 1 || first < 0 || n < 0 || first > t->dim[1] - n);
    if (r.data) r.data = (char *)r.data + first * dtype_size(t->dtype);
    r.dim[1] = n;
    return r;
}

/* --- checks: a wrong shape is a bug of the caller
 * ------------------------------------------------------------------ */
static void check_dtype(const struct tensor *t, enum dtype dtype)
{
    BUG_IF(t->dtype != dtype);
    for (int i = 0; i < 4; i++)
        BUG_IF(t->dim[i] < 0);
    BUG_IF(!t->data && tensor_count(t) > 0);
}

/* f32 [d0, d1], contiguous; d1 = 1 for a vector */
static void check_f32(const struct tensor *t, int64_t d0, int64_t d1)
{
    check_dtype(t, DT_F32);
    BUG_IF(t->dim[0] != d0 || t->dim[1] != d1 || t->dim[2] != 1 || t->dim[3] != 1 ||
           !tensor_contiguous(t));
}

/* the same with rows that may be strided */
static void check_rows(const struct tensor *t, int64_t d0, int64_t d1)
{
    check_dtype(t, DT_F32);
    BUG_IF(t->dim[0] != d0 || t->dim[1] != d1 || t->dim[2] != 1 || t->dim[3] != 1 ||
           (t->dim[0] > 1 && t->ld < d1));
}

static void check_index(const struct tensor *t, int64_t n)
{
    check_dtype(t, DT_I32);
    BUG_IF(t->dim[0] != n || tensor_row(t) != 1 || !tensor_contiguous(t));
}

static void check_flat(const struct tensor *t, int64_t n)
{
    check_dtype(t, DT_F32);
    BUG_IF(tensor_count(t) != n || !tensor_contiguous(t));
}

static void check_scratch(const struct tensor *t, int64_t bytes)
{
    BUG_IF(!tensor_contiguous(t) || tensor_count(t) * dtype_size(t->dtype) < bytes ||
           (bytes && !t->data));
}

/* --- entries
 * ---------------------------------------------------------------------------------------------------------
 */
int op_gemm(const struct backend *be, struct tensor *y, const struct tensor *a, bool ta,
            const struct tensor *b, bool tb, const void *packed, float alpha, float beta)
{
    const int64_t M = y->dim[0], N = y->dim[1], K = a->dim[ta ? 0 : 1];
    check_rows(y, M, N);
    check_rows(a, ta ? K : M, ta ? M : K);
    check_rows(b, tb ? N : K, tb ? K : N);
    BUG_IF(beta != 0 && beta != 1);
    return be->op->gemm(be->cx, y, a, ta, b, tb, packed, alpha, beta);
}

int op_bias_fwd(const struct backend *be, struct tensor *y, const struct tensor *b)
{
    check_rows(y, y->dim[0], y->dim[1]);
    check_f32(b, y->dim[1], 1);
    return be->op->bias_fwd(be->cx, y, b);
}

int op_bias_bwd(const struct backend *be, struct tensor *db, const struct tensor *dy)
{
    check_rows(dy, dy->dim[0], dy->dim[1]);
    check_f32(db, dy->dim[1], 1);
    return be->op->bias_bwd(be->cx, db, dy);
}

int op_gather(const struct backend *be, struct tensor *y, const struct tensor *x,
              const struct tensor *index)
{
    check_f32(x, x->dim[0], x->dim[1]);
    check_f32(y, y->dim[0], x->dim[1]);
    check_index(index, y->dim[0]);
    return be->op->gather(be->cx, y, x, index);
}

int op_scatter_add(const struct backend *be, struct tensor *dx, const struct tensor *dy,
                   const struct tensor *index)
{
    check_f32(dx, dx->dim[0], dx->dim[1]);
    check_f32(dy, dy->dim[0], dx->dim[1]);
    check_index(index, dy->dim[0]);
    return be->op->scatter_add(be->cx, dx, dy, index);
}

int op_rmsnorm_fwd(const struct backend *be, struct tensor *y, struct tensor *rstd,
                   struct tensor *sum, const struct tensor *x, const struct tensor *r,
                   const struct tensor *w, float eps)
{
    const int64_t T = x->dim[0], C = x->dim[1];
    check_f32(x, T, C);
    check_f32(y, T, C);
    check_f32(rstd, T, 1);
    check_f32(w, C, 1);
    if (r) {
        check_f32(r, T, C);
        BUG_IF(!sum);
        check_f32(sum, T, C);
    }
    return be->op->rmsnorm_fwd(be->cx, y, rstd, sum, x, r, w, eps);
}

int64_t op_rmsnorm_bwd_scratch(int64_t T, int64_t C)
{
    return div_up(T, 64) * C * 4;
}

int op_rmsnorm_bwd(const struct backend *be, struct tensor *dx, struct tensor *dw,
                   const struct tensor *dy, const struct tensor *x, const struct tensor *w,
                   const struct tensor *rstd, struct tensor *scratch)
{
    const int64_t T = x->dim[0], C = x->dim[1];
    check_f32(x, T, C);
    check_f32(dx, T, C);
    check_f32(dy, T, C);
    check_f32(rstd, T, 1);
    check_f32(w, C, 1);
    check_f32(dw, C, 1);
    check_scratch(scratch, op_rmsnorm_bwd_scratch(T, C));
    return be->op->rmsnorm_bwd(be->cx, dx, dw, dy, x, w, rstd, scratch);
}

/* heads of D in a row of x */
static int64_t heads_of(const struct tensor *x, int64_t D)
{
    BUG_IF(D <= 0 || x->dim[1] % D != 0);
    return x->dim[1] / D;
}

int op_headnorm_fwd(const struct backend *be, struct tensor *y, struct tensor *rstd,
                    const struct tensor *x, const struct tensor *w, float eps)
{
    const int64_t T = x->dim[0], D = w->dim[0];
    check_rows(x, T, x->dim[1]);
    check_rows(y, T, x->dim[1]);
    check_f32(w, D, 1);
    check_f32(rstd, T, heads_of(x, D));
    return be->op->headnorm_fwd(be->cx, y, rstd, x, w, eps);
}

int64_t op_headnorm_bwd_scratch(int64_t T, int64_t D)
{
    return div_up(T, 64) * D * 4;
}

int op_headnorm_bwd(const struct backend *be, struct tensor *dx, struct tensor *dw,
                    const struct tensor *dy, const struct tensor *x, const struct tensor *w,
                    const struct tensor *rstd, struct tensor *scratch)
{
    const int64_t T = x->dim[0], D = w->dim[0];
    check_rows(x, T, x->dim[1]);
    check_rows(dx, T, x->dim[1]);
    check_rows(dy, T, x->dim[1]);
    check_f32(w, D, 1);
    check_f32(dw, D, 1);
    check_f32(rstd, T, heads_of(x, D));
    check_scratch(scratch, op_headnorm_bwd_scratch(T, D));
    return be->op->headnorm_bwd(be->cx, dx, dw, dy, x, w, rstd, scratch);
}

int op_rope(const struct backend *be, struct tensor *x, int32_t head_size, const struct tensor *pos,
            const struct tensor *table, bool inverse)
{
    check_rows(x, x->dim[0], x->dim[1]);
    BUG_IF(head_size <= 0 || head_size % 2 != 0 || x->dim[1] % head_size != 0);
    check_index(pos, x->dim[0]);
    check_dtype(table, DT_F32);
    BUG_IF(table->dim[1] != 2 || table->dim[2] != head_size / 2 || table->dim[3] != 1 ||
           !tensor_contiguous(table));
    return be->op->rope(be->cx, x, head_size, pos, table, inverse);
}

static bool rows_inside(int64_t first, int64_t n, int64_t rows)
{
    return first >= 0 && n >= 0 && first <= rows - n;
}

/* q, k, v and the segments that say how they meet */
static void check_attention(const struct tensor *q, const struct tensor *k, const struct tensor *v,
                            const struct segments *segs, int32_t head_size, float scale)
{
    const int64_t T = q->dim[0], Tk = k->dim[0];
    check_rows(q, T, q->dim[1]);
    check_rows(k, Tk, k->dim[1]);
    check_rows(v, Tk, k->dim[1]);
    BUG_IF(head_size <= 0 || q->dim[1] % head_size != 0 || k->dim[1] % head_size != 0);
    BUG_IF(k->dim[1] == 0 || q->dim[1] % k->dim[1] != 0);
    BUG_IF(!(scale > 0));
    BUG_IF(segs->n < 0 || segs->n_groups < 0 || (segs->n && !segs->seg));
    for (int32_t i = 0; i < segs->n; i++) {
        const struct segment *s = &segs->seg[i];
        BUG_IF(!rows_inside(s->q, s->len, T) || !rows_inside(s->own, s->len, Tk));
        BUG_IF(s->prefix_len < 0 || (s->prefix_len && !rows_inside(s->prefix, s->prefix_len, Tk)));
    }
}

int op_attention_fwd(const struct backend *be, struct tensor *o, struct tensor *lse,
                     const struct tensor *q, const struct tensor *k, const struct tensor *v,
                     const struct segments *segs, int32_t head_size, float scale)
{
    check_attention(q, k, v, segs, head_size, scale);
    check_rows(o, q->dim[0], q->dim[1]);
    check_f32(lse, q->dim[0], q->dim[1] / head_size);
    return be->op->attention_fwd(be->cx, o, lse, q, k, v, segs, head_size, scale);
}

/* groups cover the segments in order, and a prefix lies in rows that a segment of its own group
 * owns */
static void check_groups(const struct segments *segs)
{
    BUG_IF(!segs->group || segs->group[0] != 0 || segs->group[segs->n_groups] != segs->n);
    for (int32_t g = 0; g < segs->n_groups; g++) {
        const int32_t first = segs->group[g], end = segs->group[g + 1];
        BUG_IF(first > end);
        for (int32_t i = first; i < end; i++) {
            const struct segment *s = &segs->seg[i];
            bool owned = s->prefix_len == 0;
            for (int32_t j = first; j < end && !owned; j++) {
                const struct segment *p = &segs->seg[j];
                owned = s->prefix >= p->own && s->prefix + s->prefix_len <= p->own + p->len;
            }
            BUG_IF(!owned);
        }
    }
}

int op_attention_bwd(const struct backend *be, struct tensor *dq, struct tensor *dk,
                     struct tensor *dv, const struct tensor *dout, const struct tensor *o,
                     const struct tensor *lse, const struct tensor *q, const struct tensor *k,
                     const struct tensor *v, const struct segments *segs, int32_t head_size,
                     float scale)
{
    check_attention(q, k, v, segs, head_size, scale);
    check_groups(segs);
    check_rows(o, q->dim[0], q->dim[1]);
    check_rows(dout, q->dim[0], q->dim[1]);
    check_rows(dq, q->dim[0], q->dim[1]);
    check_rows(dk, k->dim[0], k->dim[1]);
    check_rows(dv, k->dim[0], k->dim[1]);
    check_f32(lse, q->dim[0], q->dim[1] / head_size);
    return be->op->attention_bwd(be->cx, dq, dk, dv, dout, o, lse, q, k, v, segs, head_size, scale);
}

int op_swiglu_fwd(const struct backend *be, struct tensor *y, const struct tensor *gu)
{
    check_f32(y, y->dim[0], y->dim[1]);
    check_f32(gu, y->dim[0], 2 * y->dim[1]);
    return be->op->swiglu_fwd(be->cx, y, gu);
}

int op_swiglu_bwd(const struct backend *be, struct tensor *dgu, const struct tensor *dy,
                  const struct tensor *gu)
{
    check_f32(dy, dy->dim[0], dy->dim[1]);
    check_f32(gu, dy->dim[0], 2 * dy->dim[1]);
    check_f32(dgu, dy->dim[0], 2 * dy->dim[1]);
    return be->op->swiglu_bwd(be->cx, dgu, dy, gu);
}

int64_t op_logp_scratch(int64_t N, int64_t V)
{
    return round_up(MIN(N, LOGP_TILE_N) * MIN(V, LOGP_TILE_V) * 4, 64) + N * 20;
}

int op_logp_fwd(const struct backend *be, struct tensor *logp, struct tensor *lse,
                const struct tensor *h, const struct tensor *w, const struct tensor *target,
                struct tensor *scratch)
{
    const int64_t N = h->dim[0], C = h->dim[1], V = w->dim[0];
    check_f32(h, N, C);
    check_f32(w, V, C);
    check_f32(logp, N, 1);
    check_f32(lse, N, 1);
    check_index(target, N);
    check_scratch(scratch, op_logp_scratch(N, V));
    return be->op->logp_fwd(be->cx, logp, lse, h, w, target, scratch);
}

int op_logp_bwd(const struct backend *be, struct tensor *dh, struct tensor *dw,
                const struct tensor *coef, const struct tensor *lse, const struct tensor *h,
                const struct tensor *w, const struct tensor *target, struct tensor *scratch)
{
    const int64_t N = h->dim[0], C = h->dim[1], V = w->dim[0];
    check_f32(h, N, C);
    check_f32(w, V, C);
    check_f32(dh, N, C);
    check_f32(dw, V, C);
    check_f32(coef, N, 1);
    check_f32(lse, N, 1);
    check_index(target, N);
    check_scratch(scratch, op_logp_scratch(N, V));
    return be->op->logp_bwd(be->cx, dh, dw, coef, lse, h, w, target, scratch);
}

int op_adamw(const struct backend *be, struct tensor *w, struct tensor *m, struct tensor *v,
             const struct tensor *g, const struct adamw *opt)
{
    const int64_t n = tensor_count(w);
    check_flat(w, n);
    check_flat(m, n);
    check_flat(v, n);
    check_flat(g, n);
    BUG_IF(opt->step < 1);
    return be->op->adamw(be->cx, w, m, v, g, opt);
}

int op_sumsq(const struct backend *be, double *out, const struct tensor *x)
{
    check_flat(x, tensor_count(x));
    return be->op->sumsq(be->cx, out, x);
}

int op_add(const struct backend *be, struct tensor *y, const struct tensor *x)
{
    check_flat(y, tensor_count(y));
    check_flat(x, tensor_count(y));
    return be->op->add(be->cx, y, x);
}

int op_fill(const struct backend *be, struct tensor *y, float value)
{
    check_dtype(y, y->dtype);
    BUG_IF(!tensor_contiguous(y));
    return be->op->fill(be->cx, y, value);
}
