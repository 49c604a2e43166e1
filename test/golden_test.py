#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Run the jobs of test/goldens in float32 and in bfloat16, and compare with what PyTorch got in float32 (scripts/golden.py). Standard library only.

  golden_test.py [--binary build/bdpo-train] [--verbose]      $BDPO_TRAIN is the default of --binary where it is set
  golden_test.py --twice [...]                                each job two times in place of that: metrics.jsonl and model/ have the same bytes
                                                              (without it the first job of each model does so)
"""
import argparse
import array
import json
import math
import os
import random
import shutil
import struct
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "..", "scripts"), HERE]  # HERE: in a bundle
from compare_rows import BFLOAT16, FLOAT32, Report, compare_pairs, compare_rows, read_jsonl, read_metrics, run, slope, strip_eval

SKETCH = 8  # signed sums of each tensor
SAMPLES = 4  # its first elements, for a message that says more


def sketch(name, values):
    """SKETCH sums of the values under random signs (a function of name and number), then the first SAMPLES values. The squared
    difference of two sketches' sums is on average the squared L2 difference of the tensors, wherever it lies."""
    out = []
    for k in range(SKETCH):
        bits = bin(random.Random(f"{name}/{k}").getrandbits(len(values)) | 1 << len(values))[3:]
        out.append(math.fsum(v if b == "1" else -v for v, b in zip(values, bits)))
    return out + list(values[:SAMPLES])


def read_safetensors(path):
    """{name: list of floats} of one file (F32 or BF16)."""
    with open(path, "rb") as f:
        blob = f.read()
    (n,) = struct.unpack("<Q", blob[:8])
    out = {}
    for name, t in json.loads(blob[8:8 + n]).items():
        if name == "__metadata__":
            continue
        a, b = t["data_offsets"]
        raw = blob[8 + n + a:8 + n + b]
        if t["dtype"] == "BF16":  # the upper half of a float
            raw = b"".join(b"\0\0" + raw[i:i + 2] for i in range(0, len(raw), 2))
        elif t["dtype"] != "F32":
            raise ValueError(f"{name}: {t['dtype']}")
        v = array.array("f", raw)
        if sys.byteorder == "big":
            v.byteswap()
        out[name] = list(v)
    return out


def compare_weights(r, what, directory, want, limits):
    """Global L2 difference, estimated by the sketches, as a share of the update's."""
    try:
        got = {}
        for name in sorted(os.listdir(directory)):
            if name.endswith(".safetensors"):
                got.update(read_safetensors(os.path.join(directory, name)))
    except (OSError, ValueError, KeyError) as e:
        r.check(False, what, f"{directory}: {e}")
        return
    if set(got) != set(want):
        r.check(False, what, f"tensors differ: missing {sorted(set(want) - set(got))}, unexpected {sorted(set(got) - set(want))}")
        return
    moved, diff = 0.0, {}
    for name, (n, expected, update) in want.items():
        if len(got[name]) != n:
            r.check(False, what, f"{name} has {len(got[name])} elements, expected {n}")
            return
        s = sketch(name, got[name])
        moved += update * update
        diff[name] = sum((a - b) ** 2 for a, b in zip(s[:SKETCH], expected[:SKETCH])) / SKETCH
    share = math.sqrt(sum(diff.values()) / moved)
    most = max(diff, key=diff.get)
    r.check(share <= limits.weights, what, f"L2 difference {share:.2e} of the update (limit {limits.weights:g}), most in {most}")
    if share > limits.weights:
        print(f"       {most}: {got[most][:SAMPLES]}, expected {want[most][1][SKETCH:]}")


def check_start(r, what, rows):
    """Where the policy starts as the reference, the first step's rewards and ratios are 0 to the bit."""
    r.check([rows[0][f"rewards/{s}"] for s in ("chosen", "rejected", "margins")] == [0, 0, 0] and
            all(rows[0][f"logps/{s}"] == rows[0][f"ref_logps/{s}"] for s in ("chosen", "rejected")), what)


def run_job(r, what, binary, case, out, g, dtype, backend):
    """(config, its file), or None where the job failed."""
    cfg = json.loads(json.dumps(g["config"]).replace("@CASE@", case).replace("@OUT@", out))
    cfg["model"]["dtype"] = dtype
    cfg["backend"] = backend
    cfg["output"] += "-" + dtype
    run_json = os.path.join(out, f"{g['name']}-{dtype}.json")
    with open(run_json, "w", encoding="utf-8") as f:
        json.dump(cfg, f, indent=1)
    rc, stdout, stderr = run(binary, ["--config", run_json])
    if rc != 0:
        r.check(False, f"{what}: run", f"exit code {rc}: {(stderr or stdout)[-400:]}")
        return None
    return cfg, run_json


