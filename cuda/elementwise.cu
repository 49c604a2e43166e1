/* SPDX-License-Identifier: MIT */
#include "kernel.cuh"
#include "../src/ops/nf4.h"
#define STOCHASTIC_FUNCTION __host__ __device__ static inline
#include "../src/ops/stochastic.h"

/* Every kernel here: a thread takes OCT neighbouring elements of a row (or of a flat array), one read and one write of each;
 * no thread reads what another writes. */
constexpr int BLOCK = 256;

/* --- flat arrays ------------------------------------------------------------------------------------------------------- */
template <class Y> __global__ void fill_kernel(Y *y, float value, int64_t n)
{
    const int64_t i = global_thread() * OCT;
    oct o;
    if (i >= n) return;
#pragma unroll
    for (int k = 0; k < OCT; k++)
        o.v[k] = value;
    store8(y + i, o, n - i);
}

template <class Y> static int fill(struct ctx *cx, struct tensor *y, float value)
{
    const int64_t n = tensor_count(y);
    if (n == 0) return 0;
    return LAUNCH(cx, (fill_kernel<Y>), blocks_for(div_up(n, OCT), BLOCK), BLOCK, 0,
                  data_of<Y>(y), value, n);
}

int cuda_fill(struct ctx *cx, struct tensor *y, float value)
{
    if (y->dtype != DT_I32) return BY_DTYPE(y->dtype, fill, cx, y, value);
    /* the float with the bits of the whole number: stores do not change bits */
    const int32_t whole = (int32_t)value;
    float bits;
    memcpy(&bits, &whole, sizeof bits);
    return fill<float>(cx, y, bits);
}

template <class Y, class X> __global__ void cast_kernel(Y *y, const X *x, int64_t n)
{
    const int64_t i = global_thread() * OCT;
    if (i < n) store8(y + i, load8(x + i, n - i), n - i);
}

template <class Y, class X> __global__ void add_kernel(Y *y, const X *x, int64_t n)
{
    const int64_t i = global_thread() * OCT;
    if (i >= n) return;
    oct a = load8(y + i, n - i);
    const oct b = load8(x + i, n - i);
#pragma unroll
    for (int k = 0; k < OCT; k++)
        a.v[k] += b.v[k];
    store8(y + i, a, n - i);
}

template <class Y, class X> static int cast(struct ctx *cx, struct tensor *y, const struct tensor *x)
{
    const int64_t n = tensor_count(y);
    return LAUNCH(cx, (cast_kernel<Y, X>), blocks_for(div_up(n, OCT), BLOCK), BLOCK, 0,
                  data_of<Y>(y), data_of<X>(x), n);
}

template <class Y, class X> static int add(struct ctx *cx, struct tensor *y, const struct tensor *x)
{
    const int64_t n = tensor_count(y);
    return LAUNCH(cx, (add_kernel<Y, X>), blocks_for(div_up(n, OCT), BLOCK), BLOCK, 0,
                  data_of<Y>(y), data_of<X>(x), n);
}

int cuda_cast(struct ctx *cx, struct tensor *y, const struct tensor *x)
{
    if (tensor_count(y) == 0) return 0;
    if (y->dtype == DT_BF16)
        return x->dtype == DT_BF16 ? cast<bf16, bf16>(cx, y, x) : cast<bf16, float>(cx, y, x);
    return x->dtype == DT_BF16 ? cast<float, bf16>(cx, y, x) : cast<float, float>(cx, y, x);
}

int cuda_add(struct ctx *cx, struct tensor *y, const struct tensor *x)
{
    if (tensor_count(y) == 0) return 0;
    if (y->dtype == DT_BF16)
        return x->dtype == DT_BF16 ? add<bf16, bf16>(cx, y, x) : add<bf16, float>(cx, y, x);
    return x->dtype == DT_BF16 ? add<float, bf16>(cx, y, x) : add<float, float>(cx, y, x);
}

/* --- rows -------------------------------------------------------------------------------------------------------------- */
/* y[n, row] = x[index[n], row], rows of `row` words of W */
template <class W>
__global__ void gather_kernel(W *y, const W *x, const int32_t *index, int64_t n, int64_t row,
                              int64_t rows)
{
    const int64_t i = global_thread();
    if (i >= n * row) return;
    const int64_t at = index[i / row];
    DEVICE_BUG_IF(at < 0 || at >= rows);
    y[i] = x[at * row + i % row];
}

