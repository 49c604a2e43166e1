/* SPDX-License-Identifier: MIT */
#include "tokenizer_impl.h"
#include <stdlib.h>
#include <string.h>

void pretok_release(struct pretok_step *p)
{
    regex_close(p->regex);
    free(p->literal);
    memset(p, 0, sizeof *p);
}

void norm_release(struct norm_step *n)
{
    charsmap_close(n->charsmap);
    regex_close(n->regex);
    free(n->from);
    free(n->to);
    memset(n, 0, sizeof *n);
}

uint32_t byte_level_char(uint8_t byte)
{
    /* the printable bytes stand for themselves, the others follow from U+0100 on */
    if ((byte >= 33 && byte <= 126) || (byte >= 161 && byte != 173)) return byte;
    if (byte <= 32) return 256u + byte;
    if (byte <= 160) return 256u + 33 + (byte - 127u);
    return 256 + 33 + 34;
}

int byte_level_byte(uint32_t cp)
{
    if (cp < 256) return byte_level_char((uint8_t)cp) == cp ? (int)cp : -1;
    if (cp <= 288) return (int)cp - 256;
    if (cp <= 322) return (int)cp - 289 + 127;
    return cp == 323 ? 173 : -1;
}

static int replace_all(struct buf *b, const char *s, size_t len, const char *from, size_t from_len,
                       const char *to, size_t to_len)
{
    const char *end = s + len, *hit;
    while (s < end && (hit = memmem(s, (size_t)(end - s), from, from_len))) {
        TRY(buf_add(b, s, (size_t)(hit - s)));
        TRY(buf_add(b, to, to_len));
        s = hit + from_len;
    }
    return buf_add(b, s, (size_t)(end - s));
}

static int replace_regex(const struct norm_step *n, struct scratch *k, struct buf *b, const char *s,
                         size_t len)
{
    size_t from = 0, end = 0;
    uint32_t cp;
    if (!k->run) TRY(regex_begin(&k->run));
    regex_budget(k->run, len);
    for (size_t at = 0; at < len;) {
        const int rc = regex_match(n->regex, k->run, s, len, at, &end);
        TRY(rc);
        if (rc == 0) {
            at += (size_t)utf8_next(s + at, &cp);
            continue;
        }
        TRY(buf_add(b, s + from, at - from));
        TRY(buf_add(b, n->to, n->to_len));
        from = at = end;
    }
    return buf_add(b, s + from, len - from);
}

int norm_run(const struct tokenizer *t, struct scratch *k, const char *s, size_t len,
             const char **out, size_t *out_len)
{
    for (int32_t i = 0; i < t->n_norms; i++) {
        const struct norm_step *n = &t->norms[i];
        struct buf *b = &k->norm[i & 1];
        buf_clear(b);
        switch (n->kind) {
        case NORM_FORM:
            TRY(text_normalize(b, n->form, s, len));
            break;
        case NORM_LOWER:
            TRY(text_lower(b, s, len));
            break;
        case NORM_ACCENTS:
            TRY(text_strip_accents(b, s, len));
            break;
        case NORM_STRIP:
            text_trim(&s, &len, n->left, n->right);
            TRY(buf_add(b, s, len));
            break;
        case NORM_PREPEND:
            if (len) TRY(buf_add(b, n->to, n->to_len));
            TRY(buf_add(b, s, len));
            break;
        case NORM_REPLACE:
            TRY(n->regex ? replace_regex(n, k, b, s, len)
                         : replace_all(b, s, len, n->from, n->from_len, n->to, n->to_len));
            break;
        case NORM_CHARSMAP:
            TRY(charsmap_apply(n->charsmap, b, s, len));
            break;
        }
        s = b->data;
        len = b->len;
    }
    *out = s;
    *out_len = len;
    return 0;
}

static int piece_add(struct pieces *v, size_t at, size_t len, bool first)
{
    if (len == 0) return 0;
    TRY(MEM_GROW(&v->v, &v->cap, v->n + 1));
    v->v[v->n++] = (struct piece){ at, len, first, false };
    return 0;
}

static int part_add(struct pieces *v, const struct piece *whole, size_t at, size_t end, bool match)
{
    if (end == at) return 0;
    TRY(piece_add(v, at, end - at, whole->first && at == whole->at));
    v->v[v->n - 1].match = match;
    return 0;
}

/* The end of the match at s[at] of a piece, which is a text of its own: neither look-behind nor look-ahead leaves it. 1, or 0: none. */
static int match_at(const struct pretok_step *p, struct regex_run *run, const char *s,
                    const struct piece *w, size_t at, size_t *end)
{
    const size_t n = p->literal ? strlen(p->literal) : 0;
    uint32_t cp;
    if (p->test) {
        *end = at + (size_t)utf8_next(s + at, &cp);
        return p->test(cp);
    }
    if (!p->literal) {
        const int rc = regex_match(p->regex, run, s + w->at, w->len, at - w->at, end);
        *end += w->at;
        return rc;
    }
    *end = at + n;
    return *end <= w->at + w->len && memcmp(s + at, p->literal, n) == 0;
}

