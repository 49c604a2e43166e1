#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The program as a user meets it: commands, exit codes, lines of error, files of a run. Standard library only; $BDPO_TRAIN is run."""
import json
import math
import os
import re
import shutil
import signal
import struct
import sys
import tempfile
import time

import tiny_job as t
from compare_rows import Report

KEYS = ["stage", "step", "epoch", "loss", "grad_norm", "learning_rate", "tokens", "skipped"]
PAIR_KEYS = ["rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected", "nll_loss",
             "in_distribution"]
REF_KEYS = ["ref_logps/chosen", "ref_logps/rejected"]
BDPO_KEYS = ["bdpo/gate", "bdpo/bound"]
LOSSES = ["dpo", "dpo_nll", "dpop", "bdpo", "minor_dpo", "slic", "orpo", "sppo"]


class Place:
    """A directory with a model and data; `job` writes a config there, `run` starts it."""

    def __init__(self, r, root, name, **model):
        self.r, self.dir = r, os.path.join(root, name)
        os.makedirs(self.dir)
        t.make_root(self.dir, **model)
        self.out = os.path.join(self.dir, "run")

    def path(self, name):
        return os.path.join(self.dir, name)

    def job(self, **sections):
        t.write_json(self.path("run.json"), t.make_config(self.dir, **sections))
        return self.path("run.json")

    def train(self, *args, timeout=60, **sections):
        return t.bdpo("--config", self.job(**sections), *args, timeout=timeout)

    def check(self, ok, what, detail=""):
        self.r.check(ok, what, "" if ok else detail)

    def ended(self, what, res, code, *parts):
        """It ended with this code and said all of this."""
        lacking = [p for p in parts if p not in res.err]
        self.check(res.code == code and not lacking, what, f"expected {code}, {lacking}: {res}")

    def refused(self, what, res, *parts, code=2, lines=1):
        """One clear line of error a problem, this code, and nothing was written (files made before are in `kept`)."""
        errors = [line for line in res.lines if "error: " in line]
        lacking = [p for p in parts if p not in res.err]
        now = self.files()
        ok = res.code == code and not lacking and len(errors) == lines and now == self.kept
        changed = sorted(k for k in {*now, *self.kept} if now.get(k) != self.kept.get(k))
        self.check(ok, what, f"expected {code}, {lines} line(s), {lacking}; changed: {changed}; {res}")

    def files(self):
        """All but the token cache: what was read of the data is kept there, whole or not at all, even where the run is then refused."""
        return {k: v for k, v in t.tree(self.dir).items() if not re.fullmatch(r"cache(/tokens-[0-9a-f]{32}\.bin)?", k)}

    def keep(self):
        self.kept = self.files()

    def status(self):
        with open(self.path("run/status.json"), encoding="utf-8") as f:
            return json.load(f)

    def rows(self):
        return t.read_lines(self.path("run/metrics.jsonl"))


def test_usage(r, root):
    p = Place(r, root, "usage")
    res = t.bdpo("--help")
    parts = ["generate", "evaluate", "tokenize", "losses", "exit codes", "preference.lambda", "checkpoint.every", "75"]
    p.check(res.code == 0 and all(x in res.out for x in parts), "--help", f"{res} {res.out[:300]}")
    for command in ("generate", "evaluate", "lint", "plan", "tokenize", "losses", "contour", "toy", "merge", "report", "sweep"):
        res = t.bdpo(command, "--help")
        p.check(res.code == 0 and res.out.count("bdpo-train ") == 1 and f"bdpo-train {command} " in res.out and "config keys" not in res.out, f"{command} --help", f"{res} {res.out[:300]}")
    res = t.bdpo("--version")
    p.check(res.code == 0 and res.out.startswith("bdpo-train ") and len(res.out.split("\n")) == 2, "--version", res.out)
    res = t.bdpo("losses")
    p.check(res.code == 0 and all(f"{x} " in res.out for x in LOSSES) and "lambda (0.5)" in res.out, "losses", res.out)
    p.keep()
    for args, parts in [
        ([], ["usage"]),
        (["--bogus"], ["--bogus", "unknown"]),
        (["--confg", "x"], ["--confg", "did you mean --config?"]),
        (["--config"], ["--config needs a value"]),
        (["--config", "a", "--config", "b"], ["given twice"]),
        (["--dry-run=1"], ["takes no value"]),
        (["--dry-run"], ["--config"]),
        (["--config", p.path("none.json")], ["none.json", "No such file"]),
        (["--config", p.dir], [p.dir, "directory"]),
        (["evalute"], ['did you mean "evaluate"?']),
        (["frobnicate"], ["frobnicate", "unknown command"]),
        (["evaluate"], ["--config"]),
        (["evaluate", "--dry-run"], ["--dry-run"]),
        (["generate", "--prompt", "a"], ["--model"]),
        (["generate", "--model", "m"], ["--prompt"]),
        (["generate", "--model", "m", "--prompt", "a", "--prompts", "b"], ["one of"]),
        (["generate", "--model", "m", "--prompt", "a", "--temprature", "1"], ["did you mean --temperature?"]),
        (["generate", "--model", "m", "--prompt", "a", "--temperature", "-1"], ["--temperature", "[0, 100]"]),
        (["generate", "--model", "m", "--prompt", "a", "--top-p", "0"], ["--top-p"]),
        (["generate", "--model", "m", "--prompt", "a", "--top-k", "1.5"], ["--top-k", "whole number"]),
        (["generate", "--model", "m", "--prompt", "a", "--max-tokens", "0x10"], ["--max-tokens"]),
        (["generate", "--model", "m", "--prompt", "a", "--seed", "nan"], ["--seed"]),
        (["generate", "--model", "m", "--prompt", "a", "--string-prompts", "chat"], ["raw or user"]),
        (["generate", "--model", "m", "--prompt", "a", "--dtype", "float16"], ["float32 or bfloat16"]),
        (["tokenize", "--model", "m"], ["FILE"]),
        (["losses", "dpo"], ["losses takes no"]),
        (["merge"], ["RUN_DIR is needed"]),
        (["merge", "nowhere"], ["--out DIR is needed"]),
        (["merge", "nowhere", "--out", "x"], ["holds no adapter"]),
        (["merge", ".", "--out", "."], ["is there already"]),
    ]:
        p.refused(f"usage: {' '.join(os.path.basename(a) for a in args) or 'nothing'}", t.bdpo(*args), *parts)


