#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Several ranks with a device each, or with one for all, on the emulated device (build/*/bdpo-train-emu): the same training by every way between them,
what is refused, and ranks that hang or die. Standard library only.

  cuda_ranks_test.py [--all]        without --all every job goes one way or two, and every second mistake is made
  cuda_ranks_test.py --card         on a machine with devices: BDPO_TRAIN's program on them, one rank against two and three
"""
import json
import os
import signal
import sys

import mpi_test as m
import tiny_job as t
from compare_rows import Report

ALL, CARD = "--all" in sys.argv, "--card" in sys.argv
CPU, EMULATED = t.BINARY, t.BINARY + "-emu"
DEVICES = {"BDPO_EMU_DEVICES": "4"}  # of the machine; one for all unless this is set
EAGER = {**DEVICES, "BDPO_EMU_EAGER": "1"}  # kernels run as soon as they can, messages as late
SHARED = {"BDPO_EMU_DEVICES": "1"}
NO_LIBRARY = {**DEVICES, "BDPO_EMU_NO_NCCL": "1"}
WAYS = (("a shared device", 2, SHARED, "2 share a device"), ("NCCL", 3, DEVICES, "from device to device (NCCL)"),
        ("no NCCL", 3, NO_LIBRARY, "libnccl.so.2 was not found"))

START, FETCH = "TRY(after_kernels(cx, n));\n    int rc", "TRY(after_kernels(cx, n));\n    CUDA_TRY(cudaMemcpyAsync"
# what, file, text there, text instead, the machine
MUTANTS = [
    ("nothing is wrong", "cuda/net.c", START, START, DEVICES),
    ("messages that do not wait for the kernels before them", "cuda/net.c", START, START[START.index("int rc"):], DEVICES),
    ("nothing is wrong, where kernels are early", "cuda/net.c", START, START, EAGER),
    ("kernels that do not wait for the messages before them", "cuda/net.c", "CUDA_TRY(cudaStreamWaitEvent(cx->stream, cx->net->done[slot], 0));", "", EAGER),
    ("an event before the messages", "cuda/net.c", "    int rc = count ?", "    CUDA_TRY(cudaEventRecord(n->done[slot], n->stream)); CUDA_TRY(cudaStreamWaitEvent(cx->stream, n->done[slot], 0));\n"
     "    n->done[slot] = n->queued; int rc = count ?", DEVICES),
    ("copies to the host that do not wait for the kernels", "cuda/net.c", FETCH, FETCH[FETCH.index("CUDA_TRY"):], SHARED),
    ("sent before it has come from the device", "src/dist/link.c", "fetched(l->be->cx, at, wait, &done)", "fetched(l->be->cx, at, false, &done)); TRY(0 * (done = true)", SHARED),
    ("what arrives stays on the host", "src/dist/link.c", "i < s->n && l->room;", "i < s->n - 1 && l->room;", SHARED),
]


def results(out):
    return t.read_bytes(f"{out}/metrics.jsonl"), t.tree(f"{out}/model")


def test_equal(r, runs):
    """One rank's bits by every way, where the run is deterministic."""
    jobs = [("float32, local", WAYS[1:2], {"dist": {"gradients": "local"}}), ("float32, sharded", WAYS, {"dist": {"gradients": "sharded"}}),
            ("bfloat16", WAYS[:1], {"model": {"path": f"{runs.root}/model", "dtype": "bfloat16"}}),
            ("adapters", WAYS[1:2], {"model": {"path": f"{runs.root}/model", "dtype": "float32", "lora": {"rank": 4}}, "sft": None})]
    for what, ways, sections in jobs:
        sections["dist"] = {"deterministic": True, **sections.get("dist", {})}
        path, one = runs.config(**sections)
        ran = t.bdpo("--config", path)
        r.check(ran.code == 0, f"{what}: one rank", f"{ran}" if ran.code else "")
        for way, ranks, env, said in WAYS if ALL else ways:
            path, out = runs.config(**sections)
            res = m.mpi(ranks, "--config", path, env=env)
            r.check(res.code == 0 and said in res.err, f"{what}: {ranks} ranks, {way}", "" if res.code == 0 else f"{res}")
            r.check(res.code == 0 and results(out) == results(one), f"{what}: {ranks} ranks, {way}: the bits of one")


