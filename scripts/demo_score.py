#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Score of a run of the demo's task: the share of held-out words (the run's data.eval) that its model sorts right, answered greedily.

usage: demo_score.py RUN_DIR      standard library only; $BDPO_TRAIN or build/bdpo-train is run"""
import json
import os
import subprocess
import sys


def main():
    run = sys.argv[1]
    with open(f"{run}/config.json", encoding="utf-8") as f:
        held = json.load(f)["data"]["eval"]
    binary = os.environ.get("BDPO_TRAIN", os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "build", "bdpo-train"))
    done = subprocess.run([binary, "generate", "--model", f"{run}/model", "--prompts", held, "--max-tokens", "12", "--batch", "64"],
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True)
    rows = [json.loads(line) for line in done.stdout.decode("utf-8").split("\n") if line]
    print(sum(r["finish"] == "stop" and r["response"] == r["chosen"] for r in rows) / len(rows))


if __name__ == "__main__":
    main()
