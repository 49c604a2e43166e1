/* SPDX-License-Identifier: MIT */
#include "template_impl.h"
#include "tokenizer_text.h"
#include <string.h>

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

int template_chatml(const struct chat_template *c, struct emitter *e, const struct message *msg,
                    int64_t n, bool generation)
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
