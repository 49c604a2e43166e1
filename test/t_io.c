/* SPDX-License-Identifier: MIT */
#include "scratch.h"
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zlib.h>
#include <cmocka.h>

/* reading ------------------------------------------------------------------------------------- */

static void test_io__read(void **state)
{
    char *text;
    size_t len;
    const char *p = scratch(state, "f");
    scratch_put(p, "ab\0cd", 5);
    assert_int_equal(file_read(&text, &len, p, 5), 0);
    assert_int_equal(len, 5);
    assert_memory_equal(text, "ab\0cd", 6);
    free(text);
    scratch_put(p, "", 0);
    assert_int_equal(file_read(&text, &len, p, 0), 0);
    assert_int_equal(len, 0);
    assert_string_equal(text, "");
    free(text);
    char *big = malloc(3000000);
    for (int i = 0; i < 3000000; i++)
        big[i] = (char)(i * 7 + i / 1000);
    scratch_put(p, big, 3000000);
    assert_int_equal(file_read(&text, &len, p, 1 << 30), 0);
    assert_int_equal(len, 3000000);
    assert_memory_equal(text, big, len);
    free(text);
    free(big);
    /* a file whose size says 0 but which has text */
    assert_int_equal(file_read(&text, &len, "/proc/self/status", 1 << 20), 0);
    assert_in_range(len, 100, 1 << 20);
    free(text);
    assert_int_equal(file_read(&text, &len, "/proc/self/status", 10), ERR_INPUT);
    assert_msg("limit");
}

static void test_io__read_refuses(void **state)
{
    char *text;
    size_t len;
    const char *p = scratch(state, "six");
    scratch_put(p, "123456", 6);
    assert_int_equal(file_read(&text, &len, p, 5), ERR_INPUT);
    assert_msg("/six: error: has 6 bytes; the limit is 5");
    assert_null(text);
    assert_int_equal(file_read(&text, &len, scratch(state, "none"), 5), ERR_INPUT);
    assert_msg("/none: error: cannot open: No such file");
    assert_int_equal(file_read(&text, &len, scratch(state, ""), 5), ERR_INPUT);
    assert_msg("is a directory");
    p = scratch(state, "fifo");
    assert_int_equal(mkfifo(p, 0666), 0);
    assert_int_equal(file_read(&text, &len, p, 5), ERR_INPUT); /* and does not wait */
    assert_msg("not a regular file");
    assert_int_equal(file_read(&text, &len, "/dev/null", 5), ERR_INPUT);
    assert_msg("not a regular file");
    p = scratch(state, "loop");
    assert_int_equal(symlink("loop", p), 0);
    assert_int_equal(file_read(&text, &len, p, 5), ERR_INPUT);
    p = scratch(state, "link");
    assert_int_equal(symlink("six", p), 0);
    assert_int_equal(file_read(&text, &len, p, 6), 0); /* inputs may be links */
    free(text);
}

/* directories and paths ----------------------------------------------------------------------- */

static void test_io__paths(void **state)
{
    (void)state;
    static const char *const row[][4] = {
        /* path, base, parent, joined with "x" */
        { "", ".", ".", "x" },          { "a", "a", ".", "a/x" },
        { "a/b", "b", "a", "a/b/x" },   { "/", "/", "/", "/x" },
        { "/a", "a", "/", "/a/x" },     { "/a/b", "b", "/a", "/a/b/x" },
        { "a/b/", "b/", "a", "a/b/x" }, { "a//b//", "b//", "a", "a//b//x" },
        { "//", "//", "/", "//x" },     { "../c", "c", "..", "../c/x" },
    };
    for (size_t i = 0; i < COUNT_OF(row); i++) {
        char *s;
        if (strcmp(row[i][0], "//") != 0) assert_string_equal(path_base(row[i][0]), row[i][1]);
        assert_int_equal(path_parent(&s, row[i][0]), 0);
        assert_string_equal(s, row[i][2]);
        free(s);
        assert_int_equal(path_join(&s, row[i][0], "x"), 0);
        assert_string_equal(s, row[i][3]);
        free(s);
    }
}

