/* SPDX-License-Identifier: MIT */
#include "shards.h"
#include "../io/file.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { FORMAT = 1, PIECE = 1 << 18 };
static const char MAGIC[8] = "BDPOSHRD";

const char *shard_name(char out[32], int32_t rank, int32_t ranks)
{
    snprintf(out, 32, "state-%05d-of-%05d.bin", rank, ranks);
    return out;
}

int64_t shard_bytes(int64_t n)
{
    return SHARD_HEADER + STATE_PARTS * n * (int64_t)sizeof(float);
}

static void put_le(uint8_t *p, uint64_t v, int bytes)
{
    for (int i = 0; i < bytes; i++)
        p[i] = (uint8_t)(v >> (8 * i));
}

static void make_header(uint8_t h[SHARD_HEADER], const struct shard *s, int64_t elements)
{
    memset(h, 0, SHARD_HEADER);
    memcpy(h, MAGIC, sizeof MAGIC);
    put_le(h + 8, FORMAT, 4);
    put_le(h + 12, STATE_PARTS, 4);
    put_le(h + 16, (uint64_t)s->rank, 4);
    put_le(h + 20, (uint64_t)s->ranks, 4);
    put_le(h + 24, (uint64_t)elements, 8);
    put_le(h + 32, (uint64_t)s->begin, 8);
    put_le(h + 40, (uint64_t)s->end, 8);
}

static int put_parts(struct file_out *f, const struct shard *s, shard_get_fn *get, void *payload,
                     float *piece)
{
    for (int part = 0; part < STATE_PARTS; part++)
        for (int64_t at = s->begin; at < s->end; at += PIECE) {
            const int64_t n = MIN((int64_t)PIECE, s->end - at);
            TRY(get(payload, (enum state_part)part, at, n, piece));
            TRY(file_put(f, piece, (size_t)n * sizeof *piece));
        }
    return 0;
}

int shard_write(struct shard *s, const char *dir, int64_t elements, shard_get_fn *get,
                void *payload)
{
    struct file_out f = { .fd = -1 };
    uint8_t header[SHARD_HEADER];
    char name[32], *path = NULL;
    float *piece = NULL;
    int rc;
    TRY_OUT(path_join(&path, dir, shard_name(name, s->rank, s->ranks)));
    TRY_OUT(MEM_NEW(&piece, PIECE));
    TRY_OUT(file_create(&f, path));
    TRY_OUT(file_reserve(&f, shard_bytes(s->end - s->begin)));
    make_header(header, s, elements);
    TRY_OUT(file_put(&f, header, sizeof header));
    TRY_OUT(put_parts(&f, s, get, payload, piece));
    BUG_IF(f.bytes != shard_bytes(s->end - s->begin));
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
    const struct shard *x = a, *y = b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    return x->end < y->end ? -1 : x->end > y->end; /* an empty one before its neighbour */
}

/* The ranges follow each other from 0 to the end. */
static int check_ranges(const struct shard_set *s, const char *dir)
{
    int64_t at = 0;
    for (int32_t i = 0; i < s->n; i++) {
        const struct shard *f = &s->shards[i];
        if (f->begin != at || f->end < at || f->end > s->elements)
            return err_set(
                ERR_CHECKPOINT,
                "%s: rank %d holds elements %lld to %lld of %lld, after those up to %lld", dir,
                f->rank, (long long)f->begin, (long long)f->end, (long long)s->elements,
                (long long)at);
        at = f->end;
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

static int open_shard(struct shard_set *s, const char *dir, int32_t i)
{
    const struct shard *f = &s->shards[i];
    uint8_t want[SHARD_HEADER], got[SHARD_HEADER];
    char name[32];
    int64_t size;
    TRY(path_join(&s->paths[i], dir, shard_name(name, f->rank, f->ranks)));
    if (file_open(&s->fds[i], &size, s->paths[i]) < 0) return ERR_CHECKPOINT;
    if (size != f->bytes || size != shard_bytes(f->end - f->begin))
        return err_set(ERR_CHECKPOINT, "%s: has %lld bytes, elements %lld to %lld take %lld",
                       s->paths[i], (long long)size, (long long)f->begin, (long long)f->end,
                       (long long)shard_bytes(f->end - f->begin));
    TRY(read_at(s->fds[i], s->paths[i], got, 0, sizeof got));
    make_header(want, f, s->elements);
    if (memcmp(got, want, sizeof got) != 0)
        return err_set(ERR_CHECKPOINT, "%s: its header is not what the manifest says", s->paths[i]);
    return 0;
}

int shard_set_open(struct shard_set *s, const char *dir, const struct shard *shards, int32_t n,
                   int64_t elements)
{
    memset(s, 0, sizeof *s);
    s->elements = elements;
    TRY(MEM_NEW(&s->shards, n));
    TRY(MEM_NEW(&s->paths, n));
    TRY(MEM_NEW(&s->fds, n));
    for (s->n = 0; s->n < n; s->n++) {
        s->shards[s->n] = shards[s->n];
        s->fds[s->n] = -1;
    }
    qsort(s->shards, (size_t)n, sizeof *s->shards, by_begin);
    TRY(check_ranges(s, dir));
    for (int32_t i = 0; i < n; i++)
        TRY(open_shard(s, dir, i));
    return 0;
}

/* Elements [at, at + n) of one part, n at most PIECE. */
static int read_piece(const struct shard_set *s, enum state_part part, int64_t at, int64_t n,
                      float *out)
{
    for (int32_t i = 0; i < s->n && n > 0; i++) {
        const struct shard *f = &s->shards[i];
        if (at >= f->end) continue;
        const int64_t k = MIN(n, f->end - at), size = f->end - f->begin;
        TRY(read_at(s->fds[i], s->paths[i], out,
                    SHARD_HEADER + (part * size + at - f->begin) * (int64_t)sizeof *out,
                    k * (int64_t)sizeof *out));
        at += k;
        out += k;
        n -= k;
    }
    BUG_IF(n != 0);
    return 0;
}

int shard_set_read(const struct shard_set *s, int64_t begin, int64_t end, shard_put_fn *put,
                   void *payload)
{
    float *piece = NULL;
    int rc;
    BUG_IF(begin < 0 || begin > end || end > s->elements);
    TRY_OUT(MEM_NEW(&piece, PIECE));
    for (int part = 0; part < STATE_PARTS; part++)
        for (int64_t at = begin; at < end; at += PIECE) {
            const int64_t n = MIN((int64_t)PIECE, end - at);
            TRY_OUT(read_piece(s, (enum state_part)part, at, n, piece));
            TRY_OUT(put(payload, (enum state_part)part, at, n, piece));
        }
out:
    free(piece);
    return rc;
}

void shard_set_close(struct shard_set *s)
{
    for (int32_t i = 0; i < s->n; i++) {
        if (s->fds && s->fds[i] >= 0) close(s->fds[i]);
        if (s->paths) free(s->paths[i]);
    }
    free(s->shards);
    free(s->paths);
    free(s->fds);
    memset(s, 0, sizeof *s);
}
