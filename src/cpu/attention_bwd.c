/* SPDX-License-Identifier: MIT */
#include "attention.h"
#include <omp.h>
#include <string.h>

struct grads {
    float *dq, *dk, *dv;
    const float *dout, *o, *lse;
    int64_t lddq, lddk, lddv, lddo, ldo;
};

struct bwd_buf {    /* a thread's scratch */
    float *kt, *vt; /* [D, ATT_K]: keys and values, transposed */
    float *p, *dp;  /* [rows, ATT_K] */
    float *dk, *dv; /* [ATT_K, D] */
};

static int64_t bwd_floats(const struct att *a)
{
    return 4 * a->D * ATT_K + 2 * att_rows_max(a) * ATT_K;
}

static struct bwd_buf bwd_carve(const struct att *a, float *p)
{
    const int64_t kd = a->D * ATT_K, s = att_rows_max(a) * ATT_K;
    return (struct bwd_buf){ p, p + kd, p + 4 * kd, p + 4 * kd + s, p + 2 * kd, p + 3 * kd };
}

/* One head's rows against one key block: P = exp(scale q k^T - lse), dS = P (dO v^T - delta) scale,
 * dV += P^T dO, dK += dS^T q, dQ += dS k. */
static void bwd_rows(const struct rows *r, const struct att *a, const struct grads *d,
                     const struct segment *s, const struct att_rows *q, const struct att_keys *k,
                     int64_t head, int64_t g, const struct bwd_buf *b)
{
    const int64_t D = a->D, row = s->q + q->q0;
    const int64_t step_q = q->across ? D : a->ldq, step_do = q->across ? D : d->lddo;
    const int64_t step_o = q->across ? D : d->ldo, step_dq = q->across ? D : d->lddq;
    const float *pq = a->q + row * a->ldq + head * D, *pdo = d->dout + row * d->lddo + head * D;
    const float *po = d->o + row * d->ldo + head * D, *lse = d->lse + row * a->H + head;
    float *dq = d->dq + row * d->lddq + head * D;
    r->block(b->p, ATT_K, pq, step_q, 1, b->kt, ATT_K, q->n, k->n, D, false);
    r->block(b->dp, ATT_K, pdo, step_do, 1, b->vt, ATT_K, q->n, k->n, D, false);
    for (int64_t i = 0; i < q->n; i++) {
        float *p = b->p + i * ATT_K, *dp = b->dp + i * ATT_K;
        const int64_t n = att_visible(q, k, i);
        /* delta costs D of about 5 * 64 * D, so it is cheaper to make again than to keep */
        const float delta = r->dot(pdo + i * step_do, po + i * step_o, D);
        r->attn_grad(p, dp, a->scale, lse[q->across ? i : i * a->H], delta, n);
        memset(p + n, 0, (size_t)(ATT_K - n) * sizeof *p);
        memset(dp + n, 0, (size_t)(ATT_K - n) * sizeof *dp);
    }
    r->block(b->dv, D, b->p, 1, ATT_K, pdo, step_do, k->n, D, q->n, true);
    r->block(b->dk, D, b->dp, 1, ATT_K, pq, step_q, k->n, D, q->n, true);
    r->block(dq, step_dq, b->dp, ATT_K, 1, a->k + k->row * a->ldk + g * D, a->ldk, q->n, D, k->n,
             true);
}

/* All that a segment adds through kv head g. */
static void bwd_segment(const struct rows *r, const struct att *a, const struct grads *d,
                        const struct segment *s, int64_t g, const struct bwd_buf *b)
{
    const int64_t D = a->D, blocks = att_key_blocks(s), before = div_up(s->prefix_len, ATT_K);
    for (int64_t kb = 0; kb < blocks; kb++) {
        const struct att_keys k = att_keys_at(s, kb);
        r->transpose(b->kt, ATT_K, a->k + k.row * a->ldk + g * D, a->ldk, k.n, D);
        r->transpose(b->vt, ATT_K, a->v + k.row * a->ldv + g * D, a->ldv, k.n, D);
        memset(b->dk, 0, (size_t)(ATT_K * D) * sizeof *b->dk);
        memset(b->dv, 0, (size_t)(ATT_K * D) * sizeof *b->dv);
        for (int64_t qb = kb < before ? 0 : kb - before; qb < div_up(s->len, ATT_Q); qb++) {
            const struct att_rows q = att_rows_at(a, s, qb);
            for (int64_t h = 0; h < q.heads; h++)
                bwd_rows(r, a, d, s, &q, &k, g * a->G + h, g, b);
        }
        for (int64_t i = 0; i < k.n; i++) {
            r->add(d->dk + (k.row + i) * d->lddk + g * D, b->dk + i * D, D);
            r->add(d->dv + (k.row + i) * d->lddv + g * D, b->dv + i * D, D);
        }
    }
}

static void bwd_group(const struct rows *r, const struct att *a, const struct grads *d,
                      int64_t group, int64_t g, float *scratch)
{
    const struct bwd_buf b = bwd_carve(a, scratch);
    const int32_t first = a->segs->group[group], end = a->segs->group[group + 1];
    const size_t kv = (size_t)a->D * sizeof(float), heads = kv * (size_t)a->G;
    for (int32_t i = first; i < end; i++) {
        const struct segment *s = &a->segs->seg[i];
        for (int64_t t = 0; t < s->len; t++) {
            memset(d->dq + (s->q + t) * d->lddq + g * a->G * a->D, 0, heads);
            memset(d->dk + (s->own + t) * d->lddk + g * a->D, 0, kv);
            memset(d->dv + (s->own + t) * d->lddv + g * a->D, 0, kv);
        }
    }
    for (int32_t i = first; i < end; i++)
        bwd_segment(r, a, d, &a->segs->seg[i], g, &b);
}

int cpu_attention_bwd(struct ctx *cx, struct tensor *dq, struct tensor *dk, struct tensor *dv,
                      const struct tensor *dout, const struct tensor *o, const struct tensor *lse,
                      const struct tensor *q, const struct tensor *k, const struct tensor *v,
                      const struct segments *segs, int32_t head_size, float scale)
{
    const int64_t H = q->dim[1] / head_size, K = k->dim[1] / head_size;
    const struct att a = { .segs = segs,
                           .q = q->data,
                           .k = k->data,
                           .v = v->data,
                           .ldq = q->ld,
                           .ldk = k->ld,
                           .ldv = v->ld,
                           .H = H,
                           .K = K,
                           .G = H / K,
                           .D = head_size,
                           .scale = scale };
    const struct grads d = { dq->data, dk->data, dv->data, dout->data, o->data, lse->data,
                             dq->ld,   dk->ld,   dv->ld,   dout->ld,   o->ld };
    int64_t work = 0;
    for (int32_t s = 0; s < segs->n; s++)
        work += (int64_t)segs->seg[s].len * (segs->seg[s].prefix_len + segs->seg[s].len) * H *
                head_size;
    TRY(cpu_arena(cx, bwd_floats(&a) * (int64_t)sizeof(float)));
    /* a task owns its group's rows of one kv head in dq, dk and dv, so it adds them up in a fixed
     * order */
#pragma omp parallel for schedule(dynamic) num_threads(cpu_team(cx, work))
    for (int64_t t = 0; t < segs->n_groups * K; t++)
        bwd_group(cx->rows, &a, &d, t / K, t % K, cpu_arena_of(cx, omp_get_thread_num()));
    return 0;
}
