/* SPDX-License-Identifier: MIT */
#include "mem.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int mem_calloc(void **out, int64_t n, size_t size)
{
    int64_t bytes;
    *out = NULL;
    if (n < 0 || !mul_ok(n, (int64_t)size, &bytes))
        return err_set(ERR_OOM, "a size overflows 64 bits");
    *out = calloc(1, bytes ? (size_t)bytes : 1);
    if (!*out) return err_set(ERR_OOM, "out of memory: %lld bytes", (long long)bytes);
    return 0;
}

int mem_grow(void **p, int64_t *cap, int64_t need, size_t size)
{
    int64_t want = MAX(*cap * 2, (int64_t)16), bytes;
    if (need <= *cap) return 0;
    want = MAX(want, need);
    if (!mul_ok(want, (int64_t)size, &bytes)) return err_set(ERR_OOM, "a size overflows 64 bits");
    void *q = realloc(*p, (size_t)bytes);
    if (!q) return err_set(ERR_OOM, "out of memory: %lld bytes", (long long)bytes);
    *p = q;
    *cap = want;
    return 0;
}

void buf_release(struct buf *b)
{
    free(b->data);
    memset(b, 0, sizeof *b);
}

void buf_clear(struct buf *b)
{
    b->len = 0;
    if (b->data) b->data[0] = 0;
}

static int buf_reserve(struct buf *b, size_t more)
{
    int64_t cap = (int64_t)b->cap;
    if (more >= (size_t)INT64_MAX - b->len - 1) return err_set(ERR_OOM, "a size overflows 64 bits");
    TRY(MEM_GROW(&b->data, &cap, (int64_t)(b->len + more + 1)));
    b->cap = (size_t)cap;
    return 0;
}

int buf_add(struct buf *b, const void *data, size_t len)
{
    TRY(buf_reserve(b, len));
    if (len) memcpy(b->data + b->len, data, len);
    b->len += len;
    b->data[b->len] = 0;
    return 0;
}

int buf_adds(struct buf *b, const char *s)
{
    return buf_add(b, s, strlen(s));
}

int buf_vaddf(struct buf *b, const char *fmt, va_list ap)
{
    va_list again;
    va_copy(again, ap);
    const int n = vsnprintf(NULL, 0, fmt, ap);
    int rc = n < 0 ? err_set(ERR_OOM, "cannot format a message") : buf_reserve(b, (size_t)n);
    if (rc == 0) {
        vsnprintf(b->data + b->len, (size_t)n + 1, fmt, again);
        b->len += (size_t)n;
    }
    va_end(again);
    return rc;
}

int buf_addf(struct buf *b, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    const int rc = buf_vaddf(b, fmt, ap);
    va_end(ap);
    return rc;
}

int mem_strndup(char **out, const char *s, size_t len)
{
    TRY(mem_calloc((void **)out, (int64_t)len + 1, 1));
    memcpy(*out, s, len);
    return 0;
}

int mem_strdup(char **out, const char *s)
{
    return mem_strndup(out, s, strlen(s));
}

int mem_asprintf(char **out, const char *fmt, ...)
{
    struct buf b = { 0 };
    va_list ap;
    va_start(ap, fmt);
    const int rc = buf_vaddf(&b, fmt, ap);
    va_end(ap);
    *out = rc < 0 ? NULL : b.data;
    if (rc < 0) buf_release(&b);
    return rc;
}

const char *bytes_human(char out[32], int64_t bytes)
{
    static const char *const unit[] = { "KiB", "MiB", "GiB", "TiB", "PiB", "EiB" };
    double x = (double)bytes;
    size_t i = 0;
    if (bytes < 1024) {
        snprintf(out, 32, "%lld B", (long long)bytes);
        return out;
    }
    for (x /= 1024; x >= 1023.95 && i + 1 < COUNT_OF(unit); i++)
        x /= 1024;
    snprintf(out, 32, "%.1f %s", x, unit[i]);
    return out;
}
