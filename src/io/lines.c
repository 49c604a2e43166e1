/* SPDX-License-Identifier: MIT */
#include "file.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

enum { IN_BYTES = 1 << 16, FILL_BYTES = 1 << 18, LINE_MAX_BYTES = 64 << 20 };
enum array_state { ARRAY_NONE, ARRAY_FIRST, ARRAY_ITEM, ARRAY_NEXT, ARRAY_END };

/* inflate() itself, not gzread(): the latter passes trailing garbage and plain text in silence */
struct line_reader {
    char *path;
    int fd;
    struct stat before; /* of the file when it was opened */
    bool gz, open_member, any_member, eof, failed;
    z_stream z; /* of the member that is open */
    uint8_t *in;
    char *text; /* text[at..have): read, not yet returned; one byte more is allocated */
    int64_t cap, at, have, scanned;
    int64_t number;
    int64_t limit; /* bytes of a line */
    /* a JSON array: the elements are the lines */
    bool maybe_array, in_string, escaped;
    enum array_state state; /* ARRAY_NONE: lines */
    int64_t depth, row, row_bytes,
        col;                /* line feeds passed; bytes passed since the last; of the element */
    struct sha256 sha, raw; /* of the text; of the file's bytes, where these are gzip */
};

static int lines_fail(struct line_reader *r, const char *what)
{
    r->failed = true;
    return err_at(ERR_INPUT, r->path, (r->state == ARRAY_NONE ? r->number : r->row) + 1, 0, "%s",
                  what);
}

static int too_long(struct line_reader *r)
{
    char what[120];
    if (r->limit % (1 << 20) == 0)
        snprintf(what, sizeof what, "the line is longer than %lld MiB (data.max_line_bytes)",
                 (long long)(r->limit >> 20));
    else
        snprintf(what, sizeof what, "the line is longer than %lld bytes (data.max_line_bytes)",
                 (long long)r->limit);
    return lines_fail(r, what);
}

static bool has_suffix(const char *s, const char *suffix)
{
    const size_t n = strlen(s), m = strlen(suffix);
    return n >= m && strcmp(s + n - m, suffix) == 0;
}

int lines_kind(const char *path)
{
    return (has_suffix(path, ".gz") ? LINES_GZIP : 0) |
           (has_suffix(path, ".json") || has_suffix(path, ".json.gz") ? LINES_ARRAY : 0);
}

int lines_open(struct line_reader **out, const char *path)
{
    struct line_reader *r;
    int64_t size;
    int rc = 0;
    *out = NULL;
    TRY(MEM_NEW(&r, 1));
    r->fd = -1;
    TRY_OUT(mem_strdup(&r->path, path));
    r->gz = lines_kind(path) & LINES_GZIP;
    r->maybe_array = lines_kind(path) & LINES_ARRAY;
    r->limit = LINE_MAX_BYTES;
    TRY_OUT(MEM_NEW(&r->in, IN_BYTES));
    TRY_OUT(file_open(&r->fd, &size, path));
    if (fstat(r->fd, &r->before) < 0) TRY_OUT(err_set(ERR_IO, "%s: cannot be looked at", path));
    sha256_init(&r->sha);
    sha256_init(&r->raw);
    *out = r;
out:
    if (rc < 0) lines_close(r);
    return rc;
}

void lines_close(struct line_reader *r)
{
    if (!r) return;
    if (r->open_member) inflateEnd(&r->z);
    if (r->fd >= 0) close(r->fd);
    free(r->path);
    free(r->in);
    free(r->text);
    free(r);
}

/* Start the next gzip member at the bytes that are left in r->z, which are at least 1. */
static int member_begin(struct line_reader *r)
{
    Bytef *next = r->z.next_in;
    const uInt left = r->z.avail_in;
    if (next[0] != 0x1f || (left > 1 && next[1] != 0x8b))
        return lines_fail(r, r->any_member ? "garbage after the end of the gzip data"
                                           : "is named .gz but is not gzip data; rename it");
    memset(&r->z, 0, sizeof r->z);
    r->z.next_in = next;
    r->z.avail_in = left;
    if (inflateInit2(&r->z, 15 + 16) != Z_OK)
        return err_set(ERR_OOM, "out of memory for gzip decompression");
    r->open_member = r->any_member = true;
    return 0;
}

