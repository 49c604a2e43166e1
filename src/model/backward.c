/* SPDX-License-Identifier: MIT */
#include "layer.h"
#include "../base/watch.h"

/* Through the head: dhsel, the head's gradient, then dx = dL/d(input of the final norm). */
static int head_backward(struct model *m, const struct batch *b, const double *coef)
{
    const int64_t T = b->T, N = b->N;
    const struct tensor hsel = tensor_rows(&m->hsel, 0, N), target = tensor_rows(&m->target, 0, N);
    const struct tensor lse = tensor_rows(&m->lse, 0, N), src = tensor_rows(&m->src, 0, N);
    const struct tensor xf = tensor_rows(&m->xf, 0, T), rstd = tensor_rows(&m->rstd_f, 0, T);
    struct tensor cf = tensor_rows(&m->coef, 0, N), dhsel = tensor_rows(&m->dhsel, 0, N);
    struct tensor dx = tensor_rows(&m->dx, 0, T), dh = tensor_rows(&m->dh, 0, T);
    struct tensor dw, dnorm;
    for (int64_t n = 0; n < N; n++)
        m->host[n] = (float)coef[b->seq[n]];
    TRY(m->be->mem->to_device(m->be->cx, cf.data, m->host, N * dtype_size(DT_F32)));
    TRY(op_logp_bwd(m->be, &dhsel, model_grad_of(m, m->head, &dw), &cf, &lse,
                    m->has_kept ? &m->kept : NULL, &hsel, &m->params[m->head].w, &target,
                    &m->scratch));
    TRY(op_fill(m->be, &dh, 0));
    TRY(op_scatter_add(m->be, &dh, &dhsel, &src));
    TRY(op_fill(m->be, &dx, 0));
    return op_rmsnorm_bwd(m->be, &dx, model_grad_of(m, m->final_norm, &dnorm), &dh, &xf,
                          &m->params[m->final_norm].w, &rstd, &m->scratch);
}

/* dx as the products take it: rounded to the dtype of the activations where that is not float32. */
static int stream_gradient(const struct model *m, struct tensor *out, const struct tensor *dx)
{
    *out = *dx;
    if (m->dtype == DT_F32) return 0;
    *out = tensor_rows(&m->dxc, 0, dx->dim[0]);
    return op_cast(m->be, out, dx);
}

/* dx is dL/d(layer's output) and becomes dL/dx2. gu is overwritten with its own gradient, act's gradient with act. */
static int mlp_backward(struct model *m, const struct layer *y, struct acts *t)
{
    const int64_t T = t->x.dim[0];
    struct tensor dx = tensor_rows(&m->dx, 0, T), dh = tensor_rows(&m->dh, 0, T),
                  act = tensor_rows(&m->act, 0, T), h = tensor_rows(&m->h, 0, T);
    struct tensor dnorm, dout;
    TRY(stream_gradient(m, &dout, &dx));
    TRY(linear_bwd_input(m, &y->down, &act, &dout));
    TRY(op_swiglu_bwd(m->be, &t->gu, &act, &act, &t->gu));
    TRY(linear_bwd_weight(m, &y->down, &dout, &act));
    TRY(op_rmsnorm_apply(m->be, &h, &t->x2, &t->rstd2, &m->params[y->norm2].w));
    TRY(linear_bwd_input(m, &y->gate_up, &dh, &t->gu));
    TRY(linear_bwd_weight(m, &y->gate_up, &t->gu, &h));
    return op_rmsnorm_bwd(m->be, &dx, model_grad_of(m, y->norm2, &dnorm), &dh, &t->x2,
                          &m->params[y->norm2].w, &t->rstd2, &m->scratch);
}

static int headnorm_backward(struct model *m, const struct layer *y, struct acts *t,
                             struct tensor *dq, struct tensor *dk)
{
    struct tensor q_in, k_in, v, dqn, dkn;
    layer_qkv(&m->arch, &t->qkv, NULL, &q_in, &k_in, &v);
    TRY(op_headnorm_bwd(m->be, dq, model_grad_of(m, y->q_norm, &dqn), dq, &q_in,
                        &m->params[y->q_norm].w, &t->rstd_q, &m->scratch));
    return op_headnorm_bwd(m->be, dk, model_grad_of(m, y->k_norm, &dkn), dk, &k_in,
                           &m->params[y->k_norm].w, &t->rstd_k, &m->scratch);
}

