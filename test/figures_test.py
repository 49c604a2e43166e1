#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""scripts/figures.py and scripts/to_tensorboard.py on what the program writes, with the Python that $TORCH_PYTHON names; without their packages they are
counted as skipped. $BDPO_TRAIN is run."""
import json
import os
import shutil
import subprocess
import sys
import tempfile

import tiny_job as t
from compare_rows import Report

PYTHON = os.environ.get("TORCH_PYTHON", sys.executable)
SCRIPTS = os.path.join(t.HERE, "..", "scripts")


def has(r, package):
    if subprocess.run([PYTHON, "-c", f"import {package}"], capture_output=True, check=False).returncode == 0:
        return True
    print(f"skip: {PYTHON} has no {package}")
    r.skipped += 1
    return False


def run(script, *args):
    return subprocess.run([PYTHON, os.path.join(SCRIPTS, script), *args], capture_output=True, text=True, timeout=300, check=False)


def test_figures(r, root):
    if not has(r, "matplotlib"):
        return
    t.bdpo("contour", "--loss", "bdpo", "--points", "30", "--out", f"{root}/bdpo")
    t.bdpo("toy", "--rates", "0.1", "--steps", "20", "--seeds", "3", "--out", f"{root}/toy")
    res = run("figures.py", "--out", f"{root}/figures", "--contour", f"{root}/bdpo.csv", "--toy", f"{root}/toy", "--runs", f"{root}/run")
    names = {"landscapes", "toy-table", "dynamics", *(f"toy-{x}" for x in ("dpo", "dpo_nll", "dpop", "bdpo", "minor_dpo", "slic", "orpo", "sppo"))}
    want = {f"{n}.{e}" for n in names for e in ("pdf", "png")}
    got = set(os.listdir(f"{root}/figures")) if res.returncode == 0 else set()
    heads = {e: all(open(f"{root}/figures/{n}", "rb").read(4) == h for n in got if n.endswith(e)) for e, h in (("pdf", b"%PDF"), ("png", b"\x89PNG"))}
    r.check(got == want and all(heads.values()), "figures.py: every figure as PDF and PNG", "" if got == want else f"{sorted(want - got)} {res.stderr[-400:]}")


def test_tensorboard(r, root):
    if not has(r, "tensorboard"):
        return
    res = run("to_tensorboard.py", f"{root}/run", "--follow")
    read = ("import sys,json\nfrom tensorboard.backend.event_processing.event_accumulator import EventAccumulator as E\n"
            "a=E(sys.argv[1],size_guidance={'scalars':0});a.Reload()\n"
            "print(json.dumps({k:[[e.step,e.value] for e in a.Scalars(k)] for k in a.Tags()['scalars']}))")
    seen = subprocess.run([PYTHON, "-c", read, f"{root}/run/tensorboard"], capture_output=True, text=True, check=False)
    scalars = json.loads(seen.stdout.strip().split("\n")[-1]) if seen.returncode == 0 else {}
    rows = [x for x in t.read_lines(f"{root}/run/metrics.jsonl") if x["stage"] == "preference" and "loss" in x]
    got = scalars.get("preference/loss", [])
    r.check(res.returncode == 0 and len(got) == len(rows) and all(g[0] == x["step"] and abs(g[1] - x["loss"]) < 1e-6 for g, x in zip(got, rows)),
            "to_tensorboard.py: the losses are there", "" if got else f"{res.stderr[-300:]} {seen.stderr[-300:]}")


def main():
    r, root = Report(), tempfile.mkdtemp(prefix="bdpo-figures-")
    try:
        t.make_root(root)
        t.write_json(f"{root}/run.json", t.make_config(root, eval={"every": 2, "kl_samples": 4}, data={"max_length": 24}))
        r.check(t.bdpo("--config", f"{root}/run.json").code == 0, "a run to draw")
        test_figures(r, root)
        test_tensorboard(r, root)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return r.last()


if __name__ == "__main__":
    sys.exit(main())
