/* SPDX-License-Identifier: MIT */
#include "refcache.h"
#include "stage.h"
#include "../base/rng.h"
#include "../base/signals.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { VERIFY_ROWS = 4 };

/* Rows that need a reference, in the order in which they are used. */
struct rows {
    const struct dataset *d;
    struct scores *s;
    int64_t *idx;             /* [n] into d */
    bool *mine;               /* [n] this rank has the value */
    struct slot *slot;        /* [step] */
    int64_t n, step;          /* rows of a training step: micro-batches do not reach over one */
    struct refcache_key *key; /* [n]; NULL: no cache */
};
struct pass {
    struct stage *st;
    struct refcache *cache; /* NULL: none */
    int64_t rows, found;    /* all; those that the cache had at the start */
    int64_t verified;
    double difference; /* largest of the verified ones, as a share */
    double seconds;    /* of computing */
};

static void rows_release(struct rows *r)
{
    free(r->idx);
    free(r->mine);
    free(r->slot);
    free(r->key);
}

/* The rows of the first epoch's steps: one epoch visits every row, a shorter stage not all. */
static int visited_rows(struct rows *r, struct stage *st)
{
    r->d = st->data;
    r->s = &st->ref;
    r->step = MIN(st->order.batch_size, st->data->n);
    TRY(MEM_NEW(&r->idx, st->data->n));
    TRY(MEM_NEW(&r->mine, st->data->n));
    TRY(MEM_NEW(&r->slot, r->step));
    for (int64_t t = 0; t < MIN(st->steps, order_steps_per_epoch(&st->order)); t++) {
        const int64_t *idx;
        const int64_t n = order_step(&st->order, t, &idx);
        memcpy(r->idx + r->n, idx, (size_t)n * sizeof *idx);
        r->n += n;
    }
    return 0;
}

static int all_rows(struct rows *r, struct stage *st)
{
    const int64_t n = st->eval ? st->eval->n : 0;
    r->d = st->eval;
    r->s = &st->ref_eval;
    r->step = r->n = n;
    TRY(MEM_NEW(&r->idx, n));
    TRY(MEM_NEW(&r->mine, n));
    TRY(MEM_NEW(&r->slot, n));
    for (int64_t i = 0; i < n; i++)
        r->idx[i] = i;
    return 0;
}

static int make_keys(struct rows *r, int32_t threads)
{
    TRY(MEM_NEW(&r->key, r->n));
#pragma omp parallel for num_threads(threads)
    for (int64_t i = 0; i < r->n; i++)
        r->key[i] = refcache_key(r->d, r->idx[i]);
    return 0;
}

static int stopped(struct pass *p)
{
    if (p->cache) TRY(refcache_flush(p->cache, true));
    return err_set(ERR_STOPPED,
                   "stopped by %s while the reference was scored; start again to go on",
                   signals_name(signals_pending()));
}

/* Rows [at, at + n) are a micro-batch of this rank. One of which the cache has all rows is passed over; of another all rows are computed, since
 * a row's last bits depend on its company, and what the cache has stays the value. */
static int compute_batch(struct pass *p, struct rows *r, int64_t at, int64_t n)
{
    struct stage *st = p->st;
    bool known = p->cache != NULL;
    for (int64_t i = at; known && i < at + n; i++)
        known = refcache_find(p->cache, &r->key[i]) != NULL;
    if (signals_pending()) return stopped(p);
    if (!known)
        TRY(score_rows(r->s, &st->model, &st->batch, r->d, r->idx + at, n, st->micro_tokens));
    for (int64_t i = at; i < at + n; i++) {
        double *w = &r->s->w[r->idx[i]], *l = &r->s->l[r->idx[i]];
        r->mine[i] = true;
        if (p->cache && !known) TRY(refcache_put(p->cache, &r->key[i], *w, *l));
        if (!known) continue;
        const struct refcache_value *v = refcache_find(p->cache, &r->key[i]);
        *w = v->w;
        *l = v->l;
    }
    return p->cache && !known ? refcache_flush(p->cache, false) : 0;
}

