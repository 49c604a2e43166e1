/* SPDX-License-Identifier: MIT */
#include "generate.h"
#include <math.h>
#include <stdlib.h>

static int by_probability(const void *a, const void *b)
{
    const struct sample_work *x = a, *y = b;
    if (x->p != y->p) return x->p < y->p ? 1 : -1;
    return x->id < y->id ? -1 : x->id > y->id;
}

static int32_t greedy(const float *logits, int64_t V)
{
    int64_t best = 0;
    for (int64_t i = 1; i < V; i++)
        if (logits[i] > logits[best]) best = i;
    return (int32_t)best;
}

int32_t sample_token(const float *logits, int64_t V, double temperature, int64_t top_k,
                     double top_p, double u, struct sample_work *work)
{
    const int32_t best = greedy(logits, V);
    double total = 0, kept = 0, sum = 0;
    int64_t n = V;
    if (temperature <= 0) return best;
    for (int64_t i = 0; i < V; i++) {
        work[i].p = (float)exp(((double)logits[i] - logits[best]) / temperature);
        work[i].id = (int32_t)i;
    }
    const bool cut = (top_k > 0 && top_k < V) || top_p < 1;
    if (cut) qsort(work, (size_t)V, sizeof *work, by_probability);
    if (top_k > 0) n = MIN(n, top_k);
    for (int64_t i = 0; i < n; i++)
        total += work[i].p;
    if (top_p < 1) {
        int64_t k = 0;
        while (k < n && (k == 0 || kept < top_p * total))
            kept += work[k++].p;
        n = k;
        total = kept;
    }
    for (int64_t i = 0; i < n; i++) {
        sum += work[i].p;
        if (u * total < sum) return work[i].id;
    }
    return work[n - 1].id;
}
