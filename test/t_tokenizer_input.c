/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>
#include "../src/data/tokenizer_impl.h"
#include "tokenizer_fixture.h"

static void test_tokenizer_input__bos_and_eos(void **state)
{
    (void)state;
    static const char template[] = "{\"type\": \"TemplateProcessing\", \"single\": "
                                   "[{\"SpecialToken\": {\"id\": \"<s>\", \"type_id\": 0}}, "
                                   "{\"Sequence\": {\"id\": \"A\", \"type_id\": 0}}], \"pair\": "
                                   "[], \"special_tokens\": {\"<s>\": {\"id\": \"<s>\", "
                                   "\"ids\": [1], \"tokens\": [\"<s>\"]}}}";
    static const char sequence[] =
        "{\"type\": \"Sequence\", \"processors\": [{\"type\": \"ByteLevel\"}]}";
    static const struct {
        const char *post, *config, *map;
        int32_t bos, eos;
        bool adds;
        const char *error;
    } row[] = {
        { "null", NULL, NULL, -1, 2, false, NULL }, /* </s> is the one well-known end */
        { template, NULL, NULL, 1, 2, true, NULL },
        { sequence, NULL, NULL, -1, 2, false, NULL },
        { "null",
          "{\"bos_token\": \"<s>\", \"eos_token\": {\"content\": \"<unk>\", \"lstrip\": false}}",
          NULL, 1, 0, false, NULL },
        { "null", "{\"bos_token\": null, \"eos_token\": null}", "{\"eos_token\": \"</s>\"}", -1, -1,
          false, NULL },
        { "null", "{}", "{\"bos_token\": \"<s>\", \"eos_token\": \"<s>\"}", 1, 1, false, NULL },
        { "null", "{\"bos_token\": \"<s>\", \"add_bos_token\": true}", NULL, 1, 2, true, NULL },
        { template, "{\"bos_token\": \"<s>\", \"add_bos_token\": false}", NULL, 1, 2, false, NULL },
        { "null", "{\"bos_token\": \"<s>\", \"tokenizer_class\": \"LlamaTokenizer\"}", NULL, 1, 2,
          true, NULL },
        { "null", "{\"bos_token\": \"<s>\", \"tokenizer_class\": \"Qwen2Tokenizer\"}", NULL, 1, 2,
          false, NULL },
        { "null", "{\"eos_token\": \"<end>\"}", NULL, 0, 0, false, "no token \"<end>\"" },
        { "null", "{\"eos_token\": 3}", NULL, 0, 0, false,
          "tokenizer_config.json:1:2: error: eos_token is neither" },
        { "null", "{\"add_bos_token\": true}", NULL, 0, 0, false, "there is no bos_token" },
        { template, "{\"bos_token\": \"</s>\"}", NULL, 0, 0, false, "puts 1 first" },
        { "null", "{\"eos_token\": \"</s>\"", NULL, 0, 0, false, "tokenizer_config.json:1:" },
        { "null", "[]", NULL, 0, 0, false, "not a JSON object" },
        { "{\"type\": \"BertProcessing\"}", NULL, NULL, 0, 0, false,
          "post_processor \"BertProcessing\" is not supported" },
    };
    for (size_t i = 0; i < COUNT_OF(row); i++) {
        char *dir = fixture_dir();
        struct tokenizer *t = NULL;
        char *text = fixture_pieces(&(struct fixture){
            .post_processor = row[i].post,
            .added = "[" FIXTURE_ADDED(1, "<s>", "") ", " FIXTURE_ADDED(2, "</s>", "") "]" });
        fixture_write(dir, "tokenizer.json", text);
        free(text);
        if (row[i].config) fixture_write(dir, "tokenizer_config.json", row[i].config);
        if (row[i].map) fixture_write(dir, "special_tokens_map.json", row[i].map);
        const int rc = tokenizer_open(&t, dir);
        if (row[i].error) {
            assert_int_equal(rc, ERR_INPUT);
            if (!strstr(err_msg(), row[i].error)) fail_msg("row %zu: %s", i, err_msg());
        } else {
            if (rc < 0) fail_msg("row %zu: %s", i, err_msg());
            assert_int_equal(tokenizer_bos(t), row[i].bos);
            assert_int_equal(tokenizer_eos(t), row[i].eos);
            assert_int_equal(tokenizer_adds_bos(t), row[i].adds);
        }
        tokenizer_close(t);
        fixture_remove(dir);
    }
}

