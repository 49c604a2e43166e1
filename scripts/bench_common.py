# SPDX-License-Identifier: MIT
"""What the comparisons share: a process measured while it runs, one run of bdpo-train, a results file, tables. Standard library only."""
import contextlib
import fcntl
import json
import math
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import tempfile
import threading
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BUNDLED = os.path.join(ROOT, "bdpo-train")  # beside the folder of a bundle's scripts
BINARY = os.path.abspath(os.environ.get("BDPO_TRAIN", BUNDLED if os.path.exists(BUNDLED) else os.path.join(ROOT, "build", "bdpo-train")))
GIB = 2.0 ** 30


def machine():
    """One line: CPU, cores, what it can do with bfloat16, memory, kernel."""
    cpu = {}
    with open("/proc/cpuinfo", encoding="utf-8") as f:
        for line in f:
            key, _, value = line.partition(":")
            cpu.setdefault(key.strip(), value.strip())
    with open("/proc/meminfo", encoding="utf-8") as f:
        total = int(f.readline().split()[1]) / 2 ** 20
    isa = next((x for x in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if x in cpu.get("flags", "").split()), "SSE2")
    return (f"{cpu.get('model name', platform.machine())} (family {cpu.get('cpu family', '?')}, model {cpu.get('model', '?')}), "
            f"{len(os.sched_getaffinity(0))} cores, {isa}, {total:.0f} GiB, Linux {platform.release().split('-')[0]}")


