#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Runs that are killed (kill -9) at random moments and started again end exactly as one that was left alone; broken checkpoints are
passed over. The random delays are printed and come from --seed. Standard library only; the program is $BDPO_TRAIN."""
import argparse
import json
import os
import random
import re
import shutil
import sys
import tempfile
import time

import tiny_job as t
from compare_rows import Report

RESULTS = ["model/model.safetensors", "model/config.json", "sft/model.safetensors", "models/epoch-2/model.safetensors", "metrics.jsonl"]


def job(root, name, **sections):
    """SFT and BDPO of several epochs, evaluation in between; the path of its config. A batch is several micro-batches, in a root that ends in
    one-batch a single one. A root that ends in bfloat16 computes in that; its files are float32 and so hold the master weights, all of them compared."""
    c = t.make_config(root, model={"dtype": "bfloat16" if root.endswith("bfloat16") else "float32"}, sft={"epochs": 2, "warmup_ratio": 0.2}, preference={"epochs": 3, "schedule": "cosine", "weight_decay": 0.1},
                      memory={"micro_batch_tokens": 2048 if root.endswith("one-batch") else 40}, eval={"every": 4}, output=f"{root}/{name}",
                      checkpoint={"every": 3, "keep": 2, "export": "epoch"}, **sections)
    path = f"{root}/{name}.json"
    t.write_json(path, c)
    return path


def results(out):
    return {name: t.read_bytes(f"{out}/{name}") if os.path.exists(f"{out}/{name}") else None for name in RESULTS}


def leftovers(out):
    return [n for n in t.tree(out) if ".tmp" in n or ".old" in n or ".del-" in n]


def compare(r, what, out, want):
    got = results(out)
    differ = [n for n in RESULTS if got[n] != want[n]]
    with open(f"{out}/status.json", encoding="utf-8") as f:
        status = json.load(f)
    r.check(not differ, what, f"{', '.join(differ)} differ" if differ else "")
    r.check(not leftovers(out) and status["state"] == "done" and status["exit_code"] == 0, f"{what}: nothing is left over, status done",
            " ".join(leftovers(out)))


def kill_after(path, delay):
    """True where the program was killed, False where it had ended by itself (then with 0, or the message is returned)."""
    p = t.start("--config", path)
    time.sleep(delay)
    p.kill()
    err = p.communicate()[1].decode("utf-8", "replace")
    return p.returncode == -9, err if p.returncode not in (0, -9) else ""


def chain(r, root, name, delays, want):
    """Start and kill once for each delay, or until it ends by itself; then let it end. Returns the kills."""
    path, killed = job(root, name), 0
    for delay in delays:
        was_killed, message = kill_after(path, delay)
        killed += was_killed
        if message:
            r.check(False, f"{name}: a start after {killed} kills", message)
        if not was_killed:
            break
    last = t.bdpo("--config", path)
    r.check(last.code == 0, f"{name}: {killed} kills and a last start", f"{last}" if last.code else "")
    compare(r, f"{name}: equal to the run that was left alone", f"{root}/{name}", want)
    return killed


def test_many_kills(r, root, rng, seconds, want, kills):
    """One chain of `kills` kills; what remains of the run after each is at most what it did since its last checkpoint, so lives get shorter with it."""
    path, killed, starts, done = job(root, "many"), 0, 0, 0
    while killed < kills and starts < 20 * kills:
        was_killed, message = kill_after(path, rng.uniform(0, 0.25 * seconds))
        starts += 1
        killed += was_killed
        if message:
            r.check(False, f"many kills: start {starts}", message)
            return
        if not was_killed:  # at its end too soon: the next life starts anew, as one more run to be compared
            compare(r, f"many kills: run {done}, after {killed} kills", f"{root}/many", want)
            shutil.rmtree(f"{root}/many")
            done += 1
    r.check(t.bdpo("--config", path).code == 0 and killed == kills, f"many kills: {killed} in {starts} starts, {done + 1} runs")
    compare(r, "many kills: the last run", f"{root}/many", want)


def test_kills(r, root, rng, seconds, want, chains=3):
    print(f"a whole run takes {seconds:.2f} s")
    longest, whole = 0.3 * seconds, 0
    for k in range(12):
        delays = [rng.uniform(0, longest) for _ in range(20)]
        print(f"chain {k}: kills after {', '.join(f'{d:.3f}' for d in delays)} s")
        killed = chain(r, root, f"chain-{k}", delays, want)
        whole += killed >= 10
        if whole == chains:
            break
        if killed < 10:  # the machine has become faster than it was: it reached the end too soon
            longest *= 0.7
    r.check(whole == chains, f"{chains} chains of at least 10 kills", f"{whole}")
    # one kill of a fresh run at every tenth of its time; and a long row of short lives, in which little but starting and saving is done
    for k in range(1, 11):
        chain(r, root, f"tenth-{k}", [0.1 * k * seconds], want)
    chain(r, root, "short lives", [0.002 * i for i in range(1, 30)], want)


def stopped_run(root):
    """A run with two checkpoints of one step each; its directory is copied for every case."""
    path = job(root, "base")
    for _ in range(3):
        res = t.bdpo("--config", path, "--set", "max_hours=1e-9")
        if res.code != 75:
            return None, f"{res}"
    return sorted(os.listdir(f"{root}/base/checkpoints")), ""


def flip(path, at):
    with open(path, "r+b") as f:
        f.seek(at)
        byte = f.read(1)
        f.seek(at)
        f.write(bytes([byte[0] ^ 1]))


def cut(path):
    os.truncate(path, os.path.getsize(path) // 2)


def replace(path, text):
    with open(path, "w", encoding="utf-8") as f:
        f.write(text)


STATE, REFERENCE = "state-00000-of-00001.bin", "reference.bin"
FAULTS = {
    **{f"a byte of {part}": lambda d, at=at: flip(f"{d}/{STATE}", int(at * os.path.getsize(f"{d}/{STATE}")))
       for part, at in [("the weights", 0.1), ("the first moment", 0.5), ("the second moment", 0.99), ("the header", 0)]},
    "a byte of the reference": lambda d: flip(f"{d}/{REFERENCE}", 7),
    **{f"{what} {name}": lambda d, do=do, name=name: do(f"{d}/{name}") for name in (STATE, REFERENCE)
       for what, do in [("half of", cut), ("without", os.unlink), ("nothing in", lambda p: os.truncate(p, 0))]},
    "manifest gone": lambda d: os.unlink(f"{d}/manifest.json"),
    "manifest cut in half": lambda d: cut(f"{d}/manifest.json"),
    "manifest of another format": lambda d: replace(f"{d}/manifest.json", '{"version": 99}'),
    "manifest of nothing": lambda d: replace(f"{d}/manifest.json", "[]"),
}


def test_faults(r, root, want):
    names, err = stopped_run(root)
    r.check(names == ["sft-000002", "sft-000003"], "max_hours leaves checkpoints", err or str(names))
    if names != ["sft-000002", "sft-000003"]:
        return
    for what, spoil in FAULTS.items():
        out = f"{root}/spoilt"
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(f"{root}/base", out)
        path = job(root, "spoilt")
        spoil(f"{out}/checkpoints/sft-000003")
        named = t.bdpo("--config", path, "--set", f"checkpoint.resume={out}/checkpoints/sft-000003")
        r.check(named.code == 82 and "sft-000003" in named.err, f"{what}: refused where it is named", f"{named}" if named.code != 82 else "")
        res = t.bdpo("--config", path)
        ok = res.code == 0 and "sft-000003" in res.err and "resumed from" in res.err and "sft-000002" in res.err
        r.check(ok, f"{what}: named, and the older one used", "" if ok else f"{res}")
        compare(r, f"{what}: the same end", out, want)
    out = f"{root}/spoilt"
    shutil.rmtree(out)
    shutil.copytree(f"{root}/base", out)
    for name in names:
        cut(f"{out}/checkpoints/{name}/{STATE}")
    res = t.bdpo("--config", job(root, "spoilt"))
    r.check(res.code == 0 and all(n in res.err for n in names), "all broken: all named, from the beginning", "" if res.code == 0 else f"{res}")
    compare(r, "all broken: the same end", out, want)


def test_good_one_survives(r, root, want):
    """With keep 1 a broken newer checkpoint must not push out the good one that is written after it."""
    out = f"{root}/keep"
    shutil.copytree(f"{root}/base", out)
    path = job(root, "keep")
    cut(f"{out}/checkpoints/sft-000003/{STATE}")
    # from step 2, stopped after step 3: replaced; then an older step is made the newest good one
    one = t.bdpo("--config", path, "--set", "max_hours=1e-9", "--set", "checkpoint.keep=1")
    os.rename(f"{out}/checkpoints/sft-000003", f"{root}/kept-3")
    shutil.copytree(f"{root}/kept-3", f"{out}/checkpoints/sft-000009")
    os.rename(f"{root}/kept-3", f"{out}/checkpoints/sft-000003")
    two = t.bdpo("--config", path, "--set", "max_hours=1e-9", "--set", "checkpoint.keep=1")
    ok = one.code == two.code == 75 and os.listdir(f"{out}/checkpoints") == ["sft-000004"]
    r.check(ok, "keep 1: what was just written survives a broken newer one", f"{os.listdir(f'{out}/checkpoints')} {one} {two}" if not ok else "")
    t.bdpo("--config", path)
    compare(r, "keep 1: the same end", out, want)


def edit(path, old, new):
    text = t.read_bytes(path)
    if old not in text:
        raise RuntimeError(f"{path} has no {old}")
    with open(path, "wb") as f:
        f.write(text.replace(old, new, 1))


VALUE = r'("[^"]*"|[^\s;,]+)'


def files(out):
    """All but the lock, which names the last process that looked."""
    return {name: digest for name, digest in t.tree(out).items() if name != ".lock"}


def test_changes(r, root):
    """A run whose tokenizer, dtype, data, weights or options have changed: refused with both values, nothing touched, unless --allow-change."""
    os.makedirs(root)
    t.make_root(root, train=30)
    stopped = t.bdpo("--config", job(root, "base"), "--set", "max_hours=1e-9")
    at, out = f"{root}/base/checkpoints/sft-000001", f"{root}/changed"
    r.check(stopped.code == 75 and os.path.isdir(at), "changes: a run to go on with", f"{stopped}" if stopped.code != 75 else "")
    tokenizer, data, held, weights = (f"{root}/{x}" for x in ("model/tokenizer.json", "train.jsonl", "eval.jsonl", "model/model.safetensors"))
    for what, key, path, change in [
        ("the tokenizer", "content.tokenizer.json", tokenizer, lambda: edit(tokenizer, b"<|im_start|>", b"<|im_begin|>")),
        ("the data", "content.sft data", data, lambda: edit(data, b'"chosen": "', b'"chosen": "x')),
        ("the evaluation data", "content.preference evaluation data", held, lambda: edit(held, b'"rejected": "', b'"rejected": "x')),
        ("the weights", "content.model.safetensors", weights, lambda: flip(weights, os.path.getsize(weights) - 3)),
        ("the dtype", "model.dtype", None, ["model.dtype=bfloat16"]),
        ("lambda", "preference.lambda", None, ["preference.lambda=0.25"]),
        ("the batch", "sft.batch_size", None, ["sft.batch_size=5"]),
        ("deterministic", "dist.deterministic", None, ["dist.deterministic=true"]),
    ]:
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(f"{root}/base", out)
        config, args, was = job(root, "changed"), [], None
        if path:
            was = t.read_bytes(path)
            change()
        else:
            args = [x for c in change for x in ("--set", c)]
        before = files(out)
        for where, more in (("", []), ("a named checkpoint: ", ["--set", f"checkpoint.resume={at}", "--set", f"output={root}/elsewhere"])):
            res = t.bdpo("--config", config, *args, *more)
            said = re.search(rf"{re.escape(key)}: {VALUE} was {VALUE}[;,]", res.err)
            r.check(res.code == 82 and said and said[1] != said[2] and "--allow-change" in res.err, f"{where}{what} changed: refused with both values", "" if said else f"{res}")
            shutil.rmtree(f"{root}/elsewhere", ignore_errors=True)
        r.check(files(out) == before, f"{what} changed: nothing is touched")
        res = t.bdpo("--config", config, *args, "--allow-change")
        r.check(res.code == 0 and re.search(rf"warning: .*{re.escape(key)}: {VALUE} was {VALUE}", res.err) and "resumed from" in res.err, f"{what} changed: gone on with --allow-change",
                "" if res.code == 0 else f"{res}")
        if path:
            with open(path, "wb") as f:
                f.write(was)


def left_alone(r, root):
    """A job that nothing disturbs: its seconds and its results."""
    os.makedirs(root)
    t.make_root(root, train=30)
    begin = time.monotonic()
    res = t.bdpo("--config", job(root, "alone"))
    seconds = time.monotonic() - begin
    want = results(f"{root}/alone")
    rows = t.read_lines(f"{root}/alone/metrics.jsonl") if want["metrics.jsonl"] else []
    steps = [x["step"] for x in rows if "loss" in x]
    what = os.path.basename(root)
    r.check(res.code == 0 and None not in want.values(), f"{what}: a run that is left alone", "" if res.code == 0 else f"{res}")
    r.check(steps == [*range(1, 17), *range(1, 25)], f"{what}: its steps", str(steps))
    return seconds, want


def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    ap.add_argument("--kills", type=int, default=0, help="that many kills, in each of the kinds of run, and nothing else")
    a = ap.parse_args()
    print(f"--seed {a.seed}")
    r, root = Report(), tempfile.mkdtemp(prefix="bdpo-resume-")
    try:
        ends = {}
        if not a.kills:
            test_changes(r, f"{root}/changes")
        for kind in ("float32", "one-batch", "bfloat16"):
            seconds, want = left_alone(r, f"{root}/{kind}")
            ends[kind] = want["model/model.safetensors"]
            if r.failed:
                break
            if a.kills:
                test_many_kills(r, f"{root}/{kind}", random.Random(a.seed), seconds, want, a.kills)
                continue
            test_kills(r, f"{root}/{kind}", random.Random(a.seed), seconds, want, chains=2 if kind == "float32" else 1)
            if kind == "float32":
                test_faults(r, f"{root}/{kind}", want)
                test_good_one_survives(r, f"{root}/{kind}", want)
        r.check(len(set(ends.values())) == len(ends), "the kinds of run are different computations")
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return r.last()


if __name__ == "__main__":
    sys.exit(main())
