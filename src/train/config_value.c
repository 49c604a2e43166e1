/* SPDX-License-Identifier: MIT */
#include "options.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void *field(const struct config *c, const struct option *o)
{
    return (void *)((uintptr_t)c + o->offset);
}

const char *number_text(char out[40], double x)
{
    int digits = 1;
    do {
        snprintf(out, 40, "%.*g", digits, x);
    } while (strtod(out, NULL) != x && digits++ < 17);
    /* 1e+06 and 9007199254740992 are each the plainer form of theirs */
    if (fabs(x) < 1e16 && x == floor(x)) snprintf(out, 40, "%.0f", x);
    return out;
}

static double max_of(const struct option *o, const struct loss_def *loss)
{
    return o->loss_bit == LOSS_LAMBDA && loss ? loss->lambda_max : o->max;
}

static void range_text(char *out, size_t size, const struct option *o, const struct loss_def *loss)
{
    char lo[40], hi[40];
    snprintf(out, size, "%c%s, %s%c", o->flags & OPTION_ABOVE ? '(' : '[', number_text(lo, o->min),
             number_text(hi, max_of(o, loss)), o->flags & OPTION_BELOW ? ')' : ']');
}

static int add_choices(struct buf *b, const struct option *o)
{
    int shown = 0;
    for (const struct choice *c = o->choices; c && c->name; c++) {
        if (c->refused) continue;
        TRY(buf_addf(b, "%s\"%s\"", shown++ ? ", " : "", c->name));
    }
    for (size_t i = 0; o->type == OPTION_LOSS && i < loss_count; i++)
        TRY(buf_addf(b, "%s\"%s\"", i ? ", " : "", loss_table[i].name));
    return 0;
}

int option_expects(struct buf *b, const struct option *o, const struct loss_def *loss)
{
    char range[90];
    range_text(range, sizeof range, o, loss);
    switch (o->type) {
    case OPTION_BOOL:
        TRY(buf_adds(b, "true or false"));
        break;
    case OPTION_TRI:
        TRY(buf_adds(b, "true, false or \"auto\""));
        break;
    case OPTION_INT:
        TRY(buf_addf(b, "%sa whole number in %s", o->flags & OPTION_SWITCH ? "true, false, " : "",
                     range));
        break;
    case OPTION_REAL:
        TRY(buf_addf(b, "a number in %s", range));
        break;
    case OPTION_SET:
        TRY(buf_adds(b, "a list of some of "));
        TRY(add_choices(b, o));
        break;
    case OPTION_PATHS:
        TRY(buf_adds(b, "a path or a list of paths, or of {\"path\", \"weight\"}"));
        break;
    case OPTION_TEXT:
    case OPTION_CHOICE:
    case OPTION_LOSS:
        TRY(buf_adds(b, o->choices || o->type == OPTION_LOSS ? "one of " : "a string"));
        TRY(add_choices(b, o));
        if (o->flags & OPTION_TREE) TRY(buf_adds(b, ", or an object"));
        break;
    }
    if (o->flags & OPTION_AUTO) TRY(buf_adds(b, ", or \"auto\""));
    if (o->flags & OPTION_NULL) TRY(buf_adds(b, ", or null"));
    return 0;
}

/* Shown form of a value in a message: "the string \"abc\"", "1.5", "a list". */
static void shown(char *out, size_t size, const json_t *v)
{
    char q[300];
    switch (json_typeof(v)) {
    case JSON_OBJECT:
        snprintf(out, size, "a section");
        break;
    case JSON_ARRAY:
        snprintf(out, size, "a list");
        break;
    case JSON_STRING:
        snprintf(out, size, "the string \"%s\"",
                 err_quote(q, sizeof q, json_string_value(v), json_string_length(v)));
        break;
    case JSON_INTEGER:
        snprintf(out, size, "%lld", (long long)json_integer_value(v));
        break;
    case JSON_REAL:
        snprintf(out, size, "%s", number_text(q, json_real_value(v)));
        break;
    case JSON_TRUE:
        snprintf(out, size, "true");
        break;
    case JSON_FALSE:
        snprintf(out, size, "false");
        break;
    case JSON_NULL:
        snprintf(out, size, "null");
        break;
    }
}

/* Would the text of a string be a fine value of this type without its quotes? */
static bool is_quoted_value(const struct option *o, const json_t *v)
{
    struct json_doc d = { 0 };
    bool yes = false;
    if (!json_is_string(v)) return false;
    if (json_doc_parse_any(&d, "", 1, json_string_value(v), json_string_length(v)) == 0) {
        const bool number = o->type == OPTION_INT || o->type == OPTION_REAL;
        yes = (number && json_is_number(d.root)) ||
              ((!number || o->flags & OPTION_SWITCH) && json_is_boolean(d.root));
    }
    json_doc_release(&d);
    return yes;
}

