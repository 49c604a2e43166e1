/* SPDX-License-Identifier: MIT */
#include "data_cache.h"
#include "../io/file.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

static const char MAGIC[8] = "bdpotok1";
static const double LOCK_SECONDS = 10;
enum { PIECE = 1 << 20 };

struct header {
    char magic[8];
    uint8_t key[32];
    int64_t n_files, n_ids, n_examples, n_drops, n_skipped;
    struct data_stats stats;
    char digest[64];
};
_Static_assert(sizeof(struct header) == 144 + sizeof(struct data_stats), "no padding in it");
_Static_assert(sizeof(struct example) == 32 && sizeof(struct data_drop) == 16, "nor in these");

/* --- keys -------------------------------------------------------------------------------------------------------- */

/* SHA-256 of a file's own bytes. */
static int digest_file(uint8_t digest[32], const char *path)
{
    struct sha256 s;
    uint8_t *piece = NULL;
    int64_t size;
    size_t got;
    int fd, rc = 0;
    TRY(file_open(&fd, &size, path));
    sha256_init(&s);
    TRY_OUT(MEM_NEW(&piece, PIECE));
    do {
        TRY_OUT(file_read_some(fd, path, piece, PIECE, &got));
        sha256_add(&s, piece, got);
    } while (got);
    sha256_end(&s, digest);
out:
    free(piece);
    close(fd);
    return rc;
}

static int make_identity(struct buf *b, const struct row_rules *q, char *const *paths, int32_t n)
{
    const struct data_opts *o = q->opts;
    TRY(buf_addf(b, "bdpo tokens %d\n%d %lld %lld %d %d %lld %d\n", TOKENS_VERSION, (int)q->kind,
                 (long long)o->max_length, (long long)o->max_prompt_length, o->string_prompts_user,
                 (int)o->specials, (long long)o->max_line_bytes, o->vocab_size));
    TRY(tokenizer_identity(q->tok, b));
    TRY(template_identity(q->tmpl, b));
    for (int32_t i = 0; i < n; i++)
        TRY(buf_addf(b, "file %d\n", lines_kind(paths[i])));
    return 0;
}

static int make_key(struct data_cache *c, uint8_t (*file)[32], int32_t n)
{
    struct sha256 s;
    char hex[33];
    sha256_init(&s);
    sha256_add(&s, c->identity.data, c->identity.len);
    sha256_add(&s, file, (size_t)n * sizeof *file);
    sha256_end(&s, c->key);
    for (int i = 0; i < 16; i++)
        snprintf(hex + 2 * i, 3, "%02x", c->key[i]);
    free(c->path);
    c->path = NULL;
    return mem_asprintf(&c->path, "%s/tokens-%s.bin", c->dir, hex);
}

int data_cache_open(struct data_cache *c, const struct row_rules *q, char *const *paths, int32_t n)
{
    uint8_t(*file)[32] = NULL;
    int rc = 0;
    memset(c, 0, sizeof *c);
    if (!q->opts->cache_dir || q->opts->notes) return 0;
    TRY_OUT(MEM_NEW(&file, n));
    for (int32_t i = 0; i < n; i++) {
        rc = digest_file(file[i], paths[i]);
        if (rc == ERR_INPUT || rc == ERR_IO) {
            rc = 0;
            goto out;
        }
        if (rc < 0) goto out;
    }
    c->dir = q->opts->cache_dir;
    c->writes = q->opts->cache_write;
    TRY_OUT(make_identity(&c->identity, q, paths, n));
    TRY_OUT(make_key(c, file, n));
out:
    free(file);
    return rc;
}

void data_cache_close(struct data_cache *c)
{
    free(c->path);
    buf_release(&c->identity);
    memset(c, 0, sizeof *c);
}

/* --- reading ----------------------------------------------------------------------------------------------------- */

struct in { /* a file that is read from its start to its end */
    int fd;
    const char *path;
    uint32_t crc;
};

/* Exactly len bytes; ERR_INPUT where the file is shorter. */
static int take(struct in *f, void *out, int64_t len)
{
    char *p = out;
    while (len > 0) {
        size_t got;
        TRY(file_read_some(f->fd, f->path, p, (size_t)MIN(len, (int64_t)PIECE), &got));
        if (got == 0) return err_set(ERR_INPUT, "it is cut off");
        f->crc = (uint32_t)crc32_z(f->crc, (const uint8_t *)p, got); /* while it is in the cache */
        p += got;
        len -= (int64_t)got;
    }
    return 0;
}

