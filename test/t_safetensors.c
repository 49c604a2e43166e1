/* SPDX-License-Identifier: MIT */
#include "scratch.h"
#include "../src/io/json.h"
#include "../src/io/safetensors.h"
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>
#include <cmocka.h>

/* round trips --------------------------------------------------------------------------------- */

static const struct st_decl small[] = {
    { "b.f64", ST_F64, 1, { 3 } },
    { "i64", ST_I64, 2, { 1, 2 } },
    { "a.f32", ST_F32, 2, { 2, 3 } },
    { "i32", ST_I32, 1, { 1 } },
    { "scalar", ST_F32, 0, { 0 } },
    { "empty", ST_F32, 2, { 0, 7 } },
    { "half", ST_F16, 1, { 5 } },
    { "brain", ST_BF16, 3, { 1, 3, 1 } },
    { "u8 \"q\"\xc3\xa9", ST_U8, 1, { 4 } },
    { "empty.2", ST_U8, 1, { 0 } },
};

static const float floats[] = { 1.5f, -0.0f, 3e38f, 1e-45f, 65519.9f, 6e-8f };

static int write_small(const char *path, int64_t *bytes, uint32_t *crc)
{
    static const char *const meta[] = { "format", "pt", "quote\"", "\n", NULL };
    static const double f64[] = { 1e300, -2.5, 1e-310 };
    static const int64_t i64[] = { INT64_MIN, INT64_MAX };
    static const int32_t i32 = -7;
    const float special[] = { NAN, INFINITY, -INFINITY, 70000, 1e-9f };
    struct st_writer *w;
    int rc = 0;
    TRY(st_writer_open(&w, path, small, COUNT_OF(small), meta));
    TRY_OUT(st_writer_put_raw(w, f64, 5)); /* pieces need not be whole elements */
    TRY_OUT(st_writer_put_raw(w, (const char *)f64 + 5, 19));
    TRY_OUT(st_writer_put_raw(w, i64, 16));
    TRY_OUT(st_writer_put_f32(w, floats, 1));
    TRY_OUT(st_writer_put_f32(w, floats + 1, 0));
    TRY_OUT(st_writer_put_f32(w, floats + 1, 5));
    TRY_OUT(st_writer_put_raw(w, &i32, 4));
    TRY_OUT(st_writer_put_f32(w, floats, 1));
    TRY_OUT(st_writer_put_f32(w, special, 5));
    TRY_OUT(st_writer_put_f32(w, special, 3));
    TRY_OUT(st_writer_put_raw(w, "\1\2\3\4", 4));
    *bytes = st_writer_bytes(w);
    *crc = st_writer_crc(w);
    return st_writer_close(w);
out:
    st_writer_abandon(w);
    return rc;
}

