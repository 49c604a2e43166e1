/* SPDX-License-Identifier: MIT
 * Adapters in PEFT's format: adapter_config.json, what they start as, and merging them into the base. */
#include "model.h"
#include "../base/rng.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { RANK_MAX = 65536, CHUNK = 1 << 18 };
static const char CONFIG[] = "adapter_config.json";

const char *lora_target_name(uint32_t bit)
{
    static const char *const names[LORA_TARGETS] = { "q_proj",    "k_proj",  "v_proj",   "o_proj",
                                                     "gate_proj", "up_proj", "down_proj" };
    for (int i = 0; i < LORA_TARGETS; i++)
        if (bit == 1u << i) return names[i];
    bug(__FILE__, __LINE__, "no target");
}

double lora_scale(const struct lora *l)
{
    return l->alpha / (l->rslora ? sqrt((double)l->rank) : (double)l->rank);
}

int64_t lora_parameters(const struct arch *a)
{
    const int64_t q = a->H * a->D, kv = a->K * a->D;
    const struct {
        uint32_t bit;
        int64_t in, out;
    } of[LORA_TARGETS] = { { LORA_Q, a->C, q },       { LORA_K, a->C, kv },
                           { LORA_V, a->C, kv },      { LORA_O, q, a->C },
                           { LORA_GATE, a->C, a->F }, { LORA_UP, a->C, a->F },
                           { LORA_DOWN, a->F, a->C } };
    int64_t sum = 0;
    for (int i = 0; i < LORA_TARGETS; i++)
        if (a->lora.targets & of[i].bit) sum += of[i].in + of[i].out;
    return a->L * a->lora.rank * sum;
}

/* adapter_config.json ------------------------------------------------------------------------------------------------ */

static int config_read(struct json_doc *d, const char *dir)
{
    char *path = NULL;
    TRY(path_join(&path, dir, CONFIG));
    const int rc = json_doc_read(d, path);
    free(path);
    if (rc == 0 && !json_is_object(d->root))
        return json_err(ERR_INPUT, d, "", "expected an object");
    return rc;
}

bool arch_adapter(const char *dir)
{
    char *path;
    if (path_join(&path, dir, CONFIG) < 0) return false;
    const bool yes = file_exists(path);
    free(path);
    return yes;
}

int arch_adapter_base(char **base, const char *dir)
{
    static const char key[] = "base_model_name_or_path";
    struct json_doc d = { 0 };
    int rc;
    *base = NULL;
    TRY_OUT(config_read(&d, dir));
    const char *name = json_string_value(json_object_get(d.root, key));
    if (!name)
        TRY_OUT(json_err(ERR_INPUT, &d, "/base_model_name_or_path",
                         "%s: expected the directory of the base model", key));
    if (!dir_exists(name))
        TRY_OUT(json_err(ERR_INPUT, &d, "/base_model_name_or_path",
                         "%s: \"%.200s\" is not a directory; set it to where the base model is",
                         key, name));
    TRY_OUT(mem_strdup(base, name));
out:
    json_doc_release(&d);
    return rc;
}

/* Nothing: absent, null, false, 0, or empty. */
static bool harmless(const json_t *v)
{
    if (!v || json_is_null(v) || json_is_false(v)) return true;
    if (json_is_number(v)) return json_number_value(v) == 0;
    return (json_is_array(v) && json_array_size(v) == 0) ||
           (json_is_object(v) && json_object_size(v) == 0);
}

