/* SPDX-License-Identifier: MIT */
#include "scratch.h"
#include "../src/io/json.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <cmocka.h>

static int parse(struct json_doc *d, const char *text)
{
    return json_doc_parse(d, "run.json", 1, text, strlen(text));
}

static void test_json__refuses(void **state)
{
    (void)state;
    static const struct {
        const char *text, *want;
    } row[] = {
        { "", "run.json:1:1: error: is empty" },
        { " \n ", "is empty" },
        { "{\"a\": 1,}", "run.json:1:8: error: a comma after the last entry" },
        { "[1,\n 2,\n]", "run.json:2:3: error: a comma after the last entry" },
        { "{\n  \"a\": 1,\n  \"a\": 2\n}", "run.json:3:3: error: the key \"a\" is there twice" },
        { "{\"x\\\"y\": 1, \"x\\\"y\": 2}",
          "run.json:1:13: error: the key \"x\\\"y\" is there twice" },
        { "{\"k\\\\\": 1, \"k\\\\\": 2}",
          "run.json:1:12: error: the key \"k\\\\\" is there twice" },
        { "{\"\": 1, \"\": 2}", "run.json:1:9: error: the key \"\" is there twice" },
        { "{\"a\": {\"b\": 1, \"\\u0062\": 2}}", "run.json:1:16: error: the key" },
        { "{\"a\": NaN}", "run.json:1:7: error: NaN is not JSON" },
        { "[-Infinity]", "run.json:1:2: error: -Infinity is not JSON" },
        { "[True]", "True is not JSON" },
        { "[1e999]", "run.json:1:2: error: the number is too large" },
        { "[-1e999]", "too large" },
        { "[1e-999]", "run.json:1:2: error: the number is too small" },
        { "[9223372036854775808]", "run.json:1:2: error: the integer does not fit" },
        { "[-9223372036854775809]", "does not fit" },
        { "[99999999999999999999999]", "does not fit" },
        { "[01]", "must not start with 0" },
        { "[1.]", "digits after its point" },
        { "[1e]", "digits in its exponent" },
        { "[-]", "must have digits" },
        { "[.5]", "run.json:1:2: error: expected a value, not \".\"" },
        { "[+1]", "expected a value, not \"+\"" },
        { "{\"a\": 1 // x\n}", "run.json:1:9: error: comments are not allowed" },
        { "/* x */ {}", "run.json:1:1: error: comments are not allowed" },
        { "{# x\n}", "comments are not allowed" },
        { "{'a': 1}", "run.json:1:2: error: strings are written in double quotes" },
        { "{a: 1}", "run.json:1:2: error: expected a key in double quotes, not \"a\"" },
        { "{\"a\" 1}", "expected \":\" after the key, not \"1\"" },
        { "{\"a\": 1 \"b\": 2}", "run.json:1:9: error: expected \",\" or \"}\"" },
        { "[1 2]", "run.json:1:4: error: expected \",\" or \"]\", not \"2\"" },
        { "[1}", "expected \",\" or \"]\"" },
        { "[,]", "expected a value" },
        { "{\"a\":}", "expected a value" },
        { "[1", "run.json:1:3: error: the text ends too early" },
        { "{\"a\"", "the text ends too early" },
        { "{", "the text ends too early" },
        { "[\"abc", "run.json:1:2: error: this string has no closing quote" },
        { "[\"abc\n\"]", "run.json:1:2: error: this string has no closing quote" },
        { "[\"a\tb\"]", "run.json:1:4: error: a control character" },
        { "[\"\\x\"]", "run.json:1:3: error: a bad escape" },
        { "[\"\\u12g4\"]", "4 hexadecimal digits" },
        { "[\"\\u0000\"]", "\\u0000 is not supported" },
        { "[\"ab\\ud83d\"]", "run.json:1:5: error: a lone surrogate" },
        { "[\"\\ud83dx\"]", "a lone surrogate" },
        { "[\"\\ud83d\\u0041\"]", "a lone surrogate" },
        { "[\"\\udc00\"]", "a lone surrogate" },
        { "[\"\xff\"]", "run.json:1:3: error: not valid UTF-8" },
        { "[\"\xc0\xaf\"]", "not valid UTF-8" },
        { "[\"\xed\xa0\x80\"]", "not valid UTF-8" },
        { "[\"\xf4\x90\x80\x80\"]", "not valid UTF-8" },
        { "[\"\xe2\x82\"]", "not valid UTF-8" },
        { "\xef\xbb\xbf{}", "run.json:1:1: error: starts with a byte order mark" },
        { "\xff\xfe{}", "UTF-16" },
        { "{} {}", "run.json:1:4: error: expected the end of the text" },
        { "{}]", "expected the end of the text" },
        { "\"text\"", "expected \"{\" or \"[\"" },
        { "7", "expected \"{\" or \"[\"" },
        { "[truex]", "expected a value, not \"truex\"" },
        { "[nul]", "expected a value, not \"nul\"" },
    };
    for (size_t i = 0; i < COUNT_OF(row); i++) {
        struct json_doc d;
        if (parse(&d, row[i].text) != ERR_INPUT) fail_msg("accepted: %s", row[i].text);
        assert_msg(row[i].want);
        assert_null(d.root);
        json_doc_release(&d);
    }
    struct json_doc d;
    assert_int_equal(json_doc_parse(&d, "rows.jsonl", 40, "[1]\n\0", 5), ERR_INPUT);
    assert_msg("rows.jsonl:41:1: error: a NUL byte");
}

