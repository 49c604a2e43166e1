/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include "ref_ops.h"
#include "../src/base/rng.h"

/* The oracle's own proof: every backward equals central differences of its forward. The scalar is
 * sum dy * y. */
enum { MAX_IN = 6, SPACE = 4096 };
struct fd {
    double in[MAX_IN][SPACE], grad[MAX_IN][SPACE], y[SPACE], y2[SPACE], dy[SPACE];
    int64_t n_in[MAX_IN], n_y;
    const int64_t *d;
    const struct segments *segs;
    int32_t index[64];
};
typedef void forward_fn(struct fd *f);

static struct fd *fd_new(const int64_t *d, int64_t n_y)
{
    struct fd *f = calloc(1, sizeof *f);
    assert_non_null(f);
    f->d = d;
    f->n_y = n_y;
    assert_true(n_y <= SPACE);
    for (int64_t i = 0; i < n_y; i++)
        f->dy[i] = rng_normal(4, rng_stream_of(RNG_TEST, 99), (uint64_t)i);
    return f;
}

static void fd_input(struct fd *f, int at, int64_t n)
{
    assert_true(n <= SPACE);
    f->n_in[at] = n;
    for (int64_t i = 0; i < n; i++)
        f->in[at][i] = rng_normal(4, rng_stream_of(RNG_TEST, (uint64_t)at), (uint64_t)i);
}

static double fd_value(struct fd *f, forward_fn *forward)
{
    double s = 0;
    forward(f);
    for (int64_t i = 0; i < f->n_y; i++)
        s += f->y[i] * f->dy[i];
    return s;
}

/* grad[] of every input against differences; frees f */
static void fd_check(struct fd *f, forward_fn *forward)
{
    for (int a = 0; a < MAX_IN; a++) {
        double top = 1;
        for (int64_t i = 0; i < f->n_in[a]; i++)
            top = fmax(top, fabs(f->grad[a][i]));
        for (int64_t i = 0; i < f->n_in[a]; i++) {
            const double x = f->in[a][i], h = 1e-5;
            f->in[a][i] = x + h;
            const double up = fd_value(f, forward);
            f->in[a][i] = x - h;
            const double down = fd_value(f, forward), got = (up - down) / (2 * h);
            f->in[a][i] = x;
            if (!(fabs(got - f->grad[a][i]) <= 1e-8 * top))
                fail_msg("input %d, element %lld: %.12g, differences say %.12g", a, (long long)i,
                         f->grad[a][i], got);
        }
    }
    free(f);
}

static void bias_forward(struct fd *f)
{
    for (int64_t i = 0; i < f->n_y; i++)
        f->y[i] = f->in[0][i];
    ref_bias_fwd(f->y, f->in[1], f->d[0], f->d[1]);
}

static void test_ref_ops__bias(void **state)
{
    (void)state;
    const int64_t d[] = { 5, 7 };
    struct fd *f = fd_new(d, 35);
    fd_input(f, 0, 35);
    fd_input(f, 1, 7);
    for (int i = 0; i < 35; i++)
        f->grad[0][i] = f->dy[i];
    ref_bias_bwd(f->grad[1], f->dy, d[0], d[1]);
    fd_check(f, bias_forward);
}

static void gather_forward(struct fd *f)
{
    ref_gather(f->y, f->in[0], f->index, f->d[0], f->d[2]);
}

static void test_ref_ops__gather(void **state)
{
    (void)state;
    const int64_t d[] = { 9, 4, 3 };
    struct fd *f = fd_new(d, 27);
    fd_input(f, 0, 12);
    for (int i = 0; i < 9; i++)
        f->index[i] = (i * i) % 4;
    ref_scatter_add(f->grad[0], f->dy, f->index, d[0], d[2]);
    fd_check(f, gather_forward);
}

static void gemm_forward(struct fd *f)
{
    ref_gemm(f->y, f->in[0], f->d[3], f->in[1], f->d[4], f->d[0], f->d[1], f->d[2], 0.7, 0);
}

/* the rules linear layers use: da = alpha dy op(b)^T, db = alpha op(a)^T dy, in all four layouts */
static void test_ref_ops__gemm(void **state)
{
    (void)state;
    for (int k = 0; k < 4; k++) {
        const int64_t d[] = { 4, 5, 3, k & 1, k >> 1 };
        const bool ta = d[3], tb = d[4];
        struct fd *f = fd_new(d, 20);
        fd_input(f, 0, 12);
        fd_input(f, 1, 15);
        if (ta)
            ref_gemm(f->grad[0], f->in[1], tb, f->dy, true, 3, 4, 5, 0.7, 0);
        else
            ref_gemm(f->grad[0], f->dy, false, f->in[1], !tb, 4, 3, 5, 0.7, 0);
        if (tb)
            ref_gemm(f->grad[1], f->dy, true, f->in[0], ta, 5, 3, 4, 0.7, 0);
        else
            ref_gemm(f->grad[1], f->in[0], !ta, f->dy, false, 3, 5, 4, 0.7, 0);
        fd_check(f, gemm_forward);
    }
}

static void rmsnorm_forward(struct fd *f)
{
    double rstd[64];
    ref_rmsnorm_fwd(f->y, rstd, NULL, f->in[0], f->in[2], f->in[1], 1e-3, f->d[0], f->d[1]);
}

