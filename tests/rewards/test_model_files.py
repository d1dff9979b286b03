"""Model files written by LightGBM, XGBoost and CatBoost themselves: equal scores, and what is refused."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from adagrpo.errors import UserError
from adagrpo.rewards import BoostedReward, Tables, load_model
from adagrpo.rewards.features import FEATURES, Features
from adagrpo.types import Asking, Histories, Ragged

ITEMS, USERS = 40, 30
CATEGORY = [("toys", "books", "food", None)[item % 4] for item in range(ITEMS)]
BRAND = [(7, 9, 30)[item % 3] for item in range(ITEMS)]
SEGMENT = [("new", "old", None)[user % 3] for user in range(USERS)]
PRICE = [None if item % 7 == 3 else float(item) + 0.25 for item in range(ITEMS)]
BUDGET = [None if user % 5 == 4 else float(user) for user in range(USERS)]
COLUMNS = ["price", "category", "popularity", "item.brand", "segment", "budget"]


@pytest.fixture
def features() -> Features:
    rows = [[user % ITEMS, (user * 3 + 1) % ITEMS, (user * user + 2) % ITEMS] for user in range(USERS)]
    values = np.array(rows, np.int32).ravel()
    return Features(Ragged(values, np.arange(USERS + 1) * 3), [[] for _ in range(ITEMS)], [""] * ITEMS)


def tables(**changed: Any) -> Tables:
    """Typed as in a Parquet file; `texts`: as in a CSV file."""
    items = pl.DataFrame({"price": PRICE, "category": CATEGORY, "brand": BRAND} | changed)
    users = pl.DataFrame({"segment": SEGMENT, "budget": BUDGET, "brand": ["x"] * USERS})
    rows = {f"u{user}": user for user in range(USERS)}
    return Tables(items, users, rows, "items.parquet", "users.parquet")


HISTORIES = Histories(torch.tensor([[3, 5], [8, 0], [2, 9]]), torch.tensor([2, 1, 2]))
ASKING = Asking(["u4", "u7", "somebody"], [None] * 3)
EVERY = torch.arange(ITEMS).repeat(3, 1)


def rows_of(features: Features, missing: str | None = None) -> Any:
    """The data frame of pandas that a team would fit and score with: a row for each of three users and item."""
    pandas = pytest.importorskip("pandas")
    found = features.of(HISTORIES, EVERY)[:, :, FEATURES.index("popularity")].ravel()
    whose = [4, 7, None]
    frame = pandas.DataFrame(
        {
            "price": PRICE * 3,
            "category": CATEGORY * 3,
            "popularity": found.astype(float),
            "item.brand": BRAND * 3,
            "segment": [None if user is None else SEGMENT[user] for user in whose for _ in range(ITEMS)],
            "budget": [None if user is None else BUDGET[user] for user in whose for _ in range(ITEMS)],
        }
    ).astype({"price": float, "budget": float})
    for name in ("category", "item.brand", "segment"):
        column = frame[name].astype(object)
        frame[name] = column.astype("category") if missing is None else column.fillna(missing).astype(object)
    return frame


def labels(frame: Any) -> Any:
    rare = (frame["category"].astype(object) == "books") * 2.0 - (frame["item.brand"].astype(object) == 9)
    segment = (frame["segment"].astype(object) == "old") * 1.5 + frame["budget"].fillna(-3) / 10
    return rare + segment + frame["price"].fillna(50) / 20 + frame["popularity"]


def lightgbm_file(frame: Any, path: Path) -> tuple[Path, Any]:
    library = pytest.importorskip("lightgbm")
    options = {"verbosity": -1, "num_threads": 1, "min_data_in_leaf": 2, "min_data_per_group": 2, "cat_smooth": 1}
    model = library.train(options, library.Dataset(frame, labels(frame)), 20)
    model.save_model(path / "model.txt")
    return path / "model.txt", model.predict(frame, raw_score=True)


def xgboost_file(frame: Any, path: Path, suffix: str) -> tuple[Path, Any]:
    library = pytest.importorskip("xgboost")
    data = library.DMatrix(frame, labels(frame), enable_categorical=True)
    model = library.train({"max_depth": 4, "nthread": 1}, data, 20)
    model.save_model(path / f"model{suffix}")
    return path / f"model{suffix}", model.predict(data, output_margin=True)


def catboost_file(frame: Any, path: Path) -> tuple[Path, Any]:
    library = pytest.importorskip("catboost")
    options = {"iterations": 20, "verbose": 0, "thread_count": 1, "allow_writing_files": False, "depth": 4}
    texts = ["category", "item.brand", "segment"]
    model = library.CatBoost(options).fit(library.Pool(frame, labels(frame), cat_features=texts))
    model.save_model(str(path / "model.cbm"))
    return path / "model.cbm", model.predict(frame, prediction_type="RawFormulaVal")


WRITERS: dict[str, tuple[Callable[[Any, Path], tuple[Path, Any]], str | None]] = {
    "lightgbm": (lightgbm_file, None),
    "xgboost-json": (lambda frame, path: xgboost_file(frame, path, ".json"), None),
    "xgboost-ubj": (lambda frame, path: xgboost_file(frame, path, ".ubj"), None),
    "catboost": (catboost_file, "nan"),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("as_text", [False, True], ids=["typed", "csv"])
def test_scores_are_those_of_the_library_with_categories_and_missing_values(
    features: Features, tmp_path: Path, writer: str, as_text: bool
) -> None:
    write, missing = WRITERS[writer]
    frame = rows_of(features, missing)
    path, expected = write(frame, tmp_path)
    found = tables()
    if as_text:  # a table read from a CSV file holds texts
        found = Tables(found.items.cast(pl.String), found.users.cast(pl.String), *list(vars(found).values())[2:])
    reward = BoostedReward(load_model(path), features, found)
    assert list(reward.model.names) == COLUMNS
    actual = reward.score(HISTORIES._replace(asking=ASKING), EVERY)
    np.testing.assert_allclose(actual.numpy().ravel(), expected, rtol=1e-6, atol=1e-6)
    assert len(np.unique(actual.numpy())) > 30
    # the same items in another order, and none
    some = torch.tensor([[5, -1], [3, 0], [-1, 9]])
    again = reward.score(HISTORIES._replace(asking=ASKING), some)
    assert again[some >= 0].tolist() == actual.gather(1, some.clamp(min=0))[some >= 0].tolist()
    assert reward.score(HISTORIES, some[:, :0]).shape == (3, 0)


@pytest.mark.parametrize("writer", WRITERS)
def test_a_user_by_row_and_by_id_has_the_same_score_and_a_stranger_is_missing(
    features: Features, tmp_path: Path, writer: str
) -> None:
    write, missing = WRITERS[writer]
    path, _ = write(rows_of(features, missing), tmp_path)
    reward = BoostedReward(load_model(path), features, tables(), [f"u{user}" for user in range(USERS)])
    by_id = reward.score(HISTORIES._replace(asking=ASKING), EVERY)
    by_row = reward.score(HISTORIES._replace(asking=Asking([4, 7, 7], [None] * 3, rows=True)), EVERY)
    assert torch.equal(by_id[:2], by_row[:2]) and not torch.equal(by_id[2], by_row[2])
    nobody = reward.score(HISTORIES, EVERY)
    assert torch.equal(nobody[2], by_id[2]) and not torch.equal(nobody[:2], by_id[:2])


def test_categories_that_the_model_has_not_seen_are_missing(features: Features, tmp_path: Path) -> None:
    path, _ = lightgbm_file(rows_of(features), tmp_path)
    unseen = tables(category=["cars" if item == 0 else name for item, name in enumerate(CATEGORY)])
    lacking = tables(category=[None if item == 0 else name for item, name in enumerate(CATEGORY)])
    scores = [
        BoostedReward(load_model(path), features, one).score(HISTORIES, EVERY[:, :1]) for one in (unseen, lacking)
    ]
    assert torch.equal(*scores)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"price": ["1.5", "cheap"] * 20},
            "items.parquet: the column 'price' holds 'cheap', and {path} takes a number",
        ),
        (
            {"category": ["cars"] * ITEMS},
            "items.parquet: the column 'category': none of its values is a category of {path}, which knows 'books',"
            " 'food', 'toys'",
        ),
        (
            {"popularity": [1.0] * ITEMS},
            "{path}: the feature 'popularity' is in items.parquet and in our own features; call it item.popularity or"
            " ours.popularity when the model is fitted",
        ),
    ],
)
def test_columns_that_do_not_fit_the_model_are_named(
    features: Features, tmp_path: Path, changed: dict[str, Any], said: str
) -> None:
    path, _ = lightgbm_file(rows_of(features), tmp_path)
    with pytest.raises(UserError) as caught:
        BoostedReward(load_model(path), features, tables(**changed))
    assert str(caught.value) == said.format(path=path)


def test_a_feature_that_is_nowhere_is_named_with_the_nearest_and_where_it_was_looked_for(
    features: Features, tmp_path: Path
) -> None:
    path, _ = lightgbm_file(rows_of(features), tmp_path)
    without = tables()
    with pytest.raises(UserError) as caught:
        BoostedReward(load_model(path), features, Tables(without.items.rename({"price": "prices"}), item_file="i.csv"))
    assert str(caught.value) == (
        f"{path}: the feature 'price' is nowhere: looked for in the item table i.csv and our own features (--users not"
        " given); the nearest name is 'prices'"
    )


def test_a_name_in_two_tables_is_refused_and_a_prefix_says_which(features: Features, tmp_path: Path) -> None:
    library = pytest.importorskip("lightgbm")
    for name in ("brand", "user.brand"):
        data = library.Dataset(np.arange(80.0)[:, None], np.arange(80.0), feature_name=[name])
        library.train({"verbosity": -1}, data, 2).save_model(tmp_path / f"{name}.txt")
    with pytest.raises(
        UserError, match=r"'brand' is in items.parquet and in users.parquet; call it item.brand or user"
    ):
        BoostedReward(load_model(tmp_path / "brand.txt"), features, tables())
    with pytest.raises(UserError, match=r"users.parquet: the column 'brand' holds 'x', and .* takes a number"):
        BoostedReward(load_model(tmp_path / "user.brand.txt"), features, tables())


@pytest.mark.parametrize(
    ("library", "name", "content", "said"),
    [
        ("xgboost", "model.json", b"{}", "not an XGBoost model (Booster.save_model): "),
        ("xgboost", "model.json", b"tree\nversion=v4\n", "not an XGBoost model (Booster.save_model): "),
        ("xgboost", "model.ubj", b"\x80\x04", "not an XGBoost model (Booster.save_model): "),
        ("catboost", "model.cbm", b"hello", "not a CatBoost model (CatBoost.save_model): "),
    ],
)
def test_a_file_of_something_else_is_refused_in_a_line(
    tmp_path: Path, library: str, name: str, content: bytes, said: str
) -> None:
    pytest.importorskip(library)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_model(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name}: {said}") and "\n" not in str(caught.value)


@pytest.mark.parametrize("library", ["xgboost", "catboost"])
def test_a_library_that_is_not_there_names_its_extra(
    tmp_path: Path, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, library, None)
    suffix = {"xgboost": ".ubj", "catboost": ".cbm"}[library]
    with pytest.raises(UserError, match=rf"reward: needs .*; pip install -e '.\[{library}\]'"):
        load_model(tmp_path / f"model{suffix}")


def test_several_outputs_and_no_names_are_refused(tmp_path: Path) -> None:
    xgboost = pytest.importorskip("xgboost")
    table, classes = np.arange(60.0)[:, None], np.arange(60) % 3
    data = xgboost.DMatrix(table, classes, feature_names=["age"])
    xgboost.train({"objective": "multi:softprob", "num_class": 3}, data, 2).save_model(tmp_path / "many.json")
    xgboost.train({}, xgboost.DMatrix(table, classes), 2).save_model(tmp_path / "plain.json")
    for name, said in (("many.json", "has 3 outputs; a reward has one"), ("plain.json", "names no features")):
        with pytest.raises(UserError, match=said):
            load_model(tmp_path / name)
    catboost = pytest.importorskip("catboost")
    options = {"iterations": 2, "verbose": 0, "allow_writing_files": False, "loss_function": "MultiClass"}
    catboost.CatBoost(options).fit(table, classes).save_model(str(tmp_path / "many.cbm"))
    with pytest.raises(UserError, match="has 3 outputs; a reward has one"):
        load_model(tmp_path / "many.cbm")


def test_lists_of_categories_that_are_not_as_many_as_features_are_refused(features: Features, tmp_path: Path) -> None:
    path, _ = lightgbm_file(rows_of(features), tmp_path)
    text = path.read_text()
    line = next(line for line in text.splitlines() if line.startswith("pandas_categorical:"))
    lists = json.loads(line.partition(":")[2])
    assert lists[0] == ["books", "food", "toys"] and importlib.import_module("lightgbm")
    for wrong in (json.dumps(lists[:2]), "[[{}],[1],[2]]", "[" * 100_000, "x"):
        path.write_text(text.replace(line, f"pandas_categorical:{wrong}"))
        with pytest.raises(UserError, match="not as LightGBM writes a model: pandas_categorical"):
            load_model(path)


@pytest.mark.parametrize("library", ["lightgbm", "xgboost"])
def test_categories_that_were_numbers_are_taken_by_number(features: Features, tmp_path: Path, library: str) -> None:
    pytest.importorskip(library)
    draw = np.random.default_rng(0)
    table = np.column_stack([draw.choice([7, 9, 30], 300), draw.normal(size=300)]).astype(float)
    table[::5, 0] = np.nan
    wanted, names = (table[:, 0] == 9) * 2.0 + table[:, 1], ["brand", "price"]
    if library == "lightgbm":
        lightgbm = importlib.import_module(library)
        data = lightgbm.Dataset(table, wanted, feature_name=names, categorical_feature=[0])
        options = {"verbosity": -1, "num_threads": 1, "min_data_per_group": 2, "cat_smooth": 1}
        model, path = lightgbm.train(options, data, 10), tmp_path / "model.txt"
        model.save_model(path)
        expected = model.predict(table[:ITEMS], raw_score=True)
    else:
        xgboost = importlib.import_module(library)
        kinds = {"feature_names": names, "feature_types": ["c", "float"], "enable_categorical": True}
        data = xgboost.DMatrix(table, wanted, **kinds)
        model, path = xgboost.train({"nthread": 1}, data, 10), tmp_path / "model.json"
        model.save_model(path)
        expected = model.predict(data, output_margin=True)[:ITEMS]
    items = pl.DataFrame(table[:ITEMS], names).with_columns(pl.all().fill_nan(None))
    scores = BoostedReward(load_model(path), features, Tables(items, item_file="i")).score(HISTORIES, EVERY)
    np.testing.assert_allclose(scores[0].numpy(), expected, rtol=1e-6, atol=1e-6)
    with pytest.raises(UserError, match=r"i: the column 'brand' holds 'x', and .* takes a category by its number"):
        BoostedReward(load_model(path), features, Tables(items.with_columns(brand=pl.lit("x")), item_file="i"))
