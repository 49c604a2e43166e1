/* SPDX-License-Identifier: MIT
 * Rows of the ops that store fewer bits than they compute with. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "op_rows.h"
#include "ref_ops.h"
#include "../src/ops/split.h"
#include "../src/ops/stochastic.h"

#define OK(expr) assert_int_equal((expr), 0)

void op_rows_nf4(struct op_run *r, const int64_t *d) /* blocks */
{
    static const double code[16] = { /* of the paper, to ten places */
                                     -1,
                                     -0.6961928010,
                                     -0.5250730515,
                                     -0.3949174881,
                                     -0.2844413817,
                                     -0.1847734302,
                                     -0.0910500363,
                                     0,
                                     0.0795802996,
                                     0.1609302014,
                                     0.2461123019,
                                     0.3379152417,
                                     0.4407098293,
                                     0.5626170039,
                                     0.7229568362,
                                     1
    };
    const int64_t n = 64 * d[0];
    struct tensor *q = op_run_bytes(r, n / 2), *absmax = op_run_f32(r, BOX_INPUT, d[0], 1, 0, 1);
    struct tensor *y = op_run_act(r, BOX_OUTPUT, n, 1, 0, 1);
    double *want = op_run_zeros(r, n), *scale = op_run_double(r, absmax);
    const uint8_t *bytes = op_run_bytes_of(r, q);
    for (int64_t i = 0; i < n; i++)
        want[i] = code[i % 2 ? bytes[i / 2] & 15 : bytes[i / 2] >> 4] * scale[i / 64];
    OK(op_nf4(r->be, y, q, absmax));
    op_run_expect(r, y, want, 1, 1, 0);
}

/* The table from the other side: of decade 10^e the 2^e means of neighbours among 2^e + 1 points from 0.1 to 1. */
void op_rows_nf4_scales(struct op_run *r, const int64_t *d) /* blocks */
{
    const int64_t n = d[0];
    struct tensor *codes = op_run_bytes(r, n),
                  *most = op_run_f32(r, BOX_INPUT, 1 + (n + 255) / 256, 1, 0, 1);
    struct tensor *y = op_run_f32(r, BOX_OUTPUT, n, 1, 0, 1);
    double *want = op_run_zeros(r, n), *pm = op_run_double(r, most);
    const uint8_t *c = op_run_bytes_of(r, codes);
    for (int64_t i = 0; i < n; i++) {
        /* 0 to 126 negative, 127 zero, 128 to 254 positive, 255 one; from zero outwards 1 + 2 + 4 ... + 64 values */
        const int k = abs((int)c[i] - 127), e = k ? 31 - __builtin_clz((unsigned)k) : 0;
        const double step = 0.9 / (double)(1 << e),
                     at = 0.1 + step * ((double)(k - (1 << e)) + 0.5);
        double value = k ? at * pow(10, e - 6) * (c[i] < 127 ? -1 : 1) : 0;
        if (c[i] == 255) value = 1;
        want[i] = value * pm[1 + i / 256] + pm[0];
    }
    OK(op_nf4_scales(r->be, y, codes, most));
    op_run_expect(r, y, want, 8, 1, 0);
}