static void test_st__round_trip(void **state)
{
    int64_t bytes;
    uint32_t crc;
    char *text;
    size_t len;
    const char *p = scratch(state, "a.safetensors");
    struct st_set s;
    assert_int_equal(write_small(p, &bytes, &crc), 0);
    assert_int_equal(file_read(&text, &len, p, 1 << 20), 0);
    assert_int_equal(len, bytes);
    assert_int_equal(crc, crc32(0, (const Bytef *)text, (uInt)len));
    assert_int_equal((8 + (uint8_t)text[0] + 256 * (uint8_t)text[1]) % 8, 0);
    free(text);
    assert_int_equal(st_open_file(&s, p), 0);
    assert_int_equal(s.n, COUNT_OF(small));
    for (int64_t i = 1; i < s.n; i++)
        assert_true(strcmp(s.tensors[i - 1].name, s.tensors[i].name) < 0);
    for (size_t i = 0; i < COUNT_OF(small); i++) {
        const struct st_tensor *t = st_find(&s, small[i].name);
        assert_non_null(t);
        assert_int_equal(t->dtype, small[i].dtype);
        assert_int_equal(t->rank, small[i].rank);
        assert_memory_equal(t->dim, small[i].dim, (size_t)t->rank * sizeof t->dim[0]);
        assert_int_equal(t->end - t->begin, t->count * st_dtype_size(t->dtype));
    }
    assert_null(st_find(&s, "nothing"));
    assert_null(st_find(&s, "__metadata__"));
    float x[6];
    assert_int_equal(st_read_f32(&s, st_find(&s, "a.f32"), 0, 6, x), 0);
    assert_memory_equal(x, floats, sizeof floats);
    assert_int_equal(st_read_f32(&s, st_find(&s, "a.f32"), 4, 2, x), 0);
    assert_memory_equal(x, floats + 4, 2 * sizeof *x);
    assert_int_equal(st_read_f32(&s, st_find(&s, "scalar"), 0, 1, x), 0);
    assert_true(x[0] == 1.5f);
    assert_int_equal(st_read_f32(&s, st_find(&s, "empty"), 0, 0, x), 0);
    assert_int_equal(st_read_f32(&s, st_find(&s, "half"), 0, 5, x), 0);
    assert_true(isnan(x[0]) && x[1] == INFINITY && x[2] == -INFINITY && x[3] == INFINITY &&
                x[4] == 0);
    assert_int_equal(st_read_f32(&s, st_find(&s, "brain"), 1, 2, x), 0);
    assert_true(x[0] == INFINITY && x[1] == -INFINITY);
    assert_int_equal(st_read_f32(&s, st_find(&s, "b.f64"), 0, 3, x), 0);
    assert_true(x[0] == INFINITY && x[1] == -2.5f && x[2] == 0);
    int64_t i64[2];
    assert_int_equal(st_read_raw(&s, st_find(&s, "i64"), 0, 16, i64), 0);
    assert_true(i64[0] == INT64_MIN && i64[1] == INT64_MAX);
    assert_int_equal(st_read_f32(&s, st_find(&s, "i64"), 0, 1, x), ERR_INPUT);
    assert_msg("tensor \"i64\": is not F32");
    uint8_t u8[4];
    assert_int_equal(st_read_raw(&s, st_find(&s, small[8].name), 1, 3, u8), 0);
    assert_memory_equal(u8, "\2\3\4", 3);
    st_close(&s);
    st_close(&s);
}

/* More elements than any chunk, in pieces of all sizes, read in pieces of other sizes. */
static void test_st__round_trip_large(void **state)
{
    enum { N = 100003 };
    static const enum st_dtype dtypes[] = { ST_F32, ST_F16, ST_BF16 };
    float *x = malloc(N * sizeof *x), *y = malloc(N * sizeof *y);
    for (int i = 0; i < N; i++)
        x[i] = (float)sin(i * 0.7) * (float)(i % 1000);
    for (size_t k = 0; k < COUNT_OF(dtypes); k++) {
        const struct st_decl d = { "w", dtypes[k], 2, { 1, N } };
        struct st_writer *w;
        struct st_set s;
        const char *p = scratch(state, "w.safetensors");
        assert_int_equal(st_writer_open(&w, p, &d, 1, NULL), 0);
        for (int64_t i = 0, n; i < N; i += n) {
            n = MIN(N - i, i * 3 + 1);
            assert_int_equal(st_writer_put_f32(w, x + i, n), 0);
        }
        assert_int_equal(st_writer_close(w), 0);
        assert_int_equal(st_open_file(&s, p), 0);
        for (int64_t i = 0, n; i < N; i += n) {
            n = MIN(N - i, i * 2 + 7);
            assert_int_equal(st_read_f32(&s, &s.tensors[0], i, n, y + i), 0);
        }
        for (int i = 0; i < N; i++) {
            const float want = dtypes[k] == ST_F32   ? x[i]
                               : dtypes[k] == ST_F16 ? f16_to_f32(f32_to_f16(x[i]))
                                                     : bf16_to_f32(f32_to_bf16(x[i]));
            if (memcmp(&want, &y[i], sizeof want) != 0) fail_msg("%d", i);
        }
        st_close(&s);
    }
    free(x);
    free(y);
}

