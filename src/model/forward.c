/* SPDX-License-Identifier: MIT */
#include "layer.h"
#include "../base/watch.h"
#include <math.h>

float layer_scale(const struct arch *a)
{
    return (float)(1.0 / sqrt((double)a->D));
}

struct acts layer_acts(const struct model *m, int64_t l, int64_t T)
{
    const bool shared = l < m->first_kept;
    const struct acts *s = &m->acts[shared ? 0 : l - m->first_kept];
    const struct tensor *in = shared && m->block_in ? &m->block_in[2 * l] : NULL;
    struct acts t = {
        .x = tensor_rows(in ? &in[0] : &s->x, 0, T),
        .rstd1 = tensor_rows(in ? &in[1] : &s->rstd1, 0, T),
        .qkv = tensor_rows(&s->qkv, 0, T),
        .att = tensor_rows(&s->att, 0, T),
        .lse = tensor_rows(&s->lse, 0, T),
        .x2 = tensor_rows(&s->x2, 0, T),
        .rstd2 = tensor_rows(&s->rstd2, 0, T),
        .gu = tensor_rows(&s->gu, 0, T),
    };
    if (!m->arch.qk_norm) return t;
    t.qk = tensor_rows(&s->qk, 0, T);
    t.rstd_q = tensor_rows(&s->rstd_q, 0, T);
    t.rstd_k = tensor_rows(&s->rstd_k, 0, T);
    return t;
}

void layer_qkv(const struct arch *a, const struct tensor *qkv, const struct tensor *qk,
               struct tensor *q, struct tensor *k, struct tensor *v)
{
    const int64_t nq = a->H * a->D, nk = a->K * a->D;
    *q = tensor_cols(qk ? qk : qkv, 0, nq);
    *k = tensor_cols(qk ? qk : qkv, nq, nk);
    *v = tensor_cols(qkv, nq + nk, nk);
}

int layer_rope(const struct model *m, const struct tensor *x, const struct tensor *pos,
               bool inverse)
{
    const struct arch *a = &m->arch;
    struct tensor both = tensor_cols(x, 0, (a->H + a->K) * a->D);
    return op_rope(m->be, &both, (int32_t)a->D, pos, &m->rope, inverse);
}

static int attention(const struct model *m, const struct layer *y, struct acts *t,
                     const struct segments *segs)
{
    const struct arch *a = &m->arch;
    const int32_t D = (int32_t)a->D;
    const int64_t T = t->x.dim[0];
    const struct tensor pos = tensor_rows(&m->pos, 0, T), h = tensor_rows(&m->h, 0, T);
    struct tensor q, k, v;
    TRY(linear_fwd(m, &y->qkv, &t->qkv, &h));
    layer_qkv(a, &t->qkv, NULL, &q, &k, &v);
    if (a->qk_norm) {
        const struct tensor q_in = q, k_in = k;
        layer_qkv(a, &t->qkv, &t->qk, &q, &k, &v);
        TRY(op_headnorm_fwd(m->be, &q, &t->rstd_q, &q_in, &m->params[y->q_norm].w,
                            (float)a->rms_eps));
        TRY(op_headnorm_fwd(m->be, &k, &t->rstd_k, &k_in, &m->params[y->k_norm].w,
                            (float)a->rms_eps));
    }
    TRY(layer_rope(m, a->qk_norm ? &t->qk : &t->qkv, &pos, false));
    return op_attention_fwd(m->be, &t->att, &t->lse, &q, &k, &v, segs, D, layer_scale(a));
}

int layer_forward(const struct model *m, int64_t l, struct acts *t, const struct segments *segs)
{
    const struct layer *y = &m->layers[l];
    const int64_t T = t->x.dim[0];
    struct tensor branch = tensor_rows(&m->stream, 0, T), h = tensor_rows(&m->h, 0, T);
    watch_beat();
    TRY(attention(m, y, t, segs));
    TRY(linear_fwd(m, &y->o, &branch, &t->att));
    TRY(op_rmsnorm_fwd(m->be, &h, &t->rstd2, &t->x2, &t->x, &branch, &m->params[y->norm2].w,
                       (float)m->arch.rms_eps));
    return linear_fwd(m, &y->gate_up, &t->gu, &h);
}

