/* SPDX-License-Identifier: MIT */
#include "data_rows.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define HH_MARKER "\n\nAssistant:"
#define PAIR_FORM "{\"prompt\", \"chosen\", \"rejected\"}"

void form_release(struct form *f)
{
    free(f->msg);
    memset(f, 0, sizeof *f);
}

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

static const char *type_name(const json_t *v)
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

/* A member; null counts as absent, since tables are exported with null in their empty columns. */
static const json_t *member(const json_t *row, const char *key)
{
    const json_t *v = json_object_get(row, key);
    return json_is_null(v) ? NULL : v;
}

static int text_read(struct text *t, const json_t *v, const char *pointer, const struct place *p)
{
    t->s = json_string_value(v);
    t->len = json_string_length(v);
    snprintf(t->at, sizeof t->at, "%s", pointer);
    if (memchr(t->s, 0, t->len))
        return place_err(p, pointer, "the text holds a NUL character (\\u0000)");
    return 0;
}

/* --- messages
 * --------------------------------------------------------------------------------------------------
 */

static bool has_tool_call(const json_t *m)
{
    const json_t *calls = member(m, "tool_calls");
    return (calls && !(json_is_array(calls) && json_array_size(calls) == 0)) ||
           member(m, "function_call");
}

static int role_check(const char *role, size_t len, const char *pointer, const struct place *p)
{
    static const char *const known[] = { "system", "user", "assistant" };
    static const char *const tools[] = { "tool", "function", "ipython" };
    char quoted[256];
    for (size_t i = 0; i < COUNT_OF(known); i++)
        if (strlen(known[i]) == len && !memcmp(known[i], role, len)) return 0;
    err_quote(quoted, sizeof quoted, role, len);
    for (size_t i = 0; i < COUNT_OF(tools); i++)
        if (strlen(tools[i]) == len && !memcmp(tools[i], role, len))
            return place_err(p, pointer, "tool calls are not supported: a message of role \"%s\"",
                             quoted);
    return place_err(p, pointer,
                     "unknown role \"%s\"; expected \"system\", \"user\" or \"assistant\"", quoted);
}

static int message_check(const json_t *m, const char *pointer, const struct place *p)
{
    char at[POINTER_MAX + 16];
    struct text content;
    if (!json_is_object(m))
        return place_err(p, pointer, "a message is an object {\"role\", \"content\"}; found %s",
                         type_name(m));
    if (has_tool_call(m))
        return place_err(p, pointer, "tool calls are not supported: a message with tool_calls");
    const json_t *role = member(m, "role"), *text = member(m, "content");
    if (!role || !text) {
        const char *hint =
            member(m, "from") ? "; \"from\" and \"value\" must be renamed to these" : "";
        return place_err(p, pointer, "a message has no \"%s\"; expected {\"role\", \"content\"}%s",
                         role ? "content" : "role", hint);
    }
    snprintf(at, sizeof at, "%s/role", pointer);
    if (!json_is_string(role))
        return place_err(p, at, "a role is a string; found %s", type_name(role));
    TRY(role_check(json_string_value(role), json_string_length(role), at, p));
    snprintf(at, sizeof at, "%s/content", pointer);
    if (!json_is_string(text))
        return place_err(p, at, "the content of a message must be a string; found %s",
                         type_name(text));
    return text_read(&content, text, at, p);
}

/* Every message of a list, which must not be empty. */
static int list_check(const json_t *list, const char *pointer, const struct place *p)
{
    char at[POINTER_MAX];
    if (json_array_size(list) == 0)
        return place_err(p, pointer, "an empty list; expected messages {\"role\", \"content\"}");
    for (size_t i = 0; i < json_array_size(list); i++) {
        snprintf(at, sizeof at, "%s/%zu", pointer, i);
        TRY(message_check(json_array_get(list, i), at, p));
    }
    return 0;
}

