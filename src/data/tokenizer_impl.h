/* SPDX-License-Identifier: MIT
 * tokenizer_impl.h - the parts of a tokenizer, for the files that load and run it (and their tests). */
#ifndef BDPO_TOKENIZER_IMPL_H
#define BDPO_TOKENIZER_IMPL_H
#include "tokenizer.h"
#include "tokenizer_text.h"
#include "../io/json.h"

/* A token by id. `len` 0: no token has this id. */
struct token {
    size_t at; /* of its text in tokenizer.text, NUL-terminated there */
    uint32_t len;
    bool in_vocab;  /* of the model's vocabulary: merges and characters may give it */
    int32_t added;  /* index + 1 into tokenizer.added, 0: not an added token */
};
struct added_token {
    int32_t id;
    bool special, lstrip, rstrip, single_word, normalized;
};

/* Byte trie over added tokens; siblings are linked. Valid when zeroed (matches nothing). */
struct trie_node {
    int32_t child, next; /* 0: none */
    int32_t added;       /* index + 1 of the token that ends here, 0: none */
    uint8_t byte;
};
struct trie {
    struct trie_node *node; /* [0] is the root */
    int64_t n, cap;
};
int trie_add(struct trie *t, const char *s, size_t len, int32_t added);
/* Longest entry that starts s: its index into `added` and its bytes; -1: none. */
int32_t trie_match(const struct trie *t, const char *s, size_t len, size_t *bytes);

/* Normalizers, in order. */
enum norm_kind { NORM_FORM, NORM_LOWER, NORM_ACCENTS, NORM_STRIP, NORM_PREPEND, NORM_REPLACE, NORM_CHARSMAP };
struct norm_step {
    enum norm_kind kind;
    enum text_form form;  /* FORM */
    bool left, right;     /* STRIP */
    struct regex *regex;  /* REPLACE: of this, else of `from`; owned, may be NULL */
    struct charsmap *charsmap; /* CHARSMAP; owned, may be NULL */
    char *from, *to; /* owned; PREPEND: `to` */
    size_t from_len, to_len;
};
/* Pre-tokenizers, in order; each cuts the pieces of the one before. */
enum pretok_kind { PRETOK_SPLIT, PRETOK_BYTE_LEVEL, PRETOK_METASPACE };
/* What becomes of a match: a piece; left out; the end of the piece before it, the start of the one after it; neighbours of a kind as one. */
enum split_behavior { SPLIT_ISOLATED, SPLIT_REMOVED, SPLIT_WITH_PREVIOUS, SPLIT_WITH_NEXT, SPLIT_CONTIGUOUS };
enum metaspace_scheme { METASPACE_ALWAYS, METASPACE_FIRST, METASPACE_NEVER };
struct pretok_step {
    enum pretok_kind kind;
    struct regex *regex;         /* SPLIT; BYTE_LEVEL with use_regex; owned, may be NULL */
    char *literal;               /* SPLIT by a string; owned */
    bool (*test)(uint32_t cp);   /* SPLIT by characters for which it holds, one a match */
    enum split_behavior behavior; /* SPLIT */
    bool invert;                 /* SPLIT: what does not match counts as the match */
    bool add_prefix_space;       /* BYTE_LEVEL */
    enum metaspace_scheme scheme; /* METASPACE */
    bool split;
    char mark[5];                /* METASPACE: its character */
};
/* Decoders, in order, over a list of strings, one per token at first. */
enum decode_kind { DECODE_BYTE_LEVEL, DECODE_REPLACE, DECODE_BYTE_FALLBACK, DECODE_FUSE, DECODE_STRIP, DECODE_METASPACE };
struct decode_step {
    enum decode_kind kind;
    char *from, *to; /* REPLACE; STRIP: `from`; METASPACE: `from`. Owned */
    int64_t start, stop; /* STRIP */
    bool keep_first; /* METASPACE with scheme never */
};

