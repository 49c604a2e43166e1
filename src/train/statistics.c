/* SPDX-License-Identifier: MIT */
#include "statistics.h"
#include "metrics.h"
#include "../base/stats.h"
#include <math.h>
#include <stdlib.h>

enum { RESAMPLES = 1000, KEYS = 4, BY_RATIO = 2 };
static const char *const keys[KEYS] = { "rewards/accuracies", "rewards/margins", "logps/chosen",
                                        "logps/rejected" };
/* Classes of tokens(chosen) / tokens(rejected): [edge, next edge). */
static const double edges[] = { 0, 0.5, 0.8, 1.25, 2, INFINITY };

static int set_interval(json_t *o, const char *key, const double *x, int64_t n, uint64_t seed)
{
    struct interval i;
    json_t *v = json_object();
    int rc;
    TRY_OUT(stats_bootstrap(&i, x, n, seed, RESAMPLES));
    TRY_OUT(metrics_real(v, "mean", i.value));
    TRY_OUT(metrics_real(v, "lo", i.lo));
    TRY_OUT(metrics_real(v, "hi", i.hi));
    if (json_object_set(o, key, v)) TRY_OUT(err_set(ERR_OOM, "out of memory for statistics"));
out:
    json_decref(v);
    return rc;
}

/* x[k * n + i]: value of key k for pair i. */
static void values_of(double *x, const struct stage *st, const struct dataset *d,
                      const struct scores *pi, const struct scores *ref)
{
    for (int64_t i = 0; i < d->n; i++) {
        const struct loss_pair p = stage_pair(st, d, i, pi->w[i], pi->l[i], ref);
        struct loss_grad g;
        st->loss->eval(&g, &p, &st->cfg->loss_opts, 0);
        x[i] = g.reward_w > g.reward_l;
        x[d->n + i] = g.reward_w - g.reward_l;
        x[2 * d->n + i] = p.lw;
        x[3 * d->n + i] = p.ll;
    }
}

static int set_all(json_t *o, const char *name, const double *x, int64_t n, uint64_t seed)
{
    json_t *part = json_object();
    int rc = 0;
    for (int k = 0; rc == 0 && k < KEYS; k++)
        rc = set_interval(part, keys[k], x + k * n, n, seed);
    if (rc == 0 && json_object_set(o, name, part))
        rc = err_set(ERR_OOM, "out of memory for statistics");
    json_decref(part);
    return rc;
}

/* One class; `some` has room for n values. Classes without a pair are left out. */
static int add_class(json_t *list, const struct dataset *d, const double *x, double *some,
                     size_t class, uint64_t seed)
{
    json_t *o = json_object();
    int rc = 0;
    TRY_OUT(metrics_real(o, "from", edges[class]));
    TRY_OUT(metrics_real(o, "below", edges[class + 1]));
    for (int k = 0; k < BY_RATIO; k++) {
        int64_t n = 0;
        for (int64_t i = 0; i < d->n; i++) {
            const double ratio = (double)d->ex[i].nw / d->ex[i].nl;
            if (ratio >= edges[class] && ratio < edges[class + 1]) some[n++] = x[k * d->n + i];
        }
        if (n == 0) goto out;
        if (k == 0) TRY_OUT(metrics_int(o, "examples", n));
        TRY_OUT(set_interval(o, keys[k], some, n, seed));
    }
    if (json_array_append(list, o)) TRY_OUT(err_set(ERR_OOM, "out of memory for statistics"));
out:
    json_decref(o);
    return rc;
}

int statistics_set(json_t *o, const struct stage *st, const struct dataset *d,
                   const struct scores *pi, const struct scores *ref, const struct scores *other)
{
    const uint64_t seed = st->cfg->seed;
    double *x = NULL, *y = NULL;
    json_t *list = json_array();
    int rc;
    TRY_OUT(MEM_NEW(&x, KEYS * d->n));
    TRY_OUT(MEM_NEW(&y, KEYS * d->n));
    values_of(x, st, d, pi, ref);
    TRY_OUT(set_all(o, "intervals", x, d->n, seed));
    for (size_t k = 0; k + 1 < COUNT_OF(edges); k++)
        TRY_OUT(add_class(list, d, x, y, k, seed));
    if (json_object_set(o, "by_length_ratio", list))
        TRY_OUT(err_set(ERR_OOM, "out of memory for statistics"));
    if (other) {
        values_of(y, st, d, other, ref);
        for (int64_t i = 0; i < KEYS * d->n; i++)
            y[i] = x[i] - y[i];
        TRY_OUT(set_all(o, "comparison", y, d->n, seed));
    }
out:
    json_decref(list);
    free(x);
    free(y);
    return rc;
}
