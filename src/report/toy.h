/* SPDX-License-Identifier: MIT
 * toy.h - the paper's toy case (Figures 3, 7, 8): prompts, responses and a small network, trained by any loss of the table. */
#ifndef BDPO_TOY_H
#define BDPO_TOY_H
#include "../loss/loss.h"
#include "../ops/ops.h"

enum { TOY_PROMPTS = 4, TOY_RESPONSES = 4, TOY_HIDDEN = 32 };
enum { /* where the parts of the flat parameters start: w1[HIDDEN, PROMPTS], b1[HIDDEN], w2[RESPONSES, HIDDEN], b2[RESPONSES] */
    TOY_W1 = 0,
    TOY_B1 = TOY_W1 + TOY_HIDDEN * TOY_PROMPTS,
    TOY_W2 = TOY_B1 + TOY_HIDDEN,
    TOY_B2 = TOY_W2 + TOY_RESPONSES * TOY_HIDDEN,
    TOY_PARAMS = TOY_B2 + TOY_RESPONSES
};

/* Logits of prompt x: w2 relu(w1 onehot(x) + b1) + b2; pi is their softmax. The policy starts as the reference. Response role[x][0] is chosen,
 * role[x][1] rejected, the other two are out of distribution. */
struct toy { /* valid when zeroed; no memory of its own */
    const struct backend *be;
    float param[TOY_PARAMS], grad[TOY_PARAMS], m[TOY_PARAMS], v[TOY_PARAMS];
    double log_pi[TOY_PROMPTS][TOY_RESPONSES], log_ref[TOY_PROMPTS][TOY_RESPONSES];
    int64_t role[TOY_PROMPTS][TOY_RESPONSES];
    struct adamw opt; /* beta 0.9 and 0.999, eps 1e-8, no decay; step: updates done */
};
/* Weights and biases uniform in +-1/sqrt(inputs of their layer), as torch.nn.Linear draws them: parameter i from rng_uniform(seed,
 * (RNG_TOY, 0), i); the roles of prompt x are a permutation drawn from (RNG_TOY, 1 + x). */
void toy_init(struct toy *t, const struct backend *be, uint64_t seed);
/* One AdamW step on the mean loss over the four pairs; *loss (may be NULL): before it. log_pi is renewed. */
int toy_step(struct toy *t, const struct loss_def *d, const struct loss_opts *o, double rate, double *loss);

enum { TOY_RATES_MAX = 8 };
struct toy_opts {
    double rate[TOY_RATES_MAX]; /* the first one is that of the pictures and the CSV by steps */
    int32_t n_rates;
    int64_t steps, seeds;       /* the statistic is over seeds seed, seed + 1, ... */
    uint64_t seed;
    const char *out;            /* STEM; NULL: the table alone */
};
/* Every loss of the table with its default options, at each rate, for each seed. stdout: how often it raises the chosen, lowers the
 * rejected, raises a response out of distribution, with 95 % intervals. Files: STEM-steps.csv, STEM-final.csv, STEM-table.csv, STEM-NAME.svg
 * for each loss. ERR_IO, ERR_OOM. */
int toy_run(const struct toy_opts *o);
#endif
