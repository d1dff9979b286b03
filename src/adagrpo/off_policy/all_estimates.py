"""All estimators on one log of drawn lists; one with too little overlap is refused.

The first item is weighted by its own probability ratio, a list by its own and by the cascade. The model of DR is each
item's click rate at the first position among the other half of the users, shrunk towards the overall rate:

    q(a) = (clicks_a + S r) / (answers_a + S),   r: clicks over answers of that half,   S = 20
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from adagrpo.off_policy.estimators import Estimate, Overlap, cascade, doubly_robust, ips, overlap, snips

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
SMOOTHING = 20.0  # S, answers


class Drawn(NamedTuple):
    """A log of drawn lists, with their probabilities under another policy."""

    clicks: Floats  # (N, K), 0 beyond the end of a list
    target: Floats  # (N, K) log-probability of each item at its rank under the target, 0 beyond the end
    logged: Floats  # (N, K) the same under the served policy
    users: Ints  # (N,)
    first: Ints  # (N,) item at the first position
    drawn: Ints  # (N, R) items that the target draws, -1 where none
    drawn_weights: Floats  # (N, R), Σ weight f(item) has the mean of f over its first item


class Row(NamedTuple):
    """The estimate of one estimator, or why there is none."""

    of: str  # "first item" or "list"
    estimator: str
    estimate: Estimate | None  # None: refused
    overlap: Overlap | None  # None for what was served
    refused: str | None


def item_rates(items: Ints, clicks: Floats, size: int) -> Floats:
    """Return the shrunk click rate q(a) of each item, (V,)."""
    rate = float(clicks.mean()) if len(clicks) else 0.0
    return np.asarray(
        (np.bincount(items, weights=clicks, minlength=size) + SMOOTHING * rate)
        / (np.bincount(items, minlength=size) + SMOOTHING)
    )


def summarise(log: Drawn, level: float = 0.95) -> list[Row]:
    """Estimate by every method, and add what was served; needs at least two users."""
    weights = np.exp(log.target[:, 0] - log.logged[:, 0]), np.exp((log.target - log.logged).sum(1))
    one, whole = (overlap(each) for each in weights)
    first, total, users = log.clicks[:, 0], log.clicks.sum(1), log.users
    same = np.ones(len(first))
    predicted, expected = _model(log)
    rows = [Row("first item", "as served", ips(first, same, users=users, level=level), None, None)]
    made = {
        "IPS": ips(first, weights[0], users=users, level=level),
        "SNIPS": snips(first, weights[0], users=users, level=level) if weights[0].any() else None,
        "DR": doubly_robust(first, weights[0], predicted, expected, users=users, level=level),
    }
    rows += [_row("first item", name, found, one) for name, found in made.items()]
    rows += [Row("list", "as served", ips(total, same, users=users, level=level), None, None)]
    steps = np.exp((log.target - log.logged).cumsum(1)).mean(0)
    arguments = (log.clicks, log.target, log.logged)
    rows += [
        _row("list", "IPS", ips(total, weights[1], users=users, level=level), whole),
        _row("list", "cascade", cascade(*arguments, users=users, level=level) if steps.all() else None, whole),
    ]
    return rows


def _row(of: str, name: str, found: Estimate | None, seen: Overlap) -> Row:
    return Row(of, name, None if seen.problem else found, seen, seen.problem)


def _model(log: Drawn) -> tuple[Floats, Floats]:
    """(N,) predictions for the item shown and for the target's; no user contributes to their own model."""
    size = int(max(log.first.max(), log.drawn.max())) + 1
    half = np.unique(log.users, return_inverse=True)[1] % 2
    predicted, expected = np.zeros(len(half)), np.zeros(len(half))
    for part in (0, 1):
        mine, other = half == part, half != part
        rates = item_rates(log.first[other], log.clicks[other, 0], size)
        predicted[mine] = rates[log.first[mine]]
        expected[mine] = (log.drawn_weights[mine] * np.where(log.drawn[mine] >= 0, rates[log.drawn[mine]], 0.0)).sum(1)
    return predicted, expected
