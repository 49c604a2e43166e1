/* SPDX-License-Identifier: MIT */
#include "../src/base/mem.h"
#include "../src/base/rng.h"
#include "../src/data/batch.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static void must(int rc)
{
    if (rc < 0) fail_msg("%s", err_msg());
}

/* --- order ------------------------------------------------------------------------------------------------------ */

static void test_order__epochs_are_permutations(void **state)
{
    (void)state;
    static const int64_t sizes[][2] = { { 1, 1 },   { 1, 8 },   { 10, 1 },  { 10, 3 },
                                        { 10, 10 }, { 10, 64 }, { 257, 64 } };
    for (size_t i = 0; i < COUNT_OF(sizes); i++) {
        const int64_t n = sizes[i][0], size = sizes[i][1], steps = (n + size - 1) / size;
        struct order o;
        int *seen = calloc((size_t)n, sizeof *seen);
        assert_non_null(seen);
        must(order_init(&o, n, size, true, 42));
        assert_int_equal(order_steps_per_epoch(&o), steps);
        for (int64_t epoch = 0; epoch < 4; epoch++) {
            for (int64_t k = 0; k < steps; k++) {
                const int64_t *idx;
                const int64_t got = order_step(&o, epoch * steps + k, &idx);
                assert_int_equal(got,
                                 k < steps - 1 || n % MIN(size, n) == 0 ? MIN(size, n) : n % size);
                for (int64_t j = 0; j < got; j++)
                    seen[idx[j]]++;
            }
            for (int64_t j = 0; j < n; j++)
                assert_int_equal(seen[j], epoch + 1);
        }
        free(seen);
        order_release(&o);
    }
}

/* A resume at any step sees what the uninterrupted run saw; the order depends on seed and epoch. */
static void test_order__pure(void **state)
{
    (void)state;
    enum { N = 50, SIZE = 7, STEPS = 8 };
    int64_t all[3 * STEPS][SIZE], count[3 * STEPS];
    struct order o, again;
    const int64_t *idx;
    must(order_init(&o, N, SIZE, true, 42));
    for (int64_t t = 0; t < 3 * STEPS; t++) {
        count[t] = order_step(&o, t, &idx);
        memcpy(all[t], idx, (size_t)count[t] * sizeof *idx);
    }
    for (int64_t k = 0; k < 200; k++) { /* any step after any other */
        const int64_t t = (int64_t)(rng_u64(5, 0, (uint64_t)k) % (3 * STEPS));
        if (k % 10 == 0) {
            if (k) order_release(&again);
            must(order_init(&again, N, SIZE, true, 42));
        }
        assert_int_equal(order_step(&again, t, &idx), count[t]);
        assert_memory_equal(idx, all[t], (size_t)count[t] * sizeof *idx);
    }
    order_release(&again);
    assert_memory_not_equal(all[0], all[STEPS], SIZE * sizeof *idx);
    must(order_init(&again, N, SIZE, true, 43));
    order_step(&again, 0, &idx);
    assert_memory_not_equal(idx, all[0], SIZE * sizeof *idx);
    order_release(&again);
    order_release(&o);
}

static void test_order__file_order_and_errors(void **state)
{
    (void)state;
    struct order o;
    const int64_t *idx;
    must(order_init(&o, 10, 4, false, 42));
    for (int64_t t = 11; t >= 0; t--) {
        const int64_t n = order_step(&o, t, &idx);
        for (int64_t j = 0; j < n; j++)
            assert_int_equal(idx[j], t % 3 * 4 + j);
    }
    order_release(&o);
    order_release(&o);
    assert_int_equal(order_init(&o, 0, 4, true, 1), ERR_INPUT);
    assert_int_equal(order_init(&o, 5, 0, true, 1), ERR_INPUT);
    assert_int_equal(order_init(&o, (int64_t)1 << 31, 1, true, 1), ERR_INPUT);
}

/* --- packing ---------------------------------------------------------------------------------------------------- */

static int32_t length(uint64_t seed, uint64_t stream, int64_t i, int32_t most)
{
    /* many short and a few long ones */
    const uint64_t r = rng_u64(seed, stream, (uint64_t)i);
    return 1 + (int32_t)((r >> 32) % (uint64_t)(r % 4 ? MIN(most, 3) : most));
}

