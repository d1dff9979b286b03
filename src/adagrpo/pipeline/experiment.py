"""An experiment from its files: the plan, frozen before outcomes are read, and the exposure log."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from adagrpo.experiments.duration import baselines, duration
from adagrpo.experiments.outcome import analyse
from adagrpo.experiments.plan import Plan, freeze, read_catalogue, read_plan
from adagrpo.experiments.units import users_before, users_of
from adagrpo.pipeline.served_log import latest_exposures
from adagrpo.serving.exposure_parts import parts_of, read_parts

__all__ = ["experiment", "experiment_size", "freeze_experiment"]


def freeze_experiment(path: Path) -> dict[str, Any]:
    """Write the hash of a plan beside it, or check the one that is there.

    Raises:
        UserError: it is no plan, or was changed since.
    """
    return dict(_frozen(path, read_plan(path)))


def experiment(path: Path, exposures: Path, now: datetime | None = None) -> dict[str, Any]:
    """What an experiment says; the plan is frozen first.

    Args:
        path: of the plan.
        exposures: folder of an exposure log.
        now: of the look; this moment if not given.

    Raises:
        UserError: it is no plan or was changed, no log, or the log has not what the plan sums.
    """
    plan = read_plan(path)
    frozen = _frozen(path, plan)
    units = users_of(plan, *_rows(exposures), read_catalogue(path, plan))
    late = datetime.fromisoformat(frozen["time"]).timestamp() >= plan.begins
    result = analyse(plan, units, now=now or datetime.now(UTC))
    return result | {"plan": frozen["plan"], "frozen": frozen["time"], "frozen_after_the_start": late}


def experiment_size(path: Path, exposures: Path | None = None) -> list[dict[str, Any]]:
    """Users and days that the expected effects take, before anything is frozen.

    Args:
        path: of the plan.
        exposures: folder of an exposure log, whose days before the start say what the plan does not.

    Raises:
        UserError: it is no plan, or it does not say enough.
    """
    plan = read_plan(path)
    if exposures is not None:
        plan = baselines(plan, users_before(plan, *_rows(exposures), read_catalogue(path, plan)))
    return duration(plan)


def _frozen(path: Path, plan: Plan) -> Mapping[str, Any]:
    return freeze(path, plan, now=datetime.now(UTC))


def _rows(directory: Path) -> tuple[Any, Any]:
    latest_exposures(directory, publish=True)
    return read_parts(parts_of(directory))
