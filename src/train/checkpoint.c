/* SPDX-License-Identifier: MIT */
#include "checkpoint.h"
#include "manifest.h"
#include "../base/watch.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The ranges of the flat state that this rank holds; owned by the caller. */
static int own_ranges(const struct stage *st, struct shard_range **range, int64_t *n)
{
    const struct zero *z = &st->zero;
    *n = 0;
    TRY(MEM_NEW(range, z->n_buckets));
    for (int32_t b = 0; b < z->n_buckets; b++) {
        const struct flat_part *p = &z->part[b];
        if (p->end <= p->begin) continue;
        if (*n && (*range)[*n - 1].end == p->begin)
            (*range)[*n - 1].end = p->end;
        else
            (*range)[(*n)++] = (struct shard_range){ p->begin, p->end };
    }
    return 0;
}

static enum zero_state zero_of(enum state_part part)
{
    static const enum zero_state of[STATE_PARTS] = { ZERO_MASTER, ZERO_MOMENT1, ZERO_MOMENT2 };
    return of[part];
}

static int get_state(void *payload, enum state_part part, int64_t at, int64_t n, float *out)
{
    struct stage *st = payload;
    watch_beat();
    if (part == STATE_MASTER && !st->model.low.data) return model_get(&st->model, at, n, out);
    return zero_read(&st->zero, zero_of(part), at, n, out);
}

static int put_state(void *payload, enum state_part part, int64_t at, int64_t n, const float *in)
{
    struct stage *st = payload;
    watch_beat();
    if (part == STATE_MASTER) return model_put(&st->model, at, n, in);
    return zero_store(&st->zero, zero_of(part), at, n, in);
}

int64_t checkpoint_bytes(int64_t elements, int64_t pairs)
{
    return shard_bytes(0, elements) + 16 * pairs + 65536;
}

/* [[name, offset, elements] ...] of every tensor in the flat state, in its order. */
static int make_layout(const struct model *m, json_t **out)
{
    json_t *list = *out = json_array();
    for (int32_t i = m->first_trained; i < m->end_trained; i++) {
        const struct param *p = &m->params[i];
        for (int32_t k = 0; k < p->n_slices; k++) {
            const struct param_slice *s = &p->slice[k];
            const int64_t row = tensor_count(&p->w) / p->w.dim[0];
            if (json_array_append_new(list, json_pack("[sII]", s->name,
                                                      (json_int_t)(p->offset + s->row * row),
                                                      (json_int_t)(s->rows * row))))
                return err_set(ERR_OOM, "out of memory for a manifest");
        }
    }
    return 0;
}

/* saving ---------------------------------------------------------------------------------------------------------- */

struct paths { /* owned */
    char *dir, *tmp, *final, *old;
};

static int paths_make(struct paths *p, const char *output, const char *name)
{
    TRY(path_join(&p->dir, output, "checkpoints"));
    TRY(mem_asprintf(&p->tmp, "%s/.tmp-%s", p->dir, name));
    TRY(mem_asprintf(&p->old, "%s/.del-%s", p->dir, name));
    return path_join(&p->final, p->dir, name);
}

static void paths_release(struct paths *p)
{
    free(p->dir);
    free(p->tmp);
    free(p->final);
    free(p->old);
}

static int write_reference(struct manifest *m, const struct stage *st, const char *dir)
{
    const struct scores *s[] = { &st->ref, &st->ref_eval };
    struct file_out f = { .fd = -1 };
    char *path = NULL;
    int rc;
    TRY_OUT(path_join(&path, dir, "reference.bin"));
    TRY_OUT(file_create(&f, path));
    TRY_OUT(file_reserve(&f, 16 * (st->ref.n + st->ref_eval.n)));
    for (int i = 0; i < 2; i++) {
        TRY_OUT(file_put(&f, s[i]->w, (size_t)s[i]->n * sizeof(double)));
        TRY_OUT(file_put(&f, s[i]->l, (size_t)s[i]->n * sizeof(double)));
    }
    m->pairs = st->ref.n;
    m->eval_pairs = st->ref_eval.n;
    m->reference_bytes = f.bytes;
    m->reference_crc = f.crc;
    TRY_OUT(file_commit(&f));
out:
    file_abandon(&f);
    free(path);
    return rc;
}

