"""Tables of the study of a feed."""

from __future__ import annotations

from typing import Any

from research.pages.feed import difference_table, exposure_table, order_table


def interval(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - 0.01, "high": mean + 0.02, "users": 9}


def row(
    order: str, seed: int, value: float, gain: float | None = None, over_nll: float | None = None, kind: str = "policy"
) -> dict[str, Any]:
    entry: dict[str, Any] = {"auc": interval(value), "top@5": None}
    if gain is not None:
        entry["difference"] = {"auc": interval(gain)}
    judges = {"feed": {"long_view": entry, "clicked": entry}, "random": {"clicked": entry}}
    found: dict[str, Any] = {"order": order, "seed": seed, "kind": kind, "judges": judges}
    if over_nll is not None:
        against = {"auc": interval(over_nll)}
        found["against_nll"] = {"feed": {"long_view": against, "clicked": against}, "random": {"clicked": against}}
    return found


ROWS = [
    row("sft", 0, 0.6),
    row("sft", 1, 0.5),
    row("rerank-2", 0, 0.6, 0.02),
    row("nll", 0, 0.6, 0.01),
    row("beam-1", 0, 0.6, 0.03, -0.02),
    row("gate-1 less random-1", 0, 0.0, 0.05, kind="pair"),
]


def test_orders_are_means_over_seeds() -> None:
    rows = order_table(ROWS).rows
    assert rows[0] == ("starting policy", "2", *[".550 (.540 to .570)"] * 3)
    assert [line[0] for line in rows[1:]] == ["starting policy + 2 · ranker", "continued NLL", "beam-1"]
    assert order_table(ROWS, "top@5").rows[0][2:] == ("–", "–", "–")


def test_differences_are_of_the_rows_that_have_them_in_points() -> None:
    assert difference_table(ROWS, "nll").rows == (("beam-1", *["-2.00 (-3.00 to +0.00)"] * 3),)
    assert [line[0] for line in difference_table(ROWS, "sft").rows] == [
        *("starting policy + 2 · ranker", "continued NLL", "beam-1")
    ]
    assert difference_table(ROWS, "sft").rows[0][1] == "+2.00 (+1.00 to +4.00)"
    assert difference_table(ROWS, "arms").rows == (("gate-1 less random-1", *["+5.00 (+4.00 to +7.00)"] * 3),)


def test_what_chance_showed_by_how_often_the_feed_had() -> None:
    bands = {
        "1-9": {"exposures": 1200, "rate": 0.175, "auc": interval(0.4)},
        "10+": {"exposures": 3, "rate": 1, "auc": None},
    }
    rows = [row(order, 0, 0.5) for order in ("reward", "sft")]
    for one in rows:
        one["judges"]["random"]["clicked"] = {"by_exposure": bands}
    table = exposure_table(rows, ("reward", "sft"))
    assert table.header == ("times shown", "random exposures", "clicked", "ranker", "starting policy")
    assert table.rows == (("1-9", "1,200", "17.5 %", *[".400 (.390 to .420)"] * 2), ("10+", "3", "100.0 %", "–", "–"))
