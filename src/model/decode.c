/* SPDX-License-Identifier: MIT */
#include "decode.h"
#include "layer.h"
#include <stdlib.h>
#include <string.h>

static int plan_rows(struct decoder *d, struct plan *p, int64_t T)
{
    const struct arch *a = &d->m->arch;
    const enum plan_cat c = PLAN_ACTIVATIONS;
    const enum dtype A = d->m->dtype;
    TRY(plan_book(p, c, &d->x, A, T, a->C, 1, 1));
    TRY(plan_book(p, c, &d->sum, A, T, a->C, 1, 1));
    TRY(plan_book(p, c, &d->h, A, T, a->C, 1, 1));
    TRY(plan_book(p, c, &d->rstd, DT_F32, T, 1, 1, 1));
    TRY(plan_book(p, c, &d->qkv, A, T, (a->H + 2 * a->K) * a->D, 1, 1));
    if (a->qk_norm) TRY(plan_book(p, c, &d->rstd_h, DT_F32, T * a->H, 1, 1, 1));
    TRY(plan_book(p, c, &d->att, A, T, a->H * a->D, 1, 1));
    TRY(plan_book(p, c, &d->lse, DT_F32, T, a->H, 1, 1));
    TRY(plan_book(p, c, &d->gu, A, T, 2 * a->F, 1, 1));
    TRY(plan_book(p, c, &d->act, A, T, a->F, 1, 1));
    TRY(plan_book(p, PLAN_HEAD, &d->logits, DT_F32, d->B, a->V, 1, 1));
    TRY(plan_book(p, PLAN_BATCH, &d->ids, DT_I32, T, 1, 1, 1));
    TRY(plan_book(p, PLAN_BATCH, &d->last, DT_I32, d->B, 1, 1, 1));
    TRY(plan_book(p, PLAN_BATCH, &d->place, DT_I32, T, 1, 1, 1));
    return plan_book(p, PLAN_BATCH, &d->pos, DT_I32, T, 1, 1, 1);
}

int decoder_plan(struct decoder *d, struct model *m, struct plan *p, int64_t batch,
                 int64_t positions, int64_t rows)
{
    const struct arch *a = &m->arch;
    const enum dtype A = m->dtype;
    int64_t cached;
    BUG_IF(batch < 1 || positions < 1 || rows < 1);
    memset(d, 0, sizeof *d);
    if (!mul_ok(batch, positions, &cached) || cached > INT32_MAX || rows > INT32_MAX)
        return err_set(ERR_INPUT, "%lld sequences of %lld tokens are more than a cache can hold",
                       (long long)batch, (long long)positions);
    d->m = m;
    d->B = batch;
    d->cap = positions;
    d->T_max = MAX(rows, batch);
    TRY(MEM_NEW(&d->k, a->L));
    TRY(MEM_NEW(&d->v, a->L));
    TRY(model_plan_rope(m, p, positions));
    TRY(model_plan_linear(m, p, d->T_max));
    for (int64_t l = 0; l < a->L; l++) {
        TRY(plan_book(p, PLAN_ACTIVATIONS, &d->k[l], A, cached, a->K * a->D, 1, 1));
        TRY(plan_book(p, PLAN_ACTIVATIONS, &d->v[l], A, cached, a->K * a->D, 1, 1));
    }
    return plan_rows(d, p, d->T_max);
}

int decoder_ready(struct decoder *d)
{
    TRY(MEM_NEW(&d->len, d->B));
    TRY(MEM_NEW(&d->host, d->B * d->m->arch.V));
    TRY(MEM_NEW(&d->host_ids, 3 * d->T_max + d->B));
    TRY(MEM_NEW(&d->seg, d->B));
    TRY(MEM_NEW(&d->group, d->B + 1));
    for (int64_t i = 0; i <= d->B; i++)
        d->group[i] = (int32_t)i; /* every slot is a group of its own */
    return model_upload_rope(d->m);
}

void decoder_release(struct decoder *d)
{
    free(d->k);
    free(d->v);
    free(d->len);
    free(d->host);
    free(d->host_ids);
    free(d->seg);
    free(d->group);
    memset(d, 0, sizeof *d);
}

void decoder_reset(struct decoder *d, int64_t slot)
{
    BUG_IF(slot < 0 || slot >= d->B);
    d->len[slot] = 0;
}

static int decode_attention(struct decoder *d, int64_t l, int64_t T, int64_t n_seg)
{
    const struct model *m = d->m;
    const struct arch *a = &m->arch;
    const struct layer *y = &m->layers[l];
    const int32_t D = (int32_t)a->D;
    const struct segments segs = { d->seg, d->group, (int32_t)n_seg, (int32_t)n_seg };
    const struct tensor h = tensor_rows(&d->h, 0, T), pos = tensor_rows(&d->pos, 0, T),
                        place = tensor_rows(&d->place, 0, T);
    struct tensor qkv = tensor_rows(&d->qkv, 0, T), att = tensor_rows(&d->att, 0, T),
                  lse = tensor_rows(&d->lse, 0, T);
    struct tensor branch = tensor_rows(&d->sum, 0, T), q, k, v;
    TRY(linear_fwd(m, &y->qkv, &qkv, &h));
    layer_qkv(a, &qkv, NULL, &q, &k, &v);
    if (a->qk_norm) {
        struct tensor rq = tensor_view(d->rstd_h.data, DT_F32, T, a->H, 1, 1);
        struct tensor rk = tensor_view(d->rstd_h.data, DT_F32, T, a->K, 1, 1);
        TRY(op_headnorm_fwd(m->be, &q, &rq, &q, &m->params[y->q_norm].w, (float)a->rms_eps));
        TRY(op_headnorm_fwd(m->be, &k, &rk, &k, &m->params[y->k_norm].w, (float)a->rms_eps));
    }
    TRY(layer_rope(m, &qkv, &pos, false));
    TRY(op_put_rows(m->be, &d->k[l], &k, &place));
    TRY(op_put_rows(m->be, &d->v[l], &v, &place));
    TRY(op_attention_fwd(m->be, &att, &lse, &q, &d->k[l], &d->v[l], &segs, D, layer_scale(a)));
    return linear_fwd(m, &y->o, &branch, &att);
}

