"""Charts of a diagnosis, from `weights` and `by_exposure` of `diagnose.json` (`adagrpo.diagnosis.curves`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from adagrpo.report.figures import Figure
from adagrpo.report.interval_charts import Band, IntervalMark, interval_chart
from adagrpo.report.tables import MISSING, Table, format_interval

HR, NDCG = "hr@10", "ndcg@10"
BOTH = ("ranker", "policy")
FRACTIONS = {"0.125": "⅛", "0.25": "¼", "0.5": "½"}  # on an axis, where the others have less room

Row = Mapping[str, Any]


def weight_figures(content: Row) -> list[Figure]:
    """Draw the change of NDCG@10 and HR@10 over the weights of re-ranking."""
    names = [_weight(weight) for weight in content["weights"]]
    chosen = [_weight(weight) for weight in dict.fromkeys(content["chosen"])]
    figures = []
    for metric, factor, label in ((NDCG, 1, "NDCG@10"), (HR, 100, "HR@10, points")):
        mixed = [_estimate(content["mix"][metric], factor) if name in chosen else None for name in names]
        svg = interval_chart(
            [FRACTIONS.get(name, name) for name in names],
            [
                Band("ranker", [_estimate(row[metric], factor) for row in content["ranker"]]),
                Band("shuffled ranker", [_estimate(row[metric], factor) for row in content["shuffled"]]),
                Band("mix, chosen weights", mixed, joined=False),
            ],
            title=f"Change of {label.partition(',')[0]} by the weight of the reward",
            x_label="weight of the reward (∞: by the reward alone)",
            y_label=f"{label}, minus the policy's order",
            reference=0.0,
        )
        lines = [
            (name, _change(ranker[metric], factor), _change(shuffled[metric], factor))
            for name, ranker, shuffled in zip(names, content["ranker"], content["shuffled"], strict=True)
        ]
        lines.append((f"mix ({' and '.join(chosen)})", _change(content["mix"][metric], factor), MISSING))
        figures.append(Figure(svg, numbers=Table.of(("weight", f"ranker, {label}", "shuffled ranker"), lines)))
    return figures


def exposure_figures(content: Row) -> list[Figure]:
    """Draw how well ranker and policy order items with similar exposure."""
    bins = content["bins"]
    logged = _order_figure(
        content,
        bins,
        "The logged item above others shown as often",
        "One half is chance. Each list's logged item against the other items of the same bin in it.",
    )
    if not all("truth" in row for row in bins):
        return [logged]
    truth = _order_figure(
        content,
        [row["truth"] for row in bins],
        "Pairs in the order of the true utility",
        "Pairs of items of the same bin in a list, without the logged one. Only a simulated world knows this.",
    )
    return [logged, truth]


def _order_figure(content: Row, values: Sequence[Row], title: str, caption: str) -> Figure:
    bins, counted = content["bins"], content["counted"]
    svg = interval_chart(
        [row["bin"] for row in bins],
        [Band(who, [None if row[who] is None else IntervalMark.of(row[who]) for row in values]) for who in BOTH],
        title=title,
        x_label=f"items by {counted}",
        y_label="share in order",
        reference=0.5,
        percent=True,
    )
    lines = [
        (row["bin"], f"{row['items']:,}", f"{value['cases']:,}", *(_share(value[who]) for who in BOTH))
        for row, value in zip(bins, values, strict=True)
    ]
    return Figure(svg, caption, Table.of((counted, "items", "cases", *BOTH), lines))


def _weight(weight: float | None) -> str:
    return "∞" if weight is None else f"{weight:.3g}"


def _estimate(interval: Row, factor: float) -> IntervalMark:
    return IntervalMark.of(interval).times(factor)


def _change(interval: Row, factor: float) -> str:
    return format_interval(interval, "+.1f" if factor == 100 else "+.4f", factor)


def _share(interval: Row | None) -> str:
    if interval is None:
        return MISSING
    mean, low, high = (100 * interval[name] for name in ("mean", "low", "high"))
    return f"{mean:.1f} % ({low:.1f} to {high:.1f})"
