#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Results of evaluations as one Markdown table, with the number of items and 95 % intervals, and a paper's figures beside them.

usage: table.py NAME=DIR [NAME=DIR ...] [--paper FILE.csv|none]

DIR holds what scripts/eval_gsm8k.sh and eval_ifeval.sh wrote: results.json, in it or in folders below it; a sweep's runs/NAME/eval, say; and what FastChat's judge
said of MT-bench's answers: its data/mt_bench/model_judgment/JUDGE_single.jsonl (of a file with several models, the rows of NAME). FILE.csv has the columns name, metric, value
(in per cent; of MT-bench in points), source: rows of a paper's tables under the NAMEs used here, such as "bdpo,gsm8k,12.3,Table 1". Without it docs/paper/results.csv stands beside:
what the authors report, under the names of the losses (0.5B), bdpo-1b and bdpo-7b. Metrics are gsm8k (strict-match), gsm8k-flexible, ifeval-loose,
ifeval-strict, ifeval-total, ifeval-inst-loose, ifeval-inst-strict, ifeval-prompt-loose, ifeval-prompt-strict, mtbench (both turns), mtbench-1, mtbench-2. Standard library only."""
import argparse
import csv
import json
import math
import os
import statistics
import sys

PAPER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "docs", "paper", "results.csv")
METRICS = {"strict-match": "gsm8k", "flexible-extract": "gsm8k-flexible", "loose": "ifeval-loose", "strict": "ifeval-strict", "total": "ifeval-total",
           "inst_level_loose_acc": "ifeval-inst-loose", "inst_level_strict_acc": "ifeval-inst-strict", "prompt_level_loose_acc": "ifeval-prompt-loose",
           "prompt_level_strict_acc": "ifeval-prompt-strict"}
POINTS = ("mtbench", "mtbench-1", "mtbench-2")
NAMES = (*METRICS.values(), *POINTS)


def mean_of(scores):
    """Their mean with a normal 95 % interval."""
    m = statistics.fmean(scores)
    half = 1.96 * statistics.stdev(scores) / math.sqrt(len(scores)) if len(scores) > 1 else None
    return {"value": m, "items": len(scores), "interval": [None if half is None else m - half, None if half is None else m + half]}


def judgments(path, name):
    """{metric: its object} of what FastChat's judge said, as its show_result.py counts: a score of -1 is an answer that it could not read."""
    rows = []
    with open(path, encoding="utf-8") as f:
        for i, line in enumerate(f, 1):
            try:
                row = json.loads(line)
                rows.append((row["model"], row["turn"], float(row["score"])))
            except (KeyError, TypeError, ValueError) as e:
                sys.exit(f"{path}:{i}: error: {e!r}; expected a judgment of FastChat (model, turn, score)")
    models = sorted({m for m, _, _ in rows})
    if name not in models and len(models) != 1:
        sys.exit(f"error: {path}: no judgment of {name}: it has {', '.join(models) or 'none at all'}")
    mine = [(turn, score) for m, turn, score in rows if m == (name if name in models else models[0]) and score != -1]
    parts = {"mtbench": [s for _, s in mine], "mtbench-1": [s for t, s in mine if t == 1], "mtbench-2": [s for t, s in mine if t == 2]}
    return {k: mean_of(v) for k, v in parts.items() if v}


def results(folder, name):
    """{metric: its object} of all results.json and judgments under folder, and what was not scored."""
    found, missing = {}, {}
    for base, dirs, files in os.walk(folder):
        dirs.sort()
        for judged in sorted(x for x in files if x.endswith("_single.jsonl")):
            if "mtbench" in found:
                sys.exit(f"error: {base}: mtbench stands in two places under {folder}")
            found.update(judgments(os.path.join(base, judged), name))
        if "results.json" not in files:
            continue
        with open(os.path.join(base, "results.json"), encoding="utf-8") as f:
            r = json.load(f)
        for key, value in r["results"].items():
            if METRICS[key] in found:
                sys.exit(f"error: {base}: {METRICS[key]} stands in two places under {folder}")
            found[METRICS[key]] = value
        missing.update(r.get("not_scored", {}))
    if not found:
        sys.exit(f"error: {folder}: no results.json and no judgments; run scripts/eval_gsm8k.sh or eval_ifeval.sh first")
    return found, missing


def read_paper(path):
    out = {}
    with open(path, encoding="utf-8", newline="") as f:
        rows = csv.DictReader(f)
        for i, row in enumerate(rows, 2):
            try:
                if row["metric"] not in NAMES:
                    raise ValueError(f"metric \"{row['metric']}\" is not one of {', '.join(NAMES)}")
                out[row["name"], row["metric"]] = (float(row["value"]), row["source"])
            except (KeyError, TypeError, ValueError) as e:
                sys.exit(f"{path}:{i}: error: {e}; expected name,metric,value,source")
    return out


def cell(metric, v):
    show = (lambda x: f"{x:.2f}") if metric in POINTS else (lambda x: f"{100 * x:.1f}")
    text = show(v["value"])
    if "interval" in v and v["interval"][0] is not None:
        text += f" ({show(v['interval'][0])} to {show(v['interval'][1])}), {v['items']} items"
    return text


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("runs", nargs="+", metavar="NAME=DIR")
    p.add_argument("--paper", default=PAPER if os.path.exists(PAPER) else "none")
    a = p.parse_args()
    for r in a.runs:
        if "=" not in r:
            sys.exit(f"error: {r}: expected NAME=DIR")
    runs = {name: results(folder, name) for name, folder in (r.split("=", 1) for r in a.runs)}
    paper = read_paper(a.paper) if a.paper != "none" else {}
    print(f"| run | metric | here, % (95 % interval) |{' paper, % | where |' if paper else ''}")
    print("|---|---|---|" + ("---|---|" if paper else ""))
    for name, (found, _) in runs.items():
        for metric in NAMES:
            said = paper.get((name, metric))
            if metric not in found and not said:
                continue
            beside = f" {said[0]:g} | {said[1]} |" if said else " | |"
            unit = ", points of 10" if metric in POINTS else ""
            print(f"| {name} | {metric}{unit} | {cell(metric, found[metric]) if metric in found else ''} |{beside if paper else ''}")
    for name, (_, missing) in runs.items():
        for what, m in missing.items():
            print(f"\n{name}: not scored: {what}, {m['instructions']} times ({m['missing']} is missing)")


if __name__ == "__main__":
    main()
