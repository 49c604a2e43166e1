/* SPDX-License-Identifier: MIT
 * The CUDA backend's attention on the emulated device, against the oracle in double: shapes around the edges of its tiles, in
 * several orders of threads, whose bits must be the same; gradients by finite differences; changing lists of segments. */
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
#include "cuda_emu/emu.h"
#include "op_run.h"
#include "ref_ops.h"

#define OK(expr) assert_int_equal((expr), 0)
enum { SEGMENTS = 16 };

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

/* --- layouts: who sees which keys ----------------------------------------------------------------- */
struct layout {
    int32_t n, n_groups, T, Tk;
    bool forward_only; /* keys that no segment owns, as a cache has them */
    struct segment seg[SEGMENTS];
    int32_t group[SEGMENTS + 1];
};

static void add_segment(struct layout *l, int32_t len, int32_t prefix, int32_t prefix_len)
{
    l->seg[l->n++] = (struct segment){ l->T, len, l->T, prefix, prefix_len };
    l->T += len;
    l->Tk = l->T;
    l->group[l->n_groups] = l->n;
}

/* A group of a prompt and responses that see `seen` of its rows from `from` on; lengths end at -1. */
static void add_group(struct layout *l, int32_t prompt, int32_t from, int32_t seen,
                      const int32_t *responses)
{
    const int32_t at = l->T;
    l->n_groups++;
    add_segment(l, prompt, 0, 0);
    for (; *responses >= 0; responses++)
        add_segment(l, *responses, at + from, seen);
}

static void layout_one(struct layout *l, int32_t len)
{
    add_group(l, len, 0, 0, (const int32_t[]){ -1 });
}

static void layout_pair(struct layout *l, int32_t prompt, int32_t chosen, int32_t rejected)
{
    add_group(l, prompt, 0, prompt, (const int32_t[]){ chosen, rejected, -1 });
}

/* Lengths at and beside the edges of tiles (16 and 64 keys, 16, 64 and 128 packed rows). */
static void layout_random(struct layout *l, uint64_t seed, int32_t most)
{
    static const int32_t lengths[] = { 0,  1,  2,  3,  9,  10, 15, 16, 17, 18,  19,  31,
                                       32, 33, 48, 63, 64, 65, 73, 95, 96, 127, 128, 129 };
    uint64_t at = 0;
#define DRAW(n) (int32_t)(rng_uniform(seed, rng_stream_of(RNG_TEST, 9), at++) * (double)(n))
    while (l->n_groups < 4) {
        const int32_t p = lengths[DRAW(COUNT_OF(lengths))], w = lengths[DRAW(COUNT_OF(lengths))],
                      r = lengths[DRAW(COUNT_OF(lengths))];
        if (l->T + p + w + r > most) break;
        if (DRAW(3))
            layout_pair(l, p, w, r);
        else { /* three responses that see a part of the prompt */
            const int32_t from = DRAW(p + 1);
            add_group(l, p, from, DRAW(p - from + 1), (const int32_t[]){ w, 0, r, -1 });
        }
    }
#undef DRAW
}

/* Queries against a cache of `Tk` rows: own rows in other places than the query's. */
static void layout_cache(struct layout *l)
{
    *l = (struct layout){
        .n = 4,
        .n_groups = 4,
        .T = 77,
        .Tk = 600,
        .forward_only = true,
        .seg = { { 0, 1, 199, 0, 199 },
                 { 1, 1, 264, 200, 64 },
                 { 2, 1, 599, 0, 0 },
                 { 3, 74, 420, 280, 131 } },
        .group = { 0, 1, 2, 3, 4 },
    };
}

/* --- one run --------------------------------------------------------------------------------------- */
struct shape {
    int64_t H, K, D, pad;
    enum dtype act;
};

/* p and ds are rounded to bfloat16 before their products: `terms` is the largest of what they
 * multiply */
static void expect(struct op_run *r, const struct tensor *t, const double *want, double terms)
{
    if (r->act == DT_BF16)
        op_run_expect_rounded(r, t, want, 1, 1, terms);
    else
        op_run_expect(r, t, want, 8, tensor_row(t), 1);
}

