/* SPDX-License-Identifier: MIT */
#include "sizing.h"
#include "work.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OPTIONS = 32, MICRO_MIN = 256, MICRO_MAX = 32768 };
enum way { WAY_LAYERS = 1, WAY_TOKENS = 2, WAY_FLOAT32 = 4, WAY_LOGITS = 8 };
/* So much slower is as good where it takes less memory. */
static const double SLACK = 1.03;
/* Of the memory, the share that the system itself is left. */
static const double SYSTEM_SHARE = 0.03;
static const double CPU_SMALL_BATCH = 32;

double sizing_small_batch(const struct device *d)
{
    return 16 * d->flops / (6 * d->bytes_per_second);
}

int sizing_on(struct sizing_run *run, const struct backend *be)
{
    int64_t used;
    TRY(be->mem->memory(be->cx, &run->memory, &used));
    run->small_batch = CPU_SMALL_BATCH;
    if (!run->memory) return 0;
    const struct device *d = device_named(be->about);
    run->small_batch = sizing_small_batch(d ? d : device_find("h200"));
    return 0;
}

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
                   int64_t recompute, bool keep_logits, int64_t *batches)
{
    int64_t most = -1;
    su->micro_tokens = micro;
    su->recompute = recompute;
    su->keep_logits = keep_logits;
    *batches = 0;
    for (int i = 0; i < run->n; i++) {
        const struct run_stage *r = &run->stage[i];
        struct forecast f;
        struct batch_size b;
        TRY(stage_measure(&b, su, r->kind, r->data, r->eval, micro));
        TRY(forecast_stage(&f, su, r, &b, &run->base));
        *batches += b.batches;
        s->stage_peak[i] = f;
        const int64_t bytes = run->memory ? forecast_device(&f) : forecast_total(&f);
        if (bytes <= most) continue;
        most = bytes;
        s->stage = i;
        s->peak = f;
        s->size = b;
    }
    s->micro_tokens = micro;
    s->recompute = recompute;
    s->keep_logits = keep_logits;
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

/* Shares of a training step that nothing is computed again in: a forward pass through the layers, and one through the head. */
struct shares {
    double layers, head;
};

static struct shares forward_shares(const struct setup *su, const struct sizing_run *run)
{
    const struct arch *a = &su->arch;
    double all = 0, head = 0;
    for (int i = 0; i < run->n; i++)
        for (int64_t k = 0; k < run->stage[i].data->n; k++) {
            const struct example *e = &run->stage[i].data->ex[k];
            all += work_forward(a, e);
            head += 2 * (double)(a->C * a->V) * ((double)e->nw + e->nl);
        }
    if (all <= 0) return (struct shares){ 0.33, 0 };
    return (struct shares){ (all - head) / (3 * all), head / (3 * all) };
}

/* One micro-batch, with logits kept and computed again, as far as that is open; how many options that makes. */
static int add_options(struct sizing_option *o, struct setup *su, const struct sizing_run *run,
                       const struct sizing_want *want, int64_t micro, double tokens, double head,
                       int64_t *batches)
{
    int n = 0;
    for (int keep = 0; keep < 2; keep++) {
        struct sizing kept, one;
        int64_t again;
        if (want->keep_logits != CONFIG_AUTO && want->keep_logits != keep) continue;
        TRY(measure(&kept, su, run, micro, 0, keep, batches));
        TRY(measure(&one, su, run, micro, 1, keep, &again));
        o[n++] = (struct sizing_option){ .micro_tokens = micro,
                                         .keep_logits = keep,
                                         .bytes = taken(&kept, run),
                                         .save = taken(&kept, run) - taken(&one, run),
                                         .cost = (tokens + run->small_batch * (double)*batches) *
                                                 (keep ? 1 : 1 + head) };
    }
    return n;
}

/* Micro-batches worth a look: the longest row, and powers of two above, until a whole step is one. */
static int list_options(struct sizing_option *o, struct setup *su, const struct sizing_run *run,
                        const struct sizing_want *want, double head)
{
    const double tokens = tokens_visited(su, run);
    int64_t longest = MICRO_MIN, last = -1;
    int n = 0;
    for (int i = 0; i < run->n; i++)
        longest = MAX(longest, stage_longest(run->stage[i].data, run->stage[i].eval));
    int64_t micro = want->micro_tokens != CONFIG_AUTO ? want->micro_tokens : longest;
    for (int64_t power = MICRO_MIN; n + 2 <= OPTIONS; micro = power) {
        int64_t batches;
        const int added = add_options(o + n, su, run, want, micro, tokens, head, &batches);
        TRY(added);
        if (batches == last) break;
        last = batches;
        n += added;
        while (power <= micro)
            power *= 2;
        if (want->micro_tokens != CONFIG_AUTO || power > MICRO_MAX) break;
    }
    return n;
}

/* The ranks of a machine share its memory, and those on a device the device's; memory.limit is that of one rank. */
static int64_t limit_of(const struct sizing_run *run, const struct setup *su, bool *given)
{
    const struct config *c = su->cfg;
    const int32_t ranks = su->dist ? MAX(su->dist->node_ranks, 1) : 1;
    const double GiB = 1 << 30;
    *given = c->memory.limit != CONFIG_AUTO && !run->elsewhere;
    if (*given) return (int64_t)(c->memory.limit * GiB);
    const int32_t sharers = su->dist ? MAX(su->dist->device_ranks, 1) : 1;
    const int64_t all = run->memory ? run->memory / sharers : machine_memory() / ranks;
    return all > 0 ? (int64_t)((1 - SYSTEM_SHARE) * (double)all) : INT64_MAX;
}

/* The best of what `want` leaves open, and su's sizes set to it; 1 where it fits, 0 where nothing does (then the smallest). */
static int attempt(struct sizing *s, struct setup *su, const struct sizing_run *run,
                   const struct sizing_want *want, int64_t limit)
{
    struct sizing_option o[OPTIONS];
    const int64_t L = su->arch.L, all = want->recompute == CONFIG_AUTO ? L - 1 : want->recompute;
    const struct shares share = forward_shares(su, run);
    int64_t batches;
    const int n = list_options(o, su, run, want, share.head);
    TRY(n);
    const struct sizing_pick p = sizing_pick(o, n, limit, L, share.layers, want->recompute);
    const bool fits = p.option >= 0;
    const struct sizing_option *at = &o[MAX(p.option, 0)];
    TRY(measure(s, su, run, at->micro_tokens, fits ? p.recompute : MIN(all, L - 1), at->keep_logits,
                &batches));
    return fits;
}

/* One more way, where it fits: adds it to b and counts. */
static int add_way(struct buf *b, int *ways, const struct setup *su, const struct sizing_run *run,
                   const struct sizing_want *want, int64_t limit, unsigned way)
{
    struct config c = *su->cfg;
    struct setup other = *su; /* borrows */
    struct sizing s;
    other.cfg = &c;
    if (way & WAY_FLOAT32) c.model.dtype = DTYPE_FLOAT32;
    const int fits = attempt(&s, &other, run, want, limit);
    if (fits <= 0) return fits;
    TRY(buf_adds(b, (*ways)++ ? "; or with" : "it fits with"));
    if (way & WAY_FLOAT32) TRY(buf_adds(b, " model.dtype \"float32\" and"));
    if (way & WAY_LOGITS) TRY(buf_adds(b, " memory.keep_logits false"));
    if (way & WAY_TOKENS)
        TRY(buf_addf(b, " memory.micro_batch_tokens %lld%s", (long long)s.micro_tokens,
                     way & WAY_LAYERS ? " and" : ""));
    if (way & WAY_LAYERS)
        TRY(buf_addf(b, " memory.gradient_checkpointing %lld (of %lld layers)",
                     (long long)s.recompute, (long long)su->arch.L));
    return 0;
}

/* What the user may change so that it fits. */
static int refuse(const struct sizing *s, struct setup *su, const struct sizing_run *run,
                  const struct sizing_want *want)
{
    const struct sizing_want tokens = { want->micro_tokens, CONFIG_AUTO, want->keep_logits },
                             layers = { CONFIG_AUTO, want->recompute, want->keep_logits },
                             any = { CONFIG_AUTO, CONFIG_AUTO, want->keep_logits },
                             logits = { want->micro_tokens, want->recompute, 0 };
    char need[32], has[32];
    struct buf b = { 0 };
    int ways = 0, rc;
    bytes_human(need, taken(s, run));
    bytes_human(has, s->limit);
    if (want->keep_logits == 1) TRY_OUT(add_way(&b, &ways, su, run, &logits, s->limit, WAY_LOGITS));
    TRY_OUT(add_way(&b, &ways, su, run, &tokens, s->limit, WAY_LAYERS));
    TRY_OUT(add_way(&b, &ways, su, run, &layers, s->limit, WAY_TOKENS));
    if (ways == 0) TRY_OUT(add_way(&b, &ways, su, run, &any, s->limit, WAY_TOKENS | WAY_LAYERS));
    if (ways == 0 && setup_dtype(su->cfg) == DT_BF16)
        TRY_OUT(add_way(&b, &ways, su, run, &any, s->limit, WAY_TOKENS | WAY_LAYERS | WAY_FLOAT32));
    if (ways == 0) {
        struct sizing least;
        char min[32];
        TRY_OUT(attempt(&least, su, run, &any, 0));
        TRY_OUT(buf_addf(&b,
                         "with micro-batches of one row and all layers recomputed it still takes "
                         "%s: lower data.max_length, or take a smaller model or another machine",
                         bytes_human(min, taken(&least, run))));
    }
    rc = err_set(ERR_INPUT, "memory: this run takes %s, the limit is %s (%s): %s", need, has,
                 s->limit_given ? "memory.limit" : "the memory less 3 % for the system", b.data);
out:
    buf_release(&b);
    return rc;
}

int sizing_choose(struct sizing *s, struct setup *su, const struct sizing_run *run,
                  const struct sizing_want *want)
{
    bool given;
    const int64_t limit = limit_of(run, su, &given);
    memset(s, 0, sizeof *s);
    su->limit = limit;
    const int fits = attempt(s, su, run, want, limit);
    TRY(fits);
    s->limit = limit;
    s->limit_given = given;
    const struct sizing chosen = *s;
    const int rc = fits ? 0 : refuse(s, su, run, want);
    su->micro_tokens = chosen.micro_tokens;
    su->recompute = chosen.recompute;
    su->keep_logits = chosen.keep_logits;
    return rc;
}
