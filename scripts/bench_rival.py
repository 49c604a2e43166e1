#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""bdpo-train against TRL's DPOTrainer and against a careful plain PyTorch loop, on the same model and pairs, side by side.

  bench_rival.py speed [--model DIR] [--pairs FILE] [--batch 1,2,8] [--modes WORDS] [--sides 0|1|2] [--steps N] [--budget SECONDS]
  bench_rival.py small                        models of 0.1 and 0.26 million parameters against the plain loop
  bench_rival.py table [--write DOC]          the tables of what was measured so far, or into a document
  bench_rival.py quick                        a tiny model through one mode of each rival and the tables: does it all work?

A measurement of `speed` is one mode of a rival between two runs of bdpo-train (--sides 2; 1: one before it; 0: none), each a process of its
own, since both do not fit into memory at once. Means over the same steps after the first. Records go to --results, and what is there is not
measured again unless --again is given, so a table can be made mode by mode: --modes "trl amp pre1" measures those that have all words.
Without --model a model of Qwen2.5-0.5B's dimensions with random weights is made, without --pairs pairs of UltraFeedback's lengths.
PyTorch: the Python in $TORCH_PYTHON (with torch, transformers, trl, datasets). The program: $BDPO_TRAIN, else build/bdpo-train.
"""
import argparse
import json
import os
import random
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import demo_data
from bench_common import GIB, ROOT, Process, Results, alone, available, machine, run_ours, seconds, table, write_between

PYTHON = os.environ.get("TORCH_PYTHON", sys.executable)
RIVAL = os.path.join(ROOT, "scripts", "rival.py")
WORK = os.path.join(ROOT, "build", "bench-rival")
MODES = [f"trl {p} gc{g} pre{r}" for p in ("amp", "bf16", "fp32") for g in (0, 1) for r in (0, 1)] + [
    f"loop {p} gc0 pre{r}" for p in ("amp", "bf16", "fp32") for r in (0, 1)]
# bytes a parameter of weights, gradients and both moments (of bdpo-train in bfloat16: and of master weights)
STATE = {"amp": 16, "fp32": 16, "bf16": 8, "bfloat16": 16, "float32": 16}


# ---- what is measured on ----

def make_model(dims, tokenizer=None):
    """The directory of a model with random weights; tokenizer: as rival.py model takes it."""
    path = os.path.join(WORK, f"model-{dims}" + (f"-{tokenizer}" if tokenizer else ""))
    if not os.path.exists(os.path.join(path, "tokenizer_config.json")):
        prec = "bf16" if dims.startswith("qwen") or tokenizer else "fp32"
        subprocess.run([PYTHON, RIVAL, "model", path, "--dims", dims, "--prec", prec, *(["--tokenizer", tokenizer] if tokenizer else [])], check=True)
    return path


def make_pairs(name, n, prompt, chosen, rejected, longest):
    """n pairs of letters, one token each, with log-normal lengths of these means (responses with an end token)."""
    path = os.path.join(WORK, name + ".jsonl")
    rng = random.Random(7)
    length = lambda mean, most: max(2, min(most, int(rng.lognormvariate(0, 0.7) * mean / 1.28)))
    text = lambda k: "".join(rng.choice("abcdefghijklmnopqrstuvwxyz ") for _ in range(k - 1)) + "."
    os.makedirs(WORK, exist_ok=True)
    with open(path, "w", encoding="utf-8") as f:
        for _ in range(n):
            p = length(prompt, longest // 2)
            row = {"prompt": text(p), "chosen": text(length(chosen, longest - p - 1)), "rejected": text(length(rejected, longest - p - 1))}
            f.write(json.dumps(row) + "\n")
    return path


# ---- one process of the rival ----

def run_rival(mode, model, pairs, batch, micro, steps, max_length, threads, budget, lock=None, device="cpu"):
    kind, prec, gc, pre, *more = mode.split()
    args = [PYTHON, RIVAL, kind, model, pairs, "--prec", prec, "--gc", gc[2:], "--precompute", pre[3:], "--batch", str(batch), "--micro", str(micro),
            "--steps", str(steps), "--max-length", str(max_length), "--threads", str(threads), "--out", os.path.join(WORK, "trl"),
            "--device", device, "--tuned", str(int("tuned" in more))]
    args += ["--lock", lock] if lock else []
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]  # as bdpo-train takes it; of several DPOTrainer takes none
    p = Process(args, budget, memory=available() - GIB, env={"OMP_NUM_THREADS": str(threads), **({"CUDA_VISIBLE_DEVICES": first} if device == "cuda" else {})})
    code = p.wait()
    rows = [json.loads(line) for line in p.lines if line.startswith('{"')]
    head = next((r for r in rows if "loaded" in r), None)
    rows = [r for r in rows if "step_seconds" in r]
    if not head or len(rows) < 2:
        return {"failed": "CUDA out of memory" if "CUDA out of memory" in p.stderr() else p.why(code)}
    return {**head, "steps": rows, "peak": p.peak, "anonymous": p.anonymous, "micro": micro}


def dtype_of(mode):
    return "float32" if " fp32 " in mode else "bfloat16"


def measure_speed(a, results, batch, mode):
    key = f"speed|{os.path.basename(a.pairs)}|{batch}|{mode}"
    old = results.get(key)
    if old and not a.again and len(old["ours"]) >= a.sides:
        return
    common = dict(steps=a.steps, max_length=a.max_length, threads=a.threads, budget=a.budget)

    def ours():
        with alone(a.lock):
            return run_ours(a.model, a.pairs, batch, dtype=dtype_of(mode), **common)

    record = {"mode": mode, "batch": batch, "pairs_file": os.path.basename(a.pairs), "ours": [ours()] if a.sides else []}
    for micro in dict.fromkeys([a.micro or batch, min(batch, 2), 1]):
        record["rival"] = run_rival(mode, a.model, a.pairs, batch, micro, lock=a.lock, **common)
        if "failed" not in record["rival"] or "memory" not in record["rival"]["failed"]:
            break
        print(f"{key}: {micro} pairs a pass: {record['rival']['failed']}", flush=True)
    if a.sides > 1:
        record["ours"].append(ours())
    results.put(key, record)
    print(f"{key}: {describe(record)}", flush=True)


def describe(r):
    if "failed" in r["rival"]:
        return r["rival"]["failed"]
    took = f"{seconds(r['rival']):.2f} s a step, {r['rival']['anonymous'] / GIB:.1f} GiB"
    failed = [o["failed"] for o in r["ours"] if "failed" in o]
    if failed or not usable(r):
        return f"{took}; bdpo-train: {(failed or ['does not say what its reference cost'])[0]}"
    return took + (f"; bdpo-train {ours_seconds(r):.2f}; ratio {ratio(r):.2f}" if r["ours"] else "")


# ---- ratios ----

def scored_in_the_run(mode):
    return mode.endswith("pre0")


def one_ours(r, o):
    """Seconds a step over the steps that the rival did too; with the reference's share where the rival scores it in the step."""
    n = len(r["rival"].get("steps", o["steps"]))
    took = seconds({"steps": o["steps"][:n]})
    if scored_in_the_run(r["mode"]) and o["reference_pairs"]:
        took += o["reference_seconds"] / o["reference_pairs"] * r["batch"]
    return took


