#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""How bdpo-train's time grows, and what it costs to start, to load and to use BDPO. Standard library only.

  bench_sweep.py sweep | start | load | loss | quick [--sweeps length,batch,vocabulary,threads] [--results FILE] [--again]
  bench_sweep.py table [--write DOC] [--plot FILE.svg]

sweep: seconds over tokens of a pair (128 to 4,096), pairs a step, vocabulary and threads, of a model of hidden size 512 with 6 layers.
start: --version, and the first step of a tiny model. load: a safetensors file of 2 GB from the page cache against cat and read(2).
loss: a step of BDPO against one of DPO, in turns. quick: small runs of all, for a test. The program: $BDPO_TRAIN, else build/bdpo-train.
"""
import argparse
import array
import json
import os
import random
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import demo_data
from bench_common import BINARY, ROOT, Results, interval, machine, run_ours, seconds, table, version, write_between
from svg_plot import figure

WORK = os.path.join(ROOT, "build", "bench-rival")
BASE = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 8, "num_key_value_heads": 2,
        "vocab_size": 32000, "max_position_embeddings": 8192}
QWEN = {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
        "vocab_size": 151936, "max_position_embeddings": 32768}
LENGTHS, BATCHES = (128, 256, 512, 1024, 2048, 4096), (1, 2, 4, 8, 16, 32)
VOCABULARIES = (1000, 8000, 32000, 64000, 128256, 151936)


# ---- models and pairs ----

def make_config(path, arch):
    """A model directory without weights, one token a byte."""
    os.makedirs(path, exist_ok=True)
    demo_data.write_json(os.path.join(path, "config.json"), {**demo_data.CONFIG, **arch})
    demo_data.write_json(os.path.join(path, "tokenizer.json"), demo_data.tokenizer())
    demo_data.write_json(os.path.join(path, "tokenizer_config.json"), {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|endoftext|>"})
    return path


def make_pairs(path, n, prompt, response):
    """n pairs of exactly these lengths in tokens; the response's last one is its end token."""
    rng = random.Random(3)
    text = lambda k: "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(k))
    with open(path, "w", encoding="utf-8") as f:
        for _ in range(n):
            f.write(json.dumps({"prompt": text(prompt), "chosen": text(response - 1), "rejected": text(response - 1)}) + "\n")
    return path


def write_weights(path, arch):
    """model.safetensors in float32 with the same four million random numbers over and over; its bytes."""
    rng = random.Random(1)
    block = array.array("f", (rng.gauss(0, 0.02) for _ in range(1 << 20))).tobytes()
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, shape, _ in demo_data.tensors({**demo_data.CONFIG, **arch}):
        n = 4 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, at + n]}
        at += n
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for done in range(0, at, len(block)):
            f.write(block[:at - done])
    return at


