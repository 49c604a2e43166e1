/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include "op_rows.h"
#include "ref_ops.h"

#define OK(expr) assert_int_equal((expr), 0)

/* --- one function per op: makes its tensors, runs it, and asks the oracle
 * ------------------------------------------ */
static void run_gemm(struct op_run *r, const int64_t *d) /* M N K ta tb form pad */
/* form: 0 y = in the activations' dtype, 1 y += in float, 2 y = in float, 3 y += in the activations' dtype, 4 y = in float with b in
 * bfloat16 (on a device: of the activations' dtype) */
{
    const int64_t M = d[0], N = d[1], K = d[2], pad = d[6];
    const bool ta = d[3], tb = d[4];
    struct tensor *a = op_run_act(r, BOX_INPUT, ta ? K : M, ta ? M : K, pad, 1);
    const enum dtype A = r->act;
    if (d[5] == 4 && !r->be->net) r->act = DT_BF16;
    struct tensor *b = op_run_act(r, BOX_INPUT, tb ? N : K, tb ? K : N, pad, 1);
    r->act = A;
    const double beta = d[5] % 2;
    struct tensor *y = (d[5] == 0 || d[5] == 3 ? op_run_act : op_run_f32)(
        r, beta == 1 ? BOX_INOUT : BOX_OUTPUT, M, N, pad, 1);
    double *want = op_run_double(r, y);
    ref_gemm(want, op_run_double(r, a), ta, op_run_double(r, b), tb, M, N, K, 0.5, beta);
    OK(op_gemm(r->be, y, a, ta, b, tb, NULL, 0.5f, (float)beta));
    op_run_expect(r, y, want, 2, K, 0);
}

static void
run_bias(struct op_run *r,
         const int64_t *d) /* T N K pad form: 1 the weight in bfloat16 (not on a device) */
{
    const int64_t T = d[0], N = d[1], K = d[2], pad = d[3];
    const enum dtype A = r->act;
    struct tensor *x = op_run_act(r, BOX_INPUT, T, K, pad, 1),
                  *bias = op_run_act(r, BOX_INPUT, N, 1, 0, 1),
                  *dy = op_run_act(r, BOX_INPUT, T, N, pad, 1);
    if (d[4] == 1 && !r->be->net) r->act = DT_BF16;
    struct tensor *w = op_run_act(r, BOX_INPUT, N, K, pad, 1);
    r->act = A;
    struct tensor *y = op_run_act(r, BOX_OUTPUT, T, N, pad, 1),
                  *dw = op_run_f32(r, BOX_INOUT, N, K, pad, 1),
                  *db = op_run_f32(r, BOX_INOUT, N, 1, 0, 1);
    double *wy = op_run_zeros(r, T * N), *ww = op_run_double(r, dw), *wb = op_run_double(r, db),
           *rx = op_run_double(r, x), *rdy = op_run_double(r, dy);
    ref_gemm(wy, rx, false, op_run_double(r, w), true, T, N, K, 1, 0);
    ref_bias_fwd(wy, op_run_double(r, bias), T, N);
    ref_gemm(ww, rdy, true, rx, false, N, K, T, 1, 1);
    ref_bias_bwd(wb, rdy, T, N);
    OK(op_gemm_bias(r->be, y, x, w, bias));
    OK(op_gemm_bgrad(r->be, dw, db, dy, x));
    op_run_expect(r, y, wy, 2, K, 1);
    op_run_expect(r, dw, ww, 2, T, 1);
    op_run_expect(r, db, wb, 1, T, 1);
}

static void run_gather(struct op_run *r, const int64_t *d) /* n rows C */
{
    struct tensor *x = op_run_act(r, BOX_INPUT, d[1], d[2], 0, 1),
                  *at = op_run_index(r, d[0], d[1]);
    struct tensor *y = op_run_act(r, BOX_OUTPUT, d[0], d[2], 0, 1),
                  *dy = op_run_act(r, BOX_INPUT, d[0], d[2], 0, 1);
    struct tensor *dx = op_run_f32(r, BOX_INOUT, d[1], d[2], 0, 1),
                  *dxa = op_run_act(r, BOX_INOUT, d[1], d[2], 0, 1);
    double *wy = op_run_zeros(r, d[0] * d[2]), *wx = op_run_double(r, dx),
           *wxa = op_run_double(r, dxa);
    ref_gather(wy, op_run_double(r, x), op_run_indices(r, at), d[0], d[2]);
    ref_scatter_add(wx, op_run_double(r, dy), op_run_indices(r, at), d[0], d[2]);
    ref_scatter_add(wxa, op_run_double(r, dy), op_run_indices(r, at), d[0], d[2]);
    OK(op_gather(r->be, y, x, at));
    OK(op_scatter_add(r->be, dx, dy, at));
    OK(op_scatter_add(r->be, dxa, dy, at));
    op_run_expect(r, y, wy, 0, 1, 0);
    op_run_expect(r, dx, wx, 1, d[0], 0);
    op_run_expect_rounded(r, dxa, wxa, 1, d[0], 0);
}

