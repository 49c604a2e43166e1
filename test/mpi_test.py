#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The same training on any number of ranks: whole jobs under mpirun, on one machine. Standard library only."""
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import tiny_job as t
from compare_rows import Report
from mpi_launch import launcher

PROGRAMS = os.path.join(os.path.dirname(os.path.realpath(t.BINARY)), "test")


# differences of a metric, as a share of it: float32 sums in another order; bfloat16 that rounds to the next number now and then
FLOAT32, BFLOAT16 = 64 * 2.0**-23, 2.0**-8


RUN, REASON = launcher(t.BINARY)
OPEN_MPI = bool(RUN) and len(RUN) > 1


def mpi(ranks, *args, program=None, timeout=120, env=None):
    p = subprocess.run([*RUN, "-np", str(ranks), program or t.BINARY, *args], stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout,
                       env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})})
    return t.Result(p.returncode, p.stdout, p.stderr)


def ours(res):
    """The lines that the program wrote, without mpirun's own."""
    return [x for x in res.lines if x.startswith("bdpo-train:") or ": error:" in x and not x.startswith("warning: ")]


class Runs:
    """Jobs over one model and data set, each in a directory of its own."""

    def __init__(self, r, root):
        self.r, self.root, self.n = r, root, 0
        t.make_root(root, train=30, held=7)

    def config(self, **sections):
        self.n += 1
        sections = {"memory": {"micro_batch_tokens": 40}, "reference": {"cache": False}, "output": f"{self.root}/run-{self.n}", **sections}
        path = f"{self.root}/run-{self.n}.json"
        t.write_json(path, t.make_config(self.root, **sections))
        return path, sections["output"]

    def train(self, ranks, *args, **sections):
        path, out = self.config(**sections)
        res = mpi(ranks, "--config", path, *args)
        if res.code:
            print(f"{ranks} ranks: {res}")
        return out if res.code == 0 else None


def rows(out):
    return t.read_lines(f"{out}/metrics.jsonl") if out else []


def flat(row):
    """A row with the values of objects in it beside the others, so a.b for {"a": {"b": ...}}."""
    out = {}
    for key, v in row.items():
        inner = flat(v) if isinstance(v, dict) else flat({str(i): x for i, x in enumerate(v)}) if isinstance(v, list) else None
        out.update({f"{key}.{k}": x for k, x in inner.items()} if inner is not None else {key: v})
    return out


def distance(a, b):
    """Largest difference of two runs' metrics, as a share of the value or of 1."""
    if len(a) != len(b) or not a:
        return float("inf")
    worst = 0.0
    for x, y in zip(map(flat, a), map(flat, b)):
        if x.keys() != y.keys():
            return float("inf")
        for key, v in x.items():
            if isinstance(v, (dict, list)):
                continue  # statistics of the values that are compared
            if isinstance(v, str) or isinstance(y[key], str):
                worst = max(worst, 0.0 if v == y[key] else float("inf"))
            elif not key.endswith(("accuracies", "bound")):
                worst = max(worst, abs(v - y[key]) / max(1.0, abs(v)))
    return worst


def test_equal(r, runs):
    """One rank, and 2 to 4: losses, norms, metrics and evaluation agree to rounding."""
    cases = [
        ("float32, local", FLOAT32, (2, 3, 4), {"dist": {"gradients": "local"}}),
        ("float32, sharded", FLOAT32, (2, 3), {"dist": {"gradients": "sharded"}}),
        ("bfloat16, local", BFLOAT16, (3,), {"model": {"path": f"{runs.root}/model", "dtype": "bfloat16"}, "dist": {"gradients": "local"}}),
        ("a batch of 5, recomputed activations", FLOAT32, (4,),
         {"preference": {"batch_size": 5}, "memory": {"micro_batch_tokens": 40, "gradient_checkpointing": True}, "dist": {"gradients": "sharded"}}),
        ("a batch of 2, below the ranks", FLOAT32, (3, 4), {"preference": {"batch_size": 2, "max_steps": 6}, "sft": {"batch_size": 1, "max_steps": 5}}),
        ("samples for eval/kl, shared by the ranks", FLOAT32, (2, 3), {"eval": {"every": 3, "kl_samples": 7}}),
        ("a loss without a reference", FLOAT32, (2,), {"preference": {"loss": "orpo"}}),
    ]
    for what, allowed, ranks, sections in cases:
        sections = {"sft": {"learning_rate": 1e-3}, "eval": {"every": 3}, **sections}
        sections["preference"] = {"learning_rate": 1e-3, **sections.get("preference", {})}
        want = rows(runs.train(1, **sections))
        far = {n: distance(want, rows(runs.train(n, **sections))) for n in ranks}
        r.check(max(far.values()) <= allowed, f"{what}: agrees with one rank", f"{far}")


