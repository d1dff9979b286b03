"""Model files of LightGBM (.txt), XGBoost (.json, .ubj) and CatBoost (.cbm): names, categories and raw scores.

LightGBM's text is checked by `adagrpo.rewards.trees` first; the other two are read by their own libraries, so a file
has to be of somebody you trust. Scores are raw, before any sigmoid, of all trees of the file.

A category is scored as the file states it. LightGBM and XGBoost number the categories that they saw, and one that they
did not see is missing. CatBoost hashes texts and knows no missing one: it becomes the text `nan`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from adagrpo.errors import UserError, install
from adagrpo.rewards.trees import MalformedTrees, categorical_features, checked_model

LARGEST_MODEL = 2**28  # bytes; a thousand trees of a thousand leaves have a third of it
MISSING_TEXT = "nan"
LIBRARIES = {".txt": "lightgbm", ".json": "xgboost", ".ubj": "xgboost", ".cbm": "catboost"}  # by a file's suffix
NAMES = {"lightgbm": "LightGBM", "xgboost": "XGBoost", "catboost": "CatBoost"}

Known = Sequence[str | float]  # the categories of a feature, in the order of their numbers
Floats = NDArray[np.float64]
Column = pl.Series | NDArray[np.floating]  # of a table, or of our features


class TreeModel(NamedTuple):
    """A fitted model of trees."""

    path: Path
    names: Sequence[str]  # of its features, in its order
    categories: Mapping[str, Known | None]  # of features: values by number, None where they are numbers, or `texts`
    predict: Callable[[Sequence[Column], int], Floats]  # (N,) raw scores of columns (N,), by so many threads
    texts: bool = False
    renamed: bool = False  # it writes an underscore for each blank of a name


def require(library: str, key: str) -> None:
    """Raise a UserError that names the key and the extra to install if a library is missing."""
    try:
        __import__(library)
    except (ImportError, OSError) as error:  # OSError: without its OpenMP library
        raise UserError(f"{key}: needs {NAMES[library]} ({error}); {install(library)}") from error


def load_model(path: Path) -> TreeModel:
    """Load a model file; its suffix says of which library, `.txt` if none is known.

    UserError if the library or the file is missing, or the file is malformed, too large, without names of features or
    with several outputs.
    """
    library = LIBRARIES.get(path.suffix, "lightgbm")
    require(library, "reward")
    try:
        if path.stat().st_size > LARGEST_MODEL:
            raise UserError(f"{path}: a model file has at most {LARGEST_MODEL // 2**20} MB; fit fewer trees or leaves")
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read as a {NAMES[library]} model ({error.strerror})") from error
    return {"lightgbm": _lightgbm, "xgboost": _xgboost, "catboost": _catboost}[library](path, content)


def _lightgbm(path: Path, content: bytes) -> TreeModel:
    from lightgbm import Booster
    from lightgbm.basic import LightGBMError

    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a LightGBM model in text format") from error
    if not text.startswith("tree\n") or "\nend of trees\n" not in text:
        raise UserError(f"{path}: not a whole LightGBM model in text format (Booster.save_model)")
    try:
        checked, names = checked_model(text)
        categories = categorical_features(text, names)
    except MalformedTrees as error:
        raise UserError(f"{path}: not as LightGBM writes a model: {error}") from error
    try:
        model = Booster(model_str=checked)
    except LightGBMError as error:
        raise UserError(f"{path}: LightGBM cannot read it ({_first_line(error)})") from error

    def predict(columns: Sequence[Column], threads: int) -> Floats:
        return np.asarray(model.predict(_matrix(columns), raw_score=True, num_threads=threads))

    return TreeModel(path, names, categories, predict, renamed=True)


def _xgboost(path: Path, content: bytes) -> TreeModel:
    from xgboost import Booster, DMatrix
    from xgboost.core import XGBoostError

    try:
        model = Booster(model_file=bytearray(content))
        learner = json.loads(bytes(model.save_raw("json")))["learner"]
    except (XGBoostError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not an XGBoost model (Booster.save_model): {_first_line(error)}") from error
    names, kinds, sizes = learner["feature_names"], learner["feature_types"], learner["learner_model_param"]
    _check_outputs(path, max(int(sizes["num_class"]), int(sizes.get("num_target", 1))))
    if not names:
        raise UserError(f"{path}: names no features; fit it on a data frame, or give DMatrix feature_names")
    booster = learner["gradient_booster"]
    stated = booster.get("gbtree", booster).get("model", {}).get("cats", {}).get("enc", [])
    categories = {
        name: _categories(stated[place]) if place < len(stated) else None
        for place, (name, kind) in enumerate(zip(names, kinds, strict=bool(kinds)))
        if kind == "c"
    }

    def predict(columns: Sequence[Column], threads: int) -> Floats:
        options: dict[str, Any] = {"feature_names": names, "feature_types": kinds or None, "enable_categorical": True}
        table = DMatrix(_matrix(columns), nthread=threads, **options)
        return np.asarray(model.predict(table, output_margin=True), np.float64)

    return TreeModel(path, names, categories, predict)


def _categories(stated: Mapping[str, Any]) -> Known | None:
    if "offsets" not in stated:
        return list(stated["values"])
    content, ends = bytes(value % 256 for value in stated["values"]), stated["offsets"]
    return [content[first:end].decode() for first, end in pairwise(ends)] or None


def _catboost(path: Path, content: bytes) -> TreeModel:
    from catboost import CatBoost, CatBoostError, Pool

    model = CatBoost()
    try:
        model.load_model(blob=content)
    except CatBoostError as error:
        raise UserError(f"{path}: not a CatBoost model (CatBoost.save_model): {_first_line(error)}") from error
    names = model.feature_names_
    if model.get_text_feature_indices() or model.get_embedding_feature_indices():
        raise UserError(f"{path}: has features of texts or embeddings; numbers and categories are read")
    texts = {names[index] for index in model.get_cat_feature_indices()}

    def predict(columns: Sequence[Column], threads: int) -> Floats:
        table = pl.DataFrame([pl.Series(name, column) for name, column in zip(names, columns, strict=True)])
        pool = Pool(table, cat_features=[name for name in names if name in texts])
        return np.asarray(model.predict(pool, prediction_type="RawFormulaVal", thread_count=threads))

    empty = [pl.Series([MISSING_TEXT] if name in texts else [0.0]) for name in names]
    _check_outputs(path, predict(empty, 1).size)
    return TreeModel(path, names, dict.fromkeys(texts), predict, texts=True)


def _check_outputs(path: Path, count: int) -> None:
    if count > 1:
        raise UserError(f"{path}: has {count} outputs; a reward has one")


def _matrix(columns: Sequence[Column]) -> Floats:
    matrix = np.empty((len(columns[0]), len(columns)))
    for place, column in enumerate(columns):
        matrix[:, place] = column.to_numpy() if isinstance(column, pl.Series) else column
    return matrix


def _first_line(error: Exception) -> str:
    """What a library of C++ says, without its clock, file and stack."""
    return re.sub(r"^\[[\d:]+\] \S+:\d+: ", "", str(error).strip().partition("\n")[0])[:200]