/* Everything but the shards: reference.bin, and manifest.json over all files. By one rank, when the shards of all stand. */
static int write_rest(const char *dir, const struct stage *st, struct shard *shards, int32_t ranks,
                      int64_t metrics_bytes, const char *fingerprint)
{
    struct manifest m = { .stage = st->name,
                          .step = st->step,
                          .steps = st->steps,
                          .updates = st->optim.opt.step,
                          .skipped = st->skipped,
                          .skipped_run = st->skipped_run,
                          .eval_due = st->eval_due,
                          .metrics_bytes = metrics_bytes,
                          .micro_tokens = st->micro_tokens,
                          .recompute = st->su->recompute,
                          .keep_logits = st->su->keep_logits,
                          .threads = st->su->be.threads,
                          .elements = st->model.n_trained,
                          .ranks = ranks,
                          .shards = shards };
    int rc;
    TRY_OUT(write_reference(&m, st, dir));
    TRY_OUT(make_layout(&st->model, &m.layout));
    m.run = json_loads(fingerprint, 0, NULL);
    if (!m.run) TRY_OUT(err_set(ERR_OOM, "out of memory for a manifest"));
    TRY_OUT(manifest_write(&m, dir));
    TRY_OUT(dir_sync(dir));
out:
    m.shards = NULL; /* borrowed */
    manifest_release(&m);
    return rc;
}

static int begin_directory(struct paths *p)
{
    TRY(dir_remove(p->tmp));
    return dir_make(p->tmp);
}

/* Every rank its own file. */
static int write_own(const char *dir, struct stage *st, struct shard *own)
{
    struct shard_range *range = NULL;
    int64_t n;
    int rc = own_ranges(st, &range, &n);
    own->rank = dist_rank(st->su->dist);
    own->ranks = dist_size(st->su->dist);
    if (rc == 0) rc = shard_write(own, dir, st->model.n_trained, range, n, get_state, st);
    free(range);
    return rc;
}

int checkpoint_save(const char *output, struct stage *st, int64_t metrics_bytes,
                    const char *fingerprint, int64_t keep, struct checkpoint_info *info)
{
    struct dist *dist = st->su->dist;
    const bool first = dist_rank(dist) == 0;
    struct paths p = { 0 };
    struct shard own = { 0 }, *all = NULL;
    int rc;
    memset(info, 0, sizeof *info);
    info->kind = st->kind;
    info->step = st->step;
    info->metrics_bytes = metrics_bytes;
    snprintf(info->name, sizeof info->name, "%s-%06lld", st->name, (long long)st->step);
    rc = paths_make(&p, output, info->name);
    if (rc == 0) rc = MEM_NEW(&all, dist_size(dist));
    if (rc == 0 && first) rc = begin_directory(&p);
    TRY_OUT(dist_agree_written(dist, rc));
    TRY_OUT(dist_agree_written(dist, write_own(p.tmp, st, &own)));
    TRY_OUT(dist_gather(dist, &own, all, sizeof own));
    if (first) {
        rc = write_rest(p.tmp, st, all, dist_size(dist), metrics_bytes, fingerprint);
        if (rc == 0) rc = dir_replace(p.final, p.tmp, p.old);
        if (rc == 0) rc = checkpoint_rotate(output, info, keep);
    }
    rc = dist_agree_written(dist, rc);
out:
    if (rc < 0 && first && p.tmp) dir_abandon(p.tmp, rc);
    paths_release(&p);
    free(all);
    return rc;
}

/* loading --------------------------------------------------------------------------------------------------------- */

static int check_run(const struct manifest *m, const char *dir, const struct stage *st,
                     const char *fingerprint, bool allow_change)
{
    struct buf was = { 0 }, diff = { 0 };
    int rc;
    TRY_OUT(json_dump(&was, m->run, 0));
    TRY_OUT(config_diff(was.data, fingerprint, &diff));
    if (rc > 0 && !allow_change)
        TRY_OUT(err_set(ERR_CHECKPOINT,
                        "%s: this run differs from the one that wrote it: %s; go on with "
                        "--allow-change, or start anew with --set checkpoint.resume=never",
                        dir, diff.data));
    if (rc > 0) fprintf(stderr, "warning: going on with changes: %s\n", diff.data);
    if (m->micro_tokens != st->micro_tokens || m->threads != st->su->be.threads)
        fprintf(stderr,
                "warning: the checkpoint was written with %lld threads and %lld tokens a "
                "micro-batch, this run has %d and %lld: "
                "sums may round differently\n",
                (long long)m->threads, (long long)m->micro_tokens, st->su->be.threads,
                (long long)st->micro_tokens);
    rc = 0;
out:
    buf_release(&was);
    buf_release(&diff);
    return rc;
}