/* n random examples; ids all differ, so that a place tells where it came from. */
static void random_dataset(struct dataset *d, int64_t n, bool pairs, uint64_t seed, int32_t most)
{
    memset(d, 0, sizeof *d);
    must(MEM_NEW(&d->ex, n));
    for (int64_t i = 0; i < n; i++) {
        struct example *e = &d->ex[i];
        e->at = d->n_ids;
        e->np = length(seed, 1, i, most);
        e->nw = length(seed, 2, i, most);
        e->nl = pairs ? length(seed, 3, i, most) : 0;
        d->n_ids += e->np + e->nw + e->nl;
    }
    d->n = n;
    must(MEM_NEW(&d->ids, d->n_ids));
    for (int64_t i = 0; i < d->n_ids; i++)
        d->ids[i] = (int32_t)i;
}

static void test_batch__pair_by_hand(void **state)
{
    (void)state;
    int32_t ids[] = { 10, 11, 12, 20, 21, 22, 30, 31, /* prompt 3, chosen 3, rejected 2 */
                      40, 50, 60, 61 };               /* prompt 1, chosen 1, rejected 2 */
    struct example ex[] = { { .at = 0, .np = 3, .nw = 3, .nl = 2 },
                            { .at = 8, .np = 1, .nw = 1, .nl = 2 } };
    const struct dataset d = { .ids = ids, .n_ids = 12, .ex = ex, .n = 2 };
    const int64_t order[] = { 0, 1 };
    struct batch b;
    must(batch_init(&b, 8, 8, 2));
    batch_fill(&b, &d, order, 2);
    static const int32_t want_ids[] = { 10, 11, 12, 20, 21, 30, 40, 60 },
                         want_pos[] = { 0, 1, 2, 3, 4, 3, 0, 1 };
    static const int32_t src[] = { 2, 3, 4, 2, 5, 6, 6, 7 },
                         target[] = { 20, 21, 22, 30, 31, 50, 60, 61 };
    static const int32_t seq[] = { 0, 0, 0, 1, 1, 2, 3, 3 }, start[] = { 0, 3, 5, 6, 8 },
                         group[] = { 0, 3, 5 };
    static const struct segment seg[] = {
        { 0, 3, 0, 0, 0 }, { 3, 2, 3, 0, 3 }, { 5, 1, 5, 0, 3 },
        { 6, 1, 6, 0, 0 }, { 7, 1, 7, 6, 1 },
    };
    assert_int_equal(b.T, 8);
    assert_int_equal(b.N, 8);
    assert_int_equal(b.P, 2);
    assert_int_equal(b.S, 4);
    assert_int_equal(b.n_seg, 5);
    assert_int_equal(b.n_groups, 2);
    assert_memory_equal(b.ids, want_ids, sizeof want_ids);
    assert_memory_equal(b.pos, want_pos, sizeof want_pos);
    assert_memory_equal(b.src, src, sizeof src);
    assert_memory_equal(b.target, target, sizeof target);
    assert_memory_equal(b.seq, seq, sizeof seq);
    assert_memory_equal(b.seq_start, start, sizeof start);
    assert_memory_equal(b.group, group, sizeof group);
    assert_memory_equal(b.seg, seg, sizeof seg);
    assert_int_equal(b.example[1], 1);
    batch_release(&b);
}

static void test_batch__sft_by_hand(void **state)
{
    (void)state;
    int32_t ids[] = { 10, 11, 20, 21, 22, 40, 50 };
    struct example ex[] = { { .at = 0, .np = 2, .nw = 3 }, { .at = 5, .np = 1, .nw = 1 } };
    const struct dataset d = { .ids = ids, .n_ids = 7, .ex = ex, .n = 2 };
    const int64_t order[] = { 1, 0 };
    struct batch b;
    must(batch_init(&b, 5, 4, 2));
    batch_fill(&b, &d, order, 2);
    static const int32_t want_ids[] = { 40, 10, 11, 20, 21 }, want_pos[] = { 0, 0, 1, 2, 3 },
                         src[] = { 0, 2, 3, 4 };
    static const int32_t target[] = { 50, 20, 21, 22 }, seq[] = { 0, 1, 1, 1 },
                         start[] = { 0, 1, 4 };
    static const struct segment seg[] = { { 0, 1, 0, 0, 0 }, { 1, 4, 1, 0, 0 } };
    assert_int_equal(b.T, 5);
    assert_int_equal(b.S, 2);
    assert_int_equal(b.N, 4);
    assert_int_equal(b.n_seg, 2);
    assert_memory_equal(b.ids, want_ids, sizeof want_ids);
    assert_memory_equal(b.pos, want_pos, sizeof want_pos);
    assert_memory_equal(b.src, src, sizeof src);
    assert_memory_equal(b.target, target, sizeof target);
    assert_memory_equal(b.seq, seq, sizeof seq);
    assert_memory_equal(b.seq_start, start, sizeof start);
    assert_memory_equal(b.seg, seg, sizeof seg);
    batch_fill(&b, &d, order, 0); /* a rank may hold no pair of a step */
    assert_int_equal(b.T + b.S + b.P + b.N + b.n_seg + b.n_groups, 0);
    batch_release(&b);
}