static void test_json__accepts(void **state)
{
    (void)state;
    static const char *const text[] = {
        "{}",
        " [ ] ",
        "[1e308, -1e308, 5e-324, 0e999, -0.0, 0]",
        "[9223372036854775807]",
        "[-9223372036854775808]",
        "[\"\\ud83d\\ude00 \\/ \\b\\f\\n\\r\\t\\\"\\\\\"]",
        "[\"\xf0\x9f\x98\x80\xc2\xa0\xef\xbf\xbf\"]",
        "\r\n\t[true,false,null]\n",
        "{\"a\":{\"a\":[{\"a\":1},{\"a\":1}]}}",
    };
    for (size_t i = 0; i < COUNT_OF(text); i++) {
        struct json_doc d;
        if (parse(&d, text[i]) != 0) fail_msg("%s: %s", text[i], err_msg());
        json_doc_release(&d);
    }
    static const char *const any[] = { "\"x\"", " 7 ", "null", "-0.5e3", "[]" };
    for (size_t i = 0; i < COUNT_OF(any); i++) {
        struct json_doc d;
        assert_int_equal(json_doc_parse_any(&d, "f", 1, any[i], strlen(any[i])), 0);
        json_doc_release(&d);
    }
}

static void test_json__depth(void **state)
{
    (void)state;
    struct buf b = { 0 };
    for (int depth = 2000; depth <= 2001; depth++) {
        struct json_doc d;
        struct buf out = { 0 };
        buf_clear(&b);
        for (int i = 0; i < depth; i++)
            buf_adds(&b, i % 2 ? "[" : "{\"a\":");
        buf_adds(&b, "1");
        for (int i = depth - 1; i >= 0; i--)
            buf_adds(&b, i % 2 ? "]" : "}");
        assert_int_equal(parse(&d, b.data), depth == 2000 ? 0 : ERR_INPUT);
        if (depth > 2000)
            assert_msg("nested too deep");
        else
            assert_int_equal(json_dump(&out, d.root, 0), 0);
        json_doc_release(&d);
        buf_release(&out);
    }
    buf_clear(&b);
    for (int i = 0; i < 100000; i++)
        buf_adds(&b, "[");
    struct json_doc d;
    assert_int_equal(parse(&d, b.data), ERR_INPUT);
    assert_msg("run.json:1:2001: error: nested too deep");
    buf_release(&b);
}

/* No prefix and no flipped bit of a document makes the parser fail in another way than with a message. */
static void test_json__mutations(void **state)
{
    (void)state;
    static const char text[] = "{\"a\\u00e9\": [1, -2.5e-3, true, null, \"x\\ud83d\\ude00\\\\\"],\n"
                               " \"b\": {\"c\": \"\xe2\x82\xac\", \"d\": []}, \"e\": false}";
    char copy[sizeof text];
    struct json_doc d;
    assert_int_equal(parse(&d, text), 0);
    json_doc_release(&d);
    for (size_t n = 0; n < sizeof text - 1; n++) {
        assert_int_equal(json_doc_parse(&d, "f", 1, text, n), ERR_INPUT);
        assert_msg("f:");
    }
    for (size_t i = 0; i < sizeof text - 1; i++)
        for (int bit = 0; bit < 8; bit++) {
            memcpy(copy, text, sizeof text);
            copy[i] = (char)(copy[i] ^ (1 << bit));
            const int rc = json_doc_parse(&d, "f", 1, copy, sizeof text - 1);
            assert_true(rc == 0 || rc == ERR_INPUT);
            int64_t line, col;
            json_doc_where(&d, "/b/c", &line, &col);
            json_doc_release(&d);
        }
}

