/* SPDX-License-Identifier: MIT */
#include "file.h"
#include "../base/watch.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

enum { HOLD_BYTES = 1 << 18, COPY_BYTES = 1 << 16 };

int file_open(int *fd, int64_t *size, const char *path)
{
    struct stat st;
    *fd = -1;
    /* O_NONBLOCK: opening a FIFO must not wait for a writer; regular files ignore it */
    const int f = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (f < 0) {
        const int code = errno == EMFILE || errno == ENFILE || errno == EIO ? ERR_IO : ERR_INPUT;
        return err_at(code, path, 0, 0, "cannot open: %s", strerror(errno));
    }
    if (fstat(f, &st) != 0) {
        const int e = errno;
        close(f);
        return err_at(ERR_IO, path, 0, 0, "cannot stat: %s", strerror(e));
    }
    if (!S_ISREG(st.st_mode)) {
        close(f);
        return err_at(ERR_INPUT, path, 0, 0,
                      S_ISDIR(st.st_mode) ? "is a directory, not a file"
                                          : "is not a regular file (a pipe or a device)");
    }
    *fd = f;
    *size = st.st_size;
    return 0;
}

int file_read_some(int fd, const char *path, void *out, size_t len, size_t *got)
{
    ssize_t n;
    *got = 0;
    watch_beat();
    do {
        n = read(fd, out, len);
    } while (n < 0 && errno == EINTR);
    if (n < 0) return err_at(ERR_IO, path, 0, 0, "cannot read: %s", strerror(errno));
    *got = (size_t)n;
    return 0;
}

int file_write_fd(int fd, const void *data, size_t len)
{
    const char *p = data;
    while (len) {
        const ssize_t n = write(fd, p, MIN(len, (size_t)1 << 30));
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return n < 0 ? errno : ENOSPC;
        p += n;
        len -= (size_t)n;
    }
    return 0;
}

bool file_is_at(int fd, const char *path)
{
    struct stat open, named;
    return fstat(fd, &open) == 0 && stat(path, &named) == 0 && named.st_ino == open.st_ino &&
           named.st_dev == open.st_dev;
}

static int read_all(char **out, size_t *len, int fd, const char *path, int64_t size, int64_t max)
{
    /* one byte more than the size, so that one read shows the end; a file that grows is read on */
    int64_t cap = 0, n = 0;
    for (;;) {
        size_t got;
        TRY(MEM_GROW(out, &cap, n + 1 < size + 2 ? size + 2 : n + 2));
        TRY(file_read_some(fd, path, *out + n, (size_t)(cap - n - 1), &got));
        if (got == 0) break;
        n += (int64_t)got;
        if (n > max)
            return err_at(ERR_INPUT, path, 0, 0, "is larger than the limit of %lld bytes",
                          (long long)max);
    }
    (*out)[n] = 0;
    *len = (size_t)n;
    return 0;
}

int file_read(char **out, size_t *len, const char *path, int64_t max)
{
    int fd, rc;
    int64_t size;
    *out = NULL;
    *len = 0;
    TRY(file_open(&fd, &size, path));
    if (size > max)
        rc = err_at(ERR_INPUT, path, 0, 0, "has %lld bytes; the limit is %lld", (long long)size,
                    (long long)max);
    else
        rc = read_all(out, len, fd, path, size, max);
    close(fd);
    if (rc < 0) {
        free(*out);
        *out = NULL;
    }
    return rc;
}

bool file_exists(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && !S_ISDIR(st.st_mode);
}

/* writing ------------------------------------------------------------------------------------- */

static bool out_is_open(const struct file_out *f)
{
    return f->path && f->fd >= 0;
}

/* Say why a write failed, with the room that is left where the disk is full; drops the file. */
static int out_fail(struct file_out *f, const char *verb, int e)
{
    char room[96];
    err_set(ERR_IO, "%s: error: cannot %s after %lld bytes: %s%s", f->path, verb,
            (long long)f->bytes, strerror(e),
            disk_room(room, f->path, f->fd, e, f->need ? f->need : -1));
    file_abandon(f);
    return ERR_IO;
}

int file_sync(int fd)
{
    watch_call(NULL, WATCH_DISK);
    const int rc = fsync(fd);
    watch_call(NULL, 1);
    return rc;
}

int file_create(struct file_out *f, const char *path)
{
    struct stat st;
    int rc = 0;
    memset(f, 0, sizeof *f);
    f->fd = -1;
    f->crc = (uint32_t)crc32_z(0, NULL, 0);
    if (lstat(path, &st) == 0 && S_ISDIR(st.st_mode))
        return err_at(ERR_IO, path, 0, 0, "cannot write: a directory has that name");
    TRY_OUT(mem_strdup(&f->path, path));
    TRY_OUT(mem_asprintf(&f->tmp, "%s.tmp-%ld", path, (long)getpid()));
    TRY_OUT(MEM_NEW(&f->hold, HOLD_BYTES));
    const int flags = O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC;
    f->fd = open(f->tmp, flags, 0666);
    if (f->fd < 0 && errno == EEXIST) {
        /* left by a killed process that had this pid: common where containers start at pid 1 */
        unlink(f->tmp);
        f->fd = open(f->tmp, flags, 0666);
    }
    if (f->fd < 0) {
        const int e = errno;
        free(f->tmp); /* not ours: abandon must not unlink it */
        f->tmp = NULL;
        rc = err_at(ERR_IO, path, 0, 0, "cannot create: %s", strerror(e));
    }
out:
    if (rc < 0) file_abandon(f);
    return rc;
}