static void test_st__writer_refuses(void **state)
{
    const char *p = scratch(state, "w.safetensors");
    const float x[4] = { 1, 2, 3, 4 };
    struct st_writer *w;
    const struct st_decl two[] = { { "a", ST_F32, 1, { 2 } }, { "b", ST_I32, 1, { 1 } } };
    const struct st_decl twice[] = { { "a", ST_F32, 1, { 2 } }, { "a", ST_F32, 1, { 2 } } };
    const struct st_decl meta = { "__metadata__", ST_F32, 1, { 2 } };
    const struct st_decl huge = { "h", ST_F32, 2, { (int64_t)1 << 40, (int64_t)1 << 40 } };
    const struct st_decl minus = { "m", ST_F32, 1, { -1 } };
    const struct st_decl other = { "o", ST_OTHER, 1, { 1 } };
    const struct st_decl rank = { .name = "r", .dtype = ST_F32, .rank = 9 };
    assert_int_equal(st_writer_open(&w, p, twice, 2, NULL), ERR_IO);
    assert_msg("tensor \"a\": the name is taken");
    assert_int_equal(st_writer_open(&w, p, &meta, 1, NULL), ERR_IO);
    assert_int_equal(st_writer_open(&w, p, &huge, 1, NULL), ERR_IO);
    assert_int_equal(st_writer_open(&w, p, &minus, 1, NULL), ERR_IO);
    assert_int_equal(st_writer_open(&w, p, &other, 1, NULL), ERR_IO);
    assert_int_equal(st_writer_open(&w, p, &rank, 1, NULL), ERR_IO);
    assert_int_equal(st_writer_open(&w, scratch(state, "no/dir"), two, 2, NULL), ERR_IO);
    assert_msg("/no/dir: error: cannot create");
    assert_null(w);
    assert_int_equal(scratch_count(state), 0);
    assert_int_equal(st_writer_open(&w, p, two, 2, NULL), 0);
    assert_int_equal(st_writer_put_f32(w, x, 3), ERR_IO);
    assert_msg("tensor \"a\": more data");
    assert_int_equal(st_writer_put_f32(w, x, 2), 0);
    assert_int_equal(st_writer_put_f32(w, x, 1), ERR_IO);
    assert_msg("tensor \"b\": its dtype");
    assert_int_equal(st_writer_close(w), ERR_IO);
    assert_msg("tensor \"b\": less data");
    assert_int_equal(scratch_count(state), 0);
    assert_int_equal(st_writer_open(&w, p, two, 1, NULL), 0);
    assert_int_equal(st_writer_put_f32(w, x, 2), 0);
    assert_int_equal(st_writer_put_f32(w, x, 1), ERR_IO);
    assert_int_equal(st_writer_put_raw(w, x, 1), ERR_IO);
    st_writer_abandon(w);
    assert_int_equal(scratch_count(state), 0);
    assert_int_equal(st_writer_open(&w, p, NULL, 0, NULL), 0); /* no tensors: legal */
    assert_int_equal(st_writer_close(w), 0);
    struct st_set s;
    assert_int_equal(st_open_file(&s, p), 0);
    assert_int_equal(s.n, 0);
    st_close(&s);
}

static void test_st__writer_full_disk(void **state)
{
    enum { N = 200000 };
    const struct st_decl d = { "w", ST_F32, 1, { N } };
    struct rlimit was, now;
    struct st_writer *w;
    float *x = calloc(N, sizeof *x);
    const char *p = scratch(state, "w.safetensors");
    scratch_put(p, "old", 3);
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &was), 0);
    for (rlim_t limit = 0; limit <= N * sizeof *x; limit += 100000) {
        now = was;
        now.rlim_cur = limit;
        assert_int_equal(st_writer_open(&w, p, &d, 1, NULL), 0);
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &now), 0);
        const int put = st_writer_put_f32(w, x, N);
        const int closed = st_writer_close(w);
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &was), 0);
        assert_true(put == 0 || put == ERR_IO);
        assert_int_equal(closed, ERR_IO);
        assert_int_equal(scratch_count(state), 1);
    }
    char *text;
    size_t len;
    assert_int_equal(file_read(&text, &len, p, 10), 0);
    assert_string_equal(text, "old");
    free(text);
    free(x);
}

/* broken files -------------------------------------------------------------------------------- */

