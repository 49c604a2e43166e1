/* SPDX-License-Identifier: MIT */
#include "data_cache.h"
#include "../base/rng.h"
#include "../base/signals.h"
#include "../io/file.h"
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CHUNK_ROWS = 512, CHUNK_BYTES = 4 << 20, KEEP_IDS = 1 << 20 };

struct line { /* a line of the chunk: bytes [at, at + len) of its text */
    size_t at, len;
    int64_t number, column;
};
struct loader {
    struct dataset *d;
    struct row_rules rules;
    int64_t cap_ids, cap_ex, cap_notes;
    struct buf text; /* of the chunk */
    struct line lines[CHUNK_ROWS];
    int64_t n_lines;
    struct row rows[CHUNK_ROWS];
    struct diag bad;
    int64_t hard;               /* problems that skip_bad_rows does not cover */
    uint8_t (*file_digest)[32]; /* [n_paths] of the bytes of each file */
};

static void loader_free(struct loader *l)
{
    if (!l) return;
    for (size_t i = 0; i < CHUNK_ROWS; i++)
        row_release(&l->rows[i]);
    buf_release(&l->text);
    free(l->file_digest);
    free(l);
}

void dataset_release(struct dataset *d)
{
    for (int32_t i = 0; i < d->n_files; i++)
        free(d->files[i]);
    free(d->files);
    free(d->forms);
    buf_release(&d->skipped);
    free(d->notes);
    free(d->ids);
    free(d->ex);
    memset(d, 0, sizeof *d);
}

/* --- one chunk: rows made in parallel, taken in the file's order ------------------------------------------------ */

static int take_ids(struct loader *l, const struct ids *v)
{
    struct dataset *d = l->d;
    TRY(MEM_GROW(&d->ids, &l->cap_ids, d->n_ids + v->n));
    memcpy(d->ids + d->n_ids, v->id, (size_t)v->n * sizeof *v->id);
    d->n_ids += v->n;
    return 0;
}

static int take_example(struct loader *l, const struct row *r, int32_t file)
{
    struct dataset *d = l->d;
    const bool pair = r->form.has_rejected;
    if (l->rules.opts->notes) {
        TRY(MEM_GROW(&d->notes, &l->cap_notes, d->n + 1));
        d->notes[d->n] = r->note;
    }
    TRY(MEM_GROW(&d->ex, &l->cap_ex, d->n + 1));
    d->ex[d->n++] = (struct example){ .at = d->n_ids,
                                      .np = (int32_t)r->prompt.n,
                                      .nw = (int32_t)r->chosen.n,
                                      .nl = pair ? (int32_t)r->rejected.n : 0,
                                      .file = file,
                                      .line = r->line };
    TRY(take_ids(l, &r->prompt));
    TRY(take_ids(l, &r->chosen));
    if (pair) TRY(take_ids(l, &r->rejected));
    d->stats.truncated_prompts += r->cut_prompt;
    d->stats.truncated_responses += r->cut_responses;
    return 0;
}

static void take_drop(struct dataset *d, const struct row *r, int32_t file)
{
    d->stats.dropped_empty += r->state == ROW_EMPTY;
    d->stats.dropped_equal += r->state == ROW_EQUAL;
    d->stats.dropped_cut += r->state == ROW_CUT;
    if (d->n_drops < DATA_DROPS_MAX)
        d->drops[d->n_drops++] = (struct data_drop){ r->line, file, r->why };
}

/* Each bad row that may be skipped is one warning, in the error's words. */
static int take_bad(struct loader *l, const struct row *r, int32_t file)
{
    static const char mark[] = ": error: ";
    const char *path = l->d->files[file], *s = r->error + strlen(path), *at;
    struct buf *b = &l->d->skipped;
    diag_add(&l->bad, NULL, 0, 0, "%s", r->error);
    if (!l->rules.opts->skip_bad_rows || l->bad.count > l->rules.opts->max_bad_rows) return 0;
    at = strncmp(r->error, path, strlen(path)) == 0 ? strstr(s, mark) : NULL;
    if (!at) file = -1;
    TRY(buf_add(b, &file, sizeof file));
    if (at)
        TRY(buf_addf(b, "%.*s: warning: row skipped: %s", (int)(at - s), s, at + strlen(mark)));
    else
        TRY(buf_addf(b, "warning: row skipped: %s", r->error));
    return buf_add(b, "", 1);
}