static int wrong_type(const struct option *o, const json_t *v, const struct loss_def *loss,
                      bool from_set)
{
    struct buf b = { 0 };
    char found[360], hint[64] = "";
    const int rc = option_expects(&b, o, loss);
    shown(found, sizeof found, v);
    if (is_quoted_value(o, v))
        snprintf(hint, sizeof hint, "; write it without quotes");
    else if (json_is_null(v) && !(o->flags & OPTION_NULL))
        snprintf(hint, sizeof hint, "; leave the key out for the default");
    else if (from_set && !json_is_string(v) && (o->type == OPTION_TEXT || o->type == OPTION_PATHS))
        snprintf(hint, sizeof hint, "; put quotes around it: '=\"...\"'");
    if (rc == 0) err_set(ERR_INPUT, "expected %s, found %s%s", b.data, found, hint);
    buf_release(&b);
    return rc < 0 ? rc : ERR_INPUT;
}

static int read_number(struct config *c, const struct option *o, const json_t *v,
                       const struct loss_def *loss)
{
    const bool whole = o->type == OPTION_INT;
    double x = json_number_value(v);
    int64_t n = json_is_integer(v) ? (int64_t)json_integer_value(v) : 0;
    char range[90], text[40];
    if (whole && json_is_real(v)) { /* 64.0 is a whole number too */
        if (x != floor(x)) return wrong_type(o, v, loss, false);
        n = fabs(x) < 9e15 ? (int64_t)x : x < 0 ? INT64_MIN : INT64_MAX;
    }
    /* 2^53 + 1 as a double is 2^53: whole numbers are compared as such */
    const double hi = max_of(o, loss);
    const bool low = whole                     ? n < (int64_t)o->min
                     : o->flags & OPTION_ABOVE ? !(x > o->min)
                                               : !(x >= o->min);
    const bool high = whole ? n > (int64_t)hi : o->flags & OPTION_BELOW ? !(x < hi) : !(x <= hi);
    if (low || high) {
        range_text(range, sizeof range, o, loss);
        if (json_is_integer(v))
            snprintf(text, sizeof text, "%lld", (long long)json_integer_value(v));
        return err_set(ERR_INPUT, "%s is outside %s",
                       json_is_integer(v) ? text : number_text(text, x), range);
    }
    if (whole)
        memcpy(field(c, o), &n, sizeof n);
    else
        memcpy(field(c, o), &x, sizeof x);
    return 0;
}

/* The value is a string that names no choice (or a refused one). */
static int wrong_choice(const struct option *o, const char *text, size_t len)
{
    const char *names[32], *near;
    char q[300];
    size_t n = 0;
    struct buf b = { 0 };
    for (const struct choice *c = o->choices; c && c->name; c++)
        if (!c->refused && n < COUNT_OF(names)) names[n++] = c->name;
    for (size_t i = 0; o->type == OPTION_LOSS && i < loss_count && n < COUNT_OF(names); i++)
        names[n++] = loss_table[i].name;
    near = json_nearest(text, names, n);
    const int rc = add_choices(&b, o);
    err_quote(q, sizeof q, text, len);
    if (rc == 0 && near)
        err_set(ERR_INPUT, "\"%s\" is not one of %s; did you mean \"%s\"?", q, b.data, near);
    else if (rc == 0)
        err_set(ERR_INPUT, "\"%s\" is not one of %s", q, b.data);
    buf_release(&b);
    return rc < 0 ? rc : ERR_INPUT;
}

static int read_choice(struct config *c, const struct option *o, const char *text, size_t len)
{
    for (const struct choice *k = o->choices; k->name; k++) {
        if (strcmp(k->name, text) != 0) continue;
        if (k->refused)
            return err_set(ERR_INPUT, "\"%s\" is not in this version: %s", text, k->refused);
        if (o->type == OPTION_CHOICE) memcpy(field(c, o), &k->value, sizeof k->value);
        return 0;
    }
    return wrong_choice(o, text, len);
}

static int read_text(struct config *c, const struct option *o, const json_t *v)
{
    const char *text = json_string_value(v);
    const size_t len = json_string_length(v);
    char **dst = field(c, o);
    if (len == 0 && !(o->flags & OPTION_EMPTY)) return err_set(ERR_INPUT, "the text is empty");
    if (memchr(text, 0, len)) return err_set(ERR_INPUT, "the text holds a NUL character");
    if (o->type == OPTION_TEXT && o->choices) TRY(read_choice(c, o, text, len));
    if (o->type == OPTION_LOSS && !loss_find(text)) return wrong_choice(o, text, len);
    free(*dst);
    return mem_strndup(dst, text, len);
}

