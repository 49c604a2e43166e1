/* SPDX-License-Identifier: MIT
 * job_impl.h - what the files of the job share: job.c runs it, job_write.c writes its rows, checkpoints and models. */
#ifndef BDPO_JOB_IMPL_H
#define BDPO_JOB_IMPL_H
#include "job.h"
#include "output.h"
#include "planning.h"

struct job {
    const struct config *cfg;
    struct setup su;
    struct inputs in;
    struct config resolved;  /* cfg with the memory settings that are in use; borrows */
    struct forecast peak[2]; /* by enum stage_kind */
    struct scores ref[2];    /* by reference.path: of the pairs and of the evaluation set */
    struct output out;
    struct status status;
    double started, last_save; /* seconds */
    int64_t saved[3];          /* stage + 1, step and eval_due of the last checkpoint; 0: none */
};

/* This is the one rank that writes. */
bool job_writes(const struct job *j);
/* A row of metrics.jsonl, its keys after `prefix` ("" or "eval/"), and of timing.jsonl. On the rank that writes. */
int job_row(struct job *j, const struct stage *st, const char *prefix, const struct metrics *m, double norm, double lr);
int job_timing(struct job *j, const struct stage *st, const struct metrics *m, double seconds);

/* All ranks call these together. */
/* A checkpoint of this step, unless it is there. */
int job_checkpoint(struct job *j, struct stage *st);
/* Evaluate, and write the row. A signal cuts it short (ERR_STOPPED, saved): the checkpoint says whether it is `due` again before the next step; that
 * of the stage's end, which keeps the sampled answers, comes by itself. */
int job_evaluate(struct job *j, struct stage *st, bool due);
/* The weights as OUTPUT/name. */
int job_save_model(struct job *j, struct stage *st, const char *name);
/* The end of a stage: the weights become what the files can hold, are evaluated as such, and saved; what was saved is read back and compared. */
int job_finish_stage(struct job *j, struct stage *st);
#endif
