/* SPDX-License-Identifier: MIT */
#include "template_jinja.h"
#include <stdlib.h>
#include <string.h>

static bool is_space(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

void jinja_release(struct nodes *v)
{
    for (int64_t i = 0; i < v->n; i++)
        free(v->v[i].s);
    free(v->v);
    memset(v, 0, sizeof *v);
}

static int node_add(struct nodes *out, enum node_kind kind, const char *s, size_t len)
{
    if (kind == NODE_TEXT && len == 0) return 0;
    TRY(MEM_GROW(&out->v, &out->cap, out->n + 1));
    TRY(mem_strndup(&out->v[out->n].s, s, len));
    out->v[out->n++].kind = kind;
    return 0;
}

/* The end of a tag that opens at s: its closing "%}", "}}" or "#}", strings inside passed over; NULL: none. */
static const char *tag_end(const char *s)
{
    const char close[3] = { s[1] == '{' ? '}' : s[1], '}', 0 };
    char quote = 0;
    for (const char *p = s + 2; *p; p++) {
        if (quote) {
            if (*p == '\\' && p[1])
                p++;
            else if (*p == quote)
                quote = 0;
        } else if (s[1] != '#' && (*p == '"' || *p == '\'')) {
            quote = *p;
        } else if (strncmp(p, close, 2) == 0) {
            return p;
        }
    }
    return NULL;
}

/* Where the next tag opens, or the end. */
static const char *tag_start(const char *s)
{
    while (*s && !(*s == '{' && (s[1] == '{' || s[1] == '%' || s[1] == '#')))
        s++;
    return s;
}

/* The text s[0..len) before a tag, without what the tag takes away. line_start: it begins a line. */
static size_t cut_before(const char *s, size_t len, const char *tag, bool line_start)
{
    size_t n = len;
    if (*tag && tag[2] == '-') {
        while (n && is_space(s[n - 1]))
            n--;
        return n;
    }
    if (!*tag || tag[1] == '{') return len;
    while (n && s[n - 1] != '\n' && is_space(s[n - 1]))
        n--;
    return (n ? s[n - 1] == '\n' : line_start) ? n : len;
}

int jinja_split(struct nodes *out, const char *text)
{
    const char *s = text;
    bool line_start = true;
    size_t all = strlen(text);
    if (all && text[all - 1] == '\n') all--; /* the last line feed is not part of it */
    for (;;) {
        const char *tag = tag_start(s), *end = *tag ? tag_end(tag) : tag;
        const size_t len = (size_t)((*tag ? tag : text + all) - MIN(s, text + all));
        if (!end) return 0;
        TRY(node_add(out, NODE_TEXT, s, cut_before(s, len, tag, line_start)));
        if (!*tag) return 1;
        const char *from = tag + 2 + (tag[2] == '-' || tag[2] == '+'), *to = end;
        const bool cuts = to > from && to[-1] == '-';
        if (tag[2] == '+') return 0;
        to -= cuts;
        while (from < to && is_space(*from))
            from++;
        while (to > from && is_space(to[-1]))
            to--;
        if (tag[1] != '#')
            TRY(node_add(out, tag[1] == '{' ? NODE_EXPR : NODE_TAG, from, (size_t)(to - from)));
        s = end + 2;
        line_start = false;
        while (cuts && is_space(*s))
            line_start = *s++ == '\n';
        if (!cuts && tag[1] != '{' && *s == '\n') {
            s++;
            line_start = true;
        }
    }
}

int jinja_plain(struct buf *b, const char *s)
{
    buf_clear(b);
    TRY(buf_adds(b, ""));
    for (; *s; s++) {
        const char c = *s == '"' ? '\'' : *s;
        if (!is_space(c) && c != '(' && c != ')') TRY(buf_add(b, &c, 1));
    }
    return 0;
}

/* --- expressions ------------------------------------------------------------------------------------------------- */

void turn_release(struct turn *t)
{
    for (int i = 0; i < 3; i++)
        buf_release(&t->part[i]);
    memset(t, 0, sizeof *t);
}

int turn_add_text(struct turn *t, const char *s)
{
    return buf_adds(&t->part[t->at], s);
}

static bool eat(const char **s, const char *word)
{
    const size_t n = strlen(word);
    while (is_space(**s))
        (*s)++;
    if (strncmp(*s, word, n) != 0) return false;
    *s += n;
    return true;
}

/* 'text' with its escapes. */
static int eat_literal(struct turn *t, const char **s)
{
    const char quote = **s;
    for ((*s)++; **s != quote; (*s)++) {
        char c = **s;
        if (c == '\\') {
            c = *++*s;
            c = c == 'n' ? '\n' : c == 't' ? '\t' : c == 'r' ? '\r' : c;
            if (c >= '0' && c <= '9') return 0;
            if (strchr("xuUNabfv", c) && c == **s) return 0;
        }
        if (c == 0 || c == TURN_ROLE) return 0;
        TRY(buf_add(&t->part[t->at], &c, 1));
    }
    (*s)++;
    return 1;
}

static bool eat_member(const char **s, const char *name)
{
    char text[40];
    const char *at = *s;
    for (int i = 0; i < 3; i++) {
        const char *const open[] = { "message['", "message[\"", "message." }, *const close[] = {
            "']", "\"]", ""
        };
        size_t n = strlen(open[i]);
        memcpy(text, open[i], n);
        memcpy(text + n, name, strlen(name));
        n += strlen(name);
        memcpy(text + n, close[i], strlen(close[i]) + 1);
        if (eat(s, text)) return true;
        *s = at;
    }
    return false;
}

static int eat_item(struct turn *t, const char **s, const char *eos)
{
    static const char role[] = { TURN_ROLE, 0 };
    while (is_space(**s))
        (*s)++;
    if (**s == '\'' || **s == '"') return eat_literal(t, s);
    if (eat_member(s, "role")) {
        TRY(turn_add_text(t, role));
        return 1;
    }
    if (eat_member(s, "content")) {
        const char *filter = *s;
        t->contents++;
        t->at = 2;
        if ((eat(&filter, "|") && eat(&filter, "trim")) ||
            (filter = *s, eat(&filter, ".strip()"))) {
            t->trim = true;
            *s = filter;
        }
        return 1;
    }
    if (eat(s, "eos_token")) {
        if (!eos) return 0;
        t->eos = true;
        TRY(turn_add_text(t, eos));
        return 1;
    }
    if (!eat(s, "system_message") || t->system || t->at) return 0;
    t->system = true;
    t->at = 1;
    return 1;
}

int turn_add(struct turn *t, const char *expr, const char *eos)
{
    const char *s = expr;
    do {
        const int rc = eat_item(t, &s, eos);
        if (rc <= 0) return rc;
    } while (eat(&s, "+") || eat(&s, "~"));
    while (is_space(*s))
        s++;
    return *s == 0;
}
