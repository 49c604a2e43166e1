/* SPDX-License-Identifier: MIT
 * sample.h - drawing responses from a decoder: one token, and many requests in the slots of a batch. */
#ifndef BDPO_SAMPLE_H
#define BDPO_SAMPLE_H
#include "../base/rng.h"
#include "../data/data.h"
#include "../model/decode.h"

/* The next token of logits[V]: greedy (the lowest id among equals), or sampled with temperature, then top-k, then top-p (the smallest set of the most
 * likely tokens whose probability reaches top_p); u uniform in [0, 1). `work` holds V pairs. */
struct sample_work {
    float p;
    int32_t id;
};
int32_t sample_token(const float *logits, int64_t V, double temperature, int64_t top_k, double top_p, double u, struct sample_work *work);

struct sample_request { /* valid when zeroed but for prompt */
    struct ids prompt;   /* owned; at least one id */
    struct ids answer;   /* without its end token; owned */
    int32_t end;         /* token that ends the answer; -1: none */
    int64_t max_tokens;  /* of the answer, its end token counted */
    int64_t index;       /* of its random numbers */
    bool stopped;        /* at `ended_by`; else the answer is max_tokens long */
    int32_t ended_by;
};
void sample_request_release(struct sample_request *r);
/* Is the answer of r at its end, after the token that was added last? ERR_OOM. */
typedef int (*sample_stop_fn)(void *ctx, const struct sample_request *r, bool *stop);
struct sampler {
    struct decoder *dec;
    int64_t top_k;
    double temperature, top_p;
    uint64_t seed;
    enum rng_stream kind; /* a request draws token t from (seed, (kind, its index), t) alone: the batch does not matter */
    int32_t eos;          /* ends every answer too; -1: none */
    sample_stop_fn stop;  /* NULL: none; the last token stays part of the answer, ended_by -1 */
    void *stop_ctx;
    struct sample_work *work; /* [V] */
};
/* Answer all requests: free slots of the decoder are filled from the queue, and all of them step together. ERR_OOM, ERR_DEVICE. */
int sample_answers(const struct sampler *s, struct sample_request *req, int64_t n);
#endif
