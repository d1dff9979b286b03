"""The charts of a run, with captions on how to read them, and what they draw as tables.

Source of the frontier (HR@10 against hallucination): AdaGRPO (Xu et al. 2026, arXiv 2606.08480); we depart by joining
each arm's best checkpoint to its final one. Admission is drawn with that of a shuffled reward.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from adagrpo.metrics import ReportPart, is_rate, metric_names
from adagrpo.objective import GroupSummary
from adagrpo.objective.terms import TERMS
from adagrpo.report.charts import Point, Series, line_chart, scatter_chart, stacked_area_chart
from adagrpo.report.tables import MISSING, START, Table, checkpoints, format_metric, format_number, is_finite
from adagrpo.report.tables import metric_label as label

Quantity = Callable[[GroupSummary], float | None]
_Plot = tuple[str, str, Sequence[Series], bool]  # title, y label, lines, whether they are rates

CAUSES: tuple[tuple[str, Quantity], ...] = (
    ("admitted", lambda groups: groups.admission),
    ("already easy", lambda groups: groups.rejected_easy),
    ("reward cannot tell", lambda groups: groups.rejected_undiscriminated),
    ("no order in the group", lambda groups: groups.rejected_degenerate),
)
CROWD = 6  # so many arms are drawn as they are, whatever their distance
ROWS = 20  # of the table of a chart
REWARD = "mean_reward@10"
WITHOUT_REWARD = "nll"  # the objective that reads none
TOLERANCE = 1e-3  # relative; batches of another size round otherwise
# of the groups, or the keys of steps.jsonl of which an arm has one; title, unit, whether it is a rate
SIGNALS: tuple[tuple[Quantity | tuple[str, ...], str, str, bool], ...] = (
    (lambda groups: groups.reward, "Mean reward of the rollouts", "reward", False),
    (lambda groups: groups.invalid_share, "Invalid rollouts", "share of rollouts", True),
    (lambda groups: groups.rejected_degenerate, "Groups whose rewards define no order", "share of samples", True),
    (lambda groups: groups.contains_target, "Groups that hold the logged item", "share of groups", True),
    (("nll",), "NLL of the logged items", "nats a code", False),
    (lambda groups: groups.kl, "KL from the starting policy", "nats", False),
    (lambda groups: groups.entropy, "Entropy of the rollouts", "nats", False),
    (("clip_fraction",), "Clipped ratios", "share of ratios", True),
    (tuple(f"grad_norm_{term}" for term in TERMS), "Gradient norm of the reward term", "norm", False),
    (("grad_norm_nll",), "Gradient norm of the NLL term", "norm", False),
    (("pressure",), "Pressure: reward term over NLL term", "ratio of norms", False),
)


@dataclass(frozen=True)
class Figure:
    """A chart with its caption."""

    svg: str
    caption: str = ""
    numbers: Table | None = None  # what is drawn, for those who do not see it or want the digits


@dataclass(frozen=True)
class Log:
    """The training log of an arm."""

    arm: str
    steps: Sequence[Mapping[str, Any]] = field(default_factory=tuple)
    validation: Sequence[Mapping[str, Any]] = field(default_factory=tuple)
    best_step: float | None = None
    lost: Mapping[str, Any] | None = None  # step and reason of a policy collapse
    thresholds: Mapping[str, Any] | None = None  # `thresholds.json`, where the gate's were found by admission

    @cached_property
    def groups(self) -> list[GroupSummary]:
        """Return the group summaries, one per step."""
        return [GroupSummary.of_row(row) for row in self.steps]


def of_this_reward(logs: Sequence[Log], metrics: Mapping[str, Any]) -> tuple[list[Log], list[str]]:
    """Drop logged mean rewards of another reward; also return the arms concerned.

    Another mean reward at step 0, where all arms are the starting policy, means another reward. If no arm reads the
    reward, all are kept.
    """
    first = {log.arm: next((row.get(REWARD) for row in log.validation if row.get("step") == 0), None) for log in logs}
    known = {arm: value for arm, value in first.items() if arm != START and is_finite(value)}
    without = {arm for arm in known if metrics.get("stages", {}).get(arm, {}).get("objective") == WITHOUT_REWARD}
    current = next((value for arm, value in known.items() if arm not in without), None)
    if current is None:
        return list(logs), []
    others = [arm for arm in known if arm in without and not math.isclose(known[arm], current, rel_tol=TOLERANCE)]
    kept = [
        replace(log, validation=[{name: row[name] for name in row if name != REWARD} for row in log.validation])
        if log.arm in others
        else log
        for log in logs
    ]
    return kept, others


def learning_curves(logs: Sequence[Log]) -> list[Figure]:
    """Draw validation metrics of the post-trained arms from step 0, one chart per metric."""
    return _charts(_validation_plots([log for log in logs if log.arm != START], "Validation"))


def supervised_curves(logs: Sequence[Log]) -> list[Figure]:
    """Draw the NLL and validation metrics of the starting policy's fit."""
    fits = [log for log in logs if log.arm == START]
    losses = [_series(log, log.steps, "nll") for log in fits]
    nll = ("Supervised fit: NLL of the logged items", "nats a code", losses, False)
    return _charts([nll, *_validation_plots(fits, "Supervised fit: validation")])