static int refuse_variants(const struct json_doc *d)
{
    static const char *const keys[] = {
        "fan_in_fan_out",  "layers_to_transform", "layer_replication", "lora_bias",
        "modules_to_save", "rank_pattern",        "alpha_pattern",     "target_parameters",
        "use_dora",        "use_qalora",          "use_bdlora",        "trainable_token_indices"
    };
    const char *bias = json_string_value(json_object_get(d->root, "bias")),
               *type = json_string_value(json_object_get(d->root, "peft_type"));
    char pointer[64];
    if (!type || strcmp(type, "LORA") != 0)
        return json_err(ERR_INPUT, d, "/peft_type", "peft_type: only \"LORA\" is supported");
    if (bias && strcmp(bias, "none") != 0)
        return json_err(ERR_INPUT, d, "/bias", "bias: \"%.40s\" is not supported (none)", bias);
    for (size_t i = 0; i < COUNT_OF(keys); i++) {
        if (harmless(json_object_get(d->root, keys[i]))) continue;
        snprintf(pointer, sizeof pointer, "/%s", keys[i]);
        return json_err(ERR_INPUT, d, pointer, "%s: not supported", keys[i]);
    }
    return 0;
}

static int read_targets(struct lora *l, const struct json_doc *d)
{
    const json_t *list = json_object_get(d->root, "target_modules"), *v;
    size_t i;
    if (!json_is_array(list) || json_array_size(list) == 0)
        return json_err(ERR_INPUT, d, "/target_modules",
                        "target_modules: expected a list of names of linear layers");
    json_array_foreach(list, i, v)
    {
        const char *name = json_string_value(v);
        uint32_t bit = 0;
        for (int k = 0; name && k < LORA_TARGETS; k++)
            if (strcmp(name, lora_target_name(1u << k)) == 0) bit = 1u << k;
        if (!bit)
            return json_err(ERR_INPUT, d, "/target_modules",
                            "target_modules: \"%.60s\" is not one of q_proj, k_proj, v_proj, "
                            "o_proj, gate_proj, up_proj, down_proj",
                            name ? name : "?");
        l->targets |= bit;
    }
    return 0;
}

static int read_lora(struct lora *l, const struct json_doc *d)
{
    const json_t *r = json_object_get(d->root, "r"),
                 *alpha = json_object_get(d->root, "lora_alpha"),
                 *dropout = json_object_get(d->root, "lora_dropout");
    if (!json_is_integer(r) || json_integer_value(r) < 1 || json_integer_value(r) > RANK_MAX)
        return json_err(ERR_INPUT, d, "/r", "r: expected a whole number in [1, %d]", RANK_MAX);
    if (!json_is_number(alpha) || !(json_number_value(alpha) > 0))
        return json_err(ERR_INPUT, d, "/lora_alpha", "lora_alpha: expected a number above 0");
    l->rank = json_integer_value(r);
    l->alpha = json_number_value(alpha);
    if (dropout && !(json_is_number(dropout) && json_number_value(dropout) >= 0 &&
                     json_number_value(dropout) < 1))
        return json_err(ERR_INPUT, d, "/lora_dropout", "lora_dropout: expected a number in [0, 1)");
    l->dropout = json_number_value(dropout);
    l->rslora = json_is_true(json_object_get(d->root, "use_rslora"));
    TRY(refuse_variants(d));
    return read_targets(l, d);
}

int lora_read_config(struct lora *l, const char *dir)
{
    struct json_doc d = { 0 };
    memset(l, 0, sizeof *l);
    int rc = config_read(&d, dir);
    if (rc == 0) rc = read_lora(l, &d);
    json_doc_release(&d);
    return rc;
}

int lora_check(const struct lora *want, const char *dir)
{
    struct lora l;
    if (!arch_adapter(dir)) return err_set(ERR_INPUT, "%s: holds no adapter (%s)", dir, CONFIG);
    TRY(lora_read_config(&l, dir));
    if (l.rank == want->rank && l.alpha == want->alpha && l.rslora == want->rslora &&
        l.targets == want->targets)
        return 0;
    return err_set(ERR_INPUT,
                   "%s: an adapter of rank %lld, alpha %g%s and %d targets; this run's model.lora "
                   "says rank %lld, alpha %g%s and %d targets; set the adapter's values there",
                   dir, (long long)l.rank, l.alpha, l.rslora ? ", rslora" : "",
                   __builtin_popcount(l.targets), (long long)want->rank, want->alpha,
                   want->rslora ? ", rslora" : "", __builtin_popcount(want->targets));
}

