/* SPDX-License-Identifier: MIT */
#include "../src/io/safetensors.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <cmocka.h>

/* The value of a 16-bit float with e exponent bits, by its definition. */
static double value16(uint16_t h, int e)
{
    const int m = 15 - e, bias = (1 << (e - 1)) - 1, field = h >> m & ((1 << e) - 1);
    const double frac = (double)(h & ((1 << m) - 1)) / (1 << m), sign = h >> 15 ? -1 : 1;
    if (field == (1 << e) - 1) return frac != 0 ? (double)NAN : sign * (double)INFINITY;
    if (field == 0) return sign * ldexp(frac, 1 - bias);
    return sign * ldexp(1 + frac, field - bias);
}

/* x rounded to nearest even, by arithmetic in double: the step of x's binade, then rint (ties to even). */
static double round16(double x, int e)
{
    const int m = 15 - e, bias = (1 << (e - 1)) - 1;
    int exp2;
    if (x == 0 || !isfinite(x)) return x;
    frexp(x, &exp2);
    const double step = ldexp(1, MAX(exp2 - 1, 1 - bias) - m);
    const double y = rint(x / step) * step;
    return fabs(y) >= ldexp(1, bias + 1) ? copysign((double)INFINITY, x) : y;
}

static bool same(double a, double b)
{
    return (isnan(a) && isnan(b)) || (a == b && signbit(a) == signbit(b));
}

static void check_rounding(float x)
{
    if (!same((double)f16_to_f32(f32_to_f16(x)), round16((double)x, 5)))
        fail_msg("f16: %a (%08x)", (double)x, bits_of(x));
    if (!same((double)bf16_to_f32(f32_to_bf16(x)), round16((double)x, 8)))
        fail_msg("bf16: %a (%08x)", (double)x, bits_of(x));
}

static void test_convert__from_16_bits(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) {
        assert_true(same((double)f16_to_f32((uint16_t)h), value16((uint16_t)h, 5)));
        assert_true(same((double)bf16_to_f32((uint16_t)h), value16((uint16_t)h, 8)));
        /* and back: all but signalling NaNs, which turn quiet */
        if (!isnan(value16((uint16_t)h, 5)))
            assert_int_equal(f32_to_f16(f16_to_f32((uint16_t)h)), h);
        else
            assert_int_equal(f32_to_f16(f16_to_f32((uint16_t)h)), h | 0x200);
        if (!isnan(value16((uint16_t)h, 8)))
            assert_int_equal(f32_to_bf16(bf16_to_f32((uint16_t)h)), h);
        else
            assert_int_equal(f32_to_bf16(bf16_to_f32((uint16_t)h)), h | 0x40);
    }
}

/* At, just below and just above every value and every midpoint of both formats, and a sweep over all of float32. */
static void test_convert__round_to_nearest_even(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) {
        const uint32_t near[] = { bits_of(f16_to_f32((uint16_t)h)), h << 16, h << 16 | 0x8000 };
        for (size_t i = 0; i < COUNT_OF(near); i++)
            for (int d = -1; d <= 1; d++)
                check_rounding(float_of(near[i] + (uint32_t)d));
        if ((h & 0x7c00) == 0x7c00) continue;
        const double a = value16((uint16_t)h, 5), b = value16((uint16_t)(h + 1), 5);
        const double mid = isinf(b) ? copysign(65520, a) : (a + b) / 2;
        for (int d = -1; d <= 1; d++)
            check_rounding(float_of(bits_of((float)mid) + (uint32_t)d));
    }
    for (uint64_t u = 0; u < (uint64_t)1 << 32; u += 1237)
        check_rounding(float_of((uint32_t)u));
}

static void test_convert__nan_stays_nan(void **state)
{
    (void)state;
    for (int bit = 0; bit < 23; bit++)
        for (uint32_t sign = 0; sign < 2; sign++) {
            const float x = float_of(sign << 31 | 0x7f800000 | 1u << bit);
            assert_true(isnan(f16_to_f32(f32_to_f16(x))));
            assert_true(isnan(bf16_to_f32(f32_to_bf16(x))));
            assert_int_equal(f32_to_f16(x) >> 15, sign);
            assert_int_equal(f32_to_bf16(x) >> 15, sign);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_convert__from_16_bits),
        cmocka_unit_test(test_convert__round_to_nearest_even),
        cmocka_unit_test(test_convert__nan_stays_nan),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
