/* SPDX-License-Identifier: MIT
 * model_fixture.h - tiny models of every supported shape, and hand-made batches, for the model's tests. */
#ifndef BDPO_MODEL_FIXTURE_H
#define BDPO_MODEL_FIXTURE_H
#include "../src/model/model.h"

enum { FIX_QWEN2_TIED, FIX_QWEN3, FIX_LLAMA3_BIASES, FIX_LLAMA_TIED, FIX_QWEN3_TIED_BIASES, FIX_SHAPES, FIX_WIDE = FIX_SHAPES /* rows of whole blocks of nf4 */, FIX_VOCAB = 61 };
const char *fix_config(int shape); /* text of its config.json */
/* Write text to dir/name. */
void fix_write(const char *dir, const char *name, const char *text);

struct fix { /* a model with memory for batches of up to T = N = 64 tokens */
    struct backend be;
    struct plan plan;
    struct model m;
    struct op_sizes sizes; /* for the backend's own scratch; not reserved */
};
/* Shape's config.json is written to dir and read back; every weight is drawn (norms around 1, biases around 0). */
void fix_open(struct fix *f, const char *dir, int shape, bool train, int recompute); /* DT_F32 */
void fix_open_as(struct fix *f, const char *dir, int shape, enum dtype dtype, bool train, int recompute); /* recompute: layers */
void fix_open_keeping(struct fix *f, const char *dir, int shape, enum dtype dtype); /* to train, with logits kept */
typedef int fix_backend(struct backend *be, int32_t threads);
/* On the backend that `open` opens, with buffers of size. */
void fix_open_on(struct fix *f, fix_backend *open, const char *dir, int shape, enum dtype dtype, const struct model_size *size);
/* With adapters, drawn like all other weights. */
void fix_open_lora(struct fix *f, const char *dir, int shape, enum dtype dtype, const struct lora *lora, const struct model_size *size);
/* The same of FIX_WIDE, with a base in 4 bits or, to compare, without. */
void fix_open_nf4(struct fix *f, fix_backend *open, const char *dir, enum dtype dtype, const struct lora *lora, int nf4, const struct model_size *size);
void fix_close(struct fix *f);

enum { FIX_PAIRS = 4, FIX_LEN = 16 };
struct fix_pairs { /* pairs of a prompt and two responses, of 1 to 7 tokens each */
    int32_t np[FIX_PAIRS], len[FIX_PAIRS][2];
    int32_t prompt[FIX_PAIRS][FIX_LEN], response[FIX_PAIRS][2][FIX_LEN];
};
void fix_pairs_draw(struct fix_pairs *p, uint64_t seed);
/* The whole sequence s = 2 pair + side; returns its length. */
int32_t fix_sequence(const struct fix_pairs *p, int s, int32_t ids[2 * FIX_LEN]);

struct fix_batch { /* a batch with its arrays inside */
    struct batch b;
    int32_t ids[256], pos[256], src[256], target[256], seq[256], seq_start[64], group[64];
    struct segment seg[64];
};
/* Pairs [first, first + n): the prompt shared by its two responses, or every sequence as a row of its own. */
void fix_batch_pairs(struct fix_batch *fb, const struct fix_pairs *p, int first, int n);
void fix_batch_apart(struct fix_batch *fb, const struct fix_pairs *p, int first, int n);
#endif
