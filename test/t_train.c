/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "../src/train/sample.h"
#include "../src/train/stage.h"
#include "scratch.h"

#define PI 3.14159265358979323846

static void assert_near(double got, double want, double allowed)
{
    if (!(fabs(got - want) <= allowed))
        fail_msg("%.17g, expected %.17g within %g", got, want, allowed);
}

/* the learning rate ------------------------------------------------------------------------------------------------ */

/* get_linear_schedule_with_warmup, get_cosine_schedule_with_warmup and get_constant_schedule_with_warmup of transformers, as written there */
static double hugging_face(enum schedule s, int64_t step, int64_t warmup, int64_t total)
{
    if (step < warmup) return (double)step / (double)MAX((int64_t)1, warmup);
    if (s == SCHEDULE_CONSTANT) return 1;
    if (s == SCHEDULE_LINEAR)
        return fmax(0, (double)(total - step) / (double)MAX((int64_t)1, total - warmup));
    const double progress = (double)(step - warmup) / (double)MAX((int64_t)1, total - warmup);
    return fmax(0, 0.5 * (1 + cos(PI * 0.5 * 2 * progress)));
}

static void test_optim__schedules(void **state)
{
    static const double ratio[] = { 0, 0.03, 0.1, 0.5, 1 };
    static const int64_t total[] = { 1, 2, 7, 100, 1001 };
    (void)state;
    for (int s = SCHEDULE_LINEAR; s <= SCHEDULE_CONSTANT; s++)
        for (size_t r = 0; r < COUNT_OF(ratio); r++)
            for (size_t k = 0; k < COUNT_OF(total); k++)
                for (int64_t t = 0; t < total[k]; t++) {
                    const int64_t warmup = (int64_t)ceil((double)total[k] * ratio[r]);
                    const double got = schedule_lr((enum schedule)s, 3e-4, ratio[r], t, total[k]);
                    const double want = 3e-4 * hugging_face((enum schedule)s, t, warmup, total[k]);
                    assert_true(fabs(got - want) <= 4 * DBL_EPSILON * 3e-4);
                }
    /* the first and the last step, by hand */
    assert_near(schedule_lr(SCHEDULE_LINEAR, 1, 0, 0, 4), 1, 0);
    assert_near(schedule_lr(SCHEDULE_LINEAR, 1, 0, 3, 4), 0.25, 0);
    assert_near(schedule_lr(SCHEDULE_LINEAR, 1, 0.5, 0, 4), 0, 0);
    assert_near(schedule_lr(SCHEDULE_LINEAR, 1, 0.5, 1, 4), 0.5, 0);
    assert_near(schedule_lr(SCHEDULE_COSINE, 1, 0, 2, 4), 0.5, 1e-15);
    assert_near(schedule_lr(SCHEDULE_CONSTANT, 1, 0.26, 2, 4), 1, 0);
}

static void test_stage__steps(void **state)
{
    struct stage_config c = { .epochs = 3, .batch_size = 64 };
    (void)state;
    assert_int_equal(stage_steps(&c, 640), 30);
    assert_int_equal(stage_steps(&c, 641), 33);
    assert_int_equal(stage_steps(&c, 10), 3); /* a batch larger than the data */
    c.epochs = 0.5;
    assert_int_equal(stage_steps(&c, 640), 5);
    assert_int_equal(stage_steps(&c, 641), 6);
    c.epochs = 1e-9;
    assert_int_equal(stage_steps(&c, 641), 1);
    c.epochs = 1e6;
    c.max_steps = 7;
    assert_int_equal(stage_steps(&c, 640), 7);
    c.epochs = 1;
    assert_int_equal(stage_steps(&c, 64), 1);
    c.max_steps = 0;
    c.batch_size = 1;
    c.epochs = 1e6;
    assert_int_equal(stage_steps(&c, INT32_MAX), (int64_t)INT32_MAX * 1000000);
}

/* metrics ---------------------------------------------------------------------------------------------------------- */

static double value(const json_t *row, const char *key)
{
    const json_t *v = json_object_get(row, key);
    if (!json_is_real(v)) fail_msg("%s is not a real number", key);
    return json_real_value(v);
}

static void add(struct metrics *m, const struct loss_def *def, const struct loss_opts *o,
                const struct loss_pair *p)
{
    struct loss_grad g;
    def->eval(&g, p, o, 0);
    metrics_add_pair(m, def, o, p, &g);
}

