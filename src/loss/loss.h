/* SPDX-License-Identifier: MIT
 * loss.h - preference losses as scalar functions of sequence log-probabilities (host, double). */
#ifndef BDPO_LOSS_H
#define BDPO_LOSS_H
#include "../base/base.h"
#ifdef __cplusplus
extern "C" {
#endif

struct loss_pair {       /* one pair; log-probabilities are sums over the response's tokens, natural log */
    double lw, ll;       /* policy, chosen and rejected */
    double rw, rl;       /* reference; ignored by a loss without LOSS_REF */
    double nw, nl;       /* response tokens */
};
struct loss_grad {
    double loss, d_lw, d_ll;       /* value, dL/dlw, dL/dll */
    double reward_w, reward_l;     /* implicit rewards (metrics): beta u, beta v; orpo: beta lw/nw, beta ll/nl */
    double gate;                   /* bdpo: g = s(v + logit(lambda)); 0 elsewhere */
};
struct loss_opts { /* every option that any loss has; a loss reads those in its `options` mask */
    double beta, lambda, alpha, label_smoothing;
};
enum loss_option { LOSS_BETA = 1, LOSS_LAMBDA = 2, LOSS_ALPHA = 4, LOSS_SMOOTHING = 8 };
enum loss_flag { LOSS_REF = 1, LOSS_KINK = 2 }; /* reads the reference; stands on a kink where policy = reference */

struct loss_def {
    const char *name;
    unsigned flags;   /* enum loss_flag */
    unsigned options; /* enum loss_option */
    struct loss_opts defaults;
    double lambda_max; /* upper bound of lambda's range (inclusive) */
    /* kink_tolerance: |u|, |v| at or below it count as exactly 0 for [u < 0], [v > 0] (first step only; else 0). */
    /* orpo: lw/nw and ll/nl are kept at -2^-24 or below, since a response of probability 1 has infinite odds. A NaN among the
     * log-probabilities that the loss reads gives a NaN loss. */
    void (*eval)(struct loss_grad *g, const struct loss_pair *p, const struct loss_opts *o, double kink_tolerance);
    /* loss of a pair with u = v = 0 (the first step): ln 2, 1, 1/(2 beta^2); NAN where it depends on the data (dpo_nll, orpo). */
    double (*at_reference)(const struct loss_opts *o);
    const char *formula; /* with option names as symbols */
    const char *source;
};
extern const struct loss_def loss_table[];
extern const size_t loss_count;
const struct loss_def *loss_find(const char *name); /* NULL if unknown; static lifetime */
/* The formula with every constant put in, e.g. "bdpo: softplus(-0.1 (u - m)), m = log(0.5 e^v + 0.5)"; returns out. */
const char *loss_describe(char *out, size_t size, const struct loss_def *d, const struct loss_opts *o);
/* Name of one option bit ("beta"), for messages and the option table. */
const char *loss_option_name(unsigned bit);
/* Value of that option in o; its default is loss_option(bit, &def->defaults). */
double loss_option(unsigned bit, const struct loss_opts *o);
#ifdef __cplusplus
}
#endif
#endif
