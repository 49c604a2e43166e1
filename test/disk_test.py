#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Power cuts. A run of bdpo-train-fault writes down every call that changes a file (BDPO_FAULT_TRACE); this replays them on the model of a disk that
keeps what was synced and loses or keeps the rest as it likes: bytes of a file that was not fsynced, names in a directory that was not. For a cut after each
call the worst disk (all lost) and random ones are laid out as directories, and the program is started in them: it must go on from the last checkpoint that
was durable, or a newer one, and end with the bytes of the run that was left alone. Standard library only."""
import argparse
import os
import random
import shutil
import sys
import tempfile

import tiny_job as t
from fault_job import FAULTY, Job
from fault_test import Checks


class File:
    def __init__(self):
        self.data, self.synced = bytearray(), b""


class Directory:
    """Names as programs see them, and as the disk has them; `lost` are the changes in between, in order: (name, node or None)."""

    def __init__(self):
        self.now, self.synced, self.lost = {}, {}, []

    def put(self, name, node):
        if node is None:
            del self.now[name]
        else:
            self.now[name] = node
        self.lost.append((name, node))


class Disk:
    def __init__(self, top):
        self.top, self.root, self.fds = top, Directory(), {}

    def parts(self, path):
        return [p for p in os.path.relpath(path, self.top).split("/") if p != "."] if path.startswith(self.top) else None

    def find(self, path):
        node = self.root
        for p in self.parts(path):
            node = node.now[p]
        return node

    def parent(self, path):
        *above, name = self.parts(path)
        node = self.root
        for p in above:
            node = node.now[p]
        return node, name

    def call(self, line):
        """One line of the trace. Files outside of `top` are not this disk's."""
        op, _, rest = line.partition(" ")
        if op == "open":
            fd, cut, path = rest.split(" ", 2)
            if self.parts(path) is None:
                self.fds.pop(int(fd), None)
                return
            if path == self.top:
                node = self.root
            else:
                where, name = self.parent(path)
                if name not in where.now:
                    where.put(name, File())
                node = where.now[name]
            if cut == "1":
                node.data = bytearray()
            self.fds[int(fd)] = [node, 0, path]
        elif op == "openat":
            fd, at, name = rest.split(" ", 2)
            path = name if at == "-1" else f"{self.fds[int(at)][2]}/{name}" if int(at) in self.fds else None
            if path and self.parts(path) is not None:
                self.fds[int(fd)] = [self.find(path), 0, path]
        elif op == "mkdir" and self.parts(rest):
            where, name = self.parent(rest)
            where.put(name, Directory())
        elif op == "write":
            fd, at, data = rest.split(" ", 2)
            f = self.fds.get(int(fd))
            if f:
                data, begin = bytes.fromhex(data), f[1] if at == "-1" else int(at)
                f[0].data[begin:begin + len(data)] = data
                f[1] = begin + len(data) if at == "-1" else f[1]
        elif op == "seek":
            fd, at = rest.split(" ")
            if int(fd) in self.fds:
                self.fds[int(fd)][1] = int(at)
        elif op == "truncate":
            fd, n = rest.split(" ")
            if int(fd) in self.fds:
                del self.fds[int(fd)][0].data[int(n):]
        elif op == "fsync":
            f = self.fds.get(int(rest))
            if f and isinstance(f[0], Directory):
                f[0].synced, f[0].lost = dict(f[0].now), []
            elif f:
                f[0].synced = bytes(f[0].data)
        elif op in ("rename", "swap"):
            a, b = rest.split("\t")
            if self.parts(a) is None:
                return
            (from_, x), (to, y) = self.parent(a), self.parent(b)
            node, other = from_.now[x], to.now.get(y)
            from_.put(x, other if op == "swap" else None)
            to.put(y, node)
        elif op == "unlink":
            at, name = rest.split(" ", 1)
            path = name if at == "-1" else f"{self.fds[int(at)][2]}/{name}" if int(at) in self.fds else None
            if path and self.parts(path):
                where, name = self.parent(path)
                if name in where.now:
                    where.put(name, None)

    def lay_out(self, path, rng=None):
        """The disk after a power cut at this moment, as a directory. rng None: all that was not synced is lost; else some of it, in any order for
        bytes, in order for the names of one directory (a journal), with zeros for bytes of a file that was only made longer."""
        def put(node, at):
            if isinstance(node, Directory):
                os.makedirs(at, exist_ok=True)
                names = dict(node.synced)
                for name, child in node.lost[:rng.randint(0, len(node.lost)) if rng else 0]:
                    names.pop(name, None)
                    if child is not None:
                        names[name] = child
                for name, child in names.items():
                    put(child, f"{at}/{name}")
                return
            data = node.synced
            if rng and bytes(node.data) != data:
                keep, way = bytes(node.data), rng.randrange(4)
                cut = rng.randint(len(data) if keep.startswith(data) else 0, len(keep))  # what was synced and not written over stays
                data = [data, keep, keep[:cut], keep[:cut] + bytes(len(keep) - cut)][way]
            with open(at, "wb") as f:
                f.write(data)
        put(self.root, path)


