"""What the stages that fit a model share."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from adagrpo.config import FitConfig
from adagrpo.data.prepared import load_user_ids
from adagrpo.pipeline.models import Workbench
from adagrpo.pipeline.run import Run
from adagrpo.storage.artifacts import write_file
from adagrpo.trainer import Diverged, FitResult, Task, fit

__all__ = ["fit_config", "fit_model", "policy_config"]


def fit_config(settings: FitConfig) -> dict[str, object]:
    """What of a fit's settings decides its result: not how often it is saved."""
    return settings.model_dump(mode="json", exclude={"checkpoint_seconds"})


def policy_config(run: Run) -> list[object]:
    """What of the configuration decides a policy beside its fit."""
    config = run.config
    return [
        config.policy.model_settings(),
        config.evaluation.model_dump(mode="json"),
        config.seed,
        config.max_history,
    ]


def fit_model(
    bench: Workbench, stage: str, model: nn.Module, task: Task[Any], settings: FitConfig, work: Path
) -> FitResult:
    """Fit a model; where it ends in numbers that are not finite, `diverged.json` says what to look at.

    Raises:
        Diverged: with the ids of the users whose histories made up the last step.
    """
    run = bench.run
    found = run.directory / "diverged.json"
    if run.processes.leads and not found.is_symlink():
        found.unlink(missing_ok=True)
    try:
        return fit(model, task, settings, work, seed=run.config.seed, report=_report(run, stage.removeprefix("train/")))
    except Diverged as error:
        if not run.processes.leads:
            raise
        known = load_user_ids(bench.prepared)
        ids = [known[int(row)] for row in error.users]
        content = {"stage": stage, "not_finite": error.what, "step": error.step, "seed": error.seed, "users": ids}
        write_file(found, json.dumps(content, indent=1) + "\n")
        raise Diverged(
            f"{error.what} ({found} has all users; the same command repeats the step)", error.step, error.seed, ids
        ) from error


def _report(run: Run, label: str) -> Callable[[int, int, Mapping[str, float]], None]:
    return lambda step, steps, values: run.console.progress(label, step, steps, values)
