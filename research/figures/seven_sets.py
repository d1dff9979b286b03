"""The picture and the table of the README: what each way of using a ranker gained on the seven sets of the fair trial.

    python -m research.pages     # draws `figures/seven-sets.svg`, and writes the table where a page asks for `sets`

A row a method, a dot a data set: HR@10 of test cases relative to training on without the reward, the mean over seeds.
The mixture is GRPO beside NLL, on rollouts of beam search. A dot holds the first letter of its set, and is filled where
the difference is significant after Holm's correction over the tests of its set; item-kNN and fused lists were not part
of those tests. Fused lists are those of `research.decisions.sets`, less the starting policy of the same runs; their row
and column are there once they are measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, floor, inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from adagrpo.report import Table, read_comparison, read_rows
from adagrpo.report.canvas import draw
from adagrpo.report.tables import Alignment
from adagrpo.report.theme import INK, SURFACE, method_colors

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Outcome", "outcomes", "seven_sets_picture", "seven_sets_table"]

METRIC = "hr@10"
SETS = {  # as the trial calls them
    "amazon18-scientific": "Scientific",
    "amazon-beauty": "Beauty",
    "amazon-toys": "Toys",
    "lastfm": "LastFM",
    "ml-1m": "MovieLens-1M",
    "yelp": "Yelp",
    "kuairand-clicks": "KuaiRand",
}
POLICY, KNN, FUSED, RERANKED = "policy", "item-kNN", "fused", "re-ranked"
ARMS = {  # of a comparison's last step, by what they are called here
    RERANKED: "rerank",
    "trained, distillation": "fair-distill",
    "trained, mixture": "fair-grpo-beam",
}
ROWS = (FUSED, *ARMS, KNN)
SIGNIFICANT = ("significantly better", "significantly better, margin not kept", "significantly worse")
WIDTH, HEIGHT, MARGIN, DOT = 880, 200, 220, 16  # pixels; the margin is what names take
LANES = (0.0, -0.3, 0.3)  # of dots that would cover each other


class Outcome(NamedTuple):
    """HR@10 of a method on a set, and of what it is compared with; fractions."""

    data: str
    method: str
    value: float
    baseline: float
    significant: bool

    @property
    def gain(self) -> float:
        """In per cent of the baseline."""
        return 100 * (self.value / self.baseline - 1)


def outcomes(results: Path) -> list[Outcome]:
    """Every method on every set, as far as measured; empty where a comparison of the trial is not there.

    Args:
        results: the folder of the studies.
    """
    trial = results / "fair_trial"
    if not all((trial / f"trial-{name}.comparison.json").is_file() for name in SETS):
        return []
    found = []
    for name, data in SETS.items():
        rows = read_comparison(trial / f"trial-{name}.comparison.json")["rows"]
        last = {row["arm"]: row for row in rows}  # final stands behind best
        baseline = _mean(last["nll"])
        found.append(Outcome(data, POLICY, _mean(last["sft"]), baseline, False))
        for method, arm in ARMS.items():
            found.append(Outcome(data, method, _mean(last[arm]), baseline, last[arm]["verdict"] in SIGNIFICANT))
        found.append(Outcome(data, KNN, _knn(results, name), baseline, False))
    return found + _fused(results / "decisions" / "sets.jsonl")


def seven_sets_picture(found: Sequence[Outcome]) -> str:
    """Draw the picture.

    Args:
        found: of `outcomes`.
    """
    methods = [method for method in ROWS if any(one.method == method for one in found)]
    colors = method_colors(methods)

    ends = [one.gain for one in found if one.method in methods]
    low, high = 10 * floor(min(ends) / 10) - 2, 10 * ceil(max(ends) / 10) + 2
    apart = DOT * (high - low) / (WIDTH - MARGIN)  # per cent that a dot is wide

    def paint(axes: Axes) -> None:
        axes.axvline(0, color=INK, lw=1)
        for y, method in enumerate(methods):
            free = dict.fromkeys(LANES, -inf)  # the place of the last dot of each lane
            own = sorted((one for one in found if one.method == method), key=lambda one: one.gain)
            for order, one in enumerate(own, start=3):
                lane = next((lane for lane in LANES if one.gain - free[lane] > apart), min(free, key=lambda a: free[a]))
                free[lane] = one.gain
                color = colors[method]
                face, text = (color, SURFACE) if one.significant else (SURFACE, color)
                axes.plot([one.gain], [y + lane], "o", ms=DOT - 2, mec=color, mfc=face, mew=1.5, zorder=order)
                look: dict[str, Any] = {
                    "color": text,
                    "ha": "center",
                    "va": "center_baseline",
                    "fontsize": 10,
                    "zorder": order,
                }
                axes.text(one.gain, y + lane, one.data[0], **look)
        for face, said in (
            (INK, "significant, corrected over the tests of its set"),
            (SURFACE, "not significant, or not tested"),
        ):
            axes.plot([], [], "o", ms=DOT - 4, mew=1.5, mec=INK, mfc=face, label=said)
        axes.set_yticks(range(len(methods)), methods, color=INK)
        axes.set_ylim(len(methods) - 0.5, -0.5)
        axes.set_xlim(low, high)
        axes.grid(axis="x")
        axes.set_xlabel("HR@10 relative to training without the reward, %", loc="right")

    best = [max((one for one in found if one.data == data), key=lambda one: one.gain) for data in SETS.values()]
    described = "; ".join(f"{one.method}, {one.data}: {one.gain:+.0f} %" for one in found if one.method != POLICY)
    return draw(
        "Re-ranking by the ranker gains more than training on it; fused lists gain most on"
        f" {sum(one.method == FUSED for one in best)} of {len(best)}",
        described,
        paint,
        width=WIDTH,
        height=HEIGHT,
        notes=", ".join(f"{data[0]} {data}" for data in SETS.values())
        + ". Fused: one seed or three, compared with the starting policy of its run",
    )


def seven_sets_table(results: Path) -> Table:
    """HR@10 in per cent by set: the starting policy, item-kNN, re-ranked, both trainings, and fused where measured."""
    found = {(one.data, one.method): one for one in outcomes(results)}
    methods = [POLICY, KNN, RERANKED, *[name for name in ARMS if name != RERANKED], FUSED]
    methods = [method for method in methods if any(method == known for _, known in found)]
    rows = []
    for data in SETS.values():
        ours = [found.get((data, method)) for method in methods]
        rows.append((data, *("–" if one is None else _cell(one) for one in ours)))
    right: list[Alignment] = ["right"] * len(methods)
    return Table(("HR@10, %", *methods), tuple(rows), ("left", *right))


def _cell(one: Outcome) -> str:
    return f"{100 * one.value:.2f}" + ("*" if one.significant and one.gain > 0 else "")


def _mean(row: Mapping[str, Any]) -> float:
    return float(row["test"][METRIC]["mean"])


def _knn(results: Path, name: str) -> float:
    """Item-kNN of a set, which no seed changes. Of Scientific the trial's rows were not kept."""
    trial = results / "fair_trial" / f"trial-{name}.jsonl"
    rows = read_rows(trial if trial.is_file() else results / "starting_policies" / f"{name}.jsonl")
    return next(float(row["metrics"][METRIC]) for row in rows if (row["arm"], row["split"]) == ("item_knn", "test"))


def _fused(path: Path) -> list[Outcome]:
    rows = [row for row in read_rows(path) if not row["trained"]] if path.is_file() else []
    found = []
    for name, data in SETS.items():
        tests = [row["contenders"] for row in rows if row["set"] == name]
        if tests:
            value, baseline = (
                sum(float(one[arm]["test"][METRIC]) for one in tests) / len(tests) for arm in ("fuse", "sft")
            )
            found.append(Outcome(data, FUSED, value, baseline, False))
    return found
