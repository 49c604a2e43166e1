#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The paper's landscapes and toy case, computed again from outside. Standard library only; $BDPO_TRAIN is run."""
import csv
import json
import math
import os
import struct
import sys
import tempfile
import xml.etree.ElementTree as xml

import tiny_job as t
from compare_rows import Report

SVG = "{http://www.w3.org/2000/svg}"


def softplus(x):
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def formula(loss, w, l, rw, rl, beta=0.1, lam=0.5, alpha=1.0, smooth=0.0):
    """The loss of probabilities, as the paper writes it (not as the program computes it)."""
    u, v = math.log(w / rw), math.log(l / rl)
    odds = lambda p: p / (1 - p)
    if loss == "dpo":
        return (1 - smooth) * softplus(-beta * (u - v)) + smooth * softplus(beta * (u - v))
    if loss == "dpo_nll":
        return softplus(-beta * (u - v)) - alpha * math.log(w)
    if loss == "dpop":
        return softplus(-beta * (u - v - lam * max(0.0, math.log(rw / w))))
    if loss == "bdpo":
        return softplus(-beta * (u - math.log((lam * l + (1 - lam) * rl) / rl)))
    if loss == "minor_dpo":
        return softplus(-beta * (u - max(0.0, v)))
    if loss == "slic":
        return max(0.0, 1 - beta * (u - v))
    if loss == "sppo":
        return (u - 1 / (2 * beta)) ** 2 + (v + 1 / (2 * beta)) ** 2
    return -math.log(w) + beta * softplus(-math.log(odds(w) / odds(l)))


CASES = [("dpo", {}), ("dpo", {"beta": 0.5, "smooth": 0.1}), ("dpo_nll", {"alpha": 0.01}), ("dpo_nll", {"alpha": 10}), ("dpop", {"lam": 50}),
         ("bdpo", {}), ("bdpo", {"lam": 0.1}), ("bdpo", {"lam": 0.999}), ("minor_dpo", {}), ("slic", {}), ("sppo", {}), ("orpo", {})]
FLAGS = {"beta": "--beta", "lam": "--lambda", "alpha": "--alpha", "smooth": "--label-smoothing"}


def check(r, ok, what, detail=""):
    r.check(ok, what, "" if ok else detail)


def rows_of(path):
    with open(path, encoding="utf-8", newline="") as f:
        return list(csv.DictReader(f))


def picture(path, grid=False):
    """A picture that a browser takes: well-formed, with a title and a description; grid: four of them in one."""
    root = xml.parse(path).getroot()
    if grid:
        parts = root.findall(SVG + "svg")
        return root if len(parts) == 4 and all(p.find(SVG + "title").text and p.find(SVG + "desc").text for p in parts) else None
    return root if root.tag == SVG + "svg" and root.find(SVG + "title").text and len(root.find(SVG + "desc").text) > 40 else None


def test_contour(r, root):
    for loss, options in CASES:
        stem = os.path.join(root, "c")
        flags = [x for k, v in options.items() for x in (FLAGS[k], str(v))]
        res = t.bdpo("contour", "--loss", loss, *flags, "--ref-w", "0.3", "--ref-l", "0.2", "--max-l", "0.5", "--points", "23", "--out", stem)
        rows = rows_of(stem + ".csv") if res.code == 0 else []
        cells = {((i + .5) / 23, (j + .5) / 46) for i in range(23) for j in range(23) if (i + .5) / 23 + (j + .5) / 46 <= 1}
        seen = {(float(x["pi_w"]), float(x["pi_l"])) for x in rows}
        near = all(any(abs(a - c) + abs(b - d) < 1e-12 for c, d in seen) for a, b in cells)
        check(r, len(rows) == len(cells) and near, f"contour {loss} {options}: every cell", f"{len(rows)}, {len(cells)}; {res}")
        if loss == "dpop":
            options = {"lam": 5, **options}
        worst = 0.0
        for x in rows:
            want = formula(loss, float(x["pi_w"]), float(x["pi_l"]), 0.3, 0.2, **options)
            worst = max(worst, abs(float(x["loss"]) - want) / max(1e-3, abs(want)))
        check(r, rows and worst < 1e-11, f"contour {loss} {options}: values", f"off by {worst}")
        check(r, picture(stem + ".svg") is not None, f"contour {loss} {options}: picture")
    res = t.bdpo("contour", "--loss", "bdpo", "--points", "2")
    check(r, res.code == 0 and res.out.startswith("pi_w,pi_l,loss\n0.25,0.25,") and len(res.out.split("\n")) == 5, "contour to stdout", res.out)


