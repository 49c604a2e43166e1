/* SPDX-License-Identifier: MIT
 * runs.h - what a run has left in its directory, read back for the report. */
#ifndef BDPO_RUNS_H
#define BDPO_RUNS_H
#include "../base/stats.h"
#include "../io/json.h"

struct run { /* valid when zeroed; all owned */
    char *dir, *name;      /* name: the directory's last component */
    json_t *config;        /* config.json; an object */
    json_t *content;       /* fingerprint.json's content; NULL: none */
    json_t *status;        /* status.json; NULL: none */
    json_t *rows;          /* metrics.jsonl: an array of objects */
    json_t *answers;       /* samples.jsonl: an array of objects; empty where there is none */
};
/* ERR_INPUT where dir is no run. A last line that is not whole (the run goes on) is left out. */
int run_read(struct run *r, const char *dir);
void run_release(struct run *r);
/* Text of a config value at a path of keys ("preference.loss"), as JSON; "" where it is not there. Adds to b. */
int run_setting(const struct run *r, const char *path, struct buf *b);

struct track { /* one key over the steps of a stage; valid when zeroed */
    double *x, *y; /* [n], owned */
    int64_t n;
};
/* The rows of `stage` that have `key`; with minus (may be NULL): key - minus, rows that have both. Numbers that are none become NAN. */
int run_track(const struct run *r, const char *stage, const char *key, const char *minus, struct track *t);
void track_release(struct track *t);
/* Mean of the last tenth of the values with its bootstrap interval; NAN where there are none. */
int track_tail(const struct track *t, struct interval *out);
/* The change of log pi of "chosen" or "rejected" in training: against the reference, or, where there is none, against the first row. */
int run_moved(const struct run *r, const char *side, struct track *t);
/* The newest value of an evaluation's key in the preference stage; NAN: none. */
double run_last(const struct run *r, const char *key);
#endif
