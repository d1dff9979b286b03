"""LightGBM models as rewards: which are read, which are refused, and that they score what the features say."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adagrpo.errors import UserError
from adagrpo.rewards.boosted import BoostedReward, load_model, require_lightgbm
from adagrpo.rewards.features import FEATURES, Features
from adagrpo.types import Histories, Ragged

lightgbm = pytest.importorskip("lightgbm")


def fitted(names: list[str], **parameters: Any) -> Any:
    draw = np.random.default_rng(0)
    table = draw.normal(size=(200, len(names)))
    options = {"verbosity": -1, "min_data_in_leaf": 5, "num_threads": 1, **parameters}
    labels = draw.integers(0, 3, 200) if "num_class" in parameters else table[:, 0] + table[:, -1]
    return lightgbm.train(options, lightgbm.Dataset(table, labels, feature_name=names), num_boost_round=3)


@pytest.fixture
def features() -> Features:
    rows = [[0, 1, 2], [1, 2, 3], [2, 3, 4], [0, 4]]
    values = np.array([item for row in rows for item in row], np.int32)
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    return Features(Ragged(values, offsets), [["a"], ["a", "b"], ["b"], [], ["a"]], ["x y", "x", "y z", "z", "x y"])


def test_a_model_may_use_some_features_in_its_own_order(features: Features, tmp_path: Path) -> None:
    names = ["age", "popularity", "knn_last"]
    fitted(names).save_model(tmp_path / "model.txt")
    reward = BoostedReward(load_model(tmp_path / "model.txt"), features)
    histories = Histories(torch.tensor([[0, 1], [3, 0]]), torch.tensor([2, 1]), torch.tensor([0, 1]))
    items = torch.tensor([[2, 4, -1], [0, 1, 2]])
    found = reward.score(histories, items)
    assert found.shape == (2, 3) and found.dtype == torch.float32
    table = features.table(*(part.numpy() for part in (histories.items, histories.lengths, items)), np.array([0, 1]))
    for row, place in (items >= 0).nonzero().tolist():
        columns = [table[row, place, FEATURES.index(name)] for name in names]
        assert float(found[row, place]) == pytest.approx(reward.model.predict([columns], raw_score=True)[0], rel=1e-6)
    assert reward.score(histories, items[:, :0]).shape == (2, 0)
    # whose history it is matters: the counts are without that user
    others = reward.score(Histories(histories.items, histories.lengths), items)
    assert not torch.equal(others[items >= 0], found[items >= 0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x80\x04pickle", "not a LightGBM model in text format"),
        (b"hello", "not a whole LightGBM model in text format"),
        (b"tree\nversion=v4\nend of trees\n", "LightGBM cannot read it"),
    ],
)
def test_what_is_no_model_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "model.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_model(tmp_path / "model.txt")


def test_a_model_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.txt"
    fitted(["age", "popularity"]).save_model(path)
    text = path.read_text(encoding="utf-8")
    path.write_text(text[: text.index("end of trees") - 5], encoding="utf-8")
    with pytest.raises(UserError, match="not a whole LightGBM model"):
        load_model(path)


def test_an_unknown_feature_and_several_outputs_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.txt"
    fitted(["age", "colour"]).save_model(path)
    with pytest.raises(UserError, match="uses the feature 'colour'; there are history_length, "):
        load_model(path)
    fitted(["age", "popularity"], objective="multiclass", num_class=3).save_model(path)
    with pytest.raises(UserError, match="has 3 outputs; a reward has one"):
        load_model(path)
    with pytest.raises(UserError, match="not a LightGBM model in text format"):
        load_model(tmp_path / "missing.txt")


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "lightgbm":
            raise ImportError("No module named 'lightgbm'")
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"reward\.kind: needs LightGBM .*pip install 'adagrpo\[lightgbm\]'"):
        require_lightgbm("reward.kind")