def ours_seconds(r):
    return sum(one_ours(r, o) for o in r["ours"]) / len(r["ours"])


def ratio(r):
    return seconds(r["rival"]) / ours_seconds(r)


def beyond(record, what, parameters):
    return (record["anonymous"] - STATE[what] * parameters) / GIB


def logp_difference(r):
    """Of the first step, where both still are the reference: relative difference of the mean log p(chosen)."""
    a, b = r["rival"]["steps"][0]["logps_chosen"], r["ours"][0]["steps"][0]["logps_chosen"]
    return abs(a - b) / abs(b)


def usable(r):
    """Both sides ran, and ours says what its reference cost where the rival's step has it."""
    known = lambda o: "failed" not in o and (o["reference_seconds"] > 0 or not scored_in_the_run(r["mode"]))
    return "failed" not in r["rival"] and all(known(o) for o in r["ours"])


def rival_row(r):
    v, kind = r["rival"], r["mode"].split()[1]
    name = r["mode"].replace(" gc0", "").replace(" gc1", " checkpointing").replace(" pre0", ", reference in the step").replace(
        " pre1", ", reference before") + (f", {v['micro']} pairs a pass" if v.get("micro", r["batch"]) != r["batch"] else "")
    if "failed" in v:
        return [r["batch"], name, v["failed"], "", "", "", "", "", "", ""]
    p = v["parameters"]
    row = [r["batch"], name, f"{seconds(v):.2f}", f"{v['peak'] / GIB:.1f}", f"{beyond(v, kind, p):.2f}"]
    if not r["ours"] or not usable(r):
        return row + ["", "", "", "", ""]
    o = max(r["ours"], key=lambda x: x["anonymous"])
    spread = " to ".join(f"{seconds(v) / one_ours(r, x):.2f}" for x in sorted(r["ours"], key=lambda x: -one_ours(r, x)))
    return row + [f"{ours_seconds(r):.2f}", f"{o['peak'] / GIB:.1f}", f"{beyond(o, dtype_of(r['mode']), p):.2f}",
                  f"**{ratio(r):.2f}** ({spread})" if len(r["ours"]) > 1 else f"**{ratio(r):.2f}**", f"{logp_difference(r):.0e}"]


