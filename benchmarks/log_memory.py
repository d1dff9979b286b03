"""Peak memory of training as the log grows, with its sequences on disk and in memory.

    python -m benchmarks.log_memory --work DIR [--rows 1e6 1e7 1e8] [--out FILE]

For each size the training interactions of users with 50 of 10,000 items each are written as `prepare` writes them, and
a process of its own loads them, takes steps of NLL and of post-training with a compact policy, and says the most that
it held. What grows from one size to the next is what is held of the log.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.rows import machine

__all__ = ["ITEMS", "LENGTH", "main", "measure", "write_training"]

ITEMS, LENGTH = 10_000, 50
BATCH, STEPS, GATED = 256, 6, 2
PART = 2**22


def main() -> None:
    """A line of JSON for each size and way of reading, in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rows", type=float, nargs="*", default=[1e6, 1e7, 1e8])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("log_memory.jsonl"))
    parser.add_argument("--one", choices=("disk", "memory"), help="measure what is there already, in this process")
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(measure(options.work, options.one)))
        return
    for rows in map(int, options.rows):
        folder = options.work / f"training-{rows}"
        write_training(folder, rows)
        for way in ("disk", "memory"):
            command = [sys.executable, "-m", "benchmarks.log_memory", "--work", str(folder), "--one", way]
            said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            line = {"rows": rows, "way": way} | json.loads(said) | {"load": os.getloadavg()[1]} | machine()
            with options.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            print(f"{rows:.0e} {way}: {said}", file=sys.stderr)
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


def write_training(folder: Path, rows: int) -> None:
    """The two files of `prepare` that training sequences are read from, a part of the users at a time."""
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    users = rows // LENGTH
    pl.DataFrame({"user": np.arange(users, dtype=np.int32)}).write_parquet(folder / "users.parquet")
    writer = None
    at_once = PART // LENGTH
    for part, first in enumerate(range(0, users, at_once)):
        count = min(at_once, users - first)
        owners = np.repeat(np.arange(first, first + count, dtype=np.int32), LENGTH)
        items = np.random.default_rng(part).integers(0, ITEMS, len(owners)).astype(np.int32)
        positions = np.tile(np.arange(LENGTH, dtype=np.int32), count)
        table = pl.DataFrame({"user": owners, "item": items, "position": positions}).to_arrow()
        writer = writer or pq.ParquetWriter(folder / "train.parquet", table.schema, compression="zstd")
        writer.write_table(table, row_group_size=2**18)
    assert writer is not None
    writer.close()


def measure(folder: Path, way: str) -> dict[str, Any]:
    """What this process holds at most while it trains on a folder, and what it takes."""
    import torch

    from adagrpo.config import ObjectiveConfig
    from adagrpo.data import prepared
    from adagrpo.data.prepared import load_training
    from adagrpo.policies import CompactPolicy
    from adagrpo.rewards import NoiseReward
    from adagrpo.semantic_ids.catalog import Catalog
    from adagrpo.trainer import Arm, BatchSchedule, PostTraining, Supervised
    from benchmarks.compact import stepper

    if way == "memory":
        prepared._HELD = 2**62
    catalog = Catalog.from_codes(torch.from_numpy(_codes()))
    policy = CompactPolicy(catalog.codes, catalog.level_sizes, max_history=LENGTH)
    before = _peak()
    training = load_training(folder)
    loaded = _peak()
    schedule = BatchSchedule(training, LENGTH, BATCH, 1, 0)
    arm = Arm(anchored=True, lambda_=1.0, gate="adagrpo")
    nll = Supervised(policy, catalog.codes, schedule, steps=10**6, validate=dict)
    gated = PostTraining(policy, catalog, NoiseReward(0), schedule, ObjectiveConfig(), arm, steps=10**6, validate=dict)
    found: dict[str, Any] = {"before_gb": before, "loaded_gb": loaded}
    for name, task, steps in (("sft", nll, STEPS), ("train", gated, GATED)):
        started = time.process_time()
        _, take = stepper(catalog.codes.device, task, steps)
        take()
        found |= {f"{name}_gb": _peak(), f"{name}_step_s": (time.process_time() - started) / steps}
    return found


def _codes() -> np.ndarray[Any, np.dtype[np.int64]]:
    """(V, 3) distinct ones."""
    numbers = np.arange(ITEMS, dtype=np.int64)
    return np.stack([numbers // 256, numbers % 256 // 16, numbers % 16], axis=1)


def _peak() -> float:
    """GB of memory that this process has held at most; what `wait4` says begins with that of the parent."""
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(peak.split()[1]) * 1024 / 1e9


if __name__ == "__main__":
    main()