def test_contour_usage(r, root):
    for args, part in ((["--loss", "bdpp"], 'did you mean "bdpo"?'), ([], "--loss NAME"), (["--loss", "dpo", "--lambda", "0.5"], "no such option"),
                       (["--loss", "bdpo", "--lambda", "1.5"], "outside [0, 1]"), (["--loss", "dpo", "--ref-w", "0.9", "--ref-l", "0.2"], "above 1"),
                       (["--loss", "dpo", "--points", "1.5"], "whole number")):
        res = t.bdpo("contour", *args, "--out", os.path.join(root, "none"))
        check(r, res.code == 2 and part in res.err and len(res.lines) == 1, f"contour {args}: refused", str(res))
    check(r, not os.path.exists(os.path.join(root, "none.csv")), "contour refused: nothing written")
    res = t.bdpo("contour", "--loss", "dpo", "--out", os.path.join(root, "absent", "c"))
    check(r, res.code == 1 and "absent" in res.err, "contour into a directory that is not there", str(res))


# the toy case ------------------------------------------------------------------------------------------------------------------------

PROMPTS, RESPONSES, HIDDEN = 4, 4, 32
RNG_BOOTSTRAP, RNG_TOY = 7, 8
MASK = (1 << 32) - 1


def philox(seed, stream, index):
    """64 bits of Philox4x32-10 (Salmon et al. 2011)."""
    c, k = [index & MASK, index >> 32, stream & MASK, stream >> 32], [seed & MASK, seed >> 32]
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & MASK, (p0 >> 32) ^ c[3] ^ k[1], p0 & MASK]
        k = [(k[0] + 0x9E3779B9) & MASK, (k[1] + 0xBB67AE85) & MASK]
    return c[1] << 32 | c[0]


def uniform(seed, kind, sub, index):
    return (philox(seed, kind << 56 | sub, index) >> 11) * 2.0 ** -53


def permutation(n, seed, kind, sub):
    perm = list(range(n))
    for i in range(n - 1, 0, -1):
        j = philox(seed, kind << 56 | sub, i) * (i + 1) >> 64
        perm[i], perm[j] = perm[j], perm[i]
    return perm


class Toy:
    """The network and its training again, in double."""

    def __init__(self, seed):
        sizes = [HIDDEN * PROMPTS, HIDDEN, RESPONSES * HIDDEN, RESPONSES]
        flat = [(2 * uniform(seed, RNG_TOY, 0, i) - 1) / math.sqrt(PROMPTS if i < sizes[0] + sizes[1] else HIDDEN) for i in range(sum(sizes))]
        flat = [struct.unpack("f", struct.pack("f", x))[0] for x in flat]
        self.p, self.m, self.v, self.t = flat, [0.0] * len(flat), [0.0] * len(flat), 0
        self.role = [permutation(RESPONSES, seed, RNG_TOY, 1 + x) for x in range(PROMPTS)]
        self.ref = [self.log_pi(x)[0] for x in range(PROMPTS)]

    def log_pi(self, x):
        b1, w2 = HIDDEN * PROMPTS, HIDDEN * PROMPTS + HIDDEN
        b2 = w2 + RESPONSES * HIDDEN
        h = [max(0.0, self.p[k * PROMPTS + x] + self.p[b1 + k]) for k in range(HIDDEN)]
        z = [self.p[b2 + y] + sum(self.p[w2 + y * HIDDEN + k] * h[k] for k in range(HIDDEN)) for y in range(RESPONSES)]
        lse = math.log(sum(math.exp(v) for v in z))
        return [v - lse for v in z], h

    def step(self, loss, rate, lam):
        g = [0.0] * len(self.p)
        b1, w2 = HIDDEN * PROMPTS, HIDDEN * PROMPTS + HIDDEN
        b2 = w2 + RESPONSES * HIDDEN
        for x in range(PROMPTS):
            lp, h = self.log_pi(x)
            w, l = self.role[x][:2]
            at = lambda dw, dl: formula(loss, math.exp(lp[w] + dw), math.exp(lp[l] + dl), math.exp(self.ref[x][w]), math.exp(self.ref[x][l]), lam=lam)
            e = 1e-5
            # at u = v = 0 dpop and minor_dpo stand on their kinks: the side that counts there is u >= 0 and v <= 0
            lo_w, hi_l = (0.0, 0.0) if lp == self.ref[x] else (e, e)
            dw, dl = (at(e, 0) - at(-lo_w, 0)) / (e + lo_w), (at(0, hi_l) - at(0, -e)) / (e + hi_l)
            for y in range(RESPONSES):
                dz = (dw * ((y == w) - math.exp(lp[y])) + dl * ((y == l) - math.exp(lp[y]))) / PROMPTS
                g[b2 + y] += dz
                for k in range(HIDDEN):
                    if h[k] > 0:
                        g[w2 + y * HIDDEN + k] += dz * h[k]
                        g[k * PROMPTS + x] += dz * self.p[w2 + y * HIDDEN + k]
                        g[b1 + k] += dz * self.p[w2 + y * HIDDEN + k]
        self.t += 1
        for i, d in enumerate(g):
            self.m[i] = 0.9 * self.m[i] + 0.1 * d
            self.v[i] = 0.999 * self.v[i] + 0.001 * d * d
            self.p[i] -= rate * self.m[i] / (1 - 0.9 ** self.t) / (math.sqrt(self.v[i] / (1 - 0.999 ** self.t)) + 1e-8)


