/* SPDX-License-Identifier: MIT */
#include "template_impl.h"
#include "tokenizer_text.h"
#include "../io/json.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const role_names[ROLES] = { "system", "user", "assistant" };

static int piece_err(const char *key, const char *what)
{
    return err_set(ERR_INPUT, "data.chat_template.%s: %s; expected %s", key, what,
                   TEMPLATE_EXAMPLE);
}

/* Plain text of a member; absent and null: NULL. */
static int piece_text(char **out, const json_t *v, const char *key)
{
    if (!v || json_is_null(v)) return 0;
    if (!json_is_string(v) || memchr(json_string_value(v), 0, json_string_length(v)))
        return piece_err(key, "is not a text");
    return mem_strdup(out, json_string_value(v));
}

static int piece_flag(bool *out, const json_t *v, const char *key)
{
    if (!v) return 0;
    if (!json_is_boolean(v)) return piece_err(key, "is neither true nor false");
    *out = json_is_true(v);
    return 0;
}

static int read_role(struct template_style *s, enum template_role role, const json_t *v)
{
    const char *key = role_names[role];
    if (!v || json_is_null(v)) return role == ROLE_SYSTEM ? 0 : piece_err(key, "is missing");
    if (!json_is_array(v) || json_array_size(v) != 2 || !json_is_string(json_array_get(v, 0)) ||
        !json_is_string(json_array_get(v, 1)))
        return piece_err(key, "is not [\"before\", \"after\"]");
    TRY(piece_text(&s->before[role], json_array_get(v, 0), key));
    return piece_text(&s->after[role], json_array_get(v, 1), key);
}

int template_pieces_end(struct template_style *s, const struct tokenizer *t)
{
    const char *after = s->after[ROLE_ASSISTANT], *name;
    size_t at;
    if (!s->end) {
        if (!tokenizer_find_special(t, after, strlen(after), &at, &name) || at > 0)
            return piece_err("assistant",
                             "the text after the response does not begin with an added "
                             "token, so that nothing ends a response");
        return mem_strdup(&s->end, name);
    }
    if (tokenizer_find_special(t, s->end, strlen(s->end), &at, &name) && at == 0 &&
        !strcmp(name, s->end))
        return 0;
    return piece_err("end", "is not an added token of the tokenizer");
}

static int check_known(const json_t *o)
{
    static const char *const known[] = { "system", "user", "assistant",      "generation", "end",
                                         "bos",    "trim", "default_system", "note" };
    const char *key;
    json_t *v, *object;
    memcpy(&object, &o, sizeof object); /* jansson's iterator takes no const */
    json_object_foreach(object, key, v)
    {
        bool ok = false;
        for (size_t i = 0; i < COUNT_OF(known); i++)
            ok = ok || !strcmp(key, known[i]);
        if (!ok) return piece_err(key, "unknown key");
    }
    return 0;
}

/* All that can be said without a tokenizer. */
static int read_members(struct template_style *s, const json_t *o)
{
    bool trim = false;
    TRY(check_known(o));
    for (int r = 0; r < ROLES; r++)
        TRY(read_role(s, (enum template_role)r, json_object_get(o, role_names[r])));
    TRY(piece_text(&s->generation, json_object_get(o, "generation"), "generation"));
    TRY(piece_text(&s->end, json_object_get(o, "end"), "end"));
    TRY(piece_text(&s->default_system, json_object_get(o, "default_system"), "default_system"));
    TRY(piece_flag(&s->bos, json_object_get(o, "bos"), "bos"));
    TRY(piece_flag(&trim, json_object_get(o, "trim"), "trim"));
    for (int r = 0; r < ROLES; r++)
        s->trims[r] = trim;
    if (!s->generation) TRY(mem_strdup(&s->generation, s->before[ROLE_ASSISTANT]));
    if (s->default_system && !s->before[ROLE_SYSTEM])
        return piece_err("default_system", "needs \"system\"");
    return 0;
}