json_t *lora_config(const struct lora *l, const char *base)
{
    json_t *targets = json_array(), *alpha;
    for (int i = 0; i < LORA_TARGETS; i++)
        if (l->targets >> i & 1)
            json_array_append_new(targets, json_string(lora_target_name(1u << i)));
    alpha = l->alpha == floor(l->alpha) && l->alpha < 1e15 ? json_integer((json_int_t)l->alpha)
                                                           : json_real(l->alpha);
    return json_pack("{s:s, s:s, s:s, s:I, s:o, s:f, s:b, s:o, s:s, s:b, s:b, s:b, s:b, s:n}",
                     "peft_type", "LORA", "task_type", "CAUSAL_LM", "base_model_name_or_path", base,
                     "r", (json_int_t)l->rank, "lora_alpha", alpha, "lora_dropout", l->dropout,
                     "use_rslora", l->rslora, "target_modules", targets, "bias", "none",
                     "fan_in_fan_out", 0, "inference_mode", 1, "init_lora_weights", 1, "use_dora",
                     0, "modules_to_save");
}

/* weights ------------------------------------------------------------------------------------------------------------ */

static int init_slice(struct model *m, const struct param *p, const struct param_slice *s,
                      uint64_t seed, uint64_t number, bool zero, float *chunk)
{
    const int64_t cols = tensor_row(&p->w), n = s->rows * cols;
    const double bound = 1 / sqrt((double)cols);
    for (int64_t i = 0; i < n; i += CHUNK) {
        const int64_t k = MIN((int64_t)CHUNK, n - i);
        for (int64_t j = 0; j < k; j++)
            chunk[j] = zero
                           ? 0
                           : (float)(bound * (2 * rng_uniform(seed, rng_stream_of(RNG_LORA, number),
                                                              (uint64_t)(i + j)) -
                                              1));
        TRY(model_put(m, p->offset + s->row * cols + i, k, chunk));
    }
    return 0;
}

int lora_init(struct model *m, uint64_t seed)
{
    uint64_t number = 0;
    float *chunk;
    int rc = 0;
    TRY(MEM_NEW(&chunk, CHUNK));
    for (int32_t i = m->n_base; i < m->n_params; i++)
        for (int32_t j = 0; j < m->params[i].n_slices; j++)
            TRY_OUT(init_slice(m, &m->params[i], &m->params[i].slice[j], seed, number++,
                               strstr(m->params[i].slice[j].name, ".lora_B.") != NULL, chunk));
out:
    free(chunk);
    return rc;
}

static int merge_linear(struct model *m, struct linear *l)
{
    const struct param *w = &m->params[l->w];
    const int64_t r = m->arch.lora.rank;
    int64_t a_row = 0, b_row = 0;
    for (int32_t j = 0; j < w->n_slices; j++) {
        if (!(l->lora_slices >> j & 1)) continue;
        const struct tensor a = tensor_rows(&m->params[l->lora_a].w, a_row, r),
                            b = tensor_rows(&m->params[l->lora_b].w, b_row, w->slice[j].rows);
        struct tensor y = tensor_rows(&w->w, w->slice[j].row, w->slice[j].rows);
        TRY(op_gemm(m->be, &y, &b, false, &a, false, NULL, (float)lora_scale(&m->arch.lora), 1));
        a_row += r;
        b_row += w->slice[j].rows;
    }
    l->lora_slices = 0;
    return 0;
}

int lora_merge(struct model *m)
{
    BUG_IF(m->dtype != DT_F32 || m->grads.data);
    for (int64_t l = 0; l < m->arch.L; l++) {
        struct layer *y = &m->layers[l];
        TRY(merge_linear(m, &y->qkv));
        TRY(merge_linear(m, &y->o));
        TRY(merge_linear(m, &y->gate_up));
        TRY(merge_linear(m, &y->down));
    }
    m->arch.lora = (struct lora){ 0 };
    m->n_params = m->n_base;
    m->first_trained = 0;
    m->end_trained = m->n_base;
    return 0;
}
