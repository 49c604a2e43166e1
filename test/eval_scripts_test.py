#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The evaluation scripts where they need nothing but the program: MT-bench's answers in FastChat's format, the table of results. Standard library only;
$BDPO_TRAIN is run. (test/check_eval.py has the scores.)"""
import json
import os
import subprocess
import sys
import tempfile

import tiny_job as t
from compare_rows import Report

SCRIPTS = os.path.join(t.HERE, "..", "scripts")


def call(*args, **env):
    p = subprocess.run(args, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
                       env={**os.environ, "BDPO_TRAIN": t.BINARY, "PYTHON": sys.executable, **env})
    return p.returncode, p.stdout


def test_mtbench(r, root):
    t.make_model(f"{root}/model", template=True)
    questions = t.write_lines(f"{root}/q.jsonl", [{"question_id": 80 + i, "category": "x", "turns": ["ab", "c"]} for i in range(3)])
    script = os.path.join(SCRIPTS, "eval_mtbench.sh")
    code, said = call("sh", script, f"{root}/model", questions, f"{root}/mt", "tiny", MTBENCH_TOKENS="5")
    r.check(code == 0 and "gen_judgment.py --model-list tiny" in said, "eval_mtbench.sh says how to judge", said[-400:] if code else "")
    if code:
        return
    rows, answers = t.read_lines(f"{root}/mt/model_answer/tiny.jsonl"), t.read_lines(f"{root}/mt/answers.jsonl")
    ok = all(set(x) == {"question_id", "answer_id", "model_id", "choices", "tstamp"} and x["model_id"] == "tiny" and x["question_id"] == y["question_id"] and
             x["choices"] == [{"index": 0, "turns": y["response"]}] and len(y["response"]) == 2 for x, y in zip(rows, answers))
    r.check(ok and len(rows) == 3 and len({x["answer_id"] for x in rows}) == 3, "answers in FastChat's format", str(rows[0]))
    before = t.read_bytes(f"{root}/mt/model_answer/tiny.jsonl")
    call("sh", script, f"{root}/model", questions, f"{root}/mt", "tiny", MTBENCH_TOKENS="5")
    r.check(t.read_bytes(f"{root}/mt/model_answer/tiny.jsonl") == before, "again: the same file")
    r.check(call("sh", script, f"{root}/model")[0] == 2, "wrong usage is 2")


def test_table(r, root):
    os.makedirs(f"{root}/run/gsm")
    os.makedirs(f"{root}/run/if")
    value = lambda k, n: {"value": k / n, "right": k, "items": n, "interval": [0.1, 0.3]}
    t.write_json(f"{root}/run/gsm/results.json", {"task": "gsm8k", "results": {"strict-match": value(2, 10)}, "not_scored": {}})
    t.write_json(f"{root}/run/if/results.json", {"task": "ifeval", "results": {"total": {"value": 0.25}}, "not_scored": {"a:b": {"instructions": 4, "missing": "x"}}})
    with open(f"{root}/paper.csv", "w", encoding="utf-8") as f:
        f.write("name,metric,value,source\nbdpo,gsm8k,12.5,Table 1\n")
    table = os.path.join(SCRIPTS, "table.py")
    code, said = call(sys.executable, table, f"bdpo={root}/run", "--paper", f"{root}/paper.csv")
    r.check(code == 0 and "| bdpo | gsm8k | 20.0 (10.0 to 30.0), 10 items | 12.5 | Table 1 |" in said and "| bdpo | ifeval-total | 25.0 | | |" in said and
            "not scored: a:b, 4 times" in said, "a table with the paper's figures beside", said)
    code, said = call(sys.executable, table, f"bdpo={root}/run")
    r.check(code == 0 and "10 items | 29.95 | Qwen2.5-0.5B, 4-shot |" in said and "| 25.0 | 27.15 |" in said, "the authors' figures, where no others are named", said)
    code, said = call(sys.executable, table, f"bdpo={root}/run", "--paper", "none")
    r.check(code == 0 and "| bdpo | gsm8k | 20.0 (10.0 to 30.0), 10 items |\n" in said, "and without them", said)
    with open(f"{root}/paper.csv", "a", encoding="utf-8") as f:
        f.write("bdpo,gsm9k,1,x\n")
    code, said = call(sys.executable, table, f"bdpo={root}/run", "--paper", f"{root}/paper.csv")
    r.check(code == 1 and "paper.csv:3: error: " in said, "a metric that does not exist", said)
    code, said = call(sys.executable, table, f"bdpo={root}")
    r.check(code == 0, "folders below are looked at", said)
    os.makedirs(f"{root}/judged")
    judgment = lambda model, turn, score: json.dumps({"question_id": 81, "model": model, "judge": ["gpt-4", "single-v1"], "judgment": "x", "score": score, "turn": turn}) + "\n"
    judged = f"{root}/judged/gpt-4_single.jsonl"
    with open(judged, "w", encoding="utf-8") as f:
        f.writelines([judgment("bdpo", 1, 4), judgment("other", 1, 10), judgment("bdpo", 2, 7), judgment("bdpo", 1, 5), judgment("bdpo", 2, -1)])
    code, said = call(sys.executable, table, f"bdpo={root}/judged")
    r.check(code == 0 and "| bdpo | mtbench, points of 10 | 5.33 (3.60 to 7.06), 3 items | 4.04 | Qwen2.5-0.5B |" in said and
            "| mtbench-1, points of 10 | 4.50 (3.52 to 5.48), 2 items | | |" in said and "| mtbench-2, points of 10 | 7.00 | | |" in said, "MT-bench as its judge scored it", said)
    code, said = call(sys.executable, table, f"dpo={root}/judged")
    r.check(code == 1 and "no judgment of dpo: it has bdpo, other" in said, "judgments of others", said)
    with open(judged, "a", encoding="utf-8") as f:
        f.write("{}\n")
    code, said = call(sys.executable, table, f"bdpo={root}/judged")
    r.check(code == 1 and "gpt-4_single.jsonl:6: error: " in said, "what is no judgment", said)
    code, said = call(sys.executable, table, f"bdpo={root}/model")
    r.check(code == 1 and "no results.json" in said, "no results", said)


def main():
    r = Report()
    with tempfile.TemporaryDirectory() as root:
        test_mtbench(r, root)
        test_table(r, root)
    return r.last()


if __name__ == "__main__":
    sys.exit(main())
