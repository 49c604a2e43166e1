/* SPDX-License-Identifier: MIT */
#include "nf4.h"
#include "../ops/nf4.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    LAYER_PARAMS_MAX = 12,
    LAYER_ADAPTERS_MAX = 8,
    ALIGN_ELEMENTS = 32 /* 64 bytes of bfloat16; the same offsets in float32 */
};

/* Append a parameter of `cols` columns (0: a vector) with no rows yet; its index. */
static int32_t add_param(struct model *m, int64_t cols)
{
    struct param *p = &m->params[m->n_params];
    p->w = tensor_view(NULL, m->dtype, 0, MAX(cols, (int64_t)1), 1, 1);
    p->decay = cols > 0;
    return m->n_params++;
}

static void add_slice(struct model *m, int32_t i, int64_t rows, const char *fmt, ...)
    PRINTF_LIKE(4, 5);
static void add_slice(struct model *m, int32_t i, int64_t rows, const char *fmt, ...)
{
    struct param *p = &m->params[i];
    struct param_slice *s = &p->slice[p->n_slices];
    va_list ap;
    BUG_IF(p->n_slices == PARAM_SLICES_MAX);
    va_start(ap, fmt);
    const int n = vsnprintf(s->name, sizeof s->name, fmt, ap);
    va_end(ap);
    BUG_IF(n < 0 || (size_t)n >= sizeof s->name);
    s->row = p->w.dim[0];
    s->rows = rows;
    p->w.dim[0] += rows;
    p->n_slices++;
}

static int32_t add_norm(struct model *m, int64_t n, int l, const char *name)
{
    const int32_t i = add_param(m, 0);
    add_slice(m, i, n, "model.layers.%d.%s.weight", l, name);
    return i;
}

/* A linear layer of up to three Hugging Face modules "MODULE.NAME" stacked by rows. */
static struct linear add_linear(struct model *m, int l, const char *module,
                                const char *const *names, const int64_t *rows, int n, int64_t cols,
                                bool bias)
{
    struct linear lin = { add_param(m, cols), -1, -1, -1, 0 };
    m->params[lin.w].nf4 = m->arch.nf4;
    for (int i = 0; i < n; i++)
        add_slice(m, lin.w, rows[i], "model.layers.%d.%s.%s.weight", l, module, names[i]);
    if (!bias) return lin;
    lin.b = add_param(m, 0);
    for (int i = 0; i < n; i++)
        add_slice(m, lin.b, rows[i], "model.layers.%d.%s.%s.bias", l, module, names[i]);
    return lin;
}

static void add_layer(struct model *m, int l)
{
    static const char *const qkv[] = { "q_proj", "k_proj", "v_proj" }, *const o[] = { "o_proj" },
                             *const gate_up[] = { "gate_proj", "up_proj" },
                             *const down[] = { "down_proj" };
    const struct arch *a = &m->arch;
    const int64_t q_rows = a->H * a->D, kv_rows = a->K * a->D;
    struct layer *y = &m->layers[l];
    y->q_norm = y->k_norm = -1;
    y->norm1 = add_norm(m, a->C, l, "input_layernorm");
    y->qkv = add_linear(m, l, "self_attn", qkv, (const int64_t[]){ q_rows, kv_rows, kv_rows }, 3,
                        a->C, a->qkv_bias);
    if (a->qk_norm) {
        y->q_norm = add_norm(m, a->D, l, "self_attn.q_norm");
        y->k_norm = add_norm(m, a->D, l, "self_attn.k_norm");
    }
    y->o = add_linear(m, l, "self_attn", o, &a->C, 1, q_rows, a->o_bias);
    y->norm2 = add_norm(m, a->C, l, "post_attention_layernorm");
    y->gate_up =
        add_linear(m, l, "mlp", gate_up, (const int64_t[]){ a->F, a->F }, 2, a->C, a->mlp_bias);
    y->down = add_linear(m, l, "mlp", down, &a->C, 1, a->F, a->mlp_bias);
    y->end = m->n_params;
}

