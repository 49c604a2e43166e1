/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "../src/ops/split.h"
#include "model_fixture.h"

static char root[64], source[96], saved[96];

static int make_dirs(void **state)
{
    (void)state;
    snprintf(root, sizeof root, "/tmp/t_weights-XXXXXX");
    if (!mkdtemp(root)) return -1;
    snprintf(source, sizeof source, "%s/source", root);
    snprintf(saved, sizeof saved, "%s/saved", root);
    return dir_make(source);
}

static int remove_dirs(void **state)
{
    (void)state;
    return dir_remove(root);
}

static bool has(const char *dir, const char *name)
{
    char path[512];
    struct stat st;
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return stat(path, &st) == 0;
}

static json_t *read_json(const char *dir, const char *name)
{
    char path[256];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    json_t *j = json_load_file(path, 0, NULL);
    assert_non_null(j);
    return j;
}

static void expect_key(const char *dir, const char *name, const char *key, const char *want)
{
    json_t *j = read_json(dir, name);
    if (want)
        assert_string_equal(json_string_value(json_object_get(j, key)), want);
    else
        assert_null(json_object_get(j, key));
    json_decref(j);
}

static float as(enum st_dtype t, float x)
{
    return t == ST_BF16 ? bf16_to_f32(f32_to_bf16(x)) : t == ST_F16 ? f16_to_f32(f32_to_f16(x)) : x;
}

/* Save f, load the result into a second model, compare every element with its rounding. */
static void round_trip(struct fix *f, int shape, enum st_dtype dtype, int64_t shard_bytes)
{
    struct fix g;
    fix_open(&g, root, shape, false, false);
    memset(g.m.weights.data, 0, (size_t)g.m.n_flat * sizeof(float));
    assert_int_equal(model_save(&f->m, saved, source, dtype, shard_bytes), 0);
    assert_int_equal(model_load(&g.m, saved), 0);
    for (int64_t i = 0; i < f->m.n_flat; i++) {
        const float want = as(dtype, ((float *)f->m.weights.data)[i]);
        assert_memory_equal(&want, (float *)g.m.weights.data + i, sizeof want);
    }
    assert_int_equal(model_dir_dtype(saved, &f->m.arch), dtype);
    fix_close(&g);
}

static void test_weights__round_trip(void **state)
{
    (void)state;
    for (int shape = 0; shape < FIX_SHAPES; shape++) {
        struct fix f;
        fix_open(&f, source, shape, false, false);
        round_trip(&f, shape, ST_F32, 1 << 30);
        assert_true(has(saved, "model.safetensors") && !has(saved, "model.safetensors.index.json"));
        round_trip(&f, shape, ST_BF16, 1 << 30);
        round_trip(&f, shape, ST_F16, 1 << 30);
        fix_close(&f);
    }
}

/* The exact weights, master or not. */
static float *exact(const struct model *m)
{
    float *w = malloc((size_t)m->n_flat * sizeof *w);
    assert_non_null(w);
    assert_int_equal(model_get(m, 0, m->n_flat, w), 0);
    return w;
}

/* x as a weight and its lower half hold it: but for ties, itself. */
static float held(float x)
{
    uint16_t upper;
    const int16_t low = split_float(x, &upper);
    const float y = split_join(upper, low);
    assert_true(y == x || (nextafterf(y, x) == x && f32_to_bf16(x) % 2 == 0));
    return y;
}

/* Every weight that computes is its exact one, rounded to bfloat16. */
static void expect_rounding(const struct model *m)
{
    float *w = exact(m);
    for (int64_t i = 0; i < m->n_flat; i++)
        assert_int_equal(((const uint16_t *)m->weights.data)[i], f32_to_bf16(w[i]));
    free(w);
}