static void test_metrics__means_over_pairs(void **state)
{
    const struct loss_def *def = loss_find("bdpo");
    const struct loss_opts o = { .beta = 0.1, .lambda = 0.5 };
    const struct loss_pair a = { -10, -20, -11, -18, 4, 6 }, b = { -31, -5, -30, -7, 8, 2 };
    struct metrics m = { 0 };
    json_t *row = json_object();
    (void)state;
    add(&m, def, &o, &a);
    add(&m, def, &o, &b);
    assert_int_equal(metrics_set(row, "eval/", &m, def), 0);
    assert_int_equal(json_object_size(row), 14);
    assert_near(value(row, "eval/examples"), 2, 0);
    assert_near(value(row, "eval/logps/chosen"), -20.5, 0);
    assert_near(value(row, "eval/logps/rejected"), -12.5, 0);
    assert_near(value(row, "eval/ref_logps/chosen"), -20.5, 0);
    assert_near(value(row, "eval/ref_logps/rejected"), -12.5, 0);
    assert_near(value(row, "eval/nll_loss"), 41.0 / 12, 1e-15);
    assert_near(value(row, "eval/rewards/chosen"), 0.1 * (1 - 1) / 2, 1e-15);
    assert_near(value(row, "eval/rewards/rejected"), 0.1 * (-2 + 2) / 2, 1e-15);
    assert_near(value(row, "eval/rewards/accuracies"), 0.5, 0); /* 1 > -2, -1 < 2 */
    assert_near(value(row, "eval/rewards/margins"), 0, 1e-15);
    assert_near(value(row, "eval/in_distribution"),
                (log(exp(-10) + exp(-20)) + log(exp(-31) + exp(-5))) / 2, 1e-12);
    /* g = s(v + logit(1/2)), v = -2 and 2; pi(w) > ref(w) / 2: u = 1 and -1 against log(1/2) */
    assert_near(value(row, "eval/bdpo/gate"), (1 / (1 + exp(2)) + 1 / (1 + exp(-2))) / 2, 1e-14);
    assert_near(value(row, "eval/bdpo/bound"), 0.5, 0);
    const double h[2] = { 0.1 * (1 - log(0.5 * exp(-2) + 0.5)),
                          0.1 * (-1 - log(0.5 * exp(2) + 0.5)) };
    assert_near(value(row, "eval/loss"), (log1p(exp(-h[0])) + log1p(exp(-h[1]))) / 2, 1e-14);
    json_decref(row);
}

static void test_metrics__keys_of_each_loss(void **state)
{
    const struct loss_pair p = { -10, -20, -11, -18, 4, 6 };
    (void)state;
    for (size_t i = 0; i < loss_count; i++) {
        const struct loss_def *def = &loss_table[i];
        struct metrics m = { 0 };
        json_t *row = json_object();
        add(&m, def, &def->defaults, &p);
        assert_int_equal(metrics_set(row, "", &m, def), 0);
        const bool ref = strcmp(def->name, "orpo") != 0, bdpo = strcmp(def->name, "bdpo") == 0;
        assert_int_equal(json_object_get(row, "ref_logps/chosen") != NULL, ref);
        assert_int_equal(json_object_get(row, "bdpo/gate") != NULL, bdpo);
        assert_int_equal(json_object_size(row), 9 + 2 * ref + 2 * bdpo);
        json_decref(row);
    }
    struct metrics m = { 0 };
    json_t *row = json_object();
    metrics_add_row(&m, -12,
                    4); /* SFT: the mean over the tokens of all rows, not of the rows' means */
    metrics_add_row(&m, -3, 1);
    assert_int_equal(metrics_set(row, "", &m, NULL), 0);
    assert_int_equal(json_object_size(row), 1);
    assert_near(value(row, "loss"), 3, 0);
    json_decref(row);
}

