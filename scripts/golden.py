#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Make test/goldens: tiny models, pairs, and what PyTorch (torch_job.py) gets from them. test/golden_test.py compares without PyTorch.

  golden.py [--out test/goldens]      needs torch, transformers, tokenizers, safetensors
Each case has model/ (and ref/), train.jsonl, eval.jsonl and golden.json: {"runs": [{name, config, sft, preference, eval, pairs, weights}]}.
Paths in a config start with @CASE@ (the case's directory) or @OUT@ (a directory of the test's own).
"""
import argparse
import json
import os
import shutil
import sys

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
import torch

import tiny_models as tiny
import torch_job as job

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "test"))
from golden_test import sketch

torch.set_num_threads(1)
SMALL = dict(hidden=16, ffn=24, layers=2, vocab=288, tok_vocab=280, std=0.2)
CASES = [
    dict(name="qwen2", shape="qwen2", model=dict(SMALL), forms=("messages", "strings", "hh"), runs=[
        dict(name="bdpo", preference={"loss": "bdpo", "lambda": 0.3}, memory={"micro_batch_tokens": 64}),
        dict(name="dpo", preference={"loss": "dpo", "label_smoothing": 0.1, "weight_decay": 1.0, "schedule": "cosine", "warmup_ratio": 0.25}),
        dict(name="minor_dpo", preference={"loss": "minor_dpo"}, ref=True),
    ]),
    dict(name="llama-bf16", shape="llama", model=dict(SMALL, dtype=torch.bfloat16, spelling=4, jinja_file=True, max_shard="12KB"),
         forms=("turns", "strings", "ultrafeedback"), runs=[
        dict(name="dpo_nll", preference={"loss": "dpo_nll", "alpha": 0.5}),
        dict(name="orpo", preference={"loss": "orpo", "beta": 0.4, "schedule": "constant"}, memory={"micro_batch_tokens": 1}),
    ]),
    dict(name="qwen3", shape="qwen3", model=dict(SMALL, arch={"head_dim": 12}), forms=("messages", "system"), runs=[
        dict(name="dpop", preference={"loss": "dpop"}, ref=True),
        dict(name="slic", preference={"loss": "slic", "beta": 0.7, "batch_size": 3}, memory={"micro_batch_tokens": 200}),
        dict(name="sppo", preference={"loss": "sppo", "max_steps": 5}),
    ]),
]


def run_config(c, run):
    cfg = {
        "model": {"path": "@CASE@/model", "dtype": "float32"},
        "data": {"train": "@CASE@/train.jsonl", "eval": "@CASE@/eval.jsonl", "max_length": 96},
        "sft": {"epochs": 1, "learning_rate": 1e-3, "batch_size": 4, "shuffle": False},
        "preference": {"epochs": 2, "learning_rate": 1e-3, "batch_size": 4, "shuffle": False, **run["preference"]},
        "output": f"@OUT@/{run['name']}", "cache_dir": "@OUT@/cache", "backend": "cpu",
    }
    if run.get("ref"):
        cfg["reference"] = {"path": "@CASE@/ref"}
    if "memory" in run:
        cfg["memory"] = run["memory"]
    return cfg


def resolve(x, case):
    """The config with @CASE@ put in; the oracle writes nothing, so that @OUT@ stays."""
    return json.loads(json.dumps(x).replace("@CASE@", case))


def short(x):
    """Floats to 9 digits, in place of 17."""
    if isinstance(x, float):
        return float(f"{x:.9g}")
    if isinstance(x, dict):
        return {k: short(v) for k, v in x.items()}
    return [short(v) for v in x] if isinstance(x, list) else x


def sketches(weights, start):
    """{name: [elements, the sketch of the weights, L2 of the update]}."""
    return {n: [w.numel(), sketch(n, w.flatten().tolist()), (w.double() - start[n].double()).norm().item()] for n, w in sorted(weights.items())}


def make_case(out, c):
    d = os.path.join(out, c["name"])
    shutil.rmtree(d, ignore_errors=True)
    os.makedirs(d)
    family = tiny.SHAPES[c["shape"]]["family"]
    model = tiny.make_model(os.path.join(d, "model"), c["shape"], seed=21, **c["model"])
    if any(r.get("ref") for r in c["runs"]):
        tiny.perturb_model(model, os.path.join(d, "ref"), seed=22)
        for f in ("tokenizer.json", "tokenizer_config.json"):
            os.remove(os.path.join(d, "ref", f))
    for f in ("model", "ref"):
        name = os.path.join(d, f, "generation_config.json")
        if os.path.exists(name):
            os.remove(name)
    tiny.write_jsonl(os.path.join(d, "train.jsonl"), tiny.make_pairs(41, 10, family, c["forms"]))
    tiny.write_jsonl(os.path.join(d, "eval.jsonl"), tiny.make_pairs(42, 4, family, c["forms"]))
    runs, sft = [], None
    for r in c["runs"]:
        template = run_config(c, r)
        cfg = resolve(template, d)
        sft = sft or job.run_sft(cfg)
        res = job.run_job(cfg, sft)
        lines = [dict(x, file=os.path.basename(x["file"])) for x in res["eval_lines"]]
        runs.append(short(dict(name=r["name"], config=template, options=job.loss_options(cfg["preference"]),
                               sft=[x for x in res["rows"] if x["stage"] == "sft"], preference=[x for x in res["rows"] if x["stage"] == "preference"],
                               eval=res["eval"], pairs=lines, weights=sketches(res["final"], res["sft"]))))
    with open(os.path.join(d, "golden.json"), "w", encoding="utf-8") as f:
        rows = [json.dumps(r, separators=(",", ":")) for r in runs]
        f.write('{"made_with": "torch %s",\n"runs": [\n%s\n]}\n' % (torch.__version__.split("+")[0], ",\n".join(rows)))


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--out", default="test/goldens")
    a = ap.parse_args()
    for c in CASES:
        make_case(a.out, c)
        d = os.path.join(a.out, c["name"])
        size = sum(os.path.getsize(os.path.join(p, f)) for p, _, fs in os.walk(d) for f in fs)
        print(f"{d}: {size / 1024:.0f} KiB")


if __name__ == "__main__":
    sys.exit(main())
