/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>
#include "../src/base/rng.h"
#include "../src/train/manifest.h"
#include "scratch.h"

/* The state of the tests: a number that names its part and place. */
static float value(enum state_part part, int64_t at)
{
    return (float)(part * 10000000 + at);
}

static int get_value(void *payload, enum state_part part, int64_t at, int64_t n, float *out)
{
    (void)payload;
    for (int64_t i = 0; i < n; i++)
        out[i] = value(part, at + i);
    return 0;
}

struct seen {
    int64_t begin, end, count[STATE_PARTS];
};
static int check_value(void *payload, enum state_part part, int64_t at, int64_t n, const float *in)
{
    struct seen *s = payload;
    assert_int_equal(at, s->begin + s->count[part]); /* in order, without gap or repeat */
    assert_true(at + n <= s->end);
    for (int64_t i = 0; i < n; i++)
        if (in[i] != value(part, at + i))
            fail_msg("part %d, element %lld is %g", part, (long long)(at + i), (double)in[i]);
    s->count[part] += n;
    return 0;
}

enum { RANKS = 7 };

/* A state of n elements, cut into blocks that are dealt out to the ranks in turn, beginning with another one each round; `block` n or more: rank 0 has all. */
static void write_all(const char *dir, struct shard *s, int32_t ranks, int64_t n, int64_t block)
{
    struct shard_range *range = calloc((size_t)(n / block + 2), sizeof *range);
    for (int32_t i = ranks - 1; i >= 0; i--) { /* in any order */
        int64_t k = 0, held = 0;
        for (int64_t b = 0; b * block < n; b++)
            if ((b + b / ranks) % ranks == i) {
                range[k++] = (struct shard_range){ b * block, MIN(n, (b + 1) * block) };
                held += range[k - 1].end - range[k - 1].begin;
            }
        s[i] = (struct shard){ .rank = i, .ranks = ranks };
        assert_int_equal(shard_write(&s[i], dir, n, range, k, get_value, NULL), 0);
        assert_int_equal(s[i].held, held);
        assert_int_equal(s[i].bytes, shard_bytes(k, held));
    }
    free(range);
}

static void read_range(const struct shard_set *set, int64_t begin, int64_t end)
{
    struct seen s = { .begin = begin, .end = end };
    for (int i = 0; i < STATE_PARTS; i++) {
        assert_int_equal(shard_set_read(set, (enum state_part)i, begin, end, check_value, &s), 0);
        assert_int_equal(s.count[i], end - begin);
    }
}

/* Written by any number of ranks, read by any other. */
static void test_shards__any_ranks(void **state)
{
    enum { N = 600001 }; /* more than two pieces */
    static const int64_t blocks[] = { N, N / RANKS + 1, 1024, 300000 };
    for (int32_t ranks = 1; ranks <= RANKS; ranks++) {
        struct shard s[RANKS];
        struct shard_set set;
        char dir[32];
        snprintf(dir, sizeof dir, "by-%d", ranks);
        const char *path = scratch(state, dir);
        assert_int_equal(dir_make(path), 0);
        write_all(path, s, ranks, N, blocks[ranks % 4]);
        assert_int_equal(shard_set_open(&set, path, s, ranks, N), 0);
        for (int64_t r = 1; r <= RANKS; r++)
            for (int64_t i = 0; i < r; i++)
                read_range(&set, i * N / r, (i + 1) * N / r);
        for (uint64_t k = 0; k < 20; k++) {
            const int64_t a = (int64_t)(rng_u64(1, rng_stream_of(RNG_TEST, 0), k) % (N + 1));
            const int64_t b = (int64_t)(rng_u64(1, rng_stream_of(RNG_TEST, 1), k) % (N + 1));
            read_range(&set, MIN(a, b), MAX(a, b));
        }
        read_range(&set, 0, 0);
        read_range(&set, N, N);
        shard_set_close(&set);
    }
}

static void refused(const char *dir, const struct shard *s, int32_t n, int64_t elements,
                    const char *msg)
{
    struct shard_set set;
    assert_int_equal(shard_set_open(&set, dir, s, n, elements), ERR_CHECKPOINT);
    assert_msg(msg);
    shard_set_close(&set);
}

