/* SPDX-License-Identifier: MIT
 * refcache.h - the reference's log-probabilities in a file that runs share, keyed by content: the reference's weights and architecture, the
 * compute dtype and KERNELS_VERSION choose the file, a row's token ids the record. Losses and their options are no part of it.
 *
 * DIR/reference-<weights>-<dtype>-k<version>.bin: a header of 64 bytes, then records of 40 bytes, little-endian:
 *   header  magic[8] "bdporef1", weights digest[32], dtype[8] (zero-filled), kernels version u32, generation u64, CRC-32 of these u32
 *   record  key[16], log-probability of chosen f64, of rejected f64, CRC-32 of these u32, "pair"[4]
 * Records are appended under flock; of two with one key the first counts. A new generation (other bytes each time) says that records moved. A
 * torn last record is cut off in silence, damaged ones are named in a warning and dropped. Nothing in the file is needed: it may be
 * deleted at any time, also under a run. What goes wrong with the file is a warning on stderr, never an error. */
#ifndef BDPO_REFCACHE_H
#define BDPO_REFCACHE_H
#include "../data/data.h"
#include "../model/model.h"

/* Raised by every change of kernels, packing or model code that moves log-probabilities by more than rounding. */
enum { KERNELS_VERSION = 3 };

struct refcache;
struct refcache_key {
    uint8_t b[16];
};
struct refcache_value {
    double w, l; /* log-probability of chosen and rejected */
};

/* SHA-256 of what the model computes with: all that its architecture says about the maths, and the bytes of its weights (as a tree of pieces
 * of 1 MiB, on be->threads threads). ERR_OOM, ERR_DEVICE. */
int refcache_digest(uint8_t digest[32], const struct model *m);
/* The key of a row: its ids and where the responses start. */
struct refcache_key refcache_key(const struct dataset *d, int64_t i);

/* Read the file of (digest, dtype) in dir, which is made where it is absent. ERR_OOM alone; without a usable file or directory it works in
 * memory. dtype: a name of at most 8 bytes. */
int refcache_open(struct refcache **out, const char *dir, const uint8_t digest[32], const char *dtype);
/* Writes nothing: refcache_flush first. NULL is fine. */
void refcache_close(struct refcache *c);
const char *refcache_path(const struct refcache *c);
/* Borrowed until the next put or flush; NULL: not there. */
const struct refcache_value *refcache_find(const struct refcache *c, const struct refcache_key *k);
/* Remember a value for the next flush (one that is not finite: in memory only). A key that is there keeps its value. ERR_OOM. */
int refcache_put(struct refcache *c, const struct refcache_key *k, double w, double l);
/* Take over what others have appended - for a key that both have computed theirs is the value from now on - and append what was put. Unless
 * `now`, only where the last time is a second ago. ERR_OOM. */
int refcache_flush(struct refcache *c, bool now);
/* The values are wrong: forget all of them, and empty the file unless somebody did so already. */
void refcache_drop(struct refcache *c);
#endif
