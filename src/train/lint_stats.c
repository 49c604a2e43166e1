/* SPDX-License-Identifier: MIT */
#include "lint.h"
#include <stdlib.h>
#include <string.h>

enum { BARS = 12, BAR_WIDTH = 44 };

static int compare(const void *a, const void *b)
{
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static int put(json_t *o, const char *key, json_t *v)
{
    return json_object_set_new(o, key, v) == 0 ? 0
                                               : err_set(ERR_OOM, "out of memory for the report");
}

/* v[0..n) is sorted. */
static int describe(json_t *lengths, struct buf *text, const char *name, int64_t *v, int64_t n)
{
    json_t *o = json_object();
    double sum = 0;
    qsort(v, (size_t)n, sizeof *v, compare);
    for (int64_t i = 0; i < n; i++)
        sum += (double)v[i];
    const double mean = sum / (double)n;
    const int64_t median = v[n / 2], p95 = v[MIN(n - 1, n * 95 / 100)];
    TRY(put(lengths, name, o)); /* owned by lengths from here on */
    TRY(put(o, "min", json_integer(v[0])));
    TRY(put(o, "mean", json_real(mean)));
    TRY(put(o, "median", json_integer(median)));
    TRY(put(o, "p95", json_integer(p95)));
    TRY(put(o, "max", json_integer(v[n - 1])));
    return buf_addf(text, "  %-9s %7lld %9.1f %7lld %7lld %7lld\n", name, (long long)v[0], mean,
                    (long long)median, (long long)p95, (long long)v[n - 1]);
}

static int bias(json_t *set, struct buf *text, const struct dataset *d)
{
    int64_t longer = 0, shorter = 0;
    double sum = 0;
    json_t *o = json_object();
    for (int64_t i = 0; i < d->n; i++) {
        const int64_t k = d->notes[i].nw - d->notes[i].nl;
        longer += k > 0;
        shorter += k < 0;
        sum += (double)k;
    }
    const double n = (double)d->n;
    TRY(put(set, "length_bias", o));
    TRY(put(o, "chosen_longer", json_real((double)longer / n)));
    TRY(put(o, "rejected_longer", json_real((double)shorter / n)));
    TRY(put(o, "mean_difference", json_real(sum / n)));
    return buf_addf(
        text,
        "  chosen is longer than rejected in %.1f%% of the pairs, shorter in %.1f%%; by %+.1f "
        "tokens on average\n",
        100 * (double)longer / n, 100 * (double)shorter / n, sum / n);
}

/* v[0..n) is sorted. */
static int histogram(json_t *set, struct buf *text, const int64_t *v, int64_t n)
{
    int64_t count[BARS] = { 0 }, most = 0;
    const int64_t width = v[n - 1] / BARS + 1;
    json_t *o = json_object(), *list = json_array();
    for (int64_t i = 0; i < n; i++) {
        count[v[i] / width]++;
        most = MAX(most, count[v[i] / width]);
    }
    TRY(put(set, "histogram", o));
    TRY(put(o, "width", json_integer(width)));
    TRY(put(o, "counts", list));
    for (int i = 0; i < BARS; i++) {
        char bar[BAR_WIDTH + 1] = "";
        if (json_array_append_new(list, json_integer(count[i])) < 0)
            return err_set(ERR_OOM, "out of memory for the report");
        memset(bar, '#', (size_t)div_up(count[i] * BAR_WIDTH, MAX(most, (int64_t)1)));
        TRY(buf_addf(text, "  %6lld-%-6lld %8lld %s\n", (long long)(i * width),
                     (long long)((i + 1) * width - 1), (long long)count[i], bar));
    }
    return 0;
}

int lint_lengths(json_t *set, struct buf *text, const struct dataset *d)
{
    json_t *lengths = json_object();
    const bool pairs = d->ex[0].nl > 0;
    int64_t *v = NULL;
    int rc = 0;
    TRY_OUT(put(set, "lengths", lengths));
    TRY_OUT(MEM_NEW(&v, d->n));
    TRY_OUT(buf_adds(text,
                     "  tokens        min      mean  median     95%     max   (before cutting)\n"));
    for (int part = 0; part < (pairs ? 3 : 2); part++) {
        static const char *const name[] = { "prompt", "chosen", "rejected" };
        for (int64_t i = 0; i < d->n; i++)
            v[i] = part == 0 ? d->notes[i].np : part == 1 ? d->notes[i].nw : d->notes[i].nl;
        TRY_OUT(describe(lengths, text, pairs || part == 0 ? name[part] : "response", v, d->n));
    }
    if (pairs) TRY_OUT(bias(set, text, d));
    for (int64_t i = 0; i < d->n; i++)
        v[i] = (int64_t)d->notes[i].np + MAX(d->notes[i].nw, d->notes[i].nl);
    qsort(v, (size_t)d->n, sizeof *v, compare);
    TRY_OUT(buf_adds(text, "  rows by tokens of the prompt and the longer response\n"));
    TRY_OUT(histogram(set, text, v, d->n));
out:
    free(v);
    return rc;
}

int lint_packing(json_t *set, struct buf *text, const struct dataset *d,
                 const struct stage_config *st, uint64_t seed, int64_t micro_tokens)
{
    struct order order = { 0 };
    int64_t batches = 0, tokens = 0, steps;
    const int64_t *idx;
    json_t *o = json_object();
    int rc = 0;
    TRY_OUT(put(set, "epoch", o));
    TRY_OUT(order_init(&order, d->n, st->batch_size, st->shuffle, seed));
    steps = order_steps_per_epoch(&order);
    for (int64_t t = 0; t < steps; t++) {
        int64_t n = order_step(&order, t, &idx), k;
        for (; n > 0; idx += k, n -= k, batches++) {
            k = batch_fit(d, idx, n, micro_tokens);
            for (int64_t i = 0; i < k; i++)
                tokens += example_tokens(&d->ex[idx[i]]);
        }
    }
    const double fill = (double)tokens / ((double)batches * (double)micro_tokens);
    TRY_OUT(put(o, "rows", json_integer(d->n)));
    TRY_OUT(put(o, "tokens", json_integer(tokens)));
    TRY_OUT(put(o, "steps", json_integer(steps)));
    TRY_OUT(put(o, "micro_batches", json_integer(batches)));
    TRY_OUT(put(o, "micro_batch_tokens", json_integer(micro_tokens)));
    TRY_OUT(put(o, "fill", json_real(fill)));
    rc =
        buf_addf(text,
                 "  an epoch: %lld steps, %lld tokens computed, %lld micro-batches of at most %lld "
                 "tokens, %.0f%% full\n",
                 (long long)steps, (long long)tokens, (long long)batches, (long long)micro_tokens,
                 100 * fill);
out:
    order_release(&order);
    return rc;
}
