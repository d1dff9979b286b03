"""From intervals to `use` or `do_not_use`, and whether the reward's sign is wrong.

    adds      the mix beats the policy's order in NDCG@10: over all cases, at half the level, or in a cell known at
              serving time, Holm (1979) over the cells at the other half
    orders    the share of a beam's other items that the reward puts below the logged one, less one half

    use           adds
    do_not_use    adds nowhere: no gain is shown
    inverted      orders is below 0 with p ≤ `STRONG`: the reward ranks logged items worse than chance

An uninformative reward gets `use` with probability at most `level`. Nothing measured before training predicted in
simulated shops whether training helps (`research.decisions.shops`); see `adagrpo decide --train`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from adagrpo.evaluation.statistics import Interval, holm

STRONG = 0.001

Decision = Literal["use", "do_not_use"]
Strength = Literal["strong", "some", "none", "against"]


class CellTest(NamedTuple):
    """The mix minus the policy's order in a cell."""

    name: str
    difference: Interval


class Verdict(NamedTuple):
    """The recommendation."""

    decision: Decision
    strength: Strength  # of the evidence for it; none: no gain is shown and no loss either
    inverted: bool
    where: tuple[str, ...]  # the cells in which re-ranking gains
    cell_p: tuple[float, ...]  # adjusted, to be compared with the level: of all cases, then of each cell


def strength_of(mean: float, p_value: float, *, level: float = 0.05) -> Strength:
    """Return a word for the evidence that a quantity is above 0, by its two-sided, adjusted p-value.

    Example:
        >>> [strength_of(1.0, 0.0005), strength_of(1.0, 0.2), strength_of(-1.0, 0.02)]
        ['strong', 'none', 'against']
    """
    if p_value > level or mean == 0:
        return "none"
    if mean < 0:
        return "against"
    return "strong" if p_value <= STRONG else "some"


def decide(cells: Sequence[CellTest], orders: Interval, *, level: float = 0.05) -> Verdict:
    """Apply the rule of the module's docstring.

    Args:
        cells: all cases first; no cell may be defined by the logged item.
        orders: see the module's docstring.
        level: of the family of all cells.
    """
    raw = [test.difference.p_value for test in cells]
    cell_p = tuple(min(1.0, 2 * p) for p in (*raw[:1], *holm(raw[1:])))
    strengths = [strength_of(test.difference.mean, p, level=level) for test, p in zip(cells, cell_p, strict=True)]
    where = tuple(test.name for test, word in zip(cells, strengths, strict=True) if word in ("some", "strong"))
    inverted = orders.mean < 0 and orders.p_value <= STRONG
    if where:
        over_all = strengths[0] in ("some", "strong")
        best = strengths[0] if over_all else "strong" if "strong" in strengths else "some"
        return Verdict("use", best, inverted, where, cell_p)
    # with no gain anywhere, the test over all cases decides between a loss and no evidence
    return Verdict("do_not_use", "strong" if strengths[0] == "against" else "none", inverted, where, cell_p)
