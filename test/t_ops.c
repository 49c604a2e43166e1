/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include "isa.h"
#include "op_rows.h"

#define OK(expr) assert_int_equal((expr), 0)

/* Under the address sanitizer, which is slow, addresses are what is looked at, not bits. */
#if defined(__SANITIZE_ADDRESS__)
enum { STEP = 2, TWICE = 1 };
#else
enum { STEP = 1, TWICE = 2 };
#endif

/* One row in one dtype and on one instruction set, by 1, 2 and twice by 3 threads; an emulated one, which is slow, by 1
 * and in the dtype that it is there for. */
static void row_on(const struct op_row *row, enum dtype act, const char *isa)
{
    uint8_t first[32];
    int32_t most = 3;
    for (int32_t threads = 1; threads <= most; threads += STEP) {
        struct backend be;
        uint8_t digest[2][32];
        OK(cpu_open(&be, threads));
        assert_int_equal(be.threads, threads);
        bool can = test_isa(be.cx, isa);
        if (can && test_isa_emulated(be.cx)) {
            most = 1;
            can = (act == DT_BF16) == (strstr(isa, "bf16") != NULL);
        }
        for (int k = 0; k < (threads == 3 ? TWICE : 1) && can; k++) {
            struct op_run r = { .be = &be, .seed = 11, .act = act };
            row->run(&r, row->d);
            op_run_check(&r, digest[k]);
            op_run_release(&r);
        }
        backend_close(&be);
        if (!can) return;
        if (threads == 3 && TWICE == 2) assert_memory_equal(digest[0], digest[1], 32);
        if (threads == 1) memcpy(first, digest[0], 32);
        if (row->any_threads) assert_memory_equal(first, digest[0], 32);
    }
}

static void test_ops__row(void **state)
{
    for (int i = 0; i < ISAS; i++) {
        row_on(*state, DT_F32, isa_names[i]);
        row_on(*state, DT_BF16, isa_names[i]);
    }
}

int main(void)
{
    struct CMUnitTest *all = calloc((size_t)op_rows_count, sizeof *all);
    char(*names)[96] = calloc((size_t)op_rows_count, sizeof *names);
    assert_true(all && names);
    for (int i = 0; i < op_rows_count; i++)
        all[i] = (struct CMUnitTest){ .name = op_row_name(names[i], "ops", &op_rows[i]),
                                      .test_func = test_ops__row,
                                      .initial_state = (void *)(uintptr_t)&op_rows[i] };
    const int rc = _cmocka_run_group_tests("ops", all, (size_t)op_rows_count, NULL, NULL);
    free(all);
    free(names);
    return rc;
}