/* Rows of a table in bfloat16 are widened; the branch is free here. */
static int embed(struct decoder *d, struct tensor *x, const struct tensor *ids)
{
    const struct model *m = d->m;
    const struct tensor *table = &m->params[m->embed].w;
    if (table->dtype == x->dtype) return op_gather(m->be, x, table, ids);
    struct tensor rows = tensor_view(d->sum.data, table->dtype, x->dim[0], x->dim[1], 1, 1);
    TRY(op_gather(m->be, &rows, table, ids));
    return op_cast(m->be, x, &rows);
}

/* x is the residual stream, sum a branch that the next norm adds to it. */
static int decode_layers(struct decoder *d, int64_t T, int64_t n_seg)
{
    const struct model *m = d->m;
    const float eps = (float)m->arch.rms_eps;
    const struct tensor ids = tensor_rows(&d->ids, 0, T);
    struct tensor x = tensor_rows(&d->x, 0, T), h = tensor_rows(&d->h, 0, T),
                  rstd = tensor_rows(&d->rstd, 0, T);
    struct tensor branch = tensor_rows(&d->sum, 0, T), gu = tensor_rows(&d->gu, 0, T),
                  act = tensor_rows(&d->act, 0, T);
    TRY(embed(d, &x, &ids));
    for (int64_t l = 0; l < m->arch.L; l++) {
        const struct layer *y = &m->layers[l];
        const bool first = l == 0;
        TRY(op_rmsnorm_fwd(m->be, &h, &rstd, first ? NULL : &x, &x, first ? NULL : &branch,
                           &m->params[y->norm1].w, eps));
        TRY(decode_attention(d, l, T, n_seg));
        TRY(op_rmsnorm_fwd(m->be, &h, &rstd, &x, &x, &branch, &m->params[y->norm2].w, eps));
        TRY(linear_fwd(m, &y->gate_up, &gu, &h));
        TRY(op_swiglu_fwd(m->be, &act, &gu));
        TRY(linear_fwd(m, &y->down, &branch, &act));
    }
    return op_rmsnorm_fwd(m->be, &h, &rstd, &x, &x, &branch, &m->params[m->final_norm].w, eps);
}

/* Logits of the last row of each part to the host; x is free by now. */
static int decode_logits(struct decoder *d, int64_t T, int64_t n, const float **logits)
{
    const struct model *m = d->m;
    const struct tensor h = tensor_rows(&d->h, 0, T), last = tensor_rows(&d->last, 0, n);
    struct tensor rows = tensor_rows(&d->x, 0, n), z = tensor_rows(&d->logits, 0, n);
    if (n < T) TRY(op_gather(m->be, &rows, &h, &last));
    TRY(op_gemm(m->be, &z, n < T ? &rows : &h, false, &m->params[m->head].w, true, NULL, 1, 0));
    TRY(m->be->mem->to_host(m->be->cx, d->host, z.data, n * m->arch.V * dtype_size(DT_F32)));
    *logits = d->host;
    return 0;
}

static int upload(const struct decoder *d, struct tensor *t, const int32_t *from, int64_t n)
{
    const struct backend *be = d->m->be;
    return be->mem->to_device(be->cx, t->data, from, n * dtype_size(DT_I32));
}

int decoder_pass(struct decoder *d, const struct decoder_part *parts, int64_t n_parts,
                 const float **logits)
{
    const int64_t V = d->m->arch.V;
    int32_t *ids = d->host_ids, *pos = ids + d->T_max, *place = pos + d->T_max,
            *last = place + d->T_max;
    int64_t T = 0;
    BUG_IF(n_parts < 1 || n_parts > d->B);
    for (int64_t i = 0; i < n_parts; i++) {
        const int32_t slot = parts[i].slot;
        const int64_t n = parts[i].n;
        BUG_IF(slot < 0 || slot >= d->B || n < 1 || n > d->T_max - T || n > d->cap - d->len[slot]);
        const int32_t base = (int32_t)(slot * d->cap), have = d->len[slot];
        d->seg[i] = (struct segment){ (int32_t)T, (int32_t)n, base + have, base, have };
        for (int64_t t = 0; t < n; t++, T++) {
            BUG_IF(parts[i].ids[t] < 0 || parts[i].ids[t] >= V);
            ids[T] = parts[i].ids[t];
            pos[T] = have + (int32_t)t;
            place[T] = base + pos[T];
        }
        last[i] = (int32_t)T - 1;
    }
    TRY(upload(d, &d->ids, ids, T));
    TRY(upload(d, &d->pos, pos, T));
    TRY(upload(d, &d->place, place, T));
    TRY(upload(d, &d->last, last, n_parts));
    TRY(decode_layers(d, T, n_parts));
    for (int64_t i = 0; i < n_parts; i++)
        d->len[parts[i].slot] += (int32_t)parts[i].n;
    return decode_logits(d, T, n_parts, logits);
}