/* Eight bytes of a file, as they stand in it. */
static void put_i64(const char *path, int64_t at, int64_t value)
{
    char *text;
    size_t len;
    assert_int_equal(file_read(&text, &len, path, 1 << 20), 0);
    memcpy(text + at, &value, 8);
    scratch_put(path, text, len);
    free(text);
}

static void test_shards__refused(void **state)
{
    const char *dir = scratch_dir(state);
    struct shard s[3], bad[3];
    struct shard_set set;
    char name[32];
    write_all(dir, s, 3, 30, 10);
    const char *second = scratch(state, shard_name(name, 1, 3));
    refused(dir, s, 2, 30, "elements 20 to 30 are in no file");
    refused(dir, s + 1, 2, 30, "after those up to 0");
    memcpy(bad, s, sizeof s);
    bad[1].held = 9;
    refused(dir, bad, 3, 30, "its header");
    memcpy(bad, s, sizeof s);
    bad[1].bytes++;
    refused(dir, bad, 3, 30, "state-00001-of-00003.bin");
    refused(dir, s, 3, 31, "its header");
    assert_int_equal(truncate(second, s[1].bytes - 1), 0);
    refused(dir, s, 3, 30, "state-00001-of-00003.bin: has");
    assert_int_equal(truncate(second, s[1].bytes), 0);
    static const int64_t ranges[][2] = { { 9, 19 },  { 11, 21 }, { 10, 19 },       { 10, 21 },
                                         { 20, 10 }, { -1, 9 },  { INT64_MAX, 20 } };
    for (size_t i = 0; i < COUNT_OF(ranges); i++) {
        put_i64(second, SHARD_HEADER, ranges[i][0]);
        put_i64(second, SHARD_HEADER + 8, ranges[i][1]);
        refused(dir, s, 3, 30, "state-0000");
    }
    put_i64(second, SHARD_HEADER, 10);
    put_i64(second, SHARD_HEADER + 8, 20);
    static const int64_t counts[] = { 0, 2, -1, INT64_MAX, 1 << 30 };
    for (size_t i = 0; i < COUNT_OF(counts); i++) {
        put_i64(second, 32, counts[i]);
        refused(dir, s, 3, 30, "its header");
    }
    put_i64(second, 32, 1);
    assert_int_equal(shard_set_open(&set, dir, s, 3, 30), 0);
    assert_int_equal(truncate(second, 64), 0); /* while it is open */
    struct seen seen = { .begin = 0, .end = 30 };
    assert_int_equal(shard_set_read(&set, STATE_MOMENT1, 0, 30, check_value, &seen),
                     ERR_CHECKPOINT);
    assert_msg("the end");
    shard_set_close(&set);
    scratch_put(second, "BDPOSHRx", 8);
    assert_int_equal(truncate(second, s[1].bytes), 0);
    refused(dir, s, 3, 30, "its header");
    assert_int_equal(unlink(second), 0);
    refused(dir, s, 3, 30, "state-00001-of-00003.bin");
}

static int get_fails(void *payload, enum state_part part, int64_t at, int64_t n, float *out)
{
    if (part == STATE_MOMENT2) return err_set(ERR_DEVICE, "a device broke");
    return get_value(payload, part, at, n, out);
}

/* What cannot be written, or read from the device, leaves no file. */
static void test_shards__cannot_write(void **state)
{
    static const struct shard_range all = { 0, 100000 };
    struct shard s = { .rank = 0, .ranks = 1 };
    struct rlimit was, now;
    assert_int_equal(shard_write(&s, scratch_dir(state), 100000, &all, 1, get_fails, NULL),
                     ERR_DEVICE);
    assert_msg("a device broke");
    assert_int_equal(scratch_count(state), 0);
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &was), 0);
    now = was;
    now.rlim_cur = 1000000;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &now), 0);
    const int rc = shard_write(&s, scratch_dir(state), 100000, &all, 1, get_value, NULL);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &was), 0);
    assert_int_equal(rc, ERR_IO);
    assert_msg("File too large");
    assert_int_equal(scratch_count(state), 0);
    assert_int_equal(shard_write(&s, scratch(state, "none"), 100000, &all, 1, get_value, NULL),
                     ERR_IO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
#define T(f) cmocka_unit_test_setup_teardown(f, scratch_make, scratch_remove)
        T(test_shards__any_ranks),
        T(test_shards__refused),
        T(test_shards__cannot_write),
    };
    return cmocka_run_group_tests_name("shards", tests, NULL, NULL);
}
