#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The comparisons of `make bench-rival` on tiny models: they run, both sides compute the same numbers, tables and figure come out.

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


def main():
    t = Counts()
    with tempfile.TemporaryDirectory(prefix="bdpo-bench-rival-") as root:
        test_arithmetic(t)
        test_document(t, root)
        test_sweeps(t, root)
        probe = subprocess.run([PYTHON, "-c", "import torch, transformers, trl, datasets"], capture_output=True, check=False)
        if probe.returncode:
            print(f"skipped: {PYTHON} has no torch, transformers, trl and datasets: the comparison with them")
            t.skipped += 1
        else:
            test_rivals(t, root)
    print(f"{t.passed} passed, {t.failed} failed, {t.skipped} skipped")
    return 1 if t.failed else 0


if __name__ == "__main__":
    sys.exit(main())
