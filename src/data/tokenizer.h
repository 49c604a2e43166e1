/* SPDX-License-Identifier: MIT
 * tokenizer.h - tokenizer.json to ids and back: byte-level BPE (GPT-2, Qwen2/2.5/3, LLaMA 3) and SentencePiece-style BPE
 * with byte fallback (LLaMA 2). A component that is not supported is refused by name. */
#ifndef BDPO_TOKENIZER_H
#define BDPO_TOKENIZER_H
#include "../base/mem.h"

struct ids { /* growable list of token ids; valid when zeroed */
    int32_t *id;
    int64_t n, cap;
};
void ids_release(struct ids *v);
int ids_add(struct ids *v, int32_t id);
int ids_append(struct ids *v, const int32_t *id, int64_t n);

struct tokenizer; /* immutable after open: encode and decode may be called by several threads at once */

/* Reads DIR/tokenizer.json and, where there, DIR/tokenizer_config.json (bos_token, eos_token) and DIR/special_tokens_map.json
 * (asked where the first says nothing; null is an answer: none). Where neither names an EOS it is the one of <|endoftext|>, </s>,
 * <|end_of_text|>, <|eot_id|>, <|im_end|> that is an added token, if there is only one.
 * ERR_INPUT with file:line:col or the component's name. */
int tokenizer_open(struct tokenizer **out, const char *dir);
void tokenizer_close(struct tokenizer *t);

enum special_mode { SPECIALS_AS_TEXT, SPECIALS_MATCH };
/* Append the ids of text (UTF-8, checked: ERR_INPUT where it is not valid). SPECIALS_AS_TEXT: added tokens inside the text are ordinary text (no
 * added token is matched at all); SPECIALS_MATCH: they become their ids. Never adds BOS or EOS (no post-processor). */
int tokenizer_encode(const struct tokenizer *t, const char *text, size_t len, enum special_mode mode, struct ids *out);
/* The same for a part of a longer text, `first` where it is that text's start: some tokenizers put a space there only. */
int tokenizer_encode_part(const struct tokenizer *t, const char *text, size_t len, bool first, enum special_mode mode, struct ids *out);
/* Text of ids (added to b); special tokens are skipped where skip_special, ids that no token has always are. Bytes that are not
 * valid UTF-8 become U+FFFD. */
int tokenizer_decode(const struct tokenizer *t, const int32_t *id, int64_t n, bool skip_special, struct buf *b);
/* Where the first added token's text stands in text, for data.special_tokens "error"; *name borrowed. false: none. */
bool tokenizer_find_special(const struct tokenizer *t, const char *text, size_t len, size_t *at, const char **name);

int32_t tokenizer_id(const struct tokenizer *t, const char *token); /* id of an exact (added or vocabulary) token, -1: none */
const char *tokenizer_text(const struct tokenizer *t, int32_t id); /* a token's own text, borrowed; NULL: no such token */
/* Does encoding put a space before a text that has none (SentencePiece)? */
bool tokenizer_adds_space(const struct tokenizer *t);
/* Does an added token take along the white space on either side of it? */
void tokenizer_strips(const struct tokenizer *t, int32_t id, bool *left, bool *right);
int32_t tokenizer_bos(const struct tokenizer *t); /* -1: none */
int32_t tokenizer_eos(const struct tokenizer *t); /* -1: none */
/* Does the tokenizer put BOS before a sequence of its own (post-processor's template with <s>, or add_bos_token)? */
bool tokenizer_adds_bos(const struct tokenizer *t);
int32_t tokenizer_size(const struct tokenizer *t); /* highest id + 1 */
void tokenizer_digest(const struct tokenizer *t, char hex[65]); /* fingerprint of tokenizer.json's bytes */
/* Add as text all that the ids of a text depend on: the files' content, and the versions of the libraries that know Unicode. */
int tokenizer_identity(const struct tokenizer *t, struct buf *b);
#endif