static int upload_i32(const struct model *m, const struct tensor *dst, const int32_t *host,
                      int64_t n)
{
    return m->be->mem->to_device(m->be->cx, dst->data, host, n * dtype_size(DT_I32));
}

static int upload_batch(struct model *m, const struct batch *b)
{
    BUG_IF(b->T < 1 || b->N < 1 || b->T > m->T_max || b->N > m->N_max);
    for (int32_t t = 0; t < b->T; t++)
        BUG_IF(b->ids[t] < 0 || b->ids[t] >= m->arch.V || b->pos[t] >= m->rope.dim[0]);
    TRY(upload_i32(m, &m->ids, b->ids, b->T));
    TRY(upload_i32(m, &m->pos, b->pos, b->T));
    TRY(upload_i32(m, &m->src, b->src, b->N));
    return upload_i32(m, &m->target, b->target, b->N);
}

int model_forward(struct model *m, const struct batch *b)
{
    const struct arch *a = &m->arch;
    const int64_t T = b->T;
    const float eps = (float)a->rms_eps;
    const struct segments segs = batch_segments(b);
    struct acts t = layer_acts(m, 0, T);
    struct tensor branch = tensor_rows(&m->stream, 0, T), h = tensor_rows(&m->h, 0, T),
                  act = tensor_rows(&m->act, 0, T);
    const struct tensor ids = tensor_rows(&m->ids, 0, T), src = tensor_rows(&m->src, 0, b->N);
    TRY(upload_batch(m, b));
    TRY(op_gather(m->be, &t.x, &m->params[m->embed].w, &ids));
    TRY(op_rmsnorm_fwd(m->be, &h, &t.rstd1, NULL, &t.x, NULL, &m->params[m->layers[0].norm1].w,
                       eps));
    for (int64_t l = 0; l < a->L; l++) {
        TRY(layer_forward(m, l, &t, &segs));
        TRY(op_swiglu_fwd(m->be, &act, &t.gu));
        TRY(linear_fwd(m, &m->layers[l].down, &branch, &act));
        if (l + 1 == a->L) break;
        struct acts next = layer_acts(m, l + 1, T);
        TRY(op_rmsnorm_fwd(m->be, &h, &next.rstd1, &next.x, &t.x2, &branch,
                           &m->params[m->layers[l + 1].norm1].w, eps));
        t = next;
    }
    struct tensor xf = tensor_rows(&m->xf, 0, T), rstd = tensor_rows(&m->rstd_f, 0, T),
                  hf = tensor_rows(&m->hf, 0, T);
    struct tensor hsel = tensor_rows(&m->hsel, 0, b->N);
    TRY(op_rmsnorm_fwd(m->be, &hf, &rstd, &xf, &t.x2, &branch, &m->params[m->final_norm].w, eps));
    TRY(op_gather(m->be, &hsel, &hf, &src));
    m->batch = b;
    return 0;
}

int model_logp(struct model *m, const struct batch *b, double *logp, bool backward)
{
    const int64_t N = b->N;
    const struct tensor hsel = tensor_rows(&m->hsel, 0, N), target = tensor_rows(&m->target, 0, N);
    struct tensor lp = tensor_rows(&m->logp, 0, N), lse = tensor_rows(&m->lse, 0, N);
    BUG_IF(m->batch != b);
    m->has_kept = backward && m->kept.data;
    TRY(op_logp_fwd(m->be, &lp, &lse, m->has_kept ? &m->kept : NULL, &hsel, &m->params[m->head].w,
                    &target, &m->scratch));
    TRY(m->be->mem->to_host(m->be->cx, m->host, lp.data, N * dtype_size(DT_F32)));
    for (int32_t s = 0; s < b->S; s++) {
        logp[s] = 0;
        for (int32_t n = b->seq_start[s]; n < b->seq_start[s + 1]; n++)
            logp[s] += (double)m->host[n];
    }
    return 0;
}
