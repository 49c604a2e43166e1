/* SPDX-License-Identifier: MIT */
#include "safetensors.h"
#include "json.h"
#include <stdlib.h>
#include <string.h>

enum { HEADER_MAX = 100000000, CHUNK = 1 << 13, SHOWN = 264 };

struct st_writer {
    struct file_out file;
    struct st_decl *decls; /* copy; names are borrowed */
    int64_t n, now;        /* tensors; the one that takes data (n: all are full) */
    int64_t left;          /* bytes that it still takes */
};

static int decl_err(const struct st_decl *d, const char *what)
{
    char shown[SHOWN];
    return err_set(ERR_IO, "cannot write tensor \"%s\": %s",
                   err_quote(shown, sizeof shown, d->name, strlen(d->name)), what);
}

static int decl_bytes(const struct st_decl *d, int64_t *bytes)
{
    int64_t n = st_dtype_size(d->dtype);
    if (n == 0) return decl_err(d, "its dtype cannot be written");
    if (d->rank < 0 || d->rank > 8) return decl_err(d, "its rank is outside 0 to 8");
    for (int32_t i = 0; i < d->rank; i++)
        if (d->dim[i] < 0 || !mul_ok(n, d->dim[i], &n))
            return decl_err(d, "its shape is negative or too large");
    *bytes = n;
    return 0;
}

static int by_decl_name(const void *a, const void *b)
{
    const char *const *x = a, *const *y = b;
    return strcmp(*x, *y);
}

static int check_names(const struct st_decl *decls, int64_t n)
{
    const char **names;
    int rc = 0;
    TRY(MEM_NEW(&names, n));
    for (int64_t i = 0; i < n; i++)
        names[i] = decls[i].name;
    qsort(names, (size_t)n, sizeof *names, by_decl_name);
    for (int64_t i = 0; i < n && rc == 0; i++)
        if (strcmp(names[i], "__metadata__") == 0 || (i && strcmp(names[i], names[i - 1]) == 0)) {
            const struct st_decl d = { .name = names[i] };
            rc = decl_err(&d, "the name is taken");
        }
    free(names);
    return rc;
}

static int add_metadata(struct buf *b, const char *const *pair)
{
    TRY(buf_adds(b, "\"__metadata__\":{"));
    for (const char *const *p = pair; *p; p += 2) {
        BUG_IF(!p[1]);
        if (p != pair) TRY(buf_adds(b, ","));
        TRY(json_dump_text(b, p[0], strlen(p[0])));
        TRY(buf_adds(b, ":"));
        TRY(json_dump_text(b, p[1], strlen(p[1])));
    }
    return buf_adds(b, "}");
}

/* The 8 bytes of the length, then the padded JSON. *total: bytes of the whole file. */
static int build_header(struct buf *b, const struct st_decl *decls, int64_t n,
                        const char *const *metadata, int64_t *total)
{
    int64_t at = 0, bytes, end;
    TRY(buf_add(b, "\0\0\0\0\0\0\0\0{", 9));
    if (metadata) TRY(add_metadata(b, metadata));
    for (int64_t i = 0; i < n; i++) {
        const struct st_decl *d = &decls[i];
        TRY(decl_bytes(d, &bytes));
        if (!add_ok(at, bytes, &end)) return decl_err(d, "the file would be too large");
        if (i || metadata) TRY(buf_adds(b, ","));
        TRY(json_dump_text(b, d->name, strlen(d->name)));
        TRY(buf_addf(b, ":{\"dtype\":\"%s\",\"shape\":[", st_dtype_name(d->dtype)));
        for (int32_t k = 0; k < d->rank; k++)
            TRY(buf_addf(b, k ? ",%lld" : "%lld", (long long)d->dim[k]));
        TRY(buf_addf(b, "],\"data_offsets\":[%lld,%lld]}", (long long)at, (long long)end));
        at = end;
    }
    TRY(buf_adds(b, "}"));
    while (b->len % 8)
        TRY(buf_adds(b, " "));
    if (b->len - 8 > HEADER_MAX) return err_set(ERR_IO, "the safetensors header is too large");
    for (int i = 0; i < 8; i++)
        b->data[i] = (char)((b->len - 8) >> (8 * i) & 0xff);
    *total = at + (int64_t)b->len;
    return 0;
}

/* Go on to the next tensor that takes data. */
static void advance(struct st_writer *w)
{
    while (w->left == 0 && w->now < w->n && ++w->now < w->n)
        decl_bytes(&w->decls[w->now], &w->left);
}

int st_writer_open(struct st_writer **out, const char *path, const struct st_decl *decls, int64_t n,
                   const char *const *metadata)
{
    struct buf header = { 0 };
    struct st_writer *w;
    int64_t total = 0;
    int rc = 0;
    *out = NULL;
    TRY(MEM_NEW(&w, 1));
    TRY_OUT(MEM_NEW(&w->decls, n));
    if (n) memcpy(w->decls, decls, (size_t)n * sizeof *decls);
    w->n = n;
    w->now = -1;
    TRY_OUT(check_names(decls, n));
    TRY_OUT(build_header(&header, decls, n, metadata, &total));
    TRY_OUT(file_create(&w->file, path));
    TRY_OUT(file_reserve(&w->file, total));
    TRY_OUT(file_put(&w->file, header.data, header.len));
    advance(w);
    *out = w;
out:
    buf_release(&header);
    if (rc < 0) st_writer_abandon(w);
    return rc;
}

int st_writer_put_raw(struct st_writer *w, const void *data, int64_t bytes)
{
    BUG_IF(bytes < 0);
    if (bytes == 0) return 0;
    if (w->now >= w->n) return err_set(ERR_IO, "cannot write: more tensor data than was declared");
    if (bytes > w->left) return decl_err(&w->decls[w->now], "more data than was declared");
    TRY(file_put(&w->file, data, (size_t)bytes));
    w->left -= bytes;
    advance(w);
    return 0;
}

int st_writer_put_f32(struct st_writer *w, const float *data, int64_t n)
{
    float piece[CHUNK];
    while (n > 0) {
        const int64_t k = MIN(n, (int64_t)CHUNK);
        const enum st_dtype dtype = w->now < w->n ? w->decls[w->now].dtype : ST_F32;
        if (dtype != ST_F32 && dtype != ST_F16 && dtype != ST_BF16)
            return decl_err(&w->decls[w->now], "its dtype is not F32, F16 or BF16");
        st_from_f32(piece, data, k, dtype);
        TRY(st_writer_put_raw(w, piece, k * st_dtype_size(dtype)));
        data += k;
        n -= k;
    }
    return 0;
}

int st_writer_close(struct st_writer *w)
{
    int rc = w->now < w->n ? decl_err(&w->decls[w->now], "less data than was declared") : 0;
    if (rc == 0) rc = file_commit(&w->file);
    st_writer_abandon(w);
    return rc;
}

void st_writer_abandon(struct st_writer *w)
{
    if (!w) return;
    file_abandon(&w->file);
    free(w->decls);
    free(w);
}

int64_t st_writer_bytes(const struct st_writer *w)
{
    return w->file.bytes;
}

uint32_t st_writer_crc(const struct st_writer *w)
{
    return w->file.crc;
}