/* Through the files of each dtype the master keeps what the file can hold, and nothing of it is lost by a second trip. */
static void test_weights__bf16_with_a_master(void **state)
{
    static const enum st_dtype files[] = { ST_F32, ST_BF16, ST_F16 };
    (void)state;
    for (int k = 0; k < FIX_SHAPES * 3; k++) {
        const enum st_dtype dtype = files[k % 3];
        struct fix f, g;
        fix_open_as(&f, source, k / 3, DT_BF16, true, false);
        fix_open_as(&g, root, k / 3, DT_BF16, true, false);
        assert_true(f.m.low.data && f.plan.bytes[PLAN_MASTER] == 2 * f.m.n_flat &&
                    f.plan.bytes[PLAN_WEIGHTS] == 2 * f.m.n_flat);
        expect_rounding(&f.m);
        float *was = exact(&f.m);
        assert_int_equal(model_random(&g.m, 3), 0);
        expect_rounding(&g.m);
        assert_int_equal(model_save(&f.m, saved, source, dtype, 1 << 30), 0);
        assert_int_equal(model_load(&g.m, saved), 0);
        expect_rounding(&g.m);
        float *read = exact(&g.m);
        for (int64_t i = 0; i < f.m.n_flat; i++)
            assert_true(read[i] == held(as(dtype, was[i])));
        /* what model_round makes is what the file holds: the run goes on with it to the bit */
        assert_int_equal(model_round(&f.m, dtype), 0);
        expect_rounding(&f.m);
        float *rounded = exact(&f.m);
        assert_memory_equal(rounded, read, (size_t)f.m.n_flat * sizeof *read);
        assert_memory_equal(f.m.weights.data, g.m.weights.data, (size_t)f.m.n_flat * 2);
        free(was);
        free(read);
        free(rounded);
        fix_close(&f);
        fix_close(&g);
    }
}

/* Without training there is no master; the weights are what a training model computes with. */
static void test_weights__bf16_without_a_master(void **state)
{
    struct fix f, g;
    (void)state;
    fix_open_as(&f, source, FIX_QWEN3, DT_BF16, true, false);
    assert_int_equal(model_save(&f.m, saved, source, ST_F32, 1 << 30), 0);
    fix_open_as(&g, root, FIX_QWEN3, DT_BF16, false, false);
    memset(g.m.weights.data, 0, (size_t)g.m.n_flat * 2);
    assert_int_equal(model_load(&g.m, saved), 0);
    assert_null(g.m.low.data);
    assert_memory_equal(f.m.weights.data, g.m.weights.data, (size_t)f.m.n_flat * 2);
    assert_int_equal(model_save(&g.m, saved, source, ST_F32, 1 << 30), 0);
    assert_int_equal(model_load(&f.m, saved), 0);
    float *w = exact(&f.m);
    for (int64_t i = 0; i < f.m.n_flat; i++)
        assert_true(w[i] == bf16_to_f32(((const uint16_t *)g.m.weights.data)[i]));
    free(w);
    fix_close(&f);
    fix_close(&g);
}

/* The last float32 that rounds to a finite bfloat16, and the first that does not. */
static void test_weights__too_large_for_bf16(void **state)
{
    const float last = 0x1.fefffep127f, over = 0x1.ffp127f;
    struct fix f, g;
    (void)state;
    fix_open(&f, source, FIX_QWEN2_TIED, false, false);
    fix_open_as(&g, root, FIX_QWEN2_TIED, DT_BF16, true, false);
    float *w = f.m.params[f.m.final_norm].w.data;
    w[5] = last;
    assert_int_equal(model_save(&f.m, saved, source, ST_F32, 1 << 30), 0);
    assert_int_equal(model_load(&g.m, saved), 0);
    w[5] = -over;
    assert_int_equal(model_save(&f.m, saved, source, ST_F32, 1 << 30), 0);
    assert_int_equal(model_load(&g.m, saved), ERR_INPUT);
    assert_non_null(
        strstr(err_msg(), "\"model.norm.weight\": element 5 is too large for bfloat16"));
    assert_int_equal(model_load(&f.m, saved), 0);
    fix_close(&f);
    fix_close(&g);
}

