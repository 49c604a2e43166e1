/* SPDX-License-Identifier: MIT
 * output.h - the run's directory: who holds it, what an earlier run left there, where to go on. */
#ifndef BDPO_OUTPUT_H
#define BDPO_OUTPUT_H
#include "checkpoint.h"
#include "sizing.h"

struct output {          /* valid when zeroed */
    char *dir;           /* OUTPUT, owned */
    int lock;            /* fd, 0: not held */
    char *fingerprint;   /* of this run: JSON text, owned */
    bool begun;          /* config.json and fingerprint.json of this run stand there */
    struct rows_file metrics, timing;
    /* where to start */
    enum stage_kind first; /* the stage to start with */
    char *resume;        /* checkpoint directory to start it from, NULL: its beginning; owned */
    int64_t metrics_bytes; /* metrics.jsonl is cut back to this */
    bool finished;       /* an earlier run is complete and equal: nothing to do */
};
/* Look, without writing: can the directory be made or written (ERR_INPUT), what did an earlier run leave, does it fit this run (ERR_CHECKPOINT
 * naming what differs, unless allow_change). `fingerprint` is copied. */
int output_open(struct output *o, const struct config *c, const char *fingerprint, bool allow_change);
/* All ranks: output_open on rank 0, what it found on all; the others hold no lock and write nothing. */
int output_open_all(struct output *o, const struct config *c, struct dist *dist, const char *fingerprint, bool allow_change);
/* First write, when nothing can be wrong with the input any more: directory, lock, config.json, fingerprint.json, metrics.jsonl, timing.jsonl.
 * Called again it does nothing. */
int output_begin(struct output *o, const struct config *c);
/* A signal came (the error at hand) before the run's first write, while data or model were read: write status.json alone, where OUTPUT can be had and is not
 * a finished run. Requeue scripts look at it, and launchers may not pass exit codes on. */
void output_early_stop(struct output *o, const struct config *c, struct status *s);
/* Warn where the disk has less room than the run may still take: its checkpoints (one more than `keep`, while one is written), each of
 * `checkpoint_bytes`, and its models of `model_bytes`. */
void output_room(const struct output *o, const struct config *c, int64_t checkpoint_bytes, int64_t model_bytes);
/* Where the run goes on and the config leaves it open: the sizes that it had (of the checkpoint, else of OUTPUT/config.json). */
int output_sizes(const struct output *o, struct sizing_want *want);
/* Write OUTPUT/report.html from what the run has left there. */
int output_report(const struct output *o);
void output_close(struct output *o);
/* OUTPUT/name; the caller frees. */
int output_path(const struct output *o, const char *name, char **path);
#endif
