# SPDX-License-Identifier: MIT
"""The whole job of bdpo-train - SFT, then a preference loss - in plain PyTorch, written from docs (the public contract) alone.

It is slow and simple on purpose: transformers' own model classes, their chat templates through Jinja, the losses' values with autograd
for their derivatives, torch.optim.AdamW. Configs are bdpo-train's run.json as a dict; only `shuffle: false` and float32 are understood.
"""
import gzip
import json
import math
import os
import re

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

LOSS_DEFAULTS = {
    "dpo": dict(beta=0.1, label_smoothing=0.0), "dpo_nll": dict(beta=0.1, alpha=1.0), "dpop": dict(beta=0.1, **{"lambda": 5.0}),
    "bdpo": dict(beta=0.1, **{"lambda": 0.5}), "minor_dpo": dict(beta=0.1), "slic": dict(beta=0.1), "sppo": dict(beta=0.1), "orpo": dict(beta=0.1),
}
STAGE_DEFAULTS = dict(epochs=1, max_steps=None, learning_rate=2e-5, batch_size=64, schedule="linear", warmup_ratio=0.0, weight_decay=0.0,
                      max_grad_norm=1.0, shuffle=True, adam_beta1=0.9, adam_beta2=0.999, adam_epsilon=1e-8)
PREFERENCE_DEFAULTS = dict(STAGE_DEFAULTS, loss="bdpo", epochs=3, learning_rate=5e-7)
DATA_DEFAULTS = dict(eval=None, string_prompts="raw", system_prompt=None, max_length=1024, max_prompt_length=None, max_dropped=0.05)


# ---- losses: value of one pair, float64 tensors ----

def loss_value(name, o, lw, ll, rw, rl, nw, nl):
    """Loss of each pair from the table's second column; its derivatives are left to autograd."""
    zero = torch.zeros_like(lw)
    beta = o["beta"]
    if name == "orpo":
        a, b = (lw / nw).clamp(max=-1e-12), (ll / nl).clamp(max=-1e-12)
        log_odds = (a - b) - (torch.log(-torch.expm1(a)) - torch.log(-torch.expm1(b)))
        return -lw / nw - beta * F.logsigmoid(log_odds)
    u, v = lw - rw, ll - rl
    if name == "sppo":
        return (u - 1 / (2 * beta)) ** 2 + (v + 1 / (2 * beta)) ** 2
    if name == "slic":
        x = 1 - beta * (u - v)
        return torch.where(x > 0, x, zero)
    if name == "dpo":
        h, e = beta * (u - v), o["label_smoothing"]
        return -(1 - e) * F.logsigmoid(h) - e * F.logsigmoid(-h)
    if name == "dpo_nll":
        return -F.logsigmoid(beta * (u - v)) - o["alpha"] * lw / nw
    if name == "dpop":
        return -F.logsigmoid(beta * (u - v - o["lambda"] * torch.where(u < 0, -u, zero)))
    if name == "minor_dpo":
        return -F.logsigmoid(beta * (u - torch.where(v > 0, v, zero)))
    if name == "bdpo":
        lam = o["lambda"]
        if lam == 1:
            m = v
        elif lam == 0:
            m = zero
        else:  # log(lambda e^v + (1 - lambda)) as a log-sum-exp of its two terms
            m = torch.logaddexp(v + math.log(lam), zero + math.log1p(-lam))
        return -F.logsigmoid(beta * (u - m))
    raise ValueError(name)


# ---- text to tokens ----

