#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Runs with adapters, from outside: what they write, going on after a stop, several ranks, sweeps over one SFT, merging, and what is refused.
test/check_lora.py compares them with peft. Standard library only; the program is $BDPO_TRAIN."""
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile

import tiny_job as t
from compare_rows import Report
from mpi_launch import launcher

LORA = {"rank": 3, "alpha": 6}
RESULTS = ["model/adapter_model.safetensors", "model/adapter_config.json", "sft/adapter_model.safetensors", "metrics.jsonl"]


def check(r, ok, what, detail=""):
    r.check(ok, what, "" if ok else detail)


def job(root, name, lora=None, **sections):
    model = {"lora": {**LORA, **(lora or {})}, **sections.pop("model", {})}
    c = t.make_config(root, output=f"{root}/{name}", model=model, **sections)
    path = f"{root}/{name}.json"
    t.write_json(path, c)
    return path


def results(out):
    return {n: t.read_bytes(f"{out}/{n}") if os.path.exists(f"{out}/{n}") else None for n in RESULTS}


def header(path):
    data = t.read_bytes(path)
    return json.loads(data[8:8 + struct.unpack("<Q", data[:8])[0]])


def rows(out, stage):
    return [x for x in t.read_lines(f"{out}/metrics.jsonl") if x["stage"] == stage and "loss" in x]


def test_files(r, root):
    res = t.bdpo("--config", job(root, "run", checkpoint={"every": 2}))
    out = f"{root}/run"
    check(r, res.code == 0 and "adapters of rank 3" in res.err, "a run with adapters", f"{res}" if res.code else "")
    head = header(f"{out}/model/adapter_model.safetensors")
    names = [n for n in head if n != "__metadata__"]
    check(r, len(names) == 14 and head["base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"]["shape"] == [3, 24] and
            head["base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"]["shape"] == [16, 3] and all(head[n]["dtype"] == "F32" for n in names),
            "A and B of seven layers, in float32", f"{names}")
    with open(f"{out}/model/adapter_config.json", encoding="utf-8") as f:
        c = json.load(f)
    check(r, c["r"] == 3 and c["lora_alpha"] == 6 and c["base_model_name_or_path"] == f"{root}/model" and len(c["target_modules"]) == 7, "peft's config", f"{c}")
    check(r, sorted(os.listdir(f"{out}/model")) == ["adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json"],
            "and the tokenizer, nothing else", f"{os.listdir(out + '/model')}")
    elements = sum(a["shape"][0] * a["shape"][1] for n, a in head.items() if n != "__metadata__")
    size = max(os.path.getsize(f"{out}/checkpoints/{d}/state-00000-of-00001.bin") for d in os.listdir(f"{out}/checkpoints"))
    check(r, 12 * elements <= size < 12 * (elements + 32 * 8) + 200, "a checkpoint holds the adapters alone", f"{size} bytes for {elements}")
    first = rows(out, "preference")[0]
    check(r, abs(first["loss"] - 0.6931471805599453) < 1e-9 and first["logps/chosen"] == first["ref_logps/chosen"] and
            first["logps/chosen"] != rows(out, "sft")[0].get("logps/chosen"), "the reference is the policy with the adapters of sft/", f"{first}")
    res = t.bdpo("--config", f"{root}/run.json")
    check(r, res.code == 0 and "done" in res.err + res.out or "finished" in res.err, "finished, it says so", f"{res}")


def test_resume(r, root):
    """Stopped after every few steps and gone on with: the bytes of the run that was left alone."""
    want = results(f"{root}/run")
    path = job(root, "stopped", checkpoint={"every": 2})
    codes = []
    for _ in range(40):
        codes.append(t.bdpo("--config", path, "--set", "max_hours=1e-9").code)
        if codes[-1] != 75:
            break
    got = results(f"{root}/stopped")
    check(r, codes[-1] == 0 and 75 in codes and got == want, f"stopped {codes.count(75)} times, the same bytes",
            " ".join(n for n in RESULTS if got[n] != want[n]) + f" {codes[-1]}")
    res = t.bdpo("--config", path, "--set", "model.lora.rank=4")
    check(r, res.code == 82 and "model.lora.rank" in res.err, "another rank is another run", f"{res}")


def test_sweep(r, root):
    """A preference run that starts from the adapter of an SFT is the second stage of the run of both."""
    res = t.bdpo("--config", job(root, "swept", {"path": f"{root}/run/sft"}, sft=None))
    same = rows(f"{root}/swept", "preference") == rows(f"{root}/run", "preference")
    check(r, res.code == 0 and same, "model.lora.path: a sweep over one SFT", f"{res}" if res.code else "")
    check(r, results(f"{root}/swept")[RESULTS[0]] == results(f"{root}/run")[RESULTS[0]], "to the bit")
    res = t.bdpo("evaluate", "--config", f"{root}/swept.json")
    row = json.loads(res.out) if res.code == 0 else {}
    last = [x for x in t.read_lines(f"{root}/run/metrics.jsonl") if "eval/loss" in x][-1]
    check(r, res.code == 0 and abs(row["eval/loss"] - last["eval/loss"]) < 1e-6, "evaluate, its reference the start", f"{res}" if res.code else f"{row} {last}")
    res = t.bdpo("--config", job(root, "foreign", sft=None, reference={"path": f"{root}/run/sft"}))
    check(r, res.code == 0, "reference.path: an adapter", f"{res}" if res.code else "")


def test_merge(r, root):
    res = t.bdpo("merge", f"{root}/run", "--out", f"{root}/merged")
    check(r, res.code == 0 and os.path.exists(f"{root}/merged/model.safetensors"), "merge", f"{res}")
    a, b = (json.loads(t.bdpo("evaluate", "--config", f"{root}/run.json", "--model", d).out or "{}") for d in (f"{root}/run/model", f"{root}/merged"))
    check(r, a and abs(a["logps/chosen"] - b["logps/chosen"]) < 1e-4 and abs(a["eval/loss"] - b["eval/loss"]) < 1e-5, "the merged model is the same", f"{a} {b}")
    x, y = (t.bdpo("generate", "--model", d, "--prompt", "ab:", "--max-tokens", "8") for d in (f"{root}/run/model", f"{root}/merged"))
    check(r, x.code == 0 and x.raw == y.raw and len(x.raw) > 1, "and says the same", f"{x} {y}")
    res = t.bdpo("merge", f"{root}/run", "--out", f"{root}/merged")
    check(r, res.code == 2 and "is there already" in res.err, "it writes over nothing", f"{res}")


def test_kl(r, root, name, **model):
    """eval/kl takes the base from the policy; with a reference.path it loads one of its own, and gives the same numbers."""
    kl = {"eval": {"kl_samples": 6, "every": 1}, "sft": None, "model": model}
    shared = job(root, f"{name}-shared", {"path": f"{root}/run/sft"}, **kl)
    own = job(root, f"{name}-own", {"path": f"{root}/run/sft"}, reference={"path": f"{root}/run/sft"}, **kl)
    got, weights = [], []
    for path in (shared, own):
        res = t.bdpo("--config", path)
        check(r, res.code == 0, f"{name}: a run with eval.kl_samples", f"{res}")
        got.append([x["eval/kl"] for x in t.read_lines(path.replace(".json", "/metrics.jsonl")) if "eval/kl" in x])
        weights.append(json.loads(t.bdpo("plan", "--config", path, "--json").out)["memory_bytes"]["weights"])
    check(r, got[0] == got[1] and got[0][-1] != 0, f"{name}: eval/kl against adapters on the policy's base, as with a base of its own", f"{got}")
    check(r, weights[0] < 0.75 * weights[1], f"{name}: the base is there once", f"{weights}")


def on_two_ranks(r, path, what):
    """The job of config `path` as mpirun ran it, or None where that cannot be, which is counted."""
    words, reason = launcher(t.BINARY)
    if words:
        return subprocess.run([*words, "-np", "2", t.BINARY, "--config", path], capture_output=True, timeout=120, check=False)
    print(f"skipped: lora_test {what}: {reason}")
    r.skipped += 1
    return None


def test_dropout(r, root):
    """Training drops, evaluations and the saved adapter do not; what is dropped does not depend on micro-batches, stops or ranks."""
    lora = {"dropout": 0.3}
    res = t.bdpo("--config", job(root, "drop", lora))
    first, plain = rows(f"{root}/drop", "sft")[0], rows(f"{root}/run", "sft")[0]
    check(r, res.code == 0 and first["loss"] == plain["loss"] and first["grad_norm"] != plain["grad_norm"], "dropout: B is zero at first, its gradient is another one",
          f"{res} {first} {plain}")
    check(r, rows(f"{root}/drop", "sft")[-1]["loss"] != rows(f"{root}/run", "sft")[-1]["loss"], "dropout: another run")
    pair = rows(f"{root}/drop", "preference")[0]
    check(r, pair["logps/chosen"] != pair["ref_logps/chosen"] and "the policy is the reference" not in res.err, "dropout: not in the reference", f"{pair}")
    with open(f"{root}/drop/model/adapter_config.json", encoding="utf-8") as f:
        check(r, json.load(f)["lora_dropout"] == 0.3, "dropout: in peft's config")
    last = [x for x in t.read_lines(f"{root}/drop/metrics.jsonl") if "eval/loss" in x][-1]
    res = t.bdpo("evaluate", "--config", f"{root}/drop.json")
    row = json.loads(res.out) if res.code == 0 else {}
    check(r, res.code == 0 and abs(row["eval/loss"] - last["eval/loss"]) < 1e-6, "dropout: not in evaluations", f"{res}" if res.code else f"{row} {last}")
    path = job(root, "drop-stopped", lora, checkpoint={"every": 2})
    codes = [t.bdpo("--config", path, "--set", "max_hours=1e-9").code for _ in range(3)] + [t.bdpo("--config", path).code]
    check(r, codes == [75, 75, 75, 0] and results(f"{root}/drop-stopped") == results(f"{root}/drop"), "dropout: stopped three times, the same bytes", f"{codes}")
    res = t.bdpo("--config", job(root, "drop-cut", lora, memory={"micro_batch_tokens": 16, "gradient_checkpointing": True}))
    a, b = (rows(f"{root}/{n}", "preference")[-1]["logps/chosen"] for n in ("drop", "drop-cut"))
    check(r, res.code == 0 and abs(a - b) < 1e-3, "dropout: smaller micro-batches drop the same", f"{a} {b}")
    two = on_two_ranks(r, job(root, "drop-two", lora), "dropout")
    if not two:
        return
    b = rows(f"{root}/drop-two", "preference")[-1]["logps/chosen"] if two.returncode == 0 else 0
    check(r, two.returncode == 0 and abs(a - b) < 1e-3, "dropout: two ranks drop what one does", f"{a} {b} " + two.stderr.decode()[-300:])


def test_ranks(r, root):
    det = {"deterministic": True}
    two = on_two_ranks(r, job(root, "two", dist=det, checkpoint={"every": 2}), "ranks")
    if not two:
        return
    one = t.bdpo("--config", job(root, "one", dist=det, checkpoint={"every": 2}))
    same = results(f"{root}/one") == results(f"{root}/two")
    check(r, one.code == 0 and two.returncode == 0 and same, "two ranks, the bytes of one", two.stderr.decode()[-300:] if two.returncode else "")


def test_nf4(r, root):
    """A base in 4 bits: a run stopped and gone on with, the same on two ranks, and evaluated as it was trained."""
    wide = os.path.join(root, "wide")
    t.ARCH.update(hidden_size=64, intermediate_size=64)
    t.make_root(wide)
    t.ARCH.update(hidden_size=16, intermediate_size=24)
    nf4 = {"quantization": "nf4", "dtype": "bfloat16"}
    res = t.bdpo("--config", job(wide, "run", model=nf4, checkpoint={"every": 2}))
    check(r, res.code == 0, "nf4: a run", f"{res}")
    want = results(f"{wide}/run")
    plain = t.bdpo("--config", job(wide, "plain", model={"dtype": "bfloat16"}))
    check(r, plain.code == 0 and results(f"{wide}/plain")[RESULTS[0]] != want[RESULTS[0]], "nf4: not the run on the exact base")
    path = job(wide, "stopped", model=nf4, checkpoint={"every": 2})
    codes = [t.bdpo("--config", path, "--set", "max_hours=1e-9").code for _ in range(3)] + [t.bdpo("--config", path).code]
    check(r, codes == [75, 75, 75, 0] and results(f"{wide}/stopped") == want, "nf4: stopped three times, the same bytes", f"{codes}")
    last = [x for x in t.read_lines(f"{wide}/run/metrics.jsonl") if "eval/loss" in x][-1]
    res = t.bdpo("evaluate", "--config", f"{wide}/run.json")
    row = json.loads(res.out) if res.code == 0 else {}
    check(r, res.code == 0 and abs(row["eval/loss"] - last["eval/loss"]) < 1e-3 and abs(row["eval/logps/chosen"] - last["eval/logps/chosen"]) < 0.05,
          "nf4: evaluate sees the base as the run did", f"{res}" if res.code else f"{row['eval/loss']} {last['eval/loss']}")
    test_kl(r, wide, "nf4-kl", **nf4)
    test_nf4_double(r, wide, want)


def test_nf4_double(r, wide, plain):
    """Scales in 8 bits: less memory, nearly the same numbers, and a merge into that base is the model that was trained."""
    path = job(wide, "double", model={"quantization": "nf4_double", "dtype": "float32"}, checkpoint={"every": 2})
    codes = [t.bdpo("--config", path, "--set", "max_hours=1e-9").code for _ in range(2)] + [t.bdpo("--config", path).code]
    check(r, codes == [75, 75, 0] and results(f"{wide}/double")[RESULTS[0]] != plain[RESULTS[0]], "nf4_double: a run, stopped twice", f"{codes}")
    size = [json.loads(t.bdpo("plan", "--config", path, "--json", "--set", f"model.quantization={q}").out)["memory_bytes"]["weights"] for q in ("nf4", "nf4_double")]
    check(r, size[1] < size[0], "nf4_double: takes less", f"{size}")
    for q in ("nf4_double", "nf4"):
        res = t.bdpo("merge", f"{wide}/double", "--out", f"{wide}/merged-{q}", "--quantization", q)
        check(r, res.code == 0, f"merge --quantization {q}", f"{res}")
    a, b, c = (json.loads(t.bdpo("evaluate", "--config", path, "--model", d).out or "{}")["eval/logps/chosen"]
               for d in (f"{wide}/double/model", f"{wide}/merged-nf4_double", f"{wide}/merged-nf4"))
    check(r, abs(a - b) < 1e-4 < abs(a - c) < 0.5, "nf4_double: merged into its base, the same model", f"{a} {b} {c}")
    res = t.bdpo("merge", f"{wide}/double", "--out", f"{wide}/no", "--quantization", "fp4")
    check(r, res.code == 2 and "is not none, nf4 or nf4_double" in res.err, "merge --quantization fp4", f"{res}")


def test_refused(r, root):
    cases = [
        (["model.quantization=nf4"], "rows of 16 elements, which is no multiple of 64"),
        (["model.quantization=nf4", "model.lora=null"], "a base in 4 bits is not trained itself"),
        (["model.lora.dropout=1.0"], "model.lora.dropout: 1 is outside [0, 1)"),
        (["model.lora.targets=[\"lm_head\"]"], "\"lm_head\" is not one of"),
        (["model.lora.rank=0"], "0 is outside [1, 4096]"),
        ([f"model.path={root}/run/model"], "holds an adapter; set model.path to its base"),
        ([f"model.lora.path={root}/run/sft", "model.lora.rank=5"], "an adapter of rank 3, alpha 6"),
        ([f"model.lora.path={root}/nowhere"], "nowhere: holds no adapter"),
    ]
    for sets, words in cases:
        args = [a for s in sets for a in ("--set", s)]
        res = t.bdpo("--config", f"{root}/run.json", *args, "--set", f"output={root}/refused")
        check(r, res.code == 2 and words in res.err and res.err.count("error:") == 1 and not os.path.exists(f"{root}/refused"), f"refused: {' '.join(sets).replace(root, '')}", f"{res}")


def main():
    root = tempfile.mkdtemp(prefix="lora_test-")
    r = Report()
    try:
        t.make_root(root)
        test_files(r, root)
        test_resume(r, root)
        test_sweep(r, root)
        test_merge(r, root)
        test_kl(r, root, "kl")
        test_dropout(r, root)
        test_ranks(r, root)
        test_nf4(r, root)
        test_refused(r, root)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return r.last()


if __name__ == "__main__":
    sys.exit(main())
