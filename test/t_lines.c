/* SPDX-License-Identifier: MIT */
#include "scratch.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>
#include <cmocka.h>

/* One gzip member of text, appended to b. */
static void gzip(struct buf *b, const char *text, size_t len)
{
    z_stream z = { 0 };
    const size_t room = len + 1000;
    Bytef *out = malloc(room);
    assert_int_equal(deflateInit2(&z, 9, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY), Z_OK);
    z.next_in = (Bytef *)(uintptr_t)text;
    z.avail_in = (uInt)len;
    z.next_out = out;
    z.avail_out = (uInt)room;
    assert_int_equal(deflate(&z, Z_FINISH), Z_STREAM_END);
    assert_int_equal(buf_add(b, out, z.total_out), 0);
    deflateEnd(&z);
    free(out);
}

/* Read all lines of a file, joined with '|'. */
static int read_lines(const char *path, struct buf *got, int64_t *n, uint8_t digest[32])
{
    struct line_reader *r;
    char *line;
    size_t len;
    int rc;
    *n = 0;
    buf_clear(got);
    TRY(lines_open(&r, path));
    while ((rc = lines_next(r, &line, &len)) == 1) {
        assert_int_equal(strlen(line), len);
        assert_int_equal(lines_number(r), ++*n);
        assert_int_equal(buf_addf(got, "%s%s", *n > 1 ? "|" : "", line), 0);
    }
    if (rc < 0) { /* an error stays one */
        char was[500];
        snprintf(was, sizeof was, "%s", err_msg());
        assert_true(lines_next(r, &line, &len) < 0);
        err_set(rc, "%s", was);
    } else {
        assert_int_equal(lines_next(r, &line, &len), 0);
    }
    if (digest) lines_digest(r, digest);
    lines_close(r);
    return rc;
}

static void test_lines__plain(void **state)
{
    static const struct {
        const char *text, *want;
        int64_t n;
    } row[] = {
        { "", NULL, 0 },
        { "a", "a", 1 },
        { "a\n", "a", 1 },
        { "a\nb", "a|b", 2 },
        { "a\r\nb\r\n", "a|b", 2 },
        { "\n\n", "|", 2 },
        { "\xef\xbb\xbf"
          "a\nb\n",
          "a|b", 2 },
        { "\xef\xbb\xbf", "", 1 },
        { "\xef\xbb\xbf\r\nx", "|x", 2 },
        { "a\n\xef\xbb\xbf"
          "b",
          "a|\xef\xbb\xbf"
          "b",
          2 },
        { "a\rb\n", "a\rb", 1 },
    };
    struct buf got = { 0 };
    for (size_t i = 0; i < COUNT_OF(row); i++) {
        for (int gz = 0; gz < 2; gz++) {
            struct buf file = { 0 };
            struct sha256 s;
            uint8_t digest[32], want[32];
            int64_t n;
            const char *p = scratch(state, gz ? "f.jsonl.gz" : "f.jsonl");
            if (gz)
                gzip(&file, row[i].text, strlen(row[i].text));
            else
                assert_int_equal(buf_adds(&file, row[i].text), 0);
            scratch_put(p, file.data, file.len);
            assert_int_equal(read_lines(p, &got, &n, digest), 0);
            assert_int_equal(n, row[i].n);
            if (row[i].want) assert_string_equal(got.data, row[i].want);
            sha256_init(&s);
            sha256_add(&s, row[i].text, strlen(row[i].text));
            sha256_end(&s, want);
            assert_memory_equal(digest, want, 32);
            buf_release(&file);
        }
    }
    buf_release(&got);
}

/* Lines of all lengths around the buffers' sizes, plain and in several gzip members. */
static void test_lines__long(void **state)
{
    struct buf text = { 0 }, file = { 0 }, got = { 0 }, want = { 0 };
    int64_t n, lines = 0;
    for (size_t len = 0; len < 700000; len = len * 3 / 2 + 1) {
        for (size_t k = 0; k < len; k++)
            buf_add(&text, &"abcdefghijklmnopqrstuvwxyz"[(k * k + len) % 26], 1);
        assert_int_equal(buf_adds(&text, "\n"), 0);
        lines++;
    }
    for (size_t i = 0; i + 1 < text.len; i++)
        buf_add(&want, text.data[i] == '\n' ? "|" : text.data + i, 1);
    scratch_put(scratch(state, "f.jsonl"), text.data, text.len);
    assert_int_equal(read_lines(scratch(state, "f.jsonl"), &got, &n, NULL), 0);
    assert_int_equal(n, lines);
    assert_string_equal(got.data, want.data);
    for (size_t i = 0; i < text.len;) {
        const size_t piece = MIN(1 + i / 2, text.len - i);
        gzip(&file, text.data + i, piece);
        i += piece;
    }
    gzip(&file, "", 0);
    scratch_put(scratch(state, "f.gz"), file.data, file.len);
    assert_int_equal(read_lines(scratch(state, "f.gz"), &got, &n, NULL), 0);
    assert_int_equal(n, lines);
    assert_string_equal(got.data, want.data);
    buf_release(&text);
    buf_release(&file);
    buf_release(&got);
    buf_release(&want);
}