/* Each match and each stretch between matches is a piece. */
static int cut_by_pattern(const struct pretok_step *p, struct regex_run *run, const char *s,
                          const struct piece *w, struct pieces *out)
{
    const size_t stop = w->at + w->len;
    size_t from = w->at, at = w->at, end = 0;
    uint32_t cp;
    while (at < stop) {
        const int rc = match_at(p, run, s, w, at, &end);
        TRY(rc);
        if (rc == 0 || end == at) {
            at += (size_t)utf8_next(s + at, &cp);
            continue;
        }
        TRY(part_add(out, w, from, at, p->invert));
        TRY(part_add(out, w, at, end, !p->invert));
        from = at = end;
    }
    return part_add(out, w, from, stop, p->invert);
}

static bool joins(enum split_behavior behavior, const struct piece *before, const struct piece *v)
{
    switch (behavior) {
    case SPLIT_WITH_PREVIOUS: /* the second of two matches is a piece of its own */
        return v->match && !before->match;
    case SPLIT_WITH_NEXT:
        return before->match && !v->match;
    case SPLIT_CONTIGUOUS:
        return before->match == v->match;
    default:
        return false;
    }
}

/* The pieces from `from` on come from one; join or leave out what the behaviour says. */
static void apply_behavior(enum split_behavior behavior, struct pieces *v, int64_t from)
{
    int64_t n = from;
    if (behavior == SPLIT_ISOLATED) return;
    for (int64_t i = from; i < v->n; i++) {
        const struct piece p = v->v[i];
        if (behavior == SPLIT_REMOVED && p.match) continue;
        if (n > from && joins(behavior, &v->v[n - 1], &p)) {
            v->v[n - 1].len += p.len;
            v->v[n - 1].match = p.match;
        } else {
            v->v[n++] = p;
        }
    }
    v->n = n;
}

static int split(const struct pretok_step *p, struct regex_run *run, const char *s,
                 const struct piece *w, struct pieces *out)
{
    const int64_t from = out->n;
    TRY(cut_by_pattern(p, run, s, w, out));
    apply_behavior(p->behavior, out, from);
    return 0;
}

/* Spaces become the mark, one goes before where the scheme says so, and a piece starts at each mark. */
static int cut_by_metaspace(const struct pretok_step *m, const char *s, const struct piece *p,
                            struct buf *text, struct pieces *out)
{
    const size_t mark = strlen(m->mark), start = text->len;
    const bool marked =
        p->len && (s[p->at] == ' ' || (p->len >= mark && memcmp(s + p->at, m->mark, mark) == 0));
    if (p->len && !marked &&
        (m->scheme == METASPACE_ALWAYS || (m->scheme == METASPACE_FIRST && p->first)))
        TRY(buf_add(text, m->mark, mark));
    TRY(replace_all(text, s + p->at, p->len, " ", 1, m->mark, mark));
    size_t from = start;
    while (m->split) {
        const char *hit = from + 1 < text->len
                              ? memmem(text->data + from + 1, text->len - from - 1, m->mark, mark)
                              : NULL;
        if (!hit) break;
        const size_t at = (size_t)(hit - text->data);
        TRY(piece_add(out, from, at - from, p->first && from == start));
        from = at;
    }
    return piece_add(out, from, text->len - from, p->first && from == start);
}

/* A space goes before a piece that does not start with one. */
static int prefix_space(const char *s, const struct piece *p, struct buf *text, struct pieces *out)
{
    const size_t at = text->len;
    if (p->len && s[p->at] != ' ') TRY(buf_add(text, " ", 1));
    TRY(buf_add(text, s + p->at, p->len));
    return piece_add(out, at, text->len - at, p->first);
}

int pretok_run(const struct tokenizer *t, struct scratch *k, const char *s, size_t len, bool first,
               const char **text, const struct pieces **v)
{
    struct pieces *in = &k->pieces[0], *out = &k->pieces[1];
    struct buf *b = &k->text[0], *other = &k->text[1];
    in->n = 0;
    TRY(piece_add(in, 0, len, first));
    if (!k->run) TRY(regex_begin(&k->run));
    regex_budget(k->run, len);
    for (int32_t i = 0; i < t->n_pretoks; i++) {
        const struct pretok_step *p = &t->pretoks[i];
        const bool rewrites = p->kind == PRETOK_METASPACE || p->add_prefix_space;
        struct pieces *swap;
        if (rewrites) {
            out->n = 0;
            buf_clear(b);
            for (int64_t j = 0; j < in->n; j++)
                TRY(p->kind == PRETOK_METASPACE ? cut_by_metaspace(p, s, &in->v[j], b, out)
                                                : prefix_space(s, &in->v[j], b, out));
            s = b->data;
            b = other;
            other = b == &k->text[0] ? &k->text[1] : &k->text[0];
            swap = in, in = out, out = swap;
        }
        if (p->regex || p->literal || p->test) {
            out->n = 0;
            for (int64_t j = 0; j < in->n; j++)
                TRY(split(p, k->run, s, &in->v[j], out));
            swap = in, in = out, out = swap;
        }
    }
    *text = s;
    *v = in;
    return 0;
}
