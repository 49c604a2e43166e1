/* SPDX-License-Identifier: MIT */
#include "nf4.h"
#include "../base/rng.h"
#include "../base/watch.h"
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* elements in host memory at a time, allocated and on the stack */
enum { CHUNK = 1 << 18 };
/* the largest float32 that rounds to a finite bfloat16 */
static const float BF16_LIMIT = 0x1.fefffep127f;

struct loader {
    struct model *m;
    struct st_set set;
    const char *dir;
    float *chunk; /* [CHUNK] */
    bool *used;   /* [set.n] */
};

/* "[2, 3]" */
static const char *shape_text(char *out, size_t size, const int64_t *dim, int32_t rank)
{
    size_t n = (size_t)snprintf(out, size, "[");
    for (int32_t i = 0; i < rank && n < size; i++)
        n += (size_t)snprintf(out + n, size - n, i ? ", %lld" : "%lld", (long long)dim[i]);
    if (n < size) snprintf(out + n, size - n, "]");
    return out;
}

static const char *file_of(const struct loader *ld, const struct st_tensor *t)
{
    return ld->set.files[t->file];
}

static const struct st_tensor *find(const struct loader *ld, const char *name)
{
    static const char prefix[] = "model.";
    const struct st_tensor *t = st_find(&ld->set, name);
    /* a checkpoint of the bare transformer, without its head */
    if (!t && strncmp(name, prefix, sizeof prefix - 1) == 0)
        t = st_find(&ld->set, name + sizeof prefix - 1);
    return t;
}

static int check_tensor(const struct loader *ld, const struct st_tensor *t, int64_t rows,
                        int64_t cols, bool matrix)
{
    char want[64], got[256];
    const int64_t dim[2] = { rows, cols };
    const int32_t rank = matrix ? 2 : 1;
    if (t->rank != rank || t->dim[0] != rows || (matrix && t->dim[1] != cols))
        return err_at(ERR_INPUT, file_of(ld, t), 0, 0, "tensor \"%s\": expected %s, found %s",
                      t->name, shape_text(want, sizeof want, dim, rank),
                      shape_text(got, sizeof got, t->dim, t->rank));
    if (t->dtype != ST_F32 && t->dtype != ST_F16 && t->dtype != ST_BF16 && t->dtype != ST_F64)
        return err_at(ERR_INPUT, file_of(ld, t), 0, 0,
                      "tensor \"%s\": dtype %s is not supported (F32, F16, BF16)", t->name,
                      st_dtype_name(t->dtype));
    return 0;
}

/* The k elements of the chunk, which are t's from `first` on. */
static int check_values(const struct loader *ld, const struct st_tensor *t, int64_t first,
                        int64_t k)
{
    const float most = ld->m->dtype == DT_F32 ? FLT_MAX : BF16_LIMIT;
    for (int64_t j = 0; j < k; j++) {
        const float x = ld->chunk[j];
        if (fabsf(x) <= most) continue;
        return err_at(ERR_INPUT, file_of(ld, t), 0, 0, "tensor \"%s\": element %lld is %s", t->name,
                      (long long)(first + j),
                      isnan(x)   ? "not a number"
                      : isinf(x) ? "infinite"
                                 : "too large for bfloat16 (set model.dtype to \"float32\")");
    }
    return 0;
}

/* Elements [at, at + n) of a parameter, in its own kind of memory. */
static int put_param(struct model *m, const struct param *p, int64_t at, int64_t n, const float *in)
{
    watch_beat();
    if (m->half_matrices && !p->decay)
        return m->be->mem->to_device(m->be->cx, (float *)p->w.data + at, in, n * 4);
    return p->nf4 ? nf4_put(m, p, at, n, in) : model_put(m, p->offset + at, n, in);
}

/* After the last of a slice's elements. */
static int end_slice(struct model *m, const struct param *p, const struct param_slice *s)
{
    return p->nf4 ? nf4_slice_done(m, p, (int32_t)(s - p->slice)) : 0;
}

