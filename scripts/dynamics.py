#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The paper's study of learning dynamics (Figures 4 and 6) at the scale of a CPU: few pairs, many epochs, every loss at every learning rate.

usage: dynamics.py --model DIR --pairs FILE --out DIR [--pairs-used 64] [--epochs 100] [--rates 1e-4,3e-4,1e-3] [--losses a,b] [--seeds 1,2,3] [--sft-epochs 1] [--table]

For each seed an SFT OUT/sft-SEED on the chosen responses of all but the last 100 rows of FILE; then for each loss and rate a run OUT/LOSS-RATE-SEED on the same few
pairs (those of seed 2 follow those of seed 1 in FILE), evaluated on the last 100 rows every tenth of the way, with eval/kl. A run that is finished is kept, so that the
study can be done in pieces. At the end, or with --table alone, the table: the mean over the seeds that are finished and, from two on, the smallest and largest value.
Standard library only; $BDPO_TRAIN or build/bdpo-train is run."""
import argparse
import gzip
import json
import os
import subprocess
import sys

LOSSES = ["dpo", "dpo_nll", "dpop", "bdpo", "minor_dpo", "slic", "orpo", "sppo"]
HELD, BATCH = 100, 16


def split(pairs, out, used, seeds):
    """train.jsonl, held.jsonl and for each seed few-SEED.jsonl under `out`."""
    opener = gzip.open if pairs.endswith(".gz") else open
    with opener(pairs, "rt", encoding="utf-8") as f:
        rows = [line for line in f if line.strip()]
    parts = {"train": rows[:-HELD], "held": rows[-HELD:], **{f"few-{s}": rows[:-HELD][(s - 1) * used:s * used] for s in seeds}}
    for name, part in parts.items():
        if len(part) < (used if name.startswith("few") else 1):
            sys.exit(f"dynamics.py: {pairs} has {len(rows)} rows, too few for {used} pairs a seed up to {name} and {HELD} held-out ones")
        with open(f"{out}/{name}.jsonl", "w", encoding="utf-8") as f:
            f.writelines(part)


def config(a, output, model, rows, seed):
    return {"model": {"path": model, "dtype": "float32"}, "data": {"train": f"{a.out}/{rows}.jsonl", "max_length": a.max_length, "max_dropped": 0.2},
            "checkpoint": {"every": 0}, "output": output, "cache_dir": f"{a.out}/cache", "threads": a.threads, "seed": seed}


def run(a, name, c):
    path = f"{a.out}/{name}.json"
    with open(path, "w", encoding="utf-8") as f:
        json.dump(c, f, indent=1)
    done = subprocess.run([a.binary, "--config", path], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    last = done.stderr.strip().split("\n")[-1]
    print(f"{name}: exit code {done.returncode}: {last}", flush=True)
    return done.returncode


def study(a):
    """0, or 1 where a run failed; the others go on."""
    os.makedirs(a.out, exist_ok=True)
    split(a.pairs, a.out, a.pairs_used, a.seeds)
    steps, failed = a.epochs * -(-a.pairs_used // BATCH), 0
    for seed in a.seeds:
        sft = config(a, f"{a.out}/sft-{seed}", a.model, "train", seed)
        sft["sft"] = {"epochs": a.sft_epochs, "learning_rate": 1e-3, "batch_size": BATCH}
        if run(a, f"sft-{seed}", sft):
            return 1
        for rate in a.rates:
            for loss in a.losses:
                name = f"{loss}-{rate:g}-{seed}"
                c = config(a, f"{a.out}/{name}", f"{a.out}/sft-{seed}/model", f"few-{seed}", seed)
                c["data"]["eval"] = f"{a.out}/held.jsonl"
                c["preference"] = {"loss": loss, "epochs": a.epochs, "learning_rate": rate, "batch_size": BATCH, "schedule": "constant"}
                c["eval"] = {"every": max(1, steps // 10), "kl_samples": a.kl_samples}
                failed |= run(a, name, c) != 0
    return int(failed)


def results(folder):
    """A finished run's numbers by column, else None."""
    try:
        with open(f"{folder}/metrics.jsonl", encoding="utf-8") as f:
            rows = [r for r in map(json.loads, f) if r["stage"] == "preference"]
    except OSError:
        return None
    steps, evals = [r for r in rows if "loss" in r], [r for r in rows if "eval/loss" in r]
    if not evals or not os.path.isdir(f"{folder}/model"):
        return None
    some = max(1, len(steps) // 100)
    out, last = {}, evals[-1]
    for column, key in (("trained: chosen", "logps/chosen"), ("rejected", "logps/rejected"), ("log(w + l)", "in_distribution")):
        out[column] = sum(r[key] for r in steps[-some:]) / some - sum(r[key] for r in steps[:some]) / some
    for side in ("chosen", "rejected"):
        if f"eval/ref_logps/{side}" in last:
            out[f"held out: {side}"] = last[f"eval/logps/{side}"] - last[f"eval/ref_logps/{side}"]
    out["accuracy"] = last["eval/rewards/accuracies"]
    if "eval/kl" in last:
        out["KL"] = last["eval/kl"]
    return out


COLUMNS = {"trained: chosen": "+.1f", "rejected": "+.1f", "log(w + l)": "+.1f", "held out: chosen": "+.1f", "held out: rejected": "+.1f", "accuracy": ".2f",
           "KL": ".1f"}


def cell(values, form):
    if not values:
        return "-"
    mean = format(sum(values) / len(values), form)
    return mean if len(values) == 1 else f"{mean} ({min(values):{form}} to {max(values):{form}})"


def table(a):
    print("| " + " | ".join(["loss", "rate", "seeds", *COLUMNS]) + " |\n|" + "---|" * (3 + len(COLUMNS)))
    for loss in a.losses:
        for rate in a.rates:
            runs = [x for x in (results(f"{a.out}/{loss}-{rate:g}-{seed}") for seed in a.seeds) if x]
            if runs:
                print(f"| {loss} | {rate:g} | {len(runs)} | " + " | ".join(cell([x[c] for x in runs if c in x], form) for c, form in COLUMNS.items()) + " |")


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
    p.add_argument("--seeds", default="1", type=lambda s: [int(x) for x in s.split(",")])
    p.add_argument("--losses", default=",".join(LOSSES), type=lambda s: s.split(","))
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--table", action="store_true")
    a = p.parse_args()
    a.binary = os.path.abspath(os.environ.get("BDPO_TRAIN", os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "build", "bdpo-train")))
    failed = 0 if a.table else study(a)
    table(a)
    return failed


if __name__ == "__main__":
    sys.exit(main())
