#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What one rank of two meets: a write, fsync, rename or allocation that fails, a disk that is full or slow, a kill, a stop, a signal. All ranks end
with one line and one code, status.json never says that a run goes on which has ended, the older checkpoint is whole, and the run goes on to the same
bytes. A sample drawn by --seed, or every call (--all). Standard library only; $BDPO_FAULTY is run under mpirun."""
import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import mpi_test as m
import tiny_job as t
from fault_job import ASAN, FAULTY, Job
from fault_test import Checks

RANKS = 2
HANG = {"faults": {"hang_timeout": 15}}  # what waits for ever is found as that


class MpiJob(Job):
    """A Job on two ranks; a fault is met by one of them."""

    def __init__(self, root, **sections):
        super().__init__(root, **{**HANG, **sections})

    def launch(self, fault="", rank=1, program=FAULTY, env=None, args=()):
        return subprocess.Popen([*m.RUN, "-np", str(RANKS), program, "--config", self.config, *args], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, start_new_session=True,
                                env={**os.environ, "OMP_NUM_THREADS": "1", "BDPO_FAULT": fault, "BDPO_FAULT_RANK": str(rank), "ASAN_OPTIONS": ASAN, **(env or {})})

    def run(self, fault="", *args, rank=1, keep=False, env=None, seconds=60):
        """Its result, and in `took` the seconds after which no process of it was left (None: there was one)."""
        if not keep:
            self.fresh()
        res, took = m.finish(self.launch(fault, rank, env=env, args=args), self.config, seconds, FAULTY)
        res.took = took
        return res

    def alone(self):
        """Results of a run that nothing disturbs."""
        res = self.run()
        if res.code != 0:
            raise RuntimeError(f"a run without a fault: {res}")
        return self.results()

    def go_on(self, *args):
        return m.mpi(RANKS, "--config", self.config, *args)

    def rank_counts(self, rank):
        path = f"{self.root}/counts-{rank}"
        res = self.run(rank=rank, env={"BDPO_FAULT_COUNTS": path})
        if res.code != 0:
            raise RuntimeError(f"a run without a fault: {res}")
        with open(path, encoding="utf-8") as f:
            return {name: int(n) for name, n in (line.split() for line in f)}


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
    cases = [(rank, f"alloc:{n}:enomem") for rank in (1, 0)
             for n in sorted(range(1, counts[rank]["alloc"] + 1) if everything else rng.sample(range(1, counts[rank]["alloc"] + 1), number))]
    sweep(r, job, want, cases, counts)


def test_words(r, job, want, counts):
    """A rank that fails in the middle of an agreement says so in status.json, and mpirun's signal to rank 0 does not change it."""
    res = job.run(f"alloc:{3 * counts[1]['alloc'] // 4}+:enomem")  # an agreement needs memory too
    s = job.status()
    r.check(res.code == 1 and s.get("state") == "failed" and s.get("exit_code") == 1 and "memory" in s.get("reason", ""), "rank 1 without memory: its words are in status.json",
            f"{s} {res}")
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


def test_dead(r, root):
    """Rank 1 dies at a step, in a save, while data and model are read: all are gone within 10 s, and status.json does not say that the run goes on."""
    job = MpiJob(f"{root}/dead")
    want, counts = job.alone(), job.rank_counts(1)
    for where, point in [("a step", "step:3"), ("a save", f"write:{counts['write'] // 2}"), ("reading", f"alloc:{counts['alloc'] // 2}"), ("starting", "alloc:20")]:
        for what in ("kill", "exit"):
            res, s = job.run(f"{point}:{what}"), job.status()
            said = s.get("state") == "failed" and s.get("exit_code") == 76 and "SIGTERM" in s.get("reason", "")
            ok = res.took is not None and res.took < 10 and res.code != 0
            # a launcher that sends SIGKILL at once leaves no survivor who could say so
            r.check(ok and (said or where in ("reading", "starting") or not m.OPEN_MPI), f"rank 1 ends ({what}) in {where}: all are gone, 76 in status.json", f"{res.took} {s} {res}")
            wrong = job.recovered(want)
            r.check(not wrong, f"rank 1 ends ({what}) in {where}: gone on with", wrong)


def test_stopped(r, root):
    """Rank 1 stands still (SIGSTOP) in a step, in a save, while it reads: found after hang_timeout, in a save after ten times that."""
    job = MpiJob(f"{root}/stopped", faults={"hang_timeout": 2})
    want, counts = job.alone(), job.rank_counts(1)
    for where, point, least, most in [("a step", "step:3", 2, 10), ("a save", f"write:{counts['write'] - 1}", 18, 30), ("reading", f"alloc:{counts['alloc'] // 2}", 2, 10)]:
        res, s = job.run(f"{point}:stop"), job.status()
        ok = res.took is not None and least < res.took < most and res.code == 76 and "no progress for" in res.err
        r.check(ok and (where == "reading" or (s.get("state") == "failed" and s.get("exit_code") == 76)), f"rank 1 is stopped in {where}: found, 76", f"{res.took} {s} {res}")
        wrong = job.recovered(want)
        r.check(not wrong, f"rank 1 is stopped in {where}: gone on with", wrong)


