/* SPDX-License-Identifier: MIT */
#include "arch.h"
#include "../io/file.h"
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* bounds that keep every later product of sizes far inside 64 bits */
enum {
    WIDTH_MAX = 1 << 20,
    HEADS_MAX = 4096,
    HEAD_MAX = 1024,
    LAYERS_MAX = 4096,
    VOCAB_MAX = 1 << 24
};
static const int64_t PARAMETERS_MAX = (int64_t)1 << 44;
static const int64_t REQUIRED = INT64_MIN;

struct family { /* what transformers' configuration class says where a key is missing */
    const char *model_type, *architecture;
    int64_t kv_heads; /* 0: as many as query heads */
    int64_t head_dim; /* 0: hidden_size / num_attention_heads */
    int64_t max_positions;
    bool bias_key; /* attention_bias is read, and means q, k, v and o */
    bool qkv_bias, qk_norm, mlp_bias_key, widths_divide;
};
static const struct family FAMILIES[] = {
    { "qwen2", "Qwen2ForCausalLM", 32, 0, 32768, false, true, false, false, false },
    { "qwen3", "Qwen3ForCausalLM", 32, 128, 32768, true, false, true, false, false },
    { "llama", "LlamaForCausalLM", 0, 0, 2048, true, false, false, true, true },
};

/* Keys of other architectures, or of this one's variants, that change the maths. Harmless: null,
 * false, an empty list or object, and the number `neutral`. */
static const struct {
    const char *key;
    double neutral;
    const char *what;
} REFUSED[] = {
    { "quantization_config", 0, "quantised checkpoints" },
    { "num_experts", 0, "mixtures of experts" },
    { "num_local_experts", 0, "mixtures of experts" },
    { "n_routed_experts", 0, "mixtures of experts" },
    { "n_shared_experts", 0, "mixtures of experts" },
    { "num_experts_per_tok", 0, "mixtures of experts" },
    { "moe_intermediate_size", 0, "mixtures of experts" },
    { "partial_rotary_factor", 1, "partly rotated heads" },
    { "rotary_pct", 1, "partly rotated heads" },
    { "rope_interleave", 0, "interleaved rotary pairs" },
    { "rope_interleaved", 0, "interleaved rotary pairs" },
    { "no_rope_layers", 0, "layers without rotary embedding" },
    { "use_mrope", 0, "multimodal rotary embedding" },
    { "dual_chunk_attention_config", 0, "dual chunk attention" },
    { "attention_chunk_size", 0, "chunked attention" },
    { "alibi", 0, "ALiBi" },
    { "use_alibi", 0, "ALiBi" },
    { "qk_layernorm", 0, "a norm on queries and keys in this model type" },
    { "attention_multiplier", -1, "scaled attention" },
    { "query_pre_attn_scalar", -1, "scaled attention" },
    { "attn_logit_softcapping", 0, "capped attention" },
    { "final_logit_softcapping", 0, "capped logits" },
    { "logit_scaling", 1, "scaled logits" },
    { "logit_scale", 1, "scaled logits" },
    { "embedding_multiplier", 1, "scaled embeddings" },
    { "scale_emb", 1, "scaled embeddings" },
    { "residual_multiplier", 1, "scaled residuals" },
    { "scale_depth", -1, "scaled residuals" },
    { "attention_dropout", 0, "dropout (set it to 0 to train without)" },
    { "hidden_dropout", 0, "dropout (set it to 0 to train without)" },
    { "resid_pdrop", 0, "dropout (set it to 0 to train without)" },
    { "embd_pdrop", 0, "dropout (set it to 0 to train without)" },
    { "add_cross_attention", 0, "cross-attention" },
    { "is_encoder_decoder", 0, "encoder-decoder models" },
    { "text_config", 0, "multimodal models" },
    { "vision_config", 0, "multimodal models" },
};

struct reader { /* one object of config.json; `at` is its JSON Pointer, `dot` its name in messages
                 */
    const struct json_doc *doc;
    struct diag *diag;
    const json_t *obj;
    const char *at, *dot;
};

static void complain(const struct reader *r, const char *key, const char *fmt, ...)
    PRINTF_LIKE(3, 4);
static void complain(const struct reader *r, const char *key, const char *fmt, ...)
{
    char where[160], text[400];
    int64_t line, col;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    snprintf(where, sizeof where, "%s/%s", r->at, key);
    json_doc_where(r->doc, where, &line, &col);
    if (line == 0) json_doc_where(r->doc, r->at, &line, &col);
    diag_add(r->diag, r->doc->name, line, col, "%s%s: %s", r->dot, key, text);
}

