#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The comparisons of `make bench-rival` and scripts/bench_trl_gpu.py on tiny models: they run, both sides compute the same numbers, tables and figure come out.

  bench_rival_test.py        $BDPO_TRAIN is the program; $TORCH_PYTHON a Python with torch and trl, without which that part is skipped
"""
import json
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET

HERE = os.path.dirname(os.path.abspath(__file__))
SCRIPTS = os.path.join(HERE, "..", "scripts")
sys.path.insert(0, SCRIPTS)
import bench_rival
import bench_sweep
import bench_trl_gpu
from bench_common import interval, write_between

PYTHON = os.environ.get("TORCH_PYTHON", "python3")


class Counts:
    passed = failed = skipped = 0

    def check(self, ok, what, detail=""):
        if ok:
            self.passed += 1
        else:
            self.failed += 1
            print(f"FAILED {what}: {detail}")


def script(name, *args):
    return subprocess.run([sys.executable, os.path.join(SCRIPTS, name), *args], capture_output=True, text=True, timeout=240,
                          env={**os.environ, "TORCH_PYTHON": PYTHON})


def record(mode, rival, ours, reference=0.0):
    steps = lambda times, logp: [{"step_seconds": t, "logps_chosen": logp} for t in times]
    return {"mode": mode, "batch": 2, "rival": {"steps": steps(rival, -10.0)},
            "ours": [{"steps": steps(ours, -10.1), "reference_seconds": reference, "reference_pairs": 6}]}


def test_arithmetic(t):
    r = record("trl amp gc0 pre1", [9, 4, 6], [7, 1, 3, 100], reference=3.0)
    t.check(bench_rival.ratio(r) == 2.5, "ratio: means over the same steps after the first", bench_rival.ratio(r))
    r = record("trl amp gc0 pre0", [9, 4, 6], [7, 1, 3], reference=3.0)
    t.check(abs(bench_rival.ratio(r) - 5 / 3) < 1e-12, "ratio: the reference's share of ours counts where the rival's step has it", bench_rival.ratio(r))
    t.check(abs(bench_rival.logp_difference(r) - 0.1 / 10.1) < 1e-12, "difference of the first log-probabilities", bench_rival.logp_difference(r))
    mean, half = interval([1.0, 2.0, 3.0])
    t.check(mean == 2.0 and abs(half - 4.30 / 3 ** 0.5) < 1e-9, "confidence interval of three", (mean, half))
    arch = {"hidden_size": 4, "intermediate_size": 6, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 10}
    # 3 + 1 + 1 rows; weights 2 * 16 + 2 * 4 * 2 + 3 * 24 = 120; 4 rows of logits; the prompt's rows see 1, 2, 3 keys, each response's row 4
    got = bench_sweep.step_flops(arch, 3, 2, 1)
    t.check(got == (3 * (2 * 120 * 5 + 4 * 4 * 10 * 2 + 4 * 4 * 14), 3 * 4 * 4 * 14), "FLOPs of a step by hand", got)


def gpu_record(logp=-10.1, **rival):
    side = lambda times, logp, norm, **more: {"steps": [{"step_seconds": x, "logps_chosen": logp, "grad_norm": norm, "device_gib": 3.0} for x in times], **more}
    return {"mode": "trl amp gc0 pre1 tuned", "batch": 4, "dtype": "bfloat16", "flops": 1e12, "peak": 1e13, "model": "m", "card": "c",
            "rival": rival or side([9, 8, 8], -10.15, 2.04, attention="sdpa", padding_free=False, micro=2),
            "ours": [side([9, 1, 3], logp, 2.0, device=(2.0, 1.9), reference_seconds=0.0, reference_pairs=0)] * 2}


def test_gpu_table(t):
    row = bench_trl_gpu.row(gpu_record())
    t.check(row == [4, "tuned, weights float32, sdpa, 2 pairs a pass", "8", "0.5", "1.2 %", "3.0", "2", "2", "5.0 %", "2.0", "**4.00** (4.00 and 4.00)",
                    "5e-03", "2e-02"], "a row of the GPU's table by hand", row)
    row = bench_trl_gpu.row(gpu_record(logp=-11))
    t.check("does not count" in row[10], "a speed with another result does not count", row)
    row = bench_trl_gpu.row(gpu_record(failed="exit code 1: CUDA out of memory"))
    t.check("out of memory" in row[2] and len(row) == len(bench_trl_gpu.HEAD) and row[6] == "2", "a rival that fails leaves ours in the table", row)
    t.check(bench_trl_gpu.passes(12) == [12, 6, 4, 3, 2, 1], "pairs a pass that are tried")


def test_document(t, root):
    doc = os.path.join(root, "doc.md")
    with open(doc, "w", encoding="utf-8") as f:
        f.write("before\n<!-- speed -->\nold\n<!-- end of speed -->\nafter\n")
    write_between(doc, "speed", "new")
    with open(doc, encoding="utf-8") as f:
        text = f.read()
    t.check(text == "before\n<!-- speed -->\nnew\n<!-- end of speed -->\nafter\n", "a table between its marks", text)


def test_sweeps(t, root):
    results, svg = os.path.join(root, "sweep.json"), os.path.join(root, "time.svg")
    r = script("bench_sweep.py", "quick", "--results", results)
    t.check(r.returncode == 0, "sweeps, start, loading, loss", r.stderr[-800:])
    if r.returncode:
        return
    r = script("bench_sweep.py", "table", "--results", results, "--plot", svg)
    names = ("growth of FLOPs a token", "--version", "page cache", "BDPO's step / DPO's")
    t.check(r.returncode == 0 and all(n in r.stdout for n in names), "their tables", r.stdout[-800:] + r.stderr[-800:])
    t.check(len(ET.parse(svg).getroot().findall("{http://www.w3.org/2000/svg}g")) == 4, "the figure has four panels")


def test_rivals(t, root):
    results = os.path.join(root, "results.json")
    r = script("bench_rival.py", "quick", "--results", results)
    t.check(r.returncode == 0, "quick", r.stderr[-800:] + r.stdout[-800:])
    if r.returncode:
        return
    with open(results, encoding="utf-8") as f:
        records = json.load(f)
    t.check(len(records) == 2 and all(bench_rival.usable(x) for x in records.values()), "one mode of each rival", r.stdout[-800:])
    for key, x in records.items():
        tokens = [[s["tokens"] for s in side["steps"]] for side in (x["rival"], *x["ours"])]
        t.check(tokens[0] == tokens[1] == tokens[2], f"{key}: the same tokens on both sides", tokens)
        t.check(bench_rival.logp_difference(x) < 1e-5, f"{key}: the same log-probabilities", bench_rival.logp_difference(x))
        losses = [[s["loss"] for s in side["steps"]] for side in (x["rival"], x["ours"][0])]
        t.check(all(abs(a - b) < 1e-4 for a, b in zip(*losses)), f"{key}: the same losses", losses)
        t.check(x["rival"]["peak"] > x["rival"]["anonymous"] > 0 and x["ours"][0]["anonymous"] > 0, f"{key}: memory was sampled")
    model = os.path.join(bench_rival.WORK, "model-demo")
    r = script("bench_rival.py", "speed", "--results", results, "--model", model, "--pairs", "pairs-quick.jsonl", "--batch", "2", "--modes", "trl fp32 gc0 pre1")
    t.check(r.returncode == 0 and "a step" not in r.stdout, "what is in the results is not measured again", r.stdout + r.stderr)


def test_gpu(t, root):
    """The comparison on a GPU, on the CPU."""
    results = os.path.join(root, "gpu.json")
    args = ("--device", "cpu", "--dims", "tiny", "--lengths", "8,10,9", "--max-length", "48", "--batch", "2", "--steps", "3", "--sides", "1", "--peak", "0.1",
            "--modes", "amp tuned", "--results", results)
    r = script("bench_trl_gpu.py", *args)
    t.check(r.returncode == 0 and "**" in r.stdout.split("\n")[-2], "bench_trl_gpu.py", r.stderr[-800:] + r.stdout[-800:])
    if r.returncode:
        return
    with open(results, encoding="utf-8") as f:
        (x,) = json.load(f).values()
    tokens = [[s["tokens"] for s in side["steps"]] for side in (x["rival"], *x["ours"])]
    t.check(tokens[0] == tokens[1], "the same tokens on both sides, a word each", tokens)
    t.check(bench_trl_gpu.same_result(x), "the same first step", bench_trl_gpu.differences(x))
    again = script("bench_trl_gpu.py", *args)
    t.check(again.returncode == 0 and again.stdout.strip() == r.stdout[r.stdout.index("\n\n"):].strip(), "what is there is not measured again", again.stdout[-800:])


def main():
    t = Counts()
    with tempfile.TemporaryDirectory(prefix="bdpo-bench-rival-") as root:
        test_arithmetic(t)
        test_gpu_table(t)
        test_document(t, root)
        test_sweeps(t, root)
        probe = subprocess.run([PYTHON, "-c", "import torch, transformers, trl, datasets"], capture_output=True, check=False)
        if probe.returncode:
            print(f"skipped: {PYTHON} has no torch, transformers, trl and datasets: the comparison with them")
            t.skipped += 1
        else:
            test_rivals(t, root)
            test_gpu(t, root)
    print(f"{t.passed} passed, {t.failed} failed, {t.skipped} skipped")
    return 1 if t.failed else 0


if __name__ == "__main__":
    sys.exit(main())
