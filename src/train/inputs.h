/* SPDX-License-Identifier: MIT
 * inputs.h - the data of a run, and its stages as the memory plan sees them. */
#ifndef BDPO_INPUTS_H
#define BDPO_INPUTS_H
#include "sizing.h"

struct inputs { /* valid when zeroed */
    struct dataset data[2], eval[2]; /* by enum stage_kind */
    bool has_eval;
    bool assumed[2];                 /* a stage's files are not there: rows of the greatest length stand for them */
    struct arch reference;           /* of reference.path */
    struct run_stage stage[RUN_STAGES]; /* in the order of the run */
    int n_stages;
    int64_t tokenizer_bytes;
};
bool inputs_present(const struct config *c, enum stage_kind k); /* the config has the stage */
bool inputs_reads_reference(const struct config *c);   /* its preference loss reads a reference */
bool inputs_foreign_reference(const struct config *c); /* and that is the model of reference.path */
/* Read and tokenise all data of the run, and the reference's config.json. `assume`: a file of data.train that does not exist is no error. */
int inputs_load(struct inputs *in, const struct setup *su, bool assume);
void inputs_release(struct inputs *in);
bool inputs_stored(const struct inputs *in); /* tokens went to the cache */
/* The list of stages. */
int inputs_run(struct sizing_run *run, const struct inputs *in, const struct backend *be);
#endif
