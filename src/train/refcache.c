/* SPDX-License-Identifier: MIT */
#include "refcache.h"
#include "status.h"
#include "../base/rng.h"
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <zlib.h>

enum { HEADER = 64, RECORD = 40, READ_RECORDS = 4096, FLUSH_RECORDS = 4096, OPEN_TRIES = 20 };
static const char MAGIC[8] = "bdporef1", PAIR[4] = "pair";
static const double LOCK_SECONDS = 10, FLUSH_SECONDS = 1;

enum state {
    STORED,  /* in the file */
    PENDING, /* to be appended */
    PRIVATE  /* in memory only */
};
struct entry {
    struct refcache_key key;
    struct refcache_value value;
    enum state state;
};
struct refcache {
    char *path;
    uint8_t digest[32];
    char dtype[8];
    uint64_t generation; /* of the file as it was read; 0: none */
    int64_t offset;      /* the file is read up to here; a whole number of records */
    struct entry *e;     /* [n] */
    int64_t n, cap, pending;
    int64_t *slot; /* [slots] index into e, -1: free; slots is a power of 2 */
    int64_t slots;
    double flushed; /* seconds */
    bool usable;    /* the file can be written */
    bool locked;    /* no other process writes until close_file */
};

static void warn(const struct refcache *c, const char *fmt, ...) PRINTF_LIKE(2, 3);
static void warn(const struct refcache *c, const char *fmt, ...)
{
    char text[512];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    fprintf(stderr, "warning: reference cache %s: %s\n", c->path, text);
}

/* keys ------------------------------------------------------------------------------------------------------------- */

static void add_arch(struct sha256 *s, const struct model *m)
{
    const struct arch *a = &m->arch;
    char text[512];
    const int n = snprintf(
        text, sizeof text,
        "bdpo weights 1 %s %lld %lld %lld %lld %lld %lld %lld %d%d%d%d%d %a %a %d %a %a %a %lld %d",
        a->model_type, (long long)a->C, (long long)a->F, (long long)a->H, (long long)a->K,
        (long long)a->D, (long long)a->V, (long long)a->L, a->qkv_bias, a->o_bias, a->qk_norm,
        a->mlp_bias, a->tied, a->rms_eps, a->rope_theta, a->rope_llama3, a->rope_factor,
        a->rope_low, a->rope_high, (long long)a->rope_original, (int)m->weights.dtype);
    BUG_IF(n < 0 || n >= (int)sizeof text);
    sha256_add(s, text, (size_t)n);
    if (a->nf4) sha256_add(s, " nf4", 4);
    if (a->nf4_double) sha256_add(s, " double", 7);
    if (a->lora.rank == 0) return;
    const int more = snprintf(text, sizeof text, " lora %lld %a %d %x", (long long)a->lora.rank,
                              a->lora.alpha, a->lora.rslora, (unsigned)a->lora.targets);
    sha256_add(s, text, (size_t)more);
}

enum { LEAF = 1 << 20 };

/* The tree's leaves over t, pieces of LEAF bytes, in order. */
static int add_tensor(struct sha256 *root, const struct model *m, const struct tensor *t)
{
    const struct backend *be = m->be;
    const int64_t bytes = tensor_count(t) * dtype_size(t->dtype);
    const int64_t many = MAX(be->threads, 1), room = many * LEAF; /* a piece a thread */
    uint8_t *host = NULL, (*leaf)[32] = NULL;
    int rc = 0;
    if (bytes == 0) return 0;
    TRY_OUT(MEM_NEW(&host, MIN(bytes, room)));
    TRY_OUT(MEM_NEW(&leaf, many));
    for (int64_t at = 0; at < bytes; at += room) {
        const int64_t n = MIN(bytes - at, room), pieces = div_up(n, LEAF);
        TRY_OUT(be->mem->to_host(be->cx, host, (const char *)t->data + at, n));
#pragma omp parallel for num_threads(be->threads) schedule(static, 1)
        for (int64_t i = 0; i < pieces; i++) {
            struct sha256 s;
            sha256_init(&s);
            sha256_add(&s, host + i * LEAF, (size_t)MIN(n - i * LEAF, (int64_t)LEAF));
            sha256_end(&s, leaf[i]);
        }
        sha256_add(root, leaf, (size_t)pieces * sizeof *leaf);
    }
out:
    free(host);
    free(leaf);
    return rc;
}

