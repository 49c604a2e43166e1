/* SPDX-License-Identifier: MIT */
#include "data_fixture.h"
#include "../src/base/rng.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>
#include <cmocka.h>

#define U(text) "{\"role\": \"user\", \"content\": \"" text "\"}"
#define A(text) "{\"role\": \"assistant\", \"content\": \"" text "\"}"
#define S(text) "{\"role\": \"system\", \"content\": \"" text "\"}"

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

static void must(int rc)
{
    if (rc < 0) fail_msg("%s", err_msg());
}

/* --- forms ------------------------------------------------------------------------------------------------------ */

struct form_case {
    const char *row;
    bool user;
    const char *prompt, *chosen, *rejected;
};

static void check_forms(const struct form_case *c, size_t n, enum data_kind kind)
{
    for (size_t i = 0; i < n; i++) {
        struct data_opts o = data_fixture_opts();
        struct dataset d;
        o.string_prompts_user = c[i].user;
        if (data_fixture_load(&fx, &d, c[i].row, kind, &o, fx.chatml) < 0)
            fail_msg("%s\n%s", c[i].row, err_msg());
        assert_int_equal(d.n, 1);
        data_fixture_expect(&d, 0, c[i].prompt, c[i].chosen, c[i].rejected);
        assert_int_equal(d.ex[0].line, 1);
        assert_int_equal(d.longest, d.n_ids);
        dataset_release(&d);
    }
}

