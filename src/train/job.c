/* SPDX-License-Identifier: MIT */
#include "job_impl.h"
#include "fingerprint.h"
#include "replica.h"
#include "../base/signals.h"
#include "../base/watch.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int job_open(struct job *j, const struct config *c, struct dist *dist)
{
    j->cfg = c;
    j->started = j->last_save = clock_seconds();
    TRY(setup_open(&j->su, c, dist));
    TRY(setup_cache(&j->su, true));
    return inputs_load(&j->in, &j->su, false);
}

static void job_close(struct job *j)
{
    status_release(&j->status);
    output_close(&j->out);
    inputs_release(&j->in);
    scores_release(&j->ref[0]);
    scores_release(&j->ref[1]);
    setup_close(&j->su);
}

static int stage_weights(const struct job *j, struct stage *st)
{
    return stage_load_start(&st->model, j->cfg, st->kind);
}

static int open_foreign(struct job *j, struct stage *st, struct setup *su)
{
    const char *path = j->cfg->reference.path;
    TRY(setup_arch(&su->arch, j->cfg, path));
    if (su->arch.V != j->su.arch.V)
        return err_set(
            ERR_INPUT,
            "reference.path: %s has %lld token ids, model.path %lld: the tokenizers differ", path,
            (long long)su->arch.V, (long long)j->su.arch.V);
    TRY(stage_open(st, su, STAGE_PREFERENCE, &j->in.data[STAGE_PREFERENCE],
                   j->in.has_eval ? &j->in.eval[STAGE_PREFERENCE] : NULL, false));
    return model_load(&st->model, path);
}

/* reference.path: its own model, scored and let go before the policy takes memory; before the first stage, so that a fault in it is
 * found before anything is written. */
static int foreign_reference(struct job *j)
{
    const char *path = j->cfg->reference.path;
    const bool restored = j->out.first == STAGE_PREFERENCE && j->out.resume;
    struct setup su = j->su; /* borrows all but the architecture */
    struct stage st = { 0 };
    struct buf said = { 0 };
    int rc;
    if (!inputs_foreign_reference(j->cfg) || restored) return 0;
    su.kl_samples = 0; /* it is the policy that is measured */
    TRY_OUT(dist_agree(su.dist, open_foreign(j, &st, &su)));
    status_say(&j->status, "reference: scoring with %s", path);
    TRY_OUT(stage_reference(&st, &said));
    status_say(&j->status, "%s", said.data);
    j->ref[0] = st.ref;
    j->ref[1] = st.ref_eval;
    memset(&st.ref, 0, sizeof st.ref);
    memset(&st.ref_eval, 0, sizeof st.ref_eval);
out:
    buf_release(&said);
    stage_release(&st);
    return rc;
}

/* Non-finite: the weights stayed; say which rows it was. */
static int skipped_step(struct job *j, struct stage *st, const struct metrics *m, double norm)
{
    const int64_t *idx;
    const int64_t n = order_step(&st->order, st->step - 1, &idx);
    struct buf rows = { 0 };
    for (int64_t i = 0; i < MIN(n, (int64_t)8); i++) {
        const struct example *e = &st->data->ex[idx[i]];
        TRY(buf_addf(&rows, "%s%s:%lld", i ? ", " : "", st->data->files[e->file],
                     (long long)e->line));
    }
    status_say(&j->status, "warning: %s step %lld skipped: loss %g, gradient norm %g; rows %s%s",
               st->name, (long long)st->step, metrics_loss(m, st->loss), norm, rows.data,
               n > 8 ? ", ..." : "");
    buf_release(&rows);
    if (st->skipped_run > j->cfg->faults.max_skipped_steps)
        return err_set(ERR_DIVERGED,
                       "%s step %lld: loss or gradient was not finite in %lld steps in a row "
                       "(faults.max_skipped_steps: %lld); lower learning_rate",
                       st->name, (long long)st->step, (long long)st->skipped_run,
                       (long long)j->cfg->faults.max_skipped_steps);
    return 0;
}

/* What a step's end decides: rank 0's clock counts for all, and a signal to any rank. */
enum { WISH_SIGNAL, WISH_LATE, WISH_SAVE, WISHES };