def test_dry_run(r, root):
    p = Place(r, root, "dry")
    run = p.job(preference={"lambda": 0.7})
    p.keep()
    res = t.bdpo("--config", run, "--dry-run")
    p.ended("dry run: says steps and formula", res, 0, "sft: 3 steps over 10 rows", "preference: 6 steps over 10 pairs", "bdpo: softplus(",
            "log(0.7 e^v + 0.3)")
    p.check(t.tree(p.dir) == p.kept, "dry run: writes nothing", str(os.listdir(p.dir)))
    resolved = json.loads(res.out)
    p.check(resolved["preference"]["lambda"] == 0.7 and resolved["data"]["max_prompt_length"] == 16 and "alpha" not in resolved["preference"],
            "dry run: the resolved config", res.out)
    t.write_json(p.path("resolved.json"), resolved)
    p.keep()
    again = t.bdpo("--config", p.path("resolved.json"), "--dry-run")
    p.check(again.code == 0 and again.out == res.out, "dry run: its output is a valid config that resolves to itself", f"{again}")
    res = t.bdpo("--config", run, "--dry-run", "--set", "preference.loss=dpo_nll", "--set", "preference.alpha=0.25", "--set", "preference.max_steps=2",
                 "--set", "sft=null", "--set", f"output={p.dir}/else")
    p.refused("--set: an option that the new loss does not have", res, "preference.lambda", "dpo_nll")
    p.job()
    res = t.bdpo("--config", run, "--dry-run", "--set", "preference.loss=dpo_nll", "--set", "preference.alpha=0.25", "--set=preference.max_steps=2",
                 "--set", "sft=null", "--set", f"output={p.dir}/else")
    p.ended("--set: values as JSON and as text", res, 0, "preference: 2 steps", "0.25")
    c = json.loads(res.out)
    p.check("sft" not in c and c["output"] == f"{p.dir}/else" and c["preference"]["alpha"] == 0.25, "--set: in the resolved config", res.out)


def test_config_errors(r, root):
    p = Place(r, root, "config")
    for what, sections, parts, lines in [
        ("unknown key", {"preference": {"lamda": 1}}, ["run.json:", "preference.lamda", 'did you mean "lambda"?'], 1),
        ("unknown section", {"prefrence": {}}, ['did you mean "preference"?'], 1),
        ("range", {"preference": {"lambda": 1.5}}, ["1.5 is outside [0, 1]"], 1),
        ("type", {"sft": {"epochs": "two"}}, ["sft.epochs"], 1),
        ("choice", {"sft": {"schedule": "linaer"}}, ["sft.schedule", "linear"], 1),
        ("loss", {"preference": {"loss": "bpdo"}}, ["bpdo", "bdpo"], 1),
        ("option of another loss", {"preference": {"loss": "dpo", "lambda": 0.5}}, ["preference.lambda"], 1),
        ("three at once", {"seed": -1, "sft": {"batch_size": 0}, "logging": {"evry": 1}}, ["seed", "sft.batch_size", "logging.evry"], 3),
        ("nothing to train", {"sft": None, "preference": None}, ["nothing to train"], 1),
        ("dtype", {"model": {"dtype": "float16"}}, ["model.dtype", "float32"], 1),
        ("cuda", {"backend": "cuda"}, ["backend", "cpu"], 1),
        ("max_length of the model", {"data": {"max_length": 100}}, ["data.max_length", "max_position_embeddings", "64"], 1),
        ("eval without data", {"data": {"eval": None}, "eval": {"every": 1}}, ["eval.every", "data.eval"], 1),
    ]:
        run = p.job(**sections)
        p.keep()
        p.refused(f"config: {what}", t.bdpo("--config", run), *parts, lines=lines)
    for what, text, parts in [
        ("not JSON", '{"model": }', ["run.json:1:"]),
        ("not an object", "[]", ["run.json:1:1"]),
        ("empty file", "", ["run.json"]),
        ("duplicate key", '{"seed": 1,\n "seed": 2}', ["run.json:2:", "seed"]),
    ]:
        with open(p.path("run.json"), "w", encoding="utf-8") as f:
            f.write(text)
        p.keep()
        p.refused(f"config: {what}", t.bdpo("--config", p.path("run.json")), *parts)
    t.write_json(p.path("run.json"), {"output": "x"})
    p.keep()
    p.refused("config: nothing given", t.bdpo("--config", p.path("run.json")), "model.path", "nothing to train", lines=2)


def spoil_json(path, edit):
    with open(path, encoding="utf-8") as f:
        value = json.load(f)
    edit(value)
    t.write_json(path, value)


def test_template_errors(r, root):
    """Pieces in the config: a fault has the place of its member, whether the config or the tokenizer shows it."""
    p = Place(r, root, "template")
    path = f"{p.dir}/run.json"
    user, assistant = ["U", ""], ["A", "<|endoftext|>"]
    for pieces, member, part in [
        ({"user": user, "asistant": assistant}, "asistant", "unknown key"),
        ({"user": user, "assistant": "A"}, "assistant", 'is not ["before", "after"]'),
        ({"user": user, "assistant": assistant, "trim": 1}, "trim", "is neither true nor false"),
        ({"user": user, "assistant": assistant, "default_system": "S"}, "default_system", 'needs "system"'),
        ({"user": user, "assistant": ["A", "B"]}, "assistant", "the text after the response does not begin"),
        ({"user": user, "assistant": assistant, "end": "nothing"}, "end", "is not an added token"),
    ]:
        c = t.make_config(p.dir, data={"chat_template": pieces})
        with open(path, "w", encoding="utf-8") as f:
            json.dump(c, f, indent=2)
        line, column = next((i, x.index('"') + 1) for i, x in enumerate(t.read_bytes(path).decode().split("\n"), 1) if f'"{member}":' in x)
        for args in (("--dry-run",), ()):
            res = t.bdpo("--config", path, *args)
            want = f"{path}:{line}:{column}: error: data.chat_template.{member}: {part}"
            r.check(res.code == 2 and want in res.err and res.err.count("error:") == 1, f"pieces: {member} {part}", res)
    t.write_json(path, t.make_config(p.dir, data={"chat_template": {"user": user, "assistant": assistant}}))
    t.write_lines(f"{p.dir}/train.jsonl", [{"prompt": [{"role": r_, "content": "c"} for r_ in roles], "chosen": "a", "rejected": "b"}
                                          for roles in (["user"], ["system", "user"])])
    res = t.bdpo("--config", path, "--dry-run")
    r.check(res.code == 2 and f"{p.dir}/train.jsonl:2:2: error: the chat template has no place for a message of role" in res.err, "a row that the pieces refuse", res)


