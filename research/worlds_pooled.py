"""One difference in several simulated worlds, pooled, with an interval over users and worlds, as tables show it."""

from __future__ import annotations

from collections.abc import Sequence

from adagrpo.evaluation.comparison import over_both
from adagrpo.report.tables import MISSING

__all__ = ["over_worlds", "shown", "signed"]


def over_worlds(values: Sequence[Sequence[float]]) -> tuple[float, float, float] | None:
    """The mean over worlds, with its 95 % interval over users and worlds; None for a single world.

    Args:
        values: a mean and its variance over users of each world, whose users are not those of another.
    """
    means, variances = [value[0] for value in values], [value[1] for value in values]
    if len(values) < 2:
        return None
    users = sum(variances) / len(values) ** 2
    low, high = over_both(means, users, users, 0.95)["both"]
    return sum(means) / len(means), low, high


def shown(values: Sequence[Sequence[float]], scale: float, digits: int) -> str:
    """Mean and interval of `over_worlds`, times a scale."""
    found = over_worlds(values)
    if found is None:
        return MISSING
    mean, low, high = (signed(scale * value, digits) for value in found)
    return f"{mean} ({low} … {high})"


def signed(value: float, digits: int) -> str:
    """With its sign; a minus is the sign of that name.

    >>> signed(-0.5, 2)
    '\N{MINUS SIGN}0.50'
    """
    return f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")
