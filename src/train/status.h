/* SPDX-License-Identifier: MIT
 * status.h - what others see of a run: status.json and the progress line. */
#ifndef BDPO_STATUS_H
#define BDPO_STATUS_H
#include "config.h"
#include "metrics.h"

struct status { /* valid when zeroed */
    const struct config *cfg;
    char *path;             /* OUTPUT/status.json; NULL: nothing is written */
    int32_t rank;           /* that of 0 writes; others only that they end the run */
    char *spare;            /* a file that holds room for the last of it; NULL: none */
    const char *stage;      /* "sft", "preference", or NULL before the first */
    int64_t step, steps, step0; /* done, of the stage, at this process's start of it */
    char checkpoint[96];    /* newest one's path under OUTPUT, or "" */
    json_t *metrics;        /* last row */
    double start, stage_start, last_write, last_line; /* seconds, monotonic */
    double tokens_per_second;
    bool bar;               /* a terminal: one line rewritten in place */
    bool bar_open;          /* that line is unfinished */
};
double clock_seconds(void); /* monotonic */
/* `path` may be NULL (commands that write no run). */
int status_open(struct status *s, const struct config *c, const char *path, int32_t rank);
void status_release(struct status *s);
void status_stage(struct status *s, const char *stage, int64_t step, int64_t steps);
/* After each step: rewrites status.json (at most once in two seconds) and shows progress (a bar on a terminal, else a line at most once
 * a second and at the last step). `row` (may be NULL) is the step's metrics row. */
int status_step(struct status *s, int64_t step, const json_t *row, const struct metrics *m, bool preference, double seconds);
/* Write status.json now, on rank 0. state: "running", "done", "stopped", "failed". */
int status_write(struct status *s, const char *state, int exit_code, const char *reason);
/* On a rank other than 0 that ends the run by itself, without time for an agreement: status.json says so, where it says that the run goes on. */
void status_fail(struct status *s, int exit_code, const char *reason);
/* A watch_fn, of a struct status: status.json says that the run failed with exit code 76, unless it says of this run that it ended otherwise. Allocates
 * nothing. */
void status_hang(void *status, const char *reason, bool ends);
/* One line to the user on stderr (closes an open bar first). */
void status_say(struct status *s, const char *fmt, ...) PRINTF_LIKE(2, 3);
#endif
