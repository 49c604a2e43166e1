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
#include "isa.h"
#include "model_fixture.h"
#include "model_ref.h"

enum { S = 2 * FIX_PAIRS };
static char dir[64];
static const double coef[S] = { 0.3, -0.2, 0.7, 0.1, -1.1, 0.4, 0.05, -0.6 };

static int make_dir(void **state)
{
    (void)state;
    snprintf(dir, sizeof dir, "/tmp/t_model-XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state)
{
    (void)state;
    return dir_remove(dir);
}

static void run(struct fix *f, const struct fix_batch *fb, double *logp, const double *c)
{
    struct tensor g = f->m.grads;
    assert_int_equal(model_forward(&f->m, &fb->b), 0);
    assert_int_equal(model_logp(&f->m, &fb->b, logp, true), 0);
    if (!c) return;
    memset(g.data, 0, (size_t)f->m.n_flat * sizeof(float));
    assert_int_equal(model_backward(&f->m, &fb->b, c, NULL, NULL), 0);
}

/* bfloat16: about 8 roundings a layer, and logits of the size sqrt(C) / 4, as the weights are drawn; errors add up as random ones do. */
static double bf16_tolerance(const struct model *m, int32_t tokens)
{
    const double eps = 0x1p-8, logit = 0.25 * sqrt((double)m->arch.C);
    return 4 * eps * logit * sqrt(8.0 * (double)m->arch.L + 4) * sqrt(tokens);
}

static void test_model__bf16_logp_near_oracle(void **state)
{
    struct fix_pairs p;
    struct fix_batch fb;
    (void)state;
    fix_pairs_draw(&p, 3);
    for (int shape = 0; shape < FIX_SHAPES; shape++) {
        struct fix f;
        struct ref r;
        double logp[S], worst = 0;
        fix_open_as(&f, dir, shape, DT_BF16, false, false);
        ref_init(&r, &f.m); /* the rounded weights: what is left are the activations */
        fix_batch_pairs(&fb, &p, 0, FIX_PAIRS);
        run(&f, &fb, logp, NULL);
        for (int s = 0; s < S; s++) {
            const double want = ref_sequence(&r, &p, s);
            const double allowed = bf16_tolerance(&f.m, p.len[s / 2][s % 2]);
            if (!(fabs(logp[s] - want) <= allowed))
                fail_msg("shape %d, sequence %d: %.9g, expected %.9g within %.3g", shape, s,
                         logp[s], want, allowed);
            worst = fmax(worst, fabs(logp[s] - want) / allowed);
        }
        assert_true(worst > 1e-3); /* it did compute in bfloat16 */
        ref_release(&r);
        fix_close(&f);
    }
}

static void test_model__logp_equals_oracle(void **state)
{
    struct fix_pairs p;
    struct fix_batch fb;
    (void)state;
    fix_pairs_draw(&p, 3);
    for (int shape = 0; shape < FIX_SHAPES; shape++) {
        struct fix f;
        struct ref r;
        double logp[S];
        fix_open(&f, dir, shape, false, false);
        ref_init(&r, &f.m);
        fix_batch_pairs(&fb, &p, 0, FIX_PAIRS);
        run(&f, &fb, logp, NULL);
        for (int s = 0; s < S; s++) {
            const double want = ref_sequence(&r, &p, s);
            if (fabs(logp[s] - want) > ref_tolerance(&f.m, fabs(want)))
                fail_msg("shape %d, sequence %d: %.9g, expected %.9g", shape, s, logp[s], want);
        }
        ref_release(&r);
        fix_close(&f);
    }
}

struct objective {
    const struct ref *r;
    const struct fix_pairs *p;
};

/* sum over sequences of coef logp, by the oracle */
static double objective(const void *ctx)
{
    const struct objective *o = ctx;
    double sum = 0;
    for (int s = 0; s < S; s++)
        sum += coef[s] * ref_sequence(o->r, o->p, s);
    return sum;
}

static void test_model__gradients_equal_differences(void **state)
{
    struct fix_pairs p;
    struct fix_batch fb;
    (void)state;
    fix_pairs_draw(&p, 4);
    for (int shape = 0; shape < FIX_SHAPES; shape++) {
        struct fix f;
        struct ref r;
        double logp[S];
        fix_open(&f, dir, shape, true, false);
        ref_init(&r, &f.m);
        fix_batch_pairs(&fb, &p, 0, FIX_PAIRS);
        run(&f, &fb, logp, coef);
        for (int32_t i = 0; i < f.m.n_params; i++)
            for (int32_t j = 0; j < f.m.params[i].n_slices; j++)
                ref_check_gradient(&r, i, &f.m.params[i].slice[j], 6, 4, objective,
                                   &(struct objective){ &r, &p });
        ref_release(&r);
        fix_close(&f);
    }
}

/* Every parameter's gradient in bfloat16 points where float32's does at the same (rounded) weights. */
static void test_model__bf16_gradients_near_float32(void **state)
{
    struct fix_pairs p;
    struct fix_batch fb;
    (void)state;
    fix_pairs_draw(&p, 4);
    fix_batch_pairs(&fb, &p, 0, FIX_PAIRS);
    for (int shape = 0; shape < FIX_SHAPES; shape++) {
        struct fix a, b;
        double la[S], lb[S];
        fix_open_as(&a, dir, shape, DT_F32, true, false);
        fix_open_as(&b, dir, shape, DT_BF16, true, false);
        assert_int_equal(model_round(&a.m, ST_BF16), 0);
        run(&a, &fb, la, coef);
        run(&b, &fb, lb, coef);
        for (int32_t i = 0; i < a.m.n_params; i++) {
            const struct tensor ga = model_grad(&a.m, i), gb = model_grad(&b.m, i);
            double dot = 0, aa = 0, bb = 0;
            for (int64_t j = 0; j < tensor_count(&ga); j++) {
                const double x = (double)((float *)ga.data)[j], y = (double)((float *)gb.data)[j];
                dot += x * y;
                aa += x * x;
                bb += y * y;
            }
            const double cosine = dot / sqrt(aa * bb), ratio = sqrt(bb / aa);
            if (!(cosine > 0.99 && fabs(ratio - 1) < 0.05))
                fail_msg("shape %d, %s: cosine %.6f, length %.4f of float32's", shape,
                         a.m.params[i].slice[0].name, cosine, ratio);
        }
        fix_close(&a);
        fix_close(&b);
    }
}

/* Elements whose gradients differ by more than rounding. */
static int64_t differing(const struct model *m, const float *a, const float *b)
{
    int64_t n = 0;
    for (int32_t i = 0; i < m->n_params; i++) {
        const int64_t at = m->params[i].offset, count = tensor_count(&m->params[i].w);
        double scale = 0;
        for (int64_t j = at; j < at + count; j++)
            scale = fmax(scale, fabs((double)a[j]));
        for (int64_t j = at; j < at + count; j++)
            n += fabs((double)a[j] - (double)b[j]) > 4 * ref_tolerance(m, scale);
    }
    return n;
}

static void test_model__shared_prompt_equals_separate_rows(void **state)
{
    struct fix_pairs p;
    struct fix_batch fb;
    (void)state;
    fix_pairs_draw(&p, 5);
    for (int shape = 0; shape < FIX_SHAPES; shape++) {
        struct fix f;
        double shared[S], apart[S];
        fix_open(&f, dir, shape, true, false);
        float *g = malloc((size_t)f.m.n_flat * sizeof *g);
        assert_non_null(g);
        fix_batch_pairs(&fb, &p, 0, FIX_PAIRS);
        assert_int_equal(fb.b.T, 3 + 3 + 1 + 1 + 0 + 4 + 7 + 0 + 0 + 2 + 2 + 5);
        run(&f, &fb, shared, coef);
        memcpy(g, f.m.grads.data, (size_t)f.m.n_flat * sizeof *g);
        fix_batch_apart(&fb, &p, 0, FIX_PAIRS);
        assert_int_equal(fb.b.T, 28 + 3 + 1 + 7 + 2);
        run(&f, &fb, apart, coef);
        for (int s = 0; s < S; s++)
            assert_true(fabs(shared[s] - apart[s]) <= ref_tolerance(&f.m, fabs(apart[s])));
        assert_int_equal(differing(&f.m, g, f.m.grads.data), 0);
        free(g);
        fix_close(&f);
    }
}

/* None, one, some, all layers recomputed: less memory with each, the same bits. */
static void test_model__recompute_is_bit_equal(void **state)
{
    struct fix_pairs p;
    struct fix_batch fb;
    (void)state;
    fix_pairs_draw(&p, 6);
    fix_batch_pairs(&fb, &p, 0, FIX_PAIRS);
    for (int k = 0; k < 2 * FIX_SHAPES; k++) {
        const int shape = k / 2;
        const enum dtype dtype = k % 2 ? DT_BF16 : DT_F32;
        struct fix a, b;
        double la[S], lb[S];
        fix_open_as(&a, dir, shape, dtype, true, 0);
        assert_int_equal(a.m.n_acts, a.m.arch.L);
        run(&a, &fb, la, coef);
        int64_t bytes = a.plan.bytes[PLAN_ACTIVATIONS];
        for (int r = 1; r <= a.m.arch.L; r++) {
            const bool last = r == a.m.arch.L; /* the last layer is never computed again */
            fix_open_as(&b, dir, shape, dtype, true, r);
            assert_int_equal(b.m.n_acts, last ? 1 : a.m.arch.L - r);
            run(&b, &fb, lb, coef);
            assert_memory_equal(la, lb, sizeof la);
            assert_memory_equal(a.m.grads.data, b.m.grads.data, (size_t)a.m.n_flat * sizeof(float));
            if (last)
                assert_int_equal(b.plan.bytes[PLAN_ACTIVATIONS], bytes);
            else
                assert_true(b.plan.bytes[PLAN_ACTIVATIONS] < bytes);
            bytes = b.plan.bytes[PLAN_ACTIVATIONS];
            fix_close(&b);
        }
        fix_close(&a);
    }
}

/* Logits kept: the same log-probabilities to the bit, the same gradients to the rounding of what is kept; nothing is
 * kept for a pass that only scores. */
static void test_model__kept_logits(void **state)
{
    struct fix_pairs p;
    struct fix_batch fb;
    (void)state;
    fix_pairs_draw(&p, 6);
    fix_batch_pairs(&fb, &p, 0, FIX_PAIRS);
    for (int k = 0; k < 2 * FIX_SHAPES; k++) {
        const enum dtype dtype = k % 2 ? DT_BF16 : DT_F32;
        struct fix a, b;
        double la[S], lb[S], far = 0, size = 0;
        fix_open_as(&a, dir, k / 2, dtype, true, 0);
        fix_open_keeping(&b, dir, k / 2, dtype);
        assert_true(b.plan.bytes[PLAN_HEAD] - a.plan.bytes[PLAN_HEAD] >=
                    64 * a.m.arch.V * dtype_size(dtype));
        run(&a, &fb, la, coef);
        run(&b, &fb, lb, coef);
        assert_memory_equal(la, lb, sizeof la);
        const float *ga = a.m.grads.data, *gb = b.m.grads.data;
        for (int64_t i = 0; i < a.m.n_flat; i++) {
            far += pow((double)ga[i] - (double)gb[i], 2);
            size += pow((double)ga[i], 2);
        }
        assert_true(size > 0 && sqrt(far / size) < (dtype == DT_BF16 ? 0x1p-7 : 1e-5));
        assert_true(far > 0); /* it went the other way */
        assert_int_equal(model_forward(&b.m, &fb.b), 0);
        assert_int_equal(model_logp(&b.m, &fb.b, lb, false), 0);
        assert_false(b.m.has_kept);
        fix_close(&a);
        fix_close(&b);
    }
}

static void test_model__inference_buffers_give_the_same_logp(void **state)
{
    struct fix_pairs p;
    struct fix_batch fb;
    (void)state;
    fix_pairs_draw(&p, 6);
    fix_batch_pairs(&fb, &p, 0, FIX_PAIRS);
    for (int k = 0; k < 2; k++) {
        const enum dtype dtype = k ? DT_BF16 : DT_F32;
        struct fix a, b;
        double la[S], lb[S];
        fix_open_as(&a, dir, FIX_QWEN3, dtype, true, false);
        fix_open_as(&b, dir, FIX_QWEN3, dtype, false, false);
        run(&a, &fb, la, NULL);
        run(&b, &fb, lb, NULL);
        assert_memory_equal(la, lb, sizeof la);
        assert_true(!b.m.grads.data && !b.m.low.data && !a.m.low.data == !k);
        fix_close(&a);
        fix_close(&b);
    }
}

/* What is reserved before is enough: a step allocates nothing in the backend, not even the first one. */
static void test_model__steps_allocate_nothing(void **state)
{
    struct fix_pairs p;
    struct fix_batch fb;
    (void)state;
    fix_pairs_draw(&p, 6);
    fix_batch_pairs(&fb, &p, 0, FIX_PAIRS);
    for (int k = 0; k < 4 * FIX_SHAPES * ISAS; k++) {
        const bool train = k % 4 < 2;
        struct fix f;
        double logp[S];
        fix_open_as(&f, dir, k / 4 % FIX_SHAPES, k % 2 ? DT_BF16 : DT_F32, train, 1);
        if (test_isa(f.be.cx, isa_names[k / 4 / FIX_SHAPES])) {
            const int64_t before = f.be.mem->allocations(f.be.cx);
            const int64_t bytes = f.be.mem->scratch(f.be.cx, &f.sizes);
            assert_true(bytes > 0);
            assert_int_equal(f.be.mem->reserve(f.be.cx, &f.sizes), 0);
            const int64_t made = f.be.mem->allocations(f.be.cx);
            assert_true(made > before);
            run(&f, &fb, logp, train ? coef : NULL);
            run(&f, &fb, logp, train ? coef : NULL);
            assert_int_equal(f.be.mem->allocations(f.be.cx), made);
        }
        fix_close(&f);
    }
}

static void two_runs(enum dtype dtype)
{
    struct fix_pairs p;
    struct fix_batch fb, other;
    struct fix f;
    double first[S], again[S];
    fix_pairs_draw(&p, 8);
    fix_batch_pairs(&fb, &p, 0, FIX_PAIRS);
    fix_batch_pairs(&other, &p, 2, 1);
    fix_open_as(&f, dir, FIX_QWEN2_TIED, dtype, true, false);
    float *g = malloc((size_t)f.m.n_flat * sizeof *g);
    assert_non_null(g);
    run(&f, &fb, first, coef);
    memcpy(g, f.m.grads.data, (size_t)f.m.n_flat * sizeof *g);
    run(&f, &other, again, coef); /* what a smaller batch leaves behind must not matter */
    run(&f, &fb, again, coef);
    assert_memory_equal(first, again, sizeof first);
    assert_memory_equal(g, f.m.grads.data, (size_t)f.m.n_flat * sizeof *g);
    free(g);
    fix_close(&f);
}

static void test_model__two_runs_are_bit_equal(void **state)
{
    (void)state;
    two_runs(DT_F32);
    two_runs(DT_BF16);
}

/* Micro-batches add up to the whole batch. */
static void test_model__gradients_accumulate(void **state)
{
    struct fix_pairs p;
    struct fix_batch whole, part;
    struct fix f;
    double logp[S];
    (void)state;
    fix_pairs_draw(&p, 9);
    fix_open(&f, dir, FIX_LLAMA3_BIASES, true, false);
    float *g = malloc((size_t)f.m.n_flat * sizeof *g);
    assert_non_null(g);
    fix_batch_pairs(&whole, &p, 0, FIX_PAIRS);
    run(&f, &whole, logp, coef);
    memcpy(g, f.m.grads.data, (size_t)f.m.n_flat * sizeof *g);
    memset(f.m.grads.data, 0, (size_t)f.m.n_flat * sizeof *g);
    for (int i = 0; i < FIX_PAIRS; i++) {
        fix_batch_pairs(&part, &p, i, 1);
        assert_int_equal(model_forward(&f.m, &part.b), 0);
        assert_int_equal(model_logp(&f.m, &part.b, logp, true), 0);
        assert_int_equal(model_backward(&f.m, &part.b, coef + 2 * i, NULL, NULL), 0);
    }
    assert_int_equal(differing(&f.m, g, f.m.grads.data), 0);
    free(g);
    fix_close(&f);
}

struct seen {
    const struct model *m;
    float *grads; /* as they stood when each parameter was reported */
    int *times;
    int32_t calls, last;
};

static int note_ready(void *payload, int32_t first, int32_t n)
{
    struct seen *s = payload;
    for (int32_t i = first; i < first + n; i++) {
        const struct param *p = &s->m->params[i];
        memcpy(s->grads + p->offset, (const float *)s->m->grads.data + p->offset,
               (size_t)tensor_count(&p->w) * sizeof(float));
        s->times[i]++;
    }
    s->calls++;
    s->last = first;
    return 0;
}

static int refuse_ready(void *payload, int32_t first, int32_t n)
{
    (void)payload;
    (void)first;
    (void)n;
    return err_set(ERR_COMM, "stop here");
}

static void test_model__ready_means_final(void **state)
{
    struct fix_pairs p;
    struct fix_batch fb;
    (void)state;
    fix_pairs_draw(&p, 10);
    fix_batch_pairs(&fb, &p, 0, FIX_PAIRS);
    for (int k = 0; k < 2 * FIX_SHAPES; k++) {
        const int shape = k / 2;
        struct fix f;
        double logp[S];
        fix_open_as(&f, dir, shape, k % 2 ? DT_BF16 : DT_F32, true, shape % 2);
        struct seen s = { &f.m, calloc((size_t)f.m.n_flat, sizeof(float)),
                          calloc((size_t)f.m.n_params, sizeof(int)), 0, -1 };
        assert_true(s.grads && s.times);
        run(&f, &fb, logp, NULL);
        memset(f.m.grads.data, 0, (size_t)f.m.n_flat * sizeof(float));
        assert_int_equal(model_backward(&f.m, &fb.b, coef, note_ready, &s), 0);
        for (int32_t i = 0; i < f.m.n_params; i++)
            assert_int_equal(s.times[i], 1);
        assert_int_equal(s.calls, f.m.arch.L + 2);
        assert_int_equal(s.last, f.m.embed);
        assert_memory_equal(s.grads, f.m.grads.data, (size_t)f.m.n_flat * sizeof(float));
        run(&f, &fb, logp, NULL);
        assert_int_equal(model_backward(&f.m, &fb.b, coef, refuse_ready, NULL), ERR_COMM);
        free(s.grads);
        free(s.times);
        fix_close(&f);
    }
}

static void test_model__table(void **state)
{
    (void)state;
    for (int k = 0; k < 2 * FIX_SHAPES; k++) {
        struct fix f;
        int64_t elements = 0;
        fix_open_as(&f, dir, k / 2, k % 2 ? DT_BF16 : DT_F32, false, false);
        for (int32_t i = 0; i < f.m.n_params; i++) {
            const struct param *p = &f.m.params[i];
            assert_int_equal((uintptr_t)p->w.data % 64, 0);
            assert_int_equal(p->decay, p->w.dim[1] > 1);
            elements += tensor_count(&p->w);
        }
        assert_int_equal(elements, arch_parameters(&f.m.arch));
        assert_int_equal(f.m.head == f.m.embed, f.m.arch.tied);
        fix_close(&f);
    }
}

static void test_model__random(void **state)
{
    struct fix f;
    double sum = 0, ss = 0;
    (void)state;
    fix_open(&f, dir, FIX_QWEN2_TIED, false, false);
    float *first = malloc((size_t)f.m.n_flat * sizeof *first);
    assert_non_null(first);
    assert_int_equal(model_random(&f.m, 42), 0);
    memcpy(first, f.m.weights.data, (size_t)f.m.n_flat * sizeof *first);
    assert_int_equal(model_random(&f.m, 43), 0);
    assert_memory_not_equal(first, f.m.weights.data, (size_t)f.m.n_flat * sizeof *first);
    assert_int_equal(model_random(&f.m, 42), 0);
    assert_memory_equal(first, f.m.weights.data, (size_t)f.m.n_flat * sizeof *first);
    const struct param *embed = &f.m.params[f.m.embed];
    const int64_t n = tensor_count(&embed->w);
    for (int64_t i = 0; i < n; i++) {
        sum += (double)first[i];
        ss += (double)first[i] * (double)first[i];
    }
    /* 1,952 draws of N(0, 0.02^2): five standard errors */
    assert_true(fabs(sum / (double)n) < 5 * 0.02 / sqrt((double)n));
    assert_true(fabs(sqrt(ss / (double)n) - 0.02) < 5 * 0.02 / sqrt(2.0 * (double)n));
    const struct layer *y = &f.m.layers[1];
    for (int64_t i = 0; i < f.m.arch.C; i++)
        assert_true(((float *)f.m.params[y->norm2].w.data)[i] == 1.0f);
    for (int64_t i = 0; i < f.m.params[y->qkv.b].w.dim[0]; i++)
        assert_true(((float *)f.m.params[y->qkv.b].w.data)[i] == 0.0f);
    /* a tensor's values do not depend on what it is fused with: element 0 of v_proj is its own
     * stream's */
    const struct param *qkv = &f.m.params[f.m.layers[0].qkv.w];
    const float *v = (const float *)qkv->w.data + qkv->slice[2].row * f.m.arch.C;
    assert_true(v[0] == (float)(0.02 * rng_normal(42, rng_stream_of(RNG_INIT, 4), 0)));
    free(first);
    fix_close(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_model__table),
        cmocka_unit_test(test_model__random),
        cmocka_unit_test(test_model__logp_equals_oracle),
        cmocka_unit_test(test_model__bf16_logp_near_oracle),
        cmocka_unit_test(test_model__gradients_equal_differences),
        cmocka_unit_test(test_model__bf16_gradients_near_float32),
        cmocka_unit_test(test_model__shared_prompt_equals_separate_rows),
        cmocka_unit_test(test_model__recompute_is_bit_equal),
        cmocka_unit_test(test_model__kept_logits),
        cmocka_unit_test(test_model__inference_buffers_give_the_same_logp),
        cmocka_unit_test(test_model__steps_allocate_nothing),
        cmocka_unit_test(test_model__two_runs_are_bit_equal),
        cmocka_unit_test(test_model__gradients_accumulate),
        cmocka_unit_test(test_model__ready_means_final),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