static void wishes(const struct job *j, const struct stage *st, int64_t wish[WISHES])
{
    const struct config *c = j->cfg;
    const double now = clock_seconds();
    memset(wish, 0, WISHES * sizeof *wish);
    wish[WISH_SIGNAL] = signals_pending();
    wish[WISH_SAVE] = c->checkpoint.every > 0 && st->step % c->checkpoint.every == 0;
    if (!job_writes(j)) return;
    wish[WISH_LATE] = c->max_hours > 0 && now - j->started > 3600 * c->max_hours;
    if (c->checkpoint.every_minutes > 0 && now - j->last_save > 60 * c->checkpoint.every_minutes)
        wish[WISH_SAVE] = 1;
}

static int stop_requested(struct job *j, struct stage *st, const int64_t wish[WISHES])
{
    if (st->step == st->steps || (!wish[WISH_SIGNAL] && !wish[WISH_LATE])) return 0;
    TRY(job_checkpoint(j, st));
    if (wish[WISH_SIGNAL])
        err_set(ERR_STOPPED, "stopped by %s after %s step %lld; saved, start again to go on",
                signals_name((int)wish[WISH_SIGNAL]), st->name, (long long)st->step);
    else
        err_set(ERR_STOPPED, "max_hours reached after %s step %lld; saved, start again to go on",
                st->name, (long long)st->step);
    return dist_agree(j->su.dist, ERR_STOPPED);
}

/* What a step leaves in the files and on the screen. */
static int report_step(struct job *j, struct stage *st, const struct metrics *m, double norm,
                       double lr, bool applied, double seconds)
{
    const bool last = st->step == st->steps;
    const bool logged = st->step % j->cfg->logging.every == 0 || last || !applied;
    if (logged && job_writes(j)) TRY(job_row(j, st, "", m, norm, lr));
    if (logged && job_writes(j)) TRY(job_timing(j, st, m, seconds));
    TRY(status_step(&j->status, st->step, NULL, m, st->kind == STAGE_PREFERENCE, seconds));
    return applied ? 0 : skipped_step(j, st, m, norm);
}

/* Everything that is due after a step, apart from the step itself; rc: that of report_step. */
static int after_step(struct job *j, struct stage *st, int rc)
{
    const struct config *c = j->cfg;
    const int64_t per_epoch = order_steps_per_epoch(&st->order);
    const bool last = st->step == st->steps;
    int64_t wish[WISHES];
    wishes(j, st, wish);
    TRY(dist_vote(j->su.dist, rc, wish, WISHES));
    if (c->faults.replica_check_every > 0 && st->step % c->faults.replica_check_every == 0)
        TRY(replica_check(j->su.dist, &st->model)); /* before anything is saved */
    if (st->eval && c->eval.every > 0 && st->step % c->eval.every == 0 && !(last && c->eval.at_end))
        TRY(job_evaluate(j, st, true));
    st->eval_due = false;
    if (c->checkpoint.export_at == EXPORT_EPOCH && st->kind == STAGE_PREFERENCE &&
        st->step % per_epoch == 0) {
        char name[48];
        snprintf(name, sizeof name, "models/epoch-%lld", (long long)(st->step / per_epoch));
        TRY(job_save_model(j, st, name));
    }
    if (wish[WISH_SAVE] && !last) TRY(job_checkpoint(j, st));
    return stop_requested(j, st, wish);
}

/* A reference computed in the same company has the same bits; a cached one may have been computed in another. */
static void say_first(struct job *j, const struct stage *st, double loss)
{
    if (st->self_difference > 0)
        status_say(&j->status,
                   "first step: the policy is the reference up to rounding (log-probabilities "
                   "differ by %.2g of their value, allowed %.2g), loss %.9g",
                   st->self_difference, stage_tolerance(j->cfg), loss);
    else
        status_say(&j->status, "first step: the policy is the reference, loss %.9g", loss);
}

struct traffic { /* of this rank's steps */
    int64_t steps, bytes;
    double waited, seconds;
};

