# SPDX-License-Identifier: MIT
"""A short job run by bdpo-train-fault (test/fault/fault.c), and what must hold after any fault. Standard library only; $BDPO_FAULTY is run."""
import json
import os
import shutil
import subprocess

import tiny_job as t

FAULTY = os.environ.get("BDPO_FAULTY", os.path.join(t.HERE, "..", "build", "release", "bdpo-train-fault"))
RESULTS = ["metrics.jsonl", "sft/model.safetensors", "model/model.safetensors", "model/config.json", "models/epoch-1/model.safetensors"]
# a sanitizer's report must not look like the program's own exit code 1
ASAN = os.environ.get("ASAN_OPTIONS", "") + ":exitcode=99"


class Job:
    """One config under ROOT; every `run` starts from an empty output and cache unless `keep`."""

    def __init__(self, root, **sections):
        self.root, self.out, self.config = root, f"{root}/run", f"{root}/run.json"
        os.makedirs(root)
        t.make_root(root, train=6)
        base = {"sft": {"batch_size": 3}, "preference": {"batch_size": 3}, "checkpoint": {"every": 1, "keep": 2, "export": "epoch"}, "eval": {"every": 2}}
        for key, value in sections.items():
            base[key] = {**base.get(key, {}), **value} if isinstance(value, dict) else value
        t.write_json(self.config, t.make_config(root, **base))

    def fresh(self):
        for name in ("run", "cache"):
            shutil.rmtree(f"{self.root}/{name}", ignore_errors=True)

    def run(self, fault="", *args, keep=False, env=None, **options):
        if not keep:
            self.fresh()
        p = subprocess.run([FAULTY, "--config", self.config, *args], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                           timeout=120, env={**os.environ, "BDPO_FAULT": fault, "ASAN_OPTIONS": ASAN, **(env or {})}, **options)
        return t.Result(p.returncode, p.stdout, p.stderr)

    def go_on(self, *args):
        return t.bdpo("--config", self.config, *args)

    def counts(self):
        """How often a run that nothing disturbs calls each point."""
        path = f"{self.root}/counts"
        res = self.run(env={"BDPO_FAULT_COUNTS": path})
        if res.code != 0:
            raise RuntimeError(f"a run without a fault: {res}")
        with open(path, encoding="utf-8") as f:
            return {name: int(n) for name, n in (line.split() for line in f)}

    def results(self):
        return {n: t.read_bytes(f"{self.out}/{n}") if os.path.exists(f"{self.out}/{n}") else None for n in RESULTS}

    def status(self):
        path = f"{self.out}/status.json"
        if not os.path.exists(path):
            return {}
        with open(path, encoding="utf-8") as f:
            return json.load(f)

    def checkpoints(self):
        """Names, oldest first."""
        path = f"{self.out}/checkpoints"
        names = [n for n in os.listdir(path) if not n.startswith(".")] if os.path.isdir(path) else []
        return sorted(names, key=lambda n: (n.split("-")[0] == "preference", int(n.split("-")[1])))

    def leftovers(self):
        return [n for n in t.tree(self.out) if ".tmp" in n or ".old" in n or ".del-" in n]

    def recovered(self, want):
        """Started again without a fault, does it take what there is, complain about nothing, and end as the run that was left alone? "" or what is wrong."""
        names = self.checkpoints()
        res = self.go_on()
        if res.code != 0:
            return f"started again: {res}"
        if "passed over" in res.err:
            return f"a torn checkpoint: {res.err[-400:]}"
        done = "finished already" in res.err
        sft_done = names and names[-1].startswith("sft") and "preference:" in res.err and "resumed" not in res.err
        if names and not done and not sft_done and f"resumed from {self.out}/checkpoints/{names[-1]}" not in res.err:
            return f"not resumed from {names[-1]}: {res.err[-400:]}"
        differ = [n for n, data in self.results().items() if data != want[n]]
        if differ or self.leftovers():
            return f"differ: {differ}, left over: {self.leftovers()}"
        return "" if self.status().get("state") == "done" else f"status {self.status()}"
