/* SPDX-License-Identifier: MIT */
#include "../src/train/refcache.h"
#include "model_fixture.h"
#include "scratch.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static bool same_key(const struct dataset *d, int64_t i, int64_t j)
{
    const struct refcache_key a = refcache_key(d, i), b = refcache_key(d, j);
    return memcmp(&a, &b, sizeof a) == 0;
}

static void test_refcache__row_keys(void **state)
{
    /* rows over one array of ids: the same ids at another place are the same row, another cut is another */
    int32_t ids[] = { 5, 6, 7, 8, 9, 5, 6, 7, 8, 9, 5, 6, 7, 9, 8 };
    struct example ex[] = {
        { 0, 2, 2, 1, 0, 1 }, { 5, 2, 2, 1, 3, 99 }, { 0, 1, 3, 1, 0, 1 },
        { 0, 2, 1, 2, 0, 1 }, { 0, 2, 2, 0, 0, 1 },  { 10, 2, 2, 1, 0, 1 },
    };
    const struct dataset d = { .ids = ids, .n_ids = COUNT_OF(ids), .ex = ex, .n = COUNT_OF(ex) };
    (void)state;
    assert_true(same_key(&d, 0, 1));
    for (int64_t i = 1; i < d.n; i++)
        for (int64_t j = i + 1; j < d.n; j++)
            assert_false(same_key(&d, i, j));
}

static void digest_of(char hex[65], const struct model *m)
{
    uint8_t b[32];
    assert_int_equal(refcache_digest(b, m), 0);
    for (int i = 0; i < 32; i++)
        snprintf(hex + 2 * i, 3, "%02x", b[i]);
}

static void test_refcache__weights(void **state)
{
    char first[65], now[65];
    struct fix f, other;
    fix_open(&f, scratch_dir(state), FIX_QWEN2_TIED, false, false);
    digest_of(first, &f.m);
    digest_of(now, &f.m);
    assert_string_equal(first, now);
    f.be.threads = 3;
    digest_of(now, &f.m);
    assert_string_equal(first, now);
    fix_open(&other, scratch_dir(state), FIX_QWEN2_TIED, false, false);
    digest_of(now, &other.m);
    assert_string_equal(first, now);
    fix_close(&other);
    /* any bit of any weight */
    for (int32_t i = 0; i < f.m.n_params; i++) {
        uint8_t *p = f.m.params[i].w.data;
        p += tensor_count(&f.m.params[i].w) * 4 - 1;
        *p ^= 0x80;
        digest_of(now, &f.m);
        assert_string_not_equal(first, now);
        *p ^= 0x80;
    }
    /* what changes the maths with the same weights; and what does not */
    const struct arch was = f.m.arch;
    f.m.arch.rms_eps *= 1.0000000001;
    digest_of(now, &f.m);
    assert_string_not_equal(first, now);
    f.m.arch = was;
    f.m.arch.rope_theta += 1e-6;
    digest_of(now, &f.m);
    assert_string_not_equal(first, now);
    f.m.arch = was;
    f.m.arch.init_range += 1;
    f.m.arch.max_positions += 1;
    digest_of(now, &f.m);
    assert_string_equal(first, now);
    fix_close(&f);
}

/* Weights of more than one slab of pieces: the tree covers every byte, whatever the threads. */
static void test_refcache__many_weights(void **state)
{
    const int64_t n = (70 << 18) + 3; /* 70 MiB and 12 bytes */
    struct fix f;
    char first[65], now[65];
    float *w;
    fix_open(&f, scratch_dir(state), FIX_QWEN2_TIED, false, false);
    const struct tensor was = f.m.weights;
    assert_int_equal(MEM_NEW(&w, n), 0);
    f.m.weights = tensor_view(w, DT_F32, n, 1, 1, 1);
    digest_of(first, &f.m);
    f.be.threads = 2;
    digest_of(now, &f.m);
    assert_string_equal(first, now);
    for (int64_t at = 0; at < n; at += at + n / 7 < n || at == n - 1 ? n / 7 : n - 1 - at) {
        w[at] = 1;
        digest_of(now, &f.m);
        assert_string_not_equal(first, now);
        w[at] = 0;
    }
    f.m.weights = was;
    free(w);
    fix_close(&f);
}

#define T(f) cmocka_unit_test_setup_teardown(f, scratch_make, scratch_remove)
int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refcache__row_keys),
        T(test_refcache__weights),
        T(test_refcache__many_weights),
    };
    return cmocka_run_group_tests_name("refcache_keys", tests, NULL, NULL);
}
