/* SPDX-License-Identifier: MIT */
#include "model.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CHUNK = 1 << 18 }; /* elements in host memory at a time */

struct item { /* one Hugging Face tensor to write */
    const struct param *p;
    const struct param_slice *s;
    int64_t bytes;
    int32_t shard;
};
struct saver {
    const struct model *m;
    const char *tmp; /* the directory under its temporary name */
    enum st_dtype dtype;
    bool adapters; /* these alone, in PEFT's format: one file, however large */
    struct item *items;
    int64_t n, total; /* items; bytes of all data */
    int32_t n_shards;
    struct st_decl *decls; /* [n], of one shard at a time */
    float *chunk;          /* [CHUNK] */
};

/* In the table's order; a tensor above shard_bytes has a shard of its own. */
static int list_items(struct saver *sv, int64_t shard_bytes)
{
    const struct model *m = sv->m;
    int64_t in_shard = 0;
    TRY(MEM_NEW(&sv->items, (int64_t)m->n_params * PARAM_SLICES_MAX));
    for (int32_t i = sv->adapters ? m->n_base : 0; i < m->n_params; i++)
        for (int32_t j = 0; j < m->params[i].n_slices; j++) {
            const struct param *p = &m->params[i];
            struct item *it = &sv->items[sv->n++];
            *it =
                (struct item){ p, &p->slice[j],
                               p->slice[j].rows * tensor_row(&p->w) * st_dtype_size(sv->dtype), 0 };
            if (sv->n_shards == 0 || (in_shard > 0 && it->bytes > shard_bytes - in_shard)) {
                sv->n_shards++;
                in_shard = 0;
            }
            it->shard = sv->n_shards - 1;
            in_shard += it->bytes;
            sv->total += it->bytes;
        }
    TRY(MEM_NEW(&sv->decls, sv->n));
    return MEM_NEW(&sv->chunk, CHUNK);
}

static void shard_name(char out[64], const struct saver *sv, int32_t shard)
{
    if (sv->n_shards == 1)
        snprintf(out, 64, "%s.safetensors", sv->adapters ? "adapter_model" : "model");
    else
        snprintf(out, 64, "model-%05d-of-%05d.safetensors", shard + 1, sv->n_shards);
}

static int put_item(const struct saver *sv, struct st_writer *w, const struct item *it)
{
    const int64_t cols = tensor_row(&it->p->w), n = it->s->rows * cols;
    const int64_t at = it->p->offset + it->s->row * cols;
    for (int64_t i = 0; i < n; i += CHUNK) {
        const int64_t k = MIN((int64_t)CHUNK, n - i);
        TRY(model_get(sv->m, at + i, k, sv->chunk));
        TRY(st_writer_put_f32(w, sv->chunk, k));
    }
    return 0;
}

static int save_shard(const struct saver *sv, int32_t shard)
{
    static const char *const metadata[] = { "format", "pt", NULL };
    char name[64], *path = NULL;
    struct st_writer *w = NULL;
    int64_t n = 0;
    int rc;
    for (int64_t i = 0; i < sv->n; i++) {
        const struct item *it = &sv->items[i];
        if (it->shard != shard) continue;
        sv->decls[n++] = (struct st_decl){
            it->s->name, sv->dtype, it->p->decay ? 2 : 1, { it->s->rows, tensor_row(&it->p->w) }
        };
    }
    shard_name(name, sv, shard);
    TRY_OUT(path_join(&path, sv->tmp, name));
    TRY_OUT(st_writer_open(&w, path, sv->decls, n, metadata));
    for (int64_t i = 0; i < sv->n; i++)
        if (sv->items[i].shard == shard) TRY_OUT(put_item(sv, w, &sv->items[i]));
    rc = st_writer_close(w);
    w = NULL;
out:
    if (w) st_writer_abandon(w);
    free(path);
    return rc;
}

static int write_json(const struct saver *sv, const char *name, const json_t *root)
{
    struct buf b = { 0 };
    char *path = NULL;
    int rc;
    TRY_OUT(path_join(&path, sv->tmp, name));
    TRY_OUT(json_dump(&b, root, 2));
    TRY_OUT(buf_adds(&b, "\n"));
    TRY_OUT(file_write_all(path, b.data, b.len));
out:
    buf_release(&b);
    free(path);
    return rc;
}

static int save_index(const struct saver *sv)
{
    char name[64];
    json_t *map = json_object(), *root = json_object();
    int bad = json_object_set_new(root, "metadata",
                                  json_pack("{s:I}", "total_size", (json_int_t)sv->total));
    for (int64_t i = 0; i < sv->n; i++) {
        shard_name(name, sv, sv->items[i].shard);
        bad |= json_object_set_new(map, sv->items[i].s->name, json_string(name));
    }
    bad |= json_object_set_new(root, "weight_map", map);
    const int rc = bad ? err_set(ERR_OOM, "out of memory: the index of a model")
                       : write_json(sv, "model.safetensors.index.json", root);
    json_decref(root);
    return rc;
}

