#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Jobs on several hosts, as far as one machine can: each host is a network namespace with a name, a /tmp and a /dev/shm of its own, joined to the others by a
bridge. Open MPI starts its daemons there by a remote shell that is nsenter; a Slurm of several nodes runs there too. Messages go over TCP; files are
shared as on a cluster. Ranks that die, stand still, get a signal, and a host whose network fails. As root; everything is undone at the end. The program must
not lie under /tmp. Standard library only; `make test-hosts` runs it."""
import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import mpi_test as m
import tiny_job as t
from compare_rows import Report

NAME, NET = "bdpo-host", "10.77.41"
AGENT = f"""#!/bin/sh
# a remote shell: HOST COMMAND...
host={NAME}${{1##*.}}
shift
exec nsenter --net=/run/netns/"$host" unshare -u -m sh -c \
    'mount -t tmpfs none /tmp && mount -t tmpfs none /dev/shm && hostname "$1" && shift && exec sh -c "$*"' sh "$host" "$@"
"""
SLURM_CONF = """ClusterName=try
SlurmctldHost={name}1({net}.1)
SlurmctldPort=16817
SlurmdPort=16818
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={dir}/munge.socket
StateSaveLocation={dir}/state
SlurmdSpoolDir={dir}/spool-%n
SlurmctldPidFile={dir}/slurmctld.pid
SlurmdPidFile={dir}/%n.pid
SlurmctldLogFile={dir}/slurmctld.log
SlurmdLogFile={dir}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
KillWait=10
ReturnToService=2
NodeName={name}[1-{n}] NodeAddr={net}.[1-{n}] CPUs={cpus} State=UNKNOWN
PartitionName=main Nodes={name}[1-{n}] Default=YES MaxTime=INFINITE State=UP
"""


def do(*words, check=True):
    subprocess.run(words, check=check, capture_output=not check)


class Hosts:
    """Hosts 1 to n, and a namespace that holds the bridge."""

    def __init__(self, root, n):
        self.n, self.agent = n, f"{root}/agent"
        with open(self.agent, "w", encoding="utf-8") as f:
            f.write(AGENT)
        os.chmod(self.agent, 0o755)
        do("ip", "netns", "add", f"{NAME}0")
        do("ip", "-n", f"{NAME}0", "link", "add", "bridge", "type", "bridge")
        do("ip", "-n", f"{NAME}0", "link", "set", "bridge", "up")
        for k in range(1, n + 1):
            host = f"{NAME}{k}"
            do("ip", "netns", "add", host)
            do("ip", "-n", host, "link", "add", "eth0", "type", "veth", "peer", "name", f"port{k}", "netns", f"{NAME}0")
            do("ip", "-n", f"{NAME}0", "link", "set", f"port{k}", "master", "bridge", "up")
            do("ip", "-n", host, "addr", "add", f"{NET}.{k}/24", "dev", "eth0")
            for link in ("lo", "eth0"):
                do("ip", "-n", host, "link", "set", link, "up")

    def network(self, host, state):
        do("ip", "-n", f"{NAME}0", "link", "set", f"port{host}", state)

    def launch(self, config, *args, each=1):
        """mpirun on host 1, `each` ranks on every host."""
        where = ",".join(f"{NET}.{k}:{each}" for k in range(1, self.n + 1))
        return subprocess.Popen([self.agent, f"{NET}.1", *m.RUN, "--mca", "plm_rsh_agent", self.agent, "--host", where, "-np", str(each * self.n), t.BINARY,
                                 "--config", config, *args], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
                                env={**os.environ, "OMP_NUM_THREADS": "1"})

    def run(self, config, *args, each=1, seconds=120):
        return m.finish(self.launch(config, *args, each=each), config, seconds)


class Slurm:
    """A Slurm whose nodes are the hosts; its controller is on host 1."""

    def __init__(self, root, hosts):
        self.dir, self.hosts, self.daemons = f"{root}/slurm", hosts, []
        for name in ("state", *(f"spool-{NAME}{k}" for k in range(1, hosts.n + 1))):
            os.makedirs(f"{self.dir}/{name}")
        os.chmod(root, 0o755)
        os.chmod(self.dir, 0o755)
        with open(f"{self.dir}/munge.key", "wb") as f:
            f.write(os.urandom(1024))
        os.chmod(f"{self.dir}/munge.key", 0o600)
        with open(f"{self.dir}/slurm.conf", "w", encoding="utf-8") as f:
            f.write(SLURM_CONF.format(name=NAME, net=NET, dir=self.dir, n=hosts.n, cpus=os.cpu_count()))
        self.env = {**os.environ, "SLURM_CONF": f"{self.dir}/slurm.conf", "OMP_NUM_THREADS": "1", "BDPO_TRAIN": t.BINARY}
        at = f"{self.dir}/munge"
        do("munged", "--force", f"--key-file={at}.key", f"--socket={at}.socket", f"--pid-file={at}.pid", f"--log-file={at}.log", f"--seed-file={at}.seed")
        self.daemons.append(f"{at}.pid")
        self.on(1, "slurmctld")
        self.daemons.append(f"{self.dir}/slurmctld.pid")
        for k in range(1, hosts.n + 1):
            self.on(k, "slurmd", "-N", f"{NAME}{k}")
            self.daemons.append(f"{self.dir}/{NAME}{k}.pid")

    def on(self, host, *words):
        return subprocess.run([self.hosts.agent, f"{NET}.{host}", *words], env=self.env, capture_output=True, text=True, check=False, timeout=60)

    def stop(self):
        """Jobs first: without their daemons they would stay for ever."""
        self.on(1, "scancel", "-s", "KILL", "--user", "root")
        self.on(1, "scancel", "--user", "root")
        self.until(lambda: not self.on(1, "squeue", "-h").stdout.strip(), 30)
        for path in reversed(self.daemons):
            try:
                with open(path, encoding="utf-8") as f:
                    os.kill(int(f.read()), signal.SIGTERM)
            except (OSError, ValueError):
                pass
        time.sleep(1)

    def submit(self, config, out):
        return self.on(1, "sbatch", "--parsable", f"--nodes={self.hosts.n}", "--ntasks-per-node=1", "--cpus-per-task=1", "--time=10", f"--output={out}.log",
                       os.path.abspath("configs/slurm/nodes.sbatch"), config).stdout.strip()

    def until(self, what, seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end and not what():
            time.sleep(0.2)
        return what()


def test_slurm(r, hosts, runs):
    """configs/slurm/nodes.sbatch on as many nodes: a signal, the requeue, the same bytes; and a process that is killed."""
    missing = [x for x in ("slurmctld", "slurmd", "sbatch", "munged") if not shutil.which(x)]
    if missing:
        r.skipped += 1
        print(f"skipped: Slurm on several nodes: {' '.join(missing)} not there")
        return
    slurm = Slurm(runs.root, hosts)
    try:
        up = slurm.until(lambda: slurm.on(1, "sinfo", "-h", "-o", "%D:%T").stdout.strip() == f"{hosts.n}:idle", 30)
        r.check(up, f"Slurm: {hosts.n} nodes are up", "" if up else slurm.on(1, "sinfo").stdout)
        sections = {"sft": None, "preference": {"epochs": 100, "learning_rate": 1e-4}, "dist": {"deterministic": True}}
        want = t.read_bytes(f"{runs.train(1, **sections)}/metrics.jsonl")
        path, out = runs.config(**sections)
        job = slurm.submit(path, out)
        ok = slurm.until(lambda: m.wait_steps(out, 100, 1), 200)
        slurm.on(1, "scancel", "-s", "USR1", job)
        done = slurm.until(lambda: m.status_of(out)["state"] == "stopped", 60)
        r.check(ok and done and m.status_of(out)["exit_code"] == 75, "Slurm: scancel -s USR1 to the processes of all nodes: saved, 75", f"{m.status_of(out)}")
        dead_path, dead = runs.config(**sections, checkpoint={"every": 50})
        job = slurm.submit(dead_path, dead)
        ok = slurm.until(lambda: m.wait_steps(dead, 100, 1), 200)
        zero = m.status_of(dead)["pid"]
        m.end([pid for pid in m.processes(dead_path).values() if pid != zero][:1])
        gone = slurm.until(lambda: not m.processes(dead_path), 40)
        r.check(ok and gone and m.status_of(dead)["exit_code"] == 76, "Slurm: a process of another node is killed: all are gone, 76", f"{m.status_of(dead)}")
        done = slurm.until(lambda: m.status_of(out)["state"] == "done", 420)  # Slurm waits for two minutes
        with open(f"{out}.log", encoding="utf-8") as f:
            again = " start 1 on " in f.read()
        r.check(done and again and t.read_bytes(f"{out}/metrics.jsonl") == want, "Slurm: requeued, it ends with the bytes of one process", "" if done else slurm.on(1, "squeue").stdout + slurm.on(1, "sinfo", "-R").stdout)
    finally:
        slurm.stop()


def test_equal(r, hosts, runs):
    sections = {"dist": {"deterministic": True}, "model": {"path": f"{runs.root}/model", "dtype": "bfloat16"}}
    want = m.digest(runs.train(1, **sections))
    for each in (1, 2):
        path, out = runs.config(**sections)
        res, _ = hosts.run(path, each=each)
        r.check(res.code == 0 and want is not None and m.digest(out) == want, f"deterministic, {hosts.n} hosts, {each} ranks on each: the bits of one rank", "" if res.code == 0 else f"{res}")
    path, out = runs.config(**sections)
    codes = [hosts.run(path, "--set", "max_hours=1e-9")[0].code for _ in range(2)]
    last = m.mpi(2, "--config", path)
    r.check(codes == [75, 75] and last.code == 0 and m.digest(out) == want, "stopped on the hosts, ended on 2 ranks of one: the same bits", f"{codes} {last}")


def test_wire(r, hosts, runs):
    """The messages do cross the bridge."""
    def received():
        p = subprocess.run(["ip", "netns", "exec", f"{NAME}2", "cat", "/proc/net/dev"], capture_output=True, text=True, check=True)
        return next(int(line.split(":")[1].split()[0]) for line in p.stdout.split("\n") if "eth0:" in line)
    before = received()
    path, out = runs.config()
    res, _ = hosts.run(path)
    rows = t.read_lines(f"{out}/timing.jsonl") if res.code == 0 else []
    moved, sent = received() - before, sum(x["comm_bytes"] for x in rows) / max(1, hosts.n - 1)
    r.check(rows and moved > sent, "the messages go over the network", f"host 2 received {moved} bytes, rank 0 sent it {sent:.0f} in steps")


def test_failures(r, hosts, runs):
    """What happens to the rank on host 2 ends all."""
    for what, act, code in [("is killed", lambda pid: os.kill(pid, signal.SIGKILL), None), ("is stopped", lambda pid: os.kill(pid, signal.SIGSTOP), 76),
                            ("gets SIGUSR1", lambda pid: os.kill(pid, signal.SIGUSR1), 75)]:
        path, out = m.long_run(runs, faults={"hang_timeout": 3})
        p = hosts.launch(path)
        ok = m.wait_steps(out, 250, 60)
        ranks = m.processes(path)
        if len(ranks) == hosts.n:
            act(ranks[1])
        res, took = m.finish(p, path, 40)
        s = m.status_of(out)
        ended = s["exit_code"] == (code or 76) and s["state"] == ("stopped" if code == 75 else "failed")
        r.check(ok and took is not None and took < 10 and res.code != 0 and ended, f"the rank on host 2 {what}: all are gone, {s['exit_code']} in status.json", f"{took} {s} {res}")
        again = m.mpi(2, "--config", path, "--set", "max_hours=1e-9")
        r.check(again.code == 75 and "resumed from" in again.err, f"the rank on host 2 {what}: gone on with", "" if again.code == 75 else f"{again}")


def test_network(r, hosts, runs):
    """Host 2 is cut off: each rank finds that nothing comes, wherever it is."""
    path, out = m.long_run(runs, faults={"hang_timeout": 3})
    p = hosts.launch(path)
    ok = m.wait_steps(out, 250, 60)
    hosts.network(2, "down")
    begin = time.monotonic()
    while m.processes(path) and time.monotonic() - begin < 40:
        time.sleep(0.1)
    took = time.monotonic() - begin
    s = m.status_of(out)
    hosts.network(2, "up")
    m.finish(p, path, 20)
    r.check(ok and took < 15 and s["state"] == "failed" and s["exit_code"] == 76, "the network of host 2 fails: no rank is left, 76 in status.json", f"{took:.1f} s {s}")
    again = m.mpi(2, "--config", path, "--set", "max_hours=1e-9")
    r.check(again.code == 75 and "resumed from" in again.err, "the network of host 2 fails: gone on with", "" if again.code == 75 else f"{again}")


def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--only", default="", help="tests with this in their names")
    a = ap.parse_args()
    r = Report()
    if os.geteuid() != 0 or not shutil.which("ip") or not m.OPEN_MPI:
        print(f"skipped: hosts need root, iproute2 and Open MPI {m.REASON}")
        return 77
    root = tempfile.mkdtemp(prefix="bdpo-hosts-", dir="/var/tmp")
    try:
        hosts = Hosts(root, 3)
        runs = m.Runs(r, root)
        for test in (test_equal, test_wire, test_failures, test_network, test_slurm):
            if a.only in test.__name__:
                test(r, hosts, runs)
    finally:
        for n in range(4):
            do("ip", "netns", "del", f"{NAME}{n}", check=False)
        shutil.rmtree(root, ignore_errors=True)
    return r.last()


if __name__ == "__main__":
    sys.exit(main())
