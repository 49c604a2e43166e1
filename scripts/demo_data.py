#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Make what `make demo` trains on, with the standard library alone: a task whose answers are right or wrong.

usage: demo_data.py OUT_DIR [--seeds N]

  OUT_DIR/train.jsonl         pairs {"prompt": "sort hdqa:", "chosen": "adhq", "rejected": a near miss}
  OUT_DIR/heldout.jsonl       pairs of words that are not in train.jsonl
  OUT_DIR/untrained-S/        for each seed S a Hugging Face model directory: a small Qwen2 with random weights and a
                              tokenizer with one token a byte

The same files come out on every machine and in every run.
"""
import argparse
import json
import os
import random
import struct

TRAIN, HELDOUT = 8000, 400
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SHORTEST, LONGEST = 4, 8
CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "initializer_range": 0.05,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "attention_dropout": 0.0,
    "vocab_size": 259,
    "bos_token_id": 256,
    "eos_token_id": 256,
    "torch_dtype": "float32",
}
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def near_miss(rng, answer):
    """A wrong answer that looks right: two neighbours swapped, one letter changed, or one left out."""
    while True:
        letters = list(answer)
        i = rng.randrange(len(letters))
        kind = rng.randrange(3)
        if kind == 0 and i + 1 < len(letters):
            letters[i], letters[i + 1] = letters[i + 1], letters[i]
        elif kind == 1:
            letters[i] = rng.choice(LETTERS)
            letters.sort()
        elif kind == 2:
            del letters[i]
        wrong = "".join(letters)
        if wrong != answer:
            return wrong


def pairs():
    rng = random.Random(20250101)
    seen, rows = set(), []
    while len(rows) < TRAIN + HELDOUT:
        word = "".join(rng.choice(LETTERS) for _ in range(rng.randint(SHORTEST, LONGEST)))
        if word in seen:
            continue
        seen.add(word)
        answer = "".join(sorted(word))
        rows.append({"prompt": f"sort {word}:", "chosen": answer, "rejected": near_miss(rng, answer)})
    return rows[HELDOUT:], rows[:HELDOUT]


def byte_letters():
    """GPT-2's table: the character that stands for each byte in a byte-level vocabulary."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {b: chr(b) for b in plain}
    for n, b in enumerate(b for b in range(256) if b not in table):
        table[b] = chr(256 + n)
    return [table[b] for b in range(256)]


def tokenizer():
    """tokenizer.json of a byte-level BPE without merges: token b is byte b, then the special tokens."""
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": 256 + i, "content": s, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": True}
            for i, s in enumerate(SPECIALS)
        ],
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {c: b for b, c in enumerate(byte_letters())},
            "merges": [],
        },
    }


def tensors(config=None):
    """Names, shapes and kinds of the tensors of a Qwen2 of CONFIG's form, as transformers names them."""
    config = config or CONFIG
    c, f = config["hidden_size"], config["intermediate_size"]
    kv = c // config["num_attention_heads"] * config["num_key_value_heads"]
    yield "model.embed_tokens.weight", (config["vocab_size"], c), "random"
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        yield layer + "input_layernorm.weight", (c,), "one"
        for name, rows in (("q", c), ("k", kv), ("v", kv)):
            yield f"{layer}self_attn.{name}_proj.weight", (rows, c), "random"
            yield f"{layer}self_attn.{name}_proj.bias", (rows,), "zero"
        yield layer + "self_attn.o_proj.weight", (c, c), "random"
        yield layer + "post_attention_layernorm.weight", (c,), "one"
        yield layer + "mlp.gate_proj.weight", (f, c), "random"
        yield layer + "mlp.up_proj.weight", (f, c), "random"
        yield layer + "mlp.down_proj.weight", (c, f), "random"
    yield "model.norm.weight", (c,), "one"


def write_weights(path, seed):
    rng = random.Random(seed)
    header, data = {"__metadata__": {"format": "pt"}}, []
    at = 0
    for name, shape, kind in tensors():
        n = shape[0] * (shape[1] if len(shape) > 1 else 1)
        if kind == "random":
            values = [rng.gauss(0.0, CONFIG["initializer_range"]) for _ in range(n)]
        else:
            values = [1.0 if kind == "one" else 0.0] * n
        data.append(struct.pack(f"<{n}f", *values))
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, at + 4 * n]}
        at += 4 * n
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + b"".join(data))


def write_json(path, value):
    with open(path, "w", encoding="utf-8") as f:
        json.dump(value, f, indent=2, ensure_ascii=False)
        f.write("\n")


def main():
    args = argparse.ArgumentParser(description="Make the demo's data and untrained models.")
    args.add_argument("out")
    args.add_argument("--seeds", type=int, default=3)
    args = args.parse_args()
    os.makedirs(args.out, exist_ok=True)
    for name, rows in zip(("train", "heldout"), pairs()):
        with open(os.path.join(args.out, name + ".jsonl"), "w", encoding="utf-8") as f:
            f.writelines(json.dumps(row) + "\n" for row in rows)
    for seed in range(1, args.seeds + 1):
        model = os.path.join(args.out, f"untrained-{seed}")
        os.makedirs(model, exist_ok=True)
        write_json(os.path.join(model, "config.json"), CONFIG)
        write_json(os.path.join(model, "tokenizer.json"), tokenizer())
        write_json(os.path.join(model, "tokenizer_config.json"), {
            "tokenizer_class": "Qwen2Tokenizer", "add_prefix_space": False, "add_bos_token": False,
            "bos_token": None, "eos_token": SPECIALS[0], "pad_token": SPECIALS[0], "model_max_length": 64})
        write_weights(os.path.join(model, "model.safetensors"), seed)


if __name__ == "__main__":
    main()