static void test_data__pair_forms(void **state)
{
    (void)state;
    static const struct form_case
        cases
            [] = {
                /* a prompt's last "a" and a response's first "b" stay two tokens: the parts are encoded apart */
                { "{\"prompt\": \"ab a\", \"chosen\": \"b ab\", \"rejected\": \"No\"}", false,
                  "\3ab a", "b ab\4", "No\4" },
                { "{\"prompt\": \"ab a\", \"chosen\": \"b ab\", \"rejected\": \"No\"}", true,
                  "\3\1user\nab a\2\n\1assistant\n", "b ab\2", "No\2" },
                { "{\"prompt\": [" U("Hi") "], \"chosen\": [" A("Yes") "], \"rejected\": [" A(
                      "No") "]}",
                  false, "\3\1user\nHi\2\n\1assistant\n", "Yes\2", "No\2" },
                { "{\"prompt\": [" S("Be.") "," U("Hi") "," A("x") "," U("y") "], \"chosen\": [" A(
                      "Yes") "], \"rejected\": [" A("No") "]}",
                  false,
                  "\3\1system\nBe.\2\n\1user\nHi\2\n\1assistant\nx\2\n\1user\ny\2\n\1assistant\n",
                  "Yes\2", "No\2" },
                /* whole conversations: the common leading messages are the prompt */
                { "{\"chosen\": [" U("Hi") "," A("Yes") "], \"rejected\": [" U("Hi") "," A(
                      "No") "]}",
                  false, "\3\1user\nHi\2\n\1assistant\n", "Yes\2", "No\2" },
                { "{\"chosen\": [" U("Hi") "," A("x") "," U("y") "," A(
                      "Yes") "], \"rejected\": [" U("Hi") "," A("x") "," U("y") "," A("Yes.") "]}",
                  false, "\3\1user\nHi\2\n\1assistant\nx\2\n\1user\ny\2\n\1assistant\n", "Yes\2",
                  "Yes.\2" },
                /* UltraFeedback Binarized as published */
                { "{\"prompt\": \"Hi\", \"prompt_id\": \"f0\", \"chosen\": [" U("Hi") "," A("Yes") "], \"rejected\": [" U(
                      "Hi") "," A("No") "], \"messages\": [" U("Hi") "," A("Yes") "], "
                                                                                  "\"score_"
                                                                                  "chosen\": 8.5, "
                                                                                  "\"score_"
                                                                                  "rejected\": 8}",
                  false, "\3\1user\nHi\2\n\1assistant\n", "Yes\2", "No\2" },
                { "{\"prompt\": \"Hi\", \"chosen\": [" U("Hi") "," A("Yes") "], \"rejected\": [" U(
                      "Hi") "," A("No") "]}",
                  true, "\3\1user\nHi\2\n\1assistant\n", "Yes\2", "No\2" },
                /* hh-rlhf */
                { "{\"chosen\": \"\\n\\nHuman: q\\n\\nAssistant: yes\", \"rejected\": "
                  "\"\\n\\nHuman: q\\n\\nAssistant: no\"}",
                  false, "\3\n\nHuman: q\n\nAssistant:", " yes\4", " no\4" },
                { "{\"chosen\": \"\\n\\nHuman: q\\n\\nAssistant: yes\", \"rejected\": "
                  "\"\\n\\nHuman: q\\n\\nAssistant: no\"}",
                  true, "\3\1user\n\n\nHuman: q\n\nAssistant:\2\n\1assistant\n", " yes\2",
                  " no\2" },
                /* the last marker of the common start, not of either text; the common start of the responses stays with them */
                { "{\"chosen\": \"\\n\\nHuman: q\\n\\nAssistant: same a\\n\\nHuman: "
                  "z\\n\\nAssistant: k\", "
                  "\"rejected\": \"\\n\\nHuman: q\\n\\nAssistant: same b\\n\\nHuman: "
                  "z\\n\\nAssistant: k\"}",
                  false, "\3\n\nHuman: q\n\nAssistant:", " same a\n\nHuman: z\n\nAssistant: k\4",
                  " same b\n\nHuman: z\n\nAssistant: k\4" },
                { "{\"prompt\": null, \"chosen\": \"\\n\\nAssistant: 1\\n\\nAssistant: 2\", "
                  "\"rejected\": \"\\n\\nAssistant: 1\\n\\nAssistant: 3\"}",
                  false, "\3\n\nAssistant: 1\n\nAssistant:", " 2\4", " 3\4" },
                /* mixed */
                { "{\"prompt\": [" U("Hi") "], \"chosen\": \"Yes\", \"rejected\": \"No\"}", false,
                  "\3\1user\nHi\2\n\1assistant\n", "Yes\2", "No\2" },
                { "{\"prompt\": \"Hi\", \"chosen\": [" A("Yes") "], \"rejected\": [" A("No") "]}",
                  false, "\3\1user\nHi\2\n\1assistant\n", "Yes\2", "No\2" },
                { "{\"prompt\": [" U("Hi") "], \"chosen\": [" U("Hi") "," A(
                      "Yes") "], \"rejected\": [" U("Hi") "," A("No") "]}",
                  false, "\3\1user\nHi\2\n\1assistant\n", "Yes\2", "No\2" },
                /* responses of one text token; extra keys; no tool was called */
                { "{\"prompt\": \"\", \"chosen\": \"x\", \"rejected\": \"ab\", \"id\": [1]}", false,
                  "\3", "x\4", "ab\4" },
                { "{\"prompt\": [" U("Hi") "], \"chosen\": [{\"role\": \"assistant\", \"content\": "
                                           "\"Yes\", \"tool_calls\": [], \"weight\": 1}],"
                                           " \"rejected\": [{\"role\": \"assistant\", \"content\": "
                                           "\"No\", \"tool_calls\": null}]}",
                  false, "\3\1user\nHi\2\n\1assistant\n", "Yes\2", "No\2" },
                /* text beyond ASCII, and escapes */
                { "{\"prompt\": \"\\u00e9\\ud83d\\ude00\", \"chosen\": \"\xc3\xa9\", \"rejected\": "
                  "\"\xe3\x80\x80.\"}",
                  false, "\3\xc3\xa9\xf0\x9f\x98\x80", "\xc3\xa9\4", "\xe3\x80\x80.\4" },
            };
    check_forms(cases, COUNT_OF(cases), DATA_PAIRS);
}

