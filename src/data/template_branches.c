/* SPDX-License-Identifier: MIT */
#include "template_impl.h"
#include "template_jinja.h"
#include <stdlib.h>
#include <string.h>

static const char *const roles[ROLES] = { "system", "user", "assistant" };

struct walk {
    const struct nodes *nodes;
    int64_t i; /* the node that is looked at; where it stops is what was not understood */
    const char *eos;
    struct turn turn[ROLES];
    bool has_generation;
    struct turn generation, tail; /* literals */
    struct template_style *s;
    struct buf plain; /* of the tag that is looked at */
};

static const char *text_of(const struct buf *b)
{
    return b->data ? b->data : "";
}

static const struct node *here(const struct walk *w)
{
    return w->i < w->nodes->n ? &w->nodes->v[w->i] : NULL;
}

/* Does a tag stand here that reads so, compared as jinja_plain has it? Goes past it. */
static int at_tag(struct walk *w, const char *want)
{
    const struct node *n = here(w);
    if (!n || n->kind != NODE_TAG) return 0;
    TRY(jinja_plain(&w->plain, n->s));
    if (strcmp(w->plain.data, want) != 0) return 0;
    w->i++;
    return 1;
}

static int at_expr(struct walk *w, const char *want)
{
    const struct node *n = here(w);
    if (!n || n->kind != NODE_EXPR || strncmp(n->s, want, strlen(want)) != 0) return 0;
    w->i++;
    return 1;
}

/* The functions below: 1: understood, 0: not, ERR_OOM. */
#define UNDERSTOOD(expr)            \
    do {                            \
        const int got_ = (expr);    \
        if (got_ <= 0) return got_; \
    } while (0)

/* Expressions and text up to the next tag. */
static int read_body(struct walk *w, struct turn *t)
{
    for (const struct node *n; (n = here(w)) && n->kind != NODE_TAG; w->i++) {
        if (n->kind == NODE_TEXT)
            TRY(turn_add_text(t, n->s));
        else
            UNDERSTOOD(turn_add(t, n->s, w->eos));
    }
    return 1;
}

/* What is written once, without a message. */
static int read_constant(struct walk *w, struct turn *t)
{
    UNDERSTOOD(read_body(w, t));
    return t->contents == 0 && !t->system && !strchr(text_of(&t->part[0]), TURN_ROLE);
}

/* After "if add_generation_prompt". */
static int read_generation(struct walk *w)
{
    if (w->has_generation) return 0;
    w->has_generation = true;
    UNDERSTOOD(read_constant(w, &w->generation));
    int rc = at_tag(w, "else");
    TRY(rc);
    if (rc) UNDERSTOOD(read_constant(w, &w->tail));
    return at_tag(w, "endif");
}

/* "message['role']=='user'" or "message.role=='user'", maybe "andmessage['content']": the role; -1: another condition. */
static int role_of(const char *plain, bool *skips_empty)
{
    static const char *const head[] = { "message['role']=='", "message.role=='" };
    for (size_t i = 0; i < COUNT_OF(head); i++) {
        if (strncmp(plain, head[i], strlen(head[i])) != 0) continue;
        plain += strlen(head[i]);
        for (int r = 0; r < ROLES; r++) {
            const size_t n = strlen(roles[r]);
            if (strncmp(plain, roles[r], n) != 0 || plain[n] != '\'') continue;
            *skips_empty = strcmp(plain + n + 1, "andmessage['content']") == 0;
            return plain[n + 1] == 0 || *skips_empty ? r : -1;
        }
    }
    return -1;
}

/* After "if" or "elif" of a role, up to its "endif". */
static int read_roles(struct walk *w, int role, bool skips_empty)
{
    for (;;) {
        struct turn *t = &w->turn[role];
        if (t->contents) return 0;
        if (!at_expr(w, "raise_exception")) {
            UNDERSTOOD(read_body(w, t));
            if (t->contents != 1 || t->system) return 0;
            w->s->skips_empty[role] = skips_empty;
        }
        const struct node *n = here(w);
        if (!n) return 0;
        TRY(jinja_plain(&w->plain, n->s));
        const char *plain = w->plain.data;
        if (strncmp(plain, "elif", 4) != 0) break;
        role = role_of(plain + 4, &skips_empty);
        if (role < 0) return 0;
        w->i++;
    }
    int rc = at_tag(w, "else");
    TRY(rc);
    if (rc && !at_expr(w, "raise_exception")) return 0;
    return at_tag(w, "endif");
}

