r"""From intervals to a recommendation: `use`, `rerank_only` or `do_not_use`.

    adds      the mix beats the policy's order in NDCG@10: over all cases, at half the level, or in a cell known at
              serving time, Holm over the cells at the other half
    selects   the gate admits more groups than it would with shuffled rewards
    points    on the hard groups the reward pulls toward the logged item, beyond what the policy's own score does, and,
              where the truth is known, it orders the rollouts of the admitted groups better than chance

    use           adds over all cases, and selects and points at some thresholds       Holm over the thresholds,
                                                                                       p = max of its tests
    rerank_only   adds somewhere, and not `use`
    do_not_use    adds nowhere

All cases are the question that is asked first; one test among many cells would make it depend on how many there are.
A test counts only in the direction of a gain. `use` implies `adds`, so that a reward that knows nothing gets anything
but `do_not_use` with a probability of at most `level`, however many cells and thresholds are looked at. Holm 1979; the
test of a point is an intersection-union test (Berger 1982), which needs no correction for its parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from adagrpo.evaluation.statistics import Interval, holm

__all__ = ["CellTest", "Decision", "ThresholdTest", "Verdict", "decide"]

Decision = Literal["use", "rerank_only", "do_not_use"]


class CellTest(NamedTuple):
    """The mix against the policy's order in a cell; the first one given to `decide` is that over all cases."""

    name: str
    difference: Interval


class ThresholdTest(NamedTuple):
    """The gate at one pair of thresholds."""

    tau: float
    q_min: float
    admitted: int
    tests: tuple[Interval, ...]  # all must be gains

    @property
    def p_value(self) -> float:
        """Of the hypothesis that some test is no gain: 1 where one is not."""
        return max(test.p_value if test.mean > 0 else 1.0 for test in self.tests)


class Verdict(NamedTuple):
    """The recommendation."""

    decision: Decision
    tau: float | None  # with `use`
    q_min: float | None
    where: tuple[str, ...]  # the cells in which re-ranking gains
    cell_p: tuple[float, ...]  # adjusted, to be held against the level: of all cases, then of each cell
    threshold_p: tuple[float, ...]  # the same of each pair of thresholds


def decide(
    cells: Sequence[CellTest],
    thresholds: Sequence[ThresholdTest],
    preferred: tuple[float, float],
    *,
    level: float = 0.05,
) -> Verdict:
    """Apply the rule of the module's text.

    Args:
        cells: all cases first, then the cells; none of them may be formed by the logged item.
        thresholds: the grid; pairs that could not be tested are left out by the caller.
        preferred: the configured (tau, q_min), taken where it passes; else the passing pair that admits most.
        level: of all that is said about the cells, and of all that is said about the thresholds.
    """
    raw = [test.difference.p_value for test in cells]
    cell_p = [min(1.0, 2 * p) for p in (*raw[:1], *holm(raw[1:]))]
    gains = [test.difference.mean > 0 and p <= level for test, p in zip(cells, cell_p, strict=True)]
    threshold_p = holm([test.p_value for test in thresholds])
    passing = [test for test, p in zip(thresholds, threshold_p, strict=True) if p <= level]
    where = tuple(test.name for test, gain in zip(cells, gains, strict=True) if gain)
    p_values = (tuple(cell_p), tuple(threshold_p))
    if gains[0] and passing:
        best = max(passing, key=lambda test: ((test.tau, test.q_min) == preferred, test.admitted))
        return Verdict("use", best.tau, best.q_min, where, *p_values)
    return Verdict("rerank_only" if where else "do_not_use", None, None, where, *p_values)