int refcache_digest(uint8_t digest[32], const struct model *m)
{
    struct sha256 root;
    sha256_init(&root);
    add_arch(&root, m);
    TRY(add_tensor(&root, m, &m->weights));
    if (m->n_quant > 0) {
        TRY(add_tensor(&root, m, &m->quant));
        TRY(add_tensor(&root, m, &m->absmax));
        if (m->n_most > 0) TRY(add_tensor(&root, m, &m->most));
    }
    sha256_end(&root, digest);
    return 0;
}

struct refcache_key refcache_key(const struct dataset *d, int64_t i)
{
    const struct example *e = &d->ex[i];
    const int32_t shape[3] = { e->np, e->nw, e->nl };
    struct refcache_key k;
    struct sha256 s;
    uint8_t digest[32];
    sha256_init(&s);
    sha256_add(&s, shape, sizeof shape);
    sha256_add(&s, d->ids + e->at, (size_t)(e->np + e->nw + e->nl) * sizeof *d->ids);
    sha256_end(&s, digest);
    memcpy(k.b, digest, sizeof k.b);
    return k;
}

/* the table -------------------------------------------------------------------------------------------------------- */

/* The slot of the key, or the free one where it belongs. */
static int64_t slot_of(const struct refcache *c, const struct refcache_key *k)
{
    uint64_t h;
    memcpy(&h, k->b, sizeof h);
    for (uint64_t i = h;; i++) {
        const int64_t s = (int64_t)(i & (uint64_t)(c->slots - 1)), e = c->slot[s];
        if (e < 0 || memcmp(&c->e[e].key, k, sizeof *k) == 0) return s;
    }
}

static int make_slots(struct refcache *c, int64_t slots)
{
    int64_t *slot;
    TRY(MEM_NEW(&slot, slots));
    free(c->slot);
    c->slot = slot;
    c->slots = slots;
    for (int64_t i = 0; i < slots; i++)
        slot[i] = -1;
    for (int64_t i = 0; i < c->n; i++)
        slot[slot_of(c, &c->e[i].key)] = i;
    return 0;
}

static struct entry *find(const struct refcache *c, const struct refcache_key *k)
{
    const int64_t i = c->slot[slot_of(c, k)];
    return i < 0 ? NULL : &c->e[i];
}

static int add(struct refcache *c, const struct entry *e)
{
    TRY(MEM_GROW(&c->e, &c->cap, c->n + 1));
    if (2 * (c->n + 1) > c->slots) TRY(make_slots(c, 2 * c->slots));
    c->slot[slot_of(c, &e->key)] = c->n;
    c->e[c->n++] = *e;
    c->pending += e->state == PENDING;
    return 0;
}

const struct refcache_value *refcache_find(const struct refcache *c, const struct refcache_key *k)
{
    const struct entry *e = find(c, k);
    return e ? &e->value : NULL;
}

int refcache_put(struct refcache *c, const struct refcache_key *k, double w, double l)
{
    const struct entry e = { *k, { w, l }, isfinite(w) && isfinite(l) ? PENDING : PRIVATE };
    return find(c, k) ? 0 : add(c, &e);
}

/* A record of the file: the first one with its key is the value for every run. */
static int take(struct refcache *c, const struct entry *in)
{
    struct entry *e = find(c, &in->key);
    if (!e) return add(c, in);
    if (e->state == STORED) return 0;
    c->pending -= e->state == PENDING;
    *e = *in;
    return 0;
}

/* bytes ------------------------------------------------------------------------------------------------------------ */

