#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A base in 4 bits against bitsandbytes' CPU package: codes, blocks and rounding.

  test/check_nf4.py [--binary build/bdpo-train] [--keep DIR] [--verbose]
A run with model.quantization "nf4" must give the bytes of a run whose model.path holds the weights that bitsandbytes quantised and
dequantised, step by step in float32; and the job of peft on those weights. Needs torch, transformers, peft and bitsandbytes."""
import json
import os
import shutil
import sys

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
try:
    import numpy as np
    import torch
    import bitsandbytes.functional as bnb
    import peft  # noqa: F401
except ImportError as e:
    print(f"skipped: check_nf4: {e.name} is not installed")
    print("0 passed, 0 failed, 1 skipped")
    sys.exit(0)
from safetensors import safe_open
from safetensors.torch import save_file

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "..", "scripts")]
import check_lora
import compare_torch as ct
import torch_job as job
from compare_rows import FLOAT32, Report, arguments, compare_rows, read_jsonl, read_metrics, run, work_folder

torch.set_num_threads(1)
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def tensors(path):
    with safe_open(os.path.join(path, "model.safetensors"), "pt") as f:
        return {k: f.get_tensor(k) for k in f.keys()}


def in_8_bits(absmax):
    """(codes, state, mean) of scales as bitsandbytes' kernels round them. Its CPU library takes the neighbour of a code for one in 600."""
    table = bnb.create_dynamic_map().numpy()
    mean = np.float32(absmax.double().mean().item())
    x = absmax.numpy().reshape(-1) - mean
    top = np.array([np.abs(x[i:i + 256]).max() for i in range(0, len(x), 256)], dtype=np.float32)
    middle = (table[1:] + table[:-1]) / np.float32(2)
    codes = np.searchsorted(middle, x * (np.float32(1) / top).repeat(256)[:len(x)], side="left").astype(np.uint8)
    state = bnb.QuantState(absmax=torch.from_numpy(top), code=torch.from_numpy(table), blocksize=256, dtype=torch.float32)
    return torch.from_numpy(codes), state, torch.tensor(mean)


def check_scales(r):
    """Ours beside the CPU library's on random scales."""
    torch.manual_seed(5)
    w = torch.randn(4096, 1024)
    _, plain = bnb.quantize_4bit(w, blocksize=64, quant_type="nf4", compress_statistics=False)
    _, both = bnb.quantize_4bit(w, blocksize=64, quant_type="nf4", compress_statistics=True)
    codes, state, mean = in_8_bits(plain.absmax)
    off = (codes.int() - both.absmax.view(-1).int()).abs()
    r.check(torch.equal(state.absmax, both.state2.absmax) and abs(mean - both.offset) < 1e-7 and off.max() <= 1 and (off > 0).float().mean() < 0.005,
            "scales in 8 bits: bitsandbytes' CPU library", f"{off.max()} {(off > 0).float().mean():.4f} {mean} {both.offset}")


def dequantised(src, dst, double):
    """A copy of a model directory whose linear layers went through bitsandbytes."""
    shutil.copytree(src, dst)
    out = tensors(src)
    for name, w in out.items():
        if name.split(".")[-2] in LINEAR and name.endswith(".weight"):
            q, state = bnb.quantize_4bit(w.contiguous(), blocksize=64, quant_type="nf4", compress_statistics=False)
            if double:
                state.absmax, state.state2, state.offset = in_8_bits(state.absmax)
                state.nested = True
            out[name] = bnb.dequantize_4bit(q, state).reshape(w.shape)
    save_file(out, os.path.join(dst, "model.safetensors"), metadata={"format": "pt"})


def read(path):
    with open(path, "rb") as f:
        return f.read()


def write_config(cfg, path):
    with open(path, "w", encoding="utf-8") as f:
        json.dump(cfg, f, indent=1)
    return path


def logps(binary, run_json, directory, out):
    rc, _, err = run(binary, ["evaluate", "--config", run_json, "--model", directory, "--per-pair", out])
    return [x["logps/chosen"] / len(x["chosen_ids"]) for x in read_jsonl(out)] if rc == 0 else err[-300:]


