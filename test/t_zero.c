/* SPDX-License-Identifier: MIT
 * The shard map, reduction, norm, gathering, fetching. Alone it runs as one rank; `mpirun -np N t_zero` tests N. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "../src/base/mem.h"
#include "../src/dist/zero.h"

enum { GROUPS = 5 };
/* odd sizes, one above a bucket's, one below a part's; in the order of the flat array */
static const int64_t sizes[GROUPS] = { (1 << 22) + 12345, 2048, 96, 4096 + 32, 64 };
static struct dist ranks;

static int64_t group_begin(int g)
{
    int64_t at = 0;
    for (int i = 0; i < g; i++)
        at += sizes[i];
    return at;
}

static void open_zero(struct zero *z, struct dist *d, const struct backend *be)
{
    assert_int_equal(zero_init(z, d, be, group_begin(GROUPS)), 0);
    for (int g = GROUPS - 1; g >= 0; g--)
        assert_int_equal(zero_add_group(z, group_begin(g), group_begin(g + 1)), 0);
    assert_int_equal(zero_split(z), 0);
}

/* Every element has one owner, shards differ by less than a tenth where there is enough, parts begin on multiples of 1,024. */
static void test_zero__map(void **state)
{
    (void)state;
    for (int32_t size = 1; size <= 9; size++) {
        int64_t covered = 0, shard[9] = { 0 };
        for (int32_t rank = 0; rank < size; rank++) {
            struct dist d = { .rank = rank, .size = size };
            struct zero z;
            int64_t at = 0;
            open_zero(&z, &d, NULL);
            for (int32_t b = 0; b < z.n_buckets; b++) {
                int64_t next = z.bucket[b].begin;
                assert_int_equal(next, b ? z.bucket[b - 1].end : 0);
                assert_true(z.bucket[b].end - next <= 1 << 22);
                for (int32_t k = 0; k < size; k++) { /* in the order of places, from rank b on */
                    const struct flat_part p = zero_part(&z, b, (b + k) % size);
                    assert_int_equal(p.begin, next);
                    assert_true(p.end == p.begin || (p.begin - z.bucket[b].begin) % 1024 == 0);
                    next = p.end;
                    if (size == 1) assert_int_equal(z.part[b].at, p.begin);
                }
                assert_int_equal(next, z.bucket[b].end);
                assert_int_equal(z.part[b].at, at);
                at += z.part[b].end - z.part[b].begin;
            }
            assert_int_equal(at, z.n_shard);
            shard[rank] = z.n_shard;
            covered += z.n_shard;
            zero_release(&z);
        }
        assert_int_equal(covered, group_begin(GROUPS));
        for (int32_t r = 0; r < size; r++)
            assert_true(llabs(shard[r] * size - covered) < covered / 10);
    }
}

static float value(int32_t rank, int32_t round, int64_t i)
{
    return (float)((rank + 1) * (i % 97) + round * 7); /* sums are exact */
}

static bool is_active(int32_t rank, int32_t round, int32_t size)
{
    return size == 1 || (rank + round) % 2 == 0;
}

struct rig {
    struct backend be;
    struct plan plan;
    struct zero z;
    struct tensor grads;
    bool *active;
};

static void rig_open(struct rig *r, bool rounds, bool windows)
{
    memset(r, 0, sizeof *r);
    assert_int_equal(cpu_open(&r->be, 1), 0);
    open_zero(&r->z, &ranks, &r->be);
    /* as windows: one group at a time, of the largest one's size */
    const int64_t n = windows ? 2 * sizes[0] : r->z.n_flat;
    assert_int_equal(plan_book(&r->plan, PLAN_GRADIENTS, &r->grads, DT_F32, n, 1, 1, 1), 0);
    assert_int_equal(zero_plan(&r->z, &r->plan, &r->grads, rounds, windows), 0);
    assert_int_equal(plan_grant(&r->plan, &r->be), 0);
    assert_int_equal(zero_ready(&r->z), 0);
    assert_int_equal(MEM_NEW(&r->active, ranks.size), 0);
}

static void rig_close(struct rig *r)
{
    free(r->active);
    plan_release(&r->plan, &r->be);
    zero_release(&r->z);
    backend_close(&r->be);
}

