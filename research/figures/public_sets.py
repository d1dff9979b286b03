"""The picture of the README: policy, re-ranked and fused list on public sets, each set from the same runs.

    python -m research.pages     # draws `figures/public-sets.svg`

Of `decisions/sets.jsonl`, test cases, means over the seeds of a set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adagrpo.report.charts import GREY, INK, SKY, SURFACE, TEAL, draw
from adagrpo.report.page import read_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["PUBLISHED", "SETS", "label", "lists_of_sets", "public_sets_picture"]

METRIC = "hr@10"
SETS = {  # as the studies call them
    "amazon18-scientific": "Scientific",
    "amazon-beauty": "Beauty",
    "amazon-toys": "Toys",
    "amazon-sports": "Sports",
    "amazon-office": "Office",
    "lastfm": "LastFM",
    "ml-1m": "MovieLens-1M",
    "yelp": "Yelp",
    "yelp-masked": "Yelp",
    "kuairand-clicks": "KuaiRand",
}
VARIANTS = {"-ties": ", shuffled ties", "-alike": ", unweighted"}
LISTS = {"policy": "sft", "re-ranked": "rerank", "fused": "fuse"}
# HR@10 and NDCG@10 of the best known single model that makes lists, on the same split, history masked: BSARec on
# Beauty and Toys (MTandHJ/RecBoard, five seeds), MARIUS on Sports (its paper), UniSRec on Scientific (second hand),
# FuXi-α on MovieLens-1M (blondered/transformer_benchmark). Fused lists are ensembles. A cross-encoder of .6 B that only
# scores has more on Toys and Sports (arXiv 2607.25346: .1223, .0677; second hand, masking not said).
PUBLISHED = {
    "amazon-beauty": (0.1002, 0.0610),
    "amazon-toys": (0.1078, 0.0663),
    "amazon-sports": (0.0672, 0.0362),
    "amazon18-scientific": (0.1235, 0.0634),
    "ml-1m": (0.3164, 0.1813),
}
WIDTH, HEIGHT = 880, 310
TICKS = (0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3)

Rows = Sequence[Mapping[str, Any]]


def label(name: str) -> str:
    """What pages call a set, or a variant of one."""
    if name in SETS:
        return SETS[name]
    of, variant = name.rsplit("-", 1)
    return SETS[of] + VARIANTS[f"-{variant}"]


def lists_of_sets(results: Path) -> dict[str, dict[str, float]]:
    """HR@10 of the lists of the picture on every set that was measured without training, by what pages call both.

    Args:
        results: the folder of the studies.
    """
    path = results / "decisions" / "sets.jsonl"
    rows: Rows = [row for row in read_rows(path) if not row["trained"]] if path.is_file() else []
    found: dict[str, dict[str, float]] = {}
    for name, data in SETS.items():
        tests = [
            {own: run["contenders"][own]["test"][METRIC] for own in LISTS.values()}
            for run in rows
            if run["set"] == name
        ]
        if tests:
            found[data] = {shown: sum(test[own] for test in tests) / len(tests) for shown, own in LISTS.items()}
    return found


def public_sets_picture(found: Mapping[str, Mapping[str, float]]) -> str:
    """Draw policy, re-ranked and fused of each set on one axis, and a published single model where one is known.

    Args:
        found: of `lists_of_sets`.
    """
    published = {SETS[name]: hits for name, (hits, _) in PUBLISHED.items()}
    marks = {"policy": (SURFACE, INK), "re-ranked": (SKY, SKY), "fused": (TEAL, TEAL)}

    def paint(axes: Axes) -> None:
        for y, (data, lists) in enumerate(found.items()):
            shown = [lists[name] for name in marks]
            axes.plot([min(shown), max(shown)], [y, y], color=GREY, lw=2, zorder=1)
            for order, (name, (face, edge)) in enumerate(marks.items(), start=2):
                label = name if not y else None
                axes.plot([lists[name]], [y], "o", ms=11, mfc=face, mec=edge, mew=1.5, zorder=order, label=label)
            if data in published:
                axes.plot([published[data]] * 2, [y - 0.35, y + 0.35], color=INK, lw=2, zorder=6)
        axes.plot([], [], "|", ms=14, mew=2, color=INK, label="published single model")
        axes.set_xscale("log")
        axes.set_xticks(TICKS, [f"{100 * tick:g}" for tick in TICKS])
        axes.minorticks_off()
        axes.set_yticks(range(len(found)), list(found), color=INK)
        axes.set_ylim(len(found) - 0.5, -0.5)
        axes.grid(axis="x")
        axes.set_xlabel("HR@10, test cases, %", loc="right")

    above = sum(lists["fused"] > lists["re-ranked"] for lists in found.values())
    said = (", ".join(f"{name} {100 * lists[name]:.1f}" for name in marks) for lists in found.values())
    return draw(
        f"Fusing gains more than re-ranking on {above} of {len(found)} data sets, and neither trains on the reward",
        "; ".join(f"{data}: {values} % HR@10" for data, values in zip(found, said, strict=True)),
        paint,
        width=WIDTH,
        height=HEIGHT,
    )
