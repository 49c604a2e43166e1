/* SPDX-License-Identifier: MIT */
#include "chart.h"
#include "svg.h"
#include <float.h>
#include <math.h>
#include <string.h>

/* One polyline for each stretch without a gap; points are means of `group` neighbours. */
static int put_series(struct buf *b, const struct chart *c, const struct series *s,
                      const struct axis *x, const struct axis *y)
{
    const int64_t group = div_up(s->n, CHART_POINTS);
    bool open = false;
    TRY(buf_addf(b, "<g class=\"series\" data-name=\""));
    TRY(svg_text(b, s->name));
    TRY(buf_addf(b, "\">"));
    for (int64_t i = 0; i < s->n; i += group) {
        const int64_t n = MIN(group, s->n - i);
        double sx = 0, sy = 0;
        for (int64_t k = i; k < i + n; k++) {
            sx += s->x[k];
            sy += s->y[k];
        }
        const double px = axis_at(x, sx / (double)n), py = axis_at(y, sy / (double)n);
        const bool seen = isfinite(px) && isfinite(py);
        if (open && !seen) TRY(buf_adds(b, "\"/>"));
        if (!open && seen)
            TRY(buf_addf(b, "<polyline class=\"line c%d\" points=\"", s->color % SERIES_COLORS));
        if (seen) TRY(buf_addf(b, "%.1f,%.1f ", px, py));
        open = seen;
    }
    if (open) TRY(buf_adds(b, "\"/>"));
    for (int64_t i = 0; i < s->n && (c->marks || s->n == 1); i++) {
        const double px = axis_at(x, s->x[i]), py = axis_at(y, s->y[i]);
        if (isfinite(px) && isfinite(py))
            TRY(buf_addf(b, "<circle class=\"line c%d\" cx=\"%.1f\" cy=\"%.1f\" r=\"3\"/>",
                         s->color % SERIES_COLORS, px, py));
    }
    return buf_adds(b, "</g>\n");
}

/* Columns of the legend: as many as the longest name leaves room for. */
static int legend_columns(const struct chart *c, double width)
{
    size_t longest = 1;
    for (int32_t i = 0; i < c->n; i++)
        longest = MAX(longest, strlen(c->series[i].name));
    return (int)fmax(1, fmin(c->n, floor((width - SVG_LEFT) / (44 + 7.2 * (double)longest))));
}

static int put_legend(struct buf *b, const struct chart *c, double width, double top)
{
    const int columns = legend_columns(c, width);
    const double step = (width - SVG_LEFT) / columns;
    for (int32_t i = 0; i < c->n; i++) {
        const double x = SVG_LEFT + step * (i % columns), y = top + SVG_LEGEND_ROW * (i / columns);
        TRY(buf_addf(b,
                     "<path class=\"line c%d\" d=\"M%.1f %.1fh26\"/><text x=\"%.1f\" y=\"%.1f\">",
                     c->series[i].color % SERIES_COLORS, x, y - 4, x + 32, y));
        TRY(svg_text(b, c->series[i].name));
        TRY(buf_adds(b, "</text>\n"));
    }
    return 0;
}

int chart_lines(struct buf *b, const struct chart *c)
{
    const double width = c->width > 0 ? c->width : 640, plot = c->height > 0 ? c->height : 360;
    const int rows = c->legend && c->n ? (c->n - 1) / legend_columns(c, width) + 1 : 0;
    struct axis x = { DBL_MAX, -DBL_MAX, SVG_LEFT, width - SVG_RIGHT, c->log_x };
    struct axis y = { DBL_MAX, -DBL_MAX, plot - SVG_BOTTOM, SVG_TOP, c->log_y };
    for (int32_t i = 0; i < c->n; i++)
        for (int64_t k = 0; k < c->series[i].n; k++) {
            axis_add(&x, c->series[i].x[k]);
            axis_add(&y, c->series[i].y[k]);
        }
    axis_close(&x, 0);
    axis_close(&y, 0.04);
    TRY(svg_open(b, c->id, c->title, c->about, width, plot + rows * SVG_LEGEND_ROW));
    TRY(svg_axes(b, &x, &y, c->x_label, c->y_label));
    /* what the page's script turns places back into values with */
    TRY(buf_addf(
        b,
        "<g class=\"plot\" data-x=\"%.9g %.9g %.1f %.1f %d\" data-y=\"%.9g %.9g %.1f %.1f %d\">\n",
        x.lo, x.hi, x.from, x.to, x.log, y.lo, y.hi, y.from, y.to, y.log));
    for (int32_t i = 0; i < c->n; i++)
        TRY(put_series(b, c, &c->series[i], &x, &y));
    TRY(buf_adds(b, "</g>\n"));
    if (rows) TRY(put_legend(b, c, width, plot + 6));
    return buf_adds(b, "</svg>\n");
}
