/* SPDX-License-Identifier: MIT */
#include "work.h"

double work_forward(const struct arch *a, const struct example *e)
{
    const double C = (double)a->C, V = (double)a->V;
    const double body = (double)arch_parameters(a) - (a->tied ? 1 : 2) * C * V;
    const double p = e->np, w = e->nw - 1, l = e->nl > 0 ? e->nl - 1 : 0;
    const double seen = p * (p + 1) / 2 + w * p + w * (w + 1) / 2 + l * p + l * (l + 1) / 2;
    return 2 * body * (p + w + l) + 2 * C * V * ((double)e->nw + e->nl) +
           4 * (double)(a->H * a->D * a->L) * seen;
}

struct work work_stage(const struct arch *a, const struct stage_config *sc, const struct dataset *d,
                       bool reference)
{
    const int64_t batch = MIN(sc->batch_size, d->n), steps = stage_steps(sc, d->n);
    const int64_t per_epoch = div_up(d->n, batch), rest = steps % per_epoch;
    struct work w = { .examples = steps / per_epoch * d->n + MIN(rest * batch, d->n) };
    double sum = 0, tokens = 0;
    for (int64_t i = 0; i < d->n; i++) {
        sum += work_forward(a, &d->ex[i]);
        tokens += (double)example_tokens(&d->ex[i]);
    }
    const double mean = sum / (double)d->n;
    /* under adapters no weight of the base has a gradient */
    w.example = a->lora.rank == 0
                    ? 3 * mean
                    : 2 * mean + 6 * (double)lora_parameters(a) * tokens / (double)d->n;
    w.step = w.example * (double)batch;
    w.stage = w.example * (double)w.examples;
    if (reference) w.reference = mean * (double)MIN(w.examples, d->n);
    return w;
}
