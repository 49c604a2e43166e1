/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include "../src/ops/plan.h"

static int fail_alloc(struct ctx *cx, void **out, int64_t bytes)
{
    (void)cx;
    *out = NULL;
    if (bytes > 1000) return err_set(ERR_OOM, "no memory");
    *out = calloc(1, 1024);
    return *out ? 0 : err_set(ERR_OOM, "no memory");
}

static void fail_release(struct ctx *cx, void *p)
{
    (void)cx;
    free(p);
}

static void test_plan__grant(void **state)
{
    (void)state;
    struct backend be;
    struct plan p = { 0 };
    struct tensor a, b, c, empty;
    assert_int_equal(cpu_open(&be, 1), 0);
    assert_int_equal(plan_book(&p, PLAN_WEIGHTS, &a, DT_F32, 3, 5, 1, 1), 0);
    assert_int_equal(plan_book(&p, PLAN_WEIGHTS, &b, DT_I32, 7, 1, 1, 1), 0);
    assert_int_equal(plan_book(&p, PLAN_SCRATCH, &c, DT_F32, 1, 1 << 21, 1, 1), 0);
    assert_int_equal(plan_book(&p, PLAN_SCRATCH, &empty, DT_F32, 0, 9, 1, 1), 0);
    assert_int_equal(p.bytes[PLAN_WEIGHTS], 128);
    assert_int_equal(plan_total(&p), 128 + (8 << 20));
    assert_null(a.data);
    assert_int_equal(a.ld, 5);
    assert_int_equal(plan_grant(&p, &be), 0);
    assert_int_equal((uintptr_t)a.data % 64, 0);
    assert_ptr_equal((char *)a.data + 64, b.data);
    assert_int_equal((uintptr_t)c.data % 64, 0);
    assert_non_null(empty.data);
    const float *f = c.data;
    for (int64_t i = 0; i < 1 << 21; i++)
        assert_true(f[i] == 0);
    memset(a.data, 1, 60);
    memset(b.data, 1, 28);
    memset(c.data, 1, 8 << 20);
    plan_release(&p, &be);
    assert_int_equal(plan_total(&p), 0);
    plan_release(&p, &be);
    backend_close(&be);
}

static void test_plan__overflow(void **state)
{
    (void)state;
    struct plan p = { 0 };
    struct tensor t;
    assert_int_equal(plan_book(&p, PLAN_HEAD, &t, DT_F32, INT64_MAX, 2, 1, 1), ERR_OOM);
    assert_non_null(strstr(err_msg(), "head"));
    assert_int_equal(plan_book(&p, PLAN_HEAD, &t, DT_F32, INT64_MAX / 4, 1, 1, 1), ERR_OOM);
    assert_int_equal(plan_book(&p, PLAN_HEAD, &t, DT_F32, INT64_MAX / 8, 1, 1, 1), 0);
    assert_int_equal(plan_book(&p, PLAN_HEAD, &t, DT_F32, INT64_MAX / 8, 1, 1, 1), ERR_OOM);
    assert_int_equal(plan_book(&p, PLAN_BATCH, &t, DT_F32, INT64_MAX / 8, 1, 1, 1), ERR_OOM);
    assert_int_equal(p.n, 1);
    assert_int_equal(p.bytes[PLAN_BATCH], 0);
    struct backend be;
    assert_int_equal(cpu_open(&be, 1), 0);
    plan_release(&p, &be);
    backend_close(&be);
}

static void test_plan__out_of_memory(void **state)
{
    (void)state;
    const struct memops mem = { .alloc = fail_alloc, .release = fail_release };
    const struct backend be = { .name = "fail", .mem = &mem };
    struct plan p = { 0 };
    struct tensor a, b;
    assert_int_equal(plan_book(&p, PLAN_WEIGHTS, &a, DT_F32, 10, 1, 1, 1), 0);
    assert_int_equal(plan_book(&p, PLAN_ACTIVATIONS, &b, DT_F32, 1000, 1000, 1, 1), 0);
    assert_int_equal(plan_grant(&p, &be), ERR_OOM);
    assert_non_null(strstr(err_msg(), "3.8 MiB for activations"));
    assert_non_null(strstr(err_msg(), "weights 64 B"));
    assert_null(a.data);
    for (int i = 0; i < PLAN_CATS; i++)
        assert_null(p.base[i]);
    plan_release(&p, &be);
}

static void test_plan__print(void **state)
{
    (void)state;
    const struct memops mem = { .alloc = fail_alloc, .release = fail_release };
    const struct backend be = { .name = "fail", .mem = &mem };
    struct plan p = { 0 };
    struct tensor a;
    struct buf b = { 0 };
    assert_int_equal(plan_print(&p, &b), 0);
    assert_string_equal(b.data, "plan: total 0 B");
    buf_clear(&b);
    assert_int_equal(plan_book(&p, PLAN_GRADIENTS, &a, DT_F32, 1 << 20, 1 << 9, 1, 1), 0);
    assert_int_equal(plan_book(&p, PLAN_BATCH, &a, DT_I32, 1, 1, 1, 1), 0);
    assert_int_equal(plan_print(&p, &b), 0);
    assert_string_equal(b.data, "plan: gradients 2.0 GiB, batch 64 B, total 2.0 GiB");
    buf_release(&b);
    plan_release(&p, &be);
}

static void test_plan__bytes_human(void **state)
{
    (void)state;
    static const struct {
        int64_t bytes;
        const char *text;
    } row[] = {
        { 0, "0 B" },
        { 1023, "1023 B" },
        { 1024, "1.0 KiB" },
        { 1048575, "1.0 MiB" },
        { 1 << 20, "1.0 MiB" },
        { 2040109466, "1.9 GiB" },
        { INT64_MAX, "8.0 EiB" },
    };
    char out[32];
    for (size_t i = 0; i < COUNT_OF(row); i++)
        assert_string_equal(bytes_human(out, row[i].bytes), row[i].text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plan__grant),         cmocka_unit_test(test_plan__overflow),
        cmocka_unit_test(test_plan__out_of_memory), cmocka_unit_test(test_plan__print),
        cmocka_unit_test(test_plan__bytes_human),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
