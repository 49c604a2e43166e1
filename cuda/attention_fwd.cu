/* SPDX-License-Identifier: MIT
 * attention_fwd.cu - o = softmax(scale q k^T) v with an online softmax (FlashAttention-2: Dao 2023, arXiv 2307.08691).
 *
 * A block has 64 MT packed rows of one segment and kv head and walks over the tiles of 64 keys that they see. While it works
 * on one tile, cp.async brings the next into the other half of a double buffer; one barrier a tile. Scores and o stay in
 * registers; p is rounded to bfloat16 for its product with v, its row sum is not. Each output is written once, by one warp,
 * after a sum in a fixed order: deterministic. Bytes moved: q, o and lse once; k and v once for each 64 MT packed rows.
 *
 * As nvcc 13.0 compiles it for sm_90, without a spill (-Xptxas -v), and what follows for a multiprocessor of 65536 registers and
 * 228 KiB of shared memory; computed, not measured:
 *   heads of   registers   shared memory of a block   blocks a multiprocessor
 *   64         222         48 KiB                     2 (registers)
 *   128        255         96 KiB                     2 (both) */
#include "attention_mma.cuh"
#include "sdpa.h"
#include <math.h>

template <int D, int MT> struct fwd_tile {
    enum {
        ROWS = 64 * MT,
        SHARED = (ROWS + 4 * ATT_KEYS) * D * 2
    }; /* bytes: q, and two of k and of v */
    enum {
        KEYS = MT * D > 128 ? ATT_KEYS / 2 : ATT_KEYS
    }; /* whose scores are there at a time: what the registers hold */
};

/* of a lane's rows: the running maximum of the scores and, of this lane's keys, sum of p */
template <int MT> struct softmax_rows {
    float top[MT][2], sum[MT][2];
};

/* c becomes p = exp(scale (c - top)) with the new top, and the old sums are brought to it. A row's first key is seen by
 * all, so that top is finite from the first tile on. */
template <int D, int MT, int NT>
static __device__ inline void fwd_softmax(float (&c)[MT][NT][4], float (&o)[MT][D / 8][4],
                                          struct softmax_rows<MT> &r, float scale_log2)
{
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float top = r.top[m][i], sum = 0;
#pragma unroll
            for (int n = 0; n < NT; n++)
                top = fmaxf(top, fmaxf(c[m][n][2 * i], c[m][n][2 * i + 1]));
            top = fmaxf(top, __shfl_xor_sync(ALL_LANES, top, 1));
            top = fmaxf(top, __shfl_xor_sync(ALL_LANES, top, 2));
            const float shift = top * scale_log2,
                        back = ptx_exp2(fmaf(r.top[m][i], scale_log2, -shift));
#pragma unroll
            for (int n = 0; n < NT; n++)
#pragma unroll
                for (int j = 2 * i; j < 2 * i + 2; j++) {
                    c[m][n][j] = ptx_exp2(fmaf(c[m][n][j], scale_log2, -shift));
                    sum += c[m][n][j];
                }
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
                o[m][n][2 * i] *= back;
                o[m][n][2 * i + 1] *= back;
            }
            r.top[m][i] = top;
            r.sum[m][i] = r.sum[m][i] * back + sum;
        }
}

/* o / sum and log-sum-exp to memory, by way of the warp's rows of the q tile */
template <int D, int MT>
static __device__ inline void fwd_store(const struct att_args &a, const struct segment &s,
                                        const struct att_item &it, int32_t g,
                                        float (&acc)[MT][D / 8][4], struct softmax_rows<MT> &r,
                                        bf16 *sq, void *o, int64_t ldo, float *lse)
{
    const int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 * MT;
#pragma unroll
    for (int m = 0; m < MT; m++) {
        float inverse[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float sum = r.sum[m][i];
            sum += __shfl_xor_sync(ALL_LANES, sum, 1);
            sum += __shfl_xor_sync(ALL_LANES, sum, 2);
            inverse[i] = 1.0f / sum;
            const int32_t p = it.at + row + 16 * m + 8 * i + lane / 4;
            if (lane % 4 == 0 && p < s.len * a.G) {
                const int32_t token = att_token(a, p);
                lse[(s.q + (int64_t)token) * a.H + g * a.G + p - token * a.G] =
                    r.top[m][i] * a.scale + logf(sum);
            }
        }
        att_put_rows<D>(sq, row + 16 * m, acc[m], inverse);
    }
    att_store_rows<D, 16 * MT>(o, ldo, sq, row, a, s.q, s.len * a.G, g, it.at);
}

