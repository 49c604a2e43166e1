/* SPDX-License-Identifier: MIT */
#include "../src/dist/dist.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static const char *const variables[] = {
    "OMPI_COMM_WORLD_SIZE",
    "OMPI_COMM_WORLD_RANK",
    "PMI_SIZE",
    "PMI_RANK",
    "MV2_COMM_WORLD_SIZE",
    "SLURM_NTASKS",
    "SLURM_STEP_NUM_TASKS",
    "SLURM_STEP_ID",
    "SLURM_PROCID",
};

/* The launch described by "NAME=value" words. */
static int open_with(struct dist *d, const char *const *env)
{
    for (size_t i = 0; i < COUNT_OF(variables); i++)
        unsetenv(variables[i]);
    for (; *env; env++) {
        char name[64];
        const char *eq = strchr(*env, '=');
        memcpy(name, *env, (size_t)(eq - *env));
        name[eq - *env] = 0;
        setenv(name, eq + 1, 1);
    }
    return dist_open(d);
}

#define OPEN(...) open_with(&d, (const char *const[]){ __VA_ARGS__, NULL })

static void test_dist__one_rank(void **state)
{
    struct dist d;
    (void)state;
    assert_int_equal(open_with(&d, (const char *const[]){ NULL }), 0);
    assert_true(d.rank == 0 && d.size == 1);
    assert_int_equal(OPEN("OMPI_COMM_WORLD_SIZE=1", "OMPI_COMM_WORLD_RANK=0"), 0);
    assert_int_equal(OPEN("PMI_SIZE=1"), 0);
    /* a batch script that asked for four tasks and launched none of them */
    assert_int_equal(OPEN("SLURM_NTASKS=4", "SLURM_PROCID=0"), 0);
    assert_int_equal(OPEN("SLURM_NTASKS=4", "SLURM_PROCID=0", "SLURM_STEP_ID=4294967291"), 0);
    /* a step of one task in it */
    assert_int_equal(
        OPEN("SLURM_NTASKS=4", "SLURM_STEP_NUM_TASKS=1", "SLURM_PROCID=0", "SLURM_STEP_ID=0"), 0);
    assert_int_equal(OPEN("PMI_SIZE=many"), 0);
    assert_int_equal(OPEN("PMI_SIZE="), 0);
    dist_close(&d);
}

/* Everything takes NULL for one rank, and talks to nobody. */
static void test_dist__nobody_else(void **state)
{
    int64_t x[1] = { 5 };
    double y[2] = { 1.5, -2 };
    char all[4] = "";
    (void)state;
    assert_true(dist_rank(NULL) == 0 && dist_size(NULL) == 1);
    assert_int_equal(dist_agree(NULL, 0), 0);
    assert_int_equal(dist_agree(NULL, 3), 0);
    assert_int_equal(dist_agree(NULL, err_set(ERR_IO, "no")), ERR_IO);
    assert_string_equal(err_msg(), "no");
    assert_int_equal(dist_vote(NULL, 0, x, 1), 0);
    assert_int_equal(dist_sum(NULL, y, 2), 0);
    assert_int_equal(dist_bcast(NULL, y, sizeof y), 0);
    assert_int_equal(dist_gather(NULL, "abc", all, 4), 0);
    assert_string_equal(all, "abc");
    assert_true(x[0] == 5 && y[0] == 1.5 && y[1] == -2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dist__one_rank),
        cmocka_unit_test(test_dist__nobody_else),
    };
    return cmocka_run_group_tests_name("dist", tests, NULL, NULL);
}