/* The same tensors in the same places? */
static int check_layout(const struct manifest *m, const char *dir, const struct stage *st)
{
    json_t *want = NULL;
    struct buf a = { 0 }, b = { 0 };
    int rc;
    TRY_OUT(make_layout(&st->model, &want));
    if (m->elements == st->model.n_trained && json_equal(m->layout, want)) goto out;
    size_t i = 0;
    while (i < json_array_size(want) &&
           json_equal(json_array_get(m->layout, i), json_array_get(want, i)))
        i++;
    json_t *had = json_array_get(m->layout, i), *has = json_array_get(want, i);
    if (had) TRY_OUT(json_dump(&a, had, 0));
    if (has) TRY_OUT(json_dump(&b, has, 0));
    rc = err_set(ERR_CHECKPOINT,
                 "%s: holds another model: its tensor %zu (name, offset, elements) is %.200s, "
                 "this run's %.200s",
                 dir, i, a.data ? a.data : "not there", b.data ? b.data : "not there");
out:
    json_decref(want);
    buf_release(&a);
    buf_release(&b);
    return rc;
}

static int read_reference(const struct manifest *m, const char *dir, struct stage *st)
{
    struct scores *s[] = { &st->ref, &st->ref_eval };
    char *path = NULL, *text = NULL;
    size_t len = 0, at = 0;
    int rc;
    if (m->pairs != st->ref.n || m->eval_pairs != st->ref_eval.n)
        return err_set(ERR_CHECKPOINT,
                       "%s: has a reference for %lld rows and %lld of evaluation, this run needs "
                       "%lld and %lld",
                       dir, (long long)m->pairs, (long long)m->eval_pairs, (long long)st->ref.n,
                       (long long)st->ref_eval.n);
    TRY_OUT(path_join(&path, dir, "reference.bin"));
    TRY_OUT(file_read(&text, &len, path, INT64_MAX - 2));
    if (len != 16 * (size_t)(st->ref.n + st->ref_eval.n))
        TRY_OUT(err_set(ERR_CHECKPOINT, "%s: has %zu bytes", path, len));
    for (int i = 0; i < 4; i++) {
        struct scores *to = s[i / 2];
        memcpy(i % 2 ? to->l : to->w, text + at, (size_t)to->n * sizeof(double));
        at += (size_t)to->n * sizeof(double);
    }
out:
    free(path);
    free(text);
    return rc;
}

/* All of the weights, of which every rank has a copy, and of the moments what this rank holds. */
static int read_state(const struct shard_set *set, struct stage *st)
{
    struct shard_range *range = NULL;
    int64_t n;
    int rc;
    TRY_OUT(own_ranges(st, &range, &n));
    TRY_OUT(shard_set_read(set, STATE_MASTER, 0, st->model.n_trained, put_state, st));
    for (int part = STATE_MOMENT1; part < STATE_PARTS; part++)
        for (int64_t i = 0; i < n; i++)
            TRY_OUT(shard_set_read(set, (enum state_part)part, range[i].begin, range[i].end,
                                   put_state, st));
out:
    free(range);
    return rc;
}

int checkpoint_load(const char *dir, struct stage *st, const char *fingerprint, bool allow_change)
{
    struct manifest m = { 0 };
    struct shard_set set = { 0 };
    int rc;
    TRY_OUT(manifest_read(&m, dir));
    TRY_OUT(check_run(&m, dir, st, fingerprint, allow_change));
    TRY_OUT(check_layout(&m, dir, st));
    TRY_OUT(shard_set_open(&set, dir, m.shards, (int32_t)m.ranks, m.elements));
    TRY_OUT(read_state(&set, st));
    TRY_OUT(read_reference(&m, dir, st));
    st->step = m.step;
    st->optim.opt.step = m.updates;
    st->skipped = m.skipped;
    st->skipped_run = m.skipped_run;
    st->eval_due = m.eval_due;
out:
    shard_set_close(&set);
    manifest_release(&m);
    return rc < 0 ? ERR_CHECKPOINT : 0;
}
