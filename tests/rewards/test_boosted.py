"""LightGBM models as rewards: which are read, which are refused, and that they score what the features say."""

from __future__ import annotations

import builtins
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from adagrpo.errors import UserError
from adagrpo.rewards.boosted import BoostedReward
from adagrpo.rewards.features import FEATURES, Features
from adagrpo.rewards.model_files import LARGEST_MODEL, load_model, require
from adagrpo.rewards.trees import checked_model
from adagrpo.types import Histories, Ragged

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks.reliability.explode import fitted_text, mutated

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
    model = fitted(names)
    model.save_model(tmp_path / "model.txt")
    reward = BoostedReward(load_model(tmp_path / "model.txt"), features)
    histories = Histories(torch.tensor([[0, 1], [3, 0]]), torch.tensor([2, 1]), torch.tensor([0, 1]))
    items = torch.tensor([[2, 4, -1], [0, 1, 2]])
    actual = reward.score(histories, items)
    assert actual.shape == (2, 3) and actual.dtype == torch.float32
    table = features.table(*(part.numpy() for part in (histories.items, histories.lengths, items)), np.array([0, 1]))
    for row, place in (items >= 0).nonzero().tolist():
        columns = [table[row, place, FEATURES.index(name)] for name in names]
        assert float(actual[row, place]) == pytest.approx(float(model.predict([columns], raw_score=True)[0]), rel=1e-6)
    assert reward.score(histories, items[:, :0]).shape == (2, 0)
    # whose history it is matters: the counts are without that user
    others = reward.score(Histories(histories.items, histories.lengths), items)
    assert not torch.equal(others[items >= 0], actual[items >= 0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x80\x04pickle", "not a LightGBM model in text format"),
        (b"hello", "not a whole LightGBM model in text format"),
        (b"tree\nversion=v4\nend of trees\n", "not as LightGBM writes a model: has no num_class"),
        (
            b"tree\n" + b"version=v4 " * 100 + b"\nend of trees\n",
            r"version 'v4 version=v4 .{20,30}\.\.\.'; v2, v3, v4 are",
        ),
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


def test_an_unknown_feature_and_several_outputs_are_refused(features: Features, tmp_path: Path) -> None:
    path = tmp_path / "model.txt"
    fitted(["age", "knn_lst"]).save_model(path)
    with pytest.raises(UserError) as caught:
        BoostedReward(load_model(path), features)
    assert str(caught.value) == (
        f"{path}: the feature 'knn_lst' is nowhere: looked for in our own features (--items and --users not given);"
        " the nearest name is 'knn_last'"
    )
    fitted(["age", "popularity"], objective="multiclass", num_class=3).save_model(path)
    with pytest.raises(UserError, match="has 3 outputs; a reward has one"):
        load_model(path)
    with pytest.raises(UserError, match="cannot be read as a LightGBM model"):
        load_model(tmp_path / "missing.txt")


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "lightgbm":
            raise ImportError("No module named 'lightgbm'")
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"reward\.kind: needs LightGBM .*pip install -e"):
        require("lightgbm", "reward.kind")


# ---------------------------------------------------------------- texts that LightGBM would trust


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.5},
        {"boosting": "dart", "monotone_constraints": [1, 0]},
        {"zero_as_missing": True},
        {"min_data_in_leaf": 150},  # trees of one leaf
        {"num_leaves": 40, "min_data_in_leaf": 1},
    ],
)
def test_the_text_that_lightgbm_reads_scores_as_the_whole_one(parameters: dict[str, Any]) -> None:
    model = fitted(["age", "popularity"], **parameters)
    draw = np.random.default_rng(1)
    table = draw.normal(size=(1000, 2))
    table[::7, 0], table[::5, 1] = np.nan, 0
    text, names = checked_model(model.model_to_string())
    assert names == ["age", "popularity"] and "parameters" not in text
    again = lightgbm.Booster(model_str=text)
    assert np.array_equal(again.predict(table, raw_score=True), model.predict(table, raw_score=True))


def test_categories_score_as_in_the_whole_text() -> None:
    text = fitted_text()
    assert "num_cat=1" in text
    draw = np.random.default_rng(1)
    table = draw.normal(size=(1000, 3))
    table[:, 2] = draw.integers(-1, 60, 1000)
    whole, checked = lightgbm.Booster(model_str=text), lightgbm.Booster(model_str=checked_model(text)[0])
    assert np.array_equal(checked.predict(table, raw_score=True), whole.predict(table, raw_score=True))


TREE = """num_leaves=3
num_cat=0
split_feature=0 1
threshold=0.5 inf
decision_type=2 8
left_child=1 -1
right_child=-3 -2
leaf_value=1 -2.5 1e-3
is_linear=0
"""
HEADER = """tree
version=v4
num_class=1
num_tree_per_iteration=1
max_feature_idx=1
feature_names=age popularity

"""


