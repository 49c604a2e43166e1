/* SPDX-License-Identifier: MIT */
#include "chart.h"
#include "svg.h"
#include "../base/stats.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { LEVELS = 16, BAR = 92 }; /* colours; width of the bar beside the plot with its labels */

/* Viridis (van der Walt and Smith 2015) at nine points: its lightness grows evenly, so it reads in grey too. */
static void viridis(char out[8], double t)
{
    static const uint8_t at[9][3] = { { 68, 1, 84 },    { 71, 44, 122 },  { 59, 81, 139 },
                                      { 44, 113, 142 }, { 33, 144, 141 }, { 39, 173, 129 },
                                      { 92, 200, 99 },  { 170, 220, 50 }, { 253, 231, 37 } };
    const double x = fmin(fmax(t, 0), 1) * 8;
    const int i = (int)fmin(7, floor(x));
    unsigned c[3];
    for (int k = 0; k < 3; k++)
        c[k] = (unsigned)lround(at[i][k] + (x - i) * (at[i + 1][k] - at[i][k])) & 0xff;
    snprintf(out, 8, "#%02x%02x%02x", c[0], c[1], c[2]);
}

static int ascending(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* level[0..LEVELS]: quantiles of the finite values. */
static int find_levels(const struct heat *h, double level[LEVELS + 1])
{
    double *v = NULL;
    int64_t n = 0;
    TRY(MEM_NEW(&v, h->nx * h->ny));
    for (int64_t i = 0; i < h->nx * h->ny; i++)
        if (isfinite(h->z[i])) v[n++] = h->z[i];
    qsort(v, (size_t)n, sizeof *v, ascending);
    for (int k = 0; k <= LEVELS; k++)
        level[k] = n ? stats_quantile(v, n, (double)k / LEVELS) : k;
    free(v);
    return 0;
}

static int color_of(double z, const double level[LEVELS + 1])
{
    int k = 0;
    if (!isfinite(z)) return -1;
    while (k < LEVELS - 1 && z >= level[k + 1])
        k++;
    return k;
}

/* A run of cells of one colour is one rectangle, a little too large, so that no seam shows. */
static int put_cells(struct buf *b, const struct heat *h, const struct axis *x,
                     const struct axis *y, const double level[LEVELS + 1])
{
    const double w = (x->to - x->from) / (double)h->nx, height = (y->from - y->to) / (double)h->ny;
    for (int64_t j = 0; j < h->ny; j++)
        for (int64_t i = 0, end; i < h->nx; i = end) {
            const int color = color_of(h->z[j * h->nx + i], level);
            char hex[8];
            for (end = i + 1; end < h->nx && color_of(h->z[j * h->nx + end], level) == color; end++)
                ;
            if (color < 0) continue;
            viridis(hex, (color + 0.5) / LEVELS);
            TRY(buf_addf(
                b, "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" fill=\"%s\"/>\n",
                x->from + w * (double)i, y->from - height * (double)(j + 1),
                w * (double)(end - i) + 0.5, height + 0.5, hex));
        }
    return 0;
}

/* Marching squares on the cell centres: where the level crosses the square's edges, joined two by two. */
static int put_square(struct buf *b, const struct heat *h, const struct axis *x,
                      const struct axis *y, int64_t i, int64_t j, double level)
{
    static const int corner[4][2] = { { 0, 0 }, { 1, 0 }, { 1, 1 }, { 0, 1 } };
    const double w = (x->to - x->from) / (double)h->nx, height = (y->from - y->to) / (double)h->ny;
    double px[4], py[4];
    int n = 0;
    for (int e = 0; e < 4; e++) {
        const int *p = corner[e], *q = corner[(e + 1) % 4];
        const double a = h->z[(j + p[1]) * h->nx + i + p[0]],
                     z = h->z[(j + q[1]) * h->nx + i + q[0]];
        if (!isfinite(a) || !isfinite(z)) return 0;
        if ((a < level) == (z < level)) continue;
        const double t = (level - a) / (z - a);
        px[n] = x->from + w * ((double)i + 0.5 + p[0] + t * (q[0] - p[0]));
        py[n++] = y->from - height * ((double)j + 0.5 + p[1] + t * (q[1] - p[1]));
    }
    for (int k = 0; k + 1 < n; k += 2)
        TRY(buf_addf(b, "M%.1f %.1fL%.1f %.1f", px[k], py[k], px[k + 1], py[k + 1]));
    return 0;
}

static int put_isolines(struct buf *b, const struct heat *h, const struct axis *x,
                        const struct axis *y, const double level[LEVELS + 1])
{
    for (int k = 1; k < LEVELS; k++) {
        TRY(buf_adds(b, "<path class=\"iso\" d=\""));
        for (int64_t j = 0; j + 1 < h->ny; j++)
            for (int64_t i = 0; i + 1 < h->nx; i++)
                TRY(put_square(b, h, x, y, i, j, level[k]));
        TRY(buf_adds(b, "\"/>\n"));
    }
    return 0;
}

static int put_bar(struct buf *b, const struct axis *x, const struct axis *y,
                   const double level[LEVELS + 1])
{
    const double left = x->to + 14, step = (y->from - y->to) / LEVELS;
    for (int k = 0; k <= LEVELS; k++) {
        const double top = y->from - step * (k + 1);
        char hex[8];
        viridis(hex, (k + 0.5) / LEVELS);
        if (k < LEVELS)
            TRY(buf_addf(b,
                         "<rect x=\"%.1f\" y=\"%.1f\" width=\"14\" height=\"%.1f\" fill=\"%s\"/>\n",
                         left, top, step + 0.5, hex));
        if (k % 2 == 0)
            TRY(buf_addf(b, "<text x=\"%.1f\" y=\"%.1f\">%.3g</text>\n", left + 20, top + step + 4,
                         level[k]));
    }
    return 0;
}

int chart_heat(struct buf *b, const struct heat *h)
{
    const double width = 560, height = 460;
    const struct axis x = { h->x0, h->x1, SVG_LEFT, width - BAR, false };
    const struct axis y = { h->y0, h->y1, height - SVG_BOTTOM, SVG_TOP, false };
    double level[LEVELS + 1];
    TRY(find_levels(h, level));
    TRY(svg_open(b, h->id, h->title, h->about, width, height));
    TRY(put_cells(b, h, &x, &y, level));
    TRY(put_isolines(b, h, &x, &y, level));
    TRY(svg_axes(b, &x, &y, h->x_label, h->y_label));
    TRY(put_bar(b, &x, &y, level));
    return buf_adds(b, "</svg>\n");
}
