/* SPDX-License-Identifier: MIT */
#include "safetensors.h"
#include "json.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "safetensors files are little-endian");

enum { HEADER_MAX = 100000000, RANK_MAX = 8, CHUNK_BYTES = 1 << 15, SHOWN = 264 };

static const struct {
    const char *name;
    enum st_dtype dtype;
    int bits;
} dtype_table[] = {
    { "F32", ST_F32, 32 },      { "F16", ST_F16, 16 },      { "BF16", ST_BF16, 16 },
    { "F64", ST_F64, 64 },      { "I64", ST_I64, 64 },      { "I32", ST_I32, 32 },
    { "U8", ST_U8, 8 },         { "BOOL", ST_OTHER, 8 },    { "I8", ST_OTHER, 8 },
    { "I16", ST_OTHER, 16 },    { "U16", ST_OTHER, 16 },    { "U32", ST_OTHER, 32 },
    { "U64", ST_OTHER, 64 },    { "C64", ST_OTHER, 64 },    { "F8_E4M3", ST_OTHER, 8 },
    { "F8_E5M2", ST_OTHER, 8 }, { "F8_E8M0", ST_OTHER, 8 }, { "F6_E2M3", ST_OTHER, 6 },
    { "F6_E3M2", ST_OTHER, 6 }, { "F4", ST_OTHER, 4 },
};

const char *st_dtype_name(enum st_dtype t)
{
    return t == ST_OTHER ? "another dtype" : dtype_table[t].name;
}

int64_t st_dtype_size(enum st_dtype t)
{
    return t == ST_OTHER ? 0 : dtype_table[t].bits / 8;
}

/* one header ---------------------------------------------------------------------------------- */

struct entry { /* where we are, for messages */
    const char *path, *name;
};

static int bad(const struct entry *e, const char *what)
{
    char shown[SHOWN];
    return err_at(ERR_INPUT, e->path, 0, 0, "tensor \"%s\": %s",
                  err_quote(shown, sizeof shown, e->name, strlen(e->name)), what);
}

/* A whole number from 0 on; jansson's integers fit 64 bits. */
static bool get_size(const json_t *v, int64_t *out)
{
    if (!json_is_integer(v) || json_integer_value(v) < 0) return false;
    *out = json_integer_value(v);
    return true;
}

static int get_dtype(const struct entry *e, const json_t *v, struct st_tensor *t, int *bits)
{
    const char *name = json_string_value(v);
    if (!name) return bad(e, "\"dtype\" is missing or not a string");
    for (size_t i = 0; i < COUNT_OF(dtype_table); i++) {
        if (strcmp(name, dtype_table[i].name) != 0) continue;
        t->dtype = dtype_table[i].dtype;
        *bits = dtype_table[i].bits;
        return 0;
    }
    char shown[SHOWN], what[SHOWN + 32];
    snprintf(what, sizeof what, "unknown dtype %s",
             err_quote(shown, sizeof shown, name, strlen(name)));
    return bad(e, what);
}

static int get_shape(const struct entry *e, const json_t *v, struct st_tensor *t)
{
    if (!json_is_array(v)) return bad(e, "\"shape\" is missing or not a list");
    if (json_array_size(v) > RANK_MAX) return bad(e, "has more than 8 dimensions");
    t->rank = (int32_t)json_array_size(v);
    t->count = 1;
    for (int32_t i = 0; i < t->rank; i++) {
        if (!get_size(json_array_get(v, (size_t)i), &t->dim[i]))
            return bad(e, "\"shape\" must hold whole numbers from 0 on");
        if (!mul_ok(t->count, t->dim[i], &t->count))
            return bad(e, "the product of its shape overflows");
    }
    return 0;
}

/* `data`: offset of the data section; `size`: of the file. */
static int get_range(const struct entry *e, const json_t *v, struct st_tensor *t, int64_t data,
                     int64_t size, int bits)
{
    int64_t begin, end, need;
    if (!json_is_array(v) || json_array_size(v) != 2 || !get_size(json_array_get(v, 0), &begin) ||
        !get_size(json_array_get(v, 1), &end))
        return bad(e, "\"data_offsets\" is missing or not two whole numbers");
    if (begin > end) return bad(e, "\"data_offsets\" ends before it begins");
    if (end > size - data) return bad(e, "\"data_offsets\" goes beyond the end of the file");
    if (!mul_ok(t->count, bits, &need)) return bad(e, "its size in bytes overflows");
    if (need % 8) return bad(e, "does not fill whole bytes");
    if (need / 8 != end - begin) return bad(e, "shape and dtype do not give the size of its data");
    t->begin = data + begin;
    t->end = data + end;
    return 0;
}

