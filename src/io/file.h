/* SPDX-License-Identifier: MIT
 * file.h - files that are read whole, written all or not at all, and line by line through gzip. */
#ifndef BDPO_FILE_H
#define BDPO_FILE_H
#include "../base/mem.h"
#include "../base/sha256.h"

/* Open a regular file for reading (symlinks are followed); the caller closes *fd. Missing, directory, FIFO, device: ERR_INPUT. */
int file_open(int *fd, int64_t *size, const char *path);
/* One read(2), again after EINTR; *got 0 at the end. `path` is for the message. ERR_IO. */
int file_read_some(int fd, const char *path, void *out, size_t len, size_t *got);
/* All of data to fd. 0, or the errno of what failed (ENOSPC where nothing more was taken). */
int file_write_fd(int fd, const void *data, size_t len);
/* Is the file at `path` the one that fd has open? Not where another process has removed or replaced it. */
bool file_is_at(int fd, const char *path);
/* Whole regular file into *out (owned by the caller, NUL-terminated). Missing, directory, FIFO, over `max` bytes: ERR_INPUT. */
int file_read(char **out, size_t *len, const char *path, int64_t max);
bool file_exists(const char *path);
bool dir_exists(const char *path);
/* Create a directory and its parents (mode 0777 & ~umask), each new name fsynced. ERR_IO naming path and reason. */
int dir_make(const char *path);
/* "dir/name"; the caller frees. */
int path_join(char **out, const char *dir, const char *name);
/* Last component of a path (borrowed from path; "" never: "." for an empty path). */
const char *path_base(const char *path);
/* Directory part of a path, "." or "/" where it has none; the caller frees. */
int path_parent(char **out, const char *path);
/* Delete a directory tree (or a file); symlinks in it are unlinked, never followed. Absent is fine. */
int dir_remove(const char *path);
/* Delete what a save that failed with `rc` left, keeping its message; returns rc. */
int dir_abandon(const char *path, int rc);
/* Delete what stands in `path` under names that match `pattern` (fnmatch). No such directory is fine. ERR_IO. */
int dir_sweep(const char *path, const char *pattern);
/* fsync(2), for which the watcher waits as long as a disk may take. */
int file_sync(int fd);
/* fsync a directory. */
int dir_sync(const char *path);
/* Bytes free for this user on the file system of path (or of its nearest existing parent); -1 where unknown. */
int64_t disk_free(const char *path);
/* The end of a message about a write that failed with errno e: " (needs 1.9 MiB, 64.0 KiB free)" where the disk or quota is full, else "". need < 0:
 * unknown. fd >= 0: what that file takes already counts as free, since it is about to be dropped. Returns out. */
const char *disk_room(char out[96], const char *path, int fd, int e, int64_t need);
/* The directory TMP takes DIR's place: in one step where the file system can swap names, else what stood there steps aside to OLD first. Durable before
 * what stood there is deleted. TMP, DIR and OLD are neighbours. ERR_IO. */
int dir_replace(const char *dir, const char *tmp, const char *old);

/* A file being written as PATH.tmp-PID; nothing appears at PATH before file_commit. Valid when zeroed. */
struct file_out {
    int fd; /* -1: closed. 0 in a zeroed struct counts as closed too, with `path` NULL */
    char *path, *tmp;
    int64_t bytes;
    uint32_t crc; /* zlib crc32 of all bytes written */
    int64_t need; /* bytes that it will have, for messages; 0: not said */
    uint8_t *hold; /* write buffer */
    size_t held;
};
int file_create(struct file_out *f, const char *path);
/* It will have `bytes`: take the room now, so that a full disk is found before the first of them is written. Where the file system cannot, nothing. */
int file_reserve(struct file_out *f, int64_t bytes);
int file_put(struct file_out *f, const void *data, size_t len);
/* Flush, fsync, check the size, rename to PATH, fsync the parent. On failure the temporary file is gone and PATH as before
 * (but where only the fsync of the parent failed: PATH is the new file then). */
int file_commit(struct file_out *f);
/* Drop what was written; safe after commit and on a zeroed struct. */
void file_abandon(struct file_out *f);
/* The same for a path that a user names: a device, a pipe or a symbolic link ("/dev/stdout") is written as it stands, since a rename would
 * take its place; ERR_IO where it cannot be. */
int file_create_named(struct file_out *f, const char *path);
/* create + put + commit. */
int file_write_all(const char *path, const void *data, size_t len);
int file_copy(const char *from, const char *to);

/* Lines of a .jsonl or .jsonl.gz file (gzip recognised by name .gz; concatenated members fine), or, in a file named .json or .json.gz
 * that begins with "[", the elements of that array. */
struct line_reader;
enum { LINES_GZIP = 1, LINES_ARRAY = 2 };
int lines_kind(const char *path); /* what the name says of how a file is read: some of these bits */
int lines_open(struct line_reader **out, const char *path);
/* 1: *line (borrowed until the next call, NUL-terminated, without "\n" or "\r\n"), *len, 0: end, < 0: error.
 * A UTF-8 BOM on line 1 is skipped. Errors (ERR_INPUT, file:line): truncated or corrupt gzip, trailing garbage, plain text
 * named .gz, a line over the limit, a NUL byte, an array that does not end,
 * a file that changed while it was read. Only a clean end of file gives 0. An element may hold "\n". */
int lines_next(struct line_reader *r, char **line, size_t *len);
int64_t lines_number(const struct line_reader *r); /* of the line last returned (of an element's first), from 1 */
int64_t lines_column(const struct line_reader *r); /* bytes before the element on its line; 0 for lines */
void lines_limit(struct line_reader *r, int64_t bytes); /* longest line, at most and by default 64 MiB */
/* Digest of all (decompressed) bytes so far; call after the end for the file's content hash. */
void lines_digest(const struct line_reader *r, uint8_t digest[32]);
void lines_digest_file(const struct line_reader *r, uint8_t digest[32]); /* the same of the file's own, maybe compressed, bytes */
void lines_close(struct line_reader *r);

enum file_lock {
    FILE_LOCK_HELD,  /* until fd is closed */
    FILE_LOCK_NONE,  /* the file system has no locks */
    FILE_LOCK_BUSY,  /* another process held it all the time */
    FILE_LOCK_FAILED /* errno says why */
};
/* Wait for an exclusive flock of fd (of a file or a directory), `seconds` at most. */
enum file_lock file_lock_wait(int fd, double seconds);
/* Advisory lock on DIR/.lock (flock). 0: held in *fd until close. Held by another process: ERR_INPUT naming its pid and host. */
int dir_lock(int *fd, const char *dir);
#endif