static void test_weights__shards(void **state)
{
    struct fix f;
    struct st_set set = { 0 };
    char path[256];
    int64_t total = 0;
    (void)state;
    fix_open(&f, source, FIX_QWEN3, false, false);
    round_trip(&f, FIX_QWEN3, ST_F32, 1 << 30);
    round_trip(&f, FIX_QWEN3, ST_F32, 8000); /* replaces the single file */
    assert_false(has(saved, "model.safetensors"));
    assert_int_equal(st_open_dir(&set, saved), 0);
    assert_true(set.n_files > 2);
    for (int64_t i = 0; i < set.n; i++)
        total += set.tensors[i].count * 4;
    json_t *index = read_json(saved, "model.safetensors.index.json");
    json_t *map = json_object_get(index, "weight_map");
    assert_int_equal(json_integer_value(json_object_get(json_object_get(index, "metadata"), //
                                                        "total_size")),
                     total);
    assert_int_equal(json_object_size(map), (size_t)set.n);
    snprintf(path, sizeof path, "model-00001-of-%05d.safetensors", set.n_files);
    assert_string_equal(json_string_value(json_object_get(map, "model.embed_tokens.weight")), path);
    assert_true(has(saved, path));
    for (int32_t i = 0; i < set.n_files; i++) { /* at most 8,000 bytes, or one tensor */
        int64_t bytes = 0, tensors = 0;
        for (int64_t j = 0; j < set.n; j++)
            if (set.tensors[j].file == i) {
                bytes += set.tensors[j].count * 4;
                tensors++;
            }
        assert_true(bytes <= 8000 || tensors == 1);
    }
    json_decref(index);
    st_close(&set);
    fix_close(&f);
}

static void test_weights__tied_head_is_not_written_twice(void **state)
{
    struct fix f;
    struct st_set set = { 0 };
    (void)state;
    fix_open(&f, source, FIX_LLAMA_TIED, false, false);
    assert_int_equal(model_save(&f.m, saved, source, ST_F32, 1 << 30), 0);
    assert_int_equal(st_open_dir(&set, saved), 0);
    assert_null(st_find(&set, "lm_head.weight"));
    assert_non_null(st_find(&set, "model.layers.0.self_attn.k_proj.weight"));
    assert_int_equal(st_find(&set, "model.layers.0.mlp.up_proj.weight")->dim[0], 33);
    st_close(&set);
    fix_close(&f);
}

static void test_weights__directory(void **state)
{
    struct fix f;
    (void)state;
    fix_write(source, "tokenizer.json", "{\"a\": 1}");
    fix_write(source, "merges.txt", "x y\n");
    fix_write(source, "optimizer.pt", "not ours");
    fix_open(&f, source, FIX_QWEN2_TIED, false, false);
    assert_int_equal(model_save(&f.m, saved, source, ST_F32, 1 << 30), 0);
    assert_true(has(saved, "tokenizer.json") && has(saved, "merges.txt"));
    assert_false(has(saved, "optimizer.pt") || has(saved, "vocab.json"));
    expect_key(saved, "config.json", "torch_dtype", "float32"); /* was bfloat16 */
    expect_key(saved, "config.json", "dtype", NULL);
    fix_write(saved, "stale.txt", "of the older model");
    char with_slash[128];
    snprintf(with_slash, sizeof with_slash, "%s/", saved);
    assert_int_equal(model_save(&f.m, with_slash, source, ST_BF16, 1 << 30), 0);
    assert_false(has(saved, "stale.txt"));
    expect_key(saved, "config.json", "torch_dtype", "bfloat16");
    /* a model saved over its own source */
    assert_int_equal(model_save(&f.m, saved, saved, ST_F16, 1 << 30), 0);
    assert_true(has(saved, "tokenizer.json"));
    expect_key(saved, "config.json", "torch_dtype", "float16");
    assert_false(has(root, "saved.tmp") || has(root, "saved.old"));
    fix_close(&f);
    fix_open(&f, source, FIX_QWEN3, false, false); /* transformers 5's spelling */
    assert_int_equal(model_save(&f.m, saved, source, ST_BF16, 1 << 30), 0);
    expect_key(saved, "config.json", "dtype", "bfloat16");
    expect_key(saved, "config.json", "torch_dtype", NULL);
    fix_close(&f);
    fix_open(&f, source, FIX_QWEN3_TIED_BIASES, false, false); /* neither */
    assert_int_equal(model_save(&f.m, saved, source, ST_BF16, 1 << 30), 0);
    json_t *j = read_json(saved, "config.json");
    assert_string_equal(json_string_value(json_array_get(json_object_get(j, "architectures"), 0)),
                        "Qwen3ForCausalLM");
    json_decref(j);
    expect_key(saved, "config.json", "torch_dtype", "bfloat16");
    fix_close(&f);
}