static uint32_t crc_of(const uint8_t *p, size_t n)
{
    return (uint32_t)crc32_z(crc32_z(0, NULL, 0), p, n);
}

static void make_record(uint8_t r[RECORD], const struct entry *e)
{
    memcpy(r, e->key.b, 16);
    memcpy(r + 16, &e->value.w, 8);
    memcpy(r + 24, &e->value.l, 8);
    const uint32_t crc = crc_of(r, 32);
    memcpy(r + 32, &crc, 4);
    memcpy(r + 36, PAIR, 4);
}

static bool read_record(struct entry *e, const uint8_t r[RECORD])
{
    uint32_t crc;
    memcpy(e->key.b, r, 16);
    memcpy(&e->value.w, r + 16, 8);
    memcpy(&e->value.l, r + 24, 8);
    memcpy(&crc, r + 32, 4);
    e->state = STORED;
    return memcmp(r + 36, PAIR, 4) == 0 && crc == crc_of(r, 32) && isfinite(e->value.w) &&
           isfinite(e->value.l);
}

static void make_header(const struct refcache *c, uint64_t generation, uint8_t h[HEADER])
{
    const uint32_t version = KERNELS_VERSION;
    memcpy(h, MAGIC, 8);
    memcpy(h + 8, c->digest, 32);
    memcpy(h + 40, c->dtype, 8);
    memcpy(h + 48, &version, 4);
    memcpy(h + 52, &generation, 8);
    const uint32_t crc = crc_of(h, 60);
    memcpy(h + 60, &crc, 4);
}

/* 0: not a header of this cache. */
static uint64_t read_header(const struct refcache *c, const uint8_t h[HEADER])
{
    uint8_t want[HEADER];
    uint64_t generation;
    memcpy(&generation, h + 52, 8);
    make_header(c, generation, want);
    return memcmp(h, want, HEADER) == 0 ? generation : 0;
}

static uint64_t new_generation(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return rng_u64((uint64_t)t.tv_sec, (uint64_t)t.tv_nsec, (uint64_t)getpid()) | 1;
}

/* Bytes read from `at`, fewer only at the end of the file; -1: errno. */
static int64_t read_at(int fd, uint8_t *p, int64_t n, int64_t at)
{
    int64_t done = 0;
    while (done < n) {
        const ssize_t k = pread(fd, p + done, (size_t)(n - done), (off_t)(at + done));
        if (k < 0 && errno == EINTR) continue;
        if (k < 0) return -1;
        if (k == 0) break;
        done += k;
    }
    return done;
}

static bool write_at(int fd, const uint8_t *p, int64_t n, int64_t at)
{
    for (int64_t done = 0; done < n;) {
        const ssize_t k = pwrite(fd, p + done, (size_t)(n - done), (off_t)(at + done));
        if (k < 0 && errno == EINTR) continue;
        if (k == 0) errno = ENOSPC;
        if (k <= 0) return false;
        done += k;
    }
    return true;
}

/* the file --------------------------------------------------------------------------------------------------------- */

/* Says so once. */
static void give_up(struct refcache *c, const char *what, int e)
{
    if (c->usable) warn(c, "%s: %s; what is computed is not kept", what, strerror(e));
    c->usable = false;
}

/* A bounded wait: writers hold the lock for milliseconds, unless they are stopped. */
static bool lock(struct refcache *c, int fd)
{
    switch (file_lock_wait(fd, LOCK_SECONDS)) {
    case FILE_LOCK_HELD:
    case FILE_LOCK_NONE: /* checksums tell where two writers met */
        return true;
    case FILE_LOCK_FAILED:
        give_up(c, "cannot lock", errno);
        return false;
    case FILE_LOCK_BUSY:
        break;
    }
    warn(c, "another process holds its lock; what is computed is not kept");
    c->usable = false;
    return false;
}

