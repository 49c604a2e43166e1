#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Run whole jobs with bdpo-train and with an independent PyTorch implementation (torch_job.py), and compare every step.

Needs torch, transformers, tokenizers and safetensors; test/golden_test.py is the check for machines without them.
  compare_torch.py [--binary build/bdpo-train] [--quick | --full] [--only TEXT] [--keep DIR] [--verbose]
Each line is one check with its largest deviation as a share of what is allowed (1.00 is the limit) and where it was.
"""
import json
import math
import os
import sys

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
import torch
import transformers
from safetensors import safe_open

import tiny_models as tiny
import torch_job as job
from compare_rows import BFLOAT16, FLOAT32, WEIGHTS, Report, arguments, case_folder, compare_pairs, compare_rows, read_jsonl, read_metrics, run, slope, strip_eval, work_folder
from mpi_launch import launcher

torch.set_num_threads(1)

LOSSES = list(job.LOSS_DEFAULTS)
KINKED = ("dpop", "minor_dpo")


# ---- the oracle's own checks, which need no binary ----

def self_check(r):
    closed_forms(r)
    t = job.Text.__new__(job.Text)
    t.data, t.bos = dict(max_length=10, max_prompt_length=None), 99
    cases = [  # prompt, responses, cut prompt, cut responses
        ([1, 2, 3, 4], [[1] * 6, [2] * 3], [1, 2, 3, 4], [[1] * 6, [2] * 3]),           # fits exactly
        ([1, 2, 3, 4], [[1] * 7, [2] * 3], [1, 2, 3, 4], [[1] * 6, [2] * 3]),           # a short prompt stays, the response is cut
        ([1, 2, 3, 4, 5, 6, 7], [[1] * 4, [2]], [3, 4, 5, 6, 7], [[1] * 4, [2]]),       # the prompt's end stays, then all fits
        ([99, 2, 3, 4, 5, 6, 7], [[1] * 4, [2]], [99, 4, 5, 6, 7], [[1] * 4, [2]]),     # and its BOS, one of the five
        ([99, 2, 3, 4, 5, 6, 7], [[1] * 9, [2]], [99, 4, 5, 6, 7], [[1] * 5, [2]]),     # both are cut
    ]
    r.check(all(t.cut(p, q) == (cp, cq) for p, q, cp, cq in cases), "self/truncation")
    s = dict(learning_rate=1.0, warmup_ratio=0.25, schedule="linear")
    want = [0, 0.5] + [(8 - t) / 6 for t in range(2, 8)]
    got = [job.learning_rate(s, t, 8) for t in range(8)]
    hf = transformers.get_linear_schedule_with_warmup(torch.optim.SGD([torch.zeros(1)], lr=1.0), 2, 8)
    cos = transformers.get_cosine_schedule_with_warmup(torch.optim.SGD([torch.zeros(1)], lr=1.0), 2, 8)
    bad = max(abs(a - b) for a, b in zip(want, got))
    for t in range(8):
        bad = max(bad, abs(hf.get_last_lr()[0] - got[t]), abs(cos.get_last_lr()[0] - job.learning_rate(dict(s, schedule="cosine"), t, 8)))
        hf.optimizer.step(), hf.step(), cos.optimizer.step(), cos.step()
    r.check(bad < 1e-12, "self/schedules", f"{bad:.1e}")


def closed_forms(r):
    """Autograd through the values against the derivatives of the table, in double."""
    sig = torch.sigmoid
    g = torch.Generator().manual_seed(1)
    n = 400
    nw, nl = (torch.randint(1, 60, (n,), generator=g).double() for _ in range(2))
    lw, ll = -nw * torch.rand(n, generator=g, dtype=torch.double) * 5 - 1e-3, -nl * torch.rand(n, generator=g, dtype=torch.double) * 5 - 1e-3
    rw, rl = lw + 3 * torch.randn(n, generator=g, dtype=torch.double), ll + 3 * torch.randn(n, generator=g, dtype=torch.double)
    lw.requires_grad_(), ll.requires_grad_()
    u, v = (lw - rw).detach(), (ll - rl).detach()
    a, b = (lw / nw).detach(), (ll / nl).detach()
    for name in LOSSES:
        o = dict(job.LOSS_DEFAULTS[name])
        o.update({k: x for k, x in dict(beta=0.3, label_smoothing=0.2, alpha=0.7).items() if k in o})
        if name == "bdpo":
            o["lambda"] = 0.7
        loss = job.loss_value(name, o, lw, ll, rw, rl, nw, nl)
        dw, dl = torch.autograd.grad(loss.sum(), [lw, ll])
        be, lam = o["beta"], o.get("lambda")
        one = torch.ones(n, dtype=torch.double)
        if name in ("dpo", "dpo_nll"):
            h, e = be * (u - v), o.get("label_smoothing", 0.0)
            cw = -be * ((1 - e) * sig(-h) - e * sig(h))
            cl = -cw
            if name == "dpo_nll":
                cw = cw - o["alpha"] / nw
        elif name == "dpop":
            h = be * (u - v - lam * torch.clamp(-u, min=0))
            cw, cl = -be * (1 + lam * (u < 0)) * sig(-h), be * sig(-h)
        elif name == "bdpo":
            h = be * (u - torch.log(lam * torch.exp(v) + 1 - lam))
            cw, cl = -be * sig(-h), be * sig(-h) * sig(v + math.log(lam / (1 - lam)))
        elif name == "minor_dpo":
            h = be * (u - torch.clamp(v, min=0))
            cw, cl = -be * sig(-h), be * sig(-h) * (v > 0)
        elif name == "slic":
            on = one * (1 - be * (u - v) > 0)
            cw, cl = -be * on, be * on
        elif name == "sppo":
            cw, cl = 2 * (u - 1 / (2 * be)), 2 * (v + 1 / (2 * be))
        else:
            odds = (a - b) - (torch.log1p(-a.exp()) - torch.log1p(-b.exp()))
            cw, cl = -1 / nw - be * sig(-odds) / (nw * (1 - a.exp())), be * sig(-odds) / (nl * (1 - b.exp()))
        bad = max(((dw - cw).abs() / (cw.abs() + 1e-9)).max().item(), ((dl - cl).abs() / (cl.abs() + 1e-9)).max().item())
        r.check(bad < 1e-7, f"self/{name} derivatives", f"{bad:.1e} relative")


# ---- one job ----

def start_dir(root, c):
    """The case's model directory, made once for each variant."""
    kw = c.get("model", {})
    key = c["shape"] + "".join(f"-{k}{v}" for k, v in sorted(kw.items()) if k != "template") + ("-t" if "template" in kw else "")
    path = os.path.join(root, "models", "".join(ch if ch.isalnum() or ch in "-." else "_" for ch in key))
    if not os.path.exists(path):
        tiny.make_model(path, c["shape"], seed=11, **kw)
        tiny.perturb_model(path, path + "-ref", seed=12)
    return path


