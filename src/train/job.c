/* SPDX-License-Identifier: MIT */
#include "job.h"
#include "fingerprint.h"
#include "machine.h"
#include "planning.h"
#include "output.h"
#include "replica.h"
#include "../base/signals.h"
#include "../base/watch.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { VERIFY_ROWS = 4 };
static const int64_t SHARD_BYTES = 5000000000;

struct job {
    const struct config *cfg;
    struct setup su;
    struct inputs in;
    struct config resolved;  /* cfg with the memory settings that are in use; borrows */
    struct forecast peak[2]; /* by enum stage_kind */
    struct scores ref[2];    /* by reference.path: of the pairs and of the evaluation set */
    struct output out;
    struct status status;
    double started, last_save; /* seconds */
    int64_t saved[3];          /* stage + 1, step and eval_due of the last checkpoint; 0: none */
};

static int job_open(struct job *j, const struct config *c, struct dist *dist)
{
    memset(j, 0, sizeof *j);
    j->cfg = c;
    j->started = j->last_save = clock_seconds();
    TRY(setup_open(&j->su, c, dist));
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
    const struct config *c = j->cfg;
    char *sft = NULL;
    if (st->kind == STAGE_PREFERENCE && c->sft.present) {
        TRY(output_path(&j->out, "sft", &sft));
        const int rc = model_load(&st->model, sft);
        free(sft);
        return rc;
    }
    return c->model.init == MODEL_RANDOM ? model_random(&st->model, c->seed)
                                         : model_load(&st->model, c->model.path);
}