/* The file, open and locked (or open for reading where that is all it allows); -1: none, and it was said why. */
static int open_file(struct refcache *c)
{
    const int flags = O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY;
    c->locked = false;
    for (int i = 0; i < OPEN_TRIES; i++) {
        struct stat st;
        int fd = c->usable ? open(c->path, O_RDWR | O_CREAT | flags, 0666) : -1;
        if (fd < 0) give_up(c, "cannot be written", errno);
        if (fd < 0) fd = open(c->path, O_RDONLY | flags);
        if (fd < 0) return -1;
        if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
            give_up(c, "cannot be used", EINVAL);
            close(fd);
            return -1;
        }
        c->locked = c->usable && lock(c, fd);
        /* somebody may have deleted it while this process waited for the lock */
        if (file_is_at(fd, c->path)) return fd;
        close(fd);
    }
    warn(c, "it is deleted again and again; what is computed is not kept");
    c->usable = false;
    return -1;
}

/* Records from c->offset on. *bad: damaged ones. */
static int read_records(struct refcache *c, int fd, int64_t *bad)
{
    uint8_t *hold;
    int rc = 0;
    *bad = 0;
    TRY(MEM_NEW(&hold, READ_RECORDS * RECORD));
    for (;;) {
        const int64_t n = read_at(fd, hold, READ_RECORDS * RECORD, c->offset);
        if (n < 0) {
            give_up(c, "cannot be read", errno);
            break;
        }
        for (int64_t i = 0; i < n / RECORD; i++) {
            struct entry e;
            if (read_record(&e, hold + i * RECORD))
                TRY_OUT(take(c, &e));
            else
                ++*bad;
        }
        c->offset += n / RECORD * RECORD;
        if (n < READ_RECORDS * RECORD) break; /* what is left is a torn record */
    }
out:
    free(hold);
    return rc;
}

/* Write an empty file of a new generation. */
static bool start_file(struct refcache *c, int fd)
{
    uint8_t h[HEADER];
    const uint64_t generation = new_generation();
    make_header(c, generation, h);
    if (ftruncate(fd, 0) != 0 || !write_at(fd, h, HEADER, 0)) {
        give_up(c, "cannot be written", errno);
        return false;
    }
    c->generation = generation;
    c->offset = HEADER;
    return true;
}

/* Write the records of all entries in `state` to `at`. *failed: errno, 0: all is written. */
static int write_records(struct refcache *c, int fd, enum state state, int64_t at, int *failed)
{
    uint8_t *hold;
    int64_t n = 0;
    TRY(MEM_NEW(&hold, c->n * RECORD));
    for (int64_t i = 0; i < c->n; i++)
        if (c->e[i].state == state) make_record(hold + RECORD * n++, &c->e[i]);
    *failed = write_at(fd, hold, n * RECORD, at) ? 0 : errno;
    if (*failed == 0) c->offset = at + n * RECORD;
    free(hold);
    return 0;
}

/* Drop the damaged records by writing the good ones over the whole. At any moment of it the file is made of whole records and one torn one,
 * so that a kill loses nothing that can be noticed. */
static int mend_file(struct refcache *c, int fd)
{
    uint8_t h[HEADER];
    const uint64_t generation = new_generation();
    int failed;
    make_header(c, generation, h);
    TRY(write_records(c, fd, STORED, HEADER, &failed));
    if (!failed && (!write_at(fd, h, HEADER, 0) || ftruncate(fd, (off_t)c->offset) != 0))
        failed = errno;
    if (failed)
        give_up(c, "cannot be mended", failed);
    else
        c->generation = generation;
    return 0;
}

