/* SPDX-License-Identifier: MIT
 * tokenizer_fixture.h - tiny tokenizers written by the tests themselves. */
#ifndef BDPO_TOKENIZER_FIXTURE_H
#define BDPO_TOKENIZER_FIXTURE_H
#include "../src/data/tokenizer.h"

/* A directory of its own, removed by fixture_remove; owned. */
char *fixture_dir(void);
void fixture_remove(char *dir);
/* Write DIR/name. */
void fixture_write(const char *dir, const char *name, const char *text);

/* Parts of a tokenizer.json; NULL: the default of the family, "" leaves the member out where it may be. Values are JSON text. */
struct fixture {
    const char *added, *normalizer, *pre_tokenizer, *decoder, *post_processor; /* whole values */
    const char *vocab;  /* members after the family's own ("\"he\": 256") */
    const char *merges; /* the list */
    const char *model;  /* members of the model beside type, vocab and merges ("\"fuse_unk\": true") */
};
/* Byte-level: token b is byte b (0 to 255). Defaults: no merges, no normalizer, ByteLevel without regex. */
char *fixture_bytes(const struct fixture *f);
/* SentencePiece-style: <unk> 0, <s> 1, </s> 2, <0x00> 3 ... <0xFF> 258, then `vocab` from 259 on. Defaults: LLaMA 2's legacy
 * normalizer (Prepend, Replace), no pre-tokenizer, its decoder, byte_fallback and fuse_unk. */
char *fixture_pieces(const struct fixture *f);
/* Write text (from one of them; freed) and open it. */
struct tokenizer *fixture_open(const char *dir, char *text);
/* "1 2 3" of the ids of a text; borrowed until the next call. "error" where encoding fails. */
const char *fixture_ids(const struct tokenizer *t, const char *text, enum special_mode mode);
const char *fixture_list(const struct ids *v);

#define FIXTURE_ADDED(id, text, flags) "{\"id\": " #id ", \"content\": \"" text "\"" flags "}"
#endif
