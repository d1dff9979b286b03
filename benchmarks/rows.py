"""One measured figure, and how figures are measured: warm-up, then the median of several timings and their spread."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

__all__ = ["Row", "machine", "median_spread", "timed", "timed_in_turn"]


@dataclass(frozen=True)
class Row:
    """A figure beside its target."""

    name: str
    value: float
    unit: str
    spread: tuple[float, float]
    target: str
    met: bool | None  # None: the row has no target
    against: str
    detail: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The row as it stands in benchmarks/results.json."""
        return asdict(self) | machine()


def machine() -> dict[str, Any]:
    """What the figure was measured on."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short=12", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), "torch": version("torch"), "adagrpo": version("adagrpo")},
        "commit": commit,
    }


def timed(work: Callable[[], object], *, repeats: int = 5, warmup: int = 1) -> list[float]:
    """Seconds of each repetition."""
    return timed_in_turn([work], repeats=repeats, warmup=warmup)[0]


def timed_in_turn(works: list[Callable[[], object]], *, repeats: int = 5, warmup: int = 1) -> list[list[float]]:
    """Seconds of several chunks of work taken in turn, so that what disturbs the machine disturbs all of them."""
    result: list[list[float]] = [[] for _ in works]
    for turn in range(warmup + repeats):
        for work, seconds in zip(works, result, strict=True):
            started = time.perf_counter()
            work()
            if turn >= warmup:
                seconds.append(time.perf_counter() - started)
    return result


def median_spread(values: list[float]) -> tuple[float, tuple[float, float]]:
    """Median, and (least, most)."""
    return statistics.median(values), (min(values), max(values))
