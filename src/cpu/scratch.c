/* SPDX-License-Identifier: MIT
 * What the kernels take for themselves, by the sizes of a model. */
#include "cpu.h"
#include "../ops/tiles.h"

/* Of the products of one linear layer: y = x w^T, dx = dy w, dw += dy^T x. */
static int64_t linear_need(const struct ctx *cx, const struct op_sizes *s, int64_t in, int64_t out)
{
    const struct mat half = { .dtype = s->A };
    const struct product fwd = {
        .M = s->T, .N = out, .K = in, .a = half, .b = half, .y_dtype = s->A
    };
    const struct product back = {
        .M = s->T, .N = in, .K = out, .a = half, .b = half, .y_dtype = s->A
    };
    const struct product dw = { .M = out, .N = in, .K = s->T, .a = half, .b = half };
    int64_t need = cpu_product_shared(cx, &fwd);
    if (!s->train) return need;
    need = MAX(need, cpu_product_shared(cx, &back));
    return MAX(need, cpu_product_shared(cx, &dw));
}

static int64_t head_need(const struct ctx *cx, const struct op_sizes *s)
{
    const struct mat half = { .dtype = s->A };
    const int64_t n = LOGP_TILE_N, v = MIN(LOGP_TILE_V, s->V);
    const struct product z = { .M = n, .N = v, .K = s->C, .a = half, .b = half };
    const struct product dh = { .M = n, .N = s->C, .K = v, .a = half, .b = half };
    const struct product dw = { .M = v, .N = s->C, .K = n, .a = half, .b = half };
    int64_t need = cpu_product_shared(cx, &z);
    if (!s->train) return need;
    need = MAX(need, cpu_product_shared(cx, &dh));
    return MAX(need, cpu_product_shared(cx, &dw));
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
    if (s->A == DT_F32) return n;
    n.arena = MAX(n.arena, cpu_norm_arena(s->C));
    n.shared = MAX(n.shared, cpu_few_shared(MAX(s->F, MAX(s->C, q))));
    return n;
}
