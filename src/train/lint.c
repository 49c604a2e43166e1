/* SPDX-License-Identifier: MIT */
#include "lint.h"
#include "../io/file.h"
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { EXAMPLES_MAX = 5, SETS = 3 };

struct lint_set {
    const char *name; /* "sft.train" */
    const struct strlist *files;
    enum data_kind kind;
    const struct stage_config *stage; /* NULL: not trained on */
    struct dataset data;
    bool usable;
};
struct lint {
    const struct config *cfg;
    struct setup su;
    struct lint_set set[SETS];
    int n_sets;
    json_t *sets; /* of the report */
    struct buf text, errors;
    int64_t n_warnings, n_errors;
};
/* One kind of problem in a set, gathered row by row. */
struct finding {
    const char *id;
    int64_t count;
    json_t *examples;
};

static int out_of_memory(void)
{
    return err_set(ERR_OOM, "out of memory for the report");
}

static int put(json_t *o, const char *key, json_t *v)
{
    return json_object_set_new(o, key, v) == 0 ? 0 : out_of_memory();
}

/* Another row of it, with what the example says beside its place. */
static int finding_row(struct finding *f, const struct lint_set *s, int64_t i, const char *fmt, ...)
    PRINTF_LIKE(4, 5);
static int finding_row(struct finding *f, const struct lint_set *s, int64_t i, const char *fmt, ...)
{
    const struct example *e = &s->data.ex[i];
    struct buf b = { 0 };
    va_list ap;
    int rc = 0;
    if (!f->examples && !(f->examples = json_array())) return out_of_memory();
    if (f->count++ >= EXAMPLES_MAX) return 0;
    TRY_OUT(buf_addf(&b, "%s:%lld", s->data.files[e->file], (long long)e->line));
    va_start(ap, fmt);
    rc = buf_vaddf(&b, fmt, ap);
    va_end(ap);
    if (rc == 0 && json_array_append_new(f->examples, json_stringn(b.data, b.len)) < 0)
        rc = out_of_memory();
out:
    buf_release(&b);
    return rc;
}

/* Put a finding into the report, if there is one; frees it. */
static int finding_end(struct lint *l, struct finding *f, json_t *set, bool warns, const char *fmt,
                       ...) PRINTF_LIKE(5, 6);
static int finding_end(struct lint *l, struct finding *f, json_t *set, bool warns, const char *fmt,
                       ...)
{
    json_t *list = json_object_get(set, "findings"), *o = NULL;
    const char *kind = warns ? "warning" : "note";
    struct buf b = { 0 };
    va_list ap;
    int rc = 0;
    if (f->count == 0) goto out;
    va_start(ap, fmt);
    rc = buf_vaddf(&b, fmt, ap);
    va_end(ap);
    if (rc < 0) goto out;
    o = json_pack("{s:s, s:s, s:I, s:s%, s:O}", "id", f->id, "kind", kind, "count",
                  (json_int_t)f->count, "text", b.data, b.len, "examples", f->examples);
    if (!o || json_array_append(list, o) < 0) TRY_OUT(out_of_memory());
    l->n_warnings += warns;
    TRY_OUT(buf_addf(&l->text, "  %s: %lld %s\n", kind, (long long)f->count, b.data));
    for (size_t i = 0; i < json_array_size(f->examples); i++)
        TRY_OUT(buf_addf(&l->text, "    %s\n", json_string_value(json_array_get(f->examples, i))));
out:
    buf_release(&b);
    json_decref(o);
    json_decref(f->examples);
    memset(f, 0, sizeof *f);
    return rc;
}

/* --- rows that are the same ------------------------------------------------------------------------------------- */

struct key {
    uint64_t prompt, low, high; /* low, high: the two responses in either order */
    int64_t i;
};

static int compare_key(const void *a, const void *b)
{
    const struct key *x = a, *y = b;
    if (x->prompt != y->prompt) return x->prompt < y->prompt ? -1 : 1;
    if (x->low != y->low) return x->low < y->low ? -1 : 1;
    if (x->high != y->high) return x->high < y->high ? -1 : 1;
    return (x->i > y->i) - (x->i < y->i);
}

static bool same_pair(const struct key *a, const struct key *b)
{
    return a->prompt == b->prompt && a->low == b->low && a->high == b->high;
}

/* Keys of all rows, sorted; the caller frees. */
static int keys_make(struct key **out, const struct dataset *d)
{
    TRY(MEM_NEW(out, d->n));
    for (int64_t i = 0; i < d->n; i++) {
        const struct example_note *n = &d->notes[i];
        (*out)[i] = (struct key){ n->prompt_hash, MIN(n->chosen_hash, n->rejected_hash),
                                  MAX(n->chosen_hash, n->rejected_hash), i };
    }
    qsort(*out, (size_t)d->n, sizeof **out, compare_key);
    return 0;
}