/* The size of a file with this header; false: none has it. */
static bool size_of(const struct header *h, int64_t *bytes)
{
    const int64_t part[][2] = { { h->n_files, FORM_KINDS * 8 },
                                { h->n_drops, (int64_t)sizeof(struct data_drop) },
                                { h->n_skipped, 1 },
                                { h->n_examples, (int64_t)sizeof(struct example) },
                                { h->n_ids, 4 } };
    *bytes = (int64_t)sizeof *h + 4;
    for (size_t i = 0; i < COUNT_OF(part); i++) {
        int64_t n;
        if (part[i][0] < 0 || !mul_ok(part[i][0], part[i][1], &n) || !add_ok(*bytes, n, bytes))
            return false;
    }
    return true;
}

static int check_header(const struct data_cache *c, const struct header *h, int64_t size,
                        int32_t n_files)
{
    int64_t bytes;
    if (memcmp(h->magic, MAGIC, sizeof MAGIC) != 0)
        return err_set(ERR_INPUT, "it is of another program");
    if (memcmp(h->key, c->key, sizeof c->key) != 0 || h->n_files != n_files ||
        h->n_drops > DATA_DROPS_MAX || h->n_examples < 1 || !size_of(h, &bytes))
        return err_set(ERR_INPUT, "its header is damaged");
    return size == bytes ? 0 : err_set(ERR_INPUT, "its size is wrong");
}

static int take_parts(struct in *f, const struct header *h, struct dataset *d)
{
    uint32_t crc;
    TRY(MEM_NEW(&d->forms, h->n_files));
    TRY(take(f, d->forms, h->n_files * (int64_t)sizeof *d->forms));
    TRY(take(f, d->drops, h->n_drops * (int64_t)sizeof *d->drops));
    d->n_drops = (int32_t)h->n_drops;
    d->skipped.cap = (size_t)h->n_skipped + 1;
    TRY(MEM_NEW(&d->skipped.data, (int64_t)d->skipped.cap));
    TRY(take(f, d->skipped.data, h->n_skipped));
    d->skipped.len = (size_t)h->n_skipped;
    TRY(MEM_NEW(&d->ex, h->n_examples));
    TRY(take(f, d->ex, h->n_examples * (int64_t)sizeof *d->ex));
    d->n = h->n_examples;
    TRY(MEM_NEW(&d->ids, h->n_ids));
    TRY(take(f, d->ids, h->n_ids * (int64_t)sizeof *d->ids));
    d->n_ids = h->n_ids;
    const uint32_t want = f->crc;
    TRY(take(f, &crc, sizeof crc));
    return crc == want ? 0 : err_set(ERR_INPUT, "its checksum is wrong");
}

static int read_cache(const struct data_cache *c, struct in *f, int64_t size, struct dataset *d,
                      char *const *paths, int32_t n_paths)
{
    struct header h;
    TRY(take(f, &h, sizeof h));
    TRY(check_header(c, &h, size, n_paths));
    TRY(MEM_NEW(&d->files, n_paths));
    for (; d->n_files < n_paths; d->n_files++)
        TRY(mem_strdup(&d->files[d->n_files], paths[d->n_files]));
    TRY(take_parts(f, &h, d));
    d->stats = h.stats;
    memcpy(d->digest, h.digest, sizeof h.digest);
    return 0;
}

/* Would the run be refused for its malformed rows? The files are read then, which says which. */
static bool refused(const struct dataset *d, const struct data_opts *o)
{
    return d->stats.bad > 0 && (!o->skip_bad_rows || d->stats.bad > o->max_bad_rows);
}

