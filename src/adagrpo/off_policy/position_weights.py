"""Item-position weights: what users do at a place depends on the item and the place alone.

    Σ_n Σ_k  w_nk r_nk / N,    w_nk = P_π(place k holds i_nk) / P_μ(place k holds i_nk)

It is the pseudo-inverse estimator where the reward of each place is known (the item-position model of Li, Abbasi-
Yadkori, Kveton, Muthukrishnan, Vinay and Wen 2018), and unbiased where no item changes what users do with another one.
The weight of a place is none of the items above it, so it spreads less than that of a cascade.

Lists are drawn without replacement, so an item's place has no formula, but an integral: let item i arrive at a time of
rate p_i, its probability at the first place; the list is the order of the arrivals, and

    P(place k holds i) = ∫ p_i exp(-p_i t) P(k - 1 others have arrived by t) dt

The count of the others is Poisson-binomial. In log t the integrand is smooth and ends fast on either side, where equal
steps are exact to about 1e-8. It takes all items, so its price is their number: a catalogue of `MOST_ITEMS` at most.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from adagrpo.off_policy.cascades import position_weighted
from adagrpo.off_policy.estimators import Estimate

MOST_ITEMS = 5000
STEP, FIRST, LAST = 0.4, -20.0, 35.0  # of log t; the first log t, and p t of the item of rank K at the last one

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def position_propensities(
    log_probs: Floats,  # (B, V)
    shown: Ints,  # (B, K)
) -> Floats:  # (B, K)
    """The probability that each item of a list is at its place, whatever the others are.

    Args:
        log_probs: (B, V) of each item at the first place; -inf where it is never drawn.
        shown: (B, K) the lists, -1 where there is no place.

    Returns:
        (B, K), 1 where there is no place.

    Raises:
        ValueError: a list has more places than there are items to draw.

    Example:
        >>> position_propensities(np.log(np.array([[0.5, 0.3, 0.2]])), np.array([[0, 1]])).round(6).tolist()
        [[0.5, 0.375]]
    """
    rates, places = np.exp(log_probs), shown.shape[1]
    ranked = np.sort(rates, axis=1)[:, ::-1]
    longest = (shown >= 0).sum(1)
    at_rank = np.take_along_axis(ranked, np.maximum(longest - 1, 0)[:, None], 1)  # (B, 1)
    if (longest > log_probs.shape[1]).any() or (at_rank <= 0).any():
        raise ValueError("a list has more places than there are items that may be drawn")
    last = np.log(LAST / at_rank)
    steps = int(np.ceil((last.max() - FIRST) / STEP)) + 1
    times = np.exp(FIRST + STEP * np.arange(steps))[None, :]  # (1, T)
    others = np.zeros((len(rates), steps, places))  # P(c of the items that are not in the list have arrived)
    others[..., 0] = 1.0
    in_list = np.zeros(rates.shape, bool)
    np.put_along_axis(in_list, np.where(shown >= 0, shown, shown[:, :1]), True, axis=1)
    for item in range(rates.shape[1]):
        rate = np.where(in_list[:, item], 0.0, rates[:, item])
        if rate.any():
            others = _with(others, rate[:, None] * times)
    found = np.ones(shown.shape)
    of_shown = np.where(shown >= 0, np.take_along_axis(rates, np.maximum(shown, 0), 1), 0.0)  # (B, K)
    for place in range(places):
        counts = others
        for other in range(places):
            if other != place:
                counts = _with(counts, of_shown[:, other, None] * times)
        rate_times = of_shown[:, place, None] * times
        integral = (rate_times * np.exp(-rate_times) * counts[..., place]).sum(1) * STEP  # dt = t d log t
        found[:, place] = np.where(shown[:, place] >= 0, integral, 1.0)
    return found


def item_position(
    rewards: Floats,  # (N, K)
    weights: Floats,  # (N, K)
    *,
    users: NDArray[np.integer] | None = None,  # (N,)
    level: float = 0.95,
) -> Estimate:
    """The mean sum of the rewards of a list.

    Args:
        rewards: (N, K) of each place, 0 at places that a list does not have.
        weights: (N, K) of each place, 1 there.
        users: (N,) see `adagrpo.off_policy.ips`.

    Returns:
        The estimate; its effective size is that of the place with the least.

    Raises:
        ValueError: shapes differ, or the target never shows what the log has at a place.
    """
    if rewards.ndim != 2 or weights.shape != rewards.shape or rewards.size == 0:
        raise ValueError(f"rewards and weights must be (N, K): {rewards.shape}, {weights.shape}")
    return position_weighted(rewards, weights, True, users, level)


def _with(
    counts: Floats,  # (B, T, K)
    rate_times: Floats,  # (B, T)
) -> Floats:
    """The distribution of a count, one item more in it."""
    away = np.exp(-rate_times)[..., None]
    found = counts * away
    found[..., 1:] += counts[..., :-1] * -np.expm1(-rate_times)[..., None]
    return found