static struct message message_at(const json_t *list, size_t i)
{
    const json_t *m = json_array_get(list, i), *text = json_object_get(m, "content");
    return (struct message){ json_string_value(json_object_get(m, "role")), json_string_value(text),
                             json_string_length(text) };
}

/* How many leading messages two lists share, at most `max`. */
static size_t list_common(const json_t *a, const json_t *b, size_t max)
{
    size_t n = 0;
    for (; n < max; n++) {
        const struct message x = message_at(a, n), y = message_at(b, n);
        if (strcmp(x.role, y.role) || x.content_len != y.content_len ||
            memcmp(x.content, y.content, x.content_len))
            break;
    }
    return n;
}

/* The last message of a checked list as a response. */
static int list_response(struct text *t, const json_t *list, const char *key, const struct place *p)
{
    char at[POINTER_MAX];
    const size_t last = json_array_size(list) - 1;
    const struct message m = message_at(list, last);
    if (strcmp(m.role, "assistant")) {
        snprintf(at, sizeof at, "/%s/%zu/role", key, last);
        return place_err(p, at,
                         "the last message of \"%s\" must be the assistant's; found role \"%s\"",
                         key, m.role);
    }
    snprintf(at, sizeof at, "/%s/%zu/content", key, last);
    return text_read(t, json_object_get(json_array_get(list, last), "content"), at, p);
}

/* --- prompts
 * ---------------------------------------------------------------------------------------------------
 */

static int prompt_set_list(struct form *f, const json_t *list, size_t n, const char *key)
{
    TRY(MEM_GROW(&f->msg, &f->cap_msg, (int64_t)n));
    for (size_t i = 0; i < n; i++)
        f->msg[i] = message_at(list, i);
    f->n_msg = (int64_t)n;
    f->conversation = true;
    snprintf(f->prompt.at, sizeof f->prompt.at, "/%s", key);
    return 0;
}

/* f->prompt is set; as a turn it becomes the one message of a conversation. */
static int prompt_as_turn(struct form *f, bool turn)
{
    f->conversation = turn;
    if (!turn) return 0;
    TRY(MEM_GROW(&f->msg, &f->cap_msg, 1));
    f->msg[0] = (struct message){ "user", f->prompt.s, f->prompt.len };
    f->n_msg = 1;
    return 0;
}

static int prompt_read(struct form *f, const json_t *prompt, bool turn, const struct place *p)
{
    if (json_is_array(prompt)) {
        TRY(list_check(prompt, "/prompt", p));
        return prompt_set_list(f, prompt, json_array_size(prompt), "prompt");
    }
    if (!json_is_string(prompt))
        return place_err(p, "/prompt",
                         "\"prompt\" must be a string or a list of messages; found %s",
                         type_name(prompt));
    TRY(text_read(&f->prompt, prompt, "/prompt", p));
    return prompt_as_turn(f, turn);
}

/* --- forms
 * -----------------------------------------------------------------------------------------------------
 */

/* One row's parts: `chosen` under the name `key`; prompt and rejected may be NULL. */
struct parts {
    const json_t *prompt, *chosen, *rejected;
    const char *key;
    bool user;
};

/* hh-rlhf: both texts start with the prompt, which ends with the last marker of their common start.
 */
static int split_hh(struct form *f, bool user, const struct place *p)
{
    struct text *w = &f->chosen, *l = &f->rejected;
    const size_t mark = strlen(HH_MARKER);
    size_t n = 0, max = l->s ? MIN(w->len, l->len) : w->len;
    if (l->s)
        while (n < max && w->s[n] == l->s[n])
            n++;
    else
        n = max;
    while (n >= mark && memcmp(w->s + n - mark, HH_MARKER, mark))
        n--;
    if (n < mark)
        return place_err(p, w->at,
                         "no \"prompt\", and the responses' common start holds no "
                         "\"\\n\\nAssistant:\"; expected " PAIR_FORM
                         ", or both texts starting with the same dialogue");
    f->prompt = *w;
    f->prompt.len = n;
    w->s += n;
    w->len -= n;
    if (l->s) {
        l->s += n;
        l->len -= n;
    }
    return prompt_as_turn(f, user);
}