def version():
    """Commit of the sources that the program was built from, or the program's own version where there is no git."""
    try:
        return subprocess.run(["git", "-C", os.path.dirname(os.path.realpath(BINARY)), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return subprocess.run([BINARY, "--version"], capture_output=True, text=True, check=False).stdout.strip()


class Process:
    """A command with its memory sampled: `peak` and `anonymous` are bytes, the largest resident set and the largest anonymous part of it."""

    def __init__(self, args, budget, memory=math.inf, env=None, every=0.01):
        self.peak = self.anonymous = 0
        self.memory, self.over = memory, False
        self.lines, self.errors, self.timed_out = [], tempfile.TemporaryFile(), False
        self.every, self.end = every, time.monotonic() + budget
        self.process = subprocess.Popen(args, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self.errors, text=True,
                                        env={**os.environ, **(env or {})})
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self):
        for line in self.process.stdout:
            self.lines.append(line)

    def sample(self):
        try:
            with open(f"/proc/{self.process.pid}/status", encoding="utf-8") as f:
                for line in f:
                    if line.startswith("VmHWM"):
                        self.peak = max(self.peak, 1024 * int(line.split()[1]))
                    elif line.startswith("RssAnon"):
                        self.anonymous = max(self.anonymous, 1024 * int(line.split()[1]))
        except OSError:
            pass

    def wait(self, enough=lambda: False):
        """Until it ends, `enough()` holds, or its time or memory is used up (it is killed then); its exit code, None where it was killed."""
        killed = False
        while self.process.poll() is None:
            self.sample()
            self.timed_out, self.over = time.monotonic() > self.end, self.anonymous > self.memory
            if self.timed_out or self.over or enough():
                killed = True
                self.process.send_signal(signal.SIGKILL)
                break
            time.sleep(self.every)
        self.process.wait()
        self.reader.join()
        return None if killed else self.process.returncode

    def why(self, code):
        """Why a run that gave no result gave none."""
        if self.over:
            return f"over {self.memory / GIB:.1f} GiB of memory"
        if self.timed_out:
            return "out of time"
        return f"exit code {code}: {(self.stderr().strip().split(chr(10)) or [''])[-1][:300]}"

    def stderr(self):
        self.errors.seek(0)
        return self.errors.read().decode("utf-8", "replace")


def read_rows(path):
    """The whole lines of a JSON Lines file that may be growing."""
    if not os.path.exists(path):
        return []
    with open(path, encoding="utf-8") as f:
        return [json.loads(line) for line in f if line.endswith("\n")]


@contextlib.contextmanager
def alone(lock):
    """Hold `lock` (a path, or None) meanwhile."""
    if not lock:
        yield
        return
    with open(lock, "a", encoding="utf-8") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield


def count_lines(path):
    try:
        with open(path, "rb") as f:
            return f.read().count(b"\n")
    except OSError:
        return 0


def available():
    """Bytes that a new process may take without harm to others."""
    with open("/proc/meminfo", encoding="utf-8") as f:
        return next(1024 * int(line.split()[1]) for line in f if line.startswith("MemAvailable"))


def job_config(model, /, pairs, batch, steps, out, dtype="bfloat16", max_length=1024, threads=2, init="pretrained", backend="cpu", **sections):
    """The config of a job of `steps` preference steps into the directory `out`; sections: more keys of the config's sections."""
    cfg = {
        "model": {"path": model, "dtype": dtype, "init": init}, "data": {"train": pairs, "max_length": max_length, "cache": False},
        "preference": {"loss": "dpo", "beta": 0.1, "epochs": 1000, "max_steps": steps, "learning_rate": 1e-6, "schedule": "constant",
                       "batch_size": batch, "shuffle": False},
        "reference": {"cache": False}, "checkpoint": {"every": 0}, "output": os.path.join(out, "run"), "threads": threads, "backend": backend,
    }
    for key, value in sections.items():
        cfg[key] = {**cfg.get(key, {}), **value}
    return cfg


def write_config(out, cfg):
    path = os.path.join(out, "run.json")
    with open(path, "w", encoding="utf-8") as f:
        json.dump(cfg, f)
    return path


CARDS = ("h200", "h100", "a100", "3090")  # of which `plan --device` has the published figures


def card_named(about):
    """The one of CARDS that a backend's description speaks of, or None."""
    return next((c for c in CARDS if c.upper() in about), None)


def step_work(model, /, pairs, batch, steps, card=None, **job):
    """(FLOPs that a step cannot do without, published bfloat16 FLOP/s of the card or None), by the program's own plan."""
    with tempfile.TemporaryDirectory(prefix="bdpo-plan-") as out:
        path = write_config(out, job_config(model, pairs, batch, steps, out, **{**job, "backend": "cpu"}))
        p = subprocess.run([BINARY, "plan", "--config", path, "--json", "--device", card or CARDS[0]], capture_output=True, text=True, check=False)
    if not p.stdout.startswith("{"):
        raise SystemExit(f"plan: {p.stderr.strip()[-300:]}")
    plan = json.loads(p.stdout)  # one that does not fit has its work nevertheless
    return plan["stages"][-1]["flops_per_step"], plan["flops_per_second"] if card else None


def device_memory(said):
    """(GiB in use after the first step, GiB planned) of a device, by what a run said; None where it had none."""
    unit = {"KiB": 2.0 ** -20, "MiB": 2.0 ** -10, "GiB": 1.0, "TiB": 1024.0}
    m = re.search(r"memory: ([\d.]+) (.iB) in use on the device after the first step, planned ([\d.]+) (.iB)", said)
    return (float(m[1]) * unit[m[2]], float(m[3]) * unit[m[4]]) if m else None


def run_ours(model, /, pairs, batch, steps, budget=240, every=0.01, **job):
    """`steps` preference steps of bdpo-train (job: what job_config takes), stopped before it would save. {"steps": rows like rival.py's, ...} or
    {"failed": why}."""
    out = tempfile.mkdtemp(prefix="bdpo-bench-")
    try:
        config = write_config(out, job_config(model, pairs, batch, steps, out, **job))
        timing, metrics = (os.path.join(out, x) for x in ("run/timing.jsonl", "run/metrics.jsonl"))
        begin = time.perf_counter()
        seen = []  # (seconds since the start, steps done)

        def enough():
            rows = count_lines(timing)
            if rows and (not seen or rows >= steps):
                seen.append((time.perf_counter() - begin, rows))
            return rows >= steps

        p = Process([BINARY, "--config", config], budget, every=every)
        code = p.wait(enough)
        enough()
        times, rows = read_rows(timing), read_rows(metrics)
        if code not in (0, None) or len(times) < min(2, steps):
            return {"failed": p.why(code)}
        said = p.stderr()
        card = re.search(r"^backend: cuda: (.*)$", said, re.MULTILINE)
        scored = re.search(r"^reference: ([\d,]+) rows.* in ([\d.]+) s", said, re.MULTILINE)
        return {
            "steps": [{"step_seconds": t["step_seconds"], "pairs": batch, "tokens": m["tokens"], "loss": m["loss"], "logps_chosen": m["logps/chosen"],
                       "grad_norm": m["grad_norm"]} for t, m in zip(times, rows)],
            "reference_seconds": float(scored[2]) if scored else 0.0, "reference_pairs": int(scored[1].replace(",", "")) if scored else 0,
            "peak": p.peak, "anonymous": p.anonymous, "seen": seen[:1] + seen[-1:],
            "card": card[1] if card else None, "device": device_memory(said), "versions": f"bdpo-train {version()}",
        }
    finally:
        shutil.rmtree(out, ignore_errors=True)


class Results:
    """Records by key in one JSON file, kept after each measurement, so that a table can be made in slices."""

    def __init__(self, path):
        self.path, self.records = path, {}
        if os.path.exists(path):
            with open(path, encoding="utf-8") as f:
                self.records = json.load(f)

    def put(self, key, record):
        record = {"time": time.strftime("%Y-%m-%d %H:%M", time.gmtime()), "machine": machine(), **record}
        self.records[key] = record
        os.makedirs(os.path.dirname(os.path.abspath(self.path)), exist_ok=True)
        part = self.path + ".part"
        with open(part, "w", encoding="utf-8") as f:
            json.dump(self.records, f, indent=1, sort_keys=True)
        os.replace(part, self.path)
        return record

    def get(self, key):
        return self.records.get(key)

    def under(self, prefix):
        return {k: v for k, v in self.records.items() if k.startswith(prefix)}


def seconds(record, first=1):
    """Mean of the steps from number `first` on (the very first one touches the memory)."""
    rows = [s["step_seconds"] for s in record["steps"][first:]] or [s["step_seconds"] for s in record["steps"]]
    return statistics.fmean(rows)


def interval(values):
    """(mean, half-width of the 95 % confidence interval) by Student's t."""
    n = len(values)
    if n < 2:
        return values[0], math.inf
    t = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26, 10: 2.23, 15: 2.13, 20: 2.09, 30: 2.04}
    near = max(k for k in t if k <= n - 1)
    return statistics.fmean(values), t[near] * statistics.stdev(values) / math.sqrt(n)


def table(head, rows):
    """Markdown."""
    out = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(out + ["| " + " | ".join(str(c) for c in r) + " |" for r in rows])


def write_between(path, name, text):
    """Put `text` between the lines `<!-- NAME -->` and `<!-- end of NAME -->` of a document."""
    with open(path, encoding="utf-8") as f:
        doc = f.read()
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    if begin not in doc or end not in doc:
        raise SystemExit(f"{path}: no lines {begin.strip()} and {end}")
    head, _, rest = doc.partition(begin)
    _, _, tail = rest.partition(end)
    with open(path, "w", encoding="utf-8") as f:
        f.write(f"{head}{begin}{text}\n{end}{tail}")
