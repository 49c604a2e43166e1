/* SPDX-License-Identifier: MIT */
#include "manifest.h"
#include "metrics.h"
#include "../io/file.h"
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>

enum { VERSION = 4, READ_BYTES = 1 << 20 };
static const char CHECKSUM[] = ",\n  \"crc32\": "; /* its own, of all bytes before: the last key */
static const char REFERENCE[] = "reference.bin";

static const struct field {
    const char *key;
    size_t offset;
    int64_t max;
} FIELDS[] = {
#define FIELD(key, member, max)                       \
    {                                                 \
        key, offsetof(struct manifest, member), (max) \
    }
    FIELD("step", step, INT64_MAX),
    FIELD("steps", steps, INT64_MAX),
    FIELD("updates", updates, INT64_MAX),
    FIELD("skipped", skipped, INT64_MAX),
    FIELD("skipped_run", skipped_run, INT64_MAX),
    FIELD("eval_due", eval_due, 1),
    FIELD("metrics_bytes", metrics_bytes, INT64_MAX),
    FIELD("micro_batch_tokens", micro_tokens, INT64_MAX),
    FIELD("gradient_checkpointing", recompute, INT32_MAX),
    FIELD("keep_logits", keep_logits, 1),
    FIELD("threads", threads, INT32_MAX),
    FIELD("elements", elements, INT64_MAX / 32),
    FIELD("ranks", ranks, RANKS_MAX),
    FIELD("pairs", pairs, INT32_MAX),
    FIELD("eval_pairs", eval_pairs, INT32_MAX),
};

static int64_t *slot(struct manifest *m, const struct field *f)
{
    return (int64_t *)(void *)((char *)m + f->offset);
}

/* writing --------------------------------------------------------------------------------------------------------- */

static json_t *new_file(const char *name, int64_t bytes, int64_t crc, const struct shard *s)
{
    json_t *o = json_object();
    int rc;
    TRY_OUT(metrics_text(o, "name", name));
    TRY_OUT(metrics_int(o, "bytes", bytes));
    TRY_OUT(metrics_int(o, "crc32", crc));
    if (s) {
        TRY_OUT(metrics_int(o, "rank", s->rank));
        TRY_OUT(metrics_int(o, "elements", s->held));
    }
    return o;
out:
    json_decref(o);
    return NULL;
}

static int add_files(json_t *root, const struct manifest *m)
{
    json_t *list = json_array();
    char name[32];
    int rc = 0;
    for (int64_t i = 0; rc == 0 && i < m->ranks; i++) {
        const struct shard *s = &m->shards[i];
        rc = json_array_append_new(
            list, new_file(shard_name(name, s->rank, s->ranks), s->bytes, s->crc, s));
    }
    if (rc == 0)
        rc = json_array_append_new(list,
                                   new_file(REFERENCE, m->reference_bytes, m->reference_crc, NULL));
    if (rc == 0) rc = json_object_set(root, "files", list);
    json_decref(list);
    return rc ? err_set(ERR_OOM, "out of memory for a manifest") : 0;
}

int manifest_write(const struct manifest *m, const char *dir)
{
    struct buf b = { 0 };
    char *path = NULL;
    json_t *o = json_object();
    int rc;
    TRY_OUT(path_join(&path, dir, "manifest.json"));
    TRY_OUT(metrics_int(o, "version", VERSION));
    TRY_OUT(metrics_text(o, "stage", m->stage));
    for (size_t i = 0; i < COUNT_OF(FIELDS); i++)
        TRY_OUT(metrics_int(o, FIELDS[i].key, *slot((struct manifest *)(uintptr_t)m, &FIELDS[i])));
    TRY_OUT(add_files(o, m));
    if (json_object_set(o, "layout", m->layout) || json_object_set(o, "run", m->run))
        TRY_OUT(err_set(ERR_OOM, "out of memory for a manifest"));
    TRY_OUT(json_dump(&b, o, 2));
    b.len -= strlen("\n}");
    TRY_OUT(buf_addf(&b, "%s%u\n}\n", CHECKSUM,
                     (unsigned)crc32_z(crc32_z(0, NULL, 0), (uint8_t *)b.data, b.len)));
    TRY_OUT(file_write_all(path, b.data, b.len));
out:
    json_decref(o);
    buf_release(&b);
    free(path);
    return rc;
}

/* reading --------------------------------------------------------------------------------------------------------- */

static int need_int(const json_t *o, const char *key, const char *path, int64_t max, int64_t *out)
{
    const json_t *v = json_object_get(o, key);
    if (!json_is_integer(v) || json_integer_value(v) < 0 || json_integer_value(v) > max)
        return err_set(ERR_CHECKPOINT, "%s: \"%s\" is not a whole number from 0 to %lld", path, key,
                       (long long)max);
    *out = json_integer_value(v);
    return 0;
}

static int need_name(const json_t *o, const char *path, const char *name)
{
    const char *s = json_string_value(json_object_get(o, "name"));
    if (s && strcmp(s, name) == 0) return 0;
    return err_set(ERR_CHECKPOINT, "%s: \"files\" does not list %s", path, name);
}

