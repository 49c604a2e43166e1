/* SPDX-License-Identifier: MIT
 * template_jinja.h - the text of a chat template cut into its tags and expressions, and what an expression of literals and messages says.
 * Nothing is run: what is not understood is left to the caller to refuse. Private to src/data. */
#ifndef BDPO_TEMPLATE_JINJA_H
#define BDPO_TEMPLATE_JINJA_H
#include "../base/mem.h"

enum node_kind { NODE_TEXT, NODE_EXPR, NODE_TAG };
struct node {
    enum node_kind kind;
    char *s; /* owned; of an expression or tag what stands inside, without white space at its ends */
};
struct nodes { /* valid when zeroed */
    struct node *v;
    int64_t n, cap;
};
/* Cut a template as transformers does (trim_blocks and lstrip_blocks on); comments are left out. 1: done, 0: it is malformed. ERR_OOM. */
int jinja_split(struct nodes *out, const char *text);
void jinja_release(struct nodes *v);
/* A condition or an expression without white space and parentheses, quotes all single: for comparing. Adds to b, which is emptied first. */
int jinja_plain(struct buf *b, const char *s);

/* What expressions write around one message. Valid when zeroed. */
struct turn {
    struct buf part[3]; /* before the content (or the system message), between the two, after the content */
    int at;             /* the part that text goes to */
    int contents;       /* how many times the content stands there */
    bool trim;          /* of the content: without white space at its ends */
    bool system;        /* the system message stands before it */
    bool eos;
};
enum { TURN_ROLE = 1 }; /* in a part: the byte that stands for the message's role */
void turn_release(struct turn *t);
/* Add a sum of string literals, message['content'] (with "| trim" or ".strip()"), message['role'], eos_token (written as `eos`; NULL: not
 * understood) and system_message. 1: done, 0: not understood, and t is then of no use. ERR_OOM. */
int turn_add(struct turn *t, const char *expr, const char *eos);
/* Literal text of the template. */
int turn_add_text(struct turn *t, const char *s);
#endif
