/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <string.h>
#include "../src/base/rng.h"
#include "isa.h"

#define OK(expr) assert_int_equal((expr), 0)

/* Rows of matrices of bfloat16 that are, or just are not, a panel as they lie; blocks, tasks, chunks and panels that end early: against sums in double. Whether
 * a row of the result is computed alone, among others or by two threads must not show in its bits. */
static void test_products__bfloat16(void **state)
{
    (void)state;
    static const struct {
        int64_t M, N, K, off, gap; /* off: of a's first element; gap: between its rows */
    } cases[] = { { 64, 64, 64, 0, 0 },     { 33, 65, 96, 0, 32 },  { 47, 31, 96, 1, 0 },
                  { 47, 31, 96, 0, 5 },     { 160, 40, 544, 0, 0 }, { 40, 300, 130, 0, 0 },
                  { 2090, 33, 32, 0, 0 },   { 33, 1060, 32, 0, 0 }, { 34, 34, 2600, 0, 24 },
                  { 65, 36, 7 * 320, 0, 0 } };
    enum { MOST = 200000 };
    _Alignas(64) static uint16_t a[MOST], b[MOST], y[MOST];
    static float x[MOST], z[MOST], c[MOST], again[MOST];
    struct backend be;
    OK(cpu_open(&be, 2));
    for (int64_t i = 0; i < MOST; i++) {
        x[i] = (float)rng_normal(1, 6, (uint64_t)i);
        z[i] = (float)rng_normal(2, 6, (uint64_t)i);
    }
    be.cx->rows->narrow(a, x, MOST);
    be.cx->rows->narrow(b, z, MOST);
    be.cx->rows->widen(x, a, MOST);
    be.cx->rows->widen(z, b, MOST);
    for (int k = 0; k < ISAS; k++)
        for (size_t n = 0; test_isa(be.cx, isa_names[k]) && n < 4 * COUNT_OF(cases);
             n += test_isa_emulated(be.cx) ? 3 : 1) {
            const int64_t M = cases[n / 4].M, N = cases[n / 4].N, K = cases[n / 4].K;
            const int64_t every = M * N > 5000 ? 37 : 1;
            const bool ta = n & 1, tb = n & 2;
            const int64_t lda = (ta ? M : K) + cases[n / 4].gap, ldb = tb ? K : N;
            struct product p = { .M = M,
                                 .N = N,
                                 .K = K,
                                 .alpha = 1,
                                 .beta = 1,
                                 .a = { a + cases[n / 4].off, lda, DT_BF16, ta },
                                 .b = { b, ldb, DT_BF16, tb },
                                 .y = c,
                                 .ldy = N,
                                 .y_dtype = DT_F32 };
            assert_true((ta ? K : M) * lda < MOST && N * K < MOST && M * N < MOST);
            for (int64_t i = 0; i < M * N; i++)
                c[i] = 1;
            OK(cpu_product(be.cx, &p));
            for (int64_t i = 0; i < M * N; i += every) {
                double want = 1, size = 1;
                for (int64_t j = 0; j < K; j++) {
                    const int64_t r = i / N, s = i % N;
                    const double t =
                        (double)x[cases[n / 4].off + (ta ? j * lda + r : r * lda + j)] *
                        (double)z[tb ? s * ldb + j : j * ldb + s];
                    want += t;
                    size += fabs(t);
                }
                assert_true(fabs((double)c[i] - want) <= 1e-6 * size);
            }
            p.y = again;
            be.cx->threads = 1;
            for (int64_t i = 0, m; i < M; i += m) {
                m = MIN(i % 3 + 1, M - i); /* at another address: packed where the whole is not */
                p.M = m;
                p.a.p = a + cases[n / 4].off + (ta ? i : i * lda);
                for (int64_t e = 0; e < m * N; e++)
                    again[e] = 1;
                OK(cpu_product(be.cx, &p));
                assert_memory_equal(again, c + i * N, (size_t)(m * N) * sizeof *c);
                if (M > 200) m += 150;
            }
            p.M = M;
            p.a.p = a + cases[n / 4].off;
            p.y = y;
            p.y_dtype = DT_BF16;
            be.cx->threads = 2;
            for (int64_t i = 0; i < M * N; i++)
                y[i] = 0x3f80; /* 1 */
            OK(cpu_product(be.cx, &p));
            be.cx->rows->narrow((uint16_t *)again, c, M * N);
            assert_memory_equal(again, y, (size_t)(M * N) * sizeof *y);
        }
    backend_close(&be);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_products__bfloat16),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