def test_model_errors(r, root):
    p = Place(r, root, "model")
    shutil.copytree(p.path("model"), p.path("whole"))
    run = p.job()
    weights = p.path("model/model.safetensors")

    def tensors(edit):
        values = t.weights()
        edit(values)
        t.write_safetensors(weights, values)

    def put(path, data):
        with open(path, "wb") as f:
            f.write(data)

    def nan(values):
        values["model.norm.weight"][1][3] = math.nan

    def inf(values):
        values["model.layers.0.mlp.up_proj.weight"][1][-1] = -math.inf

    def shape(values):
        values["model.layers.0.mlp.up_proj.weight"] = ((8, 16), [0.0] * 128)

    cases = [
        ("no directory", lambda: shutil.rmtree(p.path("model")), ["model/config.json", "No such file"]),
        ("no config.json", lambda: os.unlink(p.path("model/config.json")), ["model/config.json"]),
        ("no tokenizer.json", lambda: os.unlink(p.path("model/tokenizer.json")), ["tokenizer.json"]),
        ("no weights", lambda: os.unlink(weights), ["safetensors"]),
        ("another architecture", lambda: spoil_json(p.path("model/config.json"), lambda c: c.update(model_type="gpt2")), ["gpt2"]),
        ("sliding window", lambda: spoil_json(p.path("model/config.json"), lambda c: c.update(use_sliding_window=True, sliding_window=8, max_window_layers=0)),
         ["sliding"]),
        ("config.json is no JSON", lambda: put(p.path("model/config.json"), b"{"), ["config.json:1:"]),
        ("tokenizer.json is no JSON", lambda: put(p.path("model/tokenizer.json"), b"nothing"), ["tokenizer.json:1:"]),
        ("tokenizer.json of another kind", lambda: spoil_json(p.path("model/tokenizer.json"), lambda c: c["model"].update(type="WordPiece")), ["WordPiece"]),
        ("weights: empty", lambda: put(weights, b""), ["model.safetensors"]),
        ("weights: garbage", lambda: put(weights, b"\xff" * 64), ["model.safetensors"]),
        ("weights: cut off", lambda: os.truncate(weights, os.path.getsize(weights) - 4), ["model.safetensors"]),
        ("weights: more than the header says", lambda: put(weights, t.read_bytes(p.path("whole/model.safetensors")) + b"1234"), ["model.safetensors"]),
        ("weights: a huge header", lambda: put(weights, struct.pack("<Q", 1 << 62) + b"{}"), ["model.safetensors"]),
        ("weights: NaN", lambda: tensors(nan), ["model.norm.weight", "not a number"]),
        ("weights: infinite", lambda: tensors(inf), ["mlp.up_proj.weight", "inf"]),
        ("weights: a wrong shape", lambda: tensors(shape), ["mlp.up_proj.weight", "[8, 16]", "[24, 16]"]),
        ("weights: one is missing", lambda: tensors(lambda v: v.pop("model.norm.weight")), ["model.norm.weight"]),
    ]
    for what, spoil, parts in cases:
        shutil.rmtree(p.path("model"), ignore_errors=True)
        shutil.copytree(p.path("whole"), p.path("model"))
        spoil()
        p.keep()
        p.refused(f"model: {what}", t.bdpo("--config", run), *parts)
    shutil.rmtree(p.path("model"))
    os.rename(p.path("whole"), p.path("model"))
    p.job(reference={"path": p.path("nothing")})
    p.keep()
    p.refused("reference.path: no directory, said before SFT", t.bdpo("--config", run), "nothing")
    t.make_model(p.path("bad-ref"), seed=2, edit=nan)
    p.job(reference={"path": p.path("bad-ref")})
    p.keep()
    p.refused("reference.path: NaN weights, said before SFT", t.bdpo("--config", run), "bad-ref", "model.norm.weight", "not a number")


def test_data_errors(r, root):
    p = Place(r, root, "data")
    good = json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}) + "\n"
    run = p.job()

    def lines(text):
        with open(p.path("train.jsonl"), "w", encoding="utf-8", errors="surrogateescape") as f:
            f.write(text)

    for what, text, parts, n in [
        ("no file", None, ["train.jsonl", "No such file"], 1),
        ("empty", "", ["train.jsonl"], 1),
        ("not JSON", good + "{\n", ["train.jsonl:2:"], 1),
        ("not an object", good + "[1]\n", ["train.jsonl:2"], 1),
        ("no rejected", good + '{"prompt": "a", "chosen": "b"}\n', ["train.jsonl:2", "rejected"], 1),
        ("a number for a text", good * 2 + '{"prompt": "a", "chosen": 7, "rejected": "c"}\n', ["train.jsonl:3", "chosen"], 1),
        ("two bad rows, both named", "{}\n" + good + "7\n", ["train.jsonl:1", "train.jsonl:3"], 2),
        ("bad UTF-8", good + '{"prompt": "\udcff", "chosen": "b", "rejected": "c"}\n', ["train.jsonl:2"], 1),
        ("all degenerate", '{"prompt": "a", "chosen": "b", "rejected": "b"}\n' * 3, ["train.jsonl"], 1),
    ]:
        if text is None:
            os.unlink(p.path("train.jsonl"))
        else:
            lines(text)
        p.keep()
        p.refused(f"data: {what}", t.bdpo("--config", run, "--set", "sft=null"), *parts, lines=n)
    lines(good)
    with open(p.path("train.jsonl.gz"), "wb") as f:
        f.write(b"\x1f\x8b\x08\x00 and no more")
    p.keep()
    p.refused("data: broken gzip", t.bdpo("--config", run, "--set", f"data.train={p.path('train.jsonl.gz')}"), "train.jsonl.gz")
    lines(good * 3 + "{}\n")
    res = t.bdpo("--config", run, "--set", "data.on_bad_row=skip", "--set", "data.max_bad_rows=1", "--set", "sft=null")
    p.ended("data: on_bad_row skip", res, 0, "train.jsonl:4")


