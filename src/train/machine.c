/* SPDX-License-Identifier: MIT */
#include "machine.h"
#include "status.h"
#include "../io/file.h"
#include <malloc.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A library's panels for one product (oneDNN's sgemm: 0.8 to 1.2 MiB by AVX2) come from the system and go back; in a heap, page-aligned as they are,
 * they leave gaps that the next one does not fit, and a thread's heap grows to many times their sum. */
enum { HEAP_THRESHOLD = 512 << 10 };

static const struct device devices[] = {
    { "h200", "NVIDIA H200", "H200", 989e12, 4.8e12, 141000000000 },
    { "h100", "NVIDIA H100 SXM", "H100", 989e12, 3.35e12, 80000000000 },
    { "a100", "NVIDIA A100 80GB", "A100", 312e12, 2.04e12, 80000000000 },
    { "3090", "NVIDIA GeForce RTX 3090", "RTX 3090", 71e12, 0.936e12, 24000000000 },
};

const struct device *device_find(const char *name)
{
    for (size_t i = 0; i < COUNT_OF(devices); i++)
        if (strcmp(devices[i].name, name) == 0) return &devices[i];
    return NULL;
}

const struct device *device_named(const char *about)
{
    for (size_t i = 0; i < COUNT_OF(devices); i++)
        if (strstr(about, devices[i].model)) return &devices[i];
    return NULL;
}

const char *device_names(void)
{
    return "h200, h100, a100, 3090";
}

/* The digits of s as a number; -1 where it does not start with one, or is beyond 64 bits. */
static int64_t digits(const char *s)
{
    int64_t n = 0;
    if (*s < '0' || *s > '9') return -1;
    for (; *s >= '0' && *s <= '9'; s++)
        if (!mul_ok(n, 10, &n) || !add_ok(n, *s - '0', &n)) return -1;
    return n;
}

/* The number after `key` ("MemTotal:", or "" for the start) in a file of /proc or /sys; -1: not there. */
static int64_t number_in(const char *path, const char *key)
{
    char *text = NULL;
    size_t len;
    int64_t n = -1;
    if (file_read(&text, &len, path, 1 << 20) == 0) {
        const char *at = *key ? strstr(text, key) : text;
        if (at) at += strlen(key);
        if (at) n = digits(at + strspn(at, " \t"));
    }
    free(text);
    return n;
}

static int64_t in_group(const char *root, const char *at, const char *file, const char *key)
{
    char path[1200];
    snprintf(path, sizeof path, "%s%s/%s", root, at, file);
    return number_in(path, key);
}

/* The lowest limit from the control group `at` up to `root`, or, with `used`, the least that any of them leaves. Cached files
 * that nobody used lately count as used by the system's figures; they are given up first. */
static int64_t lowest(const char *root, char *at, const char *limit, const char *used)
{
    int64_t least = INT64_MAX;
    for (;;) {
        int64_t n = in_group(root, at, limit, "");
        const int64_t u = used ? in_group(root, at, used, "") : 0;
        const int64_t cached = used ? in_group(root, at, "memory.stat", "inactive_file ") : 0;
        if (n >= 0 && u >= 0) {
            n = MAX(n - u + MAX(cached, (int64_t)0), (int64_t)0);
            least = MIN(least, n);
        }
        char *slash = strrchr(at, '/');
        if (!slash) return least;
        *slash = 0;
    }
}

/* Of this process's groups, in both versions' layouts. */
static int64_t group_bytes(bool left)
{
    char *text = NULL, *save = NULL, at[1024];
    size_t len;
    int64_t least = INT64_MAX;
    if (file_read(&text, &len, "/proc/self/cgroup", 1 << 20) < 0) return least;
    for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        char *list = strchr(line, ':'), *path = list ? strchr(list + 1, ':') : NULL;
        if (!path) continue;
        *path++ = 0;
        snprintf(at, sizeof at, "%s", path);
        if (strcmp(list, ":") == 0)
            least = MIN(least,
                        lowest("/sys/fs/cgroup", at, "memory.max", left ? "memory.current" : NULL));
        else if (strcmp(list + 1, "memory") == 0)
            least = MIN(least, lowest("/sys/fs/cgroup/memory", at, "memory.limit_in_bytes",
                                      left ? "memory.usage_in_bytes" : NULL));
    }
    free(text);
    return least;
}

int64_t machine_memory(void)
{
    const int64_t kib = number_in("/proc/meminfo", "MemTotal:");
    return kib < 0 ? 0 : MIN(kib * 1024, group_bytes(false));
}

int64_t machine_available(void)
{
    const int64_t kib = number_in("/proc/meminfo", "MemAvailable:");
    return kib < 0 ? INT64_MAX : MIN(kib * 1024, group_bytes(true));
}

void machine_trim(void)
{
    malloc_trim(0);
}

int64_t machine_anonymous(void)
{
    const int64_t kib = number_in("/proc/self/status", "RssAnon:");
    return kib < 0 ? 0 : kib * 1024;
}

void machine_heap(void)
{
    mallopt(M_MMAP_THRESHOLD, HEAP_THRESHOLD);
    mallopt(M_TRIM_THRESHOLD, HEAP_THRESHOLD);
}

int machine_flops(const struct backend *be, enum dtype A, double *flops)
{
    const int64_t M = 1024, N = 1024, K = 1024;
    const double start = clock_seconds();
    struct plan p = { 0 };
    struct tensor a, b, y;
    double best = INFINITY;
    int rc;
    TRY_OUT(plan_book(&p, PLAN_SCRATCH, &a, A, M, K, 1, 1));
    TRY_OUT(plan_book(&p, PLAN_SCRATCH, &b, A, N, K, 1, 1));
    TRY_OUT(plan_book(&p, PLAN_SCRATCH, &y, DT_F32, M, N, 1, 1));
    TRY_OUT(plan_grant(&p, be));
    TRY_OUT(op_fill(be, &a, 1));
    TRY_OUT(op_fill(be, &b, 1));
    for (int i = 0; i < 3 || clock_seconds() - start < 0.1; i++) {
        const double t = clock_seconds();
        TRY_OUT(op_gemm(be, &y, &a, false, &b, true, NULL, 1, 0));
        best = fmin(best, clock_seconds() - t);
    }
    *flops = 2.0 * (double)(M * N * K) / best;
out:
    plan_release(&p, be);
    return rc;
}
