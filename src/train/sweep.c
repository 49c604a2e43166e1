/* SPDX-License-Identifier: MIT */
#include "sweep.h"
#include "config.h"
#include "../io/file.h"
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NAME_MAX_BYTES = 200 };

static int out_of_memory(void)
{
    return err_set(ERR_OOM, "out of memory for the grid");
}

static bool of_preference(const char *key)
{
    return strncmp(key, "preference.", 11) == 0 || strncmp(key, "reference.", 10) == 0;
}

/* Does the key leave the SFT stage's model as it is, or is it one that the stages may differ in? Runs that differ in such keys share that stage. */
static bool after_sft(const char *key)
{
    static const char *const heads[] = { "eval.", "logging.", "checkpoint.", "faults." };
    static const char *const whole[] = { "seed", "max_hours", "cache_dir", "threads" };
    if (of_preference(key)) return true;
    for (size_t i = 0; i < COUNT_OF(heads); i++)
        if (strncmp(key, heads[i], strlen(heads[i])) == 0) return true;
    for (size_t i = 0; i < COUNT_OF(whole); i++)
        if (strcmp(key, whole[i]) == 0) return true;
    return false;
}

/* Names ------------------------------------------------------------------------------------------------------------ */

static int name_add(struct buf *b, const char *text, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        const char c = text[i];
        const bool plain = isalnum((unsigned char)c) || (c && strchr("._+-", c));
        TRY(buf_add(b, plain ? &c : "_", 1));
    }
    return 0;
}

/* "bdpo", "lambda0.5", "sft.learning_rate1e-05": the value of preference.loss alone, other keys with their name before it. */
static int name_part(struct buf *b, const char *key, const json_t *value)
{
    struct buf text = { 0 };
    const char *string = json_string_value(value);
    int rc = 0;
    if (strncmp(key, "preference.", 11) == 0) key += 11;
    if (b->len) TRY_OUT(buf_adds(b, "-"));
    if (strcmp(key, "loss") != 0) TRY_OUT(name_add(b, key, strlen(key)));
    if (string)
        TRY_OUT(name_add(b, string, strlen(string)));
    else {
        TRY_OUT(json_dump(&text, value, 0));
        TRY_OUT(name_add(b, text.data, text.len));
    }
out:
    buf_release(&text);
    return rc;
}

static int name_runs(struct sweep_run *r, bool has_sft)
{
    struct buf name = { 0 }, sft = { 0 };
    const char *key;
    json_t *value;
    int rc = 0;
    TRY_OUT(buf_adds(&sft, "sft"));
    json_object_foreach(r->own, key, value)
    {
        TRY_OUT(name_part(&name, key, value));
        if (!after_sft(key)) TRY_OUT(name_part(&sft, key, value));
    }
    TRY_OUT(mem_strdup(&r->name, name.len ? name.data : "run"));
    if (has_sft) TRY_OUT(mem_strdup(&r->sft, sft.data));
out:
    buf_release(&name);
    buf_release(&sft);
    return rc;
}

static int check_names(const struct sweep *s)
{
    for (int64_t i = 0; i < s->n; i++) {
        const char *name = s->run[i].name;
        static const char *const taken[] = { "configs", "logs", "scores", "cache", "sft" };
        bool bad = strlen(name) > NAME_MAX_BYTES || name[0] == '.' || name[0] == '-' ||
                   strncmp(name, "sft-", 4) == 0;
        for (size_t k = 0; k < COUNT_OF(taken); k++)
            bad = bad || strcmp(name, taken[k]) == 0;
        if (bad)
            return json_err(ERR_INPUT, &s->doc, "/grid",
                            "a run would have the name \"%.60s\", which cannot be a run's "
                            "directory here; put a key such as preference.loss first",
                            name);
        for (int64_t k = 0; k < i; k++)
            if (strcmp(s->run[k].name, name) == 0)
                return json_err(ERR_INPUT, &s->doc, "/grid",
                                "two runs have the name \"%.100s\": the same values twice, or "
                                "values that differ in special characters only",
                                name);
    }
    return 0;
}

/* Reading ---------------------------------------------------------------------------------------------------------- */