/* This rank's rows, in the micro-batches in which it will train on them. */
static int compute_rows(struct pass *p, struct rows *r)
{
    struct stage *st = p->st;
    struct dist *dist = st->su->dist;
    for (int64_t at = 0; at < r->n; at += r->step) {
        const int64_t n =
            share_step(r->slot, r->d, r->idx + at, MIN(r->step, r->n - at), st->micro_tokens,
                       dist_size(dist), st->cfg->dist.deterministic);
        for (int64_t k = 0; k < n; k++)
            if (r->slot[k].rank == dist_rank(dist))
                TRY(compute_batch(p, r, at + r->slot[k].at, r->slot[k].n));
    }
    return p->cache ? refcache_flush(p->cache, true) : 0;
}

/* The cache's values are those of every run that shares it: also where another run, or another rank, was the first to store one. */
static int take_values(const struct pass *p, struct rows *r)
{
    for (int64_t i = 0; i < r->n; i++)
        TRY(refcache_put(p->cache, &r->key[i], r->s->w[r->idx[i]], r->s->l[r->idx[i]]));
    TRY(refcache_flush(p->cache, true));
    for (int64_t i = 0; i < r->n; i++) {
        const struct refcache_value *v = refcache_find(p->cache, &r->key[i]);
        BUG_IF(!v);
        r->s->w[r->idx[i]] = v->w;
        r->s->l[r->idx[i]] = v->l;
    }
    return 0;
}

static double share(double a, double b)
{
    return fabs(a - b) / fmax(1, fabs(a));
}

/* Compute a few of the found rows again, each by itself: a file of right checksums and wrong values is dropped as a whole. */
static int verify_rows(struct pass *p, const struct rows *r)
{
    const double allowed = stage_tolerance(p->st->cfg);
    struct stage *st = p->st;
    struct scores fresh = { 0 };
    int64_t *at = NULL, idx[VERIFY_ROWS], n = 0;
    int rc;
    TRY_OUT(MEM_NEW(&at, r->n));
    for (int64_t i = 0; i < r->n; i++)
        if (refcache_find(p->cache, &r->key[i])) at[n++] = i;
    p->found += n;
    if (n == 0 || p->verified) goto out;
    p->verified = MIN(n, (int64_t)VERIFY_ROWS);
    for (int64_t i = 0; i < p->verified; i++) { /* without putting back */
        const uint64_t u = rng_u64(st->cfg->seed, rng_stream_of(RNG_VERIFY, 0), (uint64_t)i);
        const int64_t j = i + (int64_t)(u % (uint64_t)(n - i)), t = at[j];
        at[j] = at[i];
        at[i] = t;
        idx[i] = r->idx[t];
    }
    TRY_OUT(scores_init(&fresh, r->d->n));
    TRY_OUT(score_rows(&fresh, &st->model, &st->batch, r->d, idx, p->verified, 1));
    for (int64_t i = 0; i < p->verified; i++) {
        const struct refcache_value *v = refcache_find(p->cache, &r->key[at[i]]);
        const double w = fresh.w[idx[i]], l = fresh.l[idx[i]];
        const double d = fmax(share(w, v->w), share(l, v->l));
        p->difference = fmax(p->difference, d);
        if (isfinite(w) && isfinite(l) && d <= allowed) continue;
        const struct example *e = &r->d->ex[idx[i]];
        fprintf(
            stderr,
            "warning: reference cache %s: %s:%lld has log-probabilities %.9g and %.9g, computed "
            "again %.9g and %.9g (allowed: %.2g of the value); all of it is dropped and "
            "computed again\n",
            refcache_path(p->cache), r->d->files[e->file], (long long)e->line, v->w, v->l, w, l,
            allowed);
        refcache_drop(p->cache);
        p->found = 0;
        break;
    }
out:
    free(at);
    scores_release(&fresh);
    return rc;
}

