/* SPDX-License-Identifier: MIT
 * lint.h - the data of a config, read and tokenised as a run would, and what is odd about them. */
#ifndef BDPO_LINT_H
#define BDPO_LINT_H
#include "setup.h"
#include "../io/json.h"

/* Reads all training and evaluation data of the config and prints a report on stdout; `out` (NULL: none): the same as JSON.
 * 0 where there are warnings at most; ERR_INPUT where a run would be refused, after the report of what could be read. */
int lint_run(const struct config *c, const char *out);

/* lint_stats.c; each adds to the set's object and the text. ERR_OOM.
 * Lengths before cutting (min, mean, median, 95th percentile, max), chosen against rejected, and a histogram of whole rows. */
int lint_lengths(json_t *set, struct buf *text, const struct dataset *d);
/* Tokens of an epoch and how full its micro-batches are, packed as the stage would. */
int lint_packing(json_t *set, struct buf *text, const struct dataset *d, const struct stage_config *st, uint64_t seed,
                 int64_t micro_tokens);
#endif
