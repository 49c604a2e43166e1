/* SPDX-License-Identifier: MIT */
#include "model_fixture.h"
#include "../src/model/nf4.h"
#include "../src/base/rng.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *fix_config(int shape)
{
    static const char *const text[FIX_SHAPES + 1] = {
        "{\"architectures\": [\"Qwen2ForCausalLM\"], \"model_type\": \"qwen2\", \"hidden_size\": "
        "32, "
        "\"intermediate_size\": 44, \"num_hidden_layers\": 2, \"num_attention_heads\": 4, "
        "\"num_key_value_heads\": 2, \"vocab_size\": 61, \"tie_word_embeddings\": true, "
        "\"rope_theta\": 1000000.0, \"torch_dtype\": \"bfloat16\", \"initializer_range\": 0.02}",
        "{\"architectures\": [\"Qwen3ForCausalLM\"], \"model_type\": \"qwen3\", \"hidden_size\": "
        "24, "
        "\"intermediate_size\": 40, \"num_hidden_layers\": 3, \"num_attention_heads\": 4, "
        "\"num_key_value_heads\": 1, \"head_dim\": 10, \"vocab_size\": 61, "
        "\"rope_parameters\": {\"rope_theta\": 10000.0, \"rope_type\": \"default\"}, "
        "\"dtype\": \"float32\"}",
        "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", \"hidden_size\": "
        "36, "
        "\"intermediate_size\": 50, \"num_hidden_layers\": 2, \"num_attention_heads\": 6, "
        "\"num_key_value_heads\": 3, \"vocab_size\": 61, \"attention_bias\": true, "
        "\"mlp_bias\": true, \"rope_theta\": 500.0, \"rms_norm_eps\": 1e-05, "
        "\"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 4.0, \"low_freq_factor\": 1.0, "
        "\"high_freq_factor\": 4.0, \"original_max_position_embeddings\": 64}}",
        "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", \"hidden_size\": "
        "32, "
        "\"intermediate_size\": 33, \"num_hidden_layers\": 1, \"num_attention_heads\": 2, "
        "\"vocab_size\": 61, \"tie_word_embeddings\": true, \"torch_dtype\": \"float16\"}",
        "{\"model_type\": \"qwen3\", \"hidden_size\": 24, \"intermediate_size\": 40, "
        "\"num_hidden_layers\": 2, \"num_attention_heads\": 2, \"num_key_value_heads\": 2, "
        "\"head_dim\": 16, \"vocab_size\": 61, \"attention_bias\": true, "
        "\"tie_word_embeddings\": true}",
        "{\"model_type\": \"qwen2\", \"hidden_size\": 64, \"intermediate_size\": 192, "
        "\"num_hidden_layers\": 2, \"num_attention_heads\": 4, \"num_key_value_heads\": 2, "
        "\"head_dim\": 32, \"vocab_size\": 61, \"tie_word_embeddings\": false}",
    };
    return text[shape];
}

void fix_write(const char *dir, const char *name, const char *text)
{
    char *path;
    BUG_IF(path_join(&path, dir, name) < 0);
    BUG_IF(file_write_all(path, text, strlen(text)) < 0);
    free(path);
}

static float draw_weight(const struct param *p, int32_t i, int64_t j)
{
    const double z = rng_normal(7, rng_stream_of(RNG_TEST, (uint64_t)i), (uint64_t)j);
    const bool bias = strstr(p->slice[0].name, ".bias") != NULL;
    return (float)(p->decay ? 0.25 * z : bias ? 0.2 * z : 1 + 0.2 * z);
}

static void open_fix(struct fix *f, fix_backend *open, const char *dir, int shape, enum dtype dtype,
                     const struct lora *lora, int nf4, const struct model_size *size)
{
    struct arch a;
    memset(f, 0, sizeof *f);
    fix_write(dir, "config.json", fix_config(shape));
    BUG_IF(arch_load(&a, dir) < 0);
    if (lora) a.lora = *lora;
    a.nf4 = nf4 > 0;
    a.nf4_double = nf4 > 1;
    f->sizes = (struct op_sizes){ .T = 64,
                                  .C = a.C,
                                  .F = a.F,
                                  .H = a.H,
                                  .K = a.K,
                                  .D = a.D,
                                  .V = a.V,
                                  .group = 2 * FIX_LEN,
                                  .rank = a.lora.rank,
                                  .A = dtype,
                                  .train = size->train };
    BUG_IF(open(&f->be, 2) < 0);
    BUG_IF(model_init(&f->m, &f->be, &a, dtype) < 0);
    BUG_IF(model_plan_weights(&f->m, &f->plan, size->train) < 0);
    BUG_IF(model_plan_buffers(&f->m, &f->plan, size) < 0);
    BUG_IF(plan_grant(&f->plan, &f->be) < 0);
    BUG_IF(model_ready(&f->m) < 0);
    for (int32_t i = 0; i < f->m.n_params; i++) {
        const struct param *p = &f->m.params[i];
        const int64_t n = tensor_count(&p->w);
        float *w;
        BUG_IF(MEM_NEW(&w, n) < 0);
        for (int64_t j = 0; j < n; j++)
            w[j] = draw_weight(p, i, j);
        BUG_IF((p->nf4 ? nf4_put(&f->m, p, 0, n, w) : model_put(&f->m, p->offset, n, w)) < 0);
        for (int32_t k = 0; p->nf4 && k < p->n_slices; k++)
            BUG_IF(nf4_slice_done(&f->m, p, k) < 0);
        free(w);
    }
}

