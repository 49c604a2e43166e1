#!/bin/sh
# SPDX-License-Identifier: MIT
# GSM8K, 4-shot chain of thought, from a local file: lm-evaluation-harness's prompts, filters and metric, answers by `generate`.
# usage: eval_gsm8k.sh MODEL_DIR TEST.jsonl OUT_DIR [LIMIT]
#   TEST.jsonl: rows {"question", "answer"} (openai/grade-school-math, test.jsonl). BDPO_TRAIN: the program; PYTHON: one with the package lm_eval;
#   BDPO_EVAL_TURN=1: each prompt as a user turn through the chat template; BDPO_GENERATE: further options of generate.
# Killed and started again it goes on. Where the harness can load its own data, the same is: lm_eval --model hf --model_args pretrained=MODEL_DIR
#   --tasks gsm8k_cot --num_fewshot 4
set -eu
[ $# -ge 3 ] || { sed -n '3,5p' "$0" >&2; exit 2; }
here=$(dirname "$0") model=$1 data=$2 out=$3
mkdir -p "$out"
"${PYTHON:-python3}" "$here/eval_harness.py" prompts gsm8k --data "$data" --out "$out/prompts.jsonl" ${4:+--limit "$4"} ${BDPO_EVAL_TURN:+--turn}
# shellcheck disable=SC2086  # several options
"${BDPO_TRAIN:-build/bdpo-train}" generate --model "$model" --prompts "$out/prompts.jsonl" --out "$out/answers.jsonl" --max-tokens 256 --cut-prompts \
    --stop 'Q:' --stop '</s>' --stop '<|im_end|>' ${BDPO_GENERATE:-}
"${PYTHON:-python3}" "$here/eval_harness.py" score gsm8k --answers "$out/answers.jsonl" --out "$out"
