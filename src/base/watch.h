/* SPDX-License-Identifier: MIT
 * watch.h - a thread that ends the process when it makes no progress: a rank that waits for one that hangs, or hangs itself. */
#ifndef BDPO_WATCH_H
#define BDPO_WATCH_H
#include "base.h"
#ifdef __cplusplus
extern "C" {
#endif

/* From the watching thread, while the main one may hold any lock: no memory allocation. ends: the process ends when this returns; else it may be ended
 * by others at any moment. */
typedef void watch_fn(void *payload, const char *reason, bool ends);
/* After `seconds` without a watch_beat: print where the process is and the stack of this thread, tell `fn` (may be NULL), and end with
 * `exit_code`. Time in which the whole process is stopped, as by Ctrl-Z or a batch system, does not count. One at a time; ERR_OOM. */
int watch_start(double seconds, int exit_code, const char *who, watch_fn *fn, void *payload);
/* Before watch_start: tell `fn` too where the process is `grace` seconds after a SIGTERM, once: a launcher sends it when a rank is dead, and SIGKILL soon after. */
void watch_term(double grace);
/* `fn` is told no more but of a hang; it is not running when this returns. */
void watch_mute(void);
void watch_stop(void);
/* Progress: a layer, a micro-batch, a piece of a file. Costs an addition; without a watcher it does nothing. */
void watch_beat(void);
/* What the process is at, for the message; borrowed, "" or NULL: nothing. */
void watch_stage(const char *stage, int64_t step);
/* How many times the seconds a disk may take: over a call of the system that cannot be cut into pieces, and for those who wait for it. */
enum { WATCH_DISK = 10 };
/* A call that may wait for other ranks; NULL: it is over, or one of the system. `patience`: this many times the seconds may pass in it. */
void watch_call(const char *call, int patience);
#ifdef __cplusplus
}
#endif
#endif
