/* SPDX-License-Identifier: MIT
 * Biases, sums over rows, scatter-add and sums of squares. No float atomics: every sum runs in an order that the shapes
 * alone decide. */
#include "kernel.cuh"

constexpr int BLOCK = 256, ROWS = 64, GROUPS = 8, COLS = 32 * OCT;

/* --- sums over blocks of rows --------------------------------------------------------------------------------------------- */
/* out[n] += part[0][n] + part[1][n] + ... */
__global__ void sum_blocks_kernel(float *out, const float *part, int64_t blocks, int64_t n)
{
    const int64_t c = global_thread();
    if (c >= n) return;
    float all = 0;
#pragma unroll 8
    for (int64_t b = 0; b < blocks; b++)
        all += part[b * n + c];
    out[c] += all;
}

int cuda_sum_blocks(struct ctx *cx, float *out, const float *part, int64_t blocks, int64_t n)
{
    return LAUNCH(cx, sum_blocks_kernel, blocks_for(n, 64), 64, 0, out, part, blocks, n);
}

/* --- bias --------------------------------------------------------------------------------------------------------------------- */
template <class A>
__global__ void bias_rows_kernel(A *y, int64_t ld, const A *b, int64_t T, int64_t N, int64_t parts)
{
    const int64_t i = global_thread(), t = i / parts, c = i % parts * OCT;
    if (t >= T) return;
    store8(y + t * ld + c, load8(b + c, N - c), N - c);
}

/* part[blockIdx.y, N] = sums over ROWS rows; a warp takes every eighth row of COLS columns (blockIdx.x) */
template <class A>
__global__ void bias_sums_kernel(float *part, const A *dy, int64_t ld, int64_t T, int64_t N)
{
    CUDA_SHARED(float, sums, [GROUPS][COLS]);
    const int lane = (int)threadIdx.x % 32, group = (int)threadIdx.x / 32;
    const int64_t c0 = (int64_t)blockIdx.x * COLS, c = c0 + lane * OCT;
    const int64_t first = (int64_t)blockIdx.y * ROWS, end = MIN(first + ROWS, T);
    oct o = { { 0 } };
    for (int64_t t = first + group; t < end && c < N; t += GROUPS) {
        const oct a = load8(dy + t * ld + c, N - c);
#pragma unroll
        for (int k = 0; k < OCT; k++)
            o.v[k] += a.v[k];
    }
#pragma unroll
    for (int k = 0; k < OCT; k++)
        sums[group][lane * OCT + k] = o.v[k];
    __syncthreads();
    const int64_t mine = c0 + threadIdx.x;
    if (mine >= N) return;
    float all = 0;
    for (int g = 0; g < GROUPS; g++)
        all += sums[g][threadIdx.x];
    part[blockIdx.y * N + mine] = all;
}

template <class A> static int bias_rows(struct ctx *cx, struct tensor *y, const struct tensor *b)
{
    const int64_t T = y->dim[0], N = y->dim[1], parts = div_up(N, OCT);
    if (T * N == 0) return 0;
    return LAUNCH(cx, (bias_rows_kernel<A>), blocks_for(T * parts, BLOCK), BLOCK, 0, data_of<A>(y),
                  y->ld, data_of<A>(b), T, N, parts);
}

int cuda_bias_rows(struct ctx *cx, struct tensor *y, const struct tensor *b)
{
    return BY_DTYPE(y->dtype, bias_rows, cx, y, b);
}

int64_t cuda_bias_scratch(const struct op_sizes *s)
{
    const int64_t most = MAX((s->H + 2 * s->K) * s->D, MAX(2 * s->F, s->C)); /* of any linear layer's bias */
    return s->train ? div_up(s->T, ROWS) * most * (int64_t)sizeof(float) : 0;
}

template <class A> static int bias_sums(struct ctx *cx, struct tensor *db, const struct tensor *dy)
{
    const int64_t T = dy->dim[0], N = dy->dim[1], blocks = div_up(T, ROWS);
    const dim3 grid((unsigned)div_up(N, COLS), (unsigned)blocks);
    void *p;
    if (T * N == 0) return 0;
    TRY(cuda_scratch(cx, blocks * N * (int64_t)sizeof(float), &p));
    float *part = static_cast<float *>(p);
    TRY(LAUNCH(cx, (bias_sums_kernel<A>), grid, GROUPS * 32, 0, part, data_of<A>(dy), dy->ld, T, N));
    return cuda_sum_blocks(cx, data_of<float>(db), part, blocks, N);
}

int cuda_bias_sums(struct ctx *cx, struct tensor *db, const struct tensor *dy)
{
    return BY_DTYPE(dy->dtype, bias_sums, cx, db, dy);
}

/* --- scatter-add: rows with the same index form a chain in the order of n, and the first of them adds all -------------------- */
struct link {
    int32_t next, first; /* the next row of this index or -1; whether there is none before */
};

__global__ void scatter_links_kernel(struct link *links, const int32_t *index, int64_t n,
                                     int64_t rows)
{
    CUDA_SHARED(int32_t, tile, [BLOCK]);
    const int64_t i = global_thread();
    const int32_t mine = i < n ? index[i] : -1;
    struct link l = { -1, 1 };
    DEVICE_BUG_IF(i < n && (mine < 0 || mine >= rows));
    for (int64_t at = 0; at < n; at += BLOCK) {
        const int64_t k = MIN(BLOCK, n - at);
        if (threadIdx.x < k) tile[threadIdx.x] = index[at + threadIdx.x];
        __syncthreads();
        for (int64_t j = 0; j < k; j++) {
            if (tile[j] != mine) continue;
            if (at + j < i) l.first = 0;
            if (at + j > i && l.next < 0) l.next = (int32_t)(at + j);
        }
        __syncthreads();
    }
    if (i < n) links[i] = l;
}

