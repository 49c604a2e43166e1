# SPDX-License-Identifier: MIT
"""What counts as equal: the limits of the comparison with PyTorch, row by row. Standard library only."""
import argparse
import contextlib
import json
import math
import os
import shutil
import subprocess
import tempfile

REL, PER_TOKEN, WEIGHTS = 1e-3, 1e-4, 1e-2  # relative, absolute per token, share of the L2 of the update


class Limits:
    """What may differ: `rel` of a value or `per_token`, the gradient's norm by `norm`, the weights by `weights` of the L2 of the update."""

    def __init__(self, rel=REL, per_token=PER_TOKEN, norm=REL, weights=WEIGHTS, shares=True):
        self.rel, self.per_token, self.norm, self.weights, self.shares = rel, per_token, norm, weights, shares


FLOAT32 = Limits()
# A run in bfloat16 against one in float32: 8 bits a value, so that a log-probability may move by 0.01 a token, and the loss by 2 %.
# Shares of pairs (accuracies, bound) are not compared: a pair near the threshold may fall on either side.
BFLOAT16 = Limits(rel=0.02, per_token=0.01, norm=0.1, weights=0.3, shares=False)


class Report:
    """Prints one line a check and counts them; last() prints the summary and gives the exit code."""

    def __init__(self, verbose=False):
        self.verbose, self.passed, self.failed, self.skipped = verbose, 0, 0, 0

    def check(self, ok, what, detail=""):
        self.passed += bool(ok)
        self.failed += not ok
        print(f"{'ok  ' if ok else 'FAIL'} {what}{': ' if detail else ''}{detail}", flush=True)

    def last(self):
        print(f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped")
        return 1 if self.failed else 0


def arguments(doc):
    """The options that all comparisons have."""
    ap = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--binary", default=os.environ.get("BDPO_TRAIN", "build/bdpo-train"))
    ap.add_argument("--keep", help="work in this directory and leave it there")
    ap.add_argument("--verbose", action="store_true", help="every key of every comparison")
    return ap


@contextlib.contextmanager
def work_folder(keep, prefix):
    """The directory `keep`, which stays, or a new one, which does not."""
    root = os.path.abspath(keep) if keep else tempfile.mkdtemp(prefix=prefix)
    try:
        yield root
    finally:
        if not keep:
            shutil.rmtree(root, ignore_errors=True)


def case_folder(root, name):
    """Where a case works: ROOT/its name, emptied."""
    path = os.path.join(root, name.replace("/", "-"))
    shutil.rmtree(path, ignore_errors=True)
    return path


def run(binary, args, timeout=300):
    """(exit code, stdout, stderr) of the program; it runs as a user would run it, but without a terminal."""
    try:
        p = subprocess.run([binary] + args, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=timeout)
    except subprocess.TimeoutExpired:
        return -1, "", f"no end after {timeout} s"
    return p.returncode, p.stdout.decode("utf-8", "replace"), p.stderr.decode("utf-8", "replace").strip()


def read_jsonl(path):
    with open(path, encoding="utf-8") as f:
        return [json.loads(line) for line in f]


def read_metrics(output):
    """(training rows, evaluation rows) of OUTPUT/metrics.jsonl."""
    rows = read_jsonl(os.path.join(output, "metrics.jsonl"))
    held = [x for x in rows if any(k.startswith("eval/") for k in x)]
    return [x for x in rows if x not in held], held


def allowed(want, options):
    """What each key's difference may be for absolute reasons: log-probabilities by their tokens ("_nw", "_nl": means a pair), rewards by beta."""
    beta = options.get("beta", 1.0) if options else 1.0
    nw, nl = want.get("_nw", 1.0), want.get("_nl", 1.0)
    if "ref_logps/chosen" not in want:  # orpo: its rewards are of means over tokens
        rewards = (1.0, 1.0, 2.0)
    else:
        rewards = (nw, nl, nw + nl)
    return {"logps/chosen": nw, "logps/rejected": nl, "ref_logps/chosen": nw, "ref_logps/rejected": nl, "in_distribution": max(nw, nl),
            "bdpo/gate": nl, "rewards/chosen": beta * rewards[0], "rewards/rejected": beta * rewards[1], "rewards/margins": beta * rewards[2]}


def deviation(key, a, b, want, tokens, limits=FLOAT32):
    """|a - b| as a share of what is allowed: 1 is the limit."""
    if isinstance(a, str) or b is None or isinstance(b, (bool, str)) or key in ("step", "tokens", "skipped"):
        return 0.0 if a == b else math.inf
    if key == "epoch":
        return abs(a - b) / 1e-6
    if key == "learning_rate":
        return abs(a - b) / (1e-6 * abs(a) + 1e-15)
    if key in ("rewards/accuracies", "bdpo/bound") and not limits.shares:
        return 0.0 if 0 <= b <= 1 else math.inf
    if key in ("rewards/accuracies", "bdpo/bound"):  # shares of pairs: only pairs that stand on the threshold may differ
        close = want["_close_margins" if key == "rewards/accuracies" else "_close_bounds"]
        return abs(a - b) / (close / want["_pairs"] + 1e-6)
    rel = limits.norm if key == "grad_norm" else limits.rel
    share = abs(a - b) / max(rel * abs(a), limits.per_token * tokens.get(key, 1.0))
    return share if math.isfinite(share) else math.inf


def at(step):
    return "" if step is None else f" at step {step}"


def slope(loss, options):
    """Half of d loss / d log-ratio (errors of two responses cancel in part) where that does not flatten out: there 2 % of a small loss
    would be less than what its log-probabilities may do."""
    return {"slic": 0.5 * options["beta"], "sppo": 0.5 / options["beta"]}.get(loss, 0.0)


def compare_rows(r, what, want, got, options, limits=FLOAT32, steep=0.0):
    """Every key of the contract at every step; keys of other losses must be absent. steep: slope() of the loss."""
    if not want and not got:
        return
    if len(want) != len(got):
        r.check(False, what, f"{len(got)} rows, expected {len(want)}")
        return
    worst = {}
    for w, g in zip(want, got):
        tokens = allowed(w, options)
        if steep:
            tokens["loss"] = steep * (w.get("_nw", 0.0) + w.get("_nl", 0.0))
        for key, a in w.items():
            if not key.startswith("_"):
                share = deviation(key, a, g.get(key), w, tokens, limits)
                if key not in worst or share > worst[key][0]:
                    worst[key] = (share, a, g.get(key), w.get("step"))
    foreign = sorted({k for g in got for k in g if k.startswith(("bdpo/", "ref_logps/")) and all(k not in w for w in want)})
    bad = [k for k, x in worst.items() if not x[0] <= 1]
    for k in worst if r.verbose else bad:
        share, a, b, step = worst[k]
        print(f"       {what} {k}: expected {a!r}, got {b!r}{at(step)} ({share:.3f} of what is allowed)")
    for k in foreign:
        print(f"       {what} {k}: a key that does not belong to this loss")
    k = max(worst, key=lambda x: worst[x][0])
    r.check(not bad and not foreign, what, f"{len(want)} rows, {len(worst)} keys, largest {worst[k][0]:.3f} ({k}{at(worst[k][3])})")


def compare_pairs(r, what, want, got, limits=FLOAT32):
    """Lines of evaluate --per-pair: the same rows and ids, the same log-probabilities."""
    if len(want) != len(got):
        r.check(False, what, f"{len(got)} lines, expected {len(want)}")
        return
    worst = 0.0
    for w, g in zip(want, got):
        if (os.path.basename(str(g.get("file"))), g.get("line")) != (os.path.basename(w["file"]), w["line"]):
            r.check(False, what, f"row {g.get('file')}:{g.get('line')}, expected {w['file']}:{w['line']}")
            return
        for key in ("prompt_ids", "chosen_ids", "rejected_ids"):
            if g.get(key) != w[key]:
                r.check(False, what, f"line {w['line']}: {key} {g.get(key)}, expected {w[key]}")
                return
        for key, ids in (("logps/chosen", "chosen_ids"), ("logps/rejected", "rejected_ids")):
            worst = max(worst, deviation(key, w[key], g.get(key), w, {key: len(w[ids])}, limits))
    r.check(worst <= 1, what, f"{len(want)} pairs, the same ids, log-probabilities largest {worst:.4f}")


def strip_eval(row):
    return {k[5:] if k.startswith("eval/") else k: v for k, v in row.items()}
