/* SPDX-License-Identifier: MIT
 * json.h - JSON text with places: jansson parses, this remembers where every value stood. */
#ifndef BDPO_JSON_H
#define BDPO_JSON_H
#include "../base/mem.h"
#include <jansson.h>

struct json_doc { /* valid when zeroed */
    json_t *root;  /* owned */
    char *name;    /* file name for messages; owned */
    char *text;    /* the source, NUL-terminated; owned */
    size_t len;
    int64_t line0; /* line number of the first line (JSONL rows), 1 for a file */
    int64_t col0;  /* bytes before the text on that line */
};

/* Read and parse a whole file. Refused with file:line:col (ERR_INPUT): what jansson refuses, duplicate keys, a BOM,
 * NUL bytes, numbers that overflow or underflow (1e-999), lone surrogates, over 2000 levels, a directory or FIFO, files over 1 GiB. */
int json_doc_read(struct json_doc *d, const char *path);
/* The same from memory; `name` and `line0` are used in messages only. Text is copied. */
int json_doc_parse(struct json_doc *d, const char *name, int64_t line0, const char *text, size_t len);
/* The same for a text that starts after col0 bytes of its line. */
int json_doc_parse_at(struct json_doc *d, const char *name, int64_t line0, int64_t col0, const char *text, size_t len);
/* The same, where a lone string, number, true, false or null is a document too. */
int json_doc_parse_any(struct json_doc *d, const char *name, int64_t line0, const char *text, size_t len);
/* The same as json_doc_parse with line0 1, but text (heap, NUL-terminated after len bytes) is taken over, also on failure. */
int json_doc_take(struct json_doc *d, const char *name, char *text, size_t len);
void json_doc_release(struct json_doc *d);
/* Line and column (both from 1, column in bytes) of the value at a JSON Pointer (RFC 6901, "/data/train/0"): of its key's
 * opening quote for a member, of its first byte for an element. `pointer` "" is the root. Line 0 where it does not exist. */
void json_doc_where(const struct json_doc *d, const char *pointer, int64_t *line, int64_t *col);
/* err_at() at that place, or at the nearest value around it that exists. An argument may be err_msg(): an error that knew no place gets one. */
int json_err(int code, const struct json_doc *d, const char *pointer, const char *fmt, ...) PRINTF_LIKE(4, 5);
/* "out" gets pointer + "/" + key with ~ and / escaped. The caller frees. */
int json_pointer_join(char **out, const char *pointer, const char *key);

/* Text of a value: indent spaces (0: one line), keys in insertion order, real numbers shortest that reads back equal. Adds to b. */
int json_dump(struct buf *b, const json_t *value, int indent);

/* The parts of it: a string with its quotes, a finite real (as Python's repr writes it). */
int json_dump_text(struct buf *b, const char *s, size_t len);
int json_dump_real(struct buf *b, double v);

/* Name in names[0..n) nearest to `name` by Damerau-Levenshtein distance, if at most 2 and below its length; else NULL. */
const char *json_nearest(const char *name, const char *const *names, size_t n);
#endif