static int read_strings(struct form *f, const struct parts *q, const struct place *p)
{
    char at[POINTER_MAX];
    snprintf(at, sizeof at, "/%s", q->key);
    TRY(text_read(&f->chosen, q->chosen, at, p));
    if (q->rejected) TRY(text_read(&f->rejected, q->rejected, "/rejected", p));
    return q->prompt ? prompt_read(f, q->prompt, q->user, p) : split_hh(f, q->user, p);
}

/* A list beside a prompt list: the response alone, or the prompt's messages again and the response.
 */
static int check_after_prompt(const json_t *list, const json_t *prompt, const char *key,
                              const struct place *p)
{
    const size_t n = json_array_size(list), np = json_array_size(prompt);
    char at[POINTER_MAX];
    if (n == 1 || (n == np + 1 && list_common(list, prompt, np) == np)) return 0;
    snprintf(at, sizeof at, "/%s", key);
    return place_err(p, at,
                     "\"%s\" holds %zu messages; expected one of the assistant, or the prompt's "
                     "messages and one",
                     key, n);
}

/* Whole conversations: each list is the common start and one message. */
static int split_lists(struct form *f, const struct parts *q, const struct place *p)
{
    const size_t nw = json_array_size(q->chosen),
                 nl = q->rejected ? json_array_size(q->rejected) : nw;
    const size_t most = MIN(nw, nl) - 1;
    const size_t lead = q->rejected ? list_common(q->chosen, q->rejected, most) : most;
    char at[POINTER_MAX];
    bool asked = q->prompt == NULL;
    if (q->prompt && nw == 1 && nl == 1) return prompt_read(f, q->prompt, true, p);
    snprintf(at, sizeof at, "/%s", q->key);
    if (lead == 0)
        return place_err(p, at, "no \"prompt\", and no message that comes before the response%s",
                         q->rejected ? " in both lists" : "");
    if (nw != lead + 1 || nl != lead + 1)
        return place_err(p, at,
                         "the lists share their first %zu messages, then hold %zu and %zu; "
                         "expected one response each",
                         lead, nw - lead, nl - lead);
    for (size_t i = 0; i < lead; i++)
        asked = asked || !strcmp(message_at(q->chosen, i).role, "user");
    if (!asked)
        return place_err(p, at,
                         "\"prompt\" is a string and the lists hold no message of the user; "
                         "expected whole conversations or one response each");
    return prompt_set_list(f, q->chosen, lead, q->key);
}

static int read_lists(struct form *f, const struct parts *q, const struct place *p)
{
    char at[POINTER_MAX];
    snprintf(at, sizeof at, "/%s", q->key);
    TRY(list_check(q->chosen, at, p));
    TRY(list_response(&f->chosen, q->chosen, q->key, p));
    if (q->rejected) {
        TRY(list_check(q->rejected, "/rejected", p));
        TRY(list_response(&f->rejected, q->rejected, "rejected", p));
    }
    if (q->prompt && !json_is_string(q->prompt)) {
        TRY(prompt_read(f, q->prompt, true, p));
        TRY(check_after_prompt(q->chosen, q->prompt, q->key, p));
        return q->rejected ? check_after_prompt(q->rejected, q->prompt, "rejected", p) : 0;
    }
    if (q->prompt) { /* a string beside whole conversations is not used, but it must be text */
        struct text t;
        TRY(text_read(&t, q->prompt, "/prompt", p));
    }
    return split_lists(f, q, p);
}

