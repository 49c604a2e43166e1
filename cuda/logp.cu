/* SPDX-License-Identifier: MIT
 * logp.cu - the head: logits by tiles of TILE_N rows and TILE_V words, each a product by cuBLASLt into float32 (32 MiB,
 * so that it stays in a large L2), then one kernel that reads it once.
 *
 * Forward, a block a row: the tile's maximum, sum exp(z - top) and the target's logit join what the tiles before gave:
 * top' = max(top, tile's), sum' = sum exp(top - top') + tile's. The sum is careful: a thread adds its 16 terms with a compensation, the rest
 * is in double, so that a vocabulary of small terms beside a large one does not vanish.
 * Backward: dz = coef (onehot(target) - exp(z - lse)) over the tile, then dh += dz w and dw += dz^T h. bfloat16 dz is written
 * over the float32 logits of its own row. Where the forward kept exp(z - top) of everything, dz is made of it in place, and dh and dw are
 * one product each. Deterministic: every sum has a fixed order. */
#include "kernel.cuh"
#include "../src/ops/tiles.h"
#include <math.h>

enum { TILE_N = 2048, TILE_V = 4096, THREADS = 256, OCTS = TILE_V / THREADS / OCT };
static_assert(TILE_V % LOGP_TILE_V == 0,
              "op_logp_kept has room for a maximum per LOGP_TILE_V words");

struct rows_state { /* [N] each: log-sum-exp = top + log(sum); the target's logit */
    double *sum, *hit;
    float *top;
};

struct kept {   /* what the forward leaves to the backward; e NULL: nothing */
    void *e;    /* [N,V] of A: exp(z - top of its tile) */
    float *top; /* [tiles of V][N]: the running maximum after that tile */
    float *hit; /* [N]: the target's logit */
};

static __device__ inline float block_max(float v, float *warps)
{
    v = warp_max(v);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = v;
    __syncthreads();
    float all = warps[0];
    for (int i = 1; i < THREADS / 32; i++)
        all = fmaxf(all, warps[i]);
    return all;
}

struct tile { /* rows [n0, n0 + n), words [v0, v0 + v), as floats ldz apart */
    float *z;
    int64_t ldz, n0, v0, n;
    int32_t v;
};

/* a thread's i-th eight columns of a row begin here */
static __device__ inline int32_t column(int i)
{
    return (i * THREADS + (int32_t)threadIdx.x) * OCT;
}

/* z of the block's row, 8 columns at a time; -inf beyond the tile */
static __device__ inline void read_row(oct (&z)[OCTS], const struct tile &t)
{
#pragma unroll
    for (int i = 0; i < OCTS; i++) {
        const int32_t left = t.v - column(i);
        if (left > 0) z[i] = load8(t.z + (int64_t)blockIdx.x * t.ldz + column(i), left);
#pragma unroll
        for (int k = 0; k < OCT; k++)
            if (k >= left) z[i].v[k] = -INFINITY;
    }
}

/* sum + rest += x without loss (Knuth's two-sum) */
static __device__ inline void add_careful(float &sum, float &rest, float x)
{
    const float s = sum + x, y = s - sum;
    rest += (sum - (s - y)) + (x - y);
    sum = s;
}

template <class A>
static __global__ void __launch_bounds__(THREADS)
    logp_fwd_kernel(const struct tile t, const struct rows_state r, const int32_t *target, A *e,
                    float *kept_top, int64_t V)
{
    CUDA_SHARED(float, maxima, [THREADS / 32]);
    CUDA_SHARED(double, sums, [THREADS / 32]);
    const int64_t n = t.n0 + blockIdx.x;
    const int64_t hit = target[n] - t.v0; /* column, if it is one of the tile's */
    const float before = t.v0 ? r.top[n] : -INFINITY;
    oct z[OCTS];
    float top = before, sum = 0, rest = 0;
    read_row(z, t);
#pragma unroll
    for (int i = 0; i < OCTS; i++)
#pragma unroll
        for (int k = 0; k < OCT; k++)
            top = fmaxf(top, z[i].v[k]);
    top = block_max(top, maxima);
#pragma unroll
    for (int i = 0; i < OCTS; i++) {
        const int32_t left = t.v - column(i);
#pragma unroll
        for (int k = 0; k < OCT; k++) {
            if (column(i) + k == hit) r.hit[n] = (double)z[i].v[k];
            z[i].v[k] = expf(z[i].v[k] - top);
            add_careful(sum, rest, z[i].v[k]);
        }
        if (e && left > 0) store8(e + n * V + t.v0 + column(i), z[i], left);
    }
    const double all = block_sum((double)sum + (double)rest, sums);
    if (threadIdx.x != 0) return;
    r.sum[n] = (t.v0 ? r.sum[n] * exp((double)before - (double)top) : 0) + all;
    r.top[n] = top;
    if (kept_top) kept_top[n] = top;
}

