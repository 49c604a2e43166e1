/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "../src/data/tokenizer_impl.h"
#include "tokenizer_fixture.h"

#define METASPACE "{\"type\": \"Metaspace\", \"replacement\": \"\\u2581\"}"

/* A tokenizer.json around model members; the caller frees. */
static char *unigram_json(const char *pre, const char *model)
{
    struct buf b = { 0 };
    assert_int_equal(buf_addf(&b,
                              "{\"added_tokens\": [], \"normalizer\": null, \"pre_tokenizer\": %s, "
                              "\"decoder\": %s, \"model\": {\"type\": \"Unigram\", %s}}",
                              pre, pre, model),
                     0);
    return b.data;
}

static void expect(const struct tokenizer *t, const char *text, const char *ids)
{
    const char *got = fixture_ids(t, text, SPECIALS_AS_TEXT);
    if (strcmp(got, ids) != 0) fail_msg("\"%s\": got %s, not %s", text, got, ids);
}

static void test_unigram__pieces(void **state)
{
    (void)state;
    static const char VOCAB[] =
        "\"vocab\": [[\"<unk>\", 0], [\"\\u2581\", -2.5], [\"a\", -3], [\"b\", -3.25], "
        "[\"\\u2581a\", -4], [\"ab\", -5.0], [\"abb\", -12.0], [\"<0xC3>\", -9], [\"<0xA9>\", -9]]";
    char model[sizeof VOCAB + 64], *dir = fixture_dir();
    snprintf(model, sizeof model, "\"unk_id\": 0, %s", VOCAB);
    struct tokenizer *t = fixture_open(dir, unigram_json(METASPACE, model));
    struct buf b = { 0 };
    expect(t, "", "");
    expect(t, "a ab", "4 4 3"); /* -4 - 3.25 beats -2.5 - 5 */
    expect(t, "bab abb", "1 3 5 4 3 3");
    expect(t, "axyb", "4 0 3"); /* a run of unknowns is one */
    expect(t, "\xc3\xa9", "1 0");
    expect(t, "b<unk>b", "1 3 0 3");   /* the unknown token's own text, alone */
    expect(t, "bx<unk>xb", "1 3 0 3"); /* and in a run */
    assert_int_equal(tokenizer_decode(t, (const int32_t[]){ 4, 1, 3 }, 3, false, &b), 0);
    assert_string_equal(b.data, "a b");
    buf_release(&b);
    tokenizer_close(t);
    snprintf(model, sizeof model, "\"unk_id\": 0, \"byte_fallback\": true, %s", VOCAB);
    t = fixture_open(dir, unigram_json("null", model));
    expect(t, "a\xc3\xa9\xc3\xa9z", "2 0"); /* all bytes of a run, or none */
    expect(t,
           "a\xc3\xa9\xc3\xa9"
           "b",
           "2 7 8 7 8 3");
    tokenizer_close(t);
    snprintf(model, sizeof model, "\"unk_id\": null, %s", VOCAB);
    t = fixture_open(dir, unigram_json("null", model));
    expect(t, "ab", "5");
    expect(t, "abc", "error");
    assert_non_null(strstr(err_msg(), "U+0063"));
    tokenizer_close(t);
    fixture_remove(dir);
}

/* The tokenizers library reads a score with one rounding for the digits and one for the power of ten. */
static void test_unigram__scores(void **state)
{
    (void)state;
    assert_true(unigram_score(-11.864072317121257) == -11.864072317121256);
    assert_true(unigram_score(-3.0629345227276406) == -3.062934522727641);
    assert_true(unigram_score(-2.5) == -2.5 && unigram_score(0) == 0 && unigram_score(7) == 7);
    assert_true(unigram_score(1e-300) == 1e-300 && unigram_score(-1e22) == -1e22);
}

enum { PIECES = 24, CHARS = 11 };
struct oracle {
    char piece[PIECES][8];
    double score[PIECES], worst;
    int n;
    int32_t path[CHARS], best_path[CHARS]; /* -1: unknown */
    int best_n;
    double best;
};

static size_t step(const struct oracle *o, int32_t piece)
{
    return piece < 0 ? 1 : strlen(o->piece[piece]);
}

/* Of equal sums the way with the longer piece wins, at the last place where they differ. */
static bool wins_tie(const struct oracle *o, int n)
{
    for (int i = 1; i <= MIN(n, o->best_n); i++) {
        const size_t a = step(o, o->path[n - i]), b = step(o, o->best_path[o->best_n - i]);
        if (a != b) return a > b;
    }
    return false;
}