def test_output_errors(r, root):
    p = Place(r, root, "output")
    with open(p.path("file"), "w", encoding="utf-8") as f:
        f.write("mine")
    run = p.job()
    p.keep()
    for out, part in [("file", "not a directory"), ("file/below", "Not a directory"), ("file/below/deep", "Not a directory")]:
        p.refused(f"output: {out}", t.bdpo("--config", run, "--set", f"output={p.path(out)}"), "output", "file", part)
    os.makedirs(p.path("mine/model"))
    os.makedirs(p.path("mine/models"))
    shutil.copytree(p.path("model"), p.path("mine/models/base"))
    os.symlink(p.path("model"), p.path("mine/sft"))
    open(p.path("mine/.lock"), "w", encoding="utf-8").close()
    lock = p.path("mine/.lock")
    for what, args, code, parts in [
        ("a directory with somebody's model/", [], 82, ["mine", "fingerprint.json"]),
        ("the same, resume never", ["--set", "checkpoint.resume=never"], 2, ["mine", "fingerprint.json"]),
        ("model.path inside", ["--set", f"model.path={p.path('mine/models/base')}", "--set", "checkpoint.resume=never"], 2, ["model.path", "lies in the output"]),
    ]:
        open(lock, "w", encoding="utf-8").close()
        p.keep()
        res = t.bdpo("--config", run, "--set", f"output={p.path('mine')}", *args)
        open(lock, "w", encoding="utf-8").close()
        p.refused(f"output: {what}", res, *parts, code=code)
    for size in (2, 8):
        p.refused(f"a launch of {size} ranks", t.bdpo("--config", run, env={"OMPI_COMM_WORLD_SIZE": str(size), "OMPI_COMM_WORLD_RANK": "0"}), f"{size} ranks")


def test_run_files(r, root):
    p = Place(r, root, "files")
    sections = {"eval": {"every": 2}, "checkpoint": {"every": 1, "keep": 3, "export": "epoch"}, "note": "free text"}
    res = p.train(**sections)
    p.ended("a run", res, 0, "preference loss: bdpo: softplus(", "sft: 3 steps", "preference: 6 steps", "read back", "first step")
    want = {"config.json", "fingerprint.json", "metrics.jsonl", "timing.jsonl", "status.json", ".lock", "checkpoints", "sft", "models", "model", "report.html"}
    p.check(set(os.listdir(p.out)) == want, "run: its files", str(sorted(os.listdir(p.out))))
    p.check(sorted(os.listdir(p.path("run/checkpoints"))) == [f"preference-{k:06}" for k in (3, 4, 5)], "checkpoint.keep: the newest three",
            str(os.listdir(p.path("run/checkpoints"))))
    p.check(sorted(os.listdir(p.path("run/models"))) == ["epoch-1", "epoch-2"], "export epoch", str(os.listdir(p.path("run/models"))))
    p.check(t.read_bytes(p.path("run/models/epoch-2/model.safetensors")) == t.read_bytes(p.path("run/model/model.safetensors")),
            "export: the last epoch is the model")
    for name in ("sft", "model", "models/epoch-1"):
        p.check(set(os.listdir(p.path(f"run/{name}"))) == {"config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"},
                f"{name}/: a Hugging Face directory", str(os.listdir(p.path(f"run/{name}"))))
        p.check(t.read_bytes(p.path(f"run/{name}/tokenizer.json")) == t.read_bytes(p.path("model/tokenizer.json")), f"{name}/: the same tokenizer")
    rows = p.rows()
    sft = [x for x in rows if x["stage"] == "sft" and "loss" in x]
    pref = [x for x in rows if x["stage"] == "preference" and "loss" in x]
    held = [(x["stage"], x["step"]) for x in rows if "eval/loss" in x]
    p.check([x["step"] for x in sft] == [1, 2, 3] and [x["step"] for x in pref] == [1, 2, 3, 4, 5, 6], "metrics: every step")
    p.check(all(list(x) == KEYS[:4] + KEYS[4:] for x in sft), "metrics: keys of sft", str(list(sft[0])))
    p.check(all(set(x) == {*KEYS, *PAIR_KEYS, *REF_KEYS, *BDPO_KEYS} for x in pref), "metrics: keys of bdpo", str(list(pref[0])))
    p.check(held == [("sft", 2), ("sft", 3), ("preference", 2), ("preference", 4), ("preference", 6)], "metrics: evaluation rows", str(held))
    want = {"stage", "step", "epoch", *(f"eval/{k}" for k in ["loss", "examples", *PAIR_KEYS, *REF_KEYS, *BDPO_KEYS])}
    p.check(all(set(x) == want for x in rows if x["stage"] == "preference" and "eval/loss" in x), "metrics: keys of an evaluation")
    p.check([x["epoch"] for x in pref] == [k / 3 for k in range(1, 7)], "metrics: epoch", str([x["epoch"] for x in pref]))
    p.check([x["learning_rate"] for x in pref] == [1e-2 * ((6 - k) / 6) for k in range(6)], "metrics: learning rate of the step")
    p.check(abs(pref[0]["loss"] - math.log(2)) < 1e-9 and pref[0]["bdpo/gate"] == 0.5 and pref[0]["logps/chosen"] == pref[0]["ref_logps/chosen"],
            "metrics: the first step stands at the reference", str(pref[0]))
    timing = t.read_lines(p.path("run/timing.jsonl"))
    keys = ["stage", "step", "step_seconds", "tokens_per_second", "pairs_per_second", "comm_seconds", "comm_bytes"]
    p.check(len(timing) == 9 and all(list(x) == keys for x in timing), "timing.jsonl", str(timing[0]))
    s = p.status()
    p.check(s["state"] == "done" and s["exit_code"] == 0 and s["stage"] == "preference" and s["step"] == s["steps"] == 6 and s["pid"] > 1
            and s["host"] and s["checkpoint"] == "checkpoints/preference-000005" and s["metrics"]["step"] == 6 and s["reason"], "status.json", str(s))
    before = t.tree(p.out)
    res = t.bdpo("--config", p.path("run.json"))
    p.ended("a finished run says so", res, 0, "finished already")
    p.check({k: v for k, v in t.tree(p.out).items() if k != ".lock"} == {k: v for k, v in before.items() if k != ".lock"}, "and changes nothing")
    res = t.bdpo("--config", p.path("run/config.json"))
    p.ended("the resolved config is the same run", res, 0, "finished already")
    res = t.bdpo("--config", p.path("run.json"), "--set", "preference.lambda=0.9", "--set", "threads=2", "--set", "logging.every=5")
    p.ended("a changed key: named with both values", res, 82, "preference.lambda: 0.9 was 0.5")
    p.check("threads" not in res.err and "logging" not in res.err, "threads and logging may change", res.err)
    return_to = t.read_bytes(p.path("train.jsonl"))
    t.write_lines(p.path("train.jsonl"), t.make_pairs(10, 77))
    p.ended("changed data: named", t.bdpo("--config", p.path("run.json")), 82, "data")
    with open(p.path("train.jsonl"), "wb") as f:
        f.write(return_to)
    weights = t.read_bytes(p.path("model/model.safetensors"))
    t.write_safetensors(p.path("model/model.safetensors"), t.weights(seed=2))
    p.ended("other weights of the same size: named", t.bdpo("--config", p.path("run.json")), 82, "model.safetensors", f"{len(weights)} bytes")
    with open(p.path("model/model.safetensors"), "wb") as f:
        f.write(weights)
    spoil_json(p.path("model/config.json"), lambda c: c.update(rope_theta=500.0))
    p.ended("a changed model directory: named", t.bdpo("--config", p.path("run.json")), 82, "config.json")
    first = t.read_bytes(p.path("run/metrics.jsonl"))
    res = t.bdpo("--config", p.path("run.json"), "--set", "checkpoint.resume=never", "--set", "preference.lambda=0.9", "--set", "logging.every=4",
                 "--set", "checkpoint.every=0", "--set", "eval.every=0", "--set", "eval.at_end=false", "--set", "checkpoint.export=stage")
    p.ended("resume never: a fresh run", res, 0)
    p.check([x["step"] for x in p.rows()] == [3, 4, 6] and not os.path.exists(p.path("run/models")) and t.read_bytes(p.path("run/metrics.jsonl")) != first,
            "logging.every 4 logs that and the last step of a stage; nothing of the old run is left", str([x["step"] for x in p.rows()]))