HEAD = ["batch", "rival", "s a step", "peak GiB", "beyond state", "bdpo-train, s a step", "peak GiB", "beyond state", "ratio", "log p differs by"]


def head_line(records):
    used = sorted({v["versions"] for r in records for v in [r["rival"]] if "versions" in v})
    ours = sorted({o["versions"] for r in records for o in r["ours"] if "versions" in o})
    when = sorted({r["time"] for r in records})
    return f"{records[-1]['machine']}; {'; '.join(used + ours)}; {when[0]} to {when[-1]} UTC"


def speed_tables(results):
    out = []
    groups = {}
    for r in results.under("speed|").values():
        groups.setdefault(r["pairs_file"], []).append(r)
    for name, records in sorted(groups.items()):
        records.sort(key=lambda r: (r["batch"], MODES.index(r["mode"])))
        out.append(f"`{name}` ({head_line(records)}):\n\n" + table(HEAD, [rival_row(r) for r in records]))
    return "\n\n".join(out)


# ---- the small end ----

def measure_small(a, results):
    for dims, lengths in (("demo", (10, 7, 7, 64)), ("stories260k", (60, 120, 110, 512))):
        model = make_model(dims)
        for batch in (1, 8, 32):
            key = f"small|{dims}|{batch}"
            if results.get(key) and not a.again:
                continue
            steps = {1: 240, 8: 120, 32: 60}[batch] if dims == "stories260k" else {1: 800, 8: 400, 32: 200}[batch]
            pairs = make_pairs(f"pairs-{dims}", 4000, *lengths)
            common = dict(steps=min(steps, 4000 // batch), max_length=lengths[3], budget=a.budget)
            record = {"dims": dims, "batch": batch, "rival": {}, "ours": {}}
            for threads in (1, a.threads):
                for prec in ("fp32", "amp"):
                    record["rival"][f"{prec}, {threads} threads"] = run_rival(f"loop {prec} gc0 pre1", model, pairs, batch, batch, threads=threads, **common)
                for dtype in ("float32", "bfloat16"):
                    record["ours"][f"{dtype}, {threads} threads"] = run_ours(model, pairs, batch, dtype=dtype, threads=threads, **common)
            results.put(key, record)
            print(f"{key}: {small_row(record)}", flush=True)


def wall_rate(o):
    """Steps a second by the clock on the wall, with metrics and status written, between the first and the last step seen."""
    (t0, n0), (t1, n1) = o["seen"]
    return (n1 - n0) / (t1 - t0)


def small_row(r):
    rate = lambda v: 1 / seconds(v, first=10)
    rivals = {k: rate(v) for k, v in r["rival"].items() if "failed" not in v}
    ours = {k: (rate(v), wall_rate(v)) for k, v in r["ours"].items() if "failed" not in v}
    if not rivals or not ours:
        return [r["dims"], r["batch"], "failed", "", "", "", ""]
    best, mine = max(rivals, key=rivals.get), max(ours, key=ours.get)
    return [r["dims"], r["batch"], best, f"{rivals[best]:.0f}", mine, f"{ours[mine][0]:.0f} ({ours[mine][1]:.0f})", f"**{ours[mine][0] / rivals[best]:.1f}**"]


def small_table(results):
    records = sorted(results.under("small|").values(), key=lambda r: (r["dims"], r["batch"]))
    if not records:
        return ""
    head = ["model", "batch", "fastest plain loop", "steps/s", "fastest bdpo-train", "steps/s (with its files)", "ratio"]
    return f"{records[-1]['machine']}\n\n" + table(head, [small_row(r) for r in records])


# ---- command line ----

def run_speed(a, results):
    a.model = a.model or make_model("qwen2.5-0.5b")
    a.pairs = a.pairs or make_pairs("ultrafeedback-like", 200, 168, 302, 277, 1024)
    words = a.modes.split()
    for batch in (int(x) for x in a.batch.split(",")):
        for mode in MODES:
            if all(w in mode.split() for w in words):
                measure_speed(a, results, batch, mode)


def run_quick(a, results):
    a.model, a.pairs = make_model("demo"), make_pairs("pairs-quick", 40, 20, 30, 30, 128)
    a.max_length, a.sides, a.again = 128, 2, True
    for mode, batch in (("trl fp32 gc0 pre1", 2), ("loop fp32 gc0 pre0", 4)):
        measure_speed(a, results, batch, mode)
    print(speed_tables(results))


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("part", choices=["speed", "small", "table", "quick"], nargs="?", default="speed")
    ap.add_argument("--model")
    ap.add_argument("--pairs")
    ap.add_argument("--batch", default="1,2,8")
    ap.add_argument("--modes", default="", help="only modes that have all of these words")
    ap.add_argument("--sides", type=int, choices=(0, 1, 2), default=2, help="runs of bdpo-train around a rival's")
    ap.add_argument("--micro", type=int, default=0, help="the rival's pairs of one forward pass; 0: the batch, fewer where memory ends")
    for k, d in (("steps", 3), ("max-length", 1024), ("threads", 2), ("budget", 600)):
        ap.add_argument("--" + k, type=int, default=d)
    ap.add_argument("--lock", help="a file to hold (flock) while something is timed, where jobs share the machine")
    ap.add_argument("--again", action="store_true", help="measure what was measured before")
    ap.add_argument("--results", default=os.path.join(WORK, "results.json"))
    ap.add_argument("--write", metavar="DOC", help="table: between the marks of this document")
    a = ap.parse_args()
    results = Results(a.results)
    if a.part == "table":
        parts = {"speed": speed_tables(results), "small": small_table(results)}
        for name, text in parts.items():
            if a.write and text:
                write_between(a.write, name, text)
            elif text:
                print(text + "\n")
        return
    print(machine(), flush=True)
    {"speed": run_speed, "small": measure_small, "quick": run_quick}[a.part](a, results)


if __name__ == "__main__":
    main()
