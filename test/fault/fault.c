/* SPDX-License-Identifier: MIT
 * fault.c - the faults of the test program bdpo-train-fault, which is bdpo-train linked once more with these in the place of the system's calls (ld --wrap).
 * bdpo-train itself has none of it.
 *   BDPO_FAULT=POINT:N:WHAT[,...]   at the N-th call (N+: at that one and all after it) of POINT:
 *     open (for writing), mkdir, write, fsync, rename, unlink, truncate, reserve, alloc, logp, grad, step; io: any of the first eight
 *   WHAT: kill, stop (SIGKILL, SIGSTOP before the call), exit (with 3, at once), usr1, term, int (that signal to itself, then the call), eio, enospc, enomem
 *     (the call fails; a write leaves half of its bytes first), nan, inf (logp, grad: the first number of the result), flip (step: a bit of the last tensor,
 *     after the call), sleep (BDPO_FAULT_SLEEP ms, 200 by default, then the call)
 *   BDPO_FAULT_RANK=R               only in rank R of several
 *   BDPO_FAULT_STEP=N               calls are counted from the N-th step on
 *   BDPO_FAULT_COUNTS=FILE          at the end, how often each point was called: "POINT N" lines
 *   BDPO_FAULT_TRACE=FILE           every call that changes a file, in order, one line each: what a disk sees */
#include "../../src/model/model.h"
#include "../../src/train/stage.h"
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

enum point {
    OPEN,
    MKDIR,
    WRITE,
    FSYNC,
    RENAME,
    UNLINK,
    TRUNCATE,
    RESERVE,
    ALLOC,
    LOGP,
    GRAD,
    STEP,
    IO,
    POINTS
};
static const char *const POINT_NAMES[POINTS] = { "open",   "mkdir",    "write",   "fsync", "rename",
                                                 "unlink", "truncate", "reserve", "alloc", "logp",
                                                 "grad",   "step",     "io" };
enum what {
    KILL,
    STOP,
    USR1,
    TERM,
    INT,
    EIO_,
    ENOSPC_,
    ENOMEM_,
    NAN_,
    INF_,
    FLIP,
    EXIT,
    SLEEP,
    WHATS
};
static const char *const WHAT_NAMES[WHATS] = { "kill", "stop",   "usr1",   "term", "int",
                                               "eio",  "enospc", "enomem", "nan",  "inf",
                                               "flip", "exit",   "sleep" };

static struct fault {
    enum point point;
    enum what what;
    long n;
    bool on; /* and all after it */
} faults[8];
static int n_faults;
static atomic_long counts[POINTS];
static int trace = -1;
static long sleep_ms = 200, first_step;

int __real_open(const char *path, int flags, ...);
ssize_t __real_write(int fd, const void *data, size_t n);

static void bad(const char *text)
{
    fprintf(stderr, "BDPO_FAULT: \"%s\" is not POINT:N:WHAT\n", text);
    _exit(99);
}

static int find(const char *const *names, int n, const char *s, size_t len)
{
    for (int i = 0; i < n; i++)
        if (strlen(names[i]) == len && strncmp(names[i], s, len) == 0) return i;
    return -1;
}

static bool other_rank(void)
{
    const char *want = getenv("BDPO_FAULT_RANK"), *ompi = getenv("OMPI_COMM_WORLD_RANK"),
               *is = ompi ? ompi : getenv("PMI_RANK");
    return want && (!is || strcmp(want, is) != 0);
}

