/* SPDX-License-Identifier: MIT
 * eval/kl against the sum over every response that there is, and the sampling behind it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "../src/io/file.h"
#include "../src/train/kl.h"
#include "model_fixture.h"

enum { V = FIX_VOCAB, END = 7, NEW = 2, SAMPLES = 6000, PROMPTS = 2 };
static char dir[64];

static int make_dir(void **state)
{
    (void)state;
    snprintf(dir, sizeof dir, "/tmp/t_kl-XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state)
{
    (void)state;
    return dir_remove(dir);
}

static int32_t prompt_ids[] = { 3, 14, 15, END, 9, 26, 5, 35, END };
static struct example prompt[PROMPTS] = { { .at = 0, .np = 3, .nw = 1 },
                                          { .at = 4, .np = 4, .nw = 1 } };
static const struct dataset prompts = { .ids = prompt_ids, .n_ids = 9, .ex = prompt, .n = PROMPTS };

struct both { /* a policy, and a reference that is its weights with noise */
    struct fix f;
    struct plan plan;
    struct kl k;
};

static void both_open(struct both *b, double noise, int64_t samples)
{
    const struct kl_opts o = {
        .samples = samples, .max_tokens = NEW, .seed = 5, .eos = END, .end = -1
    };
    float *w;
    memset(b, 0, sizeof *b);
    fix_open(&b->f, dir, FIX_QWEN2_TIED, false, false);
    assert_int_equal(kl_plan(&b->k, &b->plan, &b->f.m, &b->f.m.arch, &prompts, &o), 0);
    assert_int_equal(plan_grant(&b->plan, &b->f.be), 0);
    assert_int_equal(kl_ready(&b->k), 0);
    assert_int_equal(MEM_NEW(&w, b->f.m.n_flat), 0);
    assert_int_equal(model_get(&b->f.m, 0, b->f.m.n_flat, w), 0);
    for (int64_t i = 0; i < b->f.m.n_flat; i++)
        w[i] += (float)(noise * rng_normal(1, RNG_TEST, (uint64_t)i));
    assert_int_equal(model_put(&b->k.ref, 0, b->f.m.n_flat, w), 0);
    free(w);
    b->k.loaded = true;
}

static void both_close(struct both *b)
{
    plan_release(&b->plan, &b->f.be);
    kl_release(&b->k);
    fix_close(&b->f);
}

/* Every response of at most two tokens to prompt x: the end token alone, or another token and then any. */
static void all_responses(struct dataset *d, int x)
{
    int32_t *id;
    memset(d, 0, sizeof *d);
    assert_int_equal(MEM_NEW(&d->ids, V * V * 8), 0);
    assert_int_equal(MEM_NEW(&d->ex, V * V), 0);
    id = d->ids;
    for (int a = 0; a < V; a++)
        for (int c = 0; c < (a == END ? 1 : V); c++) {
            const int32_t nw = a == END ? 1 : 2;
            d->ex[d->n++] = (struct example){ .at = id - d->ids, .np = prompt[x].np, .nw = nw };
            memcpy(id, prompt_ids + prompt[x].at, (size_t)prompt[x].np * sizeof *id);
            id += prompt[x].np;
            *id++ = a;
            if (a != END) *id++ = c;
        }
    assert_int_equal(d->n, 1 + (V - 1) * V);
}

/* KL and the variance of the log-ratio, by enumeration. */
static void exact(struct both *b, int x, double *mean, double *variance)
{
    struct dataset d;
    struct scores pi = { 0 }, ref = { 0 };
    double total = 0, square = 0;
    all_responses(&d, x);
    assert_int_equal(scores_init(&pi, d.n), 0);
    assert_int_equal(scores_init(&ref, d.n), 0);
    assert_int_equal(score_all(&pi, NULL, false, &b->f.m, &b->k.batch, &d, b->k.longest), 0);
    assert_int_equal(score_all(&ref, NULL, false, &b->k.ref, &b->k.batch, &d, b->k.longest), 0);
    *mean = 0;
    for (int64_t i = 0; i < d.n; i++) {
        const double p = exp(pi.w[i]), t = pi.w[i] - ref.w[i];
        total += p;
        *mean += p * t;
        square += p * t * t;
    }
    *variance = square - *mean * *mean;
    assert_true(fabs(total - 1) < 1e-5);
    scores_release(&pi);
    scores_release(&ref);
    dataset_release(&d);
}

static void test_kl__equals_enumeration(void **state)
{
    struct both b;
    struct kl_result r, again;
    double mean[PROMPTS], variance[PROMPTS], *rows;
    (void)state;
    both_open(&b, 0.1, SAMPLES);
    for (int x = 0; x < PROMPTS; x++)
        exact(&b, x, &mean[x], &variance[x]);
    assert_int_equal(MEM_NEW(&rows, SAMPLES), 0);
    assert_int_equal(kl_measure(&b.k, &r, rows), 0);
    for (int x = 0; x < PROMPTS; x++) { /* each prompt by itself */
        double sum = 0;
        for (int i = x; i < SAMPLES; i += PROMPTS)
            sum += rows[i];
        const double error = sqrt(variance[x] * PROMPTS / SAMPLES);
        assert_true(mean[x] > 10 * error); /* a KL that the test could miss would say nothing */
        assert_true(fabs(sum * PROMPTS / SAMPLES - mean[x]) < 4 * error);
    }
    const double both = (mean[0] + mean[1]) / 2;
    const double spread =
        (variance[0] + variance[1]) / 2 + pow(mean[0] - both, 2) / 2 + pow(mean[1] - both, 2) / 2;
    assert_true(fabs(r.mean - both) < 4 * r.error);
    assert_true(fabs(r.error / sqrt(spread / SAMPLES) - 1) < 0.1);
    assert_int_equal(kl_measure(&b.k, &again, NULL), 0);
    assert_true(again.mean == r.mean && again.error == r.error);
    free(rows);
    both_close(&b);
}

static void test_kl__of_the_same_model(void **state)
{
    struct both b;
    struct kl_result r;
    (void)state;
    both_open(&b, 0, 40);
    assert_int_equal(kl_measure(&b.k, &r, NULL), 0);
    assert_true(r.mean == 0 && r.error == 0);
    both_close(&b);
}

/* The answers do not depend on how many are drawn together: 3 samples are the first 3 of 40. */
static void test_kl__any_batch(void **state)
{
    struct both few, many;
    struct kl_result r;
    double a[3], b[40];
    (void)state;
    both_open(&few, 0.1, 3);
    both_open(&many, 0.1, 40);
    assert_int_equal(kl_measure(&few.k, &r, a), 0);
    assert_int_equal(kl_measure(&many.k, &r, b), 0);
    for (int i = 0; i < 3; i++)
        assert_true(fabs(a[i] - b[i]) < 1e-4); /* another answer would be off by more */
    both_close(&few);
    both_close(&many);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kl__equals_enumeration),
        cmocka_unit_test(test_kl__of_the_same_model),
        cmocka_unit_test(test_kl__any_batch),
    };
    return cmocka_run_group_tests_name("kl", tests, make_dir, remove_dir);
}