static int read_text(struct sweep *s, const char *key, const char **out)
{
    char pointer[32];
    const json_t *v = json_object_get(s->doc.root, key);
    snprintf(pointer, sizeof pointer, "/%s", key);
    if (!json_is_string(v) || !*json_string_value(v) || strchr(json_string_value(v), '\n'))
        return json_err(ERR_INPUT, &s->doc, pointer, "%s: must be given, as a path", key);
    *out = json_string_value(v);
    return 0;
}

static int check_key(const struct sweep *s, const char *key, const char *pointer)
{
    if (strcmp(key, "output") == 0 || strcmp(key, "sft") == 0)
        return json_err(ERR_INPUT, &s->doc, pointer, "\"%s\" cannot be set here: %s", key,
                        *key == 'o' ? "the sweep gives each run a directory of its own"
                                    : "set keys of it, such as sft.learning_rate");
    return 0;
}

/* One run of a block: value pick[k] of its k-th key. */
static int add_run(struct sweep *s, json_t *block, const int64_t *pick)
{
    json_t *set = json_object_get(s->doc.root, "set"), *value;
    const char *key;
    int64_t k = 0;
    if (s->n == SWEEP_RUNS_MAX)
        return json_err(ERR_INPUT, &s->doc, "/grid", "more than %d runs", SWEEP_RUNS_MAX);
    TRY(MEM_GROW(&s->run, &s->cap, s->n + 1));
    struct sweep_run *r = &s->run[s->n++];
    memset(r, 0, sizeof *r);
    r->set = set ? json_deep_copy(set) : json_object();
    r->own = json_object();
    if (!r->set || !r->own) return out_of_memory();
    json_object_del(r->set, "note");
    json_object_foreach(block, key, value)
    {
        if (strcmp(key, "note") == 0) continue;
        json_t *one = json_is_array(value) ? json_array_get(value, (size_t)pick[k++]) : value;
        if (json_object_set(r->set, key, one) < 0 || json_object_set(r->own, key, one) < 0)
            return out_of_memory();
    }
    return 0;
}

static int add_block(struct sweep *s, json_t *block, const char *at)
{
    int64_t size[64], pick[64] = { 0 }, n = 0;
    const char *key;
    char *pointer = NULL;
    json_t *value;
    int rc = 0;
    if (!json_is_object(block))
        return json_err(ERR_INPUT, &s->doc, at,
                        "grid: expected an object of keys and lists of values");
    json_object_foreach(block, key, value)
    {
        if (strcmp(key, "note") == 0) continue;
        free(pointer);
        TRY_OUT(json_pointer_join(&pointer, at, key));
        TRY_OUT(check_key(s, key, pointer));
        if (json_object_set_new(s->keys, key, json_null()) < 0) TRY_OUT(out_of_memory());
        if (!json_is_array(value)) continue;
        if (json_array_size(value) == 0 || n == (int64_t)COUNT_OF(size))
            TRY_OUT(json_err(ERR_INPUT, &s->doc, pointer, "%s: %s", key,
                             json_array_size(value) ? "too many keys" : "has no values"));
        size[n++] = (int64_t)json_array_size(value);
    }
    for (int64_t k = 0; k >= 0;) {
        TRY_OUT(add_run(s, block, pick));
        for (k = n - 1; k >= 0 && ++pick[k] == size[k]; k--)
            pick[k] = 0;
    }
out:
    free(pointer);
    return rc;
}

static int read_grid(struct sweep *s)
{
    json_t *grid = json_object_get(s->doc.root, "grid");
    char at[32];
    if (json_is_object(grid)) return add_block(s, grid, "/grid");
    if (!json_is_array(grid) || json_array_size(grid) == 0)
        return json_err(ERR_INPUT, &s->doc, "/grid",
                        "grid: must be given: an object of keys and lists of values, or a list of "
                        "such objects");
    for (size_t i = 0; i < json_array_size(grid); i++) {
        snprintf(at, sizeof at, "/grid/%zu", i);
        TRY(add_block(s, json_array_get(grid, i), at));
    }
    return 0;
}

