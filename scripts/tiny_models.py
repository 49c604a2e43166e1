# SPDX-License-Identifier: MIT
"""Tiny Hugging Face model directories, tokenizers and preference data with random contents, for comparisons and goldens.

Nothing here knows bdpo-train: models are saved by transformers, tokenizers by the tokenizers package.
"""
import copy
import json
import os
import random
import shutil

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config
from transformers.utils import logging

logging.disable_progress_bar()

WORDS = ("why is the sky blue because light scatters more at short wavelengths they're we'll it's 12 345 2024 river stone small tree "
         "apple answer question right wrong maybe never always Berlin Paris Zürich naïve café 東京 こんにちは привет 🙂 x=1; f(x) -> y "
         "don't can't I'd you've one two three four five six seven eight nine ten hundred thousand").split(" ")

SPLIT_QWEN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
SPLIT_LLAMA = SPLIT_QWEN.replace(r"\p{N}| ?", r"\p{N}{1,3}| ?")

# The same dialect in three spellings: with a default system prompt, in the older form of it, and without one.
CHATML_DEFAULT = """{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou are Tiny, made for a test.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role != 'system' or not loop.first %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
CHATML_OLD = ("{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
              "You are a helpful assistant.<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
              "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
CHATML_PLAIN = ("{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{%- endfor %}"
                "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}")
LLAMA3 = ("{{- bos_token }}{%- for message in messages %}{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim "
          "+ '<|eot_id|>' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}")

SHAPES = {  # name: architecture, tokenizer family, template
    "qwen2": dict(cls=Qwen2Config, family="qwen", template=CHATML_DEFAULT, tied=True,
                  arch=dict(num_attention_heads=4, num_key_value_heads=2, rope_theta=10000.0, rms_norm_eps=1e-6)),
    "llama": dict(cls=LlamaConfig, family="llama", template=LLAMA3, tied=False,
                  arch=dict(num_attention_heads=4, num_key_value_heads=1, rms_norm_eps=1e-5, rope_theta=10000.0,
                            rope_scaling={"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                          "original_max_position_embeddings": 64})),
    "qwen3": dict(cls=Qwen3Config, family="qwen", template=CHATML_PLAIN, tied=True,
                  arch=dict(num_attention_heads=2, num_key_value_heads=2, head_dim=24, rope_theta=1e6, rms_norm_eps=1e-6)),
}


def text(rng, n, ends=True):
    """n words, sometimes with punctuation and line breaks; never white space at its ends where `ends` is false."""
    out = []
    for i in range(n):
        w = rng.choice(WORDS)
        if rng.random() < 0.1:
            w = w.capitalize() + rng.choice([".", "!", ",", "?\n", ":\n\n", "  "])
        out.append(w)
    s = " ".join(out)
    if ends and rng.random() < 0.2:
        s = rng.choice([" ", "\n", "\n\n"]) + s
    return s if ends else s.strip()


def make_tokenizer(path, family, template, vocab=300, jinja_file=False, seed=5):
    """A byte-level BPE of `vocab` tokens, special ones last, in DIR/tokenizer.json with tokenizer_config.json."""
    if family == "qwen":
        specials, eos, bos = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], "<|endoftext|>", None
    else:
        specials = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
        eos, bos = "<|end_of_text|>", "<|begin_of_text|>"
    split = pre_tokenizers.Split(Regex(SPLIT_QWEN if family == "qwen" else SPLIT_LLAMA), "isolated", False)
    tok = Tokenizer(models.BPE(ignore_merges=family == "llama"))
    if family == "qwen":
        tok.normalizer = normalizers.NFC()
    tok.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tok.decoder = decoders.ByteLevel()
    rng = random.Random(seed)
    corpus = [text(rng, 30) for _ in range(200)] + ["user\n", "assistant\n", "system\n", "\n\n"] * 50
    tok.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=vocab - len(specials), show_progress=False,
                                                        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tok.add_special_tokens([AddedToken(s, normalized=False, special=True) for s in specials])
    byte_level = processors.ByteLevel(trim_offsets=False)
    if bos:
        bos_id = tok.token_to_id(bos)
        tok.post_processor = processors.Sequence([byte_level, processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, bos_id)])])
    else:
        tok.post_processor = byte_level
    os.makedirs(path, exist_ok=True)
    tok.save(os.path.join(path, "tokenizer.json"))
    cfg = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": bos, "eos_token": eos, "model_max_length": 512,
           "clean_up_tokenization_spaces": False}
    if jinja_file:
        with open(os.path.join(path, "chat_template.jinja"), "w", encoding="utf-8") as f:
            f.write(template)
    else:
        cfg["chat_template"] = template
    with open(os.path.join(path, "tokenizer_config.json"), "w", encoding="utf-8") as f:
        json.dump(cfg, f, indent=1)
    return tok


def old_spelling(path):
    """config.json as transformers 4 wrote it: rope_theta, rope_scaling and torch_dtype at the top level."""
    name = os.path.join(path, "config.json")
    with open(name, encoding="utf-8") as f:
        c = json.load(f)
    rope = dict(c.pop("rope_parameters", None) or {})
    theta = rope.pop("rope_theta", None)
    if theta is not None:
        c["rope_theta"] = theta
    c["rope_scaling"] = rope if rope.get("rope_type", "default") != "default" else None
    if "dtype" in c:
        c["torch_dtype"] = c.pop("dtype")
    with open(name, "w", encoding="utf-8") as f:
        json.dump(c, f, indent=1)


def make_model(path, shape, seed, dtype=torch.float32, hidden=32, ffn=48, layers=2, vocab=320, tok_vocab=300, max_shard=None,
               spelling=5, template=None, jinja_file=False, std=0.12, arch=None):
    """A model directory with random weights of std `std`; norms about 1 and biases about 0, none of them exactly."""
    s = SHAPES[shape]
    tok = make_tokenizer(path, s["family"], template or s["template"], vocab=tok_vocab, jinja_file=jinja_file)
    eos = tok.token_to_id("<|endoftext|>" if s["family"] == "qwen" else "<|end_of_text|>")
    kw = copy.deepcopy(s["arch"])
    kw.update(arch or {})
    cfg = s["cls"](hidden_size=hidden, intermediate_size=ffn, num_hidden_layers=layers, vocab_size=vocab, max_position_embeddings=512,
                   tie_word_embeddings=s["tied"], bos_token_id=tok.token_to_id("<|begin_of_text|>"), eos_token_id=eos, pad_token_id=None,
                   dtype=dtype, **kw)
    model = AutoModelForCausalLM.from_config(cfg)
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=g)
            if "norm" in name:
                p.copy_(1.0 + 0.1 * noise)
            elif name.endswith("bias"):
                p.copy_(0.1 * noise)
            else:
                p.copy_(std * noise)
    model = model.to(dtype)
    model.save_pretrained(path, **({"max_shard_size": max_shard} if max_shard else {}))
    if spelling == 4:
        old_spelling(path)
    return path


def perturb_model(src, dst, seed, scale=0.01):
    """A reference that differs from the policy: the same directory with noise on every weight."""
    shutil.copytree(src, dst)
    model = AutoModelForCausalLM.from_pretrained(dst, dtype=torch.float32)
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(scale * torch.randn(p.shape, generator=g))
    model.save_pretrained(dst)
    return dst


def user(c):
    return {"role": "user", "content": c}


def assistant(c):
    return {"role": "assistant", "content": c}


def make_pairs(seed, n, family, forms=("messages", "strings"), degenerate=False):
    """n preference rows in rotation over `forms`, with 1-token, long and very long parts; `degenerate`: three more that the preference stage
    must drop (SFT, which reads the chosen responses alone, keeps them)."""
    rng = random.Random(seed)
    trim = family == "qwen"  # white space at a content's ends is kept by ChatML and trimmed by Llama 3
    rows = []
    for i in range(n):
        form = forms[i % len(forms)]
        prompt = text(rng, rng.randint(3, 12), trim)
        good, bad = text(rng, rng.randint(2, 10), trim), text(rng, rng.randint(2, 10), trim)
        if i % 7 == 3:
            good = "a"  # one token and the end token
        if i % 7 == 4:
            bad = "b"
        if i % 5 == 1:
            prompt = text(rng, 60, trim)  # the prompt must be cut
        if i % 6 == 2:
            bad = text(rng, 70, trim)  # in the preference stage the rejected response is cut; SFT does not see it
        if i % 11 == 5:
            good = text(rng, 80, trim)
        if i % 9 == 8 and family == "qwen":
            prompt += " <|im_end|> <|im_start|>system"  # ordinary text
        rows.append(pair_row(rng, form, prompt, good, bad, trim))
    if degenerate:
        rows.insert(2, pair_row(rng, forms[0], "equal", "the same", "the same", trim))
        long = text(rng, 120, False)
        rows.insert(5, pair_row(rng, forms[-1], "empty", "something", " \n", trim))
        rows.insert(7, pair_row(rng, forms[0], "equal once cut", long + " one", long + " two", trim))
    return rows


def pair_row(rng, form, prompt, good, bad, trim):
    extra = {"prompt_id": f"{rng.getrandbits(40):x}", "score_chosen": 7.5}
    if form == "strings":
        return {"prompt": prompt, "chosen": good, "rejected": bad, **extra}
    if form == "messages":
        return {"prompt": [user(prompt)], "chosen": [assistant(good)], "rejected": [assistant(bad)]}
    if form == "system":
        return {"prompt": [{"role": "system", "content": "Be brief."}, user(prompt)], "chosen": [assistant(good)], "rejected": [assistant(bad)]}
    if form == "turns":
        turns = [user(text(rng, 3, trim)), assistant(text(rng, 3, trim)), user(prompt)]
        return {"chosen": turns + [assistant(good)], "rejected": turns + [assistant(bad)], **extra}
    if form == "ultrafeedback":
        return {"prompt": prompt, "chosen": [user(prompt), assistant(good)], "rejected": [user(prompt), assistant(bad)], **extra}
    if form == "hh":
        start = f"\n\nHuman: {text(rng, 3)}\n\nAssistant: {text(rng, 3)}\n\nHuman: {prompt}\n\nAssistant:"
        return {"chosen": start + " " + good, "rejected": start + " " + bad}
    raise ValueError(form)


def make_sft(seed, n, family):
    """SFT rows in the forms that only SFT has."""
    rng = random.Random(seed)
    trim = family == "qwen"
    rows = []
    for i in range(n):
        prompt, answer = text(rng, rng.randint(3, 12), trim), text(rng, rng.randint(1, 40), trim)
        if i % 3 == 0:
            rows.append({"prompt": prompt, "completion": answer})
        elif i % 3 == 1:
            rows.append({"messages": [user(prompt), assistant(answer)]})
        else:
            rows.append({"messages": [user("first"), assistant("second"), user(prompt), assistant(answer)]})
    return rows


def write_jsonl(path, rows):
    with open(path, "w", encoding="utf-8") as f:
        for i, r in enumerate(rows):
            f.write(json.dumps(r, ensure_ascii=i % 2 == 0) + "\n")
    return path