static int read_files(struct manifest *m, const char *path)
{
    const json_t *list = json_object_get(m->root, "files");
    char name[32];
    int64_t rank;
    if (m->ranks < 1 || !json_is_array(list) || json_array_size(list) != (size_t)m->ranks + 1)
        return err_set(ERR_CHECKPOINT, "%s: \"files\" is not one a rank and %s", path, REFERENCE);
    TRY(MEM_NEW(&m->shards, m->ranks));
    for (int32_t i = 0; i < (int32_t)m->ranks; i++) {
        struct shard *s = &m->shards[i];
        const json_t *o = json_array_get(list, (size_t)i);
        TRY(need_name(o, path, shard_name(name, i, (int32_t)m->ranks)));
        s->rank = i;
        s->ranks = (int32_t)m->ranks;
        TRY(need_int(o, "rank", path, RANKS_MAX, &rank));
        TRY(need_int(o, "elements", path, m->elements, &s->held));
        TRY(need_int(o, "bytes", path, INT64_MAX, &s->bytes));
        TRY(need_int(o, "crc32", path, UINT32_MAX, &s->crc));
        if (rank != i) return err_set(ERR_CHECKPOINT, "%s: %s is not of its rank", path, name);
    }
    const json_t *o = json_array_get(list, (size_t)m->ranks);
    TRY(need_name(o, path, REFERENCE));
    TRY(need_int(o, "bytes", path, INT64_MAX, &m->reference_bytes));
    return need_int(o, "crc32", path, UINT32_MAX, &m->reference_crc);
}

static int read_fields(struct manifest *m, const char *path)
{
    int64_t version;
    TRY(need_int(m->root, "version", path, INT64_MAX, &version));
    if (version != VERSION)
        return err_set(ERR_CHECKPOINT, "%s: format %lld, this program reads %d", path,
                       (long long)version, VERSION);
    m->stage = json_string_value(json_object_get(m->root, "stage"));
    if (!m->stage) return err_set(ERR_CHECKPOINT, "%s: \"stage\" is not there", path);
    for (size_t i = 0; i < COUNT_OF(FIELDS); i++)
        TRY(need_int(m->root, FIELDS[i].key, path, FIELDS[i].max, slot(m, &FIELDS[i])));
    m->layout = json_incref(json_object_get(m->root, "layout"));
    m->run = json_incref(json_object_get(m->root, "run"));
    if (!json_is_array(m->layout) || !json_is_object(m->run))
        return err_set(ERR_CHECKPOINT, "%s: \"layout\" or \"run\" is not there", path);
    return read_files(m, path);
}

/* A flipped digit is JSON too. */
static int check_itself(const struct json_doc *d, const char *path)
{
    const char *at = NULL;
    int64_t want;
    for (const char *p = d->text; (p = strstr(p, CHECKSUM)); p++)
        at = p;
    if (!at) return err_set(ERR_CHECKPOINT, "%s: \"crc32\" is not its last key", path);
    TRY(need_int(d->root, "crc32", path, UINT32_MAX, &want));
    const uint32_t got =
        (uint32_t)crc32_z(crc32_z(0, NULL, 0), (uint8_t *)d->text, (size_t)(at - d->text));
    return want == (int64_t)got
               ? 0
               : err_set(ERR_CHECKPOINT, "%s: its checksum is not its own \"crc32\"", path);
}

int manifest_read(struct manifest *m, const char *dir)
{
    struct json_doc d = { 0 };
    char *path = NULL;
    int rc;
    memset(m, 0, sizeof *m);
    TRY_OUT(path_join(&path, dir, "manifest.json"));
    TRY_OUT(json_doc_read(&d, path));
    m->root = json_incref(d.root);
    TRY_OUT(check_itself(&d, path));
    TRY_OUT(read_fields(m, path));
out:
    json_doc_release(&d);
    free(path);
    return rc < 0 ? ERR_CHECKPOINT : 0;
}

static int check_file(const char *dir, const char *name, int64_t want_bytes, int64_t want_crc)
{
    char *path = NULL;
    uint8_t *hold = NULL;
    uint32_t crc = (uint32_t)crc32_z(0, NULL, 0);
    int64_t bytes = 0;
    size_t got;
    int fd = -1, rc;
    TRY_OUT(path_join(&path, dir, name));
    TRY_OUT(file_open(&fd, &bytes, path));
    if (bytes != want_bytes)
        TRY_OUT(err_set(ERR_CHECKPOINT, "%s: has %lld bytes, the manifest says %lld", path,
                        (long long)bytes, (long long)want_bytes));
    TRY_OUT(MEM_NEW(&hold, READ_BYTES));
    do {
        TRY_OUT(file_read_some(fd, path, hold, READ_BYTES, &got));
        crc = (uint32_t)crc32_z(crc, hold, got);
    } while (got > 0);
    if ((int64_t)crc != want_crc)
        TRY_OUT(err_set(ERR_CHECKPOINT, "%s: its checksum is not the manifest's", path));
out:
    if (fd >= 0) close(fd);
    free(hold);
    free(path);
    return rc < 0 ? ERR_CHECKPOINT : 0;
}

int manifest_verify(const struct manifest *m, const char *dir)
{
    char name[32];
    for (int64_t i = 0; i < m->ranks; i++) {
        const struct shard *s = &m->shards[i];
        TRY(check_file(dir, shard_name(name, s->rank, s->ranks), s->bytes, s->crc));
    }
    return check_file(dir, REFERENCE, m->reference_bytes, m->reference_crc);
}

void manifest_release(struct manifest *m)
{
    json_decref(m->layout);
    json_decref(m->run);
    json_decref(m->root);
    free(m->shards);
    memset(m, 0, sizeof *m);
}