static void test_json__read(void **state)
{
    struct json_doc d;
    const char *p = scratch(state, "run.json");
    scratch_put(p, "{\"a\": [1,\n 2]}", 14);
    assert_int_equal(json_doc_read(&d, p), 0);
    assert_string_equal(d.name, p);
    assert_int_equal(json_array_size(json_object_get(d.root, "a")), 2);
    json_doc_release(&d);
    json_doc_release(&d);
    assert_int_equal(json_doc_read(&d, scratch(state, "none")), ERR_INPUT);
    assert_int_equal(json_doc_read(&d, scratch(state, "")), ERR_INPUT);
    assert_msg("is a directory");
    assert_int_equal(mkfifo(scratch(state, "fifo"), 0666), 0);
    assert_int_equal(json_doc_read(&d, scratch(state, "fifo")), ERR_INPUT);
    scratch_put(p, "", 0);
    assert_int_equal(json_doc_read(&d, p), ERR_INPUT);
    assert_msg("run.json:1:1: error: is empty");
}

static void test_json__where(void **state)
{
    (void)state;
    static const char text[] = "{\n"
                               "  \"data\": {\"train\": [\"a\", \"b]\", {\"x\": 1}],\n"
                               "           \"e\\u00e9\\n\": 2},\n"
                               "  \"a/b~c\": {\"\": [[], [7, 8]]}, \"10\": -1.5e3 ,\n"
                               "\t\"q\\\"\": \"\\\"}\", \"\\ud83d\\ude00\": 3\n"
                               "}\n";
    static const struct {
        const char *pointer;
        int64_t line, col;
    } row[] = {
        { "", 1, 1 },
        { "/data", 2, 3 },
        { "/data/train", 2, 12 },
        { "/data/train/0", 2, 22 },
        { "/data/train/1", 2, 27 },
        { "/data/train/2", 2, 33 },
        { "/data/train/2/x", 2, 34 },
        { "/data/train/3", 0, 0 },
        { "/data/train/00", 0, 0 },
        { "/data/train/-1", 0, 0 },
        { "/data/train/", 0, 0 },
        { "/data/train/0/x", 0, 0 },
        { "/data/e\xc3\xa9\n", 3, 12 },
        { "/a~1b~0c", 4, 3 },
        { "/a~1b~0c/", 4, 13 },
        { "/a~1b~0c//0", 4, 18 },
        { "/a~1b~0c//1/1", 4, 26 },
        { "/10", 4, 32 },
        { "/q\"", 5, 2 },
        { "/\xf0\x9f\x98\x80", 5, 16 },
        { "/q", 0, 0 },
        { "/dat", 0, 0 },
        { "/data2", 0, 0 },
        { "data", 0, 0 },
    };
    struct json_doc d;
    assert_int_equal(json_doc_parse(&d, "f.json", 1, text, sizeof text - 1), 0);
    for (size_t i = 0; i < COUNT_OF(row); i++) {
        int64_t line, col;
        json_doc_where(&d, row[i].pointer, &line, &col);
        if (line != row[i].line || col != row[i].col)
            fail_msg("%s: %d:%d, not %d:%d", row[i].pointer, (int)line, (int)col, (int)row[i].line,
                     (int)row[i].col);
    }
    assert_int_equal(json_err(ERR_INPUT, &d, "/data/train/1", "%s: bad", "data.train"), ERR_INPUT);
    assert_string_equal(err_msg(), "f.json:2:27: error: data.train: bad");
    json_err(ERR_INPUT, &d, "/data/train/9/y", "absent"); /* the nearest that exists */
    assert_string_equal(err_msg(), "f.json:2:12: error: absent");
    json_err(ERR_INPUT, &d, "/model/path", "absent");
    assert_string_equal(err_msg(), "f.json:1:1: error: absent");
    json_doc_release(&d);
    assert_int_equal(json_doc_parse(&d, "rows", 17, "{\"a\":\n1}", 8), 0);
    json_err(ERR_INPUT, &d, "/a", "x");
    assert_string_equal(err_msg(), "rows:17:2: error: x");
    json_doc_release(&d);
    char *p;
    assert_int_equal(json_pointer_join(&p, "/x", "a/b~c"), 0);
    assert_string_equal(p, "/x/a~1b~0c");
    free(p);
    assert_int_equal(json_pointer_join(&p, "", ""), 0);
    assert_string_equal(p, "/");
    free(p);
}

static void test_json__dump(void **state)
{
    (void)state;
    static const char text[] =
        "{\"z\": 1, \"a\": [1, 2.5, true, false, null, [], {}], "
        "\"s\": \"\\u00e9\\\"\\\\/\\b\\f\\n\\r\\t\\u0001\\u007f\", \"n\": {\"k\": -7}}";
    struct json_doc d;
    struct buf b = { 0 };
    assert_int_equal(parse(&d, text), 0);
    assert_int_equal(json_dump(&b, d.root, 0), 0);
    assert_string_equal(
        b.data, "{\"z\": 1, \"a\": [1, 2.5, true, false, null, [], {}], "
                "\"s\": \"\xc3\xa9\\\"\\\\/\\b\\f\\n\\r\\t\\u0001\x7f\", \"n\": {\"k\": -7}}");
    buf_clear(&b);
    assert_int_equal(json_dump(&b, d.root, 2), 0);
    assert_string_equal(b.data,
                        "{\n  \"z\": 1,\n  \"a\": [\n    1,\n    2.5,\n    true,\n    false,\n"
                        "    null,\n    [],\n    {}\n  ],\n"
                        "  \"s\": \"\xc3\xa9\\\"\\\\/\\b\\f\\n\\r\\t\\u0001\x7f\",\n"
                        "  \"n\": {\n    \"k\": -7\n  }\n}");
    json_doc_release(&d);
    json_t *s = json_stringn("a\0b", 3);
    buf_clear(&b);
    assert_int_equal(json_dump(&b, s, 0), 0);
    assert_string_equal(b.data, "\"a\\u0000b\"");
    json_decref(s);
    buf_release(&b);
}

