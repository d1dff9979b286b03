"""Expected times of batches: a moving average per power of two of their size.

A batch takes no longer than a larger one, and one of twice the size at most twice as long, so each measurement bounds
the other sizes.
"""

from __future__ import annotations

LEARNING = 0.3  # weight of the last batch in the average of its size
MOST_GROWTH = 2.0  # largest ratio of a batch to the average before


class BatchTimes:
    """Times of batches; one thread at a time may write."""

    def __init__(self) -> None:
        self._seconds: tuple[float, ...] = ()  # by power of two, rounded up; 0 if not measured

    def observe(self, size: int, seconds: float) -> None:
        """Add a measured batch."""
        power = _power(size)
        known = [*self._seconds, *[0.0] * (power + 1 - len(self._seconds))]
        bounds = [value * _times(other, power) for other, value in enumerate(known) if value]
        before = known[power] or min([seconds, *bounds])
        known[power] = average = before + LEARNING * (min(seconds, MOST_GROWTH * before) - before)
        bounded = [min(value, average * _times(power, other)) for other, value in enumerate(known)]
        self._seconds = tuple(bounded)  # atomic, for concurrent readers

    def expected(self, size: int) -> float:
        """Return expected seconds, by the nearest measured size at or below, else the smallest."""
        known = self._seconds
        if not size or not known:
            return 0.0
        for power in range(min(_power(size), len(known) - 1), -1, -1):
            if known[power]:
                return known[power]
        return next(value for value in known if value)


def _times(power: int, other: int) -> float:
    return 2.0 ** max(0, other - power)


def _power(size: int) -> int:
    return (size - 1).bit_length()
