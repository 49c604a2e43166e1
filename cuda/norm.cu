/* SPDX-License-Identifier: MIT */
#include "kernel.cuh"

/* RMSNorm and the norm of single heads are one: `n` runs of D elements in each of T rows, each normed by itself; for RMSNorm
 * n is 1. A block takes a run (blockIdx.x), a thread OCT elements at a time of it. The weight's gradient is summed over the
 * runs of 64 rows by a block of its own, then by sum_blocks over these, both in a fixed order. */
constexpr int ROWS = 64, GROUPS = 8, COLS = 32 * OCT;

static unsigned threads_for(int64_t D)
{
    const int64_t n = round_up(div_up(D, OCT), 32);
    return (unsigned)MIN(n, 256);
}

struct runs { /* of a tensor: run i begins at element i / n * ld + i % n * D */
    int64_t ld, D;
    int32_t n;
};
__device__ static inline int64_t run_at(const struct runs &r, int64_t i)
{
    return i / r.n * r.ld + i % r.n * r.D;
}
static struct runs runs_of(const struct tensor *t, int64_t D)
{
    const struct runs r = { t->ld, D, (int32_t)(t->dim[1] / D) };
    return r;
}

/* y = s rstd w, s = sum = x + r (r may be null); y may be x, sum may be x or r: a thread reads what it writes over. Reads x, r,
 * w, writes sum, y; s is read again from the cache. */
template <class A>
__global__ void norm_fwd_kernel(A *y, struct runs ry, float *rstd, A *sum, const A *x,
                                struct runs rx, const A *r, const A *w, float eps)
{
    CUDA_SHARED(float, warps, [8]);
    const int64_t at = run_at(rx, blockIdx.x), to = run_at(ry, blockIdx.x), D = rx.D;
    const A *s = r ? sum + at : x + at;
    float q = 0;
    for (int64_t c = (int64_t)threadIdx.x * OCT; c < D; c += (int64_t)blockDim.x * OCT) {
        oct o = load8(x + at + c, D - c);
        if (r) {
            const oct b = load8(r + at + c, D - c);
#pragma unroll
            for (int k = 0; k < OCT; k++)
                o.v[k] = round_to(x, o.v[k] + b.v[k]); /* s is what is stored: the backward will read it */
            store8(sum + at + c, o, D - c);
        }
#pragma unroll
        for (int k = 0; k < OCT; k++)
            q += o.v[k] * o.v[k];
    }
    const float scale = 1.0f / sqrtf(block_sum(q, warps) / (float)D + eps);
    if (threadIdx.x == 0) rstd[blockIdx.x] = scale;
    for (int64_t c = (int64_t)threadIdx.x * OCT; c < D; c += (int64_t)blockDim.x * OCT) {
        oct o = load8(s + c, D - c);
        const oct b = load8(w + c, D - c);
#pragma unroll
        for (int k = 0; k < OCT; k++)
            o.v[k] = o.v[k] * scale * b.v[k];
        store8(y + to + c, o, D - c);
    }
}

/* y = x rstd w, the bits of norm_fwd_kernel's. A thread per eight elements. */
template <class A>
__global__ void norm_apply_kernel(A *y, const A *x, const float *rstd, const A *w, int64_t T, int64_t C,
                                  int64_t parts)
{
    const int64_t i = global_thread(), t = i / parts, c = i % parts * OCT;
    if (t >= T) return;
    oct o = load8(x + t * C + c, C - c);
    const oct b = load8(w + c, C - c);
    const float scale = rstd[t];
#pragma unroll
    for (int k = 0; k < OCT; k++)
        o.v[k] = o.v[k] * scale * b.v[k];
    store8(y + t * C + c, o, C - c);
}