static void test_data__sft_forms(void **state)
{
    (void)state;
    static const struct form_case cases[] = {
        { "{\"prompt\": \"Hi\", \"completion\": \"Yes\"}", false, "\3Hi", "Yes\4", NULL },
        { "{\"prompt\": \"Hi\", \"completion\": \"Yes\"}", true, "\3\1user\nHi\2\n\1assistant\n",
          "Yes\2", NULL },
        { "{\"prompt\": [" U("Hi") "], \"completion\": [" A("Yes") "]}", false,
          "\3\1user\nHi\2\n\1assistant\n", "Yes\2", NULL },
        { "{\"prompt\": [" U("Hi") "], \"completion\": \"Yes\"}", false,
          "\3\1user\nHi\2\n\1assistant\n", "Yes\2", NULL },
        { "{\"messages\": [" U("Hi") "," A("x") "," U("y") "," A("Yes") "]}", false,
          "\3\1user\nHi\2\n\1assistant\nx\2\n\1user\ny\2\n\1assistant\n", "Yes\2", NULL },
        { "{\"prompt\": \"Hi\", \"chosen\": \"Yes\", \"rejected\": \"No\"}", false, "\3Hi", "Yes\4",
          NULL },
        { "{\"chosen\": [" U("Hi") "," A("Yes") "], \"rejected\": [" U("Hi") "," A("No") "]}",
          false, "\3\1user\nHi\2\n\1assistant\n", "Yes\2", NULL },
        { "{\"prompt\": \"Hi\", \"chosen\": [" U("Hi") "," A("Yes") "], \"rejected\": [" U(
              "Hi") "," A("No") "], \"messages\": []}",
          false, "\3\1user\nHi\2\n\1assistant\n", "Yes\2", NULL },
        { "{\"chosen\": \"\\n\\nHuman: q\\n\\nAssistant: a1\\n\\nAssistant: k\", \"rejected\": "
          "\"\\n\\nHuman: q\\n\\nAssistant: no\"}",
          false, "\3\n\nHuman: q\n\nAssistant:", " a1\n\nAssistant: k\4", NULL },
        /* what makes a pair degenerate leaves its chosen response as it is */
        { "{\"prompt\": \"Hi\", \"chosen\": \"Yes\", \"rejected\": \"\"}", false, "\3Hi", "Yes\4",
          NULL },
        { "{\"prompt\": \"Hi\", \"chosen\": \"Yes\", \"rejected\": \"Yes\"}", false, "\3Hi",
          "Yes\4", NULL },
        { "{\"prompt\": \"Hi\", \"chosen\": \"Yes\"}", false, "\3Hi", "Yes\4", NULL },
    };
    check_forms(cases, COUNT_OF(cases), DATA_SFT);
}

static void test_data__raw_template(void **state)
{
    (void)state;
    const struct data_opts o = data_fixture_opts();
    struct dataset d;
    must(data_fixture_load(
        &fx, &d,
        "{\"prompt\": [" U("Hi ") "], \"chosen\": [" A("Yes") "], \"rejected\": [" A("No") "]}",
        DATA_PAIRS, &o, fx.raw));
    data_fixture_expect(&d, 0, "\3Hi ", "Yes\4", "No\4");
    dataset_release(&d);
}

/* --- faults ----------------------------------------------------------------------------------------------------- */

#define PAIR(p, c, r) "{\"prompt\": " p ", \"chosen\": " c ", \"rejected\": " r "}"
#define GOOD          PAIR("\"p\"", "\"c\"", "\"r\"")