static void add_traffic(struct traffic *t, const struct dist *d, double seconds)
{
    t->steps++;
    t->bytes += d ? d->bytes : 0;
    t->waited += d ? d->seconds : 0;
    t->seconds += seconds;
}

/* All ranks. What communication took of a stage: the rank that sent most, and the one that waited longest. */
static int say_traffic(struct job *j, const struct stage *st, const struct traffic *t)
{
    const double n = (double)MAX(t->steps, (int64_t)1);
    int64_t most[3] = { (int64_t)((double)t->bytes / n), (int64_t)(1e9 * t->waited / n),
                        (int64_t)(1e6 * t->waited / t->seconds) };
    char sent[32];
    if (dist_size(j->su.dist) == 1 || t->steps == 0) return 0;
    TRY(dist_vote(j->su.dist, 0, most, 3));
    status_say(&j->status,
               "%s: communication: %s sent by a rank and step, %.3g ms of a step (%.1f %%) waited "
               "for",
               st->name, bytes_human(sent, most[0]), 1e-6 * (double)most[1],
               1e-4 * (double)most[2]);
    return 0;
}

static int train_loop(struct job *j, struct stage *st)
{
    struct traffic traffic = { 0 };
    const int64_t first = st->step;
    status_stage(&j->status, st->name, st->step, st->steps);
    watch_stage(st->name, st->step);
    TRY(status_write(&j->status, "running", 0, "training"));
    int64_t number = signals_pending();
    TRY(dist_vote(j->su.dist, 0, &number, 1));
    if (number && st->step < st->steps) { /* what there is to go on from is on the disk */
        err_set(ERR_STOPPED, "stopped by %s before %s step %lld; start again to go on",
                signals_name((int)number), st->name, (long long)st->step + 1);
        return dist_agree(j->su.dist, ERR_STOPPED);
    }
    if (st->eval_due) TRY(after_step(j, st, 0));
    while (st->step < st->steps) {
        struct metrics m;
        double norm, lr;
        bool applied;
        const double start = clock_seconds();
        watch_stage(st->name, st->step + 1);
        dist_count(j->su.dist);
        TRY(stage_step(st, &m, &norm, &lr, &applied));
        add_traffic(&traffic, j->su.dist, clock_seconds() - start);
        if (st->step == first + 1) TRY(planning_compare(&j->status, &j->su.be, &j->peak[st->kind]));
        if (st->at_reference && st->step == 1) say_first(j, st, metrics_loss(&m, st->loss));
        TRY(after_step(j, st, report_step(j, st, &m, norm, lr, applied, clock_seconds() - start)));
    }
    return say_traffic(j, st, &traffic);
}

static void announce(struct job *j, const struct stage *st)
{
    char text[512];
    if (st->loss)
        status_say(&j->status, "preference loss: %s",
                   loss_describe(text, sizeof text, st->loss, &j->cfg->loss_opts));
    if (st->model.arch.lora.rank > 0)
        status_say(&j->status,
                   "%s: adapters of rank %lld, %lld parameters (%.3g %% of the model's)", st->name,
                   (long long)st->model.arch.lora.rank, (long long)lora_parameters(&st->model.arch),
                   100 * (double)lora_parameters(&st->model.arch) /
                       (double)arch_parameters(&st->model.arch));
    status_say(&j->status,
               "%s: %lld steps of %lld from %lld rows, %d threads, micro-batches of %lld tokens",
               st->name, (long long)st->steps, (long long)st->order.batch_size,
               (long long)st->data->n, j->su.be.threads, (long long)st->micro_tokens);
}

/* Sizes of micro-batches and what is recomputed: as stored by what this run goes on from, else as the config says. */
static int sizes_here(struct job *j, struct sizing *s)
{
    const struct config *c = j->cfg;
    struct sizing_want want = { c->memory.micro_batch_tokens, c->memory.gradient_checkpointing,
                                c->memory.keep_logits };
    struct sizing_run run;
    TRY(inputs_run(&run, &j->in, &j->su.be));
    TRY(output_sizes(&j->out, &want));
    const int rc = sizing_choose(s, &j->su, &run, &want);
    if (rc != ERR_INPUT || c->memory.gradient_checkpointing != CONFIG_AUTO) return rc;
    want.recompute = CONFIG_AUTO; /* the run comes from a larger machine; the bits are the same */
    return sizing_choose(s, &j->su, &run, &want);
}