static __global__ void logp_end_kernel(float *logp, float *lse, float *kept_hit,
                                       const struct rows_state r, int64_t N)
{
    const int64_t n = global_thread();
    if (n >= N) return;
    const double l = (double)r.top[n] + log(r.sum[n]);
    lse[n] = (float)l;
    logp[n] = (float)(r.hit[n] - l);
    if (kept_hit) kept_hit[n] = (float)r.hit[n];
}

/* The row's logits become their gradient, as A from the row's first byte on. */
template <class A>
static __global__ void __launch_bounds__(THREADS)
    logp_bwd_kernel(const struct tile t, const float *coef, const float *lse, const int32_t *target)
{
    const int64_t n = t.n0 + blockIdx.x, hit = target[n] - t.v0;
    const float c = -coef[n], l = lse[n];
    A *dz = reinterpret_cast<A *>(t.z + (int64_t)blockIdx.x * t.ldz);
    oct z[OCTS];
    read_row(z, t);
    __syncthreads(); /* all is read before any is written */
#pragma unroll
    for (int i = 0; i < OCTS; i++) {
        const int32_t left = t.v - column(i);
#pragma unroll
        for (int k = 0; k < OCT; k++) /* p - 1 by itself would be all rounding where p is near 1 */
            z[i].v[k] = c * (column(i) + k == hit ? expm1f(z[i].v[k] - l) : expf(z[i].v[k] - l));
        if (left > 0) store8(dz + column(i), z[i], left);
    }
}

/* What was kept becomes the gradient, in place. A block a row and TILE_V words. */
template <class A>
static __global__ void __launch_bounds__(THREADS)
    logp_bwd_kept_kernel(A *e, const float *top, const float *kept_hit, const float *coef,
                         const float *lse, const int32_t *target, int64_t N, int64_t V)
{
    const int64_t tiles = (V + TILE_V - 1) / TILE_V, n = blockIdx.x / tiles,
                  tile = blockIdx.x % tiles, v0 = tile * TILE_V;
    const int64_t hit = target[n] - v0;
    const float c = -coef[n], l = lse[n], scale = c * expf(top[tile * N + n] - l);
#pragma unroll
    for (int i = 0; i < OCTS; i++) {
        const int64_t left = V - v0 - column(i);
        if (left <= 0) continue;
        A *at = e + n * V + v0 + column(i);
        oct z = load8(at, left);
#pragma unroll
        for (int k = 0; k < OCT; k++)
            z.v[k] = column(i) + k == hit ? c * expm1f(kept_hit[n] - l) : scale * z.v[k];
        store8(at, z, left);
    }
}

/* --- host ------------------------------------------------------------------------------------------------------------------ */
static struct rows_state state_at(const struct tensor *scratch, int64_t N)
{
    double *p = data_of<double>(scratch);
    return { p, p + N, reinterpret_cast<float *>(p + 2 * N) };
}

/* float32 [N,C] behind the state: what dh is summed up in where it is bfloat16 */
static struct tensor sum_at(const struct tensor *scratch, int64_t N, int64_t C)
{
    return tensor_view(data_of<char>(scratch) + round_up(N * 20, 64), DT_F32, N, C, 1, 1);
}

static struct kept kept_at(const struct tensor *t, int64_t N, int64_t V, enum dtype A)
{
    if (!t) return { nullptr, nullptr, nullptr };
    float *top = reinterpret_cast<float *>(data_of<char>(t) + round_up(N * V * dtype_size(A), 64));
    return { t->data, top, top + N * div_up(V, TILE_V) };
}

static int64_t tile_bytes(int64_t N, int64_t V)
{
    return MIN(N, (int64_t)TILE_N) * round_up(MIN(V, (int64_t)TILE_V), OCT) *
           (int64_t)sizeof(float);
}

int64_t cuda_logp_scratch(const struct op_sizes *s)
{
    return tile_bytes(2 * s->T,
                      s->V); /* a token predicts one of its sequence, a prompt's last two */
}

/* The tile's logits. */
static int tile_logits(struct ctx *cx, const struct tile *t, const struct tensor *h,
                       const struct tensor *w)
{
    const struct tensor rows = tensor_rows(h, t->n0, t->n), words = tensor_rows(w, t->v0, t->v);
    struct tensor z = tensor_view(t->z, DT_F32, t->n, t->v, 1, 1);
    z.ld = t->ldz;
    return cuda_gemm(cx, &z, &rows, false, &words, true, NULL, 1, 0);
}

static struct tile tile_at(void *z, int64_t n0, int64_t v0, int64_t N, int64_t V)
{
    return { static_cast<float *>(z),      round_up(MIN(V, (int64_t)TILE_V), OCT), n0, v0,
             MIN(N - n0, (int64_t)TILE_N), (int32_t)MIN(V - v0, (int64_t)TILE_V) };
}

template <class A>
static int fwd_tile(struct ctx *cx, const struct tile *t, const struct rows_state *r,
                    const struct kept *k, const int32_t *target, int64_t N, int64_t V)
{
    float *top = k->top ? k->top + t->v0 / TILE_V * N : nullptr;
    return LAUNCH(cx, (logp_fwd_kernel<A>), dim3((unsigned)t->n), dim3(THREADS), 0, *t, *r, target,
                  static_cast<A *>(k->e), top, V);
}