static int load_slice(struct loader *ld, const struct param *p, const struct param_slice *s)
{
    struct model *m = ld->m;
    const bool matrix = p->decay;
    const int64_t cols = tensor_row(&p->w), n = s->rows * cols;
    const struct st_tensor *t = find(ld, s->name);
    if (!t && p == &m->params[m->embed] && m->head == m->embed)
        t = st_find(&ld->set, "lm_head.weight");
    if (!t) return err_set(ERR_INPUT, "%s: error: tensor \"%s\" is missing", ld->dir, s->name);
    TRY(check_tensor(ld, t, s->rows, cols, matrix));
    ld->used[t - ld->set.tensors] = true;
    for (int64_t i = 0; i < n; i += CHUNK) {
        const int64_t k = MIN((int64_t)CHUNK, n - i);
        TRY(st_read_f32(&ld->set, t, i, k, ld->chunk));
        TRY(check_values(ld, t, i, k));
        TRY(put_param(m, p, s->row * cols + i, k, ld->chunk));
    }
    return end_slice(m, p, s);
}

/* A tied model's file may hold the head once more; it must be the embedding. */
static int check_tied_head(struct loader *ld)
{
    const struct st_tensor *head = st_find(&ld->set, "lm_head.weight"),
                           *embed = find(ld, "model.embed_tokens.weight");
    bool equal;
    if (!head || !embed) return 0;
    float *a = ld->chunk, *b = ld->chunk + CHUNK / 2;
    equal = head->rank == 2 && head->dim[0] == embed->dim[0] && head->dim[1] == embed->dim[1];
    if (equal) TRY(check_tensor(ld, head, embed->dim[0], embed->dim[1], true));
    for (int64_t i = 0; equal && i < head->count; i += CHUNK / 2) {
        const int64_t k = MIN((int64_t)CHUNK / 2, head->count - i);
        TRY(st_read_f32(&ld->set, head, i, k, a));
        TRY(st_read_f32(&ld->set, embed, i, k, b));
        equal = memcmp(a, b, (size_t)k * sizeof *a) == 0;
    }
    ld->used[head - ld->set.tensors] = true;
    if (equal) return 0;
    return err_at(ERR_INPUT, file_of(ld, head), 0, 0,
                  "tensor \"lm_head.weight\" differs from \"%s\", but config.json ties them (set "
                  "tie_word_embeddings to false, "
                  "or drop the tensor)",
                  embed->name);
}

static bool harmless_extra(const char *name)
{
    static const char end[] = "rotary_emb.inv_freq";
    const size_t n = strlen(name), k = sizeof end - 1;
    return n >= k && strcmp(name + n - k, end) == 0;
}

static void warn_extra(const struct loader *ld)
{
    const char *first = NULL;
    char q[128];
    int64_t n = 0;
    for (int64_t i = 0; i < ld->set.n; i++) {
        if (ld->used[i] || harmless_extra(ld->set.tensors[i].name)) continue;
        if (n++ == 0) first = ld->set.tensors[i].name;
    }
    if (n == 0) return;
    fprintf(stderr, "warning: %s: %lld tensor%s not part of a %s model and ignored (\"%s\"%s)\n",
            ld->dir, (long long)n, n == 1 ? " is" : "s are", ld->m->arch.model_type,
            err_quote(q, sizeof q, first, strlen(first)), n == 1 ? "" : ", ...");
}

static int load_all(struct loader *ld)
{
    struct model *m = ld->m;
    TRY(st_open_dir(&ld->set, ld->dir));
    TRY(MEM_NEW(&ld->chunk, CHUNK));
    TRY(MEM_NEW(&ld->used, ld->set.n));
    for (int32_t i = 0; i < m->n_base; i++)
        for (int32_t j = 0; j < m->params[i].n_slices; j++)
            TRY(load_slice(ld, &m->params[i], &m->params[i].slice[j]));
    if (m->head == m->embed) TRY(check_tied_head(ld));
    warn_extra(ld);
    return 0;
}

