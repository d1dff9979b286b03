"""Weights of drawn lists that need both policies: of each item at its place, and the pseudo-inverse of the list.

The log has the probability of each place given those above it. That an item is at a place whatever is above it, or what
all lists together look like, follows from the first probability of every item alone. So the weights that answered must
be at hand, and a catalogue may not be too large.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from adagrpo.lists import Query, Recommender
from adagrpo.off_policy.position_weights import MOST_ITEMS, position_propensities
from adagrpo.off_policy.pseudo_inverse import MOST, count_lists, pseudo_inverse_weights

CELLS = 20_000  # first probabilities that are asked for at a time
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class ListWeights(NamedTuple):
    """Importance weights of lists; a text says why there are none."""

    places: Floats | str  # (N, K), 1 where there is no place
    sums: Floats | str  # (N,)


def list_weights(
    target: Recommender,
    logging: Mapping[int, Recommender],
    histories: Sequence[Sequence[int]],
    slates: Ints,  # (N, K), -1 where there is no place
    heats: Sequence[tuple[float, float]],
) -> ListWeights:
    """Weights of `N` lists.

    Args:
        logging: of each list the policy that drew it, as far as its weights are at hand.
        slates: (N, K) what was shown.
        heats: of each list the temperature of the target and of its own policy.
    """
    items = len(target.item_ids)
    missing = len(histories) - len(logging)
    if missing:
        drew = f"the weights or the catalogue that drew {missing:,} of {len(histories):,} lists"
        reason = f"{drew} are not those of now"
        return ListWeights(reason, reason)
    if items > MOST_ITEMS:
        reason = f"the catalogue has {items:,} items; places are computed for {MOST_ITEMS:,} at most"
        return ListWeights(reason, reason)
    places, sums = np.ones(slates.shape), np.ones(len(slates))
    refused: str | None = None
    for rows, after, before in _firsts(target, logging, histories, heats):
        shown = slates[rows]
        try:
            places[rows] = position_propensities(after, shown) / position_propensities(before, shown)
        except ValueError as error:  # so cold a draw that but a few items have any probability
            return ListWeights(str(error), str(error))
        for row, new, old, one in zip(rows, after, before, shown, strict=True):
            size, length = int((old > -np.inf).sum()), int((one >= 0).sum())
            lists = count_lists(size, length)
            if lists > MOST:
                refused = f"{size:,} items make {_about(lists)} lists of {length}; at most {MOST:,} can be counted"
            elif refused is None:
                try:
                    sums[row] = pseudo_inverse_weights(new, old, one[None, :length])[0]
                except ValueError as error:
                    refused = str(error)
    return ListWeights(places, refused or sums)


def _firsts(
    target: Recommender,
    logging: Mapping[int, Recommender],
    histories: Sequence[Sequence[int]],
    heats: Sequence[tuple[float, float]],
) -> Iterator[tuple[list[int], Floats, Floats]]:
    """Lists, and (B, V) first log-probabilities under the target and under what drew them."""
    alike: dict[tuple[int, tuple[float, float]], list[int]] = {}
    for row, heat in enumerate(heats):
        alike.setdefault((id(logging[row]), heat), []).append(row)
    size = max(1, CELLS // len(target.item_ids))
    for (_, (new, old)), group in alike.items():
        for begin in range(0, len(group), size):
            rows = group[begin : begin + size]
            asked = (
                of.first_item_log_probs([Query(histories[row], None, (), None, heat, 0) for row in rows])
                for of, heat in ((target, new), (logging[rows[0]], old))
            )
            after, before = asked
            yield rows, after, before


def _about(number: int) -> str:
    return f"{number:,}" if number < 10**9 else f"{float(number):.0e}"