class Text:
    """Token ids of prompts and responses, from the tokenizer's and the template's own files."""

    def __init__(self, path, data):
        self.data = data
        self.tok = Tokenizer.from_file(os.path.join(path, "tokenizer.json"))
        self.tok.encode_special_tokens = True  # special tokens inside text are ordinary text
        with open(os.path.join(path, "tokenizer_config.json"), encoding="utf-8") as f:
            cfg = json.load(f)
        jinja = os.path.join(path, "chat_template.jinja")
        template = open(jinja, encoding="utf-8").read() if os.path.exists(jinja) else cfg.get("chat_template")
        self.hf = PreTrainedTokenizerFast(tokenizer_file=os.path.join(path, "tokenizer.json"), bos_token=cfg.get("bos_token"),
                                          eos_token=cfg.get("eos_token"), chat_template=template)
        self.bos, self.eos = self.hf.bos_token_id, self.hf.eos_token_id
        self.adds_bos = self.bos is not None and self.hf("a")["input_ids"][0] == self.bos
        self.specials = {t.content: i for i, t in self.tok.get_added_tokens_decoder().items() if t.special}
        self.end = next(self.specials[t] for t in ("<|im_end|>", "<|eot_id|>") if t in self.specials)

    def encode(self, s):
        return self.tok.encode(s, add_special_tokens=False).ids

    def chat(self, messages):
        """Ids of the rendered template with the generation prompt. Contents enter after the template's own specials were found."""
        if self.data["system_prompt"] is not None and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.data["system_prompt"]}] + messages
        marked = [dict(m, content=f"\ue000{i}\ue001") for i, m in enumerate(messages)]
        rendered = self.hf.apply_chat_template(marked, tokenize=False, add_generation_prompt=True)
        ids = []
        for run in re.split("(" + "|".join(map(re.escape, self.specials)) + ")", rendered):
            if run in self.specials:
                ids.append(self.specials[run])
            elif run:
                ids += self.encode(re.sub("\ue000(\\d+)\ue001", lambda m: messages[int(m[1])]["content"], run))
        if not any(s in m["content"] for m in messages for s in self.specials):  # then it must be what transformers does
            want = self.hf.apply_chat_template(messages, tokenize=True, add_generation_prompt=True, return_dict=False)
            assert ids == list(want), (ids, want)
        return ids

    def prompt(self, p):
        """(ids, end token) of a string or of a list of messages."""
        if isinstance(p, list):
            return self.chat(p), self.end
        if self.data["string_prompts"] == "user":
            return self.chat([{"role": "user", "content": p}]), self.end
        return ([self.bos] if self.adds_bos else []) + self.encode(p), self.eos

    def cut(self, prompt, responses):
        """The rule of truncation: nothing while prompt and longest response fit; else the prompt's end, then the responses' ends."""
        most = self.data["max_length"]
        keep = self.data["max_prompt_length"] or most // 2
        if len(prompt) + max(map(len, responses)) <= most:
            return prompt, responses
        if len(prompt) > keep:
            head = prompt[:1] if self.bos is not None and prompt[0] == self.bos else []
            prompt = head + prompt[len(prompt) - (keep - len(head)):]
        return prompt, [r[:most - len(prompt)] for r in responses]


def read_rows(paths):
    for path in [paths] if isinstance(paths, str) else paths:
        with (gzip.open if path.endswith(".gz") else open)(path, "rt", encoding="utf-8", newline="\n") as f:
            for number, line in enumerate(f, 1):
                if line.strip():
                    yield path, number, json.loads(line)


def content(response):
    return response if isinstance(response, str) else response[-1]["content"]


def split_pair(row):
    """(prompt, chosen text, rejected text) of a row in any of the pair forms."""
    w, l = row["chosen"], row["rejected"]
    if isinstance(w, str):
        if "prompt" in row:
            return row["prompt"], w, l
        common = os.path.commonprefix([w, l])
        mark = "\n\nAssistant:"
        at = common.rindex(mark) + len(mark)
        return w[:at], w[at:], l[at:]
    if isinstance(row.get("prompt"), list):
        return row["prompt"], content(w), content(l)
    n = 0
    while n < min(len(w), len(l)) - 1 and w[n] == l[n]:
        n += 1
    return w[:n], content(w[n:]), content(l[n:])


def load_pairs(paths, text):
    """Rows that are kept: dicts with file, line, prompt, chosen, rejected (ids)."""
    out = []
    for path, number, row in read_rows(paths):
        prompt, w, l = split_pair(row)
        ids, end = text.prompt(prompt)
        if not ids or not w.strip() or not l.strip() or w == l:
            continue
        p, (wi, li) = text.cut(ids, [text.encode(w) + [end], text.encode(l) + [end]])
        if wi == li:
            continue
        out.append(dict(file=path, line=number, prompt=p, chosen=wi, rejected=li))
    return out


def load_sft(paths, text):
    out = []
    for path, number, row in read_rows(paths):
        if "messages" in row:
            prompt, answer = row["messages"][:-1], row["messages"][-1]["content"]
        elif "completion" in row:
            prompt, answer = row["prompt"], row["completion"]
        else:
            prompt, answer, _ = split_pair(row)
        ids, end = text.prompt(prompt)
        if not ids or not answer.strip():
            continue
        p, (a,) = text.cut(ids, [text.encode(answer) + [end]])
        out.append(dict(file=path, line=number, prompt=p, chosen=a))
    return out


# ---- model ----

def load_model(path, dtype=torch.float32):
    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="eager")


def score(model, seqs):
    """Summed log-probability of each response, float64 [S]; seqs: (prompt ids, response ids). Padding stands at the right, after
    everything that is scored, so that no causal position sees it."""
    longest = max(len(p) + len(r) for p, r in seqs)
    ids = torch.zeros(len(seqs), longest, dtype=torch.long)
    mask = torch.zeros(len(seqs), longest, dtype=torch.long)
    use = torch.zeros(len(seqs), longest - 1, dtype=torch.bool)
    for i, (p, r) in enumerate(seqs):
        n = len(p) + len(r)
        ids[i, :n] = torch.tensor(p + r)
        mask[i, :n] = 1
        use[i, len(p) - 1:n - 1] = True
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
    logp = F.log_softmax(logits, dim=-1).gather(2, ids[:, 1:, None])[..., 0]
    return torch.where(use, logp.double(), 0.0).sum(1)


