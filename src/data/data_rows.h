/* SPDX-License-Identifier: MIT
 * data_rows.h - one row: what its form says (data_forms.c), then its token ids (data_rows.c). Private to src/data. */
#ifndef BDPO_DATA_ROWS_H
#define BDPO_DATA_ROWS_H
#include "data.h"

enum { POINTER_MAX = 64 };
struct text { /* borrowed from the row's JSON */
    const char *s;
    size_t len;
    char at[POINTER_MAX]; /* JSON Pointer of the value, for messages */
};
struct form { /* valid when zeroed; strings are borrowed from the row, or from `joined` */
    enum form_kind kind;
    bool conversation;   /* prompt is msg[0..n_msg) through the template; else the string `prompt` */
    struct message *msg; /* owned, reused from row to row */
    int64_t n_msg, cap_msg;
    struct text prompt;  /* of a conversation only `at` counts: where the messages stand */
    struct text chosen, rejected;
    bool has_rejected; /* false: an SFT row */
    struct buf joined; /* owned: an instruction and its input */
};
void form_release(struct form *f);

struct place { /* where a row stands; doc gives columns and may be NULL */
    const struct json_doc *doc;
    const char *file;
    int64_t line;
};
/* err_at(ERR_INPUT) at the value `pointer` of the row (at its nearest parent that exists). */
int place_err(const struct place *p, const char *pointer, const char *fmt, ...) PRINTF_LIKE(3, 4); /* an argument may be err_msg() */

/* data_messages.c: values of a row, and its messages: {"role", "content"} or ShareGPT's {"from", "value"}, in a list or one alone. */
const char *json_type_name(const json_t *v);
/* A member; null counts as absent, since tables are exported with null in their empty columns. */
const json_t *row_member(const json_t *row, const char *key);
/* v (a string) into t; a NUL character in it is ERR_INPUT. */
int text_read(struct text *t, const json_t *v, const char *pointer, const struct place *p);
size_t messages_count(const json_t *list);
/* Pointer of message i's content, or of its role. */
void messages_pointer(char at[POINTER_MAX], const json_t *list, const char *pointer, size_t i, bool content);
/* Every message of the list, which must not be empty; ERR_INPUT for what is no message. The others below want a checked list. */
int messages_check(const json_t *list, const char *pointer, const struct place *p);
struct message messages_at(const json_t *list, size_t i); /* role: "system", "user" or "assistant" */
/* How many leading messages two lists share, at most `max`. */
size_t messages_common(const json_t *a, const json_t *b, size_t max);
/* The last message as a response; ERR_INPUT where it is not the assistant's. */
int messages_response(struct text *t, const json_t *list, const char *pointer, const struct place *p);

/* Which form a row has, and its texts. user: string prompts become one user turn. ERR_INPUT where malformed. */
int form_read(struct form *f, const json_t *row, enum data_kind kind, bool user, const struct place *p);
/* The prompt alone, of any form, for generation. */
int form_read_prompt(struct form *f, const json_t *row, bool user, const struct place *p);

enum row_state {
    ROW_OK,
    ROW_EMPTY, ROW_EQUAL, ROW_CUT, /* degenerate: dropped, `why` says more */
    ROW_BAD,                       /* malformed: on_bad_row decides */
    ROW_UNFIT,                     /* the tokenizer or the model does not fit: no option lets it pass */
    ROW_FAILED                     /* rc, such as ERR_OOM: reading ends */
};
struct row { /* one row's result; valid when zeroed, reused from row to row */
    int64_t line;
    enum row_state state;
    int rc;
    enum drop_why why; /* of what is dropped */
    char *error;     /* owned message of ROW_BAD, ROW_UNFIT, ROW_FAILED */
    bool special;    /* the text of an added token stands in the row */
    bool cut_prompt;
    int32_t cut_responses;
    int32_t end; /* the token that ends a response */
    struct example_note note; /* where opts.notes */
    struct form form;
    struct ids prompt, chosen, rejected;
};
void row_release(struct row *r);

struct row_rules { /* what is the same for all rows */
    enum data_kind kind;
    const struct data_opts *opts;
    const struct tokenizer *tok;
    const struct chat_template *tmpl;
};
/* r->form's prompt to r->prompt, and r->end. Errors: ERR_INPUT (r->state is then ROW_BAD or ROW_UNFIT), ERR_OOM. */
int row_encode_prompt(struct row *r, const struct row_rules *rules, const struct place *p);
/* Keep the last `max` ids (>= 1) of a prompt, a BOS at its start being one of them. true: something was cut. */
bool prompt_keep_last(struct ids *prompt, int64_t max, int32_t bos);
/* data_note.c: r->note of a row whose prompt and responses are encoded and not yet cut. ERR_INPUT, ERR_OOM. */
int row_note_make(struct row *r, const struct row_rules *rules, enum special_mode mode);
/* Parse, tokenise, cut and judge one line (or element, after `column` bytes of its line); the result and any error are in *r. Thread-safe over different r. */
void row_make(struct row *r, const struct row_rules *rules, const char *file, int64_t line, int64_t column, const char *text,
              size_t len);
#endif
