/* SPDX-License-Identifier: MIT
 * sizing.h - micro_batch_tokens, gradient_checkpointing and keep_logits left to "auto": what fits the memory and is fastest. */
#ifndef BDPO_SIZING_H
#define BDPO_SIZING_H
#include "forecast.h"
#include "machine.h"

/* One choice of micro-batch, with logits kept or not: what it takes and what it costs. */
struct sizing_option {
    int64_t micro_tokens;
    bool keep_logits;
    int64_t bytes;      /* with every layer kept */
    int64_t save;       /* bytes less with each layer that is recomputed, the first L - 1 of them */
    double cost;        /* of a pass over the data with every layer kept, in any unit */
};
struct sizing_pick {
    int option; /* index, or -1: none fits */
    int64_t recompute;
};
/* Of all pairs (option, layers recomputed) that take at most `limit` bytes: the cheapest, where one recomputed layer costs `share` / L of the
 * cost; of those that cost hardly more (SIZING_SLACK), the one that takes least. recompute >= 0 fixes the layers. Pure. */
struct sizing_pick sizing_pick(const struct sizing_option *o, int n, int64_t limit, int64_t L, double share, int64_t recompute);

struct sizing_want { /* CONFIG_AUTO, or what config or checkpoint say */
    int64_t micro_tokens, recompute, keep_logits;
};
struct sizing {
    int64_t limit;        /* bytes the run may take */
    bool limit_given;     /* by memory.limit, else the machine's less what its system needs */
    int64_t micro_tokens, recompute;
    bool keep_logits;
    struct batch_size size;  /* the largest micro-batches of the stage that takes most */
    int stage;               /* that stage: index into the list */
    struct forecast peak;    /* its peak */
    struct forecast stage_peak[RUN_STAGES]; /* of each */
};
struct sizing_run {
    const struct run_stage *stage; /* [n] */
    int n;
    struct forecast_base base;
    double small_batch; /* tokens that a micro-batch costs beside its own: reading weights, adding to their gradient */
    int64_t memory;     /* of an accelerator on which the arenas lie, bytes; 0: the host */
    bool elsewhere;     /* it is not this machine's, and memory.limit says nothing about it */
};
/* Choose and set su->micro_tokens, recompute and keep_logits. ERR_INPUT where nothing fits: what does, in the settings' own words; *s is then what
 * the smallest run takes. */
int sizing_choose(struct sizing *s, struct setup *su, const struct sizing_run *run, const struct sizing_want *want);
/* Set memory and small_batch by the backend that runs. */
int sizing_on(struct sizing_run *run, const struct backend *be);
/* small_batch of a device with published figures. */
double sizing_small_batch(const struct device *d);
#endif
