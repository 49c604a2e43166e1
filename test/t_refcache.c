/* SPDX-License-Identifier: MIT */
#include "../src/train/refcache.h"
#include "../src/base/rng.h"
#include "scratch.h"
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zlib.h>
#include <cmocka.h>

enum { HEADER = 64, RECORD = 40 };
static const uint8_t DIGEST[32] = { 0xAB, 0xCD, 1, 2, 3 };

static struct refcache_key key_of(uint64_t i)
{
    struct refcache_key k;
    for (uint64_t j = 0; j < 2; j++) {
        const uint64_t u = rng_u64(11, rng_stream_of(RNG_TEST, i), j);
        memcpy(k.b + 8 * j, &u, 8);
    }
    return k;
}

static double value_of(uint64_t i)
{
    return -300 * rng_uniform(12, rng_stream_of(RNG_TEST, 0), i);
}

static struct refcache *open_at(void **state)
{
    struct refcache *c;
    assert_int_equal(refcache_open(&c, scratch_dir(state), DIGEST, "float32"), 0);
    return c;
}

static void put(struct refcache *c, uint64_t i)
{
    const struct refcache_key k = key_of(i);
    assert_int_equal(refcache_put(c, &k, value_of(i), value_of(i) - 1), 0);
}

static const struct refcache_value *get(const struct refcache *c, uint64_t i)
{
    const struct refcache_key k = key_of(i);
    return refcache_find(c, &k);
}

/* Of the keys 0 .. n - 1: how many are there; all that are there have their values. */
static int64_t count_good(const struct refcache *c, uint64_t n)
{
    int64_t found = 0;
    for (uint64_t i = 0; i < n; i++) {
        const struct refcache_value *v = get(c, i);
        if (!v) continue;
        assert_true(v->w == value_of(i) && v->l == value_of(i) - 1);
        found++;
    }
    return found;
}

static const char *file_at(void **state)
{
    char name[80];
    snprintf(name, sizeof name, "reference-abcd010203%022d-float32-k%d.bin", 0, KERNELS_VERSION);
    return scratch(state, name);
}

static int64_t size_of(const char *path)
{
    struct stat st;
    return stat(path, &st) ? -1 : (int64_t)st.st_size;
}

/* A file of n records, whole. */
static void make_file(void **state, uint64_t n)
{
    struct refcache *c = open_at(state);
    for (uint64_t i = 0; i < n; i++)
        put(c, i);
    assert_int_equal(refcache_flush(c, true), 0);
    refcache_close(c);
    assert_int_equal(size_of(file_at(state)), HEADER + (int64_t)n * RECORD);
}

/* What is written to stderr from here to said(). */
static int hear(void **state)
{
    fflush(stderr);
    const int was = dup(2), fd = open(scratch(state, "said"), O_RDWR | O_CREAT | O_TRUNC, 0666);
    assert_true(was >= 0 && fd >= 0 && dup2(fd, 2) == 2 && close(fd) == 0);
    return was;
}

/* The text, owned by the caller. */
static char *said(void **state, int was)
{
    char *text;
    size_t len;
    fflush(stderr);
    dup2(was, 2);
    close(was);
    assert_int_equal(file_read(&text, &len, scratch(state, "said"), 1 << 20), 0);
    return text;
}

static struct refcache *open_silently(void **state)
{
    const int was = hear(state);
    struct refcache *c = open_at(state);
    char *text = said(state, was);
    assert_string_equal(text, "");
    free(text);
    return c;
}

/* Opens, and expects one warning that names the file and says `part`. */
static struct refcache *open_warned(void **state, const char *part)
{
    const int was = hear(state);
    struct refcache *c = open_at(state);
    char *text = said(state, was);
    if (strncmp(text, "warning: reference cache ", 25) != 0 || !strstr(text, refcache_path(c)) ||
        !strstr(text, part) || strchr(text, '\n') != text + strlen(text) - 1)
        fail_msg("expected one warning with \"%s\", got \"%s\"", part, text);
    free(text);
    return c;
}