/* A file of this header and `data` bytes of data. */
static void put_header(const char *path, const char *header, size_t len, size_t data)
{
    struct buf b = { 0 };
    for (int i = 0; i < 8; i++) {
        const char byte = (char)((uint64_t)len >> (8 * i) & 0xff);
        assert_int_equal(buf_add(&b, &byte, 1), 0);
    }
    assert_int_equal(buf_add(&b, header, len), 0);
    for (size_t i = 0; i < data; i++)
        assert_int_equal(buf_add(&b, "\0", 1), 0);
    scratch_put(path, b.data, b.len);
    buf_release(&b);
}

#define ENTRY(dtype, shape, range) \
    "{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" range "}"

static void test_st__broken_headers(void **state)
{
    static const struct {
        const char *header;
        size_t data;
        const char *want; /* NULL: accepted */
    } row[] = {
        { "{}", 0, NULL },
        { "{}      ", 0, NULL },
        { "{\"a\":" ENTRY("F32", "[2]", "[0,8]") "}", 8, NULL },
        { "{\"a\":" ENTRY("F32", "[]", "[0,4]") "}", 4, NULL },
        { "{\"a\":" ENTRY("F32", "[0]", "[0,0]") ",\"b\":" ENTRY("U8", "[1]", "[0,1]") "}", 1,
          NULL },
        { "{\"b\":" ENTRY("U8", "[1]", "[1,2]") ",\"a\":" ENTRY("U8", "[1]", "[0,1]") "}", 2,
          NULL },
        { "{\"__metadata__\":{\"x\":\"y\"},\"a\":" ENTRY("U8", "[1]", "[0,1]") "}", 1, NULL },
        { "{\"a\":" ENTRY("F8_E4M3", "[3]", "[0,3]") "}", 3, NULL },
        { "{\"a\":" ENTRY("F4", "[4]", "[0,2]") "}", 2, NULL },
        { "{\"../../etc/x\":" ENTRY("U8", "[1]", "[0,1]") "}", 1, NULL },
        { "", 0, "does not start with" },
        { " {}", 0, "does not start with" },
        { "[]", 0, "does not start with" },
        { "{", 0, "(header):1:2: error: the text ends too early" },
        { "{}x", 0, "(header):1:3: error: expected the end" },
        { "{\"a\":1}", 0, "tensor \"a\": its entry is not an object" },
        { "{\"a\":null}", 0, "its entry is not an object" },
        { "{\"a\":{\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "\"dtype\" is missing" },
        { "{\"a\":{\"dtype\":7,\"shape\":[1],\"data_offsets\":[0,1]}}", 1,
          "\"dtype\" is missing or not" },
        { "{\"a\":{\"dtype\":\"U8\",\"data_offsets\":[0,1]}}", 1, "\"shape\" is missing" },
        { "{\"a\":{\"dtype\":\"U8\",\"shape\":[1]}}", 1, "\"data_offsets\" is missing" },
        { "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1],\"x\":1}}", 1,
          "has a field that" },
        { "{\"a\":" ENTRY("F31", "[2]", "[0,8]") "}", 8, "unknown dtype F31" },
        { "{\"a\":" ENTRY("f32", "[2]", "[0,8]") "}", 8, "unknown dtype f32" },
        { "{\"a\":" ENTRY("F32", "2", "[0,8]") "}", 8, "\"shape\" is missing or not a list" },
        { "{\"a\":" ENTRY("F32", "[2.0]", "[0,8]") "}", 8, "whole numbers from 0 on" },
        { "{\"a\":" ENTRY("F32", "[-2]", "[0,8]") "}", 8, "whole numbers from 0 on" },
        { "{\"a\":" ENTRY("F32", "[\"2\"]", "[0,8]") "}", 8, "whole numbers from 0 on" },
        { "{\"a\":" ENTRY("F32", "[2]", "[0,8,8]") "}", 8, "not two whole numbers" },
        { "{\"a\":" ENTRY("F32", "[2]", "[0.0,8]") "}", 8, "not two whole numbers" },
        { "{\"a\":" ENTRY("F32", "[2]", "[-1,7]") "}", 8, "not two whole numbers" },
        { "{\"a\":" ENTRY("F32", "[2]", "[8,0]") "}", 8, "ends before it begins" },
        { "{\"a\":" ENTRY("F32", "[2]", "[0,8]") "}", 7, "beyond the end of the file" },
        { "{\"a\":" ENTRY("U8", "[9223372036854775807]", "[0,9223372036854775807]") "}", 8,
          "beyond the end" },
        { "{\"a\":" ENTRY("U8", "[9223372036854775808]", "[0,8]") "}", 8, "does not fit 64 bits" },
        { "{\"a\":" ENTRY("F32", "[2]", "[0,8]") "}", 9, "1 bytes after the last" },
        { "{\"a\":" ENTRY("F32", "[3]", "[0,8]") "}", 8, "shape and dtype do not give" },
        { "{\"a\":" ENTRY("F32", "[1]", "[0,8]") "}", 8, "shape and dtype do not give" },
        { "{\"a\":" ENTRY("F32", "[4294967296,4294967296]", "[0,0]") "}", 0,
          "product of its shape overflows" },
        { "{\"a\":" ENTRY("F32", "[4611686018427387904]", "[0,0]") "}", 0,
          "size in bytes overflows" },
        { "{\"a\":" ENTRY("F4", "[3]", "[0,2]") "}", 2, "whole bytes" },
        { "{\"a\":" ENTRY("U8", "[1,1,1,1,1,1,1,1,1]", "[0,1]") "}", 1, "more than 8 dimensions" },
        { "{\"a\":" ENTRY("U8", "[1]", "[1,2]") "}", 2, "a hole lies before" },
        { "{\"a\":" ENTRY("U8", "[1]", "[0,1]") ",\"b\":" ENTRY("U8", "[1]", "[2,3]") "}", 3,
          "tensor \"b\": a hole" },
        { "{\"a\":" ENTRY("U8", "[2]", "[0,2]") ",\"b\":" ENTRY("U8", "[2]", "[1,3]") "}", 3,
          "tensor \"b\": its data overlaps" },
        { "{\"a\":" ENTRY("U8", "[2]", "[0,2]") ",\"b\":" ENTRY("U8", "[2]", "[0,2]") "}", 2,
          "overlaps" },
        { "{\"a\":" ENTRY("U8", "[1]", "[0,1]") ",\"a\":" ENTRY("U8", "[1]", "[0,1]") "}", 1,
          "\"a\" is there twice" },
        { "{\"__metadata__\":{\"x\":1}}", 0, "strings only" },
        { "{\"__metadata__\":[]}", 0, "__metadata__ is not an object" },
        { "{\"__metadata__\":null}", 0, "__metadata__ is not an object" },
        { "{}", 1, "1 bytes after" },
        { "{\"\\u0000\":" ENTRY("U8", "[1]", "[0,1]") "}", 1, "\\u0000" },
        { "{\"a\xff\":" ENTRY("U8", "[1]", "[0,1]") "}", 1, "UTF-8" },
        { "{\"a\\nb\":1}", 0, "tensor \"a\\x0ab\"" },
    };
    const char *p = scratch(state, "x.safetensors");
    for (size_t i = 0; i < COUNT_OF(row); i++) {
        struct st_set s;
        put_header(p, row[i].header, strlen(row[i].header), row[i].data);
        const int rc = st_open_file(&s, p);
        if (!row[i].want) {
            if (rc != 0) fail_msg("%s: %s", row[i].header, err_msg());
        } else {
            if (rc != ERR_INPUT) fail_msg("accepted: %s", row[i].header);
            assert_msg(row[i].want);
            assert_msg("/x.safetensors");
            assert_null(s.tensors);
        }
        st_close(&s);
    }
}