/* The adapters of slices j of l->w where bit j of `slices` is set. */
static void add_adapters(struct model *m, struct linear *l, uint32_t slices)
{
    static const char end[] = ".weight";
    const struct param *w = &m->params[l->w];
    const int64_t r = m->arch.lora.rank;
    if (!slices) return;
    l->lora_slices = slices;
    l->lora_a = add_param(m, tensor_row(&w->w));
    l->lora_b = add_param(m, r);
    for (int32_t j = 0; j < w->n_slices; j++) {
        const struct param_slice *s = &w->slice[j];
        const int stem = (int)(strlen(s->name) - strlen(end));
        if (!(slices >> j & 1)) continue;
        add_slice(m, l->lora_a, r, "base_model.model.%.*s.lora_A%s", stem, s->name, end);
        add_slice(m, l->lora_b, s->rows, "base_model.model.%.*s.lora_B%s", stem, s->name, end);
    }
}

static void add_layer_adapters(struct model *m, int64_t l)
{
    const uint32_t t = m->arch.lora.targets;
    struct layer *y = &m->layers[l];
    y->lora = m->n_params;
    add_adapters(m, &y->qkv, t / LORA_Q & 7);
    add_adapters(m, &y->o, t / LORA_O & 1);
    add_adapters(m, &y->gate_up, t / LORA_GATE & 3);
    add_adapters(m, &y->down, t / LORA_DOWN & 1);
    y->lora_end = m->n_params;
}

/* Parameters [first, end) follow each other in the flat weights, or in those of 4 bits. */
static void place(struct model *m, int32_t first, int32_t end)
{
    for (int32_t i = first; i < end; i++) {
        struct param *p = &m->params[i];
        int64_t *n = p->nf4 ? &m->n_quant : &m->n_flat;
        p->w.ld = tensor_row(&p->w);
        BUG_IF(p->nf4 && p->w.ld % NF4_BLOCK != 0);
        p->offset = p->grad_at = *n;
        *n += round_up(tensor_count(&p->w), p->nf4 ? 1 : ALIGN_ELEMENTS);
        if (!p->nf4 || !m->arch.nf4_double) continue;
        p->most_at = m->n_most;
        for (int32_t j = 0; j < p->n_slices; j++)
            m->n_most += nf4_most(p, j);
    }
}

int model_init(struct model *m, const struct backend *be, const struct arch *a, enum dtype dtype)
{
    memset(m, 0, sizeof *m);
    BUG_IF(dtype != DT_F32 && dtype != DT_BF16);
    m->arch = *a;
    m->be = be;
    m->dtype = dtype;
    TRY(MEM_NEW(&m->params, a->L * (LAYER_PARAMS_MAX + LAYER_ADAPTERS_MAX) + 3));
    TRY(MEM_NEW(&m->layers, a->L));
    m->embed = add_param(m, a->C);
    add_slice(m, m->embed, a->V, "model.embed_tokens.weight");
    for (int l = 0; l < a->L; l++)
        add_layer(m, l);
    m->final_norm = add_param(m, 0);
    add_slice(m, m->final_norm, a->C, "model.norm.weight");
    m->head = m->embed;
    if (!a->tied) {
        m->head = add_param(m, a->C);
        add_slice(m, m->head, a->V, "lm_head.weight");
    }
    m->n_base = m->n_params;
    for (int64_t l = 0; l < a->L && a->lora.rank > 0; l++)
        add_layer_adapters(m, l);
    m->first_trained = a->lora.rank > 0 ? m->n_base : 0;
    m->end_trained = m->n_params;
    place(m, m->first_trained, m->n_params);
    m->n_trained = m->n_flat;
    place(m, 0, m->first_trained);
    return 0;
}

bool model_trains(const struct model *m, int32_t i)
{
    return i >= m->first_trained && i < m->end_trained;
}

/* First element after parameter i. */
static int64_t param_end(const struct model *m, int32_t i)
{
    return i + 1 < m->n_params ? m->params[i + 1].offset : m->n_flat;
}

/* Embedding, two windows, final norm and head; returns the elements of all. Every layer has the same size. */
static int64_t place_windows(struct model *m)
{
    const struct layer *first = &m->layers[0];
    const int64_t embed = param_end(m, m->embed), windows = MIN(m->arch.L, (int64_t)2);
    const int64_t window = param_end(m, first->end - 1) - m->params[first->norm1].offset;
    for (int64_t l = 0; l < m->arch.L; l++) {
        const struct layer *y = &m->layers[l];
        const int64_t from = m->params[y->norm1].offset;
        BUG_IF(param_end(m, y->end - 1) - from != window);
        for (int32_t i = y->norm1; i < y->end; i++)
            m->params[i].grad_at = embed + l % 2 * window + m->params[i].offset - from;
    }
    for (int32_t i = m->final_norm; i < m->n_params; i++)
        m->params[i].grad_at =
            embed + windows * window + m->params[i].offset - m->params[m->final_norm].offset;
    return embed + windows * window + m->n_flat - m->params[m->final_norm].offset;
}