/* A step of `n_rounds` rounds; this rank stops talking of its own after `stop` groups of each round. */
static void reduce(struct rig *r, int32_t n_rounds, bool windows, int stop)
{
    assert_int_equal(zero_begin(&r->z), 0);
    for (int32_t round = 0; round < n_rounds; round++) {
        for (int32_t k = 0; k < ranks.size; k++)
            r->active[k] = is_active(k, round, ranks.size);
        zero_round(&r->z, r->active);
        for (int g = GROUPS - 1; g >= GROUPS - stop && r->active[ranks.rank]; g--) {
            const int64_t begin = group_begin(g);
            float *to = (float *)r->grads.data + (windows ? g % 2 * sizes[0] : begin);
            for (int64_t i = 0; i < sizes[g]; i++)
                to[i] = value(ranks.rank, round, begin + i);
            assert_int_equal(zero_reduce(&r->z, begin, to), 0);
        }
        assert_int_equal(zero_finish(&r->z), 0);
    }
}

static double expected(int32_t n_rounds, int64_t i)
{
    double sum = 0;
    for (int32_t round = 0; round < n_rounds; round++)
        for (int32_t k = 0; k < ranks.size; k++)
            if (is_active(k, round, ranks.size)) sum += (double)value(k, round, i);
    return sum;
}

static void check_sum(const struct rig *r, int32_t n_rounds)
{
    for (int32_t b = 0; b < r->z.n_buckets; b++) {
        const struct tensor g = zero_gradient(&r->z, b);
        const struct flat_part *p = &r->z.part[b];
        assert_int_equal(tensor_count(&g), p->end - p->begin);
        for (int64_t i = p->begin; i < p->end; i++)
            assert_true((double)((float *)g.data)[i - p->begin] == expected(n_rounds, i));
    }
}

static void check_norm(struct rig *r, int32_t n_rounds)
{
    double ss = 0, norm, fixed;
    for (int64_t i = 0; i < r->z.n_flat; i++)
        ss += expected(n_rounds, i) * expected(n_rounds, i);
    assert_int_equal(zero_norm(&r->z, false, &norm), 0);
    assert_int_equal(zero_norm(&r->z, true, &fixed), 0);
    assert_true(fabs(norm - sqrt(ss)) < 1e-9 * norm);
    assert_true(fabs(fixed - sqrt(ss)) < 1e-9 * norm);
}

static void test_zero__reduce_once_a_step(void **state)
{
    struct rig r;
    (void)state;
    rig_open(&r, false, false);
    reduce(&r, 1, false, GROUPS);
    check_sum(&r, 1);
    check_norm(&r, 1);
    rig_close(&r);
}

static void test_zero__reduce_by_rounds(void **state)
{
    (void)state;
    for (int windows = 0; windows < 2; windows++) {
        struct rig r;
        rig_open(&r, true, windows);
        for (int again = 0; again < 2; again++) {
            reduce(&r, 3, windows, GROUPS);
            check_sum(&r, 3);
        }
        check_norm(&r, 3);
        rig_close(&r);
    }
}

/* A rank that fails in the middle of its backward leaves no other one waiting, and the next step is whole again. */
static void test_zero__a_rank_that_fails(void **state)
{
    (void)state;
    for (int windows = 0; windows < 2; windows++) {
        struct rig r;
        rig_open(&r, true, windows);
        reduce(&r, 2, windows, ranks.rank == ranks.size - 1 ? 2 : GROUPS);
        reduce(&r, 2, windows, GROUPS);
        check_sum(&r, 2);
        rig_close(&r);
    }
}

/* A state in bfloat16 goes in and comes out as floats. */
static void test_zero__bf16_state(void **state)
{
    struct rig r;
    float *flat, *got;
    uint16_t *part;
    (void)state;
    rig_open(&r, false, false);
    const int64_t n = r.z.n_flat;
    assert_int_equal(MEM_NEW(&flat, n), 0);
    assert_int_equal(MEM_NEW(&got, n), 0);
    assert_int_equal(MEM_NEW(&part, r.z.n_shard), 0);
    const struct tensor shard = tensor_view(part, DT_BF16, r.z.n_shard, 1, 1, 1);
    r.z.state[ZERO_MOMENT2] = &shard;
    for (int64_t i = 0; i < n; i++)
        flat[i] = (float)(i % 251 - 125) / 64; /* 8 bits hold it */
    for (int64_t at = 0; at < n; at += 999999)
        assert_int_equal(
            zero_store(&r.z, ZERO_MOMENT2, at, MIN((int64_t)999999, n - at), flat + at), 0);
    for (int32_t b = 0; b < r.z.n_buckets; b++) {
        const struct flat_part *p = &r.z.part[b];
        const int64_t k = p->end - p->begin;
        if (k == 0) continue;
        assert_int_equal(zero_read(&r.z, ZERO_MOMENT2, p->begin, k, got), 0);
        assert_memory_equal(got, flat + p->begin, (size_t)k * sizeof *got);
    }
    free(flat);
    free(got);
    free(part);
    rig_close(&r);
}

