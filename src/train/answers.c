/* SPDX-License-Identifier: MIT */
#include "answers.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { COPY_BYTES = 1 << 16 };

/* Opens OUT.part; may be called again where another process has just finished with the file and removed it. */
static int open_part(struct answers *a)
{
    struct stat st;
    const int flags = O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK;
    for (;;) {
        const int fd = open(a->part, flags, 0666);
        if (fd < 0)
            return err_at(ERR_INPUT, a->part, 0, 0, "cannot be written: %s", strerror(errno));
        a->fd = fd;
        if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode))
            return err_at(ERR_INPUT, a->part, 0, 0, "not a regular file; remove it");
        if (file_lock_wait(fd, 0) == FILE_LOCK_BUSY) {
            close(fd); /* not ours to remove */
            a->fd = 0;
            return err_at(ERR_INPUT, a->part, 0, 0, "in use by another process");
        }
        if (file_is_at(fd, a->part)) return 0;
        close(fd);
        a->fd = 0;
    }
}

int answers_open(struct answers *a, const char *out)
{
    struct stat st;
    memset(a, 0, sizeof *a);
    a->out = out;
    if (!out) return 0;
    if (lstat(out, &st) == 0 && !S_ISREG(st.st_mode)) {
        if (S_ISDIR(st.st_mode))
            return err_at(ERR_INPUT, out, 0, 0, "cannot be written: a directory has that name");
        return file_create_named(&a->file, out) < 0 ? ERR_INPUT : 0;
    }
    TRY(mem_asprintf(&a->part, "%s.part", out));
    return open_part(a);
}

static int failed(const struct answers *a, const char *what, int e)
{
    return err_at(ERR_IO, a->part, 0, 0, "cannot %s: %s", what, strerror(e));
}

static int write_all(const struct answers *a, const char *data, size_t len)
{
    const int e = file_write_fd(a->fd, data, len);
    return e ? failed(a, "write", e) : 0;
}

/* Bytes up to the end of line `rows`, of at most `rows` that are whole; *rows: how many there are. */
static int64_t end_of_rows(const char *text, size_t len, int64_t *rows)
{
    const char *p = text;
    int64_t n = 0;
    while (n < *rows) {
        const char *end = memchr(p, '\n', len - (size_t)(p - text));
        if (!end) break;
        p = end + 1;
        n++;
    }
    *rows = n;
    return p - text;
}

int answers_resume(struct answers *a, const char *key, int64_t piece, int64_t n)
{
    char head[128], *text = NULL;
    size_t len = 0;
    int rc = 0;
    if (!a->part) return 0;
    a->head = snprintf(head, sizeof head, "{\"answers\": \"%s\"}\n", key);
    TRY(file_read(&text, &len, a->part, INT64_MAX));
    const bool ours = (int64_t)len >= a->head && memcmp(text, head, (size_t)a->head) == 0;
    int64_t keep = a->head;
    if (ours) {
        int64_t rows = n;
        (void)end_of_rows(text + a->head, len - (size_t)a->head, &rows);
        if (rows < n) rows -= rows % piece;
        keep += end_of_rows(text + a->head, len - (size_t)a->head, &rows);
        a->rows = rows;
    }
    if (ftruncate(a->fd, ours ? keep : 0) != 0 || lseek(a->fd, 0, SEEK_END) < 0)
        TRY_OUT(failed(a, "cut it", errno));
    if (!ours) TRY_OUT(write_all(a, head, (size_t)a->head));
out:
    free(text);
    return rc;
}

int answers_add(struct answers *a, const char *lines, size_t len)
{
    if (a->part) {
        TRY(write_all(a, lines, len));
        return file_sync(a->fd) != 0 ? failed(a, "sync", errno) : 0;
    }
    if (a->out) return file_put(&a->file, lines, len);
    if (fwrite(lines, 1, len, stdout) != len || fflush(stdout) != 0)
        return err_set(ERR_IO, "cannot write to the standard output");
    return 0;
}

int answers_finish(struct answers *a)
{
    char *copy = NULL;
    size_t got;
    int rc = 0;
    if (!a->out) return 0;
    if (a->part) {
        TRY_OUT(MEM_NEW(&copy, COPY_BYTES));
        TRY_OUT(file_create(&a->file, a->out));
        if (lseek(a->fd, a->head, SEEK_SET) < 0) TRY_OUT(failed(a, "read it", errno));
        for (;;) {
            TRY_OUT(file_read_some(a->fd, a->part, copy, COPY_BYTES, &got));
            if (got == 0) break;
            TRY_OUT(file_put(&a->file, copy, got));
        }
    }
    TRY_OUT(file_commit(&a->file));
    if (a->part && unlink(a->part) != 0) TRY_OUT(failed(a, "remove it", errno));
out:
    free(copy);
    return rc;
}

void answers_close(struct answers *a)
{
    struct stat st;
    file_abandon(&a->file);
    /* nothing is lost with one that has no answers, such as of a start that was refused */
    if (a->fd > 0 && fstat(a->fd, &st) == 0 && st.st_nlink > 0 && st.st_size <= a->head)
        unlink(a->part);
    if (a->fd > 0) close(a->fd);
    free(a->part);
    memset(a, 0, sizeof *a);
}