static int read_parts(struct form *f, const struct parts *q, const struct place *p)
{
    char at[POINTER_MAX];
    snprintf(at, sizeof at, "/%s", q->key);
    if (!json_is_string(q->chosen) && !json_is_array(q->chosen))
        return place_err(p, at, "\"%s\" must be a string or a list of messages; found %s", q->key,
                         type_name(q->chosen));
    if (q->rejected && json_typeof(q->rejected) != json_typeof(q->chosen))
        return place_err(p, "/rejected",
                         "\"rejected\" is %s and \"chosen\" %s; expected the same type",
                         type_name(q->rejected), type_name(q->chosen));
    return json_is_string(q->chosen) ? read_strings(f, q, p) : read_lists(f, q, p);
}

static void form_clear(struct form *f)
{
    struct message *msg = f->msg;
    const int64_t cap = f->cap_msg;
    memset(f, 0, sizeof *f);
    f->msg = msg;
    f->cap_msg = cap;
}

static int read_sft(struct form *f, const json_t *row, bool user, const struct place *p)
{
    const json_t *completion = member(row, "completion"), *messages = member(row, "messages");
    if (completion) {
        const struct parts q = { member(row, "prompt"), completion, NULL, "completion", user };
        if (!q.prompt) return place_err(p, "", "missing key \"prompt\" beside \"completion\"");
        return read_parts(f, &q, p);
    }
    if (!messages)
        return place_err(p, "",
                         "no response to train on; expected {\"prompt\", \"completion\"}, "
                         "{\"messages\"} or a pair's " PAIR_FORM);
    if (!json_is_array(messages))
        return place_err(p, "/messages", "\"messages\" must be a list; found %s",
                         type_name(messages));
    const struct parts q = { NULL, messages, NULL, "messages", user };
    return read_parts(f, &q, p);
}

static int object_check(const json_t *row, const struct place *p)
{
    if (json_is_object(row)) return 0;
    return place_err(p, "", "a row is a JSON object such as " PAIR_FORM "; found %s",
                     type_name(row));
}

int form_read(struct form *f, const json_t *row, enum data_kind kind, bool user,
              const struct place *p)
{
    form_clear(f);
    TRY(object_check(row, p));
    const struct parts q = { member(row, "prompt"), member(row, "chosen"), member(row, "rejected"),
                             "chosen", user };
    if (kind == DATA_SFT && !q.chosen) return read_sft(f, row, user, p);
    if (!q.chosen || (kind == DATA_PAIRS && !q.rejected)) {
        const bool sft = member(row, "completion") || member(row, "messages");
        return place_err(
            p, "", "missing key \"%s\"; expected " PAIR_FORM "%s", q.chosen ? "rejected" : "chosen",
            sft && !q.chosen ? " (this row is for SFT: it has no rejected response)" : "");
    }
    f->has_rejected = kind == DATA_PAIRS;
    return read_parts(f, &q, p);
}

int form_read_prompt(struct form *f, const json_t *row, bool user, const struct place *p)
{
    form_clear(f);
    if (json_is_string(row)) {
        TRY(text_read(&f->prompt, row, "", p));
        return prompt_as_turn(f, user);
    }
    TRY(object_check(row, p));
    const json_t *prompt = member(row, "prompt"), *messages = member(row, "messages");
    const json_t *chosen = member(row, "chosen");
    if (prompt && !(json_is_string(prompt) && json_is_array(chosen)))
        return prompt_read(f, prompt, user, p);
    if (chosen) return form_read(f, row, DATA_SFT, user, p);
    if (!messages)
        return place_err(
            p, "",
            "missing key \"prompt\"; expected \"prompt\" (a string or messages) or \"messages\"");
    if (!json_is_array(messages))
        return place_err(p, "/messages", "\"messages\" must be a list; found %s",
                         type_name(messages));
    TRY(list_check(messages, "/messages", p));
    size_t n = json_array_size(messages);
    n -= !strcmp(message_at(messages, n - 1).role, "assistant");
    if (n == 0) return place_err(p, "/messages", "no message before the assistant's");
    return prompt_set_list(f, messages, n, "messages");
}