/* The tokens that row r may see, read off the segments, oldest first; returns how many. */
static int32_t visible(const struct batch *b, int32_t r, int32_t *out)
{
    int32_t n = 0;
    for (int32_t s = 0; s < b->n_seg; s++) {
        const struct segment *g = &b->seg[s];
        if (r < g->q || r >= g->q + g->len) continue;
        for (int32_t i = 0; i < g->prefix_len; i++)
            out[n++] = b->ids[g->prefix + i];
        for (int32_t i = 0; i <= r - g->q; i++)
            out[n++] = b->ids[g->own + i];
    }
    return n;
}

/* What predicts each target is the row that sees just the prompt and the response before it. */
static void check_contexts(const struct batch *b, const struct dataset *d)
{
    int32_t ctx[4096];
    const int32_t per = b->S / MAX(b->P, 1);
    for (int32_t s = 0; s < b->S; s++) {
        const struct example *e = &d->ex[b->example[s / per]];
        const int32_t *prompt = d->ids + e->at, *y = prompt + e->np + (s % per ? e->nw : 0);
        const int32_t n = s % per ? e->nl : e->nw, first = b->seq_start[s];
        assert_int_equal(b->seq_start[s + 1] - first, n);
        for (int32_t k = 0; k < n; k++) {
            const int32_t row = b->src[first + k];
            assert_in_range(row, 0, b->T - 1);
            assert_int_equal(b->target[first + k], y[k]);
            assert_int_equal(b->seq[first + k], s);
            assert_int_equal(b->pos[row], e->np + k - 1);
            assert_int_equal(visible(b, row, ctx), e->np + k);
            assert_memory_equal(ctx, prompt, (size_t)e->np * sizeof *ctx);
            assert_memory_equal(ctx + e->np, y, (size_t)k * sizeof *ctx);
        }
    }
}

static void check_segments(const struct batch *b)
{
    int32_t row = 0;
    assert_int_equal(b->n_groups, b->P);
    assert_int_equal(b->group[0], 0);
    assert_int_equal(b->group[b->n_groups], b->n_seg);
    for (int32_t g = 0; g < b->n_groups; g++) {
        const int32_t base = row;
        assert_true(b->group[g] < b->group[g + 1]);
        for (int32_t s = b->group[g]; s < b->group[g + 1]; s++) {
            const struct segment *x = &b->seg[s];
            assert_int_equal(x->q, row); /* every row is in one segment */
            assert_int_equal(x->own, row);
            assert_true(x->len > 0);
            assert_true(x->prefix_len == 0 ||
                        (x->prefix == base && x->prefix + x->prefix_len <= x->q));
            row += x->len;
        }
    }
    assert_int_equal(row, b->T);
    assert_int_equal(b->seq_start[b->S], b->N);
}

/* Pack `order` whole; checks every micro-batch and that nothing is lost. Most seen in *T, *N, *P. */
static void pack(const struct dataset *d, const int64_t *order, int64_t tokens_max, struct batch *b,
                 int64_t seen[3])
{
    for (int64_t at = 0; at < d->n;) {
        const int64_t n = batch_fit(d, order + at, d->n - at, tokens_max);
        int64_t tokens = 0;
        assert_in_range(n, 1, d->n - at);
        for (int64_t i = 0; i < n; i++)
            tokens += example_tokens(&d->ex[order[at + i]]);
        assert_true(n == 1 || tokens <= tokens_max);
        if (at + n < d->n) assert_true(tokens + example_tokens(&d->ex[order[at + n]]) > tokens_max);
        batch_fill(b, d, order + at, n);
        assert_int_equal(b->T, tokens);
        assert_int_equal(b->P, n);
        for (int64_t i = 0; i < n; i++)
            assert_int_equal(b->example[i], order[at + i]);
        check_segments(b);
        check_contexts(b, d);
        seen[0] = MAX(seen[0], (int64_t)b->T);
        seen[1] = MAX(seen[1], (int64_t)b->N);
        seen[2] = MAX(seen[2], (int64_t)b->P);
        at += n;
    }
}

