#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""One rival on one model directory and one pairs file: TRL's DPOTrainer, or a careful plain PyTorch loop. scripts/bench_rival.py runs it.

  rival.py trl|loop MODEL PAIRS [--prec fp32|amp|bf16] [--gc 0|1] [--precompute 0|1] [--device cpu|cuda] [--tuned 0|1] [--batch N] [--micro N] [--steps N]
                                [--max-length N] [--lock FILE]
  rival.py model DIR --dims NAME [--tokenizer DIR|words]       a model directory with random weights, and one token a byte where no tokenizer is given;
                                                               words: a token for each of a made-up vocabulary's (scripts/bench_data.py)

fp32: float32 throughout; amp: float32 weights under bfloat16 autocast (TRL's default); bf16: weights, gradients and moments in bfloat16.
gc: gradient checkpointing. precompute: the reference is scored before the steps. micro: pairs of one forward pass; the rest accumulates.
tuned: TRL's padding-free batches and FlashAttention 2 where they are there, else PyTorch's fused attention; TF32 for what stays float32 on a GPU.
lock: a file that is locked (flock) from the first step on, where jobs on one machine agree on who measures.
Prints a JSON line when the model is loaded and one a step: seconds, pairs, tokens (a prompt counted once, as bdpo-train counts), padding
(share of the computed positions), loss, logps/chosen, grad_norm; on a GPU device_gib, what is in use beside the context, and the largest of it so far.
Standard input is not read. Needs torch and transformers; trl and datasets for `trl`.
"""
import argparse
import fcntl
import importlib.util
import json
import os
import shutil
import sys
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import torch.nn.functional as F
import transformers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast, Qwen2Config

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import bench_data
import demo_data
import torch_job

SPECIAL = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}


def make_model(a):
    kw = dict(bench_data.MODELS[a.dims])
    cls = {"qwen2": Qwen2Config, "llama": LlamaConfig}[kw.pop("model_type")]
    kw.pop("torch_dtype")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(cls(pad_token_id=None, **kw))
    model.to(torch.float32 if a.prec == "fp32" else torch.bfloat16).save_pretrained(a.dir)
    if a.tokenizer == "words":
        bench_data.write_tokenizer(a.dir, kw["vocab_size"])
        return
    if a.tokenizer:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(os.path.join(a.tokenizer, name), os.path.join(a.dir, name))
        return
    demo_data.write_json(os.path.join(a.dir, "tokenizer.json"), demo_data.tokenizer())
    demo_data.write_json(os.path.join(a.dir, "tokenizer_config.json"), {"tokenizer_class": "Qwen2Tokenizer", "bos_token": None, **SPECIAL})


def alone(a):
    """Hold the lock until the process ends."""
    if a.lock:
        a.locked = open(a.lock, "a", encoding="utf-8")
        fcntl.flock(a.locked, fcntl.LOCK_EX)


def settle(a):
    """Wait until the device has done all."""
    if a.device == "cuda":
        torch.cuda.synchronize()


def context(a):
    """Make the device's context, what is free beside it, and the card's name."""
    a.free = a.most = 0
    if a.device == "cuda":
        torch.zeros(1, device="cuda")
        settle(a)
        a.free = torch.cuda.mem_get_info()[0]


def device_row(a):
    """What a row says of the device's memory: the driver's own figure, as bdpo-train takes it."""
    if a.device != "cuda":
        return {}
    a.most = max(a.most, a.free - torch.cuda.mem_get_info()[0], torch.cuda.max_memory_reserved())
    return {"device_gib": a.most / 2 ** 30}


def loaded(a, model, versions_of, reference_seconds, pairs, **more):
    card = torch.cuda.get_device_name() if a.device == "cuda" else None
    say(loaded=True, parameters=sum(p.numel() for p in model.parameters()), versions=versions_of, card=card, reference_seconds=reference_seconds,
        reference_pairs=pairs if a.precompute else 0, **more)


def say(**row):
    print(json.dumps(row), flush=True)


def read_pairs(a):
    """The first steps x batch pairs as {prompt, chosen, rejected}: strings, or lists of messages."""
    rows = []
    for _, _, row in torch_job.read_rows(a.pairs):
        if len(rows) == a.steps * a.batch:
            break
        prompt, chosen, rejected = torch_job.split_pair(row)
        if isinstance(prompt, list):
            chosen, rejected = ([{"role": "assistant", "content": torch_job.content(x)}] for x in (chosen, rejected))
        rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    if len(rows) < a.steps * a.batch:
        sys.exit(f"{a.pairs}: {len(rows)} pairs, {a.steps} steps of {a.batch} need {a.steps * a.batch}")
    return rows


def step_row(a, seconds, masks, loss, logps_chosen, grad_norm):
    """masks: (attention_mask, completion_mask) of the step's forward passes, chosen and rejected rows alike."""
    real = sum(int(m.sum()) for m, _ in masks)
    answers = sum(int(c.sum()) for _, c in masks)
    say(step_seconds=seconds, pairs=a.batch, tokens=answers + (real - answers) // 2, padding=round(1 - real / sum(m.numel() for m, _ in masks), 4),
        loss=loss, logps_chosen=logps_chosen, grad_norm=grad_norm, **device_row(a))


# ---- TRL ----

def flash():
    return importlib.util.find_spec("flash_attn") is not None


def attention(a):
    return {"attn_implementation": "flash_attention_2" if a.device == "cuda" and a.prec != "fp32" and flash() else "sdpa"}


def tuned(a):
    """What else makes DPOTrainer faster; a version that has padding_free no longer, or not yet again, says so and pads."""
    return {"padding_free": a.device == "cuda" and flash(), "tf32": True if a.device == "cuda" else None}


def run_trl(a):
    import trl
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    with open(os.path.join(a.model, "tokenizer_config.json"), encoding="utf-8") as f:
        cfg = json.load(f)
    tok = PreTrainedTokenizerFast(tokenizer_file=os.path.join(a.model, "tokenizer.json"), chat_template=cfg.get("chat_template"), **SPECIAL)
    if "<|im_end|>" in tok.get_vocab() and tok.chat_template:
        tok.eos_token = "<|im_end|>"
    masks, clock = [], {"reference": 0.0, "steps": []}

    class Collator:
        def __init__(self):
            self.inner = DataCollatorForPreference(pad_token_id=tok.pad_token_id, max_length=a.max_length)

        def __call__(self, examples):
            out = self.inner(examples)
            masks.append((out["attention_mask"], out["completion_mask"]))
            return out

    class Clock(transformers.TrainerCallback):
        def on_train_begin(self, *args, **kw):
            masks.clear()
            loaded(a, trainer.model, versions(trl), clock["reference"], len(rows), attention=trainer.model.config._attn_implementation,
                   padding_free=bool(getattr(trainer, "padding_free", False)), optimizer=str(trainer.args.optim))
            alone(a)
            settle(a)
            self.start = time.perf_counter()

        def on_log(self, args, state, control, logs=None, **kw):
            if "loss" not in (logs or {}):
                return
            step_row(a, clock["steps"][-1], masks[:a.batch // a.micro], logs["loss"], logs["logps/chosen"], float(logs["grad_norm"]))
            del masks[:a.batch // a.micro]
            self.start = time.perf_counter()

        def on_step_end(self, *args, **kw):
            settle(a)
            clock["steps"].append(time.perf_counter() - self.start)

    class Trainer(DPOTrainer):
        def compute_ref_log_probs(self, *args, **kw):
            start = time.perf_counter()
            out = super().compute_ref_log_probs(*args, **kw)
            settle(a)
            clock["reference"] += time.perf_counter() - start
            return out

    rows = read_pairs(a)
    args = DPOConfig(output_dir=a.out, per_device_train_batch_size=a.micro, gradient_accumulation_steps=a.batch // a.micro, max_steps=a.steps,
                     learning_rate=1e-6, lr_scheduler_type="constant", beta=0.1, bf16=a.prec != "fp32", gradient_checkpointing=bool(a.gc),
                     precompute_ref_log_probs=bool(a.precompute), max_length=a.max_length, logging_steps=1, save_strategy="no",
                     report_to="none", use_cpu=a.device == "cpu", dataloader_pin_memory=a.device == "cuda", train_sampling_strategy="sequential",
                     disable_tqdm=True, model_init_kwargs={"dtype": "bfloat16" if a.prec == "bf16" else "float32", **(attention(a) if a.tuned else {})},
                     **(tuned(a) if a.tuned else {}))
    trainer = Trainer(model=a.model, args=args, train_dataset=Dataset.from_list(rows), data_collator=Collator(), processing_class=tok,
                      callbacks=[Clock()])
    trainer.train()


# ---- a plain loop ----

def encode(a, rows):
    """[(prompt ids, [chosen ids, rejected ids])], cut by bdpo-train's rule."""
    text = torch_job.Text(a.model, dict(torch_job.DATA_DEFAULTS, max_length=a.max_length))
    out = []
    for r in rows:
        prompt, end = text.prompt(r["prompt"])
        out.append(text.cut(prompt, [text.encode(torch_job.content(r[k])) + [end] for k in ("chosen", "rejected")]))
    return out


def pad(rows):
    """ids, attention mask, completion mask [2P, longest]: the chosen rows, then the rejected ones, padded on the right."""
    seqs = [(p, y[side]) for side in (0, 1) for p, y in rows]
    n = max(len(p) + len(y) for p, y in seqs)
    ids, am, cm = (torch.zeros(len(seqs), n, dtype=torch.long) for _ in range(3))
    for i, (p, y) in enumerate(seqs):
        ids[i, :len(p) + len(y)] = torch.tensor(p + y)
        am[i, :len(p) + len(y)] = 1
        cm[i, len(p):len(p) + len(y)] = 1
    return ids, am, cm


def log_probs(a, model, ids, am, cm):
    """Sums over the responses [2P]; logits at positions that predict a response's token only."""
    ids, am, cm = (x.to(a.device) for x in (ids, am, cm))
    with torch.autocast(a.device, torch.bfloat16, enabled=a.prec == "amp"):
        hidden = model.model(input_ids=ids, attention_mask=am, use_cache=False).last_hidden_state[:, :-1]
        where = cm[:, 1:].bool()
        logits = model.lm_head(hidden[where])
    nll = F.cross_entropy(logits.float(), ids[:, 1:][where], reduction="none")
    return -torch.zeros(where.shape, device=a.device).masked_scatter(where, nll).sum(1)


def load(a):
    return AutoModelForCausalLM.from_pretrained(a.model, dtype=torch.bfloat16 if a.prec == "bf16" else torch.float32).to(a.device)


def run_loop(a):
    rows = encode(a, read_pairs(a))
    policy = load(a).train()
    if a.gc:
        policy.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    fixed, took = {}, 0.0
    reference = policy
    if a.precompute:
        start = time.perf_counter()
        with torch.no_grad():
            for at in range(0, len(rows), a.micro):
                fixed[at] = log_probs(a, policy, *pad(rows[at:at + a.micro]))
        settle(a)
        took = time.perf_counter() - start
    else:
        reference = load(a).eval().requires_grad_(False)
    opt = torch.optim.AdamW(policy.parameters(), lr=1e-6, weight_decay=0.0, fused=True)
    loaded(a, policy, versions(), took, len(rows))
    alone(a)
    for step in range(a.steps):
        start, total, chosen, masks = time.perf_counter(), 0.0, 0.0, []
        for at in range(step * a.batch, (step + 1) * a.batch, a.micro):
            ids, am, cm = pad(rows[at:at + a.micro])
            n = len(ids) // 2
            masks.append((am, cm))
            if a.precompute:
                ref = fixed[at]
            else:
                with torch.no_grad():
                    ref = log_probs(a, reference, ids, am, cm)
            lp = log_probs(a, policy, ids, am, cm)
            d = lp - ref
            loss = -F.logsigmoid(0.1 * (d[:n] - d[n:])).sum() / a.batch
            loss.backward()
            total += loss.item()
            chosen += lp[:n].sum().item() / a.batch
        norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        opt.step()
        opt.zero_grad(set_to_none=True)
        settle(a)
        step_row(a, time.perf_counter() - start, masks, total, chosen, norm.item())


def versions(*modules):
    out = [f"{m.__name__} {m.__version__}" for m in (*modules, transformers, torch)]
    return ", ".join(out)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = ap.add_subparsers(dest="what", required=True)
    m = sub.add_parser("model")
    m.add_argument("dir")
    m.add_argument("--dims", choices=bench_data.MODELS, required=True)
    m.add_argument("--tokenizer", help="directory with tokenizer.json and tokenizer_config.json, or \"words\"")
    m.add_argument("--prec", choices=["fp32", "bf16"], default="bf16", help="of the written weights")
    for name in ("trl", "loop"):
        p = sub.add_parser(name)
        p.add_argument("model")
        p.add_argument("pairs")
        p.add_argument("--prec", choices=["fp32", "amp", "bf16"], default="amp")
        for k, d in (("gc", 0), ("precompute", 0), ("tuned", 0), ("batch", 2), ("micro", 0), ("steps", 3), ("max-length", 1024), ("threads", 2)):
            p.add_argument("--" + k, type=int, default=d)
        p.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
        p.add_argument("--lock")
        p.add_argument("--out", default="build/bench-rival/trl")
    a = ap.parse_args()
    if a.what == "model":
        make_model(a)
        return
    a.micro = a.micro or a.batch
    if a.batch % a.micro:
        ap.error("--batch must be a multiple of --micro")
    torch.set_num_threads(a.threads)
    transformers.utils.logging.set_verbosity_error()
    context(a)
    run_trl(a) if a.what == "trl" else run_loop(a)


if __name__ == "__main__":
    main()