int template_pieces_check(const char *json)
{
    struct template_style s = { 0 };
    struct json_doc d = { 0 };
    int rc = json_doc_parse(&d, "data.chat_template", 1, json, strlen(json));
    if (rc == 0) rc = read_members(&s, d.root);
    template_style_release(&s);
    json_doc_release(&d);
    return rc;
}

int template_pieces_read(struct template_style *s, const char *json, const struct tokenizer *t)
{
    struct json_doc d = { 0 };
    TRY(json_doc_parse(&d, "data.chat_template", 1, json, strlen(json)));
    s->kind = TEMPLATE_PIECES;
    s->bos = tokenizer_adds_bos(t);
    int rc = read_members(s, d.root);
    if (rc == 0) rc = template_pieces_end(s, t);
    json_doc_release(&d);
    return rc;
}

/* before, EOS, after */
static int with_eos(char **out, const char *before, const char *eos, const char *after)
{
    return mem_asprintf(out, "%s%s%s", before, eos, after);
}

int template_pieces_named(struct template_style *s, const struct tokenizer *t)
{
    const char *eos = tokenizer_eos(t) < 0 ? NULL : tokenizer_text(t, tokenizer_eos(t));
    if (!eos)
        return err_set(ERR_INPUT,
                       "the chat template ends turns with EOS, and the tokenizer has none; set "
                       "\"eos_token\" in the model's tokenizer_config.json");
    if (s->kind == TEMPLATE_ZEPHYR) {
        static const char *const before[ROLES] = { "<|system|>\n", "<|user|>\n",
                                                   "<|assistant|>\n" };
        for (int r = 0; r < ROLES; r++) {
            TRY(mem_strdup(&s->before[r], before[r]));
            TRY(with_eos(&s->after[r], "", eos, "\n"));
        }
        return mem_strdup(&s->generation, before[ROLE_ASSISTANT]);
    }
    TRY(mem_strdup(&s->before[ROLE_SYSTEM], ""));
    TRY(mem_strdup(&s->after[ROLE_SYSTEM], "\n\n"));
    TRY(mem_strdup(&s->before[ROLE_USER], "### Instruction:\n"));
    TRY(mem_strdup(&s->after[ROLE_USER], "\n\n"));
    TRY(mem_strdup(&s->before[ROLE_ASSISTANT], "### Response:\n"));
    TRY(with_eos(&s->after[ROLE_ASSISTANT], "", eos, "\n\n"));
    if (!s->default_system)
        TRY(mem_strdup(&s->default_system,
                       "Below is an instruction that describes a task. Write a response that "
                       "appropriately completes the request."));
    return mem_strdup(&s->generation, s->before[ROLE_ASSISTANT]);
}

struct content {
    const char *s; /* NULL: none */
    size_t len;
};

static int turn(const struct chat_template *c, struct emitter *e, enum template_role role,
                struct content system, struct content text)
{
    const struct template_style *s = &c->style;
    if (!s->before[role])
        return err_set(ERR_INPUT, "the chat template has no place for a message of role \"%s\"",
                       role_names[role]);
    if (text.len == 0 && s->skips_empty[role]) return 0;
    if (s->trims[role]) text_strip(&text.s, &text.len);
    TRY(emit_own(e, s->before[role]));
    if (system.s) {
        TRY(emit_text(e, system.s, system.len));
        TRY(emit_own(e, s->system_joint));
    }
    TRY(emit_text(e, text.s, text.len));
    return emit_own(e, s->after[role]);
}

static enum template_role role_of(const struct message *m)
{
    return role_is(m, "system") ? ROLE_SYSTEM : role_is(m, "user") ? ROLE_USER : ROLE_ASSISTANT;
}