struct merge { /* slot of an open-addressed table */
    uint64_t pair; /* left << 32 | right */
    int32_t rank1; /* rank + 1, 0: free slot */
    int32_t id;
};
/* Unigram: the pieces' scores and a byte trie of them, its edges in an open-addressed table. */
struct unigram_node {
    int32_t parent, id; /* id -1: no piece ends here */
    uint8_t byte;
};
struct unigram {
    double *score; /* [pieces], by id */
    double unk_score;
    struct unigram_node *node; /* [0] is the root */
    int64_t n, cap;
    int32_t *slot; /* [slots] node, 0: free */
    int64_t slots; /* a power of two */
};
enum { STEPS_MAX = 16 };
struct tokenizer {
    char *path; /* of tokenizer.json, for messages */
    /* tokens */
    struct token *tok; /* [size] */
    int32_t size;
    char *text;
    int32_t *slot; /* [slots] text -> id + 1 */
    int64_t slots; /* a power of two */
    size_t longest; /* bytes of the longest token of the vocabulary */
    struct added_token *added;
    int32_t n_added;
    struct trie raw, norm, all; /* tokens matched before and after normalisation; all by their own text */
    /* model */
    struct merge *merge; /* [merges] */
    int64_t merges;
    struct unigram unigram;
    bool is_unigram, byte_level, byte_fallback, fuse_unk, ignore_merges;
    int32_t unk;          /* -1: none */
    int32_t byte_id[256]; /* byte-level: the byte's character; byte fallback: <0xNN>; -1: none */
    /* pipeline */
    struct norm_step norms[STEPS_MAX];
    struct pretok_step pretoks[STEPS_MAX];
    struct decode_step decodes[STEPS_MAX];
    int32_t n_norms, n_pretoks, n_decodes;
    /* what surrounds a sequence */
    int32_t bos, eos;
    bool adds_bos;
    char digest[65];
    struct scratch_pool *pool; /* the one thing that encoding changes */
};

/* The character that stands for a byte in a byte-level vocabulary (GPT-2's table), and back (-1: none). */
uint32_t byte_level_char(uint8_t byte);
int byte_level_byte(uint32_t cp);

/* Whether byte_fallback holds and each byte has its token <0xNN>. */
bool vocab_has_bytes(const struct tokenizer *t, const char *s, size_t n);
/* Id of a token's text, -1: none. */
int32_t vocab_find(const struct tokenizer *t, const char *s, size_t len);
/* The slot of a pair: its merge, or the free slot (rank1 0) where it would go. */
struct merge *merge_slot(const struct tokenizer *t, int32_t left, int32_t right);

/* tokenizer_load.c, tokenizer_vocab.c, tokenizer_pipeline.c, tokenizer_special.c: parts of tokenizer_open. `d` is tokenizer.json. */
int tokenizer_load_vocab(struct tokenizer *t, const struct json_doc *d);
int tokenizer_load_merges(struct tokenizer *t, const struct json_doc *d);
int tokenizer_load_pipeline(struct tokenizer *t, const struct json_doc *d);
int tokenizer_load_special(struct tokenizer *t, const struct json_doc *d, const char *dir);
/* Tries over the added tokens; after the normalizers are there. */
int tokenizer_index_added(struct tokenizer *t);
void pretok_release(struct pretok_step *p);
void norm_release(struct norm_step *n);

/* Readers of members: absent gives dflt; the wrong type is an error at its place. `at` is the JSON Pointer of `o`. */
int member_bool(bool *out, const struct json_doc *d, const json_t *o, const char *at, const char *key, bool dflt);
int member_text(const char **out, const struct json_doc *d, const json_t *o, const char *at, const char *key); /* must be there */

/* A pattern in the syntax of Hugging Face's engine (Oniguruma), as far as both engines agree on its meaning; the rest is refused by
 * name. Compiled with PCRE2 (JIT where there is one), matched at one place at a time under a budget of steps. */
struct regex;
struct regex_run; /* one thread's match data */
int regex_open(struct regex **out, const char *pattern);
void regex_close(struct regex *r);
enum { REGEX_VERSION = 128 };
/* Of PCRE2 and its Unicode, into out; returns out. */
const char *regex_version(char out[REGEX_VERSION]);
/* The pattern as PCRE2 gets it, for tests; the caller frees. */
int regex_translate(char **out, const char *pattern);
int regex_begin(struct regex_run **out);
void regex_end(struct regex_run *m);
bool regex_matches_empty(const struct regex *r);
/* A new text of `len` bytes: sets the budget of steps. */
void regex_budget(struct regex_run *m, size_t len);
/* End of the match that starts at s[at], in *end; 1, or 0 where none does. ERR_INPUT where the pattern needs too many steps. */
int regex_match(const struct regex *r, struct regex_run *m, const char *s, size_t len, size_t at, size_t *end);

