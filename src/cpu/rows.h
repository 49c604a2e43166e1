/* SPDX-License-Identifier: MIT
 * rows.h - inner loops of the CPU backend: one table per instruction set, built from rows.c five
 * times and chosen at run time. All pointers may be unaligned; n >= 0; sums run in several lanes in
 * a fixed order, so a result depends on the table and the input alone. Private to src/cpu and its
 * tests. */
#ifndef BDPO_ROWS_H
#define BDPO_ROWS_H
#include "../base/base.h"

struct adamw_row { /* struct adamw, prepared for f32: d = scale g; m += mix1 (d - m); v = beta2 v +
                    * mix2 d^2; w = keep w - step m / (root sqrt(v) + eps) */
    float scale, mix1, beta2, mix2, keep, step, root, eps;
};

/* How large products are cut. A panel row holds `per` steps of k for each of `width` rows or columns; an element of it is 4 bytes:
 * a float, or two bfloat16, of which the second is 0 behind an odd K. */
struct panels {
    /* out[r, i] = (i < n ? x(i, k) : 0), r < div_up(K, per): x(i, k) is x[i * ldx + k] with across, else x[k * ldx + i];
     * bfloat16 with half (always, where per is 2). width: a multiple of 16 with across or where per is 2. */
    void (*pack)(float *out, int64_t width, const void *x, int64_t ldx, bool half, bool across,
                 int64_t n, int64_t K);
    /* NULL: panels of a are pack's. Else they are tile_rows rows, `step` floats apart, of K bfloat16 of x and zeros up to a multiple of 32;
     * rows of x that are so themselves may take their place. */
    void (*pack_rows)(float *out, int64_t step, const void *x, int64_t ldx, bool across, int64_t n,
                      int64_t K);
    /* c[tile_rows, panel_b] (+= with add, else =) a b from panels a [R, panel_a], of which tile_rows
     * count, or [tile_rows, R] with rows `step` apart, and b [R, panel_b]: one sum over the panel rows in order */
    void (*tile)(float *c, int64_t ldc, const float *a, int64_t step, const float *b, int64_t R,
                 bool add);
    void (*begin)(void), (*end)(void); /* by each thread around its tiles; NULL: nothing is to be done */
    int64_t per, panel_a, panel_b, tile_rows;
    int64_t unit;             /* R is a multiple of it */
    int64_t depth, task_rows; /* panel rows of a block; rows of a that a thread takes at a time: its L2 cache holds them */
    int64_t chunk;            /* panel rows of a tile: the L1 cache holds a panel of b of so many */
};

/* Floats of a panel of `rows.dots_pack`: blocks of up to 8 rows, steps of up to 32 elements */
static inline int64_t dots_panel(int64_t M, int64_t K)
{
    return (M + 7) * round_up(K, 32);
}