static void test_tokenizer_input__utf8(void **state)
{
    (void)state;
    static const struct {
        const char *s;
        int at; /* first bad byte, -1: valid */
    } row[] = {
        { "\x7f\xc2\x80\xdf\xbf\xe0\xa0\x80\xed\x9f\xbf\xee\x80\x80\xf0\x90\x80\x80\xf4\x8f\xbf"
          "\xbf",
          -1 },
        { "a\xc0\x80", 1 },
        { "\xc1\xbf", 0 },
        { "\xe0\x9f\xbf", 0 },
        { "\xf0\x8f\xbf\xbf", 0 }, /* overlong */
        { "ab\xed\xa0\x80", 2 },
        { "\xed\xbf\xbf", 0 }, /* surrogates */
        { "\xf4\x90\x80\x80", 0 },
        { "\xf5\x80\x80\x80", 0 },
        { "\xff", 0 }, /* above U+10FFFF */
        { "x\x80", 1 },
        { "\xc3", 0 },
        { "\xe2\x82", 0 },
        { "\xf0\x9f\x98", 0 },
        { "\xc3\xc3\xa9", 0 },
    };
    char *dir = fixture_dir();
    struct tokenizer *t = fixture_open(dir, fixture_bytes(&(struct fixture){ 0 }));
    for (size_t i = 0; i < COUNT_OF(row); i++) {
        struct ids v = { 0 };
        char want[64];
        snprintf(want, sizeof want, "not valid UTF-8 at byte %d ", row[i].at);
        assert_int_equal(ids_add(&v, 7), 0);
        const int rc = tokenizer_encode(t, row[i].s, strlen(row[i].s), SPECIALS_AS_TEXT, &v);
        assert_int_equal(rc, row[i].at < 0 ? 0 : ERR_INPUT);
        if (rc < 0) {
            assert_non_null(strstr(err_msg(), want));
            assert_int_equal(v.n, 1); /* nothing was added */
        }
        ids_release(&v);
    }
    /* a NUL is a byte like others */
    struct ids v = { 0 };
    assert_int_equal(tokenizer_encode(t, "a\0b", 3, SPECIALS_AS_TEXT, &v), 0);
    assert_string_equal(fixture_list(&v), "97 0 98");
    ids_release(&v);
    tokenizer_close(t);
    fixture_remove(dir);
}

static void test_tokenizer_input__lossy(void **state)
{
    (void)state;
    /* one U+FFFD for each longest ill-formed start (Unicode 15, table 3-8) */
    struct buf b = { 0 };
    assert_int_equal(utf8_add_lossy(&b,
                                    "a\xf1\x80\x80\xe1\x80\xc2"
                                    "b\x80"
                                    "c\xc0\x80"
                                    "d\xed\xa0\x80",
                                    17),
                     0);
    const char r[] = "\xef\xbf\xbd";
    char want[100];
    snprintf(want, sizeof want, "a%s%s%sb%sc%s%sd%s%s%s", r, r, r, r, r, r, r, r, r);
    assert_string_equal(b.data, want);
    buf_release(&b);
}

/* Broken tokenizer.json files, each with one fault, and a part of the one line that names it. */
struct fault {
    struct fixture f;
    bool pieces;
    const char *says;
};
#define ADDED(a)           \
    {                      \
        .added = "[" a "]" \
    }
#define VOCAB(v)   \
    {              \
        .vocab = v \
    }
#define MERGES(m)   \
    {               \
        .merges = m \
    }
#define MODEL(m)   \
    {              \
        .model = m \
    }
