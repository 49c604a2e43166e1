#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Tokens per second of `bdpo-train generate` and of transformers' generate, side by side: one model, the same prompts in the same batches, greedy, KV caches.

usage: bench_generate.py --model DIR --prompts FILE.jsonl [--rows 64] [--batch 16] [--max-tokens 128] [--dtype float32|bfloat16] [--threads 2] [--rounds 3]

FILE.jsonl has string prompts ("prompt" or "question"). Loading is left out on both sides, tokens of an answer are counted up to its end. Each round measures one after the other;
printed are all rounds and the medians' ratio. transformers gets each batch padded on the left, and all its rows run until the last of them has ended. Needs torch and
transformers; $BDPO_TRAIN or build/bdpo-train is run."""
import argparse
import json
import os
import re
import statistics
import subprocess
import tempfile
import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def ours(a, prompts, folder):
    path, out = os.path.join(folder, "prompts.jsonl"), os.path.join(folder, "out.jsonl")
    with open(path, "w", encoding="utf-8") as f:
        f.writelines(json.dumps({"prompt": p}) + "\n" for p in prompts)
    done = subprocess.run([a.binary, "generate", "--model", a.model, "--prompts", path, "--out", out, "--max-tokens", str(a.max_tokens), "--batch",
                           str(a.batch), "--dtype", a.dtype, "--threads", str(a.threads)], stderr=subprocess.PIPE, text=True, check=True)
    tokens, seconds = re.findall(r"rows, (\d+) tokens in ([0-9.e+]+) s", done.stderr)[-1]
    with open(out, encoding="utf-8") as f:
        return int(tokens), float(seconds), [json.loads(line)["tokens"] for line in f]


def theirs(a, model, tok, prompts):
    tokens, answers, start = 0, [], time.perf_counter()
    for i in range(0, len(prompts), a.batch):
        x = tok(prompts[i:i + a.batch], return_tensors="pt", padding=True)
        with torch.inference_mode():
            y = model.generate(**x, do_sample=False, max_new_tokens=a.max_tokens, pad_token_id=tok.pad_token_id)
        for row in y[:, x["input_ids"].shape[1]:].tolist():
            n = row.index(model.generation_config.eos_token_id) if model.generation_config.eos_token_id in row else len(row)
            answers.append(row[:n])
            tokens += n + (n < len(row))
    return tokens, time.perf_counter() - start, answers


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", required=True)
    p.add_argument("--prompts", required=True)
    p.add_argument("--rows", type=int, default=64)
    p.add_argument("--batch", type=int, default=16)
    p.add_argument("--max-tokens", type=int, default=128)
    p.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--rounds", type=int, default=3)
    a = p.parse_args()
    a.binary = os.path.abspath(os.environ.get("BDPO_TRAIN", os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "build", "bdpo-train")))
    torch.set_num_threads(a.threads)
    tok = AutoTokenizer.from_pretrained(a.model, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(a.model, dtype=getattr(torch, a.dtype)).eval()
    if model.generation_config.eos_token_id is None:
        model.generation_config.eos_token_id = tok.eos_token_id
    tok.pad_token = tok.pad_token or tok.eos_token
    with open(a.prompts, encoding="utf-8") as f:
        rows = [json.loads(line) for line in f][:a.rows]
    prompts = [r.get("prompt", r.get("question")) for r in rows]
    rates = {"bdpo-train": [], "transformers": []}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(a.rounds):
            n, seconds, mine = ours(a, prompts, folder)
            rates["bdpo-train"].append(n / seconds)
            m, took, other = theirs(a, model, tok, prompts)
            rates["transformers"].append(m / took)
            same = sum(x == y for x, y in zip(mine, other))
            print(f"bdpo-train {n} tokens in {seconds:.2f} s, transformers {m} in {took:.2f} s; {same} of {len(mine)} answers equal", flush=True)
    mid = {k: statistics.median(v) for k, v in rates.items()}
    print(f"bdpo-train {mid['bdpo-train']:.0f} tokens/s, transformers {mid['transformers']:.0f} tokens/s: {mid['bdpo-train'] / mid['transformers']:.1f}x")


if __name__ == "__main__":
    main()