static void run_backward(struct op_run *r, const struct layout *l, const struct shape *s,
                         const struct ref_att *ref, const struct tensor *const in[5],
                         double *const at[3])
{
    const int64_t T = l->T, Tk = l->Tk, Q = s->H * s->D, KD = s->K * s->D;
    const struct tensor *q = in[0], *k = in[1], *v = in[2], *o = in[3], *lse = in[4];
    struct tensor *dout = op_run_act(r, BOX_INPUT, T, Q, s->pad, 1),
                  *dq = op_run_act(r, BOX_OUTPUT, T, Q, s->pad, 1);
    struct tensor *dk = op_run_act(r, BOX_OUTPUT, Tk, KD, 2 * s->pad, 1),
                  *dv = op_run_act(r, BOX_OUTPUT, Tk, KD, s->pad, 1);
    double *wdq = op_run_zeros(r, T * Q), *wdk = op_run_zeros(r, Tk * KD),
           *wdv = op_run_zeros(r, Tk * KD);
    ref_attention_bwd(wdq, wdk, wdv, op_run_double(r, dout), at[0], at[1], at[2], ref);
    OK(op_attention_bwd(&be, dq, dk, dv, dout, o, lse, q, k, v, ref->segs, (int32_t)s->D,
                        (float)ref->scale));
    expect(r, dq, wdq, 4);
    /* the heads of a kv head add up */
    expect(r, dk, wdk, 6 * sqrt((double)(s->H / s->K)));
    expect(r, dv, wdv, 6 * sqrt((double)(s->H / s->K)));
}

static void run(const struct layout *l, const struct shape *s, uint64_t seed, uint8_t digest[32])
{
    const struct segments segs = { l->seg, l->group, l->n, l->n_groups };
    const float scale = 1 / sqrtf((float)s->D);
    const struct ref_att ref = { &segs, s->H, s->K, s->D, (double)scale };
    struct op_run r = { .be = &be, .seed = seed, .act = s->act };
    const int64_t T = l->T, Tk = l->Tk, Q = s->H * s->D, KD = s->K * s->D;
    struct tensor *q = op_run_act(&r, BOX_INPUT, T, Q, s->pad, 2),
                  *k = op_run_act(&r, BOX_INPUT, Tk, KD, 2 * s->pad, 1),
                  *v = op_run_act(&r, BOX_INPUT, Tk, KD, s->pad, 1),
                  *lse = op_run_f32(&r, BOX_OUTPUT, T, s->H, 0, 1),
                  *o = op_run_act(&r, BOX_OUTPUT, T, Q, s->pad, 1);
    double *at[3] = { op_run_double(&r, q), op_run_double(&r, k), op_run_double(&r, v) };
    double *wo = op_run_zeros(&r, T * Q), *wl = op_run_zeros(&r, T * s->H);
    ref_attention_fwd(wo, wl, at[0], at[1], at[2], &ref);
    OK(op_attention_fwd(&be, o, lse, q, k, v, &segs, (int32_t)s->D, scale));
    expect(&r, o, wo, 4);
    op_run_expect(&r, lse, wl, 4, s->D, 1);
    if (!l->forward_only)
        run_backward(&r, l, s, &ref, (const struct tensor *[]){ q, k, v, o, lse }, at);
    op_run_check(&r, digest);
    op_run_release(&r);
}

static void run_in_orders(const struct layout *l, const struct shape *s, uint64_t seed)
{
    uint8_t digest[EMU_ORDERS][32];
    for (int order = 0; order < emu_orders(); order++) {
        emu_seed((uint64_t)order);
        run(l, s, seed, digest[order]);
        assert_memory_equal(digest[order], digest[0], 32);
    }
    emu_seed(0);
}

/* --- tests ----------------------------------------------------------------------------------------- */
/* what tensor cores take: heads of 64 and 128, rows at multiples of 16 bytes */
static void test_cuda_attention__mma_shapes(void **state)
{
    static const struct shape shapes[] = { { 1, 1, 64, 0, DT_BF16 },   { 7, 1, 64, 8, DT_BF16 },
                                           { 6, 2, 64, 0, DT_BF16 },   { 4, 4, 64, 16, DT_BF16 },
                                           { 10, 2, 64, 0, DT_BF16 },  { 2, 2, 128, 8, DT_BF16 },
                                           { 7, 1, 128, 0, DT_BF16 },  { 4, 2, 128, 0, DT_BF16 },
                                           { 14, 2, 128, 24, DT_BF16 } };
    (void)state;
    for (size_t i = 0; i < COUNT_OF(shapes); i++) {
        struct layout pair = { 0 }, one = { 0 };
        layout_pair(&pair, 70, 33, 65);
        run_in_orders(&pair, &shapes[i], i);
        layout_one(&one, 1);
        run_in_orders(&one, &shapes[i], i);
    }
}

