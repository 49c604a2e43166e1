/* SPDX-License-Identifier: MIT
 * What the kernels take for themselves, by the sizes of a model. */
#include "cpu.h"
#include "../ops/tiles.h"

/* Of a product of activations; alpha decides which panels it takes. */
static int64_t product_need(const struct ctx *cx, enum dtype A, enum dtype y, int64_t M, int64_t N,
                            int64_t K, float alpha)
{
    const struct mat half = { .dtype = A },
                     across = { .dtype = A, .t = true }; /* no row of it is a panel as it lies */
    const struct product p = {
        .M = M, .N = N, .K = K, .alpha = alpha, .a = across, .b = half, .y_dtype = y
    };
    return cpu_product_shared(cx, &p);
}

/* Of adapters beside a linear layer: xa = x A^T, y += s xa B^T, dxa = s dy B, dx += dxa A, dA += dxa^T x, dB += s dy^T xa. */
static int64_t adapter_need(const struct ctx *cx, const struct op_sizes *s, int64_t in, int64_t out)
{
    const int64_t r = s->rank, many = 3 * r;
    const float scale = 0.5F; /* any but 1 */
    int64_t need = MAX(product_need(cx, s->A, s->A, s->T, many, in, 1),
                       product_need(cx, s->A, s->A, s->T, out, r, scale));
    if (!s->train) return need;
    need = MAX(need, product_need(cx, s->A, s->A, s->T, r, out, scale));
    need = MAX(need, product_need(cx, s->A, s->A, s->T, in, many, 1));
    need = MAX(need, product_need(cx, s->A, DT_F32, many, in, s->T, 1));
    return MAX(need, product_need(cx, s->A, DT_F32, out, r, s->T, scale));
}

/* Of the products of one linear layer: y = x w^T, dx = dy w, dw += dy^T x. */
static int64_t linear_need(const struct ctx *cx, const struct op_sizes *s, int64_t in, int64_t out)
{
    int64_t need = product_need(cx, s->A, s->A, s->T, out, in, 1);
    if (s->rank > 0) need = MAX(need, adapter_need(cx, s, in, out));
    if (!s->train) return need;
    need = MAX(need, product_need(cx, s->A, s->A, s->T, in, out, 1));
    return MAX(need, product_need(cx, s->A, DT_F32, out, in, s->T, 1));
}

static int64_t head_need(const struct ctx *cx, const struct op_sizes *s)
{
    const int64_t n = LOGP_TILE_N, v = MIN(LOGP_TILE_V, s->V);
    int64_t need = product_need(cx, s->A, DT_F32, n, v, s->C, 1);
    if (!s->train) return need;
    need = MAX(need, product_need(cx, s->A, DT_F32, n, s->C, v, 1));
    return MAX(need, product_need(cx, s->A, DT_F32, v, s->C, n, 1));
}

/* oneDNN's sgemm in version 2.6, measured: its code, made once; a panel of 384 rows of b; a panel of a for each thread. */
int64_t cpu_library_bytes(const struct ctx *cx, const struct op_sizes *s)
{
    enum { CODE = 3 << 20, PANEL = 384 * 4, THREAD = 800 << 10 };
    const int64_t widest = MAX(MAX(2 * s->F, s->C), (s->H + 2 * s->K) * s->D);
    return s->A == DT_F32 ? CODE + PANEL * widest + THREAD * (int64_t)cx->threads : 0;
}

struct cpu_need cpu_need_of(const struct ctx *cx, const struct op_sizes *s)
{
    const int64_t q = s->H * s->D, kv = s->K * s->D;
    struct cpu_need n = { .arena = cpu_attention_fwd_arena(s), .shared = head_need(cx, s) };
    if (s->train) n.arena = MAX(n.arena, cpu_attention_bwd_arena(s));
    n.shared = MAX(n.shared, linear_need(cx, s, s->C, q + 2 * kv));
    n.shared = MAX(n.shared, linear_need(cx, s, q, s->C));
    n.shared = MAX(n.shared, linear_need(cx, s, s->C, 2 * s->F));
    n.shared = MAX(n.shared, linear_need(cx, s, s->F, s->C));
    n.shared = MAX(n.shared, cpu_few_shared(MAX(MAX(s->F, 3 * s->rank), MAX(s->C, q))));
    if (s->A == DT_F32) return n;
    n.arena = MAX(n.arena, cpu_norm_arena(s->C));
    return n;
}
