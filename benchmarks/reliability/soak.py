"""An hour of runs in one process, each begun by another process that is killed at a random moment.

    python -m benchmarks.reliability.soak [--minutes 60] [--results FILE] [--page FILE]

Each turn: a process of its own begins the small demo and is killed; this process carries it on to its end (sft,
ranker, post-training, evaluation). Every turn must end with the same weights, metrics.json and file names, leave no
file anywhere else, and this process must not grow: its memory after the second turn, when everything is loaded, and
after the last are compared.
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
from pathlib import Path

import numpy as np

from adagrpo.config import load_config
from adagrpo.pipeline import Run, run_all
from benchmarks.reliability import findings
from benchmarks.reliability.findings import Finding
from benchmarks.reliability.kills import SETTINGS, demo, result
from benchmarks.reliability.processes import server

__all__ = ["soak"]

ROOT = Path(__file__).parent.parent.parent
RECIPE = ROOT / "src" / "adagrpo" / "recipes" / "demo-small.yaml"
LONGEST = 20.0  # seconds before a kill


def soak(work: Path, minutes: float, seed: int = 0, **settings: str) -> Finding:
    """Carry on killed runs until the time is over; at least three turns."""
    draw = np.random.default_rng(seed)
    config = load_config(RECIPE, [f"{key}={value}" for key, value in (SETTINGS | settings).items()])
    place = work / "temporary"  # of whatever this process and its children may leave
    place.mkdir(parents=True)
    tempfile.tempdir = os.environ["TMPDIR"] = str(place)
    started, memory, killed, equal, left = time.monotonic(), [], 0, 0, 0
    expected = None
    with server(work / "server") as processes:
        while len(memory) < 3 or time.monotonic() - started < 60 * minutes:
            run = work / "run"
            pid = processes.start(demo(run, **settings))
            time.sleep(float(draw.uniform(0.5, LONGEST)))
            if not (run / "metrics.json").exists():
                os.kill(pid, signal.SIGKILL)
            killed += processes.wait()[0] == -signal.SIGKILL
            run_all(Run(run, config, Path()))
            found = result(run)
            expected = expected or found
            equal += found == expected
            shutil.rmtree(run)
            left += sum(1 for _ in place.rglob("*")) + len({*work.iterdir()} - {place, work / "server"})
            gc.collect()
            memory.append(resident())
            print(f"turn {len(memory)}: {memory[-1] / 2**20:.1f} MiB, {killed} killed, {equal} equal", file=sys.stderr)
    growth = memory[-1] / memory[1] - 1
    minutes = (time.monotonic() - started) / 60
    figure = (
        f"{len(memory)} turns in {minutes:.0f} minutes, {killed} of them killed: {equal} equal, {left} files left "
        f"behind, memory {growth:+.1%} from the second turn to the last ({memory[-1] / 2**20:.0f} MiB)"
    )
    return Finding(0, figure, equal == len(memory) and left == 0 and killed > 0 and growth <= 0.02)


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> int:
    """Soak, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "reliability.json")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "reliability.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        found = soak(Path(work), options.minutes)
    print(f"soak: {found.figure} ({'holds' if found.passes else 'DOES NOT HOLD'})", file=sys.stderr)
    findings.record(
        options.results, "soak", found, f"python -m benchmarks.reliability.soak --minutes {options.minutes:g}"
    )
    findings.table(options.results, options.page)
    return 0 if found.passes else 1


if __name__ == "__main__":
    sys.exit(main())
