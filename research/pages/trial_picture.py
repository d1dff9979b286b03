"""The second figure of the README: what each objective of the fair trial did with each gate, on each data set.

Grouped by data set, a row an objective, a mark a gate: HR@10 at the last step less that of continued NLL, with the
interval over users and seeds. Re-ranking has a row of its own. Marks have a shape and a lane each, so that none needs
its colour. An interval that leaves the picture ends in an arrow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from adagrpo.errors import UserError
from adagrpo.evaluation.comparison import reported
from adagrpo.report import read_comparison
from research.pages.picture import mark_at, picture, text_at

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
    "grpo-samples": "GRPO on samples",
    "grpo-beam": "GRPO on the beam",
    "best-of-n": "best of n",
    "distill": "distillation",
}
RERANK, RERANKED = "rerank", "re-ranked, not trained"
GATES = {
    "": "no gate",
    "-gate": "the gate rollout_miss, an earlier form of the paper's",
    "-random": "a random gate that admits as many",
}
WIDTH, LEFT, RIGHT = 480, 170, 466
FIRST, LAST = -2.5, 4.0  # points
ROW, HEAD, LANE = 28, 26, 7


class Outcome(NamedTuple):
    """What an arm gained on a set, in points, with the interval over users and seeds; `gate` is a lane of GATES."""

    data: str
    row: str
    gate: int
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
            for gate, end in enumerate(GATES):
                marks.append(_outcome(data, row, gate, _last(rows, f"fair-{objective}{end}", path)))
        marks.append(_outcome(data, RERANKED, len(GATES), _last(rows, RERANK, path)))
    return marks


def trial_picture(marks: Sequence[Outcome]) -> str:
    """The SVG.

    Args:
        marks: of `outcomes`.
    """
    sets = list(dict.fromkeys(mark.data for mark in marks))
    rows = list(dict.fromkeys(mark.row for mark in marks))
    top = 90 + 18 * len(GATES)
    bottom = top + len(sets) * (HEAD + ROW * len(rows)) + 6

    def x(points: float) -> float:
        return LEFT + (min(LAST, max(FIRST, points)) - FIRST) / (LAST - FIRST) * (RIGHT - LEFT)

    parts = [
        text_at(12, 28, "The gate rollout_miss: no better than a random one.", "ink", size=17, bold=True),
        text_at(12, 50, "Corrected within a set; equal tuning. Hits among the first ten, less", "quiet"),
        text_at(12, 68, "those of training on without a reward.", "quiet"),
    ]
    for lane, name in enumerate(GATES.values()):
        parts += [mark_at(lane, 20, 92 + 18 * lane), text_at(34, 96 + 18 * lane, name, "ink")]
    for points in range(int(FIRST), int(LAST) + 1):
        kind = "grid" if points else "zero"
        parts.append(f'<path class="{kind}" d="M{x(points):.1f} {top}V{bottom}" fill="none"/>')
        label = f"{points:+d}".replace("-", "\N{MINUS SIGN}") if points else "0"
        parts.append(text_at(x(points), bottom + 18, label, "quiet", "middle"))
    parts.append(text_at(RIGHT, bottom + 38, "points of HR@10 against continued NLL", "quiet", "end"))
    y = float(top)
    for data in sets:
        parts.append(f'<path class="zero" d="M12 {y}H{RIGHT}" fill="none" stroke-opacity=".6"/>')
        parts.append(text_at(12, y + 18, data, "ink", bold=True))
        y += HEAD
        for row in rows:
            parts.append(text_at(12, y + 18, row, "ink"))
            for mark in (mark for mark in marks if (mark.data, mark.row) == (data, row)):
                height = y + (14 if mark.gate == len(GATES) else 7 + LANE * mark.gate)
                parts += [_interval(mark, x, height), mark_at(mark.gate, x(mark.difference), height)]
            y += ROW
    note = "Lines are 95 % intervals over users and seeds, each by itself."
    parts.append(text_at(12, bottom + 60, note, "quiet", size=12))
    return picture("What each objective and gate of the fair trial gained, by data set", parts, WIDTH, bottom + 74)


def _interval(mark: Outcome, x: Callable[[float], float], y: float) -> str:
    """The line of an interval, with an arrow where it goes on."""
    ends = f"M{x(mark.low):.1f} {y:.1f}H{x(mark.high):.1f}"
    ends += "m-5 -3.5l5 3.5l-5 3.5" if mark.high > LAST else ""
    ends += f"M{x(mark.low) + 5:.1f} {y - 3.5:.1f}l-5 3.5l5 3.5" if mark.low < FIRST else ""
    return f'<path class="a{mark.gate}" d="{ends}" stroke-width="1.5" fill="none"/>'


def _outcome(data: str, row: str, gate: int, result: Mapping[str, Any]) -> Outcome:
    low, high = reported(result)
    return Outcome(data, row, gate, 100 * result["difference"], 100 * low, 100 * high)


def _last(rows: Sequence[Mapping[str, Any]], arm: str, path: Path) -> Mapping[str, Any]:
    """An arm's last checkpoint against the baseline."""
    found = [row["against"][METRIC] for row in rows if row["arm"] == arm and METRIC in row["against"]]
    if not found:
        raise UserError(f"{path}: no {METRIC} of the arm {arm}")
    return dict(found[-1])  # final stands behind best