/* Before main, so that nothing of the program has run. */
__attribute__((constructor)) static void start(void)
{
    const char *p = getenv("BDPO_FAULT"), *file = getenv("BDPO_FAULT_TRACE"),
               *ms = getenv("BDPO_FAULT_SLEEP"), *step = getenv("BDPO_FAULT_STEP");
    if (other_rank()) return;
    if (step) first_step = strtol(step, NULL, 10);
    if (ms) sleep_ms = strtol(ms, NULL, 10);
    while (p && *p) {
        struct fault *f = &faults[n_faults++];
        const char *a = strchr(p, ':'), *b = a ? strchr(a + 1, ':') : NULL;
        if (!b || n_faults > 8) bad(p);
        const char *end = b + 1 + strcspn(b + 1, ",");
        const int point = find(POINT_NAMES, POINTS, p, (size_t)(a - p));
        const int what = find(WHAT_NAMES, WHATS, b + 1, (size_t)(end - b - 1));
        char *after;
        f->n = strtol(a + 1, &after, 10);
        f->on = *after == '+';
        if (point < 0 || what < 0 || after + f->on != b) bad(p);
        f->point = (enum point)point;
        f->what = (enum what)what;
        p = *end ? end + 1 : end;
    }
    if (file) trace = __real_open(file, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
}

__attribute__((destructor)) static void finish(void)
{
    const char *file = other_rank() ? NULL : getenv("BDPO_FAULT_COUNTS");
    FILE *f = file ? fopen(file, "w") : NULL;
    for (int i = 0; f && i < POINTS; i++)
        fprintf(f, "%s %ld\n", POINT_NAMES[i], atomic_load(&counts[i]));
    if (f) fclose(f);
}

static void act(enum what what, int *fails, float *number)
{
    static const int numbers[] = {
        [KILL] = SIGKILL, [STOP] = SIGSTOP, [USR1] = SIGUSR1, [TERM] = SIGTERM, [INT] = SIGINT
    };
    const struct timespec pause = { sleep_ms / 1000, sleep_ms % 1000 * 1000000 };
    switch (what) {
    case KILL:
    case STOP:
    case USR1:
    case TERM:
    case INT:
        kill(getpid(), numbers[what]);
        break;
    case EIO_:
        *fails = EIO;
        break;
    case ENOSPC_:
        *fails = ENOSPC;
        break;
    case ENOMEM_:
        *fails = ENOMEM;
        break;
    case NAN_:
    case INF_:
        if (number) *number = what == NAN_ ? NAN : INFINITY;
        break;
    case FLIP:
        if (number) *number = 1;
        break;
    case EXIT:
        _exit(3);
    default:
        nanosleep(&pause, NULL);
    }
}

/* 0, or the errno with which this call of the point fails. */
static int hit(enum point point, float *number)
{
    int fails = 0;
    if (point != STEP && counts[STEP] < first_step) return 0;
    const long n = ++counts[point], io = point <= RESERVE ? ++counts[IO] : 0;
    for (int i = 0; i < n_faults; i++) {
        const struct fault *f = &faults[i];
        const long at = f->point == point ? n : f->point == IO ? io : 0;
        if (at && (at == f->n || (f->on && at > f->n))) act(f->what, &fails, number);
    }
    return fails;
}

/* One line of the trace; `data` in hexadecimal digits. */
static void PRINTF_LIKE(3, 4) say(const void *data, size_t n, const char *fmt, ...)
{
    static const char digits[] = "0123456789abcdef";
    const int e = errno;
    char head[9000];
    va_list ap;
    if (trace < 0) return;
    va_start(ap, fmt);
    const int len = vsnprintf(head, sizeof head, fmt, ap);
    va_end(ap);
    char *line = malloc((size_t)len + 2 * n + 2);
    memcpy(line, head, (size_t)len);
    for (size_t i = 0; i < n; i++) {
        line[(size_t)len + 2 * i] = digits[((const unsigned char *)data)[i] >> 4];
        line[(size_t)len + 2 * i + 1] = digits[((const unsigned char *)data)[i] & 15];
    }
    line[(size_t)len + 2 * n] = '\n';
    if (__real_write(trace, line, (size_t)len + 2 * n + 1) < 0) _exit(98);
    free(line);
    errno = e;
}

static int failed(int e)
{
    errno = e;
    return -1;
}

/* files ----------------------------------------------------------------------------------------------------------- */

int __wrap_open(const char *path, int flags, ...);
int __wrap_open(const char *path, int flags, ...)
{
    mode_t mode = 0;
    if (flags & O_CREAT) {
        va_list ap;
        va_start(ap, flags);
        mode = va_arg(ap, mode_t);
        va_end(ap);
    }
    const bool writes = (flags & O_ACCMODE) != O_RDONLY;
    const int e = writes ? hit(OPEN, NULL) : 0;
    if (e) return failed(e);
    const int fd = __real_open(path, flags, mode);
    if (fd >= 0 && (writes || (flags & O_DIRECTORY)))
        say(NULL, 0, "open %d %d %s", fd, flags & O_TRUNC ? 1 : 0, path);
    return fd;
}

ssize_t __wrap_write(int fd, const void *data, size_t n);
ssize_t __wrap_write(int fd, const void *data, size_t n)
{
    const int e = hit(WRITE, NULL);
    const ssize_t did = __real_write(fd, data, e ? n / 2 : n);
    if (did > 0) say(data, (size_t)did, "write %d -1 ", fd);
    return e ? failed(e) : did;
}

ssize_t __real_pwrite(int fd, const void *data, size_t n, off_t at);
ssize_t __wrap_pwrite(int fd, const void *data, size_t n, off_t at);
ssize_t __wrap_pwrite(int fd, const void *data, size_t n, off_t at)
{
    const int e = hit(WRITE, NULL);
    const ssize_t did = __real_pwrite(fd, data, e ? n / 2 : n, at);
    if (did > 0) say(data, (size_t)did, "write %d %lld ", fd, (long long)at);
    return e ? failed(e) : did;
}

int __real_fsync(int fd);
int __wrap_fsync(int fd);
int __wrap_fsync(int fd)
{
    const int e = hit(FSYNC, NULL);
    if (e) return failed(e);
    const int rc = __real_fsync(fd);
    if (rc == 0) say(NULL, 0, "fsync %d", fd);
    return rc;
}

int __real_mkdir(const char *path, mode_t mode);
int __wrap_mkdir(const char *path, mode_t mode);
int __wrap_mkdir(const char *path, mode_t mode)
{
    const int e = hit(MKDIR, NULL);
    if (e) return failed(e);
    const int rc = __real_mkdir(path, mode);
    if (rc == 0) say(NULL, 0, "mkdir %s", path);
    return rc;
}

int __real_rename(const char *from, const char *to);
int __wrap_rename(const char *from, const char *to);
int __wrap_rename(const char *from, const char *to)
{
    const int e = hit(RENAME, NULL);
    if (e) return failed(e);
    const int rc = __real_rename(from, to);
    if (rc == 0) say(NULL, 0, "rename %s\t%s", from, to);
    return rc;
}

int __real_renameat2(int a, const char *from, int b, const char *to, unsigned flags);
int __wrap_renameat2(int a, const char *from, int b, const char *to, unsigned flags);
int __wrap_renameat2(int a, const char *from, int b, const char *to, unsigned flags)
{
    const int e = hit(RENAME, NULL);
    if (e) return failed(e);
    const int rc = __real_renameat2(a, from, b, to, flags);
    if (rc == 0) say(NULL, 0, "swap %s\t%s", from, to);
    return rc;
}

int __real_unlink(const char *path);
int __wrap_unlink(const char *path);
int __wrap_unlink(const char *path)
{
    const int e = hit(UNLINK, NULL);
    if (e) return failed(e);
    const int rc = __real_unlink(path);
    if (rc == 0) say(NULL, 0, "unlink -1 %s", path);
    return rc;
}

int __real_unlinkat(int at, const char *path, int flags);
int __wrap_unlinkat(int at, const char *path, int flags);
int __wrap_unlinkat(int at, const char *path, int flags)
{
    const int e = hit(UNLINK, NULL);
    if (e) return failed(e);
    const int rc = __real_unlinkat(at, path, flags);
    if (rc == 0) say(NULL, 0, "unlink %d %s", at == AT_FDCWD ? -1 : at, path);
    return rc;
}

int __real_openat(int at, const char *path, int flags, ...);
int __wrap_openat(int at, const char *path, int flags, ...);
int __wrap_openat(int at, const char *path, int flags, ...)
{
    const int fd = __real_openat(at, path, flags); /* of directories only, to list them */
    if (fd >= 0) say(NULL, 0, "openat %d %d %s", fd, at == AT_FDCWD ? -1 : at, path);
    return fd;
}

int __real_ftruncate(int fd, off_t n);
int __wrap_ftruncate(int fd, off_t n);
int __wrap_ftruncate(int fd, off_t n)
{
    const int e = hit(TRUNCATE, NULL);
    if (e) return failed(e);
    const int rc = __real_ftruncate(fd, n);
    if (rc == 0) say(NULL, 0, "truncate %d %lld", fd, (long long)n);
    return rc;
}

off_t __real_lseek(int fd, off_t at, int whence);
off_t __wrap_lseek(int fd, off_t at, int whence);
off_t __wrap_lseek(int fd, off_t at, int whence)
{
    const off_t to = __real_lseek(fd, at, whence);
    if (to >= 0) say(NULL, 0, "seek %d %lld", fd, (long long)to);
    return to;
}

int __real_fallocate(int fd, int mode, off_t at, off_t n);
int __wrap_fallocate(int fd, int mode, off_t at, off_t n);
int __wrap_fallocate(int fd, int mode, off_t at, off_t n)
{
    const int e = hit(RESERVE, NULL);
    return e ? failed(e) : __real_fallocate(fd, mode, at, n);
}

/* memory ---------------------------------------------------------------------------------------------------------- */

void *__real_calloc(size_t n, size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_calloc(size_t n, size_t size)
{
    return hit(ALLOC, NULL) ? NULL : __real_calloc(n, size);
}

void *__real_realloc(void *p, size_t n);
void *__wrap_realloc(void *p, size_t n);
void *__wrap_realloc(void *p, size_t n)
{
    return hit(ALLOC, NULL) ? NULL : __real_realloc(p, n);
}

void *__real_aligned_alloc(size_t align, size_t n);
void *__wrap_aligned_alloc(size_t align, size_t n);
void *__wrap_aligned_alloc(size_t align, size_t n)
{
    return hit(ALLOC, NULL) ? NULL : __real_aligned_alloc(align, n);
}

/* numbers --------------------------------------------------------------------------------------------------------- */

int __real_model_logp(struct model *m, const struct batch *b, double *logp, bool backward);
int __wrap_model_logp(struct model *m, const struct batch *b, double *logp, bool backward);
int __wrap_model_logp(struct model *m, const struct batch *b, double *logp, bool backward)
{
    float number = 0;
    const int rc = __real_model_logp(m, b, logp, backward);
    hit(LOGP, &number);
    if (number != 0) logp[0] = (double)number;
    return rc;
}

int __real_model_backward(struct model *m, const struct batch *b, const double *coef,
                          model_ready_fn *ready, void *payload);
int __wrap_model_backward(struct model *m, const struct batch *b, const double *coef,
                          model_ready_fn *ready, void *payload);
int __wrap_model_backward(struct model *m, const struct batch *b, const double *coef,
                          model_ready_fn *ready, void *payload)
{
    float number = 0;
    const int rc = __real_model_backward(m, b, coef, ready, payload);
    hit(GRAD, &number);
    if (number != 0) ((float *)m->grads.data)[0] = number;
    return rc;
}

int __real_stage_step(struct stage *st, struct metrics *m, double *norm, double *lr, bool *applied);
int __wrap_stage_step(struct stage *st, struct metrics *m, double *norm, double *lr, bool *applied);
int __wrap_stage_step(struct stage *st, struct metrics *m, double *norm, double *lr, bool *applied)
{
    float flip = 0;
    hit(STEP, &flip);
    const int rc = __real_stage_step(st, m, norm, lr, applied);
    if (flip != 0) *(uint8_t *)st->model.params[st->model.n_params - 1].w.data ^= 1;
    return rc;
}
