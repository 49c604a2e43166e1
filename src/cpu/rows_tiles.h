/* SPDX-License-Identifier: MIT
 * rows_tiles.h - the inner loops of matrix products for processors that multiply tiles of bfloat16 (AMX). Private to rows.c.
 * A tile is 16 rows of 64 bytes; an instruction adds to a tile of 16 x 16 floats the product of 16 x 32 elements and 32 x 16, the latter as
 * 16 rows of pairs, as `pack_pairs` makes them. */
#ifndef BDPO_ROWS_TILES_H
#define BDPO_ROWS_TILES_H
#include "rows_product.h"

#if defined(__AMX_BF16__)
/* TILE: rows of a tile, and floats or pairs of a row; SIDE: of a product of 2 x 2 of them */
enum { TILE = 16, SIDE = 32 };

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
        for (int i = 0; i < TILE; i++) {
            const __mmask16 first = k + 2 * i < K ? some : 0, second = k + 2 * i + 1 < K ? some : 0;
            const uint16_t *p = x + (first ? k + 2 * i : 0) * ldx, *q = second ? p + ldx : p;
            const __m512i a = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first, p)),
                          b = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(second, q));
            r[i] = _mm512_or_si512(a, _mm512_slli_epi32(b, 16));
        }
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

/* Tiles 0 to 3 are c, 4 and 5 of a, 6 and 7 of b. */
static void tiles_multiply(float *c, int64_t ldc, const float *a, int64_t step, const float *b,
                           int64_t R, bool add)
{
    const int64_t row = ldc * (int64_t)sizeof *c, arow = step * (int64_t)sizeof *a,
                  brow = SIDE * (int64_t)sizeof *b;
    float *c1 = c + TILE * ldc;
    if (add) {
        _tile_loadd(0, c, row);
        _tile_loadd(1, c + TILE, row);
        _tile_loadd(2, c1, row);
        _tile_loadd(3, c1 + TILE, row);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t r = 0; r < R; r += TILE, a += TILE, b += TILE * SIDE) {
        _tile_loadd(4, a, arow);
        _tile_loadd(6, b, brow);
        _tile_loadd(7, b + TILE, brow);
        _tile_loadd(5, a + TILE * step, arow);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, c, row);
    _tile_stored(1, c + TILE, row);
    _tile_stored(2, c1, row);
    _tile_stored(3, c1 + TILE, row);
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
#define PANELS_PAIRS &panels_tiles
#endif
#endif
