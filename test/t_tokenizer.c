/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>
#include "../src/data/tokenizer_impl.h"
#include "../src/io/file.h"
#include "tokenizer_fixture.h"

#define TEXT  SPECIALS_AS_TEXT
#define MATCH SPECIALS_MATCH
#define MARK  "\xe2\x96\x81"

static void expect(const struct tokenizer *t, const char *text, enum special_mode mode,
                   const char *ids)
{
    const char *got = fixture_ids(t, text, mode);
    if (strcmp(got, ids) != 0) fail_msg("\"%s\": got %s, not %s", text, got, ids);
}

static void expect_decode(const struct tokenizer *t, const int32_t *id, int64_t n, bool skip,
                          const char *text)
{
    struct buf b = { 0 };
    assert_int_equal(tokenizer_decode(t, id, n, skip, &b), 0);
    assert_string_equal(b.data ? b.data : "", text);
    buf_release(&b);
}
#define IDS(...) \
    (const int32_t[]){ __VA_ARGS__ }, (int64_t)COUNT_OF(((const int32_t[]){ __VA_ARGS__ }))

static const char HELLO_VOCAB[] =
    "\"ll\": 256, \"he\": 257, \"hell\": 258, \"hello\": 259, \"\\u0120w\": 260";
static const char HELLO_MERGES[] = "[\"l l\", \"h e\", \"he ll\", \"hell o\", \"\\u0120 w\"]";

static void test_tokenizer__bytes_and_merges(void **state)
{
    (void)state;
    char *dir = fixture_dir();
    struct tokenizer *t = fixture_open(
        dir, fixture_bytes(&(struct fixture){ .vocab = HELLO_VOCAB, .merges = HELLO_MERGES }));
    expect(t, "", TEXT, "");
    expect(t, "hello", TEXT, "259");
    expect(t, "hellhe world", TEXT, "258 257 260 111 114 108 100");
    expect(t, "lll", TEXT, "256 108"); /* leftmost first */
    expect(t, "\xc3\xa9\xf0\x9f\x98\x80", TEXT, "195 169 240 159 152 128");
    expect_decode(t, IDS(259, 260, 111), false, "hello wo");
    expect_decode(t, IDS(195), false, "\xef\xbf\xbd");
    expect_decode(t, IDS(104, 195, 40, 240, 159, 152), false, "h\xef\xbf\xbd(\xef\xbf\xbd");
    expect_decode(t, IDS(104, -1, 100000, 261, 105), false, "hi");
    assert_int_equal(tokenizer_size(t), 261);
    assert_int_equal(tokenizer_id(t, "hello"), 259);
    assert_int_equal(tokenizer_id(t, "hella"), -1);
    assert_int_equal(tokenizer_id(t, ""), -1);
    tokenizer_close(t);
    /* the other spelling */
    t = fixture_open(dir, fixture_bytes(&(struct fixture){
                              .vocab = HELLO_VOCAB,
                              .merges = "[[\"l\", \"l\"], [\"h\", \"e\"], [\"he\", \"ll\"]]" }));
    expect(t, "hello", TEXT, "258 111");
    tokenizer_close(t);
    fixture_remove(dir);
}

static void test_tokenizer__merge_order_is_rank_then_place(void **state)
{
    (void)state;
    char *dir = fixture_dir();
    /* "abcd": b c first although a b stands before it; then only bc d is left */
    struct tokenizer *t =
        fixture_open(dir, fixture_bytes(&(struct fixture){
                              .vocab = "\"bc\": 256, \"ab\": 257, \"cd\": 258, \"bcd\": 259",
                              .merges = "[\"b c\", \"a b\", \"c d\", \"bc d\"]" }));
    expect(t, "abcd", TEXT, "97 259");
    expect(t, "abd", TEXT, "257 100");
    /* the long path (over 24 symbols) goes by the same order */
    char s[200] = "", want[1000] = "";
    for (int i = 0; i < 20; i++) {
        strcat(s, "abcd");
        strcat(want, i ? " 97 259" : "97 259");
    }
    expect(t, s, TEXT, want);
    tokenizer_close(t);
    fixture_remove(dir);
}

