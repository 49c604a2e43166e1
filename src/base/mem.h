/* SPDX-License-Identifier: MIT
 * mem.h - host memory that fails with an error, and a growable byte string. */
#ifndef BDPO_MEM_H
#define BDPO_MEM_H
#include "base.h"
#include <stdarg.h>
#ifdef __cplusplus
extern "C" {
#endif

/* *out = n zeroed elements of `size` bytes (n * size checked for overflow; n = 0 gives a valid pointer).
 * The caller frees with free(). Errors: ERR_OOM naming the size. */
int mem_calloc(void **out, int64_t n, size_t size);
/* Typed form: TRY(MEM_NEW(&p, n)) */
#define MEM_NEW(pp, n) mem_calloc((void **)(pp), (n), sizeof **(pp))
/* Grow *p so that it holds at least `need` elements of `size` bytes; doubles *cap. New space is not zeroed. */
int mem_grow(void **p, int64_t *cap, int64_t need, size_t size);
#define MEM_GROW(pp, cap, need) mem_grow((void **)(pp), (cap), (need), sizeof **(pp))

/* A growable byte string, always NUL-terminated once written; valid when zeroed. */
struct buf {
    char *data; /* NULL until the first write; owned */
    size_t len, cap;
};
void buf_release(struct buf *b);
void buf_clear(struct buf *b); /* len = 0, keeps the memory */
int buf_add(struct buf *b, const void *data, size_t len);
int buf_adds(struct buf *b, const char *s);
int buf_addf(struct buf *b, const char *fmt, ...) PRINTF_LIKE(2, 3);
int buf_vaddf(struct buf *b, const char *fmt, va_list ap) PRINTF_LIKE(2, 0);
/* A heap copy of s[0..len), NUL-terminated; the caller frees. */
int mem_strndup(char **out, const char *s, size_t len);
int mem_strdup(char **out, const char *s);
/* *out = printf-formatted heap string; the caller frees. */
int mem_asprintf(char **out, const char *fmt, ...) PRINTF_LIKE(2, 3);
/* "1.9 GiB" into out[32]; returns out. */
const char *bytes_human(char out[32], int64_t bytes);

#ifdef __cplusplus
}
#endif
#endif
