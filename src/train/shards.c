/* SPDX-License-Identifier: MIT */
#include "shards.h"
#include "../io/file.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { FORMAT = 2, PIECE = 1 << 18, RANGE_BYTES = 16 };
static const char MAGIC[8] = "BDPOSHRD";

const char *shard_name(char out[32], int32_t rank, int32_t ranks)
{
    snprintf(out, 32, "state-%05d-of-%05d.bin", rank, ranks);
    return out;
}

int64_t shard_bytes(int64_t ranges, int64_t held)
{
    return SHARD_HEADER + ranges * RANGE_BYTES + STATE_PARTS * held * (int64_t)sizeof(float);
}

static void put_le(uint8_t *p, uint64_t v, int bytes)
{
    for (int i = 0; i < bytes; i++)
        p[i] = (uint8_t)(v >> (8 * i));
}

static int64_t get_le(const uint8_t *p)
{
    uint64_t v = 0;
    for (int i = 7; i >= 0; i--)
        v = v << 8 | p[i];
    return v > INT64_MAX ? -1 : (int64_t)v;
}

static void make_header(uint8_t h[SHARD_HEADER], const struct shard *s, int64_t elements,
                        int64_t ranges)
{
    memset(h, 0, SHARD_HEADER);
    memcpy(h, MAGIC, sizeof MAGIC);
    put_le(h + 8, FORMAT, 4);
    put_le(h + 12, STATE_PARTS, 4);
    put_le(h + 16, (uint64_t)s->rank, 4);
    put_le(h + 20, (uint64_t)s->ranks, 4);
    put_le(h + 24, (uint64_t)elements, 8);
    put_le(h + 32, (uint64_t)ranges, 8);
    put_le(h + 40, (uint64_t)s->held, 8);
}

static int put_parts(struct file_out *f, const struct shard_range *range, int64_t n_ranges,
                     shard_get_fn *get, void *payload, float *piece)
{
    for (int part = 0; part < STATE_PARTS; part++)
        for (int64_t i = 0; i < n_ranges; i++)
            for (int64_t at = range[i].begin; at < range[i].end; at += PIECE) {
                const int64_t n = MIN((int64_t)PIECE, range[i].end - at);
                TRY(get(payload, (enum state_part)part, at, n, piece));
                TRY(file_put(f, piece, (size_t)n * sizeof *piece));
            }
    return 0;
}

int shard_write(struct shard *s, const char *dir, int64_t elements, const struct shard_range *range,
                int64_t n, shard_get_fn *get, void *payload)
{
    struct file_out f = { .fd = -1 };
    uint8_t header[SHARD_HEADER], row[RANGE_BYTES];
    char name[32], *path = NULL;
    float *piece = NULL;
    int rc;
    s->held = 0;
    for (int64_t i = 0; i < n; i++)
        s->held += range[i].end - range[i].begin;
    TRY_OUT(path_join(&path, dir, shard_name(name, s->rank, s->ranks)));
    TRY_OUT(MEM_NEW(&piece, PIECE));
    TRY_OUT(file_create(&f, path));
    TRY_OUT(file_reserve(&f, shard_bytes(n, s->held)));
    make_header(header, s, elements, n);
    TRY_OUT(file_put(&f, header, sizeof header));
    for (int64_t i = 0; i < n; i++) {
        put_le(row, (uint64_t)range[i].begin, 8);
        put_le(row + 8, (uint64_t)range[i].end, 8);
        TRY_OUT(file_put(&f, row, sizeof row));
    }
    TRY_OUT(put_parts(&f, range, n, get, payload, piece));
    BUG_IF(f.bytes != shard_bytes(n, s->held));
    s->bytes = f.bytes;
    s->crc = f.crc;
    TRY_OUT(file_commit(&f));
out:
    file_abandon(&f);
    free(piece);
    free(path);
    return rc;
}

static int by_begin(const void *a, const void *b)
{
    const struct shard_piece *x = a, *y = b;
    return x->range.begin < y->range.begin ? -1 : x->range.begin > y->range.begin;
}

/* The ranges of all files follow each other from 0 to the end. */
static int check_ranges(const struct shard_set *s, const char *dir)
{
    int64_t at = 0;
    for (int64_t i = 0; i < s->n_pieces; i++) {
        const struct shard_piece *p = &s->pieces[i];
        if (p->range.begin != at || p->range.end <= at || p->range.end > s->elements)
            return err_set(ERR_CHECKPOINT,
                           "%s: holds elements %lld to %lld of %lld, after those up to %lld",
                           s->files[p->file].path, (long long)p->range.begin,
                           (long long)p->range.end, (long long)s->elements, (long long)at);
        at = p->range.end;
    }
    return at == s->elements ? 0
                             : err_set(ERR_CHECKPOINT, "%s: elements %lld to %lld are in no file",
                                       dir, (long long)at, (long long)s->elements);
}

static int read_at(int fd, const char *path, void *out, int64_t at, int64_t bytes)
{
    char *p = out;
    while (bytes > 0) {
        const ssize_t n = pread(fd, p, (size_t)MIN(bytes, (int64_t)1 << 30), at);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0)
            return err_set(ERR_CHECKPOINT, "%s: cannot read %lld bytes at %lld: %s", path,
                           (long long)bytes, (long long)at, n < 0 ? strerror(errno) : "the end");
        p += n;
        at += n;
        bytes -= n;
    }
    return 0;
}

