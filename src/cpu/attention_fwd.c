/* SPDX-License-Identifier: MIT */
#include "attention.h"
#include <math.h>
#include <omp.h>
#include <string.h>

struct out {
    struct tensor *o;
    float *lse;
};

/* Queries stand side by side in vectors: scores are [keys, queries], and what a head gathers is [D, queries], so that
 * maximum and sum run down the columns and no product is narrower than a vector, whatever the head's size. */
enum { P = ATT_COLS };

struct fwd_buf {  /* a thread's scratch */
    float *k, *v; /* [ATT_K, D] */
    float *qt;    /* [G, D, P]: the queries, transposed; or a panel of dots_pack */
    float *s;     /* [ATT_K, P], or [G, ATT_K] */
    float *acc;   /* [G, D, P], or [G, D] */
    float *o;     /* [P, D rounded up to 16]: a head's acc, transposed back */
    float *m, *l; /* [G, P]: running maximum (of the scaled scores) and sum */
};

static int64_t fwd_scores(const struct att *a)
{
    return MAX(a->G, P) * ATT_K;
}

static int64_t fwd_queries(const struct att *a)
{
    return MAX(a->G * a->D * P, dots_panel(a->G, a->D));
}

static int64_t fwd_out(const struct att *a)
{
    return P * round_up(a->D, 16);
}

static int64_t fwd_floats(const struct att *a)
{
    return 2 * ATT_K * a->D + fwd_queries(a) + a->G * (a->D + 2) * P + fwd_scores(a) + fwd_out(a);
}

int64_t cpu_attention_fwd_arena(const struct op_sizes *s)
{
    const struct att a = { .K = s->K, .G = s->H / s->K, .D = s->D };
    return fwd_floats(&a) * (int64_t)sizeof(float);
}

static struct fwd_buf fwd_carve(const struct att *a, float *p)
{
    const int64_t kd = ATT_K * a->D;
    struct fwd_buf b = { .k = p, .v = p + kd, .qt = p + 2 * kd };
    b.acc = b.qt + fwd_queries(a);
    b.s = b.acc + a->G * a->D * P;
    b.o = b.s + fwd_scores(a);
    b.m = b.o + fwd_out(a);
    b.l = b.m + a->G * P;
    return b;
}

/* o = acc / l, lse = m + log l of one query and head */
static void fwd_store(const struct rows *r, const struct att *a, const struct out *out, int64_t row,
                      int64_t head, float *acc, float m, float l)
{
    const enum dtype A = out->o->dtype;
    void *o = cpu_at(out->o->data, A, row * out->o->ld + head * a->D);
    r->scale(acc, 1.0f / l, a->D);
    if (A == DT_F32)
        memcpy(o, acc, (size_t)a->D * sizeof *acc);
    else
        r->narrow(o, acc, a->D);
    out->lse[row * a->H + head] = m + logf(l);
}

static void fwd_block(const struct rows *r, const struct att *a, const struct out *out,
                      const struct segment *s, int64_t block, int64_t g, const struct fwd_buf *b)
{
    const struct att_rows q = att_rows_at(a, s, block);
    const int64_t D = a->D, G = a->G, first = s->q + q.q0, n = round_up(q.n, 16);
    const int64_t width = round_up(D, 16), before = div_up(s->prefix_len, ATT_K);
    for (int64_t h = 0; h < G; h++)
        att_transpose(r, b->qt + h * D * P, a->q, first * a->q->ld + (g * G + h) * D, a->q->ld, q.n,
                      D);
    memset(b->acc, 0, (size_t)(G * D * P) * sizeof *b->acc);
    memset(b->l, 0, (size_t)(G * P) * sizeof *b->l);
    for (int64_t i = 0; i < G * P; i++)
        b->m[i] = -INFINITY;
    for (int64_t kb = 0; kb < before + div_up(q.q0 + q.n, ATT_K); kb++) {
        const struct att_keys k = att_keys_at(s, kb);
        const int64_t at = k.row * a->k->ld + g * D;
        att_read(r, b->v, a->v, k.row * a->v->ld + g * D, a->v->ld, k.n, D);
        if (!att_pairs(r, a->k, D)) att_read(r, b->k, a->k, at, a->k->ld, k.n, D);
        for (int64_t h = 0; h < G; h++) {
            float *acc = b->acc + h * D * P;
            const float *qt = b->qt + h * D * P;
            const int64_t step = att_diagonal(&q, &k) ? ATT_STRIP : ATT_K;
            for (int64_t j = 0; j < k.n; j += step) /* keys, and the queries that see them */
                att_scores(r, b->s + j * P + j, a->k, at + j * a->k->ld, a->k->ld, b->k + j * D,
                           qt + j, MIN(step, k.n - j), n - j, D);
            r->softmax(b->s, acc, P, b->m + h * P, b->l + h * P, a->scale, att_ahead(&q, &k), k.n,
                       n, D);
            for (int64_t i = 0; i < n; i += step) /* queries, and the keys that they see */
                r->block(acc + i, P, b->v, 1, D, b->s + i, P, D, MIN(step, n - i),
                         MIN(k.n, i + step), true);
        }
    }
    for (int64_t h = 0; h < G; h++) {
        r->floats->pack(b->o, width, b->acc + h * D * P, P, false, true, D, q.n);
        for (int64_t i = 0; i < q.n; i++)
            fwd_store(r, a, out, first + i, g * G + h, b->o + i * width, b->m[h * P + i],
                      b->l[h * P + i]);
    }
}