static void test_weights__failed_save_leaves_the_old(void **state)
{
    struct fix f;
    char missing[128], file[128];
    (void)state;
    fix_open(&f, source, FIX_LLAMA_TIED, false, false);
    assert_int_equal(model_save(&f.m, saved, source, ST_F32, 1 << 30), 0);
    fix_write(saved, "mark", "");
    snprintf(missing, sizeof missing, "%s/nowhere", root);
    assert_true(model_save(&f.m, saved, missing, ST_F32, 1 << 30) < 0);
    assert_non_null(strstr(err_msg(), "nowhere/config.json"));
    assert_true(has(saved, "mark") && has(saved, "model.safetensors"));
    assert_false(has(root, "saved.tmp"));
    fix_write(root, "plain", "a file");
    snprintf(file, sizeof file, "%s/plain", root);
    assert_int_equal(model_save(&f.m, file, source, ST_F32, 1 << 30), ERR_IO);
    assert_true(has(root, "plain"));
    assert_false(has(root, "plain.tmp"));
    fix_close(&f);
}

/* One tensor of a saved model is changed, dropped or added. */
struct change {
    const char *name; /* of the tensor to change or drop; NULL: none */
    bool drop;
    enum st_dtype dtype;
    int32_t rank;
    int64_t dim[2];
    int64_t bad_at; /* element to set to bad; -1: none */
    float bad;
    const char *extra; /* a further tensor [3] of zeros, or a copy of extra_of; NULL: none */
    const char *extra_of;
    const char *prefix; /* taken off every name; NULL: none */
};

static void put(struct st_writer *w, const struct st_set *set, const struct st_tensor *t,
                const struct st_decl *d, const struct change *c, bool changed)
{
    int64_t n = 1;
    for (int32_t i = 0; i < d->rank; i++)
        n *= d->dim[i];
    float *x = calloc((size_t)n + 1, sizeof *x);
    assert_non_null(x);
    if (t) assert_int_equal(st_read_f32(set, t, 0, MIN(n, t->count), x), 0);
    if (changed && c->bad_at >= 0) x[c->bad_at] = c->bad;
    if (d->dtype == ST_I32)
        assert_int_equal(st_writer_put_raw(w, x, n * 4), 0);
    else
        assert_int_equal(st_writer_put_f32(w, x, n), 0);
    free(x);
}

