/* SPDX-License-Identifier: MIT */
#include "attention.h"
#include <omp.h>
#include <string.h>

struct sums { /* rows from `first` of a gradient, as floats ld apart: in the tensor, or beside it */
    float *p;
    int64_t ld, first;
};

struct grads {
    struct tensor *dq, *dk, *dv;
    const struct tensor *dout, *o;
    const float *lse;
};

struct bwd_buf {     /* a thread's scratch */
    float *kt, *vt;  /* [D, ATT_K]: keys and values, transposed */
    float *dk, *dv;  /* [D, ATT_K]: transposed, so that products of small heads fill a vector */
    float *back;     /* [ATT_K, D rounded up to 16]: one of them as rows */
    float *p, *dp;   /* [rows, ATT_K] */
    float *k;        /* [ATT_K, D] */
    float *q, *dout; /* [rows, D] of a head; or all heads of a row */
    float *far;      /* the sums of a group's gradients that are not in their tensors */
    float *delta;    /* behind them, [rows of the group, G]: dO O^T */
    struct sums sq, sk, sv;
};

/* Rows that the segments of a group own: of q with `kv` false, else of k and v. */
static struct sums group_span(const struct segments *segs, int64_t group, bool kv, int64_t *n)
{
    int64_t first = INT64_MAX, end = 0;
    for (int32_t i = segs->group[group]; i < segs->group[group + 1]; i++) {
        const struct segment *s = &segs->seg[i];
        const int64_t row = kv ? s->own : s->q;
        if (s->len == 0) continue;
        first = MIN(first, row);
        end = MAX(end, row + s->len);
    }
    *n = MAX(end - first, 0);
    return (struct sums){ .first = *n ? first : 0 };
}

static int64_t bwd_floats(const struct att *a, int64_t rows, int64_t far)
{
    const int64_t block = att_rows_max(a);
    return (5 * a->D + round_up(a->D, 16)) * ATT_K + 2 * block * (ATT_K + a->D) + rows * a->G + far;
}

int64_t cpu_attention_bwd_arena(const struct op_sizes *s)
{
    const struct att a = { .K = s->K, .G = s->H / s->K, .D = s->D };
    const int64_t far = s->A == DT_F32 ? 0 : s->group * (a.G + 2) * a.D;
    return bwd_floats(&a, s->group, far) * (int64_t)sizeof(float);
}

/* A thread's scratch for the largest group, whose gradients, where they are bfloat16, are summed up beside their tensors. */
static int64_t bwd_need(const struct att *a, enum dtype A)
{
    int64_t rows = 0, far = 0;
    for (int64_t i = 0; i < a->segs->n_groups; i++) {
        int64_t nq, nk;
        (void)group_span(a->segs, i, false, &nq);
        (void)group_span(a->segs, i, true, &nk);
        rows = MAX(rows, nq);
        if (A != DT_F32) far = MAX(far, nq * a->G * a->D + 2 * nk * a->D);
    }
    return bwd_floats(a, rows, far) * (int64_t)sizeof(float);
}

static struct bwd_buf bwd_carve(const struct att *a, float *p)
{
    const int64_t kd = a->D * ATT_K, s = att_rows_max(a) * ATT_K, x = att_rows_max(a) * a->D;
    struct bwd_buf b = { .kt = p, .vt = p + kd, .dk = p + 2 * kd, .dv = p + 3 * kd };
    b.k = p + 4 * kd;
    b.back = p + 5 * kd;
    b.p = b.back + round_up(a->D, 16) * ATT_K;
    b.dp = b.p + s;
    b.q = b.dp + s;
    b.dout = b.q + x;
    b.far = b.dout + x;
    return b;
}

/* One head's rows, from the i-th of b->q on, against one key block: P = exp(scale q k^T - lse), dS = P (dO v^T - delta) scale,
 * dV += P^T dO, dK += dS^T q, dQ += dS k. */