/* Elements of all that is no matrix. */
static int64_t count_vectors(const struct model *m)
{
    int64_t n = 0;
    for (int32_t i = 0; i < m->n_params; i++)
        if (!m->params[i].decay) n += round_up(tensor_count(&m->params[i].w), ALIGN_ELEMENTS);
    return n;
}

int model_plan_weights(struct model *m, struct plan *p, bool train)
{
    const int64_t held = m->shard.n ? m->shard.elements : m->n_trained;
    int64_t grads = m->n_trained;
    BUG_IF(m->grad_windows && m->n_trained < m->n_flat);
    BUG_IF(m->base && (train || m->arch.lora.rank == 0 || m->base->n_base != m->n_base));
    BUG_IF(m->half_matrices &&
           (train || m->base || m->dtype != DT_F32 || m->arch.nf4 || m->arch.lora.rank > 0));
    TRY(plan_book(p, PLAN_WEIGHTS, &m->weights, m->half_matrices ? DT_BF16 : m->dtype,
                  m->base ? m->n_trained : m->n_flat, 1, 1, 1));
    if (m->half_matrices)
        TRY(plan_book(p, PLAN_WEIGHTS, &m->vectors, DT_F32, count_vectors(m), 1, 1, 1));
    if (m->n_quant > 0 && !m->base) {
        TRY(plan_book(p, PLAN_WEIGHTS, &m->quant, DT_U8, m->n_quant / 2, 1, 1, 1));
        TRY(plan_book(p, PLAN_WEIGHTS, &m->absmax, m->n_most > 0 ? DT_U8 : DT_F32,
                      m->n_quant / NF4_BLOCK, 1, 1, 1));
        if (m->n_most > 0) TRY(plan_book(p, PLAN_WEIGHTS, &m->most, DT_F32, m->n_most, 1, 1, 1));
    }
    if (!train) return 0;
    BUG_IF(m->n_quant > 0 && m->arch.lora.rank == 0);
    if (m->dtype != DT_F32 && !m->no_master)
        TRY(plan_book(p, PLAN_MASTER, &m->low, DT_I16, held, 1, 1, 1));
    if (m->grad_windows) grads = place_windows(m);
    return plan_book(p, PLAN_GRADIENTS, &m->grads, DT_F32, grads, 1, 1, 1);
}

int model_plan_linear(struct model *m, struct plan *p, int64_t T)
{
    int64_t most = 0;
    for (int32_t i = 0; i < m->n_base && !m->base; i++)
        if (m->params[i].nf4) most = MAX(most, tensor_count(&m->params[i].w));
    if (most > 0 && m->dense.dim[0] == 0) {
        TRY(plan_book(p, PLAN_SCRATCH, &m->dense, m->dtype, most, 1, 1, 1));
        if (m->arch.nf4_double)
            TRY(plan_book(p, PLAN_SCRATCH, &m->scales, DT_F32, most / NF4_BLOCK, 1, 1, 1));
    }
    if (m->arch.lora.rank == 0 || m->lora_x.dim[0] > 0) return 0;
    return plan_book(p, PLAN_SCRATCH, &m->lora_x, m->dtype, T, PARAM_SLICES_MAX * m->arch.lora.rank,
                     1, 1);
}

int model_plan_rope(struct model *m, struct plan *p, int64_t positions)
{
    if (m->rope.dim[0] > 0) {
        BUG_IF(m->rope.dim[0] < positions); /* the first booking is the larger one */
        return 0;
    }
    return plan_book(p, PLAN_BATCH, &m->rope, DT_F32, positions, 2, m->arch.D / 2, 1);
}

