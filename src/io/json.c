/* SPDX-License-Identifier: MIT */
#include "json.h"
#include "file.h"
#include "scan.h"
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const int64_t FILE_MAX_BYTES = (int64_t)1 << 30;

static void place_of(const struct json_doc *d, size_t at, int64_t *line, int64_t *col)
{
    const char *start = d->text, *nl;
    *line = d->line0;
    while ((nl = memchr(start, '\n', at - (size_t)(start - d->text)))) {
        start = nl + 1;
        ++*line;
    }
    *col = d->text + at - start + 1 + (start == d->text ? d->col0 : 0);
}

static int refuse(const struct json_doc *d, size_t at, const char *what)
{
    int64_t line, col;
    place_of(d, at, &line, &col);
    return err_at(ERR_INPUT, d->name, line, col, "%s", what);
}

/* jansson refuses a key at its closing quote: name it from its opening quote on. */
static int refuse_duplicate(const struct json_doc *d, size_t end)
{
    char shown[80];
    int64_t line, col;
    size_t at = end - 1;
    for (;;) {
        size_t slashes = 0;
        do {
            at--;
        } while (d->text[at] != '"');
        while (slashes < at && d->text[at - 1 - slashes] == '\\')
            slashes++;
        if (slashes % 2 == 0) break;
    }
    place_of(d, at, &line, &col);
    err_quote(shown, sizeof shown, d->text + at + 1, end - at - 2);
    return err_at(ERR_INPUT, d->name, line, col, "the key \"%s\" is there twice", shown);
}

static int parse(struct json_doc *d, bool any)
{
    char why[120];
    size_t at;
    json_error_t e;
    if (d->len >= 3 && memcmp(d->text, "\xef\xbb\xbf", 3) == 0)
        return refuse(d, 0, "starts with a byte order mark (BOM); save it as UTF-8 without one");
    if (d->len >= 2 && (memcmp(d->text, "\xff\xfe", 2) == 0 || memcmp(d->text, "\xfe\xff", 2) == 0))
        return refuse(d, 0, "is UTF-16 text; save it as UTF-8");
    const char *nul = memchr(d->text, 0, d->len);
    if (nul) return refuse(d, (size_t)(nul - d->text), "a NUL byte: not JSON text");
    const char *wrong = scan_check(d->text, any, &at, why);
    if (wrong) return refuse(d, at, wrong);
    const size_t flags = JSON_REJECT_DUPLICATES | (any ? JSON_DECODE_ANY : 0);
    d->root = json_loadb(d->text, d->len, flags, &e);
    if (d->root) return 0;
    if (json_error_code(&e) == json_error_out_of_memory)
        return err_set(ERR_OOM, "out of memory for the JSON of %s", d->name);
    at = MIN((size_t)MAX(e.position, 0), d->len);
    if (json_error_code(&e) == json_error_duplicate_key && at >= 2 && d->text[at - 1] == '"')
        return refuse_duplicate(d, at);
    return refuse(d, at, e.text);
}

static int parse_taken(struct json_doc *d, const char *name, int64_t line0, int64_t col0,
                       char *text, size_t len, bool any)
{
    memset(d, 0, sizeof *d);
    d->text = text;
    d->len = len;
    d->line0 = line0;
    d->col0 = col0;
    int rc = mem_strdup(&d->name, name);
    if (rc == 0) rc = parse(d, any);
    if (rc < 0) json_doc_release(d);
    return rc;
}

int json_doc_take(struct json_doc *d, const char *name, char *text, size_t len)
{
    return parse_taken(d, name, 1, 0, text, len, false);
}

int json_doc_read(struct json_doc *d, const char *path)
{
    char *text;
    size_t len;
    memset(d, 0, sizeof *d);
    TRY(file_read(&text, &len, path, FILE_MAX_BYTES));
    return parse_taken(d, path, 1, 0, text, len, false);
}

