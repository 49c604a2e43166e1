/* SPDX-License-Identifier: MIT */
#include "data_fixture.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

/* The forms that public sets come in, beside those of t_data.c. */
#define F(text) "{\"from\": \"human\", \"value\": \"" text "\"}"
#define G(text) "{\"from\": \"gpt\", \"value\": \"" text "\"}"
#define HI      "\3\1user\nHi\2\n\1assistant\n"
#define WITH_S  "\3\1system\nBe.\2\n\1user\nHi\2\n\1assistant\n"

static struct data_fixture fx;

static int setup(void **state)
{
    (void)state;
    data_fixture_open(&fx, FIXTURE_BOS | FIXTURE_EOS);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    data_fixture_close(&fx);
    return 0;
}

static const struct {
    enum data_kind kind;
    enum form_kind form;
    const char *row, *prompt, *chosen, *rejected;
} CASES[] = {
    /* LLaMA-Factory's ShareGPT, with objects, strings and lists as responses */
    { DATA_PAIRS, FORM_SHAREGPT,
      "{\"conversations\": [" F("Hi") "], \"chosen\": " G("Yes") ", \"rejected\": " G("No") "}", HI,
      "Yes\2", "No\2" },
    { DATA_PAIRS, FORM_SHAREGPT,
      "{\"conversations\": [{\"from\": \"system\", \"value\": \"Be.\"}," F(
          "Hi") "], \"chosen\": \"Yes\", "
                "\"rejected\": \"No\"}",
      WITH_S, "Yes\2", "No\2" },
    { DATA_PAIRS, FORM_SHAREGPT,
      "{\"system\": \"Be.\", \"conversations\": [" F("Hi") "], \"chosen\": [" G(
          "Yes") "], \"rejected\": [" G("No") "]}",
      WITH_S, "Yes\2", "No\2" },
    { DATA_PAIRS, FORM_SHAREGPT,
      "{\"conversations\": [" F("a") "," G("b") "," F("c") "], \"chosen\": " G(
          "Yes") ", \"rejected\": " G("No") "}",
      "\3\1user\na\2\n\1assistant\nb\2\n\1user\nc\2\n\1assistant\n", "Yes\2", "No\2" },
    { DATA_SFT, FORM_SHAREGPT, "{\"conversations\": [" F("Hi") "," G("Yes") "], \"system\": \"\"}",
      HI, "Yes\2", NULL },
    { DATA_SFT, FORM_SHAREGPT,
      "{\"conversations\": [" F("Hi") "," G("Yes") "], \"system\": \"Be.\"}", WITH_S, "Yes\2",
      NULL },
    { DATA_SFT, FORM_SHAREGPT,
      "{\"conversations\": [" F("Hi") "], \"chosen\": " G("Yes") ", \"rejected\": " G("No") "}", HI,
      "Yes\2", NULL },
    /* UltraInteract */
    { DATA_PAIRS, FORM_TRAJECTORY,
      "{\"task\": \"Coding\", \"trajectory\": [{\"from\": \"user\", \"value\": \"Hi\"}], "
      "\"chosen\": "
      "\"Yes\", \"rejected\": \"No\", \"parent_id\": 7}",
      HI, "Yes\2", "No\2" },
    /* Orca */
    { DATA_PAIRS, FORM_QUESTION,
      "{\"system\": \"Be.\", \"question\": \"Hi\", \"chosen\": \"Yes\", \"rejected\": \"No\"}",
      WITH_S, "Yes\2", "No\2" },
    { DATA_PAIRS, FORM_QUESTION,
      "{\"system\": \"\", \"question\": \"Hi\", \"chosen\": \"Yes\", \"rejected\": \"No\"}", HI,
      "Yes\2", "No\2" },
    { DATA_SFT, FORM_QUESTION, "{\"question\": \"Hi\", \"response\": \"Yes\"}", HI, "Yes\2", NULL },
    /* Alpaca */
    { DATA_PAIRS, FORM_INSTRUCTION,
      "{\"instruction\": \"H\", \"input\": \"i\", \"chosen\": \"Yes\", \"rejected\": \"No\"}",
      "\3\1user\nH\ni\2\n\1assistant\n", "Yes\2", "No\2" },
    { DATA_SFT, FORM_INSTRUCTION, "{\"instruction\": \"Hi\", \"input\": \"\", \"output\": \"Yes\"}",
      HI, "Yes\2", NULL },
    { DATA_SFT, FORM_INSTRUCTION, "{\"instruction\": \"\", \"input\": \"Hi\", \"output\": \"Yes\"}",
      HI, "Yes\2", NULL },
    { DATA_SFT, FORM_INSTRUCTION,
      "{\"instruction\": \"c\", \"output\": \"Yes\", \"system\": \"s\", \"history\": [[\"a\", "
      "\"b\"]]}",
      "\3\1system\ns\2\n\1user\na\2\n\1assistant\nb\2\n\1user\nc\2\n\1assistant\n", "Yes\2", NULL },
    /* one message as an object beside an ordinary prompt */
    { DATA_PAIRS, FORM_STRINGS,
      "{\"prompt\": \"Hi\", \"chosen\": {\"role\": \"assistant\", \"content\": \"Yes\"}, "
      "\"rejected\": " G("No") "}",
      HI, "Yes\2", "No\2" },
};

