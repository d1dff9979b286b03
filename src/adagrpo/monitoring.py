"""Signs of reward hacking in a log; docs/how-to/watch.md lists them.

Standard errors are over lists, the larger by own and by pooled variances. Gini coefficients depend on the number of
lists, so that of a window is compared with `DRAWS` samples of as many lists from the baseline: with deviation `s` and
sampled fraction `f`, its error is s √((1 + f) / (1 - f)).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from adagrpo.types import Floats, Ints

SIGNS = ("reward_up_feedback_down", "feedback_down", "calibration", "concentration")
DRAWS = 100


class Visits(NamedTuple):
    """Lists and their feedback."""

    day: Ints  # (N,)
    clicked: Floats  # (N,) 1 if any item of the list was clicked
    predicted: Floats  # (N,) the reward's prediction of a click, mean over the list; NaN where there is none
    items: Ints  # (N, k) -1 where a list is shorter

    def only(self, kept: NDArray[np.bool_]) -> Visits:
        """Return the selected lists."""
        return Visits(self.day[kept], self.clicked[kept], self.predicted[kept], self.items[kept])


@dataclass(frozen=True)
class SignRule:
    """Thresholds of the signs."""

    baseline: int = 7  # days
    window: int = 3  # days
    errors: float = 3.29


class DailySigns(NamedTuple):
    """Standard errors above the baseline, and the signs that are on; NaN if unknown."""

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
    """Compute signs by day after the baseline; `ValueError` if it has fewer than two lists, or none follow."""
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
    """Compare an arm with others on the same days; `ValueError` without such a day."""
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
    """Return the first day on which a sign is on, or None."""
    return next((look.day for look in found if sign in look.on), None)


def gini(counts: Ints) -> float:  # (V,)
    """Return the Gini coefficient of counts, in [0, 1)."""
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


def _gap(visits: Visits) -> Floats:  # (N,) predicted minus clicked, per item
    return np.asarray(visits.predicted - visits.clicked / np.maximum((visits.items >= 0).sum(axis=1), 1))


def _above(now: Floats, before: Floats) -> float:
    """Return the standard errors of `now` above `before`; NaN if unknown."""
    now, before = now[~np.isnan(now)], before[~np.isnan(before)]
    if len(now) < 2 or len(before) < 2:
        return float("nan")
    own = now.var(ddof=1) / len(now) + before.var(ddof=1) / len(before)
    together = np.concatenate([now, before]).var(ddof=1) * (1 / len(now) + 1 / len(before))
    error = np.sqrt(max(own, together))
    return 0.0 if error == 0 else float((now.mean() - before.mean()) / error)


def _more_concentrated(now: Ints, before: Ints, rng: np.random.Generator) -> tuple[float, float]:
    names, codes = np.unique(np.concatenate([now.ravel(), before.ravel()]), return_inverse=True)
    known = names >= 0
    codes = codes.reshape(-1, now.shape[1])

    def concentration(rows: Ints) -> float:
        return gini(np.bincount(rows.ravel(), minlength=len(names))[known])

    found, usual = concentration(codes[: len(now)]), codes[len(now) :]
    size = min(len(now), len(usual) // 2)
    drawn = [concentration(usual[rng.choice(len(usual), size, replace=False)]) for _ in range(DRAWS)]
    if size < len(now):  # subsample the window to the same size
        rows = codes[: len(now)]
        halves = [concentration(rows[rng.choice(len(rows), size, replace=False)]) for _ in range(DRAWS)]
        found_alike = float(np.mean(halves))
    else:
        found_alike = found
    share = size / len(usual)
    error = float(np.std(drawn, ddof=1)) * np.sqrt((1 + share) / (1 - share))
    return found, 0.0 if error == 0 else float((found_alike - np.mean(drawn)) / error)