static void run_put_rows(struct op_run *r, const int64_t *d) /* n rows C pad */
{
    struct tensor *x = op_run_act(r, BOX_INPUT, d[0], d[2], d[3], 1),
                  *at = op_run_distinct(r, d[0], d[1]),
                  *y = op_run_act(r, BOX_INOUT, d[1], d[2], 0, 1);
    double *want = op_run_double(r, y), *from = op_run_double(r, x);
    const int32_t *to = op_run_indices(r, at);
    for (int64_t i = 0; i < d[0]; i++)
        memcpy(want + to[i] * d[2], from + i * d[2], (size_t)d[2] * sizeof *want);
    OK(op_put_rows(r->be, y, x, at));
    op_run_expect(r, y, want, 0, 1, 0);
    op_run_exact(r, y);
}

static struct tensor *run_scratch(struct op_run *r, int64_t bytes)
{
    return op_run_f32(r, BOX_OUTPUT, div_up(bytes, 4), 1, 0, 1);
}

static void assert_same(struct op_run *r, const struct tensor *a, const struct tensor *b)
{
    const size_t n = (size_t)tensor_count(a);
    assert_memory_equal(op_run_double(r, a), op_run_double(r, b), n * sizeof(double));
}

static void run_rmsnorm(struct op_run *r,
                        const int64_t *d) /* T C form: 0 x alone, 1 sum, 2 sum is x, 3 sum is r */
{
    const int64_t T = d[0], C = d[1];
    struct tensor *x = op_run_act(r, d[2] == 2 ? BOX_INOUT : BOX_INPUT, T, C, 0, 1);
    struct tensor *res = d[2] ? op_run_act(r, d[2] == 3 ? BOX_INOUT : BOX_INPUT, T, C, 0, 1) : NULL;
    struct tensor *sum = d[2] == 1 ? op_run_act(r, BOX_OUTPUT, T, C, 0, 1) : d[2] == 2 ? x : res;
    struct tensor *w = op_run_act(r, BOX_INPUT, C, 1, 0, 1),
                  *y = op_run_act(r, BOX_OUTPUT, T, C, 0, 1);
    struct tensor *rstd = op_run_f32(r, BOX_OUTPUT, T, 1, 0, 1),
                  *dy = op_run_act(r, BOX_INPUT, T, C, 0, 1);
    struct tensor *dx = op_run_f32(r, BOX_INOUT, T, C, 0, 1),
                  *dw = op_run_f32(r, BOX_INOUT, C, 1, 0, 1);
    struct tensor *scratch = run_scratch(r, op_rmsnorm_bwd_scratch(T, C));
    struct tensor *dxa = op_run_act(r, BOX_INOUT, T, C, 0, 1),
                  *dwa = op_run_f32(r, BOX_INOUT, C, 1, 0, 1);
    struct tensor *again = op_run_act(r, BOX_OUTPUT, T, C, 0, 1),
                  *dxn = op_run_f32(r, BOX_INOUT, T, C, 0, 1);
    double *wdxn = op_run_double(r, dxn);
    double *wy = op_run_zeros(r, T * C), *ws = op_run_double(r, x), *wr = op_run_zeros(r, T),
           *rw = op_run_double(r, w), *rdy = op_run_double(r, dy);
    double *wdx = op_run_double(r, dx), *wdw = op_run_double(r, dw), *wdxa = op_run_double(r, dxa),
           *wdwa = op_run_double(r, dwa);
    if (res) ref_add(ws, op_run_double(r, res), T * C);
    op_run_round(r, ws, T * C); /* what is normed is the sum as it is stored */
    ref_rmsnorm_fwd(wy, wr, NULL, ws, NULL, rw, 1e-6, T, C);
    ref_rmsnorm_bwd(wdx, wdw, rdy, ws, rw, wr, T, C);
    ref_rmsnorm_bwd(wdxa, wdwa, rdy, ws, rw, wr, T, C);
    ref_rmsnorm_bwd(wdxn, op_run_zeros(r, C), rdy, ws, rw, wr, T, C);
    /* of one element nothing is left but the difference of two terms */
    const double size = C == 1 ? 4 * wr[0] : 0;
    OK(op_rmsnorm_fwd(r->be, y, rstd, sum, x, res, w, 1e-6f));
    OK(op_rmsnorm_apply(r->be, again, res ? sum : x, rstd, w));
    assert_same(r, again, y);
    op_run_expect(r, again, wy, 4, 1, 0);
    OK(op_rmsnorm_bwd(r->be, dx, dw, dy, res ? sum : x, w, rstd, scratch));
    OK(op_rmsnorm_bwd(r->be, dxa, dwa, dy, res ? sum : x, w, rstd, scratch));
    OK(op_rmsnorm_bwd(r->be, dxn, NULL, dy, res ? sum : x, w, rstd, scratch));
    op_run_expect(r, y, wy, 4, 1, 0);
    op_run_expect(r, rstd, wr, 4, 1, 0);
    if (res) op_run_expect(r, sum, ws, 1, 1, 0);
    op_run_expect(r, dx, wdx, 4, 1, size);
    op_run_expect(r, dw, wdw, 2, T, 0);
    op_run_expect(r, dxa, wdxa, 4, 1, size);
    op_run_expect(r, dwa, wdwa, 2, T, 0);
    op_run_expect(r, dxn, wdxn, 4, 1, size);
}

