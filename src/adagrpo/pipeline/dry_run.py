"""The plan of a command: stages, optimiser steps, sizes, memory, disk and time. Nothing of a run is written.

A stage is to be made if it is not up to date (`adagrpo.pipeline.staleness`), or is made from one that is to be made.
What is known only of prepared data is read from the run or, where that has none yet, from data that are prepared in a
temporary folder and thrown away. Time is that of an earlier making in the same run, by optimiser steps where there are
any; where there is none, nothing is said of it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from adagrpo.pipeline.directory import Declare, RunDirectory
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.forecast import Forecast
from adagrpo.pipeline.json_files import read_json
from adagrpo.pipeline.named_files import check_named
from adagrpo.pipeline.resources import free_disk, free_memory
from adagrpo.pipeline.stage_table import RUN, declared
from adagrpo.pipeline.staleness import finished_arms, parts_of, stages_of


def plan(
    run: RunDirectory, commands: Collection[str] = RUN, more: Mapping[str, Declare] = MappingProxyType({})
) -> dict[str, Any]:
    """Say what some commands would do with a run.

    Args:
        commands: that make stages; those of `adagrpo run` if not given.
        more: stages that are made after those, by name, and what declares each.

    Returns:
        JSON-able: `stages` with `state` (`make` or `unchanged`), `steps` and `seconds`; `data`; `parameters` of the
        models; `memory` in bytes that the largest fit holds, without activations; `disk`; `seconds` in all, None where
        a stage that would be made was never timed here.

    Raises:
        UserError: the logs or the settings are wrong in a way that is known by now.
    """
    arms = None if "train" in commands else finished_arms(run)
    parts = parts_of(run, logs=True, more=more)
    again: dict[str, bool] = {}
    for name, part in parts.items():
        again[name] = not part.usable or part.outdated or any(again.get(source, False) for source in part.sources)
    asked = {**stages_of(run, commands, arms), **more}
    stages = {name: again.get(name, True) or name == "diagnose" for name in asked}
    with _prepared(run, unchanged=not again["prepare"]) as data:
        check_named(data, commands)
        content = _content(run, data, stages)
    times = [row["seconds"] for row in content["stages"]]
    return content | {"seconds": None if None in times else sum(times)}


@contextmanager
def _prepared(run: RunDirectory, *, unchanged: bool) -> Iterator[RunData]:
    """The prepared data of a run, or those that it would have."""
    if unchanged and run.path("prepare").is_dir():
        yield RunData(run)
        return
    with tempfile.TemporaryDirectory(prefix="adagrpo-") as folder:
        other = type(run)(Path(folder) / "run", run.config, run.data, None, run.code)
        for name, declare in declared(run.config, ["prepare"]).items():
            other.make(name, declare(other))
        yield RunData(other)


def _content(run: RunDirectory, data: RunData, stages: Mapping[str, bool]) -> dict[str, Any]:
    """Everything that the sizes of the data decide."""
    forecast = Forecast(data)
    fits = {name: fit for name in stages if (fit := forecast.fit(name)) is not None}
    made = {name: fit for name, fit in fits.items() if stages[name]}
    times = _Times(run)
    rows = []
    for name, again in stages.items():
        steps = fits[name].steps if name in fits else None
        seconds = times.of(name, steps) if again else 0.0
        rows.append({"stage": name, "state": "make" if again else "unchanged", "steps": steps, "seconds": seconds})
    summary = read_json(data.prepared / "summary.json")
    summary.pop("understood", None)
    sizes = {"ranker": forecast.ranker} | ({} if forecast.policy is None else {"policy": forecast.policy})
    content: dict[str, Any] = {"stages": rows, "data": summary}
    content["parameters"] = {name: {"total": size.total, "trained": size.trained} for name, size in sizes.items()}
    held = max((fit.held for fit in made.values()), default=0)
    content["memory"] = {"held": held, "free": free_memory(data.device)}
    kept = sum(fit.kept for fit in made.values())
    passing = max((fit.passing for fit in made.values()), default=0)
    content["disk"] = {"kept": kept, "while_at_work": kept + passing, "free": free_disk(run.directory)}
    return content


class _Times:
    """Times of stages of a run, from when they were made before."""

    def __init__(self, run: RunDirectory) -> None:
        self.run = run
        self.seconds = {row["stage"]: float(row["seconds"]) for row in run.events() if row["event"] == "end"}

    def of(self, name: str, steps: int | None) -> float | None:
        """Seconds of a stage; of an arm that was never trained, by the steps of the slowest one that was."""
        if steps is None:
            return self.seconds.get(name)
        same = [name] if name in self.seconds else []
        if not same and name.startswith("train/"):
            same = [other for other in self.seconds if other.startswith("train/")]
        rates = [rate for other in same if (rate := self._seconds_a_step(other)) is not None]
        return max(rates) * steps if rates else None

    def _seconds_a_step(self, name: str) -> float | None:
        path = self.run.path(*name.split("/"), "final", "checkpoint.json")
        steps = read_json(path)["step"] if path.is_file() else 0
        return self.seconds[name] / steps if steps else None