int file_create_named(struct file_out *f, const char *path)
{
    struct stat st;
    if (lstat(path, &st) != 0 || S_ISREG(st.st_mode) || S_ISDIR(st.st_mode))
        return file_create(f, path);
    memset(f, 0, sizeof *f);
    f->crc = (uint32_t)crc32_z(0, NULL, 0);
    f->fd = open(path, O_WRONLY | O_TRUNC | O_CLOEXEC | O_NOCTTY);
    if (f->fd < 0) return err_at(ERR_IO, path, 0, 0, "cannot write: %s", strerror(errno));
    int rc = mem_strdup(&f->path, path);
    if (rc == 0) rc = MEM_NEW(&f->hold, HOLD_BYTES);
    if (rc < 0) {
        if (!f->path) close(f->fd);
        file_abandon(f);
    }
    return rc;
}

int file_reserve(struct file_out *f, int64_t bytes)
{
    int rc;
    if (!out_is_open(f)) return err_set(ERR_IO, "cannot write: the file is not open");
    f->need = bytes;
    if (!f->tmp || bytes == 0) return 0;
    do {
        rc = fallocate(f->fd, FALLOC_FL_KEEP_SIZE, 0, bytes);
    } while (rc != 0 && errno == EINTR);
    /* others mean that it cannot be said beforehand */
    if (rc != 0 && (errno == ENOSPC || errno == EDQUOT || errno == EFBIG))
        return out_fail(f, "write", errno);
    return 0;
}

static int write_all(struct file_out *f, const void *p, size_t len)
{
    const int e = file_write_fd(f->fd, p, len);
    return e ? out_fail(f, "write", e) : 0;
}

static int out_flush(struct file_out *f)
{
    const size_t n = f->held;
    f->held = 0;
    return write_all(f, f->hold, n);
}

int file_put(struct file_out *f, const void *data, size_t len)
{
    const uint8_t *p = data;
    watch_beat();
    if (!out_is_open(f)) return err_set(ERR_IO, "cannot write: the file is not open");
    if (len == 0) return 0;
    if (f->held + len > HOLD_BYTES) TRY(out_flush(f));
    if (len >= HOLD_BYTES) {
        TRY(write_all(f, p, len));
    } else {
        memcpy(f->hold + f->held, p, len);
        f->held += len;
    }
    f->crc = (uint32_t)crc32_z(f->crc, p, len);
    f->bytes += (int64_t)len;
    return 0;
}

int file_commit(struct file_out *f)
{
    struct stat st, named;
    char *dir;
    if (!out_is_open(f)) return err_set(ERR_IO, "cannot write: the file is not open");
    TRY(out_flush(f));
    if (!f->tmp) { /* as it stands: nothing to rename, and most of these know no fsync */
        const int fd = f->fd;
        f->fd = -1;
        if (close(fd) != 0) return out_fail(f, "close", errno);
        file_abandon(f);
        return 0;
    }
    if (file_sync(f->fd) != 0) return out_fail(f, "fsync", errno);
    if (fstat(f->fd, &st) != 0) return out_fail(f, "stat", errno);
    if (st.st_size != f->bytes) return out_fail(f, "keep the size", EIO);
    if (lstat(f->tmp, &named) != 0) return out_fail(f, "find the temporary file", errno);
    if (named.st_ino != st.st_ino || named.st_dev != st.st_dev)
        return out_fail(f, "keep the temporary file (another writer replaced it)", EEXIST);
    const int fd = f->fd;
    f->fd = -1;
    if (close(fd) != 0) return out_fail(f, "close", errno);
    if (rename(f->tmp, f->path) != 0) return out_fail(f, "rename", errno);
    free(f->tmp); /* it has become PATH: nothing to unlink */
    f->tmp = NULL;
    int rc = path_parent(&dir, f->path);
    if (rc == 0) {
        rc = dir_sync(dir);
        free(dir);
    }
    file_abandon(f);
    return rc;
}

void file_abandon(struct file_out *f)
{
    if (f->path && f->fd >= 0) close(f->fd);
    if (f->tmp) unlink(f->tmp);
    free(f->path);
    free(f->tmp);
    free(f->hold);
    f->path = f->tmp = NULL;
    f->hold = NULL;
    f->held = 0;
    f->fd = -1;
}

int file_write_all(const char *path, const void *data, size_t len)
{
    struct file_out f;
    TRY(file_create(&f, path));
    int rc = file_reserve(&f, (int64_t)len);
    if (rc == 0) rc = file_put(&f, data, len);
    if (rc == 0) rc = file_commit(&f);
    file_abandon(&f);
    return rc;
}

int file_copy(const char *from, const char *to)
{
    struct file_out f = { .fd = -1 };
    char piece[COPY_BYTES];
    int fd, rc = 0;
    int64_t size;
    TRY(file_open(&fd, &size, from));
    TRY_OUT(file_create(&f, to));
    TRY_OUT(file_reserve(&f, size));
    for (;;) {
        size_t got;
        TRY_OUT(file_read_some(fd, from, piece, sizeof piece, &got));
        if (got == 0) break;
        TRY_OUT(file_put(&f, piece, got));
    }
    if (f.bytes < size) {
        rc = err_at(ERR_INPUT, from, 0, 0, "shrank while it was copied");
        goto out;
    }
    TRY_OUT(file_commit(&f));
out:
    close(fd);
    file_abandon(&f);
    return rc;
}
