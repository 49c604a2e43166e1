/* SPDX-License-Identifier: MIT
 * ref_ops.h - the ops of src/ops/ops.h as plain loops in double: what every backend is compared
 * with. Arrays are contiguous; what is += and what is = follows ops.h. */
#ifndef BDPO_REF_OPS_H
#define BDPO_REF_OPS_H
#include "../src/ops/ops.h"

void ref_gemm(double *y, const double *a, bool ta, const double *b, bool tb, int64_t M, int64_t N,
              int64_t K, double alpha, double beta);
void ref_bias_fwd(double *y, const double *b, int64_t T, int64_t N);
void ref_bias_bwd(double *db, const double *dy, int64_t T, int64_t N);
void ref_gather(double *y, const double *x, const int32_t *index, int64_t n, int64_t C);
void ref_scatter_add(double *dx, const double *dy, const int32_t *index, int64_t n, int64_t C);
/* sum and r may be NULL; s is x + r. A head norm of [T, n*D] is this on [T*n, D]. */
void ref_rmsnorm_fwd(double *y, double *rstd, double *sum, const double *x, const double *r,
                     const double *w, double eps, int64_t T, int64_t C);
/* dx += , dw += */
void ref_rmsnorm_bwd(double *dx, double *dw, const double *dy, const double *s, const double *w,
                     const double *rstd, int64_t T, int64_t C);
/* x[T, n*D], table [positions, 2, D/2] */
void ref_rope(double *x, const int32_t *pos, const double *table, int64_t T, int64_t n, int64_t D,
              bool inverse);
struct ref_att {
    const struct segments *segs;
    int64_t H, K, D;
    double scale;
};
void ref_attention_fwd(double *o, double *lse, const double *q, const double *k, const double *v,
                       const struct ref_att *a);
/* dq, dk, dv = ; all their rows that a segment owns. Works from q, k, v and dout alone. */
void ref_attention_bwd(double *dq, double *dk, double *dv, const double *dout, const double *q,
                       const double *k, const double *v, const struct ref_att *a);
void ref_swiglu_fwd(double *y, const double *gu, int64_t T, int64_t F);
void ref_swiglu_bwd(double *dgu, const double *dy, const double *gu, int64_t T, int64_t F);
void ref_logp_fwd(double *logp, double *lse, const double *h, const double *w,
                  const int32_t *target, int64_t N, int64_t C, int64_t V);
/* dh = , dw += */
void ref_logp_bwd(double *dh, double *dw, const double *coef, const double *h, const double *w,
                  const int32_t *target, int64_t N, int64_t C, int64_t V);
void ref_adamw(double *w, double *m, double *v, const double *g, const struct adamw *opt,
               int64_t n);
double ref_sumsq(const double *x, int64_t n);
/* y += x */
void ref_add(double *y, const double *x, int64_t n);
#endif
