#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Whole jobs with adapters against peft: every step's metrics, the adapters' updates, files both ways, and merging.

  test/check_lora.py [--binary build/bdpo-train] [--only TEXT] [--keep DIR] [--verbose]
Both start from one adapter that peft has saved (B not zero), in float32. Needs torch, transformers and peft."""
import json
import os
import sys

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
try:
    import torch
    import transformers
    from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
except ImportError as e:
    print(f"skipped: check_lora: {e.name} is not installed")
    print("0 passed, 0 failed, 1 skipped")
    sys.exit(0)

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "scripts"))
import compare_torch as ct
import torch_job as job
from compare_rows import BFLOAT16, FLOAT32, Report, arguments, case_folder, compare_rows, read_jsonl, read_metrics, run, work_folder
from mpi_launch import launcher

torch.set_num_threads(1)
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CASES = [
    dict(name="qwen2/all", shape="qwen2", loss="dpo", lora=dict(rank=4, alpha=8)),
    dict(name="llama/rslora", shape="llama", loss="bdpo", lora=dict(rank=3, alpha=2.5, rslora=True, targets=["q_proj", "v_proj", "down_proj"]),
         memory={"gradient_checkpointing": True, "micro_batch_tokens": 64}, preference={"lambda": 0.3, "weight_decay": 0.5}),
    dict(name="qwen3/no-sft", shape="qwen3", loss="dpo_nll", without=["sft"], lora=dict(rank=8, alpha=8, targets=["k_proj", "o_proj", "gate_proj"])),
    dict(name="qwen2/2-ranks", shape="qwen2", loss="bdpo", ranks=2, lora=dict(rank=4, alpha=4), dist={"gradients": "local"}, preference={"batch_size": 5}),
    dict(name="llama/2-ranks-sharded", shape="llama", loss="orpo", ranks=2, lora=dict(rank=2, alpha=4, targets=["q_proj", "up_proj"]), dist={"gradients": "sharded"}),
    dict(name="qwen3/bf16", shape="qwen3", loss="dpo", dtype="bfloat16", lora=dict(rank=4, alpha=8)),
]


def make_adapter(base, path, lora, seed):
    """An adapter of peft, with A as peft draws it and B at random too, so that nothing is zero."""
    torch.manual_seed(seed)
    c = LoraConfig(r=lora["rank"], lora_alpha=lora["alpha"], lora_dropout=0.0, target_modules=lora.get("targets", ALL), use_rslora=lora.get("rslora", False),
                   task_type="CAUSAL_LM", bias="none")
    model = get_peft_model(job.load_model(base), c)
    with torch.no_grad():
        for n, p in model.named_parameters():
            if "lora_B" in n:
                p.normal_(std=0.02)
    model.save_pretrained(path)


def load_adapter(base, path, train=False):
    return PeftModel.from_pretrained(job.load_model(base), path, is_trainable=train)


def adapters(model):
    return {n: w.detach().clone().float() for n, w in get_peft_model_state_dict(model).items()}


def oracle(cfg, base, start):
    """The job in PyTorch with peft: rows, adapters after each stage, and the pairs."""
    data = dict(job.DATA_DEFAULTS, **cfg["data"])
    text = job.Text(base, data)
    model = load_adapter(base, start, train=True)
    res = dict(rows=[], start=adapters(model), sft=None, final=None)
    if "sft" in cfg:
        s = dict(job.STAGE_DEFAULTS, **cfg["sft"])
        res["rows"] += job.train(model, s, job.load_sft(data["train"], text), job.sft_loss(model), "sft")
        res["sft"] = adapters(model)
    s = dict(job.PREFERENCE_DEFAULTS, **cfg["preference"])
    o = job.loss_options(s)
    pairs = job.load_pairs(data["train"], text)
    ref = job.reference_logps(model, pairs, s["batch_size"])  # the policy as the stage starts, with the adapters of SFT
    res["rows"] += job.train(model, s, pairs, job.preference_loss(model, s["loss"], o, ref, True), "preference")
    res["final"] = adapters(model)
    res["eval_pairs"] = job.load_pairs(data["eval"], text)
    return res, o


def compare_adapters(r, what, path, want, start, limits):
    got = ct.read_weights(path)
    if set(got) != set(want):
        r.check(False, what, f"tensors differ: {sorted(set(want) ^ set(got))[:4]}")
        return
    moved = sum((want[n] - start[n]).double().pow(2).sum().item() for n in want) ** 0.5
    off = sum((got[n].float() - want[n]).double().pow(2).sum().item() for n in want) ** 0.5
    allowed = 1e-3 if limits is FLOAT32 else limits.weights
    r.check(off <= allowed * moved, what, f"L2 difference {off / moved:.2e} of an update of {moved:.3g} (limit {allowed:g})")


def compare_logps(r, what, lines, model, pairs, per_token):
    with torch.no_grad():
        lw, ll = job.score_pairs(model, pairs)
    worst = max(max(abs(x["logps/chosen"] - float(w)) / len(p["chosen"]), abs(x["logps/rejected"] - float(l)) / len(p["rejected"]))
                for x, p, w, l in zip(lines, pairs, lw, ll))
    r.check(len(lines) == len(pairs) and worst <= per_token, what, f"{worst:.1e} a token (limit {per_token:g})")


def evaluate(binary, run_json, directory, out):
    rc, _, err = run(binary, ["evaluate", "--config", run_json, "--model", directory, "--per-pair", out])
    return read_jsonl(out) if rc == 0 else err


def compare_files(r, name, binary, cfg, run_json, base, pairs, limits):
    """peft loads what was written, and computes the same; merged, transformers does."""
    output = cfg["output"]
    per_token = 1e-5 if limits is FLOAT32 else limits.per_token
    lines = evaluate(binary, run_json, os.path.join(output, "model"), os.path.join(output, "pairs.jsonl"))
    if isinstance(lines, str):
        r.check(False, f"{name}: evaluate", lines[-300:])
        return
    compare_logps(r, f"{name}: model/ in peft", lines, load_adapter(base, os.path.join(output, "model")), pairs, per_token)
    merged = os.path.join(output, "merged")
    rc, _, err = run(binary, ["merge", output, "--out", merged])
    if rc != 0:
        r.check(False, f"{name}: merge", err[-300:])
        return
    compare_logps(r, f"{name}: merged in transformers", lines, job.load_model(merged), pairs, per_token)
    again = evaluate(binary, run_json, merged, os.path.join(output, "merged.jsonl"))
    worst = max(abs(a["logps/chosen"] - b["logps/chosen"]) / len(a["chosen_ids"]) for a, b in zip(lines, again))
    r.check(worst <= per_token, f"{name}: merged in evaluate", f"{worst:.1e} a token")
    rc, out, err = run(binary, ["generate", "--model", os.path.join(output, "model"), "--prompt", "Why", "--max-tokens", "5"])
    rc2, out2, _ = run(binary, ["generate", "--model", merged, "--prompt", "Why", "--max-tokens", "5"])
    r.check(rc == rc2 == 0 and (out == out2 or limits is BFLOAT16), f"{name}: generate", err[-200:] or "adapter and merged model say the same")


def compare_case(r, binary, root, c):
    name, words = c["name"], [binary]
    if "ranks" in c:
        start, reason = launcher(binary)
        if not start:
            print(f"skipped: {name}: {reason}")
            r.skipped += 1
            return
        words = [*start, "-np", str(c["ranks"]), binary]
    cfg, run_json = ct.make_config(root, c)
    base = cfg["model"]["path"]
    start = os.path.join(os.path.dirname(run_json), "start")
    make_adapter(base, start, c["lora"], 7)
    cfg["model"]["lora"] = dict(c["lora"], path=start)
    with open(run_json, "w", encoding="utf-8") as f:
        json.dump(cfg, f, indent=1)
    rc, out, err = run(words[0], words[1:] + ["--config", run_json])
    if rc != 0:
        r.check(False, f"{name}: run", f"exit code {rc}: {(err or out)[-600:]}")
        return
    limits = BFLOAT16 if c.get("dtype") == "bfloat16" else FLOAT32
    res, options = oracle(cfg, base, start)
    rows, _ = read_metrics(cfg["output"])
    steep = ct.slope(c["loss"], options) if limits is BFLOAT16 else 0.0
    for stage in ("sft", "preference"):
        compare_rows(r, f"{name}: {stage} steps", [x for x in res["rows"] if x["stage"] == stage], [x for x in rows if x["stage"] == stage], options, limits, steep)
    if res["sft"]:
        compare_adapters(r, f"{name}: sft/ adapters", os.path.join(cfg["output"], "sft"), res["sft"], res["start"], limits)
    compare_adapters(r, f"{name}: model/ adapters", os.path.join(cfg["output"], "model"), res["final"], res["sft"] or res["start"], limits)
    compare_files(r, name, binary, cfg, run_json, base, res["eval_pairs"], limits)


def main():
    ap = arguments(__doc__)
    ap.add_argument("--only", default="", help="cases whose name has this text")
    a = ap.parse_args()
    r = Report(a.verbose)
    with work_folder(a.keep, "bdpo-lora-") as root:
        for c in CASES:
            if a.only in c["name"]:
                case_folder(root, c["name"])
                compare_case(r, os.path.abspath(a.binary), root, c)
        return r.last()


if __name__ == "__main__":
    sys.exit(main())