static void run_headnorm(struct op_run *r, const int64_t *d) /* T n D pad in_place */
{
    const int64_t T = d[0], n = d[1], D = d[2];
    struct tensor *x = op_run_act(r, BOX_INPUT, T, n * D, d[3], 1),
                  *w = op_run_act(r, BOX_INPUT, D, 1, 0, 1);
    struct tensor *y = op_run_act(r, BOX_INOUT, T, n * D, d[3] + 1, 1),
                  *rstd = op_run_f32(r, BOX_OUTPUT, T, n, 0, 1);
    struct tensor *dy = op_run_act(r, d[4] ? BOX_INOUT : BOX_INPUT, T, n * D, d[3], 1);
    struct tensor *dx = d[4] ? dy : op_run_act(r, BOX_OUTPUT, T, n * D, d[3] + 2, 1);
    struct tensor *dxn = d[4] ? NULL : op_run_act(r, BOX_OUTPUT, T, n * D, d[3], 1);
    struct tensor *dw = op_run_f32(r, BOX_INOUT, D, 1, 0, 1),
                  *scratch = run_scratch(r, op_headnorm_bwd_scratch(T, D));
    double *rx = op_run_double(r, d[4] ? y : x), *rw = op_run_double(r, w),
           *wy = op_run_zeros(r, T * n * D);
    double *wr = op_run_zeros(r, T * n), *wdx = op_run_zeros(r, T * n * D),
           *wdw = op_run_double(r, dw);
    ref_rmsnorm_fwd(wy, wr, NULL, rx, NULL, rw, 1e-6, T * n, D);
    ref_rmsnorm_bwd(wdx, wdw, op_run_double(r, dy), op_run_double(r, x), rw, wr, T * n, D);
    OK(op_headnorm_fwd(r->be, y, rstd, d[4] ? y : x, w, 1e-6f));
    op_run_expect(r, y, wy, 4, 1, 0);
    op_run_expect(r, rstd, wr, 4, 1, 0);
    if (d[4]) return; /* the forward's input is gone */
    OK(op_headnorm_bwd(r->be, dxn, NULL, dy, x, w, rstd, scratch));
    OK(op_headnorm_bwd(r->be, dx, dw, dy, x, w, rstd, scratch));
    op_run_expect(r, dxn, wdx, 4, 1, 0);
    op_run_expect(r, dx, wdx, 4, 1, 0);
    op_run_expect(r, dw, wdw, 2, T * n, 0);
}

static void run_headnorm_alias(struct op_run *r, const int64_t *d) /* T n D: dx is dy */
{
    const int64_t T = d[0], n = d[1], D = d[2];
    struct tensor *x = op_run_act(r, BOX_INPUT, T, n * D, 5, 1),
                  *w = op_run_act(r, BOX_INPUT, D, 1, 0, 1);
    struct tensor *y = op_run_act(r, BOX_OUTPUT, T, n * D, 0, 1),
                  *rstd = op_run_f32(r, BOX_OUTPUT, T, n, 0, 1);
    struct tensor *dy = op_run_act(r, BOX_INOUT, T, n * D, 3, 1),
                  *dw = op_run_f32(r, BOX_INOUT, D, 1, 0, 1);
    struct tensor *scratch = run_scratch(r, op_headnorm_bwd_scratch(T, D));
    double *rx = op_run_double(r, x), *rw = op_run_double(r, w), *wy = op_run_zeros(r, T * n * D),
           *wr = op_run_zeros(r, T * n);
    double *wdx = op_run_zeros(r, T * n * D), *wdw = op_run_double(r, dw);
    ref_rmsnorm_fwd(wy, wr, NULL, rx, NULL, rw, 1e-6, T * n, D);
    ref_rmsnorm_bwd(wdx, wdw, op_run_double(r, dy), rx, rw, wr, T * n, D);
    OK(op_headnorm_fwd(r->be, y, rstd, x, w, 1e-6f));
    OK(op_headnorm_bwd(r->be, dy, dw, dy, x, w, rstd, scratch));
    op_run_expect(r, dy, wdx, 4, 1, 0);
    op_run_expect(r, dw, wdw, 2, T * n, 0);
}

static void run_rope(struct op_run *r, const int64_t *d) /* T n D pad inverse */
{
    const int64_t T = d[0], n = d[1], D = d[2], positions = 50;
    struct tensor *x = op_run_act(r, BOX_INOUT, T, n * D, d[3], 1),
                  *pos = op_run_index(r, T, positions);
    struct tensor *flat = op_run_f32(r, BOX_INPUT, positions, D, 0, 1);
    struct tensor table = tensor_view(flat->data, DT_F32, positions, 2, D / 2, 1);
    double *want = op_run_double(r, x);
    ref_rope(want, op_run_indices(r, pos), op_run_double(r, flat), T, n, D, d[4]);
    OK(op_rope(r->be, x, (int32_t)D, pos, &table, d[4]));
    op_run_expect(r, x, want, 2, 1, 0);
}

