/* SPDX-License-Identifier: MIT
 * attention_bwd.cu - gradients of attention (FlashAttention-2: Dao 2023, arXiv 2307.08691). With
 * p = exp(scale q k^T - lse), made again by tiles, delta = sum_d dout * o, ds = p (dout v^T - delta):
 *   dv = p^T dout    dk = scale ds^T q    dq = scale ds k
 *
 * Two passes, so that every output has one writer and no atomic is needed: dq walks over keys as the forward does; dk and dv
 * have a block for each 64 rows of k that a segment owns, which walks over the rows of its group's segments that see them,
 * segment by segment (a prompt's gradient is the sum over the prompt, the chosen and the rejected response, in this order) and over
 * all heads of the kv head. p and ds are made twice, 7 products instead of 5; rejected: adding dq up in float by
 * atomics, whose order and therefore bits change from run to run. p and ds are rounded to bfloat16 as factors.
 *
 * As nvcc 13.0 compiles it for sm_90, without a spill (-Xptxas -v), and what follows for a multiprocessor of 65536 registers and
 * 228 KiB of shared memory; computed, not measured:
 *   kernel, heads of   registers   shared memory of a block   blocks a multiprocessor
 *   dq, 64             166         48 KiB                     3 (registers)
 *   dq, 128            166         96 KiB                     2 (shared memory)
 *   dk and dv, 64      168         49 KiB                     3 (registers)
 *   dk and dv, 128     245         97 KiB                     2 (both)
 * All fit the 99 KiB of sm_86. A prompt's first block of dk and dv walks over all rows of its group and all heads of its kv head, one
 * after the other: with few kv heads that block is the longest of the launch, however many multiprocessors there are. */
#include "attention_mma.cuh"
#include "sdpa.h"
#include <math.h>

#define LOG2_E 1.44269504088896340736f

struct dkv_rows {             /* of a tile of packed rows, in shared memory */
    float lse[64], delta[64]; /* log2(e) lse; +inf beyond the segment's rows, whose p is then 0 */
};
template <int D> struct bwd_tile {
    enum {
        ELEMENTS = 64 * D,
        SHARED = 6 * ELEMENTS * 2,
        SHARED_DKV = SHARED + 2 * (int)sizeof(struct dkv_rows)
    }; /* bytes */
};

/* delta[T,H]; a warp each */
template <class A>
static __global__ void attention_delta_kernel(float *delta, const A *dout, int64_t lddo, const A *o,
                                              int64_t ldo, int64_t n, int32_t H, int32_t D)
{
    const int64_t i = global_thread() / 32, t = i / H, at = i % H * D;
    if (i >= n) return;
    float sum = 0;
    for (int32_t d = (int32_t)threadIdx.x % 32; d < D; d += 32)
        sum += load(dout + t * lddo + at + d) * load(o + t * ldo + at + d);
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) delta[i] = sum;
}

/* --- dq: 64 packed rows, all the keys that they see ------------------------------------------------------------------- */
template <int D>
static __global__ void __launch_bounds__(ATT_THREADS)
    attention_dq_kernel(const struct att_args a, const struct att_grads d)
{
    enum { TILE = bwd_tile<D>::ELEMENTS, NT = ATT_KEYS / 8 };
    CUDA_DYNAMIC_SHARED(bf16, sq);
    bf16 *sdo = sq + TILE, *sk = sdo + TILE, *sv = sk + 2 * TILE;
    const struct att_item it = a.item[blockIdx.x / a.K];
    const int32_t g = (int32_t)(blockIdx.x % a.K);
    const struct segment s = a.seg[it.seg];
    const int32_t rows = s.len * a.G, warp = (int32_t)threadIdx.x / 32 * 16,
                  lane = (int32_t)threadIdx.x % 32;
    const bool idle = it.at + warp >= rows;
    float lse[2], delta[2], acc[1][D / 8][4];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int32_t p = MIN(it.at + warp + 8 * i + lane / 4, rows - 1), token = att_token(a, p);
        const int64_t at = (s.q + (int64_t)token) * a.H + g * a.G + p - token * a.G;
        lse[i] = d.lse[at] * LOG2_E;
        delta[i] = d.delta[at];
    }
