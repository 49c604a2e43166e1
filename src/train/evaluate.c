/* SPDX-License-Identifier: MIT */
#include "evaluate.h"
#include "../base/watch.h"
#include "sizing.h"
#include "statistics.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* OUTPUT/name where it is a directory, else `fallback`; owned by the caller. */
static int choose(char **out, const char *given, const char *output, const char *name,
                  const char *fallback)
{
    if (given) return mem_strdup(out, given);
    TRY(path_join(out, output, name));
    if (dir_exists(*out)) return 0;
    free(*out);
    *out = NULL;
    return mem_strdup(out, fallback);
}

static int open_model(struct stage *st, struct setup *su, const struct setup *base, const char *dir,
                      enum stage_kind kind, const struct dataset *d)
{
    TRY(setup_arch(&su->arch, su->cfg, dir));
    if (su->arch.V < base->arch.V)
        return err_set(ERR_INPUT, "%s: has %lld token ids, %s has %lld: the tokenizers differ", dir,
                       (long long)su->arch.V, base->cfg->model.path, (long long)base->arch.V);
    TRY(stage_open(st, su, kind, d, d, false));
    return model_load(&st->model, dir);
}

/* Score every row of d with the weights in dir, in a model of its own that is let go; kl (may be NULL) gets its eval/kl. */
static int score_with(const struct setup *base, const char *dir, enum stage_kind kind,
                      const struct dataset *d, struct scores *s, struct metrics *kl)
{
    struct setup su = *base; /* borrows all but the architecture */
    struct stage st = { 0 };
    int rc;
    if (!kl) su.kl_samples = 0;
    TRY_OUT(dist_agree(su.dist, open_model(&st, &su, base, dir, kind, d)));
    TRY_OUT(scores_init(s, d->n));
    TRY_OUT(score_all(s, su.dist, su.cfg->dist.deterministic, &st.model, &st.batch, d,
                      su.micro_tokens));
    if (kl) TRY_OUT(dist_agree(su.dist, stage_measure_kl(&st, kl, NULL)));
out:
    stage_release(&st);
    return rc;
}

static int add_ids(json_t *o, const char *key, const int32_t *id, int32_t n)
{
    json_t *a = json_array();
    for (int32_t i = 0; i < n; i++)
        if (json_array_append_new(a, json_integer(id[i]))) break;
    const bool whole = (int32_t)json_array_size(a) == n;
    return json_object_set_new(o, key, a) || !whole ? err_set(ERR_OOM, "out of memory for a row")
                                                    : 0;
}

static int pair_row(json_t *o, const struct dataset *d, int64_t i, const struct scores *pi,
                    const struct scores *ref)
{
    const struct example *e = &d->ex[i];
    const int32_t *id = d->ids + e->at;
    TRY(metrics_text(o, "file", d->files[e->file]));
    TRY(metrics_int(o, "line", e->line));
    TRY(add_ids(o, "prompt_ids", id, e->np));
    TRY(add_ids(o, "chosen_ids", id + e->np, e->nw));
    TRY(metrics_real(o, "logps/chosen", pi->w[i]));
    if (e->nl == 0) return 0;
    TRY(add_ids(o, "rejected_ids", id + e->np + e->nw, e->nl));
    TRY(metrics_real(o, "logps/rejected", pi->l[i]));
    if (!ref->n) return 0;
    TRY(metrics_real(o, "ref_logps/chosen", ref->w[i]));
    return metrics_real(o, "ref_logps/rejected", ref->l[i]);
}

static int write_pairs(struct file_out *f, const struct dataset *d, const struct scores *pi,
                       const struct scores *ref)
{
    struct buf b = { 0 };
    int rc = 0;
    for (int64_t i = 0; rc == 0 && i < d->n; i++) {
        json_t *o = json_object();
        buf_clear(&b);
        rc = pair_row(o, d, i, pi, ref);
        if (rc == 0) rc = json_dump(&b, o, 0);
        if (rc == 0) rc = buf_adds(&b, "\n");
        if (rc == 0) rc = file_put(f, b.data, b.len);
        json_decref(o);
    }
    if (rc == 0) rc = file_commit(f);
    buf_release(&b);
    return rc;
}

