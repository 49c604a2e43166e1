/* SPDX-License-Identifier: MIT */
#include "checkpoint.h"
#include <dirent.h>
#include <errno.h>
#include <fnmatch.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>

enum { CHUNK = 1 << 18, STATE_TENSORS = 5, VERSION = 1 };

/* What a checkpoint saves, in the order of the file; the reference's are host memory in double. */
struct state {
    const char *name;
    int shard;    /* enum zero_state; -1 with `host` NULL: the exact weights */
    double *host; /* or host memory */
    int64_t n;
};

static void state_list(struct state s[STATE_TENSORS], const struct stage *st)
{
    const int64_t n = st->model.n_flat;
    s[0] = (struct state){ "weights", -1, NULL, n };
    s[1] = (struct state){ "moment1", ZERO_MOMENT1, NULL, n };
    s[2] = (struct state){ "moment2", ZERO_MOMENT2, NULL, n };
    s[3] = (struct state){ "reference", -1, st->ref.w, 2 * st->ref.n };
    s[4] = (struct state){ "reference_eval", -1, st->ref_eval.w, 2 * st->ref_eval.n };
}

static int put_state(struct st_writer *w, struct stage *st, const struct state *s, float *host)
{
    if (s->host) {
        /* scores keep w and l apart: [w | l] in the file */
        const struct scores *r = s->host == st->ref.w ? &st->ref : &st->ref_eval;
        TRY(st_writer_put_raw(w, r->w, r->n * 8));
        return st_writer_put_raw(w, r->l, r->n * 8);
    }
    for (int64_t at = 0; at < s->n; at += CHUNK) {
        const int64_t n = MIN((int64_t)CHUNK, s->n - at);
        if (s->shard < 0)
            TRY(model_get(&st->model, at, n, host));
        else
            TRY(zero_fetch(&st->zero, (enum zero_state)s->shard, at, n, host));
        TRY(st_writer_put_f32(w, host, n));
    }
    return 0;
}

static int write_state(const char *path, struct stage *st, int64_t *bytes, uint32_t *crc)
{
    struct state s[STATE_TENSORS];
    struct st_decl decl[STATE_TENSORS];
    struct st_writer *w = NULL;
    float *host = NULL;
    int rc;
    state_list(s, st);
    for (int i = 0; i < STATE_TENSORS; i++)
        decl[i] = (struct st_decl){ s[i].name, s[i].host ? ST_F64 : ST_F32, 1, { s[i].n } };
    TRY_OUT(MEM_NEW(&host, CHUNK));
    TRY_OUT(st_writer_open(&w, path, decl, STATE_TENSORS, NULL));
    for (int i = 0; i < STATE_TENSORS; i++)
        TRY_OUT(put_state(w, st, &s[i], host));
    *bytes = st_writer_bytes(w);
    *crc = st_writer_crc(w);
    rc = st_writer_close(w);
    w = NULL;
out:
    if (w) st_writer_abandon(w);
    free(host);
    return rc;
}

static int write_manifest(const char *path, const struct stage *st, int64_t metrics_bytes,
                          const char *fingerprint, int64_t bytes, uint32_t crc)
{
    struct buf b = { 0 };
    json_t *o = json_object();
    int rc = 0;
    const struct {
        const char *key;
        int64_t value;
    } ints[] = {
        { "version", VERSION },
        { "step", st->step },
        { "steps", st->steps },
        { "updates", st->optim.opt.step },
        { "skipped", st->skipped },
        { "skipped_run", st->skipped_run },
        { "metrics_bytes", metrics_bytes },
        { "micro_batch_tokens", st->micro_tokens },
        { "gradient_checkpointing", st->su->recompute },
        { "threads", st->su->be.threads },
        { "state_bytes", bytes },
        { "state_crc32", crc },
    };
    TRY_OUT(metrics_text(o, "stage", st->name));
    for (size_t i = 0; i < COUNT_OF(ints); i++)
        TRY_OUT(metrics_int(o, ints[i].key, ints[i].value));
    if (json_object_set_new(o, "run", json_loads(fingerprint, 0, NULL)))
        TRY_OUT(err_set(ERR_OOM, "out of memory for a manifest"));
    TRY_OUT(json_dump(&b, o, 2));
    TRY_OUT(buf_adds(&b, "\n"));
    TRY_OUT(file_write_all(path, b.data, b.len));
out:
    json_decref(o);
    buf_release(&b);
    return rc;
}

