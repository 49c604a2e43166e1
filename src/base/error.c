/* SPDX-License-Identifier: MIT */
#include "base.h"
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static _Thread_local char msg[8192];

/* Built apart, because the arguments may point into msg: err_set(code, "... %s", err_msg()). */
static void PRINTF_LIKE(2, 0) put_msg(size_t at, const char *fmt, va_list ap)
{
    static _Thread_local char next[sizeof msg];
    vsnprintf(next, sizeof next - at, fmt, ap);
    memcpy(msg + at, next, sizeof msg - at);
}

int err_set(int code, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    put_msg(0, fmt, ap);
    va_end(ap);
    return code;
}

static size_t put_place(char *out, size_t size, const char *file, int64_t line, int64_t col)
{
    int n;
    if (line > 0 && col > 0)
        n = snprintf(out, size, "%s:%lld:%lld: error: ", file, (long long)line, (long long)col);
    else if (line > 0)
        n = snprintf(out, size, "%s:%lld: error: ", file, (long long)line);
    else
        n = snprintf(out, size, "%s: error: ", file);
    return n < 0 ? 0 : MIN((size_t)n, size - 1);
}

int err_at(int code, const char *file, int64_t line, int64_t col, const char *fmt, ...)
{
    char place[4200];
    const size_t n = put_place(place, sizeof place, file, line, col);
    va_list ap;
    va_start(ap, fmt);
    put_msg(n, fmt, ap);
    va_end(ap);
    memcpy(msg, place, n);
    return code;
}

int err_note(int code, const char *fmt, ...)
{
    static _Thread_local char tail[sizeof msg];
    char head[512];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(head, sizeof head, fmt, ap);
    va_end(ap);
    memcpy(tail, msg, sizeof tail);
    snprintf(msg, sizeof msg, "%s: %.7000s", head, tail);
    return code;
}

const char *err_msg(void)
{
    return msg;
}

int err_exit_code(int code)
{
    if (code >= 0) return 0;
    switch (code) {
    case ERR_INPUT:
        return 2;
    case ERR_STOPPED:
        return 75;
    case ERR_COMM:
        return 76;
    case ERR_DIVERGED:
        return 80;
    case ERR_REPLICA:
        return 81;
    case ERR_CHECKPOINT:
        return 82;
    default:
        return 1;
    }
}

/* of the start's stderr; -1: stderr is that itself */
static int loud = -1;

void err_quiet(void)
{
    const int nothing = open("/dev/null", O_WRONLY | O_CLOEXEC);
    if (nothing < 0 || loud >= 0) return;
    fflush(stderr);
    loud = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 3);
    if (loud >= 0) dup2(nothing, STDERR_FILENO);
    close(nothing);
}

int err_fd(void)
{
    return loud < 0 ? STDERR_FILENO : loud;
}

void err_print(const char *text)
{
    fflush(stderr);
    dprintf(err_fd(), "%s\n", text);
}

void bug(const char *file, int line, const char *what)
{
    char text[1024];
    snprintf(text, sizeof text, "BUG %s:%d: %s", file, line, what);
    err_print(text);
    abort();
}

const char *err_quote(char *out, size_t size, const char *text, size_t len)
{
    size_t n = 0, i = 0;
    BUG_IF(size < 8);
    for (; i < len && i < 60 && n + 8 < size; i++) {
        const unsigned char c = (unsigned char)text[i];
        if (c >= 32 && c < 127)
            out[n++] = (char)c;
        else
            n += (size_t)snprintf(out + n, size - n, "\\x%02x", c);
    }
    memcpy(out + n, i < len ? "..." : "", i < len ? 4 : 1);
    return out;
}

void diag_add(struct diag *d, const char *file, int64_t line, int64_t col, const char *fmt, ...)
{
    char place[4200] = "", text[500];
    va_list ap;
    d->count++;
    if (d->shown >= DIAG_MAX || d->shown + 1 < d->count) return;
    if (file) put_place(place, sizeof place, file, line, col);
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    const int n = snprintf(d->text + d->len, sizeof d->text - d->len, "%s%s%s", d->len ? "\n" : "",
                           place, text);
    if (n < 0 || (size_t)n >= sizeof d->text - d->len) {
        d->text[d->len] = 0; /* no room for this one, and none after it */
        return;
    }
    d->len += (size_t)n;
    d->shown++;
}

int diag_result(const struct diag *d, int code)
{
    if (d->count == 0) return 0;
    if (d->shown < d->count)
        return err_set(code, "%s\nerror: %lld more problems like these", d->text,
                       (long long)(d->count - d->shown));
    return err_set(code, "%s", d->text);
}
