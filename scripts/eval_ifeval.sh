#!/bin/sh
# SPDX-License-Identifier: MIT
# IFEval from a local file: lm-evaluation-harness's checkers, answers by `generate`. Loose, strict and total are means of inst and prompt level, as in the paper.
# usage: eval_ifeval.sh MODEL_DIR INPUT_DATA.jsonl OUT_DIR [LIMIT]
#   INPUT_DATA.jsonl: rows {"key", "prompt", "instruction_id_list", "kwargs"}. BDPO_TRAIN: the program; PYTHON: one with the package lm_eval;
#   BDPO_EVAL_TURN=1: each prompt as a user turn through the chat template; BDPO_GENERATE: further options of generate.
# Instructions whose nltk data are missing are listed and not scored. Killed and started again it goes on. Where the harness can load its own data, the same is:
#   lm_eval --model hf --model_args pretrained=MODEL_DIR --tasks ifeval
set -eu
[ $# -ge 3 ] || { sed -n '3,5p' "$0" >&2; exit 2; }
here=$(dirname "$0") model=$1 data=$2 out=$3
mkdir -p "$out"
"${PYTHON:-python3}" "$here/eval_harness.py" prompts ifeval --data "$data" --out "$out/prompts.jsonl" ${4:+--limit "$4"} ${BDPO_EVAL_TURN:+--turn}
# shellcheck disable=SC2086  # several options
"${BDPO_TRAIN:-build/bdpo-train}" generate --model "$model" --prompts "$out/prompts.jsonl" --out "$out/answers.jsonl" --max-tokens "${IFEVAL_TOKENS:-1280}" \
    --cut-prompts ${BDPO_GENERATE:-}
"${PYTHON:-python3}" "$here/eval_harness.py" score ifeval --answers "$out/answers.jsonl" --out "$out"
