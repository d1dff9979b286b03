"""How far a reward is trusted: levels and weights by hand, the file, and the reward that is made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from adagrpo.errors import UserError
from adagrpo.types import Histories
from research.learned_trust.trust import Items, TrustedReward, TrustModel, levels, read_trust

ITEMS = Items(np.array([1, 5, 9, 20]), np.array([0, 0, 1, -1]))
EDGES = {"popularity": [2.0, 6.0, 10.0], "history_length": [2.0, 4.0, 6.0], "spread": [0.5, 1.0, 2.0]}
MODEL = TrustModel(
    2.0, 0.5, EDGES | {"agreement": [-0.5, 0.0, 0.5]}, {"item_group": [0.25, -1.0], "history_length": [0, 0.1, 0, 0]}
)


class Scores:
    def __init__(self, table: list[list[float]]) -> None:
        self.table = torch.tensor(table)

    def score(self, histories: Histories, items: Tensor) -> Tensor:
        return self.table


def test_candidates_are_placed_in_levels() -> None:
    candidates = np.array([[0, 1, 2, 3, -1]])
    rewards, second = np.array([[1.0, 2.0, 3.0, 4.0, np.nan]]), np.array([[4.0, 3.0, 2.0, 1.0, np.nan]])
    placed, edges = levels(candidates, np.array([3]), rewards, second, ITEMS, MODEL.edges)
    assert edges == MODEL.edges
    assert placed["popularity"].tolist() == [[0, 1, 2, 3, -1]]
    assert placed["item_group"].tolist() == [[0, 0, 1, -1, -1]]
    assert placed["history_length"].tolist() == [[1, 1, 1, 1, -1]]
    assert placed["spread"].tolist() == [[2, 2, 2, 2, -1]]  # the root of 1.25
    assert placed["agreement"].tolist() == [[0, 0, 0, 0, -1]]  # they are opposite
    fitted = levels(candidates, np.array([3]), rewards, second, ITEMS)[1]
    assert fitted["popularity"] == [4.0, 7.0, 11.75]


def test_the_reward_is_the_weight_times_the_centred_score() -> None:
    reward = TrustedReward(Scores([[1.0, 2.0, 3.0, 6.0]]), Scores([[0.0, 1.0, 2.0, 3.0]]), ITEMS, MODEL)
    histories = Histories(torch.tensor([[3, 2, 1]]), torch.tensor([3]))
    actual = reward.score(histories, torch.tensor([[0, 1, 2, 3]]))
    # mean 3, scale 2; 0.5 + 0.1, and 0.25 for the first group, -1 for the second, of which a floor of 0 is left
    assert actual[0].tolist() == pytest.approx([0.85 * -1.0, 0.85 * -0.5, 0.0, 0.6 * 1.5])


def test_a_file_is_read_as_it_was_written_and_another_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trust.json"
    path.write_text(MODEL.as_json(), encoding="utf-8")
    assert read_trust(path) == MODEL
    named = MODEL._replace(groups=("books", "shoes"))
    path.write_text(named.as_json(), encoding="utf-8")
    assert read_trust(path) == named
    path.write_text(MODEL.as_json().replace("item_group", "colour"), encoding="utf-8")
    with pytest.raises(UserError, match="has a factor 'colour'; there are popularity"):
        read_trust(path)
    bad: list[Any] = ["{}", "[]", "x", MODEL.as_json().replace("0.5", "NaN"), MODEL.as_json().replace("2.0", "0.0")]
    for text in bad:
        path.write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match="not a file of weights"):
            read_trust(path)
