"""Checks LightGBM's text format, which LightGBM itself trusts.

What a prediction needs is parsed, checked and rewritten for LightGBM; scores are bit-identical. Format: LightGBM 4.x,
`Tree::ToString` and `GBDT::SaveModelToString` (https://github.com/microsoft/LightGBM/tree/v4.6.0/src).

In a tree of `N` leaves and `N - 1` nodes, node 0 the root, children are nodes `> own number` or leaves `~leaf`, and
each but the root is the child of exactly one node.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

VERSIONS = ("v2", "v3", "v4")
MOST_LEAVES = 131_072  # LightGBM's own limit
MOST_TREES, MOST_FEATURES, MOST_FIELDS, MOST_TOKENS = 100_000, 10_000, 100, 2**21  # far more than any model has
INTEGERS = re.compile(r"-?[0-9]{1,10}(?: -?[0-9]{1,10})*")
NUMBER = r"-?[0-9]{1,40}(?:\.[0-9]{1,40})?(?:[eE][-+]?[0-9]{1,3})?"
NUMBERS = re.compile(rf"{NUMBER}(?: {NUMBER})*")
LIMIT = rf"(?:{NUMBER}|-?inf)"  # a split of what is missing from all the rest has an infinite threshold
LIMITS = re.compile(rf"{LIMIT}(?: {LIMIT})*")
LARGEST = float(np.finfo(np.float32).max)
CATEGORICAL, MISSING_TYPES = 1, (0, 1, 2)  # decision_type: bit 0; bits 2 and 3


class MalformedTrees(ValueError):
    """A malformed model; the message names the position."""


def checked_model(text: str) -> tuple[str, list[str]]:
    """Return the rewritten text of a model, with only what raw scores need, and its feature names.

    MalformedTrees if the structure is not LightGBM's, it has several outputs, or leaves are linear or not finite.
    """
    sections = _sections(text)
    header = next(sections, {})
    names = _header(header)
    trees, largest = [], 0.0
    for number, fields in enumerate(sections):
        if number == MOST_TREES:
            raise MalformedTrees(f"has more than {MOST_TREES} trees")
        if fields.get("Tree") != str(number):
            raise MalformedTrees(f"tree {number} is called '{_short(fields.get('Tree', ''))}'")
        try:
            tree, leaf = _tree(fields, len(names))
        except MalformedTrees as error:
            raise MalformedTrees(f"tree {number}: {error}") from None
        trees.append(f"Tree={number}\n{tree}\n\n")
        largest += leaf
    if not trees:
        raise MalformedTrees("has no tree")
    if largest > LARGEST:
        raise MalformedTrees("its leaves add up to more than a score can hold")
    average = ["average_output"] if "average_output" in header else []
    lines = [
        "tree",
        f"version={header['version']}",
        "num_class=1",
        "num_tree_per_iteration=1",
        "label_index=0",
        f"max_feature_idx={len(names) - 1}",
        *average,
        f"feature_names={' '.join(names)}",
        f"feature_infos={' '.join(['none'] * len(names))}",
        f"tree_sizes={' '.join(str(len(tree)) for tree in trees)}",
    ]
    return "\n".join(lines) + "\n\n" + "".join(trees) + "end of trees\n", names


def categorical_features(text: str, names: Sequence[str]) -> dict[str, list[str | float] | None]:
    """Return the categories of a checked model by feature, in the order of their numbers; None: numbers themselves.

    MalformedTrees if the lists are not as many as the features.
    """
    stated, lists, split = None, list[Any](), set[int]()
    features: list[str] = []
    for line in _lines(text):
        key, _, value = line.partition("=")
        if key == "split_feature":
            features = value.split(" ")
        elif key == "decision_type" and INTEGERS.fullmatch(value) and value.count(" ") + 1 == len(features):
            split |= {int(one) for one, kind in zip(features, value.split(" "), strict=True) if int(kind) & CATEGORICAL}
        elif line.startswith("[categorical_feature: ") and INTEGERS.fullmatch(line[22:-1].replace(",", " ")):
            stated = {int(one) for one in line[22:-1].split(",")}
        elif line.startswith("pandas_categorical:"):
            try:
                lists = json.loads(line.partition(":")[2]) or []
            except (ValueError, RecursionError) as error:
                raise MalformedTrees("pandas_categorical is not JSON") from error
    found = sorted(split if stated is None else stated | split)
    if not all(0 <= index < len(names) for index in found):
        raise MalformedTrees(f"categorical_feature is none of 0 to {len(names) - 1}")
    if not lists:
        return dict.fromkeys(names[index] for index in found)
    values = all(isinstance(one, list) and all(isinstance(value, str | int | float) for value in one) for one in lists)
    if len(lists) != len(found) or not values:
        raise MalformedTrees(f"pandas_categorical has {len(lists)} lists of categories for {len(found)} features")
    return {names[index]: one for index, one in zip(found, lists, strict=True)}


def _sections(text: str) -> Iterator[dict[str, str]]:
    fields: dict[str, str] = {}
    for line in _lines(text):
        if line == "end of trees":
            yield fields
            return
        key, _, value = line.partition("=")
        if key == "Tree":
            yield fields
            fields = {}
        if key in fields or len(fields) > MOST_FIELDS:
            raise MalformedTrees(f"has '{_short(key)}' twice, or more than {MOST_FIELDS} lines of one part")
        if key:
            fields[key] = value
    raise MalformedTrees("ends before 'end of trees'")


def _lines(text: str) -> Iterator[str]:
    start = 0
    while start < len(text):
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        yield text[start:end].removesuffix("\r")
        start = end + 1


def _header(fields: dict[str, str]) -> list[str]:
    if fields.get("version") not in VERSIONS:
        raise MalformedTrees(f"version '{_short(fields.get('version', ''))}'; {', '.join(VERSIONS)} are read")
    for key in ("num_class", "num_tree_per_iteration"):
        count = _one(fields, key)
        if count != 1:
            raise MalformedTrees(f"has {count} outputs; a reward has one")
    names = fields.get("feature_names", "").split(" ", MOST_FEATURES)
    if not all(names) or len(set(names)) < len(names):
        raise MalformedTrees("feature_names are not distinct names")
    if _one(fields, "max_feature_idx") != len(names) - 1:
        raise MalformedTrees(f"max_feature_idx is {fields['max_feature_idx']} for {len(names)} feature_names")
    return names


def _tree(fields: dict[str, str], features: int) -> tuple[str, float]:
    """A rewritten tree, and its largest absolute leaf value."""
    leaves, categories = _one(fields, "num_leaves"), _one(fields, "num_cat")
    if not 1 <= leaves <= MOST_LEAVES:
        raise MalformedTrees(f"num_leaves is {leaves}, expected 1 to {MOST_LEAVES}")
    if fields.get("is_linear", "0") != "0":
        raise MalformedTrees("has linear leaves, which are not read; fit it without linear_tree")
    nodes = leaves - 1
    values = np.array(_tokens(fields, "leaf_value", leaves, NUMBERS), np.float64)
    if not np.isfinite(values).all():
        raise MalformedTrees("leaf_value has a number that is not finite")
    keys = ["num_leaves", "num_cat", "leaf_value"]
    if nodes:
        split = _integers(fields, "split_feature", nodes)
        _within("split_feature", split, 0, features)
        thresholds = np.array(_tokens(fields, "threshold", nodes, LIMITS), np.float64)
        kinds = _integers(fields, "decision_type", nodes)
        _within("decision_type", kinds, 0, 4 * len(MISSING_TYPES))
        children = np.concatenate([_integers(fields, key, nodes) for key in ("left_child", "right_child")])
        inner = children >= 0
        if (children[inner] <= np.tile(np.arange(nodes), 2)[inner]).any() or (children >= nodes).any():
            raise MalformedTrees("a child is no later node of the tree")
        if not np.array_equal(np.sort(children), np.concatenate([np.arange(-nodes - 1, 0), np.arange(1, nodes)])):
            raise MalformedTrees("a node or leaf is not the child of exactly one node")
        _categories(fields, categories, thresholds[(kinds & CATEGORICAL) == 1])
        keys += ["split_feature", "threshold", "decision_type", "left_child", "right_child"]
        keys += ["cat_boundaries", "cat_threshold"] if categories else []
    elif categories:
        raise MalformedTrees("has categories and no split")
    written = [f"{key}={fields[key]}" for key in keys]
    return "\n".join([*written, "is_linear=0", "shrinkage=1"]), float(np.abs(values).max())


def _categories(fields: dict[str, str], count: int, used: NDArray[np.float64]) -> None:
    """Check category sets: set `n` is words `boundaries[n]` to `boundaries[n + 1]` of bits."""
    if not 0 <= count <= MOST_LEAVES:
        raise MalformedTrees(f"num_cat is {count}")
    if ((used < 0) | (used >= count) | (used != np.floor(used))).any():
        raise MalformedTrees(f"the threshold of a categorical split is none of {count} sets of categories")
    if not count:
        return
    ends = _integers(fields, "cat_boundaries", count + 1)
    if ends[0] != 0 or (np.diff(ends) < 1).any():
        raise MalformedTrees("cat_boundaries do not rise from 0")
    _within("cat_threshold", _integers(fields, "cat_threshold", int(ends[-1])), 0, 2**32)


def _one(fields: dict[str, str], key: str) -> int:
    return int(_integers(fields, key, 1)[0])


def _integers(fields: dict[str, str], key: str, count: int) -> NDArray[np.int64]:
    return np.array(_tokens(fields, key, count, INTEGERS), np.int64)


def _tokens(fields: dict[str, str], key: str, count: int, form: re.Pattern[str]) -> list[str]:
    if key not in fields:
        raise MalformedTrees(f"has no {key}")
    length = fields[key].count(" ") + 1  # counted before anything is allocated
    if length != count or length > MOST_TOKENS:
        raise MalformedTrees(f"{key} has {length} numbers, expected {count}")
    if not form.fullmatch(fields[key]):
        raise MalformedTrees(f"{key} is not a list of numbers ('{_short(fields[key])}')")
    return fields[key].split(" ")


def _within(key: str, values: NDArray[np.int64], least: int, end: int) -> None:
    outside = values[(values < least) | (values >= end)]
    if len(outside):
        raise MalformedTrees(f"{key} is {outside[0]}, expected {least} to {end - 1}")


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:37]}..."
