/* SPDX-License-Identifier: MIT
 * model_ref.h - the transformer once more, naive and in double: one sequence at a time, no sharing, no cache. */
#ifndef BDPO_MODEL_REF_H
#define BDPO_MODEL_REF_H
#include "model_fixture.h"

struct ref { /* weights by Hugging Face name, as the parameter table of m lists them */
    const struct model *m;
    double *w; /* [m->n_flat], owned; changed freely by the caller */
};
/* A copy of m's weights as they compute, rounded where they are bfloat16 (they are in host memory). Aborts when out of memory, as all of this file. */
void ref_init(struct ref *r, const struct model *m);
void ref_release(struct ref *r);
/* The first element of a tensor, and how many it has. A name that is not in the table is a bug. */
double *ref_tensor(const struct ref *r, const char *name, int64_t *n);
/* logits[n, V] of a sequence of n ids. */
void ref_logits(const struct ref *r, const int32_t *ids, int32_t n, double *logits);
/* Sum over t in [first, n) of log p(ids[t] | ids[0..t)). first >= 1. */
double ref_logp(const struct ref *r, const int32_t *ids, int32_t n, int32_t first);
/* The same of the response of sequence s of p. */
double ref_sequence(const struct ref *r, const struct fix_pairs *p, int s);
/* The error of float32 sums over the widest inner product, for values of this size. */
double ref_tolerance(const struct model *m, double scale);
/* A function of the weights, r->w, that ctx leads to. */
typedef double ref_objective_fn(const void *ctx);
/* m's gradient of one slice of parameter i against central differences of the objective, within factor * ref_tolerance: at `places` elements, every
 * other one drawn at random, the rest where the gradient is largest. Fails the test. */
void ref_check_gradient(const struct ref *r, int32_t i, const struct param_slice *slice, int places, double factor, ref_objective_fn *objective, const void *ctx);
#endif
