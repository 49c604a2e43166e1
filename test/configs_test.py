#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The configs and grids that are shipped, read as a run would read them: --dry-run of each on a tiny model and tiny pairs in place of theirs, and the
paper's settings that they promise. Standard library only; $BDPO_TRAIN is run."""
import glob
import json
import os
import shutil
import sys
import tempfile

import tiny_job as t
from compare_rows import Report

TOP = os.path.join(t.HERE, "..")
ALPHA = [0.01, 0.05, 0.1, 0.25, 0.5, 1, 2, 10]
LAMBDA = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.999, 0.99999]


def read(path):
    with open(path, encoding="utf-8") as f:
        return json.load(f)


def dry(config, root, held, extra):
    """--dry-run with the tiny model and data; what the config itself says stays, but for what its model's tokenizer decides."""
    sets = [f"model.path={root}/model", f"data.train={root}/train.jsonl", "data.chat_template=auto", f"output={root}/run", f"cache_dir={root}/cache", *extra]
    sets += [f"data.eval={root}/eval.jsonl"] if held else []
    res = t.bdpo("--config", config, *(x for s in sets for x in ("--set", s)), "--dry-run")
    return res, json.loads(res.out) if res.code == 0 else {}


def main():
    r = Report()
    root = tempfile.mkdtemp()
    os.chdir(TOP)
    try:
        t.make_root(root, train=20, template=True)
        # widths that 4-bit weights can have; weights are not read
        t.write_json(f"{root}/model/config.json", {**t.ARCH, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096})
        configs = sorted(glob.glob("configs/*.json"))
        r.check(len(configs) >= 29, "configs are there", str(len(configs)))
        for path in configs:
            c = read(path)
            res, got = dry(path, root, "eval" in c["data"], [])
            ok = res.code == 0 and all(got[s][k] == v for s in ("sft", "preference") for k, v in c[s].items())
            r.check(ok, f"{path}: --dry-run, with its settings", "" if ok else f"{res} {got.get('preference')}")
            paper = "paper" in str(c.get("note", ""))
            if not paper:
                continue
            p = c["preference"]
            ok = (p["beta"] == 0.1 and p["learning_rate"] == 5e-7 and p["epochs"] == (1 if "ultrainteract" in path else 3) and p["batch_size"] == 64 and
                  p["schedule"] == "linear" and p.get("lambda") == {"bdpo": 0.5, "dpop": 5}.get(p["loss"]) if "base" not in path else p["beta"] == 0.1)
            r.check(ok, f"{path}: the paper's settings", "" if ok else str(p))
            note = " ".join(c["note"])
            r.check(all(x in note for x in ("From the paper", "authors' run script", "Ours:")), f"{path}: says whose each setting is")
        for path in sorted(glob.glob("configs/grids/*.json")):
            g = read(path)
            t.write_json(f"{root}/grid.json", {**g, "output": f"{root}/sweep"})
            res = t.bdpo("sweep", f"{root}/grid.json")
            r.check(res.code == 0, f"{path}: every run's config is right", "" if res.code == 0 else str(res))
            lines = res.out.strip().split("\n")[1:]
            for name in [x.split(" ")[1] for x in lines][:2]:
                made = f"{root}/sweep/configs/{name}.json"
                extra = [f"preference.train={root}/train.jsonl"] if "preference.train" in g.get("set", {}) else []
                if read(made)["model"].get("lora", {}).get("path"):
                    extra.append("model.lora.path=null")  # what the SFT stage will have written
                res, got = dry(made, root, True, extra)
                r.check(res.code == 0 and "sft" not in got, f"{path}: {name}: --dry-run", "" if res.code == 0 else str(res))
            shutil.rmtree(f"{root}/sweep", ignore_errors=True)
            block = g["grid"][0] if isinstance(g["grid"], list) else g["grid"]
            if path.endswith("-alpha.json"):
                r.check(block["preference.alpha"] == ALPHA, f"{path}: the paper's alphas")
            if path.endswith("-lambda.json"):
                r.check(block["preference.lambda"] == LAMBDA, f"{path}: the paper's lambdas")
            if path.endswith("-dpop.json"):
                r.check(block["preference.lambda"] == [5, 50, 500], f"{path}: the paper's lambdas of dpop")
            if path.endswith("-dynamics.json"):
                s = g["set"]
                r.check((s["preference.epochs"], s["preference.learning_rate"]) == (100, 5e-5), f"{path}: 100 epochs at 5e-5")
    finally:
        shutil.rmtree(root, ignore_errors=True)
    sys.exit(r.last())


if __name__ == "__main__":
    main()
