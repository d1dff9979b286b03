"""The weight of a list where its reward is a sum over its places: the pseudo-inverse estimator, exactly.

With 1_s the indicator of which item a list s has at which place (K V entries), μ the policy that was served and π the
target, both drawing without replacement in proportion to their first probabilities:

    Γ = E_μ[1_s 1_sᵀ],   q = E_π[1_s],   w(s) = qᵀ Γ⁺ 1_s            (Swaminathan et al. 2017)

w is the part of π(s) / μ(s) that is a sum over places, so it spreads less; it may be negative, and is 1 on average. The
mean of w r is unbiased if E[r | s] is such a sum, whatever is known of the single places, and if μ can show each item
at each place where π can. Γ has no formula for such draws: all lists are counted, and there may be at most `MOST` of
them. Where there are more, `adagrpo.off_policy.position_weights` needs the feedback of each place.
"""

from __future__ import annotations

import itertools
import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

MOST = 20_000  # lists that are counted
SMALL = 1e-9  # of the largest eigenvalue of Γ, its entries scaled to a diagonal of 1; below it is a zero

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def count_lists(items: int, places: int) -> int:
    """Count the lists that can be drawn.

    >>> count_lists(8, 3)
    336
    """
    return math.perm(items, places)


def pseudo_inverse_weights(
    target: Floats,  # (V,)
    logged: Floats,  # (V,)
    shown: Ints,  # (N, K)
) -> Floats:  # (N,)
    """w of lists that were drawn after one history.

    Args:
        target: (V,) log-probability of each item at the first place under the target; -inf where it is never drawn.
        logged: (V,) the same under the policy that was served.
        shown: (N, K) the lists, items of 0 .. V - 1.

    Raises:
        ValueError: shapes are others, there are more than `MOST` lists, a list could not have been drawn, or the target
            draws an item that the log cannot hold.

    Example:
        Of one place it is the ratio of the probabilities.

        >>> half = np.log(np.array([0.5, 0.5]))
        >>> pseudo_inverse_weights(np.log(np.array([0.8, 0.2])), half, np.array([[0], [1]])).round(6).tolist()
        [1.6, 0.4]
    """
    if target.ndim != 1 or logged.shape != target.shape or shown.ndim != 2:
        raise ValueError(f"want (V,), (V,), (N, K); got {target.shape}, {logged.shape}, {shown.shape}")
    open_ = np.flatnonzero(logged > -np.inf)
    if np.isin(np.flatnonzero(target > -np.inf), open_, invert=True).any():
        raise ValueError("the target draws an item that the policy of the log never does")
    size, places = len(open_), shown.shape[1]
    if not 0 < count_lists(size, places) <= MOST:
        raise ValueError(f"{size} items make {count_lists(size, places):,} lists of {places}; at most {MOST:,} count")
    number = np.full(len(target), -1)
    number[open_] = np.arange(size)
    rows = number[shown]  # (N, K)
    if (rows < 0).any():
        raise ValueError("a list holds an item that the policy of the log never draws")
    if places == 1:  # what follows gives the same, in the cube of the items
        return np.asarray(np.exp(target[shown[:, 0]] - logged[shown[:, 0]]))
    cells, lists = _cells(size, places), _lists(size, places)  # (S, K V'), (S, K)
    before, after = (np.exp(_log_chances(of[open_], lists)) for of in (logged, target))  # (S,)
    scale = 1 / np.sqrt(before @ cells)  # (K V',)
    scaled = cells * scale
    gamma = scaled.T @ (before[:, None] * scaled)
    each = np.linalg.pinv(gamma, rcond=SMALL, hermitian=True) @ (after @ scaled) * scale  # (K V',)
    return np.asarray(each[rows + size * np.arange(places)].sum(1))


@lru_cache(maxsize=8)
def _lists(items: int, places: int) -> Ints:
    return np.array(list(itertools.permutations(range(items), places)), np.int64)


@lru_cache(maxsize=8)
def _cells(items: int, places: int) -> Floats:
    """(S, K V) 1_s of every list."""
    lists = _lists(items, places)
    found = np.zeros((len(lists), places * items))
    np.put_along_axis(found, lists + items * np.arange(places), 1.0, axis=1)
    return found


def _log_chances(log_probs: Floats, lists: Ints) -> Floats:
    """(S,) log-probability of lists that are drawn without replacement."""
    own = log_probs[lists]  # (S, K)
    # what is left is summed over the items that are left: 1 - what is above loses all digits where little is left
    left = np.empty(own.shape)
    remaining = np.broadcast_to(np.exp(log_probs), (len(lists), len(log_probs))).copy()
    for place in range(lists.shape[1]):
        left[:, place] = remaining.sum(1)
        np.put_along_axis(remaining, lists[:, place : place + 1], 0.0, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = np.where(own > -np.inf, own - np.log(left), -np.inf)
    return np.asarray(steps.sum(1))