template <class W>
static int gather(struct ctx *cx, struct tensor *y, const struct tensor *x,
                  const struct tensor *index)
{
    const int64_t n = y->dim[0], row = tensor_row(y) * dtype_size(y->dtype) / (int64_t)sizeof(W);
    if (n * row == 0) return 0;
    return LAUNCH(cx, (gather_kernel<W>), blocks_for(n * row, BLOCK), BLOCK, 0, data_of<W>(y),
                  data_of<W>(x), data_of<int32_t>(index), n, row, x->dim[0]);
}

int cuda_gather(struct ctx *cx, struct tensor *y, const struct tensor *x,
                const struct tensor *index)
{
    const int64_t bytes = tensor_row(y) * dtype_size(y->dtype);
    if (bytes % 16 == 0 && ((uintptr_t)y->data | (uintptr_t)x->data) % 16 == 0)
        return gather<uint4>(cx, y, x, index);
    return bytes % 4 == 0 ? gather<uint32_t>(cx, y, x, index) : gather<uint16_t>(cx, y, x, index);
}

/* y[index[n], row] = x[n, row]; rows of x are ld apart */
template <class W>
__global__ void put_rows_kernel(W *y, const W *x, int64_t ld, const int32_t *index, int64_t n, int64_t row, int64_t rows)
{
    const int64_t i = global_thread();
    if (i >= n * row) return;
    const int64_t at = index[i / row];
    DEVICE_BUG_IF(at < 0 || at >= rows);
    y[at * row + i % row] = x[i / row * ld + i % row];
}

template <class W>
static int put_rows(struct ctx *cx, struct tensor *y, const struct tensor *x, const struct tensor *index)
{
    const int64_t n = x->dim[0], size = dtype_size(x->dtype), word = (int64_t)sizeof(W), row = x->dim[1] * size / word;
    if (n * row == 0) return 0;
    return LAUNCH(cx, (put_rows_kernel<W>), blocks_for(n * row, BLOCK), BLOCK, 0, data_of<W>(y), data_of<W>(x), x->ld * size / word,
                  data_of<int32_t>(index), n, row, y->dim[0]);
}

int cuda_put_rows(struct ctx *cx, struct tensor *y, const struct tensor *x, const struct tensor *index)
{
    const int64_t size = dtype_size(x->dtype), bits = x->dim[1] * size | x->ld * size | (int64_t)((uintptr_t)y->data | (uintptr_t)x->data);
    if (bits % 16 == 0) return put_rows<uint4>(cx, y, x, index);
    return bits % 4 == 0 ? put_rows<uint32_t>(cx, y, x, index) : put_rows<uint16_t>(cx, y, x, index);
}

/* a thread: up to OCT pairs (i, i + D/2) of one head; `parts` of them a head */
template <class A>
__global__ void rope_kernel(A *x, int64_t ld, const int32_t *pos, const float *table, int64_t T,
                            int heads, int half, int parts, int64_t positions, float sign)
{
    const int64_t i = global_thread(), each = (int64_t)heads * parts;
    if (i >= T * each) return;
    const int64_t t = i / each, p = pos[t];
    const int head = (int)(i % each / parts), at = (int)(i % parts) * OCT, n = half - at;
    DEVICE_BUG_IF(p < 0 || p >= positions);
    A *row = x + t * ld + (int64_t)head * 2 * half + at;
    const float *cs = table + p * 2 * half + at;
    oct a = load8(row, n), b = load8(row + half, n);
    const oct c = load8(cs, n), s = load8(cs + half, n);
#pragma unroll
    for (int k = 0; k < OCT; k++) {
        const float u = a.v[k], v = b.v[k], w = sign * s.v[k];
        a.v[k] = u * c.v[k] - v * w;
        b.v[k] = v * c.v[k] + u * w;
    }
    store8(row, a, n);
    store8(row + half, b, n);
}

template <class A>
static int rope(struct ctx *cx, struct tensor *x, int32_t D, const struct tensor *pos,
                const struct tensor *table, float sign)
{
    const int64_t T = x->dim[0], heads = x->dim[1] / D, parts = div_up(D / 2, OCT);
    if (T * heads == 0) return 0;
    return LAUNCH(cx, (rope_kernel<A>), blocks_for(T * heads * parts, BLOCK), BLOCK, 0,
                  data_of<A>(x), x->ld, data_of<int32_t>(pos), data_of<float>(table), T,
                  (int)heads, D / 2, (int)parts, table->dim[0], sign);
}

