/* SPDX-License-Identifier: MIT
 * attention_plain.cu - attention without tensor cores: float32, and head sizes and row strides that attention_fwd.cu and
 * attention_bwd.cu do not take. The same split of work as there (attention.cuh) with tiles of 16 packed rows and
 * 16 keys as floats in shared memory, and products by fused multiply-adds. Deterministic. */
#include "attention.cuh"
#include <math.h>

enum {
    N = 16,
    COLS = ATT_D_MAX / 8
}; /* rows of a tile; columns of D that a thread has, 8 apart: thread i has row i / 8 */

/* shared memory; rows of D + 1 floats, so that a column lies in different banks */
struct plain_tiles {
    float *q, *k, *v, *dout;
    float *p, *ds; /* [N][N + 1] */
    float *row;    /* [4][N] numbers of each packed row */
};

static size_t plain_shared(int32_t D)
{
    return (size_t)(4 * N * (D + 1) + 2 * N * (N + 1) + 4 * N) * sizeof(float);
}

static __device__ inline struct plain_tiles plain_carve(float *p, int32_t D)
{
    const int size = N * (D + 1);
    struct plain_tiles t = {
        p, p + size, p + 2 * size, p + 3 * size, p + 4 * size, p + 4 * size + N * (N + 1), nullptr
    };
    t.row = t.ds + N * (N + 1);
    return t;
}

/* tile = packed rows [at, at + N) of kv head g; zeros beyond `rows` */
template <class A>
static __device__ inline void plain_rows(float *tile, const void *x, int64_t ld,
                                         const struct att_args &a, int32_t q, int32_t rows,
                                         int32_t g, int32_t at)
{
    for (int i = (int)threadIdx.x; i < N * a.D; i += ATT_THREADS) {
        const int32_t r = i / a.D, c = i % a.D, p = at + r, token = att_token(a, p),
                      head = g * a.G + p - token * a.G;
        tile[r * (a.D + 1) + c] =
            p < rows ? load(static_cast<const A *>(x) + (q + (int64_t)token) * ld + head * a.D + c)
                     : 0;
    }
}

/* tile = keys [first, first + N) of the segment, kv head g; zeros beyond its keys */
template <class A>
static __device__ inline void plain_keys(float *tile, const void *x, int64_t ld,
                                         const struct att_args &a, const struct segment &s,
                                         int32_t g, int32_t first)
{
    for (int i = (int)threadIdx.x; i < N * a.D; i += ATT_THREADS) {
        const int32_t r = i / a.D, c = i % a.D, key = first + r;
        tile[r * (a.D + 1) + c] =
            key < s.prefix_len + s.len
                ? load(static_cast<const A *>(x) + att_key_row(s, key) * ld + g * a.D + c)
                : 0;
    }
}

static __device__ inline float plain_dot(const float *x, const float *y, int32_t D)
{
    float sum = 0;
    for (int32_t i = 0; i < D; i++)
        sum = fmaf(x[i], y[i], sum);
    return sum;
}

/* acc[columns of this thread] += sum_j c[j step] tile[j][column] */
static __device__ inline void plain_add(float (&acc)[COLS], const float *c, int step,
                                        const float *tile, int32_t D)
{
    const int first = (int)threadIdx.x % 8;
    for (int j = 0; j < N; j++) {
        const float f = c[j * step];
#pragma unroll
        for (int i = 0; i < COLS; i++)
            if (first + 8 * i < D) acc[i] = fmaf(f, tile[j * (D + 1) + first + 8 * i], acc[i]);
    }
}

/* this thread's columns of a row of x, from column `at` = acc times scale */
template <class A>
static __device__ inline void plain_store(void *x, int64_t at, const float (&acc)[COLS],
                                          float scale, int32_t D)
{
    const int first = (int)threadIdx.x % 8;
#pragma unroll
    for (int i = 0; i < COLS; i++)
        if (first + 8 * i < D) store(static_cast<A *>(x) + at + first + 8 * i, acc[i] * scale);
}

/* One row of a tile of scores: p = exp(scale (score - top)), row[0] top, row[1] sum, row[2] what old sums are multiplied by */
static __device__ inline void plain_softmax(float *p, float *row, float scale)
{
    float top = row[0], sum = 0;
    for (int j = 0; j < N; j++)
        top = fmaxf(top, p[j]);
    for (int j = 0; j < N; j++) {
        p[j] = expf(scale * (p[j] - top));
        sum += p[j];
    }
    row[2 * N] = expf(scale * (row[0] - top));
    row[N] = row[N] * row[2 * N] + sum;
    row[0] = top;
}

