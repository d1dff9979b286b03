"""How threads wait for each other: the package chooses where the environment does not. See docs/performance.md."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
TOLD = "print([os.environ.get(name) for name in ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT')])"
COMMAND_LINE = f"import os, sys; import adagrpo.__main__; assert 'torch' not in sys.modules; {TOLD}"


def child(code: str, setting: dict[str, str]) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in NAMES}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=kept | setting)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ({}, [None, "3000"]),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, ["ACTIVE", None]),
        ({"GOMP_SPINCOUNT": "300000"}, [None, "300000"]),
    ],
)
def test_threads_sleep_early_where_nothing_is_set(setting: dict[str, str], expected: list[str | None]) -> None:
    assert child(COMMAND_LINE, setting).stdout.strip() == str(expected)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="torch comes with GNU OpenMP on Linux alone")
@pytest.mark.parametrize(
    ("setting", "rounds"),
    [({}, 3000), ({"OMP_WAIT_POLICY": "ACTIVE"}, 30_000_000_000)],
)
def test_openmp_reads_it(setting: dict[str, str], rounds: int) -> None:
    """`OMP_DISPLAY_ENV` makes OpenMP print, when it is loaded, what it goes by."""
    output = child("import adagrpo, torch", setting | {"OMP_DISPLAY_ENV": "VERBOSE"}).stderr
    assert f"GOMP_SPINCOUNT = '{rounds}'" in output
