/* SPDX-License-Identifier: MIT */
#include "nf4.h"
#include <math.h>
#include <pthread.h>
#include <stdlib.h>

static int ascending(const void *a, const void *b)
{
    const float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static float table[NF4_SCALE_CODES];

/* In each decade as many means of neighbouring points as bits are left for the fraction, in float32 as torch.linspace makes the points:
 * with one rounding, from the nearer end. */
static void make_table(void)
{
    static const float decade[] = { 1e-6f, 1e-5f, 1e-4f, 1e-3f, 1e-2f, 1e-1f, 1 };
    int n = 0;
    for (int e = 0; e < 7; e++) {
        const int parts = 1 << e;
        const float step = (1.0f - 0.1f) / (float)parts;
        for (int i = 0; i < parts; i++) {
            float end[2];
            for (int k = 0; k < 2; k++)
                end[k] = i + k < (parts + 1) / 2 ? fmaf(step, (float)(i + k), 0.1f)
                                                 : fmaf(-step, (float)(parts - i - k), 1);
            const float mean = (end[0] + end[1]) / 2 * decade[e];
            table[n++] = mean;
            table[n++] = -mean;
        }
    }
    table[n++] = 0;
    table[n++] = 1;
    qsort(table, NF4_SCALE_CODES, sizeof *table, ascending);
}

const float *nf4_scale_table(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    (void)pthread_once(&once, make_table);
    return table;
}
