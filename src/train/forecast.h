/* SPDX-License-Identifier: MIT
 * forecast.h - the anonymous memory of a run at its peak, by what takes it. */
#ifndef BDPO_FORECAST_H
#define BDPO_FORECAST_H
#include "stage.h"

enum forecast_part { /* after the plan's own categories */
    FORECAST_LIBRARY = PLAN_CATS, /* scratch of the backend's kernels and of the libraries that they call; threads */
    FORECAST_DATA,                /* token ids and rows, host memory */
    FORECAST_SCORES,              /* log-probabilities of reference and evaluation, order of the rows, lists of a pass over them */
    FORECAST_FILES,               /* pieces of weights on their way from and to files */
    FORECAST_PROGRAM,             /* tokenizer, libraries, what the program had before any of this */
    FORECAST_PARTS
};
struct forecast {
    int64_t part[FORECAST_PARTS]; /* bytes */
    int64_t device;               /* of FORECAST_LIBRARY, what the backend's device holds */
};
const char *forecast_name(int part);
int64_t forecast_total(const struct forecast *f);
/* What is, or would be, on an accelerator. */
int64_t forecast_device(const struct forecast *f);

enum { RUN_STAGES = 3 }; /* at most: a pass of reference.path's model, sft, preference */
struct run_stage { /* a stage as the plan sees it */
    enum stage_kind kind;
    const struct arch *arch;
    const struct dataset *data, *eval; /* eval NULL: none */
    bool train;
};
/* What the process holds before any stage: data, and the program with its tokenizer. */
struct forecast_base {
    int64_t data, program;
};
struct forecast_base forecast_base(const struct dataset *const *sets, int n, int64_t tokenizer_bytes);
/* The peak while `r` runs with su->recompute layers recomputed and micro-batches of b; su->be is open. */
int forecast_stage(struct forecast *f, const struct setup *su, const struct run_stage *r, const struct batch_size *b,
                   const struct forecast_base *base);
#endif