#define NORM(n)         \
    {                   \
        .normalizer = n \
    }
#define PRE(p)             \
    {                      \
        .pre_tokenizer = p \
    }
#define SPLIT(r)                                                                               \
    {                                                                                          \
        .pre_tokenizer = "{\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Split\", " \
                         "\"pattern\": {\"Regex\": \"" r "\"}, "                               \
                         "\"behavior\": \"Isolated\"}, {\"type\": \"ByteLevel\"}]}"            \
    }
#define DECODER(d)   \
    {                \
        .decoder = d \
    }

static const struct fault faults[] = {
    { VOCAB("\"x1\": -1"), false, "the id -1 is out of range: the ids here are 0 to 256" },
    { VOCAB("\"x1\": 2147483648"), false, "the id 2147483648 is out of range" },
    { VOCAB("\"x1\": 257"), false, "the id 257 is out of range" }, /* a gap */
    { VOCAB("\"x1\": 97"), false, "\"x1\" has the id 97, which another token has" },
    { VOCAB("\"x1\": 256.0"), false, "a token's id is not an integer" },
    { VOCAB("\"x1\": \"256\""), false, "a token's id is not an integer" },
    { VOCAB("\"\": 256"), false, "a token without text" },
    { VOCAB("\"x1\": 256, \"x1\": 257"), false, "twice" },
    { VOCAB("\"\\ud83d\": 256"), false, "error" },
    { ADDED(FIXTURE_ADDED(256, "<a>", "") ", " FIXTURE_ADDED(256, "<b>", "")), false,
      "\"<b>\" has the id 256, which another token has" },
    { ADDED(FIXTURE_ADDED(256, "<a>", "") ", " FIXTURE_ADDED(256, "<a>", "")), false,
      "\"<a>\" is added twice" },
    { ADDED(FIXTURE_ADDED(97, "<a>", "")), false,
      "\"<a>\" has the id 97, which another token has" },
    { ADDED(FIXTURE_ADDED(98, "a", "")), false, "\"a\" has the id 98 here and 97 elsewhere" },
    { ADDED(FIXTURE_ADDED(257, "<a>", "")), false, "the id 257 is out of range" },
    { ADDED(FIXTURE_ADDED(257, "<a>", "") ", " FIXTURE_ADDED(256, "<b>", "")), false,
      "the next free one is 256" },
    { ADDED(FIXTURE_ADDED(-1, "<a>", "")), false, "the id -1 is out of range" },
    { ADDED(FIXTURE_ADDED(4294967296, "<a>", "")), false, "the id 4294967296 is out of range" },
    { ADDED(FIXTURE_ADDED(256, "", "")), false, "an added token without text" },
    { ADDED(FIXTURE_ADDED(256, "<a>", ", \"special\": 1")), false,
      "special is neither true nor false" },
    { ADDED("{\"id\": 256}"), false, "content is not a string" },
    { ADDED("7"), false, "an added token is not an object" },
    { { .added = "{}" }, false, "added_tokens is not a list" },
    { MERGES("[\"a zz\"]"), false,
      "/model/merges" }, /* replaced below by the message's own words */
    { MERGES("[\"a b\"]"), false, "the merge \"ab\" is or gives a token that model.vocab lacks" },
    { MERGES("[\"ab\"]"), false, "is not two tokens with one space between them" },
    { MERGES("[\"a b c\"]"), false, "is not two tokens with one space between them" },
    { MERGES("[\" b\"]"), false, "is not two tokens with one space between them" },
    { MERGES("[[\"a\"]]"), false, "is not a list of two tokens" },
    { MERGES("[[\"a\", 1]]"), false, "is not a list of two tokens" },
    { MERGES("[3]"), false, "is not a list of two tokens" },
    { MERGES("null"), false, "model.merges is not a list" },
    { { .added = "[" FIXTURE_ADDED(256, "ab", "") "]", .merges = "[\"a b\"]" },
      false,
      "model.vocab lacks" },
    { MODEL("\"dropout\": 0.1"), false, "model.dropout is not supported" },
    { MODEL("\"continuing_subword_prefix\": \"##\""), false,
      "model.continuing_subword_prefix is not supported" },
    { MODEL("\"end_of_word_suffix\": \"</w>\""), false,
      "model.end_of_word_suffix is not supported" },
    { MODEL("\"unk_token\": \"<none>\""), false, "unk_token is not in model.vocab" },
    { MODEL("\"byte_fallback\": true"), false, "byte_fallback beside ByteLevel" },
    { MODEL("\"fuse_unk\": \"yes\""), false, "fuse_unk is neither true nor false" },
    { MODEL("\"magic\": true"), false, "model key \"magic\" is not supported" },
    { NORM("{\"type\": \"Nmt\"}"), false, "normalizer \"Nmt\" is not supported" },
    { NORM("{\"type\": \"NFKC\", \"form\": 2}"), false, "key \"form\" is not supported" },
    { NORM("{\"type\": \"Strip\", \"strip_left\": 1}"), false, "strip_left is neither" },
    { NORM("{\"type\": \"Sequence\"}"), false, "a Sequence without its list" },
    { NORM("{\"type\": \"Sequence\", \"normalizers\": [{\"type\": \"BertNormalizer\"}]}"), false,
      "normalizer \"BertNormalizer\" is not supported" },
    { NORM("{\"type\": \"Replace\", \"pattern\": {\"Regex\": \" *\"}, \"content\": \"x\"}"), false,
      "that matches nothing" },
    { NORM("{\"type\": \"Replace\", \"pattern\": {\"Regex\": \"(a\"}, \"content\": \"x\"}"), false,
      "missing closing parenthesis" },
    { NORM("{\"type\": \"Replace\", \"pattern\": {\"String\": \"\"}, \"content\": \"x\"}"), false,
      "an empty pattern" },
    { NORM("{\"type\": \"Replace\", \"pattern\": {\"String\": \"a\"}}"), false,
      "content is not a string" },
    { NORM("{\"type\": \"Prepend\"}"), false, "prepend is not a string" },
    { NORM("{}"), false, "type is not a string" },
    { NORM("\"NFC\""), false, "is not an object with a type" },
    { PRE("{\"type\": \"UnicodeScripts\"}"), false,
      "pre_tokenizer \"UnicodeScripts\" is not supported" },
    { PRE("{\"type\": \"WhitespaceSplit\", \"x\": 1}"), false, "key \"x\" is not supported" },
    { PRE("{\"type\": \"Punctuation\", \"behavior\": \"Bent\"}"), false,
      "behavior \"Bent\" is not supported" },
    { PRE("{\"type\": \"CharDelimiterSplit\", \"delimiter\": \"ab\"}"), false,
      "not one character" },
    { PRE("{\"type\": \"ByteLevel\", \"speed\": 1}"), false,
      "ByteLevel's key \"speed\" is not supported" },
    { PRE("{\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"ByteLevel\"}, {\"type\": "
          "\"ByteLevel\"}]}"),
      false, "a pre-tokenizer after ByteLevel" },
    { PRE("{\"type\": \"Split\", \"pattern\": {\"Regex\": \"a\"}, \"behavior\": \"Doubled\"}"),
      false, "Split's behavior \"Doubled\" is not supported" },
    { PRE("{\"type\": \"Split\", \"pattern\": {\"String\": \"\"}, \"behavior\": \"Removed\"}"),
      false, "an empty pattern" },
    { PRE("{\"type\": \"Split\", \"pattern\": {\"Regex\": 5}, \"behavior\": \"Isolated\"}"), false,
      "Regex is not a string" },
    { PRE("null"), false, "the decoder does not go with the pre_tokenizer" },
    { SPLIT("(a"), false, "missing closing parenthesis" },
    { SPLIT("[a"), false, "a class without its ]" },
    { SPLIT("\\\\w+"), false, "an escape with another meaning" },
    { SPLIT("a{"), false, "a { that is no count" },
    { SPLIT("(?R)"), false, "this kind of group" },
    { SPLIT("[a&&b]"), false, "&&" },
    { SPLIT("\\\\p{Klingon}"), false, "unknown property" },
    { PRE("{\"type\": \"Metaspace\", \"replacement\": \"__\"}"), true, "not one character" },
    { PRE("{\"type\": \"Metaspace\", \"replacement\": \"_\", \"prepend_scheme\": \"often\"}"), true,
      "prepend_scheme \"often\" is not supported" },
    { PRE("{\"type\": \"Metaspace\", \"replacement\": \"_\", \"prepend_scheme\": \"first\", "
          "\"add_prefix_space\": false}"),
      true, "contradict" },
    { DECODER("null"), false, "without a decoder" },
    { DECODER("{\"type\": \"WordPiece\"}"), false, "decoder \"WordPiece\" is not supported" },
    { DECODER("{\"type\": \"Fuse\"}"), false, "the decoder does not go with" },
    { DECODER("{\"type\": \"Strip\", \"content\": \" \", \"start\": -1, \"stop\": 0}"), true,
      "not counts" },
    { DECODER("{\"type\": \"Strip\", \"content\": \"\", \"start\": 1, \"stop\": 0}"), true,
      "not one character" },
};

