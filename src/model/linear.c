/* SPDX-License-Identifier: MIT */
#include "nf4.h"
#include "../base/rng.h"

/* One target of a linear layer: columns of y, rows of the stacked adapters. */
struct target {
    int64_t col, cols, a_row, b_row;
};

/* The next target after slice *j; false: none. *t holds the one before (zeroed at the start). */
static bool next_target(const struct model *m, const struct linear *l, int32_t *j, struct target *t)
{
    const struct param *w = &m->params[l->w];
    if (t->cols > 0) {
        t->a_row += m->arch.lora.rank;
        t->b_row += t->cols;
    }
    while (++*j < w->n_slices)
        if (l->lora_slices >> *j & 1) {
            t->col = w->slice[*j].row;
            t->cols = w->slice[*j].rows;
            return true;
        }
    return false;
}

/* The first T rows of a buffer [T_max, 3 rank] as [T, n rank], n the targets of l. */
static struct tensor adapter_rows(const struct model *m, const struct linear *l,
                                  const struct tensor *buffer, int64_t T)
{
    const struct tensor rows = tensor_rows(buffer, 0, T);
    return tensor_cols(&rows, 0, m->params[l->lora_a].w.dim[0]);
}

static struct dropout linear_dropout(const struct model *m, const struct linear *l)
{
    struct dropout d = m->drop;
    d.key = rng_u64(d.key, 0, (uint64_t)l->lora_a);
    return d;
}

/* m->lora_drop as [T, in] of l's A. */
static struct tensor dropped_rows(const struct model *m, const struct linear *l, int64_t T)
{
    return tensor_view(m->lora_drop.data, m->dtype, T, tensor_row(&m->params[l->lora_a].w), 1, 1);
}

/* What goes into A: x, or a copy without the elements that are dropped. Targets that read the same x drop the same. */
static int adapter_input(const struct model *m, const struct linear *l, struct tensor *in,
                         const struct tensor *x)
{
    *in = *x;
    if (m->drop.p == 0) return 0;
    const struct dropout d = linear_dropout(m, l);
    *in = dropped_rows(m, l, x->dim[0]);
    return op_dropout(m->be, in, x, &d, false);
}

/* y += scale (x A^T) B^T, target by target; x A^T is one product for all. */
static int adapters_fwd(const struct model *m, const struct linear *l, struct tensor *y,
                        const struct tensor *x)
{
    const struct tensor *a = &m->params[l->lora_a].w, *b = &m->params[l->lora_b].w;
    const int64_t r = m->arch.lora.rank;
    struct tensor xa = adapter_rows(m, l, &m->lora_x, x->dim[0]), in;
    struct target t = { 0 };
    TRY(adapter_input(m, l, &in, x));
    TRY(op_gemm(m->be, &xa, &in, false, a, true, NULL, 1, 0));
    for (int32_t j = -1; next_target(m, l, &j, &t);) {
        const struct tensor xt = tensor_cols(&xa, t.a_row, r), bt = tensor_rows(b, t.b_row, t.cols);
        struct tensor yt = tensor_cols(y, t.col, t.cols);
        TRY(op_gemm(m->be, &yt, &xt, false, &bt, true, NULL, (float)lora_scale(&m->arch.lora), 1));
    }
    return 0;
}

/* The weight as numbers: where it is, or made of its 4 bits in m->dense until the next one is. */
static int weight_of(const struct model *m, const struct linear *l, struct tensor *w)
{
    const struct param *p = &m->params[l->w];
    *w = p->w;
    if (!p->nf4) return 0;
    struct tensor flat = tensor_rows(&m->dense, 0, tensor_count(w)), scales;
    w->data = flat.data;
    TRY(nf4_scales(m, p, &scales));
    return op_nf4(m->be, &flat, &p->q, &scales);
}

