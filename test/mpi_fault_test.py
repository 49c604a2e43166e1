#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What one rank of two meets: a write, fsync, rename or allocation that fails or is the last thing before a kill, a disk that is full or slow. All ranks end
with one line and one code, status.json never says that a run goes on which has ended, the older checkpoint is whole, and the run goes on to the same
bytes. A sample drawn by --seed, or every call (--all). Standard library only; $BDPO_FAULTY is run under mpirun."""
import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time

import mpi_test as m
import tiny_job as t
from fault_job import FAULTY
from fault_test import Checks
from mpi_job import RANKS, MpiJob


def fails(job, want, fault, rank, last):
    """"" or what is wrong after this fault of this rank."""
    res = job.run(fault, rank=rank)
    what, status = fault.split(":")[2], job.status()
    if res.took is None:
        return f"still running: {res}"
    if res.code == 0 and what not in ("kill", "exit"):  # what may fail: the reference cache, room that cannot be reserved
        return job.recovered(want)
    if what in ("kill", "exit"):
        if res.code == 0 and status.get("state") != "done":
            return f"exit code 0: {res}"
    elif res.code != 1 or len(m.ours(res)) != 1:
        return f"one line and exit code 1 expected: {res}"
    if status.get("state") == "running" and not last and "+" not in fault and what not in ("kill", "exit"):
        return f"status.json: {status}"
    return job.recovered(want)


def sweep(r, job, want, cases, counts):
    bad, begin = 0, time.monotonic()
    for rank, fault in cases:
        point, n, _ = fault.split(":")
        wrong = fails(job, want, fault, rank, last=n.rstrip("+") == str(counts[rank][point]))
        if wrong:
            bad += 1
            print(f"FAIL BDPO_FAULT_RANK={rank} BDPO_FAULT={fault}: {wrong}", flush=True)
    r.check(bad == 0, f"{cases[0][1].split(':')[0]} and others: {len(cases)} runs in {time.monotonic() - begin:.0f} s", f"{bad} of {len(cases)}")


def test_calls(r, job, want, counts, rng, everything, number):
    """Calls of either rank that fail, or are the last thing before a kill; rank 1's are all of saves."""
    cases = []
    for rank in (1, 0):
        all_of = [(point, n) for point in ("open", "write", "fsync", "rename", "reserve", "mkdir", "unlink") for n in range(1, counts[rank][point] + 1)]
        some = all_of if everything else rng.sample(all_of, min(len(all_of), number))
        for k, (point, n) in enumerate(sorted(some)):
            cases += [(rank, f"{point}:{n}:{what}") for what in (("eio", "enospc", "kill") if everything else (("eio", "kill")[k % 2],))]
        n = rng.randint(1, counts[rank]["write"])
        cases += [(rank, f"write:{n}+:enospc"), (rank, f"reserve:{rng.randint(1, max(1, counts[rank]['reserve']))}+:enospc")]
    sweep(r, job, want, cases, counts)


def test_memory(r, job, want, counts, rng, everything, number):
    """An allocation of one rank fails, wherever that is: in an agreement, a message, a save."""
    # the first ones always: the ranks have met, and nothing else is there yet
    cases = [(rank, f"alloc:{n}:enomem") for rank in (1, 0)
             for n in sorted(range(1, counts[rank]["alloc"] + 1) if everything else {1, 2, 3, *rng.sample(range(4, counts[rank]["alloc"] + 1), number)})]
    sweep(r, job, want, cases, counts)


def test_words(r, job, want, rng):
    """A rank that fails in the middle of an agreement says so in status.json, and mpirun's signal to rank 0 does not change it."""
    for _ in range(3):  # mpirun may have killed the rank before its words were written
        res = job.run(f"alloc:{rng.randint(1, 20)}+:enomem", env={"BDPO_FAULT_STEP": str(rng.randint(1, 5))})  # an agreement needs memory too
        s = job.status()
        said = res.code == 1 and s.get("state") == "failed" and s.get("exit_code") == 1 and "memory" in s.get("reason", "")
        if said:
            break
    r.check(said, "rank 1 without memory: its words are in status.json", f"{s} {res}")
    wrong = job.recovered(want)
    r.check(not wrong, "rank 1 without memory: gone on with", wrong)


def test_slow_disk(r, root):
    """A disk of one rank takes longer than hang_timeout: no hang, and the run ends as ever."""
    job = MpiJob(f"{root}/slow", sft=None, preference={"epochs": 1}, faults={"hang_timeout": 3}, checkpoint={"every": 1, "export": "stage"})
    job.alone()
    want = {n: job.results()[n] for n in ("metrics.jsonl", "model/model.safetensors")}
    for rank in (1, 0):
        fsyncs = job.rank_counts(rank)["fsync"]
        n = 1 if rank == 1 else fsyncs // 2
        res = job.run(f"fsync:{n}:sleep", rank=rank, env={"BDPO_FAULT_SLEEP": "8000"})
        got = {k: job.results()[k] for k in want}
        r.check(res.code == 0 and got == want and None not in want.values(), f"an fsync of rank {rank} takes longer than hang_timeout: waited for", f"{res}")