static void bwd_rows(const struct rows *r, const struct att *a, const struct grads *d,
                     const struct segment *s, const struct att_rows *q, const struct att_keys *k,
                     int64_t i0, int64_t h, int64_t g, const struct bwd_buf *b)
{
    const int64_t D = a->D, row = s->q + q->q0, head = g * a->G + h, ahead = att_ahead(q, k);
    const float *pq = b->q + i0 * D, *pdo = b->dout + i0 * D;
    const float *lse = d->lse + row * a->H + head;
    const float *delta = b->delta + (row - b->sq.first) * a->G + h;
    const int64_t step_lse = q->across ? 1 : a->H, step_delta = q->across ? 1 : a->G;
    float *dq = b->sq.p + (row - b->sq.first) * b->sq.ld + h * D;
    att_scores(r, b->p, a->q, row * a->q->ld + head * D, att_step(q, a->q, D), pq, b->kt, q->n,
               k->n, D);
    att_scores(r, b->dp, d->dout, row * d->dout->ld + head * D, att_step(q, d->dout, D), pdo, b->vt,
               q->n, k->n, D);
    for (int64_t i = 0; i < q->n; i++) {
        float *p = b->p + i * ATT_K, *dp = b->dp + i * ATT_K;
        const int64_t n = MIN(k->n, i + ahead + 1);
        r->attn_grad(p, dp, a->scale, lse[i * step_lse], delta[i * step_delta], n);
        if (n == k->n) continue;
        memset(p + n, 0, (size_t)(k->n - n) * sizeof *p);
        memset(dp + n, 0, (size_t)(k->n - n) * sizeof *dp);
    }
    r->block(b->dv, ATT_K, pdo, 1, D, b->p, ATT_K, D, k->n, q->n, true);
    r->block(b->dk, ATT_K, pq, 1, D, b->dp, ATT_K, D, k->n, q->n, true);
    r->block(dq, q->across ? D : b->sq.ld, b->dp, ATT_K, 1, b->k, D, q->n, D, k->n, true);
}

/* bwd_rows of head h (of the first and all others, where these are the rows), by strips where the diagonal cuts the block */
static void bwd_block(const struct rows *r, const struct att *a, const struct grads *d,
                      const struct segment *s, const struct att_rows *q, const struct att_keys *k,
                      int64_t h, int64_t g, const struct bwd_buf *b)
{
    const int64_t D = a->D, row = s->q + q->q0, col = (g * a->G + h) * D;
    const int64_t step = att_diagonal(q, k) ? ATT_STRIP : q->n;
    att_read(r, b->q, a->q, row * a->q->ld + col, att_step(q, a->q, D), q->n, D);
    att_read(r, b->dout, d->dout, row * d->dout->ld + col, att_step(q, d->dout, D), q->n, D);
    for (int64_t i = 0; i < q->n; i += step) {
        struct att_rows rows = *q;
        struct att_keys keys = *k;
        rows.q0 += i;
        rows.n = MIN(step, q->n - i);
        if (step < q->n) keys.n = MIN(k->n, i + rows.n);
        bwd_rows(r, a, d, s, &rows, &keys, i, h, g, b);
    }
}

/* The sums get what a key block gathered, x [D, ATT_K]. */
static void bwd_add(const struct rows *r, const struct att *a, const struct att_keys *k,
                    const struct sums *s, const float *x, float *back)
{
    const int64_t width = round_up(a->D, 16);
    r->floats->pack(back, width, x, ATT_K, false, true, a->D, k->n);
    for (int64_t i = 0; i < k->n; i++)
        r->add(s->p + (k->row - s->first + i) * s->ld, back + i * width, a->D);
}

/* All that a segment adds through kv head g. */
static void bwd_segment(const struct rows *r, const struct att *a, const struct grads *d,
                        const struct segment *s, int64_t g, const struct bwd_buf *b)
{
    const int64_t D = a->D, blocks = att_key_blocks(s), before = div_up(s->prefix_len, ATT_K);
    for (int64_t kb = 0; kb < blocks; kb++) {
        const struct att_keys k = att_keys_at(s, kb);
        const int64_t at_k = k.row * a->k->ld + g * D, at_v = k.row * a->v->ld + g * D;
        att_read(r, b->k, a->k, at_k, a->k->ld, k.n, D);
        att_transpose(r, b->kt, a->k, at_k, a->k->ld, k.n, D);
        att_transpose(r, b->vt, a->v, at_v, a->v->ld, k.n, D);
        memset(b->dk, 0, (size_t)(ATT_K * D) * sizeof *b->dk);
        memset(b->dv, 0, (size_t)(ATT_K * D) * sizeof *b->dv);
        for (int64_t qb = kb < before ? 0 : kb - before; qb < div_up(s->len, ATT_Q); qb++) {
            const struct att_rows q = att_rows_at(a, s, qb);
            for (int64_t h = 0; h < q.heads; h++)
                bwd_block(r, a, d, s, &q, &k, h, g, b);
        }
        bwd_add(r, a, &k, &b->sk, b->dk, b->back);
        bwd_add(r, a, &k, &b->sv, b->dv, b->back);
    }
}

/* Where the group's gradient of x, columns [col, col + cols), is summed up; takes room from *far. */
static struct sums sums_open(const struct att *a, struct tensor *x, int64_t group, bool kv,
                             int64_t col, int64_t cols, float **far)
{
    int64_t n;
    struct sums s = group_span(a->segs, group, kv, &n);
    s.ld = cols;
    s.p = *far;
    if (x->dtype == DT_F32) {
        s.ld = x->ld;
        s.p = (float *)x->data + s.first * x->ld + col;
    } else
        *far += n * cols;
    return s;
}

