#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The token cache as runs share it: cold equals warm in bytes and words, who writes and who only looks, faults, several at once, kills.
Standard library only; the program is $BDPO_TRAIN."""
import argparse
import gzip
import json
import os
import random
import shutil
import sys
import tempfile
import time

import tiny_job as t
from compare_rows import Report

BAD_ROWS = {"on_bad_row": "skip", "max_bad_rows": 5, "max_dropped": 0.5}


class Place:
    """A model and data with rows of every fate; each run has an output of its own, all share a cache."""

    def __init__(self, r, root, name, train=30):
        self.r, self.dir, self.runs = r, os.path.join(root, name), 0
        os.makedirs(self.dir)
        t.make_root(self.dir, train=train, held=5)
        with open(f"{self.dir}/train.jsonl", "a", encoding="utf-8") as f:
            f.write('{"prompt": "a", "chosen": "", "rejected": "b"}\n{"prompt": "a", "chosen": "c", "rejected": "c"}\nno row\n')
        self.cache = f"{self.dir}/cache"

    def job(self, **sections):
        self.runs += 1
        out = f"{self.dir}/run-{self.runs}"
        sections = {"sft": None, "reference": {"cache": False}, **sections, "data": {**BAD_ROWS, **sections.get("data", {})}}
        path = f"{self.dir}/run-{self.runs}.json"
        t.write_json(path, t.make_config(self.dir, **sections, output=out))
        return path, out

    def run(self, *args, env=None, **sections):
        path, out = self.job(**sections)
        return t.bdpo(*args, "--config", path, env=env), out

    def check(self, ok, what, detail=""):
        self.r.check(ok, what, "" if ok else str(detail))

    def files(self):
        return sorted(f"{self.cache}/{n}" for n in os.listdir(self.cache)) if os.path.isdir(self.cache) else []

    def stamps(self):
        return [(f, os.stat(f).st_mtime_ns) for f in self.files()]


def results(out):
    return [t.read_bytes(f"{out}/{n}") for n in ("metrics.jsonl", "model/model.safetensors", "fingerprint.json")]


def said(res):
    """What a run says of its data."""
    return [x for x in res.lines if ".jsonl" in x]


def test_cold_and_warm(r, root):
    p = Place(r, root, "plain")
    off, out = p.run(data={"cache": False})
    want = results(out)
    p.check(off.code == 0 and not os.path.exists(p.cache), "cache off: no file", off)
    p.check(any("row skipped" in x for x in said(off)) and any("1 empty, 1 equal" in x for x in said(off)), "the run says what it left out", off)
    cold, out = p.run()
    p.check(cold.code == 0 and results(out) == want and said(cold) == said(off), "cold: the same bytes and words", cold)
    p.check(len(p.files()) == 2, "cold: a file each for data.train and data.eval", p.files())
    before = p.stamps()
    warm, out = p.run()
    p.check(warm.code == 0 and results(out) == want and said(warm) == said(off), "warm: the same bytes and words", warm)
    p.check(p.stamps() == before, "warm: the files are as they were")
    for name, sections in [("another seed and share", {"seed": 9, "data": {"subsample": 0.5}}),
                           ("another loss and learning rate", {"preference": {"loss": "dpo", "learning_rate": 1e-3}}),
                           ("weights", {"data": {"train": [{"path": f"{p.dir}/train.jsonl", "weight": 1.5}]}})]:
        res, out = p.run(**sections)
        other, there = p.run(**{**sections, "data": {**sections.get("data", {}), "cache": False}})
        p.check(res.code == 0 and other.code == 0 and results(out)[:2] == results(there)[:2] and said(res) == said(other), f"{name}: the same as without", res)
        p.check(p.stamps() == before, f"{name}: nothing new")
    res, _ = p.run(data={"max_length": 31})
    p.check(res.code == 0 and len(p.files()) == 4, "another max_length: files of its own", p.files())
    res, _ = p.run(sft={})
    p.check(res.code == 0 and len(p.files()) == 6, "an SFT stage: files of its own", p.files())


def test_data_changes(r, root):
    """Whatever changes in the data is seen, also where size and time stay."""
    p = Place(r, root, "changes")
    path = f"{p.dir}/train.jsonl"
    p.run()
    st, text = os.stat(path), t.read_bytes(path)
    changed = bytearray(text)
    at = changed.index(b'"prompt": "') + len(b'"prompt": "')
    changed[at] = ord("z")
    with open(path, "wb") as f:
        f.write(changed)
    os.utime(path, ns=(st.st_atime_ns, st.st_mtime_ns))
    res, out = p.run()
    _, plain = p.run(data={"cache": False})
    p.check(res.code == 0 and results(out) == results(plain), "a byte of the data, at the same size and time: read anew", res)
    with gzip.open(f"{p.dir}/train.jsonl.gz", "wb") as f:
        f.write(changed)
    n = len(p.files())
    for _ in range(2):
        res, out = p.run(data={"train": f"{p.dir}/train.jsonl.gz"})
        p.check(res.code == 0 and results(out)[:2] == results(plain)[:2] and len(p.files()) == n + 1, "the same rows in gzip: a file of its own", res)
    config = f"{p.dir}/model/tokenizer_config.json"
    t.write_json(config, {**json.loads(t.read_bytes(config)), "eos_token": "<|im_end|>"})
    res, out = p.run()
    _, plain = p.run(data={"cache": False})
    p.check(res.code == 0 and results(out) == results(plain) and len(p.files()) == n + 3, "another EOS: read anew", res)


def test_who_writes(r, root):
    p = Place(r, root, "who")
    for args in (("--dry-run",), ("lint",), ("plan",)):
        res, _ = p.run(*args)
        p.check(res.code == 0 and not os.path.exists(p.cache), f"{args[0]} writes nothing", res)
    res, _ = p.run("evaluate")
    p.check(res.code == 0 and len(p.files()) == 1, "evaluate keeps the tokens of data.eval", p.files())
    full, out = p.run()
    want, before = results(out), p.stamps()
    p.check(full.code == 0 and len(before) == 2, "a run keeps those of data.train too", full)
    for f in p.files():
        os.truncate(f, 100)
    damaged = p.stamps()
    for args in (("--dry-run",), ("lint",), ("plan",)):
        res, _ = p.run(*args)
        told = sum("warning: token cache" in x for x in res.lines)
        p.check(res.code == 0 and p.stamps() == damaged and told == (0 if args[0] == "lint" else 2), f"{args[0]} leaves a damaged file", res)
    res, out = p.run()
    told = [x for x in res.lines if "warning: token cache" in x]
    p.check(res.code == 0 and results(out) == want and len(told) == 2 and all(f in "".join(told) for f, _ in damaged), "a run names it and makes it anew", res)
    res, out = p.run()
    p.check(res.code == 0 and results(out) == want and "token cache" not in res.err, "and then it is right", res)


def test_refused(r, root):
    """A run that is refused writes nothing, and says the same with tokens in the cache."""
    p = Place(r, root, "refused")
    kinds = [{"data": {"max_bad_rows": 0}}, {"data": {"max_dropped": 0.01}}]
    first = [p.run(**k)[0] for k in kinds]
    p.check(all(x.code == 2 for x in first) and not os.path.exists(p.cache), "refused: no file", first)
    res, _ = p.run()
    again = [p.run(**k)[0] for k in kinds]
    p.check(res.code == 0 and [said(x) for x in again] == [said(x) for x in first], "refused: the same words with a cache", [x.err for x in first + again])
    res, _ = p.run(env={"XDG_CACHE_HOME": "", "HOME": ""}, cache_dir=None)
    p.check(res.code == 0 and res.err.count("warning: token cache: neither") == 1, "no place for a cache: one warning", res)
    with open(f"{p.dir}/flat", "w", encoding="utf-8"):
        pass
    res, _ = p.run(cache_dir=f"{p.dir}/flat")
    p.check(res.code == 0 and "warning: token cache" in res.err and "not kept" in res.err, "a file in the cache's place: a warning", res)


def test_at_once(r, root):
    p = Place(r, root, "once", train=400)
    _, out = p.run(data={"cache": False}, preference={"max_steps": 2})
    want = results(out)
    for k in range(4):
        shutil.rmtree(p.cache, ignore_errors=True)
        jobs = [p.job(preference={"max_steps": 2}) for _ in range(4)]
        starts = [t.start("--config", path) for path, _ in jobs]
        errors = [s.communicate()[1].decode("utf-8", "replace") for s in starts]
        ok = all(s.returncode == 0 for s in starts) and not any("token cache" in e for e in errors)
        p.check(ok and all(results(o) == want for _, o in jobs) and len(p.files()) == 2, f"four at once, {k}: the same bytes, one file each", errors)


def test_kills(r, root, rng):
    p = Place(r, root, "kills", train=3000)
    sections = {"preference": {"max_steps": 1}}
    begin = time.monotonic()
    _, out = p.run(data={"cache": False}, **sections)
    seconds, want, killed, left = time.monotonic() - begin, results(out), 0, 0
    for k in range(12):
        shutil.rmtree(p.cache, ignore_errors=True)
        path, out = p.job(**sections)
        s = t.start("--config", path)
        if k % 2:
            time.sleep(rng.random() * seconds)
        else:  # as soon as something is there
            while s.poll() is None and not p.files():
                time.sleep(0.0002)
        s.kill()
        s.communicate()
        killed += s.returncode == -9
        left += any(".tmp-" in f for f in p.files())
        res, out = p.run(**sections)
        ok = res.code == 0 and results(out) == want and "token cache" not in res.err
        p.check(ok and len(p.files()) == 2 and not any(".tmp-" in f for f in p.files()), f"killed, {k}: the next run has the same bytes, nothing is left", res)
    print(f"{killed} of 12 runs killed before their end, {left} left half a file")
    p.check(killed >= 4, "kills: some came before the end", killed)


def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    a = ap.parse_args()
    print(f"--seed {a.seed}")
    r, root = Report(), tempfile.mkdtemp(prefix="bdpo-tokens-")
    try:
        test_cold_and_warm(r, root)
        test_data_changes(r, root)
        test_who_writes(r, root)
        test_refused(r, root)
        test_at_once(r, root)
        test_kills(r, root, random.Random(a.seed))
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return r.last()


if __name__ == "__main__":
    sys.exit(main())