static int open_foreign(struct job *j, struct stage *st, struct setup *su)
{
    const char *path = j->cfg->reference.path;
    TRY(arch_load(&su->arch, path));
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
    const struct loss_def *loss = j->cfg->preference.present ? loss_find(j->cfg->loss) : NULL;
    const bool restored = j->out.first == STAGE_PREFERENCE && j->out.resume;
    struct setup su = j->su; /* borrows all but the architecture */
    struct stage st = { 0 };
    struct buf said = { 0 };
    int rc;
    if (!path || !loss || !(loss->flags & LOSS_REF) || restored) return 0;
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

/* The one rank that writes. */
static bool first_rank(const struct job *j)
{
    return dist_rank(j->su.dist) == 0;
}

static int write_row(struct job *j, const struct stage *st, const char *prefix,
                     const struct metrics *m, double norm, double lr)
{
    json_t *row = json_object();
    const bool eval = *prefix;
    int rc;
    TRY_OUT(metrics_text(row, "stage", st->name));
    TRY_OUT(metrics_int(row, "step", st->step));
    TRY_OUT(
        metrics_real(row, "epoch", (double)st->step / (double)order_steps_per_epoch(&st->order)));
    TRY_OUT(metrics_set(row, prefix, m, st->loss));
    if (!eval) {
        TRY_OUT(metrics_real(row, "grad_norm", norm));
        TRY_OUT(metrics_real(row, "learning_rate", lr));
        TRY_OUT(metrics_int(row, "tokens", m->tokens));
        TRY_OUT(metrics_int(row, "skipped", st->skipped));
        json_decref(j->status.metrics);
        j->status.metrics = json_incref(row);
    }
    TRY_OUT(rows_put(&j->out.metrics, row));
out:
    json_decref(row);
    return rc;
}

static int write_timing(struct job *j, const struct stage *st, const struct metrics *m,
                        double seconds)
{
    json_t *row = json_object();
    int rc;
    TRY_OUT(metrics_text(row, "stage", st->name));
    TRY_OUT(metrics_int(row, "step", st->step));
    TRY_OUT(metrics_real(row, "step_seconds", seconds));
    TRY_OUT(metrics_real(row, "tokens_per_second", (double)m->tokens / seconds));
    TRY_OUT(metrics_real(row, "pairs_per_second", (double)m->examples / seconds));
    TRY_OUT(metrics_real(row, "comm_seconds", j->su.dist ? j->su.dist->seconds : 0));
    TRY_OUT(rows_put(&j->out.timing, row));
out:
    json_decref(row);
    return rc;
}

static int save_checkpoint(struct job *j, struct stage *st)
{
    const int64_t now[3] = { (int64_t)st->kind + 1, st->step, st->eval_due };
    struct checkpoint_info info;
    /* due at this step and asked for by a signal: once is enough, and a good one is not replaced */
    if (memcmp(j->saved, now, sizeof now) == 0) return 0;
    TRY(dist_agree(j->su.dist, rows_sync(&j->out.metrics)));
    TRY(checkpoint_save(j->out.dir, st, j->out.metrics.bytes, j->out.fingerprint,
                        j->cfg->checkpoint.keep, &info));
    snprintf(j->status.checkpoint, sizeof j->status.checkpoint, "checkpoints/%s", info.name);
    j->last_save = clock_seconds();
    memcpy(j->saved, now, sizeof now);
    return dist_agree(j->su.dist, status_write(&j->status, "running", 0, "training"));
}

/* A signal cuts it short: the checkpoint says whether it is `due` again before the next step; that of the stage's end comes by itself. */
static int evaluate(struct job *j, struct stage *st, bool due)
{
    struct metrics m;
    const int rc = stage_evaluate(st, &m);
    st->eval_due = rc == ERR_STOPPED && due;
    if (rc < 0 && rc != ERR_STOPPED) return rc;
    if (rc == 0)
        return dist_agree(j->su.dist, first_rank(j) ? write_row(j, st, "eval/", &m, 0, 0) : 0);
    TRY(save_checkpoint(j, st));
    int64_t number = signals_pending();
    TRY(dist_vote(j->su.dist, 0, &number, 1));
    err_set(ERR_STOPPED,
            "stopped by %s during the evaluation after %s step %lld; saved, start again to go on",
            signals_name((int)number), st->name, (long long)st->step);
    return dist_agree(j->su.dist, ERR_STOPPED);
}

static int write_model(struct job *j, struct stage *st, const char *name)
{
    char *dir = NULL;
    TRY(output_path(&j->out, name, &dir));
    char *parent = NULL;
    int rc = path_parent(&parent, dir);
    if (rc == 0) rc = dir_make(parent);
    if (rc == 0)
        rc = model_save(&st->model, dir, j->cfg->model.path, setup_save_dtype(&j->su), SHARD_BYTES);
    free(parent);
    free(dir);
    return rc;
}

static int save_model(struct job *j, struct stage *st, const char *name)
{
    if (!first_rank(j)) return zero_serve(&st->zero);
    return zero_dismiss(&st->zero, write_model(j, st, name));
}

/* Log-probabilities of a few rows, spread over the data, each by itself: the same ones on every rank. */
static int probe(struct stage *st, double out[VERIFY_ROWS])
{
    struct scores s = { 0 };
    int64_t idx[VERIFY_ROWS];
    const int64_t n = MIN((int64_t)VERIFY_ROWS, st->data->n);
    int rc = scores_init(&s, st->data->n);
    for (int64_t i = 0; i < n; i++)
        idx[i] = i * st->data->n / n;
    if (rc == 0) rc = score_rows(&s, &st->model, &st->batch, st->data, idx, n, 1);
    for (int64_t i = 0; i < VERIFY_ROWS; i++)
        out[i] = rc == 0 && i < n ? s.w[idx[i]] : 0;
    scores_release(&s);
    return rc;
}

/* Save, read back into the same memory, and compare a few rows: what was saved is what was trained, to the bit. */
static int save_and_verify(struct job *j, struct stage *st, const char *name)
{
    double saved[VERIFY_ROWS], read[VERIFY_ROWS];
    char *dir = NULL;
    int rc;
    TRY_OUT(probe(st, saved));
    TRY_OUT(save_model(j, st, name));
    TRY_OUT(output_path(&j->out, name, &dir));
    if (model_load(&st->model, dir) < 0) rc = err_note(ERR_IO, "reading back what was saved");
    if (rc == 0) rc = probe(st, read);
    for (int i = 0; i < VERIFY_ROWS && rc == 0; i++)
        if (saved[i] != read[i])
            rc =
                err_set(ERR_IO, "%s: read back, a row has log-probability %.9g, before saving %.9g",
                        dir, read[i], saved[i]);
    TRY_OUT(dist_agree(j->su.dist, rc));
    status_say(&j->status, "saved %s (%s), read back: log-probabilities equal", dir,
               st_dtype_name(setup_save_dtype(&j->su)));
out:
    free(dir);
    return rc;
}

/* The end of a stage: the weights become what the files can hold, are evaluated as such, and saved. */
static int finish_stage(struct job *j, struct stage *st)
{
    const enum st_dtype dtype = setup_save_dtype(&j->su);
    double exact[VERIFY_ROWS], rounded[VERIFY_ROWS], worst = 0;
    if (dtype != ST_F32) {
        TRY(probe(st, exact));
        TRY(model_round(&st->model, dtype));
        TRY(stage_gather(st));
        TRY(probe(st, rounded));
        for (int i = 0; i < VERIFY_ROWS; i++)
            worst = fmax(worst, fabs(exact[i] - rounded[i]));
        status_say(&j->status,
                   "%s: rounding to %s moves the log-probabilities of a few rows by at most %.3g",
                   st->name, st_dtype_name(dtype), worst);
    }
    if (st->eval && j->cfg->eval.at_end) TRY(evaluate(j, st, false));
    TRY(dist_agree(
        j->su.dist,
        rows_sync(&j->out.metrics))); /* once sft/ is there, a resume takes its rows as complete */
    if (st->kind == STAGE_SFT) TRY(save_and_verify(j, st, "sft"));
    if (st->kind == STAGE_PREFERENCE || !j->cfg->preference.present)
        TRY(save_and_verify(j, st, "model"));
    return 0;
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
    if (!first_rank(j)) return;
    wish[WISH_LATE] = c->max_hours > 0 && now - j->started > 3600 * c->max_hours;
    if (c->checkpoint.every_minutes > 0 && now - j->last_save > 60 * c->checkpoint.every_minutes)
        wish[WISH_SAVE] = 1;
}

static int stop_requested(struct job *j, struct stage *st, const int64_t wish[WISHES])
{
    if (st->step == st->steps || (!wish[WISH_SIGNAL] && !wish[WISH_LATE])) return 0;
    TRY(save_checkpoint(j, st));
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
    if (logged && first_rank(j)) TRY(write_row(j, st, "", m, norm, lr));
    if (logged && first_rank(j)) TRY(write_timing(j, st, m, seconds));
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
        TRY(evaluate(j, st, true));
    st->eval_due = false;
    if (c->checkpoint.export_at == EXPORT_EPOCH && st->kind == STAGE_PREFERENCE &&
        st->step % per_epoch == 0) {
        char name[48];
        snprintf(name, sizeof name, "models/epoch-%lld", (long long)(st->step / per_epoch));
        TRY(save_model(j, st, name));
    }
    if (wish[WISH_SAVE] && !last) TRY(save_checkpoint(j, st));
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

/* All memory of a step is in use now: is it what the plan said for this stage? */
static void say_memory(struct job *j, const struct stage *st)
{
    const int64_t used = machine_anonymous(), planned = forecast_total(&j->peak[st->kind]);
    char a[32], b[32];
    if (used > 0)
        status_say(&j->status, "memory: %s in use after the first step, planned %s (%+.1f %%)",
                   bytes_human(a, used), bytes_human(b, planned),
                   100 * ((double)used / (double)planned - 1));
}

static int train_loop(struct job *j, struct stage *st)
{
    bool stepped = false;
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
        if (j->su.dist) j->su.dist->seconds = 0;
        TRY(stage_step(st, &m, &norm, &lr, &applied));
        if (!stepped) say_memory(j, st);
        stepped = true;
        if (st->at_reference && st->step == 1) say_first(j, st, metrics_loss(&m, st->loss));
        TRY(after_step(j, st, report_step(j, st, &m, norm, lr, applied, clock_seconds() - start)));
    }
    return 0;
}

static void announce(struct job *j, const struct stage *st)
{
    char text[512];
    if (st->loss)
        status_say(&j->status, "preference loss: %s",
                   loss_describe(text, sizeof text, st->loss, &j->cfg->loss_opts));
    status_say(&j->status,
               "%s: %lld steps of %lld from %lld rows, %d threads, micro-batches of %lld tokens",
               st->name, (long long)st->steps, (long long)st->order.batch_size,
               (long long)st->data->n, j->su.be.threads, (long long)st->micro_tokens);
}

/* Sizes of micro-batches and what is recomputed: as stored by what this run goes on from, else as the config says. */
static int sizes_here(struct job *j, struct sizing *s)
{
    const struct config *c = j->cfg;
    struct sizing_want want = { c->memory.micro_batch_tokens, c->memory.gradient_checkpointing };
    const struct sizing_run run = inputs_run(&j->in);
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
    const struct sizing_run run = inputs_run(&j->in);
    struct sizing s;
    struct buf said = { 0 };
    int rc;
    TRY_OUT(dist_agree(su->dist, sizes_here(j, &s)));
    TRY_OUT(dist_bcast(su->dist, &s, sizeof s)); /* holds no pointers */
    su->micro_tokens = s.micro_tokens;
    su->recompute = s.recompute;
    su->limit = s.limit;
    j->resolved = *j->cfg;
    j->resolved.memory.micro_batch_tokens = s.micro_tokens;
    j->resolved.memory.gradient_checkpointing = s.recompute;
    for (int i = 0; i < run.n; i++)
        if (run.stage[i].train) j->peak[run.stage[i].kind] = s.stage_peak[i];
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
    TRY(dist_agree(j->su.dist, first_rank(j) ? output_begin(&j->out, &j->resolved) : 0));
    if (!needs_ref || j->cfg->reference.path) return 0;
    status_say(&j->status, "reference: scoring with the policy as it starts");
    const int rc = stage_reference(st, &said);
    if (rc == 0) status_say(&j->status, "%s", said.data);
    buf_release(&said);
    st->at_reference = rc == 0;
    return rc;
}

static void check_room(const struct job *j, const struct stage *st)
{
    const int64_t n = st->model.n_flat, size = st_dtype_size(setup_save_dtype(&j->su));
    output_room(&j->out, j->cfg, checkpoint_bytes(n, st->ref.n + st->ref_eval.n), n * size);
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
    if (kind == j->out.first && first_rank(j)) check_room(j, &st);
    if (resume) {
        TRY_OUT(
            dist_agree(j->su.dist, checkpoint_load(resume, &st, j->out.fingerprint, allow_change)));
        TRY_OUT(dist_agree(j->su.dist, first_rank(j) ? output_begin(&j->out, &j->resolved) : 0));
        status_say(&j->status, "resumed from %s", resume);
        if (strncmp(resume, j->out.dir, strlen(j->out.dir)) == 0)
            snprintf(j->status.checkpoint, sizeof j->status.checkpoint, "checkpoints/%s",
                     path_base(resume));
    } else {
        TRY_OUT(stage_begin(j, &st));
    }
    TRY_OUT(train_loop(j, &st));
    TRY_OUT(finish_stage(j, &st));
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

/* status.json says how the run ended; for bad input nothing was begun and nothing is written. */
static int conclude(struct job *j, int rc)
{
    struct buf message = { 0 };
    int wrote;
    if (!j->out.begun) return rc;
    if (rc == 0) {
        TRY(rows_sync(&j->out.metrics));
        return status_write(&j->status, "done", 0, "finished");
    }
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
    TRY_OUT(dist_agree(dist, job_prepare(&j, c, dist, &print)));
    TRY_OUT(fingerprint_agree(dist, &print));
    TRY_OUT(output_open_all(&j.out, c, dist, print.data, o->allow_change));
    if (j.out.finished) {
        fprintf(stderr, "%s: this run is finished already; nothing to do\n", c->output);
        if (dist_rank(dist) == 0) TRY_OUT(checkpoint_sweep(j.out.dir)); /* after a power cut */
        goto out;
    }
    TRY_OUT(dist_agree(dist, setup_backend(&j.su)));
    if (first_rank(&j)) TRY_OUT(output_path(&j.out, "status.json", &path));
    TRY_OUT(status_open(&j.status, c, path));
    TRY_OUT(dist_watch(dist, c->faults.hang_timeout, status_hang, &j.status));
    TRY_OUT(choose_sizes(&j));
    rc = conclude(&j, run_stages(&j, o->allow_change));
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