static void test_io__dirs(void **state)
{
    const char *deep = scratch(state, "a/b//c");
    assert_int_equal(dir_make(deep), 0);
    assert_true(dir_exists(deep));
    assert_false(file_exists(deep));
    assert_int_equal(dir_make(deep), 0);
    assert_int_equal(dir_make(scratch(state, "a/b/d/")), 0);
    assert_int_equal(dir_make(""), ERR_IO);
    scratch_put(scratch(state, "file"), "x", 1);
    assert_true(file_exists(scratch(state, "file")));
    assert_false(dir_exists(scratch(state, "file")));
    assert_int_equal(dir_make(scratch(state, "file")), ERR_IO);
    assert_msg("a file has that name");
    assert_int_equal(dir_make(scratch(state, "file/sub")), ERR_IO);
    assert_int_equal(dir_sync(deep), 0);
    assert_int_equal(dir_sync(scratch(state, "none")), ERR_IO);
    assert_true(disk_free(deep) > 0);
    assert_true(disk_free(scratch(state, "not/there/yet")) > 0);
    assert_true(disk_free("none/at/all") > 0);
    assert_true(disk_free("/") > 0);
}

static void test_io__dir_remove(void **state)
{
    assert_int_equal(dir_make(scratch(state, "keep")), 0);
    scratch_put(scratch(state, "keep/file"), "x", 1);
    assert_int_equal(dir_make(scratch(state, "tree/sub/sub")), 0);
    scratch_put(scratch(state, "tree/sub/f"), "x", 1);
    assert_int_equal(symlink("../../keep", scratch(state, "tree/sub/link")), 0);
    assert_int_equal(symlink("nowhere", scratch(state, "tree/dangling")), 0);
    assert_int_equal(mkfifo(scratch(state, "tree/fifo"), 0666), 0);
    assert_int_equal(dir_remove(scratch(state, "tree")), 0);
    assert_false(dir_exists(scratch(state, "tree")));
    assert_true(file_exists(scratch(state, "keep/file")));
    assert_int_equal(dir_remove(scratch(state, "tree")), 0); /* absent is fine */
    assert_int_equal(symlink("keep", scratch(state, "link")), 0);
    assert_int_equal(dir_remove(scratch(state, "link/")), 0); /* the link, not what it points to */
    assert_true(file_exists(scratch(state, "keep/file")));
    assert_int_equal(scratch_count(state), 1);
}

/* writing ------------------------------------------------------------------------------------- */

static void test_io__write(void **state)
{
    struct file_out f;
    char *text, *want = malloc(2000000);
    size_t len, n = 0;
    const char *p = scratch(state, "out");
    scratch_put(p, "old", 3);
    assert_int_equal(file_create(&f, p), 0);
    for (size_t i = 0; n < 1500000; i++) { /* pieces below, at and above the write buffer */
        const size_t piece = i % 7 == 0 ? 1u << 18 : i % 7 == 1 ? 300000 : i % 1000;
        for (size_t k = 0; k < piece; k++)
            want[n + k] = (char)(n + k * 31);
        assert_int_equal(file_put(&f, want + n, piece), 0);
        n += piece;
    }
    assert_int_equal(f.bytes, n);
    assert_int_equal(f.crc, crc32(0, (const Bytef *)want, (uInt)n));
    assert_int_equal(file_read(&text, &len, p, 10), 0);
    assert_string_equal(text, "old"); /* nothing shows before the commit */
    free(text);
    assert_int_equal(file_commit(&f), 0);
    file_abandon(&f);
    assert_int_equal(file_read(&text, &len, p, 1 << 22), 0);
    assert_int_equal(len, n);
    assert_memory_equal(text, want, n);
    free(text);
    free(want);
    assert_int_equal(scratch_count(state), 1);
    assert_int_equal(file_put(&f, "x", 1), ERR_IO);
    assert_int_equal(file_commit(&f), ERR_IO);
    memset(&f, 0, sizeof f);
    file_abandon(&f); /* must not close descriptor 0 */
    assert_true(fcntl(0, F_GETFD) >= 0 || errno == EBADF);
}

