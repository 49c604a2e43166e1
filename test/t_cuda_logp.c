/* SPDX-License-Identifier: MIT
 * What the rows of op_rows.c do not ask of the head's log-probabilities on the emulated device. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include "cuda_emu/emu.h"
#include "op_run.h"

#define OK(expr) assert_int_equal((expr), 0)

static struct backend be;

static int open_backend(void **state)
{
    (void)state;
    return cuda_open(&be, 1);
}

static int close_backend(void **state)
{
    (void)state;
    backend_close(&be);
    return 0;
}

struct head { /* one row, C = 1, so that w are the logits */
    struct op_run r;
    struct tensor *h, *w, *logp, *lse, *dh, *dw, *coef, *at, *scratch, *kept;
};

static void open_head(struct head *x, const float *logits, int32_t V, int32_t target, bool keep)
{
    const float one = 1;
    x->r = (struct op_run){ .be = &be, .seed = 1, .act = DT_F32 };
    x->h = op_run_f32(&x->r, BOX_INPUT, 1, 1, 0, 1);
    x->w = op_run_f32(&x->r, BOX_INPUT, V, 1, 0, 1);
    x->coef = op_run_f32(&x->r, BOX_INPUT, 1, 1, 0, 1);
    x->logp = op_run_f32(&x->r, BOX_OUTPUT, 1, 1, 0, 1);
    x->lse = op_run_f32(&x->r, BOX_OUTPUT, 1, 1, 0, 1);
    x->dh = op_run_f32(&x->r, BOX_OUTPUT, 1, 1, 0, 1);
    x->dw = op_run_f32(&x->r, BOX_INOUT, V, 1, 0, 0);
    x->at = op_run_index(&x->r, 1, 1);
    x->scratch = op_run_f32(&x->r, BOX_OUTPUT, op_logp_scratch(1, 1, V, DT_F32) / 4 + 1, 1, 0, 1);
    x->kept =
        keep ? op_run_f32(&x->r, BOX_OUTPUT, op_logp_kept(1, V, DT_F32) / 4 + 1, 1, 0, 1) : NULL;
    op_run_put(&x->r, x->h, &one, sizeof one);
    op_run_put(&x->r, x->coef, &one, sizeof one);
    op_run_put(&x->r, x->w, logits, V * (int64_t)sizeof *logits);
    op_run_put(&x->r, x->at, &target, sizeof target);
    OK(op_logp_fwd(&be, x->logp, x->lse, x->kept, x->h, x->w, x->at, x->scratch));
    OK(op_logp_bwd(&be, x->dh, x->dw, x->coef, x->lse, x->kept, x->h, x->w, x->at, x->scratch));
}

static void test_cuda_logp__extremes(void **state)
{
    const double small = 2 * exp(-20);
    (void)state;
    for (int keep = 0; keep < 2; keep++) {
        struct head x;
        open_head(&x, (const float[]){ 1000, -20, 0 }, 3, 1, keep);
        assert_true(op_run_double(&x.r, x.logp)[0] == -1020);
        assert_true(op_run_double(&x.r, x.lse)[0] == 1000);
        const double *dw = op_run_double(&x.r, x.dw);
        assert_true(dw[0] == -1 && dw[1] == 1 && dw[2] == 0);
        assert_true(op_run_double(&x.r, x.dh)[0] == -1020);
        op_run_release(&x.r);

        /* what little the others weigh is not rounded away, in the sum or in 1 - p */
        open_head(&x, (const float[]){ 0, -20, -20 }, 3, 0, keep);
        assert_true(fabs(op_run_double(&x.r, x.logp)[0] + small) < 1e-6 * small);
        assert_true(fabs(op_run_double(&x.r, x.dw)[0] - small) < 1e-6 * small);
        op_run_release(&x.r);
    }
}

/* The largest logit comes in a later tile, then in an earlier one; exp of it by itself overflows. */
static void test_cuda_logp__tops_of_tiles(void **state)
{
    enum { V = 9000 };
    static float z[V];
    (void)state;
    for (int form = 0; form < 4; form++) {
        struct head x;
        double sum = 0;
        for (int i = 0; i < V; i++)
            z[i] = (float)(i % 7) - 6;
        z[form % 2 ? 300 : 8500] = 200;
        z[4100] = 199;
        for (int i = 0; i < V; i++)
            sum += exp((double)z[i] - 200);
        const double lse = 200 + log(sum);
        open_head(&x, z, V, 4100, form / 2);
        assert_true(fabs(op_run_double(&x.r, x.lse)[0] - lse) < 1e-5);
        assert_true(fabs(op_run_double(&x.r, x.logp)[0] - (199 - lse)) < 1e-6);
        const double *dw = op_run_double(&x.r, x.dw);
        for (int i = 0; i < V; i++)
            assert_true(fabs(dw[i] - ((i == 4100) - exp((double)z[i] - lse))) < 2e-5);
        op_run_release(&x.r);
    }
}

static void test_cuda_logp__nan_is_seen(void **state)
{
    struct head x;
    (void)state;
    open_head(&x, (const float[]){ 1, NAN, 0 }, 3, 0, false);
    assert_true(isnan(op_run_double(&x.r, x.logp)[0]));
    op_run_release(&x.r);
}

/* an argument: the tests to run, as cmocka's pattern */
int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cuda_logp__extremes),
        cmocka_unit_test(test_cuda_logp__tops_of_tiles),
        cmocka_unit_test(test_cuda_logp__nan_is_seen),
    };
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests_name("cuda_logp", tests, open_backend, close_backend);
}