static int get_tensor(const struct entry *e, json_t *v, struct st_tensor *t, int64_t data,
                      int64_t size)
{
    const char *key;
    json_t *unused;
    int bits = 0;
    if (!json_is_object(v)) return bad(e, "its entry is not an object");
    json_object_foreach(v, key, unused)
    {
        if (strcmp(key, "dtype") != 0 && strcmp(key, "shape") != 0 &&
            strcmp(key, "data_offsets") != 0)
            return bad(e, "has a field that is not dtype, shape or data_offsets");
    }
    TRY(get_dtype(e, json_object_get(v, "dtype"), t, &bits));
    TRY(get_shape(e, json_object_get(v, "shape"), t));
    TRY(get_range(e, json_object_get(v, "data_offsets"), t, data, size, bits));
    return mem_strdup(&t->name, e->name);
}

static int check_metadata(const char *path, json_t *v)
{
    const char *key;
    json_t *text;
    if (!json_is_object(v)) return err_at(ERR_INPUT, path, 0, 0, "__metadata__ is not an object");
    json_object_foreach(v, key, text)
    {
        if (!json_is_string(text))
            return err_at(ERR_INPUT, path, 0, 0, "__metadata__ must hold strings only");
    }
    return 0;
}

static int by_range(const void *a, const void *b)
{
    const struct st_tensor *x = a, *y = b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    return (x->end > y->end) - (x->end < y->end);
}

static int by_name(const void *a, const void *b)
{
    const struct st_tensor *x = a, *y = b;
    return strcmp(x->name, y->name);
}

/* The ranges of one file's tensors tile its data section. */
static int check_tiles(const char *path, struct st_tensor *t, int64_t n, int64_t data, int64_t size)
{
    qsort(t, (size_t)n, sizeof *t, by_range);
    int64_t at = data;
    for (int64_t i = 0; i < n; i++) {
        const struct entry e = { path, t[i].name };
        if (t[i].begin > at) return bad(&e, "a hole lies before its data");
        if (t[i].begin < at) return bad(&e, "its data overlaps another tensor's");
        at = t[i].end;
    }
    if (at != size)
        return err_at(ERR_INPUT, path, 0, 0, "%lld bytes after the last tensor's data",
                      (long long)(size - at));
    return 0;
}

/* All tensors of a parsed header, added to s. */
static int take_header(struct st_set *s, json_t *root, int64_t data, int64_t size)
{
    const int32_t file = s->n_files - 1;
    const char *path = s->files[file], *name;
    const int64_t first = s->n;
    json_t *v;
    if (!json_is_object(root)) return err_at(ERR_INPUT, path, 0, 0, "the header is not an object");
    struct st_tensor *grown = realloc(
        s->tensors, (size_t)(s->n + (int64_t)json_object_size(root) + 1) * sizeof *s->tensors);
    if (!grown) return err_set(ERR_OOM, "out of memory for the tensors of %s", path);
    s->tensors = grown;
    json_object_foreach(root, name, v)
    {
        if (strcmp(name, "__metadata__") == 0) {
            TRY(check_metadata(path, v));
            continue;
        }
        struct st_tensor *t = &s->tensors[s->n];
        const struct entry e = { path, name };
        memset(t, 0, sizeof *t);
        t->file = file;
        TRY(get_tensor(&e, v, t, data, size));
        s->n++;
    }
    return check_tiles(path, s->tensors + first, s->n - first, data, size);
}

static int read_at(int fd, const char *path, int64_t at, void *out, int64_t len)
{
    char *p = out;
    while (len > 0) {
        const ssize_t n = pread(fd, p, (size_t)MIN(len, (int64_t)1 << 30), at);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return err_at(ERR_IO, path, 0, 0, "cannot read: %s", strerror(errno));
        if (n == 0) return err_at(ERR_INPUT, path, 0, 0, "shrank while it was read");
        p += n;
        at += n;
        len -= n;
    }
    return 0;
}

