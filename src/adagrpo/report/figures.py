"""The charts of a run, with captions on how to read them.

Source of the frontier (HR@10 against hallucination): AdaGRPO (Xu et al. 2026, arXiv 2606.08480); we depart by joining
each arm's best checkpoint to its final one. Admission is drawn with that of a shuffled reward.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from adagrpo.metrics import ReportPart, is_rate, metric_names
from adagrpo.objective import GroupSummary
from adagrpo.objective.terms import TERMS
from adagrpo.report.chart_numbers import points_table, series_table
from adagrpo.report.charts import Point, Series, line_chart, scatter_chart, stacked_area_chart
from adagrpo.report.tables import START, Table, checkpoints, format_metric, is_finite, metric_label

Quantity = Callable[[GroupSummary], float | None]

CAUSES: tuple[tuple[str, Quantity], ...] = (
    ("admitted", lambda groups: groups.admission),
    ("already easy", lambda groups: groups.rejected_easy),
    ("reward cannot tell", lambda groups: groups.rejected_undiscriminated),
    ("no order in the group", lambda groups: groups.rejected_degenerate),
)
CROWD = 6  # so many arms are drawn as they are, whatever their distance
# of the groups, or the keys of steps.jsonl of which an arm has one; title, unit, whether it is a rate
SIGNALS: tuple[tuple[Quantity | tuple[str, ...], str, str, bool], ...] = (
    (lambda groups: groups.reward, "Mean reward of the rollouts", "reward", False),
    (lambda groups: groups.invalid_share, "Invalid rollouts", "share of rollouts", True),
    (("nll",), "NLL of the logged items", "nats a code", False),
    (lambda groups: groups.kl, "KL from the starting policy", "nats", False),
    (lambda groups: groups.entropy, "Entropy of the rollouts", "nats", False),
    (("clip_fraction",), "Clipped ratios", "share of ratios", True),
    (tuple(f"grad_norm_{term}" for term in TERMS), "Gradient norm of the reward term", "norm", False),
    (("grad_norm_nll",), "Gradient norm of the NLL term", "norm", False),
    (("pressure",), "Pressure: reward term over NLL term", "ratio of norms", False),
)


_Plot = tuple[str, str, Sequence[Series], bool]  # title, y label, lines, whether they are rates


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

    @cached_property
    def groups(self) -> list[GroupSummary]:
        """Return the group summaries, one per step."""
        return [GroupSummary.of_row(row) for row in self.steps]


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
    arms = [log for log in logs if log.arm != START]
    return _charts([(title, unit, [_signal(log, read) for log in arms], rate) for read, title, unit, rate in SIGNALS])


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
        steps, overlay = _column(log.steps, "step"), [one.shuffled_admission for one in log.groups]
        svg = stacked_area_chart(
            steps,
            layers,
            title=f"{log.arm}: admission and rejections by cause",
            x_label="step",
            y_label="share of samples",
            overlay=("a shuffled reward would admit", overlay),
        )
        shares = [Series(name, steps, values) for name, values in (*layers, ("shuffled reward", overlay))]
        figures.append(Figure(svg, _admission_caption(log), series_table(shares, "step", percent=True)))
    return figures


def frontier_figure(metrics: Mapping[str, Any]) -> Figure | None:
    """Draw HR@10 against hallucination of every checkpoint; None if not measured."""
    return _scatter(
        metrics,
        ("hallucination@10", "hr@10"),
        title="Retrieval against validity",
        caption="Up and to the left is better.",
        percent=True,
    )


def utility_figure(metrics: Mapping[str, Any]) -> Figure | None:
    """Draw true utility against mean reward of every checkpoint; None if unknown."""
    return _scatter(
        metrics,
        ("mean_reward@10", "true_utility@10"),
        title="What the ranker rewards against what users get",
        caption="An arm to the right of sft and below it raised the reward at the users' cost.",
        percent=False,
    )


def _validation_plots(logs: Sequence[Log], prefix: str) -> list[_Plot]:
    return [
        (
            f"{prefix} {metric_label(name)}",
            metric_label(name),
            [_series(log, log.validation, name) for log in logs],
            is_rate(name),
        )
        for name in metric_names(ReportPart.CURVES)
    ]


def _charts(plots: Sequence[_Plot]) -> list[Figure]:
    return [
        Figure(
            line_chart(series, title=title, x_label="step", y_label=y_label, percent=percent),
            numbers=series_table(series, "step", percent=percent),
        )
        for title, y_label, series, percent in plots
        if any(is_finite(value) for line in series for value in line.y)
    ]


def _scatter(
    metrics: Mapping[str, Any], names: tuple[str, str], *, title: str, caption: str, percent: bool
) -> Figure | None:
    points = checkpoints(metrics)
    for split in ("test", "validation"):
        drawn = []
        for point in points:
            x, y = (point.value(split, name) for name in names)
            if x is None or y is None:
                continue
            values = ", ".join(f"{metric_label(n)} {format_metric(n, v)}" for n, v in zip(names, (x, y), strict=True))
            tip = f"{point.arm}, {point.kind}: {values}"
            drawn.append(Point(x, y, point.arm, point.kind == "final", tip))
        if drawn:
            far = _far_off(drawn)
            without = f", without {' and '.join(far)}" if far else ""
            svg = scatter_chart(
                [point for point in drawn if point.name not in far],
                title=f"{title}, {split} cases{without}",
                x_label=metric_label(names[0]),
                y_label=metric_label(names[1]),
                x_percent=percent,
                y_percent=percent,
            )
            caption += f" Too far off to be drawn: {', '.join(far)}." if far else ""
            caption += " Filled: the best checkpoint, or sft; hollow: the final one of the same arm."
            labels = (metric_label(names[0]), metric_label(names[1]))
            return Figure(svg, caption, points_table(drawn, labels, (percent, percent)))
    return None


def _far_off(points: Sequence[Point]) -> list[str]:
    arms, far = list(dict.fromkeys(point.name for point in points)), []
    if len(arms) <= CROWD:
        return []
    for arm in arms:
        others = [point for point in points if point.name != arm]
        for axis in ("x", "y"):
            values = [getattr(point, axis) for point in others]
            low, high = min(values), max(values)
            own = [getattr(point, axis) for point in points if point.name == arm]
            if max(max(own) - high, low - min(own)) > 3 * (high - low):
                far.append(arm)
                break
    return far


def _admission_caption(log: Log) -> str:
    shares = [one.admission for one in log.groups]
    admitted, shuffled = _mean(shares), _mean([one.shuffled_admission for one in log.groups])
    # a share of what was admitted, and not of steps
    holding = _mean([one.admitted_contains_target for one in log.groups], weights=shares)
    sentences = [f"Over all steps {format_metric('admission', admitted)} of the samples were admitted"]
    if shuffled is not None:
        sentences[0] += f"; a shuffled reward would have admitted {format_metric('admission', shuffled)}"
    if holding is not None:
        sentences.append(f"The rollouts of {format_metric('admission', holding)} of the admitted held the logged item")
    return ". ".join(sentences) + "."


def _signal(log: Log, read: Quantity | tuple[str, ...]) -> Series:
    if isinstance(read, tuple):
        return _series(log, log.steps, _logged(log.steps, read))
    values = ((row, read(groups)) for row, groups in zip(log.steps, log.groups, strict=True))
    known = [(row, value) for row, value in values if value is not None]
    return Series(log.arm, _column([row for row, _ in known], "step"), [value for _, value in known])


def _logged(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    """Return the first name that the rows have, or else the first."""
    return next((name for name in names if any(name in row for row in rows)), names[0])


def _series(log: Log, rows: Sequence[Mapping[str, Any]], name: str) -> Series:
    """Return a line over the rows that have the quantity, without gaps."""
    mark = log.best_step if rows is log.validation else None
    measured = [row for row in rows if name in row]
    return Series(log.arm, _column(measured, "step"), _column(measured, name), mark)


def _column(rows: Sequence[Mapping[str, Any]], key: str) -> list[Any]:
    return [row.get(key) for row in rows]


def _mean(values: Sequence[float | None], weights: Sequence[float | None] | None = None) -> float | None:
    pairs = zip(values, weights or [1.0] * len(values), strict=True)
    known = [(value, weight) for value, weight in pairs if is_finite(value) and is_finite(weight)]
    total = sum(weight for _, weight in known)
    return sum(weight * value for value, weight in known) / total if total else None
