#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Runs whose moments are bfloat16 and that have no master weights: repeatable, the same after a stop and on two ranks, near the run in float32, and
warned of where the learning rate is too small. Standard library only; the program is $BDPO_TRAIN."""
import os
import shutil
import subprocess
import sys
import tempfile

import tiny_job as t
from compare_rows import Report
from mpi_launch import launcher

RESULTS = ["model/model.safetensors", "sft/model.safetensors", "metrics.jsonl"]
BOTH = {"moments": "bfloat16", "master": "none"}


def job(root, name, **sections):
    c = t.make_config(root, output=f"{root}/{name}", model={"dtype": "bfloat16"}, checkpoint={"every": 2}, **sections)
    t.write_json(f"{root}/{name}.json", c)
    return f"{root}/{name}.json"


def results(out):
    return [t.read_bytes(f"{out}/{n}") if os.path.exists(f"{out}/{n}") else None for n in RESULTS]


def losses(out):
    return [x["loss"] for x in t.read_lines(f"{out}/metrics.jsonl") if "loss" in x]


def main():
    root = tempfile.mkdtemp(prefix="optimizer_test-")
    r = Report()
    try:
        t.make_root(root)
        for name, optimizer in (("float32", {}), ("moments", {"moments": "bfloat16"}), ("both", BOTH), ("again", BOTH), ("seed", BOTH)):
            res = t.bdpo("--config", job(root, name, optimizer=optimizer, **({"seed": 4} if name == "seed" else {})))
            r.check(res.code == 0 and "most updates" not in res.err, f"{name}: a run", "" if res.code == 0 else f"{res}")
        exact = losses(f"{root}/float32")
        for name in ("moments", "both"):
            off = max(abs(a - b) / abs(a) for a, b in zip(exact, losses(f"{root}/{name}")))
            r.check(0 < off < 0.05, f"{name}: near the run in float32, and not that run", f"{off:.3g}")
        r.check(results(f"{root}/both") == results(f"{root}/again"), "twice the same bytes")
        r.check(results(f"{root}/both") != results(f"{root}/seed"), "another seed rounds otherwise")
        path = job(root, "stopped", optimizer=BOTH)
        codes = [t.bdpo("--config", path, "--set", "max_hours=1e-9").code for _ in range(3)] + [t.bdpo("--config", path).code]
        r.check(codes == [75, 75, 75, 0] and results(f"{root}/stopped") == results(f"{root}/both"), "stopped three times, the same bytes", f"{codes}")
        words, reason = launcher(t.BINARY)
        if words:
            one = t.bdpo("--config", job(root, "one", optimizer=BOTH, dist={"deterministic": True}))
            two = subprocess.run([*words, "-np", "2", t.BINARY, "--config", job(root, "two", optimizer=BOTH, dist={"deterministic": True})], capture_output=True, timeout=120, check=False)
            r.check(one.code == two.returncode == 0 and results(f"{root}/one") == results(f"{root}/two"), "two ranks, the bytes of one", two.stderr.decode()[-300:] if two.returncode else "")
        else:
            print(f"skipped: optimizer_test ranks: {reason}")
            r.skipped += 1
        res = t.bdpo("--config", path, "--dry-run", "--set", "preference.learning_rate=5e-7", "--set", f"output={root}/warned")
        r.check(res.code == 0 and "preference.learning_rate: 5e-07 is below 7.6e-06" in res.err, "a learning rate that is mostly lost is warned of", f"{res}" if res.code else "")
        res = t.bdpo("--config", path, "--dry-run", "--set", "model.dtype=float32")
        r.check(res.code == 2 and "optimizer.master: not used with" in res.err, "float32 weights have no other master", "" if res.code == 2 else f"{res}")
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return r.last()


if __name__ == "__main__":
    sys.exit(main())