static int print_metrics(const struct stage *st, const struct dataset *d, const struct metrics *m,
                         const struct scores *pi, const struct scores *ref,
                         const struct scores *other)
{
    const struct loss_def *loss = st->loss;
    json_t *o = json_object();
    struct buf b = { 0 };
    int rc;
    TRY_OUT(metrics_set(o, "", m, loss));
    TRY_OUT(metrics_set(o, "eval/", m, loss)); /* as in an evaluation row of metrics.jsonl */
    TRY_OUT(metrics_int(o, "examples", m->examples));
    TRY_OUT(metrics_int(o, "tokens", m->tokens));
    if (loss) TRY_OUT(statistics_set(o, st, d, pi, ref->n ? ref : NULL, other->n ? other : NULL));
    TRY_OUT(json_dump(&b, o, 0));
    if (puts(b.data) < 0 || fflush(stdout) != 0)
        TRY_OUT(err_set(ERR_IO, "cannot write to the standard output"));
out:
    json_decref(o);
    buf_release(&b);
    return rc;
}

/* Both models in turn are scored in micro-batches of the size that fits; nothing is trained. */
static int choose_sizes(struct setup *su, enum stage_kind kind, const struct dataset *d)
{
    const struct run_stage stage = { kind, &su->arch, d, d, false };
    const struct sizing_want want = { su->cfg->memory.micro_batch_tokens, 0, 0 };
    struct sizing_run run = { .stage = &stage,
                              .n = 1,
                              .base = forecast_base(&d, 1, su->tok_bytes) };
    struct sizing s;
    TRY(sizing_on(&run, &su->be));
    return sizing_choose(&s, su, &run, &want);
}

/* Everything that can be wrong with the input, before the work. */
static int evaluate_open(struct setup *su, const struct config *c, struct dist *dist,
                         struct dataset *d, struct file_out *pairs, const char *per_pair)
{
    const enum data_kind kind = c->preference.present ? DATA_PAIRS : DATA_SFT;
    if (c->data.eval.n == 0)
        return err_set(
            ERR_INPUT,
            "data.eval: evaluate needs a file; set it in the config or with --set data.eval=FILE");
    TRY(setup_open(su, c, dist));
    TRY(setup_cache(su, true));
    TRY(setup_data(su, d, &c->data.eval, kind));
    if (per_pair && dist_rank(dist) == 0 && file_create_named(pairs, per_pair) < 0)
        return ERR_INPUT;
    return setup_backend(su, false);
}

int evaluate_run(const struct config *c, struct dist *dist, const char *model, const char *compare,
                 const char *per_pair)
{
    const enum stage_kind kind = c->preference.present ? STAGE_PREFERENCE : STAGE_SFT;
    const struct loss_def *loss = kind == STAGE_PREFERENCE ? loss_find(c->loss) : NULL;
    struct scores pi = { 0 }, ref = { 0 }, other = { 0 };
    struct file_out pairs = { 0 };
    struct setup su = { 0 };
    struct dataset d = { 0 };
    struct metrics m, kl = { 0 };
    char *policy = NULL, *reference = NULL;
    int rc;
    TRY_OUT(dist_agree(dist, evaluate_open(&su, c, dist, &d, &pairs, per_pair)));
    TRY_OUT(dist_watch(dist, c->faults.hang_timeout, NULL, NULL));
    const char *start = c->model.lora.path ? c->model.lora.path : c->model.path;
    TRY_OUT(choose(&policy, model, c->output, "model", start));
    TRY_OUT(choose(&reference, c->reference.path, c->output, "sft", start));
    su.kl_reference = reference;
    TRY_OUT(choose_sizes(&su, kind, &d));
    if (loss && (loss->flags & LOSS_REF)) {
        fprintf(stderr, "policy: %s, reference: %s\n", policy, reference);
        TRY_OUT(score_with(&su, reference, kind, &d, &ref, NULL));
    }
    TRY_OUT(score_with(&su, policy, kind, &d, &pi, &kl));
    if (loss && compare) TRY_OUT(score_with(&su, compare, kind, &d, &other, NULL));
    const struct stage st = { .su = &su, .cfg = c, .kind = kind, .loss = loss };
    stage_metrics(&st, &d, &pi, ref.n ? &ref : NULL, &m);
    m.has_kl = kl.has_kl;
    m.kl = kl.kl;
    m.kl_stderr = kl.kl_stderr;
    if (dist_rank(dist) > 0) goto out;
    if (per_pair) TRY_OUT(write_pairs(&pairs, &d, &pi, &ref));
    TRY_OUT(print_metrics(&st, &d, &m, &pi, &ref, &other));
out:
    watch_stop();
    file_abandon(&pairs);
    scores_release(&pi);
    scores_release(&ref);
    scores_release(&other);
    dataset_release(&d);
    setup_close(&su);
    free(policy);
    free(reference);
    return rc;
}