/* One expression for messages of all roles. */
static int read_all_roles(struct walk *w)
{
    struct turn all = { 0 };
    int rc = read_body(w, &all);
    if (rc == 1) rc = all.contents == 1 && !all.system;
    for (int r = 0; rc == 1 && r < ROLES; r++) {
        struct turn *t = &w->turn[r];
        if (t->contents) rc = 0;
        t->contents = 1;
        t->trim = all.trim;
        for (int k = 0; rc == 1 && k < 3; k++)
            if (buf_add(&t->part[k], text_of(&all.part[k]), all.part[k].len) < 0) rc = ERR_OOM;
    }
    turn_release(&all);
    return rc;
}

static int read_loop(struct walk *w)
{
    static const char alternate[] = "ifmessage['role']=='user'!=loop.index0%2==0";
    int rc;
    while ((rc = at_tag(w, "endfor")) == 0) {
        const struct node *n = here(w);
        bool skips_empty = false;
        if (!n) return 0;
        if (n->kind != NODE_TAG) {
            UNDERSTOOD(read_all_roles(w));
            continue;
        }
        TRY(jinja_plain(&w->plain, n->s));
        const char *plain = w->plain.data;
        const int role = strncmp(plain, "if", 2) == 0 ? role_of(plain + 2, &skips_empty) : -1;
        if (role >= 0) {
            w->i++;
            UNDERSTOOD(read_roles(w, role, skips_empty));
        } else if (strcmp(plain, alternate) == 0) {
            w->i++;
            if (!at_expr(w, "raise_exception")) return 0;
            UNDERSTOOD(at_tag(w, "endif"));
            w->s->alternates = true;
        } else if (strcmp(plain, "ifloop.lastandadd_generation_prompt") == 0) {
            w->i++;
            UNDERSTOOD(read_generation(w));
        } else {
            return 0;
        }
    }
    return rc;
}

static int read_template(struct walk *w)
{
    bool looped = false;
    w->s->bos = false;
    for (int rc; here(w);) {
        if (!looped && at_expr(w, "bos_token")) {
            w->s->bos = true;
            continue;
        }
        if ((rc = at_tag(w, "formessageinmessages")) != 0) {
            TRY(rc);
            if (looped) return 0;
            looped = true;
            UNDERSTOOD(read_loop(w));
        } else if ((rc = at_tag(w, "ifadd_generation_prompt")) != 0) {
            TRY(rc);
            if (!looped) return 0;
            UNDERSTOOD(read_generation(w));
        } else if ((rc = at_tag(w, "ifnotadd_generation_promptisdefined")) != 0) {
            TRY(rc);
            UNDERSTOOD(at_tag(w, "setadd_generation_prompt=false"));
            UNDERSTOOD(at_tag(w, "endif"));
        } else if ((rc = at_tag(w, "ifmessages[0]['role']=='system'")) != 0) {
            TRY(rc);
            if (!at_expr(w, "raise_exception")) return 0;
            UNDERSTOOD(at_tag(w, "endif"));
        } else {
            return 0;
        }
    }
    return looped;
}

/* The text of a part, with the role's name where it stands for it. */
static int keep_part(char **out, const struct buf *part, enum template_role role)
{
    struct buf b = { 0 };
    int rc = buf_adds(&b, "");
    for (size_t i = 0; rc == 0 && i < part->len; i++)
        rc =
            part->data[i] == TURN_ROLE ? buf_adds(&b, roles[role]) : buf_add(&b, part->data + i, 1);
    if (rc < 0)
        buf_release(&b);
    else
        *out = b.data;
    return rc;
}

static int keep_turn(struct template_style *s, enum template_role role, const struct turn *t)
{
    s->trims[role] = t->trim;
    TRY(keep_part(&s->before[role], &t->part[0], role));
    return keep_part(&s->after[role], &t->part[2], role);
}

/* A response is what follows the generation prompt: the rest of the assistant's prefix belongs to it, and is at most a space. */
static bool generation_fits(const char *before, const char *generation)
{
    const size_t n = strlen(generation);
    return strncmp(before, generation, n) == 0 && (!before[n] || strcmp(before + n, " ") == 0);
}

static int keep(struct walk *w)
{
    struct template_style *s = w->s;
    if (!w->turn[ROLE_USER].contents || !w->turn[ROLE_ASSISTANT].contents) return 0;
    for (int r = 0; r < ROLES; r++)
        if (w->turn[r].contents) TRY(keep_turn(s, (enum template_role)r, &w->turn[r]));
    TRY(mem_strdup(&s->generation, text_of(&w->generation.part[0])));
    TRY(mem_strdup(&s->tail, text_of(&w->tail.part[0])));
    s->kind = TEMPLATE_PIECES;
    return generation_fits(s->before[ROLE_ASSISTANT], s->generation);
}