static void test_tokenizer_input__faults(void **state)
{
    (void)state;
    char *dir = fixture_dir();
    for (size_t i = 0; i < COUNT_OF(faults); i++) {
        struct tokenizer *t = NULL;
        const struct fault *f = &faults[i];
        const char *says = *f->says == '/'
                               ? "the merge \"zz\" is or gives a token that model.vocab lacks"
                               : f->says;
        char *text = f->pieces ? fixture_pieces(&f->f) : fixture_bytes(&f->f);
        fixture_write(dir, "tokenizer.json", text);
        free(text);
        const int rc = tokenizer_open(&t, dir);
        if (rc != ERR_INPUT) fail_msg("fault %zu (%s): returned %d", i, says, rc);
        assert_null(t);
        if (!strstr(err_msg(), says))
            fail_msg("fault %zu: \"%s\" is not in \"%s\"", i, says, err_msg());
        if (!strstr(err_msg(), "tokenizer.json:"))
            fail_msg("fault %zu: no place in \"%s\"", i, err_msg());
    }
    fixture_remove(dir);
}

/* What the fixtures cannot spell. */
static void test_tokenizer_input__whole_files(void **state)
{
    (void)state;
    static const char *const texts[][2] = {
        { "", "tokenizer.json" },
        { "[]", "is not a JSON object" },
        { "{}", "model is not there" },
        { "{\"model\": {\"type\": \"WordPiece\", \"vocab\": {}}}",
          "model \"WordPiece\" is not supported" },
        { "{\"model\": {\"type\": \"BPE\"}}", "model.vocab is not an object" },
        { "{\"model\": {\"type\": \"BPE\", \"vocab\": {}, \"merges\": []}}",
          "model.vocab is not an object" },
        { "{\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 0}}}", "model.merges is not a list" },
        { "{\"model\": {\"vocab\": {\"a\": 0}, \"merges\": []}", "tokenizer.json:1:" },
        { "\xef\xbb\xbf{}", "BOM" },
    };
    char *dir = fixture_dir();
    struct tokenizer *t = NULL;
    assert_int_equal(tokenizer_open(&t, dir), ERR_INPUT); /* no file */
    assert_non_null(strstr(err_msg(), "tokenizer.json"));
    for (size_t i = 0; i < COUNT_OF(texts); i++) {
        fixture_write(dir, "tokenizer.json", texts[i][0]);
        assert_int_equal(tokenizer_open(&t, dir), ERR_INPUT);
        if (!strstr(err_msg(), texts[i][1])) fail_msg("file %zu: %s", i, err_msg());
    }
    /* every prefix of a good file is refused */
    char *text = fixture_pieces(&(struct fixture){ .added = "[" FIXTURE_ADDED(1, "<s>", "") "]" });
    const size_t len = strlen(text);
    for (size_t n = 0; n + 2 < len; n += n < 900 ? 7 : 101) {
        const char c = text[n];
        text[n] = 0;
        fixture_write(dir, "tokenizer.json", text);
        text[n] = c;
        assert_int_equal(tokenizer_open(&t, dir), ERR_INPUT);
    }
    tokenizer_close(fixture_open(dir, text));
    fixture_remove(dir);
}