static void print_skipped(const struct dataset *d)
{
    const char *s = d->skipped.data, *end = d->skipped.len ? s + d->skipped.len : s;
    while (s < end) {
        int32_t file;
        memcpy(&file, s, sizeof file);
        s += sizeof file;
        fprintf(stderr, "%s%s\n", file < 0 ? "" : d->files[file], s);
        s += strlen(s) + 1;
    }
}

static int take_row(struct loader *l, struct row *r, int32_t file)
{
    struct data_stats *s = &l->d->stats;
    s->rows++;
    s->special_text += r->special;
    if (r->state != ROW_BAD) l->d->forms[file][r->form.kind]++;
    switch (r->state) {
    case ROW_OK:
        return take_example(l, r, file);
    case ROW_EMPTY:
    case ROW_EQUAL:
    case ROW_CUT:
        take_drop(l->d, r, file);
        return 0;
    case ROW_BAD:
        s->bad++;
        return take_bad(l, r, file);
    case ROW_UNFIT:
        l->hard++;
        diag_add(&l->bad, NULL, 0, 0, "%s", r->error);
        return 0;
    case ROW_FAILED:
        break;
    }
    return err_set(r->rc, "%s", r->error ? r->error : "out of memory");
}

static void ids_shrink(struct ids *v)
{
    if (v->cap > KEEP_IDS) ids_release(v);
}

static int chunk_end(struct loader *l, int32_t file)
{
    if (signals_pending())
        return err_set(ERR_STOPPED, "stopped by %s while the data were read; start again to go on",
                       signals_name(signals_pending()));
    const int32_t want = l->rules.opts->threads;
    const int64_t most = want > 0 ? want : omp_get_max_threads();
    const int threads = (int)MAX(MIN(most, l->n_lines), (int64_t)1); /* a team is not free */
    const char *name = l->d->files[file];
#pragma omp parallel for schedule(dynamic, 4) num_threads(threads)
    for (int64_t i = 0; i < l->n_lines; i++)
        row_make(&l->rows[i], &l->rules, name, l->lines[i].number, l->lines[i].column,
                 l->text.data + l->lines[i].at, l->lines[i].len);
    for (int64_t i = 0; i < l->n_lines; i++) {
        struct row *r = &l->rows[i];
        TRY(take_row(l, r, file));
        ids_shrink(&r->prompt);
        ids_shrink(&r->chosen);
        ids_shrink(&r->rejected);
    }
    l->n_lines = 0;
    buf_clear(&l->text);
    return 0;
}

static bool is_blank_line(const char *s, size_t len)
{
    for (size_t i = 0; i < len; i++)
        if (s[i] != ' ' && s[i] != '\t' && s[i] != '\r') return false;
    return true;
}

static int read_lines(struct loader *l, struct line_reader *r, int32_t file)
{
    char *s;
    size_t len;
    int rc;
    while ((rc = lines_next(r, &s, &len)) > 0) {
        if (is_blank_line(s, len)) continue;
        l->lines[l->n_lines++] =
            (struct line){ l->text.len, len, lines_number(r), lines_column(r) };
        TRY(buf_add(&l->text, s, len));
        TRY(buf_add(&l->text, "", 1));
        if (l->n_lines == CHUNK_ROWS || l->text.len >= CHUNK_BYTES) TRY(chunk_end(l, file));
    }
    if (rc == ERR_INPUT) { /* the file ends here; what was wrong before it is reported with it */
        l->hard++;
        struct buf why = { 0 };
        rc = buf_adds(&why, err_msg());
        if (rc == 0) rc = chunk_end(l, file);
        if (rc == 0) diag_add(&l->bad, NULL, 0, 0, "%s", why.data);
        buf_release(&why);
        return rc;
    }
    TRY(rc);
    return chunk_end(l, file);
}

