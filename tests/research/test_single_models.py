"""The table of the fused list beside single models, on rows whose answer is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from research.decisions.sets import packed, unpacked
from research.decisions.single_models import comparisons

PLAN = {"single": ["ranker", "sft"], "sets": ["first", "second"]}


def row(name: str, seed: int, validation: dict[str, float], chosen: str = "fuse", **ranks: list[int]) -> dict[str, Any]:
    contenders = {one: {"validation": {"ndcg@10": value}} for one, value in validation.items()}
    found = {one: packed(np.array(value, dtype=np.uint8)) for one, value in ranks.items()}
    return {"set": name, "seed": seed, "chosen": chosen, "contenders": contenders, "ranks": found}


def test_ranks_come_back_from_their_text() -> None:
    ranks = np.array([0, 10, 3, 0, 1], dtype=np.uint8)
    assert (unpacked(packed(ranks)) == ranks).all()


def test_the_single_model_is_the_best_over_all_seeds_of_validation_and_differences_are_of_its_users() -> None:
    rows = [
        # the policy is better under the first seed, the ranker over both; on test the policy is better: not asked
        row("first", 1, {"ranker": 0.2, "sft": 0.3}, ranker=[0, 2, 0, 0], sft=[1, 1, 1, 1], fuse=[1, 3, 1, 0]),
        row("first", 2, {"ranker": 0.4, "sft": 0.2}, "sft", ranker=[0, 0, 0, 1], sft=[1, 1, 1, 1], fuse=[1, 1, 0, 1]),
        row("second", 1, {"ranker": 0.1, "sft": 0.2}, ranker=[1, 1, 1], sft=[1, 1, 1], fuse=[1, 1, 1]),
        row("third", 1, {"ranker": 0.1, "sft": 0.2}, ranker=[1, 0, 1], sft=[1, 0, 0], fuse=[1, 1, 1]),
    ]
    first, second, third = comparisons(rows, PLAN)
    assert (first.single, first.seeds, second.single, third.single) == ("ranker", 2, "sft", "sft")
    assert first.means["single"][0] == pytest.approx(2 / 8) and first.means["fused"][0] == pytest.approx(6 / 8)
    discounted = 1 / np.log2([2, 4, 2])
    assert first.means["fused"][1] == pytest.approx((discounted.sum() + 3) / 8)
    assert first.gained[0].mean == pytest.approx(4 / 8) and first.served.mean == pytest.approx(1 / 8)
    assert first.gained[0].low < 0.5 < first.gained[0].high
    assert second.gained[0].mean == 0 and second.p_holm == 1  # of two sets, the other's p doubled
    assert first.p_holm == pytest.approx(min(1, 2 * first.gained[0].p_value)) and third.p_holm is None
