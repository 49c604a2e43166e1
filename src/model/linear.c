/* SPDX-License-Identifier: MIT */
#include "model.h"

int linear_fwd(const struct model *m, const struct linear *l, struct tensor *y,
               const struct tensor *x)
{
    TRY(op_gemm(m->be, y, x, false, &m->params[l->w].w, true, NULL, 1, 0));
    return l->b < 0 ? 0 : op_bias_fwd(m->be, y, &m->params[l->b].w);
}

int linear_bwd_input(const struct model *m, const struct linear *l, struct tensor *dx,
                     const struct tensor *dy)
{
    return op_gemm(m->be, dx, dy, false, &m->params[l->w].w, false, NULL, 1, 0);
}

int linear_bwd_weight(const struct model *m, const struct linear *l, const struct tensor *dy,
                      const struct tensor *x)
{
    struct tensor dw = model_grad(m, l->w);
    TRY(op_gemm(m->be, &dw, dy, true, x, false, NULL, 1, 1));
    if (l->b < 0) return 0;
    struct tensor db = model_grad(m, l->b);
    return op_bias_bwd(m->be, &db, dy);
}