/* "sft-000050" or "preference-000050" to stage and step; false for any other name. */
static bool parse_name(const char *name, struct checkpoint_info *info)
{
    static const char *const prefix[] = {
        [STAGE_SFT] = "sft-", [STAGE_PREFERENCE] = "preference-"
    };
    for (int k = STAGE_SFT; k <= STAGE_PREFERENCE; k++) {
        const size_t len = strlen(prefix[k]);
        int64_t step = 0;
        if (strncmp(name, prefix[k], len) != 0) continue;
        const char *p = name + len;
        if (strlen(p) < 6 || strlen(p) > 18) return false;
        for (; *p; p++) {
            if (*p < '0' || *p > '9') return false;
            step = step * 10 + (*p - '0');
        }
        memset(info, 0, sizeof *info);
        snprintf(info->name, sizeof info->name, "%s", name);
        info->kind = (enum stage_kind)k;
        info->step = step;
        return true;
    }
    return false;
}

/* Order of age: the stages follow each other, steps within. */
static bool newer(const struct checkpoint_info *a, const struct checkpoint_info *b)
{
    return a->kind != b->kind ? a->kind > b->kind : a->step > b->step;
}

/* Names of all checkpoints under OUTPUT, newest first. The caller frees *list. */
static int list_checkpoints(const char *output, struct checkpoint_info **list, int64_t *n)
{
    int64_t cap = 0;
    char *dir = NULL;
    *list = NULL;
    *n = 0;
    int rc = path_join(&dir, output, "checkpoints");
    if (rc < 0) return rc;
    DIR *d = opendir(dir);
    const struct dirent *e;
    while (d && (e = readdir(d))) {
        struct checkpoint_info info;
        if (!parse_name(e->d_name, &info)) continue;
        TRY_OUT(MEM_GROW(list, &cap, *n + 1));
        int64_t at = (*n)++;
        for (; at > 0 && newer(&info, &(*list)[at - 1]); at--)
            (*list)[at] = (*list)[at - 1];
        (*list)[at] = info;
    }
out:
    if (d) closedir(d);
    free(dir);
    return rc;
}

/* Of `last`, just written, and those before it keep the newest `keep`. What is newer was passed over as broken, or belongs to a run that went
 * another way. A directory is renamed before it is deleted, so that no half of it is ever taken for whole. */
static int rotate(const char *output, const struct checkpoint_info *last, int64_t keep)
{
    struct checkpoint_info *list;
    int64_t n, kept = 0;
    int rc = list_checkpoints(output, &list, &n);
    for (int64_t i = 0; rc == 0 && i < n; i++) {
        char *old = NULL, *gone = NULL;
        if (!newer(&list[i], last) && kept++ < MAX(keep, (int64_t)1)) continue;
        rc = mem_asprintf(&old, "%s/checkpoints/%s", output, list[i].name);
        if (rc == 0) rc = mem_asprintf(&gone, "%s/checkpoints/.del-%s", output, list[i].name);
        if (rc == 0) rc = dir_remove(gone);
        if (rc == 0 && rename(old, gone) < 0)
            rc = err_set(ERR_IO, "cannot rename %s: %s", old, strerror(errno));
        if (rc == 0) rc = dir_remove(gone);
        free(old);
        free(gone);
    }
    free(list);
    return rc;
}

int checkpoint_save(const char *output, struct stage *st, int64_t metrics_bytes,
                    const char *fingerprint, int64_t keep, struct checkpoint_info *info)
{
    char *dir = NULL, *tmp = NULL, *final = NULL, *state = NULL, *manifest = NULL;
    int64_t bytes = 0;
    uint32_t crc = 0;
    int rc;
    memset(info, 0, sizeof *info);
    info->kind = st->kind;
    info->step = st->step;
    info->metrics_bytes = metrics_bytes;
    snprintf(info->name, sizeof info->name, "%s-%06lld", st->name, (long long)st->step);
    TRY_OUT(mem_asprintf(&dir, "%s/checkpoints", output));
    TRY_OUT(mem_asprintf(&tmp, "%s/.tmp-%s", dir, info->name));
    TRY_OUT(mem_asprintf(&final, "%s/%s", dir, info->name));
    TRY_OUT(mem_asprintf(&state, "%s/state.safetensors", tmp));
    TRY_OUT(mem_asprintf(&manifest, "%s/manifest.json", tmp));
    TRY_OUT(dir_remove(tmp));
    TRY_OUT(dir_make(tmp));
    TRY_OUT(write_state(state, st, &bytes, &crc));
    TRY_OUT(write_manifest(manifest, st, metrics_bytes, fingerprint, bytes, crc));
    TRY_OUT(dir_sync(tmp));
    TRY_OUT(dir_remove(
        final)); /* only a broken one can stand there: a good one would have been resumed from */
    if (rename(tmp, final) < 0)
        TRY_OUT(err_set(ERR_IO, "cannot rename %s to %s: %s", tmp, final, strerror(errno)));
    TRY_OUT(dir_sync(dir));
    TRY_OUT(rotate(output, info, keep));
out:
    if (rc < 0 && tmp) {
        struct buf keep_message = { 0 };
        buf_adds(&keep_message, err_msg());
        dir_remove(tmp);
        err_set(rc, "%s", keep_message.data ? keep_message.data : "");
        buf_release(&keep_message);
    }
    free(dir);
    free(tmp);
    free(final);
    free(state);
    free(manifest);
    return rc;
}

