"""What invalidates an experiment: unequal shares of users or of left-out feedback, and mismatched answers.

Sample ratio test: Pearson's χ² of the counts of users against the weights of the arms. A user counts on the day and
under the catalogue of the first answer. A p-value below .001, shared by the parts, invalidates the effects (Fabijan et
al., KDD 2019). Left-out feedback is tested by permuting users, each with left out - share left out of both arms *
events. The permutation test, also of skewed effects:

    T     (mean of treatment - mean of control) / its standard error
    p     twice the share of T, the observed one included, at least as extreme on its side
    skew  m3 (1/n_t² - 1/n_c²) / (s² (1/n_t + 1/n_c))^(3/2): of the difference, 0 where the arms are equal in size

Valid for means also under unequal distributions, since T is studentised (Chung & Romano 2013). Mismatched answers are
of another plan, of another user key, or of a router, which names no plan, before the freeze.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import polars as pl
from scipy import stats

from adagrpo.experiments.plan import PLAN_DIGITS, Plan, moment_of
from adagrpo.types import Floats

DRAWS = 1999
PARTS = 20_000  # more users are first grouped into as many random parts, which are permuted
COUNTED = 10  # fewest draws in a counted tail; further out it is normal
EQUAL = 1e-6  # relative tolerance for ties of T


class Permutation(NamedTuple):
    """Null distribution of the studentised difference."""

    errors: Floats  # (draws,) T, ascending

    def reach(self, factor: float) -> tuple[float, float]:
        """Return the errors to subtract and to add, in place of `factor` normal ones."""
        tail = float(stats.norm.sf(factor))
        return _quantile(self.errors[::-1], tail), _quantile(-self.errors, tail)

    def p_value(self, errors: float) -> float:
        """Return the two-sided p-value of so many standard errors."""
        return min(1.0, 2 * (_tail(self.errors[::-1], errors) if errors > 0 else _tail(-self.errors, -errors)))


def skew(control: Floats, treatment: Floats) -> float:
    """Return the skewness of the difference of means of (N,) and (M,) numbers under equal distributions."""
    users = np.concatenate([control, treatment])
    n_c, n_t = len(control), len(treatment)
    sizes: float = (n_t**-2 - n_c**-2) / (1 / n_t + 1 / n_c) ** 1.5
    return float(stats.skew(users)) * sizes


def counted_p_value(control: Floats, treatment: Floats, level: float) -> float:
    """Return the two-sided p-value of (N,) and (M,) numbers by counting draws, or a normal one above `level`."""
    users = np.concatenate([control, treatment])
    if min(len(control), len(treatment)) < 2 or np.ptp(users) <= EQUAL:
        return 1.0
    moments = [
        np.array([[len(arm), arm.sum(), (arm**2).sum()]])
        for arm in ((arm - users.mean()) / users.std() for arm in (control, treatment))
    ]
    (other, rest), (mean, variance) = map(_means, moments)
    errors = float((mean - other)[0] / np.sqrt(variance + rest)[0])
    p_value = 2 * float(stats.norm.sf(abs(errors)))
    if p_value >= level:
        return p_value
    drawn = permutation(control, treatment, draws=math.ceil(4 / level)).errors
    slack = EQUAL * max(abs(errors), 1.0)
    beyond = min(np.count_nonzero(drawn >= errors - slack), np.count_nonzero(drawn <= errors + slack))
    return min(1.0, 2 * (int(beyond) + 1) / (len(drawn) + 1))


def permutation(control: Floats, treatment: Floats, draws: int = DRAWS) -> Permutation:
    """Draw the permutation distribution of T of (N,) and (M,) numbers that differ, N and M at least 2."""
    users = np.concatenate([control, treatment])
    generator = np.random.default_rng(0)
    users = generator.permutation((users - users.mean()) / users.std())
    starts = np.linspace(0, len(users), min(len(users), PARTS), endpoint=False).astype(int)
    parts = np.add.reduceat(np.stack([np.ones(len(users)), users, users**2], axis=1), starts)
    sign, small = (1.0, len(treatment)) if len(treatment) <= len(control) else (-1.0, len(control))
    size = max(round(len(parts) * small / len(users)), 2)
    drawn = (generator.choice(len(parts), size, replace=False, shuffle=False) for _ in range(draws))
    sums = np.stack([parts[some].sum(axis=0) for some in drawn])
    (mean, variance), (others, rest) = _means(sums), _means(parts.sum(axis=0) - sums)
    return Permutation(np.sort(sign * (mean - others) / np.sqrt(variance + rest)))


def _means(sums: Floats) -> tuple[Floats, Floats]:
    """Return means and squared errors of sums (draws, 3): users, numbers, squares."""
    users, total, squares = sums.T
    return total / users, np.maximum(squares - total**2 / users, 1e-12) / (users - 1) / users


def _tail(descending: Floats, errors: float) -> float:
    beyond = int(np.count_nonzero(descending >= errors - EQUAL * max(errors, 1.0)))
    if beyond >= COUNTED:
        return (beyond + 1) / (DRAWS + 1)
    return min((COUNTED + 1) / (DRAWS + 1), float(stats.norm.sf(errors / _width(descending))))


def _quantile(descending: Floats, tail: float) -> float:
    allowed = math.floor(tail * (DRAWS + 1) + 1e-9) - 1
    errors = float(descending[allowed if allowed >= COUNTED else COUNTED - 1])
    past = errors + 2 * EQUAL * max(errors, 1.0)
    return max(past, 0.0 if allowed >= COUNTED else _width(descending) * float(stats.norm.isf(tail)))


def _width(descending: Floats) -> float:
    return max(1.0, float(descending[COUNTED - 1]) / float(stats.norm.isf((COUNTED + 1) / (DRAWS + 1))))


LEVEL = 0.001
FEWEST = 5.0  # expected users of the smallest arm for the χ² approximation


class RatioCheck(NamedTuple):
    """Sample ratio of one part of the experiment."""

    part: str  # "all", or "day 2026-11-02", "catalogue 7"
    counts: Mapping[str, int]
    p_value: float
    passes: bool


def check_ratio(counts: Sequence[int], weights: Sequence[float]) -> float:
    """Return the p-value of counts under weights."""
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
    """Test by kind of `Units.events` that both arms leave out the same share; `tests` share `LEVEL`."""
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
    """Return the invalidating answers in a plan's window; `frozen` is in seconds since 1970."""
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
    plans, users = _listed(other_plan["salt_version"]), _listed(other_key["key_version"])
    late = f"from before {moment_of(frozen)}, when the plan was frozen, and name no plan"
    parts = (
        ("answers_of_other_plan", other_plan, f"of another plan ({plans}; this one is {own})"),
        ("answers_of_other_key", other_key, f"of users that were hashed with another key than before ({users})"),
        ("answers_before_the_plan", unplanned, late),
    )
    return [MismatchedRows(name, len(rows), int(rows["number"][0]), what) for name, rows, what in parts if len(rows)]


def _listed(versions: pl.Series) -> str:
    found: Sequence[str | None] = versions.unique(maintain_order=True).to_list()
    return ", ".join(one or "none" for one in found[:3]) + (" and others" if len(found) > 3 else "")
