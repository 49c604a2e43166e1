/* SPDX-License-Identifier: MIT */
#include "cpu.h"
#include "../base/cores.h"
#include "../base/mem.h"
#include <cpuid.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { THREADS_MAX = 1024, HEADER = 64, PAGE = 4096 };

static const struct rows *const tables[] = { &rows_amx_bf16, &rows_avx512_bf16, &rows_avx512,
                                             &rows_avx2, &rows_base };

/* Tiles of bfloat16 (Intel's AMX): the processor has them (CPUID: AMX-BF16, AMX-TILE), and the kernel, asked by the process (ARCH_REQ_XCOMP_PERM), saves
 * their registers. */
static bool has_tiles(void)
{
    enum { TILES = 1 << 22 | 1 << 24, REQUEST = 0x1023, TILE_DATA = 18 };
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & TILES) == TILES &&
           syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
}

static bool can_run(const struct rows *r)
{
    if (r == &rows_base) return true;
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                      __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
    if (r == &rows_avx2) return avx2;
    const bool tiles = r == &rows_amx_bf16;
    if ((tiles || r == &rows_avx512_bf16) && !__builtin_cpu_supports("avx512bf16")) return false;
    if (tiles && !has_tiles()) return false;
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
}

bool cpu_force_isa(struct ctx *cx, const char *name)
{
    for (size_t i = 0; i < COUNT_OF(tables); i++) {
        if (strcmp(tables[i]->name, name) != 0 || !can_run(tables[i])) continue;
        cx->rows = tables[i];
        return true;
    }
    return false;
}

int cpu_arena(struct ctx *cx, int64_t bytes)
{
    int64_t each, all;
    if (bytes <= cx->arena_bytes) return 0;
    if (!add_ok(bytes, 63, &each) || !mul_ok(each / 64 * 64, cx->threads, &all))
        return err_set(ERR_OOM, "the CPU backend's scratch overflows 64 bits");
    each = each / 64 * 64;
    void *p = aligned_alloc(64, (size_t)all);
    if (!p)
        return err_set(ERR_OOM, "out of memory: %lld bytes of scratch for the CPU backend",
                       (long long)all);
    cx->allocations++;
    free(cx->arena);
    cx->arena = p;
    cx->arena_bytes = each;
    return 0;
}

int cpu_shared(struct ctx *cx, int64_t bytes)
{
    if (bytes <= cx->shared_bytes) return 0;
    void *p = aligned_alloc(64, (size_t)round_up(bytes, 64));
    if (!p)
        return err_set(ERR_OOM, "out of memory: %lld bytes of scratch for the CPU backend",
                       (long long)bytes);
    cx->allocations++;
    free(cx->shared);
    cx->shared = p;
    cx->shared_bytes = bytes;
    return 0;
}

float *cpu_arena_of(const struct ctx *cx, int32_t thread)
{
    return (float *)(void *)(cx->arena + thread * cx->arena_bytes);
}

float *cpu_thread_arena(const struct ctx *cx)
{
    return cx->arena ? cpu_arena_of(cx, omp_get_thread_num()) : NULL;
}

int cpu_team(const struct ctx *cx, int64_t work)
{
    return work < (int64_t)cx->threads << 14 ? 1 : cx->threads;
}

int cpu_open(struct backend *be, int32_t threads)
{
    uint8_t core[CORES_MAX / 8];
    struct ctx *cx;
    memset(be, 0, sizeof *be);
    if (threads < 0 || threads > THREADS_MAX)
        return err_set(ERR_INPUT, "threads: %d is outside [0, %d]", threads, THREADS_MAX);
    TRY(MEM_NEW(&cx, 1));
    cx->threads = threads ? threads : MIN(cores_allowed(core), THREADS_MAX);
    for (size_t i = 0; i < COUNT_OF(tables) && !cx->rows; i++)
        if (can_run(tables[i])) cx->rows = tables[i];
    be->name = "cpu";
    be->cx = cx;
    be->op = &cpu_ops;
    be->mem = &cpu_mem;
    be->threads = cx->threads;
    return 0;
}