static void test_tokenizer__ignore_merges(void **state)
{
    (void)state;
    char *dir = fixture_dir();
    struct fixture f = { .vocab = "\"xyz\": 256, \"<s>\": 257, \"\\u0120a\": 258",
                         .model = "\"ignore_merges\": true",
                         .added = "[" FIXTURE_ADDED(257, "<s>", ", \"special\": true") "]" };
    struct tokenizer *t = fixture_open(dir, fixture_bytes(&f));
    expect(t, "xyz", TEXT, "256");
    expect(t, " a", TEXT, "258");
    expect(t, "xy", TEXT, "120 121");
    expect(t, "<s>", TEXT, "60 115 62"); /* a special token never comes out of text */
    expect(t, "<s>", MATCH, "257");
    tokenizer_close(t);
    f.model = "\"ignore_merges\": false";
    t = fixture_open(dir, fixture_bytes(&f));
    expect(t, "xyz", TEXT, "120 121 122");
    tokenizer_close(t);
    fixture_remove(dir);
}

/* Words as "a|b|c" after normalising and cutting. */
static void expect_pieces(const struct tokenizer *t, const char *s, const char *want)
{
    struct scratch k = { 0 };
    struct buf b = { 0 };
    const struct pieces *v;
    const char *text;
    size_t len;
    assert_int_equal(norm_run(t, &k, s, strlen(s), &text, &len), 0);
    if (pretok_run(t, &k, text, len, true, &text, &v) < 0) fail_msg("%s", err_msg());
    for (int64_t i = 0; i < v->n; i++) {
        if (i) buf_adds(&b, "|");
        buf_add(&b, text + v->v[i].at, v->v[i].len);
    }
    assert_string_equal(b.data ? b.data : "", want);
    buf_release(&b);
    scratch_release(&k);
}

#define SPLIT(regex)                                          \
    "{\"type\": \"Split\", \"pattern\": {\"Regex\": \"" regex \
    "\"}, \"behavior\": \"Isolated\", \"invert\": false}"
#define SEQUENCE(split)                                         \
    "{\"type\": \"Sequence\", \"pretokenizers\": [" split       \
    ", {\"type\": \"ByteLevel\", \"add_prefix_space\": false, " \
    "\"trim_offsets\": false, \"use_regex\": false}]}"
#define QWEN                                                                          \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|\\\\p{N}| " \
    "?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|"                    \
    "\\\\s+(?!\\\\S)|\\\\s+"

static void test_tokenizer__split_behaviors(void **state)
{
    (void)state;
    static const struct {
        const char *split, *want; /* of "xxabxcx" cut by x */
    } row[] = {
        { "\"Regex\": \"x\"}, \"behavior\": \"Isolated\"", "x|x|ab|x|c|x" },
        { "\"String\": \"x\"}, \"behavior\": \"Isolated\", \"invert\": true", "x|x|ab|x|c|x" },
        { "\"String\": \"x\"}, \"behavior\": \"Removed\"", "ab|c" },
        { "\"Regex\": \"x\"}, \"behavior\": \"Removed\", \"invert\": true", "x|x|x|x" },
        { "\"String\": \"x\"}, \"behavior\": \"MergedWithPrevious\"", "x|x|abx|cx" },
        { "\"String\": \"x\"}, \"behavior\": \"MergedWithNext\"", "x|xab|xc|x" },
        { "\"Regex\": \"x\"}, \"behavior\": \"Contiguous\"", "xx|ab|x|c|x" },
    };
    char *dir = fixture_dir(), pre[400];
    for (size_t i = 0; i < COUNT_OF(row); i++) {
        snprintf(pre, sizeof pre, SEQUENCE("{\"type\": \"Split\", \"pattern\": {%s}"),
                 row[i].split);
        struct tokenizer *t =
            fixture_open(dir, fixture_bytes(&(struct fixture){ .pre_tokenizer = pre }));
        expect_pieces(t, "xxabxcx", row[i].want);
        tokenizer_close(t);
    }
    /* anchors stand at every line */
    struct tokenizer *t = fixture_open(
        dir, fixture_bytes(&(struct fixture){ .pre_tokenizer = SEQUENCE(SPLIT("^ab|b$")) }));
    expect_pieces(t, "abab\nabb\n", "ab|a|b|\n|ab|b|\n");
    tokenizer_close(t);
    fixture_remove(dir);
}

