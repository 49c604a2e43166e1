/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include "../src/base/rng.h"
#include "../src/train/share.h"

enum { ROWS = 200, TOKENS = 64 };

static void draw(struct dataset *d, struct example *ex, int64_t *idx, uint64_t seed)
{
    memset(d, 0, sizeof *d);
    d->ex = ex;
    d->n = ROWS;
    for (int64_t i = 0; i < ROWS; i++) {
        const uint64_t u = rng_u64(seed, rng_stream_of(RNG_TEST, 1), (uint64_t)i);
        ex[i] = (struct example){ .np = 1 + (int32_t)(u % 30),
                                  .nw = 1 + (int32_t)(u / 64 % 25),
                                  .nl = 1 + (int32_t)(u / 4096 % 25) };
    }
    rng_permutation(idx, ROWS, seed, rng_stream_of(RNG_TEST, 2));
}

static int64_t tokens(const struct dataset *d, const int64_t *idx, int64_t n)
{
    int64_t sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += example_tokens(&d->ex[idx[i]]);
    return sum;
}

/* Every example in one micro-batch, none above the limit unless it is alone, the rounds of a rank 0, 1, 2 ...; even shares. */
static void test_share__covers_the_step(void **state)
{
    static struct example ex[ROWS];
    static int64_t idx[ROWS];
    static struct slot slot[ROWS], one[ROWS];
    struct dataset d;
    (void)state;
    for (uint64_t seed = 0; seed < 20; seed++) {
        draw(&d, ex, idx, seed);
        for (int32_t ranks = 1; ranks <= 9; ranks++)
            for (int fixed = 0; fixed < 2; fixed++)
                for (int64_t n = 0; n <= ROWS; n += n < 12 ? 1 : 47) {
                    const int64_t k = share_step(slot, &d, idx, n, TOKENS, ranks, fixed);
                    int64_t next = 0, load[9] = { 0 }, longest = 0;
                    int32_t round[9] = { 0 };
                    for (int64_t i = 0; i < k; i++) {
                        const int64_t t = tokens(&d, idx + slot[i].at, slot[i].n);
                        assert_int_equal(slot[i].at, next);
                        next += slot[i].n;
                        assert_true(slot[i].n >= 1 && (t <= TOKENS || slot[i].n == 1));
                        assert_true(slot[i].rank >= 0 && slot[i].rank < ranks);
                        assert_int_equal(slot[i].round, round[slot[i].rank]++);
                        load[slot[i].rank] += t;
                    }
                    assert_int_equal(next, n);
                    for (int64_t i = 0; i < n; i++)
                        longest = MAX(longest, example_tokens(&ex[idx[i]]));
                    for (int32_t r = 0; r < ranks && !fixed; r++)
                        assert_true(llabs(load[r] * ranks - tokens(&d, idx, n)) <= longest * ranks);
                    if (!fixed) continue;
                    /* the cut is that of one rank */
                    assert_int_equal(share_step(one, &d, idx, n, TOKENS, 1, true), k);
                    for (int64_t i = 0; i < k; i++)
                        assert_true(one[i].at == slot[i].at && one[i].n == slot[i].n);
                }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_share__covers_the_step),
    };
    return cmocka_run_group_tests_name("share", tests, NULL, NULL);
}
