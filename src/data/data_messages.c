/* SPDX-License-Identifier: MIT */
#include "data_rows.h"
#include <stdio.h>
#include <string.h>

int place_err(const struct place *p, const char *pointer, const char *fmt, ...)
{
    char at[POINTER_MAX], text[512];
    int64_t line = 0, col = 0;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    snprintf(at, sizeof at, "%s", pointer);
    while (p->doc) {
        char *slash = strrchr(at, '/');
        json_doc_where(p->doc, at, &line, &col);
        if (line > 0 || !slash) break;
        *slash = 0;
    }
    if (line <= 0) {
        line = p->line;
        col = 0;
    }
    return err_at(ERR_INPUT, p->file, line, col, "%s", text);
}

const char *json_type_name(const json_t *v)
{
    switch (json_typeof(v)) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "a list";
    case JSON_STRING:
        return "a string";
    case JSON_INTEGER:
    case JSON_REAL:
        return "a number";
    case JSON_TRUE:
    case JSON_FALSE:
        return "a boolean";
    default:
        return "null";
    }
}

const json_t *row_member(const json_t *row, const char *key)
{
    const json_t *v = json_object_get(row, key);
    return json_is_null(v) ? NULL : v;
}

int text_read(struct text *t, const json_t *v, const char *pointer, const struct place *p)
{
    t->s = json_string_value(v);
    t->len = json_string_length(v);
    snprintf(t->at, sizeof t->at, "%s", pointer);
    if (memchr(t->s, 0, t->len))
        return place_err(p, pointer, "the text holds a NUL character (\\u0000)");
    return 0;
}

/* The role that a name stands for; NULL: none. "human" and "gpt" are ShareGPT's, beside "from" only. */
static const char *role_known(const char *name, const char *key)
{
    static const char *const same[] = { "system", "user", "assistant" };
    for (size_t i = 0; i < COUNT_OF(same); i++)
        if (!strcmp(same[i], name)) return same[i];
    if (strcmp(key, "from")) return NULL;
    return !strcmp(name, "human") ? "user" : !strcmp(name, "gpt") ? "assistant" : NULL;
}

static bool has_tool_call(const json_t *m)
{
    const json_t *calls = row_member(m, "tool_calls");
    return (calls && !(json_is_array(calls) && json_array_size(calls) == 0)) ||
           row_member(m, "function_call");
}

static int role_check(const json_t *v, const char *key, const char *pointer, const struct place *p)
{
    static const char *const tools[] = { "tool", "function", "ipython", "observation",
                                         "function_call" };
    const char *role = json_string_value(v);
    char quoted[256];
    if (strlen(role) == json_string_length(v) && role_known(role, key)) return 0;
    err_quote(quoted, sizeof quoted, role, json_string_length(v));
    for (size_t i = 0; i < COUNT_OF(tools); i++)
        if (!strcmp(tools[i], role))
            return place_err(p, pointer, "tool calls are not supported: a message of role \"%s\"",
                             quoted);
    return place_err(p, pointer,
                     "unknown role \"%s\"; expected \"system\", \"user\" or \"assistant\"", quoted);
}

size_t messages_count(const json_t *list)
{
    return json_is_object(list) ? 1 : json_array_size(list);
}

static const json_t *item_of(const json_t *list, size_t i)
{
    return json_is_object(list) ? list : json_array_get(list, i);
}

/* {"role", "content"} or ShareGPT's {"from", "value"}. */
static const char *content_key(const json_t *m)
{
    return row_member(m, "role") || !row_member(m, "from") ? "content" : "value";
}

static const char *role_key(const json_t *m)
{
    return row_member(m, "role") || !row_member(m, "from") ? "role" : "from";
}

void messages_pointer(char at[POINTER_MAX], const json_t *list, const char *pointer, size_t i,
                      bool content)
{
    const json_t *m = item_of(list, i);
    const char *key = content ? content_key(m) : role_key(m);
    if (json_is_object(list))
        snprintf(at, POINTER_MAX, "%s/%s", pointer, key);
    else
        snprintf(at, POINTER_MAX, "%s/%zu/%s", pointer, i, key);
}

static int message_check(const json_t *list, size_t i, const char *pointer, const struct place *p)
{
    char at[POINTER_MAX];
    struct text content;
    const json_t *m = item_of(list, i);
    if (json_is_object(list))
        snprintf(at, sizeof at, "%s", pointer);
    else
        snprintf(at, sizeof at, "%s/%zu", pointer, i);
    if (!json_is_object(m))
        return place_err(p, at, "a message is an object {\"role\", \"content\"}; found %s",
                         json_type_name(m));
    if (has_tool_call(m))
        return place_err(p, at, "tool calls are not supported: a message with tool_calls");
    const json_t *role = row_member(m, role_key(m)), *text = row_member(m, content_key(m));
    if (!role || !text)
        return place_err(p, at,
                         "a message has no \"%s\"; expected {\"role\", \"content\"} or {\"from\", "
                         "\"value\"}",
                         role ? content_key(m) : "role");
    messages_pointer(at, list, pointer, i, false);
    if (!json_is_string(role))
        return place_err(p, at, "a role is a string; found %s", json_type_name(role));
    TRY(role_check(role, role_key(m), at, p));
    messages_pointer(at, list, pointer, i, true);
    if (!json_is_string(text))
        return place_err(p, at, "the content of a message must be a string; found %s",
                         json_type_name(text));
    return text_read(&content, text, at, p);
}

int messages_check(const json_t *list, const char *pointer, const struct place *p)
{
    const size_t n = messages_count(list);
    if (n == 0)
        return place_err(p, pointer, "an empty list; expected messages {\"role\", \"content\"}");
    for (size_t i = 0; i < n; i++)
        TRY(message_check(list, i, pointer, p));
    return 0;
}

struct message messages_at(const json_t *list, size_t i)
{
    const json_t *m = item_of(list, i), *text = json_object_get(m, content_key(m));
    const char *key = role_key(m);
    return (struct message){ role_known(json_string_value(json_object_get(m, key)), key),
                             json_string_value(text), json_string_length(text) };
}

size_t messages_common(const json_t *a, const json_t *b, size_t max)
{
    size_t n = 0;
    for (; n < max; n++) {
        const struct message x = messages_at(a, n), y = messages_at(b, n);
        if (strcmp(x.role, y.role) || x.content_len != y.content_len ||
            memcmp(x.content, y.content, x.content_len))
            break;
    }
    return n;
}

int messages_response(struct text *t, const json_t *list, const char *pointer,
                      const struct place *p)
{
    char at[POINTER_MAX];
    const size_t last = messages_count(list) - 1;
    const struct message m = messages_at(list, last);
    const json_t *o = item_of(list, last);
    if (strcmp(m.role, "assistant")) {
        messages_pointer(at, list, pointer, last, false);
        return place_err(p, at,
                         "the last message of \"%s\" must be the assistant's; found role \"%s\"",
                         pointer + 1, m.role);
    }
    messages_pointer(at, list, pointer, last, true);
    return text_read(t, json_object_get(o, content_key(o)), at, p);
}
