/* SPDX-License-Identifier: MIT
 * shards.h - the flat training state in files: state-RRRRR-of-NNNNN.bin holds the elements of the master weights and of both moments that rank R of N had,
 * any number of ranges [begin, end). Any range is read back out of any number of files, so a run may go on with another number of ranks.
 * A file is a header of 64 bytes, the table of its ranges (begin and end, i64 each, ascending), and three parts one after the other: the ranges' elements,
 * float32. All is little endian. The header:
 *   0 "BDPOSHRD"   8 u32 format   12 u32 parts   16 u32 rank   20 u32 ranks   24 i64 elements of the whole state   32 i64 ranges   40 i64 elements here
 *   48 zeros */
#ifndef BDPO_SHARDS_H
#define BDPO_SHARDS_H
#include "../base/mem.h"

enum state_part { STATE_MASTER, STATE_MOMENT1, STATE_MOMENT2, STATE_PARTS };
enum { RANKS_MAX = 99999, SHARD_HEADER = 64 };

struct shard_range {
    int64_t begin, end; /* elements of the flat state */
};
struct shard { /* one file */
    int32_t rank, ranks;
    int64_t held;  /* elements of its ranges together; may be 0 */
    int64_t bytes; /* of the whole file */
    int64_t crc;   /* zlib's CRC-32, of the whole file */
};
/* "state-00000-of-00001.bin" into out[32]; returns out. */
const char *shard_name(char out[32], int32_t rank, int32_t ranks);
/* Bytes of a file of so many ranges and elements. */
int64_t shard_bytes(int64_t ranges, int64_t held);

/* Elements [at, at + n) of a part, `at` counted from the start of the whole state, to out[n]. */
typedef int shard_get_fn(void *payload, enum state_part part, int64_t at, int64_t n, float *out);
/* The other way: in[n] to the part's elements [at, at + n). */
typedef int shard_put_fn(void *payload, enum state_part part, int64_t at, int64_t n, const float *in);

/* Write DIR/shard_name() of a state of `elements`, with the ascending ranges range[n]: s names rank and ranks; held, bytes and crc are filled. Durable on
 * return. Every rank calls it for its own file, without need of the others. ERR_IO, ERR_OOM or what `get` returns; then there is no file. */
int shard_write(struct shard *s, const char *dir, int64_t elements, const struct shard_range *range, int64_t n, shard_get_fn *get, void *payload);

struct shard_piece { /* a range and where it stands */
    struct shard_range range;
    int32_t file;
    int64_t at; /* its first element, of a part of the file */
};
struct shard_file {
    struct shard s;
    char *path;
    int fd;
    int64_t ranges;
};
struct shard_set { /* valid when zeroed */
    struct shard_file *files;
    int32_t n;
    struct shard_piece *pieces; /* ascending: together the whole state */
    int64_t n_pieces, elements;
};
/* Open all files of DIR that `shards`[n] name. Sizes and headers must agree with it, and the ranges must make a whole state: ERR_CHECKPOINT
 * naming the file. Checksums are not looked at (manifest_verify does that). */
int shard_set_open(struct shard_set *s, const char *dir, const struct shard *shards, int32_t n, int64_t elements);
/* Elements [begin, end) of a part, from whichever files hold them, in pieces to `put`. ERR_CHECKPOINT where a file cannot be read. */
int shard_set_read(const struct shard_set *s, enum state_part part, int64_t begin, int64_t end, shard_put_fn *put, void *payload);
void shard_set_close(struct shard_set *s);
#endif
