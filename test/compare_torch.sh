#!/bin/sh
# SPDX-License-Identifier: MIT
# The comparison with PyTorch, where a Python with torch is found: $BDPO_PYTHON, an active virtual environment, .venv, /opt/venv, python3.
# usage: test/compare_torch.sh [BINARY [options of scripts/compare_torch.py]]
cd "$(dirname "$0")/.." || exit 1
binary=${1:-build/bdpo-train}
[ $# -gt 0 ] && shift
for py in "$BDPO_PYTHON" "${VIRTUAL_ENV:+$VIRTUAL_ENV/bin/python}" .venv/bin/python /opt/venv/bin/python python3; do
    if [ -n "$py" ] && "$py" -c 'import torch, transformers, tokenizers, safetensors' 2>/dev/null; then
        exec "$py" scripts/compare_torch.py --binary "$binary" "$@"
    fi
done
echo "skip compare_torch: no Python with torch, transformers, tokenizers and safetensors (set BDPO_PYTHON); test/golden_test.py runs without them"
echo "0 passed, 0 failed, 1 skipped"