void cpu_close(struct ctx *cx)
{
    if (!cx) return;
    free(cx->arena);
    free(cx->shared);
    free(cx);
}

void backend_close(struct backend *be)
{
    if (be->op == &cpu_ops)
        cpu_close(be->cx);
    else if (be->cx)
        cuda_close(be->cx);
    memset(be, 0, sizeof *be);
}

/* --- memory: a header of 64 bytes before each block tells how to let it go
 * ---------------------------------------- */
struct head {
    int64_t mapped; /* bytes of the mapping, 0: from the heap */
};

/* Write to each page, so that what cannot be had is missed now and not in some later step. */
static void touch(const struct ctx *cx, char *p, int64_t bytes)
{
#pragma omp parallel for schedule(static) num_threads(cx->threads)
    for (int64_t at = 0; at < bytes; at += PAGE)
        *(volatile char *)(p + at) = 0;
}

static int mem_alloc(struct ctx *cx, void **out, int64_t bytes)
{
    const int64_t big = 4 << 20;
    int64_t all;
    *out = NULL;
    if (bytes < 0 || !add_ok(bytes, HEADER + 63, &all))
        return err_set(ERR_OOM, "a size overflows 64 bits");
    all = all / 64 * 64;
    char *p;
    if (all >= big) {
        p = mmap(NULL, (size_t)all, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED) p = NULL;
        /* only a hint: without huge pages all works, slower */
        if (p) (void)madvise(p, (size_t)all, MADV_HUGEPAGE);
        if (p) touch(cx, p, all);
    } else {
        p = aligned_alloc(64, (size_t)all);
        if (p) memset(p, 0, (size_t)all);
    }
    if (!p) return err_set(ERR_OOM, "out of memory: %lld bytes", (long long)bytes);
    cx->allocations++;
    struct head h = { .mapped = all >= big ? all : 0 };
    memcpy(p, &h, sizeof h);
    *out = p + HEADER;
    return 0;
}

static void mem_release(struct ctx *cx, void *ptr)
{
    (void)cx;
    if (!ptr) return;
    char *p = (char *)ptr - HEADER;
    struct head h;
    memcpy(&h, p, sizeof h);
    if (h.mapped)
        munmap(p, (size_t)h.mapped);
    else
        free(p);
}

static int mem_copy(struct ctx *cx, void *dst, const void *src, int64_t bytes)
{
    (void)cx;
    BUG_IF(bytes < 0);
    if (bytes) memcpy(dst, src, (size_t)bytes);
    return 0;
}

static int64_t mem_scratch(const struct ctx *cx, const struct op_sizes *s)
{
    const struct cpu_need n = cpu_need_of(cx, s);
    return cx->threads * round_up(n.arena, 64) + round_up(n.shared, 64) + cpu_library_bytes(cx, s);
}

static int mem_reserve(struct ctx *cx, const struct op_sizes *s)
{
    const struct cpu_need n = cpu_need_of(cx, s);
    TRY(cpu_arena(cx, n.arena));
    TRY(cpu_shared(cx, n.shared));
    memset(cx->arena, 0, (size_t)(cx->threads * cx->arena_bytes));
    if (cx->shared) memset(cx->shared, 0, (size_t)cx->shared_bytes);
    return 0;
}

static int64_t mem_allocations(const struct ctx *cx)
{
    return cx->allocations;
}

static int mem_memory(struct ctx *cx, int64_t *limit, int64_t *used)
{
    (void)cx;
    *limit = *used = 0;
    return 0;
}

const struct memops cpu_mem = {
    .alloc = mem_alloc,
    .release = mem_release,
    .to_device = mem_copy,
    .to_host = mem_copy,
    .copy = mem_copy,
    .scratch = mem_scratch,
    .reserve = mem_reserve,
    .allocations = mem_allocations,
    .memory = mem_memory,
};