def make_config(root, c):
    """run.json of a case, with its data files written."""
    path = start_dir(root, c)
    out = os.path.join(root, c["name"].replace("/", "-"))
    os.makedirs(out, exist_ok=True)
    family = tiny.SHAPES[c["shape"]]["family"]
    forms = c.get("forms", ("messages", "strings"))
    train = tiny.write_jsonl(os.path.join(out, "train.jsonl"), tiny.make_pairs(c.get("seed", 1), c.get("rows", 14), family, forms, c.get("degenerate", False)))
    held = tiny.write_jsonl(os.path.join(out, "eval.jsonl"), tiny.make_pairs(99, 6, family, forms))
    cfg = {
        "model": {"path": path, "dtype": c.get("dtype", "float32")},
        "data": {"train": train, "eval": held, "max_length": 96, "max_dropped": 0.2, **c.get("data", {})},
        "sft": {"epochs": 1, "learning_rate": 1e-3, "batch_size": 4, "shuffle": False, **c.get("sft", {})},
        "preference": {"loss": c.get("loss", "dpo"), "epochs": 2, "learning_rate": 1e-3, "batch_size": 4, "shuffle": False, **c.get("preference", {})},
        "memory": c.get("memory", {}), "dist": c.get("dist", {}),
        "output": os.path.join(out, "run"), "cache_dir": os.path.join(out, "cache"), "backend": "cpu", "threads": 1,
    }
    if c.get("sft_forms"):
        cfg["sft"]["train"] = tiny.write_jsonl(os.path.join(out, "sft.jsonl"), tiny.make_sft(3, 10, family))
    if c.get("ref"):
        cfg["reference"] = {"path": path + "-ref"}
    for section in c.get("without", []):
        del cfg[section]
    with open(os.path.join(out, "run.json"), "w", encoding="utf-8") as f:
        json.dump(cfg, f, indent=1)
    return cfg, os.path.join(out, "run.json")


def read_weights(path):
    """{name: float32 tensor} of a directory's safetensors files."""
    out = {}
    for name in sorted(os.listdir(path)):
        if name.endswith(".safetensors"):
            with safe_open(os.path.join(path, name), "pt") as f:
                out.update({k: f.get_tensor(k) for k in f.keys()})
    return out


