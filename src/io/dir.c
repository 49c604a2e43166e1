/* SPDX-License-Identifier: MIT */
#include "file.h"
#include "../base/watch.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

bool dir_exists(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

/* The new name is durable too: what is synced inside would be lost with it. */
static int make_one(const char *path)
{
    if (mkdir(path, 0777) == 0) {
        char *parent;
        TRY(path_parent(&parent, path));
        const int rc = dir_sync(parent);
        free(parent);
        return rc;
    }
    if (dir_exists(path)) return 0;
    if (errno == EEXIST)
        return err_at(ERR_IO, path, 0, 0, "cannot make a directory: a file has that name");
    return err_at(ERR_IO, path, 0, 0, "cannot make the directory: %s", strerror(errno));
}

int dir_make(const char *path)
{
    char *p;
    int rc = 0;
    if (!*path) return err_set(ERR_IO, "cannot make a directory with an empty name");
    TRY(mem_strdup(&p, path));
    for (char *s = p + 1; *s && rc == 0; s++) {
        if (*s != '/') continue;
        *s = 0;
        rc = make_one(p);
        *s = '/';
    }
    if (rc == 0) rc = make_one(p);
    free(p);
    return rc;
}

int path_join(char **out, const char *dir, const char *name)
{
    const size_t n = strlen(dir);
    return mem_asprintf(out, "%s%s%s", dir, n && dir[n - 1] != '/' ? "/" : "", name);
}

const char *path_base(const char *path)
{
    size_t n = strlen(path);
    if (!n) return ".";
    while (n > 1 && path[n - 1] == '/')
        n--;
    while (n > 1 && path[n - 2] != '/')
        n--;
    return path + n - 1;
}

int path_parent(char **out, const char *path)
{
    const char *base = path_base(path);
    size_t n = *path ? (size_t)(base - path) : 0;
    while (n > 1 && path[n - 1] == '/')
        n--;
    if (n == 0) return mem_strdup(out, path[0] == '/' ? "/" : ".");
    return mem_strndup(out, path, n);
}

/* removing ------------------------------------------------------------------------------------ */

static int remove_entry(int at, const char *name, const char *top, int depth);

static int remove_children(int fd, const char *top, int depth)
{
    DIR *d = fdopendir(fd);
    int rc = 0;
    if (!d) {
        close(fd);
        return err_at(ERR_IO, top, 0, 0, "cannot list for removal: %s", strerror(errno));
    }
    while (rc == 0) {
        errno = 0;
        const struct dirent *e = readdir(d);
        if (!e) {
            if (errno)
                rc = err_at(ERR_IO, top, 0, 0, "cannot list for removal: %s", strerror(errno));
            break;
        }
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0) continue;
        rc = remove_entry(dirfd(d), e->d_name, top, depth + 1);
    }
    closedir(d);
    return rc;
}

static int remove_entry(int at, const char *name, const char *top, int depth)
{
    if (depth > 100) return err_at(ERR_IO, top, 0, 0, "cannot remove: nested too deep");
    if (unlinkat(at, name, 0) == 0 || errno == ENOENT) return 0;
    if (errno != EISDIR && errno != EPERM) goto fail;
    const int fd = openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0) goto fail;
    TRY(remove_children(fd, top, depth));
    if (unlinkat(at, name, AT_REMOVEDIR) == 0 || errno == ENOENT) return 0;
fail:
    return err_at(ERR_IO, top, 0, 0, "cannot remove \"%s\": %s", name, strerror(errno));
}

int dir_remove(const char *path)
{
    char *p;
    TRY(mem_strdup(&p, path));
    /* "link/" would follow the link */
    for (size_t n = strlen(p); n > 1 && p[n - 1] == '/'; n--)
        p[n - 1] = 0;
    const int rc = remove_entry(AT_FDCWD, p, p, 0);
    free(p);
    return rc;
}

int dir_abandon(const char *path, int rc)
{
    char keep[2048]; /* dir_remove may fail too, and the first error is the cause */
    snprintf(keep, sizeof keep, "%s", err_msg());
    dir_remove(path);
    return err_set(rc, "%s", keep);
}

int dir_sweep(const char *path, const char *pattern)
{
    const struct dirent *e;
    DIR *d = opendir(path);
    int rc = 0;
    while (rc == 0 && d && (e = readdir(d))) {
        char *name = NULL;
        if (fnmatch(pattern, e->d_name, 0) != 0) continue;
        rc = path_join(&name, path, e->d_name);
        if (rc == 0) rc = dir_remove(name);
        free(name);
    }
    if (d) closedir(d);
    return rc;
}

int dir_sync(const char *path)
{
    const int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return err_at(ERR_IO, path, 0, 0, "cannot open the directory: %s", strerror(errno));
    /* some network file systems cannot sync a directory and say EINVAL */
    const int e = file_sync(fd) == 0 || errno == EINVAL ? 0 : errno;
    close(fd);
    if (e) return err_at(ERR_IO, path, 0, 0, "cannot fsync the directory: %s", strerror(e));
    return 0;
}

int64_t disk_free(const char *path)
{
    struct statvfs v;
    int64_t bytes = -1;
    char *p;
    if (mem_strdup(&p, path) < 0) return -1;
    for (;;) {
        if (statvfs(p, &v) == 0) {
            if (!mul_ok((int64_t)v.f_bavail, (int64_t)v.f_frsize, &bytes)) bytes = -1;
            break;
        }
        char *up;
        if (errno != ENOENT && errno != ENOTDIR) break;
        if (path_parent(&up, p) < 0) break;
        const bool stuck = strcmp(up, p) == 0;
        free(p);
        p = up;
        if (stuck) break;
    }
    free(p);
    return bytes;
}

