#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""scripts/dynamics.py on a tiny model: its runs, what it keeps, and its table against the metrics read here. Standard library only; $BDPO_TRAIN is run."""
import os
import shutil
import subprocess
import sys
import tempfile

import tiny_job as t
from compare_rows import Report

SCRIPT = os.path.join(t.HERE, "..", "scripts", "dynamics.py")


def run(root, *args, pairs="pairs"):
    return subprocess.run([sys.executable, SCRIPT, "--model", f"{root}/model", "--pairs", f"{root}/{pairs}.jsonl", "--out", f"{root}/out", "--pairs-used", "8",
                           "--epochs", "4", "--max-length", "32", "--kl-samples", "4", "--threads", "1", "--rates", "1e-2", "--losses", "bdpo,orpo",
                           "--seeds", "1,2", *args], capture_output=True, text=True, timeout=300, check=False)


def table(text):
    return {x[0]: x for x in ([c.strip() for c in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")) if x[0] != "loss"}


def changes(root, loss, key):
    out = []
    for seed in (1, 2):
        rows = [r for r in t.read_lines(f"{root}/out/{loss}-0.01-{seed}/metrics.jsonl") if r["stage"] == "preference" and "loss" in r]
        out.append(rows[-1][key] - rows[0][key])
    return out


def test_study(r, root):
    res = run(root)
    got = table(res.stdout)
    r.check(res.returncode == 0 and set(got) == {"bdpo", "orpo"}, "dynamics: a row for each loss", f"{res.stdout[-600:]} {res.stderr[-300:]}")
    if set(got) != {"bdpo", "orpo"}:
        return
    for loss in ("bdpo", "orpo"):
        v = changes(root, loss, "logps/chosen")
        want = f"{sum(v) / 2:+.1f} ({min(v):+.1f} to {max(v):+.1f})"
        r.check(got[loss][1:4] == ["0.01", "2", want], f"dynamics: {loss}'s change and its spread are the metrics'", f"{got[loss]} {want}")
    kl = [[x for x in t.read_lines(f"{root}/out/bdpo-0.01-{s}/metrics.jsonl") if "eval/kl" in x][-1]["eval/kl"] for s in (1, 2)]
    r.check(got["bdpo"][-1] == f"{sum(kl) / 2:.1f} ({min(kl):.1f} to {max(kl):.1f})", "dynamics: KL", str(got["bdpo"]))
    r.check([got["orpo"][i] for i in (6, 7, 9)] == ["-"] * 3, "dynamics: orpo has no reference", str(got["orpo"]))
    few = [t.read_lines(f"{root}/out/few-{s}.jsonl") for s in (1, 2)]
    r.check([len(x) for x in few] == [8, 8] and few[0] + few[1] == t.read_lines(f"{root}/pairs.jsonl")[:16], "dynamics: a seed has pairs of its own")
    before = os.stat(f"{root}/out/bdpo-0.01-1/metrics.jsonl").st_mtime_ns
    again = run(root)
    r.check(again.returncode == 0 and table(again.stdout) == got and os.stat(f"{root}/out/bdpo-0.01-1/metrics.jsonl").st_mtime_ns == before,
            "dynamics: what is finished is kept", again.stdout[-300:])
    r.check(table(run(root, "--table").stdout) == got, "dynamics: --table alone")
    shutil.rmtree(f"{root}/out/bdpo-0.01-2/model")
    r.check(table(run(root, "--table").stdout)["bdpo"][2] == "1", "dynamics: a run that is not finished is left out")


def test_refusals(r, root):
    res = run(root, pairs="few")
    r.check(res.returncode != 0 and "too few" in res.stderr, "dynamics: too few rows", res.stderr[-300:])
    res = run(root, "--losses", "nothing", "--seeds", "1")
    r.check(res.returncode != 0 and "exit code 2" in res.stdout, "dynamics: a run that fails is a failure", res.stdout[-300:])


def main():
    r, root = Report(), tempfile.mkdtemp(prefix="bdpo-dynamics-")
    try:
        t.make_root(root)
        t.write_lines(f"{root}/pairs.jsonl", t.make_pairs(140))
        t.write_lines(f"{root}/few.jsonl", t.make_pairs(105))
        test_study(r, root)
        test_refusals(r, root)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return r.last()


if __name__ == "__main__":
    sys.exit(main())