/* the file --------------------------------------------------------------------------------------------------------- */

static void test_refcache__there_and_back(void **state)
{
    struct refcache *c = open_silently(state);
    assert_string_equal(refcache_path(c), file_at(state));
    assert_null(get(c, 0));
    for (uint64_t i = 0; i < 5; i++)
        put(c, i);
    assert_int_equal(size_of(file_at(state)), HEADER); /* not before the flush */
    assert_int_equal(refcache_flush(c, true), 0);
    put(c, 5);
    assert_int_equal(refcache_flush(c, false), 0); /* a moment ago: not again */
    assert_int_equal(size_of(file_at(state)), HEADER + 5 * RECORD);
    assert_int_equal(refcache_flush(c, true), 0);
    refcache_close(c);
    assert_int_equal(size_of(file_at(state)), HEADER + 6 * RECORD);
    c = open_silently(state);
    assert_int_equal(count_good(c, 10), 6);
    refcache_close(c);
}

static void test_refcache__format(void **state)
{
    char *text;
    size_t len;
    double w;
    uint32_t crc;
    const struct refcache_key k = key_of(1);
    make_file(state, 2);
    assert_int_equal(file_read(&text, &len, file_at(state), 1 << 20), 0);
    const uint8_t *p = (const uint8_t *)text;
    assert_memory_equal(p, "bdporef1", 8);
    assert_memory_equal(p + 8, DIGEST, 32);
    assert_memory_equal(p + 40, "float32\0\3\0\0\0", 12);
    memcpy(&crc, p + 60, 4);
    assert_int_equal(crc, (uint32_t)crc32(0, p, 60));
    p += HEADER + RECORD;
    assert_memory_equal(p, &k, 16);
    memcpy(&w, p + 16, 8);
    assert_true(w == value_of(1));
    memcpy(&w, p + 24, 8);
    assert_true(w == value_of(1) - 1);
    memcpy(&crc, p + 32, 4);
    assert_int_equal(crc, (uint32_t)crc32(0, p, 32));
    assert_memory_equal(p + 36, "pair", 4);
    free(text);
}

static void test_refcache__other_keys_other_files(void **state)
{
    static const uint8_t other[32] = { 0xAB, 0xCE };
    struct refcache *c;
    make_file(state, 3);
    assert_int_equal(refcache_open(&c, scratch_dir(state), other, "float32"), 0);
    assert_int_equal(count_good(c, 3), 0);
    refcache_close(c);
    assert_int_equal(refcache_open(&c, scratch_dir(state), DIGEST, "bfloat16"), 0);
    assert_int_equal(count_good(c, 3), 0);
    refcache_close(c);
    assert_int_equal(scratch_count(state), 3);
    /* one model's file under another's name */
    assert_int_equal(refcache_open(&c, scratch_dir(state), other, "float32"), 0);
    char *path = NULL;
    assert_int_equal(mem_strdup(&path, refcache_path(c)), 0);
    refcache_close(c);
    assert_int_equal(rename(path, file_at(state)), 0);
    free(path);
    c = open_warned(state, "another program");
    assert_int_equal(count_good(c, 3), 0);
    put(c, 1);
    assert_int_equal(refcache_flush(c, true), 0);
    refcache_close(c);
    c = open_silently(state);
    assert_int_equal(count_good(c, 3), 1);
    refcache_close(c);
}

static void test_refcache__not_finite(void **state)
{
    const struct refcache_key k = key_of(0), m = key_of(1);
    struct refcache *c = open_at(state);
    assert_int_equal(refcache_put(c, &k, -INFINITY, -1) | refcache_put(c, &m, -1, NAN), 0);
    assert_true(isinf(refcache_find(c, &k)->w) && isnan(refcache_find(c, &m)->l));
    assert_int_equal(refcache_flush(c, true), 0);
    refcache_close(c);
    assert_int_equal(size_of(file_at(state)), HEADER);
}

