/* SPDX-License-Identifier: MIT */
#include "template_impl.h"
#include "tokenizer_text.h"
#include <stdlib.h>
#include <string.h>

struct chat_template {
    const struct tokenizer *tok;
    struct template_style style;
    char *system; /* the user's system prompt, NULL: none */
    int32_t end;
};

static const char *const names[] = { "raw", "chatml", "llama3" };
static const char *const markers[][4] = {
    { NULL },
    { "<|im_end|>", "<|im_start|>", NULL },
    { "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", NULL },
};

/* A marker has to be one added token, or the model would read its letters. */
static int check_markers(struct chat_template *c, const char *dir)
{
    size_t at;
    const char *found;
    for (const char *const *m = markers[c->style.kind]; *m; m++) {
        if (tokenizer_find_special(c->tok, *m, strlen(*m), &at, &found) && at == 0 &&
            !strcmp(found, *m))
            continue;
        return err_set(
            ERR_INPUT,
            "%s: the chat template %s needs the token %s, which tokenizer.json does not add; set "
            "data.chat_template to \"raw\" or to the model's own",
            dir, template_name(c), *m);
    }
    c->end = c->style.kind == TEMPLATE_RAW ? tokenizer_eos(c->tok)
                                           : tokenizer_id(c->tok, markers[c->style.kind][0]);
    return 0;
}

static int style_by_name(struct template_style *s, const struct tokenizer *t, const char *name)
{
    for (size_t i = 0; i < COUNT_OF(names); i++) {
        if (strcmp(name, names[i]) != 0) continue;
        s->kind = (enum template_kind)i;
        s->trim = true;
        s->bos = s->kind == TEMPLATE_LLAMA3 || tokenizer_adds_bos(t);
        return 0;
    }
    return err_set(
        ERR_INPUT,
        "data.chat_template: \"%s\" is not known; set \"auto\", \"chatml\", \"llama3\" or \"raw\"",
        name);
}

int template_open(struct chat_template **out, const struct tokenizer *t, const char *dir,
                  const char *name, const char *system_prompt)
{
    struct chat_template *c = NULL;
    char *text = NULL, *path = NULL;
    int rc = 0;
    *out = NULL;
    TRY_OUT(MEM_NEW(&c, 1));
    c->tok = t;
    if (system_prompt) TRY_OUT(mem_strdup(&c->system, system_prompt));
    if (strcmp(name, "auto") == 0) {
        TRY_OUT(template_text_read(&text, &path, dir));
        c->style.bos = tokenizer_adds_bos(t);
        if (text) TRY_OUT(template_style_read(&c->style, text, path));
    } else {
        TRY_OUT(style_by_name(&c->style, t, name));
    }
    TRY_OUT(check_markers(c, dir));
    *out = c;
    c = NULL;
out:
    template_close(c);
    free(text);
    free(path);
    return rc;
}

void template_close(struct chat_template *c)
{
    if (!c) return;
    template_style_release(&c->style);
    free(c->system);
    free(c);
}

const char *template_name(const struct chat_template *c)
{
    return names[c->style.kind];
}

int32_t template_end(const struct chat_template *c, bool conversation)
{
    return conversation ? c->end : tokenizer_eos(c->tok);
}

/* Text is gathered until a marker comes and encoded as one run, as a tokenizer does with the rendered template. */
struct emitter {
    const struct tokenizer *tok;
    enum special_mode mode;
    struct buf run;
    bool started; /* something stands before the run */
    struct ids *out;
};

static int emit_flush(struct emitter *e)
{
    if (e->run.len == 0) return 0;
    TRY(tokenizer_encode_part(e->tok, e->run.data, e->run.len, !e->started, e->mode, e->out));
    e->started = true;
    e->run.len = 0;
    return 0;
}

static int emit_id(struct emitter *e, int32_t id)
{
    TRY(emit_flush(e));
    e->started = true;
    return ids_add(e->out, id);
}

/* Text of the conversation: no marker in it is one, but where `mode` says so. */
static int emit_text(struct emitter *e, const char *s, size_t len)
{
    return buf_add(&e->run, s, len);
}

/* Text of the template itself: its markers are. */
static int emit_own(struct emitter *e, const char *s)
{
    size_t at;
    const char *name;
    while (*s && tokenizer_find_special(e->tok, s, strlen(s), &at, &name)) {
        TRY(buf_add(&e->run, s, at));
        TRY(emit_id(e, tokenizer_id(e->tok, name)));
        s += at + strlen(name);
    }
    return buf_adds(&e->run, s);
}

