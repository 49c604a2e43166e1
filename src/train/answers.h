/* SPDX-License-Identifier: MIT
 * answers.h - answers to prompts as they come, in a file that a later start goes on with. */
#ifndef BDPO_ANSWERS_H
#define BDPO_ANSWERS_H
#include "../io/file.h"

struct answers { /* valid when zeroed */
    const char *out; /* the file that is there in the end; NULL: stdout. Borrowed */
    char *part;      /* OUT.part, which grows until then; NULL: none, since `out` is not a regular file. Owned */
    int fd;          /* of it, locked; 0: none */
    int64_t head;    /* bytes of its first line, which says whose answers they are */
    int64_t rows;    /* lines of answers that it has */
    struct file_out file; /* `out`, where it is a device or a pipe */
};
/* Can `out` be written? For a regular file OUT.part is opened and locked. ERR_INPUT: it cannot, or another process holds it. */
int answers_open(struct answers *a, const char *out);
/* What a start with the same `key` has left is kept, `piece` lines at a time (the last of `n` rows may be fewer); anything else is dropped. */
int answers_resume(struct answers *a, const char *key, int64_t piece, int64_t n);
/* Add whole lines: durable in OUT.part, or straight to where they go. ERR_IO. */
int answers_add(struct answers *a, const char *lines, size_t len);
/* All are there: `out` takes the place of OUT.part, whole. ERR_IO. */
int answers_finish(struct answers *a);
/* Close; OUT.part stays for the next start unless it holds no answer. */
void answers_close(struct answers *a);
#endif
