/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <zlib.h>
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "../src/base/rng.h"
#include "../src/ops/split.h"
#include "../src/train/checkpoint.h"
#include "model_fixture.h"
#include "ref_ops.h"
#include "scratch.h"

static void assert_near(double got, double want, double allowed)
{
    if (!(fabs(got - want) <= allowed))
        fail_msg("%.17g, expected %.17g within %g", got, want, allowed);
}

/* the optimizer ---------------------------------------------------------------------------------------------------- */

struct trainer { /* a tiny model with moments */
    struct fix f;
    struct plan plan;
    struct setup su;
    struct stage st;
};

static void trainer_open(struct trainer *t, const char *dir, int shape, enum dtype dtype,
                         const struct stage_config *c)
{
    memset(t, 0, sizeof *t);
    fix_open_as(&t->f, dir, shape, dtype, true, false);
    t->su.be = t->f.be;
    t->st = (struct stage){ .su = &t->su,
                            .kind = STAGE_PREFERENCE,
                            .name = "preference",
                            .model = t->f.m,
                            .micro_tokens = 64 };
    struct zero *z = &t->st.zero;
    assert_int_equal(zero_init(z, NULL, &t->f.be, t->f.m.n_flat), 0);
    assert_int_equal(zero_add_group(z, 0, t->f.m.n_flat), 0);
    assert_int_equal(zero_split(z), 0);
    assert_int_equal(zero_plan(z, &t->plan, &t->st.model.grads, false, false), 0);
    z->state[ZERO_MASTER] = &t->st.model.low;
    z->weights = &t->st.model.weights;
    z->state[ZERO_MOMENT1] = &t->st.optim.m;
    z->state[ZERO_MOMENT2] = &t->st.optim.v;
    assert_int_equal(optim_plan(&t->st.optim, &t->plan, z->n_shard, c, DT_F32, 1, 0), 0);
    assert_int_equal(plan_grant(&t->plan, &t->f.be), 0);
    assert_int_equal(scores_init(&t->st.ref, 3), 0);
    assert_int_equal(scores_init(&t->st.ref_eval, 2), 0);
}

static void trainer_close(struct trainer *t)
{
    scores_release(&t->st.ref);
    scores_release(&t->st.ref_eval);
    plan_release(&t->plan, &t->f.be);
    zero_release(&t->st.zero);
    fix_close(&t->f);
}

static void fill(struct tensor *x, uint64_t stream, double scale)
{
    float *p = x->data;
    for (int64_t i = 0; i < tensor_count(x); i++)
        p[i] = (float)(scale * rng_normal(11, rng_stream_of(RNG_TEST, stream), (uint64_t)i));
}

static double *doubles(const struct tensor *x)
{
    double *d;
    assert_int_equal(MEM_NEW(&d, tensor_count(x)), 0);
    for (int64_t i = 0; i < tensor_count(x); i++)
        d[i] = (double)((const float *)x->data)[i];
    return d;
}

