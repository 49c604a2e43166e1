/* SPDX-License-Identifier: MIT
 * template_impl.h - what is read from a chat template's text. */
#ifndef BDPO_TEMPLATE_IMPL_H
#define BDPO_TEMPLATE_IMPL_H
#include "template.h"

enum template_kind { TEMPLATE_RAW, TEMPLATE_CHATML, TEMPLATE_LLAMA3, TEMPLATE_LLAMA2, TEMPLATE_ZEPHYR, TEMPLATE_ALPACA, TEMPLATE_PIECES };
enum template_system { SYSTEM_TURN, SYSTEM_FIRST_QUESTION, SYSTEM_LAST_MESSAGE };
enum template_role { ROLE_SYSTEM, ROLE_USER, ROLE_ASSISTANT, ROLES };
struct template_style { /* valid when zeroed: raw */
    enum template_kind kind;
    bool bos;             /* BOS first */
    bool trim;            /* llama3, llama2, chatml: contents without white space at their ends */
    bool drops_thinking;  /* an assistant's text up to </think> is left out ... */
    bool keeps_last_thinking; /* ... but after the last question it is kept, an empty one added to the last turn (Qwen3) */
    char *default_system; /* where the conversation has none; NULL: nothing; owned */
    char *generation;     /* after the generation prompt's header; NULL: nothing; owned */
    /* zephyr, alpaca, pieces */
    char *before[ROLES], *after[ROLES]; /* around each turn; NULL: that role is refused. Owned */
    bool trims[ROLES];       /* contents without white space at their ends */
    bool skips_empty[ROLES]; /* no turn for an empty content */
    bool alternates;         /* questions and answers in turn, else ERR_INPUT */
    enum template_system system_place; /* a turn of its own, else inside a question: the first, or one that is the last message */
    char *system_joint;      /* what stands between it and the question; owned */
    char *tail;              /* at the end where there is no generation prompt; may be NULL; owned */
    char *end; /* pieces: text of the token that ends a response, the start of after[ROLE_ASSISTANT]; owned */
    char *system_head;    /* llama3: start of a system block that is always there; NULL: no such block; owned */
};
/* Recognise a template by its markers, or as one that is all pieces, and read its constants. `path` is for messages, `tok` for its EOS.
 * ERR_INPUT where it is not recognised. */
int template_style_read(struct template_style *t, const char *text, const char *path, const struct tokenizer *tok);
/* template_branches.c: a template that is a loop over the messages with a branch per role, or one expression for all; and one that writes
 * questions as [INST] (Mistral's), whatever else it does with tools. 1: pieces are read; 0: another kind, *stopped (owned by the caller, may
 * stay NULL) is the first tag that was not understood, and s is in no state to be used. ERR_OOM. */
int template_branches_read(struct template_style *s, const char *text, const struct tokenizer *t, char **stopped);
int template_inst_read(struct template_style *s, const char *text, const struct tokenizer *t);
void template_style_release(struct template_style *t);
/* *out: the template text of DIR, NULL where there is none; *path: where it stands or would stand. The caller frees both. */
int template_text_read(char **out, char **path, const char *dir);
/* The style of the config's object {"system": [before, after], "user": ..., "assistant": ..., "generation", "end", "bos", "trim",
 * "default_system"}, given as JSON text. ERR_INPUT naming the key. */
int template_pieces_read(struct template_style *s, const char *json, const struct tokenizer *t);
/* The pieces of zephyr and alpaca, with the tokenizer's EOS. ERR_INPUT where it has none. */
int template_pieces_named(struct template_style *s, const struct tokenizer *t);
/* The token that ends a response, where style.end is not set: the one that the assistant's suffix begins with. ERR_INPUT. */
int template_pieces_end(struct template_style *s, const struct tokenizer *t);

struct chat_template {
    const struct tokenizer *tok;
    struct template_style style;
    char *system; /* the user's system prompt, NULL: none */
    int32_t end;
};

/* Text is gathered until a marker comes and encoded as one run, as a tokenizer does with the rendered template. */
struct emitter {
    const struct tokenizer *tok;
    enum special_mode mode;
    struct buf run;
    bool started; /* something stands before the run */
    bool strips;  /* a token that takes along the white space after it does */
    struct ids *out;
};
int emit_flush(struct emitter *e);
int emit_id(struct emitter *e, int32_t id);
int emit_text(struct emitter *e, const char *s, size_t len); /* of the conversation: no marker in it is one, but where `mode` says so */
int emit_own(struct emitter *e, const char *s);              /* of the template itself: its markers are */
bool role_is(const struct message *m, const char *role);

/* The turns of a conversation whose roles are known; msg[0..n), n > 0. */
int template_chatml(const struct chat_template *c, struct emitter *e, const struct message *msg, int64_t n, bool generation);
int template_llama2(const struct chat_template *c, struct emitter *e, const struct message *msg, int64_t n, bool generation);
int template_pieces(const struct chat_template *c, struct emitter *e, const struct message *msg, int64_t n, bool generation);
#endif
