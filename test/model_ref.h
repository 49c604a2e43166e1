/* SPDX-License-Identifier: MIT
 * model_ref.h - the transformer once more, naive and in double: one sequence at a time, no sharing, no cache. */
#ifndef BDPO_MODEL_REF_H
#define BDPO_MODEL_REF_H
#include "../src/model/model.h"

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
#endif
