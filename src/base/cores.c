/* SPDX-License-Identifier: MIT */
#include "cores.h"
#include <omp.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

static void add(uint8_t *bits, int core)
{
    if (core >= 0 && core < CORES_MAX) bits[core / 8] |= (uint8_t)(1u << core % 8);
}

static void add_place(uint8_t *bits, int place)
{
    const int n = omp_get_place_num_procs(place);
    int *core = n > 0 ? calloc((size_t)n, sizeof *core) : NULL;
    if (!core) return;
    omp_get_place_proc_ids(place, core);
    for (int i = 0; i < n; i++)
        add(bits, core[i]);
    free(core);
}

int32_t cores_allowed(uint8_t bits[CORES_MAX / 8])
{
    const size_t size = CPU_ALLOC_SIZE(CORES_MAX);
    cpu_set_t *set = CPU_ALLOC(CORES_MAX);
    int32_t n = 0;
    memset(bits, 0, CORES_MAX / 8);
    for (int i = 0; i < omp_get_num_places(); i++)
        add_place(bits, i);
    if (set && sched_getaffinity(0, size, set) == 0)
        for (int i = 0; i < CORES_MAX; i++)
            if (CPU_ISSET_S((size_t)i, size, set)) add(bits, i);
    if (set) CPU_FREE(set);
    for (int i = 0; i < CORES_MAX; i++)
        n += bits[i / 8] >> i % 8 & 1;
    return MAX(n, 1);
}
