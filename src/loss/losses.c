/* SPDX-License-Identifier: MIT */
#include "loss.h"
#include <float.h>
#include <math.h>
#include <string.h>

/* Of a float32 log-probability nothing can stand between this and 0: the largest x for log(1 -
 * e^x). */
#define LOG_BELOW_ONE (-(double)FLT_EPSILON / 2)

static double sigmoid(double x)
{
    const double e = exp(-fabs(x));
    return x >= 0 ? 1 / (1 + e) : e / (1 + e);
}

static double softplus(double x)
{
    return fmax(x, 0) + log1p(exp(-fabs(x)));
}

/* log(1 - e^x) for x < 0 (Maechler 2012: each form where it loses nothing). */
static double log1mexp(double x)
{
    return x > -M_LN2 ? log(-expm1(x)) : log1p(-exp(x));
}

static double log_ratio_w(const struct loss_pair *p)
{
    return p->lw - p->rw;
}

static double log_ratio_l(const struct loss_pair *p)
{
    return p->ll - p->rl;
}

static void set_rewards(struct loss_grad *g, double beta, double u, double v)
{
    g->reward_w = beta * u;
    g->reward_l = beta * v;
    g->gate = 0;
}

/* sp(-h), h = beta (u - m): what dpo, dpop, bdpo and minor_dpo share. dm_du, dm_dv: derivatives of
 * m. */
static void logistic(struct loss_grad *g, double beta, double u, double m, double dm_du,
                     double dm_dv)
{
    const double h = beta * (u - m), s = sigmoid(-h);
    g->loss = softplus(-h);
    g->d_lw = -beta * (1 - dm_du) * s;
    g->d_ll = beta * s * dm_dv;
}

/* Smoothing e: (1 - e) sp(-h) + e sp(h); at e = 0 each line is the plain loss bit for bit (0 times
 * a finite number). */
static void eval_dpo(struct loss_grad *g, const struct loss_pair *p, const struct loss_opts *o,
                     double kink)
{
    const double u = log_ratio_w(p), v = log_ratio_l(p), h = o->beta * (u - v),
                 e = o->label_smoothing;
    (void)kink;
    set_rewards(g, o->beta, u, v);
    g->loss = (1 - e) * softplus(-h) + e * softplus(h);
    g->d_lw = -o->beta * ((1 - e) * sigmoid(-h) - e * sigmoid(h));
    g->d_ll = -g->d_lw;
}

static void eval_dpo_nll(struct loss_grad *g, const struct loss_pair *p, const struct loss_opts *o,
                         double kink)
{
    const double u = log_ratio_w(p), v = log_ratio_l(p);
    (void)kink;
    set_rewards(g, o->beta, u, v);
    logistic(g, o->beta, u, v, 0, 1);
    g->loss -= o->alpha * p->lw / p->nw;
    g->d_lw -= o->alpha / p->nw;
}

/* The comparisons are written so that NaN takes the active side: a broken log-probability must show
 * in the loss. */
static void eval_dpop(struct loss_grad *g, const struct loss_pair *p, const struct loss_opts *o,
                      double kink)
{
    const double u = log_ratio_w(p), v = log_ratio_l(p);
    const bool below = !(u >= -kink);
    set_rewards(g, o->beta, u, v);
    logistic(g, o->beta, u, v + (below ? o->lambda * -u : 0), below ? -o->lambda : 0, 1);
}

static void eval_minor_dpo(struct loss_grad *g, const struct loss_pair *p,
                           const struct loss_opts *o, double kink)
{
    const double u = log_ratio_w(p), v = log_ratio_l(p);
    const bool above = !(v <= kink);
    set_rewards(g, o->beta, u, v);
    logistic(g, o->beta, u, above ? v : 0, 0, above ? 1 : 0);
}

/* m = log(lambda e^v + 1 - lambda). In log space, log(1 - lambda) + sp(v + logit(lambda)), which
 * never overflows and never goes below log(1 - lambda); near v = 0 that form cancels, and
 * log1p(lambda (e^v - 1)) is exact: m(0) = 0. */
static double mix(double v, double lambda)
{
    if (lambda <= 0) return 0;
    if (lambda >= 1) return v;
    if (v > -0.5 && v < 30) return log1p(lambda * expm1(v));
    return log1p(-lambda) + softplus(v + (log(lambda) - log1p(-lambda)));
}

/* g = dm/dv = s(v + logit(lambda)) = lambda e^v / (lambda e^v + 1 - lambda), divided by the larger
 * power; g(0) = lambda. */
static double mix_gate(double v, double lambda)
{
    if (lambda <= 0) return 0;
    if (lambda >= 1) return 1;
    if (v > 0) return lambda / (lambda + (1 - lambda) * exp(-v));
    const double a = lambda * exp(v);
    return a / (a + (1 - lambda));
}

static void eval_bdpo(struct loss_grad *g, const struct loss_pair *p, const struct loss_opts *o,
                      double kink)
{
    const double u = log_ratio_w(p), v = log_ratio_l(p), gate = mix_gate(v, o->lambda);
    (void)kink;
    set_rewards(g, o->beta, u, v);
    logistic(g, o->beta, u, mix(v, o->lambda), 0, gate);
    g->gate = gate;
}

static void eval_slic(struct loss_grad *g, const struct loss_pair *p, const struct loss_opts *o,
                      double kink)
{
    const double u = log_ratio_w(p), v = log_ratio_l(p), t = 1 - o->beta * (u - v);
    const bool active = !(t <= 0);
    (void)kink;
    set_rewards(g, o->beta, u, v);
    g->loss = active ? t : 0;
    g->d_ll = active ? o->beta : 0;
    g->d_lw = -g->d_ll;
}

