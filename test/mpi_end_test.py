#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Runs on two ranks that are ended from outside: a rank that dies or stands still, signals at bad moments and twice, kill -9 of all or of the launcher. No
process is left, status.json does not say that the run goes on, and started again it ends as the run that was left alone. Standard library only;
$BDPO_FAULTY and $BDPO_TRAIN are run under mpirun."""
import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time

import mpi_test as m
import tiny_job as t
from fault_job import FAULTY
from fault_test import Checks
from mpi_job import MpiJob


# the rank that comes first writes the token cache: which call of a rank is its n-th would depend on that
UNCACHED = {"cache": False}


def test_dead(r, root):
    """Rank 1 dies at a step, in a save, while data and model are read: all are gone within 10 s, and status.json does not say that the run goes on."""
    job = MpiJob(f"{root}/dead", data=UNCACHED)
    want, counts = job.alone(), job.rank_counts(1)
    for where, point in [("a step", "step:3"), ("a save", f"write:{counts['write'] // 2}"), ("reading", f"alloc:{counts['alloc'] // 2}"), ("starting", "alloc:20")]:
        for what in ("kill", "exit") if where == "a step" else ("kill",):
            res, s = job.run(f"{point}:{what}"), job.status()
            said = s.get("state") == "failed" and s.get("exit_code") == 76 and "SIGTERM" in s.get("reason", "")
            ok = res.took is not None and res.took < 10 and res.code != 0
            # a launcher that sends SIGKILL at once leaves no survivor who could say so
            r.check(ok and (said or where in ("reading", "starting") or not m.OPEN_MPI), f"rank 1 ends ({what}) in {where}: all are gone, 76 in status.json", f"{res.took} {s} {res}")
            wrong = job.recovered(want)
            r.check(not wrong, f"rank 1 ends ({what}) in {where}: gone on with", wrong)


def test_stopped(r, root):
    """Rank 1 stands still (SIGSTOP) in a step, in a save, while it reads: found after hang_timeout, in a save after ten times that."""
    job = MpiJob(f"{root}/stopped", data=UNCACHED, faults={"hang_timeout": 2})
    want, counts = job.alone(), job.rank_counts(1)
    for where, point, least, most in [("a step", "step:3", 2, 10), ("a save", f"write:{counts['write'] - 1}", 18, 30), ("reading", f"alloc:{counts['alloc'] // 2}", 2, 10)]:
        res, s = job.run(f"{point}:stop"), job.status()
        ok = res.took is not None and least < res.took < most and (res.code == 76 or (res.code and not m.OPEN_MPI)) and "no progress for" in res.err
        r.check(ok and (where == "reading" or (s.get("state") == "failed" and s.get("exit_code") == 76)), f"rank 1 is stopped in {where}: found, 76", f"{res.took} {s} {res}")
        wrong = job.recovered(want)
        r.check(not wrong, f"rank 1 is stopped in {where}: gone on with", wrong)


def test_signals(r, root):
    """SIGUSR1 and SIGTERM at bad moments of one rank: while it reads, in a save, twice. What is saved is whole, and status.json says what happened."""
    job = MpiJob(f"{root}/signals")
    want = job.alone()
    counts = {rank: job.rank_counts(rank) for rank in (0, 1)}
    for rank in (1, 0):
        early = [("reading", "alloc:30:usr1")] if rank == 1 else []
        for where, fault in [*early, ("a step", "step:2:usr1"), ("a save", f"write:{counts[rank]['write'] // 2}:usr1"),
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
            m.end(m.processes(job.config, FAULTY).values(), number)
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
        m.end(m.processes(job.config).values())
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
    m.end(m.processes(job.config).values())
    again = job.go_on("--set", "max_hours=1e-9")
    r.check(again.code == 75 and "resumed from" in again.err, "kill -9 of mpirun: gone on with", f"{again}")


def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    ap.add_argument("--kills", type=int, default=3)
    ap.add_argument("--only", default="", help="tests with this in their names")
    a = ap.parse_args()
    if not m.RUN or not os.path.exists(FAULTY):
        print(f"skipped: {m.REASON or FAULTY + ' is not built (make build-tests)'}")
        return 77
    print(f"--seed {a.seed}")
    r, root = Checks(), tempfile.mkdtemp(prefix="bdpo-mpi-end-")
    try:
        for test, args in [(test_dead, ()), (test_stopped, ()), (test_signals, ()), (test_second_signal, ()), (test_kills, (random.Random(a.seed), a.kills)),
                           (test_launcher_killed, ())]:
            if a.only not in test.__name__:
                continue
            begin = time.monotonic()
            test(r, root, *args)
            print(f"{test.__name__}: {time.monotonic() - begin:.1f} s", flush=True)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return r.last()


if __name__ == "__main__":
    sys.exit(main())
