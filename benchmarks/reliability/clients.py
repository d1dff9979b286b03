"""A small run, and a service of it that lives as long as a block; clients come from `benchmarks.wire`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import polars as pl
import yaml

from benchmarks.reliability.foreign import RECIPE

__all__ = ["make_run", "memory", "served"]


def memory(process: int) -> float:
    """MB of a process in RAM."""
    text = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    return int(text.split("VmRSS:")[1].split()[0]) / 1000


def make_run(work: Path, **changes: object) -> tuple[Path, Path]:
    """A small run of a simulated marketplace, and a file with bodies of requests of its users."""
    recipe, run = work / "recipe.yaml", work / "run"
    recipe.write_text(yaml.safe_dump(RECIPE | changes), encoding="utf-8")
    command = [sys.executable, "-m", "adagrpo", "run", str(recipe), "--out", str(run), "--quiet"]
    subprocess.run(command, check=True)
    items = pl.read_parquet(run / "prepare" / "items.parquet", columns=["item_id"])["item_id"].to_list()
    draw = np.random.default_rng(0)
    asked = [[items[item] for item in draw.integers(0, len(items), draw.integers(1, 20))] for _ in range(500)]
    bodies = work / "bodies.jsonl"
    bodies.write_text("".join(json.dumps({"history": history}) + "\n" for history in asked), encoding="utf-8")
    return run, bodies


@contextmanager
def served(run: Path, *options: str, **environment: str) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """The port and process of a service that lives as long as the block."""
    command = [sys.executable, "-m", "adagrpo", "serve", "--run", str(run), "--port", "0", "--json", *options]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | environment
    ) as process:
        try:
            assert process.stdout is not None
            yield int(json.loads(process.stdout.readline())["url"].rsplit(":", 1)[1]), process
        finally:
            with suppress(ProcessLookupError):
                process.terminate()