static void test_st__broken_lengths(void **state)
{
    static const struct {
        const char *bytes;
        size_t len;
        const char *want;
    } row[] = {
        { "", 0, "too short" },
        { "\2\0\0\0\0\0\0", 7, "too short" },
        { "\2\0\0\0\0\0\0\0{", 9, "truncated" },
        { "\3\0\0\0\0\0\0\0{}", 10, "truncated" },
        { "\0\0\0\0\0\0\0\0{}", 10, "does not start with" },
        { "\xff\xff\xff\xff\xff\xff\xff\xff{}", 10, "over the limit" },
        { "\0\0\0\0\0\0\0\x80{}", 10, "over the limit" },
        { "\1\xe1\xf5\5\0\0\0\0{}", 10, "over the limit" }, /* 100,000,001 */
        { "\0\xe1\xf5\5\0\0\0\0{}", 10, "truncated" },      /* 100,000,000 */
        { "PK\3\4\0\0\0\0archive", 15, "truncated" },
        { "\2\0\0\0\0\0\0\0{\0", 10, "NUL" },
    };
    const char *p = scratch(state, "x.safetensors");
    struct st_set s;
    for (size_t i = 0; i < COUNT_OF(row); i++) {
        scratch_put(p, row[i].bytes, row[i].len);
        assert_int_equal(st_open_file(&s, p), ERR_INPUT);
        assert_msg(row[i].want);
    }
    assert_int_equal(st_open_file(&s, scratch(state, "none")), ERR_INPUT);
    assert_msg("/none: error: cannot open: No such file");
    assert_int_equal(st_open_file(&s, scratch_dir(state)), ERR_INPUT);
    assert_msg("is a directory");
    assert_int_equal(mkfifo(scratch(state, "fifo"), 0666), 0);
    assert_int_equal(st_open_file(&s, scratch(state, "fifo")), ERR_INPUT);
}