static int read_file(struct loader *l, const char *path, int32_t file, struct sha256 *sum)
{
    struct line_reader *r = NULL;
    uint8_t digest[32];
    int rc = 0;
    TRY_OUT(lines_open(&r, path));
    if (l->rules.opts->max_line_bytes > 0) lines_limit(r, l->rules.opts->max_line_bytes);
    TRY_OUT(read_lines(l, r, file));
    lines_digest_file(r, l->file_digest[file]);
    lines_digest(r, digest);
    sha256_add(sum, digest, sizeof digest);
out:
    if (r) lines_close(r);
    return rc;
}

/* --- verdict ---------------------------------------------------------------------------------------------------- */

static int verdict_bad(const struct loader *l)
{
    const struct data_opts *o = l->rules.opts;
    const int64_t bad = l->d->stats.bad;
    struct buf text = { 0 };
    int rc = 0;
    if (l->hard == 0 && (bad == 0 || (o->skip_bad_rows && bad <= o->max_bad_rows))) return 0;
    rc = diag_result(&l->bad, ERR_INPUT);
    if (!o->skip_bad_rows || bad <= o->max_bad_rows) return rc;
    TRY_OUT(buf_adds(&text, err_msg()));
    rc = err_set(ERR_INPUT, "%s\nerror: %lld malformed rows, more than data.max_bad_rows (%lld)",
                 text.data, (long long)bad, (long long)o->max_bad_rows);
out:
    buf_release(&text);
    return rc;
}

static int verdict_dropped(const struct dataset *d, const struct data_opts *o)
{
    const struct data_stats *s = &d->stats;
    const int64_t dropped = s->dropped_empty + s->dropped_equal + s->dropped_cut,
                  good = s->rows - s->bad;
    struct buf text = { 0 };
    int rc = 0;
    if (d->n > 0 && (double)dropped <= o->max_dropped * (double)good * (1 + 1e-12)) return 0;
    TRY_OUT(dataset_describe(d, &text));
    if (d->n == 0)
        rc = err_set(ERR_INPUT, "%s\nerror: the data hold no usable row", text.data);
    else
        rc = err_set(
            ERR_INPUT,
            "%s\nerror: %lld of %lld rows are degenerate, more than data.max_dropped (%g) allows",
            text.data, (long long)dropped, (long long)good, o->max_dropped);
out:
    buf_release(&text);
    return rc;
}

/* --- subsample --------------------------------------------------------------------------------------------------- */