/* A word that was encoded before comes from the table: the same ids whatever was encoded in between. */
static void test_tokenizer__words_again(void **state)
{
    (void)state;
    char *dir = fixture_dir();
    struct tokenizer *t =
        fixture_open(dir, fixture_bytes(&(struct fixture){ .vocab = "\"ab\": 256, \"abab\": 257",
                                                           .merges = "[\"a b\", \"ab ab\"]" }));
    static const char *const text[] = {
        "abab",       "ab", "abababababababababababa", "abababababababababababab", "xyzxyzxyz",
        "xyzxyzxyzx", "a"
    };
    char first[COUNT_OF(text)][400], word[16];
    for (size_t i = 0; i < COUNT_OF(text); i++)
        snprintf(first[i], sizeof first[i], "%s", fixture_ids(t, text[i], SPECIALS_AS_TEXT));
    assert_string_equal(first[0], "257");
    assert_string_equal(first[2], "257 257 257 257 257 256 97");
    for (int i = 0; i < 40000; i++) { /* more than the table has slots */
        snprintf(word, sizeof word, "%06d", i);
        struct ids v = { 0 };
        assert_int_equal(tokenizer_encode(t, word, 6, SPECIALS_AS_TEXT, &v), 0);
        assert_int_equal(v.n, 6);
        for (int k = 0; k < 6; k++)
            assert_int_equal(v.id[k], word[k]);
        ids_release(&v);
    }
    for (int pass = 0; pass < 2; pass++)
        for (size_t i = 0; i < COUNT_OF(text); i++)
            assert_string_equal(fixture_ids(t, text[i], SPECIALS_AS_TEXT), first[i]);
    tokenizer_close(t);
    fixture_remove(dir);
}

/* What each normalizer and each class of characters does, on texts whose results the tokenizers library gave. */
static void test_tokenizer__components(void **state)
{
    (void)state;
    static const struct {
        const char *normalizer, *split, *text, *want;
    } row[] = {
        { "{\"type\": \"NFD\"}", NULL, "\xc3\xa9\xea\xb0\x80",
          "e\xcc\x81\xe1\x84\x80\xe1\x85\xa1" },
        { "{\"type\": \"NFKC\"}", NULL, "\xef\xac\x81\xc2\xb2\xe2\x84\xab\xe3\x8b\xbf",
          "fi2\xc3\x85\xe3\x8b\xbf" }, /* U+32FF is younger than the library's tables */
        { "{\"type\": \"NFKD\"}", NULL, "\xc2\xa0\xc2\xbd\xc3\x85",
          " 1\xe2\x81\x84"
          "2A\xcc\x8a" },
        { "{\"type\": \"Lowercase\"}", NULL, "\xc3\x89\xce\x91\xce\xa3 I\xc4\xb0\xe1\xba\x9e",
          "\xc3\xa9\xce\xb1\xcf\x83 ii\xcc\x87\xc3\x9f" }, /* no final sigma */
        { "{\"type\": \"StripAccents\"}", NULL, "e\xcc\x81\xc3\xa9\xdf\xbd", "e\xc3\xa9\xdf\xbd" },
        { "{\"type\": \"Sequence\", \"normalizers\": [{\"type\": \"NFD\"}, {\"type\": "
          "\"StripAccents\"}]}",
          NULL, "\xc3\xa9\xe1\xbb\x87", "ee" },
        { "{\"type\": \"Strip\", \"strip_right\": false}", NULL, "\xe3\x80\x80\xc2\xa0 a b ",
          "a b " },
        { "{\"type\": \"Strip\", \"strip_left\": false}", NULL, " a\x1c \xc2\x85", " a\x1c" },
        { "{\"type\": \"Strip\"}", NULL, " \t ", "" },
        { "{\"type\": \"Replace\", \"pattern\": {\"Regex\": \" {2,}|\\\\d+\"}, \"content\": "
          "\"$1\"}",
          NULL, "a  b c12 3", "a$1b c$1 $1" },
        { "{\"type\": \"Replace\", \"pattern\": {\"Regex\": \"(?<=a)b\"}, \"content\": \"\"}", NULL,
          "abbab", "aba" },
        { NULL, "{\"type\": \"WhitespaceSplit\"}", " ab\xc2\xa0 c-d\n", "ab|c-d" },
        { NULL, "{\"type\": \"Whitespace\"}",
          "don't  a_b\xe2\x82\xac\xe2\x82\xac 1\xf0\x9f\x84\xb0",
          "don|'|t|a_b|\xe2\x82\xac\xe2\x82\xac|1\xf0\x9f\x84\xb0" },
        { NULL, "{\"type\": \"BertPreTokenizer\"}", "a+b \xe3\x80\x82\xd8\x9d",
          "a|+|b|\xe3\x80\x82|\xd8\x9d" },
        { NULL, "{\"type\": \"Punctuation\"}", "a!? b", "a|!|?| b" },
        { NULL, "{\"type\": \"Punctuation\", \"behavior\": \"Contiguous\"}", "a!? b", "a|!?| b" },
        { NULL, "{\"type\": \"CharDelimiterSplit\", \"delimiter\": \"\xe2\x96\x81\"}",
          "a\xe2\x96\x81\xe2\x96\x81"
          "b",
          "a|b" },
    };
    char *dir = fixture_dir();
    for (size_t i = 0; i < COUNT_OF(row); i++) {
        struct fixture f = { .normalizer = row[i].normalizer ? row[i].normalizer : "null",
                             .pre_tokenizer = row[i].split ? row[i].split : "null" };
        struct tokenizer *t = fixture_open(dir, fixture_pieces(&f));
        expect_pieces(t, row[i].text, row[i].want);
        tokenizer_close(t);
    }
    /* without decoders the tokens stand apart */
    struct fixture f = { .normalizer = "null",
                         .pre_tokenizer = "{\"type\": \"Whitespace\"}",
                         .decoder = "null",
                         .vocab = "\"a\": 259, \"b\": 260" };
    struct tokenizer *t = fixture_open(dir, fixture_pieces(&f));
    struct buf b = { 0 };
    assert_string_equal(fixture_ids(t, "a b", SPECIALS_AS_TEXT), "259 260");
    assert_int_equal(tokenizer_decode(t, (const int32_t[]){ 259, 1, 260 }, 3, false, &b), 0);
    assert_string_equal(b.data, "a <s> b");
    buf_release(&b);
    tokenizer_close(t);
    fixture_remove(dir);
}

