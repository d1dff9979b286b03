from __future__ import annotations

import hashlib
import hmac
from collections import Counter

import numpy as np
import pytest
from scipy import stats

from adagrpo.experiments.allocation import assign, uniform

USERS = [f"user-{number}" for number in range(20_000)]


def test_a_number_is_the_first_53_bits_of_the_keyed_hash() -> None:
    bits = bin(int(hmac.new(b"2026-11", b"u1", hashlib.sha256).hexdigest(), 16))[2:].zfill(256)[:53]
    assert uniform("u1", "2026-11") == sum(2.0**-place for place, bit in enumerate(bits, 1) if bit == "1")


def test_numbers_are_uniform() -> None:
    numbers = [uniform(user, "salt") for user in USERS]
    assert stats.kstest(numbers, "uniform").pvalue > 0.01
    assert 0 <= min(numbers) < 0.001 and 0.999 < max(numbers) < 1


def test_two_salts_know_nothing_of_each_other() -> None:
    table = np.zeros((4, 4))
    for user in USERS:
        table[int(4 * uniform(user, "2026-11")), int(4 * uniform(user, "2026-12"))] += 1
    assert stats.chi2_contingency(table).pvalue > 0.01
    assert table.min() > 1000  # of 1,250 expected in each cell


@pytest.mark.parametrize("weights", [{"a": 1.0, "b": 1.0}, {"a": 8.0, "b": 1.0, "c": 1.0}])
def test_arms_get_their_weights_and_the_holdout_its_share(weights: dict[str, float]) -> None:
    counts = Counter(assign(user, salt="x-1", weights=weights, holdout=0.1) for user in USERS)
    shares = {None: 0.1} | {arm: 0.9 * weight / sum(weights.values()) for arm, weight in weights.items()}
    expected = [len(USERS) * share for share in shares.values()]
    assert stats.chisquare([counts[arm] for arm in shares], expected).pvalue > 0.01


def test_the_order_of_the_arms_in_the_file_moves_nobody() -> None:
    one, other = {"a": 1.0, "b": 2.0}, {"b": 2.0, "a": 1.0}
    assert all(assign(user, salt="x-1", weights=one) == assign(user, salt="x-1", weights=other) for user in USERS[:300])


def test_a_larger_holdout_moves_nobody_between_arms() -> None:
    weights = {"a": 1.0, "b": 1.0}
    for user in USERS[:500]:
        small = assign(user, salt="x-1", weights=weights, holdout=0.1)
        assert assign(user, salt="x-1", weights=weights, holdout=0.4) in (small, None)
        assert (small is None) <= (assign(user, salt="x-1", weights=weights, holdout=0.4) is None)
