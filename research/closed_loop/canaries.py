"""Canaries of a loop: which signs were on against the users who kept the policy before, and what the market had lost.

A sign of a new policy comes late if all users are served it at once. With a canary a share of them is, and the market
loses that share of the harm until the sign is seen.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from adagrpo.monitoring import SIGNS, SignRule, Visits, first_on, signs_against

__all__ = ["canary_signs", "lost_until", "visits_as_signs_see_them"]


def canary_signs(visits: pl.DataFrame, arm: str, window: int) -> dict[str, int | None]:
    """The first day of each sign of a round's new policy, against the others of the same days.

    Args:
        visits: lists of a round, of all arms.
        arm: the new policy.
        window: days that are looked at together.
    """
    mine = pl.col("arm") == arm
    own, others = (visits_as_signs_see_them(visits.filter(rows)) for rows in (mine, ~mine))
    try:
        found = signs_against(own, others, SignRule(window=window))
    except ValueError:  # nobody of the canary came
        found = []
    return {sign: first_on(found, sign) for sign in SIGNS}


def visits_as_signs_see_them(table: pl.DataFrame) -> Visits:
    """The lists of a market, as `adagrpo.monitoring` reads them."""
    widest = int(table["items"].list.len().max() or 0)  # type: ignore[arg-type]
    items = np.array([[*row, *[-1] * (widest - len(row))] for row in table["items"].to_list()], np.int64)
    clicked, predicted = (table[name].cast(pl.Float64).to_numpy() for name in ("clicked", "predicted"))
    return Visits(table["day"].to_numpy(), clicked, predicted, items.reshape(len(table), widest))


def lost_until(pairs: pl.DataFrame, day: int) -> float | None:
    """The utility of lists until a day below that of the same users' lists in the reference, as a share of it.

    Args:
        pairs: `day`, `utility` and `usual`, a row a list.
        day: the last one that counts.

    Returns:
        None where there was no list.
    """
    rows = pairs.filter(pl.col("day") <= day)
    usual = float(rows["usual"].sum())
    return 1 - float(rows["utility"].sum()) / usual if usual else None