def wilson(p, n, z=1.959963984540054):
    a, b = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0, (a - b) / (1 + z * z / n)), min(1, (a + b) / (1 + z * z / n))


def bootstrap(x, seed, resamples=1000):
    n = len(x)
    means = sorted(sum(x[int(uniform(seed, RNG_BOOTSTRAP, r, i) * n)] for i in range(n)) / n for r in range(resamples))
    at = lambda q: (lambda k, f: means[k] + f * (means[min(k + 1, resamples - 1)] - means[k]))(*divmod_one(q * (resamples - 1)))
    return at(0.025), at(0.975)


def divmod_one(x):
    return int(x), x - int(x)


def test_toy_training(r, root):
    stem = os.path.join(root, "toy")
    res = t.bdpo("toy", "--out", stem, "--rates", "0.02", "--steps", "30", "--seeds", "1", "--seed", "11")
    rows = rows_of(stem + "-steps.csv") if res.code == 0 else []
    check(r, len(rows) == 8 * 31 * 4, "toy: a row for each loss, step and prompt", str(res))
    for loss, lam in (("dpo", 0), ("dpo_nll", 0), ("dpop", 5), ("bdpo", 0.5), ("minor_dpo", 0), ("slic", 0), ("orpo", 0), ("sppo", 0)):
        toy, worst, roles = Toy(11), 0.0, True
        for k in range(31):
            for x in range(PROMPTS):
                row = [a for a in rows if a["loss"] == loss and a["step"] == str(k) and a["prompt"] == str(x)][0]
                roles &= [int(row["chosen"]), int(row["rejected"])] == toy.role[x][:2]
                worst = max(worst, *(abs(float(row[f"pi_{y}"]) - math.exp(toy.log_pi(x)[0][y])) for y in range(RESPONSES)))
            toy.step(loss, 0.02, lam)
        # float32 against double; AdamW divides by the gradient's size, so where a gradient passes through 0 its rounding counts in full
        check(r, roles and worst < 5e-4, f"toy {loss}: every probability of 30 steps", f"off by {worst}, roles {roles}")
        check(r, picture(stem + f"-{loss}.svg", grid=True) is not None, f"toy {loss}: picture")


def test_toy_statistics(r, root):
    stem = os.path.join(root, "many")
    args = ["--out", stem, "--rates", "0.01,0.1", "--steps", "40", "--seeds", "7", "--seed", "5"]
    res = t.bdpo("toy", *args)
    table, final = rows_of(stem + "-table.csv"), rows_of(stem + "-final.csv")
    check(r, res.code == 0 and len(table) == 16 and len(final) == 16 * 7 * 4, "toy: rows of the statistic", str(res))
    names = ("chosen_up", "rejected_down", "other_up", "pi_chosen", "pi_rejected", "pi_others")
    off = []
    for row in table:
        seeds = {}
        for f in final:
            if (f["loss"], f["learning_rate"]) != (row["loss"], row["learning_rate"]):
                continue
            w, l = int(f["chosen"]), int(f["rejected"])
            ref, pi = [float(f[f"ref_{y}"]) for y in range(4)], [float(f[f"pi_{y}"]) for y in range(4)]
            rest = [y for y in range(4) if y not in (w, l)]
            seeds.setdefault(f["seed"], []).append((pi[w] > ref[w], pi[l] < ref[l], any(pi[y] > ref[y] for y in rest), pi[w], pi[l],
                                                    sum(pi[y] for y in rest)))
        for i, name in enumerate(names):
            values = [sum(x[i] for x in rows) / 4 for rows in seeds.values()]
            mean = sum(values) / len(values)
            want = (mean, *(wilson(mean, 7) if i < 3 else bootstrap(values, 5)))
            got = [float(row[name + end]) for end in ("", "_lo", "_hi")]
            off.append(max(abs(a - b) for a, b in zip(got, want)))
    check(r, len(off) == 96 and max(off) < 1e-8, "toy: the table again from the final probabilities", f"off by {max(off)}")
    before = [open(stem + e, "rb").read() for e in ("-table.csv", "-final.csv", "-steps.csv", "-bdpo.svg")]
    t.bdpo("toy", *args)
    check(r, before == [open(stem + e, "rb").read() for e in ("-table.csv", "-final.csv", "-steps.csv", "-bdpo.svg")], "toy: the same again")
    for bad, part in ((["--rates", "0.1,x"], "--rates"), (["--rates", ""], "--rates"), (["--steps", "0"], "--steps"), (["--rate", "1"], "did you mean --rates")):
        res = t.bdpo("toy", *bad)
        check(r, res.code == 2 and part in res.err and len(res.lines) == 1, f"toy {bad}: refused", str(res))


