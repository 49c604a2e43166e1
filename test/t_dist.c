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

static void test_dist__several_ranks_are_refused(void **state)
{
    struct dist d;
    (void)state;
    assert_int_equal(OPEN("OMPI_COMM_WORLD_SIZE=4", "OMPI_COMM_WORLD_RANK=2"), ERR_INPUT);
    assert_non_null(strstr(err_msg(), "mpirun (Open MPI) started 4 ranks"));
    assert_int_equal(OPEN("PMI_SIZE=2", "PMI_RANK=0"), ERR_INPUT);
    assert_int_equal(OPEN("MV2_COMM_WORLD_SIZE=2"), ERR_INPUT);
    assert_int_equal(OPEN("SLURM_NTASKS=4", "SLURM_PROCID=3", "SLURM_STEP_ID=0"), ERR_INPUT);
    assert_non_null(strstr(err_msg(), "srun started 4 ranks"));
    assert_int_equal(
        OPEN("SLURM_NTASKS=8", "SLURM_STEP_NUM_TASKS=4", "SLURM_PROCID=3", "SLURM_STEP_ID=12"),
        ERR_INPUT);
    assert_non_null(strstr(err_msg(), "4 ranks"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dist__one_rank),
        cmocka_unit_test(test_dist__several_ranks_are_refused),
    };
    return cmocka_run_group_tests_name("dist", tests, NULL, NULL);
}