static int compare_index(const void *a, const void *b)
{
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

int data_subsample(int64_t *pick, int64_t n, double fraction, uint64_t seed, int64_t *k)
{
    if (!(fraction > 0 && fraction <= 1))
        return err_set(ERR_INPUT, "data.subsample: %g is outside (0, 1]", fraction);
    if (n < 1 || n > INT32_MAX)
        return err_set(ERR_INPUT, "data.subsample: %lld rows", (long long)n);
    const int64_t want = (int64_t)(fraction * (double)n + 0.5);
    *k = MAX(MIN(want, n), (int64_t)1);
    rng_permutation(pick, n, seed, rng_stream_of(RNG_SUBSAMPLE, 0));
    qsort(pick, (size_t)*k, sizeof *pick, compare_index);
    return 0;
}

static int subsample(struct dataset *d, const struct data_opts *o)
{
    int64_t *pick = NULL, k = 0, n_ids = 0;
    int rc = 0;
    TRY_OUT(MEM_NEW(&pick, d->n));
    TRY_OUT(data_subsample(pick, d->n, o->subsample, o->seed, &k));
    for (int64_t i = 0; i < k; i++) {
        struct example e = d->ex[pick[i]];
        const int64_t n = (int64_t)e.np + e.nw + e.nl;
        memmove(d->ids + n_ids, d->ids + e.at, (size_t)n * sizeof *d->ids);
        e.at = n_ids;
        d->ex[i] = e;
        n_ids += n;
    }
    d->n = k;
    d->n_ids = n_ids;
out:
    free(pick);
    return rc;
}

/* --- weights ----------------------------------------------------------------------------------------------------- */

/* The examples from[0..n) of one file, `weight` times, to out; returns how many. pick holds n. */
static int64_t weigh_file(struct example *out, const struct example *from, int64_t n, double weight,
                          int32_t file, uint64_t seed, int64_t *pick)
{
    const int64_t whole = (int64_t)weight,
                  part = (int64_t)((weight - (double)whole) * (double)n + 0.5);
    int64_t k = 0;
    for (int64_t c = 0; c < whole; c++)
        for (int64_t i = 0; i < n; i++)
            out[k++] = from[i];
    if (part == 0) return k;
    rng_permutation(pick, n, seed, rng_stream_of(RNG_SUBSAMPLE, (uint64_t)file + 1));
    qsort(pick, (size_t)part, sizeof *pick, compare_index);
    for (int64_t i = 0; i < part; i++)
        out[k++] = from[pick[i]];
    return k;
}

int dataset_weigh(struct dataset *d, const struct data_opts *o)
{
    struct example *ex = NULL;
    int64_t *pick = NULL, n = 0, from = 0;
    double room = 0;
    int rc = 0;
    for (int64_t i = 0; i < d->n; i++)
        room += o->weights[d->ex[i].file];
    if (room > INT32_MAX)
        return err_set(ERR_INPUT, "data.train: the weights make more than %d rows", INT32_MAX);
    TRY_OUT(MEM_NEW(&ex, (int64_t)room + d->n_files + 1));
    TRY_OUT(MEM_NEW(&pick, d->n));
    for (int32_t file = 0; file < d->n_files; file++) {
        int64_t k = from;
        while (k < d->n && d->ex[k].file == file)
            k++;
        n += weigh_file(ex + n, d->ex + from, k - from, o->weights[file], file, o->seed, pick);
        from = k;
    }
    if (n == 0) TRY_OUT(err_set(ERR_INPUT, "data.train: the weights leave no row"));
    free(d->ex);
    d->ex = ex;
    d->n = n;
    d->weighed = true;
    ex = NULL;
out:
    free(ex);
    free(pick);
    return rc;
}

/* --- the whole --------------------------------------------------------------------------------------------------- */

static int opts_check(const struct data_opts *o, int32_t n_paths)
{
    if (n_paths < 1) return err_set(ERR_INPUT, "no data file is given");
    if (o->max_length < 2 || o->max_length > INT32_MAX)
        return err_set(ERR_INPUT, "data.max_length: %lld is outside [2, %d]",
                       (long long)o->max_length, INT32_MAX);
    if (o->max_prompt_length < 1 || o->max_prompt_length >= o->max_length)
        return err_set(
            ERR_INPUT,
            "data.max_prompt_length: %lld is outside [1, %lld], one below data.max_length",
            (long long)o->max_prompt_length, (long long)o->max_length - 1);
    return 0;
}

static int read_all(struct loader *l, char *const *paths, int32_t n_paths)
{
    struct dataset *d = l->d;
    struct sha256 sum;
    sha256_init(&sum);
    TRY(MEM_NEW(&d->files, n_paths));
    TRY(MEM_NEW(&d->forms, n_paths));
    TRY(MEM_NEW(&l->file_digest, n_paths));
    for (int32_t i = 0; i < n_paths; i++) {
        TRY(mem_strdup(&d->files[i], paths[i]));
        d->n_files = i + 1;
        TRY(read_file(l, paths[i], i, &sum));
    }
    sha256_hex(&sum, d->digest);
    return 0;
}

/* Memory that growth took and the data do not need. */
static void shrink(struct dataset *d)
{
    void *ids = realloc(d->ids, (size_t)d->n_ids * sizeof *d->ids);
    if (ids) d->ids = ids;
    void *ex = realloc(d->ex, (size_t)d->n * sizeof *d->ex);
    if (ex) d->ex = ex;
}

int dataset_load(struct dataset *d, char *const *paths, int32_t n_paths, enum data_kind kind,
                 const struct data_opts *o, const struct tokenizer *tok,
                 const struct chat_template *tmpl)
{
    struct loader *l = NULL;
    struct data_cache cache = { 0 };
    int rc = 0;
    memset(d, 0, sizeof *d);
    TRY_OUT(opts_check(o, n_paths));
    TRY_OUT(MEM_NEW(&l, 1));
    l->d = d;
    l->rules = (struct row_rules){ kind, o, tok, tmpl };
    TRY_OUT(data_cache_open(&cache, &l->rules, paths, n_paths));
    TRY_OUT(data_cache_find(&cache, d, paths, n_paths, o));
    const bool found = rc > 0;
    if (!found) {
        TRY_OUT(read_all(l, paths, n_paths));
        TRY_OUT(verdict_bad(l));
    }
    if (!o->quiet) print_skipped(d);
    d->stats.kept = d->n;
    TRY_OUT(verdict_dropped(d, o));
    if (!found) {
        TRY_OUT(data_cache_store(&cache, d, l->file_digest));
        d->stored = cache.dir && cache.writes;
    }
    if (o->subsample != 1) TRY_OUT(subsample(d, o));
    if (o->weights) TRY_OUT(dataset_weigh(d, o));
    shrink(d);
    rc = 0;
    for (int64_t i = 0; i < d->n; i++)
        d->longest = MAX(d->longest, (int64_t)d->ex[i].np + d->ex[i].nw + d->ex[i].nl);
out:
    data_cache_close(&cache);
    loader_free(l);
    if (rc < 0) dataset_release(d);
    return rc;
}

static int describe_dropped(const struct data_stats *s, struct buf *b)
{
    const int64_t n[3] = { s->dropped_empty, s->dropped_equal, s->dropped_cut };
    static const char *const name[3] = { "empty", "equal", "equal once cut" };
    const char *sep = " (dropped: ";
    for (int i = 0; i < 3; i++) {
        if (n[i] == 0) continue;
        TRY(buf_addf(b, "%s%lld %s", sep, (long long)n[i], name[i]));
        sep = ", ";
    }
    return sep[0] == ',' ? buf_adds(b, ")") : 0;
}

static int describe_forms(const struct dataset *d, int32_t file, struct buf *b)
{
    const char *sep = ": form: ";
    int kinds = 0;
    for (int k = 0; k < FORM_KINDS; k++)
        kinds += d->forms[file][k] > 0;
    if (kinds == 0) return 0;
    TRY(buf_addf(b, "\n%s", d->files[file]));
    for (int k = 0; k < FORM_KINDS; k++) {
        if (d->forms[file][k] == 0) continue;
        TRY(buf_addf(b, "%s%s", sep, form_name((enum form_kind)k)));
        if (kinds > 1) TRY(buf_addf(b, " (%lld rows)", (long long)d->forms[file][k]));
        sep = "; ";
    }
    return 0;
}

int dataset_describe(const struct dataset *d, struct buf *b)
{
    const struct data_stats *s = &d->stats;
    TRY(buf_adds(b, d->n_files ? d->files[0] : "no file"));
    if (d->n_files > 1) TRY(buf_addf(b, " and %d more", d->n_files - 1));
    TRY(buf_addf(b, ": %lld rows, %lld kept", (long long)s->rows, (long long)s->kept));
    TRY(describe_dropped(s, b));
    if (s->bad) TRY(buf_addf(b, ", %lld malformed skipped", (long long)s->bad));
    TRY(buf_addf(b, ", %lld prompts and %lld responses cut", (long long)s->truncated_prompts,
                 (long long)s->truncated_responses));
    if (s->special_text)
        TRY(buf_addf(b, ", %lld rows spell a special token", (long long)s->special_text));
    if (d->weighed)
        TRY(buf_addf(b, ", %lld used in an epoch (weights)", (long long)d->n));
    else if (d->n < s->kept)
        TRY(buf_addf(b, ", %lld of them used (subsample)", (long long)d->n));
    for (int32_t i = 0; i < d->n_files; i++)
        TRY(describe_forms(d, i, b));
    for (int32_t i = 0; i < d->n_drops; i++)
        TRY(buf_addf(b, "\n%s:%lld: dropped: %s", d->files[d->drops[i].file],
                     (long long)d->drops[i].line, drop_text((enum drop_why)d->drops[i].why)));
    const int64_t more = s->dropped_empty + s->dropped_equal + s->dropped_cut - d->n_drops;
    return more > 0 ? buf_addf(b, "\n... and %lld more dropped", (long long)more) : 0;
}
