"""Experiments from their files: a plan, frozen before outcomes are read, and an exposure log."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from adagrpo.errors import UserError
from adagrpo.experiments.allocation import add_switch, read_switches
from adagrpo.experiments.duration import baselines, duration
from adagrpo.experiments.interleaving import analyse_interleaving
from adagrpo.experiments.outcome import Stopped, analyse, effects_of
from adagrpo.experiments.plan import DAY, freeze, frozen_path, moment_of, read_catalogue, read_plan
from adagrpo.experiments.units import stops_seen, users_before, users_of
from adagrpo.experiments.validity import mismatched_rows
from adagrpo.exposures.exposure_store import locate_row, parts_of, read_parts, refused_rows
from adagrpo.pipeline.stages.prepare import latest_exposures


def freeze_experiment(path: Path) -> dict[str, Any]:
    """Write the hash of a plan next to it, or check the existing one.

    Raises:
        UserError: the plan is invalid, changed, or past its window.
    """
    plan = read_plan(path)
    if not frozen_path(path).exists() and plan.ends <= datetime.now(UTC).timestamp():
        raise UserError(f"{path}: its window ended on {moment_of(plan.ends)}, so nobody would be in it; change start")
    return dict(freeze(path, plan, now=datetime.now(UTC)))


def experiment(path: Path, exposures: Path, now: datetime | None = None) -> dict[str, Any]:
    """Freeze a plan and analyse its experiment.

    Raises:
        UserError: the plan is invalid or changed, or the log is missing or lacks a metric.
    """
    plan = read_plan(path)
    frozen = freeze(path, plan, now=datetime.now(UTC))
    parts, catalogue = _parts(exposures), read_catalogue(path, plan)
    rows = read_parts(parts)
    moment = now or datetime.now(UTC)
    frozen_at = datetime.fromisoformat(frozen["time"]).timestamp()
    late = frozen_at >= plan.begins
    freeze_times = {"plan": frozen["plan"], "frozen": frozen["time"], "frozen_after_the_start": late}
    found = mismatched_rows(plan, str(frozen["plan"]), frozen_at, rows[0])
    said = [f"{one.answers:,} answers are {one.what}, the first in {locate_row(parts, one.first)}" for one in found]
    mismatch = "; ".join(said) or None
    if plan.kind == "interleaving":
        stops = read_switches(path, plan).stops
        result = analyse_interleaving(plan, *rows, now=moment, stops=stops, mismatch=mismatch)
        return result | freeze_times | {"notes": _refused(parts)}
    units = users_of(plan, *rows, catalogue)
    stops = stops_seen(plan, rows[0])
    for arm, time in read_switches(path, plan).stops.items():
        stops[arm] = min(time, stops.get(arm, time))
    stopped = {arm: Stopped(time, users_of(plan, *rows, catalogue, time)) for arm, time in stops.items()}
    result = analyse(plan, units, now=moment, stopped=stopped, mismatch=mismatch)
    none = dict.fromkeys(("answers_of_other_plan", "answers_of_other_key", "answers_before_the_plan"), 0)
    result["counts"] |= none | {one.count_name: one.answers for one in found}
    result["notes"] += _refused(parts)
    result["switches"] = [{"time": time, "share": share} for time, share in read_switches(path, plan).shares]
    shown = list(dict.fromkeys(row["treatment"] for row in result["effects"]))
    result["daily"] = []
    for days in range(1, min(plan.days, int((moment.timestamp() - plan.begins) // DAY)) + 1) if shown else ():
        part = plan.model_copy(update={"days": days})
        units = users_of(part, *rows, catalogue)
        stopped = {arm: Stopped(time, users_of(part, *rows, catalogue, time)) for arm, time in stops.items()}
        last = (plan.start + timedelta(days=days - 1)).isoformat()
        effects = effects_of(plan, units, stopped, shown) if units.answers else []
        result["daily"] += [{"through": last, **row} for row in effects]
    return result | freeze_times


def switch_experiment(path: Path, *, share: float | None = None, stop: str | None = None) -> dict[str, Any]:
    """Admit a larger share of users or stop an arm; running services follow within a second."""
    plan = read_plan(path)
    freeze(path, plan, now=datetime.now(UTC))
    return add_switch(path, plan, now=datetime.now(UTC).timestamp(), share=share, stop=stop)


def experiment_size(path: Path, exposures: Path | None = None) -> list[dict[str, Any]]:
    """Return the users and days needed for the expected effects, rows of `duration`.

    Days before the start of an exposure log supply what the plan lacks; `read` gives those used, None without a log.
    """
    plan = read_plan(path)
    if exposures is None:
        return [row | {"read": None} for row in duration(plan)]
    earlier = users_before(plan, *read_parts(_parts(exposures)), read_catalogue(path, plan))
    read = {"days": earlier.days, "from": moment_of(earlier.begin), "to": moment_of(earlier.end)}
    return [row | {"read": read} for row in duration(baselines(plan, earlier))]


def _parts(directory: Path) -> list[Path]:
    latest_exposures(directory, publish=True)
    return parts_of(directory)


def _refused(parts: Sequence[Path]) -> list[str]:
    refused = refused_rows(parts)
    return [f"{len(refused):,} rows of the log are none and count nowhere, such as {refused[0]}"] if refused else []