static void test_forms__public_sets(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT_OF(CASES); i++) {
        const struct data_opts o = data_fixture_opts();
        struct dataset d;
        if (data_fixture_load(&fx, &d, CASES[i].row, CASES[i].kind, &o, fx.chatml) < 0)
            fail_msg("%s\n%s", CASES[i].row, err_msg());
        data_fixture_expect(&d, 0, CASES[i].prompt, CASES[i].chosen, CASES[i].rejected);
        for (int k = 0; k < FORM_KINDS; k++)
            if (d.forms[0][k] != (k == (int)CASES[i].form))
                fail_msg("%s is taken for: %s", CASES[i].row, form_name((enum form_kind)k));
        dataset_release(&d);
    }
}

/* Two files of different forms, the second of two: each is named, with counts where they are mixed. */
static void test_forms__reported_by_file(void **state)
{
    (void)state;
    static const char hh[] =
        "{\"chosen\": \"\\n\\nAssistant: 1\", \"rejected\": \"\\n\\nAssistant: 2\"}\n",
                      mixed[] = "{\"prompt\": \"p\", \"chosen\": \"a\", \"rejected\": \"b\"}\n"
                                "{\"question\": \"p\", \"chosen\": \"a\", \"rejected\": \"b\"}\n"
                                "{\"question\": \"q\", \"chosen\": \"a\", \"rejected\": \"b\"}\n";
    const struct data_opts o = data_fixture_opts();
    char first[128], second[128], *paths[] = { first, second }, want[512];
    struct dataset d;
    struct buf b = { 0 };
    snprintf(first, sizeof first, "%s", data_fixture_put(&fx, "a.jsonl", hh, sizeof hh - 1));
    snprintf(second, sizeof second, "%s",
             data_fixture_put(&fx, "b.jsonl", mixed, sizeof mixed - 1));
    assert_int_equal(dataset_load(&d, paths, 2, DATA_PAIRS, &o, fx.tok, fx.chatml), 0);
    assert_int_equal(dataset_describe(&d, &b), 0);
    snprintf(want, sizeof want,
             "\n%s: form: dialogues in one string (hh-rlhf)\n%s: form: prompt, chosen, rejected as "
             "strings (1 rows); system and question (Orca) (2 rows)",
             first, second);
    if (!strstr(b.data, want)) fail_msg("%s", b.data);
    buf_release(&b);
    dataset_release(&d);
}

static int load_as(const char *name, const char *text, struct dataset *d, int64_t max_line)
{
    struct data_opts o = data_fixture_opts();
    char path[128], *paths[] = { path };
    o.max_line_bytes = max_line;
    snprintf(path, sizeof path, "%s", data_fixture_put(&fx, name, text, strlen(text)));
    return dataset_load(d, paths, 1, DATA_PAIRS, &o, fx.tok, fx.chatml);
}

static void test_forms__json_array(void **state)
{
    (void)state;
    static const char two[] =
        "\xef\xbb\xbf\r\n[\n  {\"prompt\": \"p,]\\\"\",\n   \"chosen\": \"a[\", \"rejected\": "
        "\"b\"} ,{\"prompt\": \"q\", \"chosen\": \"c\", \"rejected\": \"d\"}\n]\n";
    struct dataset d;
    assert_int_equal(load_as("two.json", two, &d, 0), 0);
    assert_int_equal(d.n, 2);
    data_fixture_expect(&d, 0, "\3p,]\"", "a[\4", "b\4");
    data_fixture_expect(&d, 1, "\3q", "c\4", "d\4");
    assert_int_equal(d.ex[0].line, 3);
    assert_int_equal(d.ex[1].line, 4);
    dataset_release(&d);
    /* a .json file may hold lines, too */
    assert_int_equal(
        load_as("l.json", "{\"prompt\": \"q\", \"chosen\": \"c\", \"rejected\": \"d\"}\n", &d, 0),
        0);
    assert_int_equal(d.n, 1);
    dataset_release(&d);
    static const struct {
        const char *text, *part;
    } bad[] = {
        { "[", "a.json:1: error: the JSON array does not end" },
        { "[{\"prompt\": \"q\",\n \"chosen\"", "a.json:2: error: the JSON array does not end" },
        { "[{}] x", "text after the end of the JSON array" },
        { "[{},]", "an element of the JSON array is missing" },
        { "[,{}]", "an element of the JSON array is missing" },
        { "[]", "no usable row" },
        { "[\n{\"prompt\": \"p\", \"chosen\": \"a\", \"rejected\": \"b\"}, {\"prompt\": 1, "
          "\"chosen\": \"a\", "
          "\"rejected\": \"b\"}]",
          "a.json:2:51: error: \"prompt\" must be a string" },
        { "[ 5]", "a.json:1:3: error: expected" },
        { "[ {\"a\": \n\n 1 1}]", "a.json:3:4: error: " },
    };
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        if (load_as("a.json", bad[i].text, &d, 0) != ERR_INPUT)
            fail_msg("accepted: %s", bad[i].text);
        data_fixture_message(bad[i].part);
    }
}

