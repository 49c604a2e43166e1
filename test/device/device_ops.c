/* SPDX-License-Identifier: MIT
 * device_ops [op ...]: the rows of the op tests on a real CUDA device, each twice with the same bits, attention through both kernels.
 * Without a device one skip, with the reason. `make test-cuda` runs it, by itself and under compute-sanitizer. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "../op_rows.h"

#define OK(expr) assert_int_equal((expr), 0)

static struct backend be, with_cudnn;

static void run_row(const struct backend *b, const struct op_row *row, enum dtype act)
{
    uint8_t digest[2][32];
    for (int k = 0; k < 2; k++) {
        struct op_run r = { .be = b, .seed = 11, .act = act };
        row->run(&r, row->d);
        op_run_check(&r, digest[k]);
        op_run_release(&r);
    }
    assert_memory_equal(digest[0], digest[1], 32);
}

static void test_device_ops__row(void **state)
{
    const struct op_row *row = *state;
    run_row(&be, row, DT_F32);
    run_row(&be, row, DT_BF16);
    if (with_cudnn.op && strcmp(row->op, "attention") == 0) run_row(&with_cudnn, row, DT_BF16);
}

static void test_device_ops__device(void **state)
{
    (void)state;
    printf("no device: %s\n", err_msg());
    skip();
}

int main(int argc, char **argv)
{
    const int n = op_rows_count;
    struct CMUnitTest *all = calloc((size_t)n + 1, sizeof *all);
    char(*names)[96] = calloc((size_t)n, sizeof *names);
    int k = 0;
    if (!all || !names) return 1;
    if (cuda_open(&be, 1) < 0) {
        all[k++] = (struct CMUnitTest)cmocka_unit_test(test_device_ops__device);
    } else {
        fprintf(stderr, "%s\n", be.about);
        if (cuda_open(&with_cudnn, 1) < 0 || cuda_use_cudnn(&with_cudnn) < 0) {
            fprintf(stderr, "without cuDNN: %s\n", err_msg());
            backend_close(&with_cudnn);
        }
    }
    for (int i = 0; be.op && i < n; i++) {
        bool wanted = argc == 1;
        for (int a = 1; a < argc; a++)
            wanted = wanted || strcmp(argv[a], op_rows[i].op) == 0;
        if (wanted)
            all[k++] =
                (struct CMUnitTest){ .name = op_row_name(names[i], "device_ops", &op_rows[i]),
                                     .test_func = test_device_ops__row,
                                     .initial_state = (void *)(uintptr_t)&op_rows[i] };
    }
    const int rc = _cmocka_run_group_tests("device_ops", all, (size_t)k, NULL, NULL);
    backend_close(&with_cudnn);
    backend_close(&be);
    free(all);
    free(names);
    return rc;
}
