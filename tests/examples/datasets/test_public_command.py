from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from examples.datasets import SETS
from examples.datasets.__main__ import main

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["python -m examples.datasets", *map(str, arguments)])
        capsys.readouterr()
        try:
            main()
        except SystemExit as stop:
            return int(stop.code or 0), *capsys.readouterr()
        return 0, *capsys.readouterr()

    return run


def test_alone_it_lists_the_sets(data: Command) -> None:
    status, out, _ = data()
    assert status == 0 and all(name in out for name in SETS)
    assert data("--list")[1] == out
    status, out, _ = data("--json")
    assert [entry["name"] for entry in json.loads(out)["sets"]] == list(SETS)
    status, out, _ = data("coat", "--list")
    assert out.startswith("coat: ") and "ml-1m" not in out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nothing", "--list"], "nothing: no such set"),
        (["coat"], "coat: needs --out"),
        (["coat", "--out", "out"], "--from: names no file; expected coat.zip from https://www.cs.cornell.edu"),
        (["coat", "--from", "none", "--out", "out"], "none: no such file (--from); expected coat.zip"),
    ],
)
def test_what_is_missing_is_one_line(arguments: list[str], expected: str, data: Command) -> None:
    status, out, err = data(*arguments)
    assert status == 2 and out == "" and err.count("\n") == 1 and expected in err


def test_a_set_is_converted_from_several_files_and_may_be_unchecked(tmp_path: Path, data: Command) -> None:
    """A set of one user is not the published one."""
    (tmp_path / "user.txt").write_text("0,3,0,5\n", encoding="utf-8")
    (tmp_path / "random.txt").write_text("0,2,5\n", encoding="utf-8")
    files = ["--from", tmp_path / "user.txt", tmp_path / "random.txt"]
    status, out, err = data("slate-sim", *files, "--out", tmp_path / "out", "--quiet")
    assert status == 2 and out == "" and "1 users, published are 500; 2 items, published are 500" in err
    assert err.count("\n") == 1 and not (tmp_path / "out").exists()
    status, out, err = data("slate-sim", *files, "--out", tmp_path / "out", "--unchecked")
    assert status == 0 and "not as published: 1 users, published are 500" in out
    assert out.endswith(f"next: adagrpo run recipes/slate-sim.yaml --data {tmp_path / 'out'} --out runs/slate-sim\n")
    assert err == ""  # no terminal, no progress
    status, out, _ = data("slate-sim", *files, "--out", tmp_path / "out", "--unchecked", "--json", "--quiet")
    made = json.loads(out)
    assert made["counts"] == {"users": 1, "items": 2, "impressions": 1, "random ratings": 1}
    assert made["files"] == {"impressions.parquet": 1, "random_ratings.parquet": 1}