def test_a_tree_by_hand(tmp_path: Path) -> None:
    (tmp_path / "model.txt").write_text(f"{HEADER}Tree=0\n{TREE}\nend of trees\n")
    model = load_model(tmp_path / "model.txt")
    # age <= .5, then popularity: with an infinite threshold all but what is missing goes to the left
    columns = [pl.Series([0.0, 0.0, 1.0]), pl.Series([5.0, np.nan, 5.0])]
    assert model.predict(columns, 1).tolist() == [1.0, -2.5, 1e-3]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("left_child=1 -1", "left_child=0 -1", "a child is no later node of the tree"),  # the root once more: no end
        ("right_child=-3 -2", "right_child=-3 -9", "a node or leaf is not the child of exactly one node"),
        ("right_child=-3 -2", "right_child=-1 -2", "a node or leaf is not the child of exactly one node"),
        ("left_child=1 -1", "left_child=2 -1", "a child is no later node of the tree"),
        ("split_feature=0 1", "split_feature=0 2", "split_feature is 2, expected 0 to 1"),
        ("split_feature=0 1", "split_feature=0 -1", "split_feature is -1, expected 0 to 1"),
        ("split_feature=0 1", "split_feature=0", "split_feature has 1 numbers, expected 2"),
        ("num_leaves=3", "num_leaves=2000000000", "num_leaves is 2000000000, expected 1 to 131072"),
        ("num_leaves=3", "num_leaves=4", "leaf_value has 3 numbers, expected 4"),
        ("num_leaves=3", "num_leaves=x", r"num_leaves is not a list of numbers \('x'\)"),
        ("num_cat=0", "num_cat=1", "has no cat_boundaries"),
        ("decision_type=2 8", "decision_type=3 8", "the threshold of a categorical split is none of 0 sets"),
        ("decision_type=2 8", "decision_type=2 12", "decision_type is 12, expected 0 to 11"),
        ("threshold=0.5 inf", "threshold=0.5 nan", "threshold is not a list of numbers"),
        ("leaf_value=1", "leaf_value=1e999", "leaf_value has a number that is not finite"),
        ("leaf_value=1", "leaf_value=1e200", "its leaves add up to more than a score can hold"),
        ("is_linear=0", "is_linear=1", "has linear leaves, which are not read"),
        ("is_linear=0", "num_cat=0", "has 'num_cat' twice"),
        ("Tree=0", "Tree=1", "tree 0 is called '1'"),
        ("max_feature_idx=1", "max_feature_idx=900000000", "max_feature_idx is 900000000 for 2 feature_names"),
        ("age popularity", "age age", "feature_names are not distinct"),
    ],
)
def test_a_malformed_tree_is_refused_before_lightgbm_sees_it(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = f"{HEADER}Tree=0\n{TREE}\nend of trees\n"
    assert text.count(old) == 1
    (tmp_path / "model.txt").write_text(text.replace(old, new))
    with pytest.raises(UserError, match=rf"model\.txt: not as LightGBM writes a model: .*{message}") as error:
        load_model(tmp_path / "model.txt")
    assert len(str(error.value).splitlines()) == 1


def test_sets_of_categories_are_within_their_bounds(tmp_path: Path) -> None:
    tree = TREE.replace("num_cat=0", "num_cat=1\ncat_boundaries=0 1\ncat_threshold=6")
    tree = tree.replace("decision_type=2 8", "decision_type=1 8").replace("threshold=0.5 inf", "threshold=0 inf")
    path = tmp_path / "model.txt"

    def load(text: str) -> Any:
        path.write_text(f"{HEADER}Tree=0\n{text}\nend of trees\n")
        return load_model(path)

    # 6 is the set {1, 2}
    assert load(tree).predict([pl.Series([1.0, 3.0]), pl.Series([0.0, 0.0])], 1).tolist() == [1.0, 1e-3]
    for old, new, message in (
        ("cat_boundaries=0 1", "cat_boundaries=0 2", "cat_threshold has 1 numbers, expected 2"),
        ("cat_boundaries=0 1", "cat_boundaries=1 2", "cat_boundaries do not rise from 0"),
        ("cat_boundaries=0 1", "cat_boundaries=0 0", "cat_boundaries do not rise from 0"),
        ("cat_threshold=6", "cat_threshold=-6", "cat_threshold is -6"),
        ("\nthreshold=0 inf", "\nthreshold=1 inf", "none of 1 sets of categories"),
    ):
        assert old in tree
        with pytest.raises(UserError, match=message):
            load(tree.replace(old, new))


@pytest.mark.slow
def test_mutants_score_finite_numbers_or_are_refused(tmp_path: Path) -> None:
    """In a child process: one that it would end with, or never end, is missing from the counts."""
    path = tmp_path / "model.txt"
    path.write_text(fitted_text())
    scored, refused = mutated(path, 80, timeout=120)
    assert scored + refused == 80 and min(scored, refused) > 10


def test_a_model_file_has_a_bound(tmp_path: Path) -> None:
    path = tmp_path / "model.txt"
    path.write_text("tree\n")
    os.truncate(path, LARGEST_MODEL + 1)
    with pytest.raises(UserError, match="a model file has at most 256 MB"):
        load_model(path)
