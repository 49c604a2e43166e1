/* SPDX-License-Identifier: MIT */
#include "template_impl.h"
#include "tokenizer_text.h"
#include <stdlib.h>
#include <string.h>

static const char *const names[] = { "raw",    "chatml", "llama3", "llama2",
                                     "zephyr", "alpaca", "pieces" };
/* Each has to be one token; the first ends a turn, where there are some. Else EOS does. */
static const char *const markers[][4] = {
    [TEMPLATE_CHATML] = { "<|im_end|>", "<|im_start|>", NULL },
    [TEMPLATE_LLAMA3] = { "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", NULL },
    [TEMPLATE_PIECES] = { NULL },
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
    const char *end = c->style.end ? c->style.end : markers[c->style.kind][0];
    c->end = end ? tokenizer_id(c->tok, end) : tokenizer_eos(c->tok);
    return 0;
}

static int style_by_name(struct template_style *s, const struct tokenizer *t, const char *name)
{
    if (*name == '{') return template_pieces_read(s, name, t);
    for (size_t i = 0; i < TEMPLATE_PIECES; i++) {
        if (strcmp(name, names[i]) != 0) continue;
        s->kind = (enum template_kind)i;
        s->trim = s->kind == TEMPLATE_LLAMA3 || s->kind == TEMPLATE_LLAMA2;
        s->bos = s->kind == TEMPLATE_LLAMA3 || s->kind == TEMPLATE_LLAMA2 || tokenizer_adds_bos(t);
        return 0;
    }
    return err_set(
        ERR_INPUT,
        "data.chat_template: \"%s\" is not known; set \"auto\", \"chatml\", \"llama3\", "
        "\"llama2\", \"zephyr\", \"alpaca\", \"raw\" or the pieces themselves: " TEMPLATE_EXAMPLE,
        name);
}

/* The date in the system block of Llama 3.1 and later. */
static int set_date(struct template_style *s, const char *date)
{
    static const char today[] = "Today Date: ";
    char *old = s->system_head, *at = old ? strstr(old, today) : NULL;
    if (!date || !at) return 0;
    at[sizeof today - 1] = 0;
    const int rc = mem_asprintf(&s->system_head, "%s%s\n\n", old, date);
    free(old);
    return rc;
}

int template_open(struct chat_template **out, const struct tokenizer *t, const char *dir,
                  const char *name, const char *system_prompt, const char *date)
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
        if (text) TRY_OUT(template_style_read(&c->style, text, path, t));
    } else {
        TRY_OUT(style_by_name(&c->style, t, name));
    }
    if (c->style.kind == TEMPLATE_ZEPHYR || c->style.kind == TEMPLATE_ALPACA)
        TRY_OUT(template_pieces_named(&c->style, t));
    TRY_OUT(set_date(&c->style, date));
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

/* A text that holds anything at all cannot be taken for two. */
static int identity_text(struct buf *b, const char *s)
{
    return s ? buf_addf(b, " %zu:%s", strlen(s), s) : buf_adds(b, " -");
}

int template_identity(const struct chat_template *c, struct buf *b)
{
    const struct template_style *s = &c->style;
    TRY(buf_addf(b, "template %d %d%d%d%d %d", (int)s->kind, s->bos, s->trim, s->drops_thinking,
                 s->keeps_last_thinking, c->end));
    TRY(identity_text(b, c->system));
    TRY(identity_text(b, s->default_system));
    TRY(identity_text(b, s->generation));
    TRY(identity_text(b, s->system_head));
    TRY(identity_text(b, s->system_joint));
    TRY(identity_text(b, s->tail));
    TRY(buf_addf(b, " %d%d", s->alternates, (int)s->system_place));
    for (int r = 0; r < ROLES; r++) {
        TRY(buf_addf(b, " %d%d", s->trims[r], s->skips_empty[r]));
        TRY(identity_text(b, s->before[r]));
        TRY(identity_text(b, s->after[r]));
    }
    return buf_adds(b, "\n");
}

int32_t template_end(const struct chat_template *c, bool conversation)
{
    return conversation ? c->end : tokenizer_eos(c->tok);
}

int emit_flush(struct emitter *e)
{
    const char *s = e->run.data;
    size_t len = e->run.len;
    if (len && e->strips) text_trim(&s, &len, true, false);
    e->strips = e->strips && len == 0;
    e->run.len = 0;
    if (len == 0) return 0;
    TRY(tokenizer_encode_part(e->tok, s, len, !e->started, e->mode, e->out));
    e->started = true;
    return 0;
}

int emit_id(struct emitter *e, int32_t id)
{
    bool left, right;
    tokenizer_strips(e->tok, id, &left, &right);
    if (left && e->run.len) {
        const char *s = e->run.data;
        text_trim(&s, &e->run.len, false, true);
    }
    TRY(emit_flush(e));
    e->started = true;
    e->strips = right;
    return ids_add(e->out, id);
}

int emit_text(struct emitter *e, const char *s, size_t len)
{
    return buf_add(&e->run, s, len);
}

int emit_own(struct emitter *e, const char *s)
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

bool role_is(const struct message *m, const char *role)
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
    if (!c->style.bos || c->style.kind == TEMPLATE_LLAMA2)
        return 0; /* llama2: with each question */
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
        rc = template_chatml(c, &e, msg, n, add_generation_prompt);
        break;
    case TEMPLATE_LLAMA2:
        rc = template_llama2(c, &e, msg, n, add_generation_prompt);
        break;
    case TEMPLATE_ZEPHYR:
    case TEMPLATE_ALPACA:
    case TEMPLATE_PIECES:
        rc = template_pieces(c, &e, msg, n, add_generation_prompt);
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

/* Pieces: does the assistant's turn put a space after what asks for it? */
static bool starts_with_space(const struct template_style *s)
{
    const char *before = s->before[ROLE_ASSISTANT];
    return before && s->generation && strlen(before) == strlen(s->generation) + 1 &&
           before[strlen(before) - 1] == ' ' &&
           !strncmp(before, s->generation, strlen(s->generation));
}

int template_encode_response(const struct chat_template *c, bool conversation, const char *text,
                             size_t len, enum special_mode mode, struct ids *out)
{
    const struct template_style *s = &c->style;
    const bool llama2 = s->kind == TEMPLATE_LLAMA2;
    struct buf b = { 0 };
    int rc = 0;
    if (conversation && (s->trim || s->trims[ROLE_ASSISTANT])) text_strip(&text, &len);
    if (!conversation || len == 0 || !(llama2 || starts_with_space(s)))
        return tokenizer_encode(c->tok, text, len, mode, out);
    if (!tokenizer_adds_space(c->tok)) TRY_OUT(buf_adds(&b, " "));
    TRY_OUT(buf_add(&b, text, len));
    if (llama2) TRY_OUT(buf_adds(&b, " "));
    rc = tokenizer_encode(c->tok, b.data, b.len, mode, out);
out:
    buf_release(&b);
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
