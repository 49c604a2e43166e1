/* SPDX-License-Identifier: MIT */
#include "attention.h"
#include <math.h>
#include <omp.h>
#include <string.h>

struct out {
    struct tensor *o;
    float *lse;
};

struct fwd_buf {  /* a thread's scratch */
    float *kt;    /* [D, ATT_K]: the keys, transposed */
    float *q, *v; /* [rows, G D], [ATT_K, D]: widened */
    float *s;     /* [rows, ATT_K] */
    float *acc;   /* [heads, rows, D] */
    float *m, *l; /* [heads, rows]: running maximum (of the scaled scores) and sum */
};

static int64_t fwd_floats(const struct att *a)
{
    const int64_t rows = att_rows_max(a);
    return a->D * ATT_K * 2 + rows * ATT_K + MAX(a->G * ATT_Q, rows) * (2 * a->D + 2);
}

int64_t cpu_attention_fwd_arena(const struct op_sizes *s)
{
    const struct att a = { .K = s->K, .G = s->H / s->K, .D = s->D };
    return fwd_floats(&a) * (int64_t)sizeof(float);
}

static struct fwd_buf fwd_carve(const struct att *a, float *p)
{
    const int64_t rows = att_rows_max(a), all = MAX(a->G * ATT_Q, rows);
    struct fwd_buf b;
    b.kt = p;
    b.v = b.kt + a->D * ATT_K;
    b.s = b.v + a->D * ATT_K;
    b.q = b.s + rows * ATT_K;
    b.acc = b.q + all * a->D;
    b.m = b.acc + all * a->D;
    b.l = b.m + all;
    return b;
}

/* Scores of n rows become probabilities against the new running maximum; the old sums are brought
 * to it. */
static void softmax_rows(const struct rows *r, const struct att *a, const struct fwd_buf *b,
                         int64_t head, const struct att_rows *q, const struct att_keys *k)
{
    float *m = b->m + head * q->n, *l = b->l + head * q->n, *acc = b->acc + head * q->n * a->D;
    for (int64_t i = 0; i < q->n; i++) {
        float *s = b->s + i * ATT_K;
        const int64_t n = att_visible(q, k, i);
        const float top = a->scale * r->max(s, n);
        if (top > m[i]) {
            const float c = expf(m[i] - top);
            l[i] *= c;
            r->scale(acc + i * a->D, c, a->D);
            m[i] = top;
        }
        l[i] += r->exp_sum(s, s, a->scale, m[i], n);
        memset(s + n, 0, (size_t)(ATT_K - n) * sizeof *s);
    }
}

static void fwd_store(const struct rows *r, const struct att *a, const struct out *out,
                      const struct segment *s, const struct att_rows *q, int64_t g,
                      const struct fwd_buf *b)
{
    const int64_t D = a->D;
    const enum dtype A = out->o->dtype;
    for (int64_t i = 0; i < q->heads * q->n; i++) {
        const int64_t row = s->q + q->q0 + (q->across ? 0 : i % q->n),
                      head = g * a->G + (q->across ? i : i / q->n);
        float *acc = b->acc + i * D;
        void *o = cpu_at(out->o->data, A, row * out->o->ld + head * D);
        r->scale(acc, 1.0f / b->l[i], D);
        if (A == DT_F32)
            memcpy(o, acc, (size_t)D * sizeof *acc);
        else
            r->narrow(o, acc, D);
        out->lse[row * a->H + head] = b->m[i] + logf(b->l[i]);
    }
}

static void fwd_block(const struct rows *r, const struct att *a, const struct out *out,
                      const struct segment *s, int64_t block, int64_t g, float *scratch)
{
    const struct att_rows q = att_rows_at(a, s, block);
    const struct fwd_buf b = fwd_carve(a, scratch);
    const int64_t all = q.heads * q.n, D = a->D, blocks = att_seen_blocks(s, &q);
    const struct att_view pq =
        att_read(r, b.q, a->q, s->q + q.q0, q.across ? 1 : q.n, g * a->G * D, a->G * D);
    memset(b.acc, 0, (size_t)(all * D) * sizeof *b.acc);
    memset(b.l, 0, (size_t)all * sizeof *b.l);
    for (int64_t i = 0; i < all; i++)
        b.m[i] = -INFINITY;
    for (int64_t kb = 0; kb < blocks; kb++) {
        const struct att_keys k = att_keys_at(s, kb);
        const struct att_view v = att_read(r, b.v, a->v, k.row, k.n, g * D, D);
        att_transpose(r, b.kt, a->k, k.row, k.n, g * D, D);
        for (int64_t h = 0; h < q.heads; h++) {
            r->block(b.s, ATT_K, pq.p + h * D, q.across ? D : pq.ld, 1, b.kt, ATT_K, q.n, k.n, D,
                     false);
            softmax_rows(r, a, &b, h, &q, &k);
            r->block(b.acc + h * q.n * D, D, b.s, ATT_K, 1, v.p, v.ld, q.n, D, k.n, true);
        }
    }
    fwd_store(r, a, out, s, &q, g, &b);
}

/* Task t counts the (query block, kv head) pairs of all segments. */
static void fwd_task(const struct rows *r, const struct att *a, const struct out *out, int64_t t,
                     float *scratch)
{
    for (int32_t s = 0; s < a->segs->n; s++) {
        const int64_t n = div_up(a->segs->seg[s].len, ATT_Q) * a->K;
        if (t < n) {
            /* the longest rows first: they take most time */
            fwd_block(r, a, out, &a->segs->seg[s], (n - 1 - t) / a->K, t % a->K, scratch);
            return;
        }
        t -= n;
    }
}

int cpu_attention_fwd(struct ctx *cx, struct tensor *o, struct tensor *lse, const struct tensor *q,
                      const struct tensor *k, const struct tensor *v, const struct segments *segs,
                      int32_t head_size, float scale)
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
    const struct out out = { o, lse->data };
    int64_t tasks = 0, work = 0;
    for (int32_t s = 0; s < segs->n; s++) {
        const struct segment *g = &segs->seg[s];
        tasks += div_up(g->len, ATT_Q) * K;
        work += (int64_t)g->len * (g->prefix_len + g->len) * H * head_size;
    }
    TRY(cpu_arena(cx, fwd_floats(&a) * (int64_t)sizeof(float)));
#pragma omp parallel for schedule(dynamic) num_threads(cpu_team(cx, work))
    for (int64_t t = 0; t < tasks; t++)
        fwd_task(cx->rows, &a, &out, t, cpu_arena_of(cx, omp_get_thread_num()));
    return 0;
}
