#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Whole jobs of the program with the CUDA backend on the emulated device (build/*/bdpo-train-emu). Standard library only."""
import os
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import tiny_job as t

EMULATED = t.BINARY + "-emu"
KEYS = ("loss", "grad_norm", "logps/chosen", "logps/rejected", "rewards/margins")


class Report:
    def __init__(self):
        self.passed = self.failed = 0

    def check(self, ok, what, why=""):
        print(f"ok   {what}" if ok else f"FAIL {what}: {why}")
        self.passed += bool(ok)
        self.failed += not ok


def run(binary, root, name, *args):
    """Output folder and result of a job of `root`."""
    out = os.path.join(root, name)
    t.BINARY = binary
    return out, t.bdpo("--config", os.path.join(root, "run.json"), "--set", f"output={out}", *args, timeout=200)


def same_rows(a, b, limit):
    """The largest difference of two metrics files, relative to values of 1 or more; None where rows differ in number."""
    a, b = t.read_lines(os.path.join(a, "metrics.jsonl")), t.read_lines(os.path.join(b, "metrics.jsonl"))
    if len(a) != len(b):
        return f"{len(a)} rows and {len(b)}"
    worst = max(abs(x[k] - y[k]) / max(abs(x[k]), 1) for x, y in zip(a, b) for k in KEYS if x.get(k) is not None)
    return None if worst <= limit else f"differ by {worst:.2e}"


def main():
    r = Report()
    cpu = t.BINARY
    with tempfile.TemporaryDirectory(prefix="bdpo-cuda-") as root:
        t.make_root(root)
        for dtype, limit in (("float32", 1e-4), ("bfloat16", 0.1)):
            t.write_json(os.path.join(root, "run.json"), t.make_config(root, model={"path": f"{root}/model", "dtype": dtype}, checkpoint={"every": 2}))
            a, ran = run(cpu, root, f"cpu-{dtype}", "--set", "backend=cpu")
            r.check(ran.code == 0, f"{dtype}: the CPU's run", ran)
            b, ran = run(EMULATED, root, f"cuda-{dtype}")
            r.check(ran.code == 0 and "backend: cuda: emulated device" in ran.err, f"{dtype}: auto takes the device and says so", ran)
            r.check("in use on the device after the first step" in ran.err, f"{dtype}: memory on the device is told", ran)
            wrong = same_rows(a, b, limit)
            r.check(not wrong, f"{dtype}: every step is the CPU's", wrong)
            c, ran = run(EMULATED, root, f"again-{dtype}", "--set", "backend=cuda")
            r.check(ran.code == 0 and t.read_bytes(f"{b}/metrics.jsonl") == t.read_bytes(f"{c}/metrics.jsonl") and
                    t.tree(f"{b}/model") == t.tree(f"{c}/model"), f"{dtype}: two runs are bit-equal", ran)
        t.BINARY = EMULATED
        answers = [t.bdpo("generate", "--model", f"{a}/model", "--prompt", "abc:", "--max-tokens", "6", "--backend", be) for be in ("cuda", "cpu")]
        r.check(answers[0].code == 0 and answers[0].out == answers[1].out, "generate: the CPU's answer", answers[0])
        refused = t.bdpo("--config", os.path.join(root, "run.json"), "--set", "output=" + os.path.join(root, "x"), "--set", "memory.limit=0.001")
        r.check(refused.code == 2 and "memory" in refused.lines[-1], "a limit that nothing fits is refused", refused)
        goldens = subprocess.run([sys.executable, os.path.join(HERE, "golden_test.py"), "--binary", EMULATED, "--backend", "cuda", "--some"],
                                 capture_output=True, text=True, timeout=280)
        r.check(goldens.returncode == 0, "goldens: " + goldens.stdout.strip().split("\n")[-1], goldens.stdout[-1500:])
    print(f"{r.passed} passed, {r.failed} failed, 0 skipped")
    return r.failed > 0


if __name__ == "__main__":
    sys.exit(main())
