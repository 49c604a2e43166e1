/* SPDX-License-Identifier: MIT */
#include "options.h"
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SET_DEPTH_MAX = 8 };

/* Problems and their places ---------------------------------------------------------------------------------------- */

/* Is `pointer` the value at `top` or inside it? */
static bool is_within(const char *pointer, const char *top)
{
    const size_t n = strlen(top);
    return strncmp(pointer, top, n) == 0 && (pointer[n] == 0 || pointer[n] == '/');
}

/* The last setting that made the value at `pointer`; NULL: it stands in the file. */
static const char *set_of(const struct loader *ld, const char *pointer)
{
    for (int32_t i = ld->n_sets; i-- > 0;)
        if (ld->set_pointer[i] && is_within(pointer, ld->set_pointer[i])) return ld->set_name[i];
    return NULL;
}

static void place_of(const struct loader *ld, const char *pointer, const char **name, int64_t *line,
                     int64_t *col)
{
    char at[LABEL_SIZE];
    *line = *col = 0;
    *name = set_of(ld, pointer);
    if (*name) return;
    json_doc_where(&ld->doc, pointer, line, col);
    for (int32_t i = ld->n_sets;
         *line == 0 && i-- > 0;) /* a section that only settings of its keys made */
        if (ld->set_pointer[i] && is_within(ld->set_pointer[i], pointer)) {
            *name = ld->set_name[i];
            return;
        }
    snprintf(at, sizeof at, "%s", pointer);
    for (;;) {
        json_doc_where(&ld->doc, at, line, col);
        char *slash = strrchr(at, '/');
        if (*line > 0 || !slash) break;
        *slash = 0;
    }
    *name = ld->doc.name;
}

int config_place(const struct loader *ld, const char *pointer, char **out)
{
    const char *name;
    int64_t line, col;
    place_of(ld, pointer, &name, &line, &col);
    if (line == 0) return mem_strdup(out, name);
    return mem_asprintf(out, "%s:%lld:%lld", name, (long long)line, (long long)col);
}

void config_report(struct loader *ld, const char *pointer, const char *fmt, ...)
{
    char text[500];
    const char *name;
    int64_t line, col;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    place_of(ld, pointer, &name, &line, &col);
    if (line == 0) { /* diag_add writes the place of a file only */
        diag_add(&ld->diag, NULL, 0, 0, "%s: error: %s", name, text);
        return;
    }
    diag_add(&ld->diag, name, line, col, "%s", text);
}

static void pointer_of(char out[LABEL_SIZE], const char *path)
{
    snprintf(out, LABEL_SIZE, "/%s", path);
    for (char *p = out; *p; p++)
        if (*p == '.') *p = '/';
}

void config_report_option(struct loader *ld, const struct option *o, const char *fmt, ...)
{
    char text[500], pointer[LABEL_SIZE];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    pointer_of(pointer, o->path);
    config_report(ld, pointer, "%s: %s", o->path, text);
}

int config_warn_option(struct loader *ld, const struct option *o, const char *fmt, ...)
{
    char text[500], pointer[LABEL_SIZE];
    const char *name;
    int64_t line, col;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    pointer_of(pointer, o->path);
    place_of(ld, pointer, &name, &line, &col);
    TRY(buf_adds(&ld->warnings, name));
    if (line > 0) TRY(buf_addf(&ld->warnings, ":%lld:%lld", (long long)line, (long long)col));
    return buf_addf(&ld->warnings, ": warning: %s: %s\n", o->path, text);
}

/* --set ------------------------------------------------------------------------------------------------------------ */

/* *out: the value as JSON, else as a string; owned by the caller. */
static int set_value(json_t **out, const char *text)
{
    struct json_doc d = { 0 };
    if (json_doc_parse_any(&d, "--set", 1, text, strlen(text)) == 0)
        *out = json_incref(d.root);
    else
        *out = json_string(text);
    json_doc_release(&d);
    return *out ? 0 : err_set(ERR_INPUT, "the value is not UTF-8 text");
}

