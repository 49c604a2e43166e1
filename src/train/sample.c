/* SPDX-License-Identifier: MIT */
#include "sample.h"
#include "../base/signals.h"
#include "../base/watch.h"
#include <math.h>
#include <stdlib.h>

static int by_probability(const void *a, const void *b)
{
    const struct sample_work *x = a, *y = b;
    if (x->p != y->p) return x->p < y->p ? 1 : -1;
    return x->id < y->id ? -1 : x->id > y->id;
}

static int32_t greedy(const float *logits, int64_t V)
{
    int64_t best = 0;
    for (int64_t i = 1; i < V; i++)
        if (logits[i] > logits[best]) best = i;
    return (int32_t)best;
}

int32_t sample_token(const float *logits, int64_t V, double temperature, int64_t top_k,
                     double top_p, double u, struct sample_work *work)
{
    const int32_t best = greedy(logits, V);
    double total = 0, kept = 0, sum = 0;
    int64_t n = V;
    if (temperature <= 0) return best;
    for (int64_t i = 0; i < V; i++) {
        work[i].p = (float)exp(((double)logits[i] - logits[best]) / temperature);
        work[i].id = (int32_t)i;
    }
    const bool cut = (top_k > 0 && top_k < V) || top_p < 1;
    if (cut) qsort(work, (size_t)V, sizeof *work, by_probability);
    if (top_k > 0) n = MIN(n, top_k);
    for (int64_t i = 0; i < n; i++)
        total += work[i].p;
    if (top_p < 1) {
        int64_t k = 0;
        while (k < n && (k == 0 || kept < top_p * total))
            kept += work[k++].p;
        n = k;
        total = kept;
    }
    for (int64_t i = 0; i < n; i++) {
        sum += work[i].p;
        if (u * total < sum) return work[i].id;
    }
    return work[n - 1].id;
}

void sample_request_release(struct sample_request *r)
{
    ids_release(&r->prompt);
    ids_release(&r->answer);
}

static int take_token(const struct sampler *s, struct sample_request *r, const float *logits)
{
    const double u =
        rng_uniform(s->seed, rng_stream_of(s->kind, (uint64_t)r->index), (uint64_t)r->answer.n);
    const int32_t id =
        sample_token(logits, s->dec->m->arch.V, s->temperature, s->top_k, s->top_p, u, s->work);
    r->stopped = id == r->end || id == s->eos;
    r->ended_by = id;
    if (r->stopped) return 0;
    TRY(ids_add(&r->answer, id));
    if (s->stop) TRY(s->stop(s->stop_ctx, r, &r->stopped));
    if (r->stopped) r->ended_by = -1;
    return 0;
}

static bool running(const struct sample_request *r)
{
    return !r->stopped && r->answer.n < r->max_tokens;
}

/* The parts of the next pass: prompts for free slots as far as they fit, then the last token of each running answer, all or none, since those wait without loss. */
static int64_t next_parts(const struct sampler *s, struct sample_request *req, int64_t n_req,
                          int64_t *next, int64_t *owner, struct decoder_part *parts)
{
    const struct decoder *d = s->dec;
    int64_t n = 0, rows = 0, going = 0;
    for (int64_t k = 0; k < d->B; k++) {
        if (owner[k] >= 0 && running(&req[owner[k]])) {
            going++;
            continue;
        }
        owner[k] = -1;
        if (*next == n_req) continue;
        BUG_IF(req[*next].prompt.n > d->T_max);
        if (req[*next].prompt.n > d->T_max - rows) continue;
        const struct ids *prompt = &req[owner[k] = (*next)++].prompt;
        decoder_reset(s->dec, k);
        parts[n++] = (struct decoder_part){ (int32_t)k, prompt->id, prompt->n };
        rows += prompt->n;
    }
    if (rows + going > d->T_max) return n;
    for (int64_t k = 0; k < d->B; k++) {
        if (owner[k] < 0 || req[owner[k]].answer.n == 0) continue;
        const struct ids *answer = &req[owner[k]].answer;
        parts[n++] = (struct decoder_part){ (int32_t)k, answer->id + answer->n - 1, 1 };
    }
    return n;
}

int sample_answers(const struct sampler *s, struct sample_request *req, int64_t n_req)
{
    const int64_t B = s->dec->B, V = s->dec->m->arch.V;
    struct decoder_part *parts = NULL;
    int64_t *owner = NULL, next = 0, n;
    const float *logits;
    int rc;
    TRY_OUT(MEM_NEW(&parts, B));
    TRY_OUT(MEM_NEW(&owner, B));
    for (int64_t k = 0; k < B; k++)
        owner[k] = -1;
    for (; (n = next_parts(s, req, n_req, &next, owner, parts)) > 0; watch_beat()) {
        if (signals_pending()) TRY_OUT(err_set(ERR_STOPPED, "stopped while sampling"));
        TRY_OUT(decoder_pass(s->dec, parts, n, &logits));
        for (int64_t i = 0; i < n; i++)
            TRY_OUT(take_token(s, &req[owner[parts[i].slot]], logits + i * V));
    }
out:
    free(parts);
    free(owner);
    return rc;
}