static void run_swiglu(struct op_run *r,
                       const int64_t *d) /* T F form: 1 dgu is gu, 2 and y is dy, 3 no y */
{
    const int64_t T = d[0], F = d[1];
    struct tensor *gu = op_run_act(r, d[2] ? BOX_INOUT : BOX_INPUT, T, 2 * F, 0, 5);
    struct tensor *y = op_run_act(r, BOX_OUTPUT, T, F, 0, 1),
                  *dy = op_run_act(r, d[2] == 2 ? BOX_INOUT : BOX_INPUT, T, F, 0, 1);
    struct tensor *again = d[2] == 2   ? dy
                           : d[2] == 3 ? NULL
                                       : op_run_act(r, BOX_OUTPUT, T, F, 0, 1);
    struct tensor *dgu = d[2] ? gu : op_run_act(r, BOX_OUTPUT, T, 2 * F, 0, 1);
    double *rgu = op_run_double(r, gu), *wy = op_run_zeros(r, T * F),
           *wd = op_run_zeros(r, T * 2 * F);
    ref_swiglu_fwd(wy, rgu, T, F);
    ref_swiglu_bwd(wd, op_run_double(r, dy), rgu, T, F);
    OK(op_swiglu_fwd(r->be, y, gu));
    OK(op_swiglu_bwd(r->be, dgu, again, dy, gu));
    op_run_expect(r, y, wy, 4, 1, 0);
    if (again) {
        op_run_expect(r, again, wy, 4, 1, 0);
        assert_same(r, again, y);
    }
    op_run_expect(r, dgu, wd, 4, 1, 0);
}

static void run_logp(struct op_run *r, const int64_t *d) /* N C V spread/100 */
{
    const int64_t N = d[0], C = d[1], V = d[2];
    const double spread = (double)d[3] / 100;
    struct tensor *h = op_run_act(r, BOX_INPUT, N, C, 0, 1),
                  *w = op_run_act(r, BOX_INPUT, V, C, 0, spread);
    struct tensor *at = op_run_index(r, N, V), *coef = op_run_f32(r, BOX_INPUT, N, 1, 0, 1);
    struct tensor *logp = op_run_f32(r, BOX_OUTPUT, N, 1, 0, 1),
                  *lse = op_run_f32(r, BOX_OUTPUT, N, 1, 0, 1);
    struct tensor *dh = op_run_act(r, BOX_OUTPUT, N, C, 0, 1),
                  *dw = op_run_f32(r, BOX_INOUT, V, C, 0, 1),
                  *dh3 = op_run_act(r, BOX_OUTPUT, N, C, 0, 1);
    struct tensor *logp2 = op_run_f32(r, BOX_OUTPUT, N, 1, 0, 1),
                  *lse2 = op_run_f32(r, BOX_OUTPUT, N, 1, 0, 1),
                  *dh2 = op_run_act(r, BOX_OUTPUT, N, C, 0, 1),
                  *dw2 = op_run_f32(r, BOX_INOUT, V, C, 0, 1);
    /* the second pair has a scratch of its own: nothing of the forward stays there */
    struct tensor *scratch = run_scratch(r, op_logp_scratch(N, C, V, r->act)),
                  *scratch2 = run_scratch(r, op_logp_scratch(N, C, V, r->act)),
                  *kept = run_scratch(r, op_logp_kept(N, V, r->act));
    double *rh = op_run_double(r, h), *rw = op_run_double(r, w), *wp = op_run_zeros(r, N),
           *wl = op_run_zeros(r, N);
    double *wdh = op_run_zeros(r, N * C), *wdw = op_run_double(r, dw),
           *wdh2 = op_run_zeros(r, N * C), *wdw2 = op_run_double(r, dw2);
    ref_logp_fwd(wp, wl, rh, rw, op_run_indices(r, at), N, C, V);
    ref_logp_bwd(wdh, wdw, op_run_double(r, coef), rh, rw, op_run_indices(r, at), N, C, V);
    ref_logp_bwd(wdh2, wdw2, op_run_double(r, coef), rh, rw, op_run_indices(r, at), N, C, V);
    OK(op_logp_fwd(r->be, logp, lse, NULL, h, w, at, scratch));
    OK(op_logp_bwd(r->be, dh, dw, coef, lse, NULL, h, w, at, scratch));
    OK(op_logp_bwd(r->be, dh3, NULL, coef, lse, NULL, h, w, at, scratch));
    OK(op_logp_fwd(r->be, logp2, lse2, kept, h, w, at, scratch));
    OK(op_logp_bwd(r->be, dh2, dw2, coef, lse2, kept, h, w, at, scratch2));
    op_run_expect(r, logp, wp, 1, C, 0);
    op_run_expect(r, lse, wl, 1, C, 0);
    op_run_expect_rounded(r, dh, wdh, 4, C, 0);
    op_run_expect_rounded(r, dh3, wdh, 4, C, 0);
    op_run_expect_rounded(r, dw, wdw, 4, C, 0);
    op_run_expect(r, logp2, wp, 1, C, 0);
    op_run_expect(r, lse2, wl, 1, C, 0);
    op_run_expect_rounded(r, dh2, wdh2, 4, C, 0);
    op_run_expect_rounded(r, dw2, wdw2, 4, C, 0);
}

