#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Join GPT-2's encoder.json and vocab.bpe, as OpenAI published them, into tokenizer.json and tokenizer_config.json.

  scripts/gpt2_tokenizer.py DIR OUT      DIR/encoder.json, DIR/vocab.bpe -> OUT/tokenizer.json, OUT/tokenizer_config.json
"""
import argparse
import json
import os
import sys

END = "<|endoftext|>"


def read_merges(path):
    with open(path, encoding="utf-8") as f:
        lines = f.read().split("\n")
    if lines and lines[0].startswith("#version"):
        lines = lines[1:]
    merges = [line for line in lines if line]
    for n, line in enumerate(merges):
        if len(line.split(" ")) != 2:
            sys.exit(f"{path}: merge {n + 1} is not two tokens with a space between them: {line!r}")
    return merges


def tokenizer(vocab, merges):
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": vocab[END], "content": END, "single_word": False, "lstrip": False, "rstrip": False,
                          "normalized": True, "special": True}],
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": {**level, "trim_offsets": False},
        "decoder": level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
                  "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False, "vocab": vocab, "merges": merges},
    }


def write_json(path, value):
    with open(path, "w", encoding="utf-8") as f:
        json.dump(value, f, ensure_ascii=False)
        f.write("\n")


def main():
    args = argparse.ArgumentParser(description="Join GPT-2's encoder.json and vocab.bpe into a tokenizer.json.")
    args.add_argument("dir")
    args.add_argument("out")
    args = args.parse_args()
    with open(os.path.join(args.dir, "encoder.json"), encoding="utf-8") as f:
        vocab = json.load(f)
    if END not in vocab:
        sys.exit(f"{args.dir}/encoder.json: no {END} in it")
    os.makedirs(args.out, exist_ok=True)
    merges = read_merges(os.path.join(args.dir, "vocab.bpe"))
    write_json(os.path.join(args.out, "tokenizer.json"), tokenizer(vocab, merges))
    write_json(os.path.join(args.out, "tokenizer_config.json"),
               {"tokenizer_class": "GPT2Tokenizer", "bos_token": END, "eos_token": END, "unk_token": END,
                "add_prefix_space": False, "model_max_length": 1024})


if __name__ == "__main__":
    main()