static const json_t *get(const struct reader *r, const char *key)
{
    const json_t *v = json_object_get(r->obj, key);
    return json_is_null(v) ? NULL : v;
}

static int64_t get_int(const struct reader *r, const char *key, int64_t missing, int64_t lo,
                       int64_t hi)
{
    const json_t *v = get(r, key);
    if (!v) {
        if (missing == REQUIRED) complain(r, key, "is missing");
        return missing == REQUIRED ? lo : missing;
    }
    if (!json_is_integer(v)) {
        complain(r, key, "expected an integer");
        return lo;
    }
    const int64_t x = json_integer_value(v);
    if (x < lo || x > hi) {
        complain(r, key, "%lld is outside [%lld, %lld]", (long long)x, (long long)lo,
                 (long long)hi);
        return lo;
    }
    return x;
}

/* NaN as `missing`: the key is required. Bounds are inclusive. */
static double get_real(const struct reader *r, const char *key, double missing, double lo,
                       double hi)
{
    const json_t *v = get(r, key);
    if (!v) {
        if (isnan(missing)) complain(r, key, "is missing");
        return isnan(missing) ? lo : missing;
    }
    if (!json_is_number(v)) {
        complain(r, key, "expected a number");
        return lo;
    }
    const double x = json_number_value(v);
    if (!(x >= lo && x <= hi)) {
        complain(r, key, "%g is outside [%g, %g]", x, lo, hi);
        return lo;
    }
    return x;
}

static bool get_bool(const struct reader *r, const char *key, bool missing)
{
    const json_t *v = get(r, key);
    if (v && !json_is_boolean(v)) complain(r, key, "expected true or false");
    return json_is_boolean(v) ? json_is_true(v) : missing;
}

/* A borrowed string; NULL where it is missing (or of another type, which is reported). */
static const char *get_string(const struct reader *r, const char *key)
{
    const json_t *v = get(r, key);
    if (v && !json_is_string(v)) complain(r, key, "expected a string");
    return json_string_value(v);
}

static const struct family *find_family(const char *model_type)
{
    for (size_t i = 0; i < COUNT_OF(FAMILIES); i++)
        if (strcmp(model_type, FAMILIES[i].model_type) == 0) return &FAMILIES[i];
    return NULL;
}

const char *arch_class(const struct arch *a)
{
    const struct family *f = find_family(a->model_type);
    BUG_IF(!f);
    return f->architecture;
}

static const struct family *read_family(const struct reader *r)
{
    char q[128];
    const char *type = get_string(r, "model_type");
    if (!type) {
        if (!get(r, "model_type")) complain(r, "model_type", "is missing (qwen2, qwen3 or llama)");
        return NULL;
    }
    const struct family *f = find_family(type);
    if (!f) {
        complain(r, "model_type", "\"%s\" is not supported (qwen2, qwen3 or llama)",
                 err_quote(q, sizeof q, type, strlen(type)));
        return NULL;
    }
    const json_t *list = get(r, "architectures");
    if (!list) return f;
    const char *name = json_string_value(json_array_get(list, 0));
    if (!name || json_array_size(list) != 1)
        complain(r, "architectures", "expected a list of one name, [\"%s\"]", f->architecture);
    else if (strcmp(name, f->architecture) != 0)
        complain(r, "architectures", "\"%s\" is not supported (model_type %s: %s)",
                 err_quote(q, sizeof q, name, strlen(name)), f->model_type, f->architecture);
    return f;
}

static bool harmless(const json_t *v, double neutral)
{
    if (json_is_number(v)) return json_number_value(v) == neutral;
    if (json_is_array(v)) return json_array_size(v) == 0;
    if (json_is_object(v)) return json_object_size(v) == 0;
    return json_is_false(v);
}