/* Questions and answers in turn, from message i on. */
static int check_turns(const struct message *msg, int64_t i, int64_t n)
{
    for (int64_t k = i; k < n; k++)
        if (!role_is(&msg[k], (k - i) % 2 == 0 ? "user" : "assistant"))
            return err_set(ERR_INPUT,
                           "the chat template takes questions and answers in turn; message %lld is "
                           "of role \"%s\"",
                           (long long)k + 1, msg[k].role);
    return 0;
}

int template_pieces(const struct chat_template *c, struct emitter *e, const struct message *msg,
                    int64_t n, bool generation)
{
    const struct template_style *s = &c->style;
    const char *given = c->system ? c->system : s->default_system;
    const bool own = role_is(&msg[0], "system"), inside = s->system_place != SYSTEM_TURN;
    const struct content none = { NULL, 0 };
    struct content system = { given, given ? strlen(given) : 0 };
    const int64_t first = own;
    if (own) system = (struct content){ msg[0].content, msg[0].content_len };
    if (system.s && !inside) TRY(turn(c, e, ROLE_SYSTEM, none, system));
    if (s->alternates) TRY(check_turns(msg, first, n));
    for (int64_t i = first; i < n; i++) {
        const bool here = s->system_place == SYSTEM_LAST_MESSAGE ? i == n - 1 : i == first;
        const enum template_role role = role_of(&msg[i]);
        TRY(turn(c, e, role, inside && here && role == ROLE_USER ? system : none,
                 (struct content){ msg[i].content, msg[i].content_len }));
    }
    if (generation) return emit_own(e, s->generation);
    return s->tail ? emit_own(e, s->tail) : 0;
}

/* One question: BOS, the system prompt inside the first one, all of it without white space at its ends. */
static int llama2_question(const struct chat_template *c, struct emitter *e, const char *system,
                           size_t system_len, const struct message *m)
{
    struct buf b = { 0 };
    int rc = 0;
    if (system) {
        TRY_OUT(buf_adds(&b, "<<SYS>>\n"));
        TRY_OUT(buf_add(&b, system, system_len));
        TRY_OUT(buf_adds(&b, "\n<</SYS>>\n\n"));
    }
    TRY_OUT(buf_add(&b, m->content, m->content_len));
    const char *s = b.data ? b.data : "";
    size_t len = b.len;
    text_strip(&s, &len);
    if (c->style.bos && tokenizer_bos(c->tok) >= 0) TRY_OUT(emit_id(e, tokenizer_bos(c->tok)));
    TRY_OUT(emit_text(e, "[INST] ", strlen("[INST] ")));
    TRY_OUT(emit_text(e, s, len));
    TRY_OUT(emit_text(e, " [/INST]", strlen(" [/INST]")));
out:
    buf_release(&b);
    return rc;
}

int template_llama2(const struct chat_template *c, struct emitter *e, const struct message *msg,
                    int64_t n, bool generation)
{
    const bool own = role_is(&msg[0], "system");
    const char *system = own ? msg[0].content : c->system;
    const size_t system_len = own ? msg[0].content_len : system ? strlen(system) : 0;
    (void)generation; /* [/INST] is all that asks for an answer */
    if (own && n == 1)
        return err_set(ERR_INPUT,
                       "llama2 puts the system prompt into the first question, and there is none");
    for (int64_t i = own; i < n; i++) {
        const bool user = (i - own) % 2 == 0;
        if (!role_is(&msg[i], user ? "user" : "assistant"))
            return err_set(ERR_INPUT,
                           "llama2 takes questions and answers in turn; message %lld is of role "
                           "\"%s\"",
                           (long long)i + 1, msg[i].role);
        if (user) {
            TRY(llama2_question(c, e, i == own ? system : NULL, system_len, &msg[i]));
            continue;
        }
        const char *s = msg[i].content;
        size_t len = msg[i].content_len;
        text_strip(&s, &len);
        TRY(emit_text(e, " ", 1));
        TRY(emit_text(e, s, len));
        TRY(emit_text(e, " ", 1));
        TRY(emit_id(e, c->end));
    }
    return 0;
}
