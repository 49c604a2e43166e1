/* SPDX-License-Identifier: MIT
 * Equal and unequal weights. Alone it runs as one rank; `mpirun -np N t_replica` tests N. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <string.h>
#include "../src/train/replica.h"
#include "model_fixture.h"
#include "scratch.h"

static struct dist ranks;

static void test_replica__a_flipped_bit_is_found(void **state)
{
    for (int k = 0; k < 2; k++) {
        struct fix f;
        fix_open_as(&f, scratch_dir(state), FIX_QWEN2_TIED, k ? DT_BF16 : DT_F32, false, false);
        assert_int_equal(replica_check(&ranks, &f.m), 0);
        const int32_t last = ranks.size - 1, i = f.m.n_params - 2;
        if (ranks.rank == last) /* the lowest bit of a number */
            *((uint8_t *)f.m.params[i].w.data + dtype_size(f.m.dtype) * 5) ^= 1;
        const int rc = replica_check(&ranks, &f.m);
        if (ranks.size == 1) {
            assert_int_equal(rc, 0); /* there is no other */
        } else {
            char want[256];
            snprintf(want, sizeof want, "tensor %s", f.m.params[i].slice[0].name);
            assert_int_equal(rc, ERR_REPLICA);
            assert_non_null(strstr(err_msg(), want));
            snprintf(want, sizeof want, "of rank %d is not rank 0's", last);
            assert_non_null(strstr(err_msg(), want));
            assert_true(ranks.agreed);
            ranks.agreed = false;
        }
        fix_close(&f);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_replica__a_flipped_bit_is_found, scratch_make,
                                        scratch_remove),
    };
    if (dist_open(&ranks) < 0) {
        err_print(err_msg());
        return 1;
    }
    const int failed = cmocka_run_group_tests_name("replica", tests, NULL, NULL);
    if (failed && ranks.size > 1) dist_abort(&ranks, 1);
    dist_close(&ranks);
    return failed;
}
