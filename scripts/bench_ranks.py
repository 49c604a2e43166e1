#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What several ranks cost: memory of a rank against its plan, bytes sent against the theory of ZeRO-2, time in which nothing but communication was done,
what sharded gradients and dist.deterministic add. All ranks run on this machine.

  bench_ranks.py [--ranks 1,2,4,8] [--steps N] [--write docs/clusters.md]

The model is a Qwen2 of random weights, the data are random letters, a token each. Theory, a rank and step: (4 bytes reduced + 2 gathered) x parameters x
(N - 1) / N; sharded and deterministic reduce after every micro-batch. Seconds are medians of the steps after the first two. Standard library only."""
import argparse
import json
import math
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import demo_data
from bench_common import BINARY, machine, read_rows, table, write_between
from mpi_launch import launcher

MIB = 2.0 ** 20
UNITS = {"B": 1, "KiB": 2 ** 10, "MiB": 2 ** 20, "GiB": 2 ** 30}
MODEL = dict(demo_data.CONFIG, hidden_size=256, intermediate_size=704, num_hidden_layers=8, num_attention_heads=4, num_key_value_heads=2, vocab_size=16384,
             max_position_embeddings=512)
WAYS = {  # sections of the config
    "local": {"dist": {"gradients": "local"}},
    "sharded": {"dist": {"gradients": "sharded"}},
    "deterministic": {"dist": {"gradients": "local", "deterministic": True}},
}


def write_inputs(root, pairs):
    """A model directory without weights and `pairs` pairs under `root`; the model's parameters."""
    os.makedirs(f"{root}/model")
    demo_data.write_json(f"{root}/model/config.json", MODEL)
    demo_data.write_json(f"{root}/model/tokenizer.json", demo_data.tokenizer())
    demo_data.write_json(f"{root}/model/tokenizer_config.json", {"tokenizer_class": "Qwen2Tokenizer", "eos_token": demo_data.SPECIALS[0]})
    rng = random.Random(1)
    text = lambda lo, hi: "".join(rng.choice(demo_data.LETTERS) for _ in range(rng.randint(lo, hi)))
    with open(f"{root}/train.jsonl", "w", encoding="utf-8") as f:
        for _ in range(pairs):
            f.write(json.dumps({"prompt": text(20, 60) + ":", "chosen": text(20, 80), "rejected": text(20, 80)}) + "\n")
    return sum(math.prod(shape) for _, shape, _ in demo_data.tensors(MODEL))


def anonymous(config):
    """{pid: bytes of anonymous memory} of the ranks that run this config."""
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as f:
                words = f.read().split(b"\0")
            if config.encode() not in words or os.path.realpath(f"/proc/{pid}/exe") != os.path.realpath(BINARY):
                continue
            with open(f"/proc/{pid}/status", encoding="utf-8") as f:
                found[pid] = next(1024 * int(x.split()[1]) for x in f if x.startswith("RssAnon"))
        except (OSError, StopIteration):  # it has ended meanwhile
            pass
    return found


def measure(words, root, ranks, way, steps, micro):
    """One run: its timing rows, what its plan says, and the most memory that any rank took."""
    out, config = f"{root}/run", f"{root}/run.json"
    shutil.rmtree(out, ignore_errors=True)
    demo_data.write_json(config, {
        "model": {"path": f"{root}/model", "init": "random"}, "data": {"train": f"{root}/train.jsonl", "max_length": 256},
        "preference": {"loss": "dpo", "batch_size": 16, "max_steps": steps, "learning_rate": 1e-6}, "reference": {"cache": False},
        "memory": {"micro_batch_tokens": micro, "gradient_checkpointing": False}, "checkpoint": {"every": 0}, "logging": {"progress": False},
        "output": out, "threads": 1, **WAYS[way]})
    start = [*words, "-np", str(ranks)] if ranks > 1 else []
    with tempfile.TemporaryFile() as log:
        p = subprocess.Popen([*start, BINARY, "--config", config], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        most = 0
        while p.poll() is None:
            most = max([most, *anonymous(config).values()])
            time.sleep(0.02)
        log.seek(0)
        said = log.read().decode("utf-8", "replace")
    if p.returncode:
        raise SystemExit(f"{ranks} ranks, {way}: exit code {p.returncode}: {said[-1500:]}")
    planned = re.search(r"memory: ([\d.]+) (\w+) in use after the first step, planned ([\d.]+) (\w+)", said)
    return {"rows": read_rows(f"{out}/timing.jsonl")[2:], "most": most, "used": float(planned[1]) * UNITS[planned[2]], "planned": float(planned[3]) * UNITS[planned[4]]}


def row_of(n, ranks, way, got):
    rows = got["rows"]
    share = n * (ranks - 1) / ranks
    sent = statistics.fmean(x["comm_bytes"] for x in rows)
    reduced = (sent - 2 * share) / (4 * share) if ranks > 1 else 0
    step, waited = (statistics.median(x[k] for x in rows) for k in ("step_seconds", "comm_seconds"))
    return [ranks, way, f"{got['planned'] / MIB:.1f}", f"{got['used'] / MIB:.1f}", f"{got['most'] / MIB:.1f}", f"{sent / MIB:.2f}", f"{6 * share / MIB:.2f}", f"{reduced:.2f}",
            f"{1e3 * step:.0f}", f"{1e3 * waited:.0f}" if ranks > 1 else "0"]


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--ranks", default="1,2,4,8")
    ap.add_argument("--steps", type=int, default=12)
    ap.add_argument("--micro", type=int, default=512, help="micro_batch_tokens, the same for all")
    ap.add_argument("--write", help="a document with lines <!-- ranks --> and <!-- end of ranks -->")
    a = ap.parse_args()
    words, reason = launcher(BINARY)
    if not words:
        raise SystemExit(f"bench_ranks.py: {reason}")
    root = tempfile.mkdtemp(prefix="bdpo-ranks-")
    try:
        n = write_inputs(root, 16 * a.steps)
        rows = []
        for ranks in map(int, a.ranks.split(",")):
            for way in WAYS:
                rows.append(row_of(n, ranks, way, measure(words, root, ranks, way, a.steps, a.micro)))
                print(*rows[-1], flush=True)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    text = (f"`scripts/bench_ranks.py --ranks {a.ranks} --steps {a.steps}` on {machine()}; {n:,} parameters in bfloat16, 16 pairs a step, a thread a rank:\n\n" + table(
        ["ranks", "gradients", "planned, MiB", "rank 0 after a step", "most of a rank at any time", "sent by rank 0 a step, MiB", "theory, reduced once", "times reduced", "step, ms",
         "of it waiting, ms"], rows))
    print(text)
    if a.write:
        write_between(a.write, "ranks", text)


if __name__ == "__main__":
    main()
