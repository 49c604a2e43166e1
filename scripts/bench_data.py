# SPDX-License-Identifier: MIT
"""Models and pairs of real dimensions that need no files: config.json of published models, a tokenizer whose tokens are words, pairs of given lengths.
Standard library only."""
import itertools
import json
import math
import os
import random
import statistics

import demo_data

ULTRAFEEDBACK = (168, 302, 277)  # tokens of prompt, chosen and rejected, mean
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192}
SPREAD = 0.7  # standard deviation of the logarithm of a length


def model(model_type, hidden, ffn, layers, heads, kv, vocab, positions=32768, rope_theta=1e6, rope=None, **more):
    """config.json of these dimensions."""
    return {"model_type": model_type, "architectures": [model_type.capitalize() + "ForCausalLM"], "hidden_act": "silu", "hidden_size": hidden,
            "intermediate_size": ffn, "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv, "vocab_size": vocab,
            "max_position_embeddings": positions, "rope_parameters": rope or {"rope_type": "default", "rope_theta": rope_theta},
            "initializer_range": 0.02, "tie_word_embeddings": True, "bos_token_id": 256, "eos_token_id": 256, "torch_dtype": "bfloat16", **more}


MODELS = {
    "qwen2.5-0.5b": model("qwen2", 896, 4864, 24, 14, 2, 151936, rms_norm_eps=1e-6),
    "llama3.2-1b": model("llama", 2048, 8192, 16, 32, 8, 128256, 131072, rope=LLAMA3, head_dim=64, rms_norm_eps=1e-5),
    "qwen2.5-7b": model("qwen2", 3584, 18944, 28, 28, 4, 152064, rms_norm_eps=1e-6, tie_word_embeddings=False),
    "stories260k": model("llama", 64, 172, 5, 8, 4, 512, 512, 1e4, rms_norm_eps=1e-5),
    "demo": model("qwen2", 64, 128, 2, 4, 2, 259, 1024, 1e4, rms_norm_eps=1e-6),
    "tiny": model("qwen2", 64, 64, 1, 2, 1, 300, 64, 1e4, rms_norm_eps=1e-6),
}


def words(vocab):
    """A word for each token id that is neither a byte nor special. Each is one token with the space before it."""
    n = vocab - 256 - len(demo_data.SPECIALS)
    return ["".join(w) for w in itertools.islice(itertools.product(demo_data.LETTERS, repeat=4), max(n, 0))]


def tokenizer(vocab):
    """tokenizer.json: bytes, special tokens, then a token for each word, so that texts use the whole vocabulary as real ones do."""
    out = demo_data.tokenizer()
    out["model"]["ignore_merges"] = True
    known = out["model"]["vocab"]
    for word in demo_data.SPECIALS + ["\u0120" + w for w in words(vocab)]:
        known[word] = len(known)
    return out


def write_tokenizer(path, vocab):
    os.makedirs(path, exist_ok=True)
    with open(os.path.join(path, "tokenizer.json"), "w", encoding="utf-8") as f:
        f.write(json.dumps(tokenizer(vocab)))
    demo_data.write_json(os.path.join(path, "tokenizer_config.json"),
                         {"tokenizer_class": "Qwen2Tokenizer", "bos_token": None, "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"})


def write_model(path, name):
    """A model directory without weights, for model.init "random"."""
    write_tokenizer(path, MODELS[name]["vocab_size"])
    demo_data.write_json(os.path.join(path, "config.json"), MODELS[name])
    return path


def lengths(rng, mean, most):
    """A length in [2, most[i]] for each i, log-normal but for these bounds, with this mean: the quantiles of the distribution in a random order."""
    z = [statistics.NormalDist().inv_cdf((i + 0.5) / len(most)) for i in range(len(most))]
    rng.shuffle(z)
    scale = mean
    for _ in range(30):
        out = [max(2, min(m, round(scale * math.exp(SPREAD * x)))) for x, m in zip(z, most)]
        scale *= mean / statistics.fmean(out)
    return out


def write_pairs(path, vocab, n, means=ULTRAFEEDBACK, longest=1024, seed=7):
    """n pairs of these mean lengths in tokens, a response's end token counted, of at most `longest` for prompt and response together; words by Zipf's law."""
    rng = random.Random(seed)
    vocabulary = words(vocab)
    weights = list(itertools.accumulate(1 / (i + 1) for i in range(len(vocabulary))))
    text = lambda k: "".join(" " + w for w in rng.choices(vocabulary, cum_weights=weights, k=k))
    prompts = lengths(rng, means[0], [longest // 2] * n)
    rest = [longest - p for p in prompts]
    with open(path, "w", encoding="utf-8") as f:
        for p, w, l in zip(prompts, lengths(rng, means[1], rest), lengths(rng, means[2], rest)):
            f.write(json.dumps({"prompt": text(p), "chosen": text(w - 1), "rejected": text(l - 1)}) + "\n")
    return path