def digest(out):
    return [t.read_bytes(f"{out}/{name}") for name in ("metrics.jsonl", "sft/model.safetensors", "model/model.safetensors")] if out else None


def test_deterministic(r, runs):
    """dist.deterministic: the same bits, whatever the number of ranks and the way of gradients."""
    for dtype in ("float32", "bfloat16"):
        sections = {"model": {"path": f"{runs.root}/model", "dtype": dtype}, "sft": {"batch_size": 7}, "preference": {"batch_size": 7}}
        want = None
        for gradients, ranks in (("local", (1, 2, 3)), ("sharded", (1, 4))):
            for n in ranks:
                got = digest(runs.train(n, **sections, dist={"gradients": gradients, "deterministic": True}))
                want = want or got
                r.check(got is not None and got == want, f"deterministic, {dtype}, {gradients}, {n} ranks: the same bits")


def groups(layout, total):
    """[(begin, end)] of what a backward finishes together: embedding, layers, the rest."""
    layer = lambda name: name.split("layers.")[1].split(".")[0] if "layers." in name else None
    starts = [at for i, (name, at, _) in enumerate(layout) if i == 0 or layer(name) != layer(layout[i - 1][0])]
    return list(zip(starts, starts[1:] + [total]))


def own_elements(layout, total, ranks, rank):
    """Elements of the flat array that a rank owns: groups of buckets of parts (src/dist/zero.h)."""
    own = b = 0
    for begin, end in groups(layout, total):
        for at in range(begin, end, 1 << 22):
            n = min(1 << 22, end - at)
            part = -(-(-(-n // ranks)) // 1024) * 1024
            place = (rank - b) % ranks
            own += max(0, min(n, (place + 1) * part) - min(n, place * part))
            b += 1
    return own


def test_traffic(r, runs):
    """timing.jsonl's bytes of rank 0 are exactly those of the theory: (4 reduced + 2 or 4 gathered) x parameters x (n-1)/n, and what keeps the ranks in step."""
    pairs = 6
    for dtype, size in (("bfloat16", 2), ("float32", 4)):
        for ranks in (2, 3):
            for how, micro, dist in (("local", 1000, {"gradients": "local"}), ("sharded", 1000, {"gradients": "sharded"}), ("sharded, micro-batches", 25, {"gradients": "sharded"}),
                                     ("deterministic", 1000, {"gradients": "local", "deterministic": True})):
                out = runs.train(ranks, sft=None, model={"path": f"{runs.root}/model", "dtype": dtype}, preference={"batch_size": pairs, "max_steps": 3},
                                 memory={"micro_batch_tokens": micro}, dist=dist, checkpoint={"every": 2, "keep": 1})
                what = f"bytes sent, {dtype}, {how}, {ranks} ranks"
                if not out:
                    r.check(False, what)
                    continue
                with open(f"{out}/checkpoints/preference-000002/manifest.json", encoding="utf-8") as f:
                    manifest = json.load(f)
                n = manifest["elements"]
                own = {k: own_elements(manifest["layout"], n, ranks, k) for k in range(ranks)}
                blocks = sum(-(-(end - begin) // 1024) for begin, end in groups(manifest["layout"], n))
                small = (72 + 24 * pairs + 8 * (blocks if how == "deterministic" else 1)) * (ranks - 1)
                sent = [x["comm_bytes"] for x in t.read_lines(f"{out}/timing.jsonl")]
                gradients = [(x - small - size * own[0] * (ranks - 1)) / (4 * (n - own[0])) for x in sent]
                once = all(g == 1 for g in gradients) if micro == 1000 else all(g == int(g) >= 1 for g in gradients) and max(gradients) > 1
                whole = sum(4 * (n - own[k]) + size * own[k] * (ranks - 1) for k in range(ranks))
                r.check(len(sent) == 3 and sum(own.values()) == n and once and whole == (4 + size) * n * (ranks - 1), what, f"{sent}, gradients {gradients} times")


def test_repeat(r, runs):
    """Two runs on the same number of ranks are bit-equal in any mode."""
    for gradients in ("local", "sharded"):
        a, b = (digest(runs.train(3, dist={"gradients": gradients})) for _ in range(2))
        r.check(a is not None and a == b, f"{gradients}: two runs on 3 ranks are bit-equal")


def test_resume(r, runs):
    """A run that is stopped and goes on, on the same and on another number of ranks."""
    det = {"dist": {"deterministic": True}, "model": {"path": f"{runs.root}/model", "dtype": "bfloat16"}}
    want = digest(runs.train(2, **det))
    path, out = runs.config(**det)
    codes = []
    for n in (2, 1, 3, 2):
        codes.append(mpi(n, "--config", path, "--set", "max_hours=1e-9").code)
    last = mpi(4, "--config", path)
    r.check(codes == [75] * 4 and last.code == 0 and digest(out) == want, "stopped on 2, 1, 3 and 2 ranks, ended on 4: the same bits", f"{codes} {last}")
    res = mpi(3, "--config", path, "--set", "preference.lambda=0.25")
    r.check(res.code == 82 and len(ours(res)) == 1 and "preference.lambda: 0.25 was 0.5" in ours(res)[0], "with another lambda on 3 ranks: refused with both values, in one line", f"{res}")


def test_evaluate(r, runs):
    path, out = runs.config()
    one = t.bdpo("evaluate", "--config", path)
    for n in (2, 3, 9):
        got = mpi(n, "evaluate", "--config", path, "--per-pair", f"{runs.root}/pairs-{n}")
        far = distance([json.loads(one.out)], [json.loads(got.out)]) if got.code == 0 else got
        r.check(got.code == 0 and far < 1e-5, f"evaluate on {n} ranks", f"{far}")
        r.check(got.code == 0 and len(t.read_lines(f"{runs.root}/pairs-{n}")) == 7, f"evaluate on {n} ranks: a line a pair")


def test_cache(r, runs):
    """Ranks share the caches of tokens and of the reference with each other and with other runs."""
    cache = f"{runs.root}/cache-shared"
    sections = {"reference": {"cache": True}, "cache_dir": cache, "sft": None, "dist": {"deterministic": True}}
    outs = [runs.train(n, **sections) for n in (3, 2, 1, 4)]
    data = [t.read_bytes(f"{o}/metrics.jsonl") if o else None for o in outs]
    r.check(None not in data and len(set(data)) == 1, "3, 2, 1 and 4 ranks with one cache: the same rows")
    files = os.listdir(cache) if os.path.isdir(cache) else []
    kinds = [sum(f.startswith(kind) and f.endswith(".bin") for f in files) for kind in ("reference-", "tokens-")]
    r.check(kinds == [1, 2] and len(files) == 3, "one file for the reference, one each for the tokens of data.train and data.eval", str(files))
    for f in files:
        if f.startswith("tokens-"):
            with open(f"{cache}/{f}", "r+b") as c:
                c.truncate(os.path.getsize(f"{cache}/{f}") // 2)
    out = runs.train(2, **sections)
    r.check(out and t.read_bytes(f"{out}/metrics.jsonl") == data[0], "damaged tokens: two ranks make them anew")
    r.check(sorted(os.listdir(cache)) == sorted(files), "damaged tokens: the same files", str(os.listdir(cache)))


def test_errors(r, runs):
    """Bad input: one line from one rank, exit code 2, nothing written."""
    path, out = runs.config()
    for what, args, part in [
        ("a bad option", ["--set", "preference.lamda=1"], "lambda"),
        ("no model", ["--set", "model.path=/nonexistent"], "/nonexistent"),
        ("no data", ["--set", "data.train=/nonexistent.jsonl"], "/nonexistent.jsonl"),
    ]:
        res = mpi(3, "--config", path, *args)
        said = ours(res)
        r.check(res.code == 2 and len(said) == 1 and part in said[0] and not os.path.exists(out), f"{what}: one line from one rank, code 2", f"{res}")
    res = mpi(2, "--config", path, "--dry-run")
    r.check(res.code == 0 and json.loads(res.out)["output"] == out, "--dry-run prints once", f"{res}")


def test_failures(r, runs):
    """What one rank meets while running ends all, with its code."""
    path, out = runs.config(sft=None, checkpoint={"every": 2})
    os.makedirs(f"{runs.root}/dir")
    res = mpi(3, "--config", path, "--set", "max_hours=1e-9")
    r.check(res.code == 75, "max_hours on 3 ranks", f"{res}")
    status = json.load(open(f"{out}/status.json", encoding="utf-8"))
    r.check(status["state"] == "stopped" and status["exit_code"] == 75, "its status.json", str(status))
    shutil.rmtree(f"{out}/checkpoints")
    with open(f"{out}/checkpoints", "w", encoding="utf-8"):
        pass
    res = mpi(3, "--config", path)
    r.check(res.code == 1 and len(ours(res)) == 1, "a checkpoint that cannot be written ends all ranks", f"{res}")
    path, out = runs.config(sft={"epochs": 200, "learning_rate": 1, "weight_decay": 100, "schedule": "constant"}, preference=None)
    res = mpi(3, "--config", path)
    r.check(res.code == 80 and len(ours(res)) == 1, "divergence ends all ranks with 80", f"{res}")


def long_run(runs, every=200, **sections):
    """A job of minutes that says where it is; its config and output."""
    return runs.config(sft=None, preference={"epochs": 20000, "learning_rate": 1e-5}, checkpoint={"every": every}, **sections)


def launch(ranks, *args):
    """In a session of its own, in the background."""
    return subprocess.Popen([*RUN, "-np", str(ranks), t.BINARY, *args], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True)


def processes(config, program=t.BINARY):
    """{rank: pid} of the ranks that run this config."""
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as f:
                words = f.read().split(b"\0")
            if os.path.realpath(f"/proc/{pid}/exe") != os.path.realpath(program) or config.encode() not in words:
                continue
            with open(f"/proc/{pid}/environ", "rb") as f:
                env = dict(x.split(b"=", 1) for x in f.read().split(b"\0") if b"=" in x)
            found[int(env.get(b"OMPI_COMM_WORLD_RANK", env.get(b"PMI_RANK", b"-1")))] = int(pid)
        except OSError:  # it has ended meanwhile
            pass
    return found


def end(pids, number=signal.SIGKILL):
    """That signal to these processes, as far as they are still there."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass


def wait_steps(out, steps, seconds=30):
    """Wait until metrics.jsonl has rows."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if t.read_bytes(f"{out}/metrics.jsonl").count(b"\n") >= steps:
                return True
        except OSError:
            pass
        time.sleep(0.05)
    return False


def finish(p, config, seconds, program=t.BINARY):
    """Its result once mpirun and all ranks are gone; seconds that took, or None where something is still there."""
    begin = time.monotonic()
    try:
        out, err = p.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        end(processes(config, program).values())
        p.kill()
        return t.Result(-1, *p.communicate()), None
    while processes(config, program) and time.monotonic() - begin < seconds:
        time.sleep(0.05)
    return t.Result(p.returncode, out, err), None if processes(config, program) else time.monotonic() - begin


def status_of(out):
    with open(f"{out}/status.json", encoding="utf-8") as f:
        return json.load(f)


def test_hang(r, runs):
    """A rank that stands still: the others find it after hang_timeout, say where, and all end."""
    for stopped in (1, 0):
        path, out = long_run(runs, every=10 ** 6, faults={"hang_timeout": 3})  # a rank that may be writing is waited for ten times as long
        p = launch(3, "--config", path)
        ok = wait_steps(out, 20)
        end((pid for rank, pid in processes(path).items() if rank == stopped), signal.SIGSTOP)
        res, took = finish(p, path, 30)
        said = [x for x in res.lines if "no progress for" in x and "waiting for other ranks" in x and "preference step" in x]
        r.check(ok and took is not None and 2 < took < 9 and (res.code == 76 or res.code and not OPEN_MPI) and said, f"rank {stopped} of 3 is stopped: found, 76", f"{took} {res.code} {said[:1]}")
        if stopped:
            s = status_of(out)
            r.check(s["state"] == "failed" and s["exit_code"] == 76 and "no progress" in s["reason"], "its status.json", str(s))
        r.check(any("bdpo-train(" in x or "libmpi" in x for x in res.lines), "a stack is printed")


def test_dead(r, runs):
    """A rank that is killed ends all within 10 s, and the run goes on from its checkpoint."""
    for dead in (1, 0):
        path, out = long_run(runs)
        p = launch(3, "--config", path)
        ok = wait_steps(out, 250)
        os.kill(processes(path)[dead], signal.SIGKILL)
        res, took = finish(p, path, 30)
        r.check(ok and took is not None and took < 10 and res.code != 0, f"rank {dead} of 3 is killed: all are gone", f"{took} {res.code}")
        again = mpi(2, "--config", path, "--set", "max_hours=1e-9")
        r.check(again.code == 75 and "resumed from" in again.err, "the run goes on from its checkpoint", "" if again.code == 75 else f"{again}")


def test_signals(r, runs):
    """SIGUSR1 to the launcher or to one rank: all finish the same step, save, 75."""
    for what, target in (("mpirun", None), ("rank 0", 0), ("rank 2", 2)):
        path, out = long_run(runs)
        p = launch(3, "--config", path)
        ok = wait_steps(out, 20)
        os.kill(p.pid if target is None else processes(path)[target], signal.SIGUSR1)
        res, took = finish(p, path, 30)
        s = status_of(out)
        # a launcher may not pass the code on
        r.check(ok and took is not None and s["exit_code"] == 75 and s["state"] == "stopped" and os.path.isdir(f"{out}/{s['checkpoint']}"),
                f"SIGUSR1 to {what}: saved, 75 in status.json", f"{took} {res.code} {s['reason']}")


def test_programs(r, _):
    """Tests in C that run on as many ranks as they are started with."""
    for name in ("t_zero", "t_replica"):
        for n in (2, 3, 5):
            res = mpi(n, program=os.path.join(PROGRAMS, name))
            r.check(res.code == 0, f"{name} on {n} ranks", f"{res}" if res.code else "")


def run_tests(r, tests):
    """Each test with jobs in one directory of its own, which is gone afterwards; how long it took."""
    root = tempfile.mkdtemp(prefix="bdpo-mpi-")
    try:
        runs = Runs(r, root)
        for test in tests:
            begin = time.monotonic()
            test(r, runs)
            print(f"{test.__name__}: {time.monotonic() - begin:.1f} s")
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return r.last()


def main():
    r = Report()
    if not RUN:
        print(f"skip: {REASON}")
        r.skipped = 1
        return r.last()
    return run_tests(r, (test_equal, test_deterministic, test_traffic, test_repeat, test_resume, test_evaluate, test_cache, test_errors, test_failures,
                         test_hang, test_dead, test_signals, test_programs))


if __name__ == "__main__":
    sys.exit(main())