static void test_tokenizer_input__translation(void **state)
{
    (void)state;
    static const char *const good[][2] = {
        { "a(?:b|c)+?", "a(?:b|c)+?" },
        { "\\s", "[\\p{Z}\\t-\\r\\x{85}\\p{Z}]" },
        { "[^\\s!]", "[^\\p{Z}\\t-\\r\\x{85}\\p{Z}!]" },
        { "\\S", "[^\\p{Z}\\t-\\r\\x{85}\\p{Z}]" },
        { "\\p{Lu}\\P{Lu}\\p{Han}", "\\p{Lu}\\P{Lu}\\p{sc:Han}" },
        { "\\u4e00\\x{9}\\x41", "\\x{4e00}\\x{9}\\x{41}" },
        { "x{1,3}?y{2}", "x{1,3}?y{2}" },
        { "\\.\\-\\/", "\\.\\-\\/" },
        { "^a$[$^]", "(?m:^)a(?m:$)[$^]" },
    };
    static const char *const bad[] = { "\\",       "\\h",         "\\b",     "\\1",
                                       "\\Q",      "[[:alpha:]]", "[]a]",    "a{2}{3}",
                                       "(?i)a",    "(?P<n>a)",    "(*FAIL)", "a{,2}",
                                       "a{2}+",    "a{2}?",       "\\p{L",   "\\pL",
                                       "\\p{^Lu}", "\\P{L}",      "\\x{}",   "\\x{110000000}",
                                       "\\u12",    "[\\S]",       "a{" };
    char *out;
    for (size_t i = 0; i < COUNT_OF(good); i++) {
        if (regex_translate(&out, good[i][0]) < 0) fail_msg("%s: %s", good[i][0], err_msg());
        assert_string_equal(out, good[i][1]);
        free(out);
    }
    for (size_t i = 0; i < COUNT_OF(bad); i++)
        if (regex_translate(&out, bad[i]) != ERR_INPUT) fail_msg("%s was taken", bad[i]);
}

