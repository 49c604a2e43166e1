/* SPDX-License-Identifier: MIT
 * machine.h - what this machine has, and what others have: memory and speed. */
#ifndef BDPO_MACHINE_H
#define BDPO_MACHINE_H
#include "../ops/plan.h"

/* Bytes that this process may ever have: the machine's memory, or the lowest limit of its control groups. 0: cannot be read. */
int64_t machine_memory(void);
/* Bytes that are free now or can be freed (MemAvailable, what the control groups leave). INT64_MAX: cannot be read. */
int64_t machine_available(void);
/* Give back what the heap holds and nobody uses. */
void machine_trim(void);
/* Anonymous memory of this process now. 0: cannot be read. */
int64_t machine_anonymous(void);
/* Settings of the heap that keep what is freed from staying resident; before the first large allocation. */
void machine_heap(void);
/* Speed of a large product of A matrices with float32 result, FLOP/s: the best of some that take a tenth of a second in all. */
int machine_flops(const struct backend *be, enum dtype A, double *flops);

struct device { /* published figures: dense bfloat16 FLOP/s, memory and its bandwidth */
    const char *name, *title, *model; /* for --device; for people; in what its driver calls it */
    double flops, bytes_per_second;
    int64_t memory;
};
const struct device *device_find(const char *name); /* NULL: none of that name */
const struct device *device_named(const char *about); /* the one whose model stands in a text; NULL: none */
const char *device_names(void);                     /* "h200, h100, ..." */
#endif