/* Bring the table up to what the file holds, and the file in order where it is locked. */
static int sync_file(struct refcache *c, int fd)
{
    uint8_t h[HEADER];
    int64_t bad;
    const int64_t n = read_at(fd, h, HEADER, 0);
    if (n < 0) {
        give_up(c, "cannot be read", errno);
        return 0;
    }
    const uint64_t generation = n == HEADER ? read_header(c, h) : 0;
    if (!generation ||
        generation != c->generation) { /* what was known of the file is not of this one */
        for (int64_t i = 0; i < c->n; i++)
            if (c->e[i].state == STORED) c->e[i].state = PRIVATE;
        c->generation = generation;
        c->offset = HEADER;
    }
    if (!generation) {
        if (n == HEADER) warn(c, "its header is damaged or of another program; it is started anew");
        if (c->locked) start_file(c, fd);
        return 0;
    }
    TRY(read_records(c, fd, &bad));
    if (bad == 0) return 0;
    warn(c, "%lld damaged record%s dropped; the rows are computed again", (long long)bad,
         bad == 1 ? "" : "s");
    return c->locked ? mend_file(c, fd) : 0;
}

static int append(struct refcache *c, int fd)
{
    const int64_t at = c->offset;
    int failed;
    TRY(write_records(c, fd, PENDING, at, &failed));
    if (failed) {
        /* half of what was written would be a torn record for the next one */
        if (ftruncate(fd, (off_t)at) != 0) warn(c, "cannot be cut back: %s", strerror(errno));
        give_up(c, "cannot be written", failed);
        return 0;
    }
    for (int64_t i = 0; i < c->n; i++)
        if (c->e[i].state == PENDING) c->e[i].state = STORED;
    c->pending = 0;
    return 0;
}

int refcache_flush(struct refcache *c, bool now)
{
    const double t = clock_seconds();
    int rc;
    if (!c->usable || c->pending == 0) return 0;
    if (!now && t - c->flushed < FLUSH_SECONDS && c->pending < FLUSH_RECORDS) return 0;
    c->flushed = t;
    const int fd = open_file(c);
    if (fd < 0) return 0;
    rc = sync_file(c, fd);
    if (rc == 0 && c->locked && c->usable && c->generation && c->pending) rc = append(c, fd);
    if (close(fd) != 0) give_up(c, "cannot be written", errno);
    return rc;
}

void refcache_drop(struct refcache *c)
{
    const uint64_t was = c->generation;
    uint8_t h[HEADER];
    c->n = c->pending = 0;
    for (int64_t i = 0; i < c->slots; i++)
        c->slot[i] = -1;
    if (!c->usable) return;
    const int fd = open_file(c);
    if (fd < 0) return;
    if (c->locked && read_at(fd, h, HEADER, 0) == HEADER && read_header(c, h) == was)
        start_file(c, fd);
    else
        c->generation = 0;
    close(fd);
}

int refcache_open(struct refcache **out, const char *dir, const uint8_t digest[32],
                  const char *dtype)
{
    struct refcache *c;
    char hex[33];
    int rc;
    *out = NULL;
    for (int i = 0; i < 16; i++)
        snprintf(hex + 2 * i, 3, "%02x", digest[i]);
    TRY(MEM_NEW(&c, 1));
    BUG_IF(strlen(dtype) > sizeof c->dtype);
    memcpy(c->dtype, dtype, strlen(dtype));
    memcpy(c->digest, digest, sizeof c->digest);
    TRY_OUT(mem_asprintf(&c->path, "%s%sreference-%s-%s-k%d.bin", dir,
                         *dir && dir[strlen(dir) - 1] != '/' ? "/" : "", hex, dtype,
                         KERNELS_VERSION));
    TRY_OUT(make_slots(c, 1024));
    c->usable = true;
    if (dir_make(dir) < 0) {
        warn(c, "%s; what is computed is not kept", err_msg());
        c->usable = false;
    }
    const int fd = open_file(c);
    if (fd >= 0) {
        rc = sync_file(c, fd);
        close(fd);
    }
out:
    if (rc < 0)
        refcache_close(c);
    else
        *out = c;
    return rc;
}

const char *refcache_path(const struct refcache *c)
{
    return c->path;
}

void refcache_close(struct refcache *c)
{
    if (!c) return;
    free(c->path);
    free(c->e);
    free(c->slot);
    free(c);
}