template <int D, int MT>
static __global__ void __launch_bounds__(ATT_THREADS)
    attention_fwd_kernel(const struct att_args a, void *o, int64_t ldo, float *lse)
{
    enum { TILE = ATT_KEYS * D, KEYS = fwd_tile<D, MT>::KEYS };
    CUDA_DYNAMIC_SHARED(bf16, sq);
    bf16 *sk = sq + fwd_tile<D, MT>::ROWS * D, *sv = sk + 2 * TILE;
    const struct att_item it = a.item[blockIdx.x / a.K];
    const int32_t g = (int32_t)(blockIdx.x % a.K);
    const struct segment s = a.seg[it.seg];
    const int32_t rows = s.len * a.G,
                  row = it.at + (int32_t)threadIdx.x / 32 * 16 * MT; /* of the warp */
    const bool idle = row >= rows;
    struct softmax_rows<MT> r;
    float acc[MT][D / 8][4];
#pragma unroll
    for (int m = 0; m < MT; m++) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            r.top[m][i] = -INFINITY;
            r.sum[m][i] = 0;
        }
#pragma unroll
        for (int n = 0; n < D / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                acc[m][n][i] = 0;
    }
    att_load_rows<D, fwd_tile<D, MT>::ROWS>(sq, a.q, a.ldq, a, s.q, rows, g, it.at);
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
#pragma unroll 1
        for (int32_t k = 0; k < ATT_KEYS; k += KEYS) {
            const int32_t first = t * ATT_KEYS + k;
            float c[MT][KEYS / 8][4];
            att_product<D>(c, sq, row - it.at, sk + t % 2 * TILE + k * D);
            /* there is a key that the warp's first row, which sees least, does not see */
            if (first + KEYS - 1 > s.prefix_len + att_token(a, row))
                att_mask(c, a, row + (int32_t)threadIdx.x % 32 / 4, s.prefix_len, first);
            fwd_softmax<D>(c, acc, r, a.scale_log2);
            att_product_add<D>(acc, c, sv + t % 2 * TILE + k * D);
        }
    }
    if (!idle) fwd_store<D>(a, s, it, g, acc, r, sq, o, ldo, lse);
}

template <int D, int MT>
static int fwd_launch(struct ctx *cx, const struct att_args *a, int32_t n_items, struct tensor *o,
                      float *lse)
{
    return LAUNCH(cx, (attention_fwd_kernel<D, MT>), dim3((unsigned)(n_items * a->K)),
                  dim3(ATT_THREADS), (size_t)(fwd_tile<D, MT>::SHARED), *a, o->data, o->ld, lse);
}

enum { FWD_MT = 2 };

int cuda_attention_fwd(struct ctx *cx, struct tensor *o, struct tensor *lse, const struct tensor *q,
                       const struct tensor *k, const struct tensor *v, const struct segments *segs,
                       int32_t head_size, float scale)
{
    const bool mma = att_has_mma(q, k, v, head_size) && att_vectors(o);
    struct att_tile tile = att_plain_tile();
    struct att_args a;
    int32_t n;
    if (sdpa_takes(cx, q, k, head_size) && att_vectors(q) && att_vectors(o))
        return sdpa_attention_fwd(cx, o, lse, q, k, v, segs, head_size, scale);
    if (mma) tile = { 64 * FWD_MT, ATT_KEYS };
    TRY(att_prepare(cx, &a, &n, ATT_FWD, tile, q, k, v, segs, head_size, scale));
    if (n == 0) return 0;
    if (!mma) return att_plain_fwd(cx, &a, n, o, data_of<float>(lse));
    return head_size == 64 ? fwd_launch<64, FWD_MT>(cx, &a, n, o, data_of<float>(lse))
                           : fwd_launch<128, FWD_MT>(cx, &a, n, o, data_of<float>(lse));
}