def written(output):
    """{name: bytes} of what has to be the same in two runs."""
    names = ["metrics.jsonl"] + [os.path.join("model", x) for x in sorted(os.listdir(os.path.join(output, "model")))]
    out = {}
    for name in names:
        with open(os.path.join(output, name), "rb") as f:
            out[name] = f.read()
    return out


def run_twice(r, binary, case, out, g, dtype, backend):
    what, sides = f"{os.path.basename(case)}/{g['name']}/{dtype}: two runs", []
    for number in "12":
        os.makedirs(os.path.join(out, number), exist_ok=True)
        ran = run_job(r, what, binary, case, os.path.join(out, number), g, dtype, backend)
        if not ran:
            return
        sides.append(written(ran[0]["output"]))
    differ = sorted(k for k in sides[0].keys() | sides[1].keys() if sides[0].get(k) != sides[1].get(k))
    r.check(not differ, f"{what} have the same bytes in {len(sides[0])} files", ", ".join(differ))
    r.check(any(k.endswith(".safetensors") for k in sides[0]), f"{what}: weights are among them")


def run_golden(r, binary, case, out, g, dtype, backend):
    what, limits = f"{os.path.basename(case)}/{g['name']}/{dtype}", BFLOAT16 if dtype == "bfloat16" else FLOAT32
    ran = run_job(r, what, binary, case, out, g, dtype, backend)
    if not ran:
        return
    cfg, run_json = ran
    rows, held = read_metrics(cfg["output"])
    steep = slope(cfg["preference"]["loss"], g["options"]) if limits is BFLOAT16 else 0.0
    for stage in ("sft", "preference"):
        compare_rows(r, f"{what}: {stage} steps", g[stage], [x for x in rows if x.get("stage") == stage], g["options"], limits, steep)
    if "ref_logps/chosen" in g["preference"][0] and "reference" not in cfg:
        check_start(r, f"{what}: the policy starts as the reference", [x for x in rows if x.get("stage") == "preference"])
    compare_rows(r, f"{what}: eval/ row at the end", [g["eval"]], [strip_eval(x) for x in held[-1:]], g["options"], limits, steep)
    model = os.path.join(cfg["output"], "model")
    compare_weights(r, f"{what}: model/ weights", model, g["weights"], limits)
    per_pair = os.path.join(out, f"{g['name']}-{dtype}.pairs.jsonl")
    rc, _, stderr = run(binary, ["evaluate", "--config", run_json, "--model", model, "--per-pair", per_pair])
    if rc != 0:
        r.check(False, f"{what}: evaluate", f"exit code {rc}: {stderr[-400:]}")
        return
    compare_pairs(r, f"{what}: evaluate --per-pair", g["pairs"], read_jsonl(per_pair), limits)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--binary", default=os.environ.get("BDPO_TRAIN", "build/bdpo-train"))
    ap.add_argument("--verbose", action="store_true", help="every key of every comparison")
    ap.add_argument("--backend", default="cpu", help="cpu (the default) or cuda")
    ap.add_argument("--twice", action="store_true", help="two runs of each job against each other, in place of PyTorch's results")
    ap.add_argument("--some", action="store_true", help="one job of each model")
    a = ap.parse_args()
    r = Report(a.verbose)
    binary = os.path.abspath(a.binary)
    if not os.access(binary, os.X_OK):
        r.check(False, "binary", f"{a.binary} is not there; build it with make, or give --binary")
        return r.last()
    goldens = os.path.join(HERE, "goldens")
    for case in sorted(os.listdir(goldens)):
        case = os.path.join(goldens, case)
        with open(os.path.join(case, "golden.json"), encoding="utf-8") as f:
            golden = json.load(f)
        out = tempfile.mkdtemp(prefix="bdpo-golden-")
        try:
            for g in golden["runs"][:1 if a.some else None]:
                for dtype in ("float32", "bfloat16"):
                    (run_twice if a.twice else run_golden)(r, binary, case, out, g, dtype, a.backend)
            if not a.twice and not a.some:
                run_twice(r, binary, case, out, golden["runs"][0], "float32", a.backend)
        finally:
            shutil.rmtree(out, ignore_errors=True)
    return r.last()


if __name__ == "__main__":
    sys.exit(main())
