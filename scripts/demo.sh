#!/bin/sh
# SPDX-License-Identifier: MIT
# DPO against BDPO on a task whose answers are right or wrong: sort the letters of a word. For each seed: SFT and then the
# preference loss, once with each of configs/demo-dpo.json and configs/demo-bdpo.json; held-out words are answered before
# training, after SFT and at the end. Everything is written under build/demo.
# usage: [BDPO_TRAIN=BINARY] demo.sh [SEEDS]      (default: 3)
set -eu
cd "$(dirname "$0")/.."
bdpo=${BDPO_TRAIN:-build/bdpo-train}
seeds=$(seq 1 "${1:-3}")
dir=build/demo
log=$dir/log
start=$(date +%s)

quietly() { # run a command into the log; show the log's end where it fails
    if ! "$@" >>"$log" 2>&1; then
        echo "failed: $*" >&2
        tail -n 20 "$log" >&2
        exit 1
    fi
}
answer() { # answer MODEL NAME: held-out prompts answered greedily, and the log-probabilities of the held-out pairs
    quietly "$bdpo" generate --model "$1" --prompts $dir/heldout.jsonl --out "$dir/answers/$2.jsonl" --max-tokens 12
    if ! "$bdpo" evaluate --config configs/demo-dpo.json --model "$1" --set "output=$dir/dpo-$seed" \
        --set "model.path=$dir/untrained-$seed" >"$dir/answers/$2.json" 2>>"$log"; then
        echo "failed: evaluate --model $1" >&2
        tail -n 20 "$log" >&2
        exit 1
    fi
}

rm -rf $dir
mkdir -p $dir/answers
quietly python3 scripts/demo_data.py $dir --seeds "${1:-3}"
echo "Task: sort the letters of a word. $(wc -l <$dir/train.jsonl) training pairs, $(wc -l <$dir/heldout.jsonl) held-out words, such as"
head -n 2 $dir/heldout.jsonl | sed 's/^/  /'
for seed in $seeds; do
    began=$(date +%s)
    answer "$dir/untrained-$seed" "before-$seed"
    for loss in dpo bdpo; do
        quietly "$bdpo" --config "configs/demo-$loss.json" --set "seed=$seed" --set "output=$dir/$loss-$seed" \
            --set "model.path=$dir/untrained-$seed"
        answer "$dir/$loss-$seed/model" "$loss-$seed"
    done
    answer "$dir/dpo-$seed/sft" "sft-$seed"
    cmp -s "$dir/dpo-$seed/sft/model.safetensors" "$dir/bdpo-$seed/sft/model.safetensors" ||
        echo "warning: seed $seed: the two runs' models after SFT differ, although their configs do not"
    python3 scripts/demo_table.py $dir --seed "$seed"
    echo "  ($(($(date +%s) - began)) s)"
done
python3 scripts/demo_table.py $dir --seeds "${1:-3}"
echo
echo "$(($(date +%s) - start)) s. The models, metrics and answers are in $dir; the configs are configs/demo-dpo.json and configs/demo-bdpo.json."
