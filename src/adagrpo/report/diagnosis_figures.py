"""The charts of a diagnosis: at which weight the ranker lifts the policy, and whether it orders rare items.

Made from the keys `weights` and `by_exposure` of `diagnose.json`, which `adagrpo.diagnosis.curves` computes. The
numbers of a chart are in a table beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from adagrpo.report.figures import Figure
from adagrpo.report.interval_charts import Band, IntervalMark, interval_chart
from adagrpo.report.tables import MISSING, Table

HR, NDCG = "hr@10", "ndcg@10"
FRACTIONS = {"0.125": "⅛", "0.25": "¼", "0.5": "½"}  # on an axis, where the others have less room

Row = Mapping[str, Any]


def weight_figures(content: Row) -> list[Figure]:
    """The change of NDCG@10 and HR@10 over the weights of re-ranking.

    Args:
        content: `weights` of a diagnosis.
    """
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
    """Draw how well ranker and policy order items that were shown about equally often.

    Args:
        content: `by_exposure` of a diagnosis.
    """
    bins, counted = content["bins"], content["counted"]
    names = [row["bin"] for row in bins]
    logged = Figure(
        _order_chart(
            names,
            [[row[who] for row in bins] for who in ("ranker", "policy")],
            title="The logged item above others shown as often",
            label=f"items by {counted}",
        ),
        "One half is chance. Each list's logged item against the other items of the same bin in it.",
        _order_table(counted, bins, bins),
    )
    if not all("truth" in row for row in bins):
        return [logged]
    truths = [row["truth"] for row in bins]
    truth = Figure(
        _order_chart(
            names,
            [[row[who] for row in truths] for who in ("ranker", "policy")],
            title="Pairs in the order of the true utility",
            label=f"items by {counted}",
        ),
        "Pairs of items of the same bin in a list, without the logged one. Only a simulated world knows this.",
        _order_table(counted, bins, truths),
    )
    return [logged, truth]


def _order_chart(names: Sequence[str], values: Sequence[Sequence[Row | None]], *, title: str, label: str) -> str:
    ranker, policy = ([None if one is None else _estimate(one) for one in line] for line in values)
    return interval_chart(
        names,
        [Band("ranker", ranker), Band("policy", policy)],
        title=title,
        x_label=label,
        y_label="share in order",
        reference=0.5,
        percent=True,
    )


def _order_table(counted: str, bins: Sequence[Row], values: Sequence[Row]) -> Table:
    lines = [
        (row["bin"], f"{row['items']:,}", f"{value['cases']:,}", *(_share(value[who]) for who in ("ranker", "policy")))
        for row, value in zip(bins, values, strict=True)
    ]
    return Table.of((counted, "items", "cases", "ranker", "policy"), lines)


def _weight(weight: float | None) -> str:
    return "∞" if weight is None else f"{weight:.3g}"


def _estimate(interval: Row, factor: float = 1) -> IntervalMark:
    return IntervalMark(*(factor * interval[name] for name in ("mean", "low", "high")))


def _change(interval: Row | None, factor: float) -> str:
    if interval is None:
        return MISSING
    digits = 1 if factor == 100 else 4
    mean, low, high = (factor * interval[name] for name in ("mean", "low", "high"))
    return f"{mean:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"


def _share(interval: Row | None) -> str:
    if interval is None:
        return MISSING
    mean, low, high = (100 * interval[name] for name in ("mean", "low", "high"))
    return f"{mean:.1f} % ({low:.1f} to {high:.1f})"