def training_signals(logs: Sequence[Log]) -> list[Figure]:
    """Draw the quantities that the arms logged at each step, one chart each."""

    def signal(log: Log, read: Quantity | tuple[str, ...]) -> Series:
        if isinstance(read, tuple):
            return _series(log, log.steps, next((name for name in read if any(name in r for r in log.steps)), read[0]))
        values = ((row.get("step"), read(groups)) for row, groups in zip(log.steps, log.groups, strict=True))
        known: list[tuple[Any, float]] = [(step, value) for step, value in values if value is not None]
        return Series(log.arm, [step for step, _ in known], [value for _, value in known])

    arms = [log for log in logs if log.arm != START]
    return _charts([(title, unit, [signal(log, read) for log in arms], rate) for read, title, unit, rate in SIGNALS])


def _validation_plots(logs: Sequence[Log], prefix: str) -> list[_Plot]:
    return [
        (f"{prefix} {label(name)}", label(name), [_series(log, log.validation, name) for log in logs], is_rate(name))
        for name in metric_names(ReportPart.CURVES)
    ]


def _series(log: Log, rows: Sequence[Mapping[str, Any]], name: str) -> Series:
    measured: list[Mapping[str, Any]] = [row for row in rows if name in row]
    steps: list[Any] = [row.get("step") for row in measured]
    mark = log.best_step if rows is log.validation else None
    return Series(log.arm, steps, [row[name] for row in measured], mark)


def _charts(plots: Sequence[_Plot]) -> list[Figure]:
    return [
        Figure(
            line_chart(series, title=title, x_label="step", y_label=y_label, percent=percent),
            numbers=series_table(series, "step", percent=percent),
        )
        for title, y_label, series, percent in plots
        if any(sum(map(is_finite, line.y)) > 1 for line in series)  # no curve is one dot
    ]


def admission_figures(logs: Sequence[Log], metrics: Mapping[str, Any]) -> list[Figure]:
    """Draw admission and rejections by cause over the steps, for each arm with a gate."""
    gates = {point.arm: point.gate for point in checkpoints(metrics)}
    figures = []
    for log in logs:
        gate = gates.get(log.arm, "adagrpo" if log.arm.startswith("adagrpo") else None)
        if gate in (None, "all", "none") or not any(is_finite(one.admission) for one in log.groups):
            continue
        layers: list[tuple[str, list[Any]]] = [(name, [read(one) for one in log.groups]) for name, read in CAUSES]
        closed = [one.rejected_closed for one in log.groups]
        if any((share or 0) > 0 for share in closed):
            layers.append(("closed by the control", closed))
        steps: list[Any] = [row.get("step") for row in log.steps]
        shuffled = [one.shuffled_admission for one in log.groups]
        svg = stacked_area_chart(
            steps,
            layers,
            title=f"{log.arm}: admission and rejections by cause",
            x_label="step",
            y_label="share of samples",
            overlay=("a shuffled reward would admit", shuffled),
        )
        admitted = layers[0][1]
        caption = f"Over all steps {format_metric('admission', _mean(admitted))} of the samples were admitted"
        if (by_chance := _mean(shuffled)) is not None:
            caption += f"; a shuffled reward would have admitted {format_metric('admission', by_chance)}"
        # a share of what was admitted, and not of steps
        holding = _mean([one.admitted_contains_target for one in log.groups], weights=admitted)
        if holding is not None:
            caption += f". The rollouts of {format_metric('admission', holding)} of the admitted held the logged item"
        shares = [Series(name, steps, values) for name, values in (*layers, ("shuffled reward", shuffled))]
        figures.append(Figure(svg, f"{caption}.", series_table(shares, "step", percent=True)))
    return figures