static const struct {
    enum data_kind kind;
    const char *row, *part;
} FAULTS[] = {
    { DATA_PAIRS, "not json", ":2:1: error: " },
    { DATA_PAIRS, "{\"prompt\": \"p\",}", ":2:" },
    { DATA_PAIRS, "[1]",
      ":2:1: error: a row is a JSON object such as {\"prompt\", \"chosen\", \"rejected\"}; found a "
      "list" },
    { DATA_PAIRS, "{}", "missing key \"chosen\"" },
    { DATA_PAIRS, "{\"prompt\": \"p\", \"chosen\": \"c\"}",
      ":2:1: error: missing key \"rejected\"" },
    { DATA_PAIRS, "{\"prompt\": \"p\", \"completion\": \"c\"}", "this row is for SFT" },
    { DATA_PAIRS, PAIR("7", "\"c\"", "\"r\""),
      ":2:2: error: \"prompt\" must be a string or a list of messages; found a number" },
    { DATA_PAIRS, PAIR("\"p\"", "{}", "\"r\""),
      "\"rejected\" is a string and \"chosen\" an object" },
    { DATA_PAIRS, PAIR("\"p\"", "5", "\"r\""),
      ":2:17: error: \"chosen\" must be a string or a list of messages; found a number" },
    { DATA_PAIRS, PAIR("\"p\"", "\"c\"", "false"),
      "\"rejected\" is a boolean and \"chosen\" a string" },
    { DATA_PAIRS, PAIR("\"p\"", "[" A("c") "]", "\"r\""),
      "\"rejected\" is a string and \"chosen\" a list" },
    { DATA_PAIRS, PAIR("\"p\"", "[]", "[" A("r") "]"), "an empty list" },
    { DATA_PAIRS, PAIR("[]", "\"c\"", "\"r\""), ":2:2: error: an empty list" },
    { DATA_PAIRS, PAIR("[\"hi\"]", "\"c\"", "\"r\""),
      "a message is an object {\"role\", \"content\"}; found a string" },
    { DATA_PAIRS, PAIR("[{\"role\": \"user\"}]", "\"c\"", "\"r\""),
      "a message has no \"content\"" },
    { DATA_PAIRS, PAIR("[{\"from\": \"bot\", \"value\": \"x\"}]", "\"c\"", "\"r\""),
      "unknown role \"bot\"" },
    { DATA_PAIRS, PAIR("[{\"from\": \"observation\", \"value\": \"x\"}]", "\"c\"", "\"r\""),
      "tool calls are not supported" },
    { DATA_PAIRS, PAIR("[{\"from\": \"human\"}]", "\"c\"", "\"r\""), "a message has no \"value\"" },
    { DATA_PAIRS, "{\"conversations\": \"x\", \"chosen\": \"c\", \"rejected\": \"r\"}",
      "\"conversations\" must be a list of messages; found a string" },
    { DATA_PAIRS,
      "{\"conversations\": [" U("a") "], \"chosen\": [" U("a") "," A("c") "], \"rejected\": [" A(
          "r") "]}",
      "expected one response beside the prompt" },
    { DATA_PAIRS, "{\"question\": [1], \"chosen\": \"c\", \"rejected\": \"r\"}",
      "\"question\" must be a string; found a list" },
    { DATA_PAIRS,
      "{\"instruction\": \"i\", \"history\": [[\"a\"]], \"chosen\": \"c\", \"rejected\": \"r\"}",
      "a turn of \"history\" is" },
    { DATA_SFT, "{\"instruction\": \"i\"}", "missing key \"output\" beside \"instruction\"" },
    { DATA_SFT, "{\"conversations\": [" A("x") "]}", "no message that comes before the response" },
    { DATA_PAIRS, PAIR("[{\"role\": \"user\", \"content\": [1]}]", "\"c\"", "\"r\""),
      "must be a string; found a list" },
    { DATA_PAIRS, PAIR("[{\"role\": 1, \"content\": \"x\"}]", "\"c\"", "\"r\""),
      "a role is a string; found a number" },
    { DATA_PAIRS, PAIR("[{\"role\": \"human\", \"content\": \"x\"}]", "\"c\"", "\"r\""),
      "unknown role \"human\"" },
    { DATA_PAIRS, PAIR("[{\"role\": \"\\n\\u00e9\", \"content\": \"x\"}]", "\"c\"", "\"r\""),
      "unknown role \"\\x0a\\xc3\\xa9\"" },
    { DATA_PAIRS, PAIR("[{\"role\": \"tool\", \"content\": \"x\"}]", "\"c\"", "\"r\""),
      "tool calls are not supported" },
    { DATA_PAIRS,
      PAIR("\"p\"", "[{\"role\": \"assistant\", \"content\": null, \"tool_calls\": [{\"id\": 1}]}]",
           "[" A("r") "]"),
      "tool calls are not supported" },
    { DATA_PAIRS, PAIR("\"p\"", "[" U("c") "]", "[" A("r") "]"),
      "the last message of \"chosen\" must be the assistant's; found role \"user\"" },
    { DATA_PAIRS, PAIR("[" U("p") "]", "[" A("x") "," A("c") "]", "[" A("r") "]"),
      "\"chosen\" holds 2 messages" },
    { DATA_PAIRS, PAIR("[" U("p") "]", "[" A("c") "]", "[" U("q") "," A("r") "]"),
      "\"rejected\" holds 2 messages" },
    { DATA_PAIRS, PAIR("[" U("p") "]", "[" U("p") "," A("x") "," A("c") "]", "[" A("r") "]"),
      "\"chosen\" holds 3 messages" },
    { DATA_PAIRS, PAIR("\"p\"", "[" S("s") "," A("c") "]", "[" S("s") "," A("r") "]"),
      "no message of the user" },
    { DATA_PAIRS, "{\"chosen\": [" A("c") "], \"rejected\": [" A("r") "]}",
      "no message that comes before the response" },
    { DATA_PAIRS, "{\"chosen\": [" U("p") "," A("c") "], \"rejected\": [" U("q") "," A("r") "]}",
      "no \"prompt\"" },
    { DATA_PAIRS,
      "{\"chosen\": [" U("p") "," A("c") "], \"rejected\": [" U("p") "," A("x") "," U("y") "," A(
          "r") "]}",
      "share their first 1 messages, then hold 1 and 3" },
    { DATA_PAIRS,
      "{\"chosen\": \"Human: q Assistant: c\", \"rejected\": \"Human: q Assistant: r\"}",
      "holds no \"\\n\\nAssistant:\"" },
    { DATA_PAIRS, "{\"chosen\": \"\\n\\nAssistant: c\", \"rejected\": \"\\n\\nassistant: r\"}",
      "no \"prompt\"" },
    { DATA_PAIRS, PAIR("\"p\"", "\"\xff\"", "\"r\""), ":2:" },
    { DATA_PAIRS, PAIR("\"p\"", "\"\xc0\xaf\"", "\"r\""), ":2:" },
    { DATA_PAIRS, PAIR("\"p\"", "\"\\ud83d\"", "\"r\""), ":2:" },
    { DATA_PAIRS, PAIR("\"p\"", "\"a\\u0000b\"", "\"r\""), ":2:" },
    { DATA_PAIRS, PAIR("\"p\"", "NaN", "\"r\""), ":2:" },
    { DATA_PAIRS, "{\"chosen\": \"c\", \"chosen\": \"c\", \"rejected\": \"r\"}", "twice" },
    { DATA_SFT, "{\"prompt\": \"p\"}", "no response to train on" },
    { DATA_SFT, "{\"completion\": \"c\"}", "missing key \"prompt\" beside \"completion\"" },
    { DATA_SFT, "{\"prompt\": \"p\", \"completion\": 1}",
      "\"completion\" must be a string or a list of messages" },
    { DATA_SFT, "{\"messages\": \"m\"}", "\"messages\" must be a list; found a string" },
    { DATA_SFT, "{\"messages\": []}", "an empty list" },
    { DATA_SFT, "{\"messages\": [" A("c") "]}", "no message that comes before the response" },
    { DATA_SFT, "{\"messages\": [" A("c") "," U("p") "]}",
      "the last message of \"messages\" must be the assistant's" },
};

