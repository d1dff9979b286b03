from __future__ import annotations

from adagrpo.serving.batch_queue import BatchTimes


def test_a_size_that_is_not_known_takes_what_the_next_smaller_one_does() -> None:
    times = BatchTimes()
    assert times.expected(5) == 0
    times.observe(8, 0.2)
    assert [times.expected(size) for size in (0, 1, 8, 64)] == [0.0, 0.2, 0.2, 0.2]
    times.observe(1, 0.1)
    assert [times.expected(size) for size in (1, 2, 4, 5, 8)] == [0.1, 0.1, 0.1, 0.2, 0.2]


def test_one_stall_does_not_stay() -> None:
    """Batches of 64 are met no more once requests are turned away for their time; smaller ones still bound it."""
    times = BatchTimes()
    for _ in range(20):
        times.observe(64, 0.05)
        times.observe(32, 0.03)
    times.observe(64, 5.0)
    assert times.expected(64) < 0.07
    for _ in range(9):
        times.observe(64, 5.0)  # the machine became slow, and that is learnt
    assert times.expected(64) > 0.5
    for _ in range(12):
        times.observe(32, 0.03)
    assert 0.05 < times.expected(64) < 0.07  # at most twice the time of half of it


def test_a_batch_takes_no_longer_than_a_larger_one() -> None:
    times = BatchTimes()
    times.observe(1, 1.0)
    times.observe(16, 0.02)
    assert times.expected(1) == times.expected(16) == 0.02