template <class A>
static __global__ void __launch_bounds__(ATT_THREADS)
    attention_plain_fwd_kernel(const struct att_args a, void *o, int64_t ldo, float *lse)
{
    CUDA_DYNAMIC_SHARED(float, shared);
    const struct plain_tiles t = plain_carve(shared, a.D);
    const struct att_item it = a.item[blockIdx.x / a.K];
    const int32_t g = (int32_t)(blockIdx.x % a.K), tid = (int32_t)threadIdx.x;
    const struct segment s = a.seg[it.seg];
    const int32_t rows = s.len * a.G, row = tid / 8, p = it.at + row, token = att_token(a, p);
    float acc[COLS];
#pragma unroll
    for (int i = 0; i < COLS; i++)
        acc[i] = 0;
    if (tid < N) {
        t.row[tid] = -INFINITY;
        t.row[N + tid] = 0;
    }
    plain_rows<A>(t.q, a.q, a.ldq, a, s.q, rows, g, it.at);
    for (int32_t first = 0; first < it.work * N; first += N) {
        __syncthreads();
        plain_keys<A>(t.k, a.k, a.ldk, a, s, g, first);
        plain_keys<A>(t.v, a.v, a.ldv, a, s, g, first);
        __syncthreads();
        for (int i = tid; i < N * N; i += ATT_THREADS) {
            const int32_t r = i / N, j = i % N;
            t.p[r * (N + 1) + j] = first + j > s.prefix_len + att_token(a, it.at + r)
                                       ? -INFINITY
                                       : plain_dot(t.q + r * (a.D + 1), t.k + j * (a.D + 1), a.D);
        }
        __syncthreads();
        if (tid < N) plain_softmax(t.p + tid * (N + 1), t.row + tid, a.scale);
        __syncthreads();
#pragma unroll
        for (int i = 0; i < COLS; i++)
            acc[i] *= t.row[2 * N + row];
        plain_add(acc, t.p + row * (N + 1), 1, t.v, a.D);
    }
    if (p >= rows) return;
    const int64_t at = s.q + (int64_t)token;
    const int32_t head = g * a.G + p - token * a.G;
    plain_store<A>(o, at * ldo + head * a.D, acc, 1.0f / t.row[N + row], a.D);
    if (tid % 8 == 0) lse[at * a.H + head] = t.row[row] * a.scale + logf(t.row[N + row]);
}

/* t.p = p and t.ds = p (dout v^T - delta) of a tile, [packed rows][keys]; t.row: lse, delta, token. Key j has place
 * w.first + j in the window, which begins at `begin`. */
static __device__ inline void plain_ds(const struct plain_tiles &t, const struct att_args &a,
                                       const struct att_window &w, int32_t begin)
{
    for (int i = (int)threadIdx.x; i < N * N; i += ATT_THREADS) {
        const int32_t r = i / N, j = i % N, key = w.first + j, token = (int32_t)t.row[2 * N + r];
        float p = 0, ds = 0;
        if (key >= begin && key < w.len && token >= 0 && (!w.own || key <= token)) {
            p = expf(a.scale * plain_dot(t.q + r * (a.D + 1), t.k + j * (a.D + 1), a.D) - t.row[r]);
            ds = p * (plain_dot(t.dout + r * (a.D + 1), t.v + j * (a.D + 1), a.D) - t.row[N + r]);
        }
        t.p[r * (N + 1) + j] = p;
        t.ds[r * (N + 1) + j] = ds;
    }
}

/* The packed rows from `at` of kv head g, with their lse, delta and token (-1 beyond `rows`). */
template <class A>
static __device__ inline void plain_bwd_rows(const struct plain_tiles &t, const struct att_args &a,
                                             const struct att_grads &d, int32_t q, int32_t rows,
                                             int32_t g, int32_t at)
{
    plain_rows<A>(t.q, a.q, a.ldq, a, q, rows, g, at);
    plain_rows<A>(t.dout, d.dout, d.lddo, a, q, rows, g, at);
    const int32_t r = (int32_t)threadIdx.x, p = at + r;
    if (r >= N) return;
    const int32_t token = att_token(a, p);
    const int64_t from = (q + (int64_t)token) * a.H + g * a.G + p - token * a.G;
    t.row[r] = p < rows ? d.lse[from] : 0;
    t.row[N + r] = p < rows ? d.delta[from] : 0;
    t.row[2 * N + r] = p < rows ? (float)token : -1;
}

