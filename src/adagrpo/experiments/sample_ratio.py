"""Test of the sample ratio: Pearson's χ² of the counts of users against the weights of the arms.

A user counts once, on the day and under the catalogue of the first answer: later days hold who came back, which an arm
may change. Where the p-value is below .001 something but chance chose the users, and no effect is worth reading
(Fabijan et al., KDD 2019). The parts share that level, so that many days do not make a false alarm.

The same level holds for the feedback that is left out, since an arm that loses more of it looks worse. Events of a user
go together, so users are permuted (`permutation`), each with

    left out - share left out of both arms * events

whose mean is 0 where an event is left out as often in both arms, however many events an arm makes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import polars as pl
from scipy import stats

from adagrpo.experiments.permutation import counted_p_value

LEVEL = 0.001
FEWEST = 5.0  # expected users of the smallest arm, below which χ² is no χ²


class RatioCheck(NamedTuple):
    """Users of one part of the experiment."""

    part: str  # "all", or "day 2026-11-02", "catalogue 7"
    counts: Mapping[str, int]
    p_value: float
    passes: bool


def check_ratio(counts: Sequence[int], weights: Sequence[float]) -> float:
    """The p-value of counts under weights.

    Example:
        >>> round(check_ratio([5000, 5200], [1, 1]), 4)
        0.0477
    """
    expected = sum(counts) * np.asarray(weights, dtype=np.float64) / sum(weights)
    return float(stats.chisquare(counts, expected).pvalue)


def check_ratios(users: pl.DataFrame, weights: Mapping[str, float]) -> list[RatioCheck]:
    """All users, then those of each first day and of each catalogue."""
    smallest = min(weights.values()) / sum(weights.values())
    parts = [("all", users)]
    for column in ("day", "catalogue"):
        for key, part in sorted(users.partition_by(column, as_dict=True).items(), key=lambda entry: str(entry[0])):
            if len(part) * smallest >= FEWEST:
                parts.append((f"{column} {key[0]}", part))
    checks = []
    for name, part in parts:
        found = dict(part["arm"].value_counts().iter_rows())
        counts = {arm: int(found.get(arm, 0)) for arm in weights}
        p_value = check_ratio(list(counts.values()), list(weights.values()))
        level = LEVEL if name == "all" else LEVEL / (len(parts) - 1)
        checks.append(RatioCheck(name, counts, p_value, p_value >= level))
    return checks


class LeftOut(NamedTuple):
    """Feedback of a kind that counts nowhere, of a treatment and the control."""

    kind: str
    counts: Mapping[str, tuple[int, int]]  # by arm: events that are left out, and all
    p_value: float
    passes: bool


def check_left_out(events: pl.DataFrame, control: str, treatment: str, tests: int) -> list[LeftOut]:
    """Test for each kind of feedback that both arms have the same share of it left out.

    Args:
        events: of `Units`, one row a user and kind.
        tests: that share `LEVEL`.
    """
    level = LEVEL / tests
    checks = []
    pair = events.filter(pl.col("arm").is_in([control, treatment]))
    for kind in pair["kind"].unique().sort():
        users = pair.filter(pl.col("kind") == kind)
        arm, left, every = (users[name].to_numpy() for name in ("arm", "left_out", "events"))
        numbers = left - left.sum() / every.sum() * every
        p_value = counted_p_value(numbers[arm == control], numbers[arm == treatment], level)
        counts = {name: (int(left[arm == name].sum()), int(every[arm == name].sum())) for name in (control, treatment)}
        checks.append(LeftOut(kind, counts, p_value, p_value >= level))
    return checks