/* Some steps over the whole model against the oracle in double: clipping, bias correction, decay on matrices alone. */
static void adamw_steps(const char *dir, int shape, enum dtype dtype, const struct stage_config *c,
                        double scale)
{
    enum { STEPS = 6 };
    struct trainer t;
    trainer_open(&t, dir, shape, dtype, c);
    struct model *m = &t.st.model;
    float *exact = malloc((size_t)m->n_flat * sizeof *exact);
    assert_non_null(exact);
    assert_int_equal(model_get(m, 0, m->n_flat, exact), 0);
    const struct tensor start = tensor_view(exact, DT_F32, m->n_flat, 1, 1, 1);
    double *w = doubles(&start), *m1 = doubles(&t.st.optim.m), *m2 = doubles(&t.st.optim.v);
    for (int step = 1; step <= STEPS; step++) {
        double norm, ss = 0;
        const double lr = 0.01 / step;
        for (int32_t i = 0; i < m->n_params; i++) { /* the padding between them stays 0 */
            struct tensor g = model_grad(m, i);
            fill(&g, (uint64_t)(step * 100 + i), scale);
            double *d = doubles(&g);
            ss += ref_sumsq(d, tensor_count(&g));
            free(d);
        }
        assert_int_equal(zero_norm(&t.st.zero, false, &norm), 0);
        assert_true(fabs(norm - sqrt(ss)) <= 1e-6 * norm);
        assert_int_equal(optim_step(&t.st.optim, m, &t.st.zero, norm, lr), 0);
        assert_int_equal(t.st.optim.opt.step, step);
        for (int32_t i = 0; i < m->n_params; i++) {
            const struct param *p = &m->params[i];
            struct tensor g = model_grad(m, i);
            double *d = doubles(&g);
            const struct adamw o = { .lr = lr,
                                     .beta1 = c->adam_beta1,
                                     .beta2 = c->adam_beta2,
                                     .eps = c->adam_epsilon,
                                     .weight_decay = p->w.dim[1] > 1 ? c->weight_decay : 0,
                                     .step = step,
                                     .grad_scale = fmin(1, c->max_grad_norm / (sqrt(ss) + 1e-6)) };
            ref_adamw(w + p->offset, m1 + p->offset, m2 + p->offset, d, &o, tensor_count(&p->w));
            free(d);
        }
    }
    assert_int_equal(model_get(m, 0, m->n_flat, exact), 0);
    for (int64_t i = 0; i < m->n_flat; i++) {
        const double got = (double)exact[i];
        const double allowed = 8 * FLT_EPSILON * sqrt(STEPS) * (fabs(w[i]) + STEPS * 0.01);
        if (fabs(got - w[i]) > allowed)
            fail_msg("shape %d: weight %lld is %.9g, expected %.9g", shape, (long long)i, got,
                     w[i]);
        if (dtype == DT_BF16)
            assert_int_equal(((uint16_t *)m->weights.data)[i], f32_to_bf16((float)got));
    }
    free(exact);
    free(w);
    free(m1);
    free(m2);
    trainer_close(&t);
}

static void test_optim__adamw_over_a_model(void **state)
{
    struct stage_config c = { .adam_beta1 = 0.9,
                              .adam_beta2 = 0.999,
                              .adam_epsilon = 1e-8,
                              .weight_decay = 0.1,
                              .max_grad_norm = 1 };
    for (int shape = 0; shape < FIX_SHAPES; shape++)
        for (int k = 0; k < 2; k++) /* clipped */
            adamw_steps(scratch_dir(state), shape, k ? DT_BF16 : DT_F32, &c, 1);
    adamw_steps(scratch_dir(state), 0, DT_F32, &c, 1e-4); /* below the limit */
    c.weight_decay = 0;
    c.adam_beta1 = 0;
    c.adam_beta2 = 0.5;
    c.adam_epsilon = 0.1;
    adamw_steps(scratch_dir(state), 1, DT_BF16, &c, 1);
}

static void test_optim__clip(void **state)
{
    /* AdamW's first step forgets the scale of the gradient; with a large epsilon it shows: w -= lr g s / (|g s| + eps) */
    const struct stage_config c = {
        .adam_beta1 = 0.9, .adam_beta2 = 0.999, .adam_epsilon = 1e6, .max_grad_norm = 2
    };
    for (int side = 0; side < 2; side++) {
        struct trainer t;
        double norm;
        trainer_open(&t, scratch_dir(state), FIX_QWEN2_TIED, DT_F32, &c);
        struct model *m = &t.st.model;
        float *g = m->grads.data, *w = m->weights.data;
        const double len = side ? 1.5 : 10;
        g[0] = (float)(0.6 * len);
        g[1] = (float)(-0.8 * len);
        const float other = w[2];
        assert_int_equal(zero_norm(&t.st.zero, false, &norm), 0);
        assert_near(norm, len, 1e-6);
        w[0] = w[1] = 0;
        assert_int_equal(optim_step(&t.st.optim, m, &t.st.zero, norm, 1e6), 0);
        const double s = side ? 1 : 2 / (norm + 1e-6);
        assert_near(w[0], -0.6 * len * s, 1e-5);
        assert_near(w[1], 0.8 * len * s, 1e-5);
        assert_true(w[2] == other); /* no gradient, no decay */
        trainer_close(&t);
    }
}

/* checkpoints ------------------------------------------------------------------------------------------------------ */