static void test_lines__refuse(void **state)
{
    struct buf got = { 0 };
    int64_t n;
    const char *p = scratch(state, "f.jsonl");
    scratch_put(p, "ok\nb\0d\n", 7);
    assert_int_equal(read_lines(p, &got, &n, NULL), ERR_INPUT);
    assert_msg("/f.jsonl:2: error: the line holds a NUL byte");
    assert_int_equal(n, 1);
    scratch_put(p, "\xff\xfe{\0", 4);
    assert_int_equal(read_lines(p, &got, &n, NULL), ERR_INPUT);
    assert_msg("UTF-16");
    assert_int_equal(read_lines(scratch(state, "none"), &got, &n, NULL), ERR_INPUT);
    assert_int_equal(read_lines(scratch(state, ""), &got, &n, NULL), ERR_INPUT);
    assert_msg("is a directory");
    buf_release(&got);
}

static void test_lines__cap(void **state)
{
    const size_t cap = 64u << 20;
    struct line_reader *r;
    char *line, *text = malloc(cap + 4);
    size_t len;
    const char *p = scratch(state, "f.jsonl"), *z = scratch(state, "f.gz");
    memset(text, 'x', cap + 2);
    memcpy(text + cap, "\r\ny", 4);
    scratch_put(p, text, cap + 3);
    assert_int_equal(lines_open(&r, p), 0);
    assert_int_equal(lines_next(r, &line, &len), 1);
    assert_int_equal(len, cap);
    assert_int_equal(lines_next(r, &line, &len), 1);
    assert_string_equal(line, "y");
    lines_close(r);
    text[cap] = 'x';
    scratch_put(p, text, cap + 2);
    assert_int_equal(lines_open(&r, p), 0);
    assert_int_equal(lines_next(r, &line, &len), ERR_INPUT);
    assert_msg("f.jsonl:1: error: the line is longer than 64 MiB");
    lines_close(r);
    struct buf bomb = { 0 }; /* a small file that is one huge line */
    for (int i = 0; i < 40; i++)
        gzip(&bomb, text, 2u << 20);
    scratch_put(z, bomb.data, bomb.len);
    assert_int_equal(lines_open(&r, z), 0);
    assert_int_equal(lines_next(r, &line, &len), ERR_INPUT);
    assert_msg("longer than 64 MiB");
    lines_close(r);
    buf_release(&bomb);
    free(text);
}

/* Every truncation and every flipped byte of a gzip file is an error or (header fields that carry nothing) gives the same text. */
static void test_lines__gzip_faults(void **state)
{
    struct buf file = { 0 }, got = { 0 };
    char text[4000];
    int64_t n;
    const char *p = scratch(state, "f.gz");
    for (size_t i = 0; i < sizeof text; i++)
        text[i] = i % 40 == 39 ? '\n' : (char)('a' + i * i / 3 % 19);
    gzip(&file, text, 2000);
    const size_t first = file.len;
    gzip(&file, text + 2000, 2000);
    for (size_t len = 0; len < file.len; len++) {
        scratch_put(p, file.data, len);
        const int rc = read_lines(p, &got, &n, NULL);
        if (len == first) {
            assert_int_equal(rc, 0); /* a whole member */
            assert_int_equal(n, 50);
        } else {
            assert_int_equal(rc, ERR_INPUT);
            assert_msg(len == 0 ? "is empty" : "truncated");
        }
    }
    scratch_put(p, file.data, file.len);
    assert_int_equal(read_lines(p, &got, &n, NULL), 0);
    char *good = strdup(got.data);
    int accepted = 0;
    for (size_t i = 0; i < file.len; i++) {
        file.data[i] ^= 0x10;
        scratch_put(p, file.data, file.len);
        if (read_lines(p, &got, &n, NULL) == 0) {
            accepted++;
            assert_string_equal(got.data, good);
        }
        file.data[i] ^= 0x10;
    }
    /* only what carries nothing: time, flags for speed, system, padding bits of the last byte */
    assert_in_range(accepted, 0, 2 * 7);
    assert_int_equal(buf_adds(&file, "garbage"), 0);
    scratch_put(p, file.data, file.len);
    assert_int_equal(read_lines(p, &got, &n, NULL), ERR_INPUT);
    assert_msg("f.gz:101: error: garbage after the end of the gzip data");
    scratch_put(p, "{\"prompt\": 1}\n", 14);
    assert_int_equal(read_lines(p, &got, &n, NULL), ERR_INPUT);
    assert_msg("f.gz:1: error: is named .gz but is not gzip data");
    free(good);
    buf_release(&file);
    buf_release(&got);
}

/* Written to between the first line and the end. */
static void test_lines__changed(void **state)
{
    struct line_reader *r;
    char *line;
    size_t len;
    const char *p = scratch(state, "f.jsonl");
    for (int longer = 0; longer < 2; longer++) {
        scratch_put(p, "a\nb\n", 4);
        assert_int_equal(lines_open(&r, p), 0);
        assert_int_equal(lines_next(r, &line, &len), 1);
        usleep(20000); /* the clock of files is coarse */
        scratch_put(p, "a\nc\nd\n", longer ? 6 : 4);
        int rc;
        while ((rc = lines_next(r, &line, &len)) == 1)
            ;
        assert_int_equal(rc, ERR_INPUT);
        assert_msg("the file changed while it was read");
        lines_close(r);
    }
}

#define T(name) cmocka_unit_test_setup_teardown(name, scratch_make, scratch_remove)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(test_lines__plain),   T(test_lines__long), T(test_lines__refuse),
        T(test_lines__changed), T(test_lines__cap),  T(test_lines__gzip_faults),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
