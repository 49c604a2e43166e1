#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The evaluations' scores against lm-evaluation-harness itself, item by item: the harness runs its task with a model that gives the same answers. Needs the
package lm_eval; everything else is in this file. GSM8K: right answers score 1, altered ones 0."""
import json
import os
import re
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
SCRIPT = os.path.join(HERE, "..", "scripts", "eval_harness.py")
sys.path[:0] = [HERE, os.path.join(HERE, "..", "scripts")]
import tiny_job as t
from compare_rows import Report

QUESTIONS = [{"question": f"Tom has {a} pens and buys {b} more. How many has he?", "answer": f"{a} + {b} = <<{a}+{b}={a + b}>>{a + b}\n#### {a + b:,}"}
             for a, b in ((1, 2), (30, 12), (999, 5), (7, 0), (400, 600), (5, 5))]
# right, right after a thousands comma, wrong, right but not in the harness's words, nothing, a sign and a full stop
SAID = [" 1 + 2 = 3. The answer is 3.", " So 42. The answer is 42", " The answer is 1,003.", " It makes 7 pens", "", " The answer is $10.00."]
INSTRUCTIONS = [
    ("punctuation:no_comma", {}, "No comma here.", "Well, one."),
    ("length_constraints:number_words", {"relation": "at least", "num_words": 5}, "These are more than five words", "Too few"),
    ("detectable_format:json_format", {}, '{"a": 1}', "a: 1"),
    ("keywords:existence", {"keywords": ["pen"]}, "A pen.", "A book."),
    ("startend:end_checker", {"end_phrase": "The end."}, "So it goes. The end.", "The end of it"),
    ("startend:quotation", {}, '"quoted"', "not quoted"),
    ("detectable_format:title", {}, "<<A title>> text", "no title"),
    ("length_constraints:number_sentences", {"relation": "at least", "num_sentences": 2}, "One is here. Two is here.", ""),
]


def call(*args):
    p = subprocess.run([sys.executable, SCRIPT, *args], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if p.returncode:
        raise SystemExit(f"{args}: {p.stdout[-800:]}")
    return p.stdout


def score(root, task, rows):
    out = call("score", task, "--answers", t.write_lines(f"{root}/answers.jsonl", rows), "--out", f"{root}/out")
    with open(f"{root}/out/results.json", encoding="utf-8") as f:
        return t.read_lines(f"{root}/out/items.jsonl"), json.load(f), out


def by_harness(said):
    """{filter: [exact_match of each question]} of the harness's evaluation with a model that says these texts."""
    import eval_harness
    task = eval_harness.gsm8k_task(QUESTIONS)
    task.set_config("num_fewshot", 4)
    from lm_eval import evaluator
    from lm_eval.api.model import LM
    seen = []

    class Says(LM):
        def loglikelihood(self, requests):
            raise NotImplementedError

        loglikelihood_rolling = loglikelihood

        def generate_until(self, requests):
            out = []
            for q in requests:
                seen.append(q.args[0])
                out.append(next(s for d, s in zip(QUESTIONS, said) if q.args[0].endswith(f"Q: {d['question']}\nA:")))
            return out

    res = evaluator.evaluate(lm=Says(), task_dict={"gsm8k_cot": task}, log_samples=True, bootstrap_iters=0)
    got = {}
    for s in res["samples"]["gsm8k_cot"]:
        got.setdefault(s["filter"], {})[s["doc_id"]] = s["exact_match"]
    return {k: [v[i] for i in range(len(said))] for k, v in got.items()}, seen


def main():
    r = Report()
    try:
        import lm_eval  # noqa: F401
    except ImportError:
        print("skip: this Python has no lm_eval (pip install \"lm_eval[ifeval]\")\n0 passed, 0 failed, 1 skipped")
        return 0
    with tempfile.TemporaryDirectory() as root:
        data = t.write_lines(f"{root}/q.jsonl", QUESTIONS)
        for more, want in (((), 1.0), (("--corrupt",), 0.0)):
            call("gold", "gsm8k", "--data", data, "--out", f"{root}/g.jsonl", *more)
            _, res, _ = score(root, "gsm8k", t.read_lines(f"{root}/g.jsonl"))
            ok = all(v["value"] == want and v["items"] == len(QUESTIONS) for v in res["results"].values())
            r.check(ok, f"GSM8K: {'altered' if more else 'right'} answers score {want}", "" if ok else str(res))
        items, _, _ = score(root, "gsm8k", [{"doc": d, "response": s} for d, s in zip(QUESTIONS, SAID)])
        want, seen = by_harness(SAID)
        for name in ("strict-match", "flexible-extract"):
            got = [x[name] for x in items]
            r.check(got == want[name] and 0 < sum(got) < len(got), f"GSM8K, {name}: item by item what the harness says", f"{got} {want[name]}")
        call("prompts", "gsm8k", "--data", data, "--out", f"{root}/p.jsonl")
        mine = [x["prompt"] for x in t.read_lines(f"{root}/p.jsonl")]
        r.check(sorted(mine) == sorted(seen) and all(x.count("Q:") == 5 for x in mine), "GSM8K: the prompts are the harness's, with 4 shots")
        with open(os.path.join(HERE, "..", "scripts", "eval_gsm8k.sh"), encoding="utf-8") as f:
            stops = re.findall(r"--stop '([^']*)'", f.read())
        import eval_harness
        until = eval_harness.gsm8k_task(QUESTIONS).config.generation_kwargs["until"]
        r.check(stops == list(until), "GSM8K: so are the stop strings", f"{stops} {until}")

        utils, missing = eval_harness.ifeval_code()
        for side, text in (("followed", 2), ("broken", 3)):
            rows = [{"doc": {"key": i, "prompt": "p", "instruction_id_list": [x[0]], "kwargs": [x[1]]}, "response": x[text]} for i, x in enumerate(INSTRUCTIONS)]
            items, res, said = score(root, "ifeval", rows)
            whole = [x for x in items if not x["not_scored"]]
            same = all(all(it[k] == v for k, v in utils.process_results(row["doc"], [row["response"]]).items())
                       for it, row in zip(items, rows) if not it["not_scored"])
            r.check(same, f"IFEval, instructions {side}: item by item what the harness says")
            want = float(side == "followed")
            r.check(len(whole) >= 7 and res["results"]["total"]["value"] == want, f"IFEval, instructions {side}: {want}", str(res["results"]["total"]))
            named = set(missing) & {x[0] for x in INSTRUCTIONS}
            r.check(set(res["not_scored"]) == named and all(n in said for n in named), f"IFEval, {side}: what could not be scored is named", said[-300:])
    return r.last()


if __name__ == "__main__":
    sys.exit(main())
