#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The paper's study of learning dynamics (Figures 4 and 6) at the scale of a CPU: few pairs, many epochs, every loss at every learning rate.

usage: dynamics.py --model DIR --pairs FILE --out DIR [--pairs-used 64] [--epochs 100] [--rates 1e-4,3e-4,1e-3] [--losses a,b] [--sft-epochs 1] [--table]

One SFT on the chosen responses of all but the last 100 rows of FILE; then for each loss and rate a run OUT/LOSS-RATE on the same few pairs, evaluated on
the last 100 rows every tenth of the way, with eval/kl. A run that is finished is kept, so that the study can be done in pieces. At the end, or with --table
alone, the table. Standard library only; $BDPO_TRAIN or build/bdpo-train is run."""
import argparse
import gzip
import json
import os
import subprocess
import sys

LOSSES = ["dpo", "dpo_nll", "dpop", "bdpo", "minor_dpo", "slic", "orpo", "sppo"]
HELD, BATCH = 100, 16


def split(pairs, out, used):
    """train.jsonl, few.jsonl, held.jsonl under `out`."""
    opener = gzip.open if pairs.endswith(".gz") else open
    with opener(pairs, "rt", encoding="utf-8") as f:
        rows = [line for line in f if line.strip()]
    for name, part in (("train", rows[:-HELD]), ("few", rows[:used]), ("held", rows[-HELD:])):
        with open(f"{out}/{name}.jsonl", "w", encoding="utf-8") as f:
            f.writelines(part)


def config(a, output, model):
    return {"model": {"path": model, "dtype": "float32"}, "data": {"train": f"{a.out}/few.jsonl", "max_length": a.max_length, "max_dropped": 0.2},
            "checkpoint": {"every": 0}, "output": output, "cache_dir": f"{a.out}/cache", "threads": a.threads, "seed": 1}


def run(a, name, c):
    path = f"{a.out}/{name}.json"
    with open(path, "w", encoding="utf-8") as f:
        json.dump(c, f, indent=1)
    done = subprocess.run([a.binary, "--config", path], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    last = done.stderr.strip().split("\n")[-1]
    print(f"{name}: exit code {done.returncode}: {last}", flush=True)
    return done.returncode


def study(a):
    os.makedirs(a.out, exist_ok=True)
    split(a.pairs, a.out, a.pairs_used)
    sft = config(a, f"{a.out}/sft", a.model)
    sft["data"]["train"] = f"{a.out}/train.jsonl"
    sft["sft"] = {"epochs": a.sft_epochs, "learning_rate": 1e-3, "batch_size": BATCH}
    if run(a, "sft", sft):
        sys.exit(1)
    steps = a.epochs * -(-a.pairs_used // BATCH)
    for loss in a.losses:
        for rate in a.rates:
            c = config(a, f"{a.out}/{loss}-{rate:g}", f"{a.out}/sft/model")
            c["data"]["eval"] = f"{a.out}/held.jsonl"
            c["preference"] = {"loss": loss, "epochs": a.epochs, "learning_rate": rate, "batch_size": BATCH, "schedule": "constant"}
            c["eval"] = {"every": max(1, steps // 10), "kl_samples": a.kl_samples}
            run(a, f"{loss}-{rate:g}", c)


def rows_of(folder):
    try:
        with open(f"{folder}/metrics.jsonl", encoding="utf-8") as f:
            rows = [json.loads(line) for line in f]
    except OSError:
        return [], []
    rows = [r for r in rows if r["stage"] == "preference"]
    return [r for r in rows if "loss" in r], [r for r in rows if "eval/loss" in r]


def table(a):
    head = ["loss", "rate", "trained: chosen", "rejected", "log(w + l)", "held out: chosen", "rejected", "accuracy", "KL"]
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for loss in a.losses:
        for rate in a.rates:
            steps, evals = rows_of(f"{a.out}/{loss}-{rate:g}")
            if not evals or not os.path.isdir(f"{a.out}/{loss}-{rate:g}/model"):
                continue  # not begun, or not finished
            tail, first = steps[-max(1, len(steps) // 100):], steps[:max(1, len(steps) // 100)]
            change = lambda key: sum(r[key] for r in tail) / len(tail) - sum(r[key] for r in first) / len(first)
            last = evals[-1]
            moved = lambda side: (f"{last[f'eval/logps/{side}'] - last[f'eval/ref_logps/{side}']:+.1f}" if f"eval/ref_logps/{side}" in last
                                  else f"({last[f'eval/logps/{side}']:.1f})")
            kl = f"{last['eval/kl']:.1f} ± {last['eval/kl_stderr']:.1f}" if "eval/kl" in last else ""
            print(f"| {loss} | {rate:g} | {change('logps/chosen'):+.1f} | {change('logps/rejected'):+.1f} | {change('in_distribution'):+.1f} | "
                  f"{moved('chosen')} | {moved('rejected')} | {last['eval/rewards/accuracies']:.2f} | {kl} |")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", required=True)
    p.add_argument("--pairs", required=True)
    p.add_argument("--out", required=True)
    p.add_argument("--pairs-used", type=int, default=64)
    p.add_argument("--epochs", type=int, default=100)
    p.add_argument("--sft-epochs", type=int, default=1)
    p.add_argument("--max-length", type=int, default=256)
    p.add_argument("--kl-samples", type=int, default=64)
    p.add_argument("--rates", default="1e-4,3e-4,1e-3", type=lambda s: [float(x) for x in s.split(",")])
    p.add_argument("--losses", default=",".join(LOSSES), type=lambda s: s.split(","))
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--table", action="store_true")
    a = p.parse_args()
    a.binary = os.path.abspath(os.environ.get("BDPO_TRAIN", os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "build", "bdpo-train")))
    if not a.table:
        study(a)
    table(a)


if __name__ == "__main__":
    main()