def test_card(r, runs):
    """One rank's bits on two and three, by the way that is found and through the host."""
    for dtype in ("float32", "bfloat16"):
        sections = {"model": {"path": f"{runs.root}/model", "dtype": dtype}, "dist": {"deterministic": True}, "backend": "cuda"}
        path, one = runs.config(**sections)
        ran = t.bdpo("--config", path)
        r.check(ran.code == 0, f"{dtype}: one rank", f"{ran}" if ran.code else "")
        for ranks in (2, 3):
            for way in ("auto", "host"):
                path, out = runs.config(**sections)
                res = m.mpi(ranks, "--config", path, "--set", f"dist.transport={way}")
                said = [x for x in res.lines if x.startswith("ranks: ")]
                r.check(res.code == 0 and results(out) == results(one), f"{dtype}: {ranks} ranks, {way}: the bits of one", f"{said}" if res.code == 0 else f"{res}")


def test_cpu(r, runs):
    """The CPU's training on as many ranks, to rounding; and a run that goes on on another number of ranks, another way."""
    path, cpu = runs.config()
    res = m.mpi(3, "--config", path, program=CPU)
    path, out = runs.config(checkpoint={"every": 3})
    got = m.mpi(3, "--config", path, env=DEVICES)
    far = m.distance(m.rows(cpu), m.rows(out)) if res.code == got.code == 0 else f"{got}"
    r.check(res.code == got.code == 0 and far < 1e-4, "3 ranks: every step is the CPU's", f"{far}")
    path, out = runs.config(checkpoint={"every": 3})
    first = m.mpi(3, "--config", path, "--set", "max_hours=1e-9", env=DEVICES)
    second = m.mpi(2, "--config", path, "--set", "dist.transport=host", env=DEVICES)
    far = m.distance(m.rows(cpu), m.rows(out)) if second.code == 0 else f"{second}"
    r.check(first.code == 75 and second.code == 0 and "resumed from" in second.err and far < 1e-4, "stopped on 3, goes on with 2 through the host", f"{far}")
    one, got = t.bdpo("evaluate", "--config", path), m.mpi(2, "evaluate", "--config", path, env=DEVICES)
    far = m.distance([json.loads(one.out)], [json.loads(got.out)]) if one.code == got.code == 0 else f"{one} {got}"
    r.check(got.code == 0 and "(NCCL)" not in got.err and far < 1e-5, "evaluate on 2 ranks connects no devices", f"{far}")


