/* SPDX-License-Identifier: MIT
 * share.h - which rank computes which examples of a step. */
#ifndef BDPO_SHARE_H
#define BDPO_SHARE_H
#include "../data/batch.h"

struct slot {      /* a micro-batch: examples [at, at + n) of the step */
    int64_t at, n;
    int32_t rank;
    int32_t round; /* the how manieth of this rank */
};
/* Cut the step's examples idx[0..n) into micro-batches of at most tokens_max computed tokens; slot[n] has room for all. Returns how many.
 * A pure function, so that every rank knows the share of all. `fixed`: the cut does not depend on the number of ranks, and micro-batch i goes to rank i mod
 * ranks. Else every rank gets a run of examples of about as many computed tokens (or none), and packs that. */
int64_t share_step(struct slot *slot, const struct dataset *d, const int64_t *idx, int64_t n, int64_t tokens_max, int32_t ranks,
                   bool fixed);
#endif
