"""An experiment from its files: the plan, frozen before outcomes are read, and the exposure log."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from adagrpo.experiments.duration import baselines, duration
from adagrpo.experiments.outcome import analyse, effects_of
from adagrpo.experiments.plan import DAY, Plan, freeze, read_catalogue, read_plan
from adagrpo.experiments.units import users_before, users_of
from adagrpo.pipeline.served_log import latest_exposures
from adagrpo.serving.exposure_parts import parts_of, read_parts

_Tables = tuple[pl.DataFrame, pl.DataFrame]  # exposures, feedback

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
    rows, catalogue = _rows(exposures), read_catalogue(path, plan)
    moment = now or datetime.now(UTC)
    units = users_of(plan, *rows, catalogue)
    late = datetime.fromisoformat(frozen["time"]).timestamp() >= plan.begins
    result = analyse(plan, units, now=moment)
    result["daily"] = _until_each_day(plan, rows, catalogue, moment) if result["effects"] else []
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


def _until_each_day(plan: Plan, rows: _Tables, catalogue: frozenset[str], now: datetime) -> list[dict[str, Any]]:
    """The effects as they were when each day was over, from the same rows."""
    over = min(plan.days, int((now.timestamp() - plan.begins) // DAY))
    daily = []
    for days in range(1, over + 1):
        units = users_of(plan.model_copy(update={"days": days}), *rows, catalogue)
        last = (plan.start + timedelta(days=days - 1)).isoformat()
        daily += [{"through": last, **row} for row in effects_of(plan, units)] if units.answers else []
    return daily


def _rows(directory: Path) -> _Tables:
    latest_exposures(directory, publish=True)
    return read_parts(parts_of(directory))