int model_get(const struct model *m, int64_t at, int64_t n, float *out)
{
    const struct backend *be = m->be;
    const bool master = m->low.data && at < m->n_trained;
    BUG_IF(master && n > m->n_trained - at);
    if (master && m->shard.n) return m->shard.fetch(m->shard.payload, at, n, out);
    if (m->weights.dtype == DT_F32)
        return be->mem->to_host(be->cx, out, (const float *)m->weights.data + at, n * 4);
    return backend_join(be, out, (const uint16_t *)m->weights.data + at,
                        master ? (const int16_t *)m->low.data + at : NULL, n);
}

/* What the shard holds of elements [at, at + n) of the master's lower halves. */
static int put_low(struct model *m, int64_t at, int64_t n, const float *in)
{
    const struct flat_part all = { 0, m->n_trained, 0 }, *part = m->shard.n ? m->shard.part : &all;
    for (int32_t i = 0; i < MAX(m->shard.n, 1); i++) {
        const int64_t begin = MAX(at, part[i].begin), end = MIN(at + n, part[i].end);
        int16_t *to = (int16_t *)m->low.data + part[i].at + (begin - part[i].begin);
        if (begin < end) TRY(backend_split(m->be, NULL, to, in + (begin - at), end - begin));
    }
    return 0;
}

int model_put(struct model *m, int64_t at, int64_t n, const float *in)
{
    const struct backend *be = m->be;
    watch_beat();
    if (m->low.data) TRY(put_low(m, at, n, in));
    if (m->weights.dtype == DT_F32)
        return be->mem->to_device(be->cx, (float *)m->weights.data + at, in, n * 4);
    return backend_split(be, (uint16_t *)m->weights.data + at, NULL, in, n);
}

static int load_base(struct model *m, const char *dir)
{
    struct loader ld = { .m = m, .dir = dir };
    const int rc = load_all(&ld);
    free(ld.chunk);
    free(ld.used);
    st_close(&ld.set);
    return rc;
}

int model_load(struct model *m, const char *dir)
{
    char *base = NULL;
    if (!arch_adapter(dir)) return load_base(m, dir);
    TRY(arch_adapter_base(&base, dir));
    int rc = load_base(m, base);
    free(base);
    if (rc == 0) rc = lora_load(m, dir);
    return rc;
}

static int load_adapters(struct loader *ld, const char *path)
{
    struct model *m = ld->m;
    TRY(st_open_file(&ld->set, path));
    TRY(MEM_NEW(&ld->chunk, CHUNK));
    TRY(MEM_NEW(&ld->used, ld->set.n));
    for (int32_t i = m->n_base; i < m->n_params; i++)
        for (int32_t j = 0; j < m->params[i].n_slices; j++)
            TRY(load_slice(ld, &m->params[i], &m->params[i].slice[j]));
    for (int64_t i = 0; i < ld->set.n; i++)
        if (!ld->used[i])
            return err_at(ERR_INPUT, path, 0, 0,
                          "tensor \"%s\" is no adapter of a %s model with these targets",
                          ld->set.tensors[i].name, m->arch.model_type);
    return 0;
}

int lora_load(struct model *m, const char *dir)
{
    struct loader ld = { .m = m, .dir = dir };
    char *path = NULL;
    int rc;
    TRY_OUT(lora_check(&m->arch.lora, dir));
    TRY_OUT(path_join(&path, dir, "adapter_model.safetensors"));
    TRY_OUT(load_adapters(&ld, path));
out:
    free(ld.chunk);
    free(ld.used);
    free(path);
    st_close(&ld.set);
    return rc;
}

/* A pure function of (seed, tensor, element), so threads may share the work. */
static void draw_normal(float *out, int64_t n, int64_t first, uint64_t seed, uint64_t stream,
                        double sigma, int threads)
{
    (void)threads; /* unused where OpenMP is off */
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < n; i++)
        out[i] = (float)(sigma * rng_normal(seed, stream, (uint64_t)(first + i)));
}

