/* SPDX-License-Identifier: MIT
 * attention_mma.cuh - tiles of bfloat16 rows in shared memory and their products on tensor cores.
 *
 * A tile is [rows][D]; 16-byte chunk c of row r lies at chunk c ^ (r & 7), so that the eight rows which a load of fragments
 * reads at once lie in different banks. A block has 4 warps; a warp owns 16 MT rows of the A side and multiplies them with all
 * rows of the B side. Accumulators c[n][4] of an 8-column tile n: a lane has row lane / 4, columns 2 (lane % 4) + {0, 1}, and
 * in c[n][2], c[n][3] the same eight rows down. */
#ifndef BDPO_CUDA_ATTENTION_MMA_CUH
#define BDPO_CUDA_ATTENTION_MMA_CUH
#include "attention.cuh"
#include <math.h>

enum { ATT_KEYS = 64 }; /* of a tile */

template <int D> __device__ inline int att_at(int row, int chunk)
{
    return row * D + ((chunk ^ (row & 7)) << 3);
}

/* tile = packed rows [at, at + ROWS) of a matrix of queries (from row `q` of x, `rows` packed rows); zeros beyond them. */
template <int D, int ROWS>
__device__ inline void att_load_rows(bf16 *tile, const void *x, int64_t ld, const struct att_args &a, int32_t q, int32_t rows,
                                     int32_t g, int32_t at)
{
    constexpr int CHUNKS = D / 8, STEP = ATT_THREADS / CHUNKS;
    const int c = threadIdx.x % CHUNKS;
#pragma unroll 2
    for (int i = 0; i < ROWS / STEP; i++) {
        const int r = threadIdx.x / CHUNKS + i * STEP;
        const bool there = at + r < rows;
        const int32_t p = there ? at + r : 0, token = att_token(a, p), head = g * a.G + p - token * a.G;
        ptx_copy_async(tile + att_at<D>(r, c), static_cast<const bf16 *>(x) + (q + (int64_t)token) * ld + head * D + c * 8, there);
    }
}

/* tile = keys (or values) [first, first + ATT_KEYS) of the segment for kv head g; zeros beyond its keys. */
template <int D>
__device__ inline void att_load_keys(bf16 *tile, const void *x, int64_t ld, const struct segment &s, int32_t g, int32_t first)
{
    constexpr int CHUNKS = D / 8, STEP = ATT_THREADS / CHUNKS;
    const int c = threadIdx.x % CHUNKS;
#pragma unroll 2
    for (int i = 0; i < ATT_KEYS / STEP; i++) {
        const int r = threadIdx.x / CHUNKS + i * STEP;
        const bool there = first + r < s.prefix_len + s.len;
        ptx_copy_async(tile + att_at<D>(r, c), static_cast<const bf16 *>(x) + att_key_row(s, there ? first + r : 0) * ld + g * D + c * 8,
                       there);
    }
}

/* Loads of fragments; row: a multiple of 8. The place of chunk 2 k + h, h = 0 or 1, of a row is that of chunk h with k's bits
 * flipped. */
template <int D> __device__ inline const bf16 *att_lane(const bf16 *tile, int row, int lane_row, int h, int k)
{
    return tile + row * D + ((lane_row * D + ((h ^ (lane_row & 7)) << 3)) ^ (k << 4));
}
/* Rows [row, row + 16), columns [16 k, 16 k + 16) of a tile as the A operand. */
template <int D> __device__ inline void att_frag_a(uint32_t f[4], const bf16 *tile, int row, int k)
{
    const int lane = threadIdx.x & 31;
    ptx_ldmatrix(f, att_lane<D>(tile, row, lane & 15, lane >> 4, k));
}
/* The B operand of columns [row, row + 16), two tiles of 8, where the tile's rows are those columns: B = tile^T. */
template <int D> __device__ inline void att_frag_b(uint32_t f[4], const bf16 *tile, int row, int k)
{
    const int lane = threadIdx.x & 31;
    ptx_ldmatrix(f, att_lane<D>(tile, row, (lane & 7) + ((lane >> 4) << 3), (lane >> 3) & 1, k));
}
/* The B operand of columns [16 n, 16 n + 16) where the tile's rows [row, row + 16) are summed over: B = tile. */
template <int D> __device__ inline void att_frag_bt(uint32_t f[4], const bf16 *tile, int row, int n)
{
    const int lane = threadIdx.x & 31;
    ptx_ldmatrix_trans(f, att_lane<D>(tile, row, lane & 15, lane >> 4, n));
}

