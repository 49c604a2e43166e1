/* SPDX-License-Identifier: MIT
 * chart.h - pictures: lines over steps, and a function of two variables as filled contours. Each has a title and a description for those
 * who do not see it, colours that the colour-blind can tell apart, and follows the reader's light or dark scheme. */
#ifndef BDPO_CHART_H
#define BDPO_CHART_H
#include "../base/mem.h"

enum { SERIES_COLORS = 8 };
struct series {
    const char *name;
    const double *x, *y; /* [n], borrowed; a y that is not finite is a gap */
    int64_t n;
    int color;           /* from 0; taken modulo SERIES_COLORS, the dashes change with it */
};
struct chart {
    const char *id;      /* unique in a page */
    const char *title, *x_label, *y_label;
    const char *about;   /* what the picture shows, in words */
    const struct series *series;
    int32_t n;
    double width, height; /* 0: 640 x 360 */
    bool log_x, log_y;    /* values that are not above 0 are left out */
    bool marks;           /* a mark at each point */
    bool legend;
};
/* Add the picture to b. More than CHART_POINTS points of a series are drawn as means of as many neighbours as it takes. ERR_OOM. */
enum { CHART_POINTS = 400 };
int chart_lines(struct buf *b, const struct chart *c);

struct heat { /* z[j * nx + i] at the centre of cell (i, j) of [x0, x1] x [y0, y1]; NAN: outside */
    const char *id, *title, *x_label, *y_label, *about;
    const double *z;
    int64_t nx, ny;
    double x0, x1, y0, y1;
};
/* Filled contours: the levels are quantiles of z, so that every colour covers the same area whatever the range of z. */
int chart_heat(struct buf *b, const struct heat *h);

#endif
