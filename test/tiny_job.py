# SPDX-License-Identifier: MIT
"""A tiny model directory, tiny preference data and run configs, for the tests of the program as a whole. Standard library only."""
import hashlib
import json
import os
import random
import resource
import struct
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "scripts"))
import demo_data

BINARY = os.path.abspath(os.environ.get("BDPO_TRAIN", os.path.join(HERE, "..", "build", "bdpo-train")))
ARCH = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1, "hidden_act": "silu", "max_position_embeddings": 64, "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0, "initializer_range": 0.05, "tie_word_embeddings": True, "vocab_size": 259, "bos_token_id": 256,
    "eos_token_id": 256, "torch_dtype": "float32",
}
EOS = 256
CHATML = ("{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{%- endfor %}"
          "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}")


def write_json(path, value):
    with open(path, "w", encoding="utf-8") as f:
        json.dump(value, f, indent=1)


def write_lines(path, rows):
    with open(path, "w", encoding="utf-8") as f:
        f.writelines(json.dumps(r) + "\n" for r in rows)
    return path


def read_lines(path):
    with open(path, encoding="utf-8") as f:
        return [json.loads(line) for line in f]


def read_bytes(path):
    with open(path, "rb") as f:
        return f.read()


def weights(seed=1, std=0.25):
    """{name: (shape, values)} of ARCH: random matrices and biases, norms about 1."""
    rng = random.Random(seed)
    demo_data.CONFIG = ARCH
    out = {}
    for name, shape, kind in demo_data.tensors():
        n = shape[0] * (shape[1] if len(shape) > 1 else 1)
        out[name] = (shape, [rng.gauss(1.0 if kind == "one" else 0.0, std) for _ in range(n)])
    return out


def write_safetensors(path, tensors):
    header, data, at = {"__metadata__": {"format": "pt"}}, [], 0
    for name, (shape, values) in tensors.items():
        data.append(struct.pack(f"<{len(values)}f", *values))
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, at + 4 * len(values)]}
        at += 4 * len(values)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + b"".join(data))


def make_model(path, seed=1, std=0.25, template=False, edit=None):
    """A model directory; `edit` may change the {name: (shape, values)} before they are written."""
    os.makedirs(path)
    tensors = weights(seed, std)
    if edit:
        edit(tensors)
    write_json(os.path.join(path, "config.json"), ARCH)
    write_json(os.path.join(path, "tokenizer.json"), demo_data.tokenizer())
    write_json(os.path.join(path, "tokenizer_config.json"),
               {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|endoftext|>", **({"chat_template": CHATML} if template else {})})
    write_safetensors(os.path.join(path, "model.safetensors"), tensors)
    return path


def make_pairs(n, seed=1):
    rng = random.Random(seed)
    word = lambda lo, hi: "".join(rng.choice("abcdefgh") for _ in range(rng.randint(lo, hi)))
    rows = []
    while len(rows) < n:
        row = {"prompt": word(2, 8) + ":", "chosen": word(1, 6), "rejected": word(1, 6)}
        if row["chosen"] != row["rejected"]:
            rows.append(row)
    return rows


def make_config(root, **sections):
    """A run over ROOT/model, ROOT/train.jsonl, ROOT/eval.jsonl into ROOT/run; a section of None is left out."""
    c = {
        "model": {"path": f"{root}/model", "dtype": "float32"},
        "data": {"train": f"{root}/train.jsonl", "eval": f"{root}/eval.jsonl", "max_length": 32},
        "sft": {"epochs": 1, "learning_rate": 1e-2, "batch_size": 4},
        "preference": {"loss": "bdpo", "epochs": 2, "learning_rate": 1e-2, "batch_size": 4},
        "checkpoint": {"every": 0},
        "output": f"{root}/run", "cache_dir": f"{root}/cache", "threads": 1, "seed": 3,
    }
    for key, value in sections.items():
        if isinstance(value, dict):
            c[key] = {**c.get(key, {}), **value}
        elif value is None:
            c.pop(key, None)
        else:
            c[key] = value
    return c


def make_root(root, train=10, held=4, **model):
    """model/, train.jsonl, eval.jsonl under `root`."""
    make_model(os.path.join(root, "model"), **model)
    write_lines(os.path.join(root, "train.jsonl"), make_pairs(train, 1))
    write_lines(os.path.join(root, "eval.jsonl"), make_pairs(held, 2))


class Result:
    def __init__(self, code, out, err):
        self.code, self.raw, self.err = code, out, err.decode("utf-8", "replace")
        self.out = out.decode("utf-8", "replace")
        self.lines = self.err.strip().split("\n")

    def __str__(self):
        return f"exit code {self.code}, stderr: {self.err.strip()[-600:]}"


def bdpo(*args, timeout=60, stdout=subprocess.PIPE, env=None, file_bytes=None):
    """Run the program to its end; file_bytes: no file may become larger, as on a full disk."""
    limit = (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))) if file_bytes else None
    p = subprocess.run([BINARY, *args], stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.PIPE, timeout=timeout, preexec_fn=limit,
                       env={**os.environ, **env} if env else None)
    return Result(p.returncode, p.stdout or b"", p.stderr)


def start(*args):
    """The program in the background, its outputs thrown away."""
    return subprocess.Popen([BINARY, *args], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def tree(path):
    """Every file under path with its digest, and every directory."""
    out = {}
    for base, dirs, files in os.walk(path):
        for d in dirs:
            out[os.path.relpath(os.path.join(base, d), path)] = "directory"
        for f in files:
            name = os.path.join(base, f)
            out[os.path.relpath(name, path)] = hashlib.sha256(read_bytes(name)).hexdigest()
    return out
