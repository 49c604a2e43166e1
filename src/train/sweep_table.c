/* SPDX-License-Identifier: MIT */
#include "sweep.h"
#include "../io/file.h"
#include "../report/runs.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char *const METRICS[] = { "loss",
                                       "rewards/accuracies",
                                       "rewards/margins",
                                       "logps/chosen",
                                       "logps/rejected",
                                       "in_distribution",
                                       "eval/loss",
                                       "eval/rewards/accuracies",
                                       "eval/rewards/margins",
                                       "eval/logps/chosen",
                                       "eval/logps/rejected",
                                       "eval/in_distribution",
                                       "eval/kl",
                                       "eval/kl_stderr" };

/* A field, after a comma; in quotes where it needs them. */
static int field(struct buf *b, const char *text, size_t len)
{
    const bool quoted = memchr(text, ',', len) || memchr(text, '"', len) ||
                        memchr(text, '\n', len) || memchr(text, '\r', len);
    TRY(buf_adds(b, quoted ? ",\"" : ","));
    for (size_t i = 0; i < len; i++) {
        if (quoted && text[i] == '"') TRY(buf_adds(b, "\""));
        TRY(buf_add(b, text + i, 1));
    }
    return quoted ? buf_adds(b, "\"") : 0;
}

static int field_value(struct buf *b, const json_t *v)
{
    struct buf text = { 0 };
    int rc = 0;
    if (json_is_string(v)) return field(b, json_string_value(v), json_string_length(v));
    if (v) rc = json_dump(&text, v, 0);
    if (rc == 0) rc = field(b, text.data ? text.data : "", text.len);
    buf_release(&text);
    return rc;
}

static int field_metrics(struct buf *b, const struct run *r)
{
    for (size_t i = 0; i < COUNT_OF(METRICS); i++) {
        const double v = r->rows ? run_last(r, METRICS[i]) : NAN;
        TRY(buf_adds(b, ","));
        if (isfinite(v)) TRY(json_dump_real(b, v));
    }
    return 0;
}

static int field_score(struct buf *b, const struct sweep *s, const char *name)
{
    char *path = NULL, *text = NULL;
    size_t len = 0;
    int rc = 0;
    TRY(mem_asprintf(&path, "%s/scores/%s", s->output, name));
    if (file_exists(path)) rc = file_read(&text, &len, path, 1 << 16);
    if (rc == 0) rc = field(b, text ? text : "", text ? strcspn(text, "\r\n") : 0);
    free(path);
    free(text);
    return rc;
}

static int table_row(struct buf *b, const struct sweep *s, const struct sweep_run *sr)
{
    struct run r = { 0 };
    char *dir = NULL, *config = NULL;
    const char *key;
    json_t *unused;
    int rc;
    TRY_OUT(path_join(&dir, s->output, sr->name));
    TRY_OUT(path_join(&config, dir, "config.json"));
    if (file_exists(config)) TRY_OUT(run_read(&r, dir));
    TRY_OUT(buf_adds(b, sr->name));
    json_object_foreach(s->keys, key, unused)
        TRY_OUT(field_value(b, json_object_get(sr->own, key)));
    TRY_OUT(field_value(b, json_object_get(r.status, "state")));
    TRY_OUT(field_value(b, json_object_get(r.status, "exit_code")));
    TRY_OUT(field_metrics(b, &r));
    TRY_OUT(field_score(b, s, sr->name));
    TRY_OUT(buf_adds(b, "\n"));
out:
    run_release(&r);
    free(dir);
    free(config);
    return rc;
}

int sweep_table(const struct sweep *s, const char *out)
{
    struct buf b = { 0 };
    const char *key;
    json_t *unused;
    int rc;
    TRY_OUT(buf_adds(&b, "run"));
    json_object_foreach(s->keys, key, unused) TRY_OUT(field(&b, key, strlen(key)));
    TRY_OUT(buf_adds(&b, ",state,exit_code"));
    for (size_t i = 0; i < COUNT_OF(METRICS); i++)
        TRY_OUT(field(&b, METRICS[i], strlen(METRICS[i])));
    TRY_OUT(buf_adds(&b, ",score\n"));
    for (int64_t i = 0; i < s->n; i++)
        TRY_OUT(table_row(&b, s, &s->run[i]));
    rc = file_write_all(out, b.data, b.len);
out:
    buf_release(&b);
    return rc;
}
