/* SPDX-License-Identifier: MIT
 * data.h - JSONL preference pairs (or SFT rows) to token ids. */
#ifndef BDPO_DATA_H
#define BDPO_DATA_H
#include "template.h"
#include "../io/json.h"

enum data_kind { DATA_PAIRS, DATA_SFT };
enum data_specials { DATA_SPECIALS_TEXT, DATA_SPECIALS_ERROR, DATA_SPECIALS_ALLOW };
struct data_opts { /* from the config's "data" section */
    int64_t max_length, max_prompt_length;
    bool string_prompts_user; /* string prompts as one user turn through the template; else raw text */
    enum data_specials specials;
    bool skip_bad_rows;
    int64_t max_bad_rows;
    int64_t max_line_bytes; /* 0: 64 MiB */
    double max_dropped, subsample;
    uint64_t seed;
    const double *weights; /* [n_paths] how often an epoch uses a file's rows; NULL: once each */
    int32_t vocab_size; /* the model's: an id at or above it is an error */
    int32_t threads;
    const char *cache_dir; /* where the ids of files are kept (data_cache.h); NULL: nowhere */
    bool cache_write;      /* keep them there; false: only use what is there */
    bool notes; /* fill dataset.notes; leave subsample at 1 */
    bool quiet; /* nothing on stderr */
};

enum form_kind { /* what a row looked like */
    FORM_STRINGS, FORM_MESSAGES, FORM_PARTS, FORM_STRING_AND_PARTS, FORM_HH, FORM_SHAREGPT, FORM_TRAJECTORY, FORM_INSTRUCTION,
    FORM_QUESTION, FORM_COMPLETION, FORM_CHAT, FORM_KINDS
};
const char *form_name(enum form_kind kind);

struct example {
    int64_t at;         /* of the prompt in dataset.ids; chosen and rejected follow it directly */
    int32_t np, nw, nl; /* tokens: prompt >= 1, chosen >= 1, rejected >= 1 (SFT: 0) */
    int32_t file;       /* index into dataset.files */
    int64_t line;       /* from 1, in the decompressed file */
};
struct example_note { /* what lint wants to know of a kept row; lengths and hashes are of the ids before cutting */
    uint64_t prompt_hash, chosen_hash, rejected_hash;
    int32_t np, nw, nl;
    int32_t special; /* the first added token that the row's text spells, -1: none */
    bool joint_differs; /* prompt and response encoded as one text are other tokens than apart */
    bool bos_missing, bos_doubled, end_doubled;
};
struct data_stats {
    int64_t rows; /* lines that are not blank; all else counts among these */
    int64_t bad;  /* malformed and skipped */
    int64_t dropped_empty, dropped_equal, dropped_cut; /* degenerate: a part without text; equal in text or ids; equal once cut */
    int64_t truncated_prompts, truncated_responses; /* of the kept rows */
    int64_t special_text; /* rows whose text spells an added token ("<|im_end|>") */
    int64_t kept;         /* usable rows, before subsample */
};
enum { DATA_DROPS_MAX = 20 };
enum drop_why {
    DROP_CHOSEN_EMPTY, DROP_RESPONSE_EMPTY, DROP_REJECTED_EMPTY, DROP_PROMPT_NO_TOKEN, DROP_RESPONSE_NO_TOKEN, DROP_SAME_TEXT,
    DROP_SAME_TOKENS, DROP_SAME_ONCE_CUT, DROP_WHYS
};
const char *drop_text(enum drop_why why); /* "chosen is empty" */
struct data_drop { /* a degenerate row; the first DATA_DROPS_MAX are remembered */
    int64_t line;
    int32_t file, why; /* why: enum drop_why */
};
struct dataset { /* valid when zeroed; immutable after load */
    int32_t *ids;
    int64_t n_ids;
    struct example *ex;
    int64_t n;
    struct example_note *notes; /* [n] where opts.notes, owned */
    char **files; /* owned copies of the paths */
    int32_t n_files;
    int64_t (*forms)[FORM_KINDS]; /* [n_files]: rows of each form; owned */
    bool weighed; /* n counts rows as often as their weight has them used */
    bool stored;  /* the cache was given the tokens: other ranks' disks may still be at that */
    int64_t longest;  /* max over examples of np + nw + nl */
    struct data_stats stats;
    struct data_drop drops[DATA_DROPS_MAX];
    int32_t n_drops;
    struct buf skipped; /* one warning a malformed row: its file (int32_t, -1: not named), then the text behind the path and a NUL; owned */
    char digest[65];  /* fingerprint: SHA-256 over the SHA-256 of each file's decompressed bytes, in order */
};

/* Read every row of the files, in order, in all forms of docs/data.md; tokenise; cut; drop degenerate pairs; subsample; then each file's rows
 * weight times: all of them floor(weight) times, and the rest of the weight as a share of them, chosen by seed. Rows that are used several
 * times are several examples of the same ids.
 * With opts.cache_dir a file of it may stand for the reading: the result and the messages are the same.
 * Two passes are not needed, but nothing is used before all rows were checked. Bad rows: ERR_INPUT listing the first 20 with
 * file:line[:col], unless skip_bad_rows (then up to max_bad_rows, listed on stderr). Too many dropped, or nothing left: ERR_INPUT. */
int dataset_load(struct dataset *d, char *const *paths, int32_t n_paths, enum data_kind kind, const struct data_opts *o,
                 const struct tokenizer *tok, const struct chat_template *tmpl);
void dataset_release(struct dataset *d);
/* "train.jsonl: 1500 rows, 1498 kept (dropped: 1 empty, 1 equal), 12 prompts and 3 responses cut", a line
 * "train.jsonl: form: dialogues in one string (hh-rlhf)" for each file (with counts where it mixes forms), then a line
 * "train.jsonl:17: dropped: rejected is empty" for each of the first dropped rows; no newline at the end. Adds to b. */
int dataset_describe(const struct dataset *d, struct buf *b);

/* The indices of `subsample`: pick[0..k) ascending, k = fraction * n rounded to the nearest (halves up), at least 1, at
 * most n. A pure function of (n, fraction, seed): the first k of a permutation. pick holds n. */
int data_subsample(int64_t *pick, int64_t n, double fraction, uint64_t seed, int64_t *k);

/* Replace d->ex by each file's examples opts.weights times (not NULL). dataset_load does it; on its own for who loads without. ERR_INPUT. */
int dataset_weigh(struct dataset *d, const struct data_opts *o);

/* One prompt of `generate`: a row's "prompt" (text or messages), the whole-conversation forms' shared start, or "messages" up
 * to a last assistant message; a row that is a string is a string prompt. Appended to out as ids with the generation prompt,
 * cut to its last max_prompt_length tokens (and its BOS; 0: not cut). *end: the token that ends a response.
 * ERR_INPUT as file:line where the row is malformed or gives no token. */
int data_encode_prompt(struct ids *out, int32_t *end, const json_t *row, const struct data_opts *o, const struct tokenizer *tok,
                       const struct chat_template *tmpl, const char *file, int64_t line);
#endif