/* dx = (ADD: +=) rstd (dy w - x rstd^2 mean(dy w x)); dx may be dy where not ADD. */
template <class A, class X, bool ADD>
__global__ void norm_dx_kernel(X *dx, struct runs rdx, const A *dy, struct runs rdy, const A *x,
                               struct runs rx, const A *w, const float *rstd)
{
    CUDA_SHARED(float, warps, [8]);
    const int64_t ax = run_at(rx, blockIdx.x), ay = run_at(rdy, blockIdx.x),
                  to = run_at(rdx, blockIdx.x), D = rx.D;
    const float scale = rstd[blockIdx.x];
    float dot = 0;
    for (int64_t c = (int64_t)threadIdx.x * OCT; c < D; c += (int64_t)blockDim.x * OCT) {
        const oct a = load8(dy + ay + c, D - c), b = load8(x + ax + c, D - c),
                  g = load8(w + c, D - c);
#pragma unroll
        for (int k = 0; k < OCT; k++)
            dot += a.v[k] * g.v[k] * b.v[k];
    }
    const float mean = block_sum(dot, warps) * scale * scale / (float)D;
    for (int64_t c = (int64_t)threadIdx.x * OCT; c < D; c += (int64_t)blockDim.x * OCT) {
        const oct a = load8(dy + ay + c, D - c), b = load8(x + ax + c, D - c),
                  g = load8(w + c, D - c);
        oct o = { { 0 } };
        if (ADD) o = load8(dx + to + c, D - c);
#pragma unroll
        for (int k = 0; k < OCT; k++)
            o.v[k] += scale * (a.v[k] * g.v[k] - b.v[k] * mean);
        store8(dx + to + c, o, D - c);
    }
}

/* part[block, D] = sum of dy x rstd over the runs of ROWS rows. blockIdx.x: columns by COLS; blockIdx.y: rows. A warp takes
 * every eighth run. */
template <class A>
__global__ void norm_dw_kernel(float *part, const A *dy, struct runs rdy, const A *x,
                               struct runs rx, const float *rstd, int64_t T)
{
    CUDA_SHARED(float, sums, [GROUPS][COLS]);
    const int lane = (int)threadIdx.x % 32, group = (int)threadIdx.x / 32;
    const int64_t c0 = (int64_t)blockIdx.x * COLS, c = c0 + lane * OCT, D = rx.D;
    const int64_t first = (int64_t)blockIdx.y * ROWS * rx.n,
                  end = MIN(first + (int64_t)ROWS * rx.n, T * rx.n);
    oct o = { { 0 } };
    for (int64_t i = first + group; i < end && c < D; i += GROUPS) {
        const oct a = load8(dy + run_at(rdy, i) + c, D - c),
                  b = load8(x + run_at(rx, i) + c, D - c);
        const float scale = rstd[i];
#pragma unroll
        for (int k = 0; k < OCT; k++)
            o.v[k] += a.v[k] * b.v[k] * scale;
    }
#pragma unroll
    for (int k = 0; k < OCT; k++)
        sums[group][lane * OCT + k] = o.v[k];
    __syncthreads();
    const int64_t mine = c0 + threadIdx.x;
    if (mine >= D) return;
    float all = 0;
    for (int g = 0; g < GROUPS; g++)
        all += sums[g][threadIdx.x];
    part[blockIdx.y * D + mine] = all;
}

template <class A>
static int norm_fwd(struct ctx *cx, struct tensor *y, struct tensor *rstd, struct tensor *sum,
                    const struct tensor *x, const struct tensor *r, const struct tensor *w,
                    float eps)
{
    const int64_t D = w->dim[0], n = tensor_count(rstd);
    if (n == 0 || D == 0) return 0;
    return LAUNCH(cx, (norm_fwd_kernel<A>), (unsigned)n, threads_for(D), 0, data_of<A>(y),
                  runs_of(y, D), data_of<float>(rstd), r ? data_of<A>(sum) : NULL, data_of<A>(x),
                  runs_of(x, D), r ? data_of<A>(r) : NULL, data_of<A>(w), eps);
}

int cuda_rmsnorm_fwd(struct ctx *cx, struct tensor *y, struct tensor *rstd, struct tensor *sum,
                     const struct tensor *x, const struct tensor *r, const struct tensor *w,
                     float eps)
{
    return BY_DTYPE(x->dtype, norm_fwd, cx, y, rstd, sum, x, r, w, eps);
}

