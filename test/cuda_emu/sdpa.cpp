/* SPDX-License-Identifier: MIT
 * The twin of cuda/attention_cudnn.cpp: what sdpa.h says, in double, with outputs rounded to bfloat16. Bytes of the workspace are used as such. */
#include "../../cuda/sdpa.h"
#include "../../src/base/base.h"
#include "block.h"
#include <stdlib.h>

struct sdpa_library {
    int plans;
};

int sdpa_open(struct ctx *cx)
{
    cx->sdpa = static_cast<sdpa_library *>(calloc(1, sizeof *cx->sdpa));
    return cx->sdpa ? 0 : err_set(ERR_OOM, "out of memory");
}

void sdpa_close(struct ctx *cx)
{
    free(cx->sdpa);
    cx->sdpa = nullptr;
}

int sdpa_plan(struct ctx *cx, const struct sdpa *s, bool backward, int64_t *bytes)
{
    cx->sdpa->plans++;
    *bytes = 256 + (backward ? (int64_t)s->n * s->H * s->q_most * 4 : 0);
    return s->n < 1 || s->D % 8 ? err_set(ERR_DEVICE, "sdpa: shape") : 0;
}

struct call {
    sdpa s;
    bool backward;
    unsigned char *workspace;
    int64_t bytes;
};

static double get(const void *x, int64_t i)
{
    return (double)__uint_as_float((unsigned)static_cast<const uint16_t *>(x)[i] << 16);
}

static void put(void *x, int64_t i, double v)
{
    static_cast<uint16_t *>(x)[i] = ptx_f32_to_bf16((float)v);
}

/* p[j] = exp(scale q k_j - lse) of a query over the n keys from `k`; returns lse */
static double weights(const sdpa &s, double *p, int64_t q, int64_t k, int64_t n, const float *lse)
{
    double top = -INFINITY, sum = 0;
    for (int64_t j = 0; j < n; j++) {
        p[j] = 0;
        for (int d = 0; d < s.D; d++)
            p[j] += get(s.q, q + d) * get(s.k, k + j * s.K * s.D + d) * (double)s.scale;
        top = fmax(top, p[j]);
    }
    for (int64_t j = 0; j < n; j++)
        sum += exp(p[j] - top);
    const double l = lse ? (double)*lse : top + log(sum);
    for (int64_t j = 0; j < n; j++)
        p[j] = exp(p[j] - l);
    return l;
}

static void forward(const sdpa &s, int i, int h, double *p)
{
    for (int64_t r = 0; r < s.q_len[i]; r++) {
        const int64_t n = s.kv_len[i] - s.q_len[i] + r + 1, k = s.kv_at[i] + h / (s.H / s.K) * s.D;
        s.lse[s.lse_at[i] + r * s.H + h] = (float)weights(s, p, s.q_at[i] + r * s.ldq + h * s.D, k, n, nullptr);
        for (int d = 0; d < s.D; d++) {
            double o = 0;
            for (int64_t j = 0; j < n; j++)
                o += p[j] * get(s.v, k + j * s.K * s.D + d);
            put(s.o, s.o_at[i] + r * s.ldo + h * s.D + d, o);
        }
    }
}

/* dq of query head h; its part of dk, dv is added to sums [2][kv_len, D] */
static void backward(const sdpa &s, int i, int h, double *p, double *sums)
{
    for (int64_t r = 0; r < s.q_len[i]; r++) {
        const int64_t n = s.kv_len[i] - s.q_len[i] + r + 1, k = s.kv_at[i] + h / (s.H / s.K) * s.D;
        const int64_t q = s.q_at[i] + r * s.ldq + h * s.D, dy = s.dout_at[i] + r * s.lddout + h * s.D, o = s.o_at[i] + r * s.ldo + h * s.D;
        double delta = 0, dq[256] = { 0 };
        weights(s, p, q, k, n, &s.lse[s.lse_at[i] + r * s.H + h]);
        for (int d = 0; d < s.D; d++)
            delta += get(s.dout, dy + d) * get(s.o, o + d);
        for (int64_t j = 0; j < n; j++) {
            double dp = 0;
            for (int d = 0; d < s.D; d++)
                dp += get(s.dout, dy + d) * get(s.v, k + j * s.K * s.D + d);
            const double ds = p[j] * (dp - delta) * (double)s.scale;
            for (int d = 0; d < s.D; d++) {
                dq[d] += ds * get(s.k, k + j * s.K * s.D + d);
                sums[j * s.D + d] += ds * get(s.q, q + d);
                sums[(s.kv_len[i] + j) * s.D + d] += p[j] * get(s.dout, dy + d);
            }
        }
        for (int d = 0; d < s.D; d++)
            put(s.dq, s.dq_at[i] + r * s.lddq + h * s.D + d, dq[d]);
    }
}

static void run(void *arguments)
{
    const call &c = *static_cast<const call *>(arguments);
    const sdpa &s = c.s;
    const int G = s.H / s.K;
    memset(c.workspace, 0xff, (size_t)c.bytes);
    for (int i = 0; i < s.n; i++) {
        const int64_t n = s.kv_len[i];
        if (s.q_len[i] < 1 || n < s.q_len[i] || s.q_len[i] > s.q_most || n > s.kv_most || s.q_at[i + 1] < s.q_at[i] || s.kv_at[i + 1] != s.kv_at[i] + n * s.K * s.D)
            emu_fail("sdpa: sequence %d", i);
        double *p = static_cast<double *>(calloc((size_t)(n + 2 * n * s.D), sizeof(double)));
        if (!p) emu_fail("no memory");
        for (int g = 0; g < s.K; g++) {
            memset(p + n, 0, (size_t)(2 * n * s.D) * sizeof(double));
            for (int h = g * G; h < (g + 1) * G; h++)
                c.backward ? backward(s, i, h, p, p + n) : forward(s, i, h, p);
            for (int64_t e = 0; c.backward && e < n * s.D; e++) {
                const int64_t at = s.kv_at[i] + e / s.D * s.K * s.D + g * s.D + e % s.D;
                put(s.dk, at, p[n + e]);
                put(s.dv, at, p[n + n * s.D + e]);
            }
        }
        free(p);
    }
}

int sdpa_run(struct ctx *cx, const struct sdpa *s, bool backward, void *workspace)
{
    call c = { *s, backward, static_cast<unsigned char *>(workspace), 0 };
    TRY(sdpa_plan(cx, s, backward, &c.bytes));
    if ((uintptr_t)workspace % 256) return err_set(ERR_DEVICE, "sdpa: the workspace is not aligned");
    emu_host_work(run, &c, sizeof c, cx->stream);
    return 0;
}
