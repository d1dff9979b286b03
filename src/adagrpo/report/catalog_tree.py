"""The catalogue as a tree of code prefixes, small enough for a page: each branch shows its largest branches alone.

A prefix that leads to one item is shown as that item. How many branches each node shows is the largest number of
`LIMITS` with which the whole tree keeps to a budget of nodes, so that a page of 100,000 items is no larger than one of
a thousand; what is left out is counted where it is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BUDGET = 600  # nodes
LIMITS = (256, 64, 32, 16, 12, 8, 6, 4, 3, 2)
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Leaf:
    """An item."""

    codes: tuple[int, ...]
    title: str
    interactions: int


@dataclass(frozen=True)
class Branch:
    """A prefix of at least two items."""

    prefix: tuple[int, ...]
    items: int
    interactions: int
    example: str  # the title of its most popular item
    below: tuple[Branch | Leaf, ...]  # the largest first
    left_out: int  # items below that are in none of them

    @property
    def nodes(self) -> int:
        """Of the tree from here down, this one included."""
        return 1 + sum(node.nodes if isinstance(node, Branch) else 1 for node in self.below)

    @property
    def shown(self) -> int:
        """The items that the tree shows from here down."""
        return sum(node.shown if isinstance(node, Branch) else 1 for node in self.below)


def catalog_tree(
    codes: Ints,  # (V, L)
    titles: Sequence[str],
    interactions: Ints,  # (V,)
    *,
    budget: int = BUDGET,
) -> Branch:
    """The tree of a catalogue.

    Args:
        codes: (V, L) distinct rows.
        titles: of the `V` items.
        interactions: (V,) how often each was bought in training.
        budget: the most nodes, as far as two branches a node allow it.

    Returns:
        The root, whose prefix is what all items share, mostly nothing.

    Example:
        >>> codes = np.array([[0, 0], [0, 1], [1, 7]])
        >>> root = catalog_tree(codes, ["a", "b", "c"], np.array([1, 2, 3]))
        >>> [(node.prefix, node.items, node.example) if isinstance(node, Branch) else node for node in root.below]
        [((0,), 2, 'b'), Leaf(codes=(1, 7), title='c', interactions=3)]
    """
    everything = np.arange(len(codes))
    for limit in LIMITS:
        root = _grow(everything, (), codes, titles, interactions, limit)
        if root.nodes <= budget:
            break
    return root


def _grow(
    rows: Ints,  # (N,) items of the prefix, at least two, or those of the root
    prefix: tuple[int, ...],
    codes: Ints,
    titles: Sequence[str],
    interactions: Ints,
    limit: int,
) -> Branch:
    while len(rows) and len(values := np.unique(codes[rows, len(prefix)])) == 1 and len(prefix) < codes.shape[1] - 1:
        prefix = (*prefix, int(values[0]))  # a code that all of them share is no choice
    of_row = codes[rows, len(prefix)]
    values, sizes = np.unique(of_row, return_counts=True)
    largest = np.lexsort((values, -sizes))[:limit]
    below: list[Branch | Leaf] = []
    for place in largest:
        inside = rows[of_row == values[place]]
        if len(inside) == 1:
            item = int(inside[0])
            below.append(Leaf(tuple(codes[item].tolist()), titles[item], int(interactions[item])))
        else:
            below.append(_grow(inside, (*prefix, int(values[place])), codes, titles, interactions, limit))
    example = titles[rows[interactions[rows].argmax()]] if len(rows) else ""
    left_out = len(rows) - int(sizes[largest].sum())
    return Branch(prefix, len(rows), int(interactions[rows].sum()), example, tuple(below), left_out)