template <class A>
static __global__ void __launch_bounds__(ATT_THREADS)
    attention_plain_dq_kernel(const struct att_args a, const struct att_grads d)
{
    CUDA_DYNAMIC_SHARED(float, shared);
    const struct plain_tiles t = plain_carve(shared, a.D);
    const struct att_item it = a.item[blockIdx.x / a.K];
    const int32_t g = (int32_t)(blockIdx.x % a.K);
    const struct segment s = a.seg[it.seg];
    const int32_t rows = s.len * a.G, row = (int32_t)threadIdx.x / 8, p = it.at + row,
                  token = att_token(a, p);
    float acc[COLS];
#pragma unroll
    for (int i = 0; i < COLS; i++)
        acc[i] = 0;
    plain_bwd_rows<A>(t, a, d, s.q, rows, g, it.at);
    for (int32_t first = 0; first < it.work * N; first += N) {
        /* the own rows' window, which the prefix stands before */
        const struct att_window w = { it.seg, 1, first - s.prefix_len, s.len, s.q, rows, 0, 0 };
        __syncthreads();
        plain_keys<A>(t.k, a.k, a.ldk, a, s, g, first);
        plain_keys<A>(t.v, a.v, a.ldv, a, s, g, first);
        __syncthreads();
        plain_ds(t, a, w, -s.prefix_len);
        __syncthreads();
        plain_add(acc, t.ds + row * (N + 1), 1, t.k, a.D);
    }
    if (p < rows)
        plain_store<A>(d.dq, (s.q + (int64_t)token) * d.lddq + (g * a.G + p - token * a.G) * a.D,
                       acc, a.scale, a.D);
}

template <class A>
static __global__ void __launch_bounds__(ATT_THREADS)
    attention_plain_dkv_kernel(const struct att_args a, const struct att_grads d)
{
    CUDA_DYNAMIC_SHARED(float, shared);
    const struct plain_tiles t = plain_carve(shared, a.D);
    const struct att_item it = a.item[blockIdx.x / a.K];
    const int32_t g = (int32_t)(blockIdx.x % a.K), key = (int32_t)threadIdx.x / 8;
    const struct segment s = a.seg[it.seg];
    const int32_t row = s.own + it.at, n = s.len - it.at < N ? s.len - it.at : N;
    const struct segment keys = { 0, n, row, 0, 0 };
    struct att_window w = { it.first, -1, 0, 0, 0, 0, 0, 0 };
    float dk[COLS], dv[COLS];
#pragma unroll
    for (int i = 0; i < COLS; i++)
        dk[i] = dv[i] = 0;
    plain_keys<A>(t.k, a.k, a.ldk, a, keys, g, 0);
    plain_keys<A>(t.v, a.v, a.ldv, a, keys, g, 0);
    while (att_window_next(&w, a.seg, it.end, row, n, a.G, N))
        for (; w.tile < w.tiles; w.tile++) {
            __syncthreads();
            plain_bwd_rows<A>(t, a, d, w.q, w.rows, g, w.tile * N);
            __syncthreads();
            plain_ds(t, a, w, 0);
            __syncthreads();
            plain_add(dv, t.p + key, N + 1, t.dout, a.D);
            plain_add(dk, t.ds + key, N + 1, t.q, a.D);
        }
    if (key >= n) return;
    plain_store<A>(d.dk, (row + (int64_t)key) * d.lddk + g * a.D, dk, a.scale, a.D);
    plain_store<A>(d.dv, (row + (int64_t)key) * d.lddv + g * a.D, dv, 1, a.D);
}

/* --- launches -------------------------------------------------------------------------------------------------------------- */
struct att_tile att_plain_tile(void)
{
    return { N, N };
}

template <class A>
static int launch_fwd(struct ctx *cx, const struct att_args *a, int32_t n_items, struct tensor *o,
                      float *lse)
{
    return LAUNCH(cx, (attention_plain_fwd_kernel<A>), dim3((unsigned)(n_items * a->K)),
                  dim3(ATT_THREADS), plain_shared(a->D), *a, o->data, o->ld, lse);
}
template <class A>
static int launch_dq(struct ctx *cx, const struct att_args *a, int32_t n_items,
                     const struct att_grads *d)
{
    return LAUNCH(cx, (attention_plain_dq_kernel<A>), dim3((unsigned)(n_items * a->K)),
                  dim3(ATT_THREADS), plain_shared(a->D), *a, *d);
}
template <class A>
static int launch_dkv(struct ctx *cx, const struct att_args *a, int32_t n_items,
                      const struct att_grads *d)
{
    return LAUNCH(cx, (attention_plain_dkv_kernel<A>), dim3((unsigned)(n_items * a->K)),
                  dim3(ATT_THREADS), plain_shared(a->D), *a, *d);
}

int att_plain_fwd(struct ctx *cx, const struct att_args *a, int32_t n_items, struct tensor *o,
                  float *lse)
{
    return BY_DTYPE(o->dtype, launch_fwd, cx, a, n_items, o, lse);
}
int att_plain_dq(struct ctx *cx, const struct att_args *a, int32_t n_items,
                 const struct att_grads *d, enum dtype A)
{
    return BY_DTYPE(A, launch_dq, cx, a, n_items, d);
}
int att_plain_dkv(struct ctx *cx, const struct att_args *a, int32_t n_items,
                  const struct att_grads *d, enum dtype A)
{
    return BY_DTYPE(A, launch_dkv, cx, a, n_items, d);
}
