"""Rows 5 and 7: figures of rows that hold or not in seconds, and are tests."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from benchmarks.reliability.findings import Finding

__all__ = ["numbers", "security"]

ROOT = Path(__file__).parent.parent.parent


def passed(*arguments: str) -> tuple[int, int]:
    """How many tests pass, and how many do not."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", *arguments]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    last = (done.stdout.strip().splitlines() or [""])[-1]
    counts = {name: int(count) for count, name in re.findall(r"(\d+) (passed|failed|error)", last)}
    return counts.get("passed", 0), counts.get("failed", 0) + counts.get("error", 0) + (done.returncode > 1)


def numbers(work: Path) -> Finding:
    """Injections, one a test."""
    file = "tests/trainer/test_not_finite.py"
    places, missed = passed(file, "-k", "is_not_finite or are_not_finite", "-o", "addopts=--import-mode=importlib")
    rest, failed = passed(file, "tests/pipeline/test_numbers.py", "-o", "addopts=--import-mode=importlib")
    figure = (
        f"{places} places: counted, the step skipped, weights, moments, average and spread as before; "
        f"{rest - places} tests of the end after three batches in a row and of constant rewards"
    )
    return Finding(5, figure, places >= 50 and not missed and not failed)


def security(work: Path) -> Finding:
    """Traps, tags and names, one a test; and every source file."""
    result, failed = passed("tests/test_security.py", "-o", "addopts=--import-mode=importlib")
    return Finding(7, f"{result} tests: refused, nothing runs, nothing outside is touched", result > 0 and not failed)