def test_signals(r, root):
    """SIGUSR1 and SIGTERM at bad moments of one rank: while it reads, in a save, twice. What is saved is whole, and status.json says what happened."""
    job = MpiJob(f"{root}/signals")
    want = job.alone()
    counts = {rank: job.rank_counts(rank) for rank in (0, 1)}
    for rank in (1, 0):
        for where, fault in [("reading", "alloc:30:usr1"), ("a step", "step:2:usr1"), ("a save", f"write:{counts[rank]['write'] // 2}:usr1"),
                             ("a save, twice", f"fsync:{counts[rank]['fsync'] // 2}:usr1,fsync:{counts[rank]['fsync'] // 2 + 1}:usr1")]:
            res, s = job.run(fault, rank=rank), job.status()
            ok = s.get("exit_code") == 75 and s.get("state") == "stopped" and "SIGUSR1" in s.get("reason", "")
            r.check(ok and res.took is not None, f"SIGUSR1 to rank {rank} in {where}: 75 in status.json", f"{s} {res}")
            wrong = job.recovered(want)
            r.check(not wrong, f"SIGUSR1 to rank {rank} in {where}: gone on with", wrong)
    for number in (signal.SIGTERM, signal.SIGINT):  # to the launcher, which leaves its processes a second or nothing
        job.fresh()
        p = job.launch("fsync:20+:sleep", rank=0)
        m.wait_steps(job.out, 3)
        p.send_signal(number)
        res, took = m.finish(p, job.config, 30, FAULTY)
        s, name = job.status(), signal.Signals(number).name
        r.check(took is not None and took < 15 and s.get("state") in ("stopped", "failed"), f"{name} to mpirun: it ends, and status.json says so", f"{took} {s} {res}")
        wrong = job.recovered(want)
        r.check(not wrong, f"{name} to mpirun: nothing half-written, gone on with", wrong)


def test_second_signal(r, root):
    """The same signal once more ends a run at once although a save crawls, by mpirun's own or to all ranks."""
    job = MpiJob(f"{root}/second")
    want = job.alone()
    for number in (signal.SIGTERM, signal.SIGINT):
        name = signal.Signals(number).name
        job.fresh()
        p = job.launch("fsync:30+:sleep", rank=0, env={"BDPO_FAULT_SLEEP": "1000"})
        m.wait_steps(job.out, 4)
        for _ in range(2):
            for pid in m.processes(job.config, FAULTY).values():
                os.kill(pid, number)
            time.sleep(0.4)
        res, took = m.finish(p, job.config, 30, FAULTY)
        s = job.status()
        r.check(took is not None and took < 5 and s.get("state") == "stopped" and s.get("exit_code") == 128 + number and "second signal" in s.get("reason", ""),
                f"a second {name} to all ranks ends them at once, status.json says so", f"{took} {s} {res}")
        wrong = job.recovered(want)
        r.check(not wrong, f"a second {name} to all ranks: without harm", wrong)


def test_kills(r, root, rng, kills):
    """kill -9 of launcher and ranks at random moments, each started again: the end is that of the run that was left alone."""
    job = MpiJob(f"{root}/kills", preference={"epochs": 4}, eval={"every": 3})
    begin = time.monotonic()
    want = job.alone()
    whole = time.monotonic() - begin
    job.fresh()
    killed = starts = ends = 0
    bad = []
    while killed < kills and starts < 10 * kills:
        p = job.launch(program=t.BINARY)
        time.sleep(rng.uniform(0.3, 0.9) * whole)
        starts += 1
        alive = p.poll() is None
        for pid in m.processes(job.config).values():
            os.kill(pid, signal.SIGKILL)
        p.kill()
        p.communicate()
        killed += alive
        if not alive:
            ends += 1
            if p.returncode != 0 or job.results() != want:
                bad.append(f"start {starts}: {p.returncode}")
            job.fresh()
    wrong = job.recovered(want)
    r.check(killed == kills and not bad and not wrong, f"{killed} kills on two ranks in {starts} starts, {ends + 1} runs: the same bytes", f"{bad} {wrong}")


def test_launcher_killed(r, root):
    """kill -9 of mpirun: no rank is left after 10 s, and the run goes on."""
    job = MpiJob(f"{root}/orphans", sft=None, preference={"epochs": 20000}, checkpoint={"every": 200, "export": "stage"}, eval={"every": 0})
    p = job.launch(program=t.BINARY)
    ok = m.wait_steps(job.out, 250)
    p.kill()
    p.communicate()
    begin = time.monotonic()
    while m.processes(job.config) and time.monotonic() - begin < 20:
        time.sleep(0.05)
    took = time.monotonic() - begin
    r.check(ok and took < 10, "kill -9 of mpirun: no rank is left", f"{took:.1f} s")
    for pid in m.processes(job.config).values():
        os.kill(pid, signal.SIGKILL)
    again = job.go_on("--set", "max_hours=1e-9")
    r.check(again.code == 75 and "resumed from" in again.err, "kill -9 of mpirun: gone on with", f"{again}")


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
    ap.add_argument("--all", action="store_true", help="every call of both ranks (long)")
    ap.add_argument("--number", type=int, default=6, help="calls of each rank, drawn by the seed")
    ap.add_argument("--kills", type=int, default=5)
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
        counts = {rank: job.rank_counts(rank) for rank in range(RANKS)}
        want = job.results()
        print(counts)
        r.check(None not in want.values(), "a run on two ranks that nothing disturbs")
        for test, args in [(test_calls, (job, want, counts, rng, a.all, a.number)), (test_memory, (job, want, counts, rng, a.all, a.number)),
                           (test_words, (job, want, counts)), (test_slow_disk, (root,)), (test_dead, (root,)), (test_stopped, (root,)), (test_signals, (root,)),
                           (test_second_signal, (root,)), (test_kills, (root, rng, a.kills)), (test_launcher_killed, (root,)), (test_full_disk, (root,))]:
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
