/* SPDX-License-Identifier: MIT */
#include "svg.h"
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Okabe and Ito's palette (2008), its yellow darkened to be seen on white; black becomes light in the dark. */
const char SVG_STYLE[] =
    ".chart{font:13px system-ui,sans-serif}.chart text{fill:#333}.chart "
    ".title{font-weight:600;font-size:15px}"
    ".chart .grid{stroke:#8884;fill:none}.chart .axis{stroke:#777;fill:none}.chart "
    ".line{fill:none;stroke-width:2}"
    ".chart .iso{fill:none;stroke:#fff;stroke-width:.7;stroke-opacity:.75}"
    ".c0{stroke:#0072b2}.c1{stroke:#d55e00}.c2{stroke:#009e73}.c3{stroke:#cc79a7}.c4{stroke:#"
    "e69f00;stroke-dasharray:7 3}"
    ".c5{stroke:#56b4e9;stroke-dasharray:7 3}.c6{stroke:#333;stroke-dasharray:2 "
    "3}.c7{stroke:#9c8a00;stroke-dasharray:9 3 2 3}"
    "@media(prefers-color-scheme:dark){.chart text{fill:#ddd}.chart "
    ".axis{stroke:#999}.c0{stroke:#4aa8e0}.c6{stroke:#ddd}"
    ".c7{stroke:#f0e442}}";

/* Length of the UTF-8 sequence at s, 0 where it is none that XML takes. */
static size_t utf8_length(const unsigned char *s)
{
    static const struct {
        unsigned char mask, lead;
        uint32_t least;
    } form[] = {
        { 0x80, 0, 0 }, { 0xe0, 0xc0, 0x80 }, { 0xf0, 0xe0, 0x800 }, { 0xf8, 0xf0, 0x10000 }
    };
    for (size_t n = 0; n < 4; n++) {
        if ((s[0] & form[n].mask) != form[n].lead) continue;
        uint32_t code = s[0] & (unsigned char)~form[n].mask;
        for (size_t i = 1; i <= n; i++) {
            if ((s[i] & 0xc0) != 0x80) return 0;
            code = code << 6 | (s[i] & 0x3f);
        }
        const bool control = code < 0x20 && code != '\t' && code != '\n';
        const bool surrogate = code >= 0xd800 && code < 0xe000;
        return code < form[n].least || control || surrogate || code > 0x10ffff || code == 0xfffe ||
                       code == 0xffff
                   ? 0
                   : n + 1;
    }
    return 0;
}

int svg_text(struct buf *b, const char *s)
{
    for (const char *p = s; *p;) {
        const size_t n = utf8_length((const unsigned char *)p);
        if (*p == '&')
            TRY(buf_adds(b, "&amp;"));
        else if (*p == '<')
            TRY(buf_adds(b, "&lt;"));
        else if (*p == '>')
            TRY(buf_adds(b, "&gt;"));
        else if (*p == '"')
            TRY(buf_adds(b, "&quot;"));
        else if (n == 0)
            TRY(buf_adds(b, "\xef\xbf\xbd"));
        else
            TRY(buf_add(b, p, n));
        p += n ? n : 1;
    }
    return 0;
}

double axis_step(double range, int want)
{
    const double raw = range / want, power = pow(10, floor(log10(raw))), share = raw / power;
    return power * (share < 1.5 ? 1 : share < 3.5 ? 2 : share < 7.5 ? 5 : 10);
}

static double axis_value(const struct axis *a, double v)
{
    return a->log ? (v > 0 ? log10(v) : NAN) : v;
}

double axis_at(const struct axis *a, double v)
{
    return a->from + (axis_value(a, v) - a->lo) / (a->hi - a->lo) * (a->to - a->from);
}

void axis_add(struct axis *a, double v)
{
    v = axis_value(a, v);
    if (!isfinite(v)) return;
    a->lo = fmin(a->lo, v);
    a->hi = fmax(a->hi, v);
}

/* Nothing seen: [0, 1]; one value: room around it. */
void axis_close(struct axis *a, double room)
{
    if (!(a->lo <= a->hi)) {
        a->lo = 0;
        a->hi = 1;
    }
    double pad = room * (a->hi - a->lo);
    if (a->hi - a->lo <= 1e-12 * fmax(fabs(a->lo), fabs(a->hi)))
        pad = a->log || a->lo == 0 ? 1 : fabs(a->lo);
    a->lo -= pad;
    a->hi += pad;
}