int json_doc_parse_at(struct json_doc *d, const char *name, int64_t line0, int64_t col0,
                      const char *text, size_t len)
{
    char *copy;
    memset(d, 0, sizeof *d);
    TRY(mem_strndup(&copy, text, len));
    return parse_taken(d, name, line0, col0, copy, len, false);
}

int json_doc_parse(struct json_doc *d, const char *name, int64_t line0, const char *text,
                   size_t len)
{
    return json_doc_parse_at(d, name, line0, 0, text, len);
}

int json_doc_parse_any(struct json_doc *d, const char *name, int64_t line0, const char *text,
                       size_t len)
{
    char *copy;
    memset(d, 0, sizeof *d);
    TRY(mem_strndup(&copy, text, len));
    return parse_taken(d, name, line0, 0, copy, len, true);
}

void json_doc_release(struct json_doc *d)
{
    json_decref(d->root);
    free(d->name);
    free(d->text);
    memset(d, 0, sizeof *d);
}

void json_doc_where(const struct json_doc *d, const char *pointer, int64_t *line, int64_t *col)
{
    const int64_t at = d->text ? scan_find(d->text, pointer) : -1;
    *line = *col = 0;
    if (at >= 0) place_of(d, (size_t)at, line, col);
}

int json_err(int code, const struct json_doc *d, const char *pointer, const char *fmt, ...)
{
    int64_t line, col;
    struct buf text = { 0 }, up = { 0 };
    va_list ap;
    json_doc_where(d, pointer, &line, &col);
    if (line == 0 && *pointer && buf_adds(&up, pointer) == 0) {
        /* what is missing is reported at the nearest object around it */
        while (line == 0 && up.len) {
            while (up.len && up.data[up.len - 1] != '/')
                up.len--;
            if (up.len) up.len--;
            up.data[up.len] = 0;
            json_doc_where(d, up.data, &line, &col);
        }
    }
    va_start(ap, fmt);
    const int rc = buf_vaddf(&text, fmt, ap);
    va_end(ap);
    if (rc == 0) err_at(code, d->name, line, col, "%s", text.data);
    buf_release(&text);
    buf_release(&up);
    return rc < 0 ? rc : code;
}

int json_pointer_join(char **out, const char *pointer, const char *key)
{
    struct buf b = { 0 };
    int rc = buf_addf(&b, "%s/", pointer);
    for (; rc == 0 && *key; key++)
        rc = *key == '~'   ? buf_adds(&b, "~0")
             : *key == '/' ? buf_adds(&b, "~1")
                           : buf_add(&b, key, 1);
    if (rc < 0) buf_release(&b);
    *out = b.data;
    return rc;
}

/* Optimal string alignment: insert, delete, replace, swap two neighbours; n, m <= 64. */
static int distance(const char *a, int n, const char *b, int m)
{
    int row[3][65 + 1];
    for (int j = 0; j <= m; j++)
        row[0][j] = j;
    for (int i = 1; i <= n; i++) {
        int *now = row[i % 3];
        const int *up = row[(i + 2) % 3], *up2 = row[(i + 1) % 3];
        now[0] = i;
        for (int j = 1; j <= m; j++) {
            const int change = up[j - 1] + (a[i - 1] != b[j - 1]);
            now[j] = MIN(change, MIN(up[j], now[j - 1]) + 1);
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
                now[j] = MIN(now[j], up2[j - 2] + 1);
        }
    }
    return row[n % 3][m];
}

const char *json_nearest(const char *name, const char *const *names, size_t n)
{
    const char *best = NULL;
    const size_t len = strlen(name);
    int least = 3;
    if (len > 64) return NULL;
    for (size_t i = 0; i < n; i++) {
        const size_t m = strlen(names[i]);
        if (m > 64 || m + 2 < len || len + 2 < m) continue;
        const int d = distance(name, (int)len, names[i], (int)m);
        if (d < least && (size_t)d < len) {
            least = d;
            best = names[i];
        }
    }
    return best;
}
