/* SPDX-License-Identifier: MIT
 * job.h - the whole job of one config: SFT, then the preference stage, with everything under OUTPUT. */
#ifndef BDPO_JOB_H
#define BDPO_JOB_H
#include "config.h"
#include "../dist/dist.h"

struct job_opts {
    bool allow_change; /* resume although config or data changed */
};
/* All ranks, rank 0 writing: train as the config says, until a signal comes (base/signals.h). 0 (also where the run was finished before), or an error; once training has begun status.json says the same. */
int job_run(const struct config *c, struct dist *dist, const struct job_opts *o);
/* dry_run.c: --dry-run: validate everything down to the data; stdout gets the resolved config as JSON with the steps and the effective loss in
 * its notes, stderr the same in words. */
int job_dry_run(const struct config *c);
#endif