static void test_io__write_abandon(void **state)
{
    struct file_out f;
    assert_int_equal(file_create(&f, scratch(state, "out")), 0);
    assert_int_equal(file_put(&f, "abc", 3), 0);
    assert_int_equal(scratch_count(state), 1);
    file_abandon(&f);
    assert_int_equal(scratch_count(state), 0);
    file_abandon(&f);
}

static void test_io__write_refuses(void **state)
{
    struct file_out f;
    assert_int_equal(file_create(&f, scratch(state, "no/such/dir")), ERR_IO);
    assert_msg("/no/such/dir: error: cannot create: No such file");
    assert_int_equal(file_create(&f, scratch_dir(state)), ERR_IO);
    assert_msg("directory has that name");
    scratch_put(scratch(state, "file"), "x", 1);
    assert_int_equal(file_create(&f, scratch(state, "file/out")), ERR_IO);
    assert_int_equal(file_write_all(scratch(state, "none/x"), "x", 1), ERR_IO);
    assert_int_equal(scratch_count(state), 1);
}

/* A link planted at the temporary name must not lead the writer elsewhere. */
static void test_io__write_planted_link(void **state)
{
    char tmp[220], *text;
    size_t len;
    const char *victim = scratch(state, "victim"), *out = scratch(state, "out");
    scratch_put(victim, "safe", 4);
    snprintf(tmp, sizeof tmp, "%s.tmp-%ld", out, (long)getpid());
    assert_int_equal(symlink(victim, tmp), 0);
    assert_int_equal(file_write_all(out, "new", 3), 0);
    assert_int_equal(file_read(&text, &len, victim, 10), 0);
    assert_string_equal(text, "safe");
    free(text);
    assert_int_equal(file_read(&text, &len, out, 10), 0);
    assert_string_equal(text, "new");
    free(text);
}

/* Two writers of one path in one process: the first one's commit must not publish the second's half file. */
static void test_io__write_twice_at_once(void **state)
{
    struct file_out a, b;
    char *text;
    size_t len;
    const char *out = scratch(state, "out");
    assert_int_equal(file_create(&a, out), 0);
    assert_int_equal(file_put(&a, "first", 5), 0);
    assert_int_equal(file_create(&b, out), 0);
    assert_int_equal(file_put(&b, "second", 6), 0);
    assert_int_equal(file_commit(&a), ERR_IO);
    assert_msg("another writer");
    assert_false(file_exists(out));
    file_abandon(&b);
    assert_int_equal(file_write_all(out, "third", 5), 0);
    assert_int_equal(file_read(&text, &len, out, 10), 0);
    assert_string_equal(text, "third");
    free(text);
}

/* A full disk, by a limit on the size of files: the write fails, the old file stays, nothing is left behind. */
static void test_io__write_full(void **state)
{
    struct rlimit was, now;
    char *text, *big = calloc(1, 600000);
    size_t len;
    struct file_out f;
    const char *p = scratch(state, "out");
    scratch_put(p, "old", 3);
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &was), 0);
    for (size_t size = 5000; size <= 600000;
         size += 595000) { /* fails at the commit; fails at the put */
        now = was;
        now.rlim_cur = 4096;
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &now), 0);
        const int made = file_create(&f, p);
        const int rc_put = made == 0 ? file_put(&f, big, size) : -100;
        const int rc_commit = file_commit(&f);
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &was), 0);
        assert_int_equal(made, 0);
        assert_int_equal(rc_put, size > 300000 ? ERR_IO : 0);
        assert_int_equal(rc_commit, ERR_IO);
        if (rc_put == 0) assert_msg("/out: error: cannot write after 5000 bytes: File too large");
        file_abandon(&f);
        assert_int_equal(file_read(&text, &len, p, 10), 0);
        assert_string_equal(text, "old");
        free(text);
        assert_int_equal(scratch_count(state), 1);
    }
    free(big);
}