/* d: rows, columns, percent. In two pieces as in one, with and without add; the share is what was asked for. */
void op_rows_dropout(struct op_run *r, const int64_t *d)
{
    const int64_t T = d[0], K = d[1], cut = T / 3, words = (K + 3) / 4;
    struct dropout drop = { .p = (double)d[2] / 100, .key = 1234567, .first = 1000 };
    const double below = floor(drop.p * 65536 + 0.5), factor = 65536 / (65536 - below);
    struct tensor *x = op_run_act(r, BOX_INPUT, T, K, 0, 1),
                  *y = op_run_act(r, BOX_OUTPUT, T, K, 0, 1),
                  *z = op_run_act(r, BOX_INOUT, T, K, 0, 1);
    double *in = op_run_double(r, x), *want = op_run_zeros(r, T * K), *sum = op_run_double(r, z);
    int64_t dropped = 0;
    for (int64_t i = 0; i < T * K; i++) {
        const int64_t t = 1000 + i / K, c = i % K;
        const uint64_t bits = stochastic_bits(drop.key, (uint64_t)(t * words + c / 4));
        const bool gone = (double)(bits >> 16 * (c % 4) & 0xffff) < below;
        want[i] = gone ? 0 : in[i] * factor;
        sum[i] += want[i];
        dropped += gone;
    }
    for (int part = 0; part < 2; part++) {
        const int64_t at = part ? cut : 0, n = part ? T - cut : cut;
        const struct tensor px = tensor_rows(x, at, n);
        struct tensor py = tensor_rows(y, at, n), pz = tensor_rows(z, at, n);
        drop.first = 1000 + at;
        OK(op_dropout(r->be, &py, &px, &drop, false));
        OK(op_dropout(r->be, &pz, &px, &drop, true));
    }
    const double n = (double)(T * K), mean = drop.p * n;
    assert_true(fabs((double)dropped - mean) <= 5 * sqrt(mean * (1 - drop.p)) + 1);
    op_run_expect(r, y, want, 2, 1, 0);
    op_run_expect(r, z, sum, 2, 1, 0);
}

/* Rounded stochastically with bits `at` to `at` + 15 of the element's own. */
static double round_random(double x, uint64_t key, int64_t i, int at)
{
    const float f = (float)x;
    const uint16_t h =
        stochastic_bf16(f, (uint32_t)(stochastic_bits(key, (uint64_t)i) >> at & 0xffff));
    const uint32_t u = (uint32_t)h << 16;
    float out;
    memcpy(&out, &u, sizeof out);
    return (double)out;
}

/* Weights of both signs and many sizes as halves, and the floats that they are. */
static void put_halves(struct op_run *r, struct tensor *const *t, int64_t n)
{
    uint16_t *u = malloc((size_t)n * 2);
    int16_t *l = malloc((size_t)n * 2);
    float *x = malloc((size_t)n * 4);
    assert_true(u && l && x);
    for (int64_t i = 0; i < n; i++) {
        const uint64_t bits = stochastic_bits(5, (uint64_t)i);
        const uint32_t some =
            0x3a000000 + (uint32_t)(bits % 0x5ffffff) + (uint32_t)(bits >> 63 << 31);
        memcpy(&x[i], &some, sizeof some);
        l[i] = split_float(x[i], &u[i]);
        x[i] = split_join(u[i], l[i]);
    }
    op_run_put(r, t[0], u, n * 2);
    op_run_put(r, t[1], l, n * 2);
    op_run_put(r, t[2], x, n * 4);
    free(u);
    free(l);
    free(x);
}

/* One update of elements opt.first on, the first third of them and then the rest. */
static void update_in_two(struct op_run *r, struct tensor *w, struct tensor *m, struct tensor *v,
                          const struct tensor *g, struct adamw opt, struct tensor *low)
{
    const int64_t n = tensor_count(w), cut = n / 3, first = opt.first;
    for (int part = 0; part < 2; part++) {
        const int64_t at = part ? cut : 0, k = part ? n - cut : cut;
        struct tensor pw = tensor_rows(w, at, k), pm = tensor_rows(m, at, k),
                      pv = tensor_rows(v, at, k), pl = low ? tensor_rows(low, at, k) : pw;
        const struct tensor pg = tensor_rows(g, at, k);
        opt.first = first + at;
        OK(op_adamw(r->be, &pw, &pm, &pv, &pg, &opt, low ? &pl : NULL));
    }
}

