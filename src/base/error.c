/* SPDX-License-Identifier: MIT */
#include "base.h"
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static _Thread_local char msg[8192];

int err_set(int code, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(msg, sizeof msg, fmt, ap);
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
    const size_t n = put_place(msg, sizeof msg, file, line, col);
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(msg + n, sizeof msg - n, fmt, ap);
    va_end(ap);
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
    case ERR_INPUT: return 2;
    case ERR_STOPPED: return 75;
    case ERR_COMM: return 76;
    case ERR_DIVERGED: return 80;
    case ERR_REPLICA: return 81;
    case ERR_CHECKPOINT: return 82;
    default: return 1;
    }
}

void bug(const char *file, int line, const char *what)
{
    fprintf(stderr, "BUG %s:%d: %s\n", file, line, what);
    abort();
}

const char *err_quote(char *out, size_t size, const char *text, size_t len)
{
    size_t n = 0;
    const size_t show = MIN(len, (size_t)60);
    BUG_IF(size < 8);
    for (size_t i = 0; i < show && n + 8 < size; i++) {
        const unsigned char c = (unsigned char)text[i];
        if (c >= 32 && c < 127)
            out[n++] = (char)c;
        else
            n += (size_t)snprintf(out + n, size - n, "\\x%02x", c);
    }
    out[n] = 0;
    if (show < len && n + 4 <= size) memcpy(out + n, "...", 4);
    return out;
}

void diag_add(struct diag *d, const char *file, int64_t line, int64_t col, const char *fmt, ...)
{
    if (d->count++ >= DIAG_MAX || d->len + 600 > sizeof d->text) return;
    if (d->len) d->text[d->len++] = '\n';
    if (file) d->len += put_place(d->text + d->len, sizeof d->text - d->len, file, line, col);
    va_list ap;
    va_start(ap, fmt);
    const int n = vsnprintf(d->text + d->len, 500, fmt, ap);
    va_end(ap);
    if (n > 0) d->len += (size_t)MIN(n, 499);
}

int diag_result(const struct diag *d, int code)
{
    int64_t shown = 1;
    if (d->count == 0) return 0;
    for (size_t i = 0; i < d->len; i++) shown += d->text[i] == '\n';
    if (shown < d->count)
        return err_set(code, "%s\nerror: %lld more problems like these", d->text, (long long)(d->count - shown));
    return err_set(code, "%s", d->text);
}