def compare_weights(r, what, path, want, start, dtype, limits):
    try:
        got = read_weights(path)
    except OSError as e:
        r.check(False, what, str(e))
        return
    if set(got) != set(want):
        r.check(False, what, f"tensors differ: missing {sorted(set(want) - set(got))}, unexpected {sorted(set(got) - set(want))}")
        return
    shapes = [n for n in want if got[n].shape != want[n].shape or got[n].dtype != dtype]
    if shapes:
        r.check(False, what, f"{shapes[0]}: {got[shapes[0]].dtype} {tuple(got[shapes[0]].shape)}, expected {dtype} {tuple(want[shapes[0]].shape)}")
        return
    diff = {n: (got[n].double() - want[n].double()).norm().item() for n in want}
    moved = math.sqrt(sum((want[n].double() - start[n].double()).norm().item() ** 2 for n in want))
    total = math.sqrt(sum(d * d for d in diff.values()))
    n = max(diff, key=diff.get)
    r.check(total <= limits.weights * moved, what, f"L2 difference {total / max(moved, 1e-30):.2e} of an update of {moved:.3g} (limit {limits.weights:g}), most in {n}")


def compare_loads(r, what, path, source, text):
    """The directory is a model for transformers: nothing missing, nothing unexpected, the same config and tokenizer."""
    try:
        model, info = transformers.AutoModelForCausalLM.from_pretrained(path, output_loading_info=True, dtype=torch.float32, attn_implementation="eager")
        bad = {k: v for k, v in info.items() if v}
        a, b = (transformers.AutoConfig.from_pretrained(p).to_dict() for p in (source, path))
        for d in (a, b):
            for key in ("dtype", "_name_or_path", "transformers_version"):
                d.pop(key, None)
        bad.update({k: (a.get(k), b.get(k)) for k in set(a) | set(b) if a.get(k) != b.get(k)})
        tok = transformers.AutoTokenizer.from_pretrained(path)
        messages = [{"role": "user", "content": "Why is the sky blue?"}]
        want = text.hf.apply_chat_template(messages, tokenize=True, add_generation_prompt=True, return_dict=False)
        if list(tok.apply_chat_template(messages, tokenize=True, add_generation_prompt=True, return_dict=False)) != list(want):
            bad["tokenizer"] = "its template gives other ids"
        r.check(not bad, what, str(bad) if bad else "loaded")
        return model
    except Exception as e:  # whatever transformers raises is the finding
        r.check(False, what, f"{type(e).__name__}: {e}")
        return None


def compare_evaluate(r, what, binary, run_json, directory, model, res, options, reference, limits, steep):
    """evaluate --per-pair: ids against the oracle's, log-probabilities and means against transformers' on the same files."""
    per_pair = os.path.join(os.path.dirname(run_json), "pairs.out.jsonl")
    rc, out, err = run(binary[0], binary[1:] + ["evaluate", "--config", run_json, "--model", directory, "--per-pair", per_pair])
    if rc != 0:
        r.check(False, what, f"exit code {rc}: {err[-300:]}")
        return
    pairs = res["eval_pairs"]
    m, lw, ll = job.evaluate(model, *options, pairs, reference)
    compare_pairs(r, what + " --per-pair", job.pair_lines(pairs, lw, ll), read_jsonl(per_pair), limits)
    try:
        row = strip_eval(json.loads(out))
    except ValueError as e:
        r.check(False, what + " output", f"not one JSON object: {e}: {out[:200]!r}")
        return
    compare_rows(r, what + " output", [m], [row], options[1], limits, steep)


