/* SPDX-License-Identifier: MIT
 * dist.h - the ranks of one run: how they were launched, agreement on errors, small collectives. A struct dist * may be NULL everywhere:
 * one rank. Each function that says "all ranks" is called by all of them, in the same order. */
#ifndef BDPO_DIST_H
#define BDPO_DIST_H
#include "../base/base.h"
#include "../base/watch.h"

struct comm;
struct dist { /* valid when zeroed: one rank */
    int32_t rank, size; /* size 0 counts as 1 */
    int32_t cores;      /* this rank's share of the cores it may use; 0: it has them for itself */
    int32_t node_ranks; /* ranks on this machine */
    int32_t node_rank;  /* of them, how many have a lower rank */
    int32_t device_ranks; /* ranks on this rank's device, itself included; 0 counts as 1 (link_choose) */
    struct comm *comm;  /* NULL: one rank */
    int32_t speaker;    /* the lowest rank that failed, of the last agreement */
    bool agreed;        /* the last error is every rank's */
    /* what was communicated: seconds inside these calls, bytes of payload sent to other ranks (of a collective: to each of them) */
    double seconds;
    int64_t bytes;
};
static inline int32_t dist_rank(const struct dist *d) { return d ? d->rank : 0; }
static inline int32_t dist_size(const struct dist *d) { return d ? MAX(d->size, 1) : 1; }

/* Join the ranks that mpirun or srun started; alone (no launcher, or one rank of it) MPI is not touched. ERR_INPUT where the launcher's ranks
 * are not those that the MPI library sees, or the program was built without one; d->rank is then the launcher's, so that one can speak.
 * Where this rank fails after the others were joined, dist_alone says so: it ends them by dist_abort, as after any failure of its own. */
int dist_open(struct dist *d);
void dist_close(struct dist *d);
/* The running kernel: equal on one machine, whatever its containers are called. */
enum { DIST_MACHINE = 40 };
void dist_machine(char out[DIST_MACHINE]);
/* Print the error at hand and end all ranks at once. */
void dist_abort(struct dist *d, int exit_code) __attribute__((noreturn));

/* All ranks: 0 where rc >= 0 on all. Else the code and message of the lowest rank that failed, on all ranks. An error that all ranks have already is
 * returned as it is. */
int dist_agree(struct dist *d, int rc);
/* The same after some ranks have written files, for which the others wait with WATCH_DISK times the patience. */
int dist_agree_written(struct dist *d, int rc);
/* This rank alone has failed: others may wait for it. */
bool dist_alone(const struct dist *d);
/* All ranks: the error that they agreed on is dealt with, and what comes is another one. */
void dist_recover(struct dist *d);
/* All ranks: dist_agree, and x[i] = the largest of all ranks' x[i], n <= 8. */
int dist_vote(struct dist *d, int rc, int64_t *x, int32_t n);
/* All ranks: x[i] = sum of all ranks' x[i], added in the order of ranks (so, where one rank alone has a value that is not 0, that value
 * exactly). */
int dist_sum(struct dist *d, double *x, int64_t n);
/* All ranks: rank 0's data. */
int dist_bcast(struct dist *d, void *data, int64_t bytes);
/* All ranks: all[size * bytes] = every rank's mine. */
int dist_gather(struct dist *d, const void *mine, void *all, int64_t bytes);

/* Watch this rank: without progress for `seconds` it ends with exit code 76, and the launcher then ends the others. fn is told of that, rank 0's before
 * the others', and of several ranks also when a SIGTERM is followed by nothing. watch_stop() ends it. */
int dist_watch(struct dist *d, double seconds, watch_fn *fn, void *payload);
/* Count seconds and bytes from 0. */
void dist_count(struct dist *d);
/* Seconds, monotonic. */
double dist_clock(void);
/* Around a call that may wait for others: it counts as communication, and the watcher can name it. patience: 1, or WATCH_DISK. Returns what
 * dist_leave takes. */
double dist_enter(const char *what, int patience);
void dist_leave(struct dist *d, double since);
#endif