static bool role_is(const struct message *m, const char *role)
{
    return strcmp(m->role, role) == 0;
}

static int check_roles(const struct chat_template *c, const struct message *msg, int64_t n)
{
    char shown[80];
    if (n <= 0) return err_set(ERR_INPUT, "a conversation without messages");
    for (int64_t i = 0; i < n && c->style.kind != TEMPLATE_RAW; i++)
        if (!role_is(&msg[i], "system") && !role_is(&msg[i], "user") &&
            !role_is(&msg[i], "assistant"))
            return err_set(
                ERR_INPUT, "the role \"%s\" of message %lld is not one of system, user, assistant",
                err_quote(shown, sizeof shown, msg[i].role, strlen(msg[i].role)), (long long)i + 1);
    return 0;
}

static int chatml_turn(struct emitter *e, const char *role, const char *s, size_t len)
{
    TRY(emit_own(e, "<|im_start|>"));
    TRY(emit_text(e, role, strlen(role)));
    TRY(emit_own(e, "\n"));
    TRY(emit_text(e, s, len));
    return emit_own(e, "<|im_end|>\n");
}

struct span {
    const char *s;
    size_t len;
};

static struct span skip_newlines(struct span v, bool front, bool back)
{
    while (front && v.len && *v.s == '\n') {
        v.s++;
        v.len--;
    }
    while (back && v.len && v.s[v.len - 1] == '\n')
        v.len--;
    return v;
}

static const char *find_last(struct span v, const char *what)
{
    const char *hit = NULL, *s = v.s;
    const size_t n = strlen(what);
    while ((s = memmem(s, v.len - (size_t)(s - v.s), what, n)))
        hit = s++;
    return hit;
}

/* "<think>\nREASONING\n</think>\n\nCONTENT" into its two parts. */
static void split_thinking(struct span v, struct span *reasoning, struct span *content)
{
    static const char end[] = "</think>", start[] = "<think>";
    const char *last = find_last(v, end),
               *first = last ? memmem(v.s, v.len, end, sizeof end - 1) : NULL;
    *reasoning = (struct span){ v.s, 0 };
    *content = v;
    if (!last) return;
    const char *after = last + sizeof end - 1;
    *content = skip_newlines((struct span){ after, (size_t)(v.s + v.len - after) }, true, false);
    *reasoning = skip_newlines((struct span){ v.s, (size_t)(first - v.s) }, false, true);
    const char *from = find_last(*reasoning, start);
    if (from) {
        from += sizeof start - 1;
        reasoning->len -= (size_t)(from - reasoning->s);
        reasoning->s = from;
    }
    *reasoning = skip_newlines(*reasoning, true, false);
}

static int chatml_assistant(const struct chat_template *c, struct emitter *e,
                            const struct message *m, bool after_query, bool last)
{
    struct span reasoning, content = { m->content, m->content_len };
    if (c->style.drops_thinking) split_thinking(content, &reasoning, &content);
    if (!c->style.keeps_last_thinking || !c->style.drops_thinking || !after_query ||
        !(last || reasoning.len))
        return chatml_turn(e, m->role, content.s, content.len);
    reasoning = skip_newlines(reasoning, true, true);
    content = skip_newlines(content, true, false);
    TRY(emit_own(e, "<|im_start|>assistant\n<think>\n"));
    TRY(emit_text(e, reasoning.s, reasoning.len));
    TRY(emit_own(e, "\n</think>\n\n"));
    TRY(emit_text(e, content.s, content.len));
    return emit_own(e, "<|im_end|>\n");
}

/* A tool's answer in a user's turn is no question. */
static bool is_query(const struct message *m)
{
    static const char head[] = "<tool_response>", tail[] = "</tool_response>";
    const size_t h = sizeof head - 1, t = sizeof tail - 1;
    return role_is(m, "user") && !(m->content_len >= t && memcmp(m->content, head, h) == 0 &&
                                   memcmp(m->content + m->content_len - t, tail, t) == 0);
}