int svg_open(struct buf *b, const char *id, const char *title, const char *about, double width,
             double height)
{
    TRY(buf_addf(b,
                 "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"chart\" id=\"%s\" viewBox=\"0 "
                 "0 %g %g\" role=\"img\" "
                 "aria-labelledby=\"%s-t %s-d\"><title id=\"%s-t\">",
                 id, width, height, id, id, id));
    TRY(svg_text(b, title));
    TRY(buf_addf(b, "</title><desc id=\"%s-d\">", id));
    TRY(svg_text(b, about));
    TRY(buf_adds(b, "</desc>\n"));
    TRY(buf_addf(b, "<text class=\"title\" x=\"%d\" y=\"18\">", SVG_LEFT));
    TRY(svg_text(b, title));
    return buf_adds(b, "</text>\n");
}

static int put_tick(struct buf *b, const struct axis *x, const struct axis *y, bool vertical,
                    double at, const char *label)
{
    if (vertical)
        return buf_addf(b,
                        "<path class=\"grid\" d=\"M%.1f %.1fH%.1f\"/><text x=\"%.1f\" y=\"%.1f\" "
                        "text-anchor=\"end\">%s</text>\n",
                        x->from, at, x->to, x->from - 6, at + 4, label);
    return buf_addf(b,
                    "<path class=\"grid\" d=\"M%.1f %.1fV%.1f\"/><text x=\"%.1f\" y=\"%.1f\" "
                    "text-anchor=\"middle\">%s</text>\n",
                    at, y->from, y->to, at, y->from + 16, label);
}

static int put_ticks(struct buf *b, const struct axis *x, const struct axis *y, bool vertical)
{
    const struct axis *a = vertical ? y : x;
    const double step =
        a->log ? fmax(1, axis_step(a->hi - a->lo, 5)) : axis_step(a->hi - a->lo, vertical ? 5 : 6);
    for (double k = ceil(a->lo / step - 1e-9); k * step <= a->hi + 1e-9 * step; k++) {
        char label[32];
        const double v = k == 0 ? 0 : k * step, shown = a->log ? pow(10, v) : v;
        snprintf(label, sizeof label, "%.6g", shown);
        TRY(put_tick(b, x, y, vertical, axis_at(a, shown), label));
    }
    return 0;
}

int svg_axes(struct buf *b, const struct axis *x, const struct axis *y, const char *x_label,
             const char *y_label)
{
    const double mid = (y->from + y->to) / 2;
    TRY(put_ticks(b, x, y, false));
    TRY(put_ticks(b, x, y, true));
    TRY(buf_addf(b, "<path class=\"axis\" d=\"M%.1f %.1fV%.1fH%.1f\"/>\n", x->from, y->to, y->from,
                 x->to));
    TRY(buf_addf(b, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">", (x->from + x->to) / 2,
                 y->from + 36));
    TRY(svg_text(b, x_label));
    TRY(buf_addf(
        b, "</text><text transform=\"translate(14 %.1f) rotate(-90)\" text-anchor=\"middle\">",
        mid));
    TRY(svg_text(b, y_label));
    return buf_adds(b, "</text>\n");
}

int svg_file(struct buf *b, const struct buf *picture)
{
    const char *end = memchr(picture->data, '>', picture->len);
    BUG_IF(!end);
    TRY(buf_add(b, picture->data, (size_t)(end + 1 - picture->data)));
    TRY(buf_addf(b, "<style>%s</style>\n", SVG_STYLE));
    return buf_add(b, end + 1, picture->len - (size_t)(end + 1 - picture->data));
}

int svg_grid(struct buf *b, const char *title, const struct buf *picture, int32_t n,
             int32_t columns, double width, double height)
{
    const int32_t rows = (n - 1) / columns + 1, gap = 12, top = 30;
    TRY(buf_addf(b,
                 "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"chart\" viewBox=\"0 0 %g %g\" "
                 "role=\"group\"><title>",
                 columns * (width + gap), top + rows * (height + gap)));
    TRY(svg_text(b, title));
    TRY(buf_adds(b, "</title><text class=\"title\" x=\"12\" y=\"20\">"));
    TRY(svg_text(b, title));
    TRY(buf_adds(b, "</text>\n"));
    for (int32_t i = 0; i < n; i++) {
        const size_t tag = strlen("<svg");
        BUG_IF(picture[i].len < tag);
        TRY(buf_addf(b, "<svg x=\"%g\" y=\"%g\" width=\"%g\" height=\"%g\"",
                     (i % columns) * (width + gap), top + (i / columns) * (height + gap), width,
                     height));
        TRY(buf_add(b, picture[i].data + tag, picture[i].len - tag));
    }
    return buf_adds(b, "</svg>\n");
}