static void test_data__faults(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT_OF(FAULTS); i++) {
        const struct data_opts o = data_fixture_opts();
        struct dataset d;
        char text[1024];
        snprintf(text, sizeof text, "%s\n%s\n", GOOD, FAULTS[i].row);
        const int rc = data_fixture_load(&fx, &d, text, FAULTS[i].kind, &o, fx.chatml);
        if (rc != ERR_INPUT) fail_msg("%s: gave %d", FAULTS[i].row, rc);
        data_fixture_message("/pairs.jsonl:2:");
        data_fixture_message(FAULTS[i].part);
        assert_null(strchr(err_msg(), '\n'));
        assert_null(d.ids);
    }
}

static void test_data__depth_and_many_faults(void **state)
{
    (void)state;
    const struct data_opts o = data_fixture_opts();
    struct dataset d;
    struct buf b = { 0 };
    for (int i = 0; i < 100000; i++)
        must(buf_adds(&b, "["));
    assert_int_equal(data_fixture_load(&fx, &d, b.data, DATA_PAIRS, &o, fx.chatml), ERR_INPUT);
    data_fixture_message("/pairs.jsonl:1:");
    buf_clear(&b);
    for (int i = 0; i < 1300; i++)
        must(buf_addf(&b, "%s\n", i % 50 == 49 ? "{}" : GOOD));
    assert_int_equal(data_fixture_load(&fx, &d, b.data, DATA_PAIRS, &o, fx.chatml), ERR_INPUT);
    data_fixture_message("/pairs.jsonl:50:1: error: missing key");
    data_fixture_message("/pairs.jsonl:100:1: error: missing key");
    data_fixture_message(
        "/pairs.jsonl:1000:1: error: missing key"); /* the twentieth, in the file's order */
    assert_null(strstr(err_msg(), ":1050:"));
    data_fixture_message("6 more problems");
    buf_release(&b);
}