/* a block: the chain that begins at row blockIdx.x */
template <class X, class A>
__global__ void scatter_add_kernel(X *dx, const A *dy, const int32_t *index,
                                   const struct link *links, int64_t C)
{
    if (!links[blockIdx.x].first) return;
    X *to = dx + index[blockIdx.x] * C;
    for (int64_t c = (int64_t)threadIdx.x * OCT; c < C; c += (int64_t)blockDim.x * OCT) {
        oct o = load8(to + c, C - c);
        for (int64_t i = blockIdx.x; i >= 0; i = links[i].next) {
            const oct a = load8(dy + i * C + c, C - c);
#pragma unroll
            for (int k = 0; k < OCT; k++)
                o.v[k] += a.v[k];
        }
        store8(to + c, o, C - c);
    }
}

int64_t cuda_scatter_scratch(const struct op_sizes *s)
{
    return s->train ? s->T * (int64_t)sizeof(struct link) : 0;
}

template <class X, class A>
static int scatter(struct ctx *cx, struct tensor *dx, const struct tensor *dy,
                   const struct tensor *index)
{
    const int64_t n = dy->dim[0], C = tensor_row(dy), threads = round_up(div_up(C, OCT), 32);
    void *p;
    if (n * C == 0) return 0;
    TRY(cuda_scratch(cx, n * (int64_t)sizeof(struct link), &p));
    struct link *links = static_cast<struct link *>(p);
    TRY(LAUNCH(cx, scatter_links_kernel, blocks_for(n, BLOCK), BLOCK, 0, links,
               data_of<int32_t>(index), n, dx->dim[0]));
    return LAUNCH(cx, (scatter_add_kernel<X, A>), (unsigned)n, (unsigned)MIN(threads, BLOCK), 0,
                  data_of<X>(dx), data_of<A>(dy), data_of<int32_t>(index), links, C);
}

int cuda_scatter_add(struct ctx *cx, struct tensor *dx, const struct tensor *dy,
                     const struct tensor *index)
{
    if (dy->dtype == DT_F32) return scatter<float, float>(cx, dx, dy, index);
    return dx->dtype == DT_F32 ? scatter<float, bf16>(cx, dx, dy, index)
                               : scatter<bf16, bf16>(cx, dx, dy, index);
}

/* --- sums of squares ------------------------------------------------------------------------------------------------------------ */
/* One thread's share of [i, end): every stride-th OCT elements. */
__device__ static double thread_sumsq(const float *x, int64_t i, int64_t end, int64_t stride)
{
    double q = 0;
    for (; i < end; i += stride) {
        const oct o = load8(x + i, end - i);
#pragma unroll
        for (int k = 0; k < OCT; k++)
            q += (double)o.v[k] * (double)o.v[k];
    }
    return q;
}

/* part[blockIdx.x] = this block's share: every gridDim.x-th piece of BLOCK * OCT elements */
__global__ void sumsq_kernel(double *part, const float *x, int64_t n)
{
    CUDA_SHARED(double, warps, [BLOCK / 32]);
    const double q = block_sum(
        thread_sumsq(x, global_thread() * OCT, n, (int64_t)gridDim.x * BLOCK * OCT), warps);
    if (threadIdx.x == 0) part[blockIdx.x] = q;
}

/* *out = part[0] + ... + part[n - 1], by one block */
__global__ void sumsq_total_kernel(double *out, const double *part, int n)
{
    CUDA_SHARED(double, warps, [BLOCK / 32]);
    double q = 0;
    for (int i = (int)threadIdx.x; i < n; i += BLOCK)
        q += part[i];
    q = block_sum(q, warps);
    if (threadIdx.x == 0) *out = q;
}

int cuda_sumsq(struct ctx *cx, double *out, const struct tensor *x)
{
    const int64_t n = tensor_count(x), blocks = MIN(div_up(n, BLOCK * OCT), (int64_t)SUMSQ_BLOCKS);
    double *total = cx->partial + SUMSQ_BLOCKS;
    *out = 0;
    if (n == 0) return 0;
    TRY(LAUNCH(cx, sumsq_kernel, (unsigned)blocks, BLOCK, 0, cx->partial, data_of<float>(x), n));
    TRY(LAUNCH(cx, sumsq_total_kernel, 1, BLOCK, 0, total, cx->partial, (int)blocks));
    return cuda_mem.to_host(cx, out, total, sizeof *out);
}

/* part[blockIdx.x] = the sum over that block of x */
__global__ void sumsq_blocks_kernel(double *part, const float *x, int64_t n, int64_t block)
{
    CUDA_SHARED(double, warps, [BLOCK / 32]);
    const int64_t first = blockIdx.x * block, end = MIN(first + block, n);
    const double q = block_sum(
        thread_sumsq(x, first + (int64_t)threadIdx.x * OCT, end, (int64_t)blockDim.x * OCT), warps);
    if (threadIdx.x == 0) part[blockIdx.x] = q;
}

int cuda_sumsq_blocks(struct ctx *cx, double *out, const struct tensor *x, int64_t block)
{
    const int64_t n = tensor_count(x);
    const float *data = data_of<float>(x);
    for (int64_t b = 0; b < div_up(n, block); b += SUMSQ_BLOCKS) {
        const int64_t left = n - b * block,
                      blocks = MIN(div_up(left, block), (int64_t)SUMSQ_BLOCKS);
        TRY(LAUNCH(cx, sumsq_blocks_kernel, (unsigned)blocks, BLOCK / 2, 0, cx->partial,
                   data + b * block, left, block));
        TRY(cuda_mem.to_host(cx, out + b, cx->partial, blocks * (int64_t)sizeof *out));
    }
    return 0;
}