def score_pairs(model, pairs):
    s = score(model, [(p["prompt"], p["chosen"]) for p in pairs] + [(p["prompt"], p["rejected"]) for p in pairs])
    return s[:len(pairs)], s[len(pairs):]


def named_weights(model):
    """Copies of the parameters by name, a tied head once."""
    return {n: p.detach().clone().float() for n, p in model.named_parameters()}


# ---- training ----

def learning_rate(s, t, T):
    W = math.ceil(s["warmup_ratio"] * T)
    lr = s["learning_rate"]
    if t < W:
        return lr * t / max(1, W)
    if s["schedule"] == "linear":
        return lr * (T - t) / max(1, T - W)
    if s["schedule"] == "cosine":
        return lr * max(0.0, 0.5 * (1 + math.cos(math.pi * (t - W) / max(1, T - W))))
    return lr


def train(model, s, examples, batch_loss, stage):
    """One stage; batch_loss(step, batch) -> (scalar to differentiate, metrics of the batch)."""
    assert not s["shuffle"], "this job reads the data in order"
    n, size = len(examples), s["batch_size"]
    per_epoch = math.ceil(n / size)
    T = math.ceil(s["epochs"] * per_epoch)
    if s["max_steps"]:
        T = min(T, s["max_steps"])
    params = [p for p in model.parameters() if p.requires_grad]  # with adapters these alone
    opt = torch.optim.AdamW([dict(params=[p for p in params if p.ndim >= 2], weight_decay=s["weight_decay"]),
                             dict(params=[p for p in params if p.ndim < 2], weight_decay=0.0)],
                            lr=1.0, betas=(s["adam_beta1"], s["adam_beta2"]), eps=s["adam_epsilon"], foreach=False)
    rows = []
    for t in range(T):
        at = t % per_epoch * size
        batch = examples[at:at + size]
        for g in opt.param_groups:
            g["lr"] = learning_rate(s, t, T)
        opt.zero_grad(set_to_none=True)
        loss, row = batch_loss(t, batch)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(params, s["max_grad_norm"], foreach=False)
        opt.step()
        tokens = sum(len(e["prompt"]) + len(e["chosen"]) + len(e.get("rejected", [])) for e in batch)
        rows.append(dict(stage=stage, step=t + 1, epoch=(t + 1) / per_epoch, loss=loss.item(), grad_norm=norm.item(),
                         learning_rate=learning_rate(s, t, T), tokens=tokens, skipped=0, **row))
    return rows


def sft_loss(model):
    def batch_loss(_, batch):
        lw = score(model, [(e["prompt"], e["chosen"]) for e in batch])
        n = sum(len(e["chosen"]) for e in batch)
        return -lw.sum() / n, {}
    return batch_loss


def pair_metrics(name, o, loss, lw, ll, rw, rl, nw, nl):
    """The metrics of one batch (all tensors [P], detached); "_" keys are for the comparison's tolerances."""
    lw, ll = lw.detach(), ll.detach()
    beta = o["beta"]
    orpo = name == "orpo"
    cw, cl = (beta * lw / nw, beta * ll / nl) if orpo else (beta * (lw - rw), beta * (ll - rl))
    m = {"rewards/chosen": cw.mean(), "rewards/rejected": cl.mean(), "rewards/accuracies": (cw > cl).double().mean(),
         "rewards/margins": (cw - cl).mean(), "logps/chosen": lw.mean(), "logps/rejected": ll.mean(), "nll_loss": -lw.sum() / nw.sum(),
         "in_distribution": torch.logaddexp(lw, ll).mean(), "_loss": loss.mean(), "_nw": nw.mean(), "_nl": nl.mean(), "_pairs": len(lw),
         "_close_margins": ((cw - cl).abs() < 1e-4 * (1 if orpo else (nw + nl))).sum()}
    if not orpo:
        m.update({"ref_logps/chosen": rw.mean(), "ref_logps/rejected": rl.mean()})
    if name == "bdpo":
        lam = o["lambda"]
        v = ll - rl
        gate = torch.sigmoid(v + math.log(lam) - math.log1p(-lam)) if 0 < lam < 1 else torch.full_like(v, float(lam))
        over = lw - rw - math.log1p(-lam) if lam < 1 else torch.full_like(v, math.inf)
        m.update({"bdpo/gate": gate.mean(), "bdpo/bound": (over > 0).double().mean(), "_close_bounds": (over.abs() < 1e-4 * nw).sum()})
    return {k: float(x) for k, x in m.items()}