static void test_refcache__many_rows(void **state)
{
    enum { N = 60000 };
    struct refcache *c = open_at(state);
    for (uint64_t i = 0; i < N; i++) {
        put(c, i);
        assert_int_equal(refcache_flush(c, false), 0);
    }
    assert_true(size_of(file_at(state)) > HEADER + 40000 * RECORD); /* enough to flush on the way */
    assert_int_equal(refcache_flush(c, true), 0);
    assert_int_equal(count_good(c, N), N);
    refcache_close(c);
    c = open_silently(state);
    assert_int_equal(count_good(c, N + 10), N);
    refcache_close(c);
}

/* faults ----------------------------------------------------------------------------------------------------------- */

/* A file cut at any byte: whole records are there, nothing is said, and the next ones stand behind them. */
static void test_refcache__torn_anywhere(void **state)
{
    char *whole;
    size_t len;
    make_file(state, 3);
    assert_int_equal(file_read(&whole, &len, file_at(state), 1 << 20), 0);
    for (size_t cut = 0; cut <= len; cut++) {
        const int64_t left = cut < HEADER ? 0 : (int64_t)(cut - HEADER) / RECORD;
        scratch_put(file_at(state), whole, cut);
        struct refcache *c = open_silently(state);
        assert_int_equal(count_good(c, 9), left);
        put(c, 7);
        put(c, 8);
        assert_int_equal(refcache_flush(c, true), 0);
        refcache_close(c);
        c = open_silently(state);
        assert_int_equal(count_good(c, 9), left + 2);
        refcache_close(c);
        assert_int_equal(size_of(file_at(state)), HEADER + (left + 2) * RECORD);
    }
    free(whole);
}

/* The file is named, that record (in the header: all) is dropped, the others hold; then the file is whole again. */
static void test_refcache__flipped_anywhere(void **state)
{
    char *whole;
    size_t len;
    make_file(state, 3);
    assert_int_equal(file_read(&whole, &len, file_at(state), 1 << 20), 0);
    for (size_t at = 0; at < len; at++) {
        const int64_t left = at < HEADER ? 0 : 2;
        whole[at] ^= 0x10;
        scratch_put(file_at(state), whole, len);
        whole[at] ^= 0x10;
        struct refcache *c =
            open_warned(state, at < HEADER ? "header is damaged" : "1 damaged record dropped");
        assert_int_equal(count_good(c, 4), left);
        refcache_close(c);
        assert_int_equal(size_of(file_at(state)), HEADER + left * RECORD);
        c = open_silently(state);
        assert_int_equal(count_good(c, 4), left);
        refcache_close(c);
    }
    free(whole);
}

/* After a loss of power: the length is there, the bytes are not. */
static void test_refcache__zeros(void **state)
{
    make_file(state, 4);
    assert_int_equal(truncate(file_at(state), HEADER + 2 * RECORD + 7), 0);
    assert_int_equal(truncate(file_at(state), HEADER + 9 * RECORD + 3), 0);
    struct refcache *c = open_warned(state, "7 damaged records dropped");
    assert_int_equal(count_good(c, 4), 2);
    put(c, 3);
    assert_int_equal(refcache_flush(c, true), 0);
    refcache_close(c);
    c = open_silently(state);
    assert_int_equal(count_good(c, 4), 3);
    refcache_close(c);
}