#pragma unroll
    for (int n = 0; n < D / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            acc[0][n][i] = 0;
    /* last key that every row of the warp sees */
    const int32_t seen = s.prefix_len + att_token(a, idle ? 0 : it.at + warp);
    att_load_rows<D, 64>(sq, a.q, a.ldq, a, s.q, rows, g, it.at);
    att_load_rows<D, 64>(sdo, d.dout, d.lddo, a, s.q, rows, g, it.at);
    att_load_keys<D>(sk, a.k, a.ldk, s, g, 0);
    att_load_keys<D>(sv, a.v, a.ldv, s, g, 0);
    ptx_copy_commit();
    for (int32_t t = 0; t < it.work; t++) {
        ptx_copy_wait<0>();
        __syncthreads(); /* tile t is there, and all are done with the buffer of t - 1 */
        if (t + 1 < it.work) {
            att_load_keys<D>(sk + (t + 1) % 2 * TILE, a.k, a.ldk, s, g, (t + 1) * ATT_KEYS);
            att_load_keys<D>(sv + (t + 1) % 2 * TILE, a.v, a.ldv, s, g, (t + 1) * ATT_KEYS);
            ptx_copy_commit();
        }
        if (idle) continue;
        float c[1][NT][4], dp[1][NT][4];
        att_product<D>(c, sq, warp, sk + t % 2 * TILE);
        att_product<D>(dp, sdo, warp, sv + t % 2 * TILE);
        if (t * ATT_KEYS + ATT_KEYS - 1 > seen)
            att_mask(c, a, it.at + warp + lane / 4, s.prefix_len, t * ATT_KEYS);
#pragma unroll
        for (int n = 0; n < NT; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                c[0][n][i] = ptx_exp2(fmaf(c[0][n][i], a.scale_log2, -lse[i / 2])) *
                             (dp[0][n][i] - delta[i / 2]);
        att_product_add<D>(acc, c, sk + t % 2 * TILE);
    }
    if (idle) return;
    const float scale[2] = { a.scale, a.scale };
    att_put_rows<D>(sq, warp, acc[0], scale);
    att_store_rows<D, 16>(d.dq, d.lddq, sq, warp, a, s.q, rows, g, it.at);
}

/* --- dk and dv: 64 kv rows, all the packed rows that see them ------------------------------------------------------------ */
struct dkv_row {
    float lse, delta;
};

/* the thread's row of tile w.tile, for threads 0 to 63 */
static __device__ inline struct dkv_row dkv_row_read(const struct att_args &a,
                                                     const struct att_grads &d,
                                                     const struct att_window &w, int32_t g)
{
    const int32_t p = w.tile * 64 + (int32_t)threadIdx.x;
    struct dkv_row r = { INFINITY, 0 };
    if (threadIdx.x >= 64 || p >= w.rows) return r;
    const int32_t token = att_token(a, p);
    const int64_t at = (w.q + (int64_t)token) * a.H + g * a.G + p - token * a.G;
    r.lse = d.lse[at] * LOG2_E;
    r.delta = d.delta[at];
    return r;
}

static __device__ inline void dkv_row_put(struct dkv_rows &to, const struct dkv_row &r)
{
    if (threadIdx.x >= 64) return;
    to.lse[threadIdx.x] = r.lse;
    to.delta[threadIdx.x] = r.delta;
}

/* c[keys, rows] = -inf where a packed row does not see a key; key: place in the window of the lane's upper key, row: the
 * lane's first packed row */
template <int NT>
static __device__ inline void dkv_mask(float (&c)[1][NT][4], const struct att_args &a,
                                       const struct att_window &w, int32_t key, int32_t row)
{
#pragma unroll
    for (int n = 0; n < NT; n++)
#pragma unroll
        for (int j = 0; j < 2; j++) {
            const int32_t seen = w.own ? MIN(w.len - 1, att_token(a, row + 8 * n + j)) : w.len - 1;
            if (key < 0 || key > seen) c[0][n][j] = -INFINITY;
            if (key + 8 < 0 || key + 8 > seen) c[0][n][j + 2] = -INFINITY;
        }
}

/* What tile w of packed rows adds to dk and dv of the warp's 16 keys: half a tile at a time, since p and ds of a whole one
 * beside dk and dv are more than the registers hold. */
template <int D>
static __device__ inline void dkv_tile(const struct att_args &a, const struct att_window &w,
                                       float (&dk)[1][D / 8][4], float (&dv)[1][D / 8][4],
                                       const bf16 *sk, const bf16 *sv, const bf16 *sq,
                                       const bf16 *sdo, const struct dkv_rows &rows)
{
    enum { ROWS = 32, NT = ROWS / 8 };
    const int32_t warp = (int32_t)threadIdx.x / 32 * 16, col = 2 * ((int32_t)threadIdx.x % 4);
#pragma unroll 1
    for (int r = 0; r < 64; r += ROWS) {
        float p[1][NT][4], ds[1][NT][4];
        att_product<D>(p, sk, warp, sq + r * D);
        if (w.first < 0 || w.first + ATT_KEYS > w.len ||
            (w.own && w.first + ATT_KEYS - 1 > att_token(a, w.tile * 64 + r)))
            dkv_mask(p, a, w, w.first + warp + (int32_t)threadIdx.x % 32 / 4,
                     w.tile * 64 + r + col);
#pragma unroll
        for (int n = 0; n < NT; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                p[0][n][i] =
                    ptx_exp2(fmaf(p[0][n][i], a.scale_log2, -rows.lse[r + 8 * n + col + i % 2]));
        att_product_add<D>(dv, p, sdo + r * D);
        att_product<D>(ds, sv, warp, sdo + r * D);
#pragma unroll
        for (int n = 0; n < NT; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                ds[0][n][i] = p[0][n][i] * (ds[0][n][i] - rows.delta[r + 8 * n + col + i % 2]);
        att_product_add<D>(dk, ds, sq + r * D);
    }
}

/* x rows [row, row + n), head g = c times scale, by way of the warp's rows of the tile */
template <int D>
static __device__ inline void dkv_store(void *x, int64_t ld, bf16 *tile, const float (&c)[D / 8][4],
                                        float scale, int32_t g, int64_t row, int32_t n)
{
    enum { CHUNKS = D / 8 };
    const int32_t warp = (int32_t)threadIdx.x / 32 * 16;
    const float scales[2] = { scale, scale };
    att_put_rows<D>(tile, warp, c, scales);
    __syncwarp();
#pragma unroll
    for (int i = (int)threadIdx.x % 32; i < 16 * CHUNKS; i += 32) {
        const int r = warp + i / CHUNKS;
        if (r >= n) continue;
        *reinterpret_cast<uint4 *>(static_cast<bf16 *>(x) + (row + r) * ld + g * D +
                                   i % CHUNKS * 8) =
            *reinterpret_cast<const uint4 *>(tile + att_at<D>(r, i % CHUNKS));
    }
}

template <int D>
static __global__ void __launch_bounds__(ATT_THREADS, D == 64 ? 3 : 2)
    attention_dkv_kernel(const struct att_args a, const struct att_grads d)
{
    enum { TILE = bwd_tile<D>::ELEMENTS };
    CUDA_DYNAMIC_SHARED(bf16, sk);
    bf16 *sv = sk + TILE, *sq = sv + TILE, *sdo = sq + 2 * TILE;
    struct dkv_rows *rows = reinterpret_cast<struct dkv_rows *>(sdo + 2 * TILE);
    const struct att_item it = a.item[blockIdx.x / a.K];
    const int32_t g = (int32_t)(blockIdx.x % a.K);
    const struct segment s = a.seg[it.seg];
    const int32_t row = s.own + it.at, n = s.len - it.at < ATT_KEYS ? s.len - it.at : ATT_KEYS;
    const struct segment keys = { 0, n, row, 0, 0 };
    const bool idle = (int32_t)threadIdx.x / 32 * 16 >= n;
    struct att_window next = { it.first, -1, 0, 0, 0, 0, 0, 0 };
    float dk[1][D / 8][4], dv[1][D / 8][4];
#pragma unroll
    for (int i = 0; i < D / 8 * 4; i++)
        dk[0][i / 4][i % 4] = dv[0][i / 4][i % 4] = 0;
    att_load_keys<D>(sk, a.k, a.ldk, keys, g, 0);
    att_load_keys<D>(sv, a.v, a.ldv, keys, g, 0);
    bool more = att_window_next(&next, a.seg, it.end, row, n, a.G,
                                64); /* true: the segment sees its own rows */
    att_load_rows<D, 64>(sq, a.q, a.ldq, a, next.q, next.rows, g, next.tile * 64);
    att_load_rows<D, 64>(sdo, d.dout, d.lddo, a, next.q, next.rows, g, next.tile * 64);
    ptx_copy_commit();
    dkv_row_put(rows[0], dkv_row_read(a, d, next, g));
    for (int stage = 0; more; stage ^= 1) {
        const struct att_window w = next;
        const int other = stage ^ 1;
        struct dkv_row r = { 0, 0 };
        if (++next.tile == next.tiles)
            more = att_window_next(&next, a.seg, it.end, row, n, a.G, 64);
        ptx_copy_wait<0>();
        __syncthreads(); /* tile w is there, and all are done with the other buffer */
        if (more) {
            att_load_rows<D, 64>(sq + other * TILE, a.q, a.ldq, a, next.q, next.rows, g,
                                 next.tile * 64);
            att_load_rows<D, 64>(sdo + other * TILE, d.dout, d.lddo, a, next.q, next.rows, g,
                                 next.tile * 64);
            ptx_copy_commit();
            r = dkv_row_read(a, d, next,
                             g); /* and stored when the products have hidden the wait for it */
        }
        if (!idle)
            dkv_tile<D>(a, w, dk, dv, sk, sv, sq + stage * TILE, sdo + stage * TILE, rows[stage]);
        if (more) dkv_row_put(rows[other], r);
    }
    if (idle) return;
    dkv_store<D>(d.dk, d.lddk, sk, dk[0], a.scale, g, row, n);
    dkv_store<D>(d.dv, d.lddv, sv, dv[0], 1, g, row, n);
}

/* --- the three launches -------------------------------------------------------------------------------------------------- */
template <class A>
static int bwd_delta(struct ctx *cx, float *delta, const struct tensor *dout,
                     const struct tensor *o, int64_t H, int64_t D)
{
    const int64_t n = dout->dim[0] * H;
    return LAUNCH(cx, (attention_delta_kernel<A>), blocks_for(n * 32, 256), dim3(256), 0, delta,
                  data_of<A>(dout), dout->ld, data_of<A>(o), o->ld, n, (int32_t)H, (int32_t)D);
}

template <int D>
static int bwd_dq(struct ctx *cx, const struct att_args *a, int32_t n_items,
                  const struct att_grads *d)
{
    return LAUNCH(cx, (attention_dq_kernel<D>), dim3((unsigned)(n_items * a->K)), dim3(ATT_THREADS),
                  (size_t)(bwd_tile<D>::SHARED), *a, *d);
}

template <int D>
static int bwd_dkv(struct ctx *cx, const struct att_args *a, int32_t n_items,
                   const struct att_grads *d)
{
    return LAUNCH(cx, (attention_dkv_kernel<D>), dim3((unsigned)(n_items * a->K)),
                  dim3(ATT_THREADS), (size_t)(bwd_tile<D>::SHARED_DKV), *a, *d);
}

int cuda_attention_bwd(struct ctx *cx, struct tensor *dq, struct tensor *dk, struct tensor *dv,
                       const struct tensor *dout, const struct tensor *o, const struct tensor *lse,
                       const struct tensor *q, const struct tensor *k, const struct tensor *v,
                       const struct segments *segs, int32_t head_size, float scale)
{
    const bool mma = att_has_mma(q, k, v, head_size) && att_vectors(dq) && att_vectors(dk) &&
                     att_vectors(dv) && att_vectors(dout);
    const struct att_tile plain = att_plain_tile(), tile = mma ? att_tile{ 64, ATT_KEYS } : plain;
    const int64_t T = q->dim[0], H = q->dim[1] / head_size;
    struct att_args a;
    void *delta;
    int32_t n;
    if (sdpa_takes(cx, q, k, head_size) && att_vectors(q) && att_vectors(o) && att_vectors(dout) &&
        att_vectors(dq))
        return sdpa_attention_bwd(cx, dq, dk, dv, dout, o, lse, q, k, v, segs, head_size, scale);
    TRY(att_prepare(cx, &a, &n, ATT_DQ, tile, q, k, v, segs, head_size, scale));
    if (n == 0) return 0;
    TRY(cuda_scratch(cx, T * H * (int64_t)sizeof(float), &delta));
    const struct att_grads d = { dout->data,
                                 data_of<float>(lse),
                                 static_cast<float *>(delta),
                                 dq->data,
                                 dk->data,
                                 dv->data,
                                 dout->ld,
                                 dq->ld,
                                 dk->ld,
                                 dv->ld };
    TRY(BY_DTYPE(q->dtype, bwd_delta, cx, static_cast<float *>(delta), dout, o, H, head_size));
    if (mma)
        TRY(head_size == 64 ? bwd_dq<64>(cx, &a, n, &d) : bwd_dq<128>(cx, &a, n, &d));
    else
        TRY(att_plain_dq(cx, &a, n, &d, q->dtype));
    TRY(att_prepare(cx, &a, &n, ATT_DKV, tile, q, k, v, segs, head_size, scale));
    if (!mma) return att_plain_dkv(cx, &a, n, &d, q->dtype);
    return head_size == 64 ? bwd_dkv<64>(cx, &a, n, &d) : bwd_dkv<128>(cx, &a, n, &d);
}
