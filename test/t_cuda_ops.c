/* SPDX-License-Identifier: MIT
 * The CUDA backend's kernels on the emulated device, with the rows of the CPU's. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "cuda_emu/emu.h"
#include "op_rows.h"

#define OK(expr) assert_int_equal((expr), 0)

static struct backend be;

static int open_backend(void **state)
{
    (void)state;
    if (cuda_open(&be, 1) < 0) return -1;
    be.op = emu_count_ops(be.op);
    return 0;
}

static int close_backend(void **state)
{
    size_t now, most;
    int64_t alive;
    (void)state;
    backend_close(&be);
    emu_memory_use(&now, &most, &alive);
    return now || alive ? -1 : 0; /* something was not given back */
}

/* One row, with the threads in order, backwards and at random: the bits are the same. */
static void row_in(const struct backend *b, const struct op_row *row, enum dtype act)
{
    uint8_t digest[EMU_ORDERS][32];
    for (int seed = 0; seed < emu_orders(); seed++) {
        struct op_run r = { .be = b, .seed = 11, .act = act };
        emu_seed((uint64_t)seed);
        row->run(&r, row->d);
        op_run_check(&r, digest[seed]);
        op_run_release(&r);
        assert_memory_equal(digest[seed], digest[0], 32);
    }
}

static void test_cuda_ops__row(void **state)
{
    row_in(&be, *state, DT_F32);
    row_in(&be, *state, DT_BF16);
}

/* Attention through a library: the sequences and copies that attention_sdpa.cu makes of the segments. */
static void test_cuda_ops__cudnn(void **state)
{
    struct backend with;
    (void)state;
    OK(cuda_open(&with, 1));
    OK(cuda_use_cudnn(&with));
    for (int i = 0; i < op_rows_count; i++)
        if (strcmp(op_rows[i].op, "attention") == 0) row_in(&with, &op_rows[i], DT_BF16);
    backend_close(&with);
}

/* cuBLASLt takes matrices as they are */
static void test_cuda_ops__pack(void **state)
{
    struct op_run r = { .be = &be, .seed = 1 };
    int64_t bytes = -1;
    (void)state;
    struct tensor *b = op_run_act(&r, BOX_INPUT, 4, 4, 0, 1);
    OK(op_pack_bytes(&be, &bytes, b, true));
    assert_int_equal(bytes, 0);
    OK(op_pack(&be, &bytes, b, true));
    op_run_release(&r);
}

static void test_cuda_ops__every_op_ran(void **state)
{
    (void)state;
    for (int i = 0; emu_op_name(i); i++)
        if (emu_op_calls(i) == 0) fail_msg("no row runs the op %s", emu_op_name(i));
}

static bool was_launched(const char *name, size_t n)
{
    for (int i = 0; i < emu_kernels(); i++)
        if (strlen(emu_kernel(i)) == n && memcmp(emu_kernel(i), name, n) == 0) return true;
    return false;
}

/* Every kernel that a file defines; returns how many. */
static int kernels_of(const char *path)
{
    static char text[1 << 20];
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    text[fread(text, 1, sizeof text - 1, f)] = 0;
    fclose(f);
    int n = 0;
    for (const char *p = text; (p = strstr(p, "__global__ ")); n++) {
        static const char bounds[] = "__launch_bounds__";
        const char *between = strstr(p, bounds), *end = strchr(p, '('), *name;
        if (between && between < end) end = strchr(strchr(end, ')'), '(');
        assert_non_null(end);
        for (name = end; name[-1] == '_' || (name[-1] >= 'a' && name[-1] <= 'z') ||
                         (name[-1] >= '0' && name[-1] <= '9');)
            name--;
        if (!was_launched(name, (size_t)(end - name)))
            fail_msg("%s: no row launches %.*s", path, (int)(end - name), name);
        p = end;
    }
    return n;
}

static void test_cuda_ops__every_kernel_ran(void **state)
{
    DIR *d = opendir("cuda");
    const struct dirent *e;
    int n = 0;
    (void)state;
    assert_non_null(d);
    while ((e = readdir(d))) {
        char path[512];
        const char *dot = strrchr(e->d_name, '.');
        if (!dot || (strcmp(dot, ".cu") != 0 && strcmp(dot, ".cuh") != 0)) continue;
        snprintf(path, sizeof path, "cuda/%s", e->d_name);
        n += kernels_of(path);
    }
    closedir(d);
    assert_int_equal(n, emu_kernels());
}

int main(int argc, char **argv)
{
    const int n = op_rows_count;
    struct CMUnitTest *all = calloc((size_t)n + 4, sizeof *all);
    char(*names)[96] = calloc((size_t)n, sizeof *names);
    int k = 0;
    assert_true(all && names);
    for (int i = 0; i < n; i++) {
        /* arguments: the ops to run, without the checks that all ran */
        bool wanted = argc == 1;
        for (int a = 1; a < argc; a++)
            wanted = wanted || strcmp(argv[a], op_rows[i].op) == 0;
        if (wanted)
            all[k++] = (struct CMUnitTest){ .name = op_row_name(names[i], "cuda_ops", &op_rows[i]),
                                            .test_func = test_cuda_ops__row,
                                            .initial_state = (void *)(uintptr_t)&op_rows[i] };
    }
    if (argc == 1) {
        all[k++] = (struct CMUnitTest)cmocka_unit_test(test_cuda_ops__cudnn);
        all[k++] = (struct CMUnitTest)cmocka_unit_test(test_cuda_ops__pack);
        all[k++] = (struct CMUnitTest)cmocka_unit_test(test_cuda_ops__every_op_ran);
        all[k++] = (struct CMUnitTest)cmocka_unit_test(test_cuda_ops__every_kernel_ran);
    }
    const int rc = _cmocka_run_group_tests("cuda_ops", all, (size_t)k, open_backend, close_backend);
    free(all);
    free(names);
    return rc;
}
