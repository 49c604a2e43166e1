#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""`bdpo-train lint`: each problem is found, counted and shown with its place, on data made for it; exit codes. Standard library only."""
import json
import os
import sys
import tempfile

import tiny_job as t
import compare_rows



class Report(compare_rows.Report):
    def check(self, ok, what, detail=""):
        super().check(ok, what, "" if ok else detail)


CONVERSATION = [{"role": "user", "content": "abc"}]


def lint(root, rows, held=None, **data):
    """(result, report) over these rows; a row that is a string is a line as it is."""
    with open(os.path.join(root, "train.jsonl"), "w", encoding="utf-8") as f:
        f.writelines((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    t.write_lines(os.path.join(root, "eval.jsonl"), held or [{"prompt": "only here", "chosen": "a", "rejected": "b"}])
    t.write_json(os.path.join(root, "run.json"), t.make_config(root, sft=None, data=data))
    out = os.path.join(root, "report.json")
    if os.path.exists(out):
        os.remove(out)
    res = t.bdpo("lint", "--config", os.path.join(root, "run.json"), "--out", out)
    report = None
    if os.path.exists(out):
        with open(out, encoding="utf-8") as f:
            report = json.load(f)
    return res, report


def findings(report, i=0):
    return {f["id"]: f for f in report["sets"][i]["findings"]}


def pair(prompt, chosen, rejected):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def used(r, root):
    """What an epoch uses is what a run would: its share of the rows, each file as often as its weight says. Findings are over all rows."""
    rows = [pair(f"p{i:02d}", "a" * (1 + i % 7), "b" * (2 + i % 5)) for i in range(20)]
    t.write_lines(os.path.join(root, "other.jsonl"), rows[:6])
    train = os.path.join(root, "train.jsonl")
    for data, n, words in [({"subsample": 0.5}, 10, "data.subsample"),
                           ({"train": [{"path": train, "weight": 2}]}, 40, "weights"),
                           ({"train": [train, {"path": os.path.join(root, "other.jsonl"), "weight": 0.5}], "subsample": 0.5}, None, "data.subsample, weights")]:
        res, report = lint(root, rows, **data)
        epoch = report["sets"][0]["epoch"] if report else {}
        said = t.bdpo("--config", os.path.join(root, "run.json"), "--dry-run").err
        r.check(res.code == 0 and n in (None, epoch.get("rows")) and f"rows are used in an epoch ({words})" in res.out and
                f" over {epoch['rows']} pairs; loss" in said, f"{words}: as a run uses them", f"{res} {epoch} {said}")
        r.check(report["sets"][0]["kept"] == (26 if "other" in str(data) else 20), f"{words}: all rows are looked at", report["sets"][0])


def clean(r, root):
    res, report = lint(root, [pair("ab", "cde", "f"), pair("cd", "e", "fgh"), pair("ef", "g", "hij")])
    s = report["sets"][0]
    r.check(res.code == 0 and report["warnings"] == report["errors"] == 0 and not findings(report), "clean data: no finding, exit 0", res)
    r.check("lint: 0 warnings, no error" in res.out, "the last line says so", res.out[-80:])
    r.check(s["lengths"]["chosen"] == {"min": 2, "mean": 8 / 3, "median": 2, "p95": 4, "max": 4}, "lengths with the end token", s["lengths"])
    r.check(s["length_bias"]["chosen_longer"] == 1 / 3 and s["length_bias"]["rejected_longer"] == 2 / 3, "length bias", s["length_bias"])
    r.check(sum(s["histogram"]["counts"]) == 3 and max(len(x) for x in res.out.split("\n") if "#" in x) < 80, "the histogram counts every row and fits")
    tokens = sum(2 + len(p["chosen"]) + len(p["rejected"]) for p in (pair("ab", "cde", "f"), pair("cd", "e", "fgh"), pair("ef", "g", "hij")))
    epoch = s["epoch"]
    r.check(epoch["tokens"] == tokens and epoch["fill"] == tokens / (epoch["micro_batches"] * epoch["micro_batch_tokens"]),
            "tokens of an epoch and fill", epoch)
    r.check(s["files"][0]["forms"] == {"prompt, chosen, rejected as strings": 3}, "the form of the file", s["files"])


def repeated(r, root):
    a, b = pair("ab", "c", "d"), pair("ef", "g", "h")
    res, report = lint(root, [a, b, a, pair("ef", "h", "g")], [pair("ab", "x", "y"), pair("zz", "x", "y")])
    f = findings(report)
    r.check(f["duplicates"]["count"] == 1 and "train.jsonl:3: as " in f["duplicates"]["examples"][0] and
            f["duplicates"]["examples"][0].endswith("train.jsonl:1"), "a repeated row", f)
    r.check(f["swapped"]["count"] == 1 and "train.jsonl:4: as " in f["swapped"]["examples"][0], "a swapped pair", f)
    f = findings(report, 1)
    r.check(f["overlap"]["count"] == 1 and "eval.jsonl:1: the prompt of" in f["overlap"]["examples"][0], "a prompt in both sets", f)
    r.check(res.code == 0 and report["warnings"] == 3, "three warnings, exit 0", res)


def cut_and_special(r, root):
    res, report = lint(root, [pair("abcdefghijkl", "abcdefghijkl", "b"), pair("a", "b", "c<|endoftext|>"),
                              {"prompt": CONVERSATION, "chosen": "x<|im_end|>", "rejected": "y"}], max_length=12)
    f = findings(report)
    r.check(f["prompts_cut"]["count"] == 2 and "train.jsonl:1: 12 tokens, 6 kept" in f["prompts_cut"]["examples"][0], "a prompt is cut", f)
    r.check("train.jsonl:1: chosen of 13 tokens, 6 kept" in f["responses_cut"]["examples"][0], "a response is cut", f)
    r.check(f["special_tokens"]["count"] == 2 and f["special_tokens"]["examples"][0].endswith("train.jsonl:2: <|endoftext|>"),
            "special tokens inside text", f)
    r.check(f["eos_doubled"]["count"] == 2, "a text that ends with the end token", f)
    r.check(res.code == 0, "warnings only: exit 0", res)


def joint(r, root):
    """A tokenizer with the merge a b: prompt "...a" and response "b..." are other tokens together than apart."""
    path = os.path.join(root, "model", "tokenizer.json")
    with open(path, encoding="utf-8") as f:
        before = f.read()
    spec = json.loads(before)
    spec["model"]["vocab"]["ab"] = len(spec["model"]["vocab"])
    for token in spec["added_tokens"]:
        token["id"] += 1
    spec["model"]["merges"] = ["a b"]
    t.write_json(path, spec)
    config = os.path.join(root, "model", "config.json")
    t.write_json(config, {**t.ARCH, "vocab_size": t.ARCH["vocab_size"] + 1})
    _, report = lint(root, [pair("xa", "bc", "d"), pair("xa", "c", "ab")])
    f = findings(report)
    r.check(list(f) == ["joint_encoding"] and f["joint_encoding"]["count"] == 1 and
            f["joint_encoding"]["examples"][0].endswith("train.jsonl:1"), "the joint encoding differs", f)
    r.check(report["warnings"] == 0, "which is no warning", report["warnings"])
    with open(path, "w", encoding="utf-8") as f:
        f.write(before)
    t.write_json(config, t.ARCH)


def refused(r, root):
    res, report = lint(root, [pair("ab", "c", "d"), "{broken", pair("ef", 5, "h"), pair("x", "", "y"), pair("ij", "k", "l")])
    r.check(res.code == 2 and "train.jsonl:2:2: error: " in res.err and "train.jsonl:3:" in res.err, "malformed rows: all listed, exit 2", res)
    s = report["sets"][0]
    r.check(s["malformed"] == 2 and s["kept"] == 2 and report["errors"] == 1 and s["dropped"]["empty"] == 1, "the rest is reported", s)
    r.check(s["dropped_rows"][0]["line"] == 4 and s["dropped_rows"][0]["why"] == "chosen is empty", "dropped rows by line", s["dropped_rows"])
    res, report = lint(root, [pair("ab", "c", "d"), pair("ab", "c", "c")], max_dropped=0.4)
    r.check(res.code == 2 and "more than data.max_dropped (0.4) allows" in res.err and report["errors"] == 1, "too many dropped rows: exit 2", res)
    res, report = lint(root, ["{broken"])
    r.check(res.code == 2 and "nothing of it can be used" in res.out, "nothing left: exit 2", res)
    r.check(not os.path.exists(os.path.join(root, "run")), "lint leaves the output directory alone")
    res = t.bdpo("lint")
    r.check(res.code == 2 and "--config run.json is needed" in res.err, "without a config", res)


def weights(r, root):
    """data.train with weights: the resolved config holds them, a run says how many rows an epoch uses, wrong ones are refused."""
    lint(root, [pair(a + b, a, b) for a in "abcd" for b in "efgh"])
    other = t.write_lines(os.path.join(root, "other.jsonl"), [pair(a + b, b, a) for a in "abcd" for b in "efghij"])
    train = [os.path.join(root, "train.jsonl"), {"path": other, "weight": 0.5}]
    run = os.path.join(root, "run.json")
    t.write_json(run, t.make_config(root, sft=None, data={"train": train}))
    res = t.bdpo("--config", run, "--dry-run")
    r.check(res.code == 0 and json.loads(res.out)["data"]["train"] == train, "weights are in the resolved config", res)
    r.check("40 rows, 40 kept, 0 prompts and 0 responses cut, 28 used in an epoch (weights)" in res.err, "a run says what they do", res)
    for bad, part in (({"path": other, "weight": 0}, "the weight is not a number in (0, 1000]"), ({"path": other, "weight": "2"}, "the weight"),
                      ({"weight": 1}, "expected a path or {"), ({"path": other, "wight": 1}, "expected a path or {"),
                      ({"path": 5, "weight": 1}, "expected a path, found 5")):
        t.write_json(run, t.make_config(root, data={"train": [train[0], bad]}))
        res = t.bdpo("--config", run, "--dry-run")
        r.check(res.code == 2 and "data.train.1: " + part in res.err, f"refused: {bad}", res)


def main():
    r = Report()
    with tempfile.TemporaryDirectory() as root:
        t.make_model(os.path.join(root, "model"), template=True)
        for part in (clean, repeated, cut_and_special, joint, refused, weights, used):
            part(r, root)
    return r.last()


if __name__ == "__main__":
    sys.exit(main())
