/* SPDX-License-Identifier: MIT */
#include "batch.h"
#include "../base/mem.h"
#include "../base/rng.h"
#include <stdlib.h>
#include <string.h>

int order_init(struct order *o, int64_t n, int64_t batch_size, bool shuffle, uint64_t seed)
{
    memset(o, 0, sizeof *o);
    if (n < 1 || n > INT32_MAX)
        return err_set(ERR_INPUT, "%lld examples; expected 1 to %d", (long long)n, INT32_MAX);
    if (batch_size < 1)
        return err_set(ERR_INPUT, "batch_size: %lld is below 1", (long long)batch_size);
    o->n = n;
    o->batch_size = MIN(batch_size, n);
    o->shuffle = shuffle;
    o->seed = seed;
    o->epoch = -1;
    return MEM_NEW(&o->perm, n);
}

void order_release(struct order *o)
{
    free(o->perm);
    memset(o, 0, sizeof *o);
}

int64_t order_steps_per_epoch(const struct order *o)
{
    return div_up(o->n, o->batch_size);
}

int64_t order_step(struct order *o, int64_t t, const int64_t **first)
{
    BUG_IF(t < 0 || o->n < 1);
    const int64_t steps = order_steps_per_epoch(o), epoch = t / steps,
                  at = t % steps * o->batch_size;
    if (epoch != o->epoch && (o->shuffle || o->epoch < 0)) {
        if (o->shuffle)
            rng_permutation(o->perm, o->n, o->seed, rng_stream_of(RNG_ORDER, (uint64_t)epoch));
        else
            for (int64_t i = 0; i < o->n; i++)
                o->perm[i] = i;
        o->epoch = epoch;
    }
    *first = o->perm + at;
    return MIN(o->batch_size, o->n - at);
}