static void test_st__every_truncation(void **state)
{
    int64_t bytes;
    uint32_t crc;
    char *text;
    size_t len;
    struct st_set s;
    const char *p = scratch(state, "a.safetensors");
    assert_int_equal(write_small(p, &bytes, &crc), 0);
    assert_int_equal(file_read(&text, &len, p, 1 << 20), 0);
    for (size_t n = 0; n < len; n++) {
        scratch_put(p, text, n);
        assert_int_equal(st_open_file(&s, p), ERR_INPUT);
    }
    for (size_t i = 0; i < (size_t)bytes;
         i++) /* flipped bits: an error, or whole and within the file */
        for (int bit = 0; bit < 8; bit += 3) {
            text[i] = (char)(text[i] ^ (1 << bit));
            scratch_put(p, text, len);
            const int rc = st_open_file(&s, p);
            assert_true(rc == 0 || rc == ERR_INPUT);
            for (int64_t k = 0; k < s.n; k++)
                assert_true(s.tensors[k].begin >= 8 && s.tensors[k].end <= (int64_t)len);
            st_close(&s);
            text[i] = (char)(text[i] ^ (1 << bit));
        }
    free(text);
}

static void test_st__shrinks_while_read(void **state)
{
    int64_t bytes;
    uint32_t crc;
    float x[6];
    struct st_set s;
    const char *p = scratch(state, "a.safetensors");
    assert_int_equal(write_small(p, &bytes, &crc), 0);
    assert_int_equal(st_open_file(&s, p), 0);
    assert_int_equal(truncate(p, st_find(&s, "a.f32")->begin + 3), 0);
    assert_int_equal(st_read_f32(&s, st_find(&s, "a.f32"), 0, 6, x), ERR_INPUT);
    assert_msg("a.safetensors: error: shrank while it was read");
    assert_int_equal(st_read_f32(&s, st_find(&s, "half"), 0, 5, x), ERR_INPUT);
    st_close(&s);
}

/* directories and indexes --------------------------------------------------------------------- */

static void put_shard(const char *path, const char *name, float value)
{
    const struct st_decl d = { name, ST_F32, 1, { 1 } };
    struct st_writer *w;
    assert_int_equal(st_writer_open(&w, path, &d, 1, NULL), 0);
    assert_int_equal(st_writer_put_f32(w, &value, 1), 0);
    assert_int_equal(st_writer_close(w), 0);
}

