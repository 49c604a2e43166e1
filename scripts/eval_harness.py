#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Prompts and scores of evaluations whose data are local files. Prompts, stop strings, filters and checkers are lm-evaluation-harness's own, from its package
(pip install "lm_eval[ifeval]"); answers come from `bdpo-train generate`. The scripts eval_*.sh call it.

usage: eval_harness.py prompts gsm8k|ifeval --data FILE.jsonl --out PROMPTS.jsonl [--limit N] [--fewshot 4] [--turn]
       eval_harness.py gold gsm8k --data FILE.jsonl --out ANSWERS.jsonl [--limit N] [--corrupt]      right answers, or the same with another number
       eval_harness.py score gsm8k|ifeval --answers ANSWERS.jsonl --out DIR [--fewshot 4]            DIR/items.jsonl, DIR/results.json
       eval_harness.py fastchat --answers ANSWERS.jsonl --out FILE.jsonl --name NAME                 MT-bench answers for FastChat's judge"""
import argparse
import hashlib
import json
import math
import os
import sys
import tempfile

GSM8K, IFEVAL = "gsm8k_cot", "ifeval"
IFEVAL_KEYS = ("inst_level_strict_acc", "inst_level_loose_acc", "prompt_level_strict_acc", "prompt_level_loose_acc")


def read(path, limit=None):
    with open(path, encoding="utf-8") as f:
        rows = [json.loads(line) for line in f if line.strip()]
    return rows[:limit] if limit else rows


def write(path, rows):
    with open(path, "w", encoding="utf-8") as f:
        f.writelines(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)


def wilson(k, n, z=1.96):
    if n == 0:
        return [None, None]
    p, d = k / n, 1 + z * z / n
    mid, half = (p + z * z / (2 * n)) / d, z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / d
    return [round(max(0.0, mid - half), 4), round(min(1.0, mid + half), 4)]


def harness():
    """The package, kept from the network."""
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    os.environ.setdefault("HF_HOME", tempfile.mkdtemp())
    try:
        import lm_eval
    except ImportError:
        sys.exit('error: the package lm_eval is missing: pip install "lm_eval[ifeval]"')
    return lm_eval


def gsm8k_task(docs):
    """The harness's task gsm8k_cot on these documents."""
    lm_eval = harness()
    import datasets
    import yaml
    from lm_eval.api.task import ConfigurableTask
    with open(os.path.join(os.path.dirname(lm_eval.__file__), "tasks", "gsm8k", "gsm8k-cot.yaml"), encoding="utf-8") as f:
        config = yaml.safe_load(f)
    config.pop("tag", None)
    table = datasets.Dataset.from_list([{"question": d["question"], "answer": d["answer"]} for d in docs])
    return ConfigurableTask(config={**config, "dataset_name": None, "custom_dataset": lambda **_: {"test": table}})


def ifeval_code():
    """(the harness's module, instructions that its nltk data are missing for: id -> what is missing)"""
    harness()
    import nltk
    nltk.download = lambda *a, **k: False
    os.environ["LOCAL_RANK"] = "1"  # or the package says that it has downloaded them
    import langdetect
    langdetect.DetectorFactory.seed = 0  # else its answers for short texts change from run to run
    from lm_eval.tasks.ifeval import instructions_util, utils
    missing = {}
    for name, call in (("length_constraints:number_sentences", lambda: instructions_util.count_sentences("One. Two.")),
                       ("change_case:capital_word_frequency", lambda: nltk.word_tokenize("One two."))):
        try:
            call()
        except LookupError:
            missing[name] = "nltk's punkt_tab (python3 -m nltk.downloader punkt_tab)"
    return utils, missing


def prompts(a):
    docs = read(a.data, a.limit)
    if a.task == "gsm8k":
        task = gsm8k_task(docs)
        texts = [task.fewshot_context(d, a.fewshot) for d in docs]
    else:
        texts = [d["prompt"] for d in docs]
    write(a.out, [{"prompt": [{"role": "user", "content": x}] if a.turn else x, "doc": d} for x, d in zip(texts, docs)])


def gold(a):
    def answer(d):
        number = d["answer"].split("####")[-1].strip()
        if a.corrupt:
            number = str(int(number.replace(",", "")) + 1)
        return f" So much for the reasoning. The answer is {number}."
    write(a.out, [{"doc": d, "response": answer(d)} for d in read(a.data, a.limit)])


