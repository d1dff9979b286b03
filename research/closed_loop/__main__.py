"""Close the loop on simulated markets: serve, log, fit the ranker on what was shown, train again.

    python -m research.closed_loop research/closed_loop/plan.yaml --out runs/loop --workers 2

The plan is described in `plan.py`, what comes out in `closing.py`. The same command goes on after a kill.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from adagrpo.console import StderrConsole
from adagrpo.stopping import terminable
from research.closed_loop.closing import close_loop
from research.command import run


def main() -> None:
    """Play every market of a plan."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path, help="a YAML file")
    parser.add_argument("--out", type=Path, default=Path("runs/loop"))
    parser.add_argument("--workers", type=int, default=1, help="processes; each plays whole markets")
    given = parser.parse_args()
    with terminable():
        print(json.dumps(close_loop(given.plan, given.out, given.workers, StderrConsole()), indent=1))


if __name__ == "__main__":
    run(main)
