/* SPDX-License-Identifier: MIT */
#include "kernel.cuh"
#define STOCHASTIC_FUNCTION __device__ static inline
#include "../src/ops/stochastic.h"
#define SPLIT_FUNCTION __device__ static inline
#include "../src/ops/split.h"
#include <math.h>

constexpr int BLOCK = 256;

struct adamw_step { /* what is the same for all elements */
    float scale, mix1, beta2, mix2, keep, step, root, eps;
};

/* What is stored of element i: as it is, or rounded with its own 16 random bits, those from bit `at` on. */
__device__ static inline void store_state(float *p, const oct &o, int64_t i, int64_t n, const uint64_t *, int)
{
    store8(p + i, o, n - i);
}
__device__ static inline void store_state(bf16 *p, const oct &o, int64_t i, int64_t n, const uint64_t *bits, int at)
{
    oct r = o;
#pragma unroll
    for (int k = 0; k < OCT; k++)
        r.v[k] = __uint_as_float((uint32_t)stochastic_bf16(o.v[k], (uint32_t)(bits[k] >> at & 0xffff)) << 16);
    store8(p + i, r, n - i); /* a bfloat16 already */
}

/* Eight lower halves, beside bfloat16 in an oct: p[0 .. min(n, 8)) */
union halves {
    int16_t v[OCT];
    uint4 all;
};
__device__ static inline void join8(oct &o, const int16_t *p, int64_t n)
{
    halves h;
    if (n >= OCT && aligned16(p))
        h.all = *reinterpret_cast<const uint4 *>(p);
    else
#pragma unroll
        for (int i = 0; i < OCT; i++)
            h.v[i] = i < n ? p[i] : (int16_t)0;
#pragma unroll
    for (int i = 0; i < OCT; i++)
        o.v[i] = split_join((uint16_t)(__float_as_uint(o.v[i]) >> 16), h.v[i]);
}
__device__ static inline void split8(bf16 *upper, int16_t *p, const oct &o, int64_t n)
{
    halves h;
    oct r;
#pragma unroll
    for (int i = 0; i < OCT; i++) {
        uint16_t u;
        h.v[i] = split_float(o.v[i], &u);
        r.v[i] = __uint_as_float((uint32_t)u << 16);
    }
    store8(upper, r, n); /* a bfloat16 already */
    if (n >= OCT && aligned16(p)) {
        *reinterpret_cast<uint4 *>(p) = h.all;
        return;
    }
#pragma unroll
    for (int i = 0; i < OCT; i++)
        if (i < n) p[i] = h.v[i];
}
__device__ static inline void store_weights(float *w, int16_t *, const oct &o, int64_t i, int64_t n, const uint64_t *bits)
{
    store_state(w, o, i, n, bits, 0);
}
__device__ static inline void store_weights(bf16 *w, int16_t *low, const oct &o, int64_t i, int64_t n, const uint64_t *bits)
{
    if (low)
        split8(w + i, low + i, o, n - i);
    else
        store_state(w, o, i, n, bits, 0);
}

/* One read of g, one read and one write of w, m, v and of w's lower halves (null: none): 28 bytes an element, fewer where M is bf16 or there are no halves. */
template <class W, class M>
__global__ void adamw_kernel(W *w, M *m, M *v, const float *g, int16_t *low, struct adamw_step s, uint64_t key,
                             int64_t first, int64_t n)
{
    const int64_t i = global_thread() * OCT;
    if (i >= n) return;
    oct a = load8(w + i, n - i), p = load8(m + i, n - i), q = load8(v + i, n - i);
    const oct d = load8(g + i, n - i);
    if (low) join8(a, low + i, n - i);
    uint64_t bits[OCT];
#pragma unroll
    for (int k = 0; k < OCT; k++) {
        const float x = d.v[k] * s.scale;
        p.v[k] += (x - p.v[k]) * s.mix1;
        q.v[k] = q.v[k] * s.beta2 + x * x * s.mix2;
        a.v[k] = a.v[k] * s.keep - p.v[k] * s.step / (sqrtf(q.v[k]) * s.root + s.eps);
        bits[k] = stochastic_bits(key, (uint64_t)(first + i + k)); /* not needed by float alone: the compiler drops it */
    }
    store_weights(w, low, a, i, n, bits);
    store_state(m, p, i, n, bits, 16);
    store_state(v, q, i, n, bits, 32);
}

struct adamw_call { /* the tensors of an update */
    struct tensor *w, *m, *v, *low;
    const struct tensor *g;
    const struct adamw *opt;
};

template <class W, class M>
static int launch_adamw(struct ctx *cx, const struct adamw_call *c, const struct adamw_step &s)
{
    const int64_t n = tensor_count(c->w);
    return LAUNCH(cx, (adamw_kernel<W, M>), blocks_for(div_up(n, OCT), BLOCK), BLOCK, 0, data_of<W>(c->w),
                  data_of<M>(c->m), data_of<M>(c->v), data_of<float>(c->g),
                  c->low ? data_of<int16_t>(c->low) : NULL, s, c->opt->key, c->opt->first, n);
}

int cuda_adamw(struct ctx *cx, struct tensor *w, struct tensor *m, struct tensor *v,
               const struct tensor *g, const struct adamw *opt, struct tensor *low)
{
    const int64_t n = tensor_count(w);
    const double c1 = 1 - pow(opt->beta1, (double)opt->step),
                 c2 = 1 - pow(opt->beta2, (double)opt->step);
    const struct adamw_step s = { (float)opt->grad_scale,
                                  (float)(1 - opt->beta1),
                                  (float)opt->beta2,
                                  (float)(1 - opt->beta2),
                                  (float)(1 - opt->lr * opt->weight_decay),
                                  (float)(opt->lr / c1),
                                  (float)(1 / sqrt(c2)),
                                  (float)opt->eps };
    const struct adamw_call c = { w, m, v, low, g, opt };
    const bool half_w = w->dtype == DT_BF16, half_m = m->dtype == DT_BF16;
    if (n == 0) return 0;
    if (half_w) return half_m ? launch_adamw<bf16, bf16>(cx, &c, s) : launch_adamw<bf16, float>(cx, &c, s);
    return half_m ? launch_adamw<float, bf16>(cx, &c, s) : launch_adamw<float, float>(cx, &c, s);
}
