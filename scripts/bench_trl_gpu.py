#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""bdpo-train beside TRL's DPOTrainer on one GPU: the same model directory, the same pairs, the same batch, in turn.

  bench_trl_gpu.py [--dims NAME | --model DIR] [--pairs FILE] [--batch 8,64] [--steps 8] [--modes WORDS] [--peak TFLOPS] [--results FILE]
  bench_trl_gpu.py table [--results FILE]         the tables of what was measured so far
  bench_trl_gpu.py --device cpu ...               the same without a GPU

A measurement is a mode of TRL between two runs of bdpo-train (--sides 2), each a process of its own. Modes: its defaults (bfloat16 autocast over float32
weights, checkpointing, padding, the reference in each step); tuned as far as it goes (no checkpointing, reference before, as many pairs a pass as memory
holds, FlashAttention 2 where it can be imported and else PyTorch's fused attention, padding-free where this TRL has it), with weights in float32 as ours
have them besides (amp), and all in bfloat16 (bf16). Ours in bfloat16 with float32 master weights, its reference before; where the rival scores it in the
step, our pass over the reference is added to ours. Both sides' useful MFU is the step's minimum of arithmetic over seconds and the card's peak.
A ratio stands only where log p(chosen) and the gradient's norm of the first step agree (LIMITS). What --results (a JSON file) holds is not measured
again unless --again is given. PyTorch: the Python in $TORCH_PYTHON (torch, transformers, trl, datasets). The program: $BDPO_TRAIN, else build/bdpo-train.
"""
import argparse
import itertools
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import bench_data
import bench_rival as rival
from bench_common import Results, card_named, machine, run_ours, seconds, step_work, table

NAMES = {"trl amp gc1 pre0": "defaults", "trl amp gc0 pre1 tuned": "tuned, weights float32", "trl bf16 gc0 pre1 tuned": "tuned, all bfloat16"}
MODES = list(NAMES)
# how far two correct computations may be apart, relative: log p(chosen), norm of the gradient
LIMITS = {"bfloat16": (1e-2, 5e-2), "float32": (1e-4, 1e-3)}
HEAD = ["batch", "TRL", "s a step", "pairs/s", "useful MFU", "peak GiB", "bdpo-train, s a step", "pairs/s", "useful MFU", "in use, GiB", "ratio",
        "log p differs by", "gradient's norm by"]


def passes(batch):
    """Pairs of a pass to try, the most first: the batch and its divisors."""
    return [n for n in range(batch, 0, -1) if batch % n == 0]


def pairs_for(a, batch):
    """The file with the pairs of all steps and no others, so that the plan's work is that of these."""
    n = a.steps * batch
    if not a.pairs:
        name = f"pairs-{a.dims}-{n}-{a.lengths.replace(',', '-')}-{a.max_length}.jsonl"
        return bench_data.write_pairs(os.path.join(rival.WORK, name), bench_data.MODELS[a.dims]["vocab_size"], n, [int(x) for x in a.lengths.split(",")], a.max_length)
    path = os.path.join(rival.WORK, f"first-{n}-{os.path.basename(a.pairs)}")
    with open(a.pairs, encoding="utf-8") as f, open(path, "w", encoding="utf-8") as out:
        out.writelines(itertools.islice(f, n))
    return path


def most_that_fits(a, pairs, batch, mode):
    """The rival with as many pairs a pass as its memory holds."""
    for micro in [a.micro] if a.micro else passes(batch):
        r = rival.run_rival(mode, a.model, pairs, batch, micro, a.steps, a.max_length, a.threads, a.budget, device=a.device)
        if "failed" not in r or "memory" not in r["failed"].lower():
            break
        print(f"  {micro} pairs a pass: {r['failed']}", flush=True)
    return r


def measure(a, results, batch, mode):
    pairs = pairs_for(a, batch)
    key = f"gpu|{os.path.basename(a.model)}|{os.path.basename(pairs)}|{batch}|{mode}"
    old = results.get(key)
    if old and "failed" not in old["rival"] and not a.again:
        return
    dtype = rival.dtype_of(mode)
    job = dict(dtype=dtype, max_length=a.max_length, threads=a.threads if a.device == "cpu" else 0, backend=a.device)
    ours = lambda: run_ours(a.model, pairs, batch, a.steps, budget=a.budget, **job)
    before = [ours()]
    r = most_that_fits(a, pairs, batch, mode)
    record = {"mode": mode, "batch": batch, "dtype": dtype, "model": os.path.basename(a.model), "rival": r, "ours": before + [ours() for _ in range(a.sides - 1)]}
    card = next((x["card"].split(",")[0] for x in (r, *record["ours"]) if x.get("card")), None)
    record["card"] = card or machine()
    record["flops"], peak = step_work(a.model, pairs, batch, a.steps, card=card_named(card or ""), **job)
    record["peak"] = a.peak * 1e12 if a.peak else peak
    results.put(key, record)
    print(f"{key}: {' | '.join(map(str, row(record)[2:]))}", flush=True)


def apart(x, y):
    return abs(x - y) / max(abs(y), 1e-300)


def differences(r):
    """Of the first step, relative: log p(chosen), norm of the gradient."""
    a, b = r["rival"]["steps"][0], r["ours"][0]["steps"][0]
    return apart(a["logps_chosen"], b["logps_chosen"]), apart(a["grad_norm"], b["grad_norm"])


def same_result(r):
    return all(d <= limit for d, limit in zip(differences(r), LIMITS[r["dtype"]]))


def gib(side):
    """The largest memory of a run: the device's where it has one, else the process's own."""
    last = side["steps"][-1]
    return f"{side['device'][0] if side.get('device') else last['device_gib'] if 'device_gib' in last else side['anonymous'] / 2 ** 30:.1f}"


def rates(r, s):
    return [f"{s:.4g}", f"{r['batch'] / s:.3g}", f"{100 * r['flops'] / s / r['peak']:.1f} %" if r["peak"] else "-"]


def row(r):
    v = r["rival"]
    name = NAMES[r["mode"]] + (f", {v['attention']}" if "attention" in v else "") + (
        ", padding-free" if v.get("padding_free") else "") + (f", {v['micro']} pairs a pass" if v.get("micro", r["batch"]) != r["batch"] else "")
    failed = [o["failed"] for o in r["ours"] if "failed" in o]
    left = [r["batch"], name] + ([v["failed"], "", "", ""] if "failed" in v else [
        *rates(r, seconds(v)), gib(v)])
    if failed:
        return left + [failed[0]] + [""] * 6
    took = sum(seconds(o) for o in r["ours"]) / len(r["ours"])
    right = [*rates(r, took), gib(r["ours"][0])]
    if "failed" in v or not rival.usable(r):
        return left + right + ["", "", ""]
    both = [f"{seconds(v) / rival.one_ours(r, o):.2f}" for o in r["ours"]]
    ratio = f"**{rival.ratio(r):.2f}** ({' and '.join(both)})" if same_result(r) else "another result: does not count"
    return left + right + [ratio, *(f"{d:.0e}" for d in differences(r))]


def tables(results):
    groups = {}
    for r in results.under("gpu|").values():
        groups.setdefault((r["model"], r["card"]), []).append(r)
    out = []
    for (model, card), records in sorted(groups.items()):
        records.sort(key=lambda r: (r["batch"], MODES.index(r["mode"])))
        versions = sorted({side["versions"] for r in records for side in (r["rival"], *r["ours"]) if "versions" in side})
        when = sorted(r["time"] for r in records)
        out.append(f"{model} on {card}; {'; '.join(versions)}; {when[0]} to {when[-1]} UTC\n\n{table(HEAD, [row(r) for r in records])}")
    return "\n\n".join(out)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("part", choices=["run", "table"], nargs="?", default="run")
    ap.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    ap.add_argument("--dims", choices=bench_data.MODELS, default="qwen2.5-0.5b")
    ap.add_argument("--model", help="a model directory; without it one of --dims with random weights is made")
    ap.add_argument("--pairs", help="JSON Lines; without it pairs of UltraFeedback's lengths are made, for a model that was made")
    ap.add_argument("--lengths", default=",".join(map(str, bench_data.ULTRAFEEDBACK)), help="mean tokens of these pairs' prompt, chosen and rejected")
    ap.add_argument("--batch", default="8,64")
    ap.add_argument("--modes", default="", help="only modes that have all of these words")
    ap.add_argument("--sides", type=int, choices=(1, 2), default=2, help="runs of bdpo-train around a rival's")
    ap.add_argument("--micro", type=int, default=0, help="the rival's pairs of one pass; 0: as many as fit")
    ap.add_argument("--peak", type=float, help="TFLOP/s of the card, where the program does not know it")
    for k, d in (("steps", 8), ("max-length", 1024), ("threads", 2), ("budget", 900)):
        ap.add_argument("--" + k, type=int, default=d)
    ap.add_argument("--again", action="store_true", help="measure what was measured before")
    ap.add_argument("--results", default=os.path.join(rival.WORK, "gpu.json"))
    a = ap.parse_args()
    results = Results(a.results)
    if a.part == "run":
        batches, words = [int(x) for x in a.batch.split(",")], a.modes.split()
        if a.model and not a.pairs:
            ap.error("--model needs --pairs")
        a.model = a.model or rival.make_model(a.dims, "words")
        for batch in batches:
            for mode in MODES:
                if all(w in mode.split() for w in words):
                    measure(a, results, batch, mode)
    print("\n" + tables(results))


if __name__ == "__main__":
    main()
