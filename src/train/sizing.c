/* SPDX-License-Identifier: MIT */
#include "sizing.h"
#include "machine.h"
#include "work.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OPTIONS = 16, MICRO_MIN = 256, MICRO_MAX = 32768 };
/* So much slower is as good where it takes less memory. */
static const double SLACK = 1.02;
/* Of the memory, the share that the system itself is left. */
static const double SYSTEM_SHARE = 0.03;
const double SIZING_CPU_SMALL_BATCH = 32;

static double cost_of(const struct sizing_option *o, double share, int64_t r, int64_t L)
{
    return o->cost * (1 + share * (double)r / (double)MAX(L, (int64_t)1));
}

/* Fewest layers to recompute so that it fits; -1: it does not. */
static int64_t layers_needed(const struct sizing_option *o, int64_t limit, int64_t L,
                             int64_t recompute)
{
    const int64_t most = L - 1, over = o->bytes - limit;
    if (recompute >= 0)
        return o->bytes - MIN(recompute, most) * o->save <= limit ? MIN(recompute, most) : -1;
    if (over <= 0) return 0;
    const int64_t r = o->save > 0 ? div_up(over, o->save) : INT64_MAX;
    return r <= most ? r : -1;
}

struct sizing_pick sizing_pick(const struct sizing_option *o, int n, int64_t limit, int64_t L,
                               double share, int64_t recompute)
{
    struct sizing_pick best = { -1, 0 };
    double cheapest = INFINITY;
    int64_t least = INT64_MAX;
    for (int i = 0; i < n; i++) {
        const int64_t r = layers_needed(&o[i], limit, L, recompute);
        if (r >= 0) cheapest = fmin(cheapest, cost_of(&o[i], share, r, L));
    }
    for (int i = 0; i < n; i++) {
        const int64_t r = layers_needed(&o[i], limit, L, recompute);
        if (r < 0 || cost_of(&o[i], share, r, L) > SLACK * cheapest) continue;
        const int64_t bytes = o[i].bytes - r * o[i].save;
        if (bytes >= least) continue;
        least = bytes;
        best = (struct sizing_pick){ i, r };
    }
    return best;
}

/* The largest forecast of all stages for a micro-batch; *batches: of all training steps. */
static int measure(struct sizing *s, struct setup *su, const struct sizing_run *run, int64_t micro,
                   int64_t recompute, int64_t *batches)
{
    int64_t most = -1;
    su->micro_tokens = micro;
    su->recompute = recompute;
    *batches = 0;
    for (int i = 0; i < run->n; i++) {
        const struct run_stage *r = &run->stage[i];
        struct forecast f;
        struct batch_size b;
        TRY(stage_measure(&b, su, r->kind, r->data, r->eval, micro));
        TRY(forecast_stage(&f, su, r, &b, &run->base));
        *batches += b.batches;
        const int64_t bytes = run->memory ? forecast_device(&f) : forecast_total(&f);
        if (bytes <= most) continue;
        most = bytes;
        s->stage = i;
        s->peak = f;
        s->size = b;
    }
    s->micro_tokens = micro;
    s->recompute = recompute;
    return 0;
}

static int64_t taken(const struct sizing *s, const struct sizing_run *run)
{
    return run->memory ? forecast_device(&s->peak) : forecast_total(&s->peak);
}

static double tokens_visited(const struct setup *su, const struct sizing_run *run)
{
    double all = 0;
    for (int i = 0; i < run->n; i++) {
        const struct dataset *d = run->stage[i].data;
        const struct stage_config *sc =
            run->stage[i].kind == STAGE_SFT ? &su->cfg->sft : &su->cfg->preference;
        double sum = 0;
        for (int64_t k = 0; k < d->n; k++)
            sum += (double)example_tokens(&d->ex[k]);
        const double epochs =
            (double)stage_steps(sc, d->n) * (double)MIN(sc->batch_size, d->n) / (double)d->n;
        all += sum * epochs;
    }
    return all;
}

/* Share of a training step that a forward pass through the layers is. */
static double forward_share(const struct setup *su, const struct sizing_run *run)
{
    const struct arch *a = &su->arch;
    double all = 0, head = 0;
    for (int i = 0; i < run->n; i++)
        for (int64_t k = 0; k < run->stage[i].data->n; k++) {
            const struct example *e = &run->stage[i].data->ex[k];
            all += work_forward(a, e);
            head += 2 * (double)(a->C * a->V) * ((double)e->nw + e->nl);
        }
    return all > 0 ? (all - head) / (3 * all) : 0.33;
}