def step_flops(arch, prompt, response, pairs):
    """(all, attention's part) of a step's useful floating-point operations: forward and twice that backward, the prompt once."""
    c, f, layers, v = (arch[k] for k in ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size"))
    d = c // arch["num_attention_heads"]
    body = layers * (2 * c * c + 2 * c * d * arch["num_key_value_heads"] + 3 * c * f)
    seen = prompt * (prompt + 1) / 2 + 2 * ((response - 1) * prompt + (response - 1) * response / 2)
    attention = 4 * layers * c * seen
    tokens = prompt + 2 * (response - 1)
    return 3 * pairs * (2 * body * tokens + 4 * c * v * response + attention), 3 * pairs * attention


# ---- sweeps ----

def run_point(name, arch, prompt, response, pairs, threads, steps, micro):
    with tempfile.TemporaryDirectory(prefix="bdpo-sweep-") as root:
        model = make_config(os.path.join(root, "model"), arch)
        data = make_pairs(os.path.join(root, "pairs.jsonl"), pairs, prompt, response)
        r = run_ours(model, data, pairs, steps, max_length=prompt + response, threads=threads, init="random", memory={"micro_batch_tokens": micro})
    if "failed" in r:
        raise SystemExit(f"{name}: {r['failed']}")
    times = [s["step_seconds"] for s in r["steps"][1:]]
    flops, attention = step_flops(arch, prompt, response, pairs)
    return {"seconds": statistics.median(times), "lowest": min(times), "tokens": r["steps"][0]["tokens"], "pairs": pairs, "threads": threads,
            "flops": flops, "attention": attention, "versions": r["versions"]}


def points(arch, micro):
    """name, x, what run_point takes: one sweep after the other. Lengths have about the same number of tokens a step."""
    for n in LENGTHS:
        yield "length", n, dict(arch=arch, prompt=n // 2, response=n // 2, pairs=max(1, 4096 // n), threads=2, micro=micro)
    for b in BATCHES:
        yield "batch", b, dict(arch=arch, prompt=128, response=128, pairs=b, threads=2, micro=2048)
    for v in VOCABULARIES:
        yield "vocabulary", v, dict(arch={**arch, "vocab_size": v}, prompt=128, response=128, pairs=8, threads=2, micro=micro)
    for t in range(1, len(os.sched_getaffinity(0)) + 1):
        yield "threads", t, dict(arch=arch, prompt=128, response=128, pairs=8, threads=t, micro=micro)


def measure_sweep(a, results):
    for name, x, kw in points(BASE, 6144):
        if name not in a.sweeps.split(","):
            continue
        key = f"sweep|{name}|{x}"
        if a.again or not results.get(key):
            r = results.put(key, {"x": x, **run_point(key, steps=a.steps, **kw)})
            print(f"{key}: {r['seconds']:.3f} s, {1e6 * r['seconds'] / r['tokens']:.1f} us a token, {r['flops'] / r['seconds'] / 1e9:.0f} GFLOP/s", flush=True)


def sweep(results, name):
    return sorted(results.under(f"sweep|{name}|").values(), key=lambda r: r["x"])


def sweep_tables(results):
    out, us = [], lambda r: 1e6 * r["seconds"] / r["tokens"]
    lengths = sweep(results, "length")
    if not lengths:
        return ""
    first = lengths[0]
    out.append(table(["tokens of prompt + response", "pairs a step", "s a step", "us a token", "growth", "growth of FLOPs a token", "attention's share of FLOPs", "GFLOP/s"], [
        [r["x"], r["pairs"], f"{r['seconds']:.3f}", f"{us(r):.1f}", f"{us(r) / us(first):.2f}",
         f"{r['flops'] / r['tokens'] / (first['flops'] / first['tokens']):.2f}", f"{100 * r['attention'] / r['flops']:.0f} %",
         f"{r['flops'] / r['seconds'] / 1e9:.0f}"] for r in lengths]))
    for name, what in (("batch", "pairs a step"), ("vocabulary", "vocabulary"), ("threads", "threads")):
        rows = sweep(results, name)
        out.append(table([what, "s a step", "us a token", "growth of the time", "growth of FLOPs", "GFLOP/s"], [
            [f"{r['x']:,}", f"{r['seconds']:.3f}", f"{us(r):.1f}", f"{r['seconds'] / rows[0]['seconds']:.2f}", f"{r['flops'] / rows[0]['flops']:.2f}",
             f"{r['flops'] / r['seconds'] / 1e9:.0f}"] for r in rows]))
    return f"{first['machine']}; {first['versions']}; {first['time']} UTC\n\n" + "\n\n".join(out)


def plot(results, path):
    us = lambda name: [(r["x"], 1e6 * r["seconds"] / r["tokens"]) for r in sweep(results, name)]
    lengths = sweep(results, "length")
    shape = [(r["x"], us("length")[0][1] * r["flops"] / r["tokens"] / (lengths[0]["flops"] / lengths[0]["tokens"])) for r in lengths]
    took = lambda name: [(r["x"], r["seconds"]) for r in sweep(results, name)]
    threads = sweep(results, "threads")
    figure(path, [
        {"title": "Length of prompt + response", "x": "tokens", "y": "microseconds a token", "log_x": True, "series": {"measured": us("length")},
         "dashed": {"as its FLOPs grow (attention)": shape}},
        {"title": "Pairs a step", "x": "pairs", "y": "seconds a step", "series": {"measured": took("batch")}},
        {"title": "Vocabulary", "x": "tokens in the vocabulary", "y": "seconds a step", "series": {"measured": took("vocabulary")}},
        {"title": "Threads", "x": "threads", "y": "steps a second", "series": {"measured": [(r["x"], 1 / r["seconds"]) for r in threads]},
         "dashed": {"in proportion": [(r["x"], r["x"] / threads[0]["x"] / threads[0]["seconds"]) for r in threads]}},
    ])


# ---- start, loading, the loss ----

def timed(args, **kw):
    start = time.perf_counter()
    subprocess.run(args, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **kw)
    return time.perf_counter() - start


def measure_start(a, results):
    once = [timed([BINARY, "--version"]) for _ in range(a.runs)]
    with tempfile.TemporaryDirectory(prefix="bdpo-start-") as root:
        model = make_config(os.path.join(root, "model"), {})
        write_weights(os.path.join(model, "model.safetensors"), {})
        data = make_pairs(os.path.join(root, "pairs.jsonl"), 400, 14, 6)
        first = [run_ours(model, data, 1, 100, dtype="float32", max_length=64, every=0.001)["seen"][0][0] for _ in range(max(2, a.runs // 3))]
    r = results.put("start", {"version_ms": 1e3 * statistics.median(once), "version_worst_ms": 1e3 * max(once),
                              "first_step_ms": 1e3 * statistics.median(first), "runs": a.runs, "versions": f"bdpo-train {version()}"})
    print(f"start: --version {r['version_ms']:.1f} ms, first step {r['first_step_ms']:.0f} ms", flush=True)


def read_fresh(path):
    """read(2) into memory that was never touched, as a program without tricks would."""
    start = time.perf_counter()
    with open(path, "rb", buffering=0) as f:
        into = memoryview(bytearray(os.path.getsize(path)))
        at = 0
        while at < len(into):
            at += f.readinto(into[at:at + (64 << 20)])
    return time.perf_counter() - start


def measure_load(a, results, arch=QWEN):
    os.makedirs(WORK, exist_ok=True)
    root = tempfile.mkdtemp(prefix="load-", dir=WORK)
    try:
        make_config(root, arch)
        weights = os.path.join(root, "model.safetensors")
        size = write_weights(weights, arch)
        empty = make_config(os.path.join(root, "tiny"), {})
        write_weights(os.path.join(empty, "model.safetensors"), {})
        say = lambda d: [BINARY, "generate", "--model", d, "--prompt", "a", "--max-tokens", "1"]
        took = {"cat": [], "read": [], "ours": [], "tiny": []}
        for _ in range(min(a.turns, 5)):
            took["cat"].append(timed(["cat", weights]))
            took["read"].append(read_fresh(weights))
            took["ours"].append(timed(say(root)))
            took["tiny"].append(timed(say(empty)))
    finally:
        shutil.rmtree(root, ignore_errors=True)
    r = results.put("load", {"bytes": size, **{k: statistics.median(v) for k, v in took.items()}, "versions": f"bdpo-train {version()}"})
    print("load: " + ", ".join(f"{k} {r[k]:.3f} s" for k in took), flush=True)


def measure_loss(a, results, arch=BASE, pairs=4):
    ratios, base = [], []
    with tempfile.TemporaryDirectory(prefix="bdpo-loss-") as root:
        model = make_config(os.path.join(root, "model"), arch)
        data = make_pairs(os.path.join(root, "pairs.jsonl"), pairs, 96, 96)
        one = lambda loss: seconds(run_ours(model, data, pairs, a.steps + 1, init="random", preference={"loss": loss}))
        for turn in range(a.turns):
            order = ("dpo", "bdpo") if turn % 2 == 0 else ("bdpo", "dpo")
            took = {loss: one(loss) for loss in order}
            ratios.append(took["bdpo"] / took["dpo"])
            base.append(took["dpo"])
    mean, half = interval(ratios)
    results.put("loss", {"ratio": mean, "half": half, "turns": a.turns, "steps": a.steps, "seconds": statistics.fmean(base),
                         "versions": f"bdpo-train {version()}"})
    print(f"loss: BDPO's step takes {mean:.4f} +- {half:.4f} of DPO's ({a.turns} turns)", flush=True)


def cost_table(results):
    rows = []
    r = last = results.get("start")
    if r:
        rows.append(["`--version`", f"{r['version_ms']:.1f} ms (slowest of {r['runs']}: {r['version_worst_ms']:.1f})"])
        rows.append(["from start to the end of the first step, demo's model", f"{r['first_step_ms']:.0f} ms"])
    r = results.get("load")
    last = r or last
    if r:
        rate = lambda k: f"{r[k]:.2f} s, {r['bytes'] / r[k] / 1e9:.1f} GB/s"
        size = f"{r['bytes'] / 1e9:.2f} GB of float32 in the page cache: "
        rows += [[size + "`cat` to /dev/null", rate("cat")], [size + "read(2) into fresh memory", rate("read")],
                 [size + "`bdpo-train generate`, one token", f"{rate('ours')} (a tiny model: {r['tiny']:.2f} s)"]]
    r = results.get("loss")
    last = r or last
    if r:
        rows.append([f"BDPO's step / DPO's, {r['turns']} turns of {r['steps']} steps of {r['seconds']:.2f} s", f"{r['ratio']:.4f} +- {r['half']:.4f}"])
    if not rows:
        return ""
    return f"{last['machine']}; {last['versions']}; {last['time']} UTC\n\n" + table(["what", "measured"], rows)


def run_quick(a, results):
    small = {**BASE, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 300}
    for name, x, kw in points(small, 6144):
        if x <= 256 or name == "vocabulary" and x <= 8000:
            kw["pairs"] = min(kw["pairs"], 4)
            results.put(f"sweep|{name}|{x}", {"x": x, **run_point(name, steps=3, **kw)})
    a.runs, a.turns, a.steps = 3, 2, 3
    measure_start(a, results)
    measure_load(a, results, small)
    measure_loss(a, results, small)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("part", choices=["sweep", "start", "load", "loss", "quick", "table"])
    for k, d in (("steps", 4), ("runs", 30), ("turns", 12)):
        ap.add_argument("--" + k, type=int, default=d)
    ap.add_argument("--sweeps", default="length,batch,vocabulary,threads")
    ap.add_argument("--again", action="store_true", help="measure what was measured before")
    ap.add_argument("--results", default=os.path.join(WORK, "sweep.json"))
    ap.add_argument("--write", metavar="DOC", help="table: between the marks of this document")
    ap.add_argument("--plot", metavar="SVG", help="table: the sweeps as a figure too")
    a = ap.parse_args()
    results = Results(a.results)
    if a.part == "table":
        for name, text in (("sweep", sweep_tables(results)), ("cost", cost_table(results))):
            if a.write and text:
                write_between(a.write, name, text)
            elif text:
                print(text + "\n")
        if a.plot:
            plot(results, a.plot)
        return
    {"sweep": measure_sweep, "start": measure_start, "load": measure_load, "loss": measure_loss, "quick": run_quick}[a.part](a, results)


if __name__ == "__main__":
    main()
