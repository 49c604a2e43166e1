/* SPDX-License-Identifier: MIT */
#include "fingerprint.h"
#include "metrics.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int add_file(json_t *o, const char *dir, const char *name)
{
    struct sha256 s;
    char *path = NULL, *text = NULL, hex[65];
    size_t len;
    int rc = path_join(&path, dir, name);
    if (rc == 0 && file_exists(path)) {
        rc = file_read(&text, &len, path, 1 << 28);
        if (rc == 0) {
            sha256_init(&s);
            sha256_add(&s, text, len);
            sha256_hex(&s, hex);
            rc = metrics_text(o, name, hex);
        }
    }
    free(text);
    free(path);
    return rc;
}

enum { SAMPLES = 256, SAMPLE_BYTES = 4096 };

/* "BYTES bytes, HEX": SHA-256 of SAMPLES pieces spread over the file, which is all of a small one. Other weights of the same shape differ there;
 * hashing gigabytes at every start would cost more than it finds. */
static int add_sampled(json_t *o, const char *key, const char *path)
{
    uint8_t piece[SAMPLE_BYTES];
    char hex[65], text[96];
    struct sha256 s;
    int64_t size, end = 0;
    int fd, rc = 0;
    TRY(file_open(&fd, &size, path));
    sha256_init(&s);
    for (int64_t i = 0; rc == 0 && i < SAMPLES && end < size; i++) {
        const int64_t at =
            MAX(end, (int64_t)((double)(size - SAMPLE_BYTES) / (SAMPLES - 1) * (double)i));
        const ssize_t n = pread(fd, piece, sizeof piece, at);
        if (n <= 0) rc = err_set(ERR_IO, "cannot read %s", path);
        if (n > 0) sha256_add(&s, piece, (size_t)n);
        end = at + MAX(n, (ssize_t)0);
    }
    close(fd);
    TRY(rc);
    sha256_hex(&s, hex);
    snprintf(text, sizeof text, "%lld bytes, %.16s", (long long)size, hex);
    return metrics_text(o, key, text);
}

/* The adapter of a directory. */
static int add_adapter(json_t *o, const char *dir, const char *prefix)
{
    char key[64], *path = NULL;
    TRY(path_join(&path, dir, "adapter_model.safetensors"));
    snprintf(key, sizeof key, "%sadapter", prefix);
    const int rc = add_sampled(o, key, path);
    free(path);
    return rc;
}

/* The weight files of a model directory, by name, or of an adapter and its base; `prefix` keeps two directories apart. */
static int add_weights(json_t *o, const char *dir, const char *prefix)
{
    struct st_set set = { 0 };
    char key[300], *base = NULL;
    int rc;
    if (arch_adapter(dir)) {
        TRY(add_adapter(o, dir, prefix));
        TRY(arch_adapter_base(&base, dir));
    }
    rc = st_open_dir(&set, base ? base : dir);
    free(base);
    for (int32_t i = 0; rc == 0 && i < set.n_files; i++) {
        snprintf(key, sizeof key, "%s%s", prefix, path_base(set.files[i]));
        rc = add_sampled(o, key, set.files[i]);
    }
    st_close(&set);
    return rc;
}

int fingerprint_text(const struct setup *su, const struct dataset data[2],
                     const struct dataset eval[2], struct buf *b)
{
    static const char *const small[] = { "config.json", "tokenizer_config.json",
                                         "special_tokens_map.json", "chat_template.jinja" };
    static const char *const names[2][2] = { { "sft data", "sft evaluation data" },
                                             { "preference data", "preference evaluation data" } };
    struct buf text = { 0 };
    char hex[65];
    int rc = config_dump_training(su->cfg, &text);
    json_t *o = rc < 0 ? NULL : json_loads(text.data, 0, NULL), *content = json_object();
    if (rc < 0) goto out;
    if (!o) TRY_OUT(err_set(ERR_OOM, "out of memory for the fingerprint"));
    tokenizer_digest(su->tok, hex);
    TRY_OUT(metrics_text(content, "tokenizer.json", hex));
    for (size_t i = 0; i < COUNT_OF(small); i++)
        TRY_OUT(add_file(content, su->cfg->model.path, small[i]));
    if (su->cfg->model.init == MODEL_PRETRAINED)
        TRY_OUT(add_weights(content, su->cfg->model.path, ""));
    if (su->cfg->model.lora.present && su->cfg->model.lora.path)
        TRY_OUT(add_adapter(content, su->cfg->model.lora.path, "start "));
    if (su->cfg->preference.present && su->cfg->reference.path &&
        (rc = add_weights(content, su->cfg->reference.path, "reference ")) < 0)
        TRY_OUT(err_note(rc, "reference.path"));
    for (int k = 0; k < 2; k++) {
        if (data[k].digest[0]) TRY_OUT(metrics_text(content, names[k][0], data[k].digest));
        if (eval[k].digest[0]) TRY_OUT(metrics_text(content, names[k][1], eval[k].digest));
    }
    if (json_object_set(o, "content", content))
        TRY_OUT(err_set(ERR_OOM, "out of memory for the fingerprint"));
    TRY_OUT(json_dump(b, o, 2));
    TRY_OUT(buf_adds(b, "\n"));
out:
    json_decref(o);
    json_decref(content);
    buf_release(&text);
    return rc;
}

int fingerprint_agree(struct dist *dist, const struct buf *print)
{
    struct sha256 s;
    char hex[65], *all = NULL;
    int rc;
    sha256_init(&s);
    sha256_add(&s, print->data, print->len);
    sha256_hex(&s, hex);
    TRY_OUT(MEM_NEW(&all, dist_size(dist) * (int64_t)sizeof hex));
    TRY_OUT(dist_gather(dist, hex, all, sizeof hex));
    for (int32_t r = 1; r < dist_size(dist) && rc == 0; r++)
        if (memcmp(all, all + r * (int64_t)sizeof hex, sizeof hex) != 0)
            rc = err_set(ERR_INPUT,
                         "rank %d reads other files than rank 0 (config, data, tokenizer or sizes "
                         "of the weights differ); all ranks need the same files at the same paths",
                         r);
    TRY_OUT(dist_agree(dist, rc));
out:
    free(all);
    return rc;
}
