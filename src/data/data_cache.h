/* SPDX-License-Identifier: MIT
 * data_cache.h - the rows of data files as token ids, in a file that runs share, keyed by content. Private to src/data.
 *
 * DIR/tokens-<key>.bin, native byte order: struct header; forms of each file; dropped rows; skipped rows; examples; ids; the CRC-32 of
 * all before it. It holds what reading gives before `max_dropped`, `subsample` and weights act, so that these are no part of its key. A file
 * is written beside its place and renamed under a lock of DIR, and never changed: it may be deleted at any time, also under a run. One that
 * is damaged is named, removed and made again; nothing that goes wrong with it is an error, but for ERR_OOM. */
#ifndef BDPO_DATA_CACHE_H
#define BDPO_DATA_CACHE_H
#include "data_rows.h"

/* Raised by every change of src/data that makes other ids, other counts or other messages of the same input. */
enum { TOKENS_VERSION = 1 };

struct data_cache { /* valid when zeroed: no cache */
    const char *dir; /* borrowed; NULL: no cache */
    char *path;      /* of the file of this key */
    uint8_t key[32];
    struct buf identity; /* all of the key but the files' bytes */
    bool writes;
};
/* The key of these files under these rules: SHA-256 of the options, the tokenizer, the template and each file's own bytes. None (c->dir is
 * NULL) where rules->opts has no cache_dir or wants notes, or where a file cannot be read: reading will say why. */
int data_cache_open(struct data_cache *c, const struct row_rules *rules, char *const *paths, int32_t n_paths);
void data_cache_close(struct data_cache *c);
/* Fill d (zeroed) with what the cache has. 1: done; 0: it has nothing that can be used, d is zeroed. */
int data_cache_find(const struct data_cache *c, struct dataset *d, char *const *paths, int32_t n_paths, const struct data_opts *o);
/* Keep d, read from files whose own bytes have these digests [d->n_files]. Does nothing where opts do not want it written. */
int data_cache_store(struct data_cache *c, const struct dataset *d, uint8_t (*file)[32]);
#endif
