"""Stages join by name: two small ones, `first` and `second`, which reads one of the two files of `first`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adagrpo.config import Config
from adagrpo.errors import UserError
from adagrpo.pipeline import Run, stage_table
from adagrpo.pipeline.directory import RunDirectory
from adagrpo.pipeline.make import make
from adagrpo.pipeline.outputs import keep_settings
from adagrpo.pipeline.stage import Declaration, MadeFrom, Stage, StageTable
from adagrpo.pipeline.staleness import made_again, parts_of
from adagrpo.storage.artifacts import manifest, seal

Build = Callable[[Path], None]


def writes(**files: str) -> Build:
    def build(work: Path) -> None:
        for name, text in files.items():
            (work / f"{name}.txt").write_text(text, encoding="utf-8")

    return build


class Kitchen:
    """What the two stages write, and how often each was built."""

    def __init__(self) -> None:
        self.first, self.built = {"read": "1", "unread": "1"}, list[str]()

    def declare_first(self, run: RunDirectory) -> Declaration:
        def build(work: Path) -> None:
            self.built.append("first")
            writes(**self.first)(work)

        return Declaration(build, [run.data / "log.csv"], ("read.txt", "unread.txt"), ("seed",))

    def declare_second(self, run: RunDirectory) -> Declaration:
        def build(work: Path) -> None:
            self.built.append("second")
            writes(made=run.checked("first", "read.txt").read_text(encoding="utf-8"))(work)

        return Declaration(build, ["first:read.txt"], ("made.txt",), ("max_history",))


@pytest.fixture
def kitchen(monkeypatch: pytest.MonkeyPatch) -> Kitchen:
    made = Kitchen()
    rows = (
        Stage("first", "prepare", ("seed",), made.declare_first),
        Stage("second", "tokenize", ("max_history",), made.declare_second),
    )
    monkeypatch.setattr(stage_table, "STAGES", StageTable(rows))
    return made


def opened(folder: Path, **settings: int) -> Run:
    (folder / "log.csv").touch()
    return Run(folder / "run", Config.model_validate({"data": {"logs": ["log.csv"]}, **settings}), folder)


def make_all(run: Run) -> None:
    for name, declare in run.stages.declared(run.config).items():
        make(run, name, declare(run))


def states(run: Run) -> dict[str, tuple[str, str]]:
    return {name: (part.state, part.why) for name, part in parts_of(run, logs=True).items()}


def test_a_stage_is_stale_with_its_settings_and_those_of_what_it_reads(kitchen: Kitchen, tmp_path: Path) -> None:
    assert states(opened(tmp_path)) == {"first": ("missing", ""), "second": ("missing", "")}
    make_all(opened(tmp_path))
    make_all(opened(tmp_path))
    assert kitchen.built == ["first", "second"]
    assert states(opened(tmp_path)) == {"first": ("done", ""), "second": ("done", "")}
    of_first, of_second = "made with seed=0, the recipe says 1", "made with max_history=20, the recipe says 7"
    assert states(opened(tmp_path, seed=1)) == {"first": ("stale", of_first), "second": ("stale", "first is stale")}
    assert states(opened(tmp_path, max_history=7)) == {"first": ("done", ""), "second": ("stale", of_second)}
    both = opened(tmp_path, seed=1, max_history=7)
    assert states(both)["second"] == ("stale", of_second), "the first difference is its own"
    assert [part.name for part in made_again(both)] == ["first"], "the rest follows from it"


def test_a_stage_that_comes_out_the_same_makes_nothing_again(kitchen: Kitchen, tmp_path: Path) -> None:
    """Nor does a file that nothing reads."""
    make_all(opened(tmp_path))
    kitchen.first["unread"] = "2"
    make_all(opened(tmp_path, seed=1))
    assert kitchen.built == ["first", "second", "first"]
    kitchen.first["read"] = "2"
    make(run := opened(tmp_path, seed=2), "first", kitchen.declare_first(run))
    assert states(run)["second"] == ("stale", "made from another first/read.txt than is there now")
    make_all(run)
    assert kitchen.built[3:] == ["first", "second"] and run.path("second", "made.txt").read_text() == "2"


def test_what_is_read_must_be_there_and_unchanged(kitchen: Kitchen, tmp_path: Path) -> None:
    run = opened(tmp_path)
    missing = rf"first/read\.txt: missing; run `adagrpo prepare LOGS --out {run.directory}` or"
    with pytest.raises(UserError, match=missing):
        make(run, "second", kitchen.declare_second(run))
    make_all(run)
    run.path("first", "read.txt").write_text("3", encoding="utf-8")
    for name, declare in run.stages.declared(run.config).items():
        with pytest.raises(UserError, match=r"first/read\.txt: content differs .* delete .*first"):
            make(run, name, declare(run))
    run.path("first", "read.txt").unlink()
    with pytest.raises(UserError, match=r"first/read\.txt: missing; delete .*first to have it made again"):
        make(run, "second", kitchen.declare_second(run))
    assert kitchen.built == ["first", "second"]


def test_another_run_is_read_and_not_written(kitchen: Kitchen, tmp_path: Path) -> None:
    make_all(opened(tmp_path))
    keep_settings(opened(tmp_path), {})
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    other = Run.open(tmp_path / "run", {"max_history": 7}, out=tmp_path / "other")
    make_all(other)
    assert kitchen.built == ["first", "second", "second"]
    assert states(other) == {"first": ("done", ""), "second": ("done", "")}
    assert not (tmp_path / "other" / "first").exists()
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_a_stage_of_an_earlier_version_is_read_as_it_is(kitchen: Kitchen, tmp_path: Path) -> None:
    """Its manifest had one mapping of paths, `inputs`, and called the version `schema`."""
    make_all(opened(tmp_path))
    for name, inputs in (("first", {"log.csv": None}), ("second", {"first/read.txt": None})):
        content = manifest(tmp_path / "run" / name)
        assert content is not None
        now = MadeFrom.of(content, stage_table.STAGES)
        assert now is not None
        before = {
            "schema": now.version,
            "settings": now.settings,
            "also": now.also,
            "inputs": dict(zip(inputs, now.hashes.values(), strict=True)),
            "reads": now.keys,
            "but": now.but,
        }
        seal(tmp_path / "run" / name, kind=name, fingerprint="of then", made_from=before)
    assert states(opened(tmp_path)) == {"first": ("done", ""), "second": ("done", "")}
    make_all(opened(tmp_path))
    assert kitchen.built == ["first", "second"]
    assert states(opened(tmp_path, seed=1))["first"] == ("stale", "made with seed=0, the recipe says 1")


@pytest.mark.parametrize("made_from", [None, {"of": "a later version"}])
def test_a_stage_of_an_unknown_version_is_made_again(kitchen: Kitchen, tmp_path: Path, made_from: Any) -> None:
    make_all(opened(tmp_path))
    seal(tmp_path / "run" / "first", kind="first", fingerprint="of then", made_from=made_from)
    assert states(opened(tmp_path))["first"] == ("stale", "made by another version of this program")
    make_all(opened(tmp_path))
    assert kitchen.built == ["first", "second", "first"]
    assert json.loads((tmp_path / "run/first/manifest.json").read_text())["made_from"]["files"].keys() == {"log.csv"}


def test_a_changed_log_is_seen_beside_a_manifest_of_another_program(kitchen: Kitchen, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}", encoding="utf-8")
    make_all(opened(tmp_path))
    assert states(opened(tmp_path))["first"] == ("done", "")
    (tmp_path / "log.csv").write_text("another\n", encoding="utf-8")
    why = "made from another log.csv than the file is now"
    assert states(opened(tmp_path))["first"] == ("stale", why)
