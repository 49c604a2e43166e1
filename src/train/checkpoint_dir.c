/* SPDX-License-Identifier: MIT */
#include "checkpoint.h"
#include "manifest.h"
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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
    /* an unreadable directory must not look like an empty one: the run would start anew */
    if (!d && errno != ENOENT) TRY_OUT(err_set(ERR_IO, "cannot list %s: %s", dir, strerror(errno)));
    while (d) {
        struct checkpoint_info info;
        errno = 0;
        if (!(e = readdir(d))) {
            if (errno) rc = err_set(ERR_IO, "cannot list %s: %s", dir, strerror(errno));
            break;
        }
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

int64_t checkpoint_count(const char *output)
{
    struct checkpoint_info *list;
    int64_t n;
    const int rc = list_checkpoints(output, &list, &n);
    free(list);
    return rc == 0 ? n : 0;
}

/* Of `last`, just written, and those before it keep the newest `keep`. What is newer was passed over as broken, or belongs to a run that went
 * another way. A directory is renamed before it is deleted, so that no half of it is ever taken for whole. */
int checkpoint_rotate(const char *output, const struct checkpoint_info *last, int64_t keep)
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

int checkpoint_open(const char *path, struct checkpoint_info *info)
{
    struct manifest m = { 0 };
    int rc = 0;
    if (!parse_name(path_base(path), info))
        return err_set(ERR_CHECKPOINT,
                       "%s: not a checkpoint directory (sft-NNNNNN or preference-NNNNNN)", path);
    TRY_OUT(manifest_read(&m, path));
    if (m.step != info->step || strncmp(info->name, m.stage, strlen(m.stage)) != 0)
        TRY_OUT(err_set(ERR_CHECKPOINT, "%s/manifest.json: says step %lld of %s", path,
                        (long long)m.step, m.stage));
    TRY_OUT(manifest_verify(&m, path));
    info->metrics_bytes = m.metrics_bytes;
out:
    manifest_release(&m);
    return rc;
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

int checkpoint_sweep(const char *output)
{
    static const struct {
        const char *sub, *pattern;
    } left[] = { { "checkpoints", ".tmp-*" }, { "checkpoints", ".del-*" },
                 { "models", "epoch-*.tmp" }, { "models", "epoch-*.old" },
                 { "", "sft.tmp" },           { "", "sft.old" },
                 { "", "model.tmp" },         { "", "model.old" },
                 { "", "*.json.tmp-*" },      { "", "*.jsonl.tmp-*" },
                 { "", "*.html.tmp-*" } };
    for (size_t i = 0; i < COUNT_OF(left); i++) {
        char *dir = NULL;
        int rc = path_join(&dir, output, left[i].sub);
        if (rc == 0) rc = dir_sweep(dir, left[i].pattern);
        free(dir);
        TRY(rc);
    }
    return 0;
}

int checkpoint_wipe(const char *output)
{
    static const char *const names[] = {
        "checkpoints",   "sft",           "models",      "model",
        "metrics.jsonl", "timing.jsonl",  "status.json", "fingerprint.json",
        "config.json",   "samples.jsonl", "report.html"
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