static const struct stage_config PLAIN = {
    .adam_beta1 = 0.9, .adam_beta2 = 0.999, .adam_epsilon = 1e-8, .max_grad_norm = 1
};
static const char RUN[] = "{\"seed\": 1, \"sft\": {\"epochs\": 2.0}}";

/* Everything that a checkpoint holds gets a value of its own. */
static void trainer_fill(struct trainer *t, uint64_t seed)
{
    struct model *m = &t->st.model;
    float *w;
    struct tensor all = tensor_view(NULL, DT_F32, m->n_flat, 1, 1, 1);
    assert_int_equal(MEM_NEW(&w, m->n_flat), 0);
    all.data = w;
    fill(&all, seed, 1);
    assert_int_equal(model_put(m, 0, m->n_flat, w), 0);
    free(w);
    fill(&t->st.optim.m, seed + 1, 1e-3);
    fill(&t->st.optim.v, seed + 2, 1e-6);
    for (int i = 0; i < 3; i++) {
        t->st.ref.w[i] = -1.0 / (double)(seed + (uint64_t)i);
        t->st.ref.l[i] = -1.0 / (double)(seed + 10 + (uint64_t)i);
    }
    t->st.ref_eval.w[1] = -3e-300; /* the others stay NaN: rows that no step visits */
    t->st.step = 40 + (int64_t)seed;
    t->st.optim.opt.step = 39 + (int64_t)seed;
    t->st.skipped = 5;
    t->st.skipped_run = 1;
}

static bool same(const struct tensor *a, const struct tensor *b)
{
    return memcmp(a->data, b->data, (size_t)(tensor_count(a) * dtype_size(a->dtype))) == 0;
}

static void round_trip(void **state, enum dtype dtype)
{
    struct trainer a, b;
    struct checkpoint_info info, found;
    const char *out = scratch_dir(state);
    trainer_open(&a, out, FIX_QWEN3, dtype, &PLAIN);
    trainer_open(&b, out, FIX_QWEN3, dtype, &PLAIN);
    trainer_fill(&a, 3);
    assert_int_equal(checkpoint_newest(out, &found), 0);
    assert_int_equal(checkpoint_save(out, &a.st, 123, RUN, 2, &info), 0);
    assert_string_equal(info.name, "preference-000043");
    assert_int_equal(checkpoint_newest(out, &found), 1);
    assert_string_equal(found.name, info.name);
    assert_int_equal(found.kind, STAGE_PREFERENCE);
    assert_int_equal(found.step, 43);
    assert_int_equal(found.metrics_bytes, 123);
    const char *path = scratch(state, "checkpoints/preference-000043");
    assert_int_equal(checkpoint_load(path, &b.st, RUN, false), 0);
    assert_true(same(&a.st.model.weights, &b.st.model.weights));
    if (dtype == DT_BF16) assert_true(same(&a.st.model.low, &b.st.model.low));
    assert_true(same(&a.st.optim.m, &b.st.optim.m) && same(&a.st.optim.v, &b.st.optim.v));
    assert_memory_equal(a.st.ref.w, b.st.ref.w, 24);
    assert_memory_equal(a.st.ref.l, b.st.ref.l, 24);
    assert_true(isnan(b.st.ref_eval.w[0]) && b.st.ref_eval.w[1] == -3e-300);
    assert_true(b.st.step == 43 && b.st.optim.opt.step == 42 && b.st.skipped == 5 &&
                b.st.skipped_run == 1);
    trainer_close(&a);
    trainer_close(&b);
}

static void test_checkpoint__round_trip(void **state)
{
    round_trip(state, DT_F32);
}

static void test_checkpoint__round_trip_bf16(void **state)
{
    round_trip(state, DT_BF16);
}

/* With --allow-change a float32 run goes on in bfloat16: its weights become the master. */
static void test_checkpoint__from_float32_to_bf16(void **state)
{
    struct trainer a, b;
    struct checkpoint_info info;
    const char *out = scratch_dir(state);
    trainer_open(&a, out, FIX_LLAMA3_BIASES, DT_F32, &PLAIN);
    trainer_open(&b, out, FIX_LLAMA3_BIASES, DT_BF16, &PLAIN);
    trainer_fill(&a, 3);
    assert_int_equal(checkpoint_save(out, &a.st, 0, RUN, 2, &info), 0);
    const char *path = scratch(state, "checkpoints/preference-000043");
    assert_int_equal(checkpoint_load(path, &b.st, RUN, false), 0);
    for (int64_t i = 0; i < a.st.model.n_flat; i++) {
        const float was = ((float *)a.st.model.weights.data)[i];
        uint16_t upper;
        const int16_t low = split_float(was, &upper);
        assert_int_equal(((uint16_t *)b.st.model.weights.data)[i], f32_to_bf16(was));
        assert_int_equal(((int16_t *)b.st.model.low.data)[i], low);
    }
    trainer_close(&a);
    trainer_close(&b);
}