static void run_adamw(struct op_run *r, const int64_t *d) /* n steps */
{
    const int64_t n = d[0];
    struct tensor *w = op_run_f32(r, BOX_INOUT, n, 1, 0, 1),
                  *m = op_run_f32(r, BOX_INOUT, n, 1, 0, 0);
    struct tensor *v = op_run_f32(r, BOX_INOUT, n, 1, 0, 0),
                  *g = op_run_f32(r, BOX_INPUT, n, 1, 0, 3);
    double *rw = op_run_double(r, w), *rm = op_run_double(r, m), *rv = op_run_double(r, v),
           *rg = op_run_double(r, g);
    for (int64_t s = 1; s <= d[1]; s++) {
        const struct adamw opt = { .lr = 0.01,
                                   .beta1 = 0.9,
                                   .beta2 = 0.999,
                                   .eps = 1e-8,
                                   .weight_decay = 0.1,
                                   .step = s,
                                   .grad_scale = 0.25 / (double)s };
        ref_adamw(rw, rm, rv, rg, &opt, n);
        OK(op_adamw(r->be, w, m, v, g, &opt, NULL));
    }
    op_run_expect(r, w, rw, 2, d[1], 0);
    op_run_expect(r, m, rm, 2, d[1], 0);
    op_run_expect(r, v, rv, 2, d[1], 0);
}

static void run_flat(struct op_run *r, const int64_t *d) /* n: sumsq, add, fill, cast */
{
    const int64_t n = d[0];
    struct tensor *x = op_run_f32(r, BOX_INPUT, n, 1, 0, 1),
                  *y = op_run_f32(r, BOX_INOUT, n, 1, 0, 1);
    struct tensor *xa = op_run_act(r, BOX_INPUT, n, 1, 0, 1),
                  *ya = op_run_act(r, BOX_INOUT, n, 1, 0, 1);
    struct tensor *f = op_run_f32(r, BOX_OUTPUT, n, 1, 0, 1),
                  *fa = op_run_act(r, BOX_OUTPUT, n, 1, 0, 1);
    struct tensor *wide = op_run_f32(r, BOX_OUTPUT, n, 1, 0, 1),
                  *narrow = op_run_act(r, BOX_OUTPUT, n, 1, 0, 1);
    struct tensor *out = op_run_f32(r, BOX_INOUT, 2, 1, 0, 0);
    double *rx = op_run_double(r, x), *wy = op_run_double(r, y), *wf = op_run_zeros(r, n), s = 0;
    double *rxa = op_run_double(r, xa), *wya = op_run_double(r, ya), *wn = op_run_double(r, x);
    ref_add(wy, rx, n);
    ref_add(wy, rxa, n);
    ref_add(wya, rx, n);
    op_run_round(r, wya, n);
    ref_add(wya, rxa, n);
    op_run_round(r, wn, n);
    for (int64_t i = 0; i < n; i++)
        wf[i] = -2.5;
    OK(op_sumsq(r->be, &s, x));
    const int64_t size = n > 3000 ? 1024 : 37, blocks = div_up(n, size);
    double *of = op_run_zeros(r, blocks);
    OK(op_sumsq_blocks(r->be, of, x, size));
    for (int64_t b = 0; b < blocks; b++) {
        const double want = ref_sumsq(rx + b * size, MIN(size, n - b * size));
        assert_true(fabs(of[b] - want) <= 1e-14 * sqrt((double)size) * want);
    }
    OK(op_add(r->be, y, x));
    OK(op_add(r->be, y, xa));
    OK(op_add(r->be, ya, x));
    OK(op_add(r->be, ya, xa));
    OK(op_fill(r->be, f, -2.5f));
    OK(op_fill(r->be, fa, -2.5f));
    OK(op_cast(r->be, wide, xa));
    OK(op_cast(r->be, narrow, x));
    const double want = ref_sumsq(rx, n);
    assert_true(fabs(s - want) <= 1e-14 * sqrt((double)n) * want);
    for (int64_t b = 0; b < blocks; b++)
        s += of[b] * (double)(b % 13 + 1);
    op_run_put(r, out, &s, sizeof s); /* its bits join the digest */
    op_run_expect(r, y, wy, 2, 1, 0);
    op_run_expect(r, ya, wya, 2, 1, 0);
    op_run_expect(r, f, wf, 0, 1, 0);
    op_run_expect(r, fa, wf, 0, 1, 0);
    op_run_expect(r, wide, rxa, 0, 1, 0);
    op_run_expect(r, narrow, wn, 0, 1, 0);
    op_run_exact(r, fa);
    op_run_exact(r, narrow);
}

/* --- attention: layouts of segments
 * --------------------------------------------------------------------------------- */