int linear_fwd(const struct model *m, const struct linear *l, struct tensor *y,
               const struct tensor *x)
{
    struct tensor w;
    TRY(weight_of(m, l, &w));
    if (l->b >= 0)
        TRY(op_gemm_bias(m->be, y, x, &w, &m->params[l->b].w));
    else
        TRY(op_gemm(m->be, y, x, false, &w, true, NULL, 1, 0));
    if (!l->lora_slices) return 0;
    for (int64_t at = 0, T = x->dim[0], most = m->lora_x.dim[0]; at < T; at += most) {
        const struct tensor xs = tensor_rows(x, at, MIN(most, T - at));
        struct tensor ys = tensor_rows(y, at, MIN(most, T - at));
        TRY(adapters_fwd(m, l, &ys, &xs));
    }
    return 0;
}

int linear_bwd_input(const struct model *m, const struct linear *l, struct tensor *dx,
                     const struct tensor *dy)
{
    struct target t = { 0 };
    struct tensor w;
    TRY(weight_of(m, l, &w));
    TRY(op_gemm(m->be, dx, dy, false, &w, false, NULL, 1, 0));
    if (!l->lora_slices) return 0;
    const struct tensor *a = &m->params[l->lora_a].w, *b = &m->params[l->lora_b].w;
    struct tensor dxa = adapter_rows(m, l, &m->lora_dx, dy->dim[0]);
    for (int32_t j = -1; next_target(m, l, &j, &t);) {
        const struct tensor dyt = tensor_cols(dy, t.col, t.cols),
                            bt = tensor_rows(b, t.b_row, t.cols);
        struct tensor dt = tensor_cols(&dxa, t.a_row, m->arch.lora.rank);
        TRY(op_gemm(m->be, &dt, &dyt, false, &bt, false, NULL, (float)lora_scale(&m->arch.lora),
                    0));
    }
    if (m->drop.p == 0) return op_gemm(m->be, dx, &dxa, false, a, false, NULL, 1, 1);
    const struct dropout drop = linear_dropout(m, l);
    struct tensor din = dropped_rows(m, l, dy->dim[0]);
    TRY(op_gemm(m->be, &din, &dxa, false, a, false, NULL, 1, 0));
    return op_dropout(m->be, dx, &din, &drop, true);
}

/* dA += dxa^T x, dB += scale dy^T (x A^T), which is computed again */
static int adapters_bwd(const struct model *m, const struct linear *l, const struct tensor *dy,
                        const struct tensor *x)
{
    const struct tensor *a = &m->params[l->lora_a].w;
    const struct tensor dxa = adapter_rows(m, l, &m->lora_dx, dy->dim[0]);
    struct tensor xa = adapter_rows(m, l, &m->lora_x, x->dim[0]), da = model_grad(m, l->lora_a),
                  db = model_grad(m, l->lora_b), in;
    struct target t = { 0 };
    TRY(adapter_input(m, l, &in, x));
    TRY(op_gemm(m->be, &da, &dxa, true, &in, false, NULL, 1, 1));
    TRY(op_gemm(m->be, &xa, &in, false, a, true, NULL, 1, 0));
    for (int32_t j = -1; next_target(m, l, &j, &t);) {
        const struct tensor dyt = tensor_cols(dy, t.col, t.cols),
                            xt = tensor_cols(&xa, t.a_row, m->arch.lora.rank);
        struct tensor dbt = tensor_rows(&db, t.b_row, t.cols);
        TRY(op_gemm(m->be, &dbt, &dyt, true, &xt, false, NULL, (float)lora_scale(&m->arch.lora),
                    1));
    }
    return 0;
}

int linear_bwd_weight(const struct model *m, const struct linear *l, const struct tensor *dy,
                      const struct tensor *x)
{
    if (l->lora_slices) TRY(adapters_bwd(m, l, dy, x));
    if (!model_trains(m, l->w)) return 0;
    struct tensor dw = model_grad(m, l->w);
    if (l->b < 0) return op_gemm(m->be, &dw, dy, true, x, false, NULL, 1, 1);
    struct tensor db = model_grad(m, l->b);
    return op_gemm_bgrad(m->be, &dw, &db, dy, x);
}
