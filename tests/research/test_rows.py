"""Rows say which code measured them, and name no folder of a machine."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest

from adagrpo.report.page import read_rows
from research import rows
from research.rows import add_row, keep_rows, loaded_code, merge_rows, portable, staleness

STUDIES = Path(__file__).parents[2] / "research"


@pytest.mark.slow
def test_a_row_gets_the_code_that_is_loaded_and_a_command_without_folders(tmp_path: Path) -> None:
    results = tmp_path / "a.jsonl"
    add_row(results, {"x": 1, "command": "python -m study --data /data/toys --out /tmp/a"})
    add_row(results, {"x": 2})
    first, second = read_rows(results)
    assert first["command"] == "python -m study --data DIR/toys --out runs/a"
    assert first["code"] == second["code"] and (first["x"], second["x"]) == (1, 2)
    assert json.loads((tmp_path / "code.json").read_text())[first["code"]] == loaded_code()
    assert "adagrpo.storage.writing" in loaded_code() and "adagrpo.report.page" not in loaded_code()
    assert list(staleness(results)) == []


def test_rows_of_changed_modules_and_of_no_code_are_named(tmp_path: Path) -> None:
    results = tmp_path / "a.jsonl"
    results.write_text('{"x": 0}\n')
    add_row(results, {"x": 1})
    file = tmp_path / "code.json"
    known = json.loads(file.read_text())
    (modules,) = known.values()
    modules |= {"adagrpo.storage.writing": "another", "adagrpo.no_more": "0"}
    file.write_text(json.dumps(known))
    unknown, older = staleness(results)
    assert unknown == "1 rows say no code; what changed since is not known"
    assert older.startswith("1 rows are of older code; changed since: adagrpo.storage.writing (")
    assert older.endswith(", adagrpo.no_more (gone)") and older.count(",") < 5


def test_rows_of_another_checkout_are_added_once_with_their_code(tmp_path: Path) -> None:
    here, there = tmp_path / "here" / "a.jsonl", tmp_path / "there" / "a.jsonl"
    here.parent.mkdir()
    there.parent.mkdir()
    add_row(here, {"x": 1})
    there.write_text(here.read_text() + '{"x": 2, "code": "other"}\n')
    there.with_name("code.json").write_text(json.dumps({"other": {"m": "1"}, "of no row": {"m": "2"}}))
    assert [merge_rows(here, there), merge_rows(here, there)] == [1, 0]
    assert [row["x"] for row in read_rows(here)] == [1, 2]
    known = json.loads(here.with_name("code.json").read_text())
    assert known.keys() == {row["code"] for row in read_rows(here)} and known["other"] == {"m": "1"}


def test_the_second_name_of_a_main_module_is_no_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "__mp_main__", sys.modules["research.rows"])
    assert "__mp_main__" not in loaded_code()
    results = tmp_path / "a.jsonl"
    add_row(results, {"x": 1})
    file = tmp_path / "code.json"
    known = json.loads(file.read_text())
    for modules in known.values():
        modules["__mp_main__"] = "of an earlier row"
    file.write_text(json.dumps(known))
    assert list(staleness(results)) == []


def test_a_comparison_of_another_commit_gets_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "_commit", lambda: "now")
    source, kept = tmp_path / "results.jsonl", tmp_path / "study.jsonl"
    source.write_text(
        '{"x": 1, "commit": "now", "command": "adagrpo run --data ../a/toys"}\n{"x": 2, "commit": "old"}\n'
    )
    keep_rows(source, kept)
    first, second = read_rows(kept)
    assert first["command"] == "adagrpo run --data DIR/toys" and "code" in first and "code" not in second


def test_comments_and_docstrings_are_no_part_of_a_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {
        "a": '"""One."""\ndef f():\n    """Two."""\n    return 1  # three\n',
        "b": "def f():\n    return 1\n",
        "c": "def f():\n    return 2\n",
    }
    for name, text in texts.items():
        path = tmp_path / f"{name}.py"
        path.write_text(text)
        spec = importlib.util.spec_from_file_location(f"research.fake_{name}", path)
        assert spec is not None
        monkeypatch.setitem(sys.modules, spec.name, importlib.util.module_from_spec(spec))
    a, b, c = (loaded_code()[f"research.fake_{name}"] for name in texts)
    assert a == b != c


def test_a_command_keeps_what_is_no_folder_of_a_machine() -> None:
    command = "adagrpo compare recipes/a.yaml --data ../shared/data --out runs/x --set 'train.arms=[{objective: nll}]'"
    assert portable(command) == command.replace("../shared/data", "DIR")


@pytest.mark.parametrize("study", sorted({path.parent.name for path in STUDIES.rglob("*.jsonl")}))
def test_no_row_on_file_names_a_folder_of_a_machine(study: str) -> None:
    for path in (STUDIES / study).glob("*.json*"):
        assert not re.search(r'[" =](?:/(?:tmp|work|home|root)/|\.\./)', path.read_text(encoding="utf-8")), path.name