static int fill_gz(struct line_reader *r, char *out, size_t len, size_t *got)
{
    *got = 0;
    while (*got == 0) {
        if (r->z.avail_in == 0) {
            size_t n;
            TRY(file_read_some(r->fd, r->path, r->in, IN_BYTES, &n));
            if (n == 0) {
                if (r->open_member)
                    return lines_fail(r, "gzip data is truncated: the file is not complete");
                if (!r->any_member) return lines_fail(r, "is named .gz but is empty");
                r->eof = true;
                return 0;
            }
            sha256_add(&r->raw, r->in, n);
            r->z.next_in = r->in;
            r->z.avail_in = (uInt)n;
        }
        if (!r->open_member) TRY(member_begin(r));
        r->z.next_out = (Bytef *)out;
        r->z.avail_out = (uInt)len;
        const int z = inflate(&r->z, Z_NO_FLUSH);
        *got = len - r->z.avail_out;
        if (z == Z_STREAM_END) {
            inflateEnd(&r->z);
            r->open_member = false;
        } else if (z == Z_MEM_ERROR) {
            r->failed = true;
            return err_set(ERR_OOM, "out of memory for gzip decompression");
        } else if (z != Z_OK && z != Z_BUF_ERROR) {
            r->failed = true;
            return err_at(ERR_INPUT, r->path, r->number + 1, 0, "gzip data is corrupt: %s",
                          r->z.msg ? r->z.msg : "bad data");
        }
    }
    return 0;
}

/* At the end: is the file the one that was opened? What was read is otherwise no version of it. */
static int check_unchanged(struct line_reader *r)
{
    struct stat now;
    if (fstat(r->fd, &now) == 0 && now.st_size == r->before.st_size &&
        now.st_mtim.tv_sec == r->before.st_mtim.tv_sec &&
        now.st_mtim.tv_nsec == r->before.st_mtim.tv_nsec)
        return 0;
    return lines_fail(r,
                      "the file changed while it was read; start again when nothing writes to it");
}

/* Read more text behind what is there. Sets r->eof at a clean end. */
static int fill(struct line_reader *r)
{
    size_t got = 0;
    if (r->at) {
        memmove(r->text, r->text + r->at, (size_t)(r->have - r->at));
        r->have -= r->at;
        r->scanned -= r->at;
        r->at = 0;
    }
    TRY(MEM_GROW(&r->text, &r->cap, r->have + FILL_BYTES + 1));
    if (r->gz) {
        TRY(fill_gz(r, r->text + r->have, FILL_BYTES, &got));
    } else {
        TRY(file_read_some(r->fd, r->path, r->text + r->have, FILL_BYTES, &got));
        r->eof = got == 0;
    }
    sha256_add(&r->sha, r->text + r->have, got);
    r->have += (int64_t)got;
    return r->eof ? check_unchanged(r) : 0;
}

/* The line that ends before r->text[end], whose text goes on at `next`. */
static int take(struct line_reader *r, int64_t end, int64_t next, char **line, size_t *len)
{
    char *s = r->text + r->at;
    size_t n = (size_t)(end - r->at);
    if (next > end && n && s[n - 1] == '\r') n--;
    if (r->number == 0) {
        if (n >= 2 && (memcmp(s, "\xff\xfe", 2) == 0 || memcmp(s, "\xfe\xff", 2) == 0))
            return lines_fail(r, "is UTF-16 text; save it as UTF-8");
        if (n >= 3 && memcmp(s, "\xef\xbb\xbf", 3) == 0) {
            s += 3;
            n -= 3;
        }
    }
    if ((int64_t)n > r->limit) return too_long(r);
    if (memchr(s, 0, n)) return lines_fail(r, "the line holds a NUL byte: not text");
    s[n] = 0;
    r->at = r->scanned = next;
    r->number++;
    *line = s;
    *len = n;
    return 1;
}

/* The file begins with a '[': its elements are the rows. */
static int look_for_array(struct line_reader *r)
{
    int64_t i;
    r->maybe_array = false;
    for (;;) {
        i = r->have >= 3 && memcmp(r->text, "\xef\xbb\xbf", 3) == 0 ? 3 : 0;
        while (i < r->have && strchr(" \t\r\n", r->text[i]) && r->text[i])
            i++;
        if (i < r->have || r->eof || r->have > r->limit) break;
        TRY(fill(r));
    }
    if (i >= r->have || r->text[i] != '[') return 0;
    for (int64_t k = 0; k <= i; k++) {
        r->row += r->text[k] == '\n';
        r->row_bytes = r->text[k] == '\n' ? 0 : r->row_bytes + 1;
    }
    r->at = r->scanned = i + 1;
    r->state = ARRAY_FIRST;
    return 0;
}

