/* SPDX-License-Identifier: MIT */
#include "kernel.cuh"
#include <math.h>

constexpr int BLOCK = 256;

struct adamw_step { /* what is the same for all elements */
    float scale, mix1, beta2, mix2, keep, step, root, eps;
};

/* One read of g, one read and one write of w, m, v, one write of the copy (null: none): 28 or 30 bytes an element. */
__global__ void adamw_kernel(float *w, float *m, float *v, const float *g, bf16 *copy,
                             struct adamw_step s, int64_t n)
{
    const int64_t i = global_thread() * OCT;
    if (i >= n) return;
    oct a = load8(w + i, n - i), p = load8(m + i, n - i), q = load8(v + i, n - i);
    const oct d = load8(g + i, n - i);
#pragma unroll
    for (int k = 0; k < OCT; k++) {
        const float x = d.v[k] * s.scale;
        p.v[k] += (x - p.v[k]) * s.mix1;
        q.v[k] = q.v[k] * s.beta2 + x * x * s.mix2;
        a.v[k] = a.v[k] * s.keep - p.v[k] * s.step / (sqrtf(q.v[k]) * s.root + s.eps);
    }
    store8(w + i, a, n - i);
    store8(m + i, p, n - i);
    store8(v + i, q, n - i);
    if (copy) store8(copy + i, a, n - i);
}

int cuda_adamw(struct ctx *cx, struct tensor *w, struct tensor *m, struct tensor *v,
               const struct tensor *g, const struct adamw *opt, struct tensor *copy)
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
    if (n == 0) return 0;
    return LAUNCH(cx, adamw_kernel, blocks_for(div_up(n, OCT), BLOCK), BLOCK, 0, data_of<float>(w),
                  data_of<float>(m), data_of<float>(v), data_of<float>(g),
                  copy ? data_of<bf16>(copy) : NULL, s, n);
}
