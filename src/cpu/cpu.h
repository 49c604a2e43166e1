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
    void *shared; /* one scratch for all threads; owned; grows likewise */
    int64_t shared_bytes;
    int64_t allocations; /* made so far */
    double partial[SUMSQ_BLOCKS];
};

extern const struct ops cpu_ops;
extern const struct memops cpu_mem;

/* Bytes of each thread's arena, and of the shared scratch, that the kernels of a model need (scratch.c). */
struct cpu_need {
    int64_t arena, shared;
};
struct cpu_need cpu_need_of(const struct ctx *cx, const struct op_sizes *s);
int64_t cpu_library_bytes(const struct ctx *cx, const struct op_sizes *s); /* what libraries take beside */
/* Of single kernels: a norm of n columns; products of few rows of K columns. */
int64_t cpu_attention_fwd_arena(const struct op_sizes *s);
int64_t cpu_attention_bwd_arena(const struct op_sizes *s);
int64_t cpu_norm_arena(int64_t n);
int64_t cpu_few_shared(int64_t K);
/* Make every thread's arena at least `bytes` long. */
int cpu_arena(struct ctx *cx, int64_t bytes);
/* The arena of thread i: 64-byte aligned. */
float *cpu_arena_of(const struct ctx *cx, int32_t thread);
/* The calling thread's, inside a parallel region; NULL before the first cpu_arena. */
float *cpu_thread_arena(const struct ctx *cx);
/* Threads for `work` elements of cheap work, as an addition is (a norm's, a rotation's and an update's count 4, an exponential 8): 1 where
 * starting a team would cost more than it saves. */
int cpu_team(const struct ctx *cx, int64_t work);
/* Make cx->shared at least `bytes` long; what it held is lost. 64-byte aligned. */
int cpu_shared(struct ctx *cx, int64_t bytes);
/* y[M,N] = alpha op(a) op(b) + beta y, where each of a, b, y is F32 or BF16 by itself, beta is 0 or
 * 1, and t means stored transposed; with the threads of cx. */
struct mat {
    const void *p;
    int64_t ld;
    enum dtype dtype;
    bool t;
};
struct product {
    int64_t M, N, K;
    float alpha, beta;
    struct mat a, b;
    void *y;
    int64_t ldy;
    enum dtype y_dtype;
};
int64_t cpu_product_shared(const struct ctx *cx, const struct product *p); /* bytes of cx->shared that it takes; pointers are not read */
int64_t cpu_panels_shared(const struct ctx *cx, const struct product *p);
int cpu_product(struct ctx *cx, const struct product *p); /* by panels, or by oneDNN where all is float */
/* db[N] += sum_T dy[T,N]; db F32, dy F32 or BF16 (elementwise.c). */
void cpu_bias_sums(const struct ctx *cx, struct tensor *db, const struct tensor *dy);
/* By own panels (panels.c). Bit-equal for all thread counts. Uses cx->shared. */
int cpu_panels(struct ctx *cx, const struct product *p);
/* n elements of p (F32 or BF16) from `at`, as floats: where they are, or widened into buf. */
static inline const float *cpu_read(const struct rows *r, float *buf, const void *p, enum dtype d,
                                    int64_t at, int64_t n)
{
    if (d == DT_F32) return (const float *)p + at;
    r->widen(buf, (const uint16_t *)p + at, n);
    return buf;
}
/* Where n elements of p are written as floats (in place, or buf), and what brings them home. */
static inline float *cpu_write(float *buf, void *p, enum dtype d, int64_t at)
{
    return d == DT_F32 ? (float *)p + at : buf;
}
static inline void cpu_wrote(const struct rows *r, const float *buf, void *p, enum dtype d,
                             int64_t at, int64_t n)
{
    if (d != DT_F32) r->narrow((uint16_t *)p + at, buf, n);
}
/* The element i of p. */
static inline void *cpu_at(void *p, enum dtype d, int64_t i)
{
    return (char *)p + i * dtype_size(d);
}
static inline const void *cpu_at_const(const void *p, enum dtype d, int64_t i)
{
    return (const char *)p + i * dtype_size(d);
}
/* Use the named table ("base", "avx2", "avx512", "avx512_bf16", "amx_bf16") from now on; false where this machine cannot run it. */
bool cpu_force_isa(struct ctx *cx, const char *name);
#endif
