#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Compare `bdpo-train tokenize`, id for id, with Hugging Face's tokenizers and the real chat templates on the shared data.

  test/check_tokenizer.py [--bin build/release/bdpo-train] [--data ../shared/data] [--random 4000]

Texts: every string in data/pairs, data/corpora and data/eval, and random Unicode strings. Tokenizers: Qwen2.5, LLaMA 3.2, GPT-2 (joined
from its two files) and stories260K, with the added tokens taken out of Hugging Face's copy, since they are ordinary text here. Templates:
the conversations of the pairs and made-up ones through Qwen2.5's, Qwen3's, LLaMA 3's and LLaMA 3.2's.
Exit code 1 on a difference; a check that cannot run says why."""
import argparse
import base64
import gzip
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import unicodedata

try:
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
except ImportError as e:
    print(f"skipped: check_tokenizer: {e.name} is not installed")
    sys.exit(0)

HERE = os.path.dirname(os.path.abspath(__file__))
PAIRS = ["gsm8k_model_solutions_pairs.jsonl", "hh_harmless_1500.jsonl.gz", "llamafactory_dpo_en.jsonl"]
EVAL = ["gsm8k/test.jsonl", "gsm8k/train_200.jsonl", "ifeval/input_data.jsonl", "mt_bench/question.jsonl",
        "mt_bench/judge_prompts.jsonl"]
LLAMA3 = ("{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + message['role']"
          " + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token +"
          " content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
          "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}")
CHATML = ("{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful"
          " assistant.<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
          "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
LLAMA2 = ("{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content']"
          " %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
          "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate"
          " user/assistant/user/assistant/...') }}{% endif %}{% if loop.index0 == 0 and system_message != false %}{% set content ="
          " '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = message['content'] %}"
          "{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
          "{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}")
ZEPHYR = ("{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + eos_token }}\n"
          "{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n"
          "{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
          "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}")
ALPACA = ("{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] + '\\n\\n' }}{% else %}{{ 'Below is an instruction that"
          " describes a task. Write a response that appropriately completes the request.\\n\\n' }}{% endif %}{% for message in messages %}"
          "{% if message['role'] == 'user' %}{{ '### Instruction:\\n' + message['content'] + '\\n\\n' }}"
          "{% elif message['role'] == 'assistant' %}{{ '### Response:\\n' + message['content'] + eos_token + '\\n\\n' }}{% endif %}"
          "{% endfor %}{% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}")
PHI3 = ("{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}{{'<|system|>\n' + message['content'] +"
        " '<|end|>\n'}}{% elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] =="
        " 'assistant' %}{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}")
PHI3_OLD = ("{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') %}{{'<|user|>' + '\n' + message['content'] +"
            " '<|end|>' + '\n' + '<|assistant|>' + '\n'}}{% elif (message['role'] == 'assistant') %}{{message['content'] + '<|end|>' + '\n'}}"
            "{% endif %}{% endfor %}")
PHI4 = ("{% for message in messages %}{% if (message['role'] == 'system') %}{{'<|im_start|>system<|im_sep|>' + message['content'] +"
        " '<|im_end|>'}}{% elif (message['role'] == 'user') %}{{'<|im_start|>user<|im_sep|>' + message['content'] + '<|im_end|>'}}{% elif"
        " (message['role'] == 'assistant') %}{{'<|im_start|>assistant<|im_sep|>' + message['content'] + '<|im_end|>'}}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}")
MISTRAL1 = ("{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception("
            "'Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if message['role'] == 'user' %}{{ '[INST] ' +"
            " message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}{% else %}{{"
            " raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}")


def mistral(open_inst, close_inst, place, answer):
    """The form of the templates with tools, with what differs from version to version."""
    return f"""{{%- if messages[0]["role"] == "system" %}}
    {{%- set system_message = messages[0]["content"] %}}
    {{%- set loop_messages = messages[1:] %}}
{{%- else %}}
    {{%- set loop_messages = messages %}}
{{%- endif %}}
{{%- if not tools is defined %}}
    {{%- set tools = none %}}
{{%- endif %}}
{{#- Questions and answers in turn. #}}
{{%- for message in loop_messages %}}
    {{%- if (message["role"] == "user") != (loop.index0 % 2 == 0) %}}
        {{{{- raise_exception("roles do not alternate") }}}}
    {{%- endif %}}
{{%- endfor %}}

{{{{- bos_token }}}}
{{%- for message in loop_messages %}}
    {{%- if message["role"] == "user" %}}
        {{%- if tools is not none %}}
            {{{{- "[AVAILABLE_TOOLS] [" }}}}
        {{%- endif %}}
        {{%- if {place} and system_message is defined %}}
            {{{{- "{open_inst}" + system_message + "\n\n" + message["content"] + "{close_inst}" }}}}
        {{%- else %}}
            {{{{- "{open_inst}" + message["content"] + "{close_inst}" }}}}
        {{%- endif %}}
    {{%- elif message.tool_calls is defined and message.tool_calls is not none %}}
        {{{{- "[TOOL_CALLS] [" }}}}
    {{%- elif message["role"] == "assistant" %}}
        {{{{- {answer} + eos_token }}}}
    {{%- endif %}}
{{%- endfor %}}
"""


MISTRALS = {
    "Mistral v0.3": mistral("[INST] ", "[/INST]", "loop.last", "\" \" + message[\"content\"]|trim"),
    "Mistral v0.2": mistral(" [INST] ", " [/INST]", "loop.first", "\" \" + message[\"content\"]"),
    "Mistral Nemo": mistral("[INST]", "[/INST]", "loop.last", "message[\"content\"]"),
}
GEMMA2 = ("{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{% for message in"
          " messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate"
          " user/assistant/user/assistant/...') }}{% endif %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role ="
          " message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
          "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}")
GEMMA3 = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '\n\n' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '\n\n' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- if (message['role'] == 'assistant') -%}
        {%- set role = "model" -%}
    {%- else -%}
        {%- set role = message['role'] -%}
    {%- endif -%}
    {{ '<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- endif -%}
    {{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model\n'}}
{%- endif -%}
"""
GENERIC = """{{- bos_token -}}
{% for message in messages %}
  {{- 'Role ' ~ message.role ~ ':' }} {{ message.content.strip() -}}
  {{ eos_token }}

{%- endfor %}
{%- if add_generation_prompt %}
{{ "Role assistant: " -}}
{% endif %}"""
CHATML_PIECES = {r: [f"<|im_start|>{r}\n", "<|im_end|>\n"] for r in ("system", "user", "assistant")}
THINK = ["", "<think>\nHm.\n</think>\n\nYes.", "<think>\n\n</think>\n\nNo.", "a</think>b</think>\n\nc"]


def rows(path):
    with (gzip.open if path.endswith(".gz") else open)(path, "rt", encoding="utf-8") as f:
        for line in f:
            yield json.loads(line)


def strings(value):
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for v in value.values() if isinstance(value, dict) else value:
            yield from strings(v)


def random_char(rng):
    r = rng.random()
    if r < 0.3:
        return chr(rng.randrange(32, 127))
    if r < 0.45:
        return rng.choice(" \t\n\r\x0b\x0c\x85\xa0\u2028\u3000\u180e\u200b\ufeff\u1680\u2581")
    if r < 0.5:
        return rng.choice(["'s", "'S", "'\u017f", "'LL", "'Re", "'d", "  ", "\r\n", "\n\n", "<|im_end|>", "</s>", "<0x41>"])
    if r < 0.65:
        return rng.choice([chr(rng.randrange(0x300, 0x370)), *"\xe9\xe0\xc5\u1e9b\uac00\u1100\u1161\u11a8\u0344\u0958\u2126\u212b"])
    while True:  # what later versions of Unicode assign may differ, as docs/data.md says
        c = rng.randrange(0xa0, 0x3000) if r < 0.8 else rng.randrange(0x110000 - 0x800)
        c = chr(c if c < 0xd800 else c + 0x800)
        if unicodedata.category(c) != "Cn" or c > "\U00032000":
            return c


def shared_texts(data):
    out = []
    for name in [os.path.join("pairs", p) for p in PAIRS] + [os.path.join("eval", e) for e in EVAL]:
        for row in rows(os.path.join(data, name)):
            out += strings(row)
    with open(os.path.join(data, "corpora", "tinyshakespeare.txt"), encoding="utf-8") as f:
        text = f.read()
    return list(dict.fromkeys(out + text.split("\n\n") + [text]))


def mark_texts(n):
    """Letters and all kinds of combining marks, in any order."""
    rng = random.Random(4)
    marks = [chr(c) for c in range(0x110000) if unicodedata.category(chr(c))[0] == "M"]
    return ["".join(rng.choice("ea\u0928\U00011935\u05d0\u1100" if rng.random() < 0.3 else marks) for _ in range(rng.randrange(1, 30))) for _ in range(n)]


def random_texts(n):
    rng = random.Random(1)
    return ["".join(random_char(rng) for _ in range(rng.randrange(1, 60))) for _ in range(n)]


def ours(args, model, lines, *more):
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl", encoding="utf-8") as f:
        f.writelines(json.dumps(line) + "\n" for line in lines)
        f.flush()
        done = subprocess.run([args.bin, "tokenize", "--model", model, *more, f.name], capture_output=True, check=False)
    if done.returncode != 0:
        sys.exit(f"FAILED: {args.bin} tokenize --model {model}: {done.stderr.decode()}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def report(name, what, inputs, got, want):
    bad = 0
    for i, (text, g, w) in enumerate(zip(inputs, got, want)):
        if g == w:
            continue
        bad += 1
        if bad <= 5:
            print(f"  {ascii(text)[:160]}\n    want {w[:40]}\n    got  {g[:40]}")
    ok = bad == 0 and len(got) == len(want)
    print(f"{'ok' if ok else 'FAILED'}: {name}: {len(want)} {what}, {sum(map(len, want))} ids, {bad} differ")
    return ok


def check_texts(args, name, model, texts):
    with open(os.path.join(model, "tokenizer.json"), encoding="utf-8") as f:
        spec = json.load(f)
    spec["added_tokens"] = []
    tok = Tokenizer.from_str(json.dumps(spec))
    want = [e.ids for e in tok.encode_batch(texts, add_special_tokens=False)]
    return report(name, "texts", texts, ours(args, model, texts), want)


def split(pattern, behavior="Isolated", invert=False):
    kind = "String" if len(pattern) == 1 else "Regex"
    return {"type": "Split", "pattern": {kind: pattern}, "behavior": behavior, "invert": invert}


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
PRE_TOKENIZERS = {  # in front of a byte-level vocabulary
    "DeepSeek": [split("[\r\n]"), split("\\s?[A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba]+"),
                 split("\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"), split("\\s+$"),
                 split("[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"), {"type": "Digits", "individual_digits": True}],
    "DeepSeek-V3": [split("\\p{N}{1,3}"), split("[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"),
                    split("[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+"
                          "[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+")],
    "o200k": [split("[^\r\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
                    "[^\r\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
                    "\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\r\n/]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+")],
    "SmolLM": [{"type": "Digits", "individual_digits": True}],
    "lines": [split("^.+$")],
    **{f"{b} {'inverted ' if inv else ''}{p!r}": [split(p, b, inv)] for b in ("Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous")
       for inv in (False, True) for p in (" ", "[a-m]")},
}
MARK = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
NORMALIZERS = {  # in front of a byte-level vocabulary
    **{n: [{"type": n}] for n in ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents")},
    "NFD, Lowercase and StripAccents": [{"type": "NFD"}, {"type": "Lowercase"}, {"type": "StripAccents"}],
    **{f"Strip {left} {right}": [{"type": "Strip", "strip_left": left, "strip_right": right}] for left in (True, False) for right in (True, False)},
    "Replace": [{"type": "Replace", "pattern": {"Regex": "\\s+|(?<=[a-z])[A-Z]|'+$"}, "content": "_"}],
}
CLASSES = {
    "Whitespace": {"type": "Whitespace"}, "WhitespaceSplit": {"type": "WhitespaceSplit"}, "BertPreTokenizer": {"type": "BertPreTokenizer"},
    "CharDelimiterSplit": {"type": "CharDelimiterSplit", "delimiter": "e"}, "Punctuation": {"type": "Punctuation"},
    **{f"Punctuation {b}": {"type": "Punctuation", "behavior": b} for b in ("Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous")},
}
SENTENCE_PIECE = {  # in place of what stories260K has
    "Gemma": ({"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}, split(" ", "MergedWithPrevious")),
    "Mistral v3": (None, {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": False}),
    "Metaspace": (None, {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}),
    "never": (None, {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "never", "split": True}),
    "NFKC": ({"type": "Sequence", "normalizers": [{"type": "NFKC"}, NORMALIZERS["Strip True True"][0], MARK]}, None),
    "Replace by a regex": ({"type": "Sequence", "normalizers": [{"type": "Replace", "pattern": {"Regex": " {2,}|\\p{N}+(?=[.,])"}, "content": " "},
                                                                MARK]}, None),
    "Whitespace": (None, {"type": "Whitespace"}),
    "NFC and Replace": ({"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Replace", "pattern": {"String": " "},
                                                                            "content": "\u2581"}]}, None),
}


def code_points():
    """All that are assigned in Python's version of Unicode, each for itself between letters."""
    chars = [c for c in map(chr, [*range(1, 0xd800), *range(0xe000, 0x110000)]) if unicodedata.category(c) not in ("Cn", "Co")]
    return [" ".join(f"a{c}e" for c in chars[i:i + 64]) for i in range(0, len(chars), 64)]


def check_variant(args, name, model, edit, texts):
    """The tokenizer with another pipeline around its vocabulary."""
    with open(os.path.join(model, "tokenizer.json"), encoding="utf-8") as f:
        spec = json.load(f)
    edit(spec)
    with tempfile.TemporaryDirectory() as d:
        with open(os.path.join(d, "tokenizer.json"), "w", encoding="utf-8") as f:
            json.dump(spec, f)
        return check_texts(args, name, d, texts)


def check_variants(args, gpt2, stories, texts):
    ok, points = True, code_points()
    for name, steps in PRE_TOKENIZERS.items():
        ok &= check_variant(args, name, gpt2, lambda spec, s=steps: spec.update(
            pre_tokenizer={"type": "Sequence", "pretokenizers": [*s, {**BYTES, "use_regex": name == "SmolLM"}]}), texts)
    edits = {name: {"normalizer": {"type": "Sequence", "normalizers": steps}} for name, steps in NORMALIZERS.items()}
    edits |= {name: {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [step, BYTES]}} for name, step in CLASSES.items()}
    for name, edit in edits.items():
        ok &= check_variant(args, name, gpt2, lambda spec, e=edit: spec.update(e), texts)
        ok &= check_variant(args, f"{name}, every code point", gpt2, lambda spec, e=edit: spec.update(e), points)
    for name, (norm, pre) in SENTENCE_PIECE.items():
        ok &= check_variant(args, name, stories, lambda spec, n=norm, p=pre: spec.update(normalizer=n, pre_tokenizer=p), texts)
    return ok


def metaspace(scheme, cut=True):
    return {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": scheme, "split": cut}


def charsmap(entries):
    """SentencePiece's compiled normalization: a double array over the keys' bytes, and the replacements."""
    tree, text, units, bases, low = {}, bytearray(), {0: 0}, set(), 1
    for key, to in entries.items():
        node = tree
        for byte in key.encode():
            node = node.setdefault(byte, {})
        node[0] = len(text)
        text += to.encode() + b"\0"
    todo = [(0, tree)]
    while todo:
        at, node = todo.pop()
        base = low
        while base in bases or any(base ^ c in units for c in node):
            base += 1
        low = max(low, base - 512)
        bases.add(base)
        units[at] |= (at ^ base) << 10 | (0x100 if 0 in node else 0)
        for c, child in node.items():
            units[base ^ c] = 1 << 31 | child if c == 0 else c
            if c:
                todo.append((base ^ c, child))
    size = (max(units) // 256 + 1) * 256
    return base64.b64encode(struct.pack(f"<{size + 1}I", 4 * size, *(units.get(i, 0) for i in range(size))) + bytes(text)).decode()


def nfkc_charsmap():
    """As the published models have it: NFKC of single characters and of letters with a mark, white space and what is dropped."""
    out = {c: unicodedata.normalize("NFKC", c) for c in map(chr, [*range(0xa0, 0x3400), *range(0xf900, 0x10000)])}
    out |= {unicodedata.normalize("NFD", c): c for c in map(chr, range(0xc0, 0x2000)) if len(unicodedata.normalize("NFD", c)) == 2}
    out = {key: to for key, to in out.items() if key != to} | {c: " " for c in "\t\n\r\x0b\u2028\u200b"} | {"\r\n": "\n", "\u200d": "", "\x7f": ""}
    return {"type": "Precompiled", "precompiled_charsmap": charsmap(out)}


UNIGRAMS = {  # normalizer, pre-tokenizer and decoder, changes to the model
    "always": (None, metaspace("always"), {}),
    "first, whole": (None, metaspace("first", False), {}),
    "never": (None, metaspace("never"), {}),
    "byte_fallback": (None, metaspace("always"), {"byte_fallback": True}),
    "byte_fallback, whole": ({"type": "NFKC"}, metaspace("never", False), {"byte_fallback": True}),
    "T5": ({"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "\u2581"}]},
           metaspace("always"), {}),
    "Precompiled": (nfkc_charsmap(), metaspace("always"), {}),
    "Precompiled, then Replace": ({"type": "Sequence", "normalizers": [nfkc_charsmap(), {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}]},
                                  metaspace("always"), {"byte_fallback": True}),
    "other unk_id": ({"type": "Lowercase"}, metaspace("first"), {"unk_id": 40}),
    "byte_fallback without the bytes": (None, metaspace("first"), {"byte_fallback": True, "bytes": False}),
    "positive scores": (None, metaspace("always", False), {"add": 9.0}),
    "whole numbers": (None, metaspace("always", False), {"digits": 0}),
    "two decimals": (None, None, {"digits": 2}),
}


def train_unigram(texts):
    """A tokenizer.json, trained on texts of few characters, so that the others are unknown to it."""
    tok = Tokenizer(models.Unigram())
    tok.pre_tokenizer = pre_tokenizers.Metaspace()
    some = [t for t in texts if t.isascii()] + ["caf\u00e9 na\u00efve \u4e2d\u6587\u4e2d", "aaaa aa a " * 9, "=" * 40] * 20
    tok.train_from_iterator(some, trainers.UnigramTrainer(
        vocab_size=1500, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False))
    return json.loads(tok.to_str())


def check_unigrams(args, texts):
    rng, ok = random.Random(6), True
    spec = train_unigram(texts)
    pieces = spec["model"]["vocab"]
    runs = [c * rng.randrange(1, 3000) for c in "a= \u2581\u00e9\U0001f600" for _ in range(5)]
    points = code_points()
    mixed = ["".join(rng.choice(pieces)[0] if rng.random() < 0.7 else random_char(rng) for _ in range(rng.randrange(1, 40))) for _ in range(args.random)]
    for name, (norm, pre, change) in UNIGRAMS.items():
        vocab = [[s, score + change.get("add", 0.0)] for s, score in pieces]
        if "digits" in change:
            vocab = [[s, round(score, change["digits"])] for s, score in vocab]
        if change.get("bytes", change.get("byte_fallback")):
            vocab += [[f"<0x{b:02X}>", -20.0] for b in range(256)]
        model = {"type": "Unigram", "unk_id": change.get("unk_id", 0), "byte_fallback": change.get("byte_fallback", False), "vocab": vocab}
        with tempfile.TemporaryDirectory() as d:
            with open(os.path.join(d, "tokenizer.json"), "w", encoding="utf-8") as f:
                json.dump({**spec, "added_tokens": [], "normalizer": norm, "pre_tokenizer": pre, "decoder": pre, "model": model}, f)
            ok &= check_texts(args, f"Unigram, {name}", d, texts + runs + mixed + (points if "Precompiled" in name else []))
    return ok


def cuts(texts, n):
    """n pieces cut out of the texts at random places."""
    rng, out = random.Random(3), []
    for _ in range(n):
        text = rng.choice(texts)
        at = rng.randrange(len(text) + 1)
        out.append(text[at:at + rng.randrange(1, 400)])
    return [t for t in out if t]


def jinja(text):
    def fail(message):
        raise jinja2.TemplateError(message)
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    env.globals["raise_exception"] = fail
    return env.from_string(text)


def conversations(data, specials):
    out = []
    for row in rows(os.path.join(data, "pairs", "llamafactory_dpo_en.jsonl")):
        for answer in (None, "chosen", "rejected"):
            out.append(row["prompt"] + (row[answer] if answer else []))
    rng = random.Random(2)
    texts = random_texts(300) + THINK * 30 + ["  padded \n", "\n\nlines\n\n", "", " ", "\u00a0x\u2003", "\x1cx\x1f"] * 10
    for _ in range(600):
        msg = [{"role": "system", "content": rng.choice(texts)}] if rng.random() < 0.4 else []
        for k in range(rng.randrange(1, 6)):
            msg.append({"role": ("user", "assistant")[k % 2], "content": rng.choice(texts)})
        out.append(msg)
    # with special tokens in them the two differ on purpose
    return [m for m in out if not any(s in c["content"] for c in m for s in specials)]


def add_tokens(path, added):
    """Added tokens behind those of a tokenizer.json; a name that ends with a blank takes along the white space after it."""
    with open(path, encoding="utf-8") as f:
        spec = json.load(f)
    first = max([*spec["model"]["vocab"].values(), *(t["id"] for t in spec["added_tokens"])]) + 1
    spec["added_tokens"] += [{"id": first + i, "content": name.rstrip(), "single_word": False, "lstrip": False, "rstrip": name.endswith(" "),
                              "normalized": False, "special": True} for i, name in enumerate(added)]
    with open(path, "w", encoding="utf-8") as f:
        json.dump(spec, f)


def check_template(args, name, model, text, data, bos, eos="", pieces=None, added=(), system=True):
    with tempfile.TemporaryDirectory() as d:
        shutil.copy(os.path.join(model, "tokenizer.json"), d)
        with open(os.path.join(model, "tokenizer_config.json"), encoding="utf-8") as f:
            config = json.load(f)
        config["chat_template"] = text
        with open(os.path.join(d, "tokenizer_config.json"), "w", encoding="utf-8") as f:
            json.dump(config, f)
        add_tokens(os.path.join(d, "tokenizer.json"), added)
        tok = Tokenizer.from_file(os.path.join(d, "tokenizer.json"))
        specials = [t.content for t in tok.get_added_tokens_decoder().values()]
        template = jinja(text)
        lines, want, rendered = [], [], []
        for msg in conversations(data, specials):
            if not system and msg[0]["role"] == "system":
                continue  # refused here, where the template leaves it out in silence
            for generation in (False, True):
                lines.append({"messages": msg, "add_generation_prompt": generation})
                try:
                    rendered.append(template.render(messages=msg, add_generation_prompt=generation, bos_token=bos, eos_token=eos))
                except jinja2.TemplateError:  # a system message where there is no place for one
                    lines.pop()
        want = [e.ids for e in tok.encode_batch(rendered, add_special_tokens=False)]
        got = ours(args, d, lines, *(["--chat-template", json.dumps(pieces)] if pieces else []))
    return report(name, "conversations", rendered, got, want)


def check_golden(args, name, model, path):
    with open(path, encoding="utf-8") as f:
        golden = json.load(f)
    cases = list(golden.values())
    lines = [{"messages": c["messages"], "add_generation_prompt": c["add_generation_prompt"]} for c in cases]
    return report(name, "golden conversations", [c["text"] for c in cases], ours(args, model, lines), [c["ids"] for c in cases])


def main():
    p = argparse.ArgumentParser(description="Compare bdpo-train tokenize with Hugging Face's tokenizers.")
    p.add_argument("--bin", default="build/release/bdpo-train")
    p.add_argument("--data", default=os.path.join(HERE, "..", "..", "shared", "data"))
    p.add_argument("--random", type=int, default=4000)
    args = p.parse_args()
    if not os.path.exists(args.bin):
        print(f"skipped: check_tokenizer: {args.bin} is not built")
        return 0
    if not os.path.isdir(os.path.join(args.data, "tokenizers")):
        print(f"skipped: check_tokenizer: no shared data at {args.data}")
        return 0
    texts = shared_texts(args.data)
    some = cuts(texts, args.random // 4) + random_texts(args.random // 4) + mark_texts(args.random // 4)
    texts += cuts(texts, args.random) + random_texts(args.random) + mark_texts(args.random)
    qwen = os.path.join(args.data, "tokenizers", "qwen2.5")
    llama = os.path.join(args.data, "tokenizers", "llama3.2")
    chat = os.path.join(args.data, "chat-templates")
    ok = True
    with tempfile.TemporaryDirectory() as gpt2:
        subprocess.run([sys.executable, os.path.join(HERE, "..", "scripts", "gpt2_tokenizer.py"),
                        os.path.join(args.data, "tokenizers", "gpt2"), gpt2], check=True)
        for name, model in (("Qwen2.5", qwen), ("LLaMA 3.2", llama), ("GPT-2", gpt2),
                            ("stories260K", os.path.join(args.data, "models", "stories260K"))):
            ok &= check_texts(args, name, model, texts)
        ok &= check_variants(args, gpt2, os.path.join(args.data, "models", "stories260K"), some)
    ok &= check_unigrams(args, some)
    for name, model, file in (("Qwen2.5", qwen, "Qwen-Qwen2.5-7B-Instruct.jinja"), ("Qwen3", qwen, "Qwen-Qwen3-0.6B.jinja"),
                              ("LLaMA 3.2", llama, "meta-llama-Llama-3.2-3B-Instruct.jinja")):
        with open(os.path.join(chat, file), encoding="utf-8") as f:
            ok &= check_template(args, name, model, f.read(), args.data, "<|begin_of_text|>")
    ok &= check_template(args, "LLaMA 3", llama, LLAMA3, args.data, "<|begin_of_text|>")
    ok &= check_template(args, "Qwen1.5", qwen, CHATML, args.data, "")
    ok &= check_template(args, "ChatML as pieces", qwen, CHATML, args.data, "",
                         pieces=CHATML_PIECES | {"default_system": "You are a helpful assistant."})
    stories = os.path.join(args.data, "models", "stories260K")
    for name, text in (("Llama 2", LLAMA2), ("Zephyr", ZEPHYR), ("Alpaca", ALPACA)):
        ok &= check_template(args, name, stories, text, args.data, "<s>", "</s>")
    phi = ("<|system|> ", "<|user|> ", "<|assistant|> ", "<|end|> ")
    for name, text, added in (
            ("Phi-3", PHI3, phi), ("Phi-3, first", PHI3_OLD, phi), ("Phi-3, nothing stripped", PHI3, [x.strip() for x in phi]),
            ("Phi-4", PHI4, ("<|im_start|>", "<|im_end|>", "<|im_sep|>")), ("Mistral v0.1", MISTRAL1, ()),
            *((name, text, ("[INST]", "[/INST]")) for name, text in MISTRALS.items()), ("Mistral v0.2, as text", MISTRALS["Mistral v0.2"], ()),
            ("Gemma 2", GEMMA2, ("<start_of_turn>", "<end_of_turn>")), ("Gemma 3", GEMMA3, ("<start_of_turn>", "<end_of_turn>")),
            ("one expression for all", GENERIC, ())):
        ok &= check_template(args, name, stories, text, args.data, "<s>", "</s>", added=added, system=text != PHI3_OLD)
    ok &= check_golden(args, "Qwen2.5", qwen, os.path.join(chat, "golden_qwen2.5.json"))
    ok &= check_golden(args, "LLaMA 3.2", llama, os.path.join(chat, "golden_llama3.2.json"))
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