/* Every way through s, with the sum of its scores; the best is kept. */
static void walk(struct oracle *o, const char *s, int n, double sum)
{
    bool alone = false;
    if (*s == 0) {
        if (o->best_n >= 0 && (sum < o->best || (sum == o->best && !wins_tie(o, n)))) return;
        o->best = sum;
        o->best_n = n;
        memcpy(o->best_path, o->path, sizeof o->path);
        return;
    }
    for (int i = 1; i < o->n; i++) {
        const size_t len = strlen(o->piece[i]);
        if (strncmp(s, o->piece[i], len) != 0) continue;
        alone = alone || len == 1;
        o->path[n] = i;
        walk(o, s + len, n + 1, sum + o->score[i]);
    }
    if (alone) return;
    o->path[n] = -1;
    walk(o, s + 1, n + 1, sum + o->worst - 10);
}

static uint32_t draw(uint32_t *seed, uint32_t n)
{
    *seed = *seed * 1664525u + 1013904223u;
    return (*seed >> 8) % n;
}

/* Pieces over a, b and c without all of the letters, scores in multiples of 2^-16: sums are exact. */
static char *oracle_make(struct oracle *o, uint32_t *seed)
{
    struct buf b = { 0 };
    *o = (struct oracle){ .n = 1, .piece = { "<unk>" } };
    assert_int_equal(buf_adds(&b, "\"unk_id\": 0, \"vocab\": [[\"<unk>\", 0]"), 0);
    while (o->n < PIECES) {
        char *s = o->piece[o->n];
        const uint32_t len = 1 + draw(seed, 4);
        for (uint32_t i = 0; i < len; i++)
            s[i] = (char)('a' + (int)draw(seed, 3));
        s[len] = 0;
        bool again = len == 1 && s[0] == 'c';
        for (int i = 0; i < o->n; i++)
            again = again || strcmp(s, o->piece[i]) == 0;
        if (again) continue;
        const double x = -(double)(draw(seed, 4) * 65536 + draw(seed, 65536) * len) / 65536;
        o->score[o->n++] = x;
        o->worst = MIN(o->worst, x);
        assert_int_equal(buf_addf(&b, ", [\"%s\", %.17g]", s, x), 0);
    }
    assert_int_equal(buf_adds(&b, "]"), 0);
    char *json = unigram_json("null", b.data);
    buf_release(&b);
    return json;
}

static void test_unigram__against_every_way(void **state)
{
    (void)state;
    struct oracle o;
    uint32_t seed = 1;
    char *dir = fixture_dir();
    int unknowns = 0;
    for (int round = 0; round < 12; round++) {
        struct tokenizer *t = fixture_open(dir, oracle_make(&o, &seed));
        for (int k = 0; k < 200; k++) {
            char s[CHARS + 1] = "", want[8 * CHARS] = "";
            const uint32_t len = 1 + draw(&seed, CHARS);
            for (uint32_t i = 0; i < len; i++)
                s[i] = (char)('a' + (int)draw(&seed, 3));
            o.best_n = -1;
            walk(&o, s, 0, 0);
            for (int i = 0, n = 0; i < o.best_n; i++) {
                if (o.best_path[i] < 0) unknowns++;
                if (i && o.best_path[i] < 0 && o.best_path[i - 1] < 0) continue;
                n += snprintf(want + n, sizeof want - (size_t)n, "%s%d", n ? " " : "",
                              MAX(o.best_path[i], 0));
            }
            expect(t, s, want);
        }
        tokenizer_close(t);
    }
    assert_true(unknowns > 0);
    fixture_remove(dir);
}