def threshold_figures(log: Log) -> list[Figure]:
    """Draw what the gate admits by τ and ρ at the starting policy, by the rewards and by shuffled ones."""
    assert log.thresholds is not None, "of an arm whose thresholds were found"
    grid = [row for row in log.thresholds["grid"] if round(10 * row[0], 6) % 2 == 1]  # τ .1, .3, .5, .7 and .9
    figures = []
    for place, whose in ((2, "its rewards"), (3, "shuffled rewards")):
        lines = [
            Series(f"tau {tau:g}", [r[1] for r in grid if r[0] == tau], [r[place] for r in grid if r[0] == tau])
            for tau in dict.fromkeys(row[0] for row in grid)
        ]
        svg = line_chart(
            lines,
            title=f"{log.arm}: admission at the start, by {whose}",
            x_label="rho",
            y_label="share of samples",
            percent=True,
        )
        figures.append(Figure(svg, "", series_table(lines, "rho", percent=True)))
    return figures


def _mean(values: Sequence[float | None], weights: Sequence[float | None] | None = None) -> float | None:
    pairs = zip(values, weights or [1.0] * len(values), strict=True)
    known = [(value, weight) for value, weight in pairs if is_finite(value) and is_finite(weight)]
    total = sum(weight for _, weight in known)
    return sum(weight * value for value, weight in known) / total if total else None


def frontier_figure(metrics: Mapping[str, Any]) -> Figure | None:
    """Draw HR@10 against hallucination of every checkpoint; None if not measured."""
    caption = "Up and to the left is better."
    return _scatter(metrics, "hallucination@10", "hr@10", "Retrieval against validity", caption, percent=True)


def utility_figure(metrics: Mapping[str, Any]) -> Figure | None:
    """Draw true utility against mean reward of every checkpoint; None if unknown."""
    title = "What the ranker rewards against what users get"
    caption = "An arm to the right of sft and below it raised the reward at the users' cost."
    return _scatter(metrics, REWARD, "true_utility@10", title, caption, percent=False)


def _scatter(
    metrics: Mapping[str, Any], x_name: str, y_name: str, title: str, caption: str, *, percent: bool
) -> Figure | None:
    for split in ("test", "validation"):
        drawn = []
        for point in checkpoints(metrics):
            x, y = point.value(split, x_name), point.value(split, y_name)
            if x is not None and y is not None:
                values = ", ".join(f"{label(name)} {format_metric(name, v)}" for name, v in ((x_name, x), (y_name, y)))
                tip = f"{point.arm}, {point.kind}: {values}"
                drawn.append(Point(x, y, point.arm, point.kind == "final", tip))
        if not drawn:
            continue
        arms, far = list(dict.fromkeys(point.name for point in drawn)), []
        for arm in arms if len(arms) > CROWD else ():
            own, others = ([(p.x, p.y) for p in drawn if (p.name == arm) == of_arm] for of_arm in (True, False))
            low, high = np.min(others, axis=0), np.max(others, axis=0)
            beyond = np.maximum(np.max(own, axis=0) - high, low - np.min(own, axis=0))
            far += [arm] if (beyond > 3 * (high - low)).any() else []
        without = f", without {' and '.join(far)}" if far else ""
        svg = scatter_chart(
            [point for point in drawn if point.name not in far],
            title=f"{title}, {split} cases{without}",
            x_label=label(x_name),
            y_label=label(y_name),
            x_percent=percent,
            y_percent=percent,
        )
        caption += f" Too far off to be drawn: {', '.join(far)}." if far else ""
        caption += " Filled: the best checkpoint, or sft; hollow: the final one of the same arm."
        rows = [
            (p.name, "final" if p.hollow else "best or start", _number(p.x, percent), _number(p.y, percent))
            for p in drawn
        ]
        return Figure(svg, caption, Table.of(("arm", "checkpoint", label(x_name), label(y_name)), rows, 2))
    return None


def series_table(series: Sequence[Series], x_label: str, *, percent: bool) -> Table:
    """Tabulate series as columns, at most `ROWS` positions and the last.

    >>> series_table([Series("nll", [0, 5], [0.1, None]), Series("all", [5], [0.2])], "step", percent=True).rows
    (('0', '10.00 %', '–'), ('5', '–', '20.00 %'))
    """
    positions = sorted({float(x) for line in series for x in line.x if is_finite(x)})
    step = -(-len(positions) // ROWS) or 1
    columns = [dict(zip(map(float, line.x), line.y, strict=True)) for line in series]
    rows = [
        (f"{x:g}", *(_number(column.get(x), percent) for column in columns))
        for x in [*positions[:-1:step], *positions[-1:]]
    ]
    return Table.of((x_label, *(line.name for line in series)), rows, 0)


def _number(value: float | None, percent: bool) -> str:
    if not is_finite(value):
        return MISSING
    return f"{100 * value:.2f} %" if percent else format_number(value)