static void test_tokenizer__pieces(void **state)
{
    (void)state;
    char *dir = fixture_dir();
    struct tokenizer *t = fixture_open(
        dir, fixture_bytes(&(struct fixture){ .normalizer = "{\"type\": \"NFC\"}",
                                              .pre_tokenizer = SEQUENCE(SPLIT(QWEN)) }));
    expect_pieces(t, "Hello  world! 123\n\n x", "Hello| | world|!| |1|2|3|\n\n| x");
    expect_pieces(t, "I'LL go'\xc5\xbf ok", "I|'LL| go|'\xc5\xbf| ok"); /* the long s folds to s */
    /* U+180E is no space (a format character since Unicode 6.3) */
    expect_pieces(t, "a\xe1\xa0\x8e\xe1\xa0\x8e 1", "a|\xe1\xa0\x8e\xe1\xa0\x8e| |1");
    /* U+31350, a letter since Unicode 15 */
    expect_pieces(t, "\xf0\xb1\x8d\x90x",
                  "\xf0\xb1\x8d\x90x"); /* U+31350, a letter since Unicode 15 */
    expect_pieces(t, "e\xcc\x81 \xe2\x84\xab", "\xc3\xa9| \xc3\x85");
    expect_pieces(t, "q\xcc\xa3\xcc\x87", "q|\xcc\xa3\xcc\x87");
    expect_pieces(t, "q\xcc\x87\xcc\xa3", "q|\xcc\xa3\xcc\x87"); /* marks in canonical order */
    tokenizer_close(t);
    t = fixture_open(
        dir,
        fixture_bytes(&(struct fixture){
            .pre_tokenizer =
                "{\"type\": \"ByteLevel\", \"add_prefix_space\": true, \"use_regex\": true}" }));
    expect_pieces(t, "It's  two 22", " It|'s| | two| 22");
    expect_pieces(t, " x", " x");
    tokenizer_close(t);
    t = fixture_open(
        dir, fixture_bytes(&(struct fixture){
                 .pre_tokenizer = SEQUENCE(
                     "{\"type\": \"Digits\", \"individual_digits\": true}, " SPLIT("x")) }));
    expect_pieces(t, "axxb12", "a|x|x|b|1|2");
    tokenizer_close(t);
    fixture_remove(dir);
}

