#!/bin/sh
# SPDX-License-Identifier: MIT
# MT-bench: the answers of a model to both turns of every question, in FastChat's format, and how to have them judged.
# usage: eval_mtbench.sh MODEL_DIR QUESTION.jsonl OUT_DIR [NAME]      (NAME of the model for the judge: the directory's)
#   QUESTION.jsonl: FastChat's fastchat/llm_judge/data/mt_bench/question.jsonl. BDPO_TRAIN: the program; PYTHON: a Python 3;
#   MTBENCH_TOKENS: new tokens of a turn (1024); BDPO_GENERATE: further options of generate (FastChat draws some categories with --temperature 0.7).
set -eu
[ $# -ge 3 ] || { sed -n '3,5p' "$0" >&2; exit 2; }
here=$(dirname "$0") model=$1 data=$2 out=$3
name=${4:-$(basename "$model")}
mkdir -p "$out/model_answer"
# shellcheck disable=SC2086  # several options
"${BDPO_TRAIN:-build/bdpo-train}" generate --model "$model" --prompts "$data" --out "$out/answers.jsonl" --max-tokens "${MTBENCH_TOKENS:-1024}" --cut-prompts \
    ${BDPO_GENERATE:-}
"${PYTHON:-python3}" "$here/eval_harness.py" fastchat --answers "$out/answers.jsonl" --name "$name" --out "$out/model_answer/$name.jsonl"
cat <<END
wrote $out/model_answer/$name.jsonl
To have it judged (needs FastChat and a key of the judge's service, which is paid for): copy it to fastchat/llm_judge/data/mt_bench/model_answer/ and, in fastchat/llm_judge,
  python3 gen_judgment.py --model-list $name --judge-model gpt-4 && python3 show_result.py --model-list $name
and copy data/mt_bench/model_judgment/gpt-4_single.jsonl to $out/, where scripts/table.py finds it.
END