static int read_header(struct st_set *s, int fd, int64_t size)
{
    const char *path = s->files[s->n_files - 1];
    struct json_doc doc = { 0 };
    uint8_t head[8];
    uint64_t len = 0;
    char *text, *name;
    if (size < 8) return err_at(ERR_INPUT, path, 0, 0, "is too short for a safetensors file");
    TRY(read_at(fd, path, 0, head, 8));
    for (int i = 0; i < 8; i++)
        len |= (uint64_t)head[i] << (8 * i);
    if (len > HEADER_MAX)
        return err_at(ERR_INPUT, path, 0, 0,
                      "a header of %llu bytes is over the limit of %d; is it a safetensors file?",
                      (unsigned long long)len, HEADER_MAX);
    if ((int64_t)len > size - 8)
        return err_at(ERR_INPUT, path, 0, 0,
                      "the header goes beyond the end: the file is truncated");
    TRY(MEM_NEW(&text, (int64_t)len + 1));
    int rc = read_at(fd, path, 8, text, (int64_t)len);
    if (rc == 0 && text[0] != '{')
        rc = err_at(ERR_INPUT, path, 0, 0, "the header does not start with \"{\"");
    if (rc == 0) rc = mem_asprintf(&name, "%s (header)", path);
    if (rc < 0) {
        free(text);
        return rc;
    }
    rc = json_doc_take(&doc, name, text, (size_t)len);
    free(name);
    if (rc == 0) rc = take_header(s, doc.root, 8 + (int64_t)len, size);
    json_doc_release(&doc);
    return rc;
}

/* Open one more file of the set, read and check its header. */
static int add_file(struct st_set *s, const char *path)
{
    int64_t size;
    char **files = realloc(s->files, (size_t)(s->n_files + 1) * sizeof *files);
    if (files) s->files = files;
    int *fds = realloc(s->fds, (size_t)(s->n_files + 1) * sizeof *fds);
    if (fds) s->fds = fds;
    if (!files || !fds) return err_set(ERR_OOM, "out of memory for the name of %s", path);
    TRY(mem_strdup(&s->files[s->n_files], path));
    s->fds[s->n_files++] = -1;
    TRY(file_open(&s->fds[s->n_files - 1], &size, path));
    return read_header(s, s->fds[s->n_files - 1], size);
}

/* Sort by name; a name in two files is refused. */
static int finish(struct st_set *s)
{
    if (s->n) qsort(s->tensors, (size_t)s->n, sizeof *s->tensors, by_name);
    for (int64_t i = 1; i < s->n; i++) {
        const struct entry e = { s->files[s->tensors[i].file], s->tensors[i].name };
        if (strcmp(s->tensors[i - 1].name, e.name) == 0) return bad(&e, "is in two files");
    }
    return 0;
}

int st_open_file(struct st_set *s, const char *path)
{
    memset(s, 0, sizeof *s);
    int rc = add_file(s, path);
    if (rc == 0) rc = finish(s);
    if (rc < 0) st_close(s);
    return rc;
}

/* the index ----------------------------------------------------------------------------------- */

static int32_t find_file(const struct st_set *s, const char *shard)
{
    for (int32_t i = 0; i < s->n_files; i++)
        if (strcmp(path_base(s->files[i]), shard) == 0) return i;
    return -1;
}

static int index_err(const struct json_doc *d, const char *name, const char *what)
{
    char *pointer;
    TRY(json_pointer_join(&pointer, "/weight_map", name));
    const int rc = json_err(ERR_INPUT, d, pointer, "%s", what);
    free(pointer);
    return rc;
}

static int open_shards(struct st_set *s, const struct json_doc *d, json_t *map, const char *dir)
{
    const char *name;
    json_t *v;
    json_object_foreach(map, name, v)
    {
        const char *shard = json_string_value(v);
        char *path;
        if (!shard) return index_err(d, name, "must be the name of a file");
        if (!*shard || shard[0] == '.' || strchr(shard, '/') || strchr(shard, '\\'))
            return index_err(d, name, "must be a plain file name in the same directory");
        if (find_file(s, shard) >= 0) continue;
        if (s->n_files >= 1000) return index_err(d, name, "more than 1000 files");
        TRY(path_join(&path, dir, shard));
        const int rc = add_file(s, path);
        free(path);
        TRY(rc);
    }
    return 0;
}

