/* SPDX-License-Identifier: MIT
 * batch.h - the order of training and packed micro-batches. */
#ifndef BDPO_BATCH_H
#define BDPO_BATCH_H
#include "data.h"
#include "../ops/ops.h"

/* Which examples step t uses: a pure function of (seed, epoch, index), so that a resume needs the step's number alone.
 * Valid when zeroed. Epoch e is a permutation of 0..n-1 (shuffle false: the file's order); a batch never spans two epochs. */
struct order {
    int64_t n, batch_size;
    bool shuffle;
    uint64_t seed;
    int64_t epoch;  /* of the permutation in perm; -1: none yet */
    int64_t *perm;  /* [n], owned */
};
/* 1 <= n < 2^31, batch_size >= 1 (may be above n). ERR_OOM, ERR_INPUT. */
int order_init(struct order *o, int64_t n, int64_t batch_size, bool shuffle, uint64_t seed);
void order_release(struct order *o);
int64_t order_steps_per_epoch(const struct order *o); /* ceil(n / batch_size) */
/* Indices of step t (from 0): *first borrowed until the next call, returns how many (the last batch of an epoch may be smaller). */
int64_t order_step(struct order *o, int64_t t, const int64_t **first);

/* A packed micro-batch in host memory. Row of a pair: [prompt | chosen | rejected], each response without its last token
 * (it predicts nothing); positions restart after the prompt. SFT rows: [prompt | response], one causal segment.
 * No padding. T = computed tokens, N = response tokens (predicted positions), P examples, S = 2P sequences (SFT: P).
 * Segments of a pair: the prompt; then each response with the prompt as its prefix, left out where it has no row (a
 * response of one token). A pair (an SFT row) is one group. Valid when zeroed. */
struct batch {
    int32_t T, S, P, N;
    int32_t *ids, *pos;        /* [T] */
    struct segment *seg;       /* [n_seg], at most 3P */
    int32_t *group;            /* [n_groups + 1] first segment of each group */
    int32_t n_seg, n_groups;
    int32_t *src;              /* [N] row of the hidden state that predicts this token (a prompt's last row appears twice) */
    int32_t *target;           /* [N] token id */
    int32_t *seq;              /* [N] sequence: pair p's chosen 2p, rejected 2p + 1; SFT: p */
    int32_t *seq_start;        /* [S + 1] first n of each sequence */
    int64_t *example;          /* [P] index into the dataset */
    /* capacities */
    int32_t T_max, N_max, P_max;
};
/* Room for one micro-batch; memory for the struct's arrays is owned by it. ERR_INPUT above 2^31 - 1. */
int batch_init(struct batch *b, int64_t T_max, int64_t N_max, int64_t P_max);
void batch_release(struct batch *b);
/* Computed tokens of an example: np + nw - 1 (+ nl - 1). */
int64_t example_tokens(const struct example *e);
/* Greedy packing in order: how many of idx[0..n) go into the next micro-batch of at most `tokens_max` computed tokens (at least 1). */
int64_t batch_fit(const struct dataset *d, const int64_t *idx, int64_t n, int64_t tokens_max);
/* Fill b with examples idx[0..n); they must fit (a bug otherwise). Allocates nothing. */
void batch_fill(struct batch *b, const struct dataset *d, const int64_t *idx, int64_t n);
/* What micro-batches hold at most, and how many were looked at. */
struct batch_size {
    int64_t T, N, P, batches;
};
/* Raise *s to the largest T, N, P of the micro-batches that batch_fit makes of idx[0..n) in order, and count them. */
void batch_measure(struct batch_size *s, const struct dataset *d, const int64_t *idx, int64_t n, int64_t tokens_max);
/* The same over the steps [0, steps) of an order. */
void order_measure(struct order *o, struct batch_size *s, const struct dataset *d, int64_t steps, int64_t tokens_max);
#endif
