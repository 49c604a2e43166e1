#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""generate for evaluations: stop strings, several turns, prompts that are too long, an output file that survives kills. Standard library only; $BDPO_TRAIN is run.

usage: generate_test.py [--kills N] [--seed S]"""
import argparse
import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile

import tiny_job as t
from compare_rows import Report


def letters(tensors):
    """Answers are of letters, for text that can be searched: no other byte's logit is far from 0."""
    h = tensors["model.embed_tokens.weight"][1]
    for i in range(t.ARCH["vocab_size"]):
        if not ord("a") <= i <= ord("z"):
            h[16 * i:16 * i + 16] = [0.01 * x for x in h[16 * i:16 * i + 16]]


DRAW = ("--temperature", "1", "--top-k", "6")


class Place:
    def __init__(self, r, root, name):
        self.r, self.dir = r, os.path.join(root, name)
        os.makedirs(self.dir)
        self.model = t.make_model(self.path("model"), template=True, edit=letters)

    def path(self, name):
        return os.path.join(self.dir, name)

    def check(self, ok, what, detail=""):
        self.r.check(ok, what, "" if ok else str(detail)[-900:])

    def args(self, rows, *more, n=8):
        return ["generate", "--model", self.model, "--prompts", t.write_lines(self.path("prompts.jsonl"), rows), "--max-tokens", str(n), "--threads", "1",
                *more]

    def answers(self, rows, *more, n=8):
        res = t.bdpo(*self.args(rows, *more, n=n))
        if res.code:
            raise SystemExit(f"generate {more}: {res}")
        return [json.loads(x) for x in res.out.split("\n") if x]


def user(text):
    return {"role": "user", "content": text}


def test_stops(r, root):
    p = Place(r, root, "stops")
    rows = [{"prompt": w["prompt"], "id": i} for i, w in enumerate(t.make_pairs(40, 5))]
    plain = p.answers(rows, *DRAW, n=20)
    # texts that some answers hold, in the middle, over two tokens or more (a token is a byte here)
    texts = [x["response"] for x in plain if x["response"].isascii() and len(x["response"]) > 12]
    p.check(len(texts) > 2, "there are texts to stop at", len(texts))
    stops = [texts[0][5:7], texts[1][4:7], texts[2][9:10]]
    got = p.answers(rows, *DRAW, *(x for s in stops for x in ("--stop", s)), n=20)
    cut = 0
    for a, b in zip(plain, got):
        at = min((a["response"].find(s) for s in stops if s in a["response"]), default=-1)
        want = a["response"][:at] if at >= 0 else a["response"]
        cut += at >= 0
        ended = "stop" if at >= 0 else a["finish"]
        if b["response"] != want or b["finish"] != ended or b["tokens"] != a["tokens"][:len(b["tokens"])] or b["id"] != a["id"]:
            p.check(False, "an answer ends before the first stop string", f"{stops} {a} {b}")
            return
    p.check(cut >= 3, "an answer ends before the first stop string", cut)
    p.check(all(len(b["tokens"]) <= len(b["response"].encode()) + 3 for a, b in zip(plain, got) if b["response"] != a["response"] and b["response"].isascii()),
            "and no more is drawn behind it", got)
    res = t.bdpo(*p.args(rows, "--stop", ""))
    p.check(res.code == 2 and "--stop needs a text" in res.err, "an empty stop string is refused", res)


def test_turns(r, root):
    p = Place(r, root, "turns")
    rows = [{"id": 1, "turns": ["hi", "and"], "category": "x"}, {"id": 2, "prompt": [user("hi")]}, {"id": 3, "turns": ["ab"]}, {"id": 4, "turns": ["hi", "b", "c"]}]
    got = p.answers(rows, "--batch", "3", n=4)
    one = p.answers([{"prompt": [user("hi")]}], n=4)[0]
    talk = [user("hi"), {"role": "assistant", "content": one["response"].replace("\0", "\ufffd")}, user("and")]
    two = p.answers([{"prompt": talk}], n=4)[0]
    for key in ("response", "tokens", "finish"):
        p.check(got[0][key] == [one[key], two[key]], f"two turns: {key} is that of the conversation so far", f"{got[0]} {one} {two}")
        p.check(got[1][key] == one[key] and len(got[2][key]) == 1 and len(got[3][key]) == 3, f"rows with other numbers of turns beside them: {key}", got)
    p.check(all({k: v for k, v in g.items() if k not in ("response", "tokens", "finish")} == w for g, w in zip(got, rows)), "other keys pass through", got)
    for what, turns in (("a string", "hi"), ("an empty list", []), ("a number in it", ["a", 1]), ("an empty turn", ["a", ""])):
        res = t.bdpo(*p.args([{"turns": ["a"]}, {"turns": turns}]))
        p.check(res.code == 2 and "prompts.jsonl:2: error: \"turns\" must be a list of strings" in res.err and res.out == "", f"turns refused: {what}", res)
    # a row that was answered before is answered anew, not twice
    p.check(p.answers(got, "--batch", "3", n=4) == got, "an answered row is answered anew")


