#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A run's metrics for TensorBoard.

usage: to_tensorboard.py RUN_DIR [--out DIR] [--follow]

Writes every number of RUN_DIR/metrics.jsonl and timing.jsonl as a scalar under STAGE/KEY to RUN_DIR/tensorboard. --follow goes on as the run does, until its
status.json says that it is over. Where a resume has cut metrics.jsonl back, events are written anew. Needs the tensorboard package."""
import argparse
import json
import os
import shutil
import sys
import time

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

FILES = ("metrics.jsonl", "timing.jsonl")


def scalars(row):
    """(tag, value) of a row; "NaN" and "Infinity" are strings in the file and numbers here."""
    for key, value in row.items():
        if key in ("stage", "step"):
            continue
        try:
            yield f"{row['stage']}/{key}", float(value)
        except (TypeError, ValueError):
            continue


class Follower:
    def __init__(self, run, out):
        self.run, self.out = run, out
        self.restart()

    def restart(self):
        shutil.rmtree(self.out, ignore_errors=True)
        self.writer, self.at, self.rows = EventFileWriter(self.out), dict.fromkeys(FILES, 0), 0

    def read(self):
        if any(os.path.exists(p) and os.path.getsize(p) < self.at[n] for n, p in self.paths()):
            self.writer.close()
            self.restart()
        for name, path in self.paths():
            if not os.path.exists(path):
                continue
            with open(path, "rb") as f:
                f.seek(self.at[name])
                for line in f:
                    if not line.endswith(b"\n"):
                        break  # being written
                    self.at[name] += len(line)
                    self.add(json.loads(line))
        self.writer.flush()

    def paths(self):
        return [(n, os.path.join(self.run, n)) for n in FILES]

    def add(self, row):
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars(row)]
        self.writer.add_event(Event(wall_time=time.time(), step=row["step"], summary=Summary(value=values)))
        self.rows += 1

    def over(self):
        try:
            with open(os.path.join(self.run, "status.json"), encoding="utf-8") as f:
                return json.load(f)["state"] != "running"
        except (OSError, ValueError, KeyError):
            return False


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("run")
    p.add_argument("--out")
    p.add_argument("--follow", action="store_true")
    a = p.parse_args()
    if not os.path.exists(os.path.join(a.run, "config.json")):
        sys.exit(f"to_tensorboard.py: {a.run} is not the directory of a run")
    f = Follower(a.run, a.out or os.path.join(a.run, "tensorboard"))
    while True:
        over = f.over()  # asked before reading, so that the last rows are read
        f.read()
        if over or not a.follow:
            break
        time.sleep(2)
    f.writer.close()
    print(f"{f.rows} rows in {f.out}")


if __name__ == "__main__":
    main()