static void test_refcache__cannot_grow(void **state)
{
    enum { N = 100 }; /* what is said must fit the limit too */
    struct rlimit was;
    make_file(state, N);
    struct refcache *c = open_at(state);
    for (uint64_t i = N; i < N + 5; i++)
        put(c, i);
    const int heard = hear(state);
    void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &was), 0);
    assert_int_equal(
        setrlimit(RLIMIT_FSIZE, &(struct rlimit){ HEADER + (N + 1) * RECORD + 17, was.rlim_max }),
        0);
    const int rc = refcache_flush(c, true);
    put(c, N + 5);
    const int again = refcache_flush(c, true);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &was), 0);
    signal(SIGXFSZ, handler);
    char *text = said(state, heard);
    assert_int_equal(rc, 0);
    assert_int_equal(again, 0);
    if (!strstr(text, "cannot be written: File too large") ||
        strchr(text, '\n') != text + strlen(text) - 1) /* said once */
        fail_msg("%s", text);
    free(text);
    assert_int_equal(count_good(c, N + 9), N + 6); /* in memory all is there */
    refcache_close(c);
    assert_int_equal(size_of(file_at(state)), HEADER + N * RECORD);
}

static void works_in_memory(void **state, const char *dir, const char *part)
{
    struct refcache *c;
    const int was = hear(state);
    const int rc = refcache_open(&c, dir, DIGEST, "float32");
    if (rc == 0) {
        put(c, 1);
        put(c, 2);
        refcache_flush(c, true);
    }
    char *text = said(state, was);
    assert_int_equal(rc, 0);
    assert_int_equal(count_good(c, 9), 2);
    if (!strstr(text, part) || !strstr(text, "not kept") ||
        strchr(text, '\n') != text + strlen(text) - 1)
        fail_msg("expected one warning with \"%s\", got \"%s\"", part, text);
    free(text);
    refcache_close(c);
}

static void test_refcache__unusable_places(void **state)
{
    scratch_put(scratch(state, "file"), "x", 1);
    works_in_memory(state, scratch(state, "file"), "a file has that name");
    works_in_memory(state, scratch(state, "file/below"), "a file has that name");
    works_in_memory(state, "/proc/none", "No such file");
    assert_int_equal(mkdir(scratch(state, "d"), 0777), 0);
    /* a link is not followed, a directory or a pipe not taken for the file */
    char *path = NULL;
    assert_int_equal(mem_asprintf(&path, "%s/d%s", scratch_dir(state),
                                  file_at(state) + strlen(scratch_dir(state))),
                     0);
    assert_int_equal(symlink(scratch(state, "file"), path), 0);
    works_in_memory(state, scratch(state, "d"), "symbolic links");
    assert_int_equal(unlink(path), 0);
    assert_int_equal(mkdir(path, 0777), 0);
    works_in_memory(state, scratch(state, "d"), "Is a directory");
    assert_int_equal(rmdir(path), 0);
    assert_int_equal(mkfifo(path, 0666), 0);
    works_in_memory(state, scratch(state, "d"), "cannot be used");
    assert_int_equal(unlink(path), 0);
    free(path);
    assert_int_equal(size_of(scratch(state, "file")), 1);
}

/* A directory of somebody else: what is there is read. */
static void test_refcache__read_only(void **state)
{
    make_file(state, 3);
    const bool root = geteuid() == 0; /* root may write to anything */
    assert_int_equal(chmod(scratch_dir(state), 0777), 0);
    assert_int_equal(chmod(file_at(state), 0444), 0);
    if (root && seteuid(65534) != 0) {
        print_message("root cannot become somebody else: %s\n", strerror(errno));
        skip();
    }
    struct refcache *c = open_warned(state, "Permission denied");
    assert_int_equal(count_good(c, 4), 3);
    put(c, 3);
    assert_int_equal(refcache_flush(c, true), 0);
    refcache_close(c);
    if (root) assert_int_equal(seteuid(0), 0);
    assert_int_equal(size_of(file_at(state)), HEADER + 3 * RECORD);
}

/* several at once -------------------------------------------------------------------------------------------------- */