static void test_metrics__not_finite(void **state)
{
    json_t *row = json_object();
    struct buf b = { 0 };
    struct metrics m = { 0 };
    const struct loss_def *def = loss_find("dpo");
    const struct loss_pair p = { -INFINITY, -INFINITY, -3, -4, 2, 2 };
    (void)state;
    metrics_real(row, "a", NAN);
    metrics_real(row, "b", -NAN);
    metrics_real(row, "c", INFINITY);
    metrics_real(row, "d", -INFINITY);
    metrics_real(row, "e", 0.1);
    metrics_int(row, "f", INT64_MAX);
    metrics_text(row, "g", "x\"\n");
    assert_int_equal(json_dump(&b, row, 0), 0);
    assert_string_equal(b.data, "{\"a\": \"NaN\", \"b\": \"NaN\", \"c\": \"Infinity\", \"d\": "
                                "\"-Infinity\", \"e\": 0.1, \"f\": 9223372036854775807, "
                                "\"g\": \"x\\\"\\n\"}");
    json_object_clear(row);
    add(&m, def, &def->defaults, &p); /* both at -inf: still a row of JSON */
    assert_int_equal(metrics_set(row, "", &m, def), 0);
    assert_string_equal(json_string_value(json_object_get(row, "logps/chosen")), "-Infinity");
    assert_string_equal(json_string_value(json_object_get(row, "in_distribution")), "-Infinity");
    json_decref(row);
    buf_release(&b);
}

/* rows ------------------------------------------------------------------------------------------------------------- */

static void put(struct rows_file *f, const char *stage, int step)
{
    json_t *row = json_pack("{s:s, s:i}", "stage", stage, "step", step);
    assert_int_equal(rows_put(f, row), 0);
    json_decref(row);
}

static void expect_file(const char *path, const char *want)
{
    char *text;
    size_t len;
    assert_int_equal(file_read(&text, &len, path, 1 << 20), 0);
    assert_string_equal(text, want);
    free(text);
}

#define ROW(stage, step) "{\"stage\": \"" stage "\", \"step\": " step "}\n"

static void test_rows__cut_back(void **state)
{
    const char *path = scratch(state, "metrics.jsonl");
    struct rows_file f = { 0 };
    int64_t bytes;
    assert_int_equal(rows_stage_bytes(path, "sft", &bytes), 0);
    assert_int_equal(bytes, 0);
    assert_int_equal(rows_open(&f, path, 0), 0);
    put(&f, "sft", 1);
    put(&f, "sft", 2);
    const int64_t two = f.bytes;
    put(&f, "preference", 1);
    assert_int_equal(rows_sync(&f), 0);
    rows_close(&f);
    expect_file(path, ROW("sft", "1") ROW("sft", "2") ROW("preference", "1"));
    assert_int_equal(rows_stage_bytes(path, "sft", &bytes), 0);
    assert_int_equal(bytes, two);
    assert_int_equal(rows_open(&f, path, two), 0);
    put(&f, "preference", 9);
    rows_close(&f);
    expect_file(path, ROW("sft", "1") ROW("sft", "2") ROW("preference", "9"));
    assert_int_equal(rows_open(&f, path, -1), 0);
    put(&f, "preference", 10);
    const int64_t all = f.bytes;
    rows_close(&f);
    expect_file(path,
                ROW("sft", "1") ROW("sft", "2") ROW("preference", "9") ROW("preference", "10"));
    assert_int_equal(rows_open(&f, path, all + 1),
                     ERR_CHECKPOINT); /* rows that the checkpoint knew are gone */
    assert_msg("metrics.jsonl");
    rows_close(&f);
    assert_int_equal(rows_open(&f, path, 0), 0);
    rows_close(&f);
    expect_file(path, "");
}

static void test_rows__unfinished_line(void **state)
{
    const char *path = scratch(state, "metrics.jsonl");
    static const char text[] = ROW("sft", "1") "{\"stage\": \"sft\", \"st";
    int64_t bytes;
    scratch_put(path, text, sizeof text - 1);
    assert_int_equal(rows_stage_bytes(path, "sft", &bytes), 0);
    assert_int_equal(bytes, strlen(ROW("sft", "1")));
    assert_int_equal(rows_stage_bytes(path, "preference", &bytes), 0);
    assert_int_equal(bytes, 0);
}

static void test_rows__cannot_write(void **state)
{
    struct rows_file f = { 0 };
    json_t *row = json_object();
    assert_int_equal(rows_open(&f, scratch(state, "none/metrics.jsonl"), 0), ERR_IO);
    rows_close(&f);
    if (!file_exists("/dev/full")) {
        json_decref(row);
        print_message("there is no /dev/full\n");
        skip();
    }
    assert_int_equal(rows_open(&f, "/dev/full", -1), 0);
    assert_int_equal(rows_put(&f, row), ERR_IO);
    assert_msg("No space left");
    rows_close(&f);
    json_decref(row);
}

/* sampling --------------------------------------------------------------------------------------------------------- */

