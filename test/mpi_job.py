# SPDX-License-Identifier: MIT
"""fault_job.py's job on two ranks, one of which meets the fault. Standard library only."""
import os
import subprocess

import mpi_test as m
from fault_job import ASAN, FAULTY, Job

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

    def run(self, fault="", *args, rank=1, keep=False, env=None, seconds=150):
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
