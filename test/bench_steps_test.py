#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The rows of whole models of `make bench-cuda` (scripts/bench_steps.py): what they are measured on, what a card that is too small gets, and a run of all of
it on the emulated device. Standard library only; $BDPO_TRAIN is the program."""
import json
import os
import statistics
import subprocess
import sys
import tempfile

import tiny_job as t
from compare_rows import Report

sys.path.insert(0, os.path.join(t.HERE, "..", "scripts"))
import bench_data
import bench_steps
from bench_common import card_named, device_memory, step_work

EMULATED = t.BINARY + "-emu"


def test_data(r, root):
    """The program counts the tokens that were asked for, and reads the published models' dimensions."""
    path = bench_data.write_pairs(os.path.join(root, "pairs.jsonl"), 4000, 64)
    rows = t.read_lines(path)
    means = [statistics.fmean(len(x[k].split()) + extra for x in rows) for k, extra in (("prompt", 0), ("chosen", 1), ("rejected", 1))]
    r.check(all(abs(m - w) < 1 for m, w in zip(means, bench_data.ULTRAFEEDBACK)), "pairs of UltraFeedback's mean lengths", means)
    longest = max(len(x["prompt"].split()) + 1 + max(len(x[k].split()) for k in ("chosen", "rejected")) for x in rows)
    r.check(512 < longest <= 1024, "of at most 1,024 tokens", longest)
    # parameters of the published models; 2 tokens of prompt and a response of 2: two rows of each but the last token's
    for name, parameters in (("qwen2.5-0.5b", 494032768), ("llama3.2-1b", 1235814400), ("qwen2.5-7b", 7615616512)):
        arch = bench_data.MODELS[name]
        model = bench_data.write_model(os.path.join(root, name), name)
        pair = t.write_lines(os.path.join(root, "one.jsonl"), [{"prompt": " aaaa aaab", "chosen": " aaac", "rejected": " aaad"}])
        flops, peak = step_work(model, pair, 1, 1, card="h200", init="random")
        outside = arch["vocab_size"] * arch["hidden_size"]
        body = parameters - (1 if arch["tie_word_embeddings"] else 2) * outside
        width = arch.get("head_dim", arch["hidden_size"] // arch["num_attention_heads"]) * arch["num_attention_heads"] * arch["num_hidden_layers"]
        want = 3 * (2 * body * (2 + 1 + 1) + 2 * outside * 4 + 4 * width * (3 + 3 + 3))
        r.check(abs(flops / want - 1) < 1e-9 and peak == 989e12, f"{name}: the FLOPs of a pair by hand, a token a word, the card's peak", (flops, want, peak))


def record(name, seconds, failed=None):
    run = lambda s: {"card": "NVIDIA H200, 139.8 GiB", "device": (100.04, 99.9), "steps": [{"step_seconds": x, "pairs": 64} for x in (9, 9, s, s)]}
    return {"model": name, "trained": "x", **({"failed": failed} if failed else {"dpo": run(seconds), "bdpo": run(1.01 * seconds), "flops": 4e14, "peak": 1e15})}


def test_table(r):
    row = bench_steps.row(record("m", 0.8))
    r.check(row == ["m", "x", "80", "0.8", "50.0 %", "100.0", "99.9", "1.0100"], "a row by hand", row)
    r.check(bench_steps.row(record("m", 0.8), 2e15)[4] == "25.0 %", "a peak that is given")
    r.check(bench_steps.row(record("m", 1, "too small"))[2] == "too small" and len(bench_steps.row(record("m", 1, "too small"))) == len(bench_steps.HEAD), "a reason in a row")
    said = "memory: 1.5 TiB in use on the device after the first step, planned 512.0 MiB (+1.0 %)"
    r.check(device_memory(said) == (1536.0, 0.5) and device_memory("memory: 1.0 GiB in use after the first step") is None, "memory by what a run said")
    r.check([card_named(x) for x in ("NVIDIA H100 80GB HBM3", "NVIDIA GeForce RTX 3090", "a CPU")] == ["h100", "3090", None], "cards by name")
    tried = []

    def run(*job, preference=None, **state):
        tried.append((preference["loss"], state.get("optimizer", {}).get("master", "float32"), "lora" in state.get("model", {})))
        return {"failed": "too small"} if len(tried) < 3 else record("m", 1)["dpo"]
    got = list(bench_steps.measure_model(run, lambda *job, **more: (4e14, 1e15), "m", ("model", "pairs", 2, 4), {}))
    every = list(bench_steps.measure_model(lambda *job, **more: record("m", 1)["dpo"], lambda *job, **more: (4e14, 1e15), "m", ("model", "pairs", 2, 4), {}, True))
    r.check(len(every) == len(bench_steps.STATES), "every state, where that is asked for")
    r.check([("failed" in x) for x in got] == [True, True, False] and tried == [("dpo", "float32", False), ("dpo", "none", False), ("dpo", "float32", True),
                                                                               ("bdpo", "float32", True)],
            "what does not fit is told, and the next smaller state tried", tried)


def script(binary, *args, **env):
    return subprocess.run([sys.executable, os.path.join(t.HERE, "..", "scripts", "bench_steps.py"), *args], capture_output=True, text=True, timeout=120,
                          env={**os.environ, "BDPO_TRAIN": binary, **env}, check=False)


def test_run(r, root):
    out, small = os.path.join(root, "steps.json"), ("--batch", "4", "--steps", "3", "--lengths", "6,5,4", "--max-length", "32", "--threads", "1")
    p = script(t.BINARY, "--models", "tiny", *small)
    r.check(p.returncode == 77 and "no CUDA" in p.stdout, "no device: 77 and the reason", p.stdout + p.stderr)
    if not os.path.exists(EMULATED):
        print(f"skip: there is no {EMULATED} (no emulated device in this build)")
        r.skipped += 1
        return
    p = script(EMULATED, "--models", "tiny", *small, "--peak", "0.001", "--results", out)
    r.check(p.returncode == 0 and "emulated device" in p.stdout, "a row from the emulated device", p.stdout + p.stderr)
    if p.returncode:
        return
    with open(out, encoding="utf-8") as f:
        (row,) = json.load(f).values()
    cells = [x.strip() for x in p.stdout.strip().split("\n")[-1].strip("|").split("|")]
    share = 100 * row["flops"] / statistics.fmean(s["step_seconds"] for s in row["dpo"]["steps"][2:]) / 1e9
    r.check(len(cells) == len(bench_steps.HEAD) and cells[4] == f"{share:.1f} %" and all(cells[:5]) and cells[7], "every column has a figure", cells)
    r.check(row["dpo"]["device"] and row["dpo"]["device"][1] >= 0 and len(row["bdpo"]["steps"]) == 3, "memory of the device, as planned and in use", row["dpo"]["device"])
    p = script(EMULATED, "--models", "tiny", *small, "--limit", "0.0001")
    r.check(p.returncode == 0 and p.stdout.count("| tiny |") == len(bench_steps.STATES) and "memory" in p.stdout, "nothing fits: a row for each state with the reason",
            p.stdout + p.stderr)


def main():
    r = Report()
    with tempfile.TemporaryDirectory(prefix="bdpo-steps-test-") as root:
        test_data(r, root)
        test_table(r)
        test_run(r, root)
    return r.last()


if __name__ == "__main__":
    sys.exit(main())