def compare_case(r, binary, root, c, sft_cache):
    name, binary = c["name"], [binary]
    if "ranks" in c:
        words, reason = launcher(binary[0])
        if not words:
            print(f"skipped: {name}: {reason}")
            r.skipped += 1
            return
        binary = [*words, "-np", str(c["ranks"]), *binary]
    cfg, run_json = make_config(root, c)
    rc, out, err = run(binary[0], binary[1:] + ["--config", run_json])
    if rc != 0:
        r.check(False, f"{name}: run", f"exit code {rc}: {(err or out)[-600:]}")
        return
    key = json.dumps([cfg.get("sft"), cfg["data"], cfg["model"]])  # the data's own path is in it: the same only within a case
    if key not in sft_cache:
        sft_cache[key] = job.run_sft(cfg)
    res = job.run_job(cfg, sft_cache[key])
    output = cfg["output"]
    rows, held = read_metrics(output)
    pref = cfg.get("preference")
    options = job.loss_options(pref) if pref else None
    limits = BFLOAT16 if cfg["model"]["dtype"] == "bfloat16" else FLOAT32
    steep = slope(pref["loss"], options) if pref and limits is BFLOAT16 else 0.0
    for stage in ("sft", "preference"):
        compare_rows(r, f"{name}: {stage} steps", [x for x in res["rows"] if x["stage"] == stage], [x for x in rows if x.get("stage") == stage], options, limits, steep)
    dtype = job.load_model(cfg["model"]["path"], "auto").dtype
    base = res["start"]
    if res["sft"]:
        compare_weights(r, f"{name}: sft/ weights", os.path.join(output, "sft"), res["sft"], base, dtype, limits)
        compare_loads(r, f"{name}: sft/ in transformers", os.path.join(output, "sft"), cfg["model"]["path"], res["text"])
        base = res["sft"]
    compare_weights(r, f"{name}: model/ weights", os.path.join(output, "model"), res["final"], base if pref else res["start"], dtype, limits)
    model = compare_loads(r, f"{name}: model/ in transformers", os.path.join(output, "model"), cfg["model"]["path"], res["text"])
    if pref and model is not None:
        if res["eval"]:
            last = [strip_eval(x) for x in held[-1:]]
            compare_rows(r, f"{name}: eval/ row at the end", [res["eval"]], last, options, limits, steep)
        ref = cfg.get("reference", {}).get("path") or (os.path.join(output, "sft") if res["sft"] else cfg["model"]["path"])
        compare_evaluate(r, f"{name}: evaluate", binary, run_json, os.path.join(output, "model"), model, res, (pref["loss"], options), job.load_model(ref),
                         limits, steep)
    if c.get("same_as_dpo"):
        other = dict(c, name=name + "-dpo", loss="dpo", preference={k: v for k, v in c["preference"].items() if k != "lambda"})
        ocfg, ojson = make_config(root, other)
        rc, out, err = run(binary[0], binary[1:] + ["--config", ojson])
        ours, theirs = ([{k: v for k, v in x.items() if "bdpo/" not in k} for x in read_jsonl(os.path.join(o, "metrics.jsonl"))] if rc == 0 else None
                        for o in (output, ocfg["output"]))
        r.check(rc == 0 and ours == theirs, f"{name}: the same numbers as dpo, bit for bit", "" if rc == 0 else err[-200:])


# ---- the cases ----

def quick_cases():
    """Every loss once over the three shapes in rotation, with the options spread over them."""
    return [
        dict(name="qwen2/dpo", shape="qwen2", loss="dpo"),
        dict(name="llama/dpo_nll", shape="llama", loss="dpo_nll", memory={"micro_batch_tokens": 64}, preference={"alpha": 0.5, "schedule": "cosine", "warmup_ratio": 0.3},
             sft={"schedule": "cosine"}),
        dict(name="qwen3/dpop", shape="qwen3", loss="dpop", ref=True, memory={"micro_batch_tokens": 300}, sft={"learning_rate": 1e-4}, preference={"schedule": "constant", "weight_decay": 1.0}),
        dict(name="qwen2/bdpo", shape="qwen2", loss="bdpo", memory={"micro_batch_tokens": 1}, forms=("messages", "system", "turns"),
             preference={"lambda": 0.3, "beta": 0.5}, model={"template": tiny.CHATML_OLD, "jinja_file": True}),
        dict(name="llama/minor_dpo", shape="llama", loss="minor_dpo", ref=True, degenerate=True, forms=("strings", "hh", "ultrafeedback"), memory={"micro_batch_tokens": 100000},
             sft={"warmup_ratio": 0.5, "weight_decay": 0.5, "learning_rate": 2e-4}),
        dict(name="qwen3/slic", shape="qwen3", loss="slic", preference={"beta": 0.7}, model={"spelling": 4}, memory={"gradient_checkpointing": True}),
        dict(name="qwen2/sppo", shape="qwen2", loss="sppo", preference={"batch_size": 3, "learning_rate": 3e-4, "max_steps": 7}, data={"max_prompt_length": 40}),
        dict(name="llama/orpo", shape="llama", loss="orpo", preference={"beta": 0.4, "max_grad_norm": 0.5}, model={"spelling": 4, "max_shard": "20KB"}),
        dict(name="qwen3/forms", shape="qwen3", loss="bdpo", sft_forms=True, degenerate=True, forms=("ultrafeedback", "turns", "hh", "strings", "system"),
             data={"string_prompts": "user", "system_prompt": "Answer."}, preference={"adam_beta1": 0.8, "adam_beta2": 0.95, "adam_epsilon": 1e-6}),
        dict(name="llama/bf16-files", shape="llama", loss="bdpo", model={"dtype": torch.bfloat16}),
        # computed in bfloat16, against PyTorch in float32 within the limits of BFLOAT16 (compare_rows.py)
        dict(name="qwen2/bf16", shape="qwen2", loss="bdpo", dtype="bfloat16", preference={"lambda": 0.3}, memory={"micro_batch_tokens": 64}),
        dict(name="llama/bf16", shape="llama", loss="dpo_nll", dtype="bfloat16", model={"dtype": torch.bfloat16}, memory={"gradient_checkpointing": True}),
        dict(name="qwen3/bf16", shape="qwen3", loss="dpop", dtype="bfloat16", ref=True, preference={"schedule": "constant"}),
        # several ranks: their own shares of a batch, reduced and gathered
        dict(name="qwen2/2-ranks", shape="qwen2", loss="bdpo", ranks=2, dist={"gradients": "local"}, preference={"lambda": 0.3, "batch_size": 5}, memory={"micro_batch_tokens": 64}),
        dict(name="llama/3-ranks", shape="llama", loss="dpo_nll", ranks=3, dist={"gradients": "sharded"}, preference={"alpha": 0.5}, memory={"micro_batch_tokens": 64}),
        dict(name="qwen3/3-ranks-deterministic", shape="qwen3", loss="orpo", ranks=3, dist={"deterministic": True}, memory={"micro_batch_tokens": 64}),
        dict(name="qwen2/2-ranks-bf16", shape="qwen2", loss="sppo", ranks=2, dtype="bfloat16"),
        dict(name="qwen2/no-sft", shape="qwen2", loss="dpo", without=["sft"], preference={"label_smoothing": 0.2, "epochs": 1.5, "batch_size": 7},
             model={"spelling": 4}),
        dict(name="qwen3/sft-only", shape="qwen3", without=["preference"], sft={"epochs": 2, "batch_size": 64}),
        dict(name="qwen2/lambda-1", shape="qwen2", loss="bdpo", preference={"lambda": 1.0, "epochs": 1}, same_as_dpo=True, rows=9),
    ]