/* With lower halves the weights are those of the update in float32, to the bit; in two pieces as in one. */
void op_rows_adamw_split(struct op_run *r, const int64_t *d) /* n */
{
    const int64_t n = d[0];
    const enum dtype act = r->act;
    const struct adamw opt = { .lr = 1e-4,
                               .beta1 = 0.9,
                               .beta2 = 0.999,
                               .eps = 1e-8,
                               .weight_decay = 0.1,
                               .step = 3,
                               .grad_scale = 0.25,
                               .key = 77 };
    struct tensor *m[2], *v[2], *g = op_run_f32(r, BOX_INPUT, n, 1, 0, 3);
    for (int k = 0; k < 2; k++) {
        m[k] = op_run_act(r, BOX_INOUT, n, 1, 0, 0);
        v[k] = op_run_act(r, BOX_INOUT, n, 1, 0, 0);
    }
    r->act = DT_BF16;
    struct tensor *w[3] = { op_run_act(r, BOX_INOUT, n, 1, 0, 1), op_run_low(r, n),
                            op_run_f32(r, BOX_INOUT, n, 1, 0, 1) };
    r->act = act;
    put_halves(r, w, n);
    OK(op_adamw(r->be, w[2], m[0], v[0], g, &opt, NULL));
    update_in_two(r, w[0], m[1], v[1], g, opt, w[1]);
    double *upper = op_run_double(r, w[0]), *low = op_run_double(r, w[1]),
           *whole = op_run_double(r, w[2]);
    for (int64_t i = 0; i < n; i++) {
        uint16_t u;
        const int16_t rest = split_float((float)whole[i], &u);
        upper[i] = (double)split_join(u, 0);
        low[i] = rest;
    }
    op_run_expect(r, w[0], upper, 0, 1, 0);
    op_run_expect(r, w[1], low, 0, 1, 0);
    op_run_expect(r, m[1], op_run_double(r, m[0]), 0, 1, 0);
    op_run_expect(r, v[1], op_run_double(r, v[0]), 0, 1, 0);
    op_run_exact(r, w[0]);
    op_run_exact(r, m[1]);
    op_run_exact(r, v[1]);
}

/* One update from zero moments: what is BF16 is one of its two neighbours, and the one that its bits say but where the sum before it was off by
 * rounding; in two pieces as in one. */
/* d: n; 0: w, m and v are BF16, 1: w alone, 2: m and v alone */
void op_rows_adamw_bf16(struct op_run *r, const int64_t *d)
{
    const int64_t n = d[0];
    const enum dtype act = r->act;
    const struct adamw opt = { .lr = 0.01,
                               .beta1 = 0.9,
                               .beta2 = 0.999,
                               .eps = 1e-8,
                               .weight_decay = 0.1,
                               .step = 1,
                               .grad_scale = 0.25,
                               .key = 77,
                               .first = 1000 };
    r->act = DT_BF16;
    struct tensor *w = (d[1] == 2 ? op_run_f32 : op_run_act)(r, BOX_INOUT, n, 1, 0, 1),
                  *m = (d[1] == 1 ? op_run_f32 : op_run_act)(r, BOX_INOUT, n, 1, 0, 0),
                  *v = (d[1] == 1 ? op_run_f32 : op_run_act)(r, BOX_INOUT, n, 1, 0, 0),
                  *g = op_run_f32(r, BOX_INPUT, n, 1, 0, 3);
    double *want[3] = { op_run_double(r, w), op_run_double(r, m), op_run_double(r, v) },
           *rg = op_run_double(r, g);
    struct tensor *of[3] = { w, m, v };
    ref_adamw(want[0], want[1], want[2], rg, &opt, n);
    update_in_two(r, w, m, v, g, opt, NULL);
    for (int t = 0; t < 3; t++) {
        const double *got = op_run_double(r, of[t]);
        int64_t other = 0;
        for (int64_t i = 0; i < n && of[t]->dtype == DT_BF16; i++) {
            const double exact = want[t][i];
            want[t][i] = round_random(exact, opt.key, 1000 + i, 16 * t);
            other += got[i] != want[t][i];
            if (!(fabs(got[i] - exact) <= fabs(exact) * 0x1p-7))
                fail_msg("tensor %d, element %lld: %.9g is no neighbour of %.9g", t, (long long)i,
                         got[i], exact);
            want[t][i] = got[i];
        }
        assert_true(other <= 2 + n / 500); /* a last bit of float32 in 2^16 */
        op_run_expect(r, of[t], want[t], 2, 1, 0);
    }
    r->act = act;
}
