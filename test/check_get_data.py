#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""scripts/get_data.py on small parquet files in the published layouts: every row arrives, bdpo-train reads them, faults leave nothing.
Needs pyarrow; $BDPO_TRAIN is run."""
import gzip
import json
import os
import subprocess
import sys
import tempfile

try:
    import pyarrow
    import pyarrow.parquet
except ImportError:
    print("skipped: check_get_data: pyarrow is not installed")
    sys.exit(77)

import tiny_job as t
from compare_rows import Report

SCRIPT = os.path.join(t.HERE, "..", "scripts", "get_data.py")
TURN = lambda role, content: {"content": content, "role": role}


def feedback(n, first=0):
    return [{"prompt": f"q{i}", "prompt_id": f"id{i}", "chosen": [TURN("user", f"q{i}"), TURN("assistant", "yes \u00e9\u4e2d\n")],
             "rejected": [TURN("user", f"q{i}"), TURN("assistant", "no")], "messages": [TURN("user", "x")], "score_chosen": 8.5,
             "score_rejected": 7.0} for i in range(first, first + n)]


def interact(n):
    return [{"task": "Coding", "dataset": "d", "trajectory": [{"from": "user", "value": f"q{i}"}, {"from": "assistant", "value": "a"},
             {"from": "user", "value": "again"}], "chosen": "good", "rejected": "bad", "id": f"{i}", "parent_id": "p"} for i in range(n)]


def get(*args):
    p = subprocess.run([sys.executable, SCRIPT, *args], capture_output=True, text=True, check=False)
    return p.returncode, p.stdout, p.stderr


def main():
    r = Report()
    with tempfile.TemporaryDirectory() as root:
        path = lambda name: os.path.join(root, name)
        for name, rows in (("a.parquet", feedback(700)), ("b.parquet", feedback(3, 700)), ("i.parquet", interact(5))):
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path(name), row_group_size=100)
        code, out, err = get("ultrafeedback", "--out", path("f.jsonl.gz"), path("a.parquet"), path("b.parquet"))
        with gzip.open(path("f.jsonl.gz"), "rt", encoding="utf-8") as f:
            got = [json.loads(line) for line in f]
        want = [{k: v for k, v in row.items() if k != "messages"} for row in feedback(703)]
        r.check(code == 0 and "703 rows" in out and got == want, "UltraFeedback: every row of both files, in order", err)
        code, out, err = get("ultrainteract", "--out", path("i.jsonl"), path("i.parquet"))
        r.check(code == 0 and t.read_lines(path("i.jsonl")) == interact(5), "UltraInteract: every row", err)
        t.make_model(path("model"), template=True)
        for name, form in (("f.jsonl.gz", "whole conversations (UltraFeedback)"), ("i.jsonl", "trajectory (UltraInteract)")):
            t.write_json(path("run.json"), t.make_config(root, sft=None, data={"train": path(name), "eval": None, "max_length": 64}))
            res = t.bdpo("lint", "--config", path("run.json"))
            r.check(res.code == 0 and form in res.out, f"bdpo-train reads {name}", res)
        code, out, err = get("ultrainteract", "--out", path("x.jsonl"), path("a.parquet"))
        r.check(code == 1 and "no column trajectory; it has prompt" in err, "columns of another set", err)
        with open(path("broken.parquet"), "wb") as f:
            f.write(b"PAR1 not really")
        code, out, err = get("ultrafeedback", "--out", path("x.jsonl"), path("a.parquet"), path("broken.parquet"))
        r.check(code == 1 and "broken.parquet: " in err, "a file that is not parquet", err)
        code, out, err = get("ultrafeedback", "--out", path("x.jsonl"), path("absent.parquet"))
        r.check(code == 1 and "absent.parquet" in err, "a file that is not there", err)
        r.check(get("ultrafeedback", "--out", path("x.jsonl"))[0] == 2, "neither files nor --download")
        left = sorted(n for n in os.listdir(root) if n.startswith("x.jsonl"))
        r.check(not left, "a failure leaves nothing behind", left)
    return r.last()


if __name__ == "__main__":
    sys.exit(main())
