#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The paper's figures as PDF and PNG, from what bdpo-train writes.

usage: figures.py --out DIR [--contour FILE.csv ...] [--toy STEM] [--runs RUN_DIR ...]

  --contour   CSV files of `bdpo-train contour`: one panel each (Figures 1 and 2) -> landscapes.pdf, .png
  --toy       the STEM of `bdpo-train toy --out STEM`: the four prompts of each loss (Figures 3, 7, 8) -> toy-NAME.pdf, .png; the statistic -> toy-table.pdf, .png
  --runs      directories of runs: log-probabilities, KL, NLL, log(pi(w) + pi(l)), gate, bound (Figures 4 and 6) -> dynamics.pdf, .png
Needs matplotlib and numpy."""
import argparse
import csv
import json
import os
import sys

import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

# Okabe and Ito 2008: told apart by the colour-blind; the dashes tell them apart in grey
STYLE = list(zip(["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#333333", "#9c8a00"], ["-"] * 4 + ["--"] * 2 + [":", "-."]))
ROLES = ["chosen", "rejected", "not in a pair, first", "not in a pair, second"]


def table(path):
    with open(path, encoding="utf-8", newline="") as f:
        return list(csv.DictReader(f))


def save(fig, out, name):
    for ending in ("pdf", "png"):
        fig.savefig(os.path.join(out, f"{name}.{ending}"), dpi=200, bbox_inches="tight")
    plt.close(fig)
    print(f"{name}.pdf, {name}.png")


def panels(n, width=3.4, height=2.7, columns=4):
    columns = min(columns, n)
    rows = -(-n // columns)
    fig, axes = plt.subplots(rows, columns, figsize=(width * columns, height * rows), squeeze=False, layout="constrained")
    for ax in axes.flat[n:]:
        ax.remove()
    return fig, list(axes.flat[:n])


def landscapes(files, out):
    fig, axes = panels(len(files))
    for ax, path in zip(axes, files):
        rows = table(path)
        w, l = (sorted({float(r[k]) for r in rows}) for k in ("pi_w", "pi_l"))
        z = np.full((len(l), len(w)), np.nan)
        at_w, at_l = {v: i for i, v in enumerate(w)}, {v: i for i, v in enumerate(l)}
        for r in rows:
            z[at_l[float(r["pi_l"])], at_w[float(r["pi_w"])]] = float(r["loss"])
        levels = np.unique(np.nanquantile(z, np.linspace(0, 1, 17)))
        filled = ax.contourf(w, l, np.ma.masked_invalid(z), levels, cmap="viridis")
        fig.colorbar(filled, ax=ax, format="%.3g")
        ax.set(title=os.path.splitext(os.path.basename(path))[0], xlabel=r"$\pi(y_w)$", ylabel=r"$\pi(y_l)$")
    save(fig, out, "landscapes")


def toy(stem, out):
    rows = table(stem + "-steps.csv")
    for loss in dict.fromkeys(r["loss"] for r in rows):
        fig, axes = panels(4)
        for x, ax in enumerate(axes):
            mine = [r for r in rows if r["loss"] == loss and int(r["prompt"]) == x]
            w, l = int(mine[0]["chosen"]), int(mine[0]["rejected"])
            # the two others in the order of their index
            for y, role, (color, dash) in zip([w, l, *(y for y in range(4) if y not in (w, l))], ROLES, (STYLE[0], STYLE[1], STYLE[4], STYLE[5])):
                ax.plot([int(r["step"]) for r in mine], [float(r[f"pi_{y}"]) for r in mine], dash, color=color, label=role)
            ax.set(title=f"{loss}, prompt {x + 1}", xlabel="step", ylabel="probability", ylim=(-0.03, 1.03))
        axes[0].legend(fontsize=7)
        save(fig, out, f"toy-{loss}")
    rows = table(stem + "-table.csv")
    fig, axes = panels(3, 4.2, 3.2)
    rates = list(dict.fromkeys(r["learning_rate"] for r in rows))
    losses = list(dict.fromkeys(r["loss"] for r in rows))
    for ax, key, title in zip(axes, ("chosen_up", "rejected_down", "other_up"), ("chosen up", "rejected down", "a response in no pair up")):
        for i, rate in enumerate(rates):
            mine = {r["loss"]: r for r in rows if r["learning_rate"] == rate}
            y = np.array([[100 * float(mine[k][key + end]) for k in losses] for end in ("", "_lo", "_hi")])
            ax.errorbar(np.arange(len(losses)) + 0.2 * (i - (len(rates) - 1) / 2), y[0], yerr=np.maximum(0, [y[0] - y[1], y[2] - y[0]]), fmt="o", ms=4, capsize=2,
                        color=STYLE[i][0], label=f"learning rate {float(rate):g}")
        ax.set(title=title, ylabel="% of prompts", ylim=(-5, 105))
        ax.set_xticks(range(len(losses)), losses, rotation=60)
    axes[0].legend(fontsize=7)
    save(fig, out, "toy-table")


def metrics(run):
    with open(os.path.join(run, "metrics.jsonl"), encoding="utf-8") as f:
        return [r for r in map(json.loads, f) if r["stage"] == "preference"]


def track(rows, key, minus=None):
    """steps, values of `key` (less `minus`) where rows have them; "NaN" and its kind become gaps."""
    rows = [r for r in rows if key in r and (minus is None or minus in r)]
    return [r["step"] for r in rows], [float(r[key]) - (float(r[minus]) if minus else 0) for r in rows]


def dynamics(runs, out):
    plots = [("chosen: log pi - log ref", "logps/chosen", "ref_logps/chosen"), ("rejected: log pi - log ref", "logps/rejected", "ref_logps/rejected"),
             ("KL to the reference, nats", "eval/kl", None), ("NLL of the chosen", "nll_loss", None), ("log(pi(w) + pi(l))", "in_distribution", None),
             ("held out: chosen log pi", "eval/logps/chosen", None), ("held out: accuracy", "eval/rewards/accuracies", None), ("gate g", "bdpo/gate", None),
             ("pairs within Theorem 2's bound", "bdpo/bound", None), ("margin", "rewards/margins", None)]
    data = {os.path.basename(os.path.normpath(r)): metrics(r) for r in runs}
    plots = [p for p in plots if any(track(rows, *p[1:])[0] for rows in data.values())]
    fig, axes = panels(len(plots))
    for ax, (title, *keys) in zip(axes, plots):
        for i, (name, rows) in enumerate(data.items()):
            x, y = track(rows, *keys)
            k = max(1, len(x) // 100)  # means of neighbouring steps, so that a hundred points remain
            if x:
                mean = lambda v, k=k: [sum(v[j:j + k]) / len(v[j:j + k]) for j in range(0, len(v), k)]
                ax.plot(mean(x), mean(y), STYLE[i % 8][1], color=STYLE[i % 8][0], label=name)
        ax.set(title=title, xlabel="step")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    save(fig, out, "dynamics")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", required=True)
    p.add_argument("--contour", nargs="+", default=[])
    p.add_argument("--toy")
    p.add_argument("--runs", nargs="+", default=[])
    a = p.parse_args()
    if not (a.contour or a.toy or a.runs):
        sys.exit("figures.py: nothing to draw; give --contour, --toy or --runs")
    os.makedirs(a.out, exist_ok=True)
    if a.contour:
        landscapes(a.contour, a.out)
    if a.toy:
        toy(a.toy, a.out)
    if a.runs:
        dynamics(a.runs, a.out)


if __name__ == "__main__":
    main()