static int find_repeats(struct lint *l, struct lint_set *s, json_t *set)
{
    struct finding same = { .id = "duplicates" }, swapped = { .id = "swapped" };
    const struct dataset *d = &s->data;
    struct key *key = NULL;
    int rc = 0;
    TRY_OUT(keys_make(&key, d));
    for (int64_t k = 1, first = 0; k < d->n; k++) {
        if (!same_pair(&key[k], &key[first])) {
            first = k;
            continue;
        }
        const struct example *e = &d->ex[key[first].i];
        const bool turned = d->notes[key[k].i].chosen_hash != d->notes[key[first].i].chosen_hash;
        TRY_OUT(finding_row(turned ? &swapped : &same, s, key[k].i,
                            turned ? ": as %s:%lld, the other way round" : ": as %s:%lld",
                            d->files[e->file], (long long)e->line));
    }
    TRY_OUT(finding_end(l, &same, set, true, "rows repeat an earlier row"));
    TRY_OUT(finding_end(l, &swapped, set, true,
                        "pairs are an earlier pair with chosen and rejected exchanged"));
out:
    free(key);
    json_decref(same.examples);
    json_decref(swapped.examples);
    return rc;
}

/* Prompts of the evaluation set that training sees. */
static int find_overlap(struct lint *l, const struct lint_set *train, struct lint_set *eval,
                        json_t *set)
{
    struct finding f = { .id = "overlap" };
    const struct dataset *t = &train->data, *d = &eval->data;
    struct key *key = NULL;
    int rc = 0;
    TRY_OUT(keys_make(&key, t));
    for (int64_t i = 0; i < d->n; i++) {
        const uint64_t want = d->notes[i].prompt_hash;
        int64_t lo = 0, hi = t->n;
        while (lo < hi) {
            const int64_t mid = lo + (hi - lo) / 2;
            if (key[mid].prompt < want)
                lo = mid + 1;
            else
                hi = mid;
        }
        if (lo == t->n || key[lo].prompt != want) continue;
        const struct example *e = &t->ex[key[lo].i];
        TRY_OUT(finding_row(&f, eval, i, ": the prompt of %s:%lld", t->files[e->file],
                            (long long)e->line));
    }
    TRY_OUT(finding_end(l, &f, set, true, "prompts are in %s too", train->name));
out:
    free(key);
    json_decref(f.examples);
    return rc;
}

/* --- rows one by one -------------------------------------------------------------------------------------------- */

static int find_cuts(struct lint *l, struct lint_set *s, json_t *set)
{
    struct finding prompt = { .id = "prompts_cut" }, response = { .id = "responses_cut" };
    const struct dataset *d = &s->data;
    int64_t lost_prompt = 0, lost_response = 0;
    int rc = 0;
    for (int64_t i = 0; i < d->n; i++) {
        const struct example_note *n = &d->notes[i];
        const struct example *e = &d->ex[i];
        const int64_t p = n->np - e->np, w = n->nw - e->nw, r = n->nl - e->nl;
        lost_prompt += p;
        lost_response += w + r;
        if (p > 0) TRY_OUT(finding_row(&prompt, s, i, ": %d tokens, %d kept", n->np, e->np));
        if (w > 0)
            TRY_OUT(finding_row(&response, s, i, ": chosen of %d tokens, %d kept", n->nw, e->nw));
        if (r > 0)
            TRY_OUT(finding_row(&response, s, i, ": rejected of %d tokens, %d kept", n->nl, e->nl));
    }
    TRY_OUT(finding_end(l, &prompt, set, true, "prompts are cut, by %lld tokens in all",
                        (long long)lost_prompt));
    TRY_OUT(finding_end(l, &response, set, true,
                        "responses are cut, by %lld tokens in all, and end without an end token",
                        (long long)lost_response));
out:
    json_decref(prompt.examples);
    json_decref(response.examples);
    return rc;
}

