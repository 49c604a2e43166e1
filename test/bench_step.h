/* SPDX-License-Identifier: MIT
 * bench_step.h - the rows of `make bench` that are whole training steps. */
#ifndef BDPO_BENCH_STEP_H
#define BDPO_BENCH_STEP_H
#include "../src/ops/ops.h"

struct bench_step {
    double flops;   /* that a step cannot save: three times the forward pass of its pairs */
    double seconds; /* the best of several steps: zero, forward, log-probabilities, backward, norm, AdamW */
};
/* Two pairs of 168 + 302 + 277 tokens (UltraFeedback's means) through 4 of Qwen2.5-0.5B's 24 layers, with its embedding and head:
 * random weights. keep: the logits. 0, or an error. */
int bench_step(struct bench_step *out, const struct backend *be, enum dtype dtype, bool keep);
#endif
