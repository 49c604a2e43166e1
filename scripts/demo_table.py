#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Print the demo's results from build/demo/answers.

usage: demo_table.py DIR --seed S      one line: how many held-out words each model of this seed sorts
       demo_table.py DIR --seeds N     some answers of seed 1, then the table over seeds 1 to N
"""
import argparse
import json
import statistics

STAGES = {"before": "before training", "sft": "after SFT", "dpo": "after SFT and DPO", "bdpo": "after SFT and BDPO"}
COLUMNS = (("accuracy", "accuracy, %", 1), ("logps/chosen", "log p(chosen)", 2),
           ("logps/rejected", "log p(rejected)", 2), ("in_distribution", "log(p(ch.) + p(rej.))", 2))


def answers(folder, stage, seed):
    with open(f"{folder}/answers/{stage}-{seed}.jsonl", encoding="utf-8") as f:
        return [json.loads(line) for line in f]


def right(row):
    return row["finish"] == "stop" and row["response"] == row["chosen"]


def accuracy(folder, stage, seed):
    rows = answers(folder, stage, seed)
    return 100.0 * sum(map(right, rows)) / len(rows)


def figures(folder, stage, seed):
    with open(f"{folder}/answers/{stage}-{seed}.json", encoding="utf-8") as f:
        row = {k.removeprefix("eval/"): v for k, v in json.load(f).items()}
    row["accuracy"] = accuracy(folder, stage, seed)
    return row


def spread(values, digits):
    text = f"{statistics.fmean(values):.{digits}f}"
    return text + (f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else "")


def show_answers(folder):
    """Words on which the stages differ tell most; take those first."""
    rows = {stage: answers(folder, stage, 1) for stage in STAGES}
    order = sorted(range(len(rows["sft"])), key=lambda i: -len({rows[s][i]["response"] for s in STAGES}))
    print(f"\n{'seed 1, held-out word':<22} {'right answer':<13}" + "".join(f"{s:<13}" for s in STAGES))
    for i in order[:5]:
        cells = []
        for stage in STAGES:
            row = rows[stage][i]
            text = "".join(c if c.isascii() and c.isprintable() else "?" for c in row["response"])
            cells.append(f"{text[:10] + ('' if right(row) else ' x'):<13}")
        print(f"{rows['sft'][i]['prompt']:<22} {rows['sft'][i]['chosen']:<13}" + "".join(cells))
    print("(x: wrong)")


def main():
    args = argparse.ArgumentParser()
    args.add_argument("dir")
    args.add_argument("--seed", type=int)
    args.add_argument("--seeds", type=int, default=1)
    args = args.parse_args()
    if args.seed:
        print(f"seed {args.seed}: sorted right: " + ", ".join(
            f"{title} {accuracy(args.dir, stage, args.seed):.1f} %" for stage, title in STAGES.items()))
        return
    show_answers(args.dir)
    print(f"\n{'':<20}" + "".join(f"{title:>23}" for _, title, _ in COLUMNS))
    for stage, title in STAGES.items():
        rows = [figures(args.dir, stage, seed) for seed in range(1, args.seeds + 1)]
        print(f"{title:<20}" + "".join(f"{spread([r[key] for r in rows], d):>23}" for key, _, d in COLUMNS))
    print(f"Held-out words, {args.seeds} seed{'s: mean ± standard deviation' if args.seeds > 1 else ''}; "
          "log-probabilities in nats, means over the pairs.")


if __name__ == "__main__":
    main()
