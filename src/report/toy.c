/* SPDX-License-Identifier: MIT */
#include "toy.h"
#include "../base/rng.h"
#include <math.h>
#include <string.h>

static void hidden_of(const struct toy *t, int x, double h[TOY_HIDDEN])
{
    for (int k = 0; k < TOY_HIDDEN; k++)
        h[k] = fmax(0, (double)t->param[TOY_W1 + k * TOY_PROMPTS + x] + t->param[TOY_B1 + k]);
}

static void forward(struct toy *t)
{
    for (int x = 0; x < TOY_PROMPTS; x++) {
        double h[TOY_HIDDEN], *z = t->log_pi[x], top = -INFINITY, sum = 0;
        hidden_of(t, x, h);
        for (int y = 0; y < TOY_RESPONSES; y++) {
            z[y] = t->param[TOY_B2 + y];
            for (int k = 0; k < TOY_HIDDEN; k++)
                z[y] += t->param[TOY_W2 + y * TOY_HIDDEN + k] * h[k];
            top = fmax(top, z[y]);
        }
        for (int y = 0; y < TOY_RESPONSES; y++)
            sum += exp(z[y] - top);
        for (int y = 0; y < TOY_RESPONSES; y++)
            z[y] -= top + log(sum);
    }
}

void toy_init(struct toy *t, const struct backend *be, uint64_t seed)
{
    memset(t, 0, sizeof *t);
    t->be = be;
    t->opt = (struct adamw){ .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .grad_scale = 1 };
    for (int i = 0; i < TOY_PARAMS; i++) {
        const double bound = 1 / sqrt(i < TOY_W2 ? TOY_PROMPTS : TOY_HIDDEN);
        t->param[i] =
            (float)(bound * (2 * rng_uniform(seed, rng_stream_of(RNG_TOY, 0), (uint64_t)i) - 1));
    }
    for (int x = 0; x < TOY_PROMPTS; x++)
        rng_permutation(t->role[x], TOY_RESPONSES, seed, rng_stream_of(RNG_TOY, 1 + (uint64_t)x));
    forward(t);
    memcpy(t->log_ref, t->log_pi, sizeof t->log_ref);
}

/* grad += of one prompt, given dL/dlogit. */
static void backward(struct toy *t, int x, const double dz[TOY_RESPONSES])
{
    double h[TOY_HIDDEN];
    hidden_of(t, x, h);
    for (int k = 0; k < TOY_HIDDEN; k++) {
        double dh = 0;
        for (int y = 0; y < TOY_RESPONSES; y++) {
            dh += dz[y] * t->param[TOY_W2 + y * TOY_HIDDEN + k];
            t->grad[TOY_W2 + y * TOY_HIDDEN + k] += (float)(dz[y] * h[k]);
        }
        if (h[k] <= 0) continue;
        t->grad[TOY_W1 + k * TOY_PROMPTS + x] += (float)dh;
        t->grad[TOY_B1 + k] += (float)dh;
    }
    for (int y = 0; y < TOY_RESPONSES; y++)
        t->grad[TOY_B2 + y] += (float)dz[y];
}

int toy_step(struct toy *t, const struct loss_def *d, const struct loss_opts *o, double rate,
             double *loss)
{
    double sum = 0;
    memset(t->grad, 0, sizeof t->grad);
    for (int x = 0; x < TOY_PROMPTS; x++) {
        const int64_t w = t->role[x][0], l = t->role[x][1];
        const struct loss_pair p = {
            t->log_pi[x][w], t->log_pi[x][l], t->log_ref[x][w], t->log_ref[x][l], 1, 1
        };
        struct loss_grad g;
        double dz[TOY_RESPONSES];
        d->eval(&g, &p, o, 0);
        sum += g.loss;
        for (int y = 0; y < TOY_RESPONSES; y++)
            dz[y] = (g.d_lw * ((y == w) - exp(t->log_pi[x][y])) +
                     g.d_ll * ((y == l) - exp(t->log_pi[x][y]))) /
                    TOY_PROMPTS;
        backward(t, x, dz);
    }
    if (loss) *loss = sum / TOY_PROMPTS;
    struct tensor w = tensor_view(t->param, DT_F32, TOY_PARAMS, 1, 1, 1);
    struct tensor m = tensor_view(t->m, DT_F32, TOY_PARAMS, 1, 1, 1);
    struct tensor v = tensor_view(t->v, DT_F32, TOY_PARAMS, 1, 1, 1);
    const struct tensor g = tensor_view(t->grad, DT_F32, TOY_PARAMS, 1, 1, 1);
    t->opt.lr = rate;
    t->opt.step++;
    TRY(op_adamw(t->be, &w, &m, &v, &g, &t->opt, NULL));
    forward(t);
    return 0;
}