/* What the measures say is met by the packing itself, which batch_fill holds to its room. */
static void test_batch__random_packing(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 24; seed++) {
        const int64_t n = 1 + (int64_t)(rng_u64(9, 0, seed) % 60),
                      tokens_max = 1 + (int64_t)(rng_u64(9, 1, seed) % 90);
        struct dataset d;
        struct batch b;
        int64_t order[64];
        random_dataset(&d, n, seed % 2, seed, 40);
        for (uint64_t k = 0; k < 20; k++) {
            struct batch_size s = { 0 };
            int64_t seen[3] = { 0 };
            rng_permutation(order, n, seed, rng_stream_of(RNG_TEST, k));
            batch_measure(&s, &d, order, n, tokens_max);
            must(batch_init(&b, s.T, s.N, s.P));
            pack(&d, order, tokens_max, &b, seen);
            assert_true(seen[0] == s.T && seen[1] == s.N && seen[2] == s.P);
            batch_release(&b);
        }
        dataset_release(&d);
    }
}

/* Over whole epochs of steps: the largest of all micro-batches, none of which reaches over a step. */
static void test_batch__order_measure(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 40; seed++) {
        const int64_t n = 2 + (int64_t)(rng_u64(9, 3, seed) % 40), tokens_max = 70;
        const int64_t size = 1 + (int64_t)(seed % 7);
        struct batch_size s = { 0 }, want = { 0 }, none = { 0 };
        struct dataset d;
        struct order o;
        random_dataset(&d, n, true, seed, 30);
        must(order_init(&o, n, size, seed % 2, seed));
        const int64_t steps = (o.shuffle ? 3 : 1) * order_steps_per_epoch(&o) - 1;
        order_measure(&o, &s, &d, steps, tokens_max);
        for (int64_t t = 0; t < steps; t++) {
            const int64_t *idx, k = order_step(&o, t, &idx);
            for (int64_t at = 0, m; at < k; at += m) {
                int64_t T = 0, N = 0;
                m = batch_fit(&d, idx + at, k - at, tokens_max);
                for (int64_t i = at; i < at + m; i++) {
                    T += example_tokens(&d.ex[idx[i]]);
                    N += d.ex[idx[i]].nw + d.ex[idx[i]].nl;
                }
                want.T = MAX(want.T, T);
                want.N = MAX(want.N, N);
                want.P = MAX(want.P, m);
                want.batches++;
            }
        }
        assert_memory_equal(&s, &want, sizeof s);
        order_measure(&o, &none, &d, 0, tokens_max);
        assert_true(none.T == 0 && none.N == 0 && none.P == 0 && none.batches == 0);
        order_release(&o);
        dataset_release(&d);
    }
}

static void test_batch__too_large(void **state)
{
    (void)state;
    struct batch b;
    struct dataset d;
    assert_int_equal(batch_init(&b, (int64_t)1 << 31, 5, 5), ERR_INPUT);
    assert_int_equal(batch_init(&b, 5, INT64_MAX, 5), ERR_INPUT);
    batch_release(&b);
    /* a micro-batch of 1 token: each row by itself, whatever its length */
    random_dataset(&d, 5, true, 3, 30);
    for (int64_t i = 0; i < 5; i++)
        assert_int_equal(batch_fit(&d, &i, 1, 1), 1);
    const int64_t order[5] = { 0, 1, 2, 3, 4 };
    assert_int_equal(batch_fit(&d, order, 5, 1),
                     1 + (example_tokens(&d.ex[0]) + example_tokens(&d.ex[1]) <= 1));
    assert_int_equal(batch_fit(&d, order, 5, INT64_MAX), 5);
    assert_int_equal(batch_fit(&d, order, 0, 100), 0);
    dataset_release(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_order__epochs_are_permutations),
        cmocka_unit_test(test_order__pure),
        cmocka_unit_test(test_order__file_order_and_errors),
        cmocka_unit_test(test_batch__pair_by_hand),
        cmocka_unit_test(test_batch__sft_by_hand),
        cmocka_unit_test(test_batch__random_packing),
        cmocka_unit_test(test_batch__order_measure),
        cmocka_unit_test(test_batch__too_large),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