static void eval_sppo(struct loss_grad *g, const struct loss_pair *p, const struct loss_opts *o,
                      double kink)
{
    const double u = log_ratio_w(p), v = log_ratio_l(p), t = 1 / (2 * o->beta), a = u - t,
                 b = v + t;
    (void)kink;
    set_rewards(g, o->beta, u, v);
    g->loss = a * a + b * b;
    g->d_lw = 2 * a;
    g->d_ll = 2 * b;
}

/* A response of probability 1 (its float32 log-probability rounded to 0) has infinite odds: a and b
 * stay below 0. */
static void eval_orpo(struct loss_grad *g, const struct loss_pair *p, const struct loss_opts *o,
                      double kink)
{
    const double mean_w = p->lw / p->nw, mean_l = p->ll / p->nl;
    const double a = mean_w > LOG_BELOW_ONE ? LOG_BELOW_ONE : mean_w;
    const double b = mean_l > LOG_BELOW_ONE ? LOG_BELOW_ONE : mean_l;
    const double odds = (a - b) - (log1mexp(a) - log1mexp(b)), s = sigmoid(-odds);
    (void)kink;
    set_rewards(g, o->beta, mean_w, mean_l);
    g->loss = -mean_w + o->beta * softplus(-odds);
    g->d_lw = -1 / p->nw - o->beta * s / (p->nw * -expm1(a));
    g->d_ll = o->beta * s / (p->nl * -expm1(b));
}

static double reference_ln2(const struct loss_opts *o)
{
    (void)o;
    return M_LN2;
}

static double reference_one(const struct loss_opts *o)
{
    (void)o;
    return 1;
}

static double reference_sppo(const struct loss_opts *o)
{
    return 1 / (2 * o->beta * o->beta);
}

static double reference_none(const struct loss_opts *o)
{
    (void)o;
    return NAN;
}

const struct loss_def loss_table[] = {
    { .name = "dpo",
      .flags = LOSS_REF,
      .options = LOSS_BETA | LOSS_SMOOTHING,
      .defaults = { .beta = 0.1 },
      .eval = eval_dpo,
      .at_reference = reference_ln2,
      .formula =
          "(1 - label_smoothing) softplus(-h) + label_smoothing softplus(h), h = beta (u - v)",
      .source = "Rafailov et al. 2023, arXiv:2305.18290; label smoothing: Mitchell 2023" },
    { .name = "dpo_nll",
      .flags = LOSS_REF,
      .options = LOSS_BETA | LOSS_ALPHA,
      .defaults = { .beta = 0.1, .alpha = 1 },
      .eval = eval_dpo_nll,
      .at_reference = reference_none,
      .formula = "softplus(-beta (u - v)) + alpha NLL(w), NLL(w) = -lw / nw",
      .source = "Pang et al. 2024, arXiv:2404.19733" },
    { .name = "dpop",
      .flags = LOSS_REF | LOSS_KINK,
      .options = LOSS_BETA | LOSS_LAMBDA,
      .defaults = { .beta = 0.1, .lambda = 5 },
      .lambda_max = 1e6,
      .eval = eval_dpop,
      .at_reference = reference_ln2,
      .formula = "softplus(-beta (u - v - lambda max(0, -u)))",
      .source = "Pal et al. 2024, arXiv:2402.13228" },
    { .name = "bdpo",
      .flags = LOSS_REF,
      .options = LOSS_BETA | LOSS_LAMBDA,
      .defaults = { .beta = 0.1, .lambda = 0.5 },
      .lambda_max = 1,
      .eval = eval_bdpo,
      .at_reference = reference_ln2,
      .formula = "softplus(-beta (u - m)), m = log(lambda e^v + (1 - lambda))",
      .source = "Cho et al. 2025, arXiv:2506.12725" },
    { .name = "minor_dpo",
      .flags = LOSS_REF | LOSS_KINK,
      .options = LOSS_BETA,
      .defaults = { .beta = 0.1 },
      .eval = eval_minor_dpo,
      .at_reference = reference_ln2,
      .formula = "softplus(-beta (u - max(0, v)))",
      .source = "Xie et al. 2024, arXiv:2408.09834" },
    { .name = "slic",
      .flags = LOSS_REF,
      .options = LOSS_BETA,
      .defaults = { .beta = 0.1 },
      .eval = eval_slic,
      .at_reference = reference_one,
      .formula = "max(0, 1 - beta (u - v))",
      .source = "Zhao et al. 2023, arXiv:2305.10425" },
    { .name = "orpo",
      .flags = 0,
      .options = LOSS_BETA,
      .defaults = { .beta = 0.1 },
      .eval = eval_orpo,
      .at_reference = reference_none,
      .formula =
          "NLL(w) + beta softplus(-o), o = (a - b) - (log(1 - e^a) - log(1 - e^b)), a = lw / nw, "
          "b = ll / nl, NLL(w) = -a",
      .source = "Hong et al. 2024, arXiv:2403.07691" },
    { .name = "sppo",
      .flags = LOSS_REF,
      .options = LOSS_BETA,
      .defaults = { .beta = 0.1 },
      .eval = eval_sppo,
      .at_reference = reference_sppo,
      .formula = "(u - 1/(2 beta))^2 + (v + 1/(2 beta))^2",
      .source = "Wu et al. 2024, arXiv:2405.00675" },
};
const size_t loss_count = COUNT_OF(loss_table);

const struct loss_def *loss_find(const char *name)
{
    for (size_t i = 0; i < loss_count; i++)
        if (strcmp(loss_table[i].name, name) == 0) return &loss_table[i];
    return NULL;
}