/* Rank 0's choice is that of all: what their processes take differs by a little. */
static int choose_sizes(struct job *j)
{
    struct setup *su = &j->su;
    struct sizing s;
    struct buf said = { 0 };
    int rc;
    TRY_OUT(dist_agree(su->dist, sizes_here(j, &s)));
    TRY_OUT(dist_bcast(su->dist, &s, sizeof s)); /* holds no pointers */
    su->micro_tokens = s.micro_tokens;
    su->recompute = s.recompute;
    su->keep_logits = s.keep_logits;
    su->limit = s.limit;
    j->resolved = *j->cfg;
    j->resolved.memory.micro_batch_tokens = s.micro_tokens;
    j->resolved.memory.gradient_checkpointing = s.recompute;
    j->resolved.memory.keep_logits = s.keep_logits;
    for (int i = 0; i < j->in.n_stages; i++)
        if (j->in.stage[i].train) j->peak[j->in.stage[i].kind] = s.stage_peak[i];
    TRY_OUT(planning_brief(&said, su, &s));
    status_say(&j->status, "%s", said.data);
out:
    buf_release(&said);
    return rc;
}

/* Weights and reference of a stage that starts at its first step. */
static int stage_begin(struct job *j, struct stage *st)
{
    const bool needs_ref = st->loss && (st->loss->flags & LOSS_REF);
    struct buf said = { 0 };
    TRY(dist_agree(j->su.dist, stage_weights(j, st)));
    TRY(dist_agree_written(j->su.dist, job_writes(j) ? output_begin(&j->out, &j->resolved) : 0));
    if (!needs_ref || j->cfg->reference.path) return 0;
    status_say(&j->status, "reference: scoring with the policy as it starts");
    const int rc = stage_reference(st, &said);
    if (rc == 0) status_say(&j->status, "%s", said.data);
    buf_release(&said);
    st->at_reference = rc == 0 && j->su.arch.lora.dropout == 0;
    return rc;
}

static void check_room(const struct job *j, const struct stage *st)
{
    const int64_t n = st->model.n_trained, size = st_dtype_size(setup_save_dtype(&j->su));
    output_room(&j->out, j->cfg, checkpoint_bytes(n, st->ref.n + st->ref_eval.n), n * size);
}

/* A checkpoint holds what is trained: of adapters, the base comes from where it came from before. */
static int restore(struct job *j, struct stage *st, const char *dir, bool allow_change)
{
    if (j->cfg->model.lora.present) TRY(stage_load_base(&st->model, j->cfg));
    return checkpoint_load(dir, st, j->out.fingerprint, allow_change);
}

static int run_stage(struct job *j, enum stage_kind kind, const char *resume, bool allow_change)
{
    struct stage st = { 0 };
    int rc;
    TRY_OUT(dist_agree(j->su.dist, stage_open(&st, &j->su, kind, &j->in.data[kind],
                                              j->in.has_eval ? &j->in.eval[kind] : NULL, true)));
    if (kind == STAGE_PREFERENCE && j->ref[0].w) {
        scores_release(&st.ref);
        scores_release(&st.ref_eval);
        st.ref = j->ref[0];
        st.ref_eval = j->ref[1];
        memset(j->ref, 0, sizeof j->ref);
    }
    announce(j, &st);
    if (kind == j->out.first && job_writes(j)) check_room(j, &st);
    if (resume) {
        TRY_OUT(dist_agree(j->su.dist, restore(j, &st, resume, allow_change)));
        TRY_OUT(dist_agree_written(j->su.dist,
                                   job_writes(j) ? output_begin(&j->out, &j->resolved) : 0));
        status_say(&j->status, "resumed from %s", resume);
        if (strncmp(resume, j->out.dir, strlen(j->out.dir)) == 0)
            snprintf(j->status.checkpoint, sizeof j->status.checkpoint, "checkpoints/%s",
                     path_base(resume));
    } else {
        TRY_OUT(stage_begin(j, &st));
    }
    TRY_OUT(train_loop(j, &st));
    TRY_OUT(job_finish_stage(j, &st));
out:
    stage_release(&st);
    return rc;
}

