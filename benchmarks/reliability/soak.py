"""An hour of runs in one process, each begun by another process that is killed at a random moment.

    python -m benchmarks.reliability.soak [--minutes 60] [--results FILE] [--page FILE]

Each turn: a process of its own begins the small demo and is killed; this process carries it on to its end (sft,
ranker, post-training, evaluation). Every turn must end with the same weights, metrics.json and file names, leave no
file anywhere else, and this process must not grow: its memory after the last turn is at most 2 % above that after the
second one in which it carried a killed run on. Before that it has not yet done all there is to do: modules are imported
where they are first needed, and the allocator keeps room for the largest tensors. A turn whose run ended before the
kill leaves this process nothing to do.

Importing torch makes an empty folder for its compiler among the temporary files. It belongs to torch, and is sent
where it is not counted (`environment`).
"""

from __future__ import annotations

import argparse
import gc
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from adagrpo.config import load_config
from adagrpo.pipeline import Run
from benchmarks.reliability import findings
from benchmarks.reliability.findings import Finding
from benchmarks.reliability.kills import SETTINGS, demo, result
from benchmarks.reliability.processes import server

__all__ = ["assess", "environment", "leftovers", "soak"]

ROOT = Path(__file__).parent.parent.parent
RECIPE = ROOT / "src" / "adagrpo" / "recipes" / "demo-small.yaml"
LONGEST = 20.0  # seconds before a kill


def soak(work: Path, minutes: float, seed: int = 0, **settings: str) -> Finding:
    """Carry on killed runs until the time is over; at least three of them."""
    draw = np.random.default_rng(seed)
    config = load_config(RECIPE, [f"{key}={value}" for key, value in (SETTINGS | settings).items()])
    work.mkdir(parents=True, exist_ok=True)
    os.environ |= environment(work)
    tempfile.tempdir = os.environ["TMPDIR"]
    started, equal = time.monotonic(), 0
    memory, killed = list[int](), list[bool]()
    left: set[str] = set()
    expected = None
    with server(work / "server") as processes:
        while sum(killed) < 3 or time.monotonic() - started < 60 * minutes:
            run = work / "run"
            pid = processes.start(demo(run, **settings))
            time.sleep(float(draw.uniform(0.5, LONGEST)))
            if not (run / "metrics.json").exists():
                os.kill(pid, signal.SIGKILL)
            killed.append(processes.wait()[0] == -signal.SIGKILL)
            Run(run, config, Path()).complete()
            results = result(run)
            expected = expected or results
            equal += results == expected
            shutil.rmtree(run)
            left |= leftovers(work)
            gc.collect()
            memory.append(resident())
            print(
                f"turn {len(memory)}: {memory[-1] / 2**20:.1f} MiB, {sum(killed)} killed, {equal} equal",
                file=sys.stderr,
            )
    return assess(memory, killed, equal, left, (time.monotonic() - started) / 60)


def environment(work: Path) -> dict[str, str]:
    """Variables that send all temporary files into one folder of `work`, and torch's cache into another."""
    temporary, cache = work / "temporary", work / "torch"
    for folder in (temporary, cache):
        folder.mkdir(exist_ok=True)
    return {"TMPDIR": str(temporary), "TORCHINDUCTOR_CACHE_DIR": str(cache)}


def leftovers(work: Path) -> set[str]:
    """Files and folders that the runs have left, relative to `work`; the soak's own do not count."""
    own = {work / "temporary", work / "torch", work / "server"}
    results = {*(work / "temporary").rglob("*")} | ({*work.iterdir()} - own)
    return {path.relative_to(work).as_posix() for path in results}


def assess(memory: Sequence[int], killed: Sequence[bool], equal: int, left: set[str], minutes: float) -> Finding:
    """What came of it; `memory` in bytes after each turn, in at least two of which a killed run was carried on."""
    warm = [turn for turn, was_killed in enumerate(killed) if was_killed][1]
    growth = memory[-1] / memory[warm] - 1
    named = f" ({', '.join(sorted(left)[:3])})" if left else ""
    figure = (
        f"{len(memory)} turns in {minutes:.0f} minutes, {sum(killed)} of them killed: {equal} equal, {len(left)} files "
        f"left behind{named}; memory {growth:+.1%} from turn {warm + 1}, the second with a killed run to carry on, to "
        f"the last ({memory[-1] / 2**20:.0f} MiB)"
    )
    return Finding(0, figure, equal == len(memory) and not left and growth <= 0.02)


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> int:
    """Soak, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--results", type=Path, default=Path(__file__).with_name("results.json"))
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "reliability.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        results = soak(Path(work), options.minutes)
    print(f"soak: {results.figure} ({'holds' if results.passes else 'DOES NOT HOLD'})", file=sys.stderr)
    findings.record(
        options.results, "soak", results, f"python -m benchmarks.reliability.soak --minutes {options.minutes:g}"
    )
    findings.table(options.results, options.page, options.results.with_suffix(".md"))
    return 0 if results.passes else 1


if __name__ == "__main__":
    sys.exit(main())
