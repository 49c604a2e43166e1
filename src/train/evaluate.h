/* SPDX-License-Identifier: MIT
 * evaluate.h - preference metrics of a model on data.eval, without training. */
#ifndef BDPO_EVALUATE_H
#define BDPO_EVALUATE_H
#include "config.h"
#include "../dist/dist.h"

/* All ranks, rank 0 writing: print one JSON object with the metrics' keys on stdout, plain and as an evaluation row of metrics.jsonl spells them (eval/). model NULL: OUTPUT/model, else model.path. The reference: reference.path, else
 * OUTPUT/sft, else model.path. With statistics_set's intervals.
 * compare (may be NULL): a model directory that is scored on the same pairs. per_pair (may be NULL): a file that gets one JSON line a pair. Without a preference section: SFT's loss. */
int evaluate_run(const struct config *c, struct dist *dist, const char *model, const char *compare, const char *per_pair);
#endif