static int need_int(const json_t *root, const char *key, const char *path, int64_t *out)
{
    const json_t *v = json_object_get(root, key);
    if (!json_is_integer(v) || json_integer_value(v) < 0)
        return err_set(ERR_CHECKPOINT, "%s: \"%s\" is not a number of at least 0", path, key);
    *out = json_integer_value(v);
    return 0;
}

static int file_crc(const char *path, int64_t *bytes, uint32_t *crc)
{
    uint8_t *hold = NULL;
    size_t got;
    int fd;
    TRY(file_open(&fd, bytes, path));
    int rc = MEM_NEW(&hold, 1 << 20);
    *crc = (uint32_t)crc32(0, NULL, 0);
    *bytes = 0;
    while (rc == 0 && (rc = file_read_some(fd, path, hold, 1 << 20, &got)) == 0 && got > 0) {
        *crc = (uint32_t)crc32(*crc, hold, (uInt)got);
        *bytes += (int64_t)got;
    }
    free(hold);
    close(fd);
    return rc;
}

int checkpoint_open(const char *path, struct checkpoint_info *info)
{
    struct json_doc d = { 0 };
    char *manifest = NULL, *state = NULL;
    int64_t bytes, want_bytes, want_crc, version, step;
    uint32_t crc;
    int rc = 0;
    if (!parse_name(path_base(path), info))
        return err_set(ERR_CHECKPOINT,
                       "%s: not a checkpoint directory (sft-NNNNNN or preference-NNNNNN)", path);
    TRY_OUT(path_join(&manifest, path, "manifest.json"));
    TRY_OUT(path_join(&state, path, "state.safetensors"));
    TRY_OUT(json_doc_read(&d, manifest));
    TRY_OUT(need_int(d.root, "version", manifest, &version));
    if (version != VERSION)
        TRY_OUT(err_set(ERR_CHECKPOINT, "%s: format %lld, this program reads %d", manifest,
                        (long long)version, VERSION));
    TRY_OUT(need_int(d.root, "step", manifest, &step));
    if (step != info->step)
        TRY_OUT(err_set(ERR_CHECKPOINT, "%s: says step %lld", manifest, (long long)step));
    TRY_OUT(need_int(d.root, "metrics_bytes", manifest, &info->metrics_bytes));
    TRY_OUT(need_int(d.root, "state_bytes", manifest, &want_bytes));
    TRY_OUT(need_int(d.root, "state_crc32", manifest, &want_crc));
    TRY_OUT(file_crc(state, &bytes, &crc));
    if (bytes != want_bytes)
        TRY_OUT(err_set(ERR_CHECKPOINT, "%s: has %lld bytes, the manifest says %lld", state,
                        (long long)bytes, (long long)want_bytes));
    if ((int64_t)crc != want_crc)
        TRY_OUT(err_set(ERR_CHECKPOINT, "%s: checksum differs from the manifest's", state));
out:
    json_doc_release(&d);
    free(manifest);
    free(state);
    return rc < 0 ? ERR_CHECKPOINT : 0;
}

int checkpoint_newest(const char *output, struct checkpoint_info *info)
{
    struct checkpoint_info *list;
    int64_t n;
    int found = 0, rc = list_checkpoints(output, &list, &n);
    for (int64_t i = 0; rc == 0 && !found && i < n; i++) {
        char *path = NULL;
        rc = mem_asprintf(&path, "%s/checkpoints/%s", output, list[i].name);
        if (rc == 0 && checkpoint_open(path, info) == 0)
            found = 1;
        else if (rc == 0)
            fprintf(stderr, "warning: checkpoint passed over: %s\n", err_msg());
        free(path);
    }
    free(list);
    return rc < 0 ? rc : found;
}

static int get_state(const struct st_set *set, const char *path, struct stage *st,
                     const struct state *s, float *host)
{
    const struct st_tensor *t = st_find(set, s->name);
    if (!t || t->count != s->n || t->dtype != (s->host ? ST_F64 : ST_F32))
        return err_set(ERR_CHECKPOINT, "%s: tensor \"%s\" has %lld elements, this run needs %lld",
                       path, s->name, (long long)(t ? t->count : 0), (long long)s->n);
    if (s->host) {
        const struct scores *r = s->host == st->ref.w ? &st->ref : &st->ref_eval;
        TRY(st_read_raw(set, t, 0, r->n * 8, r->w));
        return st_read_raw(set, t, r->n * 8, r->n * 8, r->l);
    }
    for (int64_t at = 0; at < s->n; at += CHUNK) {
        const int64_t n = MIN((int64_t)CHUNK, s->n - at);
        TRY(st_read_f32(set, t, at, n, host));
        if (s->shard < 0)
            TRY(model_put(&st->model, at, n, host));
        else
            TRY(zero_store(&st->zero, (enum zero_state)s->shard, at, n, host));
    }
    return 0;
}