/* dx is dL/dx2 and becomes dL/dx. */
static int attention_backward(struct model *m, const struct layer *y, struct acts *t,
                              const struct segments *segs)
{
    const struct arch *a = &m->arch;
    const int64_t T = t->x.dim[0];
    const int32_t D = (int32_t)a->D;
    const struct tensor pos = tensor_rows(&m->pos, 0, T);
    struct tensor dx = tensor_rows(&m->dx, 0, T), dh = tensor_rows(&m->dh, 0, T),
                  h = tensor_rows(&m->h, 0, T);
    struct tensor datt = tensor_rows(&m->datt, 0, T), dqkv = tensor_rows(&m->dqkv, 0, T);
    struct tensor dnorm, dout, q, k, v, dq, dk, dv;
    layer_qkv(a, &t->qkv, a->qk_norm ? &t->qk : NULL, &q, &k, &v);
    layer_qkv(a, &dqkv, NULL, &dq, &dk, &dv);
    TRY(stream_gradient(m, &dout, &dx));
    TRY(linear_bwd_input(m, &y->o, &datt, &dout));
    TRY(linear_bwd_weight(m, &y->o, &dout, &t->att));
    TRY(op_attention_bwd(m->be, &dq, &dk, &dv, &datt, &t->att, &t->lse, &q, &k, &v, segs, D,
                         layer_scale(a)));
    TRY(layer_rope(m, &dqkv, &pos, true));
    if (a->qk_norm) TRY(headnorm_backward(m, y, t, &dq, &dk));
    TRY(op_rmsnorm_apply(m->be, &h, &t->x, &t->rstd1, &m->params[y->norm1].w));
    TRY(linear_bwd_input(m, &y->qkv, &dh, &dqkv));
    TRY(linear_bwd_weight(m, &y->qkv, &dqkv, &h));
    return op_rmsnorm_bwd(m->be, &dx, model_grad_of(m, y->norm1, &dnorm), &dh, &t->x,
                          &m->params[y->norm1].w, &t->rstd1, &m->scratch);
}

/* The same kernels on the same numbers as in the forward, so that the bits are the same. */
static int layer_recompute(struct model *m, int64_t l, struct acts *t, const struct segments *segs)
{
    struct tensor h = tensor_rows(&m->h, 0, t->x.dim[0]);
    TRY(op_rmsnorm_apply(m->be, &h, &t->x, &t->rstd1, &m->params[m->layers[l].norm1].w));
    return layer_forward(m, l, t, segs);
}

/* The layer before last was the last one to write there. */
static int clear_window(const struct model *m, const struct layer *y)
{
    const struct param *first = &m->params[y->norm1], *last = &m->params[y->end - 1];
    struct tensor window = tensor_rows(&m->grads, first->grad_at,
                                       last->grad_at + tensor_count(&last->w) - first->grad_at);
    return op_fill(m->be, &window, 0);
}

static int layer_backward(struct model *m, int64_t l, int64_t T, const struct segments *segs)
{
    struct acts t = layer_acts(m, l, T);
    watch_beat();
    if (m->grad_windows) TRY(clear_window(m, &m->layers[l]));
    if (l < m->first_kept) TRY(layer_recompute(m, l, &t, segs));
    TRY(mlp_backward(m, &m->layers[l], &t));
    return attention_backward(m, &m->layers[l], &t, segs);
}

/* Of parameters [first, end) those that are trained are final. */
static int report(const struct model *m, model_ready_fn *ready, void *payload, int32_t first,
                  int32_t end)
{
    return ready && end > first && model_trains(m, first) ? ready(payload, first, end - first) : 0;
}

int model_backward(struct model *m, const struct batch *b, const double *coef,
                   model_ready_fn *ready, void *payload)
{
    const struct segments segs = batch_segments(b);
    const struct tensor ids = tensor_rows(&m->ids, 0, b->T), dx = tensor_rows(&m->dx, 0, b->T);
    BUG_IF(m->batch != b);
    m->batch = NULL; /* activations are used up */
    TRY(head_backward(m, b, coef));
    TRY(report(m, ready, payload, m->final_norm, m->n_base));
    for (int64_t l = m->arch.L - 1; l >= 0; l--) {
        const struct layer *y = &m->layers[l];
        TRY(layer_backward(m, l, b->T, &segs));
        TRY(report(m, ready, payload, y->norm1, y->end));
        TRY(report(m, ready, payload, y->lora, y->lora_end));
    }
    if (!model_trains(m, m->embed)) return 0;
    struct tensor dembed = model_grad(m, m->embed);
    TRY(op_scatter_add(m->be, &dembed, &dx, &ids));
    return report(m, ready, payload, m->embed, m->embed + 1);
}