static void test_checkpoint__other_run(void **state)
{
    struct trainer a, b;
    struct checkpoint_info info;
    const char *out = scratch_dir(state), *other = "{\"seed\": 1, \"sft\": {\"epochs\": 3.0}}";
    trainer_open(&a, out, FIX_QWEN3, DT_F32, &PLAIN);
    trainer_fill(&a, 3);
    assert_int_equal(checkpoint_save(out, &a.st, 0, RUN, 2, &info), 0);
    const char *path = scratch(state, "checkpoints/preference-000043");
    assert_int_equal(checkpoint_load(path, &a.st, other, false), ERR_CHECKPOINT);
    assert_msg("sft.epochs: 3.0 was 2.0");
    assert_int_equal(checkpoint_load(path, &a.st, other, true), 0);
    trainer_open(&b, out, FIX_LLAMA_TIED, DT_F32, &PLAIN); /* another model: sizes differ */
    assert_int_equal(checkpoint_load(path, &b.st, RUN, false), ERR_CHECKPOINT);
    assert_msg("another model");
    trainer_close(&b);
    scores_release(&a.st.ref);
    assert_int_equal(scores_init(&a.st.ref, 4), 0); /* other data */
    assert_int_equal(checkpoint_load(path, &a.st, RUN, false), ERR_CHECKPOINT);
    assert_msg("a reference for 3 rows");
    assert_int_equal(checkpoint_load(scratch(state, "none"), &a.st, RUN, false), ERR_CHECKPOINT);
    trainer_close(&a);
}

static void save_at(struct trainer *t, const char *out, enum stage_kind kind, int64_t step,
                    int64_t keep)
{
    struct checkpoint_info info;
    t->st.kind = kind;
    t->st.name = kind == STAGE_SFT ? "sft" : "preference";
    t->st.step = step;
    assert_int_equal(checkpoint_save(out, &t->st, 0, RUN, keep, &info), 0);
}

static void expect_checkpoints(void **state, const char *const *names, int n)
{
    char path[64];
    void *dir = strdup(scratch(state, "checkpoints"));
    assert_int_equal(scratch_count(&dir), n);
    for (int i = 0; i < n; i++) {
        snprintf(path, sizeof path, "checkpoints/%s", names[i]);
        if (!dir_exists(scratch(state, path))) fail_msg("%s is not there", path);
    }
    free(dir);
}
#define EXPECT_CHECKPOINTS(...)                                     \
    expect_checkpoints(state, (const char *const[]){ __VA_ARGS__ }, \
                       COUNT_OF(((const char *const[]){ __VA_ARGS__ })))

static void test_checkpoint__rotation(void **state)
{
    struct trainer t;
    struct checkpoint_info found;
    const char *out = scratch_dir(state);
    trainer_open(&t, out, FIX_LLAMA_TIED, DT_F32, &PLAIN);
    save_at(&t, out, STAGE_SFT, 5, 2);
    save_at(&t, out, STAGE_SFT, 999999, 2);
    save_at(&t, out, STAGE_SFT, 1000000, 2); /* by number, not by name */
    EXPECT_CHECKPOINTS("sft-999999", "sft-1000000");
    save_at(&t, out, STAGE_PREFERENCE, 1, 2);
    EXPECT_CHECKPOINTS("sft-1000000", "preference-000001");
    assert_int_equal(checkpoint_newest(out, &found), 1);
    assert_string_equal(found.name, "preference-000001");
    save_at(&t, out, STAGE_PREFERENCE, 2, 3);
    save_at(&t, out, STAGE_PREFERENCE, 2, 3); /* again */
    EXPECT_CHECKPOINTS("sft-1000000", "preference-000001", "preference-000002");
    save_at(&t, out, STAGE_PREFERENCE, 3, 1);
    EXPECT_CHECKPOINTS("preference-000003");
    /* an older step: what is newer belongs to a run that is not gone on with */
    save_at(&t, out, STAGE_PREFERENCE, 2, 1);
    EXPECT_CHECKPOINTS("preference-000002");
    save_at(&t, out, STAGE_SFT, 7, 3);
    EXPECT_CHECKPOINTS("sft-000007");
    trainer_close(&t);
}

