#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A bundle (scripts/bundle.sh): ranks by the MPI in it where nothing is installed, and by the machine's own; the bits of the ordinary program. As root its programs
run in a root directory that has a C library and a shell, with no network but lo. Standard library only.

  mpi_bundle_test.py [--all]        --all: mpi_test.py too, with the bundle's program and mpirun
"""
import os
import shutil
import signal
import subprocess
import sys

import mpi_test as m
import tiny_job as t
from compare_rows import Report

ALL = "--all" in sys.argv
BUILD = os.path.dirname(os.path.realpath(t.BINARY))
TOOLS = ("/bin/sh", "/usr/bin/readlink", "/usr/bin/dirname")
C_LIBRARY = ("ld-linux", "libc.", "libm.", "libdl.", "libpthread.", "librt.", "libresolv.")
ENTER = """ip link set lo up && for d in proc sys dev; do mount --rbind /$d "$0/$d" || exit; done
mount --bind "$1" "$0$1" && cd / && root=$0 && shift && exec chroot "$root" "$@" """


def run(*words, timeout=120, **env):
    p = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, env={**os.environ, "OMP_NUM_THREADS": "1", **env}, check=False)
    return t.Result(p.returncode, p.stdout, p.stderr)


def libraries(program):
    return [w for w in run("ldd", program).out.split() if w.startswith("/")]


class Bundle:
    """The bundle in a root directory of its own; `words` come before a program's there."""

    def __init__(self, jobs):
        self.root = f"{jobs}/root"
        self.path = f"{self.root}/bundle"
        self.made = run("sh", os.path.join(t.HERE, "..", "scripts", "bundle.sh"), f"{BUILD}/bundle", self.path)
        self.program, self.mpirun = f"{self.path}/bdpo-train", f"{self.path}/bdpo-mpirun"
        self.bare = run("unshare", "--mount", "--net", "true").code == 0 if os.getuid() == 0 else False
        self.words, self.within = (["unshare", "--mount", "--net", "sh", "-c", ENTER, self.root, jobs], "/bundle") if self.bare else ([], self.path)
        for d in ("proc", "sys", "dev", "tmp", jobs[1:]):
            os.makedirs(f"{self.root}/{d}", exist_ok=True)
        files = {f for tool in TOOLS for f in libraries(tool)} | {f for f in libraries("/usr/bin/env") + libraries(f"{BUILD}/bundle/bdpo-train") if os.path.basename(f).startswith(C_LIBRARY)}
        for f in [*TOOLS, *files]:
            os.makedirs(self.root + os.path.dirname(f), exist_ok=True)
            shutil.copy(os.path.realpath(f), self.root + f)

    def ranks(self, n, *args):
        return [*self.words, f"{self.within}/bdpo-mpirun", "-np", str(n), f"{self.within}/bdpo-train", *args]


def results(out):
    return t.read_bytes(f"{out}/metrics.jsonl"), t.tree(f"{out}/model")


def test_bundle(r, runs):
    b = Bundle(runs.root)
    r.check(b.made.code == 0 and not b.made.err, "a bundle is made", f"{b.made}" if b.made.err else "")
    r.check(not [f for f in libraries(b.program) if "libmpi" in f], "its program is linked with no MPI")
    res = run(sys.executable, "-c", "import os; os.chdir(os.environ['AT']); import golden_test, cuda_ranks_test; print(cuda_ranks_test.m.RUN[0])", AT=f"{b.path}/test", BDPO_TRAIN=b.program)
    r.check(res.out.strip() == b.mpirun, "what tests a device has all that it imports", f"{res}" if res.code else "")
    if not b.bare:
        print("skip: no root, or no namespaces: the bundle's programs see what is installed here")
        r.skipped += 1
    sections = {"dist": {"deterministic": True}}
    path, one = runs.config(**sections)
    ran = t.bdpo("--config", path)
    r.check(ran.code == 0, "one rank of the ordinary program", f"{ran}" if ran.code else "")

    path, out = runs.config(**sections)
    res = run(*b.words, f"{b.within}/bdpo-train", "--config", path)
    r.check(res.code == 0 and results(out) == results(one), "one rank of the bundle: the same bits", f"{res}" if res.code else "")
    path, out = runs.config(**sections)
    res = run(*b.ranks(2, "--config", path), HOME="")
    r.check(res.code == 0 and results(out) == results(one), "two ranks by its own mpirun", f"{res}" if res.code else "")
    if b.bare:
        res = run(*b.words, f"{b.within}/bdpo-train", "--config", path, OMPI_COMM_WORLD_SIZE="2", OMPI_COMM_WORLD_RANK="0")
        r.check(res.code == 2 and "bdpo-mpirun" in res.err and len(res.lines) == 1, "a launcher without its library: one line, code 2", f"{res}")

    path, out = m.long_run(runs)
    p = subprocess.Popen(b.ranks(3, "--config", path), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
                         env={**os.environ, "OMP_NUM_THREADS": "1"})
    ok = m.wait_steps(out, 10)
    m.end((pid for rank, pid in m.processes(path, b.program).items() if rank == 1), signal.SIGKILL)
    res, took = m.finish(p, path, 30, b.program)
    s = m.status_of(out)
    r.check(ok and took is not None and took < 10 and res.code != 0 and s["exit_code"] == 76, "rank 1 of 3 is killed: all are gone, 76 in status.json", f"{took} {res.code} {s}")

    for name, mpirun, options in (("Open MPI", "mpirun.openmpi", ["--allow-run-as-root", "--oversubscribe"]), ("MPICH", "mpirun.mpich", [])):
        if not shutil.which(mpirun):
            print(f"skip: there is no {mpirun} here")
            r.skipped += 1
            continue
        path, out = runs.config(**sections)
        res = run(mpirun, *options, "-np", "2", b.program, "--config", path)
        r.check(res.code == 0 and results(out) == results(one), f"two ranks by this machine's {name}", f"{res}" if res.code else "")
    if ALL:
        for name in ("t_zero", "t_replica"):
            shutil.copy(f"{BUILD}/test/{name}", f"{b.path}/test/")
        res = run(sys.executable, f"{t.HERE}/mpi_test.py", timeout=900, BDPO_TRAIN=b.program, MPIRUN=b.mpirun)
        r.check(res.code == 0, "mpi_test.py with the bundle's program and mpirun", f"{res.out[-3000:]}{res.err[-500:]}" if res.code else "")


def main():
    r = Report()
    reason = "" if os.path.exists(f"{BUILD}/bundle/bdpo-openmpi.so") and shutil.which("ompi_info") else "no Open MPI here, or no bundle in this build"
    if reason:
        print(f"skip: {reason}")
        r.skipped = 1
        return r.last()
    return m.run_tests(r, (test_bundle,))


if __name__ == "__main__":
    sys.exit(main())
