/* SPDX-License-Identifier: MIT
 * optim.h - learning-rate schedules and AdamW over a shard of the flat weights. */
#ifndef BDPO_OPTIM_H
#define BDPO_OPTIM_H
#include "config.h"
#include "../dist/zero.h"
#include "../model/model.h"

/* Learning rate of step t (from 0) of T. With W = ceil(warmup_ratio * T):
 *   t < W: lr t / max(1, W); then linear: lr (T - t) / max(1, T - W), cosine: lr (1 + cos(pi (t - W) / max(1, T - W))) / 2, constant: lr.
 * As get_scheduler of Hugging Face transformers. */
double schedule_lr(enum schedule s, double lr, double warmup_ratio, int64_t t, int64_t T);

struct optim {                /* valid when zeroed */
    struct tensor m, v;       /* f32 or bf16, the shard's elements of the moments */
    uint64_t seed, stream;    /* of the random bits that round what is bf16 */
    struct adamw opt;         /* step: updates done */
    double max_grad_norm;     /* 0: no clipping */
};
/* Book the moments of a shard, F32 or BF16. seed and stage number the random bits. */
int optim_plan(struct optim *o, struct plan *p, int64_t n_shard, const struct stage_config *c, enum dtype moments, uint64_t seed,
               uint64_t stage);
/* All ranks: clip by `norm`, the whole gradient's (scale min(1, max_grad_norm / (norm + 1e-6))), update the shard's elements of every parameter, master and
 * weights (decay on matrices only), and gather the weights, each bucket while the next one is updated. */
int optim_step(struct optim *o, struct model *m, struct zero *z, double norm, double lr);
#endif
