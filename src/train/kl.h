/* SPDX-License-Identifier: MIT
 * kl.h - KL(policy || reference) over whole responses, by sampling from the policy. */
#ifndef BDPO_KL_H
#define BDPO_KL_H
#include "sample.h"
#include "score.h"
#include "../model/decode.h"

enum { KL_TOKENS_MAX = 256, KL_BATCH = 16, KL_ANSWERS = 8 };
struct kl_opts {
    int64_t samples;    /* responses; sample i answers prompt i mod n */
    struct dist *dist;  /* whose ranks share the samples; borrowed; NULL: all are drawn here */
    int64_t max_tokens; /* new tokens of a response, its end token counted */
    uint64_t seed;
    bool same_base;     /* reference and policy are adapters on one base, which the reference takes from the policy: only its adapters are booked and filled */
    int32_t eos, end;   /* what ends a response: EOS, a conversation's end of turn (-1: none) */
};
struct kl { /* valid when zeroed */
    struct kl_opts o;
    struct model *policy;          /* borrowed */
    const struct dataset *prompts; /* borrowed: the prompts of its examples */
    struct model ref;              /* for inference, beside the policy; filled by the caller before kl_measure */
    bool loaded;                   /* the caller's note that it has */
    struct decoder dec, ref_dec;
    struct batch batch;
    struct sample_work *work;
    int64_t longest;               /* tokens of a prompt and its response */
};
/* Tokens that a prompt of d with a response of max_tokens can have: the policy's buffers must hold a micro-batch of as many (T, N, positions). */
int64_t kl_longest(const struct dataset *d, const struct arch *a, int64_t max_tokens);
/* Book the reference's weights and buffers and both KV caches in the policy's plan, after the policy's own buffers. */
int kl_plan(struct kl *k, struct plan *p, struct model *policy, const struct arch *ref, const struct dataset *prompts,
            const struct kl_opts *o);
/* After plan_grant and model_ready of the policy. */
int kl_ready(struct kl *k);
void kl_release(struct kl *k); /* after plan_release */

struct kl_result {
    double mean, error; /* of log pi - log ref, summed over a response and its end token, in nats; error: standard error */
};
/* All ranks of dist: draw the responses (temperature 1, a pure function of seed and weights), score them with both models in the kernels of
 * training. `rows` (may be NULL): [samples] the log-ratio of each, on every rank, as is the result. */
int kl_measure(struct kl *k, struct kl_result *out, double *rows);
/* JSON lines to b for the first KL_ANSWERS prompts: prompt, the answers of policy and reference as text, and whether each ended. */
int kl_answers(struct kl *k, const struct tokenizer *tok, struct buf *b);
#endif