/* Put `value` (taken over) at `path` in the tree; missing and null sections on the way are made. */
static int set_insert(struct loader *ld, char *path, json_t *value, char **pointer)
{
    json_t *at = ld->doc.root;
    char *rest = path, *key, *joined;
    int depth = 0, rc = 0;
    TRY_OUT(mem_strdup(pointer, ""));
    while ((key = strsep(&rest, "."))) {
        char q[300];
        err_quote(q, sizeof q, key, strlen(key));
        if (*key == 0 || ++depth > SET_DEPTH_MAX) {
            rc = err_set(ERR_INPUT, "the key is not a dotted path like preference.lambda");
            goto out;
        }
        TRY_OUT(json_pointer_join(&joined, *pointer, key));
        free(*pointer);
        *pointer = joined;
        if (!rest) {
            if (json_object_set(at, key, value) < 0)
                rc = err_set(ERR_INPUT, "the key is not UTF-8 text");
            break;
        }
        json_t *next = json_object_get(at, key);
        if (!next || json_is_null(next)) {
            if (json_object_set_new(at, key, json_object()) < 0) {
                rc = err_set(ERR_INPUT, "the key is not UTF-8 text");
                break;
            }
            next = json_object_get(at, key);
        }
        if (!json_is_object(next)) {
            rc = err_set(ERR_INPUT, "\"%s\" is not a section", q);
            break;
        }
        at = next;
    }
out:
    json_decref(value);
    if (rc < 0) {
        free(*pointer);
        *pointer = NULL;
    }
    return rc;
}

static int apply_set(struct loader *ld, int32_t i, const char *text)
{
    const char *eq = strchr(text, '=');
    char q[300], *path = NULL;
    json_t *value = NULL;
    int rc = 0;
    if (!eq || eq == text) {
        diag_add(&ld->diag, NULL, 0, 0, "--set: error: expected key=value, found \"%s\"",
                 err_quote(q, sizeof q, text, strlen(text)));
        return 0;
    }
    TRY(mem_strndup(&path, text, (size_t)(eq - text)));
    TRY_OUT(mem_asprintf(&ld->set_name[i], "--set %s", err_quote(q, sizeof q, path, strlen(path))));
    rc = set_value(&value, eq + 1);
    if (rc == 0) rc = set_insert(ld, path, value, &ld->set_pointer[i]);
    if (rc == ERR_INPUT) {
        diag_add(&ld->diag, NULL, 0, 0, "%s: error: %s", ld->set_name[i], err_msg());
        rc = 0;
    }
out:
    free(path);
    return rc;
}

/* Reading ---------------------------------------------------------------------------------------------------------- */

/* Last key of an option's or section's path; *parent_len: length of what stands before it, without the dot. */
static const char *leaf_of(const char *path, size_t *parent_len)
{
    const char *dot = strrchr(path, '.');
    *parent_len = dot ? (size_t)(dot - path) : 0;
    return dot ? dot + 1 : path;
}

/* The paths of options called `key` in other sections, or spelled as a path in one key: "\"sft.epochs\" or ...". */
static void find_elsewhere(char *out, size_t size, const char *key)
{
    out[0] = 0;
    for (size_t i = 0; i < option_count; i++) {
        const char *path = option_table[i].path;
        size_t len, n = strlen(out);
        if (strcmp(leaf_of(path, &len), key) != 0 && strcmp(path, key) != 0) continue;
        if (n + strlen(path) + 8 > size) break;
        snprintf(out + n, size - n, "%s\"%s\"", n ? " or " : "", path);
    }
}

