/* SPDX-License-Identifier: MIT
 * What is chosen to fit the memory, against brute force; the arithmetic of a run, by hand; the table of devices. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "../src/base/rng.h"
#include "../src/train/machine.h"
#include "../src/train/sizing.h"
#include "../src/train/work.h"

enum { LAYERS = 12, OPTIONS = 6 };

static int64_t below(uint64_t seed, uint64_t i, uint64_t n)
{
    return (int64_t)(rng_u64(11, seed, i) % n);
}

/* Micro-batches that double: more memory, a lower cost. */
static void draw_options(struct sizing_option o[OPTIONS], uint64_t seed)
{
    for (int i = 0; i < OPTIONS; i++) {
        const int64_t tokens = (int64_t)256 << i, save = tokens * (100 + below(seed, 1, 900));
        o[i] = (struct sizing_option){ .micro_tokens = tokens,
                                       .bytes = 1000000 + LAYERS * save + below(seed, 2, 100000),
                                       .save = save,
                                       .cost = 1e6 *
                                               (1 + (double)below(seed, 3, 200) / (double)tokens) };
    }
}

static void test_sizing__pick_against_brute_force(void **state)
{
    (void)state;
    int picked = 0, none = 0, with_layers = 0;
    for (uint64_t seed = 0; seed < 400; seed++) {
        struct sizing_option o[OPTIONS];
        draw_options(o, seed);
        const int64_t limit = 900000 + below(seed, 4, 1u << 28) / (1 + below(seed, 5, 64));
        const int64_t fixed = seed % 3 ? -1 : below(seed, 6, LAYERS + 2);
        const double share = 0.3;
        double cheapest = INFINITY;
        for (int i = 0; i < OPTIONS; i++)
            for (int64_t r = 0; r < LAYERS; r++)
                if ((fixed < 0 || r == MIN(fixed, LAYERS - 1)) &&
                    o[i].bytes - r * o[i].save <= limit)
                    cheapest = fmin(cheapest, o[i].cost * (1 + share * (double)r / LAYERS));
        const struct sizing_pick p = sizing_pick(o, OPTIONS, limit, LAYERS, share, fixed);
        if (isinf(cheapest)) {
            assert_int_equal(p.option, -1);
            none++;
            continue;
        }
        assert_in_range(p.option, 0, OPTIONS - 1);
        const struct sizing_option *b = &o[p.option];
        const double cost = b->cost * (1 + share * (double)p.recompute / LAYERS);
        assert_true(b->bytes - p.recompute * b->save <= limit);
        assert_true(cost <= 1.03 * cheapest * (1 + 1e-12));
        if (fixed >= 0) assert_int_equal(p.recompute, MIN(fixed, LAYERS - 1));
        /* not one layer more than it takes */
        if (fixed < 0 && p.recompute > 0)
            assert_true(b->bytes - (p.recompute - 1) * b->save > limit);
        picked++;
        with_layers += p.recompute > 0;
    }
    assert_true(picked > 50 && none > 10 && with_layers > 20);
}

static void test_sizing__pick_by_hand(void **state)
{
    (void)state;
    const struct sizing_option o[] = { { 512, false, 2000, 100, 1.05 },
                                       { 1024, false, 3000, 200, 1.02 },
                                       { 2048, false, 5000, 400, 1.01 } };
    /* all fit: 1024 is within 3 % of 2048 and smaller, 512 is not */
    struct sizing_pick p = sizing_pick(o, 3, 1 << 20, 10, 0.3, -1);
    assert_true(p.option == 1 && p.recompute == 0);
    /* 2,600: 1024 needs 2 layers (1.08), 512 none (1.05) */
    p = sizing_pick(o, 3, 2600, 10, 0.3, -1);
    assert_true(p.option == 0 && p.recompute == 0);
    /* 1,200: 512 with 8 of 9, the others need more than there are or cost more */
    p = sizing_pick(o, 3, 1200, 10, 0.3, -1);
    assert_true(p.option == 0 && p.recompute == 8);
    assert_int_equal(sizing_pick(o, 3, 1099, 10, 0.3, -1).option, -1);
    assert_int_equal(sizing_pick(o, 3, 1999, 10, 0.3, 0).option, -1);
    p = sizing_pick(o, 3, 1 << 20, 10, 0.3, 65536);
    assert_true(p.recompute == 9);
}

/* C 2, F 3, one layer of 1 head of 2; V 5, tied. In the layer: q, k, v, o 4 each, gate, up, down 6 each, two norms of 2, and the last norm. */
static void test_work__by_hand(void **state)
{
    (void)state;
    struct arch a = { .C = 2, .F = 3, .H = 1, .K = 1, .D = 2, .V = 5, .L = 1, .tied = true };
    struct example e[2] = { { .np = 3, .nw = 2, .nl = 3 }, { .np = 3, .nw = 2, .nl = 3 } };
    const struct stage_config sc = { .epochs = 1.5, .batch_size = 1 };
    const struct dataset d = { .ex = e, .n = 2 };
    const double body = 4 * 4 + 3 * 6 + 3 * 2;
    /* 3 + 1 + 2 tokens, 5 targets; keys seen: 1 + 2 + 3, 4, 4 + 5 */
    const double want = 2 * body * 6 + 2 * 10 * 5 + 4 * 2 * (6 + 4 + 9);
    assert_true(arch_parameters(&a) == (int64_t)body + 10);
    assert_true(work_forward(&a, &e[0]) == want);
    const struct work w = work_stage(&a, &sc, &d, true);
    assert_true(w.examples == 3 && w.example == 3 * want && w.step == w.example &&
                w.stage == 9 * want);
    assert_true(w.reference == 2 * want);
    assert_true(work_stage(&a, &sc, &d, false).reference == 0);
    e[0].nl = e[1].nl = 0; /* a row of SFT */
    assert_true(work_forward(&a, &e[0]) == 2 * body * 4 + 2 * 10 * 2 + 4 * 2 * 10);
}

static void test_machine__memory(void **state)
{
    (void)state;
    const int64_t all = machine_memory(), left = machine_available();
    assert_true(all > 1 << 28);
    assert_true(left > 0 && left < INT64_MAX);
    const int64_t before = machine_anonymous();
    enum { BYTES = 64 << 20 };
    char *p;
    assert_true(before > 0);
    assert_int_equal(MEM_NEW(&p, BYTES), 0);
    memset(p, 1, BYTES);
    const int64_t with = machine_anonymous();
    assert_true(p[BYTES - 1] == 1 && with - before > BYTES - (1 << 20) &&
                with - before < BYTES + (1 << 20));
    free(p);
    machine_trim();
#ifndef __SANITIZE_ADDRESS__ /* which keeps what was freed for a while */
    assert_true(machine_anonymous() < before + (1 << 20));
#endif
}

static void test_machine__devices(void **state)
{
    (void)state;
    assert_null(device_find("h300"));
    assert_null(device_find(""));
    for (const char *s = device_names(); *s;) {
        char name[16] = "";
        const size_t n = strcspn(s, ",");
        assert_true(n < sizeof name);
        memcpy(name, s, n);
        const struct device *d = device_find(name);
        assert_non_null(d);
        assert_true(d->flops > 1e12 && d->memory > 1e10 && d->bytes_per_second > 1e11);
        s += n + 2 * (s[n] == ',');
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sizing__pick_against_brute_force),
        cmocka_unit_test(test_sizing__pick_by_hand),
        cmocka_unit_test(test_work__by_hand),
        cmocka_unit_test(test_machine__memory),
        cmocka_unit_test(test_machine__devices),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
