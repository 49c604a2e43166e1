#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The memory plan tells the truth: the peak of anonymous memory of real runs is within 5 % of what `plan` says, both ways; a run that cannot fit is
refused with what would fit; what is chosen is kept by a resume. Standard library only; the program is $BDPO_TRAIN."""
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time

import tiny_job as t
import demo_data
from compare_rows import Report
from mpi_launch import launcher

ALLOWED = 0.05
MIB = 1 << 20


def write_model(path, **changes):
    """A directory without weights: runs draw them (model.init random), plans need none."""
    os.makedirs(path)
    t.write_json(f"{path}/config.json", {**t.ARCH, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6, "vocab_size": 8192,
                                         "num_attention_heads": 4, "max_position_embeddings": 1024, "initializer_range": 0.02, **changes})
    t.write_json(f"{path}/tokenizer.json", demo_data.tokenizer())
    t.write_json(f"{path}/tokenizer_config.json", {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|endoftext|>"})


def write_pairs(path, n, seed):
    rng = random.Random(seed)
    word = lambda lo, hi: "".join(rng.choice("abcdefgh") for _ in range(rng.randint(lo, hi)))
    t.write_lines(path, [{"prompt": word(10, 120) + ":", "chosen": word(20, 120), "rejected": word(20, 120)} for _ in range(n)])


def config(root, name, directory, **sections):
    c = t.make_config(root, **{"sft": None, **sections})
    c["model"] = {"path": f"{root}/{directory}", "init": "random", "dtype": "bfloat16", **sections.get("model", {})}
    c["data"] = {"train": f"{root}/train.jsonl", "max_length": 256, **sections.get("data", {})}
    c["preference"] = {"loss": "bdpo", "max_steps": 2, "batch_size": 8, **sections.get("preference", {})}
    c["output"] = f"{root}/{name}"
    c["threads"] = 2
    path = f"{root}/{name}.json"
    t.write_json(path, c)
    return path


def anonymous(pid):
    """Bytes of anonymous memory of a process, None once it is gone."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as f:
            for line in f:
                if line.startswith("RssAnon:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def run_sampled(path, *args):
    """Run to the end; the exit code, stderr, and the largest sample."""
    with tempfile.TemporaryFile() as err:
        p = subprocess.Popen([t.BINARY, "--config", path, *args], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=err)
        peak = 0
        while p.poll() is None:
            peak = max(peak, anonymous(p.pid) or 0)
            time.sleep(0.0005)
        err.seek(0)
        return p.returncode, err.read().decode("utf-8", "replace"), peak


def plan(path, *args):
    res = t.bdpo("plan", "--config", path, "--json", *args)
    return res, json.loads(res.out) if res.out.startswith("{") else {}


CASES = {  # name: model, config sections
    "float32, tied": ("tied", dict(model={"dtype": "float32"})),
    "float32, own head, 2 layers recomputed": ("untied", dict(model={"dtype": "float32"}, memory={"gradient_checkpointing": 2})),
    "float32, small micro-batches, SFT and evaluation": (
        "tied", dict(model={"dtype": "float32"}, memory={"micro_batch_tokens": 500}, sft={"max_steps": 2, "batch_size": 8}, data={"eval": "EVAL"},
                     checkpoint={"every": 1})),
    "bfloat16, tied": ("tied", {}),
    "bfloat16, own head, all layers recomputed": ("untied", dict(memory={"gradient_checkpointing": True})),
    "bfloat16, small micro-batches": ("tied", dict(memory={"micro_batch_tokens": 300, "gradient_checkpointing": 1})),
    "float32, adapters": ("tied", dict(model={"dtype": "float32", "lora": {"rank": 16}}, checkpoint={"every": 1})),
    "bfloat16, adapters": ("untied", dict(model={"lora": {"rank": 8, "targets": ["q_proj", "down_proj"]}})),
    "bfloat16, adapters, all layers recomputed": ("qwen3", dict(model={"lora": {"rank": 64}}, memory={"gradient_checkpointing": True}, sft={"max_steps": 2, "batch_size": 8})),
    "float32, base in 4 bits": ("untied", dict(model={"dtype": "float32", "quantization": "nf4", "lora": {"rank": 16}})),
    "bfloat16, base in 4 bits, SFT and evaluation": (
        "tied", dict(model={"quantization": "nf4", "lora": {"rank": 8}}, sft={"max_steps": 2, "batch_size": 8}, data={"eval": "EVAL"})),
    "bfloat16, base in 4 bits, all layers recomputed": ("qwen3", dict(model={"quantization": "nf4_double", "lora": {"rank": 8}}, memory={"gradient_checkpointing": True})),
    "bfloat16, moments in bfloat16": ("tied", dict(optimizer={"moments": "bfloat16"}, checkpoint={"every": 1})),
    "bfloat16, moments in bfloat16, no master": ("untied", dict(optimizer={"moments": "bfloat16", "master": "none"}, checkpoint={"every": 1})),
    "bfloat16, query and key norms, steps of many rows": ("qwen3", dict(preference={"batch_size": 30}, checkpoint={"every": 1})),
}


def test_peaks(r, root):
    for name, (directory, sections) in CASES.items():
        sections = json.loads(json.dumps(sections).replace('"EVAL"', json.dumps(f"{root}/eval.jsonl")))
        path = config(root, re.sub("[^a-z0-9]+", "-", name), directory, **sections)
        res, p = plan(path)
        code, err, peak = run_sampled(path)
        if res.code or code:
            r.check(False, name, f"{res} {err[-400:]}")
            continue
        off = p["memory_bytes_total"] / peak - 1
        r.check(abs(off) <= ALLOWED, f"{name}: the plan is {100 * off:+.1f} % off",
                f"plan {p['memory_bytes_total'] / MIB:.1f} MiB, peak {peak / MIB:.1f} MiB" if abs(off) > ALLOWED else "")
        r.check(sum(p["memory_bytes"].values()) == p["memory_bytes_total"], f"{name}: the parts add up")


def read(path):
    with open(path, encoding="utf-8") as f:
        return f.read()


def test_limits(r, root):
    """Between what everything kept and what everything recomputed takes, some layers are recomputed; below, the run is refused."""
    path = config(root, "limits", "tied", memory={"micro_batch_tokens": 1024, "keep_logits": False})
    whole = plan(path)[1]["memory_bytes_total"]
    bare = plan(path, "--set", "memory.gradient_checkpointing=true")[1]["memory_bytes_total"]
    limit = f"memory.limit={(0.4 * whole + 0.6 * bare) / 2**30}"
    res, p = plan(path, "--set", limit)
    r.check(res.code == 0 and p["memory_bytes_total"] <= p["memory_bytes_limit"] and 0 < p["gradient_checkpointing"] < 6,
            "some layers are recomputed where not all fit", f"{res}" if res.code else f"{p.get('gradient_checkpointing')}")
    code, err, peak = run_sampled(path, "--set", limit)
    r.check(code == 0 and peak <= 1.05 * p["memory_bytes_limit"], "and the run keeps to the limit", err[-300:] if code else f"{peak}")
    code, err, _ = run_sampled(path, "--set", f"output={root}/kept")
    r.check(code == 0 and read(f"{root}/limits/metrics.jsonl") == read(f"{root}/kept/metrics.jsonl"),
            "with the same bits as where all is kept", err[-300:] if code else "")
    stored = json.loads(read(f"{root}/limits/config.json"))["memory"]
    r.check(stored["gradient_checkpointing"] == p["gradient_checkpointing"] and stored["micro_batch_tokens"] == p["micro_batch_tokens"],
            "config.json holds what was chosen", f"{stored}")

    path = config(root, "logits", "tied")
    lists = [plan(path, "--set", f"memory.keep_logits={word}")[1] for word in ("true", "false", '"auto"')]
    kept, anew, chosen = (p["memory_bytes"]["head"] for p in lists)
    code, err, peak = run_sampled(path)
    r.check(kept > 1.2 * anew and chosen == kept and lists[2]["keep_logits"] == 1 and code == 0 and abs(peak / lists[0]["memory_bytes_total"] - 1) <= ALLOWED,
            "logits are kept where that fits", f"{kept}, {anew}, {chosen}; {peak} of {lists[0]['memory_bytes_total']}")
    held = f"memory.limit={0.5 * (lists[0]['memory_bytes_total'] + lists[1]['memory_bytes_total']) / 2**30}"
    res = t.bdpo("--config", path, "--set", held, "--set", "memory.keep_logits=true", "--set", "memory.gradient_checkpointing=false",
                 "--set", f"memory.micro_batch_tokens={lists[0]['micro_batch_tokens']}", "--set", f"output={root}/refused")
    r.check(res.code == 2 and "it fits with memory.keep_logits false" in res.err, "refused with logits kept, it says so", f"{res}")

    path = f"{root}/limits.json"
    small = f"memory.limit={0.5 * bare / 2**30}"
    code, err, _ = run_sampled(path, "--set", small, "--set", f"output={root}/refused")
    r.check(code == 2 and err.count("error:") == 1 and "memory: this run takes" in err and not os.path.exists(f"{root}/refused"),
            "a run that cannot fit is refused, and nothing is written", f"exit code {code}: {err[-300:]}")
    res, p = plan(path, "--set", small)
    r.check(res.code == 2 and p["fits"] is False, "its plan is printed all the same", f"{res}")
    res = t.bdpo("--config", path, "--set", f"memory.limit={1.05 * bare / 2**30}", "--set", "memory.gradient_checkpointing=false",
                 "--set", f"output={root}/refused")
    layers, tokens = re.search(r"gradient_checkpointing (\d+) \(of 6 layers\)", res.err), re.search(r"micro_batch_tokens (\d+)", res.err)
    r.check(res.code == 2 and layers and tokens, "refused for what is given, it says what fits", f"{res}")
    for found, key in ((layers, "gradient_checkpointing"), (tokens, "micro_batch_tokens")):
        res, p = plan(path, "--set", f"memory.limit={1.05 * bare / 2**30}", "--set", "memory.gradient_checkpointing=false",
                      "--set", f"memory.{key}={found[1] if found else 1}")
        r.check(res.code == 0 and p["fits"], f"and that fits: {key} {found and found[1]}", f"{res}" if res.code else "")


def test_resume(r, root):
    """A run that was stopped goes on with its sizes, whatever the limit is now."""
    path = config(root, "stopped", "tied", preference={"max_steps": 4})
    free = plan(path)[1]
    bare = plan(path, "--set", "memory.gradient_checkpointing=true", "--set", "memory.micro_batch_tokens=256")[1]["memory_bytes_total"]
    res = t.bdpo("--config", path, "--set", f"memory.limit={1.03 * bare / 2**30}", "--set", "max_hours=1e-9")
    first = json.loads(read(f"{root}/stopped/config.json"))["memory"]
    keys = ("micro_batch_tokens", "gradient_checkpointing", "keep_logits")
    differ = all(first[k] != free[k] for k in ("micro_batch_tokens", "keep_logits"))
    r.check(res.code == 75 and differ, "a run with little memory, stopped", f"{first}, exit code {res.code}")
    res = t.bdpo("--config", path)
    second = json.loads(read(f"{root}/stopped/config.json"))["memory"]
    r.check(res.code == 0 and [first[k] for k in keys] == [second[k] for k in keys], "goes on with the same sizes", f"{second}, exit code {res.code}")
    res = t.bdpo("--config", path, "--set", f"output={root}/alone", "--set", f"memory.micro_batch_tokens={first['micro_batch_tokens']}",
                 "--set", "memory.keep_logits=false")
    r.check(res.code == 0 and read(f"{root}/alone/metrics.jsonl") == read(f"{root}/stopped/metrics.jsonl"), "to the bits of a run left alone",
            f"{res}" if res.code else "")


def test_words(r, root):
    path = config(root, "words", "tied", sft={"epochs": 1, "batch_size": 8}, checkpoint={"every": 5})
    res = t.bdpo("plan", "--config", path)
    wanted = ["weights", "master", "moments", "activations", "program and tokenizer", "limit", "micro_batch_tokens", "TFLOP", "checkpoints", "sft/ and model/"]
    missing = [w for w in wanted if w not in res.out]
    r.check(res.code == 0 and not missing and not os.path.exists(f"{root}/words"), "the table", f"missing: {missing} {res}")
    res = t.bdpo("plan", "--config", path, "--device", "h200")
    r.check(res.code == 0 and "on one NVIDIA H200" in res.out and "on the device" in res.out, "the table for a device", f"{res}")
    res = t.bdpo("plan", "--config", path, "--device", "h300")
    r.check(res.code == 2 and "h200" in res.err, "a device that nobody knows", f"{res}")
    res, p = plan(path, "--set", "data.train=nowhere.jsonl")
    r.check(res.code == 0 and not p["stages"][0]["lengths_known"] and p["stages"][0]["flops_per_example"] > 0,
            "without the data the rows are taken to be long", f"{res}")
    res = t.bdpo("plan", "--config", path, "--set", "data.train=nowhere.jsonl")
    r.check(res.code == 0 and "the data are not there" in res.out, "and the table says so", f"{res}")
    res = t.bdpo("--config", path)
    r.check(res.code == 0 and "memory:" in res.err and "micro-batches of" in res.err, "a run begins with its plan", f"{res}")


def test_ranks(r, root):
    """plan --ranks 2 is what rank 0 of two says; more ranks have smaller shares of what ZeRO-2 divides."""
    path = config(root, "ranks", "tied", dist={"gradients": "local"})
    with open(path, encoding="utf-8") as f:
        c = json.load(f)
    del c["threads"]
    t.write_json(path, c)
    one, four, device = (plan(path, *a)[1] for a in ((), ("--ranks", "4"), ("--ranks", "4", "--device", "3090")))
    a, b = one["memory_bytes"], four["memory_bytes"]
    r.check(b["weights"] == a["weights"] and all(0.24 < b[k] / a[k] < 0.27 for k in ("master", "moments")) and a["communication"] == 0 < b["communication"],
            "four ranks share master weights and moments", f"{a} {b}")
    r.check(device["ranks"] == 4 and device["stages"][0]["hours"] < plan(path, "--device", "3090")[1]["stages"][0]["hours"] / 3.9, "four devices are four times as fast")
    res = t.bdpo("plan", "--config", path, "--ranks", "0")
    r.check(res.code == 2 and "--ranks: 0 is outside" in res.err, "no ranks", f"{res}")
    words, reason = launcher(t.BINARY)
    if not words:
        print(f"skipped: plan_test ranks: {reason}")
        r.skipped += 1
        return
    table = dict(re.findall(r"^  ([a-z ]+?)  +([0-9.]+ [KMG]?i?B)  ", t.bdpo("plan", "--config", path, "--ranks", "2").out, re.M))
    run = subprocess.run([*words, "-np", "2", t.BINARY, "--config", path], capture_output=True, text=True, timeout=120, check=False)
    said = dict(re.findall(r"([a-z][a-z ]+?) ([0-9.]+ [KMG]?i?B)(?=,|$)", re.search(r"memory: .* at the peak.*\n +(.*)", run.stderr)[1]))
    r.check(run.returncode == 0 and len(said) > 8 and all(table.get(k) == v for k, v in said.items()), "two ranks take what plan --ranks 2 says", f"{said} {table} {run.stderr[-300:]}")


def main():
    root = tempfile.mkdtemp(prefix="plan_test-")
    r = Report()
    try:
        write_model(f"{root}/tied")
        write_model(f"{root}/untied", tie_word_embeddings=False, num_hidden_layers=4)
        write_model(f"{root}/qwen3", model_type="qwen3", architectures=["Qwen3ForCausalLM"], head_dim=64)
        write_pairs(f"{root}/train.jsonl", 60, 1)
        write_pairs(f"{root}/eval.jsonl", 12, 2)
        test_peaks(r, root)
        test_limits(r, root)
        test_resume(r, root)
        test_words(r, root)
        test_ranks(r, root)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return r.last()


if __name__ == "__main__":
    sys.exit(main())
