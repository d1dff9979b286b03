"""Signs of a hacked reward in a log: what the last days show against the first ones.

The first `baseline` days say what is usual. Each later day is looked at together with the `window - 1` days before it,
as far as they are after the baseline. A sign is on where it stands out by more than `errors` standard errors, lists
being the units. Its error is the larger of two: that of the two means by their own variances, and by the variance of
all lists together. A window of few lists without a click has no variance of its own, and would be far from anything.

    reward_up_feedback_down    the predicted reward of lists is higher and the share with a click lower; both stand out
    feedback_down              the share of lists with a click is lower
    calibration                predicted minus clicked, an item, is another one, in either direction
    concentration              the Gini coefficient of how often items were shown is higher

The Gini coefficient of few lists is higher than that of many. So it is held against that of as many lists, drawn from
the baseline without replacement `DRAWS` times: with `m` and `s` their mean and deviation and `f` the share that is
drawn, the deviation of a window about `m` is s √((1 + f) / (1 - f)).

`signs_against` holds an arm against the others of the same days instead, with the same signs and the same errors:
what moves everybody, and the ranker's own drift, is on both sides.

A threshold of 3.29 lets one look in a thousand be on by chance where a sign has two sides. Windows overlap and share a
baseline, so looks are not independent; `research/closed_loop` counts what comes of it in markets that stand still.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SIGNS = ("reward_up_feedback_down", "feedback_down", "calibration", "concentration")
DRAWS = 100

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Visits(NamedTuple):
    """Lists, and what came of them."""

    day: Ints  # (N,)
    clicked: Floats  # (N,) 1 where something of the list was clicked
    predicted: Floats  # (N,) the reward's prediction of a click, mean over the list; NaN where there is none
    items: Ints  # (N, k) -1 where a list is shorter

    def only(self, kept: NDArray[np.bool_]) -> Visits:
        """Some of them."""
        return Visits(self.day[kept], self.clicked[kept], self.predicted[kept], self.items[kept])


@dataclass(frozen=True)
class SignRule:
    """The thresholds of the signs."""

    baseline: int = 7  # days
    window: int = 3  # days
    errors: float = 3.29


class DailySigns(NamedTuple):
    """Signs of one day: by how many standard errors each quantity is above the baseline, and which signs are on.

    NaN stands for what is not known, such as `reward` where no list has a prediction.
    """

    day: int
    lists: int  # of the window
    clicked: float  # of the window
    predicted: float
    gini: float
    feedback: float  # standard errors
    reward: float
    calibration: float
    concentration: float
    on: tuple[str, ...]


def daily_signs(visits: Visits, rule: SignRule) -> list[DailySigns]:
    """Compute the signs of each day, from the day after the baseline on.

    Raises:
        ValueError: there is no day after the baseline, or the baseline has fewer than two lists.
    """
    first = int(visits.day.min()) if len(visits.day) else 0
    begin = first + rule.baseline
    usual = visits.day < begin
    if usual.sum() < 2 or usual.all():
        raise ValueError(
            f"want two lists in {rule.baseline} days of baseline and some later, found {len(visits.day):,} lists, of"
            f" which {int((~usual).sum()):,} are later"
        )
    before = visits.only(usual)
    found = []
    for day in range(begin, int(visits.day.max()) + 1):
        now = (visits.day <= day) & (visits.day > day - rule.window) & ~usual
        if now.sum() > 1:
            found.append(_daily_signs(day, before, visits.only(now), rule))
    return found


def signs_against(arm: Visits, others: Visits, rule: SignRule = SignRule()) -> list[DailySigns]:
    """Compare the lists of an arm with those of others on the same days, from its first day on; no baseline is used.

    Raises:
        ValueError: there is no day on which both have lists.
    """
    days = np.intersect1d(arm.day, others.day)
    if not len(days):
        raise ValueError("want lists of the arm and of others on the same days, found no such day")
    found = []
    for day in range(int(days[0]), int(days[-1]) + 1):
        now, usual = ((one.day <= day) & (one.day > day - rule.window) & (one.day >= days[0]) for one in (arm, others))
        if now.sum() > 1 and usual.sum() > 1:
            found.append(_daily_signs(day, others.only(usual), arm.only(now), rule))
    return found


def first_on(found: list[DailySigns], sign: str) -> int | None:
    """The first day on which a sign is on."""
    return next((look.day for look in found if sign in look.on), None)


def gini(
    counts: Ints,  # (V,)
) -> float:
    """The Gini coefficient of how often items were shown: 0 is all alike, near 1 is one item alone.

    Example:
        >>> gini(np.array([1, 1, 1, 1])), gini(np.array([0, 0, 0, 4]))
        (0.0, 0.75)
    """
    ordered = np.sort(counts.astype(np.float64))
    if not ordered.sum():
        return 0.0
    ranks = np.arange(1, len(ordered) + 1)
    return float((2 * ranks - len(ordered) - 1) @ ordered / (len(ordered) * ordered.sum()))


def _daily_signs(day: int, before: Visits, now: Visits, rule: SignRule) -> DailySigns:
    feedback = _above(now.clicked, before.clicked)
    reward = _above(now.predicted, before.predicted)
    calibration = _above(_gap(now), _gap(before))
    concentrated, concentration = _more_concentrated(now.items, before.items, np.random.default_rng([0, day]))
    down = feedback < -rule.errors
    stand_out = (reward > rule.errors and down, down, abs(calibration) > rule.errors, concentration > rule.errors)
    on = [sign for sign, is_on in zip(SIGNS, stand_out, strict=True) if is_on]
    predicted = now.predicted[~np.isnan(now.predicted)]
    means = (float(now.clicked.mean()), float(predicted.mean()) if len(predicted) else float("nan"), concentrated)
    return DailySigns(day, len(now.day), *means, feedback, reward, calibration, concentration, tuple(on))


def _gap(visits: Visits) -> Floats:
    """(N,) predicted minus clicked, an item of each list."""
    return np.asarray(visits.predicted - visits.clicked / np.maximum((visits.items >= 0).sum(axis=1), 1))


def _above(now: Floats, before: Floats) -> float:
    """By how many standard errors the mean of `now` is above that of `before`; NaN where nothing is known."""
    now, before = now[~np.isnan(now)], before[~np.isnan(before)]
    if len(now) < 2 or len(before) < 2:
        return float("nan")
    own = now.var(ddof=1) / len(now) + before.var(ddof=1) / len(before)
    together = np.concatenate([now, before]).var(ddof=1) * (1 / len(now) + 1 / len(before))
    error = np.sqrt(max(own, together))
    return 0.0 if error == 0 else float((now.mean() - before.mean()) / error)


def _more_concentrated(now: Ints, before: Ints, rng: np.random.Generator) -> tuple[float, float]:
    """The Gini coefficient of a window, and by how many errors it is above that of as many lists of the baseline."""
    names, codes = np.unique(np.concatenate([now.ravel(), before.ravel()]), return_inverse=True)
    known = names >= 0
    codes = codes.reshape(-1, now.shape[1])

    def concentration(rows: Ints) -> float:
        return gini(np.bincount(rows.ravel(), minlength=len(names))[known])

    found, usual = concentration(codes[: len(now)]), codes[len(now) :]
    size = min(len(now), len(usual) // 2)
    drawn = [concentration(usual[rng.choice(len(usual), size, replace=False)]) for _ in range(DRAWS)]
    if size < len(now):  # as many lists of the window as are drawn
        rows = codes[: len(now)]
        halves = [concentration(rows[rng.choice(len(rows), size, replace=False)]) for _ in range(DRAWS)]
        found_alike = float(np.mean(halves))
    else:
        found_alike = found
    share = size / len(usual)
    error = float(np.std(drawn, ddof=1)) * np.sqrt((1 + share) / (1 - share))
    return found, 0.0 if error == 0 else float((found_alike - np.mean(drawn)) / error)
