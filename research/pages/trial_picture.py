"""The second figure of the README: what each objective of the fair trial did with each gate, on each data set.

Grouped by data set, a row an objective, a mark a gate: HR@10 at the last step less that of continued NLL, with the
interval over users and seeds. Re-ranking has a row of its own. Marks have a shape and a lane each, so that none needs
its colour. An interval that leaves the picture ends in an arrow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from adagrpo.errors import UserError
from adagrpo.evaluation.comparison import reported
from adagrpo.report import read_comparison
from adagrpo.report.interval_charts import ForestRow, IntervalMark, forest_chart

__all__ = ["Outcome", "outcomes", "trial_picture", "trials"]

METRIC = "hr@10"
SETS = {  # by the file of its trial
    "trial-amazon18-scientific": "Scientific",
    "trial-amazon-beauty": "Beauty",
    "trial-amazon-toys": "Toys",
    "trial-lastfm": "LastFM",
    "trial-ml-1m": "MovieLens-1M",
    "trial-yelp": "Yelp",
    "trial-kuairand-clicks": "KuaiRand, a feed",
}
OBJECTIVES = {
    "grpo-samples": "mixture on samples",
    "grpo-beam": "mixture on the beam",
    "best-of-n": "best of n",
    "distill": "distillation",
}
RERANK, RERANKED = "rerank", "re-ranked, not trained"
GATES = {
    "": "no gate",
    "-gate": "the gate rollout_miss, an earlier form of the paper's",
    "-random": "a random gate that admits as many",
}
LIMITS = (-2.5, 4.0)  # points


class Outcome(NamedTuple):
    """What an arm gained on a set, in points, with the interval over users and seeds; `gate` as the legend names it."""

    data: str
    row: str
    gate: str
    difference: float
    low: float
    high: float


def trials(results: Path) -> list[Path]:
    """The files that the figure is drawn from; empty if one of them is not there."""
    found = [next(iter(results.rglob(f"{name}.comparison.json")), None) for name in SETS]
    return [path for path in found if path is not None] if None not in found else []


def outcomes(paths: Sequence[Path]) -> list[Outcome]:
    """The marks of the figure.

    Args:
        paths: of `trials`.

    Raises:
        UserError: an arm of the trial is not in its file.
    """
    marks = []
    for path in paths:
        rows = read_comparison(path)["rows"]
        data = SETS[path.name.removesuffix(".comparison.json")]
        for objective, row in OBJECTIVES.items():
            for end, gate in GATES.items():
                marks.append(_outcome(data, row, gate, _last(rows, f"fair-{objective}{end}", path)))
        marks.append(_outcome(data, RERANKED, RERANKED, _last(rows, RERANK, path)))
    return marks


def trial_picture(marks: Sequence[Outcome]) -> str:
    """Draw the figure.

    Args:
        marks: of `outcomes`.
    """
    rows: dict[tuple[str, str], dict[str, IntervalMark]] = {}
    for mark in marks:
        rows.setdefault((mark.data, mark.row), {})[mark.gate] = IntervalMark(mark.difference, mark.low, mark.high)
    return forest_chart(
        [ForestRow(row, found, data) for (data, row), found in rows.items()],
        title="The gate rollout_miss: no better than a random one.",
        x_label="points of HR@10 against continued NLL",
        notes=(
            "Corrected within a set; equal tuning. Hits among the first ten, less those of training on without a"
            " reward. Lines are 95 % intervals over users and seeds, each by itself."
        ),
        limits=LIMITS,
        names={name: name for name in (*GATES.values(), RERANKED)},
    )


def _outcome(data: str, row: str, gate: str, result: Mapping[str, Any]) -> Outcome:
    low, high = reported(result)
    return Outcome(data, row, gate, 100 * result["difference"], 100 * low, 100 * high)


def _last(rows: Sequence[Mapping[str, Any]], arm: str, path: Path) -> Mapping[str, Any]:
    """An arm's last checkpoint against the baseline."""
    found = [row["against"][METRIC] for row in rows if row["arm"] == arm and METRIC in row["against"]]
    if not found:
        raise UserError(f"{path}: no {METRIC} of the arm {arm}")
    return dict(found[-1])  # final stands behind best
