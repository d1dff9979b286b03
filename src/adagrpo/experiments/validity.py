"""What invalidates an experiment: unequal shares of users or of left-out feedback, and answers of another plan or key.

Sample ratio test: Pearson's χ² of the counts of users against the weights of the arms. A user counts on the day and
under the catalogue of the first answer, since an arm may change who returns. A p-value below .001, shared by the parts,
invalidates the effects (Fabijan et al., KDD 2019).

Left-out feedback is tested by permuting users, each with left out - share left out of both arms * events.

Mismatched answers are of another plan (`salt_version`), of another user key (`key_version`), or of a router, which
names no plan, before the freeze.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import polars as pl
from scipy import stats

from adagrpo.experiments.permutation import counted_p_value
from adagrpo.experiments.plan import PLAN_DIGITS, Plan, moment_of

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
    """Test for each kind of `Units.events` that both arms leave out the same share; `tests` share `LEVEL`."""
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


class MismatchedRows(NamedTuple):
    """Answers of another plan or user key, or from before the plan."""

    count_name: str
    answers: int
    first: int  # row of the log, counted from 0
    what: str


def mismatched_rows(plan: Plan, digest: str, frozen: float, exposures: pl.DataFrame) -> list[MismatchedRows]:
    """Return the invalidating answers in the window of a plan, by its hash, frozen at a time (seconds since 1970)."""
    window = exposures.with_row_index("number").filter(
        (pl.col("time") >= plan.begins) & (pl.col("time") < plan.ends) & pl.col("user_hash").is_not_null()
    )
    named = window.filter(pl.col("experiment") == plan.name)
    own = digest[:PLAN_DIGITS]
    other_plan = named.filter(pl.col("salt_version").ne_missing(own))
    answers = named if len(named) else window.filter(pl.col("experiment").is_null())  # of a router, see `units`
    keys = answers["key_version"].unique(maintain_order=True)
    other_key = answers.filter(pl.col("key_version").ne_missing(keys[0])) if len(keys) > 1 else answers.clear()
    unplanned = answers.filter(pl.col("experiment").is_null() & (pl.col("time") < frozen))
    plans = f"of another plan ({_listed(other_plan['salt_version'])}; this one is {own})"
    users = f"of users that were hashed with another key than before ({_listed(other_key['key_version'])})"
    late = f"from before {moment_of(frozen)}, when the plan was frozen, and name no plan"
    parts = (
        ("answers_of_other_plan", other_plan, plans),
        ("answers_of_other_key", other_key, users),
        ("answers_before_the_plan", unplanned, late),
    )
    return [MismatchedRows(name, len(rows), int(rows["number"][0]), what) for name, rows, what in parts if len(rows)]


def _listed(versions: pl.Series) -> str:
    found: Sequence[str | None] = versions.unique(maintain_order=True).to_list()
    return ", ".join(one or "none" for one in found[:3]) + (" and others" if len(found) > 3 else "")