template <class A>
static int norm_apply(struct ctx *cx, struct tensor *y, const struct tensor *x, const struct tensor *rstd,
                      const struct tensor *w)
{
    const int64_t T = x->dim[0], C = x->dim[1], parts = div_up(C, OCT);
    if (T * C == 0) return 0;
    return LAUNCH(cx, (norm_apply_kernel<A>), blocks_for(T * parts, 256), 256, 0, data_of<A>(y),
                  data_of<A>(x), data_of<float>(rstd), data_of<A>(w), T, C, parts);
}

int cuda_rmsnorm_apply(struct ctx *cx, struct tensor *y, const struct tensor *x, const struct tensor *rstd,
                       const struct tensor *w)
{
    return BY_DTYPE(x->dtype, norm_apply, cx, y, x, rstd, w);
}

int cuda_headnorm_fwd(struct ctx *cx, struct tensor *y, struct tensor *rstd, const struct tensor *x,
                      const struct tensor *w, float eps)
{
    return BY_DTYPE(x->dtype, norm_fwd, cx, y, rstd, NULL, x, NULL, w, eps);
}

struct norm_bwd { /* the tensors of a backward */
    struct tensor *dx, *dw;
    const struct tensor *dy, *x, *w, *rstd;
    float *part;
};

template <class A, class X, bool ADD> static int norm_dx(struct ctx *cx, const struct norm_bwd *b)
{
    const int64_t D = b->w->dim[0];
    return LAUNCH(cx, (norm_dx_kernel<A, X, ADD>), (unsigned)tensor_count(b->rstd), threads_for(D),
                  0, data_of<X>(b->dx), runs_of(b->dx, D), data_of<A>(b->dy), runs_of(b->dy, D),
                  data_of<A>(b->x), runs_of(b->x, D), data_of<A>(b->w), data_of<float>(b->rstd));
}

/* before norm_dx, which may write over dy */
template <class A> static int norm_dw(struct ctx *cx, const struct norm_bwd *b)
{
    if (!b->dw) return 0;
    const int64_t D = b->w->dim[0], T = b->x->dim[0], blocks = div_up(T, ROWS);
    const dim3 grid((unsigned)div_up(D, COLS), (unsigned)blocks);
    TRY(LAUNCH(cx, (norm_dw_kernel<A>), grid, GROUPS * 32, 0, b->part, data_of<A>(b->dy),
               runs_of(b->dy, D), data_of<A>(b->x), runs_of(b->x, D), data_of<float>(b->rstd), T));
    return cuda_sum_blocks(cx, data_of<float>(b->dw), b->part, blocks, D);
}

int cuda_rmsnorm_bwd(struct ctx *cx, struct tensor *dx, struct tensor *dw, const struct tensor *dy,
                     const struct tensor *x, const struct tensor *w, const struct tensor *rstd,
                     struct tensor *scratch)
{
    const struct norm_bwd b = { dx, dw, dy, x, w, rstd, data_of<float>(scratch) };
    if (tensor_count(x) == 0) return 0;
    TRY(BY_DTYPE(x->dtype, norm_dw, cx, &b));
    if (x->dtype == DT_F32) return norm_dx<float, float, true>(cx, &b);
    return dx->dtype == DT_F32 ? norm_dx<bf16, float, true>(cx, &b)
                               : norm_dx<bf16, bf16, true>(cx, &b);
}

int cuda_headnorm_bwd(struct ctx *cx, struct tensor *dx, struct tensor *dw, const struct tensor *dy,
                      const struct tensor *x, const struct tensor *w, const struct tensor *rstd,
                      struct tensor *scratch)
{
    const struct norm_bwd b = { dx, dw, dy, x, w, rstd, data_of<float>(scratch) };
    if (tensor_count(x) == 0) return 0;
    TRY(BY_DTYPE(x->dtype, norm_dw, cx, &b));
    return x->dtype == DT_F32 ? norm_dx<float, float, false>(cx, &b)
                              : norm_dx<bf16, bf16, false>(cx, &b);
}
