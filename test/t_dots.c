/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "../src/base/rng.h"
#include "isa.h"

enum { M_MAX = 17, N_MAX = 64, PAD = 5 };

/* rows of floats that bfloat16 has too, and the rows in either form, as long as they may be read */
struct side {
    int64_t rows, ld;
    float *x;
    void *form;
};

static struct side side_new(const struct rows *r, int64_t rows, int64_t K, int64_t ld, bool half,
                            uint64_t seed)
{
    const int64_t n = (rows - 1) * ld + K, size = half ? 2 : 4;
    struct side s = { rows, ld, malloc((size_t)n * sizeof *s.x), malloc((size_t)(n * size)) };
    uint16_t *h = malloc((size_t)n * sizeof *h);
    assert_true(s.x && s.form && h);
    for (int64_t i = 0; i < n; i++)
        s.x[i] = (float)rng_normal(seed, 7, (uint64_t)i);
    r->narrow(h, s.x, n);
    r->widen(s.x, h, n);
    memcpy(s.form, half ? (void *)h : (void *)s.x, (size_t)(n * size));
    free(h);
    return s;
}

static void side_free(struct side *s)
{
    free(s->x);
    free(s->form);
}

static void product(const struct rows *r, float *y, int64_t ldy, const struct side *x, bool xhalf,
                    int64_t first, int64_t M, const struct side *w, bool whalf, int64_t N,
                    int64_t K)
{
    float *panel = malloc((size_t)dots_panel(M, K) * sizeof *panel);
    assert_non_null(panel);
    for (int64_t i = 0; i < M; i++)
        r->dots_pack(panel, i, (char *)x->form + (first + i) * x->ld * (xhalf ? 2 : 4), xhalf,
                     whalf, K);
    r->dots(y, ldy, panel, xhalf, M, w->form, w->ld, whalf, N, w->rows - N, K);
    free(panel);
}

/* All of y within rounding, nothing beside it touched, and a row the same in company and alone */
static void check(const struct rows *r, int64_t M, int64_t N, int64_t K, bool xhalf, bool whalf)
{
    static float y[M_MAX][N_MAX + PAD], alone[N_MAX + PAD];
    struct side x = side_new(r, M, K, K + 3, xhalf, 1), w = side_new(r, N + 2, K, K + 1, whalf, 2);
    for (int64_t i = 0; i < M_MAX; i++)
        for (int64_t j = 0; j < N_MAX + PAD; j++)
            y[i][j] = 77;
    product(r, y[0], N_MAX + PAD, &x, xhalf, 0, M, &w, whalf, N, K);
    for (int64_t i = 0; i < M_MAX; i++)
        for (int64_t j = 0; j < N_MAX + PAD; j++) {
            double want = 0, size = 0;
            if (i >= M || j >= N) {
                assert_true(y[i][j] == 77);
                continue;
            }
            for (int64_t k = 0; k < K; k++) {
                const double p = (double)x.x[i * x.ld + k] * (double)w.x[j * w.ld + k];
                want += p;
                size += fabs(p);
            }
            if (fabs((double)y[i][j] - want) > 3e-7 * size)
                fail_msg("rows_%s, %lld x %lld x %lld, bfloat16 %d and %d: [%lld, %lld] is %.9g, "
                         "not %.9g",
                         r->name, (long long)M, (long long)N, (long long)K, xhalf, whalf,
                         (long long)i, (long long)j, (double)y[i][j], want);
        }
    product(r, alone, N_MAX + PAD, &x, xhalf, M - 1, 1, &w, whalf, N, K);
    assert_memory_equal(alone, y[M - 1], (size_t)N * sizeof *alone);
    side_free(&x);
    side_free(&w);
}

static void run(const char *isa)
{
    static const int64_t depth[] = { 1, 2, 7, 16, 31, 33, 64, 100, 129, 544, 896, 2051 };
    struct backend be;
    assert_int_equal(cpu_open(&be, 1), 0);
    if (!test_isa(be.cx, isa)) {
        print_message("skipped: this processor has no %s\n", isa);
        backend_close(&be);
        skip();
    }
    for (int64_t M = 1; M <= M_MAX; M++)
        for (size_t k = 0; k < COUNT_OF(depth); k++)
            for (int form = 0; form < 4; form++) {
                const int64_t N =
                    depth[k] > 500 ? 4 + M % 3 : 1 + (M * 13 + (int64_t)k * 7) % N_MAX;
                check(be.cx->rows, M, N, depth[k], form & 1, form & 2);
            }
    check(be.cx->rows, 3, N_MAX, 1500, false, false);
    check(be.cx->rows, M_MAX, N_MAX, 3001, true, true);
    backend_close(&be);
}

static void test_dots__base(void **state)
{
    (void)state;
    run("base");
}

static void test_dots__avx2(void **state)
{
    (void)state;
    run("avx2");
}

static void test_dots__avx512(void **state)
{
    (void)state;
    run("avx512");
}

static void test_dots__avx512_bf16(void **state)
{
    (void)state;
    run("avx512_bf16");
}

static void test_dots__amx_bf16(void **state)
{
    (void)state;
    run("amx_bf16");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dots__base),     cmocka_unit_test(test_dots__avx2),
        cmocka_unit_test(test_dots__avx512),   cmocka_unit_test(test_dots__avx512_bf16),
        cmocka_unit_test(test_dots__amx_bf16),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