/* c[MT][NT] = rows [row, row + 16 MT) of tile a times (8 NT rows of tile b)^T */
template <int D, int MT, int NT>
__device__ inline void att_product(float (&c)[MT][NT][4], const bf16 *a, int row, const bf16 *b)
{
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int n = 0; n < NT; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                c[m][n][i] = 0;
#pragma unroll 4
    for (int k = 0; k < D / 16; k++) {
        uint32_t fa[MT][4];
#pragma unroll
        for (int m = 0; m < MT; m++)
            att_frag_a<D>(fa[m], a, row + 16 * m, k);
#pragma unroll
        for (int n = 0; n < NT; n += 2) {
            uint32_t fb[4];
            att_frag_b<D>(fb, b, 8 * n, k);
#pragma unroll
            for (int m = 0; m < MT; m++) {
                ptx_mma_bf16(c[m][n], fa[m], fb);
                ptx_mma_bf16(c[m][n + 1], fa[m], fb + 2);
            }
        }
    }
}

/* c[MT][D/8] += p times tile b, p [16 MT, 8 NT] as accumulators, rounded to bfloat16 */
template <int D, int MT, int NT>
__device__ inline void att_product_add(float (&c)[MT][D / 8][4], const float (&p)[MT][NT][4], const bf16 *b)
{
#pragma unroll
    for (int k = 0; k < NT / 2; k++) {
        uint32_t fa[MT][4];
#pragma unroll
        for (int m = 0; m < MT; m++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                fa[m][i] = ptx_pack_bf16(p[m][2 * k + i / 2][2 * (i % 2)], p[m][2 * k + i / 2][2 * (i % 2) + 1]);
#pragma unroll
        for (int n = 0; n < D / 16; n++) {
            uint32_t fb[4];
            att_frag_bt<D>(fb, b, 16 * k, n);
#pragma unroll
            for (int m = 0; m < MT; m++) {
                ptx_mma_bf16(c[m][2 * n], fa[m], fb);
                ptx_mma_bf16(c[m][2 * n + 1], fa[m], fb + 2);
            }
        }
    }
}

/* Scores = -inf where a packed row does not see a key. row: the lane's first packed row; first: the first key. */
template <int MT, int NT>
__device__ inline void att_mask(float (&c)[MT][NT][4], const struct att_args &a, int32_t row, int32_t prefix_len, int32_t first)
{
    const int32_t key = first + 2 * (threadIdx.x % 4);
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int32_t seen = prefix_len + att_token(a, row + 16 * m + 8 * i);
#pragma unroll
            for (int n = 0; n < NT; n++)
#pragma unroll
                for (int j = 0; j < 2; j++)
                    if (key + 8 * n + j > seen) c[m][n][2 * i + j] = -INFINITY;
        }
}

/* Rows [row, row + 16) of tile = c times scale[i] for the lane's upper and lower rows. Only the warp that owns the rows
 * may read or write them, before and after. */
template <int D> __device__ inline void att_put_rows(bf16 *tile, int row, const float (&c)[D / 8][4], const float scale[2])
{
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int n = 0; n < D / 8; n++)
#pragma unroll
        for (int i = 0; i < 2; i++)
            *reinterpret_cast<uint32_t *>(tile + att_at<D>(row + lane / 4 + 8 * i, n) + 2 * (lane % 4)) =
                ptx_pack_bf16(c[n][2 * i] * scale[i], c[n][2 * i + 1] * scale[i]);
}

/* Rows [row, row + ROWS) of the tile that the warp owns, to packed rows from `at` + row of x. */
template <int D, int ROWS>
__device__ inline void att_store_rows(void *x, int64_t ld, const bf16 *tile, int row, const struct att_args &a, int32_t q,
                                      int32_t rows, int32_t g, int32_t at)
{
    constexpr int CHUNKS = D / 8;
    __syncwarp();
#pragma unroll
    for (int i = threadIdx.x & 31; i < ROWS * CHUNKS; i += 32) {
        const int r = row + i / CHUNKS, c = i % CHUNKS;
        if (at + r >= rows) continue;
        const int32_t token = att_token(a, at + r), head = g * a.G + at + r - token * a.G;
        *reinterpret_cast<uint4 *>(static_cast<bf16 *>(x) + (q + (int64_t)token) * ld + head * D + c * 8) =
            *reinterpret_cast<const uint4 *>(tile + att_at<D>(r, c));
    }
}
#endif