def durable(disk):
    """Names of the checkpoints that no power cut can take away any more."""
    def at(node, name):
        return node.synced.get(name) if isinstance(node, Directory) else None
    run = at(disk.root, "run")
    names = [n for n in (at(run, "checkpoints").synced if run and at(run, "checkpoints") else {}) if not n.startswith(".")]
    return sorted(names, key=lambda n: (n.split("-")[0] == "preference", int(n.split("-")[1])))


def check(job, want, disk, rng):
    """"" or what is wrong after a cut at this moment."""
    names = durable(disk)
    shutil.rmtree(f"{job.root}/cut", ignore_errors=True)
    disk.lay_out(f"{job.root}/cut", rng)
    job.fresh()
    for name in ("run", "cache"):
        if os.path.isdir(f"{job.root}/cut/{name}"):
            os.rename(f"{job.root}/cut/{name}", f"{job.root}/{name}")
    there = job.checkpoints()
    if names and (not there or there.index(names[-1]) < 0):
        return f"{names[-1]} was durable and is gone: {there}"
    return job.recovered(want)


def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    ap.add_argument("--cuts", type=int, default=15, help="moments, drawn by the seed; 0: all")
    ap.add_argument("--disks", type=int, default=1, help="random disks a moment, beside the worst one")
    a = ap.parse_args()
    if not os.path.exists(FAULTY):
        print(f"skipped: {FAULTY} is not built (make build-tests)")
        return 77
    print(f"--seed {a.seed}")
    rng, r, root = random.Random(a.seed), Checks(), tempfile.mkdtemp(prefix="bdpo-disk-")
    try:
        job = Job(f"{root}/job")
        os.makedirs(f"{root}/job/cache")
        res = job.run(env={"BDPO_FAULT_TRACE": f"{root}/trace"})
        want = job.results()
        with open(f"{root}/trace", encoding="utf-8") as f:
            calls = f.read().split("\n")[:-1]
        r.check(res.code == 0 and None not in want.values() and len(calls) > 200, f"a run, traced: {len(calls)} calls", f"{res}")
        disk = Disk(job.root)
        moments = set(range(1, len(calls) + 1) if a.cuts == 0 else rng.sample(range(1, len(calls) + 1), min(a.cuts, len(calls))))
        bad = checked = 0
        for n, line in enumerate(calls, 1):
            disk.call(line)
            if n not in moments:
                continue
            for which in [None] + [random.Random(rng.random()) for _ in range(a.disks)]:
                wrong = check(job, want, disk, which)
                checked += 1
                if wrong:
                    bad += 1
                    print(f"FAIL after call {n}, {line[:150]}: {'the worst' if which is None else 'a random'} disk: {wrong}", flush=True)
        r.check(bad == 0, f"power cuts: {checked} disks at {len(moments)} moments", f"{bad} of them")
        # the model of the disk itself: with everything kept it is what is there
        shutil.rmtree(f"{root}/all", ignore_errors=True)
        for node in [disk.root]:
            sync_all(node)
        disk.lay_out(f"{root}/all")
        job.fresh()
        os.rename(f"{root}/all/run", job.out)
        r.check(job.results() == want, "the model of the disk, with all synced, is what the run left")
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return r.last()


def sync_all(node):
    if isinstance(node, Directory):
        node.synced, node.lost = dict(node.now), []
        for child in node.now.values():
            sync_all(child)
    else:
        node.synced = bytes(node.data)


if __name__ == "__main__":
    sys.exit(main())
