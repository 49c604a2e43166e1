/* SPDX-License-Identifier: MIT */
#include "../src/base/mem.h"
#include "../src/base/rng.h"
#include "../src/base/sha256.h"
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

/* errors -------------------------------------------------------------------------------------- */

static void test_base__err_text(void **state)
{
    (void)state;
    assert_int_equal(err_set(ERR_IO, "cannot %s %d", "read", 7), ERR_IO);
    assert_string_equal(err_msg(), "cannot read 7");
    assert_int_equal(err_at(ERR_INPUT, "run.json", 14, 7, "lambda: %g is outside [0, 1]", 1.5),
                     ERR_INPUT);
    assert_string_equal(err_msg(), "run.json:14:7: error: lambda: 1.5 is outside [0, 1]");
    err_at(ERR_INPUT, "a", 3, 0, "x");
    assert_string_equal(err_msg(), "a:3: error: x");
    err_at(ERR_INPUT, "a", 0, 5, "x");
    assert_string_equal(err_msg(), "a: error: x");
    assert_int_equal(err_note(ERR_OOM, "stage %d", 2), ERR_OOM);
    assert_string_equal(err_msg(), "stage 2: a: error: x");
    err_set(ERR_IO, "<%s>", err_msg()); /* its own text as an argument */
    assert_string_equal(err_msg(), "<stage 2: a: error: x>");
    err_at(ERR_IO, "f", 1, 2, "(%s)", err_msg());
    assert_string_equal(err_msg(), "f:1:2: error: (<stage 2: a: error: x>)");
}

static void test_base__err_long_text(void **state)
{
    (void)state;
    char *big = malloc(20001);
    memset(big, 'x', 20000);
    big[20000] = 0;
    err_set(ERR_IO, "%s", big);
    assert_in_range(strlen(err_msg()), 4000, 8191);
    err_note(ERR_IO, "%s", big);
    assert_in_range(strlen(err_msg()), 4000, 8191);
    err_at(ERR_IO, big, 1, 1, "%s", big);
    assert_in_range(strlen(err_msg()), 4000, 8191);
    free(big);
}

static void test_base__exit_codes(void **state)
{
    (void)state;
    static const int want[][2] = {
        { 0, 0 },
        { 5, 0 },
        { ERR_INPUT, 2 },
        { ERR_OOM, 1 },
        { ERR_IO, 1 },
        { ERR_DEVICE, 1 },
        { ERR_STOPPED, 75 },
        { ERR_COMM, 76 },
        { ERR_DIVERGED, 80 },
        { ERR_REPLICA, 81 },
        { -9, 82 },
    };
    for (size_t i = 0; i < COUNT_OF(want); i++)
        assert_int_equal(err_exit_code(want[i][0]), want[i][1]);
}

static void test_base__err_quote(void **state)
{
    (void)state;
    char out[300], small[16], text[100];
    assert_string_equal(err_quote(out, sizeof out, "a\n\xc3\xa9\x7f", 5), "a\\x0a\\xc3\\xa9\\x7f");
    assert_string_equal(err_quote(out, sizeof out, "", 0), "");
    memset(text, 'y', sizeof text);
    err_quote(out, sizeof out, text, 60);
    assert_int_equal(strlen(out), 60);
    err_quote(out, sizeof out, text, 61);
    assert_int_equal(strlen(out), 63);
    assert_string_equal(out + 60, "...");
    memset(text, 1, sizeof text);
    err_quote(out, sizeof out, text, 100);
    assert_int_equal(strlen(out), 60 * 4 + 3);
    assert_string_equal(err_quote(small, sizeof small, text, 100), "\\x01\\x01...");
}

