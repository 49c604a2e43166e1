/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "../src/base/rng.h"
#include "../src/model/nf4.h"
#include "../src/ops/nf4.h"
#include "model_fixture.h"

enum { S = 2 * FIX_PAIRS };
static char dir[64];
static const float code[16] = NF4_TABLE;
static const double coef[S] = { 0.3, -0.2, 0.7, 0.1, -1.1, 0.4, 0.05, -0.6 };
static const struct lora LORA = { 4, 8, false, LORA_ALL, 0 };
static const struct model_size TRAIN = { 64, 64, 64, true, 1, false };

static int make_dir(void **state)
{
    (void)state;
    snprintf(dir, sizeof dir, "/tmp/t_nf4-XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state)
{
    (void)state;
    return dir_remove(dir);
}

static int nibble(const uint8_t *q, int i)
{
    return i % 2 ? q[i / 2] & 15 : q[i / 2] >> 4;
}

static void test_nf4__nearest_code(void **state)
{
    float x[4 * NF4_BLOCK], absmax[4];
    uint8_t q[2 * NF4_BLOCK];
    (void)state;
    for (int i = 0; i < 4 * NF4_BLOCK; i++)
        x[i] = (float)rng_normal(3, rng_stream_of(RNG_TEST, 0), (uint64_t)i);
    nf4_quantise(q, absmax, x, 4);
    for (int i = 0; i < 4 * NF4_BLOCK; i++) {
        const float most = absmax[i / NF4_BLOCK];
        double best = 9, got = fabs((double)(x[i] / most - code[nibble(q, i)]));
        for (int k = 0; k < 16; k++)
            best = fmin(best, fabs((double)(x[i] / most - code[k])));
        assert_true(fabsf(x[i]) <= most && got <= best + 1e-7);
    }
    for (int b = 0; b < 4; b++) {
        float most = 0;
        for (int i = 0; i < NF4_BLOCK; i++)
            most = fmaxf(most, fabsf(x[b * NF4_BLOCK + i]));
        assert_true(absmax[b] == most);
    }
}

/* What is a code already stays it; a midpoint goes down; zeros stay zeros. */
static void test_nf4__exact_values(void **state)
{
    float x[NF4_BLOCK], absmax;
    uint8_t q[NF4_BLOCK / 2];
    (void)state;
    for (int i = 0; i < NF4_BLOCK; i++)
        x[i] = 2 * code[i % 16];
    nf4_quantise(q, &absmax, x, 1);
    assert_true(absmax == 2);
    for (int i = 0; i < NF4_BLOCK; i++)
        assert_int_equal(nibble(q, i), i % 16);
    assert_int_equal(q[1], 2 << 4 | 3); /* the first element in the upper half */
    for (int i = 0; i < NF4_BLOCK; i++)
        x[i] = i % 16 == 15 ? 1 : (code[i % 16] + code[i % 16 + 1]) / 2;
    nf4_quantise(q, &absmax, x, 1);
    for (int i = 0; i < NF4_BLOCK; i++)
        assert_int_equal(nibble(q, i), i % 16);
    for (int i = 0; i < 15; i++)
        x[i] = nextafterf(x[i], 2);
    nf4_quantise(q, &absmax, x, 1);
    for (int i = 0; i < 15; i++)
        assert_int_equal(nibble(q, i), i + 1);
    memset(x, 0, sizeof x);
    nf4_quantise(q, &absmax, x, 1);
    assert_true(absmax == 0);
    for (int i = 0; i < NF4_BLOCK; i++)
        assert_true(code[nibble(q, i)] == 0);
}

static size_t bytes_of(const struct tensor *t)
{
    return (size_t)(tensor_count(t) * dtype_size(t->dtype));
}

static void run(struct fix *f, const struct fix_batch *fb, double *logp)
{
    assert_int_equal(model_forward(&f->m, &fb->b), 0);
    assert_int_equal(model_logp(&f->m, &fb->b, logp, true), 0);
    struct tensor g = f->m.grads;
    assert_int_equal(op_fill(&f->be, &g, 0), 0);
    assert_int_equal(model_backward(&f->m, &fb->b, coef, NULL, NULL), 0);
}

/* The weights that a quantised model computes with, in a model that is not. */
static void put_rounded(struct fix *to, const struct fix *exact)
{
    for (int32_t i = 0; i < to->m.n_params; i++) {
        const struct param *p = &exact->m.params[i];
        assert_int_equal(model_put(&to->m, to->m.params[i].offset, tensor_count(&p->w), p->w.data),
                         0);
    }
}

static void test_nf4__model_is_the_rounded_one(void **state)
{
    static const enum dtype dtypes[] = { DT_F32, DT_BF16 };
    struct fix_pairs p;
    struct fix_batch fb;
    (void)state;
    fix_pairs_draw(&p, 4);
    fix_batch_pairs(&fb, &p, 0, FIX_PAIRS);
    for (int k = 0; k < 4; k++) {
        const int d = k % 2, bits = 1 + k / 2; /* 2: scales in 8 bits */
        struct fix q, dense, exact;
        double a[S], b[S], c[S];
        fix_open_nf4(&q, cpu_open, dir, dtypes[d], &LORA, bits, &TRAIN);
        fix_open_nf4(&dense, cpu_open, dir, dtypes[d], &LORA, 0, &TRAIN);
        fix_open_nf4(&exact, cpu_open, dir, DT_F32, &LORA, 0, &TRAIN);
        assert_true(q.plan.bytes[PLAN_WEIGHTS] < dense.plan.bytes[PLAN_WEIGHTS] / 2);
        run(&dense, &fb, c);
        assert_int_equal(nf4_round_weights(&exact.m, bits == 2), 0);
        put_rounded(&dense, &exact);
        run(&q, &fb, a);
        run(&dense, &fb, b);
        assert_memory_equal(a, b, sizeof a);
        assert_memory_not_equal(a, c, sizeof a);
        assert_memory_equal(q.m.grads.data, dense.m.grads.data,
                            (size_t)q.m.n_trained * sizeof(float));
        fix_close(&q);
        fix_close(&dense);
        fix_close(&exact);
    }
}

/* From files, in whatever pieces they are read: the same codes as from the whole. */
static void test_nf4__loaded_in_pieces(void **state)
{
    struct fix f, q, g;
    char saved[96];
    (void)state;
    snprintf(saved, sizeof saved, "%s/base", dir);
    fix_open_nf4(&f, cpu_open, dir, DT_F32, NULL, 0, &TRAIN);
    assert_int_equal(model_save(&f.m, saved, dir, ST_F32, 10000), 0);
    fix_close(&f);
    for (int bits = 1; bits <= 2; bits++) {
        fix_open_nf4(&q, cpu_open, dir, DT_F32, &LORA, bits, &TRAIN);
        fix_open_nf4(&g, cpu_open, dir, DT_F32, &LORA, bits, &TRAIN);
        const struct tensor *parts[][2] = { { &q.m.quant, &g.m.quant },
                                            { &q.m.absmax, &g.m.absmax },
                                            { &q.m.most, &g.m.most } };
        for (size_t i = 0; i < COUNT_OF(parts) && parts[i][1]->data; i++)
            memset(parts[i][1]->data, 0, bytes_of(parts[i][1]));
        assert_int_equal(model_load(&g.m, saved), 0);
        for (size_t i = 0; i < COUNT_OF(parts) && parts[i][1]->data; i++)
            assert_memory_equal(parts[i][0]->data, parts[i][1]->data, bytes_of(parts[i][1]));
        assert_int_equal(g.m.most.data != NULL, bits == 2);
        fix_close(&q);
        fix_close(&g);
    }
}

/* The mean and of every group the largest difference are exact, a value is the nearest of the table; a group of one, and equal scales. */
static void test_nf4__scales_in_8_bits(void **state)
{
    enum { N = 3 * NF4_GROUP + 1 };
    const float *table = nf4_scale_table();
    float absmax[N], most[5];
    uint8_t codes[N];
    double sum = 0;
    (void)state;
    for (int k = 0; k + 1 < NF4_SCALE_CODES; k++)
        assert_true(table[k] < table[k + 1]);
    assert_true(table[127] == 0 && table[255] == 1 && table[0] == -table[254]);
    for (int i = 0; i < N; i++) {
        absmax[i] = fabsf((float)rng_normal(5, rng_stream_of(RNG_TEST, 1), (uint64_t)i));
        sum += (double)absmax[i];
    }
    nf4_compress(codes, most, absmax, N);
    assert_true(most[0] == (float)(sum / N));
    for (int i = 0; i < N; i++) {
        const float m = most[1 + i / NF4_GROUP];
        const double x = (double)(absmax[i] - most[0]) / (double)m;
        double best = 9;
        for (int k = 0; k < NF4_SCALE_CODES; k++)
            best = fmin(best, fabs(x - (double)table[k]));
        assert_true(fabs(x) <= 1 + 1e-7);
        assert_true(fabs(x - (double)table[codes[i]]) <= best + 1e-7);
    }
    assert_true(most[4] == fabsf(absmax[N - 1] - most[0]) &&
                (codes[N - 1] == 255 || codes[N - 1] == 0));
    for (int i = 0; i < N; i++)
        absmax[i] = 0.25f;
    nf4_compress(codes, most, absmax, N);
    for (int i = 0; i < N; i++)
        assert_true(table[codes[i]] * most[1 + i / NF4_GROUP] + most[0] == 0.25f);
}

static void test_nf4__narrow_models_are_refused(void **state)
{
    struct arch a;
    (void)state;
    fix_write(dir, "config.json", fix_config(FIX_WIDE));
    assert_int_equal(arch_load(&a, dir), 0);
    assert_int_equal(arch_check_nf4(&a), 0);
    a.F = 100;
    assert_int_equal(arch_check_nf4(&a), ERR_INPUT);
    assert_non_null(strstr(err_msg(), "rows of 100 elements"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nf4__nearest_code),
        cmocka_unit_test(test_nf4__exact_values),
        cmocka_unit_test(test_nf4__model_is_the_rounded_one),
        cmocka_unit_test(test_nf4__loaded_in_pieces),
        cmocka_unit_test(test_nf4__scales_in_8_bits),
        cmocka_unit_test(test_nf4__narrow_models_are_refused),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