static void spoil(const char *path, int64_t at, char byte)
{
    char *text;
    size_t len;
    assert_int_equal(file_read(&text, &len, path, 1 << 26), 0);
    text[at < 0 ? (int64_t)len + at : at] ^= byte;
    scratch_put(path, text, len);
    free(text);
}

/* Replace a piece of a manifest, and give it the checksum that goes with it. */
static void edit(const char *path, const char *was, const char *now)
{
    struct buf b = { 0 };
    char *text, *at;
    size_t len;
    assert_int_equal(file_read(&text, &len, path, 1 << 26), 0);
    at = strstr(text, was);
    if (!at) fail_msg("\"%s\" is not in %s", was, path);
    buf_add(&b, text, (size_t)(at - text));
    buf_adds(&b, now);
    buf_adds(&b, at + strlen(was));
    *(strstr(b.data, ",\n  \"crc32\": ")) = 0;
    b.len = strlen(b.data);
    buf_addf(&b, ",\n  \"crc32\": %lu\n}\n", crc32_z(0, (uint8_t *)b.data, b.len));
    scratch_put(path, b.data, b.len);
    buf_release(&b);
    free(text);
}

static void test_checkpoint__broken(void **state)
{
    static const char manifest[] = "checkpoints/sft-000002/manifest.json",
                      data[] = "checkpoints/sft-000002/state-00000-of-00001.bin",
                      reference[] = "checkpoints/sft-000002/reference.bin";
    static const struct {
        const char *was, *now, *msg;
    } edits[] = {
        { "\"version\": 4", "\"version\": 1", "format 1" },
        { "\"version\": 4", "\"version\": 1e300", "version" },
        { "\"stage\": \"sft\"", "\"stage\": \"preference\"", "of preference" },
        { "\"stage\"", "\"stagf\"", "stage" },
        { "\"step\": 2", "\"step\": 3", "says step 3" },
        { "\"step\": 2", "\"step\": -2", "\"step\"" },
        { "\"updates\": 0", "\"updates\": 0.5", "\"updates\"" },
        { "\"ranks\": 1", "\"ranks\": 2", "files" },
        { "\"ranks\": 1", "\"ranks\": 0", "files" },
        { "\"ranks\": 1", "\"ranks\": 1000000000", "ranks" },
        { "\"rank\": 0", "\"rank\": 1", "of its rank" },
        { "state-00000-of-00001.bin", "../state-00000-of-00001.bin", "does not list" },
        { "\"name\": \"reference.bin\"", "\"name\": \"/dev/zero\"", "does not list" },
        { "\"layout\": [", "\"layoux\": [", "layout" },
    };
    struct trainer t;
    struct checkpoint_info found;
    const char *out = scratch_dir(state);
    trainer_open(&t, out, FIX_LLAMA_TIED, DT_F32, &PLAIN);
    for (size_t kind = 0; kind < 10 + COUNT_OF(edits); kind++) {
        save_at(&t, out, STAGE_SFT, 1, 2);
        save_at(&t, out, STAGE_SFT, 2, 2);
        if (kind == 0) spoil(scratch(state, data), -1, 1);
        if (kind == 1) spoil(scratch(state, data), 9, 1);
        if (kind == 2) spoil(scratch(state, manifest), 0, 1);
        if (kind == 3) scratch_put(scratch(state, data), "", 0);
        if (kind == 4) assert_int_equal(dir_remove(scratch(state, data)), 0);
        if (kind == 5) assert_int_equal(dir_remove(scratch(state, manifest)), 0);
        if (kind == 6) scratch_put(scratch(state, manifest), "{\"version\": 4, \"step\": -1}", 26);
        if (kind == 7) spoil(scratch(state, reference), 4, 1);
        if (kind == 8) assert_int_equal(dir_remove(scratch(state, reference)), 0);
        if (kind == 9) spoil(scratch(state, manifest), 40, '5' ^ '6');
        if (kind > 9) edit(scratch(state, manifest), edits[kind - 10].was, edits[kind - 10].now);
        assert_int_equal(checkpoint_open(scratch(state, "checkpoints/sft-000002"), &found),
                         ERR_CHECKPOINT);
        assert_msg("sft-000002");
        if (kind > 9) assert_msg(edits[kind - 10].msg);
        assert_int_equal(checkpoint_newest(out, &found), 1);
        assert_string_equal(found.name, "sft-000001");
    }
    assert_int_equal(checkpoint_open(scratch(state, "checkpoints"), &found), ERR_CHECKPOINT);
    assert_int_equal(checkpoint_open("sft-12", &found), ERR_CHECKPOINT);
    assert_int_equal(checkpoint_open("sft-00000000000000000000000000001", &found), ERR_CHECKPOINT);
    trainer_close(&t);
}

