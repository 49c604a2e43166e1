#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Encoding side by side: bdpo-train's row of `make bench` and `encode_batch` of the tokenizers package, the same texts and threads.

  scripts/bench_tokenizer.py MODEL_DIR FILE.jsonl [FILE ...] [--threads 2] [--bench build/release/test/bench] [--repeat 1]

Texts are all strings of the files' rows. Best of seven passes each; the ids' number must agree. Needs tokenizers."""
import argparse
import gzip
import json
import os
import re
import subprocess
import sys
import tempfile
import time


def strings(value):
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for v in value.values() if isinstance(value, dict) else value:
            yield from strings(v)


def main():
    p = argparse.ArgumentParser(description="Speed of encoding, side by side with the tokenizers package.")
    p.add_argument("model")
    p.add_argument("files", nargs="+")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--bench", default="build/release/test/bench")
    p.add_argument("--repeat", type=int, default=1, help="how often the files' texts are taken")
    a = p.parse_args()
    os.environ["RAYON_NUM_THREADS"] = str(a.threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    from tokenizers import Tokenizer, __version__
    texts = []
    for name in a.files:
        with (gzip.open if name.endswith(".gz") else open)(name, "rt", encoding="utf-8") as f:
            for line in f:
                texts += strings(json.loads(line))
    texts *= a.repeat
    size = sum(len(t.encode()) for t in texts)
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl", encoding="utf-8") as f:
        f.writelines(json.dumps(t) + "\n" for t in texts)
        f.flush()
        out = subprocess.run([a.bench, "tokenize", str(a.threads), a.model, f.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"([\d.]+) ms.*?(\d+) ids, ", out)
    ours, ids = float(found.group(1)) / 1e3, int(found.group(2))
    tok = Tokenizer.from_file(os.path.join(a.model, "tokenizer.json"))
    print(f"{len(texts)} texts, {size / 1e6:.2f} MB, {ids} ids, {a.threads} threads")
    print(f"bdpo-train                    {ours * 1e3:9.1f} ms {size / ours / 1e6:8.1f} MB/s")
    for name in ("encode_batch", "encode_batch_fast"):
        best = 1e30
        for _ in range(7):
            start = time.perf_counter()
            got = getattr(tok, name)(texts, add_special_tokens=False)
            best = min(best, time.perf_counter() - start)
        same = sum(len(e.ids) for e in got) == ids
        print(f"tokenizers {__version__} {name:18} {best * 1e3:9.1f} ms {size / best / 1e6:8.1f} MB/s   {best / ours:5.1f} times as long"
              + ("" if same else "   BUT OTHER IDS"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
