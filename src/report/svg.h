/* SPDX-License-Identifier: MIT
 * svg.h - what every picture is made of: escaped text, the outer element with its title and description, axes with ticks. */
#ifndef BDPO_SVG_H
#define BDPO_SVG_H
#include "../base/mem.h"

enum { SVG_LEFT = 64, SVG_RIGHT = 16, SVG_TOP = 34, SVG_BOTTOM = 46, SVG_LEGEND_ROW = 18 }; /* room around the plot */

/* Text with & < > " escaped, as SVG and HTML want it; bytes that are no UTF-8 or that XML forbids become U+FFFD. */
int svg_text(struct buf *b, const char *s);
/* The opening tag, a title and a description for those who do not see it, and the title as text. `id` must be unique in a page. */
int svg_open(struct buf *b, const char *id, const char *title, const char *about, double width, double height);
/* The rules of style of the pictures' classes: once in a page, or in each picture that stands alone. */
extern const char SVG_STYLE[];
/* b = a file of one picture with its style; `picture` holds an svg element. */
int svg_file(struct buf *b, const struct buf *picture);
/* Pictures side by side in rows of `columns`, each in a place of width x height, under one title; every element of `picture` holds one svg. */
int svg_grid(struct buf *b, const char *title, const struct buf *picture, int32_t n, int32_t columns, double width, double height);

struct axis { /* a value v stands at from + (f(v) - lo) / (hi - lo) (to - from), f the identity or log10 */
    double lo, hi, from, to;
    bool log;
};
double axis_at(const struct axis *a, double v); /* NAN where v cannot be shown */
/* Widen [lo, hi] to hold v (start from lo = DBL_MAX, hi = -DBL_MAX); what cannot be shown does not count. */
void axis_add(struct axis *a, double v);
/* After the last value: add `room` times the range at both ends, and give an empty or a single-valued range a width. */
void axis_close(struct axis *a, double room);
/* Step between ticks for about `want` of them in a range: 1, 2 or 5 times a power of ten. */
double axis_step(double range, int want);
/* Ticks, grid, axes and their labels. */
int svg_axes(struct buf *b, const struct axis *x, const struct axis *y, const char *x_label, const char *y_label);
#endif
