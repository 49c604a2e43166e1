/* SPDX-License-Identifier: MIT
 * template_impl.h - what is read from a chat template's text. */
#ifndef BDPO_TEMPLATE_IMPL_H
#define BDPO_TEMPLATE_IMPL_H
#include "template.h"

enum template_kind { TEMPLATE_RAW, TEMPLATE_CHATML, TEMPLATE_LLAMA3 };
struct template_style { /* valid when zeroed: raw */
    enum template_kind kind;
    bool bos;             /* BOS first */
    bool trim;            /* contents without white space at their ends */
    bool drops_thinking;  /* an assistant's text up to </think> is left out ... */
    bool keeps_last_thinking; /* ... but after the last question it is kept, an empty one added to the last turn (Qwen3) */
    char *default_system; /* where the conversation has none; NULL: nothing; owned */
    char *generation;     /* after the generation prompt's header; NULL: nothing; owned */
    char *system_head;    /* llama3: start of a system block that is always there; NULL: no such block; owned */
};
/* Recognise a template by its markers and read its constants. `path` is for messages. ERR_INPUT where it is not recognised. */
int template_style_read(struct template_style *t, const char *text, const char *path);
void template_style_release(struct template_style *t);
/* *out: the template text of DIR, NULL where there is none; *path: where it stands or would stand. The caller frees both. */
int template_text_read(char **out, char **path, const char *dir);
#endif