/* Micro-batches worth a look: the longest row, and powers of two above, until a whole step is one. */
static int list_options(struct sizing_option *o, struct setup *su, const struct sizing_run *run,
                        int64_t want)
{
    const double tokens = tokens_visited(su, run);
    int64_t longest = MICRO_MIN, last = -1;
    int n = 0;
    for (int i = 0; i < run->n; i++)
        longest = MAX(longest, stage_longest(run->stage[i].data, run->stage[i].eval));
    int64_t micro = want != CONFIG_AUTO ? want : longest;
    for (int64_t power = MICRO_MIN; n < OPTIONS; micro = power) {
        struct sizing kept, one;
        int64_t batches, again;
        TRY(measure(&kept, su, run, micro, 0, &batches));
        TRY(measure(&one, su, run, micro, 1, &again));
        if (batches == last) break;
        last = batches;
        o[n++] =
            (struct sizing_option){ micro, taken(&kept, run), taken(&kept, run) - taken(&one, run),
                                    tokens + run->small_batch * (double)batches };
        while (power <= micro)
            power *= 2;
        if (want != CONFIG_AUTO || power > MICRO_MAX) break;
    }
    return n;
}

/* The ranks of a machine share its memory; memory.limit is that of one rank. */
static int64_t limit_of(const struct sizing_run *run, const struct setup *su, bool *given)
{
    const struct config *c = su->cfg;
    const int32_t ranks = su->dist ? MAX(su->dist->node_ranks, 1) : 1;
    const double GiB = 1 << 30;
    *given = c->memory.limit != CONFIG_AUTO && !run->memory;
    if (*given) return (int64_t)(c->memory.limit * GiB);
    const int64_t all = run->memory ? run->memory : machine_memory() / ranks;
    return all > 0 ? (int64_t)((1 - SYSTEM_SHARE) * (double)all) : INT64_MAX;
}

/* What the user may change so that it fits. */
static int refuse(const struct sizing *s, const struct setup *su, const struct sizing_run *run,
                  const struct sizing_option *small, const struct sizing_want *want)
{
    const int64_t L = su->arch.L, least = small->bytes - MAX(L - 1, (int64_t)0) * small->save;
    const int64_t with = small->bytes - MIN(want->recompute, L - 1) * small->save;
    char need[32], has[32], min[32];
    struct buf b = { 0 };
    int rc = 0;
    bytes_human(need, taken(s, run));
    bytes_human(has, s->limit);
    bytes_human(min, least);
    if (want->micro_tokens != CONFIG_AUTO && with <= s->limit && want->recompute != CONFIG_AUTO)
        rc = buf_addf(&b, "set memory.micro_batch_tokens to \"auto\" or at most %lld",
                      (long long)small->micro_tokens);
    else if (least <= s->limit)
        rc = buf_addf(&b,
                      "set memory.micro_batch_tokens and memory.gradient_checkpointing to "
                      "\"auto\": it fits with %lld tokens and %lld of %lld layers recomputed",
                      (long long)small->micro_tokens,
                      (long long)div_up(MAX(small->bytes - s->limit, (int64_t)0),
                                        MAX(small->save, (int64_t)1)),
                      (long long)L);
    else
        rc = buf_addf(&b,
                      "with micro-batches of one row and all layers recomputed it still takes %s%s",
                      min, su->cfg->data.max_length > 512 ? "; lower data.max_length" : "");
    if (rc == 0 && su->cfg->model.dtype == DTYPE_BFLOAT16 && least > s->limit)
        rc = buf_adds(&b, "; model.dtype \"float32\" has 16 bytes a parameter in place of 18");
    if (rc == 0)
        rc =
            err_set(ERR_INPUT,
                    "memory: this run takes %s, the limit is %s (%s): %s, take a smaller model, or "
                    "a machine with more memory",
                    need, has,
                    s->limit_given ? "memory.limit" : "the memory less 3 % for the system", b.data);
    buf_release(&b);
    return rc;
}

int sizing_choose(struct sizing *s, struct setup *su, const struct sizing_run *run,
                  const struct sizing_want *want)
{
    struct sizing_option o[OPTIONS];
    const double share = forward_share(su, run);
    const int64_t L = su->arch.L;
    int64_t batches;
    bool given;
    const int64_t limit = limit_of(run, su, &given);
    memset(s, 0, sizeof *s);
    su->limit = limit;
    const int n = list_options(o, su, run, want->micro_tokens);
    TRY(n);
    const struct sizing_pick p = sizing_pick(o, n, limit, L, share, want->recompute);
    const int64_t recompute = p.option >= 0                    ? p.recompute
                              : want->recompute != CONFIG_AUTO ? want->recompute
                                                               : L - 1;
    TRY(measure(s, su, run, o[MAX(p.option, 0)].micro_tokens, MIN(recompute, L - 1), &batches));
    s->limit = limit;
    s->limit_given = given;
    if (p.option >= 0) return 0;
    struct sizing_option small = o[0];
    if (want->micro_tokens != CONFIG_AUTO) TRY(list_options(o, su, run, CONFIG_AUTO));
    if (want->micro_tokens != CONFIG_AUTO && o[0].bytes < small.bytes) small = o[0];
    su->micro_tokens = s->micro_tokens;
    su->recompute = s->recompute;
    return refuse(s, su, run, &small, want);
}
