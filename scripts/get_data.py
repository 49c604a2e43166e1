#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""UltraFeedback Binarized and UltraInteract from their published parquet files to JSON Lines that bdpo-train reads.

  scripts/get_data.py ultrafeedback --out train.jsonl.gz train_prefs-00000-of-00001.parquet [more.parquet ...]
  scripts/get_data.py ultrainteract --out pairs.jsonl --download [--split train]

Files are given by path, or --download fetches those of --split with huggingface_hub, where it is installed and the hub is reached. Needs
pyarrow. Rows are written as published, the columns that training reads and the ids first to last; the output appears whole or not at all."""
import argparse
import gzip
import json
import os
import sys

# what is read, what is kept beside it, where it is published, and the split that is trained on
SETS = {
    "ultrafeedback": (("prompt", "chosen", "rejected"), ("prompt_id", "score_chosen", "score_rejected"),
                      "HuggingFaceH4/ultrafeedback_binarized", "train_prefs"),
    "ultrainteract": (("trajectory", "chosen", "rejected"), ("id", "parent_id", "task", "dataset"), "openbmb/UltraInteract_pair", "train"),
}


def download(repo, split):
    """Local paths of the parquet files of a split; exits where there are none."""
    try:
        import huggingface_hub
    except ImportError:
        sys.exit("get_data: --download needs huggingface_hub (pip install huggingface_hub); or give the files by path")
    try:
        names = [n for n in huggingface_hub.list_repo_files(repo, repo_type="dataset") if n.endswith(".parquet")]
        chosen = [n for n in names if os.path.basename(n).startswith(split)] or (names if split == "train" else [])
        if not chosen:
            sys.exit(f"get_data: {repo} has no parquet file of the split {split}; it has {', '.join(sorted(names)) or 'none'}")
        return [huggingface_hub.hf_hub_download(repo, n, repo_type="dataset") for n in sorted(chosen)]
    except Exception as e:  # each version of the client raises errors of its own
        sys.exit(f"get_data: the hub is not reached ({type(e).__name__}: {str(e).splitlines()[0]}); download the files of {repo} by hand "
                 "and give them by path")


def rows_of(path, needed, kept):
    """The rows of one parquet file as dictionaries."""
    import pyarrow
    import pyarrow.parquet
    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowException) as e:
        sys.exit(f"get_data: {path}: {e}")
    have = file.schema_arrow.names
    lacking = [c for c in needed if c not in have]
    if lacking:
        sys.exit(f"get_data: {path}: no column {', '.join(lacking)}; it has {', '.join(have)}")
    columns = [*needed, *(c for c in kept if c in have)]
    for batch in file.iter_batches(batch_size=512, columns=columns):
        yield from batch.select(columns).to_pylist()


def write(out, paths, needed, kept):
    """All rows to `out`; returns how many."""
    temporary = f"{out}.tmp-{os.getpid()}"
    n = 0
    try:
        with (gzip.open if out.endswith(".gz") else open)(temporary, "wt", encoding="utf-8", newline="\n") as f:
            for path in paths:
                for row in rows_of(path, needed, kept):
                    f.write(json.dumps(row, ensure_ascii=False) + "\n")
                    n += 1
        os.replace(temporary, out)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)
    return n


def main():
    p = argparse.ArgumentParser(description="Published preference sets (parquet) to JSON Lines.")
    p.add_argument("set", choices=sorted(SETS))
    p.add_argument("parquet", nargs="*", help="the published files, in order")
    p.add_argument("--out", required=True, help="FILE.jsonl or FILE.jsonl.gz")
    p.add_argument("--download", action="store_true", help="fetch the files of --split")
    p.add_argument("--split", help="start of the files' names (default: the training split)")
    a = p.parse_intermixed_args()
    needed, kept, repo, split = SETS[a.set]
    if bool(a.parquet) == a.download:
        p.error("give either parquet files or --download")
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        sys.exit("get_data: pyarrow is needed (pip install pyarrow)")
    paths = download(repo, a.split or split) if a.download else a.parquet
    print(f"{a.out}: {write(a.out, paths, needed, kept)} rows")
    return 0


if __name__ == "__main__":
    sys.exit(main())