def test_stages(r, root):
    p = Place(r, root, "stages")
    p.ended("sft alone", p.train(preference=None), 0)
    p.check(t.read_bytes(p.path("run/sft/model.safetensors")) == t.read_bytes(p.path("run/model/model.safetensors")), "sft alone: model is sft")
    os.rename(p.out, p.path("one"))
    p.ended("preference alone, from that sft", p.train(sft=None, model={"path": p.path("one/sft")}), 0)
    p.check(not os.path.exists(p.path("run/sft")), "preference alone: no sft")
    alone = t.read_bytes(p.path("run/model/model.safetensors"))
    shutil.rmtree(p.out)
    p.ended("both", p.train(), 0)
    p.check(t.read_bytes(p.path("run/model/model.safetensors")) == alone, "one job equals two, bit for bit")
    for loss in LOSSES:
        shutil.rmtree(p.out)
        p.ended(f"{loss}", p.train(sft=None, preference={"loss": loss, "max_steps": 2}), 0)
        want = {*KEYS, *PAIR_KEYS, *(REF_KEYS if loss != "orpo" else []), *(BDPO_KEYS if loss == "bdpo" else [])}
        rows = [x for x in p.rows() if "loss" in x]
        p.check(len(rows) == 2 and all(set(x) == want for x in rows), f"{loss}: its keys", str([sorted(set(x) ^ want) for x in rows]))
    shutil.rmtree(p.out)
    t.make_model(p.path("ref"), seed=9)
    p.ended("reference.path", p.train(reference={"path": p.path("ref")}), 0, "reference: scoring with")
    first = next(x for x in p.rows() if x["stage"] == "preference")
    p.check(first["ref_logps/chosen"] != first["logps/chosen"], "reference.path: another model's log-probabilities")
    shutil.rmtree(p.out)
    p.ended("init random", p.train(model={"init": "random"}, sft={"max_steps": 1}, preference={"max_steps": 1}), 0)
    own = p.path("own.jsonl")
    t.write_lines(own, [{"prompt": "q:", "completion": "abc"}] * 3)
    shutil.rmtree(p.out)
    p.ended("sft.train", p.train(sft={"train": own}, data={"eval": None}), 0, "own.jsonl: 3 rows", "sft: 1 steps")


def write_pair(p, name, rows):
    return t.write_lines(p.path(name), rows)


def test_generate(r, root):
    p = Place(r, root, "generate", template=True)
    model = p.path("model")
    rows = [{"prompt": w["prompt"], "id": i, "more": {"x": [1, None]}} for i, w in enumerate(t.make_pairs(11, 5))]
    rows[3] = {"prompt": [{"role": "user", "content": "hello"}], "id": 3, "more": 1}
    rows[4] = {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "x"}], "id": 4, "more": 2}
    prompts = write_pair(p, "prompts.jsonl", rows)

    def generate(*args, n=12):
        res = t.bdpo("generate", "--model", model, "--prompts", prompts, "--max-tokens", str(n), "--threads", "1", *args)
        p.check(res.code == 0, f"generate {' '.join(args)}", f"{res}")
        return [json.loads(x) for x in res.out.split("\n") if x]

    one = generate("--batch", "1")
    p.check([{k: v for k, v in x.items() if k not in ("response", "tokens", "finish")} for x in one] == rows, "generate: rows pass through")
    p.check(all(x["finish"] in ("stop", "length") and len(x["tokens"]) <= 12 and (x["finish"] == "stop" or len(x["tokens"]) == 12) for x in one),
            "generate: finish and tokens", str(one[0]))
    plain = [x for x in one if max(x["tokens"], default=0) < 128]
    p.check(len(plain) > 0 and all(bytes(x["tokens"]).decode() == x["response"] for x in plain), "generate: tokens are the ids of the response")
    p.check(generate("--batch", "8") == one, "generate: greedy does not depend on the batch")
    p.check(generate("--batch", "3", n=30)[0]["tokens"][:12] == one[0]["tokens"], "generate: a longer answer begins alike")
    half = generate("--dtype", "bfloat16")
    p.check(generate("--dtype", "float32") == one and len(half) == len(one) and generate("--dtype", "bfloat16") == half,
            "generate: --dtype")
    hot = generate("--temperature", "1", "--seed", "7", "--batch", "1")
    p.check(hot != one and generate("--temperature", "1", "--seed", "7", "--batch", "5") == hot, "generate: a seed repeats, whatever the batch")
    p.check(generate("--temperature", "1", "--seed", "8") != hot, "generate: another seed differs")
    p.check(generate("--temperature", "1", "--seed", "7", "--top-k", "1") == one, "generate: top-k 1 is greedy")
    p.check(generate("--temperature", "1", "--seed", "7", "--top-p", "1e-9") == one, "generate: a tiny top-p is greedy")
    p.check(generate("--temperature", "1", "--seed", "7", "--top-k", "3", "--top-p", "0.9") not in (one, hot), "generate: top-k and top-p together")
    res = t.bdpo("generate", "--model", model, "--prompts", prompts, "--max-tokens", "12", "--out", p.path("answers.jsonl"))
    p.check(res.code == 0 and res.out == "" and t.read_lines(p.path("answers.jsonl")) == one, "generate: --out", f"{res}")
    res = t.bdpo("generate", "--model", model, "--prompt", rows[0]["prompt"], "--max-tokens", "12")
    p.check(res.raw.decode("utf-8") == one[0]["response"] + "\n", "generate: --prompt prints text alone", f"{res}")

    # a model that says "x" after anything, then ends: its last norm and head alone decide
    def stops(v):
        h = v["model.embed_tokens.weight"][1]
        for k in range(16):
            v["model.layers.0.self_attn.o_proj.weight"][1][16 * k:16 * k + 16] = [0.0] * 16
            v["model.layers.0.mlp.down_proj.weight"][1][24 * k:24 * k + 24] = [0.0] * 24
            v["model.norm.weight"][1][k] = 1.0
        for i in range(259):
            h[16 * i:16 * i + 16] = [0.01] * 16
        h[16 * ord("x"):16 * ord("x") + 16] = [1.0] * 8 + [0.2] * 8
        h[16 * 256:16 * 256 + 16] = [2.0] * 8 + [-3.0] * 8

    t.make_model(p.path("stops"), edit=stops)
    res = t.bdpo("generate", "--model", p.path("stops"), "--prompts", write_pair(p, "p.jsonl", ["ab", {"prompt": "x"}]), "--max-tokens", "9")
    got = [json.loads(x) for x in res.out.split("\n") if x]
    want = [{"prompt": "ab", "response": "x", "tokens": [120], "finish": "stop"}, {"prompt": "x", "response": "", "tokens": [], "finish": "stop"}]
    p.check(got == want, "generate: stops at the end token, which is not in the answer", f"{got} {res}")
    p.keep()
    for what, args, parts in [
        ("no model", ["--model", p.path("none"), "--prompt", "a"], ["none/config.json"]),
        ("no file", ["--model", model, "--prompts", p.path("none")], ["none"]),
        ("too long", ["--model", model, "--prompt", "a", "--max-tokens", "64"], ["max_position_embeddings", "--max-tokens"]),
        ("an empty prompt", ["--model", model, "--prompt", "", "--max-tokens", "4"], ["--prompt", "no token"]),
        ("an output below a file", ["--model", model, "--prompt", "a", "--max-tokens", "4", "--out", prompts + "/x"], ["prompts.jsonl/x"]),
    ]:
        p.refused(f"generate: {what}", t.bdpo("generate", *args), *parts)
    bad = write_pair(p, "bad.jsonl", [{"prompt": "a"}, {"prompt": 7}])
    p.keep()
    p.refused("generate: a bad row", t.bdpo("generate", "--model", model, "--prompts", bad, "--max-tokens", "4"), "bad.jsonl:2")


