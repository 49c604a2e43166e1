#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Write the seeds of the fuzz targets anew: test/fuzz/seeds/TARGET/NAME. Small, and the same every time. Standard library only."""
import base64
import json
import os
import struct

HERE = os.path.dirname(os.path.abspath(__file__))


def tokenizer(pre=None, norm=None, decoder=None, vocab=None, merges=(), post=None, **model):
    vocab = vocab or {c: i for i, c in enumerate("abHelowrd,\u0120\u010a2\u00c3\u00b6")}
    return json.dumps({
        "version": "1.0", "added_tokens": [{"id": len(vocab), "content": "<s>", "special": True, "normalized": False, "lstrip": True,
                                            "rstrip": False, "single_word": False}],
        "normalizer": norm, "pre_tokenizer": pre, "post_processor": post, "decoder": decoder or {"type": "ByteLevel"},
        "model": {"type": "BPE", "vocab": vocab, "merges": list(merges), **model}}).encode()


LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
BYTE_VOCAB = {"<unk>": 0, "\u2581": 1, "a": 2, "o": 3, "\u2581o": 4, **{f"<0x{b:02X}>": 5 + b for b in range(256)}}
SPLIT = {"type": "Split", "pattern": {"Regex": "(?i:'s|'t)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}|\\s+(?!\\S)|\\s+$"},
         "behavior": "Isolated", "invert": False}
ROWS = {
    "pair": {"prompt": "Hi", "chosen": "Yes", "rejected": "No"},
    "hh": {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
    "messages": {"prompt": [{"role": "user", "content": "Hi"}], "chosen": [{"role": "assistant", "content": "Yes"}],
                 "rejected": [{"role": "assistant", "content": "No"}]},
    "sharegpt": {"system": "S", "conversations": [{"from": "human", "value": "Hi"}], "chosen": {"from": "gpt", "value": "a"},
                 "rejected": {"from": "gpt", "value": "b"}},
    "alpaca": {"instruction": "a", "input": "b", "history": [["c", "d"]], "chosen": "e", "rejected": "f", "output": "g"},
    "orca": {"system": "", "question": "q", "chosen": "e", "rejected": "f", "response": "g"},
    "tools": {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": None, "tool_calls": [{"id": 1}]}]},
    "surrogate": {"prompt": "\ud83d", "chosen": "\U0001f600<|im_end|>", "rejected": "\u0000"},
}

CHATML = ("{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
          "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
LOOP = ("{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ 'U: ' + m['content'] | trim + '\n' }}{% elif m['role'] == 'system' %}"
        "{{ m.content ~ '\n\n' }}{% else %}{{ 'A: ' + m['content'] + eos_token }}{% endif %}{%- endfor -%}{# end #}")
LLAMA2 = ("{% if messages[0]['role'] == 'system' %}{% set system_message = messages[0]['content'] %}{% endif %}{% for message in messages %}"
          "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + '<<SYS>>\\n' + content.strip() + ' [/INST]' }}{% endif %}{% endfor %}")
PIECES = {r: [f"<|im_start|>{r}\n", "<|im_end|>\n"] for r in ("system", "user", "assistant")}


def unigram():
    """Pieces with scores behind a compiled normalization that makes "o" of "l"."""
    units = [0] * 256
    units[0] = 0x80 << 10
    units[0x80 ^ ord("l")] = ord("l") | 1 << 8 | (0x80 ^ ord("l") ^ 0x10) << 10
    units[0x10] = 1 << 31
    chars = base64.b64encode(struct.pack("<257I", 4 * len(units), *units) + b"o\0").decode()
    spec = json.loads(tokenizer(norm={"type": "Precompiled", "precompiled_charsmap": chars}, vocab=BYTE_VOCAB, decoder={"type": "ByteFallback"}))
    spec["model"] = {"type": "Unigram", "unk_id": 0, "byte_fallback": True, "vocab": [[piece, -id / 8] for piece, id in BYTE_VOCAB.items()]}
    return json.dumps(spec).encode()


def seeds():
    yield "tokenizer", "unigram", unigram()
    yield "tokenizer", "bytes", tokenizer(pre={"type": "Sequence", "pretokenizers": [SPLIT, {**LEVEL, "use_regex": False}]}, norm={"type": "NFC"},
                                          merges=["H e", "l l", "He ll"], ignore_merges=True)
    yield "tokenizer", "pieces", tokenizer(
        norm={"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"},
                                                  {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]},
        decoder={"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
                                                  {"type": "ByteFallback"}, {"type": "Fuse"},
                                                  {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        vocab=BYTE_VOCAB, merges=[["\u2581", "o"]], byte_fallback=True, fuse_unk=True, unk_token="<unk>",
        post={"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
              "pair": [], "special_tokens": {"<s>": {"id": "<s>", "ids": [len(BYTE_VOCAB)], "tokens": ["<s>"]}}})
    yield "tokenizer", "metaspace", tokenizer(pre={"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": True},
                                              decoder={"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": True},
                                              vocab=BYTE_VOCAB, byte_fallback=True)
    yield "tokenizer", "byte_token", tokenizer(vocab={"<0x-1>": 0, "a": 2147483648}, byte_fallback=True)
    for i, (name, row) in enumerate(ROWS.items()):
        yield "rows", name, bytes([i * 37 % 64]) + json.dumps(row).encode() + b"\r\n"
    yield "rows", "array", bytes([64]) + b"\xef\xbb\xbf[\n" + json.dumps(ROWS["pair"]).encode() + b", " + json.dumps(ROWS["orca"]).encode() + b"]"
    for name, text in (("chatml", CHATML), ("loop", LOOP), ("llama2", LLAMA2)):
        yield "template", name, b"\0" + text.encode()
    yield "template", "config", b"\1" + json.dumps({"chat_template": CHATML, "eos_token": "<|im_end|>"}).encode()
    yield "template", "named", b"\1" + json.dumps({"chat_template": [{"name": "default", "template": LOOP}]}).encode()
    yield "template", "pieces", b"\2" + json.dumps({**PIECES, "generation": "<|im_start|>assistant\n", "end": "<|im_end|>", "trim": True}).encode()
    yield "encode", "letters", b"abcab xyxy aabbcc"
    yield "encode", "long", b"ab" * 100 + b" " * 40
    yield "encode", "marks", "e\u0301q\u0323\u0307\u0307\u0323 \u1100\u1161\u11a8 \u212b \uac00\u11a8".encode()
    yield "encode", "broken", b"a\xff\xc3"


def main():
    for target, name, data in seeds():
        folder = os.path.join(HERE, "seeds", target)
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, name), "wb") as f:
            f.write(data)


if __name__ == "__main__":
    main()