int template_branches_read(struct template_style *s, const char *text, const struct tokenizer *t,
                           char **stopped)
{
    const int32_t eos = tokenizer_eos(t);
    struct nodes nodes = { 0 };
    struct walk w = { .nodes = &nodes, .s = s, .eos = eos < 0 ? NULL : tokenizer_text(t, eos) };
    int rc = jinja_split(&nodes, text);
    if (rc == 1) rc = read_template(&w);
    if (rc == 1) rc = keep(&w);
    if (rc == 0 && here(&w)) {
        const int add = mem_strdup(stopped, here(&w)->s);
        if (add < 0) rc = add;
    }
    for (int r = 0; r < ROLES; r++)
        turn_release(&w.turn[r]);
    turn_release(&w.generation);
    turn_release(&w.tail);
    buf_release(&w.plain);
    jinja_release(&nodes);
    return rc;
}

/* --- [INST] ------------------------------------------------------------------------------------------------------ */

static bool has(const struct buf *b, const char *part)
{
    return b->data && strstr(b->data, part);
}

static bool same(const struct turn *a, const struct turn *b, int part)
{
    return strcmp(text_of(&a->part[part]), text_of(&b->part[part])) == 0;
}

/* All expressions that write a message have to agree: t is the first. */
static int agree(struct turn *t, struct turn *other)
{
    if (t->contents == 0) {
        *t = *other;
        memset(other, 0, sizeof *other);
        return 1;
    }
    return same(t, other, 0) && same(t, other, 1) && same(t, other, 2) && t->trim == other->trim;
}

/* Does the condition before node i say that the system message goes into the first question, or into the last message? */
static int system_place(const struct nodes *v, int64_t i, enum template_system *place)
{
    while (i >= 0 && v->v[i].kind != NODE_TAG)
        i--;
    if (i < 0 || !strstr(v->v[i].s, "system_message")) return 0;
    *place = strstr(v->v[i].s, "loop.last") ? SYSTEM_LAST_MESSAGE : SYSTEM_FIRST_QUESTION;
    return *place == SYSTEM_LAST_MESSAGE || strstr(v->v[i].s, "loop.first") ||
           strstr(v->v[i].s, "loop.index0 == 0");
}

struct inst {
    struct turn user, system, assistant;
    enum template_system place;
};

static int read_inst_node(struct inst *f, const struct nodes *v, int64_t i, const char *eos)
{
    struct turn t = { 0 };
    int rc = turn_add(&t, v->v[i].s, eos);
    if (rc == 0) { /* of tools; but a question has to be understood */
        rc = !strstr(v->v[i].s, "[INST]");
    } else if (rc == 1 && t.contents == 1 && has(&t.part[0], "[INST]")) {
        if (!has(&t.part[2], "[/INST]"))
            rc = 0;
        else if (t.system)
            rc = system_place(v, i, &f->place) ? agree(&f->system, &t) : 0;
        else
            rc = agree(&f->user, &t);
    } else if (rc == 1 && t.contents == 1 && t.eos && !t.system) {
        rc = agree(&f->assistant, &t);
    }
    turn_release(&t);
    return rc;
}

static int keep_inst(struct template_style *s, struct inst *f)
{
    const struct turn *sys = &f->system;
    if (!f->user.contents || !f->assistant.contents) return 0;
    if (!generation_fits(text_of(&f->assistant.part[0]), "")) return 0;
    if (sys->contents) {
        if (!same(sys, &f->user, 0) || !same(sys, &f->user, 2) || sys->trim != f->user.trim)
            return 0;
        s->system_place = f->place;
        TRY(mem_strdup(&s->system_joint, text_of(&sys->part[1])));
    }
    TRY(keep_turn(s, ROLE_USER, &f->user));
    TRY(keep_turn(s, ROLE_ASSISTANT, &f->assistant));
    TRY(mem_strdup(&s->generation, ""));
    s->kind = TEMPLATE_PIECES;
    s->alternates = true;
    return 1;
}

int template_inst_read(struct template_style *s, const char *text, const struct tokenizer *t)
{
    const int32_t eos = tokenizer_eos(t);
    struct nodes nodes = { 0 };
    struct inst f = { 0 };
    int rc = eos < 0 ? 0 : jinja_split(&nodes, text);
    for (int64_t i = 0; rc == 1 && i < nodes.n; i++)
        if (nodes.v[i].kind == NODE_EXPR)
            rc = read_inst_node(&f, &nodes, i, tokenizer_text(t, eos));
    if (rc == 1) rc = keep_inst(s, &f);
    turn_release(&f.user);
    turn_release(&f.system);
    turn_release(&f.assistant);
    jinja_release(&nodes);
    return rc;
}