static void test_base__bug_aborts(void **state)
{
    (void)state;
    int status;
    const pid_t pid = fork();
    if (pid == 0) {
        if (!freopen("/dev/null", "w", stderr)) _exit(1);
        signal(SIGABRT, SIG_DFL);
        BUG_IF(1 + 1 == 2);
        _exit(0);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
}

static void test_base__diag(void **state)
{
    (void)state;
    static struct diag d;
    assert_int_equal(diag_result(&d, ERR_INPUT), 0);
    diag_add(&d, "run.json", 2, 3, "sft.%s: unknown key", "foo");
    diag_add(&d, NULL, 0, 0, "warning of no place");
    assert_int_equal(diag_result(&d, ERR_INPUT), ERR_INPUT);
    assert_string_equal(err_msg(),
                        "run.json:2:3: error: sft.foo: unknown key\nwarning of no place");
    for (int i = 0; i < 30; i++)
        diag_add(&d, "f", i + 1, 0, "two\nlines");
    diag_result(&d, ERR_INPUT);
    assert_int_equal(d.count, 32);
    assert_int_equal(d.shown, DIAG_MAX);
    assert_non_null(strstr(err_msg(), "\nerror: 12 more problems like these"));
}

static void test_base__diag_long_paths(void **state)
{
    (void)state;
    static struct diag d;
    char path[4001];
    memset(path, 'p', 4000);
    path[4000] = 0;
    for (int i = 0; i < 5; i++)
        diag_add(&d, path, 1, 1, "x %4000s", "y");
    assert_int_equal(d.shown, 1);
    assert_true(d.len < sizeof d.text);
    assert_int_equal(strlen(d.text), d.len);
    assert_int_equal(diag_result(&d, ERR_INPUT), ERR_INPUT);
    assert_non_null(strstr(err_msg(), "4 more"));
}

/* arithmetic and memory ----------------------------------------------------------------------- */

static void test_base__checked_arithmetic(void **state)
{
    (void)state;
    int64_t v;
    assert_true(mul_ok(INT64_MAX, 1, &v) && v == INT64_MAX);
    assert_false(mul_ok(INT64_MAX, 2, &v));
    assert_false(mul_ok((int64_t)1 << 32, (int64_t)1 << 31, &v));
    assert_true(mul_ok((int64_t)1 << 31, (int64_t)1 << 31, &v));
    assert_true(add_ok(INT64_MAX - 1, 1, &v) && v == INT64_MAX);
    assert_false(add_ok(INT64_MAX, 1, &v));
    assert_false(add_ok(INT64_MIN, -1, &v));
    assert_int_equal(round_up(0, 64), 0);
    assert_int_equal(round_up(65, 64), 128);
    assert_int_equal(div_up(65, 64), 2);
}

static void test_base__mem_calloc(void **state)
{
    (void)state;
    double *p;
    assert_int_equal(MEM_NEW(&p, 10), 0);
    for (int i = 0; i < 10; i++)
        assert_true(p[i] == 0);
    free(p);
    assert_int_equal(MEM_NEW(&p, 0), 0);
    assert_non_null(p);
    free(p);
    assert_int_equal(MEM_NEW(&p, -1), ERR_OOM);
    assert_null(p);
    assert_int_equal(MEM_NEW(&p, INT64_MAX / 4), ERR_OOM);
    assert_null(p);
}

static void test_base__mem_grow(void **state)
{
    (void)state;
    int32_t *p = NULL;
    int64_t cap = 0;
    for (int32_t i = 0; i < 1000; i++) {
        assert_int_equal(MEM_GROW(&p, &cap, i + 1), 0);
        assert_true(cap > i);
        p[i] = i;
    }
    for (int32_t i = 0; i < 1000; i++)
        assert_int_equal(p[i], i);
    const int64_t before = cap;
    assert_int_equal(MEM_GROW(&p, &cap, 5), 0);
    assert_int_equal(cap, before);
    assert_int_equal(MEM_GROW(&p, &cap, INT64_MAX / 2), ERR_OOM);
    assert_int_equal(cap, before);
    assert_int_equal(p[999], 999);
    free(p);
}

static void test_base__buf(void **state)
{
    (void)state;
    struct buf b = { 0 };
    char *s;
    buf_clear(&b);
    assert_int_equal(buf_add(&b, NULL, 0), 0);
    assert_string_equal(b.data, "");
    for (int i = 0; i < 500; i++)
        assert_int_equal(buf_addf(&b, "%d,", i), 0);
    assert_int_equal(b.len, 10 * 2 + 90 * 3 + 400 * 4);
    assert_int_equal(strlen(b.data), b.len);
    assert_memory_equal(b.data + b.len - 8, "498,499,", 8);
    buf_clear(&b);
    assert_int_equal(buf_add(&b, "a\0b", 3), 0);
    assert_int_equal(buf_adds(&b, "c"), 0);
    assert_int_equal(b.len, 4);
    assert_memory_equal(b.data, "a\0bc", 5);
    buf_release(&b);
    assert_null(b.data);
    assert_int_equal(mem_asprintf(&s, "%s-%05d", "x", 42), 0);
    assert_string_equal(s, "x-00042");
    free(s);
    assert_int_equal(mem_strndup(&s, "hello", 3), 0);
    assert_string_equal(s, "hel");
    free(s);
    assert_int_equal(mem_strdup(&s, ""), 0);
    assert_string_equal(s, "");
    free(s);
}

/* random numbers ------------------------------------------------------------------------------ */

static void test_base__rng_known_answers(void **state)
{
    (void)state;
    /* Random123's kat_vectors, philox4x32 10: counter, key -> first two words */
    assert_true(rng_u64(0, 0, 0) == 0xe169c58d6627e8d5u);
    assert_true(rng_u64(UINT64_MAX, UINT64_MAX, UINT64_MAX) == 0x41c83b0e408f276du);
    assert_true(rng_u64(0x299f31d0a4093822u, 0x0370734413198a2eu, 0x85a308d3243f6a88u) ==
                0x94fdccebd16cfe09u);
}

static void test_base__rng_moments(void **state)
{
    (void)state;
    enum { N = 200000 };
    double su = 0, suu = 0, sn = 0, snn = 0, snnnn = 0;
    for (int i = 0; i < N; i++) {
        const double u = rng_uniform(42, rng_stream_of(RNG_TEST, 1), (uint64_t)i);
        const double z = rng_normal(42, rng_stream_of(RNG_TEST, 2), (uint64_t)i);
        assert_true(u >= 0 && u < 1 && isfinite(z));
        su += u;
        suu += u * u;
        sn += z;
        snn += z * z;
        snnnn += z * z * z * z;
    }
    /* 5 standard errors each */
    assert_true(fabs(su / N - 0.5) < 5 * sqrt(1.0 / 12 / N));
    assert_true(fabs(suu / N - 1.0 / 3) < 5 * sqrt(4.0 / 45 / N));
    assert_true(fabs(sn / N) < 5 * sqrt(1.0 / N));
    assert_true(fabs(snn / N - 1) < 5 * sqrt(2.0 / N));
    assert_true(fabs(snnnn / N - 3) < 5 * sqrt(96.0 / N));
}

static void test_base__rng_permutation(void **state)
{
    (void)state;
    enum { N = 1000 };
    int64_t a[N], b[N];
    bool seen[N] = { false };
    rng_permutation(a, N, 7, rng_stream_of(RNG_ORDER, 0));
    rng_permutation(b, N, 7, rng_stream_of(RNG_ORDER, 0));
    assert_memory_equal(a, b, sizeof a);
    for (int i = 0; i < N; i++) {
        assert_in_range(a[i], 0, N - 1);
        assert_false(seen[a[i]]);
        seen[a[i]] = true;
    }
    rng_permutation(b, N, 7, rng_stream_of(RNG_ORDER, 1));
    assert_memory_not_equal(a, b, sizeof a);
    rng_permutation(b, N, 8, rng_stream_of(RNG_ORDER, 0));
    assert_memory_not_equal(a, b, sizeof a);
    /* all 6 orders of 3 are equally likely: chi-square with 5 degrees of freedom, p = 1e-6 */
    int count[27] = { 0 };
    for (uint64_t s = 0; s < 6000; s++) {
        int64_t p[3];
        rng_permutation(p, 3, s, rng_stream_of(RNG_TEST, 3));
        count[p[0] * 9 + p[1] * 3 + p[2]]++;
    }
    double chi = 0;
    int orders = 0;
    for (int i = 0; i < 27; i++)
        if (count[i]) {
            orders++;
            chi += (count[i] - 1000.0) * (count[i] - 1000.0) / 1000;
        }
    assert_int_equal(orders, 6);
    assert_true(chi < 35.9);
    rng_permutation(a, 0, 1, 1);
    rng_permutation(a, 1, 1, 1);
    assert_int_equal(a[0], 0);
}

/* SHA-256 ------------------------------------------------------------------------------------- */

static void check_sha(const char *text, size_t len, const char *want)
{
    char hex[65];
    for (size_t step = 1; step <= len + 1; step = step * 3 + 1) { /* any pieces, the same digest */
        struct sha256 s;
        for (int portable = 0; portable < 2; portable++) {
            sha256_init(&s);
            if (portable) s.instructions = false;
            for (size_t at = 0; at < len; at += step)
                sha256_add(&s, text + at, MIN(step, len - at));
            sha256_hex(&s, hex);
            assert_string_equal(hex, want);
        }
    }
}

/* The processor's instructions against the portable code, over every length up to some blocks and cut at every place. */
static void test_base__sha256_instructions(void **state)
{
    uint8_t text[300];
    struct sha256 fast, plain;
    char a[65], b[65];
    (void)state;
    sha256_init(&fast);
    if (!fast.instructions) {
        print_message("this processor has no SHA-256 instructions\n");
        skip();
    }
    for (size_t i = 0; i < sizeof text; i++)
        text[i] = (uint8_t)rng_u64(5, rng_stream_of(RNG_TEST, 0), i);
    for (size_t len = 0; len <= sizeof text; len++) {
        const size_t cut = rng_u64(6, rng_stream_of(RNG_TEST, 1), len) % (len + 1);
        sha256_init(&fast);
        sha256_init(&plain);
        plain.instructions = false;
        sha256_add(&fast, text, cut);
        sha256_add(&fast, text + cut, len - cut);
        sha256_add(&plain, text, len);
        sha256_hex(&fast, a);
        sha256_hex(&plain, b);
        assert_string_equal(a, b);
    }
}

static void test_base__sha256(void **state)
{
    (void)state;
    check_sha("", 0, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    check_sha("abc", 3, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    check_sha("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", 56,
              "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    char *a = malloc(1000000);
    memset(a, 'a', 1000000);
    check_sha(a, 1000000, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    check_sha(a, 55, "9f4390f8d30c2dd92ec9f095b65e2b9ae9b0a925a5258e241c9f1e910f734318");
    check_sha(a, 64, "ffe054fe7ae0cb6dc65c3af9b61d5209f439851db43d0ba5997337df154668eb");
    free(a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_base__err_text),
        cmocka_unit_test(test_base__err_long_text),
        cmocka_unit_test(test_base__exit_codes),
        cmocka_unit_test(test_base__err_quote),
        cmocka_unit_test(test_base__bug_aborts),
        cmocka_unit_test(test_base__diag),
        cmocka_unit_test(test_base__diag_long_paths),
        cmocka_unit_test(test_base__checked_arithmetic),
        cmocka_unit_test(test_base__mem_calloc),
        cmocka_unit_test(test_base__mem_grow),
        cmocka_unit_test(test_base__buf),
        cmocka_unit_test(test_base__rng_known_answers),
        cmocka_unit_test(test_base__rng_moments),
        cmocka_unit_test(test_base__rng_permutation),
        cmocka_unit_test(test_base__sha256),
        cmocka_unit_test(test_base__sha256_instructions),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