static void test_cuda_attention__mma_layouts(void **state)
{
    static const struct shape shapes[] = { { 2, 1, 64, 0, DT_BF16 },
                                           { 3, 1, 128, 0, DT_BF16 },
                                           { 5, 1, 64, 0, DT_BF16 } };
    (void)state;
    for (uint64_t i = 0; i < 9; i++) {
        struct layout l = { 0 };
        layout_random(&l, i, 300);
        run_in_orders(&l, &shapes[i % COUNT_OF(shapes)], i);
    }
    for (size_t i = 0; i < COUNT_OF(shapes); i++) {
        struct layout cache, prefix = { 0 }, part = { 0 };
        layout_cache(&cache);
        run_in_orders(&cache, &shapes[i], i);
        layout_pair(&prefix, 260, 1, 30);
        run_in_orders(&prefix, &shapes[i], i);
        /* prefixes that end one key before, at and after a tile's end */
        add_group(&part, 140, 0, 63, (const int32_t[]){ 20, -1 });
        add_group(&part, 70, 5, 60, (const int32_t[]){ 9, -1 });
        run_in_orders(&part, &shapes[i], i);
    }
}

/* everything else */
static void test_cuda_attention__plain(void **state)
{
    static const struct shape shapes[] = {
        { 2, 1, 16, 0, DT_BF16 }, { 3, 1, 80, 1, DT_BF16 }, { 2, 2, 256, 0, DT_BF16 },
        { 2, 1, 64, 3, DT_BF16 }, /* rows that are not at multiples of 16 bytes */
        { 2, 1, 64, 0, DT_F32 },  { 7, 1, 16, 5, DT_F32 },  { 1, 1, 256, 0, DT_F32 },
        { 5, 5, 1, 0, DT_F32 },   { 6, 2, 33, 2, DT_F32 },  { 4, 2, 128, 0, DT_F32 }
    };
    (void)state;
    for (size_t i = 0; i < COUNT_OF(shapes); i++) {
        struct layout l = { 0 }, cache;
        layout_random(&l, 20 + i, 150);
        run_in_orders(&l, &shapes[i], i);
        layout_cache(&cache);
        run(&cache, &shapes[i], i, (uint8_t[32]){ 0 });
    }
}

static void test_cuda_attention__nothing(void **state)
{
    const struct shape s = { 2, 1, 64, 0, DT_BF16 };
    struct layout none = { 0 }, empty = { 0 };
    (void)state;
    run_in_orders(&none, &s, 1);
    layout_pair(&empty, 0, 0, 0);
    run_in_orders(&empty, &s, 1);
}

/* The lists of work are kept from call to call; each kind of change must be seen. */
static void test_cuda_attention__lists(void **state)
{
    const struct shape a = { 4, 2, 64, 0, DT_BF16 }, b = { 4, 1, 64, 0, DT_BF16 },
                       c = { 4, 2, 64, 0, DT_F32 };
    struct layout x = { 0 }, y = { 0 };
    uint8_t first[32], again[32];
    (void)state;
    layout_pair(&x, 40, 30, 20);
    layout_pair(&y, 20, 30, 40); /* as many segments, other lengths */
    run(&x, &a, 1, first);
    run(&y, &a, 1, again);
    run(&x, &a, 1, again);
    assert_memory_equal(first, again, 32);
    run(&x, &b, 1, again); /* other heads a kv head */
    run(&x, &a, 1, again);
    assert_memory_equal(first, again, 32);
    run(&x, &c, 1, again); /* other tiles */
    run(&x, &a, 1, again);
    assert_memory_equal(first, again, 32);
}

static void test_cuda_attention__head_too_large(void **state)
{
    const struct segment one = { 0, 1, 0, 0, 0 };
    const struct segments segs = { &one, (const int32_t[]){ 0, 1 }, 1, 1 };
    struct op_run r = { .be = &be, .seed = 1 };
    (void)state;
    struct tensor *q = op_run_act(&r, BOX_INPUT, 1, 257, 0, 1),
                  *o = op_run_act(&r, BOX_OUTPUT, 1, 257, 0, 1),
                  *lse = op_run_f32(&r, BOX_OUTPUT, 1, 1, 0, 1);
    assert_int_equal(op_attention_fwd(&be, o, lse, q, q, q, &segs, 257, 1), ERR_INPUT);
    assert_non_null(strstr(err_msg(), "heads of 257"));
    op_run_release(&r);
}

