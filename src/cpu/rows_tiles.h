/* SPDX-License-Identifier: MIT
 * rows_tiles.h - the inner loops of matrix products for processors that multiply tiles of bfloat16 (AMX). Private to rows.c.
 * A tile is 16 rows of 64 bytes; an instruction adds to a tile of 16 x 16 floats the product of 16 x 32 elements and 32 x 16, the latter as
 * 16 rows of pairs, as `pack_pairs` makes them. */
#ifndef BDPO_ROWS_TILES_H
#define BDPO_ROWS_TILES_H
#include "rows_product.h"

#if defined(__AMX_BF16__)
/* TILE: rows of a tile, and floats or pairs of a row of LINE bytes; SIDE: of a product of 2 x 2 of them */
enum { TILE = 16, SIDE = 32, LINE = 64 };

static const struct {
    uint8_t palette, start, zero[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tiles = { .palette = 1,
            .row_bytes = { 64, 64, 64, 64, 64, 64, 64, 64 },
            .rows = { TILE, TILE, TILE, TILE, TILE, TILE, TILE, TILE } };

static void tiles_begin(void)
{
    _tile_loadconfig(&tiles);
}

static void tiles_end(void)
{
    _tile_release();
}

/* 16 rows of the panel from 16 columns of x */
INLINE void tile_from_columns(float *out, int64_t step, const uint16_t *x, int64_t ldx, int64_t n,
                              int64_t K)
{
    const __mmask16 some = (__mmask16)lanes32(n);
    for (int64_t k = 0; k < K; k += 2 * TILE) {
        __m512i r[TILE];
        for (int i = 0; i < TILE; i++)
            r[i] = pair_rows(x, ldx, k + 2 * i, K, some);
        transpose_pairs(out + k / 2, step, r);
    }
}

static void tiles_rows(float *out, int64_t step, const void *x, int64_t ldx, bool across, int64_t n,
                       int64_t K)
{
    const int64_t bytes = round_up(K, 2 * TILE) * (int64_t)sizeof(uint16_t);
    for (int64_t i = 0; i < SIDE && !across; i += TILE)
        tile_from_columns(out + i * step, step, (const uint16_t *)x + (i < n ? i : 0), ldx,
                          MAX(MIN(n - i, (int64_t)TILE), 0), K);
    for (int64_t i = 0; i < SIDE && across; i++) {
        char *row = (char *)(out + i * step);
        const int64_t some = i < n ? K * (int64_t)sizeof(uint16_t) : 0;
        if (some) memcpy(row, (const uint16_t *)x + i * ldx, (size_t)some);
        memset(row + some, 0, (size_t)(bytes - some));
    }
}

/* c [16 m, 16 n] (+= with add) a b, m and n 1 or 2: tiles 0 to 3 are c, 4 and 5 of a, 6 and 7 of b. Rows of c, a and b are so many bytes apart, b's
 * second tile `beside` bytes from its first. */
INLINE void tiles_product(int m, int n, float *c, int64_t crow, const void *a, int64_t arow,
                          const float *b, int64_t brow, int64_t beside, int64_t R, bool add)
{
    char *c0 = (char *)c, *c1 = c0 + (m > 1 ? TILE * crow : 0);
    const char *a0 = a, *a1 = a0 + (m > 1 ? TILE * arow : 0), *b0 = (const char *)b;
    if (add) {
        _tile_loadd(0, c0, crow);
        if (n > 1) _tile_loadd(1, c0 + LINE, crow);
        if (m > 1) _tile_loadd(2, c1, crow);
        if (m > 1 && n > 1) _tile_loadd(3, c1 + LINE, crow);
    } else {
        _tile_zero(0);
        if (n > 1) _tile_zero(1);
        if (m > 1) _tile_zero(2);
        if (m > 1 && n > 1) _tile_zero(3);
    }
    for (int64_t r = 0; r < R; r += TILE, a0 += LINE, a1 += LINE, b0 += TILE * brow) {
        _tile_loadd(4, a0, arow);
        _tile_loadd(6, b0, brow);
        if (n > 1) _tile_loadd(7, b0 + beside, brow);
        if (m > 1) _tile_loadd(5, a1, arow);
        _tile_dpbf16ps(0, 4, 6);
        if (n > 1) _tile_dpbf16ps(1, 4, 7);
        if (m > 1) _tile_dpbf16ps(2, 5, 6);
        if (m > 1 && n > 1) _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, c0, crow);
    if (n > 1) _tile_stored(1, c0 + LINE, crow);
    if (m > 1) _tile_stored(2, c1, crow);
    if (m > 1 && n > 1) _tile_stored(3, c1 + LINE, crow);
}

static void tiles_multiply(float *c, int64_t ldc, const float *a, int64_t step, const float *b,
                           int64_t R, bool add)
{
    tiles_product(2, 2, c, 4 * ldc, a, 4 * step, b, 4 * SIDE, LINE, R, add);
}

/* 16 m rows of the result */
INLINE void rows_tiles(int m, float *c, int64_t ldc, const uint16_t *a, int64_t row, const float *b,
                       int64_t ldb, int64_t N, int64_t K)
{
    int64_t j = 0;
    for (; j + SIDE <= N; j += SIDE)
        tiles_product(m, 2, c + j, 4 * ldc, a, 2 * row, b + j, 4 * ldb, LINE, K / 2, false);
    if (j < N) tiles_product(m, 1, c + j, 4 * ldc, a, 2 * row, b + j, 4 * ldb, LINE, K / 2, false);
}

/* The last 16 rows may be computed twice, to the same bits. */
static void block_tiles(float *c, int64_t ldc, const uint16_t *a, int64_t row, const float *b,
                        int64_t ldb, int64_t M, int64_t N, int64_t K)
{
    int64_t i = 0;
    if (M < TILE || K % (2 * TILE) != 0) {
        block_pairs(c, ldc, a, row, b, ldb, M, N, K);
        return;
    }
    tiles_begin();
    for (; i + SIDE <= M; i += SIDE)
        rows_tiles(2, c + i * ldc, ldc, a + i * row, row, b, ldb, N, K);
    for (; i < M; i += TILE) {
        const int64_t at = MIN(i, M - TILE);
        rows_tiles(1, c + at * ldc, ldc, a + at * row, row, b, ldb, N, K);
    }
    tiles_end();
}

/* Few rows: those of x are the columns of tiles, [K / 2][16] pairs for 16 of them, and w's rows are the left factor as they lie. */
static bool dots_by_tiles(bool xhalf, bool whalf, int64_t K)
{
    return xhalf && whalf && K % (2 * TILE) == 0;
}

static void tiles_dots_pack(float *panel, int64_t i, const void *x, bool xhalf, bool whalf,
                            int64_t K)
{
    float *to = panel + i / TILE * TILE * (K / 2) + i % TILE;
    if (!dots_by_tiles(xhalf, whalf, K)) {
        dots_pack(panel, i, x, xhalf, whalf, K);
        return;
    }
    for (int64_t r = 0; r < K / 2; r++)
        memcpy(to + r * TILE, (const uint16_t *)x + 2 * r, sizeof *to);
}

/* c [16 m, 16 n] for the rows of w from j on: where there are fewer, copies of them, so that nothing behind w is read */
INLINE void dots_tiles(int m, int n, float *c, const float *panel, const uint16_t *w, int64_t ldw,
                       int64_t rows, int64_t K)
{
    enum { PART = 512 };
    _Alignas(64) uint16_t few[TILE * PART];
    const int64_t beside = TILE * K / 2 * 4;
    if (rows >= m * TILE) {
        tiles_product(m, n, c, 4 * SIDE, w, 2 * ldw, panel, LINE, beside, K / 2, false);
        return;
    }
    for (int64_t k = 0; k < K; k += PART) {
        const int64_t some = MIN(PART, K - k);
        for (int64_t r = 0; r < TILE; r++)
            memcpy(few + r * PART, w + MIN(r, rows - 1) * ldw + k, (size_t)some * sizeof *few);
        tiles_product(1, n, c, 4 * SIDE, few, 2 * PART, panel + k / 2 * TILE, LINE, beside,
                      some / 2, k > 0);
    }
}

static void tiles_dots(float *y, int64_t ldy, const float *panel, bool xhalf, int64_t M,
                       const void *w, int64_t ldw, bool whalf, int64_t N, int64_t next, int64_t K)
{
    float c[SIDE * SIDE];
    if (!dots_by_tiles(xhalf, whalf, K)) {
        dots(y, ldy, panel, xhalf, M, w, ldw, whalf, N, next, K);
        return;
    }
    tiles_begin();
    for (int64_t j = 0; j < N; j += SIDE) {
        const int64_t left = N - j;
        const uint16_t *from = (const uint16_t *)w + j * ldw;
        for (int64_t i = 0; i < M; i += SIDE) {
            const float *x = panel + i * (K / 2);
            const int n = M - i > TILE ? 2 : 1;
            if (left >= SIDE && n > 1)
                dots_tiles(2, 2, c, x, from, ldw, left, K);
            else if (left >= SIDE)
                dots_tiles(2, 1, c, x, from, ldw, left, K);
            for (int64_t r = 0; r < left && left < SIDE; r += TILE) {
                if (n > 1)
                    dots_tiles(1, 2, c + r * SIDE, x, from + r * ldw, ldw, left - r, K);
                else
                    dots_tiles(1, 1, c + r * SIDE, x, from + r * ldw, ldw, left - r, K);
            }
            for (int64_t q = 0; q < MIN(SIDE, M - i); q++)
                for (int64_t r = 0; r < MIN(SIDE, left); r++)
                    y[(i + q) * ldy + j + r] = c[r * SIDE + q];
        }
    }
    tiles_end();
}

/* A chunk of b's panel, 16 KiB, stays in the L1 cache for all rows of a task. */
static const struct panels panels_tiles = {
    .pack = pack_pairs,
    .pack_rows = tiles_rows,
    .tile = tiles_multiply,
    .begin = tiles_begin,
    .end = tiles_end,
    .per = 2,
    .panel_a = SIDE,
    .panel_b = SIDE,
    .tile_rows = SIDE,
    .unit = TILE,
    .depth = 1280,
    .chunk = 128,
    .task_rows = 128,
};
#undef PANELS_PAIRS
#undef BLOCK_PAIRS
#undef DOTS
#undef DOTS_PACK
#undef DOTS_UNIT
#define PANELS_PAIRS &panels_tiles
#define BLOCK_PAIRS  block_tiles
#define DOTS         tiles_dots
#define DOTS_PACK    tiles_dots_pack
#define DOTS_UNIT    SIDE
#endif
#endif