int cuda_logp_fwd(struct ctx *cx, struct tensor *logp, struct tensor *lse, struct tensor *kept,
                  const struct tensor *h, const struct tensor *w, const struct tensor *target,
                  struct tensor *scratch)
{
    const int64_t N = h->dim[0], V = w->dim[0];
    const struct rows_state r = state_at(scratch, N);
    const struct kept k = kept_at(kept, N, V, h->dtype);
    void *z;
    if (N == 0) return 0;
    TRY(cuda_scratch(cx, tile_bytes(N, V), &z));
    for (int64_t v0 = 0; v0 < V; v0 += TILE_V)
        for (int64_t n0 = 0; n0 < N; n0 += TILE_N) {
            const struct tile t = tile_at(z, n0, v0, N, V);
            TRY(tile_logits(cx, &t, h, w));
            TRY(BY_DTYPE(h->dtype, fwd_tile, cx, &t, &r, &k, data_of<int32_t>(target), N, V));
        }
    return LAUNCH(cx, logp_end_kernel, blocks_for(N, THREADS), dim3(THREADS), 0,
                  data_of<float>(logp), data_of<float>(lse), k.hit, r, N);
}

/* dh (+)= dz w, dw += dz^T h for rows [n0, ...) and words [v0, ...) */
static int bwd_products(struct ctx *cx, struct tensor *dh, struct tensor *dw,
                        const struct tensor *dz, const struct tensor *h, const struct tensor *w,
                        int64_t n0, int64_t v0)
{
    const struct tensor rows = tensor_rows(h, n0, dz->dim[0]),
                        words = tensor_rows(w, v0, dz->dim[1]);
    struct tensor drows = tensor_rows(dh, n0, dz->dim[0]);
    TRY(cuda_gemm(cx, &drows, dz, false, &words, false, NULL, 1, v0 ? 1 : 0));
    if (!dw) return 0;
    struct tensor dwords = tensor_rows(dw, v0, dz->dim[1]);
    return cuda_gemm(cx, &dwords, dz, true, &rows, false, NULL, 1, 1);
}

template <class A>
static int bwd_tile(struct ctx *cx, const struct tile *t, struct tensor *dz,
                    const struct tensor *coef, const struct tensor *lse,
                    const struct tensor *target)
{
    *dz = tensor_view(t->z, sizeof(A) == sizeof(float) ? DT_F32 : DT_BF16, t->n, t->v, 1, 1);
    dz->ld = t->ldz * (int64_t)(sizeof(float) / sizeof(A));
    return LAUNCH(cx, (logp_bwd_kernel<A>), dim3((unsigned)t->n), dim3(THREADS), 0, *t,
                  data_of<float>(coef), data_of<float>(lse), data_of<int32_t>(target));
}

template <class A>
static int bwd_kept(struct ctx *cx, const struct kept *k, const struct tensor *coef,
                    const struct tensor *lse, const struct tensor *target, int64_t N, int64_t V)
{
    BUG_IF(N * div_up(V, TILE_V) > INT32_MAX);
    return LAUNCH(cx, (logp_bwd_kept_kernel<A>), dim3((unsigned)(N * div_up(V, TILE_V))),
                  dim3(THREADS), 0, static_cast<A *>(k->e), k->top, k->hit, data_of<float>(coef),
                  data_of<float>(lse), data_of<int32_t>(target), N, V);
}

int cuda_logp_bwd(struct ctx *cx, struct tensor *dh, struct tensor *dw, const struct tensor *coef,
                  const struct tensor *lse, struct tensor *kept, const struct tensor *h,
                  const struct tensor *w, const struct tensor *target, struct tensor *scratch)
{
    const int64_t N = h->dim[0], C = h->dim[1], V = w->dim[0];
    struct tensor sum = dh->dtype == DT_F32 ? *dh : sum_at(scratch, N, C), dz;
    void *z;
    if (N == 0) return 0;
    if (kept) {
        const struct kept k = kept_at(kept, N, V, h->dtype);
        dz = tensor_view(k.e, h->dtype, N, V, 1, 1);
        TRY(BY_DTYPE(h->dtype, bwd_kept, cx, &k, coef, lse, target, N, V));
        return bwd_products(cx, dh, dw, &dz, h, w, 0, 0);
    }
    TRY(cuda_scratch(cx, tile_bytes(N, V), &z));
    for (int64_t v0 = 0; v0 < V; v0 += TILE_V)
        for (int64_t n0 = 0; n0 < N; n0 += TILE_N) {
            const struct tile t = tile_at(z, n0, v0, N, V);
            TRY(tile_logits(cx, &t, h, w));
            TRY(BY_DTYPE(h->dtype, bwd_tile, cx, &t, &dz, coef, lse, target));
            TRY(bwd_products(cx, &sum, dw, &dz, h, w, n0, v0));
        }
    return dh->dtype == DT_F32 ? 0 : cuda_cast(cx, dh, &sum);
}
