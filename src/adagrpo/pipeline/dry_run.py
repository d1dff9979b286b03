"""What a command would do: stages, optimiser steps, sizes, memory, disk and time. Nothing of a run is written.

The stages are walked by their own declarations, with a run that compares fingerprints and makes nothing. What is known
only of prepared data is read from the run or, where that has none yet, from data that are prepared in a temporary
folder and thrown away. Time is that of an earlier making in the same run, by optimiser steps where there are any; where
there is none, nothing is said of it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from adagrpo.config import read_settings
from adagrpo.pipeline import unordered
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.forecast import Forecast
from adagrpo.pipeline.named_files import check_named
from adagrpo.pipeline.room import free_disk, free_memory
from adagrpo.pipeline.run import Run
from adagrpo.pipeline.stage import Ingredients
from adagrpo.pipeline.stages.evaluate import evaluate_baselines, evaluate_checkpoint, evaluate_start
from adagrpo.pipeline.stages.example_rollouts import draw_examples
from adagrpo.pipeline.stages.exposure_report import report_exposures
from adagrpo.pipeline.stages.fit_ranker import fit_ranker
from adagrpo.pipeline.stages.paired_outcomes import pair_outcomes
from adagrpo.pipeline.stages.post_train import fit_arm
from adagrpo.pipeline.stages.prepare import prepare, simulate_marketplace
from adagrpo.pipeline.stages.ranker_report import report_ranker
from adagrpo.pipeline.stages.sft import fit_sft
from adagrpo.pipeline.stages.tokenize import tokenize
from adagrpo.storage.artifacts import manifest
from adagrpo.storage.hashes import cached_hash

__all__ = ["plan"]

DIAGNOSED = "diagnose"  # no stage, but work
Declare = Callable[[Run], object]


def plan(run: Run, parts: Collection[str], then: Mapping[str, Declare] = MappingProxyType({})) -> dict[str, Any]:
    """What carrying out some parts of a run would do.

    Args:
        run: with the settings that they would be carried out by.
        parts: simulate, prepare, tokenize, sft, ranker, train, evaluate or diagnose.
        then: the declarations of stages that somebody makes in the run after those, by name.

    Returns:
        JSON-able: `stages` with `state` (`make` or `unchanged`), `steps` and `seconds`; `data`; `parameters` of the
        models; `memory` in bytes that the largest fit holds, without activations; `disk`; `seconds` in all, None where
        a stage that would be made was never timed here.

    Raises:
        UserError: the logs or the settings are wrong in a way that is known by now.
    """
    walked = _Walk(run)
    _walk(walked, parts)
    for name, declare in then.items():
        _declare(walked, name, declare)
    with _prepared(run, unchanged=not walked.walked.get("prepare", False)) as data:
        check_named(data, parts)
        content = _content(run, data, walked.walked)
    if DIAGNOSED in parts:
        seconds = _Times(run).of(DIAGNOSED, None)
        content["stages"].append({"stage": DIAGNOSED, "state": "make", "steps": None, "seconds": seconds})
    times = [row["seconds"] for row in content["stages"]]
    return content | {"seconds": None if None in times else sum(times)}


class _Walk(Run):
    """A run whose stages are compared and not made."""

    def __init__(self, run: Run) -> None:
        self.__dict__.update(run.__dict__)
        self.walked: dict[str, bool] = {}  # by stage, whether it would be

    def stage(
        self,
        name: str,
        *,
        inputs: Sequence[Path],
        build: Callable[[Path], None],
        reads: Sequence[str] = (),
        but: Sequence[str] = (),
        also: Any = None,
        schema: int = 1,
        together: bool = False,
    ) -> Path:
        """Compare the fingerprint; see `Run.stage`."""
        remade = [f"{owner}/" for owner, again in self.walked.items() if again]
        known = not any(self.label(path).startswith(owner) for path in inputs for owner in remade)
        self.walked[name] = True
        if known and all(path.is_file() for path in inputs):
            made_from = Ingredients(schema, read_settings(self.config, reads, but), also, self.hash_inputs(inputs))
            done = manifest(self.folder(name))
            self.walked[name] = done is None or done["fingerprint"] != made_from.fingerprint(name)
        return self.folder(name)

    def hash_input(self, path: Path) -> str:
        """The hash of a file, of which nothing is verified; nothing where it is missing."""
        return cached_hash(path) if path.is_file() else ""

    def checked(self, *parts: str) -> Path:
        """The path alone."""
        return self.path(*parts)

    def checked_stage(self, name: str, *, but: Collection[str] = ()) -> Path:
        """The path alone."""
        return self.folder(name)

    def write_description(self, data_files: object) -> None:
        """Nothing."""


def _walk(run: _Walk, parts: Collection[str]) -> None:
    """The stages of some parts of a run, in order; one whose declaration reads what is not there yet is to be made."""
    for part, name, declare in _declarations(run, trained_only="train" not in parts):
        if part in parts:
            _declare(run, name, declare)


def _declare(run: _Walk, name: str | None, declare: Declare) -> None:
    with suppress(OSError):
        declare(run)
    if name is not None:
        run.walked.setdefault(name, True)


def _declarations(run: Run, *, trained_only: bool) -> Iterator[tuple[str, str | None, Declare]]:
    """The part of the work that a stage belongs to, its name if it is sure to have one, and its declaration."""
    if run.config.without_order:
        yield "prepare", "prepare", unordered.prepare
        yield "ranker", "ranker", unordered.fit_ranker
        yield "ranker", "ranker/exposures", report_exposures
        return
    yield "simulate", None, simulate_marketplace
    yield "prepare", "prepare", prepare
    yield "tokenize", "tokenize", tokenize
    yield "sft", "sft", fit_sft
    yield "ranker", "ranker", fit_ranker
    for arm in run.config.train.arms:
        yield "train", f"train/{arm.name}", partial(fit_arm, arm=arm)
    trained = run.trained()
    arms = [arm.name for arm in run.config.train.arms if not trained_only or arm.name in trained]
    yield "evaluate", "evaluate/sft", lambda run: evaluate_start(run, {})
    yield "evaluate", "evaluate/baselines", evaluate_baselines
    for name in [f"{arm}/{kind}" for arm in arms for kind in ("best", "final")]:
        yield "evaluate", f"evaluate/{name}", _evaluation(f"evaluate/{name}", run.path("train", *name.split("/")))
    yield "evaluate", "report/paired", partial(pair_outcomes, arms=arms)
    yield "evaluate", "report/rollouts", draw_examples
    yield "evaluate", "ranker/report", report_ranker


def _evaluation(name: str, weights: Path) -> Declare:
    return lambda run: evaluate_checkpoint(run, name, weights, {})


@contextmanager
def _prepared(run: Run, *, unchanged: bool) -> Iterator[RunData]:
    """The prepared data of a run, or those that it would have."""
    if unchanged and run.path("prepare").is_dir():
        yield RunData(run)
        return
    with tempfile.TemporaryDirectory(prefix="adagrpo-") as folder:
        other = Run(Path(folder) / "run", run.config, run.data, None, run.code)
        simulate_marketplace(other)
        (unordered.prepare if run.config.without_order else prepare)(other)
        yield RunData(other)


def _content(run: Run, data: RunData, stages: Mapping[str, bool]) -> dict[str, Any]:
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
    summary = json.loads((data.prepared / "summary.json").read_text(encoding="utf-8"))
    summary.pop("understood", None)
    sizes = {"ranker": forecast.ranker} | ({} if forecast.policy is None else {"policy": forecast.policy})
    content: dict[str, Any] = {"stages": rows, "data": summary}
    content["parameters"] = {name: {"total": size.total, "trained": size.trained} for name, size in sizes.items()}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    held = max((fit.held for fit in made.values()), default=0)
    content["memory"] = {"held": held, "free": free_memory(device)}
    kept = sum(fit.kept for fit in made.values())
    passing = max((fit.passing for fit in made.values()), default=0)
    content["disk"] = {"kept": kept, "while_at_work": kept + passing, "free": free_disk(run.directory)}
    return content


class _Times:
    """How long stages of a run took when they were made before."""

    def __init__(self, run: Run) -> None:
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
        steps = json.loads(path.read_text(encoding="utf-8"))["step"] if path.is_file() else 0
        return self.seconds[name] / steps if steps else None
