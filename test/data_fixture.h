/* SPDX-License-Identifier: MIT
 * data_fixture.h - a small tokenizer in a directory of its own, for tests of the data: byte b is token b, "ab" merges to
 * one token, and four added tokens. In expected texts \1 to \4 stand for the added tokens. */
#ifndef BDPO_DATA_FIXTURE_H
#define BDPO_DATA_FIXTURE_H
#include "../src/data/data.h"

enum { TOK_AB = 256, TOK_START, TOK_END, TOK_BOS, TOK_EOS, TOK_SIZE }; /* \1 <|im_start|>, \2 <|im_end|>, \3 <bos>, \4 <eos> */
enum { FIXTURE_BOS = 1, FIXTURE_EOS = 2 };

struct data_fixture {
    char dir[64];
    struct tokenizer *tok;
    struct chat_template *chatml, *raw;
};
/* flags: does the tokenizer have (and put) BOS, does it have EOS. */
void data_fixture_open(struct data_fixture *f, int flags);
void data_fixture_close(struct data_fixture *f);
/* Write DIR/name; returns its path, one of 8 in turn. */
const char *data_fixture_put(const struct data_fixture *f, const char *name, const char *text, size_t len);
/* Ids of an expected text. */
void data_fixture_ids(struct ids *out, const char *expected);
/* max_length 1000, max_prompt_length 500, no limits otherwise. */
struct data_opts data_fixture_opts(void);
/* dataset_load of one file, "pairs.jsonl" with this text. */
int data_fixture_load(const struct data_fixture *f, struct dataset *d, const char *text, enum data_kind kind,
                      const struct data_opts *o, const struct chat_template *tmpl);
/* Example i is these three texts (rejected NULL: an SFT row). */
void data_fixture_expect(const struct dataset *d, int64_t i, const char *prompt, const char *chosen, const char *rejected);
/* The message of the last error holds `part`. */
void data_fixture_message(const char *part);
#endif