static void report_unknown(struct loader *ld, const char *section, const char *key,
                           const char *pointer)
{
    const char *names[OPTIONS_MAX + 32], *near;
    char label[LABEL_SIZE], q[300], elsewhere[200];
    size_t n = 0, len;
    err_quote(q, sizeof q, key, strlen(key));
    snprintf(label, sizeof label, "%s%s%s", section, *section ? "." : "", q);
    find_elsewhere(elsewhere, sizeof elsewhere, key);
    if (*elsewhere) {
        config_report(ld, pointer, "%s: unknown key; did you mean %s%s?", label, elsewhere,
                      strchr(key, '.') ? ", the dot as a section" : "");
        return;
    }
    for (size_t i = 0; i < option_count + section_count; i++) {
        const char *path =
            i < option_count ? option_table[i].path : section_table[i - option_count].path;
        const char *leaf = leaf_of(path, &len);
        if (len == strlen(section) && strncmp(path, section, len) == 0) names[n++] = leaf;
    }
    near = json_nearest(key, names, n);
    if (near)
        config_report(ld, pointer, "%s: unknown key; did you mean \"%s\"?", label, near);
    else
        config_report(ld, pointer, "%s: unknown key", label);
}

static void report_unused(struct loader *ld, const struct option *o)
{
    char takes[120] = "", others[200] = "";
    for (unsigned bit = LOSS_BETA; bit <= LOSS_SMOOTHING; bit <<= 1)
        if (ld->loss->options & bit) {
            const size_t n = strlen(takes);
            snprintf(takes + n, sizeof takes - n, "%s%s", n ? ", " : "", loss_option_name(bit));
        }
    for (size_t i = 0; i < loss_count; i++)
        if (loss_table[i].options & o->loss_bit) {
            const size_t n = strlen(others);
            snprintf(others + n, sizeof others - n, "%s%s", n ? ", " : "", loss_table[i].name);
        }
    config_report_option(ld, o,
                         "not used by the loss \"%s\"%s, which takes %s (%s is an option of %s)",
                         ld->loss->name, ld->loss_given ? "" : " (the default)", takes,
                         loss_option_name(o->loss_bit), others);
}

static int read_option(struct loader *ld, const struct option *o, const json_t *value,
                       const char *pointer)
{
    const size_t index = (size_t)(o - option_table);
    int64_t element = -1;
    ld->state[index] = STATE_GIVEN;
    if (o->use == USE_LOSS && ld->loss && !(ld->loss->options & o->loss_bit)) {
        report_unused(ld, o);
        ld->state[index] = STATE_BAD;
        return 0;
    }
    const int rc = option_read(ld->c, o, value, ld->loss, set_of(ld, pointer) != NULL, &element);
    if (rc == 0 || rc != ERR_INPUT) return rc;
    ld->state[index] = STATE_BAD;
    char text[500], at[LABEL_SIZE];
    snprintf(text, sizeof text, "%s", err_msg());
    if (element < 0) {
        config_report_option(ld, o, "%s", text);
        return 0;
    }
    snprintf(at, sizeof at, "%s/%lld", pointer, (long long)element);
    config_report(ld, at, "%s.%lld: %s", o->path, (long long)element, text);
    return 0;
}

static void read_note(struct loader *ld, const json_t *value, const char *section,
                      const char *pointer)
{
    bool ok = json_is_string(value) || json_is_array(value);
    for (size_t i = 0; json_is_array(value) && i < json_array_size(value); i++)
        ok = ok && json_is_string(json_array_get(value, i));
    if (!ok)
        config_report(ld, pointer, "%s%snote: expected a string", section, *section ? "." : "");
}

/* All keys of one section ("": the root); sections in it are read by recursion. */
static int read_section(struct loader *ld, json_t *object, const char *section, const char *pointer)
{
    const char *key;
    json_t *value;
    int rc = 0;
    json_object_foreach(object, key, value)
    {
        char path[LABEL_SIZE];
        char *at;
        TRY(json_pointer_join(&at, pointer, key));
        snprintf(path, sizeof path, "%s%s%s", section, *section ? "." : "", key);
        const bool plain =
            !strchr(key, '.') && strlen(key) < 100; /* "model.path" as one key is not the path */
        const struct option *o = plain ? option_find(path) : NULL;
        const struct section *s = plain ? section_find(path) : NULL;
        if (strcmp(key, "note") == 0)
            read_note(ld, value, section, at);
        else if (o)
            rc = read_option(ld, o, value, at);
        else if (!s)
            report_unknown(ld, section, key, at);
        else if (json_is_object(value))
            rc = read_section(ld, value, path, at);
        else if (!json_is_null(value) || !s->nullable)
            config_report(ld, at, "%s: expected a section%s", path, s->nullable ? " or null" : "");
        free(at);
        TRY(rc);
    }
    return 0;
}

