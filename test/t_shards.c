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

/* `ranks` files of ranges that end at ends[]. */
static void write_all(const char *dir, struct shard *s, int32_t ranks, const int64_t *ends)
{
    for (int32_t i = ranks - 1; i >= 0; i--) { /* in any order */
        s[i] = (struct shard){
            .rank = i, .ranks = ranks, .begin = i ? ends[i - 1] : 0, .end = ends[i]
        };
        assert_int_equal(shard_write(&s[i], dir, ends[ranks - 1], get_value, NULL), 0);
        assert_int_equal(s[i].bytes, shard_bytes(s[i].end - s[i].begin));
    }
}

static void read_range(const struct shard_set *set, int64_t begin, int64_t end)
{
    struct seen s = { .begin = begin, .end = end };
    assert_int_equal(shard_set_read(set, begin, end, check_value, &s), 0);
    for (int i = 0; i < STATE_PARTS; i++)
        assert_int_equal(s.count[i], end - begin);
}

/* Written by any number of ranks, read by any other. */
static void test_shards__any_ranks(void **state)
{
    enum { N = 600001 }; /* more than two pieces */
    static const int32_t numbers[] = { 1, 2, 3, 4, 7 };
    for (size_t w = 0; w < COUNT_OF(numbers); w++) {
        const int32_t ranks = numbers[w];
        struct shard s[8];
        struct shard_set set;
        int64_t ends[8];
        char dir[32];
        snprintf(dir, sizeof dir, "by-%d", ranks);
        const char *path = scratch(state, dir);
        assert_int_equal(dir_make(path), 0);
        for (int32_t i = 0; i < ranks;
             i++) /* padded to equal size, the last one shorter or empty */
            ends[i] = MIN((int64_t)N, (N / ranks + 63) / 64 * 64 * (i + 1));
        ends[ranks - 1] = N;
        write_all(path, s, ranks, ends);
        assert_int_equal(shard_set_open(&set, path, s, ranks, N), 0);
        for (size_t r = 0; r < COUNT_OF(numbers); r++)
            for (int64_t i = 0; i < numbers[r]; i++)
                read_range(&set, i * N / numbers[r], (i + 1) * N / numbers[r]);
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

static void test_shards__empty_ranges(void **state)
{
    static const int64_t ends[4] = { 0, 5, 5, 5 };
    struct shard s[4];
    struct shard_set set;
    write_all(scratch_dir(state), s, 4, ends);
    assert_int_equal(shard_set_open(&set, scratch_dir(state), s, 4, 5), 0);
    read_range(&set, 0, 5);
    read_range(&set, 4, 5);
    shard_set_close(&set);
}

static void refused(const char *dir, const struct shard *s, int32_t n, int64_t elements,
                    const char *msg)
{
    struct shard_set set;
    assert_int_equal(shard_set_open(&set, dir, s, n, elements), ERR_CHECKPOINT);
    assert_msg(msg);
    shard_set_close(&set);
}

static void test_shards__refused(void **state)
{
    static const int64_t ends[3] = { 10, 20, 30 };
    const char *dir = scratch_dir(state), *second;
    struct shard s[3], bad[3];
    struct shard_set set;
    char name[32];
    write_all(dir, s, 3, ends);
    refused(dir, s, 2, 30, "elements 20 to 30 are in no file");
    refused(dir, s + 1, 2, 30, "after those up to 0");
    memcpy(bad, s, sizeof s);
    bad[1].begin = 9;
    refused(dir, bad, 3, 30, "rank 1");
    memcpy(bad, s, sizeof s);
    bad[1].bytes++;
    refused(dir, bad, 3, 30, "state-00001-of-00003.bin");
    refused(dir, s, 3, 31, "elements 30 to 31");
    second = scratch(state, shard_name(name, 1, 3));
    assert_int_equal(truncate(second, s[1].bytes - 1), 0);
    refused(dir, s, 3, 30, "state-00001-of-00003.bin: has");
    assert_int_equal(truncate(second, s[1].bytes), 0);
    assert_int_equal(shard_set_open(&set, dir, s, 3, 30), 0);
    assert_int_equal(truncate(second, 64), 0); /* while it is open */
    struct seen seen = { .begin = 0, .end = 30 };
    assert_int_equal(shard_set_read(&set, 0, 30, check_value, &seen), ERR_CHECKPOINT);
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
    struct shard s = { .rank = 0, .ranks = 1, .begin = 0, .end = 100000 };
    struct rlimit was, now;
    assert_int_equal(shard_write(&s, scratch_dir(state), 100000, get_fails, NULL), ERR_DEVICE);
    assert_msg("a device broke");
    assert_int_equal(scratch_count(state), 0);
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &was), 0);
    now = was;
    now.rlim_cur = 1000000;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &now), 0);
    const int rc = shard_write(&s, scratch_dir(state), 100000, get_value, NULL);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &was), 0);
    assert_int_equal(rc, ERR_IO);
    assert_msg("File too large");
    assert_int_equal(scratch_count(state), 0);
    assert_int_equal(shard_write(&s, scratch(state, "none"), 100000, get_value, NULL), ERR_IO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
#define T(f) cmocka_unit_test_setup_teardown(f, scratch_make, scratch_remove)
        T(test_shards__any_ranks),
        T(test_shards__empty_ranges),
        T(test_shards__refused),
        T(test_shards__cannot_write),
    };
    return cmocka_run_group_tests_name("shards", tests, NULL, NULL);
}