/* Wait for the writers' lock of the directory; *held: it is ours until the result, -1 or a file, is closed. */
static int lock_dir(const struct data_cache *c, bool *held)
{
    const int fd = open(c->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    *held = fd >= 0 && file_lock_wait(fd, LOCK_SECONDS) == FILE_LOCK_HELD;
    return fd;
}

/* Who has just written the file may still wait for its disk. A rank that went on at once would wait for that one with less patience. */
static void wait_for_writer(const struct data_cache *c)
{
    bool held;
    const int fd = lock_dir(c, &held);
    if (fd >= 0) close(fd);
}

int data_cache_find(const struct data_cache *c, struct dataset *d, char *const *paths,
                    int32_t n_paths, const struct data_opts *o)
{
    struct in f = { -1, c->path, (uint32_t)crc32_z(0, NULL, 0) };
    int64_t size;
    if (!c->dir || !file_exists(c->path) || file_open(&f.fd, &size, c->path) < 0) return 0;
    const int rc = read_cache(c, &f, size, d, paths, n_paths);
    close(f.fd);
    if (rc == 0 && !refused(d, o)) {
        if (c->writes) wait_for_writer(c);
        return 1;
    }
    dataset_release(d);
    if (rc == ERR_OOM || rc == 0) return rc;
    fprintf(stderr, "warning: token cache %s: %s; %s\n", c->path, err_msg(),
            c->writes ? "it is removed and made anew" : "the files are read instead");
    if (c->writes) unlink(c->path);
    return 0;
}

/* --- writing ----------------------------------------------------------------------------------------------------- */

static int put_parts(struct file_out *f, const struct header *h, const struct dataset *d)
{
    TRY(file_put(f, h, sizeof *h));
    TRY(file_put(f, d->forms, (size_t)d->n_files * sizeof *d->forms));
    TRY(file_put(f, d->drops, (size_t)d->n_drops * sizeof *d->drops));
    TRY(file_put(f, d->skipped.data, d->skipped.len));
    TRY(file_put(f, d->ex, (size_t)d->n * sizeof *d->ex));
    TRY(file_put(f, d->ids, (size_t)d->n_ids * sizeof *d->ids));
    const uint32_t crc = f->crc;
    return file_put(f, &crc, sizeof crc);
}

/* Checkpoints need the disk more than this does. */
static int check_room(const char *dir, int64_t bytes)
{
    const int64_t room = disk_free(dir);
    char need[32], have[32];
    if (room < 0 || bytes <= room / 2) return 0;
    return err_set(ERR_IO, "%s: it would take %s of the %s that are free", dir,
                   bytes_human(need, bytes), bytes_human(have, room));
}

static int write_cache(const struct data_cache *c, const struct dataset *d)
{
    struct file_out f = { .fd = -1 };
    struct header h = { .n_files = d->n_files,
                        .n_ids = d->n_ids,
                        .n_examples = d->n,
                        .n_drops = d->n_drops,
                        .n_skipped = (int64_t)d->skipped.len,
                        .stats = d->stats };
    int64_t bytes;
    int rc = 0;
    memcpy(h.magic, MAGIC, sizeof MAGIC);
    memcpy(h.key, c->key, sizeof c->key);
    memcpy(h.digest, d->digest, sizeof h.digest);
    BUG_IF(!size_of(&h, &bytes));
    TRY(check_room(c->dir, bytes));
    TRY_OUT(file_create(&f, c->path));
    TRY_OUT(file_reserve(&f, bytes));
    TRY_OUT(put_parts(&f, &h, d));
    TRY_OUT(file_commit(&f));
out:
    file_abandon(&f);
    return rc;
}

/* One process at a time: the others find the file there when their turn comes. Without a lock each writes its own, and the last one's
 * stays, which is the same. */
static int store(const struct data_cache *c, const struct dataset *d)
{
    bool held;
    int rc = 0;
    TRY(dir_make(c->dir));
    const int fd = lock_dir(c, &held);
    if (!held || !file_exists(c->path)) {
        if (held) rc = dir_sweep(c->dir, "tokens-*.bin.tmp-*"); /* of killed processes */
        if (rc == 0) rc = write_cache(c, d);
    }
    if (fd >= 0) close(fd);
    return rc;
}

int data_cache_store(struct data_cache *c, const struct dataset *d, uint8_t (*file)[32])
{
    if (!c->dir || !c->writes) return 0;
    /* the key of what was read, in case a file was another one a moment before */
    TRY(make_key(c, file, d->n_files));
    const int rc = store(c, d);
    if (rc == ERR_OOM) return rc;
    if (rc < 0) fprintf(stderr, "warning: token cache: %s; the tokens are not kept\n", err_msg());
    return 0;
}
