/* SPDX-License-Identifier: MIT */
#include "status.h"
#include "../base/signals.h"
#include "../io/file.h"
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { SPARE_BYTES = 4096 };

double clock_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

int status_open(struct status *s, const struct config *c, const char *path, int32_t rank)
{
    memset(s, 0, sizeof *s);
    s->rank = rank;
    s->cfg = c;
    s->start = clock_seconds();
    s->bar = c->logging.progress == PROGRESS_AUTO && isatty(STDERR_FILENO);
    if (c->logging.progress == PROGRESS_ON) s->bar = true;
    return path ? mem_strdup(&s->path, path) : 0;
}

static void close_bar(struct status *s)
{
    if (s->bar_open) fputc('\n', stderr);
    s->bar_open = false;
}

void status_stage(struct status *s, const char *stage, int64_t step, int64_t steps)
{
    s->stage = stage;
    s->step = s->step0 = step;
    s->steps = steps;
    s->stage_start = clock_seconds();
}

static double eta_seconds(const struct status *s)
{
    const int64_t done = s->step - s->step0;
    return done > 0
               ? (clock_seconds() - s->stage_start) / (double)done * (double)(s->steps - s->step)
               : 0;
}

/* The text of status.json. */
static int compose(const struct status *s, const char *state, int exit_code, const char *reason,
                   struct buf *b)
{
    char host[256] = "";
    int rc = 0;
    json_t *o = json_object();
    gethostname(host, sizeof host - 1);
    TRY_OUT(metrics_text(o, "state", state));
    TRY_OUT(metrics_int(o, "exit_code", exit_code));
    TRY_OUT(metrics_text(o, "reason", reason));
    if (s->stage) {
        TRY_OUT(metrics_text(o, "stage", s->stage));
        TRY_OUT(metrics_int(o, "step", s->step));
        TRY_OUT(metrics_int(o, "steps", s->steps));
        TRY_OUT(metrics_real(o, "eta_seconds", eta_seconds(s)));
    }
    if (s->checkpoint[0]) TRY_OUT(metrics_text(o, "checkpoint", s->checkpoint));
    TRY_OUT(metrics_int(o, "pid", getpid()));
    TRY_OUT(metrics_text(o, "host", host));
    if (s->metrics && json_object_set(o, "metrics", s->metrics))
        TRY_OUT(err_set(ERR_OOM, "out of memory for status.json"));
    TRY_OUT(json_dump(b, o, 2));
    TRY_OUT(buf_adds(b, "\n"));
out:
    json_decref(o);
    return rc;
}

/* What status.json shall say if a second signal leaves no time for it. */
static int set_last_words(const struct status *s)
{
    static const char CODE[] = "\"exit_code\": ";
    struct buf b = { 0 };
    char *tmp = NULL;
    int rc;
    TRY_OUT(compose(s, "stopped", 100,
                    "ended at once by a second signal; the last checkpoint stands, start again to "
                    "go on from there",
                    &b));
    TRY_OUT(mem_asprintf(&tmp, "%s.tmp-%ld-signal", s->path, (long)getpid()));
    const char *at = strstr(b.data, CODE);
    BUG_IF(!at);
    signals_last_words(s->path, tmp, b.data, (size_t)(at - b.data) + strlen(CODE));
out:
    buf_release(&b);
    free(tmp);
    return rc;
}

/* Room for the last status.json, taken while there is some: a disk that is full shall not leave "running" there. Where it cannot be had, nothing. */
static void keep_spare(struct status *s)
{
    if (s->spare || mem_asprintf(&s->spare, "%s.tmp-spare", s->path) < 0) return;
    const int fd = open(s->spare, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (fd < 0) return;
    (void)!fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, SPARE_BYTES);
    close(fd);
}

static void drop_spare(struct status *s)
{
    if (s->spare) unlink(s->spare);
    free(s->spare);
    s->spare = NULL;
}

static bool use_spare(struct status *s, const struct buf *b)
{
    const int fd = s->spare ? open(s->spare, O_WRONLY | O_CLOEXEC | O_NOFOLLOW) : -1;
    if (fd < 0) return false;
    const bool whole = write(fd, b->data, b->len) == (ssize_t)b->len && file_sync(fd) == 0;
    close(fd);
    return whole && rename(s->spare, s->path) == 0;
}

int status_write(struct status *s, const char *state, int exit_code, const char *reason)
{
    struct buf b = { 0 };
    int rc = 0;
    if (!s->path || s->rank > 0) return 0;
    TRY_OUT(set_last_words(s));
    /* what comes next says how it ended, or nothing comes and the watcher's words have to stand */
    if (exit_code == 0 && signals_pending() == SIGTERM && strcmp(state, "running") == 0) goto out;
    TRY_OUT(compose(s, state, exit_code, reason, &b));
    rc = file_write_all(s->path, b.data, b.len);
    if (rc < 0 && exit_code != 0 && use_spare(s, &b)) rc = 0;
    TRY_OUT(rc);
    s->last_write = clock_seconds();
    if (exit_code == 0 && strcmp(state, "running") == 0) keep_spare(s);
out:
    buf_release(&b);
    return rc;
}

void status_release(struct status *s)
{
    close_bar(s);
    drop_spare(s);
    json_decref(s->metrics);
    free(s->path);
    memset(s, 0, sizeof *s);
}

