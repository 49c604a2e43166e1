/* SPDX-License-Identifier: MIT
 * ops_list.h - the one list of kernels. OP(name, parameters after `struct ctx *cx`). It expands to the slots of
 * struct ops, to the prototypes cpu_* and cuda_*, and to the tables. What each computes is written at op_* in ops.h. */
#define OPS(OP)                                                                                                       \
    OP(gemm, struct tensor *y, const struct tensor *a, bool ta, const struct tensor *b, bool tb,                      \
       const void *packed, float alpha, float beta)                                                                   \
    OP(pack_bytes, int64_t *bytes, const struct tensor *b, bool tb)                                                   \
    OP(pack, void *packed, const struct tensor *b, bool tb)                                                           \
    OP(gemm_bias, struct tensor *y, const struct tensor *a, const struct tensor *b, const struct tensor *bias)        \
    OP(gemm_bgrad, struct tensor *y, struct tensor *db, const struct tensor *a, const struct tensor *b)               \
    OP(gather, struct tensor *y, const struct tensor *x, const struct tensor *index)                                  \
    OP(put_rows, struct tensor *y, const struct tensor *x, const struct tensor *index)                                \
    OP(scatter_add, struct tensor *dx, const struct tensor *dy, const struct tensor *index)                           \
    OP(rmsnorm_fwd, struct tensor *y, struct tensor *rstd, struct tensor *sum, const struct tensor *x,                \
       const struct tensor *r, const struct tensor *w, float eps)                                                     \
    OP(rmsnorm_apply, struct tensor *y, const struct tensor *x, const struct tensor *rstd, const struct tensor *w)    \
    OP(rmsnorm_bwd, struct tensor *dx, struct tensor *dw, const struct tensor *dy, const struct tensor *x,            \
       const struct tensor *w, const struct tensor *rstd, struct tensor *scratch)                                     \
    OP(headnorm_fwd, struct tensor *y, struct tensor *rstd, const struct tensor *x, const struct tensor *w,           \
       float eps)                                                                                                     \
    OP(headnorm_bwd, struct tensor *dx, struct tensor *dw, const struct tensor *dy, const struct tensor *x,           \
       const struct tensor *w, const struct tensor *rstd, struct tensor *scratch)                                     \
    OP(rope, struct tensor *x, int32_t head_size, const struct tensor *pos, const struct tensor *table, bool inverse) \
    OP(attention_fwd, struct tensor *o, struct tensor *lse, const struct tensor *q, const struct tensor *k,           \
       const struct tensor *v, const struct segments *segs, int32_t head_size, float scale)                           \
    OP(attention_bwd, struct tensor *dq, struct tensor *dk, struct tensor *dv, const struct tensor *dout,             \
       const struct tensor *o, const struct tensor *lse, const struct tensor *q, const struct tensor *k,              \
       const struct tensor *v, const struct segments *segs, int32_t head_size, float scale)                           \
    OP(swiglu_fwd, struct tensor *y, const struct tensor *gu)                                                         \
    OP(swiglu_bwd, struct tensor *dgu, struct tensor *y, const struct tensor *dy, const struct tensor *gu)            \
    OP(logp_fwd, struct tensor *logp, struct tensor *lse, struct tensor *kept, const struct tensor *h,                \
       const struct tensor *w, const struct tensor *target, struct tensor *scratch)                                   \
    OP(logp_bwd, struct tensor *dh, struct tensor *dw, const struct tensor *coef, const struct tensor *lse,           \
       struct tensor *kept, const struct tensor *h, const struct tensor *w, const struct tensor *target,              \
       struct tensor *scratch)                                                                                        \
    OP(adamw, struct tensor *w, struct tensor *m, struct tensor *v, const struct tensor *g, const struct adamw *opt,  \
       struct tensor *low)                                                                                            \
    OP(sumsq, double *out, const struct tensor *x)                                                                    \
    OP(sumsq_blocks, double *out, const struct tensor *x, int64_t block)                                              \
    OP(add, struct tensor *y, const struct tensor *x)                                                                 \
    OP(cast, struct tensor *y, const struct tensor *x)                                                                \
    OP(nf4, struct tensor *y, const struct tensor *q, const struct tensor *absmax)                                    \
    OP(nf4_scales, struct tensor *absmax, const struct tensor *codes, const struct tensor *most)                      \
    OP(dropout, struct tensor *y, const struct tensor *x, const struct dropout *drop, bool add)                       \
    OP(fill, struct tensor *y, float value)