void fix_open_on(struct fix *f, fix_backend *open, const char *dir, int shape, enum dtype dtype,
                 const struct model_size *size)
{
    open_fix(f, open, dir, shape, dtype, NULL, 0, size);
}

void fix_open_nf4(struct fix *f, fix_backend *open, const char *dir, enum dtype dtype,
                  const struct lora *lora, int nf4, const struct model_size *size)
{
    open_fix(f, open, dir, FIX_WIDE, dtype, lora, nf4, size);
}

void fix_open_lora(struct fix *f, const char *dir, int shape, enum dtype dtype,
                   const struct lora *lora, const struct model_size *size)
{
    open_fix(f, cpu_open, dir, shape, dtype, lora, 0, size);
}

void fix_open_as(struct fix *f, const char *dir, int shape, enum dtype dtype, bool train,
                 int recompute)
{
    fix_open_on(f, cpu_open, dir, shape, dtype,
                &(struct model_size){ 64, 64, 64, train, recompute, false });
}

void fix_open(struct fix *f, const char *dir, int shape, bool train, int recompute)
{
    fix_open_as(f, dir, shape, DT_F32, train, recompute);
}

void fix_open_keeping(struct fix *f, const char *dir, int shape, enum dtype dtype)
{
    fix_open_on(f, cpu_open, dir, shape, dtype, &(struct model_size){ 64, 64, 64, true, 0, true });
}

void fix_close(struct fix *f)
{
    plan_release(&f->plan, &f->be); /* clears the views inside the model */
    model_release(&f->m);
    backend_close(&f->be);
}

void fix_pairs_draw(struct fix_pairs *p, uint64_t seed)
{
    static const int32_t sizes[FIX_PAIRS][3] = {
        { 3, 4, 2 }, { 1, 1, 5 }, { 7, 1, 1 }, { 2, 3, 6 }
    };
    uint64_t n = 0;
    memset(p, 0, sizeof *p);
    for (int i = 0; i < FIX_PAIRS; i++) {
        p->np[i] = sizes[i][0];
        for (int j = 0; j < p->np[i]; j++)
            p->prompt[i][j] = (int32_t)(rng_u64(seed, 1, n++) % FIX_VOCAB);
        for (int s = 0; s < 2; s++) {
            p->len[i][s] = sizes[i][1 + s];
            for (int j = 0; j < p->len[i][s]; j++)
                p->response[i][s][j] = (int32_t)(rng_u64(seed, 1, n++) % FIX_VOCAB);
        }
    }
}

int32_t fix_sequence(const struct fix_pairs *p, int s, int32_t ids[2 * FIX_LEN])
{
    const int i = s / 2, side = s % 2;
    memcpy(ids, p->prompt[i], (size_t)p->np[i] * sizeof *ids);
    memcpy(ids + p->np[i], p->response[i][side], (size_t)p->len[i][side] * sizeof *ids);
    return p->np[i] + p->len[i][side];
}

static void begin(struct fix_batch *fb)
{
    memset(fb, 0, sizeof *fb);
    fb->b = (struct batch){ .ids = fb->ids,
                            .pos = fb->pos,
                            .seg = fb->seg,
                            .group = fb->group,
                            .src = fb->src,
                            .target = fb->target,
                            .seq = fb->seq,
                            .seq_start = fb->seq_start };
}

static void add_tokens(struct batch *b, const int32_t *ids, int32_t n, int32_t pos)
{
    for (int32_t i = 0; i < n; i++) {
        b->ids[b->T] = ids[i];
        b->pos[b->T++] = pos + i;
    }
}

/* Response tokens: the first is predicted by row `last`, the others by the rows from `rows` on. */
static void add_targets(struct batch *b, const int32_t *ids, int32_t n, int32_t last, int32_t rows)
{
    for (int32_t i = 0; i < n; i++) {
        b->src[b->N] = i == 0 ? last : rows + i - 1;
        b->target[b->N] = ids[i];
        b->seq[b->N++] = b->S;
    }
    b->seq_start[++b->S] = b->N;
}

void fix_batch_pairs(struct fix_batch *fb, const struct fix_pairs *p, int first, int n)
{
    struct batch *b = &fb->b;
    begin(fb);
    for (int i = first; i < first + n; i++) {
        const int32_t start = b->T, np = p->np[i];
        add_tokens(b, p->prompt[i], np, 0);
        b->seg[b->n_seg++] = (struct segment){ start, np, start, 0, 0 };
        for (int s = 0; s < 2; s++) {
            const int32_t row = b->T, len = p->len[i][s] - 1;
            add_tokens(b, p->response[i][s], len, np);
            add_targets(b, p->response[i][s], p->len[i][s], start + np - 1, row);
            if (len) b->seg[b->n_seg++] = (struct segment){ row, len, row, start, np };
        }
        b->group[++b->n_groups] = b->n_seg;
        b->P++;
    }
}

void fix_batch_apart(struct fix_batch *fb, const struct fix_pairs *p, int first, int n)
{
    struct batch *b = &fb->b;
    begin(fb);
    for (int s = 2 * first; s < 2 * (first + n); s++) {
        int32_t ids[2 * FIX_LEN];
        const int32_t start = b->T, np = p->np[s / 2], len = fix_sequence(p, s, ids) - 1;
        add_tokens(b, ids, len, 0);
        add_targets(b, ids + np, len + 1 - np, start + np - 1, start + np);
        b->seg[b->n_seg++] = (struct segment){ start, len, start, 0, 0 };
        b->group[++b->n_groups] = b->n_seg;
        b->P++;
    }
}