static void test_tokenizer__sentencepiece(void **state)
{
    (void)state;
    char *dir = fixture_dir();
    struct fixture f = { .vocab = "\"\\u2581\": 259, \"a\": 260, \"b\": 261, \"\\u2581a\": 262, "
                                  "\"ab\": 263, \"\\u2581ab\": 264",
                         .merges = "[\"\\u2581 a\", \"a b\", \"\\u2581a b\"]" };
    struct tokenizer *t = fixture_open(dir, fixture_pieces(&f));
    expect(t, "", TEXT, "");
    expect(t, "ab ab", TEXT, "264 264");
    expect(t, " b", TEXT, "259 259 261");
    expect(t, "\xc3\xa9z", TEXT, "259 198 172 125");     /* bytes 195, 169, 122 */
    expect(t, "<0x41>", TEXT, "259 63 51 123 55 52 65"); /* a byte token's name is text */
    expect_decode(t, IDS(264, 259, 261), false, "ab b");
    expect_decode(t, IDS(259, 259, 260), false, " a");
    expect_decode(t, IDS(260, 198, 172, 261), false,
                  "a\xc3\xa9"
                  "b");
    expect_decode(t, IDS(198, 261, 198, 198), false,
                  "\xef\xbf\xbd"
                  "b\xef\xbf\xbd\xef\xbf\xbd");
    tokenizer_close(t);
    f.model = "\"unk_token\": \"<unk>\", \"fuse_unk\": true";
    t = fixture_open(dir, fixture_pieces(&f));
    expect(t, "axya", TEXT, "262 0 260");
    tokenizer_close(t);
    f.model = "\"unk_token\": \"<unk>\"";
    t = fixture_open(dir, fixture_pieces(&f));
    expect(t, "axya", TEXT, "262 0 0 260");
    tokenizer_close(t);
    f.model = "\"fuse_unk\": true";
    t = fixture_open(dir, fixture_pieces(&f));
    expect(t, "axya", TEXT, "error");
    assert_non_null(strstr(err_msg(), "U+0078"));
    tokenizer_close(t);
    fixture_remove(dir);
}

#define METASPACE(more) "{\"type\": \"Metaspace\", \"replacement\": \"\\u2581\"" more "}"

static void test_tokenizer__metaspace(void **state)
{
    (void)state;
    static const struct {
        const char *pre, *whole,
            *part; /* pieces of "a b" at a text's start; ids after a matched <x> */
    } row[] = {
        { METASPACE(", \"add_prefix_space\": true"), MARK "a|" MARK "b", "262 265 262" },
        { METASPACE(", \"prepend_scheme\": \"always\", \"split\": false"), MARK "a" MARK "b",
          "262 265 262" },
        { METASPACE(", \"prepend_scheme\": \"first\""), MARK "a|" MARK "b", "262 265 260" },
        { METASPACE(", \"prepend_scheme\": \"never\", \"add_prefix_space\": false"), "a|" MARK "b",
          "260 265 260" },
    };
    char *dir = fixture_dir();
    for (size_t i = 0; i < COUNT_OF(row); i++) {
        const struct fixture f = { .vocab = "\"\\u2581\": 259, \"a\": 260, \"b\": 261, "
                                            "\"\\u2581a\": 262, \"ab\": 263, \"\\u2581ab\": 264",
                                   .merges = "[\"\\u2581 a\"]",
                                   .normalizer = "null",
                                   .pre_tokenizer = row[i].pre,
                                   .decoder = row[i].pre,
                                   .added =
                                       "[" FIXTURE_ADDED(265, "<x>", ", \"special\": true") "]" };
        struct tokenizer *t = fixture_open(dir, fixture_pieces(&f));
        expect_pieces(t, "a b", row[i].whole);
        expect(t, "a<x>a", MATCH, row[i].part);
        expect_decode(t, IDS(262, 261, 262), false, i == 3 ? " ab a" : "ab a");
        tokenizer_close(t);
    }
    fixture_remove(dir);
}