/* Base64 of a double array with "a" -> text at `a`, "\r\n" -> text at 3, and the texts "xy" and " "; the caller frees. */
static char *charsmap_base64(uint32_t a)
{
    static const char DIGITS[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    enum { LEAF = 1 << 8, TEXTS = 6, BYTES = 4 + 4 * 256 + TEXTS };
    uint32_t word[1 + 256] = { 4 * 256 }, *unit = word + 1;
    uint8_t raw[BYTES + 2] = { 0 };
    struct buf b = { 0 };
    unit[0] = 0x80 << 10;
    unit[0x80 ^ 'a'] = 'a' | LEAF | (0x80 ^ 'a' ^ 0x10) << 10;
    unit[0x10] = 1u << 31 | a;
    unit[0x80 ^ '\r'] = '\r' | (0x80 ^ '\r' ^ 0x20) << 10;
    unit[0x20 ^ '\n'] = '\n' | LEAF | (0x20 ^ '\n' ^ 0x30) << 10;
    unit[0x30] = 1u << 31 | 3;
    for (size_t i = 0; i < 4 * COUNT_OF(word); i++)
        raw[i] = (uint8_t)(word[i / 4] >> 8 * (i % 4));
    memcpy(raw + 4 * COUNT_OF(word), "xy\0 \0", TEXTS);
    for (size_t i = 0; i < BYTES; i += 3) {
        const uint32_t v = (uint32_t)raw[i] << 16 | (uint32_t)raw[i + 1] << 8 | raw[i + 2];
        for (size_t k = 0; k < 4; k++)
            assert_int_equal(buf_add(&b, i + k > BYTES ? "=" : &DIGITS[v >> (18 - 6 * k) & 63], 1),
                             0);
    }
    return b.data;
}

static void test_unigram__charsmap(void **state)
{
    (void)state;
#define ACUTE "\xcc\x81"
    static const char *const row[][2] = {
        { "aba", "xybxy" },
        { "\r\n|\r|\n", " |\r|\n" },
        /* what starts with an entry is replaced whole as a short cluster, by characters as a long one */
        { "a" ACUTE ACUTE "b" ACUTE, "xyb" ACUTE },
        { "a" ACUTE ACUTE ACUTE, "xy" ACUTE ACUTE ACUTE },
        { "\xf0\x9f\x98\x80", "\xf0\x9f\x98\x80" },
    };
    static const char *const bad[][2] = {
        { "", "cut short" },      { "AAAA", "cut short" },         { "BAAAAAA=", "cut short" },
        { "AAA", "not base64" },  { "A=AA", "not base64" },        { "AAB=", "not base64" },
        { "AA!A", "not base64" }, { "BAAAAAAAAAD/", "not UTF-8" },
    };
    struct charsmap *m = NULL;
    struct buf b = { 0 };
    char *base64 = charsmap_base64(0);
    assert_int_equal(charsmap_open(&m, base64), 0);
    free(base64);
    for (size_t i = 0; i < COUNT_OF(row); i++) {
        buf_clear(&b);
        assert_int_equal(charsmap_apply(m, &b, row[i][0], strlen(row[i][0])), 0);
        assert_int_equal(b.len, strlen(row[i][1]));
        assert_memory_equal(b.data, row[i][1], b.len);
    }
    charsmap_close(m);
    base64 = charsmap_base64(100);
    assert_int_equal(charsmap_open(&m, base64), 0);
    free(base64);
    assert_int_equal(charsmap_apply(m, &b, "a", 1), ERR_INPUT);
    charsmap_close(m);
    buf_release(&b);
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        assert_int_equal(charsmap_open(&m, bad[i][0]), ERR_INPUT);
        assert_null(m);
        if (!strstr(err_msg(), bad[i][1])) fail_msg("%s: %s", bad[i][0], err_msg());
    }
}

static void test_unigram__refused(void **state)
{
    (void)state;
    static const struct {
        const char *pre, *model, *says;
    } row[] = {
        { "null", "\"vocab\": {\"a\": 0}", "list of tokens and scores" },
        { "null", "\"vocab\": []", "list of tokens and scores" },
        { "null", "\"vocab\": [[\"a\"]]", "text and its score" },
        { "null", "\"vocab\": [[\"a\", \"b\"]]", "text and its score" },
        { "null", "\"vocab\": [[\"\", -1]]", "without text" },
        { "null", "\"vocab\": [[\"a\", -1], [\"a\", -2]]", "twice" },
        { "null", "\"vocab\": [[\"a\", -1]], \"unk_id\": 1", "unk_id" },
        { "null", "\"vocab\": [[\"a\", -1]], \"unk_id\": -1", "unk_id" },
        { "null", "\"vocab\": [[\"a\", -1]], \"merges\": []", "merges" },
        { "{\"type\": \"ByteLevel\"}", "\"vocab\": [[\"a\", -1]]", "ByteLevel" },
    };
    char *dir = fixture_dir();
    for (size_t i = 0; i < COUNT_OF(row); i++) {
        struct tokenizer *t = NULL;
        char *json = unigram_json(row[i].pre, row[i].model);
        fixture_write(dir, "tokenizer.json", json);
        free(json);
        assert_int_equal(tokenizer_open(&t, dir), ERR_INPUT);
        if (!strstr(err_msg(), row[i].says)) fail_msg("%zu: %s", i, err_msg());
    }
    fixture_remove(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_unigram__pieces),
        cmocka_unit_test(test_unigram__scores),
        cmocka_unit_test(test_unigram__against_every_way),
        cmocka_unit_test(test_unigram__charsmap),
        cmocka_unit_test(test_unigram__refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