def score_gsm8k(rows, fewshot):
    from lm_eval.api.instance import Instance
    docs = [r["doc"] for r in rows]
    task = gsm8k_task(docs)
    task._instances = [Instance(request_type="generate_until", doc=d, arguments=(task.fewshot_context(d, fewshot), {}), idx=0, metadata=(GSM8K, i, 1),
                                resps=[r["response"]]) for i, (d, r) in enumerate(zip(docs, rows))]
    task.apply_filters()
    items = []
    for i, (d, inst) in enumerate(zip(docs, task._instances)):
        items.append({"item": i, **{name: float(task.process_results(d, [got])["exact_match"]) for name, got in inst.filtered_resps.items()}})
    out = {}
    for name in ("strict-match", "flexible-extract"):
        k = sum(x[name] for x in items)
        out[name] = {"value": k / len(items), "right": int(k), "items": len(items), "interval": wilson(k, len(items))}
    return items, out, {}


def score_ifeval(rows, _):
    utils, missing = ifeval_code()
    items, unscored = [], {}
    for r in rows:
        d = dict(r["doc"])
        keep = [i for i, name in enumerate(d["instruction_id_list"]) if name not in missing]
        left = [d["instruction_id_list"][i] for i in range(len(d["instruction_id_list"])) if i not in keep]
        for name in left:
            unscored[name] = unscored.get(name, 0) + 1
        scored = {**d, "instruction_id_list": [d["instruction_id_list"][i] for i in keep], "kwargs": [d["kwargs"][i] for i in keep]}
        got = utils.process_results(scored, [r["response"]]) if keep else {k: [] for k in IFEVAL_KEYS}
        items.append({"item": d["key"], **got, "not_scored": left})
    out = {}
    for key in IFEVAL_KEYS:
        if key.startswith("inst"):
            flags = [x for it in items for x in it[key]]
        else:  # a prompt is followed only where all of it was looked at
            flags = [it[key] for it in items if not it["not_scored"]]
        out[key] = {"value": sum(flags) / max(1, len(flags)), "right": sum(flags), "items": len(flags), "interval": wilson(sum(flags), len(flags))}
    mean = lambda keys: sum(out[k]["value"] for k in keys) / len(keys)
    out["loose"] = {"value": mean([k for k in IFEVAL_KEYS if "loose" in k])}
    out["strict"] = {"value": mean([k for k in IFEVAL_KEYS if "strict" in k])}
    out["total"] = {"value": mean(IFEVAL_KEYS)}
    return items, out, {name: {"instructions": n, "missing": missing[name]} for name, n in unscored.items()}


def score(a):
    rows = read(a.answers)
    items, out, unscored = (score_gsm8k if a.task == "gsm8k" else score_ifeval)(rows, a.fewshot)
    os.makedirs(a.out, exist_ok=True)
    write(os.path.join(a.out, "items.jsonl"), items)
    with open(os.path.join(a.out, "results.json"), "w", encoding="utf-8") as f:
        json.dump({"task": a.task, "results": out, "not_scored": unscored}, f, indent=1)
        f.write("\n")
    for name, v in out.items():
        n = f", {v['right']} of {v['items']}, 95 % interval {v['interval'][0]} to {v['interval'][1]}" if "items" in v else ""
        print(f"{a.task} {name}: {v['value']:.4f}{n}")
    for name, v in unscored.items():
        print(f"not scored: {name}, {v['instructions']} times: {v['missing']} is missing")


def fastchat(a):
    rows = []
    for r in read(a.answers):
        text = json.dumps([r["question_id"], a.name, r["response"]])
        rows.append({"question_id": r["question_id"], "answer_id": hashlib.sha256(text.encode()).hexdigest()[:22], "model_id": a.name,
                     "choices": [{"index": 0, "turns": r["response"]}], "tstamp": 0.0})
    write(a.out, rows)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = p.add_subparsers(dest="command", required=True)
    for name, run in (("prompts", prompts), ("gold", gold), ("score", score), ("fastchat", fastchat)):
        s = sub.add_parser(name)
        s.set_defaults(run=run)
        s.add_argument("--out", required=True)
        if name != "fastchat":
            s.add_argument("task", choices=["gsm8k", "ifeval"])
            s.add_argument("--fewshot", type=int, default=4)
        if name in ("prompts", "gold"):
            s.add_argument("--data", required=True)
            s.add_argument("--limit", type=int)
        else:
            s.add_argument("--answers", required=True)
        if name == "prompts":
            s.add_argument("--turn", action="store_true", help="each prompt as one user turn through the chat template")
        if name == "gold":
            s.add_argument("--corrupt", action="store_true")
        if name == "fastchat":
            s.add_argument("--name", required=True)
    a = p.parse_args()
    a.run(a)


if __name__ == "__main__":
    main()
