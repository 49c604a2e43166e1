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
#include "isa.h"
#include "model_fixture.h"
#include "model_ref.h"

enum { S = 2 * FIX_PAIRS };
static char dir[64];
static const double coef[S] = { 0.3, -0.2, 0.7, 0.1, -1.1, 0.4, 0.05, -0.6 };
static const struct lora LORAS[] = {
    { 3, 6, false, LORA_ALL, 0 },
    { 2, 1, true, LORA_Q | LORA_V, 0 },
    { 5, 2.5, false, LORA_K | LORA_O | LORA_UP, 0 },
    { 1, 4, true, LORA_GATE | LORA_DOWN, 0 },
};
static const struct model_size TRAIN = { 64, 64, 64, true, 0, false };
static const struct model_size INFER = { 64, 64, 64, false, 0, false };

static int make_dir(void **state)
{
    (void)state;
    snprintf(dir, sizeof dir, "/tmp/t_lora-XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state)
{
    (void)state;
    return dir_remove(dir);
}

static void run(struct fix *f, const struct fix_batch *fb, double *logp, bool backward)
{
    assert_int_equal(model_forward(&f->m, &fb->b), 0);
    assert_int_equal(model_logp(&f->m, &fb->b, logp, backward), 0);
    if (!backward) return;
    memset(f->m.grads.data, 0, (size_t)f->m.n_trained * sizeof(float));
    assert_int_equal(model_backward(&f->m, &fb->b, coef, NULL, NULL), 0);
}

/* The oracle knows no adapters: its weights are the base's plus scale B A, in double. */
struct oracle {
    struct ref r;
    double *base; /* [n_flat] */
};

static void oracle_open(struct oracle *o, const struct model *m)
{
    ref_init(&o->r, m);
    o->base = malloc((size_t)m->n_flat * sizeof *o->base);
    assert_non_null(o->base);
    memcpy(o->base, o->r.w, (size_t)m->n_flat * sizeof *o->base);
}

static void oracle_close(struct oracle *o)
{
    ref_release(&o->r);
    free(o->base);
}

static void merge_target(const struct oracle *o, const struct param *w, const struct param_slice *s)
{
    const struct model *m = o->r.m;
    const int64_t cols = w->w.dim[1], at = w->offset + s->row * cols, r = m->arch.lora.rank;
    const int stem = (int)(strlen(s->name) - strlen(".weight"));
    char name[128];
    int64_t n;
    snprintf(name, sizeof name, "base_model.model.%.*s.lora_A.weight", stem, s->name);
    const double *a = ref_tensor(&o->r, name, &n);
    assert_int_equal(n, r * cols);
    snprintf(name, sizeof name, "base_model.model.%.*s.lora_B.weight", stem, s->name);
    const double *b = ref_tensor(&o->r, name, &n);
    assert_int_equal(n, s->rows * r);
    const double scale = m->arch.lora.alpha / (m->arch.lora.rslora ? sqrt((double)r) : (double)r);
    for (int64_t i = 0; i < s->rows; i++)
        for (int64_t j = 0; j < cols; j++) {
            double sum = 0;
            for (int64_t k = 0; k < r; k++)
                sum += b[i * r + k] * a[k * cols + j];
            o->r.w[at + i * cols + j] = o->base[at + i * cols + j] + scale * sum;
        }
}

static void oracle_merge(const struct oracle *o)
{
    const struct model *m = o->r.m;
    for (int32_t i = 0; i < m->n_base; i++)
        for (int32_t j = 0; j < m->params[i].n_slices; j++) {
            const char *name = m->params[i].slice[j].name;
            for (int t = 0; t < LORA_TARGETS; t++) {
                char end[32];
                snprintf(end, sizeof end, ".%s.weight", lora_target_name(1u << t));
                if ((m->arch.lora.targets >> t & 1) && strstr(name, end))
                    merge_target(o, &m->params[i], &m->params[i].slice[j]);
            }
        }
}

struct objective {
    const struct oracle *o;
    const struct fix_pairs *p;
};

static double objective(const void *ctx)
{
    const struct objective *x = ctx;
    double sum = 0;
    oracle_merge(x->o);
    for (int s = 0; s < S; s++)
        sum += coef[s] * ref_sequence(&x->o->r, x->p, s);
    return sum;
}

static void test_lora__logp_equals_oracle(void **state)
{
    struct fix_pairs p;
    struct fix_batch fb;
    (void)state;
    fix_pairs_draw(&p, 3);
    fix_batch_pairs(&fb, &p, 0, FIX_PAIRS);
    for (int shape = 0; shape < FIX_SHAPES; shape++)
        for (size_t k = 0; k < COUNT_OF(LORAS); k++) {
            struct fix f;
            struct oracle o;
            double logp[S];
            fix_open_lora(&f, dir, shape, DT_F32, &LORAS[k], &INFER);
            oracle_open(&o, &f.m);
            oracle_merge(&o);
            run(&f, &fb, logp, false);
            for (int s = 0; s < S; s++) {
                const double want = ref_sequence(&o.r, &p, s);
                if (!(fabs(logp[s] - want) <= 2 * ref_tolerance(&f.m, fabs(want))))
                    fail_msg("shape %d, adapters %zu, sequence %d: %.9g, expected %.9g", shape, k,
                             s, logp[s], want);
            }
            oracle_close(&o);
            fix_close(&f);
        }
}

static void test_lora__gradients_equal_differences(void **state)
{
    struct fix_pairs p;
    struct fix_batch fb;
    (void)state;
    fix_pairs_draw(&p, 4);
    fix_batch_pairs(&fb, &p, 0, FIX_PAIRS);
    for (int shape = 0; shape < FIX_SHAPES; shape++) {
        struct fix f;
        struct oracle o;
        double logp[S];
        fix_open_lora(&f, dir, shape, DT_F32, &LORAS[(size_t)shape % COUNT_OF(LORAS)], &TRAIN);
        assert_int_equal(tensor_count(&f.m.grads), f.m.n_trained);
        assert_true(f.m.n_trained < f.m.n_flat);
        oracle_open(&o, &f.m);
        run(&f, &fb, logp, true);
        for (int32_t i = f.m.first_trained; i < f.m.end_trained; i++)
            for (int32_t j = 0; j < f.m.params[i].n_slices; j++)
                ref_check_gradient(&o.r, i, &f.m.params[i].slice[j], 4, 8, objective,
                                   &(struct objective){ &o, &p });
        oracle_close(&o);
        fix_close(&f);
    }
}

/* As peft starts: B is zero, and the model is its base to the bit, whatever A is. */
static void test_lora__starts_as_the_base(void **state)
{
    static const enum dtype dtypes[] = { DT_F32, DT_BF16 };
    struct fix_pairs p;
    struct fix_batch fb;
    (void)state;
    fix_pairs_draw(&p, 5);
    fix_batch_pairs(&fb, &p, 0, FIX_PAIRS);
    for (size_t d = 0; d < 2; d++) {
        struct fix f, g;
        double with[S], without[S];
        fix_open_as(&g, dir, FIX_QWEN3, dtypes[d], false, 0);
        fix_open_lora(&f, dir, FIX_QWEN3, dtypes[d], &LORAS[0], &TRAIN);
        assert_int_equal(lora_init(&f.m, 3), 0);
        run(&g, &fb, without, false);
        run(&f, &fb, with, true);
        assert_memory_equal(with, without, sizeof with);
        for (int32_t i = f.m.first_trained; i < f.m.end_trained; i++) { /* only B has a gradient */
            const struct tensor grad = model_grad(&f.m, i);
            const bool b = strstr(f.m.params[i].slice[0].name, ".lora_B.");
            double most = 0;
            for (int64_t j = 0; j < tensor_count(&grad); j++)
                most = fmax(most, fabs((double)((const float *)grad.data)[j]));
            assert_int_equal(most > 0, b);
        }
        fix_close(&f);
        fix_close(&g);
    }
}

static void test_lora__init_is_uniform_and_repeatable(void **state)
{
    struct fix f;
    float w[200], again[200];
    double sum = 0, most = 0;
    (void)state;
    fix_open_lora(&f, dir, FIX_QWEN2_TIED, DT_BF16, &LORAS[0], &TRAIN);
    const struct param *a = &f.m.params[f.m.layers[1].down.lora_a];
    const int64_t n = tensor_count(&a->w);
    assert_true(n <= (int64_t)COUNT_OF(w));
    assert_int_equal(lora_init(&f.m, 9), 0);
    assert_int_equal(model_get(&f.m, a->offset, n, w), 0);
    for (int64_t i = 0; i < n; i++) {
        sum += (double)w[i];
        most = fmax(most, fabs((double)w[i]));
    }
    const double bound = 1 / sqrt((double)a->w.dim[1]);
    assert_true(most <= bound && most > 0.9 * bound);
    assert_true(fabs(sum / (double)n) < 4 * bound / sqrt(3.0 * (double)n));
    assert_int_equal(lora_init(&f.m, 8), 0);
    assert_int_equal(model_get(&f.m, a->offset, n, again), 0);
    assert_memory_not_equal(w, again, (size_t)n * sizeof *w);
    assert_int_equal(lora_init(&f.m, 9), 0);
    assert_int_equal(model_get(&f.m, a->offset, n, again), 0);
    assert_memory_equal(w, again, (size_t)n * sizeof *w);
    fix_close(&f);
}

/* Kept or computed again, the bits are the same; more rows than the buffer holds go in pieces. */
static void test_lora__recomputed_and_in_pieces(void **state)
{
    struct fix_pairs p;
    struct fix_batch fb;
    struct fix f, g;
    double one[S], two[S];
    (void)state;
    fix_pairs_draw(&p, 4);
    fix_batch_pairs(&fb, &p, 0, FIX_PAIRS);
    for (int d = 0; d < 2; d++) {
        fix_open_lora(&f, dir, FIX_QWEN3, d ? DT_BF16 : DT_F32, &LORAS[0], &TRAIN);
        fix_open_lora(&g, dir, FIX_QWEN3, d ? DT_BF16 : DT_F32, &LORAS[0],
                      &(struct model_size){ 64, 64, 64, true, 2, true });
        run(&f, &fb, one, true);
        run(&g, &fb, two, true);
        assert_memory_equal(one, two, sizeof one);
        if (d == 0) /* kept logits round otherwise in bfloat16 */
            for (int64_t i = 0; i < f.m.n_trained; i++)
                assert_true(fabs((double)((float *)f.m.grads.data)[i] -
                                 (double)((float *)g.m.grads.data)[i]) < 1e-5);
        g.m.lora_x = tensor_rows(&g.m.lora_x, 0, 5);
        run(&g, &fb, two, false);
        for (int s = 0; s < S; s++)
            assert_true(fabs(one[s] - two[s]) <= (d ? 0.2 : ref_tolerance(&f.m, fabs(one[s]))));
        fix_close(&f);
        fix_close(&g);
    }
}

/* What is reserved before is enough: a step allocates nothing in the backend. */
static void test_lora__steps_allocate_nothing(void **state)
{
    struct fix_pairs p;
    struct fix_batch fb;
    (void)state;
    fix_pairs_draw(&p, 6);
    fix_batch_pairs(&fb, &p, 0, FIX_PAIRS);
    for (int k = 0; k < 4 * ISAS; k++) {
        struct lora big = { 40, 6, false, LORA_ALL, 0 };
        struct fix f;
        double logp[S];
        const bool train = k % 4 < 2;
        fix_open_lora(&f, dir, FIX_QWEN3, k % 2 ? DT_BF16 : DT_F32, k % 3 ? &big : &LORAS[0],
                      train ? &TRAIN : &INFER);
        if (test_isa(f.be.cx, isa_names[k / 4])) {
            assert_int_equal(f.be.mem->reserve(f.be.cx, &f.sizes), 0);
            const int64_t made = f.be.mem->allocations(f.be.cx);
            run(&f, &fb, logp, train);
            run(&f, &fb, logp, train);
            assert_int_equal(f.be.mem->allocations(f.be.cx), made);
        }
        fix_close(&f);
    }
}

struct seen {
    const struct model *m;
    int64_t next; /* element that the next call's end must be */
};

static int note_ready(void *payload, int32_t first, int32_t n)
{
    struct seen *s = payload;
    const int32_t end = first + n;
    const int64_t last = end < s->m->n_params ? s->m->params[end].offset : s->m->n_trained;
    assert_int_equal(last, s->next);
    s->next = s->m->params[first].offset;
    return 0;
}

static void test_lora__ready_covers_the_adapters(void **state)
{
    struct fix_pairs p;
    struct fix_batch fb;
    struct fix f;
    double logp[S];
    (void)state;
    fix_pairs_draw(&p, 4);
    fix_batch_pairs(&fb, &p, 0, FIX_PAIRS);
    fix_open_lora(&f, dir, FIX_QWEN3, DT_F32, &LORAS[2], &TRAIN);
    struct seen s = { &f.m, f.m.n_trained };
    assert_int_equal(model_forward(&f.m, &fb.b), 0);
    assert_int_equal(model_logp(&f.m, &fb.b, logp, true), 0);
    assert_int_equal(model_backward(&f.m, &fb.b, coef, note_ready, &s), 0);
    assert_int_equal(s.next, 0);
    fix_close(&f);
}

/* What is saved is read back to the bit; merged, the model computes the same without adapters. */
static void test_lora__saved_read_and_merged(void **state)
{
    struct fix_pairs p;
    struct fix_batch fb;
    char base[96], saved[96];
    (void)state;
    fix_pairs_draw(&p, 6);
    fix_batch_pairs(&fb, &p, 0, FIX_PAIRS);
    snprintf(base, sizeof base, "%s/base", dir);
    snprintf(saved, sizeof saved, "%s/adapter", dir);
    for (size_t k = 0; k < COUNT_OF(LORAS); k++) {
        struct fix f, g;
        struct arch a;
        struct lora other;
        double logp[S], again[S];
        fix_open(&g, dir, FIX_LLAMA3_BIASES, false, 0);
        assert_int_equal(model_save(&g.m, base, dir, ST_F32, 1 << 30), 0);
        fix_close(&g);
        fix_open_lora(&f, dir, FIX_LLAMA3_BIASES, DT_F32, &LORAS[k], &TRAIN);
        run(&f, &fb, logp, false);
        assert_int_equal(model_save(&f.m, saved, base, ST_F32, 1), 0);
        fix_close(&f);
        assert_true(arch_adapter(saved));
        assert_int_equal(arch_load(&a, saved), 0);
        assert_memory_equal(&a.lora.targets, &LORAS[k].targets, sizeof a.lora.targets);
        assert_true(a.lora.rank == LORAS[k].rank && a.lora.alpha == LORAS[k].alpha &&
                    a.lora.rslora == LORAS[k].rslora);
        fix_open_lora(&g, dir, FIX_LLAMA3_BIASES, DT_F32, &a.lora, &INFER);
        memset(g.m.weights.data, 0, (size_t)g.m.n_flat * sizeof(float));
        assert_int_equal(model_load(&g.m, saved), 0);
        run(&g, &fb, again, false);
        assert_memory_equal(logp, again, sizeof logp);
        assert_int_equal(lora_merge(&g.m), 0);
        run(&g, &fb, again, false);
        for (int s = 0; s < S; s++)
            assert_true(fabs(logp[s] - again[s]) <= 2 * ref_tolerance(&g.m, fabs(logp[s])));
        fix_close(&g);
        other = LORAS[k];
        other.alpha *= 2;
        fix_open_lora(&f, dir, FIX_LLAMA3_BIASES, DT_F32, &other, &TRAIN);
        assert_int_equal(lora_load(&f.m, saved), ERR_INPUT);
        fix_close(&f);
    }
}

static double objective_of(struct fix *f, const struct fix_batch *fb)
{
    double logp[S], sum = 0;
    run(f, fb, logp, false);
    for (int s = 0; s < S; s++)
        sum += coef[s] * logp[s];
    return sum;
}

/* With dropout, along each adapter's own gradient g: |f(w + h g / |g|) - f(w - h g / |g|)| = 2 h |g|, which a mask of the backward that is not the
 * forward's would miss. */
static void test_lora__dropout_has_the_gradient_of_its_forward(void **state)
{
    const struct lora lora = { 4, 8, false, LORA_ALL, 0.5 };
    struct fix_pairs p;
    struct fix_batch fb;
    (void)state;
    fix_pairs_draw(&p, 12);
    fix_batch_pairs(&fb, &p, 0, FIX_PAIRS);
    for (int shape = 0; shape < FIX_SHAPES; shape++) {
        struct fix f;
        double logp[S], again[S];
        fix_open_lora(&f, dir, shape, DT_F32, &lora, &TRAIN);
        run(&f, &fb, again, false);
        f.m.drop = (struct dropout){ .p = 0.5, .key = 5, .first = 7 };
        run(&f, &fb, logp, true);
        assert_true(memcmp(logp, again, sizeof logp) != 0);
        float *w = f.m.weights.data, *kept = malloc((size_t)f.m.n_trained * sizeof *kept);
        const float *g = f.m.grads.data;
        assert_non_null(kept);
        memcpy(kept, w, (size_t)f.m.n_trained * sizeof *kept);
        for (int32_t i = f.m.first_trained; i < f.m.end_trained; i++) {
            const int64_t at = f.m.params[i].offset, n = tensor_count(&f.m.params[i].w);
            double norm = 0, side[2];
            for (int64_t k = at; k < at + n; k++)
                norm += (double)g[k] * (double)g[k];
            norm = sqrt(norm);
            const double h = 0.01 / norm;
            for (int j = 0; j < 2; j++) {
                for (int64_t k = at; k < at + n; k++)
                    w[k] = (float)((double)kept[k] + (j ? -h : h) * (double)g[k] / norm);
                side[j] = objective_of(&f, &fb);
                memcpy(w, kept, (size_t)f.m.n_trained * sizeof *kept);
            }
            const double slope = (side[0] - side[1]) / (2 * h);
            if (!(fabs(slope - norm) <= 0.01 * norm))
                fail_msg("shape %d, %s: slope %.6g, gradient %.6g", shape,
                         f.m.params[i].slice[0].name, slope, norm);
        }
        free(kept);
        fix_close(&f);
    }
}

/* A pair by itself drops what it drops among others, and a layer that is computed again what it dropped before. */
static void test_lora__dropout_does_not_depend_on_the_cut(void **state)
{
    const struct lora lora = { 4, 8, false, LORA_ALL, 0.3 };
    const struct model_size again = { 64, 64, 64, true, 1, false };
    struct fix_pairs p;
    struct fix_batch fb, one;
    struct fix f, g;
    double logp[S], alone[S];
    (void)state;
    fix_pairs_draw(&p, 13);
    fix_batch_pairs(&fb, &p, 0, FIX_PAIRS);
    fix_open_lora(&f, dir, FIX_QWEN3, DT_F32, &lora, &TRAIN);
    fix_open_lora(&g, dir, FIX_QWEN3, DT_F32, &lora, &again);
    f.m.drop = g.m.drop = (struct dropout){ .p = 0.3, .key = 9 };
    run(&f, &fb, logp, true);
    run(&g, &fb, alone, true);
    assert_memory_equal(logp, alone, sizeof logp);
    assert_memory_equal(f.m.grads.data, g.m.grads.data, (size_t)f.m.n_trained * sizeof(float));
    for (int i = 0; i < FIX_PAIRS; i++) {
        fix_batch_pairs(&one, &p, i, 1);
        run(&f, &one, alone, false);
        f.m.drop.first += one.b.T;
        for (int s = 0; s < 2; s++)
            assert_true(fabs(alone[s] - logp[2 * i + s]) <=
                        2 * ref_tolerance(&f.m, fabs(logp[2 * i + s])));
    }
    fix_close(&f);
    fix_close(&g);
}

static void test_lora__foreign_adapters_are_refused(void **state)
{
    static const struct {
        const char *text, *says;
    } bad[] = {
        { "{\"peft_type\": \"LOHA\", \"r\": 2, \"lora_alpha\": 2}", "peft_type" },
        { "{\"peft_type\": \"LORA\", \"r\": 0, \"lora_alpha\": 2}", "r: expected" },
        { "{\"peft_type\": \"LORA\", \"r\": 2}", "lora_alpha" },
        { "{\"peft_type\": \"LORA\", \"r\": 2, \"lora_alpha\": 2, \"target_modules\": "
          "\"all-linear\"}",
          "target_modules: expected a list" },
        { "{\"peft_type\": \"LORA\", \"r\": 2, \"lora_alpha\": 2, \"target_modules\": "
          "[\"lm_head\"]}",
          "\"lm_head\" is not one of" },
        { "{\"peft_type\": \"LORA\", \"r\": 2, \"lora_alpha\": 2, \"use_dora\": true}",
          "use_dora: not supported" },
        { "{\"peft_type\": \"LORA\", \"r\": 2, \"lora_alpha\": 2, \"bias\": \"all\"}",
          "bias: \"all\" is not supported" },
        { "{\"peft_type\": \"LORA\", \"r\": 2, \"lora_alpha\": 2, \"rank_pattern\": {\"q_proj\": "
          "4}}",
          "rank_pattern: not supported" },
        { "{\"peft_type\": \"LORA\", \"r\": 2, \"lora_alpha\": 2, \"lora_dropout\": 1}",
          "lora_dropout: expected a number in [0, 1)" },
        { "[]", "expected an object" },
    };
    struct lora l;
    (void)state;
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        fix_write(dir, "adapter_config.json", bad[i].text);
        assert_int_equal(lora_read_config(&l, dir), ERR_INPUT);
        assert_non_null(strstr(err_msg(), "adapter_config.json:1:"));
        if (!strstr(err_msg(), bad[i].says)) fail_msg("%s: %s", bad[i].text, err_msg());
    }
    fix_write(dir, "adapter_config.json", "{\"base_model_name_or_path\": \"/nonexistent\"}");
    char *base;
    assert_int_equal(arch_adapter_base(&base, dir), ERR_INPUT);
    assert_non_null(strstr(err_msg(), "is not a directory"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lora__logp_equals_oracle),
        cmocka_unit_test(test_lora__gradients_equal_differences),
        cmocka_unit_test(test_lora__starts_as_the_base),
        cmocka_unit_test(test_lora__init_is_uniform_and_repeatable),
        cmocka_unit_test(test_lora__recomputed_and_in_pieces),
        cmocka_unit_test(test_lora__steps_allocate_nothing),
        cmocka_unit_test(test_lora__ready_covers_the_adapters),
        cmocka_unit_test(test_lora__saved_read_and_merged),
        cmocka_unit_test(test_lora__dropout_has_the_gradient_of_its_forward),
        cmocka_unit_test(test_lora__dropout_does_not_depend_on_the_cut),
        cmocka_unit_test(test_lora__foreign_adapters_are_refused),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
