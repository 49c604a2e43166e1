#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The n-th write, fsync, rename, allocation ... of a run fails, is the last thing before a kill -9, or comes together with a signal; numbers that are not
finite; disks that are full or read-only. After each, what was there is whole and the run goes on to the same bytes. The program is $BDPO_FAULTY;
a sample of all calls, drawn by --seed, or all of them in every way (--all). Standard library only."""
import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import tiny_job as t
from compare_rows import Report
from fault_job import ASAN, FAULTY, Job

class Checks(Report):
    """Details of what failed only."""

    def check(self, ok, what, detail=""):
        super().check(ok, what, "" if ok else detail)


IO = ["open", "mkdir", "write", "fsync", "rename", "unlink", "truncate", "reserve"]


def test_binary(r):
    plain, faulty = t.read_bytes(t.BINARY), t.read_bytes(FAULTY)
    r.check(b"BDPO_FAULT" in faulty and b"BDPO_FAULT" not in plain and b"__wrap_" not in plain, "the program itself has no faults in it")


def fails(job, fault, want, last=False):
    """A run with this fault, then one without. "" or what is wrong."""
    res = job.run(fault)
    kill = fault.endswith("kill")
    if res.code == 0 and not kill:  # what may fail: the reference cache, room that cannot be reserved
        return job.recovered(want)
    errors = [x for x in res.lines if "error: " in x and not x.startswith("warning: ")]
    if res.code != (-signal.SIGKILL if kill else 1):
        return f"exit code {res.code}, {'the kill' if kill else '1'} expected: {res.err[-1500:]}"
    if not kill and len(errors) != 1:
        return f"one line of error expected: {errors}"
    states = ("failed", "running", "done") if last else ("failed", "running")  # what comes after the last status.json cannot be said in it
    if not kill and job.status().get("state", "failed") not in states:
        return f"status {job.status()}"
    return job.recovered(want)


def sweep(r, job, want, cases, count):
    bad, begin = [], time.monotonic()
    for fault in cases:
        wrong = fails(job, fault, want, fault.split(":")[1] == str(count))
        if wrong:
            bad.append(f"BDPO_FAULT={fault}: {wrong}")
            print(f"FAIL {bad[-1]}", flush=True)
    kinds = " ".join(f"{n} {k}" for k, n in sorted({k: sum(c.split(":")[2] == k for c in cases) for k in {c.split(":")[2] for c in cases}}.items()))
    r.check(not bad, f"{cases[0].split(':')[0]}: {len(cases)} runs ({kinds}) in {time.monotonic() - begin:.0f} s", f"{len(bad)} of {len(cases)}")


def test_calls(r, job, want, counts, rng, everything, share):
    ways = ["kill", "eio", "enospc"]
    for point in IO:
        numbers = range(1, counts[point] + 1)
        first = rng.randrange(3)
        if share < 1:
            numbers = sorted(rng.sample(numbers, max(1, int(share * len(numbers)))))
        cases = [f"{point}:{n}:{way}" for n in numbers for way in (ways if everything else [ways[(n + first) % 3]])]
        sweep(r, job, want, cases, counts[point])
    # a disk that stays full
    for point in ("write", "reserve"):
        numbers = rng.sample(range(1, counts[point] + 1), counts[point] if everything else max(1, int(8 * share)))
        sweep(r, job, want, [f"{point}:{n}+:enospc" for n in sorted(numbers)], counts[point])


def test_memory(r, job, want, counts, rng, everything, share):
    numbers = range(1, counts["alloc"] + 1)
    sweep(r, job, want, [f"alloc:{n}:enomem" for n in (numbers if everything else sorted(rng.sample(numbers, max(2, int(60 * share)))))], 0)


def test_signals(r, job, want, counts, rng, everything, share):
    """A signal at any moment: while data, model and reference are read, in steps, evaluations and saves; another kind after it."""
    bad, seen, cases = [], set(), []
    for point, number in [("alloc", 30), ("fsync", 30), ("logp", 12), ("step", 3), ("write", 12), ("rename", 12)]:
        numbers = range(1, counts[point] + 1)
        for n in numbers if everything else sorted(rng.sample(numbers, min(len(numbers), max(1, int(number * share))))):
            cases.append(f"{point}:{n}:{rng.choice(['usr1', 'term', 'int'])}")
    cases += ["fsync:30:usr1,fsync:31:term,fsync:33:usr1", "fsync:25:int,fsync:26:term", "fsync:40:term,fsync:40:term,fsync:41:term", "step:1:usr1,step:1:term"]
    for fault in cases:
        res = job.run(fault)
        s = job.status()
        if res.code == 0:
            wrong = job.recovered(want)  # it came when all was done
        elif res.code != 75 or s.get("state") != "stopped" or s.get("exit_code") != 75 or "SIG" not in s.get("reason", ""):
            wrong = f"{s} {res}"
        elif s.get("checkpoint") and not os.path.isdir(f"{job.out}/{s['checkpoint']}"):
            wrong = f"status.json names {s['checkpoint']}"
        else:
            seen.add(next((w for w in ("data were read", "reference", "evaluation", "before", "after sft step", "after preference step", "sft stage") if w in s["reason"]), "?"))
            wrong = job.recovered(want)
        if wrong:
            bad.append(f"BDPO_FAULT={fault}: {wrong}")
            print(f"FAIL {bad[-1]}", flush=True)
    print(f"stopped: {', '.join(sorted(seen))}")
    r.check(not bad, f"signals: {len(cases)} runs", f"{len(bad)}")
    r.check(len(seen) >= 4, "signals: came at several kinds of moments", str(seen))


def test_second_signal(r, job, want):
    """While a save crawls: the same signal again ends the process at once, and what was saved before stands."""
    for number in (signal.SIGTERM, signal.SIGINT):
        job.fresh()
        p = subprocess.Popen([FAULTY, "--config", job.config], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                             env={**os.environ, "BDPO_FAULT": "fsync:45+:sleep", "ASAN_OPTIONS": ASAN})
        while p.poll() is None and not os.path.isdir(f"{job.out}/checkpoints/.tmp-preference-000002"):
            time.sleep(0.005)
        p.send_signal(number)
        time.sleep(0.3)
        running = p.poll() is None
        p.send_signal(number)
        begin = time.monotonic()
        err = p.communicate()[1].decode("utf-8", "replace")
        s, took = job.status(), time.monotonic() - begin
        name = signal.Signals(number).name
        r.check(running and p.returncode == 128 + number and took < 0.5, f"a second {name} ends it at once", f"{running} {p.returncode} {took:.2f} s {err[-300:]}")
        r.check(s.get("state") == "stopped" and s.get("exit_code") == 128 + number and "second signal" in s.get("reason", "")
                and os.path.isdir(f"{job.out}/{s.get('checkpoint', 'none')}"), f"a second {name}: status.json says so", str(s))
        wrong = job.recovered(want)
        r.check(not wrong, f"a second {name}: without harm", wrong)


def test_not_finite(r, root):
    job = Job(f"{root}/nan", preference={"epochs": 4}, faults={"max_skipped_steps": 2})
    counts = job.counts()
    for what, fault, raw in [("a gradient of NaN", "grad:4:nan", ("grad_norm", "NaN")), ("a gradient of infinity", "grad:4:inf", ("grad_norm", "Infinity"))]:
        res = job.run(fault)
        rows = [x for x in t.read_lines(f"{job.out}/metrics.jsonl") if "loss" in x]
        row = rows[3]
        ok = res.code == 0 and row[raw[0]] == raw[1] and row["skipped"] == 1 and rows[-1]["skipped"] == 1 and rows[2]["skipped"] == 0
        r.check(ok and "preference step 2 skipped" in res.err and "train.jsonl:" in res.err, f"{what}: the step is skipped, its raw value logged, its rows named", f"{row} {res}")
        whole = job.results()
        res = job.run(f"{fault},step:7:kill")
        wrong = job.recovered(whole)
        r.check(res.code == -9 and not wrong, f"{what}: the counter is in the checkpoint", wrong or str(res))
    losses = 0
    for n in range(1, counts["logp"] + 1):  # some of these are evaluations, the reference, checks of what was saved
        res = job.run(f"logp:{n}:nan")
        rows = [x for x in t.read_lines(f"{job.out}/metrics.jsonl") if x.get("loss") == "NaN"]
        losses += res.code == 0 and len(rows) == 1 and rows[0]["skipped"] == 1
    r.check(losses >= 5, "a loss of NaN in any step: skipped, the run goes on", f"{losses}")
    res = job.run("grad:5+:nan")
    s = job.status()
    good = [n for n in job.checkpoints()]
    r.check(res.code == 80 and s["exit_code"] == 80 and s["state"] == "failed" and "max_skipped_steps" in res.err and good[-1] == "preference-000004",
            "more in a row than max_skipped_steps: 80, the checkpoints stand", f"{good} {s} {res}")
    res = job.run("", "--set", "preference.learning_rate=1e-3", "--allow-change", keep=True)
    r.check(res.code == 0 and "resumed from" in res.err, "and the run can be gone on with", f"{res}")


# full and read-only disks: in a name space of its own, where an ordinary user may mount -----------------------------------

def inside(root):
    """Under unshare -rm. Prints "ok WHAT" or "FAIL WHAT" for the caller to count."""
    def say(ok, what, detail=""):
        print(f"ok {what}" if ok else f"FAIL {what}: {detail}".replace("\n", " | "))

    def mount(*args):
        subprocess.run(["mount", *args], check=True)

    job = Job(f"{root}/disk", checkpoint={"export": "stage"})
    job.run()
    want = job.results()
    shutil.rmtree(job.out)
    os.makedirs(job.out)
    mount("-t", "tmpfs", "-o", "size=254k", "none", job.out)  # a checkpoint takes about 80
    res = job.go_on("--set", "checkpoint.keep=5")
    names = job.checkpoints()
    line = res.lines[-1]
    say(res.code == 1 and "No space left" in line and "(needs " in line and " free)" in line and "/checkpoints/" in line, "a full disk: one line with path, needed and free", res)
    say("warning: output:" in res.err and "free, this run may write" in res.err, "a full disk: warned of before the first step", res)
    say(names and not job.leftovers(), "a full disk: older checkpoints stand, nothing half-written", f"{names} {job.leftovers()}")
    subprocess.run(["dd", "if=/dev/zero", f"of={job.out}/filler", "bs=4k"], capture_output=True, check=False)
    res = job.go_on("--set", "checkpoint.keep=5")
    s = job.status()
    say(res.code == 1 and s["state"] == "failed" and s["exit_code"] == 1 and "No space left" in s["reason"], "no byte of room: status.json says so all the same", f"{s} {res}")
    os.unlink(f"{job.out}/filler")
    mount("-o", "remount,size=4m", job.out)
    wrong = job.recovered(want)
    say(not wrong, "with room again: gone on with, to the same bytes", wrong)
    mount("-o", "remount,ro", job.out)
    res = job.go_on("--set", "checkpoint.resume=never")
    say(res.code == 2 and "Read-only file system" in res.err and "plan:" not in res.err, "a read-only output: 2 before the model is loaded", res)
    subprocess.run(["umount", job.out], check=True)
    shutil.rmtree(job.out)
    os.makedirs(job.out)
    open(f"{job.out}/timing.jsonl", "w", encoding="utf-8").close()
    mount("--bind", "/dev/full", f"{job.out}/timing.jsonl")
    res = job.go_on()
    say(res.code == 1 and "timing.jsonl" in res.lines[-1] and "No space left" in res.lines[-1], "/dev/full in the place of timing.jsonl", res)
    subprocess.run(["umount", f"{job.out}/timing.jsonl"], check=True)
    wrong = job.recovered(want)
    say(not wrong, "/dev/full: gone on with without it", wrong)


def test_disks(r, root):
    probe = subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False)
    if probe.returncode != 0:
        r.skipped += 1
        print(f"skipped: full and read-only disks: unshare -rm: {probe.stderr.decode().strip()}")
        return
    p = subprocess.run(["unshare", "-rm", sys.executable, os.path.abspath(__file__), "--inside", root], capture_output=True, text=True, check=False, timeout=120)
    lines = [x for x in p.stdout.split("\n") if x.startswith(("ok ", "FAIL "))]
    for x in lines:
        r.check(x.startswith("ok "), x.split(" ", 1)[1])
    r.check(p.returncode == 0 and len(lines) == 8, "full and read-only disks: all was looked at", p.stdout + p.stderr)


def test_places(r, root):
    """Outputs that cannot be, seen before the model is loaded. Root passes every permission, so it asks as nobody."""
    job = Job(f"{root}/place")
    t.write_lines(f"{root}/place/file", [])
    os.makedirs(f"{root}/place/shut", mode=0o555)
    for what, out, as_nobody in [("a file", "file", False), ("below a file", "file/x", False), ("a directory without the right to write", "shut/x", True)]:
        become = (lambda: os.setuid(65534)) if as_nobody and os.geteuid() == 0 else None
        os.chmod(root, 0o755)
        res = job.run("", "--set", f"output={root}/place/{out}", preexec_fn=become)
        r.check(res.code == 2 and "output:" in res.lines[-1] and "plan:" not in res.err, f"output in {what}: 2", f"{res}")


def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    ap.add_argument("--all", action="store_true", help="every call in every way (long)")
    ap.add_argument("--share", type=float, default=0.04, help="of the calls, drawn by the seed")
    ap.add_argument("--inside", help=argparse.SUPPRESS)
    a = ap.parse_args()
    if a.inside:
        inside(a.inside)
        return 0
    if not os.path.exists(FAULTY):
        print(f"skipped: {FAULTY} is not built (make build-tests)")
        return 77
    print(f"--seed {a.seed}")
    rng, r, root = random.Random(a.seed), Checks(), tempfile.mkdtemp(prefix="bdpo-fault-")
    try:
        test_binary(r)
        job = Job(f"{root}/job")
        counts = job.counts()
        print(" ".join(f"{k} {n}" for k, n in counts.items()))
        want = job.results()
        r.check(None not in want.values(), "a run that nothing disturbs")
        test_calls(r, job, want, counts, rng, a.all, a.share)
        test_memory(r, job, want, counts, rng, a.all, a.share)
        test_signals(r, job, want, counts, rng, a.all, a.share)
        test_second_signal(r, job, want)
        test_not_finite(r, root)
        test_disks(r, root)
        test_places(r, root)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return r.last()


if __name__ == "__main__":
    sys.exit(main())
