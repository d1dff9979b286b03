"""Verdict on an experiment: ship, harm, inconclusive or invalid; docs/how-to/ab.md defines them.

Metrics and treatments share α: by Holm at the end, in equal parts with daily looks. Guardrails do not: all must hold
for `ship`, an intersection-union test.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np
import polars as pl
from scipy import stats

from adagrpo.experiments.duration import anytime_factor, tests_of
from adagrpo.experiments.effects import effect
from adagrpo.experiments.plan import Guardrail, Plan, PlannedMetric, moment_of
from adagrpo.experiments.units import Units, before_of, column_of, kind_of
from adagrpo.experiments.validity import RatioCheck, check_left_out, check_ratios
from adagrpo.statistics import holm
from adagrpo.types import Floats

NOTHING = "nothing yet"  # for metrics that are 0 in both arms
Verdict = Literal["ship", "harm", "inconclusive", "invalid"]


class Stopped(NamedTuple):
    """A stopped arm: when, and the users until then."""

    time: float  # seconds since 1970
    units: Units


NOBODY = "no user was shown anything in the window"


def analyse(
    plan: Plan,
    units: Units,
    *,
    now: datetime,  # time of the look; `looks: end` shows nothing before the end
    stopped: Mapping[str, Stopped] = MappingProxyType({}),
    mismatch: str | None = None,  # why the log is invalid, see `validity`
) -> dict[str, Any]:
    """Analyse an experiment; stopped arms are compared until their stop, and never shipped.

    JSON: `verdicts` and `reasons` by treatment, `effects`, `guardrails`, `sample_ratio`, `notes`, and counts.
    """
    of_arm = {name: stopped[name].units if name in stopped else units for name in plan.arms}
    checks, refused = _invalid(plan, units, stopped, mismatch)
    result: dict[str, Any] = {
        "experiment": plan.name,
        "kind": plan.kind,
        "look": now.isoformat(timespec="seconds"),
        "users": {name: len(of_arm[name].users.filter(pl.col("arm") == name)) for name in plan.arms},
        "counts": {name: value for name, value in units._asdict().items() if isinstance(value, int)},
        "models": {arm: {model: moment_of(at) for model, at in seen.items()} for arm, seen in units.models.items()},
        "stopped": {name: moment_of(stop.time) for name, stop in stopped.items()},
        "notes": [],
        "sample_ratio": [check._asdict() for check in checks],
        "effects": [],
        "guardrails": [],
    }
    if units.unseen:
        unseen, known = " or ".join(map(repr, units.unseen)), ", ".join(units.kinds) or "none"
        result["notes"].append(
            f"the log has no feedback of kind {unseen} yet, which counts as 0; its kinds are {known}. "
            "Check the spelling in the plan"
        )
    unbegun = now.timestamp() < plan.begins
    early = unbegun or (plan.looks == "end" and now.timestamp() < plan.ends)
    if early:
        ends = datetime.fromtimestamp(plan.ends, UTC).date()
        waits = f"the plan looks at the end, and the window ends on {ends}"
        if unbegun:
            waits = f"its window begins on {plan.start}"
            refused = {treatment: reason for treatment, reason in refused.items() if reason != NOBODY}
        refused = {treatment: refused.get(treatment) or waits for treatment in plan.treatments}
    shown = [treatment for treatment in plan.treatments if treatment not in refused]
    result["effects"] = effects_of(plan, units, stopped, shown)
    result["guardrails"] = [
        _guard(plan, of_arm[treatment], treatment, name, guard)
        for treatment in shown
        for name, guard in plan.guardrails.items()
    ]
    verdicts: dict[str, Verdict] = {}
    reasons: dict[str, str] = {}
    for name in plan.treatments:
        if name in shown:
            verdict, reason = _verdict(plan, name, result)
        else:
            reason = refused[name]
            verdict = "inconclusive" if early and reason == waits else "invalid"
        if name in stopped:
            verdict = "inconclusive" if verdict == "ship" else verdict
            reason = f"it was stopped on {moment_of(stopped[name].time)}, until when: {reason}"
        verdicts[name], reasons[name] = verdict, reason
    return result | {"verdicts": verdicts, "reasons": reasons}


def _invalid(
    plan: Plan, units: Units, stopped: Mapping[str, Stopped], mismatch: str | None
) -> tuple[list[RatioCheck], dict[str, str]]:
    running = [name for name in plan.arms if name not in stopped]
    parts = [(units, running)] if len(running) > 1 else []
    parts += [(stop.units, [plan.control, name]) for name, stop in stopped.items()]
    checks: list[RatioCheck] = []
    refused: dict[str, str] = {}
    for part, arms in parts:
        users = part.users.filter(pl.col("arm").is_in(arms))
        found = check_ratios(users, {name: plan.arms[name].weight for name in arms}) if len(users) else []
        checks += found
        if (reason := _refusal(plan, part, found)) is not None:
            refused |= dict.fromkeys([name for name in arms if name != plan.control], reason)
    if mismatch is not None:
        refused = dict.fromkeys(plan.treatments, mismatch)
    for name in plan.treatments:
        own = stopped[name].units if name in stopped else units
        if (reason := refused.get(name) or _unlike(plan, own, name)) is not None:
            refused[name] = reason
    return checks, refused


def _refusal(plan: Plan, units: Units, checks: Sequence[RatioCheck]) -> str | None:
    if not checks:
        return NOBODY
    failed = next((check for check in checks if not check.passes), None)
    if failed is not None:
        counts = ", ".join(f"{arm} {count}" for arm, count in failed.counts.items())
        return (
            f"sample ratio of {failed.part}: {counts} users, p = {failed.p_value:.1e}; these are not the planned shares"
        )
    if not units.answers:
        return "every request failed: no user got a list"
    share = units.answers_misassigned / units.answers
    if share > plan.most_misassigned:
        return (
            f"{units.answers_misassigned} of {units.answers} answers are from another arm than the user's "
            f"({share:.2%}, at most {plan.most_misassigned:.2%})"
        )
    known = int(units.events["events"].sum())
    if units.feedback_unknown > plan.most_misassigned * (known + units.feedback_unknown):
        return (
            f"{units.feedback_unknown:,} events of feedback are of requests that the log does not have, so nothing "
            f"tells their arm, beside {known:,} of the experiment; at most {plan.most_misassigned:.2%} may be unknown: "
            "add the answers that are missing, or leave that feedback out of the log"
        )
    return None


def _unlike(plan: Plan, units: Units, treatment: str) -> str | None:
    """Return why the arms cannot be compared: one changed, or they leave out unequal shares of feedback."""
    for arm in (treatment, plan.control):
        seen = units.models.get(arm, {})
        if len(seen) > 1:
            last, time = list(seen.items())[-1]
            return (
                f"arm {arm} was served by {len(seen)} models, by {last} from {moment_of(time)} on; "
                "an arm that changes cannot be judged, so plan another experiment"
            )
    tests = len(plan.treatments) * units.events["kind"].n_unique()
    for check in check_left_out(units.events, plan.control, treatment, tests) if tests else []:
        if not check.passes:
            shares = (f"{arm} {left:,} of {of:,} ({left / of:.1%})" for arm, (left, of) in check.counts.items())
            return (
                f"feedback of kind {check.kind!r} that is left out (before its answer, too late, on an item not shown, "
                f"or repeated): {', '.join(shares)}, p = {check.p_value:.1e}; these are not equal shares, so the rest "
                "says nothing"
            )
    return None


def _columns(units: Units, arm: str, metric: PlannedMetric | Guardrail) -> Mapping[str, Floats]:
    table = units.users.filter(pl.col("arm") == arm)
    columns = {"sum": table[column_of(metric.sum)].to_numpy()}
    if metric.per is not None:
        columns["per"] = table[column_of(metric.per)].to_numpy()
    if isinstance(metric, PlannedMetric) and metric.cuped:
        columns["before"] = table[before_of(metric.sum)].to_numpy()
    return columns


def effects_of(plan: Plan, units: Units, stopped: Mapping[str, Stopped], shown: Sequence[str]) -> list[dict[str, Any]]:
    """Return a row per treatment and metric; `says` is better, worse, unclear, or nothing yet."""
    alpha = plan.alpha / tests_of(plan)
    one_look = float(stats.norm.isf(alpha / 2))
    rows: list[dict[str, Any]] = []
    for treatment in shown:
        own = stopped[treatment].units if treatment in stopped else units
        factor = None
        if plan.looks == "daily" and plan.answers and own.answers:
            factor = anytime_factor(own.answers, plan.answers, alpha)
        for name, metric in plan.metrics.items():
            control, treated = columns = _columns(own, plan.control, metric), _columns(own, treatment, metric)
            found = effect(*columns)
            row: dict[str, Any] = {"treatment": treatment, "metric": name, "says": "unclear"}
            if found is not None:
                row |= {
                    "control": found.control,
                    "value": found.treatment,
                    "relative": found.relative,
                    "interval": found.fixed(plan.alpha),
                    "anytime": None if factor is None else found.within(factor),
                    "p_value": found.p_value,
                    "detectable": found.detectable(factor or one_look, plan.power),
                }
            elif _lost_all(*columns, factor or one_look):
                row["says"] = "worse" if metric.better == "up" else "better"
            elif any(not control[sums].any() and not treated[sums].any() for sums in ("sum", "per") if sums in control):
                row["says"] = NOTHING
            rows.append(row)
    for row, adjusted in zip(rows, holm([row.get("p_value", 1.0) for row in rows]), strict=True):
        if "p_value" not in row:
            continue
        row["p_holm"] = adjusted
        low, high = row["anytime"] or row["interval"]
        certain = not low <= 0 <= high if row["anytime"] else adjusted <= plan.alpha
        if certain:
            up = (row["relative"] > 0) == (plan.metrics[row["metric"]].better == "up")
            row["says"] = "better" if up else "worse"
    return rows


def _guard(plan: Plan, units: Units, treatment: str, name: str, guard: Guardrail) -> dict[str, Any]:
    columns = _columns(units, plan.control, guard), _columns(units, treatment, guard)
    row = {"treatment": treatment, "guardrail": name, "margin": guard.margin, "says": "unclear"}
    if any(kind_of(part) in units.unseen for part in (guard.sum, guard.per) if part is not None):
        return row | {"says": NOTHING}
    found = effect(*columns)
    each = plan.alpha / len(plan.guardrails)
    if plan.looks == "daily" and plan.answers is not None:
        one, strict = (anytime_factor(units.answers, plan.answers, level) for level in (plan.alpha, each))
    else:
        one, strict = (float(stats.norm.isf(level)) for level in (plan.alpha, each))
    if found is None:
        return row | {"says": _without_interval(guard, *columns, one, strict)}
    sign = 1 if guard.better == "down" else -1
    worse = sorted(sign * end for end in found.within(one))
    certainly = sorted(sign * end for end in found.within(strict))
    says = "within" if worse[1] <= guard.margin else "beyond" if certainly[0] > guard.margin else "unclear"
    return row | {
        "control": found.control,
        "value": found.treatment,
        "relative": found.relative,
        "interval": found.within(one),
        "says": says,
    }


def _without_interval(
    guard: Guardrail, control: Mapping[str, Floats], treatment: Mapping[str, Floats], one: float, strict: float
) -> str:
    """Judge a guardrail without a relative effect; `one` and `strict` are the errors for "within" and "beyond"."""
    users = min(len(control["sum"]), len(treatment["sum"]))
    if not all(arm["per"].any() for arm in (control, treatment) if "per" in arm):
        return "unclear"  # division by 0
    if guard.better == "down" and len(treatment["sum"]) and not treatment["sum"].any():
        some = control["sum"].any()
        known = not some or _hardly_by_chance(control["sum"], treatment["sum"], one, 1 + guard.margin)
        return "within" if known else NOTHING
    if guard.better == "up" and _lost_all(control, treatment, strict, 1 - guard.margin):
        return "beyond"
    if users < 2 or not treatment["sum"].any():
        return "unclear"
    if not control["sum"].any():
        certain = _hardly_by_chance(treatment["sum"], control["sum"], strict, 1 / (1 + guard.margin))
        return "beyond" if guard.better == "down" and certain else "unclear"
    ratios = [arm["sum"] / arm.get("per", 1.0) for arm in (control, treatment) if arm.get("per", arm["sum"]).all()]
    if len(ratios) < 2 or any(ratio.max() > ratio.min() for ratio in ratios):
        return "unclear"
    worse = (ratios[1][0] / ratios[0][0] - 1) * (1 if guard.better == "down" else -1)
    return "within" if worse <= guard.margin else "beyond"


def _lost_all(control: Mapping[str, Floats], treatment: Mapping[str, Floats], reach: float, rate: float = 1.0) -> bool:
    """Return whether the treatment significantly lost all; `rate` as in `_hardly_by_chance`."""
    users = min(len(control["sum"]), len(treatment["sum"]))
    if users < 2 or treatment["sum"].any() or not all(arm["per"].any() for arm in (control, treatment) if "per" in arm):
        return False  # nothing was shown
    return _hardly_by_chance(control["sum"], treatment["sum"], reach, rate)


def _hardly_by_chance(some: Floats, nothing: Floats, reach: float, rate: float) -> bool:
    """Return whether chance would hardly leave an arm nothing; `rate` is the relative share of users with some."""
    own = len(some) / (len(some) + max(rate, 0.0) * len(nothing))
    return bool(np.count_nonzero(some) * math.log(own) <= stats.norm.logsf(reach))


def _verdict(plan: Plan, treatment: str, result: Mapping[str, Any]) -> tuple[Verdict, str]:
    effects = [row for row in result["effects"] if row["treatment"] == treatment]
    guards = [row for row in result["guardrails"] if row["treatment"] == treatment]
    worse = [row["metric"] for row in effects if row["says"] == "worse"]
    beyond = [row["guardrail"] for row in guards if row["says"] == "beyond"]
    if worse or beyond:
        return "harm", "worse: " + ", ".join([*worse, *(f"{name} (guardrail)" for name in beyond)])
    better = [row["metric"] for row in effects if row["says"] == "better" and row["metric"] in plan.deciding]
    unclear = [row["guardrail"] for row in guards if row["says"] in ("unclear", NOTHING)]
    if better and not unclear:
        return "ship", "better: " + ", ".join(better)
    if better:
        return "inconclusive", f"better: {', '.join(better)}; not shown to be within the margin: {', '.join(unclear)}"
    return "inconclusive", "no metric of the rule is significantly better or worse"