static void test_json__reals(void **state)
{
    (void)state;
    static const struct {
        double v;
        const char *want;
    } row[] = {
        { 0.0, "0.0" },
        { -0.0, "-0.0" },
        { 1.0, "1.0" },
        { -3.0, "-3.0" },
        { 0.1, "0.1" },
        { 1.0 / 3, "0.3333333333333333" },
        { 2.0 / 3, "0.6666666666666666" },
        { 5e-7, "5e-07" },
        { 1.5e-7, "1.5e-07" },
        { 0.0001, "0.0001" },
        { 0.00012345, "0.00012345" },
        { 0.00001, "1e-05" },
        { 100000.0, "100000.0" },
        { 123456.789, "123456.789" },
        { 1e15, "1000000000000000.0" },
        { 1e16, "1e+16" },
        { 9007199254740993.0, "9007199254740992.0" },
        { 1e22, "1e+22" },
        { 1.7976931348623157e308, "1.7976931348623157e+308" },
        { 5e-324, "5e-324" },
        { 2.2250738585072014e-308, "2.2250738585072014e-308" },
        { 0.1 + 0.2, "0.30000000000000004" },
    };
    struct buf b = { 0 };
    for (size_t i = 0; i < COUNT_OF(row); i++) {
        buf_clear(&b);
        assert_int_equal(json_dump_real(&b, row[i].v), 0);
        assert_string_equal(b.data, row[i].want);
    }
    uint64_t x = 88172645463325252u;
    for (int i = 0; i < 20000; i++) {
        double v, again;
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        memcpy(&v, &x, sizeof v);
        if (!isfinite(v)) continue;
        if (i % 2) v = (double)(float)((double)(x >> 40) / 1000); /* what metrics look like */
        buf_clear(&b);
        assert_int_equal(buf_adds(&b, "["), 0);
        assert_int_equal(json_dump_real(&b, v), 0);
        assert_int_equal(buf_adds(&b, "]"), 0);
        json_t *a = json_loads(b.data, 0, NULL);
        assert_true(json_is_real(json_array_get(a, 0)));
        again = json_real_value(json_array_get(a, 0));
        assert_memory_equal(&v, &again, sizeof v);
        json_decref(a);
    }
    buf_clear(&b);
    assert_int_equal(json_dump_real(&b, (double)NAN), ERR_INPUT);
    assert_int_equal(json_dump_real(&b, (double)INFINITY), ERR_INPUT);
    buf_release(&b);
}

static void test_json__nearest(void **state)
{
    (void)state;
    static const char *const names[] = {
        "lambda", "beta", "alpha", "max_length", "max_prompt_length", "lr"
    };
    static const char *const row[][2] = {
        { "lamda", "lambda" },
        { "lambdaa", "lambda" },
        { "lamdba", "lambda" },
        { "lmabad", "lambda" },
        { "bet", "beta" },
        { "ebta", "beta" },
        { "max_lenght", "max_length" },
        { "xax_lengtx", "max_length" },
        { "xxx_lengtx", NULL },
        { "gamma", NULL },
        { "lr", "lr" },
        { "xy", NULL },
        { "", NULL },
        { "l", NULL },
    };
    for (size_t i = 0; i < COUNT_OF(row); i++) {
        const char *got = json_nearest(row[i][0], names, COUNT_OF(names));
        if (row[i][1] ? !got || strcmp(got, row[i][1]) != 0 : got != NULL)
            fail_msg("%s gives %s", row[i][0], got ? got : "nothing");
    }
    char *big = malloc(100001);
    memset(big, 'a', 100000);
    big[100000] = 0;
    assert_null(json_nearest(big, names, COUNT_OF(names)));
    free(big);
    assert_null(json_nearest("x", NULL, 0));
}

#define T(name) cmocka_unit_test_setup_teardown(name, scratch_make, scratch_remove)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(test_json__refuses),   T(test_json__accepts), T(test_json__depth),
        T(test_json__mutations), T(test_json__read),    T(test_json__where),
        T(test_json__dump),      T(test_json__reals),   T(test_json__nearest),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