static int encode_chatml(const struct chat_template *c, struct emitter *e,
                         const struct message *msg, int64_t n, bool generation)
{
    const char *system = c->system ? c->system : c->style.default_system;
    int64_t query = n - 1;
    for (int64_t i = n - 1; i >= 0; i--) {
        if (!is_query(&msg[i])) continue;
        query = i;
        break;
    }
    if (system && !role_is(&msg[0], "system"))
        TRY(chatml_turn(e, "system", system, strlen(system)));
    for (int64_t i = 0; i < n; i++) {
        if (role_is(&msg[i], "assistant"))
            TRY(chatml_assistant(c, e, &msg[i], i > query, i == n - 1));
        else
            TRY(chatml_turn(e, msg[i].role, msg[i].content, msg[i].content_len));
    }
    if (!generation) return 0;
    TRY(emit_own(e, "<|im_start|>assistant\n"));
    return c->style.generation ? emit_own(e, c->style.generation) : 0;
}

static int llama3_turn(const struct chat_template *c, struct emitter *e, const char *role,
                       const char *head, const char *s, size_t len)
{
    if (c->style.trim) text_strip(&s, &len);
    TRY(emit_own(e, "<|start_header_id|>"));
    TRY(emit_text(e, role, strlen(role)));
    TRY(emit_own(e, "<|end_header_id|>\n\n"));
    if (head) TRY(emit_own(e, head));
    TRY(emit_text(e, s, len));
    return emit_own(e, "<|eot_id|>");
}

static int encode_llama3(const struct chat_template *c, struct emitter *e,
                         const struct message *msg, int64_t n, bool generation)
{
    const char *head = c->style.system_head;
    int64_t i = 0;
    if (role_is(&msg[0], "system")) {
        TRY(llama3_turn(c, e, "system", head, msg[0].content, msg[0].content_len));
        i = 1;
    } else if (c->system || head) {
        TRY(llama3_turn(c, e, "system", head, c->system ? c->system : "",
                        c->system ? strlen(c->system) : 0));
    }
    for (; i < n; i++)
        TRY(llama3_turn(c, e, msg[i].role, NULL, msg[i].content, msg[i].content_len));
    return generation ? emit_own(e, "<|start_header_id|>assistant<|end_header_id|>\n\n") : 0;
}

static int encode_joined(const struct chat_template *c, struct emitter *e,
                         const struct message *msg, int64_t n)
{
    if (c->system && !role_is(&msg[0], "system")) TRY(emit_text(e, c->system, strlen(c->system)));
    for (int64_t i = 0; i < n; i++)
        TRY(emit_text(e, msg[i].content, msg[i].content_len));
    return 0;
}

static int emit_bos(const struct chat_template *c, struct emitter *e)
{
    const int32_t bos = tokenizer_bos(c->tok), own = tokenizer_id(c->tok, "<|begin_of_text|>");
    if (!c->style.bos) return 0;
    if (bos >= 0) return emit_id(e, bos);
    return c->style.kind == TEMPLATE_LLAMA3 && own >= 0 ? emit_id(e, own) : 0;
}

int template_encode(const struct chat_template *c, const struct message *msg, int64_t n,
                    bool add_generation_prompt, enum special_mode mode, struct ids *out)
{
    struct emitter e = { .tok = c->tok, .mode = mode, .out = out };
    const int64_t before = out->n;
    int rc = check_roles(c, msg, n);
    if (rc < 0) return rc;
    TRY_OUT(emit_bos(c, &e));
    /* the tokenizer's own BOS comes before a text that starts at its start; a template's is part of the text */
    if (c->style.kind == TEMPLATE_RAW) e.started = false;
    switch (c->style.kind) {
    case TEMPLATE_CHATML:
        rc = encode_chatml(c, &e, msg, n, add_generation_prompt);
        break;
    case TEMPLATE_LLAMA3:
        rc = encode_llama3(c, &e, msg, n, add_generation_prompt);
        break;
    case TEMPLATE_RAW:
        rc = encode_joined(c, &e, msg, n);
        break;
    }
    if (rc == 0) rc = emit_flush(&e);
out:
    buf_release(&e.run);
    if (rc < 0) out->n = before;
    return rc;
}

int template_encode_raw(const struct chat_template *c, const char *text, size_t len,
                        enum special_mode mode, struct ids *out)
{
    const int64_t before = out->n;
    if (tokenizer_adds_bos(c->tok)) TRY(ids_add(out, tokenizer_bos(c->tok)));
    const int rc = tokenizer_encode(c->tok, text, len, mode, out);
    if (rc < 0) out->n = before;
    return rc;
}
