/* SPDX-License-Identifier: MIT
 * What a job writes: rows, checkpoints, models. */
#include "job_impl.h"
#include "../base/signals.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { VERIFY_ROWS = 4 };
static const int64_t SHARD_BYTES = 5000000000;

bool job_writes(const struct job *j)
{
    return dist_rank(j->su.dist) == 0;
}

int job_row(struct job *j, const struct stage *st, const char *prefix, const struct metrics *m,
            double norm, double lr)
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

int job_timing(struct job *j, const struct stage *st, const struct metrics *m, double seconds)
{
    json_t *row = json_object();
    int rc;
    TRY_OUT(metrics_text(row, "stage", st->name));
    TRY_OUT(metrics_int(row, "step", st->step));
    TRY_OUT(metrics_real(row, "step_seconds", seconds));
    TRY_OUT(metrics_real(row, "tokens_per_second", (double)m->tokens / seconds));
    TRY_OUT(metrics_real(row, "pairs_per_second", (double)m->examples / seconds));
    TRY_OUT(metrics_real(row, "comm_seconds", j->su.dist ? j->su.dist->seconds : 0));
    TRY_OUT(metrics_int(row, "comm_bytes", j->su.dist ? j->su.dist->bytes : 0));
    TRY_OUT(rows_put(&j->out.timing, row));
out:
    json_decref(row);
    return rc;
}

int job_checkpoint(struct job *j, struct stage *st)
{
    const int64_t now[3] = { (int64_t)st->kind + 1, st->step, st->eval_due };
    struct checkpoint_info info;
    /* due at this step and asked for by a signal: once is enough, and a good one is not replaced */
    if (memcmp(j->saved, now, sizeof now) == 0) return 0;
    TRY(dist_agree_written(j->su.dist, rows_sync(&j->out.metrics)));
    TRY(checkpoint_save(j->out.dir, st, j->out.metrics.bytes, j->out.fingerprint,
                        j->cfg->checkpoint.keep, &info));
    snprintf(j->status.checkpoint, sizeof j->status.checkpoint, "checkpoints/%s", info.name);
    j->last_save = clock_seconds();
    memcpy(j->saved, now, sizeof now);
    return dist_agree_written(j->su.dist, status_write(&j->status, "running", 0, "training"));
}

/* The row of an evaluation, and samples.jsonl where answers were sampled. */
static int write_evaluation(struct job *j, const struct stage *st, const struct metrics *m,
                            const struct buf *answers)
{
    char *path = NULL;
    TRY(job_row(j, st, "eval/", m, 0, 0));
    if (!answers->len) return 0;
    TRY(output_path(&j->out, "samples.jsonl", &path));
    const int rc = file_write_all(path, answers->data, answers->len);
    free(path);
    return rc;
}

int job_evaluate(struct job *j, struct stage *st, bool due)
{
    struct metrics m;
    struct buf answers = { 0 };
    int rc = stage_evaluate(st, &m);
    if (rc == 0) rc = dist_agree(j->su.dist, stage_measure_kl(st, &m, due ? NULL : &answers));
    st->eval_due = rc == ERR_STOPPED && due;
    if (rc == 0)
        rc = dist_agree_written(j->su.dist,
                                job_writes(j) ? write_evaluation(j, st, &m, &answers) : 0);
    buf_release(&answers);
    if (rc != ERR_STOPPED) return rc;
    dist_recover(j->su.dist);
    TRY(job_checkpoint(j, st));
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

int job_save_model(struct job *j, struct stage *st, const char *name)
{
    if (!job_writes(j)) return zero_serve(&st->zero);
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
    TRY_OUT(job_save_model(j, st, name));
    TRY_OUT(output_path(&j->out, name, &dir));
    if ((j->cfg->model.lora.present ? lora_load : model_load)(&st->model, dir) < 0)
        rc = err_note(ERR_IO, "reading back what was saved");
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

int job_finish_stage(struct job *j, struct stage *st)
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
    if (st->eval && j->cfg->eval.at_end) TRY(job_evaluate(j, st, false));
    TRY(dist_agree_written(
        j->su.dist,
        rows_sync(&j->out.metrics))); /* once sft/ is there, a resume takes its rows as complete */
    if (st->kind == STAGE_SFT) TRY(save_and_verify(j, st, "sft"));
    if (st->kind == STAGE_PREFERENCE || !j->cfg->preference.present)
        TRY(save_and_verify(j, st, "model"));
    return 0;
}
