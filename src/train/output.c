/* SPDX-License-Identifier: MIT */
#include "output.h"
#include "../report/page.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

int output_path(const struct output *o, const char *name, char **path)
{
    return path_join(path, o->dir, name);
}

static bool has(const struct output *o, const char *name)
{
    char *path = NULL;
    struct stat s;
    const bool there = output_path(o, name, &path) == 0 && stat(path, &s) == 0;
    free(path);
    return there;
}

/* The nearest existing part of the path must be a directory that we may write. */
static int check_writable(const char *dir)
{
    struct stat s;
    char *path = NULL;
    int rc = mem_strdup(&path, dir);
    while (rc == 0 && stat(path, &s) < 0) {
        char *up = NULL;
        if (errno != ENOENT) {
            rc = err_set(ERR_INPUT, "output: cannot use %s: %s", dir, strerror(errno));
            break;
        }
        rc = path_parent(&up, path);
        free(path);
        path = up;
    }
    if (rc == 0 && !S_ISDIR(s.st_mode))
        rc = err_set(ERR_INPUT, "output: cannot use %s: %s is not a directory", dir, path);
    if (rc == 0 && access(path, W_OK | X_OK) < 0)
        rc = err_set(ERR_INPUT, "output: cannot write in %s: %s", path, strerror(errno));
    free(path);
    return rc;
}

/* Compare with OUTPUT/fingerprint.json. */
static int check_fingerprint(const struct output *o, bool allow_change)
{
    struct buf diff = { 0 };
    char *path = NULL, *was = NULL;
    size_t len;
    int rc;
    TRY_OUT(output_path(o, "fingerprint.json", &path));
    TRY_OUT(file_read(&was, &len, path, 1 << 24));
    TRY_OUT(config_diff(was, o->fingerprint, &diff));
    if (rc > 0 && !allow_change) {
        rc = err_set(ERR_CHECKPOINT,
                     "%s holds a run with other settings: %s; choose another output, go on with "
                     "--allow-change, or start anew with --set checkpoint.resume=never",
                     o->dir, diff.data);
        goto out;
    }
    if (rc > 0) fprintf(stderr, "warning: %s: going on with changes: %s\n", o->dir, diff.data);
    rc = 0;
out:
    buf_release(&diff);
    free(path);
    free(was);
    return rc < 0 ? ERR_CHECKPOINT : 0;
}

/* An input in a place that a run writes, and that a fresh start deletes? */
static int check_input(const struct output *o, const char *key, const char *path)
{
    static const char *const written[] = { "sft", "model", "models", "checkpoints" };
    char *in = path ? realpath(path, NULL) : NULL, *out = realpath(o->dir, NULL);
    const size_t len = out ? strlen(out) : 0;
    int rc = 0;
    for (size_t i = 0; rc == 0 && in && out && i < COUNT_OF(written); i++) {
        const size_t n = strlen(written[i]);
        const char *rest = in + len;
        if (strncmp(in, out, len) == 0 && *rest == '/' && strncmp(rest + 1, written[i], n) == 0 &&
            (rest[n + 1] == 0 || rest[n + 1] == '/'))
            rc = err_set(
                ERR_INPUT,
                "%s: %s lies in the output %s, where this run writes; choose another output", key,
                path, o->dir);
    }
    free(in);
    free(out);
    return rc;
}

/* A directory with somebody's files under our names: nothing there is deleted or gone on with. */
static int check_foreign(const struct output *o, bool anew)
{
    static const char *const names[] = { "metrics.jsonl", "model", "sft", "checkpoints", "models" };
    if (has(o, "fingerprint.json")) return 0;
    for (size_t i = 0; i < COUNT_OF(names) - !anew; i++)
        if (has(o, names[i]))
            return err_set(
                anew ? ERR_INPUT : ERR_CHECKPOINT,
                "output: %s holds %s, but no fingerprint.json that makes it a run; choose "
                "another output",
                o->dir, names[i]);
    return 0;
}

static bool was_done(const struct output *o)
{
    struct json_doc d = { 0 };
    char *path = NULL;
    bool done = false;
    if (output_path(o, "status.json", &path) == 0 && file_exists(path) &&
        json_doc_read(&d, path) == 0) {
        const char *state = json_string_value(json_object_get(d.root, "state"));
        done = state && strcmp(state, "done") == 0;
    }
    json_doc_release(&d);
    free(path);
    return done;
}