static int open_cache(struct pass *p)
{
    static const char *const dtypes[] = {
        [DTYPE_BFLOAT16] = "bfloat16", [DTYPE_FLOAT32] = "float32"
    };
    struct stage *st = p->st;
    uint8_t digest[32];
    char *dir = NULL;
    int rc = 0;
    if (!st->cfg->reference.cache) return 0;
    TRY_OUT(setup_cache_dir(&dir, st->cfg, "reference"));
    if (!dir) goto out;
    TRY_OUT(refcache_digest(digest, &st->model));
    TRY_OUT(refcache_open(&p->cache, dir, digest, dtypes[st->cfg->model.dtype]));
    free(st->ref_file);
    st->ref_file = NULL;
    TRY_OUT(mem_strdup(&st->ref_file, refcache_path(p->cache)));
out:
    free(dir);
    return rc;
}

/* "1,496" */
static const char *grouped(char out[32], int64_t n)
{
    char digits[24];
    const int len = snprintf(digits, sizeof digits, "%lld", (long long)n);
    int at = 0;
    for (int i = 0; i < len; i++) {
        if (i && (len - i) % 3 == 0) out[at++] = ',';
        out[at++] = digits[i];
    }
    out[at] = 0;
    return out;
}

static int describe(const struct pass *p, struct buf *said)
{
    char a[32], b[32], c[32];
    if (!p->cache)
        return buf_addf(said, "reference: %s rows computed in %.3f s", grouped(a, p->rows),
                        p->seconds);
    TRY(buf_addf(said, "reference: %s rows, %s from the cache, %s computed (%s) in %.3f s",
                 grouped(a, p->rows), grouped(b, p->found), grouped(c, p->rows - p->found),
                 refcache_path(p->cache), p->seconds));
    if (!p->verified || p->found == 0) return 0;
    return buf_addf(said,
                    "; %lld of the cached ones computed again: they differ by %.2g of their value "
                    "(allowed %.2g)",
                    (long long)p->verified, p->difference, stage_tolerance(p->st->cfg));
}

static int prepare(struct pass *p, struct rows r[2])
{
    TRY(visited_rows(&r[0], p->st));
    TRY(all_rows(&r[1], p->st));
    TRY(open_cache(p));
    for (int i = 0; i < 2; i++) {
        p->rows += r[i].n;
        if (!p->cache) continue;
        TRY(make_keys(&r[i], p->st->su->be.threads));
        TRY(verify_rows(p, &r[i]));
    }
    return 0;
}

/* All ranks; each may have written what it computed into the cache. */
static int agree(const struct pass *p, int rc)
{
    const struct stage *st = p->st;
    return st->cfg->reference.cache ? dist_agree_written(st->su->dist, rc)
                                    : dist_agree(st->su->dist, rc);
}

/* Rank 0's view of the cache is the one that counts: the ranks' files may be different ones. */
static int settle(struct pass *p, struct rows r[2])
{
    struct dist *dist = p->st->su->dist;
    const bool first = dist_rank(dist) == 0;
    int rc = 0;
    for (int i = 0; i < 2; i++) {
        if (first && p->cache && rc == 0) rc = take_values(p, &r[i]);
        TRY(agree(p, rc));
        for (int64_t k = 0; k < r[i].n; k++)
            r[i].mine[k] = first;
        TRY(score_share(r[i].s, dist, rc, r[i].idx, r[i].mine, r[i].n));
    }
    return 0;
}

int stage_reference(struct stage *st, struct buf *said)
{
    struct pass p = { .st = st };
    struct rows r[2] = { 0 }; /* of training, of evaluation */
    int rc = prepare(&p, r);
    const double start = clock_seconds();
    for (int i = 0; i < 2 && rc == 0; i++)
        rc = compute_rows(&p, &r[i]);
    TRY_OUT(agree(&p, rc));
    for (int i = 0; i < 2; i++)
        TRY_OUT(score_share(r[i].s, st->su->dist, rc, r[i].idx, r[i].mine, r[i].n));
    p.seconds = clock_seconds() - start;
    TRY_OUT(settle(&p, r));
    TRY_OUT(describe(&p, said));
out:
    refcache_close(p.cache);
    rows_release(&r[0]);
    rows_release(&r[1]);
    return rc;
}