/* SentencePiece's compiled normalization (Precompiled), from its base64. */
struct charsmap;
int charsmap_open(struct charsmap **out, const char *base64);
void charsmap_close(struct charsmap *m);
/* Add s[0..len) with what it replaces: a grapheme cluster of up to 5 bytes as a whole, by its shortest entry, else each of its characters. */
int charsmap_apply(const struct charsmap *m, struct buf *b, const char *s, size_t len);

/* One call's memory; valid when zeroed. */
struct piece {
    size_t at, len;
    bool first; /* starts the whole text */
    bool match; /* while it is cut */
};
struct pieces {
    struct piece *v;
    int64_t n, cap;
};
struct bpe_candidate {
    uint64_t key; /* rank + 1 << 32 | place */
    int32_t id;   /* what it would give */
};
struct bpe { /* symbols of a word, a doubly linked list, and the candidate merges, a heap by (rank, place) */
    int32_t *id, *prev, *next;
    int64_t n, cap, prev_cap, next_cap;
    struct bpe_candidate *heap;
    int64_t heap_n, heap_cap;
    int64_t work; /* heap moves and pair look-ups so far: what tests bound */
};
/* A short word's ids, from a text that was encoded before. The table is direct-mapped. */
enum { WORD_BYTES = 23, WORD_IDS = 9, WORD_SLOTS = 1 << 14 };
struct word {
    uint64_t text[3]; /* the bytes, zeros behind them, the length in the last byte; all zero: free */
    int32_t n, id[WORD_IDS];
};
/* The best way to a place of a text: the last piece's start (-1: none yet) and id; `end` of the next one, once the way is known. */
struct unigram_best {
    double score;
    int32_t start, id, end;
};
struct scratch {
    struct scratch *next; /* in the pool */
    struct word *words;   /* [WORD_SLOTS], NULL until one is stored */
    struct buf norm[2], text[2]; /* the normalizers' and pre-tokenizers' results, in turn */
    struct buf mapped;
    struct pieces pieces[2];
    struct regex_run *run;
    struct bpe bpe;
    struct unigram_best *best;
    int64_t best_cap;
};
void scratch_release(struct scratch *s);
/* Scratches that are not in use, kept so that their memory and words serve the next text. Thread-safe. */
struct scratch_pool;
int scratch_pool_open(struct scratch_pool **out);
void scratch_pool_close(struct scratch_pool *p);
int scratch_take(struct scratch_pool *p, struct scratch **out);
void scratch_give(struct scratch_pool *p, struct scratch *s);

/* Apply the normalizers to s[0..len); *out, *out_len: the result, borrowed from scratch or from s. */
int norm_run(const struct tokenizer *t, struct scratch *k, const char *s, size_t len, const char **out, size_t *out_len);
/* Cut normalised text into pieces, *text and *v borrowed from scratch or from s. `first`: s starts the whole text. */
int pretok_run(const struct tokenizer *t, struct scratch *k, const char *s, size_t len, bool first, const char **text,
               const struct pieces **v);
/* Append the ids of one piece, from the word table where it is there. BPE takes O(n log n) in its bytes, Unigram O(n longest). */
int word_encode(const struct tokenizer *t, struct scratch *k, const char *s, size_t len, struct ids *out);
/* unigram.c. Append the ids of the way through s[0..len) whose pieces' scores have the greatest sum, added from the left in double; of
 * equal ways to a place the one with the longest last piece. A character that is no piece costs 10 more than the worst piece; a run of unknowns is one token, or its
 * bytes with byte_fallback. ERR_INPUT for an unknown character where there is no unk_id. */
int unigram_encode(const struct tokenizer *t, struct scratch *k, const char *s, size_t len, struct ids *out);
/* Trie and unknown score over the scores of t->unigram; after the vocabulary is there. */
int unigram_index(struct tokenizer *t);
void unigram_release(struct unigram *u);
/* x as the tokenizers library reads its shortest decimal: the digits as an integer, times or over a power of ten, each step rounded. It may
 * be one unit in the last place away from x, which decides between ways whose sums are equal but for rounding. */
double unigram_score(double x);
#endif