static void test_ref_ops__rmsnorm(void **state)
{
    (void)state;
    const int64_t d[] = { 6, 11 };
    struct fd *f = fd_new(d, 66);
    double rstd[64], sum[66];
    fd_input(f, 0, 66);
    fd_input(f, 1, 11);
    fd_input(f, 2, 66);
    ref_rmsnorm_fwd(f->y, rstd, sum, f->in[0], f->in[2], f->in[1], 1e-3, d[0], d[1]);
    ref_rmsnorm_bwd(f->grad[0], f->grad[1], f->dy, sum, f->in[1], rstd, d[0], d[1]);
    for (int i = 0; i < 66; i++)
        f->grad[2][i] = f->grad[0][i]; /* x and r enter alike */
    fd_check(f, rmsnorm_forward);
}

static void rope_forward(struct fd *f)
{
    for (int64_t i = 0; i < f->n_y; i++)
        f->y[i] = f->in[0][i];
    ref_rope(f->y, f->index, f->y2, f->d[0], f->d[1], f->d[2], false);
}

/* the table holds cos and sin in training, but the transpose is the inverse's formula for any table
 */
static void test_ref_ops__rope(void **state)
{
    (void)state;
    const int64_t d[] = { 5, 2, 6 };
    struct fd *f = fd_new(d, 60);
    fd_input(f, 0, 60);
    for (int i = 0; i < 7 * 6; i++)
        f->y2[i] = rng_normal(1, 1, (uint64_t)i);
    for (int i = 0; i < 5; i++)
        f->index[i] = (3 * i) % 7;
    for (int i = 0; i < 60; i++)
        f->grad[0][i] = f->dy[i];
    ref_rope(f->grad[0], f->index, f->y2, d[0], d[1], d[2], true);
    fd_check(f, rope_forward);
}

static void swiglu_forward(struct fd *f)
{
    ref_swiglu_fwd(f->y, f->in[0], f->d[0], f->d[1]);
}

static void test_ref_ops__swiglu(void **state)
{
    (void)state;
    const int64_t d[] = { 4, 9 };
    struct fd *f = fd_new(d, 36);
    fd_input(f, 0, 72);
    ref_swiglu_bwd(f->grad[0], f->dy, f->in[0], d[0], d[1]);
    fd_check(f, swiglu_forward);
}

static void logp_forward(struct fd *f)
{
    ref_logp_fwd(f->y, f->y2, f->in[0], f->in[1], f->index, f->d[0], f->d[1], f->d[2]);
}

static void test_ref_ops__logp(void **state)
{
    (void)state;
    const int64_t d[] = { 6, 5, 13 };
    struct fd *f = fd_new(d, 6);
    fd_input(f, 0, 30);
    fd_input(f, 1, 65);
    for (int i = 0; i < 6; i++)
        f->index[i] = (i * 5) % 13;
    ref_logp_bwd(f->grad[0], f->grad[1], f->dy, f->in[0], f->in[1], f->index, d[0], d[1], d[2]);
    fd_check(f, logp_forward);
}

static void attention_forward(struct fd *f)
{
    const struct ref_att a = { f->segs, f->d[0], f->d[1], f->d[2], 0.6 };
    ref_attention_fwd(f->y, f->y2, f->in[0], f->in[1], f->in[2], &a);
}

/* prompts shared by two responses, two groups, heads that share keys */
static void test_ref_ops__attention(void **state)
{
    (void)state;
    static const struct segment seg[] = { { 0, 4, 0, 0, 0 },  { 4, 3, 4, 0, 4 },
                                          { 7, 1, 7, 0, 4 },  { 8, 1, 8, 0, 0 },
                                          { 9, 2, 9, 8, 1 },  { 11, 3, 11, 8, 1 },
                                          { 14, 2, 14, 0, 0 } };
    static const int32_t group[] = { 0, 3, 6, 7 };
    const struct segments segs = { seg, group, 7, 3 };
    static const int64_t shapes[][3] = { { 1, 1, 4 }, { 4, 2, 6 }, { 3, 1, 4 }, { 2, 2, 2 } };
    for (size_t i = 0; i < COUNT_OF(shapes); i++) {
        const int64_t H = shapes[i][0], K = shapes[i][1], D = shapes[i][2];
        const struct ref_att a = { &segs, H, K, D, 0.6 };
        struct fd *f = fd_new(shapes[i], 16 * H * D);
        f->segs = &segs;
        fd_input(f, 0, 16 * H * D);
        fd_input(f, 1, 16 * K * D);
        fd_input(f, 2, 16 * K * D);
        ref_attention_bwd(f->grad[0], f->grad[1], f->grad[2], f->dy, f->in[0], f->in[1], f->in[2],
                          &a);
        fd_check(f, attention_forward);
    }
}

/* One step from zero moments moves every weight by lr against the gradient's sign, whatever its
 * size. */
static void test_ref_ops__adamw(void **state)
{
    (void)state;
    double w[3] = { 1, 2, 3 }, m[3] = { 0 }, v[3] = { 0 };
    const double g[3] = { 1e-3, -5, 0 };
    const struct adamw opt = {
        .lr = 0.1, .beta1 = 0.9, .beta2 = 0.999, .eps = 0, .step = 1, .grad_scale = 2
    };
    ref_adamw(w, m, v, g, &opt, 2);
    assert_true(fabs(w[0] - 0.9) < 1e-12 && fabs(w[1] - 2.1) < 1e-12 && w[2] == 3);
    assert_true(fabs(ref_sumsq(g, 3) - 25.000001) < 1e-12);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ref_ops__bias),  cmocka_unit_test(test_ref_ops__gather),
        cmocka_unit_test(test_ref_ops__gemm),  cmocka_unit_test(test_ref_ops__rmsnorm),
        cmocka_unit_test(test_ref_ops__rope),  cmocka_unit_test(test_ref_ops__swiglu),
        cmocka_unit_test(test_ref_ops__logp),  cmocka_unit_test(test_ref_ops__attention),
        cmocka_unit_test(test_ref_ops__adamw),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