static int check_run(const struct json_doc *d, const char *manifest, const struct stage *st,
                     const char *fingerprint, bool allow_change)
{
    struct buf was = { 0 }, diff = { 0 };
    int64_t micro, threads;
    int rc;
    TRY_OUT(json_dump(&was, json_object_get(d->root, "run"), 0));
    TRY_OUT(config_diff(was.data, fingerprint, &diff));
    if (rc > 0 && !allow_change)
        TRY_OUT(err_set(ERR_CHECKPOINT,
                        "%s: this run differs from the one that wrote it: %s; go on with "
                        "--allow-change, or start anew with --set checkpoint.resume=never",
                        manifest, diff.data));
    if (rc > 0) fprintf(stderr, "warning: going on with changes: %s\n", diff.data);
    TRY_OUT(need_int(d->root, "micro_batch_tokens", manifest, &micro));
    TRY_OUT(need_int(d->root, "threads", manifest, &threads));
    if (micro != st->micro_tokens || threads != st->su->be.threads)
        fprintf(stderr,
                "warning: the checkpoint was written with %lld threads and %lld tokens a "
                "micro-batch, this run has %d and %lld: "
                "sums may round differently\n",
                (long long)threads, (long long)micro, st->su->be.threads,
                (long long)st->micro_tokens);
    rc = 0;
out:
    buf_release(&was);
    buf_release(&diff);
    return rc;
}

int checkpoint_load(const char *dir, struct stage *st, const char *fingerprint, bool allow_change)
{
    struct json_doc d = { 0 };
    struct st_set set = { 0 };
    struct state s[STATE_TENSORS];
    char *manifest = NULL, *state = NULL;
    float *host = NULL;
    int rc;
    TRY_OUT(path_join(&manifest, dir, "manifest.json"));
    TRY_OUT(path_join(&state, dir, "state.safetensors"));
    TRY_OUT(json_doc_read(&d, manifest));
    TRY_OUT(check_run(&d, manifest, st, fingerprint, allow_change));
    TRY_OUT(need_int(d.root, "step", manifest, &st->step));
    TRY_OUT(need_int(d.root, "updates", manifest, &st->optim.opt.step));
    TRY_OUT(need_int(d.root, "skipped", manifest, &st->skipped));
    TRY_OUT(need_int(d.root, "skipped_run", manifest, &st->skipped_run));
    TRY_OUT(st_open_file(&set, state));
    TRY_OUT(MEM_NEW(&host, CHUNK));
    state_list(s, st);
    for (int i = 0; i < STATE_TENSORS; i++)
        TRY_OUT(get_state(&set, state, st, &s[i], host));
out:
    st_close(&set);
    json_doc_release(&d);
    free(manifest);
    free(state);
    free(host);
    return rc < 0 ? ERR_CHECKPOINT : 0;
}

static int sweep(const char *output, const char *sub, const char *pattern)
{
    const struct dirent *e;
    char *dir = NULL;
    int rc = path_join(&dir, output, sub);
    DIR *d = rc == 0 ? opendir(dir) : NULL;
    while (rc == 0 && d && (e = readdir(d))) {
        char *path = NULL;
        if (fnmatch(pattern, e->d_name, 0) != 0) continue;
        rc = path_join(&path, dir, e->d_name);
        if (rc == 0) rc = dir_remove(path);
        free(path);
    }
    if (d) closedir(d);
    free(dir);
    return rc;
}

int checkpoint_sweep(const char *output)
{
    static const struct {
        const char *sub, *pattern;
    } left[] = { { "checkpoints", ".tmp-*" }, { "checkpoints", ".del-*" },
                 { "models", "epoch-*.tmp" }, { "models", "epoch-*.old" },
                 { "", "sft.tmp" },           { "", "sft.old" },
                 { "", "model.tmp" },         { "", "model.old" },
                 { "", "*.json.tmp-*" } };
    for (size_t i = 0; i < COUNT_OF(left); i++)
        TRY(sweep(output, left[i].sub, left[i].pattern));
    return 0;
}

int checkpoint_wipe(const char *output)
{
    static const char *const names[] = {
        "checkpoints",  "sft",         "models",           "model",      "metrics.jsonl",
        "timing.jsonl", "status.json", "fingerprint.json", "config.json"
    };
    for (size_t i = 0; i < COUNT_OF(names); i++) {
        char *path = NULL;
        TRY(path_join(&path, output, names[i]));
        const int rc = dir_remove(path);
        free(path);
        TRY(rc);
    }
    return 0;
}