struct layout {
    const char *name;
    int32_t n, n_groups, T, Tk;
    struct segment seg[8];
    int32_t group[4];
};
static const struct layout layouts[] = {
    /* seg: q, len, own, prefix, prefix_len */
    { "one", 1, 1, 1, 1, { { 0, 1, 0, 0, 0 } }, { 0, 1 } },
    { "long", 1, 1, 131, 131, { { 0, 131, 0, 0, 0 } }, { 0, 1 } },
    { "pair",
      3,
      1,
      168,
      168,
      { { 0, 70, 0, 0, 0 }, { 70, 33, 70, 0, 70 }, { 103, 65, 103, 0, 70 } },
      { 0, 3 } },
    { "two pairs",
      6,
      2,
      268,
      268,
      { { 0, 5, 0, 0, 0 },
        { 5, 3, 5, 0, 5 },
        { 8, 1, 8, 0, 5 },
        { 9, 64, 9, 0, 0 },
        { 73, 64, 73, 9, 64 },
        { 137, 131, 137, 9, 64 } },
      { 0, 3, 6 } },
    { "prompt, 1, 1",
      3,
      1,
      42,
      42,
      { { 0, 40, 0, 0, 0 }, { 40, 1, 40, 0, 40 }, { 41, 1, 41, 0, 40 } },
      { 0, 3 } },
    { "empty segments",
      4,
      3,
      3,
      3,
      { { 0, 0, 0, 0, 0 }, { 0, 3, 0, 0, 0 }, { 3, 0, 3, 0, 3 }, { 3, 0, 3, 0, 0 } },
      { 0, 1, 3, 4 } },
    { "none", 0, 0, 0, 0, { { 0, 0, 0, 0, 0 } }, { 0 } },
    /* from here the prefix is a cache that no segment owns: forward only */
    { "decode",
      3,
      3,
      3,
      600,
      { { 0, 1, 199, 0, 199 }, { 1, 1, 264, 200, 64 }, { 2, 1, 400, 0, 0 } },
      { 0, 1, 2, 3 } },
    { "prefill on",
      2,
      2,
      75,
      300,
      { { 0, 10, 77, 0, 77 }, { 10, 65, 220, 150, 70 } },
      { 0, 1, 2 } },
};
enum { LAYOUT_FWD_ONLY = 7 };

static void run_attention(struct op_run *r, const int64_t *d) /* layout H K D pad */
{
    const struct layout *l = &layouts[d[0]];
    const struct segments segs = { l->seg, l->group, l->n, l->n_groups };
    const int64_t H = d[1], K = d[2], D = d[3], T = l->T, Tk = l->Tk, pad = d[4];
    const float scale = 1 / sqrtf((float)D);
    const struct ref_att ref = { &segs, H, K, D, (double)scale };
    struct tensor *q = op_run_act(r, BOX_INPUT, T, H * D, pad, 2),
                  *k = op_run_act(r, BOX_INPUT, Tk, K * D, 2 * pad, 1);
    struct tensor *v = op_run_act(r, BOX_INPUT, Tk, K * D, pad, 1),
                  *lse = op_run_f32(r, BOX_OUTPUT, T, H, 0, 1);
    struct tensor *o = op_run_act(r, BOX_OUTPUT, T, H * D, pad, 1);
    double *rq = op_run_double(r, q), *rk = op_run_double(r, k), *rv = op_run_double(r, v);
    double *wo = op_run_zeros(r, T * H * D), *wl = op_run_zeros(r, T * H);
    ref_attention_fwd(wo, wl, rq, rk, rv, &ref);
    OK(op_attention_fwd(r->be, o, lse, q, k, v, &segs, (int32_t)D, scale));
    /* tensor cores take p rounded to bfloat16 */
    if (r->be->about && r->act == DT_BF16)
        op_run_expect_rounded(r, o, wo, 1, 1, 4);
    else
        op_run_expect(r, o, wo, 2, D, 0);
    op_run_expect(r, lse, wl, 2, D, 0);
    if (d[0] >= LAYOUT_FWD_ONLY) return;
    struct tensor *dout = op_run_act(r, BOX_INPUT, T, H * D, pad, 1),
                  *dq = op_run_act(r, BOX_OUTPUT, T, H * D, pad, 1);
    struct tensor *dk = op_run_act(r, BOX_OUTPUT, Tk, K * D, pad, 1),
                  *dv = op_run_act(r, BOX_OUTPUT, Tk, K * D, pad, 1);
    double *wdq = op_run_zeros(r, T * H * D), *wdk = op_run_zeros(r, Tk * K * D),
           *wdv = op_run_zeros(r, Tk * K * D);
    ref_attention_bwd(wdq, wdk, wdv, op_run_double(r, dout), rq, rk, rv, &ref);
    OK(op_attention_bwd(r->be, dq, dk, dv, dout, o, lse, q, k, v, &segs, (int32_t)D, scale));
    op_run_expect_rounded(r, dq, wdq, 4, D, 1);
    op_run_expect_rounded(r, dk, wdk, 4, D, 1);
    op_run_expect_rounded(r, dv, wdv, 4, D, 1);
}

/* --- the table: op x shape
 * ---------------------------------------------------------------------------------------------- */