static void test_tokenizer__added_tokens(void **state)
{
    (void)state;
    static const char added[] =
        "[{\"id\": 256, \"content\": \"<e>\", \"special\": true},"
        " {\"id\": 257, \"content\": \"<l>\", \"special\": true, \"lstrip\": true},"
        " {\"id\": 258, \"content\": \"<r>\", \"special\": true, \"rstrip\": true},"
        " {\"id\": 259, \"content\": \"ww\", \"special\": true, \"single_word\": true},"
        " {\"id\": 260, \"content\": \"\\u212b\", \"special\": false, \"normalized\": true},"
        " {\"id\": 261, \"content\": \"<e><e>\", \"special\": true}]";
    char *dir = fixture_dir();
    struct tokenizer *t = fixture_open(
        dir,
        fixture_bytes(&(struct fixture){ .added = added, .normalizer = "{\"type\": \"NFC\"}" }));
    size_t at;
    const char *name;
    expect(t, "a<e>b", TEXT, "97 60 101 62 98");
    expect(t, "a<e>b", MATCH, "97 256 98");
    expect(t, "<e><e><e>", MATCH, "261 256"); /* leftmost, then longest */
    expect(t, "a \n<l> b", MATCH, "97 257 32 98");
    expect(t, "a <r> \n b", MATCH, "97 32 258 98");
    expect(t, "<r> <l>", MATCH, "258 257");
    expect(t, "ww www ww\xc3\xa9 ww", MATCH, "259 32 119 119 119 32 119 119 195 169 32 259");
    expect(t, "\xc3\x85", MATCH, "260"); /* matched after normalisation */
    expect(t, "A\xcc\x8a", MATCH, "260");
    expect(t, "\xc3\x85", TEXT, "195 133");
    assert_true(tokenizer_find_special(t, "ab<l>", 5, &at, &name));
    assert_int_equal(at, 2);
    assert_string_equal(name, "<l>");
    assert_false(tokenizer_find_special(t, "ab<l", 4, &at, &name));
    assert_false(tokenizer_find_special(t, "", 0, &at, &name));
    expect_decode(t, IDS(97, 256, 98), false, "a<e>b");
    expect_decode(t, IDS(97, 256, 260, 98), true,
                  "a\xe2\x84\xab"
                  "b");
    tokenizer_close(t);
    fixture_remove(dir);
}

static void test_tokenizer__round_trip(void **state)
{
    (void)state;
    static const char *const texts[] = { " ",
                                         "  two  spaces ",
                                         "\n\t\r\n",
                                         "na\xc3\xafve caf\xc3\xa9",
                                         "\xf0\x9f\x98\x80\xe2\x80\x8d",
                                         "<0x41> </s>",
                                         "\x01\x7f" };
    char *dir = fixture_dir();
    for (int kind = 0; kind < 2; kind++) {
        const struct fixture f = { .vocab = kind ? "\"\\u2581\": 259" : HELLO_VOCAB,
                                   .merges = kind ? NULL : HELLO_MERGES };
        struct tokenizer *t = fixture_open(dir, kind ? fixture_pieces(&f) : fixture_bytes(&f));
        for (size_t i = 0; i < COUNT_OF(texts); i++) {
            struct ids v = { 0 };
            struct buf b = { 0 };
            assert_int_equal(tokenizer_encode(t, texts[i], strlen(texts[i]), TEXT, &v), 0);
            assert_int_equal(tokenizer_decode(t, v.id, v.n, true, &b), 0);
            assert_string_equal(b.data, texts[i]);
            ids_release(&v);
            buf_release(&b);
        }
        tokenizer_close(t);
    }
    fixture_remove(dir);
}

static void test_tokenizer__byte_table(void **state)
{
    (void)state;
    bool seen[400] = { 0 };
    for (int i = 0; i < 256; i++) {
        const uint32_t c = byte_level_char((uint8_t)i);
        assert_true(c >= 33 && c < 324 && c != 127 && !seen[c]);
        seen[c] = true;
        assert_int_equal(byte_level_byte(c), i);
    }
    assert_int_equal(byte_level_char(' '), 0x120);
    assert_int_equal(byte_level_char('\n'), 0x10a);
    assert_int_equal(byte_level_byte(0x144), -1);
    assert_int_equal(byte_level_byte(' '), -1);
}