def check_shape(r, binary, root, shape, four):
    c = dict(name=f"{shape}/{four}", shape=shape, loss="bdpo", model={"hidden": 64, "ffn": 192}, lora=dict(rank=4, alpha=8), preference={"lambda": 0.3},
             memory={"gradient_checkpointing": 1})
    cfg, run_json = ct.make_config(root, c)
    out, base = os.path.dirname(run_json), cfg["model"]["path"]
    plain, start = os.path.join(out, "dequantised"), os.path.join(out, "start")
    dequantised(base, plain, four == "nf4_double")
    changed = sum(not torch.equal(a, b) for a, b in zip(tensors(base).values(), tensors(plain).values()))
    check_lora.make_adapter(base, start, c["lora"], 7)
    runs = {}
    for name, path, kind in (("quantised", base, four), ("plain", plain, "none"), ("exact", base, "none")):
        sub = dict(cfg, model=dict(cfg["model"], path=path, quantization=kind, lora=dict(c["lora"], path=start)), output=os.path.join(out, name))
        runs[name] = sub, write_config(sub, os.path.join(out, name + ".json"))
        rc, _, err = run(binary, ["--config", runs[name][1]])
        if rc != 0:
            r.check(False, f"{shape}/{four}: {name}", f"exit code {rc}: {err[-500:]}")
            return
    at = lambda name, file: os.path.join(runs[name][0]["output"], file)
    for file in ("metrics.jsonl", "sft/adapter_model.safetensors", "model/adapter_model.safetensors"):
        a, b, exact = (read(at(n, file)) for n in ("quantised", "plain", "exact"))
        r.check(a == b and a != exact and changed == 14, f"{shape}/{four}: {file}: the bytes of a run on bitsandbytes' weights")
    res, options = check_lora.oracle(dict(cfg, model=dict(cfg["model"], path=plain)), plain, start)
    rows, _ = read_metrics(runs["quantised"][0]["output"])
    for stage in ("sft", "preference"):
        compare_rows(r, f"{shape}/{four}: {stage} steps in peft", [x for x in res["rows"] if x["stage"] == stage], [x for x in rows if x["stage"] == stage], options, FLOAT32, 0.0)
    check_lora.compare_adapters(r, f"{shape}/{four}: model/ adapters", at("quantised", "model"), res["final"], res["sft"], FLOAT32)
    check_merge(r, binary, shape, four, runs["quantised"], out)


def check_merge(r, binary, shape, four, quantised, out):
    """Merged into the base as the run saw it, the model is the same; into the exact one it differs by what quantisation did."""
    cfg, run_json = quantised
    found = {}
    for kind in (four, "none"):
        found[kind] = os.path.join(out, "merged-" + kind)
        rc, _, err = run(binary, ["merge", cfg["output"], "--out", found[kind], "--quantization", kind])
        if rc != 0:
            r.check(False, f"{shape}/{four}: merge", err[-300:])
            return
    adapter = logps(binary, run_json, os.path.join(cfg["output"], "model"), os.path.join(out, "a.jsonl"))
    tight, loose = (logps(binary, run_json, found[k], os.path.join(out, k + ".jsonl")) for k in (four, "none"))
    if any(isinstance(x, str) for x in (adapter, tight, loose)):
        r.check(False, f"{shape}/{four}: evaluate", f"{adapter} {tight} {loose}")
        return
    worst = lambda x: max(abs(a - b) for a, b in zip(adapter, x))
    r.check(worst(tight) < 1e-5 < worst(loose), f"{shape}/{four}: merged into the rounded base", f"{worst(tight):.1e} a token; into the exact one {worst(loose):.1e}")


def main():
    a = arguments(__doc__).parse_args()
    r = Report(a.verbose)
    with work_folder(a.keep, "bdpo-nf4-") as root:
        check_scales(r)
        for shape, four in (("qwen2", "nf4"), ("llama", "nf4"), ("qwen2", "nf4_double"), ("llama", "nf4_double")):
            check_shape(r, os.path.abspath(a.binary), root, shape, four)
        return r.last()


if __name__ == "__main__":
    sys.exit(main())
