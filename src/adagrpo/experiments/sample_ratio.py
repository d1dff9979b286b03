"""Sample ratio test: Pearson's χ² of the counts of users against the weights of the arms.

A user counts on the day and under the catalogue of the first answer, since an arm may change who returns. A p-value
below .001, shared by the parts, invalidates the effects (Fabijan et al., KDD 2019).

Left-out feedback is tested by permuting users, each with left out - share left out of both arms * events.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import polars as pl
from scipy import stats

from adagrpo.experiments.permutation import counted_p_value

LEVEL = 0.001
FEWEST = 5.0  # expected users of the smallest arm for the χ² approximation


class RatioCheck(NamedTuple):
    """Sample ratio of one part of the experiment."""

    part: str  # "all", or "day 2026-11-02", "catalogue 7"
    counts: Mapping[str, int]
    p_value: float
    passes: bool


def check_ratio(counts: Sequence[int], weights: Sequence[float]) -> float:
    """Return the p-value of counts under weights.

    Example:
        >>> round(check_ratio([5000, 5200], [1, 1]), 4)
        0.0477
    """
    expected = sum(counts) * np.asarray(weights, dtype=np.float64) / sum(weights)
    return float(stats.chisquare(counts, expected).pvalue)


def check_ratios(users: pl.DataFrame, weights: Mapping[str, float]) -> list[RatioCheck]:
    """Test all users, then each first day and catalogue."""
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
    """Feedback of one kind that is left out."""

    kind: str
    counts: Mapping[str, tuple[int, int]]  # by arm: events left out, and all events
    p_value: float
    passes: bool


def check_left_out(events: pl.DataFrame, control: str, treatment: str, tests: int) -> list[LeftOut]:
    """Test for each kind of feedback that both arms leave out the same share.

    Args:
        events: `Units.events`.
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