def test_numbers(r, root):
    """A bit of one rank's weights flips, its loss is no number: all ranks end or skip together."""
    # without a cache: which rank computes a row of the reference depends on which one comes first, and so would the calls' numbers
    job = MpiJob(f"{root}/numbers", sft=None, preference={"epochs": 4, "learning_rate": 1e-3}, faults={"replica_check_every": 1, "max_skipped_steps": 2}, eval={"every": 0}, reference={"cache": False})
    job.alone()
    res, s = job.run("step:3:flip"), job.status()
    said = m.ours(res)
    r.check(res.code == 81 and s["exit_code"] == 81 and len(said) == 1 and "tensor model.norm.weight of rank 1 is not rank 0's" in said[0] and job.checkpoints()[-1] == "preference-000002",
            "a bit of rank 1 flips in step 3: 81 names tensor and rank, nothing is saved after it", f"{job.checkpoints()} {s} {res}")
    skipped, blamed = [], []
    for n in range(job.rank_counts(1)["logp"]):  # some of these are the reference, evaluations, checks of what was saved
        res = job.run(f"logp:{n + 1}:nan")
        blamed += [(n, res)] if "the policy is the reference, yet" in res.err else []
        rows = [x for x in t.read_lines(f"{job.out}/metrics.jsonl") if x.get("loss") == "NaN"] if res.code == 0 else []
        if len(rows) == 1:
            skipped.append((rows[0], res))
            break
    ok = skipped and skipped[0][0]["skipped"] == 1 and f"step {skipped[0][0]['step']} skipped" in skipped[0][1].err and "train.jsonl:" in skipped[0][1].err
    r.check(ok, "a loss of NaN on rank 1: the step is skipped on all, its raw value logged, its rows named", f"{skipped}")
    r.check(not blamed, "no NaN of the first step is blamed on the reference", f"{blamed}")
    res, s = job.run(f"logp:{n + 2}+:nan"), job.status()
    r.check(res.code == 80 and s["exit_code"] == 80 and len(m.ours(res)) == 1 and job.checkpoints(), "more of them in a row than max_skipped_steps: all end with 80", f"{s} {res}")
    res = job.run("", "--set", "preference.learning_rate=1e-4", "--allow-change", keep=True)
    r.check(res.code == 0 and "resumed from" in res.err, "and the run can be gone on with", f"{res}")


def inside(root):
    """Under unshare -rm: an output on a small tmpfs. Prints "ok WHAT" or "FAIL WHAT" for the caller to count."""
    def say(ok, what, detail=""):
        print(f"ok {what}" if ok else f"FAIL {what}: {detail}".replace("\n", " | "))

    job = MpiJob(f"{root}/disk", checkpoint={"export": "stage"})
    want = job.alone()
    shutil.rmtree(job.out)
    os.makedirs(job.out)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=260k", "none", job.out], check=True)
    res = job.go_on("--set", "checkpoint.keep=5")
    said, s = m.ours(res), job.status()
    say(res.code == 1 and len(said) == 1 and "No space left" in said[0] and "(needs " in said[0] and " free)" in said[0], "a full disk on two ranks: one line with path, needed and free", res)
    say(job.checkpoints() and not job.leftovers() and s.get("state") == "failed", "a full disk on two ranks: older checkpoints stand, nothing half-written",
        f"{job.checkpoints()} {job.leftovers()} {s}")
    subprocess.run(["mount", "-o", "remount,size=4m", job.out], check=True)
    wrong = job.recovered(want)
    say(not wrong, "with room again on two ranks: gone on with, to the same bytes", wrong)


def test_full_disk(r, root):
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode != 0:
        r.skipped += 1
        print("skipped: a full disk on two ranks: unshare -rm does not work here")
        return
    p = subprocess.run(["unshare", "-rm", sys.executable, os.path.abspath(__file__), "--inside", root], capture_output=True, text=True, check=False, timeout=200)
    lines = [x for x in p.stdout.split("\n") if x.startswith(("ok ", "FAIL "))]
    for x in lines:
        r.check(x.startswith("ok "), x.split(" ", 1)[1])
    r.check(p.returncode == 0 and len(lines) == 3, "a full disk on two ranks: all was looked at", p.stdout + p.stderr)


def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    ap.add_argument("--all", action="store_true", help="every call of both ranks (hours)")
    ap.add_argument("--number", type=int, default=4, help="calls of each rank, drawn by the seed")
    ap.add_argument("--only", default="", help="tests with this in their names")
    ap.add_argument("--inside", help=argparse.SUPPRESS)
    a = ap.parse_args()
    if a.inside:
        inside(a.inside)
        return 0
    if not m.RUN or not os.path.exists(FAULTY):
        print(f"skipped: {m.REASON or FAULTY + ' is not built (make build-tests)'}")
        return 77
    print(f"--seed {a.seed}")
    rng, r, root = random.Random(a.seed), Checks(), tempfile.mkdtemp(prefix="bdpo-mpi-fault-")
    try:
        job = MpiJob(f"{root}/job")
        want, counts = job.alone(), {rank: job.rank_counts(rank) for rank in range(RANKS)}
        print(counts)
        r.check(None not in want.values(), "a run on two ranks that nothing disturbs")
        for test, args in [(test_calls, (job, want, counts, rng, a.all, a.number)), (test_memory, (job, want, counts, rng, a.all, a.number)),
                           (test_words, (job, want, rng)), (test_slow_disk, (root,)), (test_full_disk, (root,)), (test_numbers, (root,))]:
            if a.only not in test.__name__:
                continue
            begin = time.monotonic()
            test(r, *args)
            print(f"{test.__name__}: {time.monotonic() - begin:.1f} s", flush=True)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return r.last()


if __name__ == "__main__":
    sys.exit(main())