static void test_st__index(void **state)
{
    static const char good[] = "{\"metadata\": {\"total_size\": 8}, \"weight_map\": "
                               "{\"b\": \"two.safetensors\",\n \"a\": \"one.safetensors\"}}";
    struct st_set s;
    float x;
    const char *index = scratch(state, "model.safetensors.index.json"), *dir = scratch_dir(state);
    put_shard(scratch(state, "one.safetensors"), "a", 1);
    put_shard(scratch(state, "real"), "b", 2);
    assert_int_equal(symlink("real", scratch(state, "two.safetensors")), 0); /* caches are links */
    scratch_put(index, good, sizeof good - 1);
    assert_int_equal(st_open_dir(&s, dir), 0);
    assert_int_equal(s.n, 2);
    assert_int_equal(s.n_files, 2);
    assert_int_equal(st_read_f32(&s, st_find(&s, "b"), 0, 1, &x), 0);
    assert_true(x == 2);
    st_close(&s);
    static const struct {
        const char *map, *want;
    } row[] = {
        { "{\"a\": \"../one.safetensors\"}", "index.json:1:17: error: must be a plain file name" },
        { "{\"a\": \"/etc/passwd\"}", "must be a plain file name" },
        { "{\"a\": \"x/one.safetensors\"}", "must be a plain file name" },
        { "{\"a\": \"..\"}", "must be a plain file name" },
        { "{\"a\": \"\"}", "must be a plain file name" },
        { "{\"a\": 1}", "must be the name of a file" },
        { "{\"a\": \"none\"}", "/none: error: cannot open" },
        { "{\"a\": \"fifo\"}", "not a regular file" },
        { "{\"a\": \"sub\"}", "is a directory" },
        { "{\"a\": \"loop\"}", "/loop: error: cannot open" },
        { "{\"a\": \"one.safetensors\", \"c\": \"one.safetensors\"}",
          "index.json:1:41: error: the file that the index names" },
        { "{\"a\": \"two.safetensors\", \"b\": \"one.safetensors\"}", "does not hold this tensor" },
        { "{\"a\": \"one.safetensors\", \"b\": \"again\"}", "tensor \"a\": is in two files" },
        { "{}", "missing, empty or not an object" },
        { "[]", "missing, empty or not an object" },
        { "{\"a\": \"one.safetensors\", \"a\": \"one.safetensors\"}", "is there twice" },
    };
    assert_int_equal(mkfifo(scratch(state, "fifo"), 0666), 0);
    assert_int_equal(dir_make(scratch(state, "sub")), 0);
    assert_int_equal(symlink("loop", scratch(state, "loop")), 0);
    put_shard(scratch(state, "again"), "a", 3);
    for (size_t i = 0; i < COUNT_OF(row); i++) {
        char text[300];
        char path[200];
        snprintf(path, sizeof path, "%s/model.safetensors.index.json", dir);
        snprintf(text, sizeof text, "{\"weight_map\": %s}", row[i].map);
        scratch_put(path, text, strlen(text));
        if (st_open_dir(&s, dir) != ERR_INPUT) fail_msg("accepted: %s", row[i].map);
        assert_msg(row[i].want);
        assert_null(s.fds);
    }
}

static void test_st__dir(void **state)
{
    struct st_set s;
    assert_int_equal(st_open_dir(&s, scratch(state, "none")), ERR_INPUT);
    assert_msg("/none: error: no such directory");
    assert_int_equal(st_open_dir(&s, scratch_dir(state)), ERR_INPUT);
    assert_msg("holds no model.safetensors");
    scratch_put(scratch(state, "pytorch_model.bin"), "x", 1);
    assert_int_equal(st_open_dir(&s, scratch_dir(state)), ERR_INPUT);
    assert_msg("never read: convert");
    scratch_put(scratch(state, "model.safetensors.index.json"), "{}", 2);
    assert_int_equal(st_open_dir(&s, scratch_dir(state)), ERR_INPUT);
    assert_msg("index.json:1:1: error: \"weight_map\" is missing");
    put_shard(scratch(state, "model.safetensors"), "w", 5); /* goes before the index */
    assert_int_equal(st_open_dir(&s, scratch_dir(state)), 0);
    assert_int_equal(s.n, 1);
    st_close(&s);
}

#define T(name) cmocka_unit_test_setup_teardown(name, scratch_make, scratch_remove)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(test_st__round_trip),
        T(test_st__round_trip_large),
        T(test_st__writer_refuses),
        T(test_st__writer_full_disk),
        T(test_st__broken_headers),
        T(test_st__broken_lengths),
        T(test_st__every_truncation),
        T(test_st__shrinks_while_read),
        T(test_st__index),
        T(test_st__dir),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