/* --- lines and files -------------------------------------------------------------------------------------------- */

static void test_data__lines(void **state)
{
    (void)state;
    const struct data_opts o = data_fixture_opts();
    struct dataset d;
    must(data_fixture_load(&fx, &d,
                           "\xef\xbb\xbf" GOOD "\r\n\n  \t\r\n" PAIR("\"p\"", "\"d\"", "\"r\""),
                           DATA_PAIRS, &o, fx.chatml));
    assert_int_equal(d.n, 2);
    assert_int_equal(d.stats.rows, 2);
    assert_int_equal(d.ex[1].line, 4);
    data_fixture_expect(&d, 1, "\3p", "d\4", "r\4");
    dataset_release(&d);
    assert_int_equal(data_fixture_load(&fx, &d, "", DATA_PAIRS, &o, fx.chatml), ERR_INPUT);
    data_fixture_message("no usable row");
    assert_int_equal(data_fixture_load(&fx, &d, "\n\n", DATA_PAIRS, &o, fx.chatml), ERR_INPUT);
    data_fixture_message("no usable row");
}

static void gz_put(const char *path, const char *text)
{
    gzFile f = gzopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(gzputs(f, text), (int)strlen(text));
    assert_int_equal(gzclose(f), Z_OK);
}

static void test_data__files(void **state)
{
    (void)state;
    const struct data_opts o = data_fixture_opts();
    char p[3][160];
    char *paths[3] = { p[0], p[1], p[2] };
    struct dataset d, swapped;
    snprintf(p[0], sizeof p[0], "%s",
             data_fixture_put(&fx, "a.jsonl", GOOD "\n", strlen(GOOD) + 1));
    snprintf(p[1], sizeof p[1], "%s/b.jsonl.gz", fx.dir);
    snprintf(p[2], sizeof p[2], "%s/missing.jsonl", fx.dir);
    gz_put(p[1], PAIR("\"q\"", "\"x\"", "\"y\"") "\n" PAIR("\"q\"", "\"z\"", "\"y\"") "\n");
    must(dataset_load(&d, paths, 2, DATA_PAIRS, &o, fx.tok, fx.chatml));
    assert_int_equal(d.n, 3);
    assert_int_equal(d.n_files, 2);
    assert_string_equal(d.files[1], p[1]);
    assert_int_equal(d.ex[2].file, 1);
    assert_int_equal(d.ex[2].line, 2);
    data_fixture_expect(&d, 2, "\3q", "z\4", "y\4");
    char *const turned[2] = { p[1], p[0] };
    must(dataset_load(&swapped, turned, 2, DATA_PAIRS, &o, fx.tok, fx.chatml));
    assert_int_equal(strlen(d.digest), 64);
    assert_string_not_equal(d.digest, swapped.digest);
    dataset_release(&swapped);
    dataset_release(&d);
    assert_int_equal(dataset_load(&d, paths, 3, DATA_PAIRS, &o, fx.tok, fx.chatml), ERR_INPUT);
    data_fixture_message("missing.jsonl");
    assert_int_equal(dataset_load(&d, paths, 0, DATA_PAIRS, &o, fx.tok, fx.chatml), ERR_INPUT);
}

