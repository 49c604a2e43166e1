/* SPDX-License-Identifier: MIT
 * cpu.h - the CPU backend's private state. Private to src/cpu and its tests. */
#ifndef BDPO_CPU_H
#define BDPO_CPU_H
#include "../ops/ops.h"
#include "rows.h"

enum { SUMSQ_BLOCKS = 1024 };
struct ctx {
    int32_t threads;
    const struct rows *rows;
    char *arena; /* threads * arena_bytes; owned; grows at the first use of a larger shape */
    int64_t arena_bytes; /* a thread's share, a multiple of 64 */
    double partial[SUMSQ_BLOCKS];
};

extern const struct ops cpu_ops;
extern const struct memops cpu_mem;

/* Make every thread's arena at least `bytes` long. */
int cpu_arena(struct ctx *cx, int64_t bytes);
/* The arena of thread i: 64-byte aligned. */
float *cpu_arena_of(const struct ctx *cx, int32_t thread);
/* Threads for `work` elements of cheap work: 1 where starting a team would cost more than it saves.
 */
int cpu_team(const struct ctx *cx, int64_t work);
/* y = alpha op(a) op(b) + beta y on plain row-major pointers, with the threads of cx. */
int cpu_sgemm(struct ctx *cx, bool ta, bool tb, int64_t M, int64_t N, int64_t K, float alpha,
              const float *a, int64_t lda, const float *b, int64_t ldb, float beta, float *y,
              int64_t ldy);
/* Use the named table ("base", "avx2", "avx512") from now on; false where this machine cannot run
 * it. */
bool cpu_force_isa(struct ctx *cx, const char *name);
#endif
