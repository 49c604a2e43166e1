/* SPDX-License-Identifier: MIT */
#include "../src/data/batch.h"
#include "../src/io/file.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <cmocka.h>

#define DATA         "../shared/data/"
#define QWEN         DATA "tokenizers/qwen2.5"
#define STORIES      DATA "models/stories260K"
#define HH           DATA "pairs/hh_harmless_1500.jsonl.gz"
#define LLAMAFACTORY DATA "pairs/llamafactory_dpo_en.jsonl"
#define GSM8K        DATA "pairs/gsm8k_model_solutions_pairs.jsonl"

static void must(int rc)
{
    if (rc < 0) fail_msg("%s", err_msg());
}

struct loaded {
    struct tokenizer *tok;
    struct chat_template *tmpl;
    struct dataset d;
    double seconds;
};

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void load(struct loaded *l, const char *model, const char *path, int64_t max_length)
{
    char copy[200];
    char *paths[1] = { copy };
    if (!file_exists(path) || !dir_exists(model)) {
        print_message("skipped: %s or %s is not here\n", path, model);
        skip();
    }
    memset(l, 0, sizeof *l);
    must(tokenizer_open(&l->tok, model));
    must(template_open(&l->tmpl, l->tok, model, "auto", NULL, NULL));
    const struct data_opts o = { .max_length = max_length,
                                 .max_prompt_length = max_length / 2,
                                 .max_dropped = 0.05,
                                 .subsample = 1,
                                 .vocab_size = tokenizer_size(l->tok),
                                 .threads = 2 };
    struct buf b = { 0 };
    snprintf(copy, sizeof copy, "%s", path);
    const double t = now();
    must(dataset_load(&l->d, paths, 1, DATA_PAIRS, &o, l->tok, l->tmpl));
    l->seconds = now() - t;
    must(dataset_describe(&l->d, &b));
    print_message("%s\n%lld tokens, longest %lld, %.2f s\n", b.data, (long long)l->d.n_ids,
                  (long long)l->d.longest, l->seconds);
    buf_release(&b);
}

static void unload(struct loaded *l)
{
    dataset_release(&l->d);
    template_close(l->tmpl);
    tokenizer_close(l->tok);
}

static char *decode(const struct loaded *l, const int32_t *ids, int64_t n, bool skip_special)
{
    struct buf b = { 0 };
    must(buf_adds(&b, ""));
    must(tokenizer_decode(l->tok, ids, n, skip_special, &b));
    return b.data;
}

/* Row `line` of a file, as JSON; forward only. */
static json_t *row_at(struct line_reader *r, int64_t line)
{
    char *s;
    size_t len;
    do
        must(lines_next(r, &s, &len) == 1 ? 0 : err_set(ERR_IO, "no line %lld", (long long)line));
    while (lines_number(r) < line);
    json_t *row = json_loadb(s, len, 0, NULL);
    assert_non_null(row);
    return row;
}

static bool ends_with(const char *s, const char *end)
{
    const size_t n = strlen(s), m = strlen(end);
    return n >= m && !strcmp(s + n - m, end);
}

/* Text before and after: prompt and response decode to the row's own text, and the end token comes once. */
static void test_data_real__hh(void **state)
{
    (void)state;
    struct loaded l;
    struct line_reader *r;
    load(&l, QWEN, HH, 100000);
    assert_int_equal(l.d.stats.rows, 1500);
    assert_true(l.d.n >= 1490);
    assert_int_equal(l.d.stats.truncated_prompts, 0);
    must(lines_open(&r, HH));
    for (int64_t i = 0; i < l.d.n; i++) {
        const struct example *e = &l.d.ex[i];
        const int32_t *ids = l.d.ids + e->at, eos = tokenizer_eos(l.tok);
        json_t *row = row_at(r, e->line);
        char *prompt = decode(&l, ids, e->np, false),
             *rest = decode(&l, ids + e->np, e->nw - 1, false);
        char *other = decode(&l, ids + e->np + e->nw, e->nl - 1, false), *whole;
        assert_true(ends_with(prompt, "\n\nAssistant:"));
        must(mem_asprintf(&whole, "%s%s", prompt, rest));
        assert_string_equal(whole, json_string_value(json_object_get(row, "chosen")));
        free(whole);
        must(mem_asprintf(&whole, "%s%s", prompt, other));
        assert_string_equal(whole, json_string_value(json_object_get(row, "rejected")));
        assert_int_equal(ids[e->np + e->nw - 1], eos);
        assert_int_equal(ids[e->np + e->nw + e->nl - 1], eos);
        free(whole);
        free(prompt);
        free(rest);
        free(other);
        json_decref(row);
    }
    lines_close(r);
    unload(&l);
}

static void check_messages(const char *path, int64_t rows)
{
    static const char tail[] = "<|im_end|>\n<|im_start|>assistant\n";
    struct loaded l;
    struct line_reader *r;
    load(&l, QWEN, path, 100000);
    assert_int_equal(l.d.stats.rows, rows);
    must(lines_open(&r, path));
    for (int64_t i = 0; i < l.d.n; i++) {
        const struct example *e = &l.d.ex[i];
        const int32_t *ids = l.d.ids + e->at, end = tokenizer_id(l.tok, "<|im_end|>");
        json_t *row = row_at(r, e->line);
        const json_t *list = json_object_get(row, "prompt"),
                     *message = json_array_get(list, json_array_size(list) - 1);
        const char *said = json_string_value(json_object_get(message, "content"));
        const char *want = json_string_value(
            json_object_get(json_array_get(json_object_get(row, "chosen"), 0), "content"));
        char *prompt = decode(&l, ids, e->np, false),
             *rest = decode(&l, ids + e->np, e->nw - 1, false);
        assert_true(ends_with(prompt, tail));
        prompt[strlen(prompt) - strlen(tail)] = 0;
        assert_true(ends_with(prompt, said));
        assert_string_equal(rest, want);
        assert_int_equal(ids[e->np + e->nw - 1], end);
        free(prompt);
        free(rest);
        json_decref(row);
    }
    lines_close(r);
    unload(&l);
}

static void test_data_real__messages(void **state)
{
    (void)state;
    check_messages(LLAMAFACTORY, 300);
    check_messages(GSM8K, 731);
}

static void test_data_real__hh_cut(void **state)
{
    (void)state;
    struct loaded l;
    load(&l, STORIES, HH, 512);
    assert_true(l.d.n >= 1425);
    assert_true(l.d.stats.truncated_prompts > 0);
    assert_true(l.d.longest <= 512 * 2);
    for (int64_t i = 0; i < l.d.n; i++) {
        const struct example *e = &l.d.ex[i];
        assert_true(e->np + MAX(e->nw, e->nl) <= 512);
        assert_int_equal(l.d.ids[e->at], tokenizer_bos(l.tok));
        assert_int_not_equal(l.d.ids[e->at + 1], tokenizer_bos(l.tok));
    }
    unload(&l);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_data_real__hh),
        cmocka_unit_test(test_data_real__messages),
        cmocka_unit_test(test_data_real__hh_cut),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
