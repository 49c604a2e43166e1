#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The paper's landscapes and toy case, computed again from outside. Standard library only; $BDPO_TRAIN is run."""
import csv
import math
import os
import sys
import tempfile
import xml.etree.ElementTree as xml

import tiny_job as t
from compare_rows import Report

SVG = "{http://www.w3.org/2000/svg}"


def softplus(x):
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def formula(loss, w, l, rw, rl, beta=0.1, lam=0.5, alpha=1.0, smooth=0.0):
    """The loss of probabilities, as the paper writes it (not as the program computes it)."""
    u, v = math.log(w / rw), math.log(l / rl)
    odds = lambda p: p / (1 - p)
    if loss == "dpo":
        return (1 - smooth) * softplus(-beta * (u - v)) + smooth * softplus(beta * (u - v))
    if loss == "dpo_nll":
        return softplus(-beta * (u - v)) - alpha * math.log(w)
    if loss == "dpop":
        return softplus(-beta * (u - v - lam * max(0.0, math.log(rw / w))))
    if loss == "bdpo":
        return softplus(-beta * (u - math.log((lam * l + (1 - lam) * rl) / rl)))
    if loss == "minor_dpo":
        return softplus(-beta * (u - max(0.0, v)))
    if loss == "slic":
        return max(0.0, 1 - beta * (u - v))
    if loss == "sppo":
        return (u - 1 / (2 * beta)) ** 2 + (v + 1 / (2 * beta)) ** 2
    return -math.log(w) + beta * softplus(-math.log(odds(w) / odds(l)))


CASES = [("dpo", {}), ("dpo", {"beta": 0.5, "smooth": 0.1}), ("dpo_nll", {"alpha": 0.01}), ("dpo_nll", {"alpha": 10}), ("dpop", {"lam": 50}),
         ("bdpo", {}), ("bdpo", {"lam": 0.1}), ("bdpo", {"lam": 0.999}), ("minor_dpo", {}), ("slic", {}), ("sppo", {}), ("orpo", {})]
FLAGS = {"beta": "--beta", "lam": "--lambda", "alpha": "--alpha", "smooth": "--label-smoothing"}


def check(r, ok, what, detail=""):
    r.check(ok, what, "" if ok else detail)


def rows_of(path):
    with open(path, encoding="utf-8", newline="") as f:
        return list(csv.DictReader(f))


def picture(path):
    """A picture that a browser takes: well-formed, with a title and a description."""
    root = xml.parse(path).getroot()
    return root if root.tag == SVG + "svg" and root.find(SVG + "title").text and len(root.find(SVG + "desc").text) > 40 else None


def test_contour(r, root):
    for loss, options in CASES:
        stem = os.path.join(root, "c")
        flags = [x for k, v in options.items() for x in (FLAGS[k], str(v))]
        res = t.bdpo("contour", "--loss", loss, *flags, "--ref-w", "0.3", "--ref-l", "0.2", "--max-l", "0.5", "--points", "23", "--out", stem)
        rows = rows_of(stem + ".csv") if res.code == 0 else []
        cells = {((i + .5) / 23, (j + .5) / 46) for i in range(23) for j in range(23) if (i + .5) / 23 + (j + .5) / 46 <= 1}
        seen = {(float(x["pi_w"]), float(x["pi_l"])) for x in rows}
        near = all(any(abs(a - c) + abs(b - d) < 1e-12 for c, d in seen) for a, b in cells)
        check(r, len(rows) == len(cells) and near, f"contour {loss} {options}: every cell", f"{len(rows)}, {len(cells)}; {res}")
        if loss == "dpop":
            options = {"lam": 5, **options}
        worst = 0.0
        for x in rows:
            want = formula(loss, float(x["pi_w"]), float(x["pi_l"]), 0.3, 0.2, **options)
            worst = max(worst, abs(float(x["loss"]) - want) / max(1e-3, abs(want)))
        check(r, rows and worst < 1e-11, f"contour {loss} {options}: values", f"off by {worst}")
        check(r, picture(stem + ".svg") is not None, f"contour {loss} {options}: picture")
    res = t.bdpo("contour", "--loss", "bdpo", "--points", "2")
    check(r, res.code == 0 and res.out.startswith("pi_w,pi_l,loss\n0.25,0.25,") and len(res.out.split("\n")) == 5, "contour to stdout", res.out)


def test_contour_usage(r, root):
    for args, part in ((["--loss", "bdpp"], 'did you mean "bdpo"?'), ([], "--loss NAME"), (["--loss", "dpo", "--lambda", "0.5"], "no such option"),
                       (["--loss", "bdpo", "--lambda", "1.5"], "outside [0, 1]"), (["--loss", "dpo", "--ref-w", "0.9", "--ref-l", "0.2"], "above 1"),
                       (["--loss", "dpo", "--points", "1.5"], "whole number")):
        res = t.bdpo("contour", *args, "--out", os.path.join(root, "none"))
        check(r, res.code == 2 and part in res.err and len(res.lines) == 1, f"contour {args}: refused", str(res))
    check(r, not os.path.exists(os.path.join(root, "none.csv")), "contour refused: nothing written")
    res = t.bdpo("contour", "--loss", "dpo", "--out", os.path.join(root, "absent", "c"))
    check(r, res.code == 1 and "absent" in res.err, "contour into a directory that is not there", str(res))


def main():
    r = Report()
    with tempfile.TemporaryDirectory() as root:
        for name, test in sorted(globals().items()):
            if name.startswith("test_"):
                test(r, root)
    return r.last()


if __name__ == "__main__":
    sys.exit(main())
