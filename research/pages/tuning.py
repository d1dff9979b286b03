"""The tables of the fair trial: what the tuning chose, how hard the chosen arms then pressed, pairs and teachers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from adagrpo.errors import UserError
from adagrpo.evaluation.comparison import reported
from adagrpo.metrics import is_rate
from adagrpo.report.comparison_page import format_difference, format_ends
from adagrpo.report.tables import MISSING, Alignment, Table, format_metric, format_number, metric_label
from research.worlds_pooled import shown

__all__ = ["pairs_over_sets", "pressed_table", "teachers_table", "tuned_table"]

METRIC = "hr@10"
TAUGHT = ("fair-distill", "rerank", "fair-distill+rerank")


def tuned_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """One row a family: the setting of its last rung with the highest metric, and what the others of that rung had.

    Args:
        rows: of `research.fair_trial.tune`, of one set.
    """
    cells = []
    for family in dict.fromkeys(row["family"] for row in rows):
        mine = [row for row in rows if row["family"] == family]
        last = [row for row in mine if row["rung"] == max(row["rung"] for row in mine)]
        last.sort(key=lambda row: (-row["final"][METRIC], row["pressure"]))
        best, worst = last[0], last[-1]
        cells.append(
            (
                family,
                format_number(best["pressure"]),
                format_number(best["pressure_found"]["lambda_"]),
                best["rollouts"],
                best["positions"],
                str(best["steps"]),
                format_metric(METRIC, best["final"][METRIC]),
                format_metric(METRIC, worst["final"][METRIC]),
            )
        )
    label = metric_label(METRIC)
    header = (
        "family",
        "reward strength",
        "lambda",
        "rollouts",
        "positions",
        "steps",
        label,
        f"{label}, worst of the rung",
    )
    return Table(header, tuple(cells), ("left", "right", "right", "left", "left", "right", "right", "right"))


def pressed_table(content: Mapping[str, Any]) -> Table:
    """One row an arm: its lambda, pressure and admission, means over seeds, and both checkpoints against the baseline.

    Args:
        content: of `comparison.json`.
    """
    metric, baseline = content["plan"]["metric"], content["plan"]["baseline"]
    found = {(row["arm"], row["checkpoint"]): row["against"].get(metric) for row in content["rows"]}
    cells = []
    for arm, facts in content["arms"].items():
        if arm == baseline:
            continue
        best = found.get((arm, "best"))
        cells.append(
            (
                arm,
                *(_mean(facts.get(name, ())) for name in ("lambda", "pressure", "admission")),
                _difference(metric, best),
                _difference(metric, found.get((arm, "final"), best)),
            )
        )
    label = f"{metric_label(metric)} against {baseline}{', points' * is_rate(metric)}"
    header = ("arm", "lambda", "reward strength over the fit", "admitted", f"best, {label}", f"last step, {label}")
    return Table(header, tuple(cells), ("left", *("right",) * 5))


def pairs_over_sets(contents: Sequence[Mapping[str, Any]], titles: Sequence[str], metric: str | None = None) -> Table:
    """One row a pair of arms, one column a set: the first less the second at the last step; then the mean over sets.

    There is no mean of one set, nor of several comparisons of a set, nor where a set has a single seed.

    Args:
        contents: of `comparison.json`, which hold the same pairs against each other.
        titles: of their columns.
        metric: instead of that of their plans.

    Raises:
        UserError: no pair has that metric.
    """
    metric = metric or contents[0]["plan"]["metric"]
    found = [_last_pairs(content, metric) for content in contents]
    if not any(found):
        raise UserError(f"no pair of arms has {metric}")
    scale = (100, 2) if is_rate(metric) else (1, 4)
    distinct = 1 < len({content["name"] for content in contents}) == len(contents)
    cells = []
    for names in dict.fromkeys(names for pairs in found for names in pairs):
        results = [pairs.get(names) for pairs in found]
        line = [_difference(metric, one) for one in results]
        tried = [one for one in results if one is not None]
        known = [(one["difference"], one["variance"]["users"]) for one in tried if "variance" in one]
        known = known if len(known) == len(tried) else []
        cells.append((" minus ".join(names), *line, *([shown(known, *scale)] if distinct else [])))
    label = f"{metric_label(metric)}{', points' * is_rate(metric)}"
    header = ("arms", *titles, *([f"mean over sets, {label}"] if distinct else []))
    right: list[Alignment] = ["right"] * (len(header) - 1)
    return Table(header, tuple(cells), ("left", *right))


def teachers_table(contents: Mapping[str, Mapping[str, Any]]) -> Table:
    """One row a teacher: the weight that validation chose under each seed, what its arms have above continued NLL.

    Args:
        contents: of `comparison.json`, by teacher.
    """
    cells = []
    for teacher, content in contents.items():
        metric, baseline = content["plan"]["metric"], content["plan"]["baseline"]
        last = {row["arm"]: row["against"].get(metric) for row in content["rows"]}  # final stands behind best
        weights = [content["arms"][arm].get("weight", ()) for arm in ("fair-distill", "rerank")]
        chosen = [", ".join(MISSING if one is None else f"{one:g}" for one in values) for values in weights]
        cells.append((teacher, *chosen, *(_difference(metric, last.get(arm)) for arm in TAUGHT)))
    arms = (f"{name} minus {baseline}, points" for name in ("distillation", "re-ranking", "both"))
    header = ("teacher", "weight of distillation", "weight of re-ranking", *arms)
    return Table(header, tuple(cells), ("left", *("right",) * 5))


def _last_pairs(content: Mapping[str, Any], metric: str) -> dict[tuple[str, str], Mapping[str, Any]]:
    pairs = [row for row in content.get("pairs", ()) if metric in row["against"]]
    return {(row["arm"], row["other"]): row["against"][metric] for row in pairs}  # final stands behind best


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return format_number(float(f"{fmean(known):.3g}")) if known else MISSING


def _difference(metric: str, result: Mapping[str, Any] | None) -> str:
    if result is None:
        return MISSING
    return f"{format_difference(metric, result['difference'])} ({format_ends(metric, reported(result))})"