static int run_stages(struct job *j, bool allow_change)
{
    TRY(foreign_reference(j));
    for (int k = (int)j->out.first; k <= STAGE_PREFERENCE; k++) {
        if (!inputs_present(j->cfg, (enum stage_kind)k)) continue;
        TRY(run_stage(j, (enum stage_kind)k, k == (int)j->out.first ? j->out.resume : NULL,
                      allow_change));
        int64_t number = signals_pending();
        TRY(dist_vote(j->su.dist, 0, &number, 1));
        if (k == STAGE_SFT && j->cfg->preference.present && number)
            return dist_agree(
                j->su.dist,
                err_set(ERR_STOPPED,
                        "stopped by %s after the sft stage; saved, start again to go on",
                        signals_name((int)number)));
    }
    return 0;
}

static int write_end(struct job *j)
{
    if (!job_writes(j)) return 0;
    TRY(rows_sync(&j->out.metrics));
    return status_write(&j->status, "done", 0, "finished");
}

/* status.json says how the run ended; for bad input nothing was begun and nothing is written. */
static int conclude(struct job *j, int rc)
{
    struct buf message = { 0 };
    int wrote;
    watch_mute();
    if (rc == 0) rc = dist_agree_written(j->su.dist, write_end(j));
    if (rc < 0 && dist_alone(j->su.dist)) status_fail(&j->status, err_exit_code(rc), err_msg());
    if (rc == 0 || !j->out.begun) return rc;
    buf_adds(&message, err_msg());
    wrote = status_write(&j->status, rc == ERR_STOPPED ? "stopped" : "failed", err_exit_code(rc),
                         message.data ? message.data : "");
    if (wrote < 0) fprintf(stderr, "warning: %s\n", err_msg());
    err_set(rc, "%s", message.data ? message.data : "out of memory");
    buf_release(&message);
    return rc;
}

/* What every rank looks at for itself. */
static int job_prepare(struct job *j, const struct config *c, struct dist *dist, struct buf *print)
{
    TRY(job_open(j, c, dist));
    return fingerprint_text(&j->su, j->in.data, j->in.eval, print);
}

int job_run(const struct config *c, struct dist *dist, const struct job_opts *o)
{
    struct job j;
    struct buf print = { 0 };
    char *path = NULL;
    int rc;
    memset(&j, 0, sizeof j);
    /* from here on a rank may wait for others, who read data and model */
    TRY_OUT(dist_watch(dist, c->faults.hang_timeout, status_hang, &j.status));
    rc = job_prepare(&j, c, dist, &print);
    TRY_OUT((inputs_stored(&j.in) ? dist_agree_written : dist_agree)(dist, rc));
    TRY_OUT(fingerprint_agree(dist, &print));
    TRY_OUT(output_open_all(&j.out, c, dist, print.data, o->allow_change));
    if (j.out.finished) {
        fprintf(stderr, "%s: this run is finished already; nothing to do\n", c->output);
        if (dist_rank(dist) == 0) TRY_OUT(checkpoint_sweep(j.out.dir)); /* after a power cut */
        goto out;
    }
    TRY_OUT(dist_agree(dist, setup_backend(&j.su, true)));
    TRY_OUT(output_path(&j.out, "status.json", &path));
    TRY_OUT(status_open(&j.status, c, path, dist_rank(dist)));
    TRY_OUT(choose_sizes(&j));
    rc = conclude(&j, run_stages(&j, o->allow_change));
    if (rc == 0 && job_writes(&j) && output_report(&j.out) < 0)
        status_say(&j.status, "warning: no report: %s", err_msg());
    if (rc == 0) status_say(&j.status, "done: %s/model", c->output);
out:
    watch_stop();
    if (rc == ERR_STOPPED && !j.out.begun && dist_rank(dist) == 0)
        output_early_stop(&j.out, c, &j.status);
    buf_release(&print);
    free(path);
    job_close(&j);
    return rc;
}
