#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The reference cache as runs share it: cold equals warm, what shares a file and what does not, faults, several at once, kills.
Standard library only; the program is $BDPO_TRAIN."""
import json
import os
import random
import re
import shutil
import struct
import sys
import tempfile
import time
import zlib

import tiny_job as t
from compare_rows import Report

HEADER, RECORD = 64, 40
TRAIN, HELD = 40, 6
SAID = re.compile(r"reference: ([\d,]+) rows, ([\d,]+) from the cache, ([\d,]+) computed \((.*?)\)")


class Place:
    """A model and data; each run has an output and, unless it says otherwise, the cache of the place."""

    def __init__(self, r, root, name, train=TRAIN):
        self.r, self.dir, self.runs = r, os.path.join(root, name), 0
        os.makedirs(self.dir)
        t.make_root(self.dir, train=train, held=HELD)
        self.cache = os.path.join(self.dir, "cache")

    def job(self, out=None, **sections):
        """The path of a new config that writes to a new output, and that output."""
        self.runs += 1
        out = out or f"{self.dir}/run-{self.runs}"
        sections = {"sft": None, "memory": {"micro_batch_tokens": 60}, **sections}
        sections["data"] = {"cache": False, **sections.get("data", {})}  # these files are about the reference's alone
        path = f"{self.dir}/run-{self.runs}.json"
        t.write_json(path, t.make_config(self.dir, **sections, output=out))
        return path, out

    def run(self, *args, env=None, **sections):
        path, out = self.job(**sections)
        res = t.bdpo("--config", path, *args, env=env)
        if res.code != 0:
            print(res)
        return res, out

    def check(self, ok, what, detail=""):
        self.r.check(ok, what, "" if ok else str(detail))

    def expect(self, what, res, found, computed, *parts):
        """It ended well, and said how many rows came from where."""
        got = SAID.search(res.err)
        counts = got and tuple(int(x.replace(",", "")) for x in got.groups()[:3])
        lacking = [x for x in parts if x not in res.err]
        self.check(res.code == 0 and counts == (found + computed, found, computed) and not lacking, f"{what}: {found} found, {computed} computed",
                   f"{counts} {lacking} {res}")

    def files(self):
        return sorted(f"{self.cache}/{n}" for n in os.listdir(self.cache)) if os.path.isdir(self.cache) else []


def results(out):
    return [t.read_bytes(f"{out}/{n}") for n in ("metrics.jsonl", "model/model.safetensors")]


def reference_of(metrics):
    return [v for row in map(json.loads, metrics.decode().splitlines()) for k, v in row.items() if "ref_logps/" in k]


def warnings(res):
    return [x for x in res.lines if "warning: reference cache" in x]


def rewrite(path, edit):
    """Each record of the file as (key, chosen, rejected) through edit(index, ...), which gives the two values; right checksums."""
    data = bytearray(t.read_bytes(path))
    for i, at in enumerate(range(HEADER, len(data), RECORD)):
        w, l = struct.unpack_from("<2d", data, at + 16)
        struct.pack_into("<2d", data, at + 16, *edit(i, w, l))
        struct.pack_into("<I", data, at + 32, zlib.crc32(data[at:at + 32]))
    with open(path, "wb") as f:
        f.write(data)


def test_cold_and_warm(r, root):
    p = Place(r, root, "plain")
    off, out = p.run(reference={"cache": False})
    want = results(out)
    p.check(off.code == 0 and not os.path.exists(p.cache) and "reference: 46 rows computed" in off.err, "cache off: no file, all computed", off)
    cold, out = p.run()
    p.expect("cold", cold, 0, TRAIN + HELD, "first step: the policy is the reference, loss")
    p.check(results(out) == want, "cold: the same bytes as without a cache")
    p.check(len(p.files()) == 1 and os.path.getsize(p.files()[0]) == HEADER + RECORD * (TRAIN + HELD), "cold: one file of a record a row", p.files())
    before = t.tree(p.cache)
    warm, out = p.run()
    p.expect("warm", warm, TRAIN + HELD, 0, "4 of the cached ones computed again", "allowed 1e-05", "first step: the policy is the reference, loss")
    p.check(results(out) == want, "warm: the same bytes as cold")
    p.check(t.tree(p.cache) == before, "warm: the file is as it was")
    for loss in ("dpo", "dpop", "minor_dpo", "slic", "sppo", "dpo_nll"):
        res, out = p.run(preference={"loss": loss, "learning_rate": 1e-3})
        p.expect(f"loss {loss}", res, TRAIN + HELD, 0)
        p.check(reference_of(t.read_bytes(f"{out}/metrics.jsonl")) == reference_of(want[0]), f"loss {loss}: the same reference")
    res, _ = p.run(preference={"lambda": 0.9, "beta": 0.3, "epochs": 3})
    p.expect("other options and epochs", res, TRAIN + HELD, 0)
    p.check(t.tree(p.cache) == before, "losses and options: the file is as it was")


def test_lazy(r, root):
    p = Place(r, root, "lazy")
    _, out = p.run(reference={"cache": False})
    want = results(out)
    res, _ = p.run(preference={"max_steps": 3})
    p.expect("three steps of four", res, 0, 12 + HELD)
    res, out = p.run()
    p.expect("then all", res, 12 + HELD, TRAIN - 12)
    p.check(results(out) == want, "in two parts: the same bytes")
    res, _ = p.run(data={"eval": None})
    p.expect("without an evaluation set", res, TRAIN, 0)
    res, _ = p.run(preference={"batch_size": 7}, memory={"micro_batch_tokens": 90}, seed=8)
    p.expect("other packing and order", res, TRAIN + HELD, 0)
    # half of the rows of many micro-batches are known: those keep their values
    q = Place(r, root, "halves")
    rows = t.read_lines(f"{q.dir}/train.jsonl")
    t.write_lines(f"{q.dir}/half.jsonl", rows[::2])
    res, _ = q.run(data={"train": f"{q.dir}/half.jsonl", "eval": None})
    q.expect("every other row", res, 0, TRAIN // 2)
    before = t.read_bytes(q.files()[0])
    one, out = q.run()
    q.expect("all rows", one, TRAIN // 2, TRAIN // 2 + HELD)
    q.check(t.read_bytes(q.files()[0])[:len(before)] == before, "all rows: the known ones keep their values")
    two, again = q.run()
    q.expect("all rows again", two, TRAIN + HELD, 0)
    q.check(results(out) == results(again), "partly known and all known: the same bytes")


def test_duplicates(r, root):
    p = Place(r, root, "twice")
    rows = t.read_lines(f"{p.dir}/train.jsonl")
    t.write_lines(f"{p.dir}/train.jsonl", rows + rows[:17] + rows[5:9])
    cold, out = p.run(preference={"loss": "minor_dpo"})
    warm, again = p.run(preference={"loss": "minor_dpo"})
    p.expect("rows that stand twice, warm", warm, TRAIN + HELD + 21, 0)
    p.check(cold.code == 0 and results(out) == results(again), "rows that stand twice: cold and warm are the same bytes")
    p.check(os.path.getsize(p.files()[0]) == HEADER + RECORD * (TRAIN + HELD), "rows that stand twice: one record")


def test_what_shares(r, root):
    p = Place(r, root, "shares")
    p.run()
    t.make_model(f"{p.dir}/other", seed=2)
    res, _ = p.run(model={"path": f"{p.dir}/other"})
    p.expect("other weights", res, 0, TRAIN + HELD)
    p.check(len(p.files()) == 2, "other weights: another file", p.files())
    res, _ = p.run(model={"path": f"{p.dir}/other"}, reference={"path": f"{p.dir}/model"})
    p.expect("reference.path with the weights of the first run's policy", res, TRAIN + HELD, 0)
    shutil.copytree(f"{p.dir}/model", f"{p.dir}/copy")
    res, _ = p.run(model={"path": f"{p.dir}/copy"})
    p.expect("the same weights elsewhere", res, TRAIN + HELD, 0)
    with open(f"{p.dir}/copy/config.json", encoding="utf-8") as f:
        config = json.load(f)
    t.write_json(f"{p.dir}/copy/config.json", {**config, "rms_norm_eps": 1e-5})
    res, _ = p.run(model={"path": f"{p.dir}/copy"})
    p.expect("the same weights, another rms_norm_eps", res, 0, TRAIN + HELD)
    files = p.files()
    res, _ = p.run(preference={"loss": "orpo"})
    p.check(res.code == 0 and p.files() == files and not SAID.search(res.err), "orpo: has no reference", res)
    # after SFT: its own weights; the single job and the one from sft/ share
    res, out = p.run(sft={"epochs": 1})
    p.expect("after SFT", res, 0, TRAIN + HELD)
    res, _ = p.run(model={"path": f"{out}/sft"})
    p.expect("from that sft/", res, TRAIN + HELD, 0)
    for name, env, where in [("XDG_CACHE_HOME", {"XDG_CACHE_HOME": f"{p.dir}/xdg", "HOME": f"{p.dir}/home"}, "xdg/bdpo-train"),
                             ("HOME", {"XDG_CACHE_HOME": "", "HOME": f"{p.dir}/home"}, "home/.cache/bdpo-train")]:
        res, _ = p.run(env=env, cache_dir=None)
        p.expect(f"cache_dir null and {name}", res, 0, TRAIN + HELD, f"{p.dir}/{where}/reference-")
    res, _ = p.run(env={"XDG_CACHE_HOME": "", "HOME": ""}, cache_dir=None)
    p.check(res.code == 0 and "warning: reference cache: neither" in res.err, "neither is set: a warning, and no cache", res)


def test_faults(r, root):
    p = Place(r, root, "faults")
    _, out = p.run()
    want, path = results(out), p.files()[0]
    whole, rng, n = t.read_bytes(path), random.Random(5), TRAIN + HELD

    def put(data):
        with open(path, "wb") as f:
            f.write(data)

    for what, data, found, warned in [
        ("a torn record", whole[:-7], n - 1, None), ("half of it", whole[:HEADER + RECORD * 20 + 11], 20, None), ("a torn header", whole[:30], 0, None),
        ("empty", b"", 0, None), ("a garbage file", rng.randbytes(5000), 0, "header"), ("a byte too many", whole + b"x", n, None),
        ("shifted by a byte", whole[:HEADER + 100] + b"y" + whole[HEADER + 100:], 2, "44 damaged"),
    ]:
        put(data)
        res, out = p.run()
        p.expect(what, res, found, n - found)
        said = warnings(res)
        p.check(len(said) == (warned is not None) and (not warned or warned in said[0] and path in said[0]), f"{what}: what is said", said)
        p.check(results(out) == want, f"{what}: the same bytes")
        again, _ = p.run(preference={"max_steps": 1})
        p.check(again.code == 0 and not warnings(again) and (len(t.read_bytes(path)) - HEADER) // RECORD == n, f"{what}: and then the file is whole")
    for k in range(8):
        at = rng.randrange(HEADER, len(whole))
        put(whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1:])
        res, out = p.run()
        p.expect(f"byte {at} flipped", res, n - 1, 1, "1 damaged record", path)
        p.check(results(out) == want, f"byte {at} flipped: the same bytes")
    os.unlink(path)
    os.mkdir(path)
    for what, cache in [("a directory in the file's place", p.cache), ("a cache_dir below a file", f"{p.dir}/train.jsonl/cache"),
                        ("a cache_dir that cannot be made", "/proc/cache")]:
        res, out = p.run(cache_dir=cache)
        p.expect(what, res, 0, n)
        p.check(len(warnings(res)) == 1 and "not kept" in warnings(res)[0] and results(out) == want, f"{what}: one warning, the same bytes", res)
    os.rmdir(path)


def test_wrong_values(r, root):
    """Right checksums, wrong numbers: rows computed again and the check of the first step find them."""
    p = Place(r, root, "wrong")
    _, out = p.run()
    want, path, n = results(out), p.files()[0], TRAIN + HELD
    whole = t.read_bytes(path)
    for what, edit in [("all off by 0.01", lambda i, w, l: (w - 0.01, l)), ("chosen and rejected swapped", lambda i, w, l: (l, w))]:
        rewrite(path, edit)
        res, out = p.run()
        p.expect(what, res, 0, n, "all of it is dropped", "computed again")
        p.check(len(warnings(res)) == 1 and path in warnings(res)[0], f"{what}: the warning names the file", warnings(res))
        p.check(results(out) == want, f"{what}: the same bytes")
        res, _ = p.run(preference={"max_steps": 1})
        p.check(res.code == 0 and not warnings(res), f"{what}: and then the file is right", res)
    seen = {"dropped": 0, "stopped": 0, "neither": 0}
    for bad in range(n):
        with open(path, "wb") as f:
            f.write(whole)
        rewrite(path, lambda i, w, l: (w, l - 1) if i == bad else (w, l))
        res, out = p.run(preference={"max_steps": 12})
        if warnings(res):
            seen["dropped"] += 1
            p.check(res.code == 0 and "is dropped" in res.err, f"record {bad}: dropped", res)
        elif res.code:
            seen["stopped"] += 1
            p.check(res.code == 1 and path in res.err and "delete it" in res.err, f"record {bad}: stopped at the first step, the file named", res)
        else:
            seen["neither"] += 1
    print(f"one wrong record among {n}: {seen}")
    p.check(seen["dropped"] == 4 and seen["stopped"] in (3, 4), "one wrong record: four are computed again, four are in the first step", seen)
    with open(path, "wb") as f:
        f.write(whole)
    rewrite(path, lambda i, w, l: (w * (1 + 1e-7), l * (1 - 1e-7)))
    for loss in ("minor_dpo", "dpop"):
        res, out = p.run(preference={"loss": loss})
        p.expect(f"{loss}: values off by rounding", res, n, 0, "up to rounding (log-probabilities differ by 1", "allowed 1e-05")
        p.check(not warnings(res), f"{loss}: values off by rounding are no fault")


def test_at_once(r, root):
    p = Place(r, root, "once")
    _, out = p.run(reference={"cache": False})
    want = results(out)
    for k in range(3):
        shutil.rmtree(p.cache, ignore_errors=True)
        jobs = [p.job() for _ in range(3)]
        starts = [t.start("--config", path) for path, _ in jobs]
        errors = [s.communicate()[1].decode("utf-8", "replace") for s in starts]
        ok = all(s.returncode == 0 for s in starts) and not any("warning: reference cache" in e for e in errors)
        p.check(ok and all(results(out) == want for _, out in jobs), f"three at once, {k}: the same bytes", errors)
        p.check(os.path.getsize(p.files()[0]) == HEADER + RECORD * (TRAIN + HELD), f"three at once, {k}: a record a row")
    # of other packing, so that each would compute other last bits: what each run used is what the file holds
    for k in range(3):
        shutil.rmtree(p.cache)
        kinds = [{"preference": {"batch_size": b}, "memory": {"micro_batch_tokens": m}} for b, m in ((4, 60), (5, 100), (40, 400))]
        jobs = [p.job(**kind) for kind in kinds]
        starts = [t.start("--config", path) for path, _ in jobs]
        codes = [s.wait() for s in starts]
        for s in starts:
            s.stderr.close()
        first = [results(out) for _, out in jobs]
        second = [results(p.run(**kind)[1]) for kind in kinds]
        p.check(codes == [0, 0, 0] and first == second, f"three of other packing at once, {k}: the same again with what is cached", codes)


def test_kills(r, root, rng):
    p = Place(r, root, "kills", train=400)
    sections = {"preference": {"epochs": 0.5, "batch_size": 8}}
    begin = time.monotonic()
    _, out = p.run(**sections)
    seconds, want = time.monotonic() - begin, results(out)
    killed = 0
    for chain in range(6):
        shutil.rmtree(p.cache, ignore_errors=True)
        path, out = p.job(**sections)
        for _ in range(6):
            s = t.start("--config", path)
            time.sleep(rng.uniform(0.05, 0.9) * seconds)
            s.kill()
            s.communicate()
            killed += s.returncode == -9
            if s.returncode != -9:  # the machine has become faster than it was
                seconds *= 0.7
        res = t.bdpo("--config", path)
        p.check(res.code == 0 and not warnings(res) and results(out) == want, f"chain {chain} of kills: the same bytes, nothing is damaged", res)
    p.check(killed > 10, "kills: most came before the end", killed)
    p.check(any(left_behind(p, sections, want) for _ in range(20)), "killed when the cache was there: it is used")


def left_behind(p, sections, want):
    """Kill a run as soon as the cache holds rows; None where it was too fast, else whether the next one finds them."""
    shutil.rmtree(p.cache, ignore_errors=True)
    path, out = p.job(**sections)
    s = t.start("--config", path)
    while s.poll() is None and not any(os.path.getsize(f) > HEADER for f in p.files()):
        time.sleep(0.0005)
    s.kill()
    s.communicate()
    if s.returncode != -9:
        return None
    res = t.bdpo("--config", path)
    got = SAID.search(res.err)
    return res.code == 0 and results(out) == want and bool(got and got.group(2) != "0")


def test_signal(r, root):
    """A signal while the reference is scored: what is computed is kept."""
    p = Place(r, root, "signal", train=3000)
    sections = {"preference": {"max_steps": 2, "batch_size": 3000}, "data": {"eval": None}}
    path, out = p.job(**sections)
    kept = 0
    for k in range(40):
        shutil.rmtree(out, ignore_errors=True)
        shutil.rmtree(p.cache, ignore_errors=True)
        s = t.start("--config", path)
        while s.poll() is None and not p.files():
            time.sleep(0.001)
        time.sleep(0.002 * k)
        s.terminate()
        err = s.communicate()[1].decode("utf-8", "replace")
        kept = (os.path.getsize(p.files()[0]) - HEADER) // RECORD if p.files() else 0
        if s.returncode == 75 and "while the reference was scored" in err and kept > 0:
            break
    p.check(s.returncode == 75 and "while the reference was scored" in err, "stopped while the reference was scored", f"{s.returncode} {err}")
    res = t.bdpo("--config", path)
    got = SAID.search(res.err)
    p.check(res.code == 0 and got and int(got.group(2).replace(",", "")) >= kept > 0, f"it goes on from {kept} rows", res)


def main():
    r, root = Report(), tempfile.mkdtemp(prefix="bdpo-refcache-")
    seed = int(os.environ.get("SEED", random.randrange(1 << 30)))
    print(f"SEED={seed}")
    tests = [test_cold_and_warm, test_lazy, test_duplicates, test_what_shares, test_faults, test_wrong_values, test_at_once, test_kills, test_signal]
    try:
        for test in tests:
            if len(sys.argv) < 2 or test.__name__ in sys.argv[1:]:
                test(r, root, *([random.Random(seed)] if test is test_kills else []))
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return r.last()


if __name__ == "__main__":
    sys.exit(main())
