/* SPDX-License-Identifier: MIT */
#include "metrics.h"
#include "../io/file.h"
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static double logaddexp(double a, double b)
{
    const double hi = fmax(a, b);
    return isinf(hi) ? hi : hi + log1p(exp(-fabs(a - b)));
}

void metrics_add_pair(struct metrics *m, const struct loss_def *def, const struct loss_opts *o,
                      const struct loss_pair *p, const struct loss_grad *g)
{
    m->examples++;
    m->loss += g->loss;
    m->nw += p->nw;
    m->nl += p->nl;
    m->lw += p->lw;
    m->ll += p->ll;
    m->rw += p->rw;
    m->rl += p->rl;
    m->reward_w += g->reward_w;
    m->reward_l += g->reward_l;
    m->accurate += g->reward_w > g->reward_l;
    m->in_distribution += logaddexp(p->lw, p->ll);
    if (strcmp(def->name, "bdpo") == 0) {
        m->gate += g->gate;
        m->bound += p->lw > log1p(-o->lambda) + p->rw; /* lambda 1: above -inf */
    }
}

void metrics_add_row(struct metrics *m, double lw, double nw)
{
    m->examples++;
    m->loss -= lw;
    m->lw += lw;
    m->nw += nw;
}

double metrics_loss(const struct metrics *m, const struct loss_def *def)
{
    return def ? m->loss / (double)m->examples : m->loss / m->nw;
}

int metrics_real(json_t *row, const char *key, double value)
{
    json_t *v;
    if (isfinite(value))
        v = json_real(value);
    else
        v = json_string(isnan(value) ? "NaN" : value > 0 ? "Infinity" : "-Infinity");
    return json_object_set_new(row, key, v) ? err_set(ERR_OOM, "out of memory for a metrics row")
                                            : 0;
}

int metrics_int(json_t *row, const char *key, int64_t value)
{
    return json_object_set_new(row, key, json_integer(value))
               ? err_set(ERR_OOM, "out of memory for a metrics row")
               : 0;
}

int metrics_text(json_t *row, const char *key, const char *value)
{
    return json_object_set_new(row, key, json_string(value))
               ? err_set(ERR_OOM, "out of memory for a metrics row")
               : 0;
}

int metrics_set(json_t *row, const char *prefix, const struct metrics *m,
                const struct loss_def *def)
{
    const double n = (double)m->examples;
    const bool ref = def && (def->flags & LOSS_REF), bdpo = def && strcmp(def->name, "bdpo") == 0;
    const struct {
        const char *key;
        double value;
        bool on;
    } values[] = {
        { "loss", metrics_loss(m, def), true },
        { "rewards/chosen", m->reward_w / n, def },
        { "rewards/rejected", m->reward_l / n, def },
        { "rewards/accuracies", m->accurate / n, def },
        { "rewards/margins", (m->reward_w - m->reward_l) / n, def },
        { "logps/chosen", m->lw / n, def },
        { "logps/rejected", m->ll / n, def },
        { "ref_logps/chosen", m->rw / n, ref },
        { "ref_logps/rejected", m->rl / n, ref },
        { "nll_loss", -m->lw / m->nw, def },
        { "in_distribution", m->in_distribution / n, def },
        { "bdpo/gate", m->gate / n, bdpo },
        { "bdpo/bound", m->bound / n, bdpo },
        { "examples", n, def && *prefix },
        { "kl", m->kl, m->has_kl && *prefix },
        { "kl_stderr", m->kl_stderr, m->has_kl && *prefix },
    };
    for (size_t i = 0; i < COUNT_OF(values); i++) {
        char key[64];
        if (!values[i].on) continue;
        snprintf(key, sizeof key, "%s%s", prefix, values[i].key);
        TRY(metrics_real(row, key, values[i].value));
    }
    return 0;
}

static int too_short(const char *path, int64_t bytes, int64_t keep)
{
    return err_set(ERR_CHECKPOINT,
                   "%s: has %lld bytes, the checkpoint was written after %lld; restore the "
                   "file, or start anew with --set checkpoint.resume=never",
                   path, (long long)bytes, (long long)keep);
}

int rows_check(const char *path, int64_t keep)
{
    struct stat s;
    const int64_t bytes = stat(path, &s) == 0 ? (int64_t)s.st_size : 0;
    return bytes < keep ? too_short(path, bytes, keep) : 0;
}

int rows_open(struct rows_file *f, const char *path, int64_t keep)
{
    TRY(mem_strdup(&f->path, path));
    f->fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (f->fd < 0) {
        f->fd = 0;
        return err_set(ERR_IO, "cannot write %s: %s", path, strerror(errno));
    }
    const off_t end = lseek(f->fd, 0, SEEK_END);
    if (end < 0) return err_set(ERR_IO, "%s: %s", path, strerror(errno));
    if (keep > end) return too_short(path, end, keep);
    f->bytes = keep < 0 ? end : keep;
    if (f->bytes < end && ftruncate(f->fd, f->bytes) < 0)
        return err_set(ERR_IO, "%s: %s", path, strerror(errno));
    if (lseek(f->fd, f->bytes, SEEK_SET) < 0)
        return err_set(ERR_IO, "%s: %s", path, strerror(errno));
    return 0;
}

int rows_put(struct rows_file *f, const json_t *row)
{
    struct buf b = { 0 };
    int rc = json_dump(&b, row, 0);
    if (rc == 0) rc = buf_adds(&b, "\n");
    const int e = rc == 0 ? file_write_fd(f->fd, b.data, b.len) : 0;
    if (e) rc = err_set(ERR_IO, "cannot write %s: %s", f->path, strerror(e));
    if (rc == 0) f->bytes += (int64_t)b.len;
    buf_release(&b);
    return rc;
}

int rows_sync(struct rows_file *f)
{
    if (f->fd && file_sync(f->fd) < 0)
        return err_set(ERR_IO, "cannot write %s: %s", f->path, strerror(errno));
    return 0;
}

void rows_close(struct rows_file *f)
{
    if (f->fd) close(f->fd);
    free(f->path);
    memset(f, 0, sizeof *f);
}

int rows_stage_bytes(const char *path, const char *stage, int64_t *bytes)
{
    char *text = NULL, want[64];
    size_t len = 0, at = 0;
    *bytes = 0;
    if (!file_exists(path)) return 0;
    TRY(file_read(&text, &len, path, INT64_MAX));
    const int n = snprintf(want, sizeof want, "{\"stage\": \"%s\"", stage);
    while (at < len) {
        const char *end = memchr(text + at, '\n', len - at);
        if (!end || strncmp(text + at, want, (size_t)n) != 0) break;
        at = (size_t)(end - text) + 1;
    }
    *bytes = (int64_t)at;
    free(text);
    return 0;
}