/* Rewrite source's model as saved's, with the change. */
static void rewrite(const struct change *c)
{
    struct st_set set = { 0 };
    struct st_writer *w;
    char path[128];
    assert_int_equal(st_open_dir(&set, source), 0);
    struct st_decl *d = calloc((size_t)set.n + 1, sizeof *d);
    const struct st_tensor **from = calloc((size_t)set.n + 1, sizeof *from);
    int64_t n = 0, at = -1;
    assert_true(d && from);
    for (int64_t i = 0; i < set.n; i++) {
        const struct st_tensor *t = &set.tensors[i];
        const bool mine = c->name && strcmp(t->name, c->name) == 0;
        if (mine && c->drop) continue;
        const size_t cut =
            c->prefix && !strncmp(t->name, c->prefix, strlen(c->prefix)) ? strlen(c->prefix) : 0;
        from[n] = t;
        d[n] = (struct st_decl){ t->name + cut, t->dtype, t->rank, { t->dim[0], t->dim[1] } };
        if (mine) {
            at = n;
            d[n].dtype = c->dtype;
            if (c->rank) {
                d[n].rank = c->rank;
                memcpy(d[n].dim, c->dim, sizeof c->dim);
            }
        }
        n++;
    }
    if (c->extra) {
        from[n] = c->extra_of ? st_find(&set, c->extra_of) : NULL;
        d[n] = (struct st_decl){ c->extra, ST_F32, 1, { 3 } };
        if (from[n]) {
            d[n].rank = from[n]->rank;
            memcpy(d[n].dim, from[n]->dim, sizeof d[n].dim);
        }
        if (c->bad_at >= 0 && !c->name) at = n;
        n++;
    }
    assert_int_equal(dir_make(saved), 0);
    snprintf(path, sizeof path, "%s/model.safetensors", saved);
    assert_int_equal(st_writer_open(&w, path, d, n, NULL), 0);
    for (int64_t i = 0; i < n; i++)
        put(w, &set, from[i], &d[i], c, i == at);
    assert_int_equal(st_writer_close(w), 0);
    free(d);
    free(from);
    st_close(&set);
}

static int load_changed(int shape, const struct change *c)
{
    struct fix f;
    assert_int_equal(dir_remove(saved), 0);
    assert_int_equal(dir_remove(source), 0);
    assert_int_equal(dir_make(source), 0);
    fix_open(&f, root, shape, false, false);
    assert_int_equal(model_save(&f.m, source, root, ST_F32, 1 << 30), 0);
    rewrite(c);
    const int rc = model_load(&f.m, saved);
    fix_close(&f);
    return rc;
}

static void test_weights__refusals(void **state)
{
    static const char *const k = "model.layers.0.self_attn.k_proj.weight";
    static const struct {
        int shape;
        struct change c;
        const char *message;
    } rows[] = {
        { FIX_QWEN2_TIED, { k, true, 0, 0, { 0 }, -1, 0, NULL, NULL, NULL }, "is missing" },
        { FIX_QWEN2_TIED,
          { k, false, ST_F32, 2, { 17, 32 }, -1, 0, NULL, NULL, NULL },
          "expected [16, 32], found [17, 32]" },
        { FIX_QWEN2_TIED,
          { k, false, ST_F32, 1, { 512, 0 }, -1, 0, NULL, NULL, NULL },
          "expected [16, 32], found [512]" },
        { FIX_QWEN2_TIED,
          { "model.norm.weight", false, ST_F32, 2, { 32, 1 }, -1, 0, NULL, NULL, NULL },
          "expected [32], found [32, 1]" },
        { FIX_QWEN2_TIED,
          { k, false, ST_F32, 0, { 0 }, 100, NAN, NULL, NULL, NULL },
          "element 100 is not a number" },
        { FIX_QWEN2_TIED,
          { k, false, ST_F32, 0, { 0 }, 511, -INFINITY, NULL, NULL, NULL },
          "element 511 is infinite" },
        { FIX_QWEN2_TIED,
          { k, false, ST_I32, 0, { 0 }, -1, 0, NULL, NULL, NULL },
          "dtype I32 is not supported" },
        { FIX_QWEN2_TIED,
          { NULL,
            false,
            0,
            0,
            { 0 },
            7,
            0.5f,
            "lm_head.weight",
            "model.embed_tokens.weight",
            NULL },
          "\"lm_head.weight\" differs from \"model.embed_tokens.weight\"" },
        { FIX_QWEN2_TIED,
          { NULL, false, 0, 0, { 0 }, -1, 0, "lm_head.weight", NULL, NULL },
          "\"lm_head.weight\" differs" },
        { FIX_QWEN3,
          { "lm_head.weight", true, 0, 0, { 0 }, -1, 0, NULL, NULL, NULL },
          "tensor \"lm_head.weight\" is missing" },
        { FIX_QWEN3,
          { "model.layers.2.self_attn.q_norm.weight", true, 0, 0, { 0 }, -1, 0, NULL, NULL, NULL },
          "\"model.layers.2.self_attn.q_norm.weight\" is missing" },
    };
    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        assert_int_equal(load_changed(rows[i].shape, &rows[i].c), ERR_INPUT);
        if (!strstr(err_msg(), rows[i].message) || !strstr(err_msg(), saved))
            fail_msg("row %zu: \"%s\" does not contain \"%s\"", i, err_msg(), rows[i].message);
        if (rows[i].c.name) assert_non_null(strstr(err_msg(), rows[i].c.name));
    }
}

