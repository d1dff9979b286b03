"""The plan of a command, without writing to the run. Times come from earlier builds, scaled by optimiser steps."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from adagrpo.pipeline.checks import check_named
from adagrpo.pipeline.directory import RunDirectory, events_of
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.json_files import read_json
from adagrpo.pipeline.make import make
from adagrpo.pipeline.stage import RUN, Declare
from adagrpo.pipeline.staleness import finished_arms, parts_of, stages_of


def plan(
    run: RunDirectory, commands: Collection[str] = RUN, more: Mapping[str, Declare] = MappingProxyType({})
) -> dict[str, Any]:
    """Return what some commands would do with a run.

    Args:
        commands: by default those of `adagrpo run`.
        more: further stages in order, by name.

    Returns:
        JSON-able: `stages` with `state` (`make` or `unchanged`), `steps` and `seconds`; `data`; total `seconds`, None
        if a stage to make was never timed.
    """
    arms = None if "train" in commands else finished_arms(run)
    parts = parts_of(run, logs=True, more=more)
    again: dict[str, bool] = {}
    for name, part in parts.items():
        again[name] = not part.usable or part.outdated or any(again.get(source, False) for source in part.sources)
    asked = {**stages_of(run, commands, arms), **more}
    stages = {name: again.get(name, True) or name == "diagnose" for name in asked}
    ended = {row["stage"]: float(row["seconds"]) for row in events_of(run) if row["event"] == "end"}

    def seconds_a_step(name: str) -> float | None:
        path = run.path(name, "final", "checkpoint.json")
        steps = read_json(path)["step"] if path.is_file() else 0
        return ended[name] / steps if steps else None

    rows: list[dict[str, Any]] = []
    with _prepared(run, unchanged=not again["prepare"]) as data:
        check_named(data, commands)
        for name, made in stages.items():
            steps, seconds = _steps(data, name), ended.get(name)
            if steps is not None:  # an arm that was never trained takes as long as the slowest one that was
                arms_trained = [other for other in ended if other.startswith("train/")]
                same = [name] if name in ended else arms_trained if name.startswith("train/") else []
                rates = [rate for other in same if (rate := seconds_a_step(other)) is not None]
                seconds = max(rates) * steps if rates else None
            state, seconds = ("make", seconds) if made else ("unchanged", 0.0)
            rows.append({"stage": name, "state": state, "steps": steps, "seconds": seconds})
        summary = read_json(data.prepared / "summary.json")
    summary.pop("understood", None)
    taken = [row["seconds"] for row in rows]
    return {"stages": rows, "data": summary, "seconds": None if None in taken else sum(taken)}


@contextmanager
def _prepared(run: RunDirectory, *, unchanged: bool) -> Iterator[RunData]:
    if unchanged and run.path("prepare").is_dir():
        yield RunData(run)
        return
    with tempfile.TemporaryDirectory(prefix="adagrpo-") as folder:
        other = type(run)(Path(folder) / "run", run.config, run.data, None, run.code)
        for name, declare in run.stages.declared(run.config, ["prepare"]).items():
            make(other, name, declare(other))
        yield RunData(other)


def _steps(data: RunData, stage: str) -> int | None:
    config, lm = data.config, data.config.policy.lm
    arm = next((arm for arm in config.train.arms if f"train/{arm.name}" == stage), None)
    if stage == "ranker" or stage.startswith("ranker/fold-"):
        settings = config.ranker.fit
    elif arm is not None:
        settings = config.train.fit
    elif stage != "sft":
        return None
    elif lm is not None and lm.trained:
        return 0  # the checkpoint is kept as it is
    else:
        settings = config.sft
    steps = max(1, round(settings.epochs * Models(data).schedule(settings).steps_per_epoch))
    return steps if arm is None else steps * arm.resolved_objective(config.objective).num_iterations
