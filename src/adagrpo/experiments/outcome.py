"""What an experiment says: ship, harm, inconclusive or invalid, with effects, intervals and what could have been seen.

    invalid        an arm has not its share of users, or users were served another arm than theirs: no effect is shown
    harm           a metric is worse, or a guardrail is beyond its margin, for certain
    ship           a metric of the rule is better, none is worse, and every guardrail is within its margin for certain
    inconclusive   anything else

Metrics and treatments share α: by Holm at the end, in equal parts where a plan looks daily. The guardrails do not: all
have to hold for `ship`, and a rule of that kind errs no more often than each of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import polars as pl
from scipy import stats

from adagrpo.evaluation.statistics import holm
from adagrpo.experiments.anytime import anytime_factor
from adagrpo.experiments.duration import tests_of
from adagrpo.experiments.effects import Effect, Floats, effect
from adagrpo.experiments.plan import Guardrail, Metric, Plan
from adagrpo.experiments.sample_ratio import RatioCheck, check_ratios
from adagrpo.experiments.units import Units

__all__ = ["Verdict", "analyse", "effects_of"]

Verdict = Literal["ship", "harm", "inconclusive", "invalid"]


def analyse(plan: Plan, units: Units, *, now: datetime) -> dict[str, Any]:
    """The result of an experiment.

    Args:
        plan: frozen.
        units: its users, see `users_of`.
        now: of the look; outcomes of a plan that looks at the end are not shown before.

    Returns:
        JSON: `verdicts` and `reasons` by treatment, `effects`, `guardrails`, `sample_ratio`, and counts.
    """
    weights = {name: arm.weight for name, arm in plan.arms.items()}
    checks = check_ratios(units.users, weights) if len(units.users) else []
    counts = {name: value for name, value in units._asdict().items() if name != "users"}
    users = {name: len(units.users.filter(pl.col("arm") == name)) for name in plan.arms}
    result: dict[str, Any] = {
        "experiment": plan.name,
        "look": now.isoformat(timespec="seconds"),
        "users": users,
        "counts": counts,
        "sample_ratio": [check._asdict() for check in checks],
        "effects": [],
        "guardrails": [],
    }
    refused = _refusal(plan, units, checks)
    early = plan.looks == "end" and now.timestamp() < plan.ends
    if refused is not None or early:
        ends = datetime.fromtimestamp(plan.ends, UTC).date()
        reason = refused or f"the plan looks at the end, and the window ends on {ends}"
        verdict: Verdict = "inconclusive" if refused is None else "invalid"
        return result | {
            "verdicts": dict.fromkeys(plan.treatments, verdict),
            "reasons": dict.fromkeys(plan.treatments, reason),
        }
    result["effects"] = effects_of(plan, units)
    result["guardrails"] = [
        _guard(plan, units, treatment, name, guard)
        for treatment in plan.treatments
        for name, guard in plan.guardrails.items()
    ]
    found = {treatment: _verdict(plan, treatment, result) for treatment in plan.treatments}
    return result | {
        "verdicts": {treatment: verdict for treatment, (verdict, _) in found.items()},
        "reasons": {treatment: reason for treatment, (_, reason) in found.items()},
    }


def _refusal(plan: Plan, units: Units, checks: Sequence[RatioCheck]) -> str | None:
    """Why no effect is worth reading; None where it is."""
    if not checks:
        return "no user was shown anything in the window"
    failed = next((check for check in checks if not check.passes), None)
    if failed is not None:
        counts = ", ".join(f"{arm} {count}" for arm, count in failed.counts.items())
        return f"sample ratio of {failed.part}: {counts} users, p = {failed.p_value:.1e}; something chose the users"
    share = units.answers_misassigned / units.answers
    if share > plan.most_misassigned:
        return (
            f"{units.answers_misassigned} of {units.answers} answers are of another arm than the user's "
            f"({share:.2%}, at most {plan.most_misassigned:.2%})"
        )
    return None


def _columns(units: Units, arm: str, metric: Metric | Guardrail) -> Mapping[str, Floats]:
    table = units.users.filter(pl.col("arm") == arm)
    columns = {"sum": table[metric.sum].to_numpy()}
    if metric.per is not None:
        columns["per"] = table[metric.per].to_numpy()
    if isinstance(metric, Metric) and metric.cuped:
        columns["before"] = table[f"before: {metric.sum}"].to_numpy()
    return columns


def effects_of(plan: Plan, units: Units) -> list[dict[str, Any]]:
    """One row a treatment and metric; `says` is better, worse or unclear."""
    alpha = plan.alpha / tests_of(plan)
    factor = anytime_factor(units.answers, plan.answers, alpha) if plan.answers and plan.looks == "daily" else None
    rows: list[dict[str, Any]] = []
    for treatment in plan.treatments:
        for name, metric in plan.metrics.items():
            found = effect(_columns(units, plan.control, metric), _columns(units, treatment, metric))
            row: dict[str, Any] = {"treatment": treatment, "metric": name, "says": "unclear"}
            if found is not None:
                row |= _numbers(found, plan, factor, alpha)
            rows.append(row)
    known = [row for row in rows if "p_value" in row]
    for row, adjusted in zip(known, holm([row["p_value"] for row in known]), strict=True):
        row["p_holm"] = adjusted
        low, high = row["anytime"] or row["interval"]
        certain = not low <= 0 <= high if row["anytime"] else adjusted <= plan.alpha
        if certain:
            up = (row["relative"] > 0) == (plan.metrics[row["metric"]].better == "up")
            row["says"] = "better" if up else "worse"
    return rows


def _numbers(found: Effect, plan: Plan, factor: float | None, alpha: float) -> dict[str, Any]:
    return {
        "control": found.control,
        "value": found.treatment,
        "relative": found.relative,
        "interval": found.fixed(plan.alpha),
        "anytime": None if factor is None else found.within(factor),
        "p_value": found.p_value,
        "detectable": found.detectable(alpha, plan.power),
    }


def _guard(plan: Plan, units: Units, treatment: str, name: str, guard: Guardrail) -> dict[str, Any]:
    """Whether a number is worse by less than the margin: the end of the interval that lies on the worse side."""
    columns = _columns(units, plan.control, guard), _columns(units, treatment, guard)
    row = {"treatment": treatment, "guardrail": name, "margin": guard.margin, "says": "unclear"}
    found = effect(*columns)
    if found is None:
        # without a control number there is no share of it; nothing at all in the treatment cannot be too much
        fine = guard.better == "down" and len(columns[1]["sum"]) > 0 and not columns[1]["sum"].any()
        return row | ({"says": "within"} if fine else {})
    daily = plan.looks == "daily" and plan.answers is not None
    each = plan.alpha / len(plan.guardrails)
    if daily and plan.answers is not None:
        one, strict = (anytime_factor(units.answers, plan.answers, level) for level in (plan.alpha, each))
    else:
        one, strict = (float(stats.norm.isf(level)) for level in (plan.alpha, each))
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


def _verdict(plan: Plan, treatment: str, result: Mapping[str, Any]) -> tuple[Verdict, str]:
    effects = [row for row in result["effects"] if row["treatment"] == treatment]
    guards = [row for row in result["guardrails"] if row["treatment"] == treatment]
    worse = [row["metric"] for row in effects if row["says"] == "worse"]
    beyond = [row["guardrail"] for row in guards if row["says"] == "beyond"]
    if worse or beyond:
        return "harm", "worse: " + ", ".join([*worse, *(f"{name} (guardrail)" for name in beyond)])
    better = [row["metric"] for row in effects if row["says"] == "better" and row["metric"] in plan.deciding]
    unclear = [row["guardrail"] for row in guards if row["says"] == "unclear"]
    if better and not unclear:
        return "ship", "better: " + ", ".join(better)
    if better:
        return "inconclusive", f"better: {', '.join(better)}; not shown to be within the margin: {', '.join(unclear)}"
    return "inconclusive", "no metric of the rule is certainly better or worse"