static void test_checkpoint__sweep_and_wipe(void **state)
{
    static const char *const left[] = { "checkpoints/.tmp-sft-000009",
                                        "checkpoints/.del-sft-000001", "models/epoch-3.tmp",
                                        "sft.tmp", "model.old" };
    static const char *const kept[] = {
        "checkpoints/sft-000002", "models/epoch-3", "sft", "model", "mine.tmp", "mine.old"
    };
    const char *out = scratch_dir(state);
    for (size_t i = 0; i < COUNT_OF(left); i++)
        assert_int_equal(dir_make(scratch(state, left[i])), 0);
    for (size_t i = 0; i < COUNT_OF(kept); i++)
        assert_int_equal(dir_make(scratch(state, kept[i])), 0);
    scratch_put(scratch(state, "status.json.tmp-77"), "x", 1);
    scratch_put(scratch(state, "status.json"), "x", 1);
    assert_int_equal(checkpoint_sweep(out), 0);
    for (size_t i = 0; i < COUNT_OF(left); i++)
        assert_false(dir_exists(scratch(state, left[i])));
    for (size_t i = 0; i < COUNT_OF(kept); i++)
        assert_true(dir_exists(scratch(state, kept[i])));
    assert_false(file_exists(scratch(state, "status.json.tmp-77")));
    assert_true(file_exists(scratch(state, "status.json")));
    assert_int_equal(checkpoint_wipe(out), 0);
    assert_int_equal(scratch_count(state), 2); /* mine.tmp, mine.old */
    assert_int_equal(checkpoint_sweep(scratch(state, "none")), 0);
}

/* A full disk in the middle of a checkpoint leaves the one before it and nothing else. */
static void test_checkpoint__cannot_write(void **state)
{
    struct trainer t;
    struct checkpoint_info info;
    const char *out = scratch_dir(state);
    trainer_open(&t, out, FIX_LLAMA_TIED, DT_F32, &PLAIN);
    save_at(&t, out, STAGE_SFT, 1, 2);
    scratch_put(scratch(state, "file"), "x", 1);
    t.st.step = 2;
    assert_int_equal(checkpoint_save(scratch(state, "file"), &t.st, 0, RUN, 2, &info), ERR_IO);
    assert_msg("file");
    EXPECT_CHECKPOINTS("sft-000001");
    trainer_close(&t);
}

#define T(f) cmocka_unit_test_setup_teardown(f, scratch_make, scratch_remove)
int main(void)
{
    const struct CMUnitTest tests[] = {
#define T(f) cmocka_unit_test_setup_teardown(f, scratch_make, scratch_remove)
        T(test_optim__adamw_over_a_model),
        T(test_optim__clip),
        T(test_checkpoint__round_trip),
        T(test_checkpoint__round_trip_bf16),
        T(test_checkpoint__from_float32_to_bf16),
        T(test_checkpoint__other_run),
        T(test_checkpoint__rotation),
        T(test_checkpoint__broken),
        T(test_checkpoint__sweep_and_wipe),
        T(test_checkpoint__cannot_write),
    };
    return cmocka_run_group_tests_name("train_state", tests, NULL, NULL);
}