static int check_top(const struct sweep *s)
{
    static const char *const names[] = { "note", "config", "output", "set", "grid" };
    json_t *set = json_object_get(s->doc.root, "set");
    const char *key;
    char *pointer = NULL;
    json_t *value;
    int rc = 0;
    json_object_foreach(s->doc.root, key, value)
    {
        bool known = false;
        for (size_t i = 0; i < COUNT_OF(names); i++)
            known = known || strcmp(key, names[i]) == 0;
        if (known) continue;
        const char *near = json_nearest(key, names, COUNT_OF(names));
        TRY_OUT(json_pointer_join(&pointer, "", key));
        TRY_OUT(json_err(ERR_INPUT, &s->doc, pointer, "%.60s: unknown key%s%s%s", key,
                         near ? "; did you mean \"" : "; a config's keys stand in \"set\"",
                         near ? near : "", near ? "\"?" : ""));
    }
    if (set && !json_is_object(set))
        TRY_OUT(json_err(ERR_INPUT, &s->doc, "/set", "set: expected an object"));
    json_object_foreach(set, key, value)
    {
        free(pointer);
        TRY_OUT(json_pointer_join(&pointer, "/set", key));
        TRY_OUT(check_key(s, key, pointer));
    }
out:
    free(pointer);
    return rc;
}

/* The config with a run's settings (of its SFT stage: those that such a stage has), then `extra` ("key=value"); the caller owns *c. */
static int load_with(struct config **c, const struct sweep *s, const struct sweep_run *r,
                     bool stage, char **extra, int32_t n_extra)
{
    const int32_t n_max = (int32_t)json_object_size(r->set) + n_extra;
    char **text = NULL;
    int32_t n = 0;
    const char *key;
    json_t *value;
    int rc;
    TRY_OUT(MEM_NEW(&text, n_max));
    json_object_foreach(r->set, key, value)
    {
        struct buf b = { 0 };
        if (stage && (json_object_get(r->own, key) ? after_sft(key) : of_preference(key))) continue;
        rc = buf_addf(&b, "%s=", key);
        if (rc == 0) rc = json_dump(&b, value, 0);
        text[n++] = b.data;
        if (rc < 0) goto out;
    }
    for (int32_t i = 0; i < n_extra; i++)
        TRY_OUT(mem_strdup(&text[n++], extra[i]));
    rc = config_load(c, s->config, (const char *const *)text, n);
out:
    for (int32_t i = 0; text && i < n; i++)
        free(text[i]);
    free(text);
    return rc;
}

static int has_sft(const struct sweep *s, bool *out)
{
    struct json_doc d = { 0 };
    TRY(json_doc_read(&d, s->config));
    *out = json_is_object(json_object_get(d.root, "sft"));
    json_doc_release(&d);
    for (int64_t i = 0; i < s->n; i++) {
        const char *key;
        json_t *value;
        json_object_foreach(s->run[i].set, key, value) *out = *out || strncmp(key, "sft.", 4) == 0;
    }
    return 0;
}

int sweep_read(struct sweep *s, const char *file)
{
    bool sft = false;
    memset(s, 0, sizeof *s);
    s->file = file;
    s->keys = json_object();
    if (!s->keys) return out_of_memory();
    TRY(json_doc_read(&s->doc, file));
    if (!json_is_object(s->doc.root))
        return json_err(ERR_INPUT, &s->doc, "",
                        "expected an object with \"config\", \"output\" "
                        "and \"grid\"");
    TRY(check_top(s));
    TRY(read_text(s, "config", &s->config));
    TRY(read_text(s, "output", &s->output));
    TRY(read_grid(s));
    TRY(has_sft(s, &sft));
    for (int64_t i = 0; i < s->n; i++)
        TRY(name_runs(&s->run[i], sft));
    return check_names(s);
}

void sweep_release(struct sweep *s)
{
    for (int64_t i = 0; i < s->n; i++) {
        free(s->run[i].name);
        free(s->run[i].sft);
        json_decref(s->run[i].set);
        json_decref(s->run[i].own);
    }
    free(s->run);
    json_decref(s->keys);
    json_doc_release(&s->doc);
    memset(s, 0, sizeof *s);
}