static void test_refcache__first_value_wins(void **state)
{
    struct refcache *a = open_at(state), *b = open_at(state);
    const struct refcache_key k = key_of(77), m = key_of(78);
    assert_int_equal(refcache_put(a, &k, -1, -2), 0);
    assert_int_equal(refcache_put(a, &k, -5, -6), 0); /* has one already */
    assert_int_equal(refcache_put(b, &k, -3, -4), 0);
    assert_int_equal(refcache_put(b, &m, -7, -8), 0);
    assert_true(refcache_find(b, &k)->w == -3);
    assert_int_equal(refcache_flush(a, true), 0);
    assert_int_equal(refcache_flush(b, true), 0);
    assert_true(refcache_find(b, &k)->w == -1 && refcache_find(b, &k)->l == -2);
    assert_int_equal(size_of(file_at(state)), HEADER + 2 * RECORD);
    put(a, 1);
    assert_int_equal(refcache_flush(a, true), 0);
    assert_true(refcache_find(a, &m)->w == -7); /* what others wrote came too */
    refcache_close(a);
    refcache_close(b);
}

static void test_refcache__deleted_under_it(void **state)
{
    struct refcache *a = open_at(state), *b = open_at(state);
    for (uint64_t i = 0; i < 3; i++)
        put(a, i);
    assert_int_equal(refcache_flush(a, true), 0);
    assert_int_equal(unlink(file_at(state)), 0);
    put(b, 3);
    put(b, 4);
    assert_int_equal(refcache_flush(b, true), 0);
    put(a, 5);
    assert_int_equal(refcache_flush(a, true), 0);
    assert_int_equal(count_good(a, 9), 6);
    refcache_close(a);
    refcache_close(b);
    a = open_silently(state);
    assert_int_equal(count_good(a, 9), 3);
    refcache_close(a);
}

static void test_refcache__drop(void **state)
{
    make_file(state, 4);
    struct refcache *a = open_at(state), *b = open_at(state), *c = open_at(state);
    refcache_drop(a);
    assert_int_equal(count_good(a, 9), 0);
    assert_int_equal(size_of(file_at(state)), HEADER);
    for (uint64_t i = 4; i < 9; i++)
        put(a, i);
    assert_int_equal(refcache_flush(a, true), 0); /* longer now than what b has read */
    refcache_drop(b); /* came to the same result later: the new values stay */
    assert_int_equal(count_good(b, 9), 0);
    put(b, 0);
    assert_int_equal(refcache_flush(b, true), 0);
    assert_int_equal(count_good(b, 9), 6);
    const struct refcache_key k = key_of(100);
    assert_int_equal(refcache_put(c, &k, -1, -1), 0);
    assert_int_equal(refcache_flush(c, true),
                     0); /* notices the new file, and brings nothing of the old one back */
    refcache_close(a);
    refcache_close(b);
    refcache_close(c);
    assert_int_equal(size_of(file_at(state)), HEADER + 7 * RECORD);
    a = open_silently(state);
    assert_int_equal(count_good(a, 9), 6);
    refcache_close(a);
}

/* Processes that compute the same rows with other last bits: all end with the file's values, and no record is there twice. */
static void test_refcache__four_processes(void **state)
{
    enum { KEYS = 500, PROCESSES = 4 };
    pid_t pid[PROCESSES];
    for (int p = 0; p < PROCESSES; p++) {
        pid[p] = fork();
        if (pid[p] != 0) continue;
        struct refcache *c;
        double got[KEYS];
        char name[32];
        if (refcache_open(&c, scratch_dir(state), DIGEST, "float32") < 0) _exit(2);
        for (uint64_t i = 0; i < KEYS; i++) {
            const struct refcache_key k = key_of(p % 2 ? i : KEYS - 1 - i);
            if (refcache_put(c, &k, -1 - p, -1) < 0) _exit(3);
            if (i % 7 == (uint64_t)p && refcache_flush(c, true) < 0) _exit(4);
        }
        if (refcache_flush(c, true) < 0) _exit(5);
        for (uint64_t i = 0; i < KEYS; i++)
            got[i] = get(c, i)->w;
        snprintf(name, sizeof name, "got-%d", p);
        if (file_write_all(scratch(state, name), got, sizeof got) < 0) _exit(6);
        _exit(0);
    }
    for (int p = 0; p < PROCESSES; p++) {
        int status;
        assert_int_equal(waitpid(pid[p], &status, 0), pid[p]);
        assert_int_equal(status, 0);
    }
    assert_int_equal(size_of(file_at(state)), HEADER + KEYS * RECORD);
    struct refcache *c = open_silently(state);
    for (int p = 0; p < PROCESSES; p++) {
        char name[32], *text;
        double got[KEYS];
        size_t len;
        snprintf(name, sizeof name, "got-%d", p);
        assert_int_equal(file_read(&text, &len, scratch(state, name), 1 << 20), 0);
        assert_int_equal(len, sizeof got);
        memcpy(got, text, sizeof got);
        free(text);
        for (uint64_t i = 0; i < KEYS; i++)
            assert_true(got[i] == get(c, i)->w);
    }
    refcache_close(c);
}

