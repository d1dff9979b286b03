"""Rows 8 and 17: files of a run are cut short, or one bit of them is flipped, before every verb that reads them.

Each verb must give the same answer, because it does not read the file, or name the file. The readers are those of the
verbs themselves, each on a run of its own that goes on from the damaged one.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from adagrpo.errors import UserError
from adagrpo.lists.query import Query
from adagrpo.pipeline import ListOptions, Run
from adagrpo.pipeline.current_files import CurrentFiles
from adagrpo.pipeline.directory import locked
from adagrpo.pipeline.serve import recommender
from adagrpo.report.run_page import build_report
from benchmarks.reliability.findings import Finding
from benchmarks.reliability.foreign import RECIPE
from benchmarks.reliability.kills import succeed
from benchmarks.reliability.processes import server

__all__ = ["READERS", "cut_short", "damage_files", "flip_bit", "flips", "truncations"]

Damage = Callable[[bytes, np.random.Generator], bytes]


def _serve(run: Run) -> object:
    served, about = recommender(run, ListOptions())
    histories = [[item, (7 * item + 3) % about["items"]] for item in range(0, about["items"], 3)]
    return [list(result) for result in served.recommend([Query(history) for history in histories])], about


def _stages(run: Run) -> object:
    with locked(run):
        run.stage("simulate")
        run.prepare()
        run.tokenize()
        run.sft()
        run.ranker()
        run.train()
    return {path.name: path.read_bytes() for path in run.directory.rglob("model.safetensors")}


def _evaluate(run: Run) -> object:
    run.evaluate()
    return json.dumps(run.results)


READERS: dict[str, Callable[[Run], object]] = {
    "serve": _serve,
    "stages": _stages,
    "evaluate": _evaluate,
    "diagnose": lambda run: json.dumps(run.diagnose().content),
    "report": lambda run: build_report(CurrentFiles(run)),
}


def truncations(work: Path, count: int = 2000) -> Finding:
    """Row 8: a random end of a random file is lost, `count` times."""
    return _finding(8, "truncated files", work, count, cut_short)


def flips(work: Path, count: int = 2000) -> Finding:
    """Row 17: a random bit of a random file is flipped, `count` times."""
    return _finding(17, "flipped bits", work, count, flip_bit)


def _finding(row: int, harm: str, work: Path, count: int, damage: Damage) -> Finding:
    """Damage a tiny run, with its diagnosis."""
    recipe = work / "recipe.yaml"
    recipe.write_text(json.dumps(RECIPE), encoding="utf-8")
    with server(work / "server") as processes:
        succeed(processes, ["run", str(recipe), "--out", str(work / "run"), "--quiet"])
        succeed(processes, ["diagnose", "--run", str(work / "run"), "--quiet"])
    answers = damage_files(work / "run", count, damage)
    figure = (
        f"{count:,} {harm} in {answers['files']} files, each before {len(READERS)} readers: {answers['refused']:,}"
        f" times refused with the file named, {answers['equal']:,} times the same answer, {answers['silent']} changed"
        " answers"
    )
    return Finding(row, figure, answers["silent"] == 0 and answers["unnamed"] == 0)


def flip_bit(content: bytes, draw: np.random.Generator) -> bytes:
    """The content with one bit changed."""
    bit, damaged = int(draw.integers(8 * len(content))), bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def cut_short(content: bytes, draw: np.random.Generator) -> bytes:
    """The content without its end."""
    return content[: int(draw.integers(len(content)))]


def damage_files(directory: Path, count: int, damage: Damage, seed: int = 0) -> dict[str, int]:
    """Damage a random file, `count` times, and ask every reader; each file is put back.

    Returns:
        How many files there are, and how many answers were refused by the file's name (`refused`), refused without it
        (`unnamed`), the same (`equal`), or changed (`silent`).
    """
    draw = np.random.default_rng(seed)
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path.stat().st_size)
    whole = {name: _ask(directory, reader) for name, reader in READERS.items()}
    answers = {"files": len(files), "refused": 0, "unnamed": 0, "equal": 0, "silent": 0}
    for _ in range(count):
        path = files[int(draw.integers(len(files)))]
        content = path.read_bytes()
        path.write_bytes(damage(content, draw))
        for name, reader in READERS.items():
            try:
                same = _ask(directory, reader) == whole[name]
                answers["equal" if same else "silent"] += 1
            except UserError as error:
                named = path.name in str(error) or str(path.parent) in str(error)
                answers["refused" if named else "unnamed"] += 1
        path.write_bytes(content)
    return answers


def _ask(directory: Path, reader: Callable[[Run], Any]) -> object:
    """An answer of a run that goes on from another one; nothing is written there."""
    out = Path(tempfile.mkdtemp())
    try:
        return reader(Run.open(directory, out=out / "out"))
    finally:
        shutil.rmtree(out)
