/* SPDX-License-Identifier: MIT */
#include "kl.h"
#include "metrics.h"
#include "../base/stats.h"
#include <stdlib.h>
#include <string.h>

static int64_t room(const struct example *e, const struct arch *a, int64_t max_tokens)
{
    return MIN(max_tokens, a->max_positions - e->np);
}

int64_t kl_longest(const struct dataset *d, const struct arch *a, int64_t max_tokens)
{
    int64_t longest = 1;
    for (int64_t i = 0; i < d->n; i++)
        longest = MAX(longest, d->ex[i].np + room(&d->ex[i], a, max_tokens));
    return longest;
}

int kl_plan(struct kl *k, struct plan *p, struct model *policy, const struct arch *ref,
            const struct dataset *prompts, const struct kl_opts *o)
{
    int64_t rows = 1;
    memset(k, 0, sizeof *k);
    k->o = *o;
    k->policy = policy;
    k->prompts = prompts;
    k->longest = kl_longest(prompts, &policy->arch, o->max_tokens);
    for (int64_t i = 0; i < prompts->n; i++)
        rows = MAX(rows, prompts->ex[i].np);
    const struct model_size size = { .T = k->longest, .N = k->longest, .positions = k->longest };
    TRY(model_init(&k->ref, policy->be, ref, policy->dtype));
    if (o->same_base) k->ref.base = policy;
    TRY(model_plan_weights(&k->ref, p, false));
    TRY(model_plan_buffers(&k->ref, p, &size));
    TRY(decoder_plan(&k->dec, policy, p, MIN(o->samples, KL_BATCH), k->longest, rows));
    return decoder_plan(&k->ref_dec, &k->ref, p, MIN(o->samples, KL_ANSWERS), k->longest, rows);
}

int kl_ready(struct kl *k)
{
    TRY(model_ready(&k->ref));
    TRY(decoder_ready(&k->dec));
    TRY(decoder_ready(&k->ref_dec));
    TRY(MEM_NEW(&k->work, MAX(k->policy->arch.V, k->ref.arch.V)));
    return batch_init(&k->batch, k->longest, k->longest, k->longest);
}

void kl_release(struct kl *k)
{
    decoder_release(&k->dec);
    decoder_release(&k->ref_dec);
    model_release(&k->ref);
    batch_release(&k->batch);
    free(k->work);
    memset(k, 0, sizeof *k);
}

static void requests_free(struct sample_request *r, int64_t n)
{
    for (int64_t i = 0; r && i < n; i++)
        sample_request_release(&r[i]);
    free(r);
}

/* n requests, of the samples first, first + step, ... in turn over the prompts, answered by dec's model. The end token is the one that the prompt's chosen response ends with; where that
 * was cut, a conversation's. */
static int answer(const struct kl *k, struct decoder *dec, int64_t first, int64_t step, int64_t n,
                  struct sample_request **out)
{
    const struct dataset *d = k->prompts;
    const struct sampler s = { .dec = dec,
                               .temperature = 1,
                               .top_p = 1,
                               .seed = k->o.seed,
                               .kind = RNG_KL,
                               .eos = k->o.eos,
                               .work = k->work };
    struct sample_request *r;
    TRY(MEM_NEW(&r, n));
    int rc = 0;
    for (int64_t i = 0; rc == 0 && i < n; i++) {
        const int64_t index = first + i * step;
        const struct example *e = &d->ex[index % d->n];
        const int32_t last = d->ids[e->at + e->np + e->nw - 1];
        r[i].index = index;
        r[i].end = last == k->o.eos ? -1 : k->o.end;
        r[i].max_tokens = room(e, &k->policy->arch, k->o.max_tokens);
        rc = ids_append(&r[i].prompt, d->ids + e->at, e->np);
    }
    if (rc == 0) rc = sample_answers(&s, r, n);
    if (rc < 0)
        requests_free(r, n);
    else
        *out = r;
    return rc;
}