/* --- finite differences ---------------------------------------------------------------------------- */
static double loss_at(const struct layout *l, const struct ref_att *ref, double *const x[3],
                      const double *dout)
{
    const int64_t n = l->T * ref->H * ref->D;
    double sum = 0, *o = calloc((size_t)n, sizeof *o),
           *lse = calloc((size_t)(l->T * ref->H), sizeof *lse);
    assert_true(o && lse);
    ref_attention_fwd(o, lse, x[0], x[1], x[2], ref);
    for (int64_t i = 0; i < n; i++)
        sum += dout[i] * o[i];
    free(o);
    free(lse);
    return sum;
}

static void differences(const struct layout *l, const struct shape *s)
{
    const struct segments segs = { l->seg, l->group, l->n, l->n_groups };
    const struct ref_att ref = { &segs, s->H, s->K, s->D, 1 / sqrt((double)s->D) };
    struct op_run r = { .be = &be, .seed = 5, .act = s->act };
    const int64_t T = l->T, Q = s->H * s->D, KD = s->K * s->D;
    struct tensor *in[3] = { op_run_act(&r, BOX_INPUT, T, Q, 0, 2),
                             op_run_act(&r, BOX_INPUT, T, KD, 0, 1),
                             op_run_act(&r, BOX_INPUT, T, KD, 0, 1) };
    struct tensor *grad[3] = { op_run_act(&r, BOX_OUTPUT, T, Q, 0, 1),
                               op_run_act(&r, BOX_OUTPUT, T, KD, 0, 1),
                               op_run_act(&r, BOX_OUTPUT, T, KD, 0, 1) };
    struct tensor *o = op_run_act(&r, BOX_OUTPUT, T, Q, 0, 1),
                  *lse = op_run_f32(&r, BOX_OUTPUT, T, s->H, 0, 1),
                  *dout = op_run_act(&r, BOX_INPUT, T, Q, 0, 1);
    OK(op_attention_fwd(&be, o, lse, in[0], in[1], in[2], &segs, (int32_t)s->D, (float)ref.scale));
    OK(op_attention_bwd(&be, grad[0], grad[1], grad[2], dout, o, lse, in[0], in[1], in[2], &segs,
                        (int32_t)s->D, (float)ref.scale));
    double *x[3] = { op_run_double(&r, in[0]), op_run_double(&r, in[1]), op_run_double(&r, in[2]) };
    const double *dy = op_run_double(&r, dout), h = 1e-4;
    for (int t = 0; t < 3; t++) {
        const double *got = op_run_double(&r, grad[t]);
        const int64_t n = tensor_count(grad[t]);
        for (int64_t i = 0; i < 12; i++) {
            const int64_t at = (i * 7919 + 13) % n;
            const double was = x[t][at];
            x[t][at] = was + h;
            const double up = loss_at(l, &ref, x, dy);
            x[t][at] = was - h;
            const double want = (up - loss_at(l, &ref, x, dy)) / (2 * h);
            x[t][at] = was;
            /* ds comes from o and p, rounded: errors of 2^-9 in sums of a dozen terms of size 1 */
            const double allowed =
                s->act == DT_BF16 ? 0.02 + 0.004 * fabs(want) : 2e-5 * (1 + fabs(want));
            if (!(fabs(got[at] - want) <= allowed))
                fail_msg("gradient %d, element %lld: %.6g, by differences %.6g", t, (long long)at,
                         got[at], want);
        }
    }
    op_run_release(&r);
}

static void test_cuda_attention__differences(void **state)
{
    static const struct shape shapes[] = { { 3, 1, 64, 0, DT_BF16 },
                                           { 2, 1, 128, 0, DT_BF16 },
                                           { 4, 2, 20, 0, DT_F32 } };
    struct layout l = { 0 };
    (void)state;
    layout_pair(&l, 21, 12, 9);
    layout_pair(&l, 5, 3, 30);
    for (size_t i = 0; i < COUNT_OF(shapes); i++)
        differences(&l, &shapes[i]);
}

/* an argument: the tests to run, as cmocka's pattern */
int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cuda_attention__mma_shapes),
        cmocka_unit_test(test_cuda_attention__mma_layouts),
        cmocka_unit_test(test_cuda_attention__plain),
        cmocka_unit_test(test_cuda_attention__nothing),
        cmocka_unit_test(test_cuda_attention__lists),
        cmocka_unit_test(test_cuda_attention__head_too_large),
        cmocka_unit_test(test_cuda_attention__differences),
    };
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests_name("cuda_attention", tests, open_backend, close_backend);
}