static const char *duration(char out[32], double seconds)
{
    const long long t = (long long)(seconds + 0.5);
    if (t >= 3600)
        snprintf(out, 32, "%lldh%02lldm", t / 3600, t / 60 % 60);
    else
        snprintf(out, 32, "%lldm%02llds", t / 60, t % 60);
    return out;
}

static void show(struct status *s, const struct metrics *m, bool preference, double loss)
{
    char eta[32], bar[32], logps[64] = "";
    const double n = (double)m->examples;
    const int width = 24, full = s->steps ? (int)(width * s->step / s->steps) : width;
    if (preference)
        snprintf(logps, sizeof logps, "  chosen %.2f rejected %.2f", m->lw / n, m->ll / n);
    if (s->bar) {
        for (int i = 0; i < width; i++)
            bar[i] = i < full ? '#' : '.';
        bar[width] = 0;
        fprintf(stderr, "\r\033[K%s [%s] %lld/%lld  loss %.4f%s  %.0f tokens/s  ETA %s", s->stage,
                bar, (long long)s->step, (long long)s->steps, loss, logps, s->tokens_per_second,
                duration(eta, eta_seconds(s)));
        s->bar_open = true;
        if (s->step == s->steps) close_bar(s);
    } else {
        fprintf(stderr, "%s %lld/%lld  loss %.4f%s  %.0f tokens/s  ETA %s\n", s->stage,
                (long long)s->step, (long long)s->steps, loss, logps, s->tokens_per_second,
                duration(eta, eta_seconds(s)));
    }
    fflush(stderr);
}

int status_step(struct status *s, int64_t step, const json_t *row, const struct metrics *m,
                bool preference, double seconds)
{
    const double now = clock_seconds(), rate = (double)m->tokens / (seconds > 0 ? seconds : 1e-9);
    s->step = step;
    s->tokens_per_second =
        s->tokens_per_second > 0 ? 0.9 * s->tokens_per_second + 0.1 * rate : rate;
    if (row) {
        json_decref(s->metrics);
        s->metrics = json_incref((json_t *)(uintptr_t)row);
    }
    const bool last = step == s->steps;
    if (s->cfg->logging.progress != PROGRESS_OFF &&
        (last || now - s->last_line > (s->bar ? 0.2 : 1))) {
        s->last_line = now;
        show(s, m, preference, preference ? m->loss / (double)m->examples : m->loss / m->nw);
    }
    return now - s->last_write > 2 ? status_write(s, "running", 0, "training") : 0;
}

/* `text` as it stands between a JSON string's quotes, cut where out is full. */
static void quote_into(char *out, size_t size, const char *text)
{
    size_t n = 0;
    for (; *text && n + 7 < size; text++) {
        const unsigned char c = (unsigned char)*text;
        if (c < 32)
            n += (size_t)snprintf(out + n, size - n, "\\u%04x", c);
        else if (c == '"' || c == '\\')
            n += (size_t)snprintf(out + n, size - n, "\\%c", c);
        else
            out[n++] = (char)c;
    }
    out[n] = 0;
}

static bool says_running(const struct status *s)
{
    char text[4096];
    const int fd = open(s->path, O_RDONLY | O_CLOEXEC);
    const ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (fd >= 0) close(fd);
    text[MAX(n, (ssize_t)0)] = 0;
    return strstr(text, "\"state\": \"running\"") != NULL;
}

/* In the place of "running" only, or of `anything`. No memory is allocated: the main thread may be anywhere. */
static void put_failed(const struct status *s, int exit_code, const char *reason, bool anything)
{
    char host[256] = "", said[2048], text[4096], tmp[4096];
    if (strlen(s->path) + 48 > sizeof tmp || !(anything || says_running(s))) return;
    gethostname(host, sizeof host - 1);
    quote_into(said, sizeof said, reason);
    const int n = snprintf(
        text, sizeof text,
        "{\n  \"state\": \"failed\",\n  \"exit_code\": %d,\n  \"reason\": \"%s\",\n  \"stage\": "
        "\"%s\",\n"
        "  \"step\": %lld,\n  \"steps\": %lld,\n  \"checkpoint\": \"%s\",\n  \"pid\": %d,\n"
        "  \"host\": \"%s\"\n}\n",
        exit_code, said, s->stage ? s->stage : "", (long long)s->step, (long long)s->steps,
        s->checkpoint, (int)getpid(), host);
    snprintf(tmp, sizeof tmp, "%s.tmp-%d-rank-%d", s->path, (int)getpid(), s->rank);
    const int fd = open(tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (fd < 0) return;
    const bool whole = n < (int)sizeof text && write(fd, text, (size_t)n) == n && fsync(fd) == 0;
    close(fd);
    /* the disk may have taken its time, and others have spoken meanwhile */
    if (!whole || !(anything || says_running(s)) || rename(tmp, s->path) != 0) unlink(tmp);
}

void status_hang(void *status, const char *reason, bool ends)
{
    const struct status *s = status;
    const bool old = s->rank == 0 && ends && s->last_write == 0; /* of an earlier run */
    if (s->path) put_failed(s, err_exit_code(ERR_COMM), reason, old);
}

void status_fail(struct status *s, int exit_code, const char *reason)
{
    const struct timespec wait = { 0, 200000000 };
    if (!s->path || s->rank == 0) return;
    nanosleep(&wait, NULL); /* rank 0 may be about to write that the run goes on */
    put_failed(s, exit_code, reason, false);
}

void status_say(struct status *s, const char *fmt, ...)
{
    va_list ap;
    close_bar(s);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
}