def full_cases():
    cases = [dict(name=f"{shape}/{loss}", shape=shape, loss=loss, ref=loss in KINKED, seed=20 + i,
                  forms=("messages", "strings", "turns", "hh", "system"), rows=18)
             for i, shape in enumerate(tiny.SHAPES) for loss in LOSSES]
    cases += [dict(name=f"{shape}/{loss}-kink", shape=shape, loss=loss, seed=30) for shape, loss in zip(tiny.SHAPES, KINKED)]
    return cases + [dict(c, name="quick/" + c["name"]) for c in quick_cases()]


def noise_floor(r, root):
    """How far a float32 run may stray by rounding alone: the oracle in float32 against itself in float64."""
    for shape in tiny.SHAPES:
        cfg, _ = make_config(root, dict(name=f"floor-{shape}", shape=shape, loss="bdpo"))
        a, b = job.run_job(cfg), job.run_job(cfg, dtype=torch.float64)
        compare_rows(r, f"floor/{shape}", b["rows"], a["rows"], job.loss_options(cfg["preference"]))
        d = math.sqrt(sum((a["final"][n] - b["final"][n]).norm().item() ** 2 for n in a["final"]))
        u = math.sqrt(sum((b["final"][n] - b["sft"][n]).norm().item() ** 2 for n in a["final"]))
        far = max(a["final"], key=lambda n: (a["final"][n] - b["final"][n]).norm().item())
        r.check(d < 0.5 * WEIGHTS * u, f"floor/{shape} weights", f"{d / u:.2e} of the update, most in {far}")


def main():
    ap = arguments(__doc__)
    ap.add_argument("--quick", action="store_true", help="each loss once (the default)")
    ap.add_argument("--full", action="store_true", help="all three shapes with all eight losses, then the quick cases")
    ap.add_argument("--self-check", action="store_true", help="the oracle's own checks alone; needs no binary")
    ap.add_argument("--only", default="", help="cases whose name has this text")
    a = ap.parse_args()
    r = Report(a.verbose)
    with work_folder(a.keep, "bdpo-compare-") as root:
        self_check(r)
        if a.self_check:
            noise_floor(r, root)
            return r.last()
        binary = os.path.abspath(a.binary)
        if not os.access(binary, os.X_OK):
            r.check(False, "binary", f"{a.binary} is not there; build it with make, or give --binary")
            return r.last()
        for c in full_cases() if a.full else quick_cases():
            if a.only in c["name"]:
                case_folder(root, c["name"])
                compare_case(r, binary, root, c, {})
        return r.last()


if __name__ == "__main__":
    sys.exit(main())