struct rows {
    const char *name;
    /* y = x, from bfloat16 (exact) and to it (nearest even; a NaN stays one) */
    void (*widen)(float *y, const uint16_t *x, int64_t n);
    void (*narrow)(uint16_t *y, const float *x, int64_t n);
    /* y = the floats whose halves these are, and back (split.h) */
    void (*join)(float *y, const uint16_t *upper, const int16_t *lower, int64_t n);
    void (*split)(uint16_t *upper, int16_t *lower, const float *x, int64_t n);
    /* y += x */
    void (*add)(float *y, const float *x, int64_t n);
    /* y *= a */
    void (*scale)(float *y, float a, int64_t n);
    /* sum x y */
    float (*dot)(const float *x, const float *y, int64_t n);
    /* sum x^2 in double */
    double (*sumsq)(const float *x, int64_t n);
    /* max x (-INFINITY for n = 0). A NaN may or may not be seen. */
    float (*max)(const float *x, int64_t n);
    /* y = exp(x): relative error below 2e-7 in [-87.33, 88.37], 0 below, exp(88.37) above; NaN
     * stays. y may be x. The exp of all that follows. */
    void (*exp)(float *y, const float *x, int64_t n);
    /* y = exp(a x - b); returns sum y. y may be x. */
    float (*exp_sum)(float *y, const float *x, float a, float b, int64_t n);
    /* sum of exp(x - b), added in double: a vocabulary of small terms beside a large one must not
     * vanish. y: NULL, or takes the terms; may be x. */
    double (*lse_sum)(float *y, const float *x, float b, int64_t n);
    /* z = -coef exp(z - lse) */
    void (*logp_grad)(float *z, float lse, float coef, int64_t n);
    /* A block of attention: s[n, cols] holds the scores of n keys (rows) and cols queries, acc[D, cols] what the
     * queries have gathered, m and l [cols] their running maximum and sum. m' = max(m, a max s), c = exp(m - m'),
     * s' = exp(a s - m'), l' = c l + sum s', acc' = c acc. Key j counts for query i where j <= i + ahead, else its s'
     * is 0. cols: a multiple of 16; rows are ld apart; a > 0. */
    void (*softmax)(float *s, float *acc, int64_t ld, float *m, float *l, float a, int64_t ahead,
                    int64_t n, int64_t cols, int64_t D);
    /* s = exp(a s - lse); dp = s (dp - delta) a */
    void (*attn_grad)(float *s, float *dp, float a, float lse, float delta, int64_t n);
    /* sum = x + r (r NULL: neither read nor written); returns the sum of squares. sum may be x or
     * r. */
    float (*rms_sum)(float *sum, const float *x, const float *r, int64_t n);
    /* y = s rstd w. y may be s. */
    void (*rms_scale)(float *y, const float *s, const float *w, float rstd, int64_t n);
    /* dx = dL/ds (+= with add) for y = s rstd w; dw += dy s rstd. Without add dx may be dy. */
    void (*rms_bwd)(float *dx, float *dw, const float *dy, const float *s, const float *w,
                    float rstd, int64_t n, bool add);
    /* (x_i, x_{i+half}) -> (x_i c_i - x_{i+half} sign s_i, x_{i+half} c_i + x_i sign s_i), i < half
     */
    void (*rope)(float *x, const float *c, const float *s, float sign, int64_t half);
    /* y = g sigmoid(g) u */
    void (*swiglu)(float *y, const float *g, const float *u, int64_t n);
    /* dg, du; may be g, u. y: NULL, or takes what swiglu gives, to the bit; may be dy */
    void (*swiglu_bwd)(float *dg, float *du, float *y, const float *dy, const float *g,
                       const float *u, int64_t n);
    /* out[64] = table of the codes in[32], two a byte, the upper half first */
    void (*nf4)(uint16_t *out, const uint8_t *in, const uint16_t table[16]);
    /* y = x times 0 or 1/(1-p): element i by bits i % 4 of word `word` + i / 4 (stochastic.h). y may be x */
    void (*dropout)(float *y, const float *x, uint64_t key, uint64_t word, uint32_t below, int64_t n);
    void (*adamw)(float *w, float *m, float *v, const float *g, const struct adamw_row *k,
                  int64_t n);
    /* A small matrix product from cache: c[M,N] (+= with add, else =) a b, a(i, k) = a[i * row + k
     * * col], b[K,N] with rows ldb apart. Each element is one sum over k in order. */
    void (*block)(float *c, int64_t ldc, const float *a, int64_t row, int64_t col, const float *b,
                  int64_t ldb, int64_t M, int64_t N, int64_t K, bool add);
    /* c[M,N] = a b from bfloat16, K even: a's rows are `row` apart, b is a panel of `pairs` [K/2, N], ldb wide, N a
     * multiple of 16. NULL where `pairs` is. */
    void (*block_pairs)(float *c, int64_t ldc, const uint16_t *a, int64_t row, const float *b,
                        int64_t ldb, int64_t M, int64_t N, int64_t K);
    /* Products of few rows. Row i of x [M, K], of floats or bfloat16 (xhalf), goes into a panel of
     * dots_panel(M, K) floats, to meet a w of floats or bfloat16 (whalf) */
    void (*dots_pack)(float *panel, int64_t i, const void *x, bool xhalf, bool whalf, int64_t K);
    /* y[M,N] = x w[N,K]^T: N <= 64 rows of w, as many as the L2 cache holds; `next`: the rows behind them that are
     * wanted next, fetched meanwhile. An element's sum depends on its two rows alone. */
    void (*dots)(float *y, int64_t ldy, const float *panel, bool xhalf, int64_t M, const void *w,
                 int64_t ldw, bool whalf, int64_t N, int64_t next, int64_t K);
    int64_t dots_unit; /* N had best be a multiple of it */
    /* Products by panels: of floats, and of pairs of bfloat16 (NULL without the processor's instruction for these) */
    const struct panels *floats, *pairs;
};
extern const struct rows rows_base, rows_avx2, rows_avx512, rows_avx512_bf16, rows_amx_bf16;
#endif