/* stderr of one load, read back. */
static int load_with_stderr(int shape, const struct change *c, char *out, size_t size)
{
    char path[128];
    snprintf(path, sizeof path, "%s/stderr", root);
    fflush(stderr);
    const int keep = dup(2);
    FILE *f = fopen(path, "w+");
    assert_true(f && keep >= 0);
    dup2(fileno(f), 2);
    const int rc = load_changed(shape, c);
    fflush(stderr);
    dup2(keep, 2);
    close(keep);
    rewind(f);
    out[fread(out, 1, size - 1, f)] = 0;
    fclose(f);
    return rc;
}

static void test_weights__extra_tensors(void **state)
{
    static const struct change none = { NULL, false, 0, 0, { 0 }, -1, 0, NULL, NULL, NULL };
    struct change c = none;
    char text[512];
    (void)state;
    assert_int_equal(load_with_stderr(FIX_QWEN2_TIED, &c, text, sizeof text), 0);
    assert_string_equal(text, "");
    c.extra = "model.layers.0.self_attn.rotary_emb.inv_freq";
    assert_int_equal(load_with_stderr(FIX_QWEN2_TIED, &c, text, sizeof text), 0);
    assert_string_equal(text, "");
    c.extra = "lm_head.weight";
    c.extra_of = "model.embed_tokens.weight";
    assert_int_equal(load_with_stderr(FIX_QWEN2_TIED, &c, text, sizeof text), 0);
    assert_string_equal(text, "");
    c.extra = "model.layers.9.odd\nname";
    c.extra_of = NULL;
    assert_int_equal(load_with_stderr(FIX_QWEN2_TIED, &c, text, sizeof text), 0);
    assert_non_null(strstr(text, "1 tensor is not part of a qwen2 model and ignored "
                                 "(\"model.layers.9.odd\\x0aname\")"));
    /* a checkpoint of the bare transformer */
    c = none;
    c.prefix = "model.";
    assert_int_equal(load_with_stderr(FIX_QWEN2_TIED, &c, text, sizeof text), 0);
    assert_string_equal(text, "");
}

static void test_weights__no_files(void **state)
{
    struct fix f;
    char empty[128];
    (void)state;
    snprintf(empty, sizeof empty, "%s/empty", root);
    assert_int_equal(dir_make(empty), 0);
    fix_open(&f, root, FIX_QWEN2_TIED, false, false);
    assert_int_equal(model_load(&f.m, empty), ERR_INPUT);
    assert_int_equal(model_dir_dtype(empty, &f.m.arch), ST_F32);
    fix_close(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_weights__round_trip),
        cmocka_unit_test(test_weights__bf16_with_a_master),
        cmocka_unit_test(test_weights__bf16_without_a_master),
        cmocka_unit_test(test_weights__too_large_for_bf16),
        cmocka_unit_test(test_weights__shards),
        cmocka_unit_test(test_weights__tied_head_is_not_written_twice),
        cmocka_unit_test(test_weights__directory),
        cmocka_unit_test(test_weights__failed_save_leaves_the_old),
        cmocka_unit_test(test_weights__refusals),
        cmocka_unit_test(test_weights__extra_tensors),
        cmocka_unit_test(test_weights__no_files),
    };
    return cmocka_run_group_tests(tests, make_dirs, remove_dirs);
}