def test_long(r, root):
    p = Place(r, root, "long")
    text = "abcdefgh" * 20
    res = t.bdpo(*p.args([{"prompt": "a"}, {"prompt": text}]))
    p.check(res.code == 2 and "prompts.jsonl:2:" in res.err and "--cut-prompts" in res.err, "a prompt beyond the model is an error", res)
    got = p.answers([{"prompt": "a"}, {"prompt": text}], "--cut-prompts")
    want = p.answers([{"prompt": "a"}, {"prompt": text[-56:]}])
    p.check([x["tokens"] for x in got] == [x["tokens"] for x in want], "--cut-prompts keeps its last tokens", f"{got} {want}")
    res = t.bdpo(*p.args([{"prompt": "a"}], n=64))
    p.check(res.code == 2 and "--max-tokens" in res.err, "no room for a prompt", res)
    # later turns are cut, since their answers are not known beforehand
    got = p.answers([{"turns": ["a" * 12, "b" * 12, "c" * 12]}])
    p.check(len(got[0]["response"]) == 3, "later turns that do not fit keep their last tokens", got)


def test_restart(r, root, rng, kills):
    p = Place(r, root, "restart")
    rows = [{"prompt": w["prompt"], "id": i} if i % 5 else {"turns": [w["prompt"], "x"], "id": i} for i, w in enumerate(t.make_pairs(400, 7))]
    args = [*p.args(rows, "--batch", "4", "--temperature", "0.7", n=12), "--out"]
    out, part = p.path("killed.jsonl"), p.path("killed.jsonl.part")
    res = t.bdpo(*args, p.path("whole.jsonl"))
    if res.code:
        raise SystemExit(f"generate: {res}")
    want = t.read_bytes(p.path("whole.jsonl"))
    p.check(res.code == 0 and want.count(b"\n") == len(rows) and not os.path.exists(p.path("whole.jsonl.part")), "--out", res)
    p.check("".join(json.dumps(x) for x in p.answers(rows, "--batch", "4", "--temperature", "0.7", n=12)) ==
            "".join(json.dumps(json.loads(x)) for x in want.decode().split("\n") if x), "stdout has the same rows")
    cut_off = 0
    for _ in range(kills):
        s = t.start(*args, out)
        try:
            s.wait(timeout=rng.uniform(0.02, 0.3))
        except subprocess.TimeoutExpired:
            s.send_signal(signal.SIGKILL)
        s.communicate()
        if os.path.exists(part) and os.path.getsize(part) > 200:
            cut_off += 1
            if rng.random() < 0.5:  # and a power cut tears the last line
                os.truncate(part, os.path.getsize(part) - rng.randint(1, 100))
    res = t.bdpo(*args, out)
    p.check(res.code == 0 and t.read_bytes(out) == want and not os.path.exists(part), f"{kills} kills: the same file", res)
    p.check(cut_off > 0, "some of them left answers", cut_off)
    # what other options have left is not taken for its own
    s = t.bdpo(*args, out, "--stop", "a")
    text = t.read_bytes(out)
    p.check(s.code == 0 and text != want, "other options, another file", s)
    with open(part, "wb") as f:
        f.write(b'{"answers": "' + b"0" * 64 + b'"}\n' + b"{}\n" * 16)
    res = t.bdpo(*args, out)
    p.check(res.code == 0 and t.read_bytes(out) == want, "a stranger's part is dropped", res)
    # two at the same time
    with open(part, "wb") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        res = t.bdpo(*args, out)
        p.check(res.code == 2 and "in use by another process" in res.err, "two writers of one file", res)
    os.unlink(part)
    res = t.bdpo(*args, p.path("no/such/x.jsonl"))
    p.check(res.code == 2 and "cannot be written" in res.err, "an output that cannot be made", res)
    res = t.bdpo(*args, "/dev/stdout")
    p.check(res.code == 0 and res.raw == want, "an output that is a pipe", res)
    bad = t.bdpo(*p.args([{"prompt": 7}], "--out", p.path("bad.jsonl")))
    p.check(bad.code == 2 and not os.path.exists(p.path("bad.jsonl.part")), "bad input leaves nothing", bad)


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--kills", type=int, default=12)
    a.add_argument("--seed", type=int, default=1)
    a = a.parse_args()
    r = Report()
    root = tempfile.mkdtemp()
    try:
        test_stops(r, root)
        test_turns(r, root)
        test_long(r, root)
        test_restart(r, root, random.Random(a.seed), a.kills)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    sys.exit(r.last())


if __name__ == "__main__":
    main()
