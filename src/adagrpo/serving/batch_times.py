"""Measured times of batches by size; one stall does not stay in the estimate.

An average is kept for each power of two. A batch takes no longer than a larger one, and one of twice the size at most
twice as long. What is measured of one size therefore bounds the others: a size that is not met any more, since requests
are turned away before as many wait, cannot keep the time of a bad moment.
"""

from __future__ import annotations

LEARNING = 0.3  # weight of the last batch in the average of its size
MOST_GROWTH = 2.0  # a batch counts as at most so many times the average before


class BatchTimes:
    """Times of batches; one thread at a time adds to them, any may ask."""

    def __init__(self) -> None:
        self._seconds: tuple[float, ...] = ()  # by the power of two that a size is at most; 0 where not measured

    def observe(self, size: int, seconds: float) -> None:
        """Count a batch."""
        power = _power(size)
        known = [*self._seconds, *[0.0] * (power + 1 - len(self._seconds))]
        bounds = [value * _times(other, power) for other, value in enumerate(known) if value]
        before = known[power] or min([seconds, *bounds])
        known[power] = average = before + LEARNING * (min(seconds, MOST_GROWTH * before) - before)
        bounded = [min(value, average * _times(power, other)) for other, value in enumerate(known)]
        self._seconds = tuple(bounded)  # at once: others read meanwhile

    def expected(self, size: int) -> float:
        """Seconds that a batch takes; of a size that was not measured those of the next smaller one, or the least."""
        known = self._seconds
        if not size or not known:
            return 0.0
        for power in range(min(_power(size), len(known) - 1), -1, -1):
            if known[power]:
                return known[power]
        return next(value for value in known if value)


def _times(power: int, other: int) -> float:
    """Bound how many times as long a batch of another power takes."""
    return 2.0 ** max(0, other - power)


def _power(size: int) -> int:
    return (size - 1).bit_length()