static int find_tokens(struct lint *l, struct lint_set *s, json_t *set)
{
    struct finding f[] = { { .id = "special_tokens" },
                           { .id = "bos_missing" },
                           { .id = "bos_doubled" },
                           { .id = "eos_doubled" },
                           { .id = "joint_encoding" } };
    const struct dataset *d = &s->data;
    int rc = 0;
    for (int64_t i = 0; i < d->n; i++) {
        const struct example_note *n = &d->notes[i];
        const char *name = n->special < 0 ? NULL : tokenizer_text(l->su.tok, n->special);
        if (name) TRY_OUT(finding_row(&f[0], s, i, ": %s", name));
        if (n->bos_missing) TRY_OUT(finding_row(&f[1], s, i, "%s", ""));
        if (n->bos_doubled) TRY_OUT(finding_row(&f[2], s, i, "%s", ""));
        if (n->end_doubled) TRY_OUT(finding_row(&f[3], s, i, "%s", ""));
        if (n->joint_differs) TRY_OUT(finding_row(&f[4], s, i, "%s", ""));
    }
    const bool allow = l->cfg->data.special_tokens == SPECIAL_ALLOW;
    TRY_OUT(finding_end(l, &f[0], set, true, "rows spell a special token, which is %s here",
                        allow ? "a control token" : "ordinary text"));
    TRY_OUT(finding_end(l, &f[1], set, true,
                        "prompts do not begin with BOS, which the tokenizer adds by itself"));
    TRY_OUT(finding_end(l, &f[2], set, true, "prompts begin with BOS twice"));
    TRY_OUT(finding_end(l, &f[3], set, true,
                        "rows have a response whose text ends with the end token already"));
    TRY_OUT(finding_end(l, &f[4], set, false,
                        "rows are other tokens where prompt and response are encoded together"));
out:
    for (size_t i = 0; i < COUNT_OF(f); i++)
        json_decref(f[i].examples);
    return rc;
}

/* --- sets ------------------------------------------------------------------------------------------------------- */

static int add_errors(struct lint *l)
{
    l->n_errors++;
    TRY(buf_adds(&l->errors, err_msg()));
    return buf_adds(&l->errors, "\n");
}

/* As a run reads it; where that is refused, what is left without the bad rows. */
static int load_set(struct lint *l, struct lint_set *s)
{
    struct data_opts o = setup_data_opts(&l->su);
    o.notes = true;
    o.subsample = 1;
    int rc =
        dataset_load(&s->data, s->files->item, s->files->n, s->kind, &o, l->su.tok, l->su.tmpl);
    if (rc == ERR_INPUT) {
        TRY(add_errors(l));
        o.skip_bad_rows = o.quiet = true;
        o.max_bad_rows = INT64_MAX;
        o.max_dropped = 1;
        rc =
            dataset_load(&s->data, s->files->item, s->files->n, s->kind, &o, l->su.tok, l->su.tmpl);
        if (rc == ERR_INPUT) return 0;
    }
    s->usable = rc == 0;
    return rc;
}

static int put_counts(json_t *set, const struct dataset *d)
{
    const struct data_stats *t = &d->stats;
    json_t *files = json_array();
    TRY(put(set, "files", files));
    for (int32_t i = 0; i < d->n_files; i++) {
        json_t *forms = json_object();
        json_t *o = json_pack("{s:s, s:o}", "path", d->files[i], "forms", forms);
        if (!o || json_array_append_new(files, o) < 0) return out_of_memory();
        for (int k = 0; k < FORM_KINDS; k++)
            if (d->forms[i][k] > 0)
                TRY(put(forms, form_name((enum form_kind)k), json_integer(d->forms[i][k])));
    }
    TRY(put(set, "rows", json_integer(t->rows)));
    TRY(put(set, "kept", json_integer(t->kept)));
    TRY(put(set, "malformed", json_integer(t->bad)));
    json_t *o =
        json_pack("{s:I, s:I, s:I}", "empty", (json_int_t)t->dropped_empty, "equal",
                  (json_int_t)t->dropped_equal, "equal_once_cut", (json_int_t)t->dropped_cut);
    TRY(o ? put(set, "dropped", o) : out_of_memory());
    json_t *drops = json_array();
    TRY(put(set, "dropped_rows", drops));
    for (int32_t i = 0; i < d->n_drops; i++) {
        o = json_pack("{s:s, s:I, s:s}", "file", d->files[d->drops[i].file], "line",
                      (json_int_t)d->drops[i].line, "why",
                      drop_text((enum drop_why)d->drops[i].why));
        if (!o || json_array_append_new(drops, o) < 0) return out_of_memory();
    }
    return 0;
}

/* What "auto" becomes depends on the machine (`plan` says it); here it is a size for comparing files. */
static int64_t micro_tokens(const struct config *c, const struct dataset *d)
{
    enum { NOMINAL = 2048 };
    if (c->memory.micro_batch_tokens != CONFIG_AUTO) return c->memory.micro_batch_tokens;
    return MAX(d->longest, (int64_t)NOMINAL);
}