/* The source's config.json, with the class that vLLM and llama.cpp look for where it has none, and its dtype in the spelling that it has; torch_dtype, which every
 * version reads, where it has none. */
static int edit_config(json_t *root, const struct arch *a, enum st_dtype dtype)
{
    const char *text = dtype == ST_BF16 ? "bfloat16" : dtype == ST_F16 ? "float16" : "float32";
    const bool has_new = json_object_get(root, "dtype"),
               has_old = json_object_get(root, "torch_dtype");
    const json_t *classes = json_object_get(root, "architectures");
    int bad = 0;
    if (!classes || json_is_null(classes))
        bad |= json_object_set_new(root, "architectures", json_pack("[s]", arch_class(a)));
    if (has_new) bad |= json_object_set_new(root, "dtype", json_string(text));
    if (has_old || !has_new) bad |= json_object_set_new(root, "torch_dtype", json_string(text));
    return bad ? err_set(ERR_OOM, "out of memory: config.json") : 0;
}

static int save_config(const struct saver *sv, const char *source_dir)
{
    struct json_doc doc = { 0 };
    char *path = NULL;
    int rc;
    TRY_OUT(path_join(&path, source_dir, "config.json"));
    TRY_OUT(json_doc_read(&doc, path));
    if (!json_is_object(doc.root)) TRY_OUT(json_err(ERR_INPUT, &doc, "", "expected an object"));
    TRY_OUT(edit_config(doc.root, &sv->m->arch, sv->dtype));
    TRY_OUT(write_json(sv, "config.json", doc.root));
out:
    json_doc_release(&doc);
    free(path);
    return rc;
}

static int save_adapter_config(const struct saver *sv, const char *source_dir)
{
    json_t *root = lora_config(&sv->m->arch.lora, source_dir);
    const int rc = root ? write_json(sv, "adapter_config.json", root)
                        : err_set(ERR_OOM, "out of memory: adapter_config.json");
    json_decref(root);
    return rc;
}

static int copy_one(const struct saver *sv, const char *source_dir, const char *name)
{
    char *from = NULL, *to = NULL;
    int rc;
    TRY_OUT(path_join(&from, source_dir, name));
    TRY_OUT(path_join(&to, sv->tmp, name));
    if (file_exists(from)) TRY_OUT(file_copy(from, to));
out:
    free(from);
    free(to);
    return rc;
}

static int copy_others(const struct saver *sv, const char *source_dir)
{
    static const char *const names[] = { "tokenizer.json",
                                         "tokenizer_config.json",
                                         "special_tokens_map.json",
                                         "generation_config.json",
                                         "chat_template.jinja",
                                         "vocab.json",
                                         "merges.txt",
                                         "added_tokens.json",
                                         "tokenizer.model" };
    for (size_t i = 0; i < COUNT_OF(names); i++)
        TRY(copy_one(sv, source_dir, names[i]));
    return 0;
}

static int fill_directory(struct saver *sv, const char *source_dir, int64_t shard_bytes)
{
    TRY(dir_make(sv->tmp));
    TRY(sv->adapters ? save_adapter_config(sv, source_dir) : save_config(sv, source_dir));
    TRY(copy_others(sv, source_dir));
    TRY(list_items(sv, shard_bytes));
    for (int32_t i = 0; i < sv->n_shards; i++)
        TRY(save_shard(sv, i));
    if (sv->n_shards > 1) TRY(save_index(sv));
    return dir_sync(sv->tmp);
}

int model_save(struct model *m, const char *dir, const char *source_dir, enum st_dtype dtype,
               int64_t shard_bytes)
{
    struct saver sv = { .m = m, .dtype = dtype, .adapters = m->arch.lora.rank > 0 };
    size_t len = strlen(dir);
    char *to = NULL, *tmp = NULL, *old = NULL;
    int rc;
    BUG_IF(dtype != ST_F32 && dtype != ST_F16 && dtype != ST_BF16);
    while (len > 1 && dir[len - 1] == '/')
        len--;
    TRY_OUT(mem_strndup(&to, dir, len));
    TRY_OUT(mem_asprintf(&tmp, "%s.tmp", to));
    TRY_OUT(mem_asprintf(&old, "%s.old", to));
    if (sv.adapters) shard_bytes = INT64_MAX;
    TRY_OUT(dir_remove(tmp)); /* left by a killed run */
    sv.tmp = tmp;
    TRY_OUT(fill_directory(&sv, source_dir, shard_bytes));
    TRY_OUT(dir_replace(to, tmp, old));
out:
    if (rc < 0 && sv.tmp) dir_abandon(tmp, rc);
    free(sv.items);
    free(sv.decls);
    free(sv.chunk);
    free(to);
    free(tmp);
    free(old);
    return rc;
}