/* Killed while it writes: what is left is whole, and right. */
static void test_refcache__killed(void **state)
{
    int64_t before = 0;
    for (uint64_t round = 0; round < 25; round++) {
        const pid_t pid = fork();
        if (pid == 0) {
            struct refcache *c;
            if (refcache_open(&c, scratch_dir(state), DIGEST, "float32") < 0) _exit(2);
            for (uint64_t i = 0;; i++) {
                const struct refcache_key k = key_of(i);
                refcache_put(c, &k, value_of(i), value_of(i) - 1);
                if (i % 3 == 0) refcache_flush(c, true);
            }
        }
        usleep((useconds_t)(500 + rng_u64(9, rng_stream_of(RNG_TEST, 9), round) % 8000));
        kill(pid, SIGKILL);
        assert_int_equal(waitpid(pid, NULL, 0), pid);
        struct refcache *c = open_silently(state);
        const int64_t n = (size_of(file_at(state)) - HEADER) / RECORD;
        assert_true(n >= before);
        assert_int_equal(count_good(c, (uint64_t)n + 100), n);
        before = n;
        refcache_close(c);
    }
    assert_true(before > 0);
}

/* A flush waits for a lock that is held for a moment. */
static void test_refcache__waits(void **state)
{
    struct refcache *c = open_at(state);
    const int fd = open(file_at(state), O_RDWR);
    int status;
    assert_true(fd >= 0);
    put(c, 1);
    fflush(NULL);
    assert_int_equal(flock(fd, LOCK_EX), 0);
    const pid_t pid = fork();
    if (pid == 0) {
        const int rc = refcache_flush(c, true);
        _exit(rc == 0 && size_of(file_at(state)) == HEADER + RECORD ? 0 : 1);
    }
    usleep(100000);
    assert_int_equal(waitpid(pid, &status, WNOHANG), 0);
    assert_int_equal(size_of(file_at(state)), HEADER);
    assert_int_equal(flock(fd, LOCK_UN), 0);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    close(fd);
    refcache_close(c);
}

#define T(f) cmocka_unit_test_setup_teardown(f, scratch_make, scratch_remove)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(test_refcache__there_and_back),
        T(test_refcache__format),
        T(test_refcache__other_keys_other_files),
        T(test_refcache__not_finite),
        T(test_refcache__many_rows),
        T(test_refcache__torn_anywhere),
        T(test_refcache__flipped_anywhere),
        T(test_refcache__zeros),
        T(test_refcache__cannot_grow),
        T(test_refcache__unusable_places),
        T(test_refcache__read_only),
        T(test_refcache__first_value_wins),
        T(test_refcache__deleted_under_it),
        T(test_refcache__drop),
        T(test_refcache__four_processes),
        T(test_refcache__killed),
        T(test_refcache__waits),
    };
    return cmocka_run_group_tests_name("refcache", tests, NULL, NULL);
}