int cuda_rope(struct ctx *cx, struct tensor *x, int32_t head_size, const struct tensor *pos,
              const struct tensor *table, bool inverse)
{
    return BY_DTYPE(x->dtype, rope, cx, x, head_size, pos, table, inverse ? -1.0f : 1.0f);
}

/* --- SwiGLU: gu[T,2F] = [g | u] -------------------------------------------------------------------------------------------- */
__device__ static float sigmoid(float x)
{
    return 1.0f / (1.0f + expf(-x));
}

/* the same bits wherever it is computed */
__device__ static float swiglu(float g, float u)
{
    return g * sigmoid(g) * u;
}

template <class A>
__global__ void swiglu_fwd_kernel(A *y, const A *gu, int64_t T, int64_t F, int64_t parts)
{
    const int64_t i = global_thread(), t = i / parts, c = i % parts * OCT;
    if (t >= T) return;
    oct g = load8(gu + t * 2 * F + c, F - c);
    const oct u = load8(gu + t * 2 * F + F + c, F - c);
#pragma unroll
    for (int k = 0; k < OCT; k++)
        g.v[k] = swiglu(g.v[k], u.v[k]);
    store8(y + t * F + c, g, F - c);
}

/* dgu may be gu, and y dy: a thread reads what it writes over */
template <class A>
__global__ void swiglu_bwd_kernel(A *dgu, A *y, const A *dy, const A *gu, int64_t T, int64_t F,
                                  int64_t parts)
{
    const int64_t i = global_thread(), t = i / parts, c = i % parts * OCT;
    if (t >= T) return;
    oct g = load8(gu + t * 2 * F + c, F - c), u = load8(gu + t * 2 * F + F + c, F - c);
    const oct d = load8(dy + t * F + c, F - c);
    oct o;
#pragma unroll
    for (int k = 0; k < OCT; k++) {
        const float x = g.v[k], s = sigmoid(x), up = u.v[k];
        u.v[k] = d.v[k] * x * s;
        g.v[k] = d.v[k] * up * s * (1.0f + x * (1.0f - s));
        o.v[k] = swiglu(x, up);
    }
    if (y) store8(y + t * F + c, o, F - c);
    store8(dgu + t * 2 * F + c, g, F - c);
    store8(dgu + t * 2 * F + F + c, u, F - c);
}

template <class A> static int swiglu_fwd(struct ctx *cx, struct tensor *y, const struct tensor *gu)
{
    const int64_t T = y->dim[0], F = y->dim[1], parts = div_up(F, OCT);
    if (T * F == 0) return 0;
    return LAUNCH(cx, (swiglu_fwd_kernel<A>), blocks_for(T * parts, BLOCK), BLOCK, 0,
                  data_of<A>(y), data_of<A>(gu), T, F, parts);
}

template <class A>
static int swiglu_bwd(struct ctx *cx, struct tensor *dgu, struct tensor *y, const struct tensor *dy,
                      const struct tensor *gu)
{
    const int64_t T = dy->dim[0], F = dy->dim[1], parts = div_up(F, OCT);
    if (T * F == 0) return 0;
    return LAUNCH(cx, (swiglu_bwd_kernel<A>), blocks_for(T * parts, BLOCK), BLOCK, 0,
                  data_of<A>(dgu), y ? data_of<A>(y) : NULL, data_of<A>(dy), data_of<A>(gu), T, F,
                  parts);
}

int cuda_swiglu_fwd(struct ctx *cx, struct tensor *y, const struct tensor *gu)
{
    return BY_DTYPE(y->dtype, swiglu_fwd, cx, y, gu);
}

int cuda_swiglu_bwd(struct ctx *cx, struct tensor *dgu, struct tensor *y, const struct tensor *dy,
                    const struct tensor *gu)
{
    return BY_DTYPE(dy->dtype, swiglu_bwd, cx, dgu, y, dy, gu);
}

struct nf4_codes {
    float v[NF4_CODES];
};

