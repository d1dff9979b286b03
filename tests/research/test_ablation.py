"""What a changed starting policy is worth, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from research.starting_policies import ablation


def test_what_a_variant_is_worth_is_paired_by_user() -> None:
    reference = {"masked": np.array([1, 0, 11, 2]), "unmasked": np.array([0, 0, 0, 1])}
    variant = {"masked": np.array([1, 1, 10, 0]), "unmasked": np.array([0, 0, 0, 1])}
    actual = ablation.worth(reference, variant)
    assert actual["masked"]["hr@10"]["mean"] == pytest.approx(1 / 4)
    gained = 1 + 1 / np.log2(11) - 1 / np.log2(3)
    assert actual["masked"]["ndcg@10"]["mean"] == pytest.approx(gained / 4)
    assert actual["unmasked"]["hr@10"]["mean"] == 0.0