static int check_index(const struct st_set *s, const struct json_doc *d, json_t *map)
{
    const char *name;
    json_t *v;
    json_object_foreach(map, name, v)
    {
        const struct st_tensor *t = st_find(s, name);
        const char *shard = json_string_value(v);
        if (!t || strcmp(path_base(s->files[t->file]), shard) != 0)
            return index_err(d, name, "the file that the index names does not hold this tensor");
    }
    return 0;
}

static int open_index(struct st_set *s, const char *path, const char *dir)
{
    struct json_doc d;
    int rc = 0;
    TRY(json_doc_read(&d, path));
    json_t *map = json_object_get(d.root, "weight_map");
    if (!json_is_object(map) || json_object_size(map) == 0) {
        rc = json_err(ERR_INPUT, &d, "/weight_map",
                      "\"weight_map\" is missing, empty or not an object");
        goto out;
    }
    TRY_OUT(open_shards(s, &d, map, dir));
    TRY_OUT(finish(s));
    TRY_OUT(check_index(s, &d, map));
out:
    json_doc_release(&d);
    return rc;
}

int st_open_dir(struct st_set *s, const char *dir)
{
    char *one = NULL, *index = NULL, *pickle = NULL;
    int rc = 0;
    memset(s, 0, sizeof *s);
    TRY_OUT(path_join(&one, dir, "model.safetensors"));
    TRY_OUT(path_join(&index, dir, "model.safetensors.index.json"));
    TRY_OUT(path_join(&pickle, dir, "pytorch_model.bin"));
    if (access(one, F_OK) == 0) {
        TRY_OUT(add_file(s, one));
        TRY_OUT(finish(s));
    } else if (access(index, F_OK) == 0) {
        TRY_OUT(open_index(s, index, dir));
    } else if (!dir_exists(dir)) {
        rc = err_at(ERR_INPUT, dir, 0, 0, "no such directory");
    } else {
        rc = err_at(ERR_INPUT, dir, 0, 0,
                    "holds no model.safetensors and no model.safetensors.index.json%s",
                    access(pickle, F_OK) == 0
                        ? "; .bin files can run code and are never read: convert to safetensors"
                        : "");
    }
out:
    free(one);
    free(index);
    free(pickle);
    if (rc < 0) st_close(s);
    return rc;
}

void st_close(struct st_set *s)
{
    for (int64_t i = 0; i < s->n; i++)
        free(s->tensors[i].name);
    for (int32_t i = 0; i < s->n_files; i++) {
        if (s->fds[i] >= 0) close(s->fds[i]);
        free(s->files[i]);
    }
    free(s->tensors);
    free(s->files);
    free(s->fds);
    memset(s, 0, sizeof *s);
}

const struct st_tensor *st_find(const struct st_set *s, const char *name)
{
    int64_t lo = 0, hi = s->n;
    while (lo < hi) {
        const int64_t mid = lo + (hi - lo) / 2;
        const int c = strcmp(name, s->tensors[mid].name);
        if (c == 0) return &s->tensors[mid];
        if (c < 0)
            hi = mid;
        else
            lo = mid + 1;
    }
    return NULL;
}

/* data ---------------------------------------------------------------------------------------- */

int st_read_raw(const struct st_set *s, const struct st_tensor *t, int64_t first, int64_t n,
                void *out)
{
    BUG_IF(first < 0 || n < 0 || first > t->end - t->begin || n > t->end - t->begin - first);
    return read_at(s->fds[t->file], s->files[t->file], t->begin + first, out, n);
}

int st_read_f32(const struct st_set *s, const struct st_tensor *t, int64_t first, int64_t n,
                float *out)
{
    char piece[CHUNK_BYTES];
    const struct entry e = { s->files[t->file], t->name };
    const int64_t size = st_dtype_size(t->dtype);
    BUG_IF(first < 0 || n < 0 || first > t->count || n > t->count - first);
    if (t->dtype == ST_F32) return st_read_raw(s, t, first * 4, n * 4, out);
    if (t->dtype != ST_F16 && t->dtype != ST_BF16 && t->dtype != ST_F64)
        return bad(&e, "is not F32, F16, BF16 or F64");
    while (n > 0) {
        const int64_t k = MIN(n, CHUNK_BYTES / size);
        TRY(st_read_raw(s, t, first * size, k * size, piece));
        st_to_f32(out, piece, k, t->dtype);
        out += k;
        first += k;
        n -= k;
    }
    return 0;
}
