/* SPDX-License-Identifier: MIT */
#include "runs.h"
#include "../io/file.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* NAME in the run's directory as JSON; absent: *out stays NULL. */
static int read_json(const struct run *r, const char *name, json_t **out)
{
    struct json_doc d = { 0 };
    char *path = NULL;
    int rc = path_join(&path, r->dir, name);
    if (rc == 0 && file_exists(path)) {
        rc = json_doc_read(&d, path);
        if (rc == 0) *out = json_incref(d.root);
        json_doc_release(&d);
    }
    free(path);
    return rc;
}

static int read_rows(const struct run *r, const char *name, json_t **out)
{
    struct line_reader *lines = NULL;
    char *path = NULL, *line;
    size_t len;
    int rc;
    *out = json_array();
    TRY_OUT(path_join(&path, r->dir, name));
    if (!file_exists(path)) goto out;
    TRY_OUT(lines_open(&lines, path));
    while ((rc = lines_next(lines, &line, &len)) > 0) {
        json_t *row = json_loadb(line, len, 0, NULL);
        if (row && json_is_object(row))
            json_array_append_new(*out, row);
        else
            json_decref(row);
    }
out:
    lines_close(lines);
    free(path);
    return rc;
}

int run_read(struct run *r, const char *dir)
{
    json_t *print = NULL;
    size_t len = strlen(dir);
    int rc;
    memset(r, 0, sizeof *r);
    while (len > 1 && dir[len - 1] == '/')
        len--;
    TRY(mem_strndup(&r->dir, dir, len));
    TRY(mem_strdup(&r->name, path_base(r->dir)));
    TRY(read_json(r, "config.json", &r->config));
    if (!json_is_object(r->config) || !json_object_get(r->config, "output"))
        return err_set(
            ERR_INPUT,
            "%s: is not the directory of a run (it has no config.json that a run has written)",
            dir);
    TRY(read_json(r, "status.json", &r->status));
    rc = read_json(r, "fingerprint.json", &print);
    r->content = json_incref(json_object_get(print, "content"));
    json_decref(print);
    TRY(rc);
    TRY(read_rows(r, "metrics.jsonl", &r->rows));
    return read_rows(r, "samples.jsonl", &r->answers);
}

void run_release(struct run *r)
{
    free(r->dir);
    free(r->name);
    json_decref(r->config);
    json_decref(r->content);
    json_decref(r->status);
    json_decref(r->rows);
    json_decref(r->answers);
    memset(r, 0, sizeof *r);
}

int run_setting(const struct run *r, const char *path, struct buf *b)
{
    const json_t *at = r->config;
    for (const char *p = path; at && *p;) {
        char key[64];
        const size_t n = strcspn(p, ".");
        BUG_IF(n >= sizeof key);
        memcpy(key, p, n);
        key[n] = 0;
        at = json_object_get(at, key);
        p += n + (p[n] == '.');
    }
    return at ? json_dump(b, at, 0) : 0;
}

static double number_of(const json_t *v)
{
    return json_is_number(v) ? json_number_value(v) : NAN;
}

int run_track(const struct run *r, const char *stage, const char *key, const char *minus,
              struct track *t)
{
    const int64_t n = (int64_t)json_array_size(r->rows);
    memset(t, 0, sizeof *t);
    TRY(MEM_NEW(&t->x, n));
    TRY(MEM_NEW(&t->y, n));
    for (int64_t i = 0; i < n; i++) {
        const json_t *row = json_array_get(r->rows, (size_t)i);
        const char *of = json_string_value(json_object_get(row, "stage"));
        const json_t *v = json_object_get(row, key),
                     *less = minus ? json_object_get(row, minus) : NULL;
        if (!of || strcmp(of, stage) != 0 || !v || (minus && !less)) continue;
        t->x[t->n] = number_of(json_object_get(row, "step"));
        t->y[t->n++] = number_of(v) - (minus ? number_of(less) : 0);
    }
    return 0;
}

void track_release(struct track *t)
{
    free(t->x);
    free(t->y);
    memset(t, 0, sizeof *t);
}

int track_tail(const struct track *t, struct interval *out)
{
    const int64_t n = div_up(t->n, 10);
    return stats_bootstrap(out, t->n ? t->y + t->n - n : NULL, n, 1, 1000);
}

int run_moved(const struct run *r, const char *side, struct track *t)
{
    char key[64], ref[64];
    snprintf(key, sizeof key, "logps/%s", side);
    snprintf(ref, sizeof ref, "ref_logps/%s", side);
    TRY(run_track(r, "preference", key, ref, t));
    if (t->n) return 0;
    track_release(t);
    TRY(run_track(r, "preference", key, NULL, t));
    for (int64_t i = t->n - 1; i >= 0; i--)
        t->y[i] -= t->y[0];
    return 0;
}

double run_last(const struct run *r, const char *key)
{
    struct track t = { 0 };
    double last = NAN;
    if (run_track(r, "preference", key, NULL, &t) == 0 && t.n) last = t.y[t.n - 1];
    track_release(&t);
    return last;
}