static int read_tree(struct config *c, const struct option *o, const json_t *v)
{
    struct buf b = { 0 };
    char **dst = field(c, o);
    int rc = json_dump(&b, v, 0);
    if (rc == 0) {
        free(*dst);
        rc = mem_strdup(dst, b.data);
    }
    buf_release(&b);
    return rc;
}

static const double WEIGHT_MAX = 1000;

/* {"path": "...", "weight": 0.5}; *path: the string in it. */
static int read_weighted(struct strlist *dst, int64_t n, size_t i, const json_t *e,
                         const json_t **path)
{
    static const char form[] = "expected a path or {\"path\": \"...\", \"weight\": 0.5}";
    const json_t *w = json_object_get(e, "weight");
    *path = json_object_get(e, "path");
    if (!*path || json_object_size(e) != (w ? 2 : 1)) return err_set(ERR_INPUT, "%s", form);
    if (!w) return 0;
    const double x = json_number_value(w);
    if (!json_is_number(w) || !(x > 0 && x <= WEIGHT_MAX))
        return err_set(ERR_INPUT, "the weight is not a number in (0, %g]; %s", WEIGHT_MAX, form);
    if (!dst->weight) {
        TRY(MEM_NEW(&dst->weight, n));
        for (int64_t k = 0; k < n; k++)
            dst->weight[k] = 1;
    }
    dst->weight[i] = x;
    return 0;
}

static int read_paths(struct config *c, const struct option *o, const json_t *v, bool from_set,
                      int64_t *element)
{
    struct strlist *dst = field(c, o);
    const size_t n = json_is_array(v) ? json_array_size(v) : 1;
    if (!json_is_array(v) && !json_is_string(v)) return wrong_type(o, v, NULL, from_set);
    if (n == 0) return err_set(ERR_INPUT, "the list is empty");
    if (n > INT32_MAX) return err_set(ERR_INPUT, "the list is too long");
    option_clear(c, o);
    TRY(MEM_NEW(&dst->item, (int64_t)n));
    for (size_t i = 0; i < n; i++) {
        const json_t *e = json_is_array(v) ? json_array_get(v, i) : v;
        char found[360];
        if (json_is_array(v)) *element = (int64_t)i;
        if (json_is_object(e)) TRY(read_weighted(dst, (int64_t)n, i, e, &e));
        if (!json_is_string(e)) {
            shown(found, sizeof found, e);
            return err_set(ERR_INPUT, "expected a path, found %s", found);
        }
        if (json_string_length(e) == 0) return err_set(ERR_INPUT, "the path is empty");
        if (memchr(json_string_value(e), 0, json_string_length(e)))
            return err_set(ERR_INPUT, "the path holds a NUL character");
        TRY(mem_strndup(&dst->item[i], json_string_value(e), json_string_length(e)));
        dst->n = (int32_t)i + 1;
    }
    *element = -1;
    return 0;
}

static int read_set(struct config *c, const struct option *o, const json_t *v, int64_t *element)
{
    int32_t all = 0;
    if (json_array_size(v) == 0) return err_set(ERR_INPUT, "the list is empty");
    for (size_t i = 0; i < json_array_size(v); i++) {
        const json_t *e = json_array_get(v, i);
        const char *text = json_string_value(e);
        const struct choice *k = o->choices;
        char found[360];
        *element = (int64_t)i;
        shown(found, sizeof found, e);
        if (!text) return err_set(ERR_INPUT, "expected a name, found %s", found);
        while (k->name && strcmp(k->name, text) != 0)
            k++;
        if (!k->name) return wrong_choice(o, text, json_string_length(e));
        if (all & k->value) return err_set(ERR_INPUT, "\"%s\" stands there twice", k->name);
        all |= k->value;
    }
    *element = -1;
    memcpy(field(c, o), &all, sizeof all);
    return 0;
}

static int read_flag(struct config *c, const struct option *o, const json_t *v)
{
    const bool yes = json_is_true(v);
    const int32_t tri = yes;
    if (o->type == OPTION_BOOL)
        memcpy(field(c, o), &yes, sizeof yes);
    else if (o->type == OPTION_INT)
        memcpy(field(c, o), &(int64_t){ yes ? (int64_t)o->max : 0 }, sizeof(int64_t));
    else
        memcpy(field(c, o), &tri, sizeof tri);
    return 0;
}

