"""What each objective gains with rewards from good to none, of the rows of `research.reward_quality.measure`.

The quality of a reward is what re-ranking by it adds on validation cases, the sum of log-probability and reward against
the policy's own order, in NDCG@10: what `adagrpo diagnose` reads before anything is trained. The gains are those of the
arms' last checkpoints on test cases. Where a gain crosses zero is read off a rising fit (isotonic, least squares).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from scipy import optimize, stats

from adagrpo.evaluation.comparison import reported
from adagrpo.metrics import is_rate
from adagrpo.report.charts import Point, scatter_chart
from adagrpo.report.figures import Figure
from adagrpo.report.tables import MISSING, START, Alignment, Table, metric_label
from research.pages.results import change

__all__ = ["crossing", "crossing_table", "quality_figure", "quality_table"]

Row = Mapping[str, Any]


def quality_table(rows: Sequence[Row], metric: str = "hr@10") -> Table:
    """One row a reward: what re-ranking by it adds on validation, the diagnosis, and what each arm gained at its end.

    Args:
        rows: of `research.reward_quality.measure`.
        metric: of the arms, test cases; where its values by user are not known, the difference of the means.
    """
    if not rows:
        return Table(("reward",), (), ("left",))
    rate = is_rate(metric)
    last = _last(rows[0])
    cells = []
    for row in rows:
        result = row["diagnosis"]
        line = [row["variant"], *(change(result["minus_policy"][order]["ndcg@10"]) for order in ("ranker", "mix"))]
        line.append(result["decision"])
        line += [_points(*_gain(row, arm, checkpoint, metric), rate) for arm, checkpoint in last.items()]
        cells.append(tuple(line))
    unit = ", points" if rate else ""
    header: tuple[str, ...] = ("reward", "its order, Δ NDCG@10", "both, Δ NDCG@10", "diagnose")
    header += tuple(f"{arm}, Δ {metric_label(metric)}{unit}" for arm in last)
    right: list[Alignment] = ["right"] * len(last)
    return Table(header, tuple(cells), ("left", "right", "right", "left", *right))


def crossing_table(rows: Sequence[Row], metric: str = "hr@10") -> Table:
    """One row an arm: how its gain goes with the quality of the reward, and from which quality on there is any.

    Args:
        rows: of `research.reward_quality.measure`, at least one.
        metric: of the arms, test cases. Losing and gaining are by the intervals over users.
    """
    cells = []
    for arm, checkpoint in _last(rows[0]).items():
        result = [(_quality(row), *_gain(row, arm, checkpoint, metric)) for row in rows]
        quality, gains = [place for place, _, _ in result], [gain for _, gain, _ in result]
        moved = len(set(gains)) > 1 and len(set(quality)) > 1
        rank = f"{stats.spearmanr(quality, gains).statistic:+.2f}" if moved else MISSING
        lost = [place for place, _, ends in result if ends is not None and ends[1] < 0]
        gained = [place for place, _, ends in result if ends is not None and ends[0] > 0]
        where = crossing(quality, gains)
        places = (where, max(lost, default=None), min(gained, default=None))
        texts = [MISSING if place is None else f"{place:+.4f}" for place in places]
        cells.append((arm, rank, *texts, str(len(lost)), str(len(gained))))
    header = ("arm", f"rank correlation with Δ {metric_label(metric)}", "crosses 0 at", "loses up to", "gains from")
    right: list[Alignment] = ["right"] * 6
    return Table((*header, "rewards under which it loses", "gains"), tuple(cells), ("left", *right))


def crossing(x: Sequence[float], y: Sequence[float]) -> float | None:
    """The x at which y, as far as it rises with x, goes through 0.

    The rising sequence nearest to `y` in least squares, interpolated linearly from the last point below 0 to the first
    one that is not. Points of the same x are taken at their mean.

    Args:
        x: (N,) in any order.
        y: (N,).

    Returns:
        None where the fit lies on one side of 0.

    Raises:
        ValueError: `x` and `y` are not as long as each other, empty, or not finite.

    Example:
        >>> crossing([0.0, 1.0, 2.0], [-3.0, -1.0, 1.0])
        1.5
    """
    points = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if points[0].shape != points[1].shape or points[0].ndim != 1 or not len(points[0]):
        raise ValueError(f"x has shape {points[0].shape}, y {points[1].shape}: expected (N,) of both, N at least 1")
    if not (np.isfinite(points[0]).all() and np.isfinite(points[1]).all()):
        raise ValueError("x and y: expected finite numbers")
    places, group = np.unique(points[0], return_inverse=True)
    counts = np.bincount(group)
    means = np.bincount(group, weights=points[1]) / counts
    fitted = optimize.isotonic_regression(means, weights=counts).x
    above = int(np.searchsorted(fitted, 0.0))  # the first that is not below 0
    if above in (0, len(fitted)):
        return None
    low, high = fitted[above - 1], fitted[above]
    return float(places[above - 1] - low * (places[above] - places[above - 1]) / (high - low))


def quality_figure(
    rows: Sequence[Row], metric: str = "hr@10", names: Mapping[str, str] = MappingProxyType({})
) -> Figure:
    """The gain of each arm against the quality of the reward; one joined line an arm, less `grpo`, whose losses without
    an anchor would leave the others no room.

    Args:
        rows: of `research.reward_quality.measure`, at least one.
        metric: of the arms, test cases.
        names: what arms are called in the chart, where it is not as in the rows.
    """
    rate = is_rate(metric)
    ordered = sorted(rows, key=_quality)
    points = []
    drawn = {arm: checkpoint for arm, checkpoint in _last(rows[0]).items() if arm != "grpo"}
    for arm, checkpoint in drawn.items():
        for row in ordered:
            difference, ends = _gain(row, arm, checkpoint, metric)
            named = names.get(arm, arm)
            tip = f"{named}, {row['variant']}: {_points(difference, ends, rate)}"
            points.append(Point(_quality(row), difference, named, tip=tip))
    svg = scatter_chart(
        points,
        title=f"{metric_label(metric)} of each arm, minus that of {rows[0]['baseline']}",
        x_label="what re-ranking by the reward adds to NDCG@10, validation",
        y_label=f"Δ {metric_label(metric)}",
        y_percent=rate,
    )
    return Figure(svg, "One seed, test cases, last checkpoints; above 0 the arm is better than the baseline.")


def _last(row: Row) -> dict[str, str]:
    """The last checkpoint of each arm, in order; `rerank` has no final one."""
    return {arm["arm"]: arm["checkpoint"] for arm in row["arms"] if arm["arm"] not in (START, row["baseline"])}


def _quality(row: Row) -> float:
    return float(row["diagnosis"]["minus_policy"]["mix"]["ndcg@10"]["mean"])


def _gain(row: Row, arm: str, checkpoint: str, metric: str) -> tuple[float, Sequence[float] | None]:
    """An arm less the baseline, with the interval over users where it is known."""
    points = {(result["arm"], result["checkpoint"]): result for result in row["arms"]}
    point = points[arm, checkpoint]
    against = point["against"].get(metric)
    if against is not None:
        return against["difference"], reported(against)
    reference = points[row["baseline"], "final"]["test"][metric]["mean"]
    return point["test"][metric]["mean"] - reference, None


def _points(difference: float, ends: Sequence[float] | None, rate: bool) -> str:
    scale, form = (100, "+.2f") if rate else (1, "+.4f")
    text = f"{scale * difference:{form}}"
    return text if ends is None else f"{text} ({scale * ends[0]:{form}} to {scale * ends[1]:{form}})"