def counts(batch):
    return (torch.tensor([float(len(e["chosen"])) for e in batch], dtype=torch.float64),
            torch.tensor([float(len(e["rejected"])) for e in batch], dtype=torch.float64))


def preference_loss(model, name, o, ref, own_reference):
    def batch_loss(t, batch):
        lw, ll = score_pairs(model, batch)
        nw, nl = counts(batch)
        rw, rl = (torch.stack(x) for x in zip(*[ref[id(e)] for e in batch]))
        if own_reference and t == 0:
            rw, rl = lw.detach(), ll.detach()  # exactly 0 on the kinks, whatever the shapes of the two passes
        loss = loss_value(name, o, lw, ll, rw, rl, nw, nl)
        return loss.mean(), pair_metrics(name, o, loss.detach(), lw, ll, rw, rl, nw, nl)
    return batch_loss


def reference_logps(model, pairs, size):
    ref = {}
    with torch.no_grad():
        for at in range(0, len(pairs), size):
            part = pairs[at:at + size]
            for e, w, l in zip(part, *score_pairs(model, part)):
                ref[id(e)] = (w, l)
    return ref


def evaluate(model, name, o, pairs, ref_model):
    """Metrics over all pairs of an evaluation set, and the pairs' own log-probabilities."""
    with torch.no_grad():
        lw, ll = score_pairs(model, pairs)
        rw, rl = score_pairs(ref_model, pairs)
        nw, nl = counts(pairs)
        loss = loss_value(name, o, lw, ll, rw, rl, nw, nl)
    m = pair_metrics(name, o, loss, lw, ll, rw, rl, nw, nl)
    m["loss"] = m["_loss"]
    return m, lw, ll


def pair_lines(pairs, lw, ll):
    """The lines of `evaluate --per-pair`."""
    return [{"file": p["file"], "line": p["line"], "prompt_ids": p["prompt"], "chosen_ids": p["chosen"], "rejected_ids": p["rejected"],
             "logps/chosen": float(w), "logps/rejected": float(l)} for p, w, l in zip(pairs, lw, ll)]


def loss_options(pref):
    return {k: float(pref.get(k, d)) for k, d in LOSS_DEFAULTS[pref["loss"]].items()}


def run_sft(cfg, dtype=torch.float32):
    """(rows, weights at the end as saved, or None without an sft section). The files' dtype is that of the input's."""
    if "sft" not in cfg:
        return [], None
    data = dict(DATA_DEFAULTS, **cfg["data"])
    text = Text(cfg["model"]["path"], data)
    s = dict(STAGE_DEFAULTS, **cfg["sft"])
    model = load_model(cfg["model"]["path"], dtype)
    saved = load_model(cfg["model"]["path"], "auto").dtype
    rows = train(model, s, load_sft(s.get("train") or data["train"], text), sft_loss(model), "sft")
    return rows, {n: w.to(saved).float() for n, w in named_weights(model).items()}


def run_job(cfg, sft=None, dtype=torch.float32):
    """The whole job. sft: an earlier run_sft() of the same section. Returns rows, weights of each stage, evaluation and the pairs."""
    sft_rows, sft_weights = sft or run_sft(cfg, dtype)
    path = cfg["model"]["path"]
    data = dict(DATA_DEFAULTS, **cfg["data"])
    text = Text(path, data)
    model = load_model(path, dtype)
    start = named_weights(model)
    saved = load_model(path, "auto").dtype
    if sft_weights:
        set_weights(model, sft_weights)
    res = dict(rows=list(sft_rows), start=start, sft=sft_weights, final=named_weights(model), eval=None, eval_pairs=[], text=text)
    if "preference" in cfg:
        s = dict(PREFERENCE_DEFAULTS, **cfg["preference"])
        o = loss_options(s)
        pairs = load_pairs(s.get("train") or data["train"], text)
        ref_path = cfg.get("reference", {}).get("path")
        ref_model = load_model(ref_path or path, dtype)
        if not ref_path:
            set_weights(ref_model, named_weights(model))
        ref = reference_logps(ref_model, pairs, s["batch_size"])
        res["rows"] += train(model, s, pairs, preference_loss(model, s["loss"], o, ref, not ref_path), "preference")
        res["final"] = {n: w.to(saved).float() for n, w in named_weights(model).items()}
        if data["eval"]:
            res["eval_pairs"] = load_pairs(data["eval"], text)
            set_weights(model, res["final"])
            res["eval"], lw, ll = evaluate(model, s["loss"], o, res["eval_pairs"], ref_model)
            res["eval_lines"] = pair_lines(res["eval_pairs"], lw, ll)
    return res


def set_weights(model, weights):
    with torch.no_grad():
        for n, p in model.named_parameters():
            p.copy_(weights[n])