int option_read(struct config *c, const struct option *o, const json_t *value,
                const struct loss_def *loss, bool from_set, int64_t *element)
{
    const bool is_auto = json_is_string(value) && strcmp(json_string_value(value), "auto") == 0;
    *element = -1;
    if (json_is_null(value) && (o->flags & OPTION_NULL)) {
        option_clear(c, o);
        return 0;
    }
    switch (o->type) {
    case OPTION_BOOL:
    case OPTION_TRI:
        if (json_is_boolean(value)) return read_flag(c, o, value);
        if (o->type == OPTION_TRI && is_auto) {
            memcpy(field(c, o), &(int32_t){ -1 }, sizeof(int32_t));
            return 0;
        }
        break;
    case OPTION_INT:
    case OPTION_REAL:
        if (json_is_number(value)) return read_number(c, o, value, loss);
        if ((o->flags & OPTION_SWITCH) && json_is_boolean(value)) return read_flag(c, o, value);
        if (!(o->flags & OPTION_AUTO) || !is_auto) break;
        if (o->type == OPTION_INT)
            memcpy(field(c, o), &(int64_t){ CONFIG_AUTO }, sizeof(int64_t));
        else
            memcpy(field(c, o), &(double){ CONFIG_AUTO }, sizeof(double));
        return 0;
    case OPTION_CHOICE:
        if (json_is_string(value))
            return read_choice(c, o, json_string_value(value), json_string_length(value));
        break;
    case OPTION_TEXT:
    case OPTION_LOSS:
        if (json_is_string(value)) return read_text(c, o, value);
        if ((o->flags & OPTION_TREE) && json_object_size(value) > 0) return read_tree(c, o, value);
        break;
    case OPTION_SET:
        if (json_is_array(value)) return read_set(c, o, value, element);
        break;
    case OPTION_PATHS:
        return read_paths(c, o, value, from_set, element);
    }
    return wrong_type(o, value, loss, from_set);
}

void option_clear(struct config *c, const struct option *o)
{
    if (o->type == OPTION_TEXT || o->type == OPTION_LOSS) {
        char **text = field(c, o);
        free(*text);
        *text = NULL;
    } else if (o->type == OPTION_PATHS) {
        struct strlist *list = field(c, o);
        for (int32_t i = 0; list->item && i < list->n; i++)
            free(list->item[i]);
        free(list->item);
        free(list->weight);
        memset(list, 0, sizeof *list);
    } else if (o->type == OPTION_INT || o->type == OPTION_REAL) {
        memset(field(c, o), 0, sizeof(int64_t));
    }
}

static json_t *paths_value(const struct strlist *list)
{
    if (list->n == 0) return json_null();
    if (list->n == 1 && !list->weight) return json_string(list->item[0]);
    json_t *a = json_array();
    for (int32_t i = 0; a && i < list->n; i++) {
        json_t *e = list->weight && list->weight[i] != 1
                        ? json_pack("{s:s, s:f}", "path", list->item[i], "weight", list->weight[i])
                        : json_string(list->item[i]);
        if (json_array_append_new(a, e) == 0) continue;
        json_decref(a);
        return NULL;
    }
    return a;
}

static json_t *set_of_names(const struct option *o, int32_t bits)
{
    json_t *a = json_array();
    for (const struct choice *k = o->choices; a && k->name; k++) {
        if (!(bits & k->value) || json_array_append_new(a, json_string(k->name)) == 0) continue;
        json_decref(a);
        return NULL;
    }
    return a;
}

json_t *option_value(const struct config *c, const struct option *o)
{
    const void *f = field(c, o);
    int32_t word = 0;
    int64_t n;
    double x;
    switch (o->type) {
    case OPTION_BOOL:
        return json_boolean(*(const bool *)f);
    case OPTION_TRI:
        memcpy(&word, f, sizeof word);
        return word < 0 ? json_string("auto") : json_boolean(word);
    case OPTION_INT:
        memcpy(&n, f, sizeof n);
        if ((o->flags & OPTION_AUTO) && n == CONFIG_AUTO) return json_string("auto");
        if ((o->flags & OPTION_SWITCH) && (n == 0 || n == (int64_t)o->max)) return json_boolean(n);
        return (o->flags & OPTION_NULL) && n == 0 ? json_null() : json_integer(n);
    case OPTION_REAL:
        memcpy(&x, f, sizeof x);
        if ((o->flags & OPTION_AUTO) && x == CONFIG_AUTO) return json_string("auto");
        return (o->flags & OPTION_NULL) && x == 0 ? json_null() : json_real(x);
    case OPTION_CHOICE:
        memcpy(&word, f, sizeof word);
        for (const struct choice *k = o->choices; k->name; k++)
            if (k->value == word) return json_string(k->name);
        return NULL;
    case OPTION_TEXT:
    case OPTION_LOSS:
        if ((o->flags & OPTION_TREE) && **(char *const *)f == '{')
            return json_loads(*(char *const *)f, 0, NULL);
        return *(char *const *)f ? json_string(*(char *const *)f) : json_null();
    case OPTION_SET:
        memcpy(&word, f, sizeof word);
        return set_of_names(o, word);
    case OPTION_PATHS:
        return paths_value(f);
    }
    return NULL;
}