/* One byte between elements; *starts: it is an element's first. */
static int between_items(struct line_reader *r, char c, bool *starts)
{
    *starts = false;
    if (c == ' ' || c == '\t' || c == '\r' || c == '\n') return 0;
    if (r->state == ARRAY_END) return lines_fail(r, "text after the end of the JSON array");
    if (c == ']' && r->state == ARRAY_FIRST) {
        r->state = ARRAY_END;
        return 0;
    }
    if (c == ',' || c == ']') return lines_fail(r, "an element of the JSON array is missing");
    *starts = true;
    return 0;
}

/* One byte of an element; true: the element ended before it. */
static bool inside_item(struct line_reader *r, char c)
{
    if (r->in_string) {
        if (r->escaped)
            r->escaped = false;
        else if (c == '\\')
            r->escaped = true;
        else if (c == '"')
            r->in_string = false;
        return false;
    }
    if (c == '"') r->in_string = true;
    if (c == '{' || c == '[') r->depth++;
    if (r->depth == 0) return c == ',' || c == ']';
    if (c == '}' || c == ']') r->depth--;
    return false;
}

/* The element r->text[at..scanned). */
static int take_item(struct line_reader *r, char **line, size_t *len)
{
    int64_t n = r->scanned - r->at;
    char *s = r->text + r->at;
    if (n > r->limit) return too_long(r);
    while (n > 0 && strchr(" \t\r\n", s[n - 1]))
        n--;
    r->state = s[r->scanned - r->at] == ',' ? ARRAY_NEXT : ARRAY_END;
    s[n] = 0;
    r->row_bytes++;
    r->at = ++r->scanned;
    *line = s;
    *len = (size_t)n;
    return 1;
}

static int next_item(struct line_reader *r, char **line, size_t *len)
{
    for (;;) {
        for (; r->scanned < r->have; r->scanned++) {
            const char c = r->text[r->scanned];
            bool starts = false;
            if (c == 0) return lines_fail(r, "the file holds a NUL byte: not text");
            if (r->state != ARRAY_ITEM) {
                r->at = r->scanned;
                TRY(between_items(r, c, &starts));
            }
            if (starts) {
                r->state = ARRAY_ITEM;
                r->number = r->row + 1;
                r->col = r->row_bytes;
            }
            if (r->state == ARRAY_ITEM && inside_item(r, c)) return take_item(r, line, len);
            r->row += c == '\n';
            r->row_bytes = c == '\n' ? 0 : r->row_bytes + 1;
        }
        if (r->state != ARRAY_ITEM) r->at = r->scanned;
        if (r->eof && r->state == ARRAY_END) return 0;
        if (r->eof) return lines_fail(r, "the JSON array does not end: the file is not complete");
        if (r->have - r->at > r->limit) return too_long(r);
        TRY(fill(r));
    }
}

int lines_next(struct line_reader *r, char **line, size_t *len)
{
    int rc = 0;
    *line = NULL;
    *len = 0;
    if (r->failed) return lines_fail(r, "cannot be read on after an error");
    if (r->maybe_array) rc = look_for_array(r);
    if (rc == 0 && r->state != ARRAY_NONE) rc = next_item(r, line, len);
    if (rc < 0) r->failed = true;
    if (rc < 0 || r->state != ARRAY_NONE) return rc;
    for (;;) {
        if (r->have > r->scanned) {
            const char *nl = memchr(r->text + r->scanned, '\n', (size_t)(r->have - r->scanned));
            if (nl) return take(r, nl - r->text, nl - r->text + 1, line, len);
            r->scanned = r->have;
        }
        if (r->eof) return r->have > r->at ? take(r, r->have, r->have, line, len) : 0;
        /* 2 more for "\r\n", 3 for a BOM */
        if (r->have - r->at > r->limit + 5) return too_long(r);
        rc = fill(r);
        if (rc < 0) {
            r->failed = true;
            return rc;
        }
    }
}

int64_t lines_number(const struct line_reader *r)
{
    return r->number;
}

int64_t lines_column(const struct line_reader *r)
{
    return r->state == ARRAY_NONE ? 0 : r->col;
}

void lines_limit(struct line_reader *r, int64_t bytes)
{
    r->limit = MIN(bytes, (int64_t)LINE_MAX_BYTES);
}

void lines_digest(const struct line_reader *r, uint8_t digest[32])
{
    struct sha256 s = r->sha;
    sha256_end(&s, digest);
}

void lines_digest_file(const struct line_reader *r, uint8_t digest[32])
{
    struct sha256 s = r->gz ? r->raw : r->sha;
    sha256_end(&s, digest);
}