/* The answers as rows that score_rows takes: an SFT row each. */
static int rows_of(struct dataset *d, const struct sample_request *r, int64_t n)
{
    struct ids all = { 0 };
    TRY(MEM_NEW(&d->ex, n));
    d->n = n;
    for (int64_t i = 0; i < n; i++) {
        d->ex[i] = (struct example){ .at = all.n,
                                     .np = (int32_t)r[i].prompt.n,
                                     .nw = (int32_t)(r[i].answer.n + r[i].stopped) };
        int rc = ids_append(&all, r[i].prompt.id, r[i].prompt.n);
        if (rc == 0) rc = ids_append(&all, r[i].answer.id, r[i].answer.n);
        if (rc == 0 && r[i].stopped) rc = ids_add(&all, r[i].ended_by);
        d->ids = all.id; /* dataset_release frees it */
        TRY(rc);
    }
    d->n_ids = all.n;
    return 0;
}

/* This rank's share of the log-ratios, into all[samples]. */
static int measure_share(struct kl *k, double *all)
{
    const int64_t rank = dist_rank(k->o.dist), ranks = dist_size(k->o.dist),
                  n = MAX(div_up(k->o.samples - rank, ranks), (int64_t)0);
    struct sample_request *r = NULL;
    struct dataset d = { 0 };
    struct scores pi = { 0 }, ref = { 0 };
    int rc;
    if (n == 0) return 0;
    TRY_OUT(answer(k, &k->dec, rank, ranks, n, &r));
    TRY_OUT(rows_of(&d, r, n));
    TRY_OUT(scores_init(&pi, n));
    TRY_OUT(scores_init(&ref, n));
    TRY_OUT(score_all(&pi, NULL, false, k->policy, &k->batch, &d, k->longest));
    TRY_OUT(score_all(&ref, NULL, false, &k->ref, &k->batch, &d, k->longest));
    for (int64_t i = 0; i < n; i++)
        all[rank + i * ranks] = pi.w[i] - ref.w[i];
out:
    requests_free(r, n);
    scores_release(&pi);
    scores_release(&ref);
    dataset_release(&d);
    return rc;
}

int kl_measure(struct kl *k, struct kl_result *out, double *rows)
{
    const int64_t n = k->o.samples;
    double *all;
    int rc;
    BUG_IF(!k->loaded);
    rc = MEM_NEW(&all, n);
    if (rc == 0) rc = measure_share(k, all);
    TRY_OUT(dist_agree(k->o.dist, rc));
    TRY_OUT(dist_sum(k->o.dist, all, n));
    if (rows) memcpy(rows, all, (size_t)n * sizeof *rows);
    out->mean = stats_mean(all, n);
    out->error = stats_stderr(all, n);
out:
    free(all);
    return rc;
}

static int put_text(json_t *o, const char *key, const struct tokenizer *tok, const struct ids *v)
{
    struct buf text = { 0 };
    int rc = tokenizer_decode(tok, v->id, v->n, true, &text);
    if (rc == 0 && json_object_set_new(o, key, json_stringn(text.data ? text.data : "", text.len)))
        rc = err_set(ERR_OOM, "out of memory for an answer");
    buf_release(&text);
    return rc;
}

int kl_answers(struct kl *k, const struct tokenizer *tok, struct buf *b)
{
    const int64_t n = MIN(MIN(k->o.samples, (int64_t)KL_ANSWERS), k->prompts->n);
    struct sample_request *pi = NULL, *ref = NULL;
    json_t *o = NULL;
    int rc;
    TRY_OUT(answer(k, &k->dec, 0, 1, n, &pi));
    TRY_OUT(answer(k, &k->ref_dec, 0, 1, n, &ref));
    for (int64_t i = 0; i < n; i++) {
        json_decref(o);
        o = json_object();
        TRY_OUT(put_text(o, "prompt", tok, &pi[i].prompt));
        TRY_OUT(put_text(o, "policy", tok, &pi[i].answer));
        TRY_OUT(put_text(o, "reference", tok, &ref[i].answer));
        TRY_OUT(metrics_text(o, "policy/finish", pi[i].stopped ? "stop" : "length"));
        TRY_OUT(metrics_text(o, "reference/finish", ref[i].stopped ? "stop" : "length"));
        TRY_OUT(json_dump(b, o, 0));
        TRY_OUT(buf_adds(b, "\n"));
    }
out:
    json_decref(o);
    requests_free(pi, n);
    requests_free(ref, n);
    return rc;
}
