#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A sweep: what a grid becomes, one SFT stage and one reference pass for all, failed runs, kills at any moment, an array's elements, ranks.
Standard library only; $BDPO_TRAIN is run.

usage: sweep_test.py [--kills N] [--seed S]"""
import argparse
import csv
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import tiny_job as t
from compare_rows import Report
from golden_test import read_safetensors

TOP = os.path.join(t.HERE, "..")
SWEEP = os.path.join(TOP, "scripts", "sweep.sh")
GRID = [{"preference.loss": "bdpo", "preference.lambda": [0.3, 0.7], "seed": [1, 2]}, {"preference.loss": "dpop", "preference.lambda": 50}]
NAMES = ["bdpo-lambda0.3-seed1", "bdpo-lambda0.3-seed2", "bdpo-lambda0.7-seed1", "bdpo-lambda0.7-seed2", "dpop-lambda50"]
# what tells when and where a run was, and what an interrupted one leaves
MOMENTARY = re.compile(r"logs/.*|cache(/.*)?|task(/.*)?|.*/(status\.json|timing\.jsonl|report\.html|\.lock|checkpoints(/.*)?)|report\.html|out\.txt")


class Place:
    def __init__(self, r, root, name, grid=GRID, train=24, **sections):
        self.r, self.dir, self.out = r, os.path.join(root, name), os.path.join(root, name, "sweep")
        os.makedirs(self.dir)
        t.make_root(self.dir, train=train)
        sections = {"preference": {"loss": "bdpo", "epochs": 30, "learning_rate": 1e-3}, "checkpoint": {"every": 5}, **sections}
        t.write_json(f"{self.dir}/base.json", t.make_config(self.dir, **sections))
        self.grid = self.write(grid)

    def write(self, grid, **top):
        path = f"{self.dir}/grid.json"
        t.write_json(path, {"note": "a test", "config": f"{self.dir}/base.json", "output": self.out, "grid": grid, **top})
        return path

    def start(self, *score, **env):
        return subprocess.Popen(["sh", SWEEP, self.grid, *score], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                start_new_session=True, env={**os.environ, "BDPO_TRAIN": t.BINARY, **env})

    def sweep(self, *score, **env):
        p = self.start(*score, **env)
        said, _ = p.communicate(timeout=200)
        return p.returncode, said

    def table(self):
        with open(f"{self.out}/sweep.csv", encoding="utf-8", newline="") as f:
            return list(csv.DictReader(f))

    def lasting(self):
        return {k: v for k, v in t.tree(self.out).items() if not MOMENTARY.fullmatch(k)}

    def check(self, ok, what, detail=""):
        self.r.check(ok, what, "" if ok else str(detail)[-900:])


def log(p, name):
    with open(f"{p.out}/logs/{name}.log", encoding="utf-8") as f:
        return f.read()


def test_grid(r, root):
    p = Place(r, root, "grid")
    res = t.bdpo("sweep", p.grid)
    want = "".join([p.out + "\n"] + [f"sft {n}\n" for n in NAMES])
    p.check(res.code == 0 and res.out == want and res.err == "", "a grid's runs in order", f"{res} {res.out}")
    made = sorted(os.listdir(f"{p.out}/configs"))
    p.check(made == sorted([f"{n}.json" for n in NAMES] + ["sft.json"]), "a config for each run and the stage", made)
    res = t.bdpo("sweep", p.write({"sft.learning_rate": [1e-3, 1e-2], "preference.beta": [0.1, 0.2]}))
    stages = [line.split(" ")[0] for line in res.out.split("\n")[1:-1]]
    p.check(res.code == 0 and len(set(stages)) == 2 and stages[0] == stages[1] != stages[2], "another SFT stage for other SFT settings alone", res.out)
    res = t.bdpo("sweep", p.write({"seed": [1, 2]}, set={"sft": 1}))
    p.check(res.code == 2 and "grid.json:" in res.err and '"sft"' in res.err, "a whole section is refused", res)
    shutil.rmtree(p.out)
    for what, grid, top, part in [
        ("a value out of range", [{"preference.lambda": [0.5, 1.5]}], {}, "preference.lambda: 1.5 is outside [0, 1]"),
        ("an unknown key", [{"preference.lamda": [0.5]}], {}, 'did you mean "lambda"?'),
        ("the same run twice", [{"seed": [1, 1]}], {}, "two runs have the name \"seed1\""),
        ("no values", [{"seed": []}], {}, "seed: has no values"),
        ("an output of its own", [{"output": ["a"]}], {}, "grid.json:"),
        ("no grid", None, {}, "grid: must be given"),
        ("a key at the wrong place", GRID, {"seed": 3}, "seed: unknown key"),
        ("a typo at the top", GRID, {"confg": "x"}, 'did you mean "config"?'),
        ("no such config", GRID, {"config": f"{p.dir}/none.json"}, "none.json"),
    ]:
        code, said = (lambda res: (res.code, res.err))(t.bdpo("sweep", p.write(grid, **top)))
        p.check(code == 2 and part in said and said.count("error: ") == 1 and not os.path.exists(p.out), f"refused, nothing written: {what}", said)
        p.check(p.sweep()[0] == 2, f"the script too: {what}")


def test_sweep(r, root):
    p = Place(r, root, "plain")
    # a run's score: the bytes of its metrics, as any program may print a number
    code, said = p.sweep("sh", "-c", 'wc -c <"$0/metrics.jsonl"')
    rows = p.table() if code == 0 else []
    p.check(code == 0 and [x["run"] for x in rows] == NAMES and all(x["state"] == "done" for x in rows), "a sweep ends with a table", said)
    if code:
        return p
    passes = [re.findall(r"^reference: .*", log(p, n), re.M)[-1] for n in NAMES]
    p.check("0 from the cache, 28 computed" in passes[0] and all("28 from the cache, 0 computed" in x for x in passes[1:]),
            "the reference pass is computed once", passes)
    p.check(said.count("28 computed") == 1 and said.count("0 computed") >= len(NAMES) - 1, "and the sweep says so", said)
    p.check(os.listdir(f"{p.dir}/cache").count("reference") == 0 and sum(x.startswith("tokens-") for x in os.listdir(f"{p.dir}/cache")) <= 4,
            "one cache of tokens", os.listdir(f"{p.dir}/cache"))
    p.check(not any(os.path.exists(f"{p.out}/{n}/sft") for n in NAMES) and os.path.isdir(f"{p.out}/sft/model"), "one SFT stage")
    for x in rows:
        last = t.read_lines(f"{p.out}/{x['run']}/metrics.jsonl")
        held = [y for y in last if "eval/loss" in y][-1]
        p.check(float(x["eval/loss"]) == held["eval/loss"] and float(x["eval/rewards/accuracies"]) == held["eval/rewards/accuracies"] and
                int(x["score"]) == os.path.getsize(f"{p.out}/{x['run']}/metrics.jsonl"), f"{x['run']}: the table has the run's figures", x)
    p.check([(x["preference.loss"], x["preference.lambda"], x["seed"]) for x in rows][2:] ==
            [("bdpo", "0.7", "1"), ("bdpo", "0.7", "2"), ("dpop", "50", "")], "and its values", rows[2:])
    with open(f"{p.out}/report.html", encoding="utf-8") as f:
        page = f.read()
    p.check(all(n in page for n in NAMES), "one page of all runs")

    # the one job with both stages gives the same model as SFT and a run of the sweep
    c = t.make_config(p.dir, preference={"loss": "bdpo", "lambda": 0.7, "epochs": 30, "learning_rate": 1e-3}, output=f"{p.dir}/one", seed=3)
    t.write_json(f"{p.dir}/one.json", c)
    one = t.bdpo("--config", f"{p.dir}/one.json")
    p.check(one.code == 0 and t.read_bytes(f"{p.dir}/one/sft/model.safetensors") == t.read_bytes(f"{p.out}/sft/model/model.safetensors"),
            "its SFT model is that of a whole job", one)
    before = p.lasting()
    code, said = p.sweep("sh", "-c", 'wc -c <"$0/metrics.jsonl"')
    p.check(code == 0 and said.count("finished already") == len(NAMES) + 1 and p.lasting() == before, "again: finished runs are skipped", said)
    return p


def kill_until_done(p, rng, kills):
    """Kill the sweep at random moments, half of the time the script alone; (how often, what the last one said, its exit code)."""
    score = ("sh", "-c", 'wc -c <"$0/metrics.jsonl"')
    for n in range(kills):
        s = p.start(*score)
        try:
            s.wait(timeout=rng.uniform(0.02, 1.2))
        except subprocess.TimeoutExpired:
            if rng.random() < 0.5:
                os.killpg(s.pid, signal.SIGKILL)
            else:
                os.kill(s.pid, signal.SIGKILL)
        s.stdout.close()
        s.wait()
    code, said = p.sweep(*score)
    return code, said


def test_kills(r, root, rng, kills, plain):
    p = Place(r, root, "kills")
    want = {k.replace(plain.dir, p.dir): v for k, v in plain.lasting().items()}
    code, said = kill_until_done(p, rng, kills)
    got = p.lasting()
    # configs and tables hold the place's own paths
    same = {k for k in want if k.endswith(("metrics.jsonl", ".safetensors", "sweep.csv")) or k.startswith("scores/")}
    p.check(code == 0 and set(got) == set(want) and all(got[k] == want[k] for k in same),
            f"{kills} kills at random: the same files as one sweep left alone", f"{code} {sorted(set(got) ^ set(want))} "
            f"{[k for k in same if got.get(k) != want[k]]} {said}")
    p.check(len(same) >= 3 * len(NAMES) + 4, "and these are many", len(same))


def test_stop(r, root):
    p = Place(r, root, "stop", preference={"loss": "bdpo", "epochs": 300, "learning_rate": 1e-4})
    s = p.start()
    at = f"{p.out}/{NAMES[0]}/metrics.jsonl"
    limit = time.monotonic() + 60
    while time.monotonic() < limit and not (os.path.exists(at) and os.path.getsize(at) > 2000):
        time.sleep(0.02)
    os.kill(s.pid, signal.SIGTERM)
    said, _ = s.communicate(timeout=60)
    with open(f"{p.out}/{NAMES[0]}/status.json", encoding="utf-8") as f:
        state = f.read()
    p.check(s.returncode == 75 and '"stopped"' in state and "start again" in said and not os.path.exists(f"{p.out}/{NAMES[1]}"),
            "SIGTERM: the run saves, the sweep ends with 75", f"{s.returncode} {said} {state}")


def test_failures(r, root):
    p = Place(r, root, "failed", grid={"preference.loss": ["dpo", "sppo", "bdpo"]}, sft=None)
    # what another run left in the second one's place
    other = t.make_config(p.dir, sft=None, preference={"loss": "dpo", "max_steps": 2}, output=f"{p.out}/sppo")
    t.write_json(f"{p.dir}/other.json", other)
    t.bdpo("--config", f"{p.dir}/other.json")
    code, said = p.sweep()
    rows = {x["run"]: x["state"] for x in p.table()}
    p.check(code == 1 and "sppo: FAILED with exit code 82" in said and "failed: sppo" in said and rows["dpo"] == rows["bdpo"] == "done",
            "a run that fails is named, and the rest goes on", f"{code} {said} {rows}")
    shutil.rmtree(f"{p.out}/sppo")
    code, said = p.sweep()
    p.check(code == 0 and said.count("finished already") == 2, "and once it is mended the rest is not trained again", said)
    p = Place(r, root, "nosft", grid={"preference.loss": ["dpo", "bdpo"]})
    shutil.rmtree(f"{p.dir}/model")
    code, said = p.sweep()
    p.check(code == 1 and "sft: FAILED with exit code 2" in said and said.count("not begun: sft failed") == 2, "no SFT stage, no runs", said)


def test_adapters(r, root):
    p = Place(r, root, "adapters", grid={"preference.loss": ["dpo", "bdpo"]}, preference={"loss": "bdpo", "epochs": 2},
              model={"lora": {"rank": 2}}, eval={"at_end": False})
    code, said = p.sweep()
    p.check(code == 0 and [x["state"] for x in p.table()] == ["done", "done"] and f"{p.out}/sft/model" in t.read_bytes(f"{p.out}/dpo/config.json").decode() and
            os.path.exists(f"{p.out}/bdpo/model/adapter_model.safetensors"), "adapters start from the SFT stage's", said + log(p, "sft")[-400:])


def test_array(r, root, plain):
    p = Place(r, root, "array")
    score = ("sh", "-c", 'wc -c <"$0/metrics.jsonl"')
    order = [0, 3, 1, 4, 2]
    for i in order[:-1]:
        code, said = p.sweep(*score, SLURM_ARRAY_TASK_ID=str(i))
        p.check(code == 0 and NAMES[i] in said and not os.path.exists(f"{p.out}/sweep.csv"), f"element {i} of an array trains its run", said)
    code, said = p.sweep(*score, SLURM_ARRAY_TASK_ID="2")
    p.check(code == 0 and t.read_bytes(f"{p.out}/sweep.csv") == t.read_bytes(f"{plain.out}/sweep.csv"), "the last one writes the table", said)
    code, said = p.sweep(SLURM_ARRAY_TASK_ID="5")
    p.check(code == 2 and "the grid has 5" in said, "an element beyond the grid", said)
    # several at the same time, with nothing there yet: the SFT stage is still trained once, and whichever comes first scores the reference,
    # in its own order: the last bits of these scores depend on that where a product's depend on the number of its rows (float32 without AVX-512)
    p = Place(r, root, "together")
    many = [p.start(*score, SLURM_ARRAY_TASK_ID=str(i)) for i in range(len(NAMES))]
    said = [x.communicate(timeout=200)[0] for x in many]
    p.check(all(x.returncode == 0 for x in many) and p.sweep(*score)[0] == 0 and
            t.read_bytes(f"{p.out}/sft/model/model.safetensors") == t.read_bytes(f"{plain.out}/sft/model/model.safetensors"),
            "all elements at once: the same SFT stage", said)
    far = {}
    for n in NAMES:
        ours, want = (read_safetensors(f"{q.out}/{n}/model/model.safetensors") for q in (p, plain))
        far[n] = max(abs(x - y) for name in want for x, y in zip(ours[name], want[name], strict=True))
    p.check(max(far.values()) < 3e-5, "and the same models, but for the rounding of the reference", str(far))


def test_ranks(r, root):
    if not shutil.which("mpirun") or "none" in t.bdpo("--version").out:
        print("skip: no mpirun, or a build without MPI")
        r.skipped += 1
        return
    p = Place(r, root, "ranks", grid={"preference.loss": ["dpo", "bdpo"]}, preference={"loss": "bdpo", "epochs": 2}, faults={"hang_timeout": 100})
    launch = "mpirun --oversubscribe -np 2"
    if "Open MPI" in t.bdpo("--version").out:
        launch += " --allow-run-as-root --bind-to none"
    code, said = p.sweep(BDPO_LAUNCH=launch)
    p.check(code == 0 and [x["state"] for x in p.table()] == ["done", "done"] and "communication:" in log(p, "bdpo"), "a sweep under mpirun",
            said + log(p, "sft")[-500:])


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--kills", type=int, default=12)
    a.add_argument("--seed", type=int, default=1)
    a = a.parse_args()
    r = Report()
    root = tempfile.mkdtemp()
    try:
        test_grid(r, root)
        plain = test_sweep(r, root)
        test_kills(r, root, random.Random(a.seed), a.kills, plain)
        test_stop(r, root)
        test_failures(r, root)
        test_adapters(r, root)
        test_array(r, root, plain)
        test_ranks(r, root)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    sys.exit(r.last())


if __name__ == "__main__":
    main()