/* A gzip file cut anywhere, and one with garbage behind it: never a shorter data set. */
static void test_data__gzip_faults(void **state)
{
    (void)state;
    struct data_opts o = data_fixture_opts();
    char path[160], bytes[4096];
    char *paths[1] = { path };
    struct dataset d;
    snprintf(path, sizeof path, "%s/c.jsonl.gz", fx.dir);
    gz_put(path, GOOD "\n" GOOD "\n" GOOD "\n");
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    const size_t n = fread(bytes, 1, sizeof bytes - 1, f);
    fclose(f);
    o.skip_bad_rows = true;
    o.max_bad_rows = 100;
    bytes[n] = 'x';
    for (size_t len = 0; len <= n + 1; len++) {
        snprintf(path, sizeof path, "%s", data_fixture_put(&fx, "c.jsonl.gz", bytes, len));
        const int rc = dataset_load(&d, paths, 1, DATA_PAIRS, &o, fx.tok, fx.chatml);
        assert_int_equal(rc, len == n ? 0 : ERR_INPUT);
        if (rc == 0) dataset_release(&d);
    }
    bytes[n - 8] ^= 1; /* the CRC */
    snprintf(path, sizeof path, "%s", data_fixture_put(&fx, "c.jsonl.gz", bytes, n));
    assert_int_equal(dataset_load(&d, paths, 1, DATA_PAIRS, &o, fx.tok, fx.chatml), ERR_INPUT);
    snprintf(path, sizeof path, "%s",
             data_fixture_put(&fx, "nul.jsonl", GOOD "\n\0\n", strlen(GOOD) + 3));
    assert_int_equal(dataset_load(&d, paths, 1, DATA_PAIRS, &o, fx.tok, fx.chatml), ERR_INPUT);
    data_fixture_message("nul.jsonl:2");
}

/* --- skipping bad rows ------------------------------------------------------------------------------------------ */

/* What a load writes on stderr. */
static int load_stderr(struct dataset *d, const char *text, const struct data_opts *o, char *out,
                       size_t size)
{
    char path[160];
    snprintf(path, sizeof path, "%s/stderr", fx.dir);
    fflush(stderr);
    const int old = dup(2);
    assert_true(old >= 0);
    assert_non_null(freopen(path, "w", stderr));
    const int rc = data_fixture_load(&fx, d, text, DATA_PAIRS, o, fx.chatml);
    fflush(stderr);
    dup2(old, 2);
    close(old);
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    out[fread(out, 1, size - 1, f)] = 0;
    fclose(f);
    return rc;
}

