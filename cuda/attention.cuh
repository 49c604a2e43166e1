/* SPDX-License-Identifier: MIT
 * attention.cuh - what the kernels of attention share: how work is cut up, and the lists of it.
 *
 * Packed rows: the G = H/K query heads that read a kv head are rows of one matrix. Row p of a segment and kv head g is query
 * token p / G, head g G + p % G; there are len G of them. So a tile of rows is full whatever G is, its tokens are
 * near each other (few keys beyond the diagonal), and the sum over the heads of a kv head is a sum over rows.
 * Keys of a segment are counted through its prefix and then its own rows: key j is seen by token t if j <= prefix_len + t. */
#ifndef BDPO_CUDA_ATTENTION_CUH
#define BDPO_CUDA_ATTENTION_CUH
#include "kernel.cuh"

enum { ATT_THREADS = 128, ATT_D_MAX = 256 };
enum att_kind { ATT_FWD, ATT_DQ, ATT_DKV, ATT_KINDS };

/* A block's work, for one kv head. ATT_FWD, ATT_DQ: packed rows from `at` of segment `seg` against the first `work` tiles of
 * its keys. ATT_DKV: own rows from `at` of segment `seg`, as keys, against the rows of segments [first, end), its group, that
 * see them: `work` tiles. Longest first, so that the last blocks to start are short. */
struct att_item {
    int32_t seg, at, first, end, work;
};

struct att_tile { /* packed rows and keys of a tile */
    int32_t rows, keys;
};

struct att_args { /* to every kernel, by value; device memory */
    const struct segment *seg;
    const struct att_item *item;
    const void *q, *k, *v;
    int64_t ldq, ldk, ldv;
    int32_t H, K, G, D;
    uint32_t divide; /* att_token */
    float scale, scale_log2; /* scale log2(e) */
};

struct att_grads { /* to the kernels of the backward */
    const void *dout;
    const float *lse, *delta; /* [T,H]; delta: the sum of dout * o over a head */
    void *dq, *dk, *dv;
    int64_t lddo, lddq, lddk, lddv;
};

/* --- host ---------------------------------------------------------------------------------------------------- */
struct att_list { /* the items of the last call of a kind; valid when zeroed */
    char *data; /* host: the segments, padded to 16 bytes, and the items; owned */
    int64_t room, bytes, items_at;
    int32_t n, n_items, G;
    struct att_tile tile;
};
struct att_work {
    struct att_list list[ATT_KINDS];
};
/* a: the sizes and inputs of a call, and the device's copy of its items, *n_items of them. They are kept: a call with
 * the segments of the one before, as every layer of a micro-batch makes, builds and uploads nothing. ERR_OOM, ERR_DEVICE. */
int att_prepare(struct ctx *cx, struct att_args *a, int32_t *n_items, enum att_kind kind, struct att_tile tile,
                const struct tensor *q, const struct tensor *k, const struct tensor *v, const struct segments *segs,
                int32_t head_size, float scale);
/* Rows of x can be read 16 bytes at a time. */
bool att_vectors(const struct tensor *x);
/* The tensor-core kernels take it: BF16, heads of 64 or 128, att_vectors of all. */
bool att_has_mma(const struct tensor *q, const struct tensor *k, const struct tensor *v, int32_t head_size);

/* The kernels without tensor cores, for every dtype and head size up to ATT_D_MAX. */
struct att_tile att_plain_tile(void);
int att_plain_fwd(struct ctx *cx, const struct att_args *a, int32_t n_items, struct tensor *o, float *lse);
int att_plain_dq(struct ctx *cx, const struct att_args *a, int32_t n_items, const struct att_grads *d, enum dtype A);
int att_plain_dkv(struct ctx *cx, const struct att_args *a, int32_t n_items, const struct att_grads *d, enum dtype A);

/* --- both sides ---------------------------------------------------------------------------------------------- */
/* A way in which the rows of a segment see keys [row, row + n) of the kv rows: as its prefix (whole), or as its own (causally). */
struct att_window {
    int32_t seg;
    int32_t own;          /* 0: the prefix, 1: own rows; -1 before the first */
    int32_t first, len;   /* place in the window of key `row`, < 0 where the window begins later; length of the window */
    int32_t q, rows;      /* the segment's first query row, its packed rows */
    int32_t tile, tiles;  /* tiles of packed rows that see some of the keys: [tile, tiles) */
};

/* The next window among segments [w->seg, end), or false. */
static __host__ __device__ inline bool att_window_next(struct att_window *w, const struct segment *seg, int32_t end,
                                                       int32_t row, int32_t n, int32_t G, int32_t tile_rows)
{
    for (;;) {
        if (++w->own == 2) {
            w->own = 0;
            w->seg++;
        }
        if (w->seg >= end) return false;
        const struct segment s = seg[w->seg];
        w->first = row - (w->own ? s.own : s.prefix);
        w->len = w->own ? s.len : s.prefix_len;
        if (s.len == 0 || w->first >= w->len || w->first + n <= 0) continue;
        w->q = s.q;
        w->rows = s.len * G;
        w->tile = w->own && w->first > 0 ? w->first * G / tile_rows : 0;
        w->tiles = (w->rows + tile_rows - 1) / tile_rows;
        return true;
    }
}

/* --- device -------------------------------------------------------------------------------------------------- */
/* p / G for p < 2^32 / G: the upper half of p (2^32 / G + 1) */
static __device__ inline int32_t att_token(const struct att_args &a, int32_t p)
{
    return a.G == 1 ? p : (int32_t)((uint64_t)(uint32_t)p * a.divide >> 32);
}

/* kv row of key j */
static __device__ inline int64_t att_key_row(const struct segment &s, int32_t j)
{
    return j < s.prefix_len ? s.prefix + j : s.own + (j - s.prefix_len);
}
#endif
