"""The fused list beside the strongest single model of each public set, and beside published figures.

    python -m research.decisions.single_models --table

Of `sets.jsonl`, under the plan of `sets.yaml`: the single model is the one with the highest mean of
validation NDCG@10 over the seeds, and differences on test have 95 % intervals over users and seeds; those of a set
with one seed are over its users alone. The p-values of HR@10 of the sets of `december.sets` are corrected by Holm,
over those that have rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray

from adagrpo.lists.names import FUSE, REWARD
from adagrpo.metrics import hit_rate, ndcg
from adagrpo.report.page import read_rows
from adagrpo.report.tables import Table, format_p, to_markdown
from adagrpo.statistics import Interval, holm
from research.command import run
from research.decisions.sets import difference, interval, unpacked
from research.figures.public_sets import PUBLISHED, label

__all__ = ["Comparison", "comparisons", "table"]

HERE = Path(__file__).parent
ROWS = HERE / "sets.jsonl"
TOP = 10
CALLED = {
    "ranker": "sequential ranker",
    "item_knn": "item-kNN",
    "ease": "EASE",
    "user_knn": "user-kNN",
    "sft": "policy",
}

Rows = Sequence[Mapping[str, Any]]


class Comparison(NamedTuple):
    """What the rows of one set say, on test."""

    set: str
    seeds: int
    single: str  # the strongest single model
    means: dict[str, tuple[float, float]]  # "single", "fused": HR@10 and NDCG@10, means over seeds
    gained: tuple[Interval, Interval]  # fused less single: HR@10, NDCG@10
    reward: Interval | None  # fused less the reward's own list, HR@10, over the seeds that measured it
    served: Interval  # what each run chose less fused, HR@10
    p_holm: float | None  # of `gained`'s HR@10; None: not of the family


def comparisons(rows: Rows, plan: Mapping[str, Any]) -> list[Comparison]:
    """Compare the fused list of each set with its strongest single model.

    Args:
        rows: of `research.decisions.sets`, without trained arms.
        plan: `december` of `sets.yaml`.
    """
    found = []
    for name in dict.fromkeys(row["set"] for row in rows):
        own = [row for row in rows if row["set"] == name]
        measured = [one for one in plan["single"] if one in own[0]["contenders"]]  # EASE up to 20,000 items
        single = max(measured, key=lambda one: sum(_validation(row, one) for row in own))
        hits, gains = ({"single": _values(own, single, of), "fused": _values(own, FUSE, of)} for of in (hit_rate, ndcg))
        means = {shown: (float(np.mean(hits[shown])), float(np.mean(gains[shown]))) for shown in hits}
        gained = (difference(hits["fused"], hits["single"]), difference(gains["fused"], gains["single"]))
        asked = [row for row in own if REWARD in row["contenders"]]  # left out where it is slow
        reward = difference(*(_values(asked, one, hit_rate) for one in (FUSE, REWARD))) if asked else None
        served = difference([_values([row], row["chosen"], hit_rate)[0] for row in own], hits["fused"])
        found.append(Comparison(name, len(own), single, means, gained, reward, served, None))
    family = [one.set for one in found if one.set in plan["sets"]]
    tested = {one.set: one.gained[0].p_value for one in found}
    corrected = dict(zip(family, holm([tested[name] for name in family]), strict=True))
    return [one._replace(p_holm=corrected.get(one.set)) for one in found]


def _values(rows: Rows, name: str, metric: Callable[..., NDArray[np.float64]]) -> list[NDArray[np.float64]]:
    """A metric of a list at ten, (U,) of each row."""
    return [metric(unpacked(row["ranks"][name]), TOP) for row in rows]


def _validation(row: Mapping[str, Any], name: str) -> float:
    return float(row["contenders"][name]["validation"]["ndcg@10"])


def table(rows: Rows) -> Table:
    """A row a set: HR@10 / NDCG@10 on test, means over seeds, and differences in points; of HR@10 if not said.

    Args:
        rows: of `research.decisions.sets`, without trained arms.
    """
    plan = yaml.safe_load((HERE / "sets.yaml").read_text("utf-8"))["december"]
    order = [*plan["sets"], *plan["feeds"], *plan["ties"]]
    lines, bold = [], set()
    for one in sorted(comparisons(rows, plan), key=lambda one: order.index(one.set)):
        published = PUBLISHED.get(one.set)
        pairs = [one.means["single"], one.means["fused"]]
        bold.add((len(lines), 3 + max(range(2), key=lambda place: pairs[place][0])))
        lines.append(
            (
                label(one.set),
                str(one.seeds),
                CALLED.get(one.single, one.single),
                *(_pair(pair) for pair in (*pairs, published)),
                *map(_points, one.gained),
                "–" if one.p_holm is None else format_p(one.p_holm),
                _points(one.reward),
                _points(one.served),
            )
        )
    head = ("HR@10 / NDCG@10", "seeds", "strongest single model", "it has", "fused", "published")
    head += ("fused less single: HR@10, points", "NDCG@10", "p (Holm), HR@10")
    head += ("fused less the reward's own list", "served less fused")
    return Table.of(head, lines, best=bold)


def _pair(pair: tuple[float, float] | None) -> str:
    return "–" if pair is None else " / ".join(f"{value:.4f}".removeprefix("0") for value in pair)


def _points(found: Interval | None) -> str:
    if found is None:
        return "–"
    if found.low == found.high == 0:
        return "equal"
    return interval(*(f"{100 * value:+.2f}" for value in found[:3]))


def main() -> None:
    """Print the table."""
    print(to_markdown(table(read_rows(ROWS))))


if __name__ == "__main__":
    run(main)