static void test_data__skip_bad_rows(void **state)
{
    (void)state;
    struct data_opts o = data_fixture_opts();
    struct dataset d;
    char err[2000];
    const char *text = GOOD "\n{}\n" GOOD "\nnot json\n" PAIR("\"p\"", "\"ab\"", "\"r\"") "\n";
    o.skip_bad_rows = true;
    o.max_bad_rows = 2;
    must(load_stderr(&d, text, &o, err, sizeof err));
    assert_int_equal(d.n, 3);
    assert_int_equal(d.stats.rows, 5);
    assert_int_equal(d.stats.bad, 2);
    assert_int_equal(d.ex[2].line, 5);
    data_fixture_expect(&d, 2, "\3p", "ab\4", "r\4");
    assert_non_null(strstr(err, "/pairs.jsonl:2:1: warning: row skipped: missing key \"chosen\""));
    assert_non_null(strstr(err, "/pairs.jsonl:4:1: warning: row skipped: "));
    assert_null(strstr(err, "error"));
    struct buf b = { 0 };
    must(dataset_describe(&d, &b));
    assert_non_null(strstr(
        b.data, "pairs.jsonl: 5 rows, 3 kept, 2 malformed skipped, 0 prompts and 0 responses cut"));
    buf_release(&b);
    dataset_release(&d);
    o.max_bad_rows = 1;
    assert_int_equal(load_stderr(&d, text, &o, err, sizeof err), ERR_INPUT);
    assert_string_equal(err, "");
    data_fixture_message("/pairs.jsonl:2:1: error: missing key");
    data_fixture_message("/pairs.jsonl:4:1: error: ");
    data_fixture_message("2 malformed rows, more than data.max_bad_rows (1)");
}

/* Bytes of good rows changed, cut out and doubled: a row is read, dropped or refused, and nothing else happens. */
static void test_data__mutated_rows(void **state)
{
    (void)state;
    static const char *const rows[] = {
        PAIR("\"ab\\u00e9\"", "\"c\"", "\"\\ud83d\\ude00\""),
        PAIR("[" S("s") "," U("p") "]", "[" A("c") "]", "[" A("r") "]"),
        "{\"chosen\": [" U("p") "," A("c") "], \"rejected\": [" U("p") "," A("r") "]}",
        "{\"chosen\": \"\\n\\nAssistant: c\", \"rejected\": \"\\n\\nAssistant: r\"}",
        "{\"messages\": [" U("p") "," A("c") "]}",
    };
    static const char bytes[] = "{}[]\",:\\un0 \x7f\xc3\xff";
    int64_t read = 0;
    for (uint64_t i = 0; i < 3000; i++) {
        const struct data_opts o = data_fixture_opts();
        const char *row = rows[i % COUNT_OF(rows)];
        const size_t n = strlen(row), at = rng_u64(3, 1, i) % n, how = rng_u64(3, 2, i) % 3;
        struct buf b = { 0 };
        struct dataset d;
        must(buf_add(&b, row, at));
        if (how == 0) must(buf_add(&b, &bytes[rng_u64(3, 3, i) % (sizeof bytes - 1)], 1));
        if (how == 1) must(buf_adds(&b, row + at / 2));
        if (how != 1) must(buf_adds(&b, row + at + 1 + (how == 2 ? (n - at - 1) / 2 : 0)));
        const int rc =
            data_fixture_load(&fx, &d, b.data, i % 2 ? DATA_PAIRS : DATA_SFT, &o, fx.chatml);
        if (rc < 0) {
            assert_int_equal(rc, ERR_INPUT);
            data_fixture_message("/pairs.jsonl:1:");
        } else {
            assert_int_equal(d.n, 1);
            dataset_release(&d);
            read++;
        }
        buf_release(&b);
    }
    assert_in_range(read, 50, 2950);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_data__pair_forms),
        cmocka_unit_test(test_data__sft_forms),
        cmocka_unit_test(test_data__raw_template),
        cmocka_unit_test(test_data__faults),
        cmocka_unit_test(test_data__depth_and_many_faults),
        cmocka_unit_test(test_data__lines),
        cmocka_unit_test(test_data__files),
        cmocka_unit_test(test_data__gzip_faults),
        cmocka_unit_test(test_data__skip_bad_rows),
        cmocka_unit_test(test_data__mutated_rows),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