/* A file that is not what was written to it is not published. */
static void test_io__write_size_differs(void **state)
{
    struct file_out f;
    for (int more = 0; more < 2; more++) {
        assert_int_equal(file_create(&f, scratch(state, "out")), 0);
        assert_int_equal(file_put(&f, "abc", 3), 0);
        if (more) assert_int_equal(write(f.fd, "x", 1), 1);
        assert_int_equal(file_commit(&f), more ? ERR_IO : 0);
        if (more) assert_msg("cannot keep the size");
    }
    assert_int_equal(scratch_count(state), 1); /* the first one */
}

static void test_io__copy(void **state)
{
    char *text, *big = malloc(200000);
    size_t len;
    memset(big, 'q', 200000);
    scratch_put(scratch(state, "a"), big, 200000);
    assert_int_equal(file_copy(scratch(state, "a"), scratch(state, "b")), 0);
    assert_int_equal(file_read(&text, &len, scratch(state, "b"), 1 << 20), 0);
    assert_int_equal(len, 200000);
    assert_memory_equal(text, big, len);
    free(text);
    free(big);
    assert_int_equal(file_copy(scratch(state, "none"), scratch(state, "c")), ERR_INPUT);
    assert_int_equal(file_copy(scratch(state, "a"), scratch(state, "no/c")), ERR_IO);
    assert_int_equal(scratch_count(state), 2);
}

static void test_io__lock(void **state)
{
    int fd, again, status, ready[2], stop[2];
    char c;
    const char *dir = scratch_dir(state);
    assert_int_equal(dir_lock(&fd, scratch(state, "none")), ERR_IO);
    assert_int_equal(dir_lock(&fd, dir), 0);
    assert_int_equal(dir_lock(&again, dir), ERR_INPUT);
    assert_int_equal(again, -1);
    close(fd);
    assert_int_equal(pipe(ready), 0);
    assert_int_equal(pipe(stop), 0);
    const pid_t pid = fork();
    if (pid == 0) {
        close(stop[1]);
        if (dir_lock(&fd, dir) != 0) _exit(1);
        if (write(ready[1], "x", 1) != 1) _exit(2);
        _exit(read(stop[0], &c, 1) == 0 ? 0 : 3);
    }
    close(stop[0]);
    assert_int_equal(read(ready[0], &c, 1), 1);
    char want[64], host[128] = "";
    snprintf(want, sizeof want, "in use by process %ld on ", (long)pid);
    gethostname(host, sizeof host - 1);
    assert_int_equal(dir_lock(&fd, dir), ERR_INPUT);
    assert_msg(want);
    assert_msg(host);
    close(stop[1]);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    assert_int_equal(dir_lock(&fd, dir), 0); /* a dead holder holds nothing */
    close(fd);
    close(ready[0]);
    close(ready[1]);
}

static void test_io__lock_planted(void **state)
{
    int fd;
    const char *dir = scratch_dir(state);
    scratch_put(scratch(state, "victim"), "safe", 4);
    assert_int_equal(symlink("victim", scratch(state, ".lock")), 0);
    assert_int_equal(dir_lock(&fd, dir), ERR_IO);
    unlink(scratch(state, ".lock"));
    assert_int_equal(mkfifo(scratch(state, ".lock"), 0666), 0);
    assert_int_equal(dir_lock(&fd, dir), ERR_IO);
    assert_msg("not a regular file");
}

#define T(name) cmocka_unit_test_setup_teardown(name, scratch_make, scratch_remove)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(test_io__read),
        T(test_io__read_refuses),
        T(test_io__paths),
        T(test_io__dirs),
        T(test_io__dir_remove),
        T(test_io__write),
        T(test_io__write_abandon),
        T(test_io__write_refuses),
        T(test_io__write_planted_link),
        T(test_io__write_twice_at_once),
        T(test_io__write_full),
        T(test_io__write_size_differs),
        T(test_io__copy),
        T(test_io__lock),
        T(test_io__lock_planted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