static int plan_layer(struct acts *t, const struct model *m, struct plan *p, int64_t T)
{
    const struct arch *a = &m->arch;
    const enum dtype A = m->dtype;
    const enum plan_cat c = PLAN_ACTIVATIONS;
    TRY(plan_book(p, c, &t->x, A, T, a->C, 1, 1));
    TRY(plan_book(p, c, &t->rstd1, DT_F32, T, 1, 1, 1));
    TRY(plan_book(p, c, &t->qkv, A, T, (a->H + 2 * a->K) * a->D, 1, 1));
    if (a->qk_norm) {
        TRY(plan_book(p, c, &t->qk, A, T, (a->H + a->K) * a->D, 1, 1));
        TRY(plan_book(p, c, &t->rstd_q, DT_F32, T, a->H, 1, 1));
        TRY(plan_book(p, c, &t->rstd_k, DT_F32, T, a->K, 1, 1));
    }
    TRY(plan_book(p, c, &t->att, A, T, a->H * a->D, 1, 1));
    TRY(plan_book(p, c, &t->lse, DT_F32, T, a->H, 1, 1));
    TRY(plan_book(p, c, &t->x2, A, T, a->C, 1, 1));
    TRY(plan_book(p, c, &t->rstd2, DT_F32, T, 1, 1, 1));
    return plan_book(p, c, &t->gu, A, T, 2 * a->F, 1, 1);
}

static int plan_head(struct model *m, struct plan *p, const struct model_size *size)
{
    const int64_t C = m->arch.C, T = size->T, N = size->N;
    const enum dtype A = m->dtype;
    TRY(plan_book(p, PLAN_SCRATCH, &m->stream, A, T, C, 1, 1));
    TRY(plan_book(p, PLAN_SCRATCH, &m->h, A, T, C, 1, 1));
    TRY(plan_book(p, PLAN_SCRATCH, &m->act, A, T, m->arch.F, 1, 1));
    TRY(plan_book(p, PLAN_HEAD, &m->xf, A, T, C, 1, 1));
    TRY(plan_book(p, PLAN_HEAD, &m->rstd_f, DT_F32, T, 1, 1, 1));
    TRY(plan_book(p, PLAN_HEAD, &m->hf, A, T, C, 1, 1));
    TRY(plan_book(p, PLAN_HEAD, &m->hsel, A, N, C, 1, 1));
    TRY(plan_book(p, PLAN_HEAD, &m->logp, DT_F32, N, 1, 1, 1));
    TRY(plan_book(p, PLAN_HEAD, &m->lse, DT_F32, N, 1, 1, 1));
    if (!size->train) return 0;
    if (size->keep_logits)
        TRY(plan_book(p, PLAN_HEAD, &m->kept, DT_F32, op_logp_kept(N, m->arch.V, A) / 4, 1, 1, 1));
    TRY(plan_book(p, PLAN_HEAD, &m->dhsel, A, N, C, 1, 1));
    return plan_book(p, PLAN_HEAD, &m->coef, DT_F32, N, 1, 1, 1);
}

/* Columns of the widest A: all layers have the same. */
static int64_t widest_target(const struct model *m)
{
    int64_t most = 0;
    for (int32_t i = m->layers[0].lora; i < m->layers[0].lora_end; i += 2) /* A, B, A, B ... */
        most = MAX(most, tensor_row(&m->params[i].w));
    return most;
}

static int plan_backward(struct model *m, struct plan *p, int64_t T)
{
    const struct arch *a = &m->arch;
    const enum dtype A = m->dtype;
    TRY(plan_book(p, PLAN_SCRATCH, &m->dx, DT_F32, T, a->C, 1, 1));
    if (A != DT_F32) TRY(plan_book(p, PLAN_SCRATCH, &m->dxc, A, T, a->C, 1, 1));
    TRY(plan_book(p, PLAN_SCRATCH, &m->dh, A, T, a->C, 1, 1));
    if (a->lora.rank > 0)
        TRY(plan_book(p, PLAN_SCRATCH, &m->lora_dx, A, T, PARAM_SLICES_MAX * a->lora.rank, 1, 1));
    if (a->lora.rank > 0 && a->lora.dropout > 0)
        TRY(plan_book(p, PLAN_SCRATCH, &m->lora_drop, A, T, widest_target(m), 1, 1));
    TRY(plan_book(p, PLAN_SCRATCH, &m->dqkv, A, T, (a->H + 2 * a->K) * a->D, 1, 1));
    return plan_book(p, PLAN_SCRATCH, &m->datt, A, T, a->H * a->D, 1, 1);
}