def test_toy_claim(r, root):
    """What the paper says of its toy case, at a few seeds: dpo lowers some chosen response and raises one that is in no pair; bdpo never does."""
    stem = os.path.join(root, "claim")
    t.bdpo("toy", "--out", stem, "--rates", "0.01", "--steps", "1000", "--seeds", "20")
    row = {x["loss"]: x for x in rows_of(stem + "-table.csv")}
    check(r, float(row["dpo"]["chosen_up_hi"]) < 0.95 and float(row["dpo"]["other_up_lo"]) > 0.1, "toy: dpo loses chosen responses", str(row["dpo"]))
    check(r, float(row["bdpo"]["chosen_up"]) == 1 and float(row["bdpo"]["rejected_down"]) == 1 and float(row["bdpo"]["other_up"]) == 0,
          "toy: bdpo raises every chosen response", str(row["bdpo"]))


def test_theorem_2_in_a_run(r, root):
    """bdpo/bound and bdpo/gate of a run's evaluation, again from the log-probabilities of each pair; and the theorem for each of them."""
    place = os.path.join(root, "run")
    t.make_root(place, train=40, held=30)
    lam, held, low = 0.3, 0, 0
    t.write_json(place + "/run.json", t.make_config(place, preference={"loss": "bdpo", "lambda": lam, "epochs": 6, "learning_rate": 2e-2, "batch_size": 8}))
    res = t.bdpo("--config", place + "/run.json")
    check(r, res.code == 0, "run with bdpo", str(res))
    rows = [x for x in t.read_lines(place + "/run/metrics.jsonl") if x["stage"] == "preference"]
    check(r, abs(rows[0]["bdpo/gate"] - lam) < 1e-9 and rows[0]["bdpo/bound"] == 1 and abs(rows[0]["loss"] - math.log(2)) < 1e-12,
          "first step: the gate is lambda, every pair within the bound", str(rows[0]))
    res = t.bdpo("evaluate", "--config", place + "/run.json", "--per-pair", place + "/pairs.jsonl")
    pairs, gates = t.read_lines(place + "/pairs.jsonl"), []
    for x in pairs:
        u, v = x["logps/chosen"] - x["ref_logps/chosen"], x["logps/rejected"] - x["ref_logps/rejected"]
        loss = softplus(-0.1 * (u - math.log(lam * math.exp(v) + 1 - lam)))
        held += u > math.log(1 - lam)
        low += loss <= math.log(2)
        gates.append(lam * math.exp(v) / (lam * math.exp(v) + 1 - lam))
        if loss <= math.log(2):
            check(r, u > math.log(1 - lam), "Theorem 2 for a pair", str(x))
    shown = json.loads(res.out)
    check(r, 0 < low < len(pairs) and abs(shown["bdpo/bound"] - held / len(pairs)) < 1e-12, "bdpo/bound from the pairs", f"{held} {low} {shown}")
    check(r, abs(shown["bdpo/gate"] - sum(gates) / len(gates)) < 1e-9, "bdpo/gate from the pairs", f"{sum(gates) / len(gates)} {shown}")