static void test_zero__gather_and_fetch(void **state)
{
    struct rig r;
    float *flat, *part;
    (void)state;
    rig_open(&r, false, false);
    assert_int_equal(MEM_NEW(&flat, r.z.n_flat), 0);
    assert_int_equal(MEM_NEW(&part, r.z.n_shard), 0);
    const struct tensor shard = tensor_view(part, DT_F32, r.z.n_shard, 1, 1, 1);
    r.z.state[ZERO_MOMENT1] = &shard;
    for (int32_t b = 0; b < r.z.n_buckets; b++)
        for (int64_t i = r.z.part[b].begin; i < r.z.part[b].end; i++)
            flat[i] = (float)(i % 1009);
    for (int32_t b = 0; b < r.z.n_buckets; b++)
        assert_int_equal(zero_gather(&r.z, b, flat, 4), 0);
    assert_int_equal(zero_gather_end(&r.z), 0);
    for (int64_t i = 0; i < r.z.n_flat; i++)
        assert_true(flat[i] == (float)(i % 1009));
    for (int64_t at = 0; at < r.z.n_flat; at += 999999) { /* each takes what is its own */
        const int64_t n = MIN((int64_t)999999, r.z.n_flat - at);
        assert_int_equal(zero_store(&r.z, ZERO_MOMENT1, at, n, flat + at), 0);
    }
    if (ranks.rank > 0) {
        assert_int_equal(zero_serve(&r.z), 0);
        assert_int_equal(zero_serve(&r.z), ERR_IO);
        assert_string_equal(err_msg(), "a disk is full");
    } else {
        static const int64_t spans[][2] = {
            { 0, 1 }, { 1, 5000000 }, { (1 << 22) - 3, 7 }, { 4206649, 6000 }
        };
        memset(flat, 0, (size_t)r.z.n_flat * sizeof *flat);
        for (size_t k = 0; k < COUNT_OF(spans); k++) {
            const int64_t at = spans[k][0], n = MIN(spans[k][1], r.z.n_flat - at);
            assert_int_equal(zero_fetch(&r.z, ZERO_MOMENT1, at, n, flat), 0);
            for (int64_t i = 0; i < n; i++)
                assert_true(flat[i] == (float)((at + i) % 1009));
        }
        assert_int_equal(zero_dismiss(&r.z, 0), 0);
        assert_int_equal(zero_dismiss(&r.z, err_set(ERR_IO, "a disk is full")), ERR_IO);
    }
    ranks.agreed = false;
    free(flat);
    free(part);
    rig_close(&r);
}

/* The lowest rank that fails speaks for all; sums add in the order of ranks. */
static void test_zero__agreement(void **state)
{
    int64_t x[2] = { ranks.rank, -ranks.rank };
    double y[3] = { ranks.rank == ranks.size / 2 ? 0.1 : 0, 1, NAN };
    (void)state;
    assert_int_equal(dist_vote(&ranks, 0, x, 2), 0);
    assert_int_equal(x[0], ranks.size - 1);
    assert_int_equal(x[1], 0);
    assert_int_equal(dist_sum(&ranks, y, 3), 0);
    assert_true(y[0] == 0.1 && y[1] == ranks.size && isnan(y[2]));
    if (ranks.size > 1) {
        const int rc = ranks.rank == 0 ? 0 : err_set(ERR_OOM, "rank %d is full", ranks.rank);
        assert_int_equal(dist_agree(&ranks, rc), ERR_OOM);
        assert_string_equal(err_msg(), "rank 1 is full");
        assert_int_equal(ranks.speaker, 1);
        assert_true(ranks.agreed);
        assert_int_equal(dist_agree(&ranks, ERR_OOM), ERR_OOM); /* known to all: nobody talks */
        ranks.agreed = false;
    }
    int32_t word = 7 + ranks.rank;
    assert_int_equal(dist_bcast(&ranks, &word, sizeof word), 0);
    assert_int_equal(word, 7);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_zero__map),
        cmocka_unit_test(test_zero__reduce_once_a_step),
        cmocka_unit_test(test_zero__reduce_by_rounds),
        cmocka_unit_test(test_zero__a_rank_that_fails),
        cmocka_unit_test(test_zero__bf16_state),
        cmocka_unit_test(test_zero__gather_and_fetch),
        cmocka_unit_test(test_zero__agreement),
    };
    if (dist_open(&ranks) < 0) {
        err_print(err_msg());
        return 1;
    }
    const int failed = cmocka_run_group_tests_name("zero", tests, NULL, NULL);
    if (failed && ranks.size > 1) dist_abort(&ranks, 1);
    dist_close(&ranks);
    return failed;
}