static void test_tokenizer__threads(void **state)
{
    (void)state;
    char *dir = fixture_dir();
    struct tokenizer *t = fixture_open(
        dir, fixture_bytes(&(struct fixture){ .vocab = HELLO_VOCAB,
                                              .merges = HELLO_MERGES,
                                              .pre_tokenizer = SEQUENCE(SPLIT(QWEN)) }));
    int wrong = 0;
#pragma omp parallel for reduction(+ : wrong) num_threads(4)
    for (int i = 0; i < 400; i++) {
        struct ids v = { 0 };
        char s[64];
        snprintf(s, sizeof s, "hello world%d", i % 10);
        if (tokenizer_encode(t, s, strlen(s), TEXT, &v) < 0 || v.n != 7 || v.id[0] != 259 ||
            v.id[1] != 260 || v.id[6] != '0' + i % 10)
            wrong++;
        ids_release(&v);
    }
    assert_int_equal(wrong, 0);
    tokenizer_close(t);
    fixture_remove(dir);
}

/* llama.cpp's vectors: texts between marker lines, and a line of ids for each. */
static void vectors(const char *model, const char *prefix)
{
    static const char mark[] = "\n__ggml_vocab_test__\n";
    struct tokenizer *t = NULL;
    char path[300], *in = NULL, *out = NULL;
    size_t n_in, n_out;
    int n = 0;
    if (tokenizer_open(&t, model) < 0) fail_msg("%s", err_msg());
    snprintf(path, sizeof path, "%s.inp", prefix);
    assert_int_equal(file_read(&in, &n_in, path, 1 << 20), 0);
    snprintf(path, sizeof path, "%s.out", prefix);
    assert_int_equal(file_read(&out, &n_out, path, 1 << 20), 0);
    char *line = out;
    for (char *s = in, *end; *s; s = end + sizeof mark - 1, n++) {
        end = strstr(s, mark);
        char *stop = strchr(line, '\n');
        if (!end || !stop) break;
        *end = *stop = 0;
        while (*line == ' ')
            line++;
        expect(t, s, TEXT, line);
        line = stop + 1;
    }
    assert_true(n >= 45);
    free(in);
    free(out);
    tokenizer_close(t);
}

static void skip_without(const char *path)
{
    if (file_exists(path)) return;
    print_message("skipped: %s is not there\n", path);
    skip();
}

static void test_tokenizer__vectors_qwen(void **state)
{
    (void)state;
    skip_without("../shared/data/tokenizers/qwen2.5/tokenizer.json");
    vectors("../shared/data/tokenizers/qwen2.5",
            "../shared/data/tokenizers/qwen2.5/ggml-vocab-qwen2.gguf");
}

static void test_tokenizer__vectors_llama(void **state)
{
    (void)state;
    skip_without("../shared/data/tokenizers/llama3.2/tokenizer.json");
    vectors("../shared/data/tokenizers/llama3.2",
            "../shared/data/tokenizers/llama3.2/ggml-vocab-llama-bpe.gguf");
}

static void test_tokenizer__vectors_gpt2(void **state)
{
    (void)state;
    char command[300];
    skip_without("../shared/data/tokenizers/gpt2/encoder.json");
    char *dir = fixture_dir();
    snprintf(command, sizeof command,
             "python3 scripts/gpt2_tokenizer.py ../shared/data/tokenizers/gpt2 %s", dir);
    if (system(command) != 0) {
        print_message("skipped: no python3 to join GPT-2's files\n");
        fixture_remove(dir);
        skip();
    }
    vectors(dir, "../shared/data/tokenizers/gpt2/ggml-vocab-gpt-2.gguf");
    fixture_remove(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tokenizer__bytes_and_merges),
        cmocka_unit_test(test_tokenizer__merge_order_is_rank_then_place),
        cmocka_unit_test(test_tokenizer__ignore_merges),
        cmocka_unit_test(test_tokenizer__components),
        cmocka_unit_test(test_tokenizer__pieces),
        cmocka_unit_test(test_tokenizer__split_behaviors),
        cmocka_unit_test(test_tokenizer__words_again),
        cmocka_unit_test(test_tokenizer__sentencepiece),
        cmocka_unit_test(test_tokenizer__metaspace),
        cmocka_unit_test(test_tokenizer__added_tokens),
        cmocka_unit_test(test_tokenizer__round_trip),
        cmocka_unit_test(test_tokenizer__byte_table),
        cmocka_unit_test(test_tokenizer__threads),
        cmocka_unit_test(test_tokenizer__vectors_qwen),
        cmocka_unit_test(test_tokenizer__vectors_llama),
        cmocka_unit_test(test_tokenizer__vectors_gpt2),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