static void refuse_variants(const struct reader *r, const struct family *f, int64_t layers)
{
    char q[128];
    for (size_t i = 0; i < COUNT_OF(REFUSED); i++) {
        const json_t *v = get(r, REFUSED[i].key);
        if (v && !harmless(v, REFUSED[i].neutral))
            complain(r, REFUSED[i].key, "not supported: %s", REFUSED[i].what);
    }
    const char *act = get_string(r, "hidden_act");
    if (act && strcmp(act, "silu") != 0 && strcmp(act, "swish") != 0)
        complain(r, "hidden_act", "\"%s\" is not supported (silu)",
                 err_quote(q, sizeof q, act, strlen(act)));
    /* the Qwen classes read sliding_window only where use_sliding_window is true */
    if (get_bool(r, "use_sliding_window", false))
        complain(r, "use_sliding_window", "not supported: sliding window attention");
    if (f && strcmp(f->model_type, "llama") == 0 && get(r, "sliding_window"))
        complain(r, "sliding_window",
                 "not supported: sliding window attention (null to attend to everything)");
    if (f && !f->qk_norm && get_bool(r, "use_qk_norm", false))
        complain(r, "use_qk_norm", "not supported: a norm on queries and keys in this model type");
    const json_t *types = get(r, "layer_types");
    if (!types) return;
    if (!json_is_array(types) || json_array_size(types) != (size_t)layers) {
        complain(r, "layer_types", "expected a list of %lld names (num_hidden_layers)",
                 (long long)layers);
        return;
    }
    for (size_t i = 0; i < json_array_size(types); i++) {
        char at[40];
        const char *s = json_string_value(json_array_get(types, i));
        if (s && strcmp(s, "full_attention") == 0) continue;
        snprintf(at, sizeof at, "layer_types/%zu", i);
        complain(r, at, "\"%s\" is not supported (full_attention)",
                 err_quote(q, sizeof q, s ? s : "?", s ? strlen(s) : 1));
        return;
    }
}

static void read_shape(struct arch *a, const struct reader *r, const struct family *f)
{
    a->C = get_int(r, "hidden_size", REQUIRED, 1, WIDTH_MAX);
    a->F = get_int(r, "intermediate_size", REQUIRED, 1, WIDTH_MAX);
    a->L = get_int(r, "num_hidden_layers", REQUIRED, 1, LAYERS_MAX);
    a->H = get_int(r, "num_attention_heads", REQUIRED, 1, HEADS_MAX);
    a->V = get_int(r, "vocab_size", REQUIRED, 1, VOCAB_MAX);
    /* null means as many as query heads; an absent key means the class's default */
    const bool absent = !json_object_get(r->obj, "num_key_value_heads");
    a->K =
        get_int(r, "num_key_value_heads", absent && f->kv_heads ? f->kv_heads : a->H, 1, HEADS_MAX);
    if (a->H % a->K != 0)
        complain(r, "num_key_value_heads", "%lld%s does not divide num_attention_heads (%lld)",
                 (long long)a->K, absent ? " (the default of this model type)" : "",
                 (long long)a->H);
    const bool no_head = !json_object_get(r->obj, "head_dim");
    a->D = get_int(r, "head_dim", no_head && f->head_dim ? f->head_dim : 0, 1, HEAD_MAX);
    if ((a->D == 0 || f->widths_divide) && a->C % a->H != 0)
        complain(r, "hidden_size", "%lld is not a multiple of num_attention_heads (%lld)",
                 (long long)a->C, (long long)a->H);
    if (a->D == 0) a->D = a->C / a->H;
    if (a->D < 2 || a->D % 2 != 0 || a->D > HEAD_MAX)
        complain(r, "head_dim", "a head of %lld is not supported (an even number up to %d)",
                 (long long)a->D, HEAD_MAX);
    a->max_positions = get_int(r, "max_position_embeddings", f->max_positions, 1, INT32_MAX);
    a->rms_eps = get_real(r, "rms_norm_eps", 1e-6, 1e-12, 1);
    a->init_range = get_real(r, "initializer_range", 0.02, 0, 10);
    a->tied = get_bool(r, "tie_word_embeddings", false);
    a->qkv_bias = f->qkv_bias || (f->bias_key && get_bool(r, "attention_bias", false));
    a->o_bias = f->bias_key && a->qkv_bias;
    a->mlp_bias = f->mlp_bias_key && get_bool(r, "mlp_bias", false);
    a->qk_norm = f->qk_norm;
}

/* transformers 4: rope_theta, and rope_scaling {rope_type or type, ...}; 5: all of it in
 * rope_parameters. */
