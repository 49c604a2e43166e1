#!/bin/sh
# SPDX-License-Identifier: MIT
# The demo's data, configs and flow in small: a few steps of each stage, then answers and figures from every model.
set -u
cd "$(dirname "$0")/.." || exit 1
bdpo=${BDPO_TRAIN:-build/bdpo-train}
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT
passed=0 failed=0
check() { # check NAME COMMAND...
    name=$1
    shift
    if "$@" >"$dir/out" 2>&1; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAIL $name"
        tail -n 10 "$dir/out"
    fi
}
train() { # train LOSS
    "$bdpo" --config "configs/demo-$1.json" --set "model.path=$dir/a/untrained-1" --set "data.train=$dir/a/train.jsonl" \
        --set "data.eval=$dir/few.jsonl" --set "cache_dir=$dir/cache" --set "output=$dir/$1" --set sft.max_steps=4 \
        --set preference.max_steps=4
}
answer() { # answer MODEL
    "$bdpo" generate --model "$1" --prompts "$dir/few.jsonl" --out "$dir/answers.jsonl" --max-tokens 12 &&
        [ "$(wc -l <"$dir/answers.jsonl")" -eq 20 ] &&
        python3 - "$dir/answers.jsonl" <<'EOF'
import json, sys
for line in open(sys.argv[1], encoding="utf-8"):
    row = json.loads(line)
    assert row["chosen"] and row["finish"] in ("stop", "length"), row
    assert isinstance(row["response"], str) and len(row["tokens"]) <= 12, row
EOF
}
first_step() { # first_step LOSS: the policy is the reference there
    python3 - "$dir/$1/metrics.jsonl" <<'EOF'
import json, math, sys
rows = [json.loads(line) for line in open(sys.argv[1], encoding="utf-8")]
first = next(r for r in rows if r.get("stage") == "preference" and r.get("step") == 1 and "loss" in r)
assert abs(first["loss"] - math.log(2)) < 1e-6, first
assert first["logps/chosen"] == first["ref_logps/chosen"], first
EOF
}
figures() { # figures MODEL
    "$bdpo" evaluate --config configs/demo-bdpo.json --model "$1" --set "model.path=$dir/a/untrained-1" \
        --set "data.train=$dir/a/train.jsonl" --set "data.eval=$dir/few.jsonl" --set "cache_dir=$dir/cache" \
        --set "output=$dir/bdpo" >"$dir/figures.json" &&
        python3 - "$dir/figures.json" <<'EOF'
import json, sys
row = {k.removeprefix("eval/"): v for k, v in json.load(open(sys.argv[1], encoding="utf-8")).items()}
assert all(row[k] < 0 for k in ("logps/chosen", "logps/rejected", "in_distribution")), row
EOF
}
lines_differing() { diff configs/demo-dpo.json configs/demo-bdpo.json | grep -c '^[<>]'; }

python3 scripts/demo_data.py "$dir/a" --seeds 1 && python3 scripts/demo_data.py "$dir/b" --seeds 1
check 'the same data in every run' diff -r "$dir/a" "$dir/b"
head -n 20 "$dir/a/heldout.jsonl" >"$dir/few.jsonl"
check 'the configs differ in one line' [ "$(lines_differing)" -eq 2 ]
check 'train with dpo' train dpo
check 'train with bdpo' train bdpo
check 'one SFT for both' cmp "$dir/dpo/sft/model.safetensors" "$dir/bdpo/sft/model.safetensors"
check 'dpo starts at the reference' first_step dpo
check 'bdpo starts at the reference' first_step bdpo
for model in a/untrained-1 bdpo/sft bdpo/model; do
    check "answers of $model" answer "$dir/$model"
    check "figures of $model" figures "$dir/$model"
done
echo "$passed passed, $failed failed, 0 skipped"
[ "$failed" -eq 0 ]