/* rows [row, row + n) of the sums begin */
static void sums_zero(const struct sums *s, int64_t row, int64_t n, int64_t cols)
{
    for (int64_t i = row - s->first; i < row - s->first + n; i++)
        memset(s->p + i * s->ld, 0, (size_t)cols * sizeof *s->p);
}

/* and come home */
static void sums_store(const struct rows *r, const struct sums *s, struct tensor *x, int64_t row,
                       int64_t n, int64_t col, int64_t cols)
{
    for (int64_t i = row; i < row + n && x->dtype != DT_F32; i++)
        r->narrow((uint16_t *)x->data + i * x->ld + col, s->p + (i - s->first) * s->ld, cols);
}

/* delta of a segment's rows, which every key block needs */
static void bwd_delta(const struct rows *r, const struct att *a, const struct grads *d,
                      const struct segment *s, int64_t g, const struct bwd_buf *b)
{
    const int64_t D = a->D, GD = a->G * D;
    for (int64_t row = s->q; row < s->q + s->len; row++) {
        const float *dout =
            cpu_read(r, b->dout, d->dout->data, d->dout->dtype, row * d->dout->ld + g * GD, GD);
        const float *o = cpu_read(r, b->q, d->o->data, d->o->dtype, row * d->o->ld + g * GD, GD);
        for (int64_t h = 0; h < a->G; h++)
            b->delta[(row - b->sq.first) * a->G + h] = r->dot(dout + h * D, o + h * D, D);
    }
}

static void bwd_group(const struct rows *r, const struct att *a, const struct grads *d,
                      int64_t group, int64_t g, float *scratch)
{
    struct bwd_buf b = bwd_carve(a, scratch);
    const int32_t first = a->segs->group[group], end = a->segs->group[group + 1];
    const int64_t D = a->D, GD = a->G * D;
    float *far = b.far;
    b.sq = sums_open(a, d->dq, group, false, g * GD, GD, &far);
    b.sk = sums_open(a, d->dk, group, true, g * D, D, &far);
    b.sv = sums_open(a, d->dv, group, true, g * D, D, &far);
    b.delta = far;
    for (int32_t i = first; i < end; i++) {
        const struct segment *s = &a->segs->seg[i];
        sums_zero(&b.sq, s->q, s->len, GD);
        sums_zero(&b.sk, s->own, s->len, D);
        sums_zero(&b.sv, s->own, s->len, D);
        bwd_delta(r, a, d, s, g, &b);
    }
    for (int32_t i = first; i < end; i++)
        bwd_segment(r, a, d, &a->segs->seg[i], g, &b);
    for (int32_t i = first; i < end; i++) {
        const struct segment *s = &a->segs->seg[i];
        sums_store(r, &b.sq, d->dq, s->q, s->len, g * GD, GD);
        sums_store(r, &b.sk, d->dk, s->own, s->len, g * D, D);
        sums_store(r, &b.sv, d->dv, s->own, s->len, g * D, D);
    }
}

int cpu_attention_bwd(struct ctx *cx, struct tensor *dq, struct tensor *dk, struct tensor *dv,
                      const struct tensor *dout, const struct tensor *o, const struct tensor *lse,
                      const struct tensor *q, const struct tensor *k, const struct tensor *v,
                      const struct segments *segs, int32_t head_size, float scale)
{
    const int64_t H = q->dim[1] / head_size, K = k->dim[1] / head_size;
    const struct att a = { .segs = segs,
                           .q = q,
                           .k = k,
                           .v = v,
                           .H = H,
                           .K = K,
                           .G = H / K,
                           .D = head_size,
                           .scale = scale };
    const struct grads d = { dq, dk, dv, dout, o, lse->data };
    int64_t work = 0;
    for (int32_t s = 0; s < segs->n; s++)
        work += (int64_t)segs->seg[s].len * (segs->seg[s].prefix_len + segs->seg[s].len) * H *
                head_size;
    TRY(cpu_arena(cx, bwd_need(&a, q->dtype)));
    /* a task owns its group's rows of one kv head in dq, dk and dv, so it adds them up in a fixed
     * order */
#pragma omp parallel for schedule(dynamic) num_threads(cpu_team(cx, work))
    for (int64_t t = 0; t < segs->n_groups * K; t++)
        bwd_group(cx->rows, &a, &d, t / K, t % K, cpu_arena_of(cx, omp_get_thread_num()));
    return 0;
}
