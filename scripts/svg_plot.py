# SPDX-License-Identifier: MIT
"""A small SVG figure: panels side by side, each with lines through points on logarithmic or linear axes. Standard library only."""
import math

COLOURS = ("#1f6fb4", "#d1495b", "#3a7d44", "#8a5fbf")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 330, 250, 52, 12, 30, 44


def label(v):
    return f"{v / 1000:g}k" if v >= 10000 else f"{v:g}"


def linear_ticks(top):
    step = 10 ** math.floor(math.log10(top))
    step = next(step * k for k in (0.2, 0.5, 1, 2) if top / (step * k) <= 6)
    return [round(i * step, 12) for i in range(int(top / step) + 1)]


def panel(out, x0, p):
    """p: title, x and y (axis texts), log_x, series {name: [(x, y)]}, dashed {name: ...} for what was computed instead of measured."""
    curves = [(n, s, False) for n, s in p["series"].items()] + [(n, s, True) for n, s in p.get("dashed", {}).items()]
    xs = sorted({x for _, s, _ in curves for x, _ in s})
    top = 1.08 * max(y for _, s, _ in curves for _, y in s)
    scale = math.log if p.get("log_x") else float
    low, high = scale(xs[0]), scale(xs[-1])
    if high == low:
        high = low + 1
    px = lambda x: x0 + LEFT + (scale(x) - low) / (high - low) * (WIDTH - LEFT - RIGHT)
    py = lambda y: HEIGHT - BOTTOM - y / top * (HEIGHT - TOP - BOTTOM)
    text = lambda x, y, s, more="": out.append(f'<text x="{x:.1f}" y="{y:.1f}" {more}>{s}</text>')
    text(x0 + LEFT, 16, p["title"], 'font-weight="bold"')
    for y in linear_ticks(top):
        out.append(f'<path d="M{x0 + LEFT} {py(y):.1f}H{x0 + WIDTH - RIGHT}" stroke="#ddd"/>')
        text(x0 + LEFT - 5, py(y) + 4, label(y), 'text-anchor="end"')
    for x in (xs if len(xs) <= 7 else [xs[0], *xs[2:-1:2], xs[-1]]):
        text(px(x), HEIGHT - BOTTOM + 15, label(x), 'text-anchor="middle"')
    text(x0 + (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, p["x"], 'text-anchor="middle"')
    text(x0 + 12, (TOP + HEIGHT - BOTTOM) / 2, p["y"], f'text-anchor="middle" transform="rotate(-90 {x0 + 12} {(TOP + HEIGHT - BOTTOM) / 2:.1f})"')
    for i, (name, points, dashed) in enumerate(curves):
        colour = COLOURS[i % len(COLOURS)]
        line = "L".join(f"{px(x):.1f} {py(y):.1f}" for x, y in points)
        out.append(f'<path d="M{line}" fill="none" stroke="{colour}" stroke-width="1.5"{" stroke-dasharray=" + chr(34) + "4 3" + chr(34) if dashed else ""}/>')
        if not dashed:
            out.extend(f'<circle cx="{px(x):.1f}" cy="{py(y):.1f}" r="2.5" fill="{colour}"/>' for x, y in points)
        text(x0 + LEFT + 8, HEIGHT - BOTTOM - 10 - 14 * (len(curves) - 1 - i), name, f'fill="{colour}"')


def figure(path, panels, columns=2):
    """Write the panels, `columns` in a row."""
    rows = (len(panels) + columns - 1) // columns
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH * columns} {HEIGHT * rows}" font-family="sans-serif" font-size="11" fill="#222">',
           f'<rect width="{WIDTH * columns}" height="{HEIGHT * rows}" fill="#fff"/>']
    for i, p in enumerate(panels):
        out.append(f'<g transform="translate(0 {HEIGHT * (i // columns)})">')
        panel(out, WIDTH * (i % columns), p)
        out.append("</g>")
    with open(path, "w", encoding="utf-8") as f:
        f.write("\n".join([*out, "</svg>"]) + "\n")
