r"""From intervals to a recommendation, `use`, `rerank_only` or `do_not_use`, and how strong the evidence for it is.

    adds      the mix beats the policy's order in NDCG@10: over all cases, at half the level, or in a cell known at
              serving time, Holm over the cells at the other half
    leads     the reward's order alone beats the policy's order in NDCG@10, over all cases, each weighted by one over
              how often its logged item was shown

    use           adds over all cases, and leads, the latter beyond doubt (p ≤ `STRONG`): re-rank, training is optional
    rerank_only   adds somewhere, and not `use`
    do_not_use    adds nowhere

Training moves the policy toward the reward's own order, and does not stop at the weight that a mix would give it: that
order must be the better one. And it must be so for what users want, of which clicks are only what was shown: a reward
that knows what is shown orders the logged items well, and training on it harms. `research.decisions.shops` holds the
verdict against what re-ranking and training then did to true utility in simulated shops; it predicts the former.

All cases are the question that is asked first; one test among many cells would make it depend on how many there are.
A test counts only in the direction of a gain. `use` implies `adds`, so that a reward that knows nothing gets anything
but `do_not_use` with a probability of at most `level`, however many cells are looked at. Holm 1979.

No step but the halvings of `repeated_mix` draws anything, and these are averaged, so that the verdict is one of models
and data. What the gate would do at which thresholds (`ThresholdTest`) is read off sampled groups, which differ from
draw to draw; it says at which thresholds a gate selects, and decides nothing. A test of a point of its grid is an
intersection-union test (Berger 1982), which needs no correction for its parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from adagrpo.evaluation.statistics import Interval, holm

STRONG = 0.001

Decision = Literal["use", "rerank_only", "do_not_use"]
Strength = Literal["strong", "some", "none", "against"]


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
    strength: Strength  # of the evidence for it; none: nothing is shown either way
    tau: float | None  # of a gate that selects, with `use`
    q_min: float | None
    where: tuple[str, ...]  # the cells in which re-ranking gains
    cell_p: tuple[float, ...]  # adjusted, to be held against the level: of all cases, then of each cell
    threshold_p: tuple[float, ...]  # the same of each pair of thresholds


def strength_of(mean: float, p_value: float, *, level: float = 0.05) -> Strength:
    """A word for the evidence that a quantity is above 0, by a two-sided p-value, adjusted where it is one of several.

    Example:
        >>> [strength_of(1.0, 0.0005), strength_of(1.0, 0.02), strength_of(1.0, 0.2), strength_of(-1.0, 0.02)]
        ['strong', 'some', 'none', 'against']
    """
    if p_value > level or mean == 0:
        return "none"
    if mean < 0:
        return "against"
    return "strong" if p_value <= STRONG else "some"


def decide(
    cells: Sequence[CellTest],
    leads: Interval,
    thresholds: Sequence[ThresholdTest],
    preferred: tuple[float, float],
    *,
    level: float = 0.05,
) -> Verdict:
    """Apply the rule of the module's text.

    Args:
        cells: all cases first, then the cells; none of them may be formed by the logged item.
        leads: the reward's order against the policy's, over all cases, weighted.
        thresholds: the grid; pairs that could not be tested are left out by the caller.
        preferred: the configured (tau, q_min), taken where it passes; else the passing pair that admits most.
        level: of all that is said about the cells, and of all that is said about the thresholds.
    """
    raw = [test.difference.p_value for test in cells]
    cell_p = [min(1.0, 2 * p) for p in (*raw[:1], *holm(raw[1:]))]
    strengths = [strength_of(test.difference.mean, p, level=level) for test, p in zip(cells, cell_p, strict=True)]
    where = tuple(test.name for test, word in zip(cells, strengths, strict=True) if word in ("some", "strong"))
    threshold_p = holm([test.p_value for test in thresholds])
    p_values = (tuple(cell_p), tuple(threshold_p))
    if strengths[0] in ("some", "strong") and strength_of(leads.mean, leads.p_value, level=level) == "strong":
        passing = [test for test, p in zip(thresholds, threshold_p, strict=True) if p <= level]
        best = max(passing, key=lambda test: ((test.tau, test.q_min) == preferred, test.admitted), default=None)
        tau, q_min = (None, None) if best is None else (best.tau, best.q_min)
        return Verdict("use", strengths[0], tau, q_min, where, *p_values)
    if where:
        best_word: Strength = "strong" if "strong" in strengths else "some"
        return Verdict("rerank_only", best_word, None, None, where, *p_values)
    # with no gain anywhere, the order over all cases says whether a loss is shown or nothing is
    return Verdict("do_not_use", "strong" if strengths[0] == "against" else "none", None, None, where, *p_values)