/* y = code[q] absmax. A thread makes eight elements of four bytes. */
template <class A>
__global__ void nf4_kernel(A *y, const uint8_t *q, const float *absmax, struct nf4_codes codes,
                           int64_t n)
{
    CUDA_SHARED(float, code, [NF4_CODES]);
    const int64_t i = global_thread() * OCT;
    if (threadIdx.x < NF4_CODES) code[threadIdx.x] = codes.v[threadIdx.x];
    __syncthreads();
    if (i >= n) return;
    const float scale = absmax[i / NF4_BLOCK];
    oct o;
#pragma unroll
    for (int k = 0; k < OCT; k += 2) {
        const uint8_t two = q[(i + k) / 2];
        o.v[k] = code[two >> 4] * scale;
        o.v[k + 1] = code[two & 15] * scale;
    }
    store8(y + i, o, n - i);
}

template <class A>
static int nf4(struct ctx *cx, struct tensor *y, const struct tensor *q, const struct tensor *absmax)
{
    static const struct nf4_codes codes = { NF4_TABLE };
    const int64_t n = tensor_count(y);
    if (n == 0) return 0;
    return LAUNCH(cx, (nf4_kernel<A>), blocks_for(n / OCT, BLOCK), BLOCK, 0, data_of<A>(y),
                  data_of<uint8_t>(q), data_of<float>(absmax), codes, n);
}

int cuda_nf4(struct ctx *cx, struct tensor *y, const struct tensor *q, const struct tensor *absmax)
{
    return BY_DTYPE(y->dtype, nf4, cx, y, q, absmax);
}

struct nf4_scale_codes {
    float v[NF4_SCALE_CODES];
};

/* absmax = table[codes] most + mean. A block takes the scales of one group. */
__global__ void nf4_scales_kernel(float *absmax, const uint8_t *codes, const float *most,
                                  struct nf4_scale_codes table, int64_t n)
{
    CUDA_SHARED(float, code, [NF4_SCALE_CODES]);
    const int64_t i = global_thread();
    code[threadIdx.x] = table.v[threadIdx.x];
    __syncthreads();
    if (i < n) absmax[i] = code[codes[i]] * most[1 + i / NF4_GROUP] + most[0];
}

int cuda_nf4_scales(struct ctx *cx, struct tensor *absmax, const struct tensor *codes,
                    const struct tensor *most)
{
    static_assert(BLOCK == NF4_SCALE_CODES, "a thread brings a code");
    const int64_t n = tensor_count(absmax);
    struct nf4_scale_codes table;
    if (n == 0) return 0;
    memcpy(table.v, nf4_scale_table(), sizeof table.v);
    return LAUNCH(cx, nf4_scales_kernel, blocks_for(n, BLOCK), BLOCK, 0, data_of<float>(absmax),
                  data_of<uint8_t>(codes), data_of<float>(most), table, n);
}

/* y = (+=) x times 0 or 1/(1-p). Eight elements of a row are two words of four. */
template <class A>
__global__ void dropout_kernel(A *y, const A *x, uint64_t key, int64_t first, uint32_t below,
                               int64_t T, int64_t K, int64_t parts, bool add)
{
    const int64_t i = global_thread(), t = i / parts, c = i % parts * OCT;
    if (t >= T) return;
    const uint64_t word = (uint64_t)((first + t) * ((K + 3) / 4) + c / 4);
    const uint64_t bits[2] = { stochastic_bits(key, word), stochastic_bits(key, word + 1) };
    oct o = load8(x + t * K + c, K - c), sum;
    if (add) sum = load8(y + t * K + c, K - c);
#pragma unroll
    for (int k = 0; k < OCT; k++) {
        o.v[k] *= dropout_factor(bits[k / 4], k % 4, below);
        if (add) o.v[k] += sum.v[k];
    }
    store8(y + t * K + c, o, K - c);
}

template <class A>
static int drop_rows(struct ctx *cx, struct tensor *y, const struct tensor *x,
                     const struct dropout *drop, bool add)
{
    const int64_t T = x->dim[0], K = x->dim[1], parts = div_up(K, OCT);
    if (T * K == 0) return 0;
    return LAUNCH(cx, (dropout_kernel<A>), blocks_for(T * parts, BLOCK), BLOCK, 0, data_of<A>(y),
                  data_of<A>(x), drop->key, drop->first, dropout_below(drop->p), T, K, parts, add);
}

int cuda_dropout(struct ctx *cx, struct tensor *y, const struct tensor *x,
                 const struct dropout *drop, bool add)
{
    return BY_DTYPE(y->dtype, drop_rows, cx, y, x, drop, add);
}
