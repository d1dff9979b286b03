"""Axes of charts: which values stand at which pixels, what is written at the ticks, and means over bins.

Ticks are multiples of 1, 2 or 5 times a power of ten.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

__all__ = ["BINS", "Axis", "bin_means", "category_axis", "is_finite", "make_axis", "nice_ticks", "step_axis"]

BINS = 80


@dataclass(frozen=True)
class Axis:
    """A linear map from values to pixels, with its ticks."""

    ticks: tuple[float, ...]
    low: float
    high: float
    start: float  # pixel of `low`
    end: float  # pixel of `high`
    percent: bool
    names: tuple[str, ...] = ()  # of the ticks of an axis of categories

    def at(self, value: float) -> float:
        """The pixel of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def texts(self) -> list[str]:
        """What is written at the ticks."""
        if self.names:
            return list(self.names)
        step = abs(self.ticks[1] - self.ticks[0]) if len(self.ticks) > 1 else abs(self.ticks[0]) or 1.0
        return [_tick_text(value, step, self.percent) for value in self.ticks]


def make_axis(values: Iterable[float], start: float, end: float, *, percent: bool, cover: bool) -> Axis:
    """An axis over some finite values; with `cover` it ends on ticks, otherwise on the values.

    An axis of shares stays between 0 and 100 %: there are none beyond.
    """
    known = list(values)
    low, high = min(known), max(known)
    if low == high == 0:
        high = 0.01 if percent else 1.0
    ticks = nice_ticks(low, high)
    if percent and low >= 0 and high <= 1:
        ticks = [tick for tick in ticks if -1e-9 < tick < 1 + 1e-9]
    inside = tuple(tick for tick in ticks if low <= tick <= high)
    if cover or len(inside) < 2:
        return Axis(tuple(ticks), ticks[0], ticks[-1], start, end, percent)
    return Axis(inside, low, high, start, end, percent)


def step_axis(steps: Iterable[float], start: float, end: float) -> Axis:
    """An axis of steps from the first to the last; a single one stands between the steps beside it.

    Example:
        >>> step_axis([1.0], 0, 200).texts()
        ['0', '1', '2']
    """
    known = set(steps)
    if len(known) > 1:
        return make_axis(known, start, end, percent=False, cover=False)
    (only,) = known
    return Axis((only - 1, only, only + 1), only - 1, only + 1, start, end, False)


def category_axis(names: Sequence[str], start: float, end: float) -> Axis:
    """An axis of categories, at 0, 1, 2 and so on, with half a place to spare at both ends.

    Example:
        >>> axis = category_axis(["few", "many"], 0, 200)
        >>> axis.at(0), axis.at(1), axis.texts()
        (50.0, 150.0, ['few', 'many'])
    """
    ticks = tuple(float(place) for place in range(len(names)))
    return Axis(ticks, -0.5, len(names) - 0.5, start, end, False, tuple(names))


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` multiples of 1, 2 or 5 times a power of ten that cover `low .. high`.

    Example:
        >>> nice_ticks(0.0, 0.9), nice_ticks(10.0, 10.0)
        ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [9.4, 9.6, 9.8, 10.0, 10.2, 10.4, 10.6])
    """
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        pad = 0.05 * abs(low) or 1.0
        low, high = low - pad, high + pad
    raw = (high - low) / count
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * unit for factor in (1, 2, 5, 10) if factor * unit >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-6), math.ceil(high / step - 1e-6)
    if step < 1:  # 3 / 5 prints as 0.6 where 3 * 0.2 does not
        return [place / (1 / step) for place in range(first, last + 1)]
    return [place * step for place in range(first, last + 1)]


def bin_means(
    x: Sequence[float], y: Sequence[float | None], bins: int = BINS
) -> tuple[list[float], list[float | None], float]:
    """Means over bins of equal width, if there are more values than bins.

    Args:
        x: positions; those that are not finite are dropped.
        y: values; None and what is not finite is a gap.
        bins: how many.

    Returns:
        The mean position of each bin that holds one, the mean of its finite values (None if it has none), and the width
        of a bin, 0 if nothing was averaged.

    Example:
        >>> bin_means([0, 1, 2, 3], [1.0, 3.0, None, 7.0], bins=2)
        ([0.5, 2.5], [2.0, 7.0], 1.5)
    """
    pairs = [(float(a), float(b) if is_finite(b) else None) for a, b in zip(x, y, strict=True) if is_finite(a)]
    low, high = min((a for a, _ in pairs), default=0.0), max((a for a, _ in pairs), default=0.0)
    if len(pairs) <= bins or not high > low:
        return [a for a, _ in pairs], [b for _, b in pairs], 0.0
    width = (high - low) / bins
    groups: dict[int, list[tuple[float, float | None]]] = {}
    for a, b in pairs:
        groups.setdefault(min(bins - 1, int((a - low) / width)), []).append((a, b))
    xs, ys = [], list[float | None]()
    for _, group in sorted(groups.items()):
        values = [b for _, b in group if b is not None]
        xs.append(sum(a for a, _ in group) / len(group))
        ys.append(sum(values) / len(values) if values else None)
    return xs, ys, width


def is_finite(value: Any) -> TypeGuard[float]:
    """False for what is no number, NaN, infinities, and numbers too large to be subtracted from each other."""
    return isinstance(value, int | float) and abs(value) < 1e100


def _tick_text(value: float, step: float, percent: bool) -> str:
    if percent:
        value, step = 100 * value, 100 * step
    if abs(value) >= 1e7 or step < 1e-5:
        text = f"{value:.3g}"
    else:
        decimals = max(0, -math.floor(math.log10(step) + 1e-9))
        text = f"{0.0 if abs(value) < step / 2 else value:,.{decimals}f}"
    return f"{text} %" if percent else text
