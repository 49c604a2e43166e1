/* SPDX-License-Identifier: MIT
 * statistics.h - what an evaluation's figures are worth: confidence intervals, by length ratio, and two models on the same pairs. */
#ifndef BDPO_STATISTICS_H
#define BDPO_STATISTICS_H
#include "stage.h"

/* Add to o, for the pairs of d (all 95 %, bootstrap over pairs, 1,000 resamples drawn by the run's seed):
 *   "intervals": {KEY: {"mean", "lo", "hi"}} for rewards/accuracies, rewards/margins, logps/chosen and logps/rejected
 *   "by_length_ratio": the same of accuracies and margins with "examples", for classes of tokens(chosen) / tokens(rejected)
 *   "comparison" (other not NULL: scores of another model): {KEY: {"mean", "lo", "hi"}} of pi's value less other's, pair by pair
 * ref NULL: the loss has no reference. ERR_OOM. */
int statistics_set(json_t *o, const struct stage *st, const struct dataset *d, const struct scores *pi, const struct scores *ref,
                   const struct scores *other);
#endif