/* Path, size and header of one file. */
static int open_file(struct shard_file *f, const char *dir, int64_t elements)
{
    uint8_t want[SHARD_HEADER], got[SHARD_HEADER];
    char name[32];
    int64_t size;
    TRY(path_join(&f->path, dir, shard_name(name, f->s.rank, f->s.ranks)));
    if (file_open(&f->fd, &size, f->path) < 0) return ERR_CHECKPOINT;
    if (size != f->s.bytes)
        return err_set(ERR_CHECKPOINT, "%s: has %lld bytes, the manifest says %lld", f->path,
                       (long long)size, (long long)f->s.bytes);
    TRY(read_at(f->fd, f->path, got, 0, sizeof got));
    f->ranges = get_le(got + 32);
    make_header(want, &f->s, elements, f->ranges);
    if (memcmp(got, want, sizeof got) != 0 || f->ranges < 0 || f->ranges > size / RANGE_BYTES ||
        f->s.held > size / (int64_t)sizeof(float) || size != shard_bytes(f->ranges, f->s.held))
        return err_set(ERR_CHECKPOINT, "%s: its header is not what the manifest says", f->path);
    return 0;
}

/* The ranges of file i, added to the pieces. */
static int read_table(struct shard_set *s, int32_t i, int64_t *cap)
{
    struct shard_file *f = &s->files[i];
    uint8_t *table;
    int64_t at = 0;
    TRY(MEM_NEW(&table, f->ranges * RANGE_BYTES));
    int rc = read_at(f->fd, f->path, table, SHARD_HEADER, f->ranges * RANGE_BYTES);
    if (rc == 0) rc = MEM_GROW(&s->pieces, cap, s->n_pieces + f->ranges);
    for (int64_t k = 0; rc == 0 && k < f->ranges; k++) {
        const struct shard_range r = { get_le(table + k * RANGE_BYTES),
                                       get_le(table + k * RANGE_BYTES + 8) };
        if (r.begin < 0 || r.end <= r.begin || r.end - r.begin > f->s.held - at)
            rc = err_set(ERR_CHECKPOINT, "%s: its ranges make no sense", f->path);
        s->pieces[s->n_pieces++] = (struct shard_piece){ r, i, at };
        at += r.end - r.begin;
    }
    if (rc == 0 && at != f->s.held)
        rc = err_set(ERR_CHECKPOINT, "%s: its ranges are not all of it", f->path);
    free(table);
    return rc;
}

int shard_set_open(struct shard_set *s, const char *dir, const struct shard *shards, int32_t n,
                   int64_t elements)
{
    int64_t cap = 0;
    memset(s, 0, sizeof *s);
    s->elements = elements;
    TRY(MEM_NEW(&s->files, n));
    for (s->n = 0; s->n < n; s->n++)
        s->files[s->n] = (struct shard_file){ .s = shards[s->n], .fd = -1 };
    for (int32_t i = 0; i < n; i++) {
        TRY(open_file(&s->files[i], dir, elements));
        TRY(read_table(s, i, &cap));
    }
    if (s->n_pieces) qsort(s->pieces, (size_t)s->n_pieces, sizeof *s->pieces, by_begin);
    return check_ranges(s, dir);
}

/* The piece that holds element `at`. */
static int64_t find_piece(const struct shard_set *s, int64_t at)
{
    int64_t lo = 0, hi = s->n_pieces;
    while (hi - lo > 1) {
        const int64_t mid = (lo + hi) / 2;
        if (s->pieces[mid].range.begin <= at)
            lo = mid;
        else
            hi = mid;
    }
    return lo;
}

int shard_set_read(const struct shard_set *s, enum state_part part, int64_t begin, int64_t end,
                   shard_put_fn *put, void *payload)
{
    float *hold = NULL;
    int rc;
    BUG_IF(begin < 0 || begin > end || end > s->elements);
    TRY_OUT(MEM_NEW(&hold, PIECE));
    for (int64_t at = begin, i = find_piece(s, begin); at < end;) {
        const struct shard_piece *p = &s->pieces[i];
        const struct shard_file *f = &s->files[p->file];
        const int64_t n = MIN(MIN((int64_t)PIECE, end - at), p->range.end - at);
        const int64_t element = part * f->s.held + p->at + at - p->range.begin;
        TRY_OUT(read_at(f->fd, f->path, hold,
                        SHARD_HEADER + f->ranges * RANGE_BYTES + element * (int64_t)sizeof *hold,
                        n * (int64_t)sizeof *hold));
        TRY_OUT(put(payload, part, at, n, hold));
        at += n;
        i += at == p->range.end;
    }
out:
    free(hold);
    return rc;
}

void shard_set_close(struct shard_set *s)
{
    for (int32_t i = 0; i < s->n; i++) {
        if (s->files[i].fd >= 0) close(s->files[i].fd);
        free(s->files[i].path);
    }
    free(s->files);
    free(s->pieces);
    memset(s, 0, sizeof *s);
}