static void test_forms__line_limit(void **state)
{
    (void)state;
    char row[3000];
    struct dataset d;
    for (int array = 0; array < 2; array++) {
        snprintf(row, sizeof row,
                 array ? "[{\"prompt\": \"%0*d\", \"chosen\": \"a\", \"rejected\": \"b\"}]"
                       : "{\"prompt\": \"%0*d\", \"chosen\": \"a\", \"rejected\": \"b\"}",
                 1200, 0);
        const int64_t bytes = (int64_t)strlen(row) - (array ? 2 : 0);
        assert_int_equal(load_as("x.json", row, &d, bytes), 0);
        dataset_release(&d);
        assert_int_equal(load_as("x.json", row, &d, bytes - 1), ERR_INPUT);
        data_fixture_message("(data.max_line_bytes)");
    }
}

/* How often each of n rows is used: 'a' + row is its prompt. */
static void count_uses(const struct dataset *d, int *uses, int n)
{
    memset(uses, 0, (size_t)n * sizeof *uses);
    for (int64_t i = 0; i < d->n; i++) {
        const int row = d->ids[d->ex[i].at + d->ex[i].np - 1] - 'a';
        assert_in_range(row, 0, n - 1);
        uses[row]++;
    }
}

static void test_forms__weights(void **state)
{
    (void)state;
    enum { EACH = 8 };
    char text[2][1024] = { "", "" }, path[2][128], *paths[] = { path[0], path[1] };
    int first[2 * EACH], uses[2 * EACH];
    for (int i = 0; i < 2 * EACH; i++) {
        char *at = text[i / EACH] + strlen(text[i / EACH]);
        snprintf(at, 100, "{\"prompt\": \"%c\", \"chosen\": \"y\", \"rejected\": \"n\"}\n",
                 'a' + i);
    }
    for (int f = 0; f < 2; f++)
        snprintf(path[f], sizeof path[f], "%s",
                 data_fixture_put(&fx, f ? "w1.jsonl" : "w0.jsonl", text[f], strlen(text[f])));
    const double weights[] = { 0.5, 2.25 };
    for (int pass = 0; pass < 3; pass++) {
        struct data_opts o = data_fixture_opts();
        struct dataset d;
        o.weights = weights;
        o.threads = 1 + pass; /* nor do these change the choice */
        o.seed += pass == 2;
        assert_int_equal(dataset_load(&d, paths, 2, DATA_PAIRS, &o, fx.tok, fx.raw), 0);
        assert_int_equal(d.n, EACH / 2 + 2 * EACH + EACH / 4);
        assert_int_equal(d.stats.kept, 2 * EACH);
        count_uses(&d, uses, 2 * EACH);
        int half = 0, more = 0;
        for (int i = 0; i < EACH; i++) {
            assert_in_range(uses[i], 0, 1);
            assert_in_range(uses[EACH + i], 2, 3);
            half += uses[i];
            more += uses[EACH + i] - 2;
        }
        assert_int_equal(half, EACH / 2);
        assert_int_equal(more, EACH / 4);
        if (pass == 0) memcpy(first, uses, sizeof first);
        assert_int_equal(memcmp(first, uses, sizeof first) == 0, pass < 2);
        dataset_release(&d);
    }
    const double none[] = { 0.01, 0.01 };
    struct data_opts o = data_fixture_opts();
    struct dataset d;
    o.weights = none;
    assert_int_equal(dataset_load(&d, paths, 2, DATA_PAIRS, &o, fx.tok, fx.raw), ERR_INPUT);
    data_fixture_message("the weights leave no row");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_forms__public_sets), cmocka_unit_test(test_forms__reported_by_file),
        cmocka_unit_test(test_forms__json_array),  cmocka_unit_test(test_forms__line_limit),
        cmocka_unit_test(test_forms__weights),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
