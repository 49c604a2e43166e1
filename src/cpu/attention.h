/* SPDX-License-Identifier: MIT
 * attention.h - what both directions of attention share: how keys and queries are cut into blocks.
 * Private to src/cpu. */
#ifndef BDPO_CPU_ATTENTION_H
#define BDPO_CPU_ATTENTION_H
#include "cpu.h"

enum {
    ATT_Q = 64,
    ATT_K = 64
}; /* queries and keys of a block; equal, so that only one block a row is cut by the diagonal */

struct att { /* one call's sizes and inputs */
    const struct segments *segs;
    const struct tensor *q, *k, *v;
    int64_t H, K, G, D; /* heads, kv heads, heads a kv head, head size */
    float scale;
};

/* out[n, D] = n rows of x from element `at` on, `step` apart, as floats one behind the other: products read them many times, and rows that lie
 * a large power of two apart share few places of the first cache. */
static inline void att_read(const struct rows *r, float *out, const struct tensor *x, int64_t at,
                            int64_t step, int64_t n, int64_t D)
{
    r->floats->pack(out, D, cpu_at_const(x->data, x->dtype, at), step, x->dtype == DT_BF16, false,
                    D, n);
}
/* Products of two inputs are taken from bfloat16 as it is, where the processor can. */
static inline bool att_pairs(const struct rows *r, const struct tensor *x, int64_t D)
{
    return r->pairs && x->dtype == DT_BF16 && D % 2 == 0;
}

/* n <= 64 rows of x from element `at` on, `step` apart, become the columns of out [D, 64] (with att_pairs [D / 2, 64], two elements in one), 0
 * behind the n-th. */
enum { ATT_COLS = 64 };
static inline void att_transpose(const struct rows *r, float *out, const struct tensor *x,
                                 int64_t at, int64_t step, int64_t n, int64_t D)
{
    const struct panels *q = att_pairs(r, x, D) ? r->pairs : r->floats;
    q->pack(out, ATT_COLS, cpu_at_const(x->data, x->dtype, at), step, x->dtype == DT_BF16, true, n,
            D);
}

/* c [M, ATT_COLS] = M rows of x from element `at` on, `step` apart, times what att_transpose made of N rows; `wide`: what att_read made of
 * the same rows, for where att_pairs is false. */
static inline void att_scores(const struct rows *r, float *c, const struct tensor *x, int64_t at,
                              int64_t step, const float *wide, const float *cols, int64_t M,
                              int64_t N, int64_t D)
{
    if (att_pairs(r, x, D))
        r->block_pairs(c, ATT_COLS, (const uint16_t *)x->data + at, step, cols, ATT_COLS, M,
                       round_up(N, 16), D);
    else
        r->block(c, ATT_COLS, wide, D, 1, cols, ATT_COLS, M, N, D, false);
}

/* Key block b of a segment: kv rows [row, row + n); `first`: its first key's place among the own
 * rows, < 0 in the prefix. */
struct att_keys {
    int64_t row, n, first;
};
static inline int64_t att_key_blocks(const struct segment *s)
{
    return div_up(s->prefix_len, ATT_K) + div_up(s->len, ATT_K);
}
static inline struct att_keys att_keys_at(const struct segment *s, int64_t b)
{
    const int64_t before = div_up(s->prefix_len, ATT_K);
    if (b < before)
        return (struct att_keys){ s->prefix + b * ATT_K, MIN(ATT_K, s->prefix_len - b * ATT_K),
                                  -1 };
    const int64_t first = (b - before) * ATT_K;
    return (struct att_keys){ s->own + first, MIN(ATT_K, s->len - first), first };
}

/* A block of query rows: `n` rows from `q0` of the segment for each of `heads` heads, or, for a
 * single query, the heads themselves as rows (decoding). Row i of head h is at element row * ld +
 * ..., see att_rows_at. */
struct att_rows {
    int64_t q0, n, heads;
    bool across; /* rows are heads */
};
static inline struct att_rows att_rows_at(const struct att *a, const struct segment *s,
                                          int64_t block)
{
    const int64_t q0 = block * ATT_Q;
    if (s->len == 1) return (struct att_rows){ 0, a->G, 1, true };
    return (struct att_rows){ q0, MIN(ATT_Q, s->len - q0), a->G, false };
}
/* Elements of x between two rows of a block. */
static inline int64_t att_step(const struct att_rows *r, const struct tensor *x, int64_t D)
{
    return r->across ? D : x->ld;
}
/* Most rows of a block. */
static inline int64_t att_rows_max(const struct att *a)
{
    return MAX(a->G, ATT_Q);
}
/* Row i sees key j of block `k` where j <= i + this. */
static inline int64_t att_ahead(const struct att_rows *r, const struct att_keys *k)
{
    return k->first < 0 || r->across ? k->n : r->q0 - k->first;
}

/* The diagonal cuts the block: it is taken in strips of so many rows, each against the keys that its rows see. */
enum { ATT_STRIP = 16 };
static inline bool att_diagonal(const struct att_rows *r, const struct att_keys *k)
{
    return att_ahead(r, k) == 0;
}
#endif
