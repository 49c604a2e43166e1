/* SPDX-License-Identifier: MIT
 * base.h - errors, asserts, checked arithmetic; every other header includes this one first. */
#ifndef BDPO_BASE_H
#define BDPO_BASE_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#ifdef __cplusplus
extern "C" {
#endif

/* Every fallible function returns an int: 0 (or a count >= 0), or one of these (all negative).
 * err_exit_code() maps them to the exit codes of the public interface. */
enum err {
    ERR_INPUT = -1,      /* wrong usage, config, model or data: the user mends it. Exit 2 */
    ERR_OOM = -2,        /* host or device memory. Exit 1 */
    ERR_IO = -3,         /* open/read/write/rename failed while running. Exit 1 */
    ERR_DEVICE = -4,     /* CUDA, cuBLASLt, cuDNN, oneDNN. Exit 1 */
    ERR_STOPPED = -5,    /* stopped by a signal or max_hours after saving. Exit 75 */
    ERR_COMM = -6,       /* a rank was lost or hung. Exit 76 */
    ERR_DIVERGED = -7,   /* loss or gradient stayed non-finite. Exit 80 */
    ERR_REPLICA = -8,    /* replicas differ. Exit 81 */
    ERR_CHECKPOINT = -9  /* checkpoint unusable or incompatible. Exit 82 */
};

#define PRINTF_LIKE(f, a) __attribute__((format(printf, f, a)))

/* Start this thread's error message; returns `code`. The text says what, where, and how to mend it. */
int err_set(int code, const char *fmt, ...) PRINTF_LIKE(2, 3);
/* The same for a place in a file: "file:line:col: error: text" (col 0: left out). */
int err_at(int code, const char *file, int64_t line, int64_t col, const char *fmt, ...) PRINTF_LIKE(5, 6);
/* Prepend "context: " to the message that is there; returns `code`. */
int err_note(int code, const char *fmt, ...) PRINTF_LIKE(2, 3);
/* This thread's message; borrowed, overwritten by the next err_*. May hold several lines. */
const char *err_msg(void);
/* Exit code of the public interface for an err code (0 for >= 0). */
int err_exit_code(int code);
/* One of several processes of a run that is not to repeat what another says: from now on what it writes to stderr is dropped, but for
 * err_print and bug. */
void err_quiet(void);
/* Print text and a newline on the stderr that the process was started with. */
void err_print(const char *text);
/* Its file descriptor. */
int err_fd(void);
/* Broken invariant: print and abort. */
void bug(const char *file, int line, const char *what) __attribute__((noreturn));

/* Copy untrusted text into out[size] with control and non-ASCII bytes escaped as \xNN, at most 60 bytes
 * of it ("..." where cut). Returns out. */
const char *err_quote(char *out, size_t size, const char *text, size_t len);

/* TRY is for functions that own nothing; a function with an `out:` label uses only TRY_OUT. */
#define TRY(expr)                        \
    do {                                 \
        int try_rc_ = (expr);            \
        if (try_rc_ < 0) return try_rc_; \
    } while (0)
#define TRY_OUT(expr)         \
    do {                      \
        rc = (expr);          \
        if (rc < 0) goto out; \
    } while (0)
#define BUG_IF(cond)                              \
    do {                                          \
        if (cond) bug(__FILE__, __LINE__, #cond); \
    } while (0)
#define COUNT_OF(a) (sizeof(a) / sizeof((a)[0]))
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

/* Several problems reported in one pass: one line each, the first DIAG_MAX kept, all counted. */
enum { DIAG_MAX = 20 };
struct diag {
    int64_t count, shown;
    size_t len;
    char text[6144];
};
/* Add "file:line:col: error: text" (file NULL: the text alone; line or col 0: left out). */
void diag_add(struct diag *d, const char *file, int64_t line, int64_t col, const char *fmt, ...)
    PRINTF_LIKE(5, 6);
/* 0 when nothing was added; else sets the error to all lines (and how many more) and returns code. */
int diag_result(const struct diag *d, int code);

/* Checked arithmetic: false on overflow. */
static inline bool mul_ok(int64_t a, int64_t b, int64_t *out) { return !__builtin_mul_overflow(a, b, out); }
static inline bool add_ok(int64_t a, int64_t b, int64_t *out) { return !__builtin_add_overflow(a, b, out); }
/* x rounded up to a multiple of m (m > 0, x >= 0). */
static inline int64_t round_up(int64_t x, int64_t m) { return (x + m - 1) / m * m; }
/* A float's bits, and the float of bits. */
static inline uint32_t bits_of(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}
static inline float float_of(uint32_t u)
{
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}
static inline int64_t div_up(int64_t x, int64_t m) { return (x + m - 1) / m; }

#ifdef __cplusplus
}
#endif
#endif
