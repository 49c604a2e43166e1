/* SPDX-License-Identifier: MIT
 * zero.h - ZeRO-2 over flat ranges: every rank holds the weights, and a shard of the gradient's sum, of the master weights and the moments.
 * It knows no layers: groups are ranges of the flat parameters in the order in which a backward pass finishes them. A group is cut into
 * buckets of at most 16 MiB of float32, a bucket into one part a rank (multiples of 1,024 elements, the last one shorter, some empty), dealt
 * out from another rank on in each bucket, so that small buckets spread too. A rank's shard is its parts in the order of the flat array. */
#ifndef BDPO_ZERO_H
#define BDPO_ZERO_H
#include "dist.h"
#include "link.h"
#include "../ops/plan.h"

enum { ZERO_SLOTS = NET_SLOTS, ZERO_STATES = 3 };
enum zero_state { ZERO_MASTER, ZERO_MOMENT1, ZERO_MOMENT2 };

struct zero_bucket {
    int64_t begin, end, part; /* elements; of one part */
    int64_t block;            /* its first block of 1,024 in the norm's sums */
};
struct zero_group {
    int64_t begin, end;
    int32_t first, n; /* buckets */
};
struct zero_slot {      /* a bucket whose parts are under way */
    int32_t bucket;     /* -1: free */
    const float *data;  /* the bucket's gradient on this rank */
};
struct zero { /* valid when zeroed */
    struct dist *d;            /* NULL: one rank */
    const struct backend *be;
    bool rounds;               /* reduced after every micro-batch into `sum`; else once a step, in place in the flat gradient */
    bool windows;              /* the gradient's array holds some groups at a time; else all n_flat elements */
    struct zero_group *group;  /* [n_groups] in the order of the backward */
    struct zero_bucket *bucket; /* [n_buckets] in the order of the flat array */
    int32_t n_groups, n_buckets;
    int64_t n_flat, n_blocks, part_max, group_cap, bucket_cap;
    struct flat_part *part;    /* [n_buckets] this rank's part of each bucket, owned */
    int64_t n_shard;           /* elements of the shard */
    struct tensor sum;         /* f32 [n_shard], where rounds */
    struct tensor stage;       /* f32 [slots * (ranks - 1), part_max]: parts that arrive */
    const struct tensor *grads; /* the gradient's array, borrowed */
    const struct tensor *state[ZERO_STATES]; /* f32, bf16 or i16 [n_shard], borrowed: what zero_fetch reads, as floats; */
    const struct tensor *weights;            /* bf16 [n_flat], borrowed: the upper halves where a state is i16 (split.h) */
    struct zero_slot slot[ZERO_SLOTS];
    struct link link;          /* the ranks' messages */
    struct net_message *message;   /* [2 * ranks] of one start */
    const bool *active;        /* [ranks] of the round, borrowed */
    int32_t next;              /* group that comes next in the round */
    int broken;                /* the error after which messages of this rank are missing: it can talk to the others no more, and ends all */
};

/* Groups are added in the order of the backward and cover [0, n_flat) together; then zero_split cuts them. be, d, grads: borrowed. */
int zero_init(struct zero *z, struct dist *d, const struct backend *be, int64_t n_flat);
int zero_add_group(struct zero *z, int64_t begin, int64_t end);
int zero_split(struct zero *z);
/* The part of bucket b that rank r owns (at: 0). */
struct flat_part zero_part(const struct zero *z, int32_t b, int32_t r);
/* Book sum and stage. grads: f32, n_flat elements or, with windows, what the ready callback points into. windows needs rounds. */
int zero_plan(struct zero *z, struct plan *p, const struct tensor *grads, bool rounds, bool windows);
/* After the plan was granted. ERR_OOM. */
int zero_ready(struct zero *z);
void zero_release(struct zero *z);

/* A step: zero_begin; then rounds of zero_round, zero_reduce for the groups in order while a backward runs, zero_finish. Without `rounds` there is
 * one round, of each rank's last micro-batch. */
int zero_begin(struct zero *z);
/* active[ranks]: which ranks have a gradient in this round, the same on all; borrowed until zero_finish. */
void zero_round(struct zero *z, const bool *active);
/* The next group's gradient is final and stands at `data`. Completes the group before, starts this one. Its memory may be written again after
 * the next call. The parts are added in the order of ranks: without `rounds` to this rank's own, with it to the sum. */
int zero_reduce(struct zero *z, int64_t begin, const float *data);
/* Whatever groups are left (all of them on a rank that is not active, or has failed), and wait: the round is complete. */
int zero_finish(struct zero *z);
/* This rank's part of bucket b of the reduced gradient: f32, zero_part's length. */
struct tensor zero_gradient(const struct zero *z, int32_t b);
/* All ranks: L2 norm of the whole reduced gradient. `fixed`: summed by blocks whose order no number of ranks changes. */
int zero_norm(struct zero *z, bool fixed, double *norm);

/* Send this rank's part of bucket b of `flat` (elements of `size` bytes), and receive the others' into it, until zero_gather_end. All ranks: all buckets
 * in order. */
int zero_gather(struct zero *z, int32_t b, void *flat, int64_t size);
int zero_gather_end(struct zero *z);

/* Elements [at, at + n) of a sharded array, all of which this rank holds. */
int zero_read(const struct zero *z, enum zero_state which, int64_t at, int64_t n, float *out);
/* Rank 0 reads elements [at, at + n) of a sharded array, while all others are in zero_serve; with one rank no one serves. */
int zero_fetch(struct zero *z, enum zero_state which, int64_t at, int64_t n, float *out);
int zero_serve(struct zero *z);
/* What this rank holds of elements [at, at + n) = in[n], which a bf16 state can hold. Not of an i16 state: its upper halves are the weights. */
int zero_store(struct zero *z, enum zero_state which, int64_t at, int64_t n, const float *in);
/* Rank 0: end of serving with rc; all ranks return it (zero_serve's value too). */
int zero_dismiss(struct zero *z, int rc);
#endif
