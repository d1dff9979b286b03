"""Row 17: one bit of any file of a run is flipped; every verb that reads it gives the same answer or names the file.

The readers are those of the verbs themselves, each on a run of its own that goes on from the damaged one.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from adagrpo import pipeline
from adagrpo.errors import UserError
from adagrpo.pipeline import Run
from adagrpo.pipeline.serve import recommender
from adagrpo.report import build_report
from benchmarks.reliability.findings import Finding
from benchmarks.reliability.foreign import RECIPE
from benchmarks.reliability.kills import succeed
from benchmarks.reliability.processes import server

__all__ = ["READERS", "flip_bits", "flips"]


def _serve(run: Run) -> object:
    served, about = recommender(run, None, "best")
    histories = [[item, (7 * item + 3) % about["items"]] for item in range(0, about["items"], 3)]
    return [list(result) for result in served.recommend(histories)], about


def _stages(run: Run) -> object:
    with run.locked():
        pipeline.simulate_marketplace(run)
        pipeline.prepare(run)
        pipeline.tokenize(run)
        pipeline.fit_sft(run)
        pipeline.fit_ranker(run)
        pipeline.train(run)
    return {path.name: path.read_bytes() for path in run.directory.rglob("model.safetensors")}


def _evaluate(run: Run) -> object:
    arms = pipeline.finished_arms(run)
    pipeline.evaluate(run, arms)
    pipeline.report_ranker(run)
    return json.dumps(pipeline.collect(run, arms))


READERS: dict[str, Callable[[Run], object]] = {
    "serve": _serve,
    "stages": _stages,
    "evaluate": _evaluate,
    "diagnose": lambda run: json.dumps(pipeline.diagnose_reward(run, None)),
    "report": build_report,
}


def flips(work: Path, count: int = 2000) -> Finding:
    """Damage a tiny run, with its diagnosis, `count` times."""
    recipe = work / "recipe.yaml"
    recipe.write_text(json.dumps(RECIPE), encoding="utf-8")
    with server(work / "server") as processes:
        succeed(processes, ["run", str(recipe), "--out", str(work / "run"), "--quiet"])
        succeed(processes, ["diagnose", "--run", str(work / "run"), "--quiet"])
    sums = flip_bits(work / "run", count)
    figure = (
        f"{count:,} flipped bits in {sums['files']} files, each before {len(READERS)} readers: {sums['refused']:,}"
        f" times refused with the file named, {sums['equal']:,} times the same answer, {sums['silent']} changed answers"
    )
    return Finding(17, figure, sums["silent"] == 0 and sums["unnamed"] == 0)


def flip_bits(directory: Path, count: int, seed: int = 0) -> dict[str, int]:
    """Flip a bit of a random file, `count` times, and ask every reader; each file is put back.

    Returns:
        How many files there are, and how many answers were refused by the file's name (`refused`), refused without it
        (`unnamed`), the same (`equal`), or changed (`silent`).
    """
    draw = np.random.default_rng(seed)
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path.stat().st_size)
    whole = {name: _ask(directory, reader) for name, reader in READERS.items()}
    sums = {"files": len(files), "refused": 0, "unnamed": 0, "equal": 0, "silent": 0}
    for _ in range(count):
        path = files[int(draw.integers(len(files)))]
        content = path.read_bytes()
        damaged = bytearray(content)
        bit = int(draw.integers(8 * len(content)))
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        for name, reader in READERS.items():
            try:
                same = _ask(directory, reader) == whole[name]
                sums["equal" if same else "silent"] += 1
            except UserError as error:
                named = path.name in str(error) or str(path.parent) in str(error)
                sums["refused" if named else "unnamed"] += 1
        path.write_bytes(content)
    return sums


def _ask(directory: Path, reader: Callable[[Run], Any]) -> object:
    """An answer of a run that goes on from another one; nothing is written there."""
    out = Path(tempfile.mkdtemp())
    try:
        return reader(Run.open(directory, out=out / "out"))
    finally:
        shutil.rmtree(out)
