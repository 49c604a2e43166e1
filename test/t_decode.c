/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "../src/base/rng.h"
#include "../src/model/decode.h"
#include "model_fixture.h"
#include "model_ref.h"

enum { SLOTS = 3, POSITIONS = 24, ROWS = 7, V = FIX_VOCAB };
static char dir[64];

struct gen { /* a decoder over the weights of a fixture */
    struct fix f;
    struct plan plan;
    struct decoder d;
    struct ref r;
    double error, size; /* bfloat16: sums of squares over all logits that were checked */
};

static int make_dir(void **state)
{
    (void)state;
    snprintf(dir, sizeof dir, "/tmp/t_decode-XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state)
{
    (void)state;
    return dir_remove(dir);
}

static void gen_open_as(struct gen *g, int shape, enum dtype dtype)
{
    memset(g, 0, sizeof *g);
    fix_open_as(&g->f, dir, shape, dtype, false, false);
    ref_init(&g->r, &g->f.m);
    assert_int_equal(decoder_plan(&g->d, &g->f.m, &g->plan, SLOTS, POSITIONS, ROWS), 0);
    assert_int_equal(plan_grant(&g->plan, &g->f.be), 0);
    assert_int_equal(decoder_ready(&g->d), 0);
}

static void gen_open(struct gen *g, int shape)
{
    gen_open_as(g, shape, DT_F32);
}

/* Rounding to bfloat16, about 8 times a layer, as a share of the logits. */
static double bf16_share(const struct model *m)
{
    return 4 * 0x1p-8 * sqrt(8.0 * (double)m->arch.L + 4);
}

static void gen_close(struct gen *g)
{
    assert_true(sqrt(g->error) <= bf16_share(&g->f.m) * sqrt(g->size));
    ref_release(&g->r);
    plan_release(&g->plan, &g->f.be);
    decoder_release(&g->d);
    fix_close(&g->f);
}

/* The last position's logits against the oracle's, which sees the whole sequence. In bfloat16 one position in a hundred depends
 * on its rounding so much (attention between two keys that are nearly equal) that only the whole of a test says something. */
static void check(struct gen *g, const int32_t *ids, int32_t n, const float *logits)
{
    double z[POSITIONS * V], scale = 1;
    ref_logits(&g->r, ids, n, z);
    const double *last = z + (n - 1) * V;
    for (int i = 0; i < V; i++)
        scale = fmax(scale, fabs(last[i]));
    if (g->f.m.dtype == DT_BF16) {
        for (int i = 0; i < V; i++) {
            g->error += pow((double)logits[i] - last[i], 2);
            g->size += pow(last[i], 2);
        }
        return;
    }
    for (int i = 0; i < V; i++)
        if (fabs((double)logits[i] - last[i]) > 64 * (double)FLT_EPSILON * sqrt(V) * scale)
            fail_msg("%d tokens, logit %d: %.9g, expected %.9g", n, i, (double)logits[i], last[i]);
}

static int feed(struct decoder *d, int32_t slot, const int32_t *ids, int64_t n, const float **z)
{
    const struct decoder_part part = { slot, ids, n };
    return decoder_pass(d, &part, 1, z);
}

static int32_t argmax(const float *z)
{
    int32_t best = 0;
    for (int32_t i = 1; i < V; i++)
        if (z[i] > z[best]) best = i;
    return best;
}

static void draw(int32_t *ids, int32_t n, uint64_t stream)
{
    for (int32_t i = 0; i < n; i++)
        ids[i] = (int32_t)(rng_u64(1, stream, (uint64_t)i) % V);
}

static void test_decode__prompt_in_chunks(void **state)
{
    int32_t ids[POSITIONS];
    (void)state;
    draw(ids, POSITIONS, 1);
    for (int k = 0; k < 2 * FIX_SHAPES; k++) {
        static const int32_t chunks[] = { 3, 7, 1, 6, 7 };
        struct gen g;
        const float *z;
        int32_t n = 0;
        gen_open_as(&g, k / 2, k % 2 ? DT_BF16 : DT_F32);
        for (size_t i = 0; i < COUNT_OF(chunks); i++) {
            assert_int_equal(feed(&g.d, 1, ids + n, chunks[i], &z), 0);
            n += chunks[i];
            check(&g, ids, n, z);
            assert_int_equal(g.d.len[1], n);
        }
        assert_int_equal(n, POSITIONS); /* up to the last row of the slot */
        gen_close(&g);
    }
}

/* Three sequences of unequal lengths grow greedily, one drops out, its slot is used again. */
static void test_decode__batched_steps(void **state)
{
    (void)state;
    for (int k = 0; k < 2 * FIX_SHAPES; k++) {
        static const int32_t order[SLOTS] = { 2, 0, 1 };
        int32_t ids[SLOTS][POSITIONS], n[SLOTS], next[SLOTS];
        struct gen g;
        const float *z;
        gen_open_as(&g, k / 2, k % 2 ? DT_BF16 : DT_F32);
        for (int32_t s = 0; s < SLOTS; s++) {
            n[s] = 2 + 2 * s;
            draw(ids[s], n[s], 10 + (uint64_t)s);
            assert_int_equal(feed(&g.d, s, ids[s], n[s], &z), 0);
            check(&g, ids[s], n[s], z);
            next[s] = argmax(z);
        }
        for (int step = 0; step < 10; step++) {
            const int32_t first = step < 6 ? 0 : 1; /* slot 2 is left out */
            struct decoder_part parts[SLOTS];
            if (step == 8) { /* and starts again */
                decoder_reset(&g.d, 2);
                n[2] = 3;
                draw(ids[2], n[2], 77);
                assert_int_equal(feed(&g.d, 2, ids[2], n[2], &z), 0);
                check(&g, ids[2], n[2], z);
            }
            for (int32_t i = first; i < SLOTS; i++) {
                const int32_t s = order[i];
                ids[s][n[s]++] = next[s];
                parts[i] = (struct decoder_part){ s, ids[s] + n[s] - 1, 1 };
            }
            assert_int_equal(decoder_pass(&g.d, parts + first, SLOTS - first, &z), 0);
            for (int32_t i = first; i < SLOTS; i++) {
                const int32_t s = order[i];
                check(&g, ids[s], n[s], z + (i - first) * V);
                next[s] = argmax(z + (i - first) * V);
            }
        }
        gen_close(&g);
    }
}

/* Prompts and single tokens in one pass: each part goes on its own slot and has its own logits. */
static void test_decode__parts_of_unequal_lengths(void **state)
{
    static const int32_t takes[][SLOTS] = {
        { 3, 0, 2 }, { 1, 4, 1 }, { 0, 1, 5 }, { 2, 2, 2 }, { 1, 1, 1 }, { 5, 1, 1 }, { 0, 7, 0 },
    };
    (void)state;
    for (int k = 0; k < 2 * FIX_SHAPES; k++) {
        int32_t ids[SLOTS][POSITIONS], n[SLOTS] = { 0 };
        struct gen g;
        const float *z;
        gen_open_as(&g, k / 2, k % 2 ? DT_BF16 : DT_F32);
        for (int32_t s = 0; s < SLOTS; s++)
            draw(ids[s], POSITIONS, 40 + (uint64_t)s);
        for (size_t i = 0; i < COUNT_OF(takes); i++) {
            struct decoder_part parts[SLOTS];
            int32_t n_parts = 0;
            for (int32_t s = SLOTS; s-- > 0;)
                if (takes[i][s])
                    parts[n_parts++] = (struct decoder_part){ s, ids[s] + n[s], takes[i][s] };
            assert_int_equal(decoder_pass(&g.d, parts, n_parts, &z), 0);
            for (int32_t j = 0; j < n_parts; j++) {
                const int32_t s = parts[j].slot;
                n[s] += (int32_t)parts[j].n;
                check(&g, ids[s], n[s], z + j * V);
            }
        }
        gen_close(&g);
    }
}

/* What generation sees is what training sees: the sum of log-softmax values over a response equals model_logp. */
static void test_decode__equals_forward(void **state)
{
    struct fix_pairs p;
    struct fix_batch fb;
    (void)state;
    fix_pairs_draw(&p, 21);
    for (int k = 0; k < 2 * FIX_SHAPES; k++) {
        struct gen g;
        double logp[2 * FIX_PAIRS];
        gen_open_as(&g, k / 2, k % 2 ? DT_BF16 : DT_F32);
        fix_batch_pairs(&fb, &p, 0, FIX_PAIRS);
        assert_int_equal(model_forward(&g.f.m, &fb.b), 0);
        assert_int_equal(model_logp(&g.f.m, &fb.b, logp, false), 0);
        for (int s = 0; s < 2 * FIX_PAIRS; s++) {
            const int32_t slot = s % SLOTS, np = p.np[s / 2];
            int32_t ids[2 * FIX_LEN];
            const int32_t n = fix_sequence(&p, s, ids);
            const float *z;
            double sum = 0;
            decoder_reset(&g.d, slot);
            assert_int_equal(feed(&g.d, slot, ids, np, &z), 0);
            for (int32_t t = np; t < n; t++) {
                double total = 0;
                for (int i = 0; i < V; i++)
                    total += exp((double)z[i]);
                sum += (double)z[ids[t]] - log(total);
                if (t + 1 < n) assert_int_equal(feed(&g.d, slot, ids + t, 1, &z), 0);
            }
            const double share =
                g.f.m.dtype == DT_BF16 ? bf16_share(&g.f.m) : 64 * (double)FLT_EPSILON * sqrt(V);
            assert_true(fabs(sum - logp[s]) < share * fabs(logp[s]));
        }
        gen_close(&g);
    }
}

/* A model with weights only, planned together with its decoder, as `generate` does; its config.json is in path. */
static void bare_open(struct gen *g, const char *path, bool half, int64_t slots, int64_t positions,
                      int64_t rows)
{
    struct arch a;
    memset(g, 0, sizeof *g);
    assert_int_equal(arch_load(&a, path), 0);
    assert_int_equal(cpu_open(&g->f.be, 1), 0);
    assert_int_equal(model_init(&g->f.m, &g->f.be, &a, DT_F32), 0);
    g->f.m.half_matrices = half;
    assert_int_equal(model_plan_weights(&g->f.m, &g->plan, false), 0);
    assert_int_equal(decoder_plan(&g->d, &g->f.m, &g->plan, slots, positions, rows), 0);
    assert_int_equal(plan_grant(&g->plan, &g->f.be), 0);
    assert_int_equal(model_ready(&g->f.m), 0);
    assert_int_equal(decoder_ready(&g->d), 0);
}

static void bare_close(struct gen *g)
{
    plan_release(&g->plan, &g->f.be);
    decoder_release(&g->d);
    model_release(&g->f.m);
    backend_close(&g->f.be);
}

static void test_decode__without_training_buffers(void **state)
{
    struct gen g;
    int32_t ids[5];
    const float *z;
    double want[5 * V];
    (void)state;
    draw(ids, 5, 3);
    fix_write(dir, "config.json", fix_config(FIX_QWEN2_TIED));
    bare_open(&g, dir, false, 1, 8, 5);
    assert_int_equal(model_random(&g.f.m, 5), 0);
    ref_init(&g.r, &g.f.m);
    assert_int_equal(feed(&g.d, 0, ids, 5, &z), 0);
    ref_logits(&g.r, ids, 5, want);
    for (int i = 0; i < V; i++)
        assert_true(fabs((double)z[i] - want[4 * V + i]) < 1e-5);
    ref_release(&g.r);
    bare_close(&g);
}

/* Matrices in bfloat16 under float32 activations: what a decoder gives whose floats have the same values, but for the order of sums. */
static void test_decode__half_matrices(void **state)
{
    (void)state;
    for (int shape = 0; shape < FIX_SHAPES; shape++) {
        char path[96];
        struct fix f;
        struct gen whole, half;
        int32_t ids[ROWS];
        const float *z, *want;
        snprintf(path, sizeof path, "%s/half", dir);
        fix_open(&f, dir, shape, false, 0);
        assert_int_equal(model_save(&f.m, path, dir, ST_F32, 1 << 30), 0);
        assert_int_equal(model_dir_half(path), 0);
        assert_int_equal(model_save(&f.m, path, dir, ST_BF16, 1 << 30), 0);
        assert_int_equal(model_dir_half(path), 1);
        fix_close(&f);
        bare_open(&whole, path, false, SLOTS, POSITIONS, ROWS);
        bare_open(&half, path, true, SLOTS, POSITIONS, ROWS);
        assert_int_equal(model_load(&whole.f.m, path), 0);
        assert_int_equal(model_load(&half.f.m, path), 0);
        draw(ids, ROWS, (uint64_t)shape);
        for (int pass = 0; pass < 3; pass++) { /* a prompt, then steps */
            const int64_t n = pass ? 1 : ROWS;
            assert_int_equal(feed(&whole.d, 1, ids, n, &want), 0);
            assert_int_equal(feed(&half.d, 1, ids, n, &z), 0);
            for (int i = 0; i < V; i++)
                assert_true(fabsf(z[i] - want[i]) <= 1e-5f * (1 + fabsf(want[i])));
            ids[0] = argmax(want);
        }
        bare_close(&whole);
        bare_close(&half);
    }
    assert_int_equal(model_dir_half("/nonexistent"), ERR_INPUT);
}

static void test_decode__too_large_a_cache(void **state)
{
    struct gen g;
    struct plan plan = { 0 };
    struct decoder d;
    (void)state;
    gen_open(&g, FIX_LLAMA_TIED);
    assert_int_equal(decoder_plan(&d, &g.f.m, &plan, 1 << 20, 1 << 20, 1), ERR_INPUT);
    plan_release(&plan, &g.f.be);
    decoder_release(&d);
    gen_close(&g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_decode__prompt_in_chunks),
        cmocka_unit_test(test_decode__batched_steps),
        cmocka_unit_test(test_decode__parts_of_unequal_lengths),
        cmocka_unit_test(test_decode__equals_forward),
        cmocka_unit_test(test_decode__without_training_buffers),
        cmocka_unit_test(test_decode__half_matrices),
        cmocka_unit_test(test_decode__too_large_a_cache),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