/* The loss decides which options are legal: it is looked up before the rest is read. */
static void find_loss(struct loader *ld)
{
    const json_t *section = json_object_get(ld->doc.root, "preference");
    const json_t *name = json_object_get(section, "loss");
    ld->loss_given = name != NULL;
    if (!name)
        ld->loss = loss_find("bdpo");
    else if (json_is_string(name) && strlen(json_string_value(name)) == json_string_length(name))
        ld->loss = loss_find(json_string_value(name));
}

static int set_defaults(struct loader *ld)
{
    for (size_t i = 0; i < option_count; i++) {
        const struct option *o = &option_table[i];
        struct json_doc d = { 0 };
        int64_t element;
        if (!o->dflt) continue;
        TRY(json_doc_parse_any(&d, o->path, 1, o->dflt, strlen(o->dflt)));
        int rc = option_read(ld->c, o, d.root, NULL, false, &element);
        json_doc_release(&d);
        /* a refused default stays the field's zero; config_check reports it where nothing else was given */
        if (rc == ERR_INPUT && o->type == OPTION_CHOICE) rc = 0;
        TRY(rc);
    }
    ld->c->loss_opts = (ld->loss ? ld->loss : loss_find("bdpo"))->defaults;
    return 0;
}

static int load(struct loader *ld, const char *file, const char *const *sets, int32_t n_sets)
{
    TRY(json_doc_read(&ld->doc, file));
    if (!json_is_object(ld->doc.root))
        return json_err(ERR_INPUT, &ld->doc, "", "expected an object with the sections of a run");
    TRY(MEM_NEW(&ld->set_pointer, n_sets));
    TRY(MEM_NEW(&ld->set_name, n_sets));
    ld->n_sets = n_sets;
    for (int32_t i = 0; i < n_sets; i++)
        TRY(apply_set(ld, i, sets[i]));
    find_loss(ld);
    TRY(set_defaults(ld));
    ld->c->model.lora.present =
        json_is_object(json_object_get(json_object_get(ld->doc.root, "model"), "lora"));
    ld->c->sft.present = json_is_object(json_object_get(ld->doc.root, "sft"));
    ld->c->preference.present = json_is_object(json_object_get(ld->doc.root, "preference"));
    TRY(read_section(ld, ld->doc.root, "", ""));
    TRY(config_check(ld));
    return diag_result(&ld->diag, ERR_INPUT);
}

int config_load(struct config **out, const char *file, const char *const *sets, int32_t n_sets)
{
    struct loader *ld = NULL;
    int rc;
    *out = NULL;
    TRY(MEM_NEW(&ld, 1));
    rc = MEM_NEW(&ld->c, 1);
    if (rc == 0) rc = load(ld, file, sets, n_sets);
    if (rc == 0) {
        if (ld->warnings.len) fputs(ld->warnings.data, stderr);
        *out = ld->c;
        ld->c = NULL;
    }
    for (int32_t i = 0; i < ld->n_sets; i++) {
        free(ld->set_pointer[i]);
        free(ld->set_name[i]);
    }
    free(ld->set_pointer);
    free(ld->set_name);
    config_free(ld->c);
    buf_release(&ld->warnings);
    json_doc_release(&ld->doc);
    free(ld);
    return rc;
}

void config_free(struct config *c)
{
    if (!c) return;
    for (size_t i = 0; i < option_count; i++)
        option_clear(c, &option_table[i]);
    free(c->data.template_at);
    free(c);
}