static char *repeat(const char *s, size_t times)
{
    const size_t n = strlen(s);
    char *out = malloc(n * times + 1);
    assert_non_null(out);
    for (size_t i = 0; i < times; i++)
        memcpy(out + n * i, s, n);
    out[n * times] = 0;
    return out;
}

/* a a -> aa, aa aa -> aaaa, ... on a text of one word: n log n look-ups and heap moves. */
static void test_tokenizer_input__long_word(void **state)
{
    (void)state;
    static const struct {
        const char *unit, *merges;
    } row[] = {
        { "a", "[\"a a\", \"aa aa\", \"aaaa aaaa\", \"aaaaaaaa aaaaaaaa\"]" },
        { "a", "[\"a a\", \"aa a\"]" },
        { "ab", "[\"b a\", \"ba b\", \"a bab\"]" },
    };
    enum { BYTES = 1 << 20, LOG = 20 };
    char *dir = fixture_dir();
    for (size_t i = 0; i < COUNT_OF(row); i++) {
        const struct fixture f = {
            .vocab = "\"aa\": 256, \"aaaa\": 257, \"aaaaaaaa\": 258, \"aaaaaaaaaaaaaaaa\": 259, "
                     "\"aaa\": 260, \"ba\": 261, \"bab\": 262, \"abab\": 263",
            .merges = row[i].merges
        };
        struct tokenizer *t = fixture_open(dir, fixture_bytes(&f));
        struct scratch k = { 0 };
        struct ids v = { 0 };
        struct buf b = { 0 };
        char *s = repeat(row[i].unit, BYTES / strlen(row[i].unit));
        assert_int_equal(word_encode(t, &k, s, BYTES, &v), 0);
        assert_true(k.bpe.work > 0 && k.bpe.work < (int64_t)4 * BYTES * LOG);
        assert_int_equal(tokenizer_decode(t, v.id, v.n, false, &b), 0);
        assert_int_equal(b.len, BYTES);
        assert_memory_equal(b.data, s, BYTES);
        if (i == 0) assert_int_equal(v.n, BYTES / 16);
        buf_release(&b);
        ids_release(&v);
        scratch_release(&k);
        free(s);
        tokenizer_close(t);
    }
    fixture_remove(dir);
}