const struct op_row op_rows[] = {
    { "gemm", run_gemm, false, { 1, 1, 1, 0, 0, 0, 0 } },
    { "gemm", run_gemm, false, { 1, 7, 5, 0, 1, 0, 0 } },
    { "gemm", run_gemm, false, { 5, 1, 3, 0, 0, 1, 0 } },
    { "gemm", run_gemm, false, { 65, 33, 17, 0, 0, 0, 3 } },
    { "gemm", run_gemm, false, { 65, 33, 17, 0, 1, 1, 3 } },
    { "gemm", run_gemm, false, { 65, 33, 17, 1, 0, 1, 3 } },
    { "gemm", run_gemm, false, { 65, 33, 17, 1, 1, 0, 3 } },
    { "gemm", run_gemm, false, { 0, 5, 5, 0, 1, 1, 0 } },
    { "gemm", run_gemm, false, { 5, 0, 5, 0, 1, 1, 0 } },
    { "gemm", run_gemm, false, { 5, 5, 0, 0, 1, 1, 0 } },
    { "gemm", run_gemm, false, { 5, 5, 0, 0, 1, 0, 2 } },
    { "gemm", run_gemm, false, { 65, 33, 17, 0, 0, 2, 3 } },
    { "gemm", run_gemm, false, { 1, 1000, 896, 0, 1, 0, 0 } },
    { "gemm", run_gemm, false, { 3, 1000, 896, 0, 1, 1, 0 } },
    { "gemm", run_gemm, false, { 8, 515, 301, 0, 1, 0, 1 } },
    { "gemm", run_gemm, false, { 31, 131, 301, 0, 1, 1, 1 } },
    { "gemm", run_gemm, false, { 32, 70, 33, 0, 1, 2, 1 } },
    { "gemm", run_gemm, false, { 201, 300, 97, 0, 1, 0, 0 } },
    { "gemm", run_gemm, false, { 201, 97, 300, 0, 0, 0, 0 } },
    { "gemm", run_gemm, false, { 300, 97, 201, 1, 0, 1, 0 } },
    { "gemm", run_gemm, false, { 1050, 40, 530, 1, 0, 1, 2 } },
    { "gemm", run_gemm, false, { 40, 1050, 530, 0, 1, 0, 2 } },
    { "gemm", run_gemm, false, { 8, 70, 33, 0, 1, 2, 1 } },
    { "gemm", run_gemm, false, { 7, 70, 33, 0, 1, 3, 1 } },
    { "gemm", run_gemm, false, { 65, 33, 17, 1, 0, 3, 3 } },
    { "gemm", run_gemm, false, { 201, 300, 97, 0, 1, 3, 0 } },
    { "gemm", run_gemm, false, { 190, 1040, 530, 0, 0, 3, 2 } },
    { "gemm", run_gemm, false, { 7, 515, 301, 0, 1, 4, 1 } },
    { "gemm", run_gemm, false, { 201, 97, 300, 0, 1, 4, 1 } },
    { "gemm", run_gemm, false, { 65, 33, 17, 1, 0, 4, 3 } },
    { "bias", run_bias, false, { 1, 1, 1, 0, 0 } },
    { "bias", run_bias, false, { 0, 5, 3, 0, 0 } },
    { "bias", run_bias, false, { 3, 0, 2, 0, 0 } },
    { "bias", run_bias, false, { 3, 7, 0, 0, 0 } },
    { "bias", run_bias, false, { 131, 777, 9, 9, 0 } },
    { "bias", run_bias, false, { 64, 256, 33, 0, 0 } },
    { "bias", run_bias, false, { 130, 72, 300, 3, 1 } },
    { "gather", run_gather, true, { 1, 1, 1 } },
    { "gather", run_gather, true, { 0, 3, 7 } },
    { "gather", run_gather, true, { 200, 30, 301 } },
    { "gather", run_gather, true, { 600, 12, 16 } },
    { "put_rows", run_put_rows, true, { 0, 3, 7, 0 } },
    { "put_rows", run_put_rows, true, { 20, 33, 128, 64 } },
    { "put_rows", run_put_rows, true, { 20, 33, 129, 2 } },
    { "rmsnorm", run_rmsnorm, true, { 1, 1, 0 } },
    { "rmsnorm", run_rmsnorm, true, { 0, 9, 1 } },
    { "rmsnorm", run_rmsnorm, true, { 3, 7, 1 } },
    { "rmsnorm", run_rmsnorm, true, { 65, 896, 0 } },
    { "rmsnorm", run_rmsnorm, true, { 64, 300, 1 } },
    { "rmsnorm", run_rmsnorm, true, { 200, 33, 2 } },
    { "rmsnorm", run_rmsnorm, true, { 130, 259, 3 } },
    { "headnorm", run_headnorm, true, { 1, 1, 8, 0, 0 } },
    { "headnorm", run_headnorm, true, { 0, 2, 8, 0, 0 } },
    { "headnorm", run_headnorm, true, { 131, 3, 128, 17, 0 } },
    { "headnorm", run_headnorm, true, { 67, 2, 13, 4, 0 } },
    { "headnorm", run_headnorm, true, { 67, 2, 64, 0, 1 } },
    { "headnorm, dx is dy", run_headnorm_alias, true, { 70, 4, 64 } },
    { "rope", run_rope, true, { 1, 1, 2, 0, 0 } },
    { "rope", run_rope, true, { 0, 1, 8, 0, 0 } },
    { "rope", run_rope, true, { 33, 3, 64, 5, 0 } },
    { "rope", run_rope, true, { 70, 4, 128, 0, 1 } },
    { "rope", run_rope, true, { 70, 9, 22, 1, 1 } },
    { "swiglu", run_swiglu, true, { 1, 1, 0 } },
    { "swiglu", run_swiglu, true, { 0, 5, 0 } },
    { "swiglu", run_swiglu, true, { 37, 301, 0 } },
    { "swiglu", run_swiglu, true, { 64, 128, 1 } },
    { "swiglu", run_swiglu, true, { 37, 301, 2 } },
    { "swiglu", run_swiglu, true, { 9, 40, 3 } },
    { "logp", run_logp, false, { 1, 1, 1, 100 } },
    { "logp", run_logp, false, { 0, 4, 9, 100 } },
    { "logp", run_logp, false, { 3, 5, 2, 100 } },
    { "logp", run_logp, false, { 7, 64, 3001, 10 } },
    { "logp", run_logp, false, { 5, 33, 1024, 300 } },
    { "logp", run_logp, false, { 517, 8, 1030, 50 } },
    { "logp", run_logp, false, { 5, 33, 4099, 50 } },
    { "logp", run_logp, false, { 2051, 4, 70, 100 } },
    { "adamw", run_adamw, true, { 0, 1 } },
    { "adamw", run_adamw, true, { 1, 1 } },
    { "adamw", run_adamw, true, { 70001, 4 } },
    { "adamw", op_rows_adamw_split, true, { 1 } },
    { "adamw", op_rows_adamw_split, true, { 9001 } },
    { "adamw", op_rows_adamw_bf16, true, { 1, 0 } },
    { "adamw", op_rows_adamw_bf16, true, { 9001, 0 } },
    { "adamw", op_rows_adamw_bf16, true, { 9001, 1 } },
    { "adamw", op_rows_adamw_bf16, true, { 9001, 2 } },
    { "nf4", op_rows_nf4, true, { 0 } },
    { "nf4", op_rows_nf4, true, { 1 } },
    { "nf4", op_rows_nf4, true, { 70 } },
    { "nf4", op_rows_nf4, true, { 1001 } },
    { "nf4_scales", op_rows_nf4_scales, true, { 0 } },
    { "nf4_scales", op_rows_nf4_scales, true, { 1 } },
    { "nf4_scales", op_rows_nf4_scales, true, { 256 } },
    { "nf4_scales", op_rows_nf4_scales, true, { 1001 } },
    { "dropout", op_rows_dropout, true, { 0, 5, 10 } },
    { "dropout", op_rows_dropout, true, { 1, 1, 50 } },
    { "dropout", op_rows_dropout, true, { 7, 301, 5 } },
    { "dropout", op_rows_dropout, true, { 64, 512, 50 } },
    { "dropout", op_rows_dropout, true, { 9, 1030, 0 } },
    { "flat", run_flat, true, { 0 } },
    { "flat", run_flat, true, { 1 } },
    { "flat", run_flat, true, { 65 } },
    { "flat", run_flat, true, { 200003 } },
    { "attention", run_attention, true, { 0, 1, 1, 8, 0 } },
    { "attention", run_attention, true, { 1, 4, 2, 64, 12 } },
    { "attention", run_attention, true, { 1, 2, 2, 80, 0 } },
    { "attention", run_attention, true, { 2, 7, 1, 16, 8 } },
    { "attention", run_attention, true, { 2, 4, 4, 64, 0 } },
    { "attention", run_attention, true, { 2, 4, 2, 10, 3 } },
    { "attention", run_attention, true, { 3, 14, 2, 64, 0 } },
    { "attention", run_attention, true, { 3, 3, 1, 128, 5 } },
    { "attention", run_attention, true, { 2, 6, 2, 128, 8 } },
    { "attention", run_attention, true, { 3, 2, 1, 256, 0 } },
    { "attention", run_attention, true, { 4, 14, 2, 64, 7 } },
    { "attention", run_attention, true, { 5, 2, 1, 8, 0 } },
    { "attention", run_attention, true, { 6, 2, 1, 8, 0 } },
    { "attention", run_attention, true, { 7, 14, 2, 64, 6 } },
    { "attention", run_attention, true, { 7, 80, 1, 8, 0 } },
    { "attention", run_attention, true, { 7, 3, 3, 33, 1 } },
    { "attention", run_attention, true, { 8, 8, 2, 32, 0 } },
};
const int op_rows_count = COUNT_OF(op_rows);

char *op_row_name(char out[96], const char *prefix, const struct op_row *row)
{
    const int64_t *d = row->d;
    snprintf(out, 96, "test_%s__%s (%lld %lld %lld %lld %lld %lld)", prefix, row->op,
             (long long)d[0], (long long)d[1], (long long)d[2], (long long)d[3], (long long)d[4],
             (long long)d[5]);
    return out;
}