int model_plan_buffers(struct model *m, struct plan *p, const struct model_size *size)
{
    const struct arch *a = &m->arch;
    const enum dtype A = m->dtype;
    const int64_t T = size->T, N = size->N;
    int64_t scratch = op_logp_scratch(N, a->C, a->V, A);
    BUG_IF(T < 1 || N < 1 || T > INT32_MAX || N > INT32_MAX || m->acts);
    m->T_max = T;
    m->N_max = N;
    m->first_kept = (int32_t)(size->train ? MIN(size->recompute, a->L - 1) : a->L);
    m->n_acts = size->train ? (int32_t)a->L - m->first_kept : 1;
    TRY(MEM_NEW(&m->acts, m->n_acts));
    TRY(MEM_NEW(&m->host, N));
    TRY(model_plan_rope(m, p, size->positions));
    TRY(model_plan_linear(m, p, T));
    for (int32_t i = 0; i < m->n_acts; i++)
        TRY(plan_layer(&m->acts[i], m, p, T));
    if (size->train && m->first_kept > 0) {
        TRY(MEM_NEW(&m->block_in, 2 * m->first_kept));
        for (int64_t l = 0; l < m->first_kept; l++) {
            TRY(plan_book(p, PLAN_ACTIVATIONS, &m->block_in[2 * l], A, T, a->C, 1, 1));
            TRY(plan_book(p, PLAN_ACTIVATIONS, &m->block_in[2 * l + 1], DT_F32, T, 1, 1, 1));
        }
    }
    TRY(plan_head(m, p, size));
    if (size->train) {
        TRY(plan_backward(m, p, T));
        scratch =
            MAX(scratch, MAX(op_rmsnorm_bwd_scratch(T, a->C), op_headnorm_bwd_scratch(T, a->D)));
    }
    TRY(plan_book(p, PLAN_SCRATCH, &m->scratch, DT_F32, div_up(MAX(scratch, (int64_t)4), 4), 1, 1,
                  1));
    TRY(plan_book(p, PLAN_BATCH, &m->ids, DT_I32, T, 1, 1, 1));
    TRY(plan_book(p, PLAN_BATCH, &m->pos, DT_I32, T, 1, 1, 1));
    TRY(plan_book(p, PLAN_BATCH, &m->src, DT_I32, N, 1, 1, 1));
    return plan_book(p, PLAN_BATCH, &m->target, DT_I32, N, 1, 1, 1);
}

int model_upload_rope(const struct model *m)
{
    float *table;
    const int64_t n = tensor_count(&m->rope);
    int rc;
    TRY(MEM_NEW(&table, n));
    arch_rope_table(&m->arch, table, m->rope.dim[0]);
    rc = m->be->mem->to_device(m->be->cx, m->rope.data, table, n * dtype_size(DT_F32));
    free(table);
    return rc;
}

/* The other one is ready, and works at other times: dense is scratch. */
static void take_base(struct model *m)
{
    for (int32_t i = 0; i < m->n_base; i++) {
        struct param *p = &m->params[i];
        const struct param *from = &m->base->params[i];
        p->w.data = from->w.data;
        p->q = from->q;
        p->absmax = from->absmax;
    }
    m->dense = m->base->dense;
    m->scales = m->base->scales;
    m->most = m->base->most;
}

int model_ready(struct model *m)
{
    int64_t vectors = 0; /* elements so far */
    BUG_IF(!m->weights.data);
    if (m->base) take_base(m);
    for (int32_t i = m->base ? m->n_base : 0; i < m->n_params; i++) {
        struct param *p = &m->params[i];
        const int64_t n = tensor_count(&p->w);
        if (m->half_matrices && !p->decay) {
            p->w.data = (float *)m->vectors.data + vectors;
            vectors += round_up(n, ALIGN_ELEMENTS);
            continue;
        }
        if (!p->nf4) {
            p->w.dtype = m->weights.dtype;
            p->w.data = (char *)m->weights.data + p->offset * dtype_size(p->w.dtype);
            continue;
        }
        p->q = tensor_rows(&m->quant, p->offset / 2, n / 2);
        p->absmax = tensor_rows(&m->absmax, p->offset / NF4_BLOCK, n / NF4_BLOCK);
    }
    return m->rope.data ? model_upload_rope(m) : 0;
}

struct tensor model_grad(const struct model *m, int32_t i)
{
    struct tensor g = m->params[i].w;
    BUG_IF(!m->grads.data || !model_trains(m, i));
    g.dtype = DT_F32;
    g.data = (float *)m->grads.data + m->params[i].grad_at;
    return g;
}

struct tensor *model_grad_of(const struct model *m, int32_t i, struct tensor *hold)
{
    if (!model_trains(m, i)) return NULL;
    *hold = model_grad(m, i);
    return hold;
}

void model_release(struct model *m)
{
    free(m->params);
    free(m->layers);
    free(m->acts);
    free(m->block_in);
    free(m->host);
    memset(m, 0, sizeof *m);
}