static void read_rope(struct arch *a, const struct reader *r)
{
    char q[128];
    const json_t *v4 = get(r, "rope_scaling"), *v5 = get(r, "rope_parameters");
    a->rope_theta = get_real(r, "rope_theta", 10000, 1, 1e30);
    if (v4 && v5 && !json_equal(v4, v5))
        complain(r, "rope_scaling", "differs from rope_parameters; keep one of them");
    if (!v4 && !v5) return;
    struct reader in = { r->doc, r->diag, v5 ? v5 : v4, v5 ? "/rope_parameters" : "/rope_scaling",
                         v5 ? "rope_parameters." : "rope_scaling." };
    if (!json_is_object(in.obj)) {
        complain(r, v5 ? "rope_parameters" : "rope_scaling", "expected an object or null");
        return;
    }
    a->rope_theta = get_real(&in, "rope_theta", a->rope_theta, 1, 1e30);
    if (get_real(&in, "partial_rotary_factor", 1, 0, 1) != 1)
        complain(&in, "partial_rotary_factor", "not supported: partly rotated heads");
    if (get(&in, "full_attention") || get(&in, "sliding_attention"))
        complain(&in, get(&in, "full_attention") ? "full_attention" : "sliding_attention",
                 "not supported: rotary embeddings by layer type");
    const char *key = get(&in, "rope_type") ? "rope_type" : "type";
    const char *type = get_string(&in, key);
    if (!type || strcmp(type, "default") == 0) return;
    if (strcmp(type, "llama3") != 0) {
        complain(&in, key, "\"%s\" is not supported (default, llama3)",
                 err_quote(q, sizeof q, type, strlen(type)));
        return;
    }
    a->rope_llama3 = true;
    a->rope_factor = get_real(&in, "factor", NAN, 1e-6, 1e6);
    a->rope_low = get_real(&in, "low_freq_factor", NAN, 1e-6, 1e6);
    a->rope_high = get_real(&in, "high_freq_factor", NAN, 1e-6, 1e6);
    a->rope_original =
        get_int(&in, "original_max_position_embeddings", a->max_positions, 1, INT32_MAX);
    if (get(&in, "low_freq_factor") && get(&in, "high_freq_factor") && a->rope_high <= a->rope_low)
        complain(&in, "high_freq_factor", "%g is not above low_freq_factor (%g)", a->rope_high,
                 a->rope_low);
    if (get_int(r, "original_max_position_embeddings", a->rope_original, 1, INT32_MAX) !=
        a->rope_original)
        complain(r, "original_max_position_embeddings", "differs from the one in %.*s",
                 (int)strlen(in.at) - 1, in.at + 1);
}

static void read_dtype(struct arch *a, const struct reader *r)
{
    static const char *const known[] = { "float32", "bfloat16", "float16" };
    char q[128];
    const char *key = get(r, "dtype") ? "dtype" : "torch_dtype";
    const char *s = get_string(r, key);
    if (!s) return;
    for (size_t i = 0; i < COUNT_OF(known); i++)
        if (strcmp(s, known[i]) == 0) {
            snprintf(a->dtype, sizeof a->dtype, "%s", s);
            return;
        }
    complain(r, key, "\"%s\" is not supported (float32, bfloat16, float16)",
             err_quote(q, sizeof q, s, strlen(s)));
}

static int read_all(struct arch *a, const struct json_doc *doc)
{
    struct diag diag = { 0 };
    const struct reader r = { doc, &diag, doc->root, "", "" };
    if (!json_is_object(doc->root)) return json_err(ERR_INPUT, doc, "", "expected an object");
    const struct family *f = read_family(&r);
    if (!f) return diag_result(&diag, ERR_INPUT); /* the other keys mean something else there */
    snprintf(a->model_type, sizeof a->model_type, "%s", f->model_type);
    read_shape(a, &r, f);
    refuse_variants(&r, f, a->L);
    read_rope(a, &r);
    read_dtype(a, &r);
    if (diag.count == 0 && arch_parameters(a) > PARAMETERS_MAX)
        diag_add(&diag, doc->name, 0, 0, "a model of %lld parameters is too large",
                 (long long)arch_parameters(a));
    return diag_result(&diag, ERR_INPUT);
}

static int load_config(struct arch *a, const char *dir)
{
    struct json_doc doc = { 0 };
    char *path = NULL;
    int rc;
    memset(a, 0, sizeof *a);
    TRY_OUT(path_join(&path, dir, "config.json"));
    TRY_OUT(json_doc_read(&doc, path));
    TRY_OUT(read_all(a, &doc));
out:
    json_doc_release(&doc);
    free(path);
    return rc;
}

int arch_load(struct arch *a, const char *dir)
{
    char *base = NULL;
    if (!arch_adapter(dir)) return load_config(a, dir);
    TRY(arch_adapter_base(&base, dir));
    int rc = load_config(a, base);
    if (rc == 0) rc = lora_read_config(&a->lora, dir);
    free(base);
    return rc;
}

int64_t arch_parameters(const struct arch *a)
{
    const int64_t qkv = (a->H + 2 * a->K) * a->D, o = a->H * a->D;
    int64_t layer = qkv * a->C + a->C * o + 3 * a->F * a->C + 2 * a->C;
    if (a->qkv_bias) layer += qkv;
    if (a->o_bias) layer += a->C;
    if (a->qk_norm) layer += 2 * a->D;
    if (a->mlp_bias) layer += 2 * a->F + a->C;
    return a->L * layer + a->V * a->C * (a->tied ? 1 : 2) + a->C;
}