/* Patterns that explode end in an error, patterns of published models take any text. */
static void test_tokenizer_input__regex_budget(void **state)
{
    (void)state;
    static const struct {
        const char *pattern, *unit;
        size_t times;
        bool ends;
    } row[] = {
        { "(a+)+[bc]", "a", 40, false },
        { "(a|aa)+[bc]", "a", 4000, false },
        { "(a*)*(a*)*[bc]", "a", 2000, false },
        { "a*[bc]|a", "a", 100000, false }, /* quadratic */
        { "(?=a*)a", "a", 100000, false },
        { " * * * *[xy]| ", " ", 4000, false },
        { "(?:a|b)+", "ab", 100000, true }, /* needs a deep stack */
        { "\\s+(?!\\S)|\\s+|\\S+", " ", 1000000, true },
        { "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| "
          "?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
          " ", 1000000, true },
        { "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| "
          "?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
          " \n1a!", 200000, true },
    };
    for (size_t i = 0; i < COUNT_OF(row); i++) {
        struct regex *r;
        struct regex_run *m;
        char *s = repeat(row[i].unit, row[i].times);
        const size_t len = strlen(s);
        int rc = 0;
        if (regex_open(&r, row[i].pattern) < 0) fail_msg("%s", err_msg());
        assert_int_equal(regex_begin(&m), 0);
        regex_budget(m, len);
        for (size_t at = 0, end; at < len && rc >= 0; at = rc > 0 && end > at ? end : at + 1)
            rc = regex_match(r, m, s, len, at, &end);
        if ((rc >= 0) != row[i].ends) fail_msg("%s: %d", row[i].pattern, rc);
        if (rc < 0) assert_non_null(strstr(err_msg(), "too many steps"));
        regex_end(m);
        regex_close(r);
        free(s);
    }
}

/* A long run of marks in the wrong order: quadratic where neighbours are exchanged. */
static void test_tokenizer_input__marks(void **state)
{
    (void)state;
    enum { HALF = 200000 };
    struct buf b = { 0 };
    char *above = repeat("\xcc\x87", HALF), *below = repeat("\xcc\xa3", HALF),
         *s = malloc(4 * HALF + 2);
    assert_non_null(s);
    s[0] = 'q';
    memcpy(s + 1, above, 2 * HALF);
    memcpy(s + 1 + 2 * HALF, below, 2 * HALF + 1);
    assert_int_equal(text_normalize(&b, TEXT_NFC, s, 4 * HALF + 1), 0);
    assert_int_equal(b.len, 4 * HALF + 1);
    assert_memory_equal(b.data + 1, below, 2 * HALF);
    assert_memory_equal(b.data + 1 + 2 * HALF, above, 2 * HALF);
    buf_release(&b);
    free(s);
    free(below);
    free(above);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tokenizer_input__bos_and_eos),
        cmocka_unit_test(test_tokenizer_input__utf8),
        cmocka_unit_test(test_tokenizer_input__lossy),
        cmocka_unit_test(test_tokenizer_input__faults),
        cmocka_unit_test(test_tokenizer_input__whole_files),
        cmocka_unit_test(test_tokenizer_input__translation),
        cmocka_unit_test(test_tokenizer_input__long_word),
        cmocka_unit_test(test_tokenizer_input__regex_budget),
        cmocka_unit_test(test_tokenizer_input__marks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
