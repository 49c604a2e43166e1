/* SPDX-License-Identifier: MIT
 * Means and intervals against values by hand, against known ones, and by coverage of what they promise. */
#include "../src/base/rng.h"
#include "../src/base/stats.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

static void assert_near(double got, double want, double allowed)
{
    if (!(fabs(got - want) <= allowed))
        fail_msg("%.17g, expected %.17g within %g", got, want, allowed);
}

static void test_stats__mean(void **state)
{
    const double x[] = { 1, 2, 4, 9 };
    (void)state;
    assert_near(stats_mean(x, 4), 4, 0);
    assert_near(stats_stderr(x, 4), sqrt(38.0 / 12), 1e-15);
    assert_true(isnan(stats_mean(x, 0)) && isnan(stats_stderr(x, 1)));
}

/* Newcombe 1998, table I: 81/263, 15/148, 0/20, 1/29 with Wilson's method without continuity correction */
static void test_stats__wilson(void **state)
{
    static const double rows[][4] = { { 81, 263, 0.2553, 0.3662 },
                                      { 15, 148, 0.0624, 0.1605 },
                                      { 0, 20, 0, 0.1611 },
                                      { 1, 29, 0.0061, 0.1718 } };
    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        const struct interval w = stats_wilson(rows[i][0] / rows[i][1], rows[i][1]);
        assert_near(w.lo, rows[i][2], 5e-5);
        assert_near(w.hi, rows[i][3], 5e-5);
    }
    assert_near(stats_wilson(1, 20).hi, 1, 1e-15);
}

static void test_stats__quantile(void **state)
{
    const double x[] = { 1, 2, 4, 9 };
    (void)state;
    assert_near(stats_quantile(x, 4, 0), 1, 0);
    assert_near(stats_quantile(x, 4, 1), 9, 0);
    assert_near(stats_quantile(x, 4, 0.5), 3, 0);
    assert_near(stats_quantile(x, 4, 0.9), 7.5, 1e-15);
    assert_near(stats_quantile(x, 1, 0.3), 1, 0);
}

/* Of 200 samples of 60 normal numbers, an interval of 95 % must hold the true mean in most: the binomial's bounds at 1e-4 are 0.87 and 0.995,
 * and the percentile bootstrap is known to fall short by about 1 % at this size. */
static void test_stats__bootstrap(void **state)
{
    enum { SAMPLES = 200, N = 60 };
    int64_t held = 0;
    double width = 0;
    (void)state;
    for (uint64_t s = 0; s < SAMPLES; s++) {
        double x[N];
        struct interval i, again;
        for (uint64_t k = 0; k < N; k++)
            x[k] = 3 + 2 * rng_normal(s, RNG_TEST, k);
        assert_int_equal(stats_bootstrap(&i, x, N, s, 500), 0);
        assert_int_equal(stats_bootstrap(&again, x, N, s, 500), 0);
        assert_true(i.lo == again.lo && i.hi == again.hi && i.value == stats_mean(x, N));
        assert_true(i.lo < i.value && i.value < i.hi);
        held += i.lo <= 3 && 3 <= i.hi;
        width += i.hi - i.lo;
    }
    assert_true(held >= 0.86 * SAMPLES && held < 0.995 * SAMPLES);
    assert_near(width / SAMPLES, 2 * 1.96 * 2 / sqrt(N), 0.06); /* about 4 sigma / sqrt(n) */
}

static void test_stats__bootstrap_of_nothing(void **state)
{
    const double same[] = { 2, 2, 2 };
    struct interval i;
    (void)state;
    assert_int_equal(stats_bootstrap(&i, same, 0, 1, 10), 0);
    assert_true(isnan(i.value) && isnan(i.lo));
    assert_int_equal(stats_bootstrap(&i, same, 3, 1, 10), 0);
    assert_true(i.value == 2 && i.lo == 2 && i.hi == 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stats__mean),
        cmocka_unit_test(test_stats__wilson),
        cmocka_unit_test(test_stats__quantile),
        cmocka_unit_test(test_stats__bootstrap),
        cmocka_unit_test(test_stats__bootstrap_of_nothing),
    };
    return cmocka_run_group_tests_name("stats", tests, NULL, NULL);
}
