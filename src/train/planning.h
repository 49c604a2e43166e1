/* SPDX-License-Identifier: MIT
 * planning.h - the plan of a run for people and programs: memory, arithmetic, hours, disk. */
#ifndef BDPO_PLANNING_H
#define BDPO_PLANNING_H
#include "inputs.h"

struct planning_opts {
    const char *device; /* an accelerator's name (machine.h); NULL: this machine */
    int32_t ranks;      /* of the run; on this machine all of them share it, else each has a device of its own */
    bool json;
};
/* The `plan` command: reads config.json, the tokenizer and the data, no weights; prints the plan on stdout: memory is rank 0's, which has most. A run that does not fit: the plan, then
 * ERR_INPUT with what would make it fit. */
int planning_run(const struct config *c, const struct planning_opts *o);
/* What a run says at its start, no newline at the end: peak and limit, bytes by category, sizes chosen. A warning where less memory is free
 * now. Adds to b. */
int planning_brief(struct buf *b, const struct setup *su, const struct sizing *s);
/* After a stage's first step, when all memory of a step is in use: is it what the plan said for that stage? */
int planning_compare(struct status *st, const struct backend *be, const struct forecast *planned);
#endif
