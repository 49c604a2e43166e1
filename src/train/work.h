/* SPDX-License-Identifier: MIT
 * work.h - the arithmetic that a run cannot do without, whatever computes it. */
#ifndef BDPO_WORK_H
#define BDPO_WORK_H
#include "stage.h"

/* FLOPs of the forward pass of one example: 2 N_body tokens + 2 C V targets + 4 H D L (pairs of a query and a key that it sees), with
 * the prompt once, N_body the weights without embedding and head. Training takes three times as many, of adapters alone twice as many and their own. */
double work_forward(const struct arch *a, const struct example *e);

struct work {
    int64_t examples;   /* visited, epochs counted */
    double example;     /* FLOPs, mean over the data: training */
    double step, stage; /* of a full batch; of the stage, training alone */
    double reference;   /* of the reference pass, where nothing is in the cache */
};
/* reference: the loss reads one. */
struct work work_stage(const struct arch *a, const struct stage_config *sc, const struct dataset *d, bool reference);
#endif