/* Writing ---------------------------------------------------------------------------------------------------------- */

/* The config of a run (of its SFT stage where `stage`) as text. With adapters a run starts from the SFT stage's adapters on the same base. */
static int run_config(const struct sweep *s, const struct sweep_run *r, bool stage, struct buf *b)
{
    struct config *c = NULL;
    char none[] = "preference=null", no_sft[] = "sft=null", init[] = "model.init=pretrained";
    char *output = NULL, *model = NULL;
    int rc;
    TRY_OUT(mem_asprintf(&output, "output=%s/%s", s->output, stage ? r->sft : r->name));
    char *extra[] = { output, stage ? none : no_sft, init, NULL };
    rc = load_with(&c, s, r, stage, extra, r->sft ? 2 : 1);
    if (rc == 0 && r->sft && !stage) {
        const bool adapters = c->model.lora.present;
        config_free(c);
        c = NULL;
        TRY_OUT(mem_asprintf(&model, "model.%spath=%s/%s/model", adapters ? "lora." : "", s->output,
                             r->sft));
        extra[adapters ? 2 : 3] = model;
        rc = load_with(&c, s, r, false, extra, adapters ? 3 : 4);
    }
    if (rc == 0) rc = config_dump(c, b);
    if (rc < 0) rc = err_note(rc, "%s: %s", s->file, stage ? r->sft : r->name);
out:
    config_free(c);
    free(output);
    free(model);
    return rc;
}

/* Is it the first run that starts from its SFT stage? */
static bool first_of_stage(const struct sweep *s, int64_t i)
{
    for (int64_t k = 0; s->run[i].sft && k < i; k++)
        if (s->run[k].sft && strcmp(s->run[k].sft, s->run[i].sft) == 0) return false;
    return s->run[i].sft != NULL;
}

static int write_config(const struct sweep *s, const char *name, const struct buf *text)
{
    char *path = NULL, *old = NULL;
    size_t len;
    int rc;
    TRY_OUT(mem_asprintf(&path, "%s/configs/%s.json", s->output, name));
    if (file_exists(path) && file_read(&old, &len, path, 1 << 24) == 0 && len == text->len &&
        memcmp(old, text->data, len) == 0)
        goto out;
    rc = file_write_all(path, text->data, text->len);
out:
    free(path);
    free(old);
    return rc;
}

/* text[2 i]: the config of run i, text[2 i + 1]: that of its SFT stage, where it is the first to start from it. */
static int make_configs(const struct sweep *s, struct buf *text)
{
    for (int64_t i = 0; i < s->n; i++)
        for (int stage = first_of_stage(s, i); stage >= 0; stage--)
            TRY(run_config(s, &s->run[i], stage, &text[2 * i + stage]));
    return 0;
}

static int write_configs(const struct sweep *s, const struct buf *text)
{
    static const char *const folders[] = { "configs", "logs", "scores" };
    for (size_t i = 0; i < COUNT_OF(folders); i++) {
        char *path = NULL;
        int rc = path_join(&path, s->output, folders[i]);
        if (rc == 0) rc = dir_make(path);
        free(path);
        TRY(rc);
    }
    for (int64_t i = 0; i < s->n; i++)
        for (int stage = first_of_stage(s, i); stage >= 0; stage--)
            TRY(write_config(s, stage ? s->run[i].sft : s->run[i].name, &text[2 * i + stage]));
    return 0;
}

int sweep_expand(const struct sweep *s)
{
    struct buf *text = NULL;
    int rc;
    err_quiet(); /* a run says its config's warnings itself; here each would come many times */
    TRY(MEM_NEW(&text, 2 * s->n));
    rc = make_configs(s, text); /* all of them, before anything is written */
    if (rc == 0) rc = write_configs(s, text);
    for (int64_t i = 0; i < 2 * s->n; i++)
        buf_release(&text[i]);
    free(text);
    TRY(rc);
    printf("%s\n", s->output);
    for (int64_t i = 0; i < s->n; i++)
        printf("%s %s\n", s->run[i].sft ? s->run[i].sft : "-", s->run[i].name);
    return 0;
}
