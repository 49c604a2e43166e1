/* SPDX-License-Identifier: MIT */
#include "ops.h"
#include "nf4.h"
#include "split.h"
#include "tiles.h"

int64_t dtype_size(enum dtype t)
{
    static const int64_t sizes[] = {
        [DT_F32] = 4, [DT_I32] = 4, [DT_BF16] = 2, [DT_U8] = 1, [DT_I16] = 2
    };
    BUG_IF((size_t)t >= COUNT_OF(sizes));
    return sizes[t];
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

/* the dtype of activations: F32 or BF16 */
static enum dtype act(const struct tensor *t)
{
    BUG_IF(t->dtype != DT_F32 && t->dtype != DT_BF16);
    return t->dtype;
}

/* the same, for what may be F32 beside activations of dtype A */
static enum dtype act_or_f32(const struct tensor *t, enum dtype A)
{
    BUG_IF(t->dtype != DT_F32 && t->dtype != A);
    return t->dtype;
}

/* [d0, d1] with rows that may be strided */
static void check_rows(const struct tensor *t, enum dtype dtype, int64_t d0, int64_t d1)
{
    check_dtype(t, dtype);
    BUG_IF(t->dim[0] != d0 || t->dim[1] != d1 || t->dim[2] != 1 || t->dim[3] != 1 ||
           (t->dim[0] > 1 && t->ld < d1));
}

/* the same, contiguous; d1 = 1 for a vector */
static void check_full(const struct tensor *t, enum dtype dtype, int64_t d0, int64_t d1)
{
    check_rows(t, dtype, d0, d1);
    BUG_IF(!tensor_contiguous(t));
}

static void check_index(const struct tensor *t, int64_t n)
{
    check_dtype(t, DT_I32);
    BUG_IF(t->dim[0] != n || tensor_row(t) != 1 || !tensor_contiguous(t));
}

static void check_flat(const struct tensor *t, enum dtype dtype, int64_t n)
{
    check_dtype(t, dtype);
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
    const enum dtype A = act(a);
    check_rows(y, act_or_f32(y, A), M, N);
    check_rows(a, A, ta ? K : M, ta ? M : K);
    BUG_IF(b->dtype != A && be->net); /* a device takes one dtype */
    check_rows(b, A == DT_F32 ? act(b) : A, tb ? N : K, tb ? K : N);
    BUG_IF(beta != 0 && beta != 1);
    return be->op->gemm(be->cx, y, a, ta, b, tb, packed, alpha, beta);
}

int op_pack_bytes(const struct backend *be, int64_t *bytes, const struct tensor *b, bool tb)
{
    check_rows(b, act(b), b->dim[0], b->dim[1]);
    return be->op->pack_bytes(be->cx, bytes, b, tb);
}

int op_pack(const struct backend *be, void *packed, const struct tensor *b, bool tb)
{
    check_rows(b, act(b), b->dim[0], b->dim[1]);
    BUG_IF(!packed);
    return be->op->pack(be->cx, packed, b, tb);
}

int op_gemm_bias(const struct backend *be, struct tensor *y, const struct tensor *a,
                 const struct tensor *b, const struct tensor *bias)
{
    const int64_t M = y->dim[0], N = y->dim[1], K = a->dim[1];
    const enum dtype A = act(a);
    check_rows(y, A, M, N);
    check_rows(a, A, M, K);
    BUG_IF(b->dtype != A && be->net);
    check_rows(b, A == DT_F32 ? act(b) : A, N, K);
    check_full(bias, A, N, 1);
    return be->op->gemm_bias(be->cx, y, a, b, bias);
}

int op_gemm_bgrad(const struct backend *be, struct tensor *y, struct tensor *db,
                  const struct tensor *a, const struct tensor *b)
{
    const int64_t M = y->dim[0], N = y->dim[1], K = a->dim[0];
    const enum dtype A = act(a);
    check_rows(y, DT_F32, M, N);
    check_full(db, DT_F32, M, 1);
    check_rows(a, A, K, M);
    check_rows(b, A, K, N);
    return be->op->gemm_bgrad(be->cx, y, db, a, b);
}

int op_gather(const struct backend *be, struct tensor *y, const struct tensor *x,
              const struct tensor *index)
{
    const enum dtype A = act(x);
    check_full(x, A, x->dim[0], x->dim[1]);
    check_full(y, A, y->dim[0], x->dim[1]);
    check_index(index, y->dim[0]);
    return be->op->gather(be->cx, y, x, index);
}

int op_put_rows(const struct backend *be, struct tensor *y, const struct tensor *x,
                const struct tensor *index)
{
    const enum dtype A = act(y);
    check_full(y, A, y->dim[0], x->dim[1]);
    check_rows(x, A, x->dim[0], x->dim[1]);
    check_index(index, x->dim[0]);
    return be->op->put_rows(be->cx, y, x, index);
}

int op_scatter_add(const struct backend *be, struct tensor *dx, const struct tensor *dy,
                   const struct tensor *index)
{
    const enum dtype A = act(dy);
    check_full(dx, act_or_f32(dx, A), dx->dim[0], dx->dim[1]);
    check_full(dy, A, dy->dim[0], dx->dim[1]);
    check_index(index, dy->dim[0]);
    return be->op->scatter_add(be->cx, dx, dy, index);
}

int op_rmsnorm_fwd(const struct backend *be, struct tensor *y, struct tensor *rstd,
                   struct tensor *sum, const struct tensor *x, const struct tensor *r,
                   const struct tensor *w, float eps)
{
    const enum dtype A = act(x);
    const int64_t T = x->dim[0], C = x->dim[1];
    check_full(x, A, T, C);
    check_full(y, A, T, C);
    check_full(rstd, DT_F32, T, 1);
    check_full(w, A, C, 1);
    if (r) {
        check_full(r, A, T, C);
        BUG_IF(!sum);
        check_full(sum, A, T, C);
    }
    return be->op->rmsnorm_fwd(be->cx, y, rstd, sum, x, r, w, eps);
}

int op_rmsnorm_apply(const struct backend *be, struct tensor *y, const struct tensor *x,
                     const struct tensor *rstd, const struct tensor *w)
{
    const enum dtype A = act(x);
    const int64_t T = x->dim[0], C = x->dim[1];
    check_full(x, A, T, C);
    check_full(y, A, T, C);
    check_full(rstd, DT_F32, T, 1);
    check_full(w, A, C, 1);
    return be->op->rmsnorm_apply(be->cx, y, x, rstd, w);
}

int64_t op_rmsnorm_bwd_scratch(int64_t T, int64_t C)
{
    return div_up(T, 64) * C * 4;
}

int op_rmsnorm_bwd(const struct backend *be, struct tensor *dx, struct tensor *dw,
                   const struct tensor *dy, const struct tensor *x, const struct tensor *w,
                   const struct tensor *rstd, struct tensor *scratch)
{
    const enum dtype A = act(x);
    const int64_t T = x->dim[0], C = x->dim[1];
    check_full(x, A, T, C);
    check_full(dx, act_or_f32(dx, A), T, C);
    check_full(dy, A, T, C);
    check_full(rstd, DT_F32, T, 1);
    check_full(w, A, C, 1);
    if (dw) check_full(dw, DT_F32, C, 1);
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
    const enum dtype A = act(x);
    const int64_t T = x->dim[0], D = w->dim[0];
    check_rows(x, A, T, x->dim[1]);
    check_rows(y, A, T, x->dim[1]);
    check_full(w, A, D, 1);
    check_full(rstd, DT_F32, T, heads_of(x, D));
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
    const enum dtype A = act(x);
    const int64_t T = x->dim[0], D = w->dim[0];
    check_rows(x, A, T, x->dim[1]);
    check_rows(dx, A, T, x->dim[1]);
    check_rows(dy, A, T, x->dim[1]);
    check_full(w, A, D, 1);
    if (dw) check_full(dw, DT_F32, D, 1);
    check_full(rstd, DT_F32, T, heads_of(x, D));
    check_scratch(scratch, op_headnorm_bwd_scratch(T, D));
    return be->op->headnorm_bwd(be->cx, dx, dw, dy, x, w, rstd, scratch);
}

int op_rope(const struct backend *be, struct tensor *x, int32_t head_size, const struct tensor *pos,
            const struct tensor *table, bool inverse)
{
    check_rows(x, act(x), x->dim[0], x->dim[1]);
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
    const enum dtype A = act(q);
    check_rows(q, A, T, q->dim[1]);
    check_rows(k, A, Tk, k->dim[1]);
    check_rows(v, A, Tk, k->dim[1]);
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
    const enum dtype A = act(q);
    check_attention(q, k, v, segs, head_size, scale);
    check_rows(o, A, q->dim[0], q->dim[1]);
    check_full(lse, DT_F32, q->dim[0], q->dim[1] / head_size);
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
    const enum dtype A = act(q);
    check_attention(q, k, v, segs, head_size, scale);
    check_groups(segs);
    check_rows(o, A, q->dim[0], q->dim[1]);
    check_rows(dout, A, q->dim[0], q->dim[1]);
    check_rows(dq, A, q->dim[0], q->dim[1]);
    check_rows(dk, A, k->dim[0], k->dim[1]);
    check_rows(dv, A, k->dim[0], k->dim[1]);
    check_full(lse, DT_F32, q->dim[0], q->dim[1] / head_size);
    return be->op->attention_bwd(be->cx, dq, dk, dv, dout, o, lse, q, k, v, segs, head_size, scale);
}

int op_swiglu_fwd(const struct backend *be, struct tensor *y, const struct tensor *gu)
{
    const enum dtype A = act(y);
    check_full(y, A, y->dim[0], y->dim[1]);
    check_full(gu, A, y->dim[0], 2 * y->dim[1]);
    return be->op->swiglu_fwd(be->cx, y, gu);
}

int op_swiglu_bwd(const struct backend *be, struct tensor *dgu, struct tensor *y,
                  const struct tensor *dy, const struct tensor *gu)
{
    const enum dtype A = act(dy);
    check_full(dy, A, dy->dim[0], dy->dim[1]);
    check_full(gu, A, dy->dim[0], 2 * dy->dim[1]);
    check_full(dgu, A, dy->dim[0], 2 * dy->dim[1]);
    if (y) check_full(y, A, dy->dim[0], dy->dim[1]);
    return be->op->swiglu_bwd(be->cx, dgu, y, dy, gu);
}

int64_t op_logp_scratch(int64_t N, int64_t C, int64_t V, enum dtype A)
{
    const int64_t n = MIN(N, LOGP_TILE_N), v = MIN(V, LOGP_TILE_V);
    const int64_t bf16 = A == DT_BF16 ? round_up(n * v * 2, 64) + N * C * 4 : 0;
    return round_up(n * v * 4, 64) + round_up(N * 20, 64) + bf16;
}

int64_t op_logp_kept(int64_t N, int64_t V, enum dtype A)
{
    return round_up(N * V * dtype_size(A), 64) + 4 * N * (div_up(V, LOGP_TILE_V) + 1);
}

int op_logp_fwd(const struct backend *be, struct tensor *logp, struct tensor *lse,
                struct tensor *kept, const struct tensor *h, const struct tensor *w,
                const struct tensor *target, struct tensor *scratch)
{
    const enum dtype A = act(h);
    const int64_t N = h->dim[0], C = h->dim[1], V = w->dim[0];
    check_full(h, A, N, C);
    check_full(w, A, V, C);
    check_full(logp, DT_F32, N, 1);
    check_full(lse, DT_F32, N, 1);
    check_index(target, N);
    check_scratch(scratch, op_logp_scratch(N, C, V, A));
    if (kept) check_scratch(kept, op_logp_kept(N, V, A));
    return be->op->logp_fwd(be->cx, logp, lse, kept, h, w, target, scratch);
}

int op_logp_bwd(const struct backend *be, struct tensor *dh, struct tensor *dw,
                const struct tensor *coef, const struct tensor *lse, struct tensor *kept,
                const struct tensor *h, const struct tensor *w, const struct tensor *target,
                struct tensor *scratch)
{
    const enum dtype A = act(h);
    const int64_t N = h->dim[0], C = h->dim[1], V = w->dim[0];
    check_full(h, A, N, C);
    check_full(w, A, V, C);
    check_full(dh, A, N, C);
    if (dw) check_full(dw, DT_F32, V, C);
    check_full(coef, DT_F32, N, 1);
    check_full(lse, DT_F32, N, 1);
    check_index(target, N);
    check_scratch(scratch, op_logp_scratch(N, C, V, A));
    if (kept) check_scratch(kept, op_logp_kept(N, V, A));
    return be->op->logp_bwd(be->cx, dh, dw, coef, lse, kept, h, w, target, scratch);
}

enum { PIECE = 1 << 13 }; /* elements on their way from and to a backend */

int backend_join(const struct backend *be, float *out, const uint16_t *upper, const int16_t *low,
                 int64_t n)
{
    uint16_t u[PIECE];
    int16_t l[PIECE] = { 0 };
    for (int64_t i = 0; i < n; i += PIECE) {
        const int64_t k = MIN((int64_t)PIECE, n - i);
        TRY(be->mem->to_host(be->cx, u, upper + i, 2 * k));
        if (low) TRY(be->mem->to_host(be->cx, l, low + i, 2 * k));
        for (int64_t j = 0; j < k; j++)
            out[i + j] = split_join(u[j], l[j]);
    }
    return 0;
}

int backend_split(const struct backend *be, uint16_t *upper, int16_t *low, const float *in,
                  int64_t n)
{
    uint16_t u[PIECE];
    int16_t l[PIECE];
    for (int64_t i = 0; i < n; i += PIECE) {
        const int64_t k = MIN((int64_t)PIECE, n - i);
        for (int64_t j = 0; j < k; j++)
            l[j] = split_float(in[i + j], &u[j]);
        if (upper) TRY(be->mem->to_device(be->cx, upper + i, u, 2 * k));
        if (low) TRY(be->mem->to_device(be->cx, low + i, l, 2 * k));
    }
    return 0;
}

int op_adamw(const struct backend *be, struct tensor *w, struct tensor *m, struct tensor *v,
             const struct tensor *g, const struct adamw *opt, struct tensor *low)
{
    const int64_t n = tensor_count(w);
    check_flat(w, act(w), n);
    check_flat(m, act(m), n);
    check_flat(v, m->dtype, n);
    check_flat(g, DT_F32, n);
    if (low) check_flat(low, DT_I16, n);
    BUG_IF(low && w->dtype != DT_BF16);
    BUG_IF(opt->step < 1);
    return be->op->adamw(be->cx, w, m, v, g, opt, low);
}

int op_sumsq(const struct backend *be, double *out, const struct tensor *x)
{
    check_flat(x, DT_F32, tensor_count(x));
    return be->op->sumsq(be->cx, out, x);
}

int op_sumsq_blocks(const struct backend *be, double *out, const struct tensor *x, int64_t block)
{
    check_flat(x, DT_F32, tensor_count(x));
    BUG_IF(block < 1);
    return be->op->sumsq_blocks(be->cx, out, x, block);
}

int op_add(const struct backend *be, struct tensor *y, const struct tensor *x)
{
    check_flat(y, act(y), tensor_count(y));
    check_flat(x, act(x), tensor_count(y));
    return be->op->add(be->cx, y, x);
}

int op_cast(const struct backend *be, struct tensor *y, const struct tensor *x)
{
    check_flat(y, act(y), tensor_count(y));
    check_flat(x, act(x), tensor_count(y));
    return be->op->cast(be->cx, y, x);
}

int op_nf4(const struct backend *be, struct tensor *y, const struct tensor *q,
           const struct tensor *absmax)
{
    const int64_t n = tensor_count(y);
    BUG_IF(n % NF4_BLOCK != 0);
    check_flat(y, act(y), n);
    check_flat(q, DT_U8, n / 2);
    check_flat(absmax, DT_F32, n / NF4_BLOCK);
    return be->op->nf4(be->cx, y, q, absmax);
}

int op_nf4_scales(const struct backend *be, struct tensor *absmax, const struct tensor *codes,
                  const struct tensor *most)
{
    const int64_t n = tensor_count(absmax);
    check_flat(absmax, DT_F32, n);
    check_flat(codes, DT_U8, n);
    check_flat(most, DT_F32, 1 + div_up(n, NF4_GROUP));
    return be->op->nf4_scales(be->cx, absmax, codes, most);
}

int op_dropout(const struct backend *be, struct tensor *y, const struct tensor *x,
               const struct dropout *drop, bool add)
{
    const enum dtype A = act(x);
    check_full(x, A, x->dim[0], x->dim[1]);
    check_full(y, A, x->dim[0], x->dim[1]);
    BUG_IF(!(drop->p >= 0 && drop->p < 1) || drop->first < 0 || (add && y->data == x->data));
    return be->op->dropout(be->cx, y, x, drop, add);
}

int op_fill(const struct backend *be, struct tensor *y, float value)
{
    check_dtype(y, y->dtype);
    BUG_IF(!tensor_contiguous(y));
    return be->op->fill(be->cx, y, value);
}
