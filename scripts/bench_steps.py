#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Steps of whole models on this machine's CUDA device: random weights of published dimensions, pairs of UltraFeedback's mean lengths. `make bench-cuda`
runs it; in a bundle: python3 test/bench_steps.py. Standard library only.

  bench_steps.py [--models qwen2.5-0.5b,llama3.2-1b,qwen2.5-7b] [--batch 64] [--steps 12] [--every-state] [--limit GIB] [--peak TFLOPS] [--results FILE]

A row is a job of the program itself (bdpo-train --config): the seconds of its steps after the second (timing.jsonl), with everything that a step does and
the reference scored before; a DPO run, then a BDPO run. Useful MFU is the arithmetic that no program can save (`bdpo-train plan`) over seconds and the
card's published bfloat16 peak, or --peak. "in use" is the device's own figure, less what its context took. Where a model does not fit, the row says why
and the next state of STATES is tried. Exit code 77: there is no device. The program: $BDPO_TRAIN, else the one of this checkout or bundle.
"""
import argparse
import os
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import bench_data
from bench_common import Results, card_named, run_ours, seconds, step_work, table

# what is trained, in the order in which it is tried
STATES = [
    ("all weights, AdamW in float32", {}),
    ("all weights, AdamW in bfloat16 without master weights", {"optimizer": {"master": "none", "moments": "bfloat16"}}),
    ("adapters of rank 16 on nf4", {"model": {"lora": {"rank": 16}, "quantization": "nf4"}}),
]
WARM = 2  # steps before those that count
HEAD = ["model", "trained", "pairs/s", "s a step", "useful MFU", "in use, GiB", "planned, GiB", "BDPO's step / DPO's"]


def measure(run, job, common, state):
    """{"dpo": ..., "bdpo": ...} of one state, or {"failed": why}. job: model, pairs, batch, steps; common, state: the rest of its config."""
    record = {}
    for loss in ("dpo", "bdpo"):
        record[loss] = run(*job, preference={"loss": loss}, **common, **state)
        if "failed" in record[loss]:
            return {"failed": record[loss]["failed"]}
    return record


def measure_model(run, work, name, job, common, every=False):
    """A record for each state until one runs, or for every one."""
    for what, state in STATES:
        record = {"model": name, "trained": what, **measure(run, job, common, state)}
        if "failed" not in record:
            card = record["dpo"]["card"]
            record["flops"], record["peak"] = work(*job, card=card_named(card or ""), **common, **state)
        yield record
        if "failed" not in record and not every:
            return


def took(record):
    return seconds(record, first=WARM)


def row(r, peak=None):
    """Of the table; peak: FLOP/s in place of the card's published ones."""
    if "failed" in r:
        return [r["model"], r["trained"], r["failed"].rpartition("error: ")[2]] + [""] * (len(HEAD) - 3)
    s, peak, memory = took(r["dpo"]), peak or r["peak"], r["dpo"]["device"] or r["bdpo"]["device"]
    return [r["model"], r["trained"], f"{r['dpo']['steps'][0]['pairs'] / s:.3g}", f"{s:.4g}", f"{100 * r['flops'] / s / peak:.1f} %" if peak else "peak not known",
            *((f"{x:.1f}" for x in memory) if memory else ("", "")), f"{took(r['bdpo']) / s:.4f}"]


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--models", default="qwen2.5-0.5b,llama3.2-1b,qwen2.5-7b", help=", ".join(bench_data.MODELS))
    ap.add_argument("--backend", choices=["cuda", "cpu"], default="cuda")
    for k, d in (("batch", 64), ("steps", 12), ("max-length", 1024), ("threads", 0), ("budget", 900)):
        ap.add_argument("--" + k, type=int, default=d)
    ap.add_argument("--lengths", default=",".join(map(str, bench_data.ULTRAFEEDBACK)), help="mean tokens of prompt, chosen and rejected")
    ap.add_argument("--every-state", action="store_true", help="a row for each of STATES, also where one before it runs")
    ap.add_argument("--limit", type=float, help="memory.limit, GiB")
    ap.add_argument("--peak", type=float, help="TFLOP/s of the card, where the program does not know it")
    ap.add_argument("--results", metavar="FILE", help="JSON with every step's seconds, kept beside the table")
    a = ap.parse_args()
    names = a.models.split(",")
    for name in names:
        if name not in bench_data.MODELS:
            ap.error(f"--models: {name!r} is not one of {', '.join(bench_data.MODELS)}")
    if a.steps <= WARM:
        ap.error(f"--steps: more than {WARM}")
    results, rows = Results(a.results) if a.results else None, []
    with tempfile.TemporaryDirectory(prefix="bdpo-steps-") as root:
        tiny = bench_data.write_model(os.path.join(root, "probe"), "tiny")
        pairs = bench_data.write_pairs(os.path.join(root, "probe.jsonl"), 300, 2, (6, 5, 4), 32)
        probe = run_ours(tiny, pairs, 2, 2, budget=120, threads=1, max_length=32, init="random", backend=a.backend)
        if "failed" in probe:
            print(f"no rows: {probe['failed']}")
            return 77 if "no CUDA" in probe["failed"] else 1
        card = probe["card"] or "the CPU"
        print(f"{card}; {probe['versions']}; steps of {a.batch} pairs of {a.lengths.replace(',', ' + ')} tokens (mean; cut at {a.max_length}), bfloat16", flush=True)
        for name in names:
            model = bench_data.write_model(os.path.join(root, name), name)
            pairs = bench_data.write_pairs(os.path.join(root, f"{name}.jsonl"), bench_data.MODELS[name]["vocab_size"], a.batch,
                                           [int(x) for x in a.lengths.split(",")], a.max_length)
            common = dict(max_length=a.max_length, threads=a.threads, init="random", backend=a.backend, memory={"limit": a.limit} if a.limit else {})
            run = lambda *job, **more: run_ours(*job, budget=a.budget, **more)
            for record in measure_model(run, step_work, name, (model, pairs, a.batch, a.steps), common, a.every_state):
                rows.append(row(record, a.peak and a.peak * 1e12))
                print(f"  {name}, {record['trained']}: " + (record["failed"] if "failed" in record else f"{took(record['dpo']):.4g} s a step"), flush=True)
                if results:
                    results.put(f"steps|{card}|{name}|{record['trained']}|{a.batch}", record)
    print("\n" + table(HEAD, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