const char *disk_room(char out[96], const char *path, int fd, int e, int64_t need)
{
    char a[32], b[32];
    struct stat st;
    int64_t left = e == ENOSPC || e == EDQUOT ? disk_free(path) : -1;
    *out = 0;
    if (left < 0) return out;
    if (fd >= 0 && fstat(fd, &st) == 0) left += (int64_t)st.st_blocks * 512;
    if (need >= 0)
        snprintf(out, 96, " (needs %s, %s free)", bytes_human(a, need), bytes_human(b, left));
    else
        snprintf(out, 96, " (%s free)", bytes_human(b, left));
    return out;
}

static int move(const char *from, const char *to)
{
    if (rename(from, to) == 0) return 0;
    return err_set(ERR_IO, "cannot rename %s to %s: %s", from, to, strerror(errno));
}

static int replace(const char *dir, const char *tmp, const char *old, const char *parent)
{
    TRY(dir_remove(old)); /* left by a killed run */
    if (!dir_exists(dir)) {
        TRY(move(tmp, dir));
        return dir_sync(parent);
    }
    if (renameat2(AT_FDCWD, tmp, AT_FDCWD, dir, RENAME_EXCHANGE) == 0) {
        TRY(dir_sync(parent));
        return dir_remove(tmp);
    }
    TRY(move(dir, old));
    const int rc = move(tmp, dir);
    if (rc < 0) {
        rename(old, dir); /* as it was; the error is already set */
        return rc;
    }
    TRY(dir_sync(parent));
    return dir_remove(old);
}

int dir_replace(const char *dir, const char *tmp, const char *old)
{
    char *parent;
    TRY(path_parent(&parent, dir));
    const int rc = replace(dir, tmp, old, parent);
    free(parent);
    return rc;
}

/* the lock ------------------------------------------------------------------------------------ */

static enum file_lock wait_for_lock(int fd, double seconds)
{
    const struct timespec nap = { 0, 5000000 };
    int64_t naps = (int64_t)(seconds * 1e9 / (double)nap.tv_nsec);
    while (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        if (errno == ENOSYS || errno == EOPNOTSUPP || errno == ENOLCK) return FILE_LOCK_NONE;
        if (errno != EINTR && errno != EWOULDBLOCK) return FILE_LOCK_FAILED;
        if (naps-- <= 0) return FILE_LOCK_BUSY;
        nanosleep(&nap, NULL);
    }
    return FILE_LOCK_HELD;
}

/* who holds it may be writing to a slow disk */
enum file_lock file_lock_wait(int fd, double seconds)
{
    watch_call(NULL, WATCH_DISK);
    const enum file_lock got = wait_for_lock(fd, seconds);
    watch_call(NULL, 1);
    return got;
}

static int lock_taken(int fd, const char *dir)
{
    char text[300], who[sizeof text], shown[260];
    const ssize_t n = pread(fd, text, sizeof text - 1, 0);
    size_t len = n > 0 ? (size_t)n : 0;
    while (len && (text[len - 1] == '\n' || text[len - 1] == 0))
        len--;
    if (len)
        snprintf(who, sizeof who, "process %s", err_quote(shown, sizeof shown, text, len));
    else
        snprintf(who, sizeof who, "another process");
    return err_at(ERR_INPUT, dir, 0, 0,
                  "in use by %s; wait for it to end or choose another directory", who);
}

int dir_lock(int *fd, const char *dir)
{
    struct stat st;
    char host[128] = "", text[192], *path;
    int rc = 0;
    *fd = -1;
    TRY(path_join(&path, dir, ".lock"));
    const int flags = O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK;
    const int f = open(path, flags, 0666);
    if (f < 0) {
        rc = err_at(ERR_IO, path, 0, 0, "cannot create the lock: %s", strerror(errno));
        goto out;
    }
    if (fstat(f, &st) != 0 || !S_ISREG(st.st_mode)) {
        rc = err_at(ERR_IO, path, 0, 0, "cannot lock: not a regular file");
        goto out;
    }
    while (flock(f, LOCK_EX | LOCK_NB) != 0) {
        if (errno == EINTR) continue;
        if (errno == EWOULDBLOCK) {
            rc = lock_taken(f, dir);
            goto out;
        }
        if (errno != ENOSYS && errno != EOPNOTSUPP && errno != ENOLCK) {
            rc = err_at(ERR_IO, path, 0, 0, "cannot lock: %s", strerror(errno));
            goto out;
        }
        /* some cluster file systems have no locks; refusing to run there would help nobody */
        fprintf(stderr,
                "%s: warning: this file system has no locks; a second run here would not "
                "be noticed\n",
                path);
        break;
    }
    if (gethostname(host, sizeof host - 1) != 0) snprintf(host, sizeof host, "unknown host");
    const int n = snprintf(text, sizeof text, "%ld on %s\n", (long)getpid(), host);
    /* who holds it is a help for people only: the lock itself does not depend on the text */
    if (ftruncate(f, 0) != 0 || pwrite(f, text, (size_t)n, 0) != n)
        rc = err_at(ERR_IO, path, 0, 0, "cannot write the lock: %s", strerror(errno));
    if (rc == 0) *fd = f;
out:
    if (rc < 0 && f >= 0) close(f);
    free(path);
    return rc;
}