def test_kl_in_a_run(r, root):
    place = os.path.join(root, "kl")
    t.make_root(place, train=16, held=5)
    sections = {"eval": {"kl_samples": 12, "every": 2}, "data": {"max_length": 24}, "preference": {"epochs": 1, "learning_rate": 3e-2}}
    t.write_json(place + "/run.json", t.make_config(place, **sections))
    res = t.bdpo("--config", place + "/run.json")
    rows = [x for x in t.read_lines(place + "/run/metrics.jsonl") if x["stage"] == "preference" and "eval/loss" in x] if res.code == 0 else []
    check(r, len(rows) == 2 and all(x["eval/kl_stderr"] > 0 for x in rows) and rows[0]["eval/kl"] < rows[-1]["eval/kl"], "eval/kl grows in training",
          f"{res} {rows}")
    answers = t.read_lines(place + "/run/samples.jsonl")
    check(r, len(answers) == 5 and set(answers[0]) == {"prompt", "policy", "reference", "policy/finish", "reference/finish"}, "samples.jsonl", str(answers[:1]))
    res = t.bdpo("evaluate", "--config", place + "/run.json")
    shown = json.loads(res.out)
    check(r, shown["eval/kl"] == rows[-1]["eval/kl"] and shown["eval/kl_stderr"] == rows[-1]["eval/kl_stderr"], "evaluate: the run's eval/kl again", res.out)
    res = t.bdpo("evaluate", "--config", place + "/run.json", "--model", place + "/run/sft")
    shown = json.loads(res.out)
    check(r, shown["eval/kl"] == 0 and shown["eval/kl_stderr"] == 0, "evaluate: of the reference itself it is 0", res.out)
    res = t.bdpo("evaluate", "--config", place + "/run.json", "--set", "preference={\"loss\": \"orpo\"}")
    check(r, res.code == 0 and "eval/kl" not in json.loads(res.out), "orpo has no reference and no eval/kl", str(res))


def margin(x):
    return 0.1 * (x["logps/chosen"] - x["ref_logps/chosen"] - x["logps/rejected"] + x["ref_logps/rejected"])


def test_statistics(r, root):
    """evaluate's intervals, classes of length and comparison, again from its --per-pair lines."""
    place = os.path.join(root, "stats")
    t.make_root(place, train=16, held=60)
    t.make_model(place + "/other", seed=4)
    t.write_json(place + "/run.json", t.make_config(place, sft=None))
    lines = {}
    for name in ("model", "other"):
        # the reference is model.path, which is "model"
        extra = ["--compare", place + "/model"] if name == "other" else []
        res = t.bdpo("evaluate", "--config", place + "/run.json", "--model", f"{place}/{name}", "--per-pair", place + "/p.jsonl", *extra)
        lines[name] = t.read_lines(place + "/p.jsonl") if res.code == 0 else []
    shown = json.loads(res.out)
    value = {"rewards/accuracies": lambda x: float(margin(x) > 0), "rewards/margins": margin, "logps/chosen": lambda x: x["logps/chosen"],
             "logps/rejected": lambda x: x["logps/rejected"]}
    near = lambda got, want: all(abs(got[k] - w) < 1e-7 for k, w in zip(("mean", "lo", "hi"), want))
    of = lambda values: (sum(values) / len(values), *bootstrap(values, 3))
    for key, f in value.items():
        x, y = [f(p) for p in lines["other"]], [f(p) for p in lines["model"]]
        check(r, near(shown["intervals"][key], of(x)), f"evaluate: interval of {key}", str(shown["intervals"][key]))
        check(r, near(shown["comparison"][key], of([a - b for a, b in zip(x, y)])), f"evaluate: comparison of {key}", str(shown["comparison"][key]))
    ratio = lambda p: len(p["chosen_ids"]) / len(p["rejected_ids"])
    seen = 0
    for c in shown["by_length_ratio"]:
        below = float("inf") if c["below"] == "Infinity" else c["below"]
        part = [p for p in lines["other"] if c["from"] <= ratio(p) < below]
        seen += len(part)
        ok = len(part) == c["examples"] and all(near(c[k], of([value[k](p) for p in part])) for k in ("rewards/accuracies", "rewards/margins"))
        check(r, ok, f"evaluate: pairs with a length ratio in [{c['from']}, {below})", str(c))
    check(r, seen == 60 and len(shown["by_length_ratio"]) >= 4, "evaluate: every pair is in one class", str(seen))


def main():
    r = Report()
    with tempfile.TemporaryDirectory() as root:
        for name, test in sorted(globals().items()):
            if name.startswith("test_"):
                test(r, root)
    return r.last()


if __name__ == "__main__":
    sys.exit(main())