static int random_slice(struct model *m, const struct param *p, const struct param_slice *s,
                        uint64_t seed, uint64_t number, float *chunk)
{
    const int64_t cols = tensor_row(&p->w), n = s->rows * cols;
    const size_t len = strlen(s->name);
    const bool bias = len >= 5 && strcmp(s->name + len - 5, ".bias") == 0;
    for (int64_t i = 0; i < n; i += CHUNK) {
        const int64_t k = MIN((int64_t)CHUNK, n - i);
        if (p->decay)
            draw_normal(chunk, k, i, seed, rng_stream_of(RNG_INIT, number), m->arch.init_range,
                        MAX(m->be->threads, 1));
        else
            for (int64_t j = 0; j < k; j++)
                chunk[j] = bias ? 0.0f : 1.0f;
        TRY(put_param(m, p, s->row * cols + i, k, chunk));
    }
    return end_slice(m, p, s);
}

int model_random(struct model *m, uint64_t seed)
{
    uint64_t number = 0;
    float *chunk;
    int rc = 0;
    TRY(MEM_NEW(&chunk, CHUNK));
    for (int32_t i = 0; i < m->n_base; i++)
        for (int32_t j = 0; j < m->params[i].n_slices; j++)
            TRY_OUT(random_slice(m, &m->params[i], &m->params[i].slice[j], seed, number++, chunk));
out:
    free(chunk);
    return rc;
}

/* The exact weights of one part, which this process holds. */
static int round_part(struct model *m, struct flat_part part, enum st_dtype dtype, float *chunk,
                      uint16_t *half)
{
    const struct backend *be = m->be;
    for (int64_t at = part.begin; at < part.end; at += CHUNK) {
        const int64_t n = MIN((int64_t)CHUNK, part.end - at);
        if (m->low.data)
            TRY(backend_join(be, chunk, (const uint16_t *)m->weights.data + at,
                             (const int16_t *)m->low.data + part.at + (at - part.begin), n));
        else
            TRY(model_get(m, at, n, chunk));
        st_from_f32(half, chunk, n, dtype);
        st_to_f32(chunk, half, n, dtype);
        TRY(model_put(m, at, n, chunk));
    }
    return 0;
}

int model_round(struct model *m, enum st_dtype dtype)
{
    const struct flat_part all = { 0, m->n_trained, 0 };
    const bool sharded = m->low.data && m->shard.n;
    float *chunk = NULL;
    uint16_t *half = NULL;
    int rc = 0;
    if (dtype == ST_F32) return 0;
    TRY_OUT(MEM_NEW(&chunk, CHUNK));
    TRY_OUT(MEM_NEW(&half, CHUNK));
    if (!sharded) TRY_OUT(round_part(m, all, dtype, chunk, half));
    for (int32_t i = 0; sharded && i < m->shard.n; i++)
        TRY_OUT(round_part(m, m->shard.part[i], dtype, chunk, half));
out:
    free(chunk);
    free(half);
    return rc;
}

enum st_dtype model_dir_dtype(const char *dir, const struct arch *a)
{
    static const enum st_dtype kinds[] = { ST_F32, ST_F16, ST_BF16 };
    struct st_set set = { 0 };
    int64_t best = 0;
    enum st_dtype dtype = ST_F32;
    const bool opened = st_open_dir(&set, dir) == 0;
    (void)a; /* the names of its tensors do not matter for the vote */
    for (size_t k = 0; opened && k < COUNT_OF(kinds); k++) {
        int64_t n = 0;
        for (int64_t i = 0; i < set.n; i++)
            if (set.tensors[i].dtype == kinds[k]) n += set.tensors[i].count;
        if (n > best) {
            best = n;
            dtype = kinds[k];
        }
    }
    st_close(&set);
    return dtype;
}

int model_dir_half(const char *dir)
{
    struct st_set set = { 0 };
    bool half = true;
    const int rc = st_open_dir(&set, dir);
    for (int64_t i = 0; i < set.n && rc == 0; i++)
        half &= set.tensors[i].rank != 2 || set.tensors[i].dtype == ST_BF16;
    st_close(&set);
    return rc < 0 ? rc : half;
}