def test_refused(r, runs):
    path, out = runs.config()
    for what, ranks, args, env, code, part in [
        ("nccl for ranks that share a device", 2, ["--set", "dist.transport=nccl"], SHARED, 2, "2 share one"),
        ("nccl without its library", 2, ["--set", "dist.transport=nccl"], NO_LIBRARY, 2, "libnccl.so.2 was not found"),
        ("cuda without a device", 2, ["--set", "backend=cuda"], {"BDPO_EMU_DEVICES": "0"}, 2, "no CUDA device"),
        ("memory that two ranks on a device do not have", 2, ["--set", "memory.limit=0.0001"], SHARED, 2, "memory"),
    ]:
        res = m.mpi(ranks, "--config", path, *args, env=env)
        said = m.ours(res)
        r.check(res.code == code and len(said) == 1 and part in said[0] and not os.path.exists(f"{out}/model"), f"{what}: one line, code {code}", f"{res}")
    res = m.mpi(2, "--config", path, env={"BDPO_EMU_DEVICES": "0"})
    r.check(res.code == 0 and "backend: cpu" in res.err, "auto without a device: the CPU", f"{res}" if res.code else "")
    if m.OPEN_MPI:
        path, out = runs.config()
        one = ["-np", "1", "env", "BDPO_EMU_DEVICES=0", EMULATED, "--config", path]
        p = t.subprocess.run([*m.RUN, *one, ":", *[w.replace("DEVICES=0", "DEVICES=1") for w in one]], stdin=t.subprocess.DEVNULL, capture_output=True,
                             timeout=60, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
        r.check(p.returncode == 0 and os.path.exists(f"{out}/model"), "auto where one of two ranks has a device: the CPU", p.stderr.decode()[-500:])


def test_ends(r, runs):
    """A rank that stands still or dies while its devices are connected ends all."""
    os.environ.update(DEVICES)
    for what, number, least, most in (("stopped", signal.SIGSTOP, 2, 12), ("killed", signal.SIGKILL, 0, 10)):
        path, out = m.long_run(runs, faults={"hang_timeout": 3})
        p = m.launch(3, "--config", path)
        ok = m.wait_steps(out, 10)
        m.end((pid for rank, pid in m.processes(path, EMULATED).items() if rank == 1), number)
        res, took = m.finish(p, path, 40, EMULATED)
        r.check(ok and took is not None and least < took < most and res.code != 0, f"rank 1 of 3 is {what}: all are gone", f"{took} {res.code}")
        if number == signal.SIGSTOP:
            r.check(any("no progress for" in x and "preference step" in x for x in res.lines), "and the others say where they were", res.err[-300:])
    path, out = m.long_run(runs)
    p = m.launch(2, "--config", path)
    ok = m.wait_steps(out, 10)
    os.kill(p.pid, signal.SIGUSR1)
    res, took = m.finish(p, path, 30, EMULATED)
    s = m.status_of(out)
    r.check(ok and took is not None and s["exit_code"] == 75 and s["state"] == "stopped", "SIGUSR1: saved, 75 in status.json", f"{took} {res.code} {s['reason']}")
    del os.environ["BDPO_EMU_DEVICES"]


def test_mutants(r, runs):
    """Mistakes in what orders messages, copies and kernels change the result."""
    import cuda_mutants_test as mutants  # not in a bundle

    path, out = runs.config(dist={"deterministic": True, "gradients": "sharded"})
    res = m.mpi(2, "--config", path, env=DEVICES)
    good = results(out) if res.code == 0 else None
    for what, file, old, new, env in MUTANTS[:: 1 if ALL else 2]:
        with open(os.path.join(mutants.ROOT, file), encoding="utf-8") as f:
            text = f.read()
        changed, program = os.path.join(runs.root, os.path.basename(file)), f"{runs.root}/mutant"
        with open(changed, "w", encoding="utf-8") as f:
            f.write(text.replace(old, new, 1))
        built = mutants.make("mutant-program", f"MUTANT={changed}", f"MUTANT_OF={file}", f"MUTANT_OUT={program}")
        path, out = runs.config(dist={"deterministic": True, "gradients": "sharded"}, faults={"hang_timeout": 10})
        res = m.mpi(2, "--config", path, program=program, env=env) if built.returncode == 0 and old in text else None
        same = res and res.code == 0 and results(out) == good
        r.check(good and res and bool(same) == (old == new), what if old == new else f"{what}: caught", "" if res else f"not built: {built.stderr[-500:]}")


def main():
    r = Report()
    reason = m.REASON if not m.RUN else "" if CARD or os.path.exists(EMULATED) else f"there is no {EMULATED} (no emulated device in this build)"
    if reason:
        print(f"skip: {reason}")
        r.skipped = 1
        return r.last()
    t.BINARY = CPU if CARD else EMULATED
    return m.run_tests(r, (test_card,) if CARD else (test_equal, test_cpu, test_refused, test_ends, test_mutants))


if __name__ == "__main__":
    sys.exit(main())