/* A single query, as in decoding: its heads are the rows, and keys are read where they lie. */
static void fwd_single(const struct rows *r, const struct att *a, const struct out *out,
                       const struct segment *s, int64_t g, const struct fwd_buf *b)
{
    const int64_t D = a->D, G = a->G;
    const bool qhalf = a->q->dtype == DT_BF16, khalf = a->k->dtype == DT_BF16;
    for (int64_t h = 0; h < G; h++)
        r->dots_pack(b->qt, h,
                     cpu_at_const(a->q->data, a->q->dtype, s->q * a->q->ld + (g * G + h) * D),
                     qhalf, khalf, D);
    memset(b->acc, 0, (size_t)(G * D) * sizeof *b->acc);
    memset(b->l, 0, (size_t)G * sizeof *b->l);
    for (int64_t h = 0; h < G; h++)
        b->m[h] = -INFINITY;
    for (int64_t kb = 0; kb < att_key_blocks(s); kb++) {
        const struct att_keys k = att_keys_at(s, kb);
        const int64_t at_v = k.row * a->v->ld + g * D;
        const bool wide = a->v->dtype == DT_F32; /* read once, so it is left where it is */
        const float *v = wide ? (const float *)a->v->data + at_v : b->v;
        if (!wide) att_read(r, b->v, a->v, at_v, a->v->ld, k.n, D);
        r->dots(b->s, ATT_K, b->qt, qhalf, G,
                cpu_at_const(a->k->data, a->k->dtype, k.row * a->k->ld + g * D), a->k->ld, khalf,
                k.n, 0, D);
        for (int64_t h = 0; h < G; h++) {
            float *p = b->s + h * ATT_K;
            const float top = a->scale * r->max(p, k.n);
            if (top > b->m[h]) {
                const float c = expf(b->m[h] - top);
                b->l[h] *= c;
                r->scale(b->acc + h * D, c, D);
                b->m[h] = top;
            }
            b->l[h] += r->exp_sum(p, p, a->scale, b->m[h], k.n);
        }
        r->block(b->acc, D, b->s, ATT_K, 1, v, wide ? a->v->ld : D, G, D, k.n, true);
    }
    for (int64_t h = 0; h < G; h++)
        fwd_store(r, a, out, s->q, g * G + h, b->acc + h * D, b->m[h], b->l[h]);
}

/* Task t counts the (query block, kv head) pairs of all segments. */
static void fwd_task(const struct rows *r, const struct att *a, const struct out *out, int64_t t,
                     float *scratch)
{
    for (int32_t s = 0; s < a->segs->n; s++) {
        const int64_t n = div_up(a->segs->seg[s].len, ATT_Q) * a->K;
        if (t < n) {
            const struct segment *seg = &a->segs->seg[s];
            const struct fwd_buf b = fwd_carve(a, scratch);
            if (seg->len == 1)
                fwd_single(r, a, out, seg, t % a->K, &b);
            else /* the longest rows first: they take most time */
                fwd_block(r, a, out, seg, (n - 1 - t) / a->K, t % a->K, &b);
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
