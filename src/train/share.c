/* SPDX-License-Identifier: MIT */
#include "share.h"

/* Examples [from, to) packed in order. */
static int64_t pack(struct slot *slot, const struct dataset *d, const int64_t *idx, int64_t from,
                    int64_t to, int64_t tokens_max, int32_t rank)
{
    int64_t k = 0;
    for (int64_t at = from; at < to; k++) {
        const int64_t n = batch_fit(d, idx + at, to - at, tokens_max);
        slot[k] = (struct slot){ at, n, rank, (int32_t)k };
        at += n;
    }
    return k;
}

int64_t share_step(struct slot *slot, const struct dataset *d, const int64_t *idx, int64_t n,
                   int64_t tokens_max, int32_t ranks, bool fixed)
{
    int64_t total = 0, before = 0, k = 0, from = 0;
    int32_t rank = 0;
    if (fixed) {
        k = pack(slot, d, idx, 0, n, tokens_max, 0);
        for (int64_t i = 0; i < k; i++) {
            slot[i].rank = (int32_t)(i % ranks);
            slot[i].round = (int32_t)(i / ranks);
        }
        return k;
    }
    for (int64_t i = 0; i < n; i++)
        total += example_tokens(&d->ex[idx[i]]);
    /* an example goes where its middle lies */
    for (int64_t i = 0; i < n; i++) {
        const int64_t t = example_tokens(&d->ex[idx[i]]);
        const int32_t to =
            (int32_t)(((double)before + 0.5 * (double)t) * ranks / (double)MAX(total, (int64_t)1));
        before += t;
        if (to == rank) continue;
        k += pack(slot + k, d, idx, from, i, tokens_max, rank);
        from = i;
        rank = MIN(to, ranks - 1);
    }
    return k + pack(slot + k, d, idx, from, n, tokens_max, rank);
}
