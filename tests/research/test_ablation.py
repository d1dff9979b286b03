"""What a changed starting policy is worth, by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from adagrpo.networks import CausalEncoder
from research.starting_policies import ablation, encoder


def test_what_a_variant_is_worth_is_paired_by_user() -> None:
    reference = {"masked": np.array([1, 0, 11, 2]), "unmasked": np.array([0, 0, 0, 1])}
    variant = {"masked": np.array([1, 1, 10, 0]), "unmasked": np.array([0, 0, 0, 1])}
    actual = ablation.worth(reference, variant)
    assert actual["masked"]["hr@10"]["mean"] == pytest.approx(1 / 4)
    gained = 1 + 1 / np.log2(11) - 1 / np.log2(3)
    assert actual["masked"]["ndcg@10"]["mean"] == pytest.approx(gained / 4)
    assert actual["unmasked"]["hr@10"]["mean"] == 0.0


def test_the_table_of_the_encoders_parts_is_of_its_rows() -> None:
    text = encoder.PAGE.read_text(encoding="utf-8")
    assert encoder.on_page(text) == text


def test_parts_of_the_encoder_are_taken_back_while_it_is_built_and_not_after() -> None:
    def build() -> CausalEncoder:
        return CausalEncoder(width=4, layers=1, heads=1, max_length=3, dropout=0.0)

    with encoder.changed((encoder.NORM, encoder.ORDER)):
        before = build().eval()
    vectors = torch.randn(1, 3, 4)
    swapped = vectors[:, [1, 0, 2]]
    with torch.no_grad():
        before.enter.positions.weight.zero_()  # type: ignore[union-attr, operator]
        assert torch.allclose(before(vectors)[:, 2], before(swapped)[:, 2], atol=1e-6)  # no other order is known
        assert not torch.allclose(before(vectors), before(10 * vectors), atol=1e-3)
        now = build().eval()
        now.blocks[0].distances.weight.copy_(torch.tensor([[0.0], [1.0], [3.0]]))
        assert not torch.allclose(now(vectors)[:, 2], now(swapped)[:, 2], atol=1e-3)
        assert torch.allclose(now(vectors), now(10 * vectors), atol=1e-3)
