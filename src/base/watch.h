/* SPDX-License-Identifier: MIT
 * watch.h - a thread that ends the process when it makes no progress: a rank that waits for one that hangs, or hangs itself. */
#ifndef BDPO_WATCH_H
#define BDPO_WATCH_H
#include "base.h"
#ifdef __cplusplus
extern "C" {
#endif

/* Told before the process ends; from the watching thread, while the main one may hold any lock: no memory allocation. */
typedef void watch_fn(void *payload, const char *reason);
/* After `seconds` without a watch_beat: print where the process is and the stack of this thread, tell `fn` (may be NULL), and end with
 * `exit_code`. Time in which the whole process is stopped, as by Ctrl-Z or a batch system, does not count. One at a time; ERR_OOM. */
int watch_start(double seconds, int exit_code, const char *who, watch_fn *fn, void *payload);
void watch_stop(void);
/* Progress: a layer, a micro-batch, a piece of a file. Costs an addition; without a watcher it does nothing. */
void watch_beat(void);
/* What the process is at, for the message; borrowed, "" or NULL: nothing. */
void watch_stage(const char *stage, int64_t step);
/* A call that may wait for other ranks; NULL: it is over. `patience`: this many times the seconds may pass in it. */
void watch_call(const char *call, int patience);
#ifdef __cplusplus
}
#endif
#endif