enum { V = 6 };
static const float LOGITS[V] = { 0.5F, 2.0F, -1.0F, 2.0F, 1.0F, -30.0F };

static int32_t draw(double temperature, int64_t top_k, double top_p, double u)
{
    struct sample_work work[V];
    return sample_token(LOGITS, V, temperature, top_k, top_p, u, work);
}

static void test_sample__greedy(void **state)
{
    static const float last[] = { -INFINITY, -5, -4 };
    struct sample_work work[V];
    (void)state;
    for (double u = 0; u < 1; u += 0.07) {
        assert_int_equal(draw(0, 0, 1, u), 1); /* of equals the lowest id */
        assert_int_equal(draw(1, 1, 1, u), 1);
        assert_int_equal(draw(1, 0, 1e-9, u), 1);
        assert_int_equal(draw(7, 1, 0.5, u), 1);
    }
    assert_int_equal(sample_token(last, 3, 0, 0, 1, 0.5, work), 2);
    assert_int_equal(sample_token(last, 1, 1, 0, 1, 0.5, work), 0);
}

/* Share of each token over a fine grid of u against the softmax of the tokens in `kept` (bit i: token i), summed in the order of ids or of
 * likelihood: only the shares are compared. */
static void expect_shares(double temperature, int64_t top_k, double top_p, unsigned kept)
{
    enum { N = 20000 };
    int count[V] = { 0 };
    double p[V], total = 0;
    for (int i = 0; i < N; i++)
        count[draw(temperature, top_k, top_p, (i + 0.5) / N)]++;
    for (int i = 0; i < V; i++)
        total += p[i] = kept >> i & 1 ? exp((double)LOGITS[i] / temperature) : 0;
    for (int i = 0; i < V; i++)
        if (fabs((double)count[i] / N - p[i] / total) > 2.0 / N)
            fail_msg("T %g, k %d, p %g: token %d has share %g, expected %g", temperature,
                     (int)top_k, top_p, i, (double)count[i] / N, p[i] / total);
}

static void test_sample__distribution(void **state)
{
    (void)state;
    expect_shares(1, 0, 1, 0x3F);
    expect_shares(0.5, 0, 1, 0x3F);
    expect_shares(3, 0, 1, 0x3F);
    expect_shares(100, 0, 1, 0x3F);
    expect_shares(1, 2, 1, 0x0A);
    expect_shares(1, 3, 1, 0x1A);
    expect_shares(1, 100, 1, 0x3F);
    /* probabilities: 1 and 3: 0.3787 each, 4: 0.139, 0: 0.084, 2: 0.019 */
    expect_shares(1, 0, 0.3, 0x02);
    expect_shares(1, 0, 0.5, 0x0A);
    expect_shares(1, 0, 0.76, 0x1A); /* 0.7574 is not enough */
    expect_shares(1, 0, 0.9, 0x1B);
    /* after top-k 3 what is left counts as all: 1 and 3 are 0.845 of it */
    expect_shares(1, 3, 0.84, 0x0A);
    expect_shares(1, 3, 0.86, 0x1A);
}

static void test_sample__edges(void **state)
{
    static const float wide[V] = { -INFINITY, FLT_MAX, -FLT_MAX, 0, 1, 2 };
    struct sample_work work[V];
    (void)state;
    for (double u = 0; u < 1; u += 0.01) {
        assert_int_equal(sample_token(wide, V, 1, 0, 1, u, work), 1);
        const int32_t cold = draw(1e-300, 0, 1, u); /* only the two equals are left */
        assert_true(cold == 1 || cold == 3);
    }
    assert_int_equal(draw(1, 0, 1, 0), 0);
    assert_true(draw(1, 0, 1, 1 - DBL_EPSILON) >= 0);
}

#define T(f) cmocka_unit_test_setup_teardown(f, scratch_make, scratch_remove)
int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_optim__schedules),
        cmocka_unit_test(test_stage__steps),
        cmocka_unit_test(test_metrics__means_over_pairs),
        cmocka_unit_test(test_metrics__keys_of_each_loss),
        cmocka_unit_test(test_metrics__not_finite),
        T(test_rows__cut_back),
        T(test_rows__unfinished_line),
        T(test_rows__cannot_write),
        cmocka_unit_test(test_sample__greedy),
        cmocka_unit_test(test_sample__distribution),
        cmocka_unit_test(test_sample__edges),
    };
    return cmocka_run_group_tests_name("train", tests, NULL, NULL);
}