def test_tokenize(r, root):
    p = Place(r, root, "tokenize", template=True)
    lines = ["ab", "", "<|im_end|>", {"messages": [{"role": "user", "content": "hi"}], "add_generation_prompt": True},
             {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]
    path = write_pair(p, "t.jsonl", lines)
    res = t.bdpo("tokenize", "--model", p.path("model"), path)
    b = lambda s: list(s.encode())
    start, end = [257], [258]
    want = [b("ab"), [], b("<|im_end|>"), [*start, *b("user\nhi"), *end, *b("\n"), *start, *b("assistant\n")],
            [*start, *b("user\na"), *end, *b("\n"), *start, *b("assistant\nb"), *end, *b("\n")]]
    p.check(res.code == 0 and [json.loads(x) for x in res.out.split("\n") if x] == want, "tokenize", f"{res} {res.out}")
    for name in ("config.json", "model.safetensors"):
        os.unlink(p.path(f"model/{name}"))
    p.check(t.bdpo("tokenize", "--model", p.path("model"), path).out == res.out, "tokenize: needs the tokenizer's files alone")
    write_pair(p, "t.jsonl", ["ab", {"messages": []}])
    p.keep()
    p.refused("tokenize: a bad line", t.bdpo("tokenize", "--model", p.path("model"), path), "t.jsonl:2")


def test_evaluate(r, root):
    p = Place(r, root, "evaluate")
    run = p.job()
    res = t.bdpo("evaluate", "--config", run)
    p.ended("evaluate: before any run, the model is policy and reference", res, 0, f"policy: {p.dir}/model, reference: {p.dir}/model")
    p.check(not os.path.exists(p.out), "evaluate: writes no run")
    got = json.loads(res.out)
    p.check(abs(got["eval/loss"] - math.log(2)) < 1e-12 and got["eval/rewards/margins"] == 0, "evaluate: at the reference", res.out)
    p.ended("its run", t.bdpo("--config", run), 0)
    last = p.rows()[-1]
    res = t.bdpo("evaluate", "--config", run, "--per-pair", p.path("pairs.jsonl"))
    p.ended("evaluate: after it, model/ against sft/", res, 0, "policy: ", "/run/model, reference: ", "/run/sft")
    got = json.loads(res.out)
    p.check(all(got[k] == v for k, v in last.items() if k.startswith("eval/")), "evaluate: as the run's own last evaluation", f"{got} {last}")
    pairs, data = t.read_lines(p.path("pairs.jsonl")), t.read_lines(p.path("eval.jsonl"))
    b = lambda s: list(s.encode())
    p.check(len(pairs) == 4 and all(
        x["file"] == p.path("eval.jsonl") and x["line"] == i + 1 and x["prompt_ids"] == b(d["prompt"]) and x["chosen_ids"] == b(d["chosen"]) + [256]
        and x["rejected_ids"] == b(d["rejected"]) + [256] for i, (x, d) in enumerate(zip(pairs, data))), "evaluate: --per-pair's rows", str(pairs[:1]))
    mean = sum(x["logps/chosen"] for x in pairs) / 4
    p.check(abs(mean - got["eval/logps/chosen"]) < 1e-9, "evaluate: --per-pair's log-probabilities have the printed mean", f"{mean} {got}")
    res = t.bdpo("evaluate", "--config", run, "--model", p.path("model"), "--set", f"reference.path={p.path('model')}")
    p.check(res.code == 0 and json.loads(res.out)["eval/rewards/chosen"] == 0, "evaluate: --model and reference.path", f"{res}")
    res = t.bdpo("evaluate", "--config", run, "--set", "preference=null")
    p.check(res.code == 0 and set(json.loads(res.out)) == {"loss", "eval/loss", "examples", "tokens"}, "evaluate: sft alone", res.out)
    p.keep()
    p.refused("evaluate: no data.eval", t.bdpo("evaluate", "--config", run, "--set", "data.eval=null"), "data.eval")
    p.refused("evaluate: no such model", t.bdpo("evaluate", "--config", run, "--model", p.path("none")), "none/config.json")
    p.refused("evaluate: --per-pair below a file", t.bdpo("evaluate", "--config", run, "--per-pair", p.path("run.json/x")), "run.json/x")


def test_full_disk(r, root):
    """/dev/full takes no byte; it must be there afterwards."""
    if not os.path.exists("/dev/full"):
        print("skip: there is no /dev/full")
        r.skipped += 1
        return
    p = Place(r, root, "full")
    run = p.job()
    model, prompts = p.path("model"), p.path("train.jsonl")
    tok = write_pair(p, "t.jsonl", ["ab"])
    p.keep()
    few = ["--max-tokens", "3"]
    p.refused("full: --per-pair", t.bdpo("evaluate", "--config", run, "--per-pair", "/dev/full"), "/dev/full", "No space", code=1)
    p.refused("full: --out", t.bdpo("generate", "--model", model, "--prompts", prompts, "--out", "/dev/full", *few), "/dev/full", "No space", code=1)
    p.check(os.stat("/dev/full").st_mode & 0o170000 == 0o020000, "full: /dev/full is what it was")
    with open("/dev/full", "wb") as full:
        for args in (["evaluate", "--config", run], ["generate", "--model", model, "--prompts", prompts, *few], ["generate", "--model", model, "--prompt", "a", *few],
                     ["tokenize", "--model", model, tok], ["--config", run, "--dry-run"], ["losses"], ["--help"], ["--version"]):
            p.refused(f"full: the output of {args[0]}", t.bdpo(*args, stdout=full), "standard output", code=1)
    res = t.bdpo("evaluate", "--config", run, "--per-pair", "/dev/stdout")
    p.check(res.code == 0 and len(res.out.strip().split("\n")) == 5, "--per-pair /dev/stdout", f"{res} {res.out}")
    p.check(os.path.islink("/dev/stdout"), "/dev/stdout is what it was")


def test_files_that_cannot_grow(r, root):
    """Every write of a run fails at some size; what was there stays, and the run goes on once there is room."""
    p = Place(r, root, "grow")
    sections = {"checkpoint": {"every": 2}, "eval": {"every": 1}}
    p.ended("with room", p.train(**sections), 0)
    os.rename(p.out, p.path("alone"))
    run, seen = p.path("run.json"), set()
    names = ["config.json", "fingerprint.json", "metrics.jsonl", "tokenizer.json", "model.safetensors", "state-00000-of-00001.bin"]
    for size, every in [(200, 2), (1700, 2), (3000, 0), (2500, 0), (10000, 2), (10000, 0), (30000, 2), (60000, 1)]:
        res = t.bdpo("--config", run, "--set", f"checkpoint.every={every}", file_bytes=size)
        errors = [x for x in res.lines if "error: " in x]
        seen.update(n for n in names if "/" + n in errors[-1])
        left = [x for x in t.tree(p.out) if ".tmp" in x]
        p.check(res.code == 1 and len(errors) == 1 and "File too large" in errors[0] and not left, f"no file above {size} bytes", f"{left} {res}")
        if size > 2500 and os.path.exists(p.path("run/status.json")):
            p.check(p.status()["exit_code"] == 1 and p.status()["state"] == "failed", f"no file above {size} bytes: status.json", str(p.status()))
    print(f"files that could not be written: {', '.join(sorted(seen))}")
    p.check(len(seen) >= 4, "several kinds of file could not be written", str(seen))
    p.ended("with room again", t.bdpo("--config", run), 0)
    for name in ("metrics.jsonl", "model/model.safetensors", "sft/model.safetensors"):
        p.check(t.read_bytes(p.path(f"run/{name}")) == t.read_bytes(p.path(f"alone/{name}")), f"with room again: {name} as in a run with room")


def test_starts_at_once(r, root):
    p = Place(r, root, "race")
    p.ended("one start", p.train(), 0)
    os.rename(p.out, p.path("alone"))
    for k in range(3):
        starts = [t.start("--config", p.path("run.json")) for _ in range(4)]
        errors = [x.communicate()[1].decode("utf-8", "replace").strip().split("\n")[-1] for x in starts]
        codes = [x.returncode for x in starts]
        ok = 0 in codes and all(c == 0 or c == 2 and ("in use by" in e or "another run" in e) for c, e in zip(codes, errors))
        p.check(ok, f"four starts at once, {k}: one works, the others say so", f"{codes} {errors}")
        p.check(t.read_bytes(p.path("run/metrics.jsonl")) == t.read_bytes(p.path("alone/metrics.jsonl")), f"four starts at once, {k}: the same metrics")
        shutil.rmtree(p.out)


def test_bound_threads(r, root):
    """OMP_PROC_BIND binds the first thread to a place before main: the others must still get theirs."""
    p = Place(r, root, "bound")
    p.ended("not bound", p.train(), 0)
    cores = len(os.sched_getaffinity(0))
    if cores < 2:
        print("skipped: one core: there is nothing to bind threads to")
        return
    for threads in ("0", str(cores)):
        res = t.bdpo("--config", p.path("run.json"), "--set", f"threads={threads}", "--set", f"output={p.path('run' + threads)}",
                     env={"OMP_PROC_BIND": "true", "OMP_DISPLAY_AFFINITY": "true"})
        p.ended(f"threads {threads}, bound", res, 0)
        p.check(f" {cores} threads" in res.err, f"threads {threads}, bound: all {cores} cores are seen", res.err)
        places = set(re.findall(r"affinity (\S+)$", res.err, re.MULTILINE))
        p.check(len(places) == cores, f"threads {threads}, bound: each on its own", f"{places} {res.err}")


def wait_for(condition, what, p, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            p.check(False, what, f"nothing came in {seconds} s")
            return False
        time.sleep(0.002)
    return True


def count(path):
    return t.read_bytes(path).count(b"\n") if os.path.exists(path) else 0


def test_signals(r, root):
    p = Place(r, root, "signals")
    sections = {"sft": {"epochs": 100}, "preference": {"epochs": 9000, "learning_rate": 1e-4}, "checkpoint": {"every": 2000}}
    p.ended("a long run, left alone", p.train(**sections), 0)
    os.rename(p.out, p.path("alone"))
    run, metrics = p.path("run.json"), p.path("run/metrics.jsonl")
    # `more` lines after where the run was: the steps are fast, and looking on may be slow
    for name, stage, more, twice in [("SIGUSR1", "sft", 20, None), ("SIGTERM", "preference", 600, None), ("SIGINT", "preference", 600, None),
                                     ("SIGUSR1", "preference", 600, signal.SIGTERM)]:
        what = f"{name}{' and a SIGTERM after it' if twice else ''} in {stage}"
        lines = count(metrics) + more
        started = t.start("--config", run)
        if not wait_for(lambda: count(metrics) >= lines or started.poll() is not None, what, p):
            started.kill()
            return
        if name == "SIGTERM":
            res = t.bdpo("--config", run)
            p.check(res.code == 2 and "in use by process" in res.err and str(started.pid) in res.err, "a second run in the same directory", f"{res}")
        started.send_signal(getattr(signal, name))
        if twice:
            started.send_signal(twice)
        err = started.communicate()[1].decode("utf-8", "replace")
        s = p.status()
        p.check(started.returncode == 75 and s["state"] == "stopped" and s["exit_code"] == 75 and s["stage"] == stage and "SIG" in s["reason"],
                f"{what}: exit code and status", f"{started.returncode} {s} {err[-300:]}")
        p.check(os.path.isdir(p.path(f"run/{s.get('checkpoint', '')}")) and s["checkpoint"].endswith(f"{stage}-{s['step']:06}"),
                f"{what}: the checkpoint that status.json names is there", str(s))
    p.ended("going on to the end", t.bdpo("--config", run), 0, "resumed from")
    for name in ("metrics.jsonl", "model/model.safetensors", "sft/model.safetensors"):
        p.check(t.read_bytes(p.path(f"run/{name}")) == t.read_bytes(p.path(f"alone/{name}")), f"after signals {name} is byte-equal to the run's left alone")


def test_stops(r, root):
    p = Place(r, root, "stops")
    res = p.train(max_hours=1e-9)
    p.ended("max_hours", res, 75, "max_hours")
    p.check(p.status()["state"] == "stopped" and "max_hours" in p.status()["reason"], "max_hours: status", str(p.status()))
    res = t.bdpo("--config", p.path("run.json"), "--set", "max_hours=null", "--set", "sft.learning_rate=0.02")
    p.ended("a changed key in the middle", res, 82, "sft.learning_rate: 0.02 was 0.01", "--allow-change")
    p.check(p.status()["state"] == "stopped", "and status.json is as it was")
    res = t.bdpo("--config", p.path("run.json"), "--set", "max_hours=null", "--set", "sft.learning_rate=0.02", "--allow-change")
    p.ended("--allow-change", res, 0, "warning", "sft.learning_rate: 0.02 was 0.01", "resumed from")
    with open(p.path("run/config.json"), encoding="utf-8") as f:
        p.check(json.load(f)["sft"]["learning_rate"] == 0.02, "--allow-change: config.json is the new one")
    shutil.rmtree(p.out)
    p.train(max_hours=1e-9, sft={"epochs": 2})
    at = p.path("run/checkpoints/sft-000001")
    os.rename(p.out, p.path("other"))
    at = p.path("other/checkpoints/sft-000001")
    res = p.train("--set", f"checkpoint.resume={at}", sft={"epochs": 2})
    p.ended("resume from a path, into another output", res, 0, f"resumed from {at}")
    res = p.train("--set", f"checkpoint.resume={at}", "--set", f"output={p.path('third')}", sft=None)
    p.ended("resume from a stage that is not there", res, 82, "sft")
    p.check(not os.path.exists(p.path("third")), "and nothing is written")
    res = p.train("--set", f"checkpoint.resume={p.path('model')}", "--set", f"output={p.path('third')}")
    p.ended("resume from what is no checkpoint", res, 82, "not a checkpoint")
    res = p.train("--set", f"checkpoint.resume={p.path('other/checkpoints/sft-000777')}", "--set", f"output={p.path('third')}")
    p.ended("resume from nothing", res, 82, "sft-000777")


def test_divergence(r, root):
    # 1e38 in the head overflows the logits of every row
    def huge(v):
        v["model.norm.weight"][1][:] = [1e30] * 16
        v["model.embed_tokens.weight"][1][:] = [1e12 * x for x in v["model.embed_tokens.weight"][1]]

    p = Place(r, root, "diverge", edit=huge)
    res = p.train(sft={"epochs": 3}, faults={"max_skipped_steps": 2}, data={"eval": None})
    p.ended("divergence: skipped steps, then the end", res, 80, "sft step 1 skipped", "train.jsonl:", "sft step 3", "max_skipped_steps", "learning_rate")
    rows = p.rows()
    s = p.status()
    p.check([x["skipped"] for x in rows] == [1, 2, 3] and all(isinstance(x["loss"], str) or isinstance(x["grad_norm"], str) for x in rows),
            "divergence: metrics rows", str(rows))
    p.check(s["state"] == "failed" and s["exit_code"] == 80 and not os.path.exists(p.path("run/sft")), "divergence: status", str(s))
    q = Place(r, root, "diverge-later")
    sections = {"sft": {"epochs": 200, "learning_rate": 1, "weight_decay": 100, "schedule": "constant"}, "data": {"eval": None}, "preference": None}
    res = q.train(**sections)
    q.ended("divergence by a huge rate and decay", res, 80, "skipped", "train.jsonl:")
    first = [x for x in q.rows() if x["skipped"]][0]
    q.check(first["step"] > 3 and q.rows()[-1]["skipped"] == 4 and q.rows()[-1]["step"] == first["step"] + 3, "divergence: after 3 skipped steps in a row",
            str(q.rows()[-1]))
    z = Place(r, root, "diverge-preference", edit=huge)
    res = z.train(sft=None, data={"eval": None})
    z.ended("divergence at the first preference step", res, 80, "preference step 1 skipped", "train.jsonl:")


def main():
    r, root = Report(), tempfile.mkdtemp(prefix="bdpo-cli-")
    tests = [test_usage, test_dry_run, test_config_errors, test_template_errors, test_model_errors, test_data_errors, test_output_errors, test_run_files, test_stages,
             test_generate, test_tokenize, test_evaluate, test_full_disk, test_files_that_cannot_grow, test_starts_at_once, test_bound_threads, test_signals, test_stops, test_divergence]
    try:
        for test in tests:
            if len(sys.argv) < 2 or test.__name__ in sys.argv[1:]:
                test(r, root)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return r.last()


if __name__ == "__main__":
    sys.exit(main())