static int find_start(struct output *o, const struct config *c)
{
    struct checkpoint_info info;
    char *metrics = NULL;
    int rc = 0;
    o->first = c->sft.present ? STAGE_SFT : STAGE_PREFERENCE;
    if (strcmp(c->checkpoint.resume, "auto") != 0) { /* a path */
        TRY(checkpoint_open(c->checkpoint.resume, &info));
        if (!(info.kind == STAGE_SFT ? c->sft.present : c->preference.present))
            return err_set(ERR_CHECKPOINT,
                           "%s: is of the %s stage, which this config does not have",
                           c->checkpoint.resume, info.kind == STAGE_SFT ? "sft" : "preference");
        TRY(mem_strdup(&o->resume, c->checkpoint.resume));
        o->first = info.kind;
        o->metrics_bytes = has(o, "metrics.jsonl") ? info.metrics_bytes : 0;
        return 0;
    }
    const int found = checkpoint_newest(o->dir, &info);
    if (found < 0) return found;
    if (found && !(info.kind == STAGE_SFT && has(o, "sft") && c->preference.present)) {
        o->first = info.kind;
        o->metrics_bytes = info.metrics_bytes;
        return mem_asprintf(&o->resume, "%s/checkpoints/%s", o->dir, info.name);
    }
    if (o->first == STAGE_SFT && has(o, "sft") && c->preference.present) {
        o->first = STAGE_PREFERENCE; /* SFT is complete: its rows stay */
        TRY_OUT(output_path(o, "metrics.jsonl", &metrics));
        TRY_OUT(rows_stage_bytes(metrics, "sft", &o->metrics_bytes));
    }
out:
    free(metrics);
    return rc;
}

static int lock(struct output *o)
{
    int fd;
    TRY(dir_lock(&fd, o->dir));
    o->lock = fd;
    return 0;
}

int output_open(struct output *o, const struct config *c, const char *fingerprint,
                bool allow_change)
{
    const bool anew = strcmp(c->checkpoint.resume, "never") == 0;
    memset(o, 0, sizeof *o);
    TRY(mem_strdup(&o->dir, c->output));
    TRY(mem_strdup(&o->fingerprint, fingerprint));
    TRY(check_writable(o->dir));
    if (dir_exists(o->dir)) TRY(lock(o));
    TRY(check_input(o, "model.path", c->model.path));
    TRY(check_input(o, "model.lora.path", c->model.lora.path));
    TRY(check_input(o, "reference.path", c->reference.path));
    TRY(check_foreign(o, anew));
    if (anew) {
        o->first = c->sft.present ? STAGE_SFT : STAGE_PREFERENCE;
        return 0;
    }
    if (has(o, "fingerprint.json")) {
        TRY(check_fingerprint(o, allow_change));
        o->finished = strcmp(c->checkpoint.resume, "auto") == 0 && was_done(o) && has(o, "model");
        if (o->finished) return 0;
    }
    char *metrics = NULL;
    TRY(find_start(o, c));
    TRY(output_path(o, "metrics.jsonl", &metrics));
    const int rc = rows_check(metrics, o->metrics_bytes);
    free(metrics);
    return rc;
}

/* Hold the directory, making it where it is absent: only status.json will be written. An error where another holds it, it is somebody else's, or the
 * run in it is finished. */
static int claim(struct output *o, const struct config *c)
{
    if (!o->dir) TRY(mem_strdup(&o->dir, c->output));
    TRY(check_writable(o->dir));
    TRY(check_foreign(o, true));
    TRY(dir_make(o->dir));
    if (!o->lock) TRY(lock(o));
    return was_done(o) ? err_set(ERR_INPUT, "output: %s is finished", o->dir) : 0;
}

void output_early_stop(struct output *o, const struct config *c, struct status *s)
{
    struct buf message = { 0 };
    char *path = NULL;
    int rc = buf_adds(&message, err_msg());
    if (rc == 0) rc = claim(o, c);
    if (rc == 0 && !s->path) rc = output_path(o, "status.json", &path);
    if (path) rc = status_open(s, c, path, 0);
    if (rc == 0) status_write(s, "stopped", err_exit_code(ERR_STOPPED), message.data);
    if (message.data) err_set(ERR_STOPPED, "%s", message.data);
    buf_release(&message);
    free(path);
}

void output_room(const struct output *o, const struct config *c, int64_t checkpoint_bytes,
                 int64_t model_bytes)
{
    const int64_t epochs = c->preference.present ? (int64_t)MIN(c->preference.epochs, 1e9) : 0;
    const bool often = c->checkpoint.every > 0 || c->checkpoint.every_minutes > 0;
    const int64_t there = checkpoint_count(o->dir), left = disk_free(o->dir);
    const int64_t checkpoints = MAX((often ? c->checkpoint.keep + 1 : 1) - there, (int64_t)0);
    const int64_t models = (c->sft.present && !has(o, "sft")) +
                           (c->preference.present && !has(o, "model")) +
                           (c->checkpoint.export_at == EXPORT_EPOCH ? epochs : 0);
    char need[32], one[32], model[32], room[32];
    int64_t a, b, sum;
    if (left < 0 || !mul_ok(checkpoints, checkpoint_bytes, &a) ||
        !mul_ok(models, model_bytes, &b) || !add_ok(a, b, &sum) || sum <= left)
        return;
    fprintf(stderr,
            "warning: output: %s has %s free, this run may write %s more (%lld checkpoints of %s, "
            "%lld models of %s); when the disk is full it stops and can be gone on with\n",
            o->dir, bytes_human(room, left), bytes_human(need, sum), (long long)checkpoints,
            bytes_human(one, checkpoint_bytes), (long long)models, bytes_human(model, model_bytes));
}