/* What an epoch computes: the rows that subsample and weights leave, which the findings do not look at. */
static int report_epoch(struct lint *l, struct lint_set *s, json_t *set)
{
    const struct config *c = l->cfg;
    struct data_opts o = setup_data_opts(&l->su);
    struct dataset used = s->data; /* borrows all but ex */
    int64_t *pick = NULL, k = 0;
    int rc = 0;
    o.weights = s->files->weight;
    used.ex = NULL;
    TRY_OUT(MEM_NEW(&pick, s->data.n));
    TRY_OUT(MEM_NEW(&used.ex, s->data.n));
    TRY_OUT(data_subsample(pick, s->data.n, o.subsample, o.seed, &k));
    for (int64_t i = 0; i < k; i++)
        used.ex[i] = s->data.ex[pick[i]];
    used.n = k;
    if (o.weights) TRY_OUT(dataset_weigh(&used, &o));
    if (used.n != s->data.n)
        TRY_OUT(buf_addf(&l->text, "  %lld rows are used in an epoch (%s%s%s)\n", (long long)used.n,
                         o.subsample < 1 ? "data.subsample" : "",
                         o.subsample < 1 && o.weights ? ", " : "", o.weights ? "weights" : ""));
    rc = lint_packing(set, &l->text, &used, s->stage, c->seed, micro_tokens(c, &s->data));
out:
    free(used.ex);
    free(pick);
    return rc;
}

static int report_set(struct lint *l, struct lint_set *s)
{
    json_t *set = json_object();
    const struct data_stats *t = &s->data.stats;
    if (!set || json_array_append_new(l->sets, set) < 0) return out_of_memory();
    TRY(put(set, "name", json_string(s->name)));
    TRY(put(set, "findings", json_array()));
    TRY(buf_addf(&l->text, "%s\n", s->name));
    if (!s->usable) return buf_adds(&l->text, "  nothing of it can be used\n");
    TRY(put_counts(set, &s->data));
    TRY(dataset_describe(&s->data, &l->text));
    TRY(buf_adds(&l->text, "\n"));
    l->n_warnings += t->dropped_empty + t->dropped_equal + t->dropped_cut > 0;
    TRY(lint_lengths(set, &l->text, &s->data));
    if (s->stage) TRY(report_epoch(l, s, set));
    TRY(find_repeats(l, s, set));
    TRY(find_cuts(l, s, set));
    TRY(find_tokens(l, s, set));
    for (int i = 0; i < l->n_sets && !s->stage; i++)
        if (l->set[i].stage && l->set[i].usable) TRY(find_overlap(l, &l->set[i], s, set));
    return 0;
}

static void set_add(struct lint *l, const char *name, const struct strlist *files,
                    enum data_kind kind, const struct stage_config *stage)
{
    l->set[l->n_sets++] =
        (struct lint_set){ .name = name, .files = files, .kind = kind, .stage = stage };
}

static void choose_sets(struct lint *l)
{
    const struct config *c = l->cfg;
    const bool pairs = c->preference.present;
    if (c->sft.present && (c->sft.train.n || !pairs || c->preference.train.n))
        set_add(l, c->sft.train.n ? "sft.train" : "data.train (SFT)",
                c->sft.train.n ? &c->sft.train : &c->data.train, DATA_SFT, &c->sft);
    if (pairs)
        set_add(l, c->preference.train.n ? "preference.train" : "data.train",
                c->preference.train.n ? &c->preference.train : &c->data.train, DATA_PAIRS,
                &c->preference);
    if (c->data.eval.n) set_add(l, "data.eval", &c->data.eval, pairs ? DATA_PAIRS : DATA_SFT, NULL);
}

static int write_report(struct lint *l, const char *out)
{
    struct buf b = { 0 };
    json_t *root = json_pack("{s:I, s:I, s:s, s:O}", "errors", (json_int_t)l->n_errors, "warnings",
                             (json_int_t)l->n_warnings, "messages",
                             l->errors.data ? l->errors.data : "", "sets", l->sets);
    int rc = root ? json_dump(&b, root, 2) : out_of_memory();
    if (rc == 0) rc = buf_adds(&b, "\n");
    if (rc == 0) rc = file_write_all(out, b.data, b.len);
    json_decref(root);
    buf_release(&b);
    return rc;
}

static int lint_all(struct lint *l, const char *out)
{
    TRY(setup_open(&l->su, l->cfg, NULL));
    if (!(l->sets = json_array())) return out_of_memory();
    choose_sets(l);
    for (int i = 0; i < l->n_sets; i++)
        TRY(load_set(l, &l->set[i]));
    for (int i = 0; i < l->n_sets; i++)
        TRY(report_set(l, &l->set[i]));
    printf("%slint: %lld warning%s, %s\n", l->text.data, (long long)l->n_warnings,
           l->n_warnings == 1 ? "" : "s", l->n_errors ? "and a run would be refused" : "no error");
    if (out) TRY(write_report(l, out));
    return l->n_errors ? err_set(ERR_INPUT, "%.*s", (int)l->errors.len - 1, l->errors.data) : 0;
}

int lint_run(const struct config *c, const char *out)
{
    struct lint l = { .cfg = c };
    const int rc = lint_all(&l, out);
    for (int i = 0; i < l.n_sets; i++)
        dataset_release(&l.set[i].data);
    json_decref(l.sets);
    buf_release(&l.text);
    buf_release(&l.errors);
    setup_close(&l.su);
    return rc;
}