int output_open_all(struct output *o, const struct config *c, struct dist *dist,
                    const char *fingerprint, bool allow_change)
{
    struct {
        int32_t first;
        bool finished, resumes;
        int64_t metrics_bytes;
        char resume[4096];
    } found;
    const bool opens = dist_rank(dist) == 0;
    int rc = 0;
    if (opens) rc = output_open(o, c, fingerprint, allow_change);
    if (rc == 0 && o->resume && strlen(o->resume) >= sizeof found.resume)
        rc = err_set(ERR_INPUT, "checkpoint.resume: the path is too long");
    TRY(dist_agree(dist, rc));
    memset(&found, 0, sizeof found);
    if (opens) {
        found.first = (int32_t)o->first;
        found.finished = o->finished;
        found.resumes = o->resume != NULL;
        found.metrics_bytes = o->metrics_bytes;
        snprintf(found.resume, sizeof found.resume, "%s", o->resume ? o->resume : "");
    }
    TRY(dist_bcast(dist, &found, sizeof found));
    if (opens) return 0;
    memset(o, 0, sizeof *o);
    o->first = (enum stage_kind)found.first;
    o->finished = found.finished;
    o->metrics_bytes = found.metrics_bytes;
    if (found.resumes) TRY(mem_strdup(&o->resume, found.resume));
    TRY(mem_strdup(&o->dir, c->output));
    return mem_strdup(&o->fingerprint, fingerprint);
}

/* yes: what true stands for */
static void take_size(json_t *o, const char *key, int64_t yes, int64_t *want)
{
    const json_t *v = json_object_get(o, key);
    if (*want == CONFIG_AUTO && json_is_integer(v) && json_integer_value(v) >= 0)
        *want = json_integer_value(v);
    if (*want == CONFIG_AUTO && json_is_boolean(v)) *want = json_is_true(v) ? yes : 0;
}

int output_sizes(const struct output *o, struct sizing_want *want)
{
    struct json_doc d = { 0 };
    char *path = NULL;
    int rc;
    if (!o->resume && o->metrics_bytes == 0) return 0; /* from the beginning */
    TRY_OUT(path_join(&path, o->resume ? o->resume : o->dir,
                      o->resume ? "manifest.json" : "config.json"));
    TRY_OUT(json_doc_read(&d, path));
    json_t *at = o->resume ? d.root : json_object_get(d.root, "memory");
    take_size(at, "micro_batch_tokens", 0, &want->micro_tokens);
    take_size(at, "gradient_checkpointing", CHECKPOINTING_ALL, &want->recompute);
    take_size(at, "keep_logits", 1, &want->keep_logits);
out:
    json_doc_release(&d);
    free(path);
    return rc;
}

int output_begin(struct output *o, const struct config *c)
{
    struct buf b = { 0 };
    char *config = NULL, *fingerprint = NULL, *metrics = NULL, *timing = NULL;
    int rc = 0;
    if (o->begun) return 0;
    TRY_OUT(dir_make(o->dir));
    if (!o->lock) {
        TRY_OUT(lock(o));
        if (has(o, "fingerprint.json"))
            TRY_OUT(
                err_set(ERR_INPUT, "output: another run has just been in %s; start again", o->dir));
    }
    TRY_OUT(checkpoint_sweep(o->dir));
    if (strcmp(c->checkpoint.resume, "never") == 0) TRY_OUT(checkpoint_wipe(o->dir));
    TRY_OUT(output_path(o, "config.json", &config));
    TRY_OUT(output_path(o, "fingerprint.json", &fingerprint));
    TRY_OUT(output_path(o, "metrics.jsonl", &metrics));
    TRY_OUT(output_path(o, "timing.jsonl", &timing));
    TRY_OUT(config_dump(c, &b));
    TRY_OUT(file_write_all(config, b.data, b.len));
    TRY_OUT(file_write_all(fingerprint, o->fingerprint, strlen(o->fingerprint)));
    TRY_OUT(rows_open(&o->metrics, metrics, o->metrics_bytes));
    TRY_OUT(rows_open(&o->timing, timing, -1));
    o->begun = true;
out:
    buf_release(&b);
    free(config);
    free(fingerprint);
    free(metrics);
    free(timing);
    return rc;
}

int output_report(const struct output *o)
{
    const char *dir = o->dir;
    char *path = NULL;
    int rc = output_path(o, "report.html", &path);
    if (rc == 0) rc = page_write(&dir, 1, path);
    free(path);
    return rc;
}

void output_close(struct output *o)
{
    rows_close(&o->metrics);
    rows_close(&o->timing);
    if (o->lock) close(o->lock);
    free(o->dir);
    free(o->fingerprint);
    free(o->resume);
    memset(o, 0, sizeof *o);
}
