"""Every feature against a loop over the words of its definition."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, get_args

import numpy as np
import pytest

from adagrpo.config.reward import FeatureOptions
from adagrpo.rewards.features import DECAY, FEATURES, Features
from adagrpo.types import Ragged

ITEMS, USERS = 12, 15


def ragged(rows: list[list[int]]) -> Ragged:
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    return Ragged(np.array([item for row in rows for item in row], np.int32), offsets)


def world() -> tuple[list[list[int]], list[list[str]], list[str]]:
    draw = np.random.default_rng(3)
    rows = [draw.integers(0, ITEMS - 1, length).tolist() for length in [0, 1, 2, 3, 4, 5, 6, 7, 8, 3, 4, 5, 2, 6, 9]]
    attributes = [[f"a{n}" for n in draw.integers(0, 5, count)] for count in [0, 1, 2, 3, 2, 1, 2, 3, 3, 2, 1, 2]]
    texts = [" ".join(f"w{n}" for n in draw.integers(0, 6, 4)) for _ in range(ITEMS - 1)] + [""]
    return rows, attributes, texts


def twin(
    features: Features, rows: list[list[int]], attributes: Any, history: list[int], item: int, own: list[int]
) -> dict[str, float]:
    """The features of one pair; `own` is taken out of the counts of everybody."""

    def users(*items: int) -> int:
        everybody = sum(all(i in row for i in items) for row in rows)
        return everybody - all(i in own for i in items)

    def popularity(i: int) -> float:
        return math.log(1 + sum(i in row for row in rows))

    def cosine(j: int, i: int) -> float:
        both = max(0, sum(j in row and i in row for row in rows) - (i in own and j in own))
        return both / math.sqrt(max(1, users(i) * sum(j in row for row in rows)))

    def jaccard(j: int, i: int) -> float:
        one, other = set(attributes[j]), set(attributes[i])
        return len(one & other) / len(one | other) if one | other else 0.0

    def follows(sequence: list[int], j: int, i: int | None = None) -> int:
        pairs = pairwise(sequence)
        return sum(a == j and (i is None or b == i) for a, b in pairs)

    last, total = history[-1], len(history)
    weights = [DECAY ** (total - 1 - t) for t in range(total)]
    later = [len(row) - 1 - t for row in rows for t, i in enumerate(row) if i == item]
    mine = [len(own) - 1 - t for t, i in enumerate(own) if i == item]
    vectors = features.texts
    known = users(item)
    taste = sum(popularity(i) for i in history) / total
    near, alike = [cosine(j, item) for j in history], [jaccard(j, item) for j in history]
    text = [float(vectors[j] @ vectors[item]) for j in history]

    def weighted(values: list[float]) -> float:
        return sum(w * v for w, v in zip(weights, values, strict=True))

    return {
        "history_length": total,
        "history_popularity": taste,
        "popularity": math.log(1 + known),
        "popularity_gap": math.log(1 + known) - taste,
        "age": (sum(later) - sum(mine)) / max(1, len(later) - len(mine)),
        "repeats": history.count(item),
        "knn_last": near[-1],
        "knn_history": weighted(near),
        "knn_best": max(near),
        "next_last": (sum(follows(row, last, item) for row in rows) - follows(own, last, item))
        / (1 + sum(follows(row, last) for row in rows) - follows(own, last)),
        "attributes_last": alike[-1],
        "attributes_history": weighted(alike) / sum(weights),
        "text_last": text[-1],
        "text_history": weighted(text) / sum(weights),
    }


@pytest.mark.parametrize("block", [1, 2**21])
def test_every_feature_is_that_of_the_loop(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr("adagrpo.rewards.features._BLOCK", block)
    rows, attributes, texts = world()
    features = Features(ragged(rows), attributes, texts)
    users = [row for row in range(USERS) if len(rows[row]) >= 2]
    cut = [rows[user][-5:-1] for user in users]  # the last item is a target, and only four are seen
    histories = np.array([history + [0] * (4 - len(history)) for history in cut])
    lengths = np.array([len(history) for history in cut])
    items = np.tile(np.arange(ITEMS), (len(users), 1))
    actual = features.table(histories, lengths, items, np.array(users))
    assert actual.shape == (len(users), ITEMS, len(FEATURES)) and actual.dtype == np.float32
    for place, user in enumerate(users):
        for item in range(ITEMS):
            expected = twin(features, rows, attributes, cut[place], item, rows[user])
            assert dict(zip(FEATURES, actual[place, item].tolist(), strict=True)) == pytest.approx(expected, abs=1e-5)


def test_what_came_after_training_takes_nobody_out_of_the_pairs() -> None:
    rows, attributes, texts = world()
    features = Features(ragged(rows), attributes, texts)
    users = [row for row in range(USERS) if len(rows[row]) >= 2]
    histories = np.array([[*rows[user][-2:], (rows[user][-1] + 5) % (ITEMS - 1)] for user in users])
    items = np.tile(np.arange(ITEMS), (len(users), 1))
    actual = features.table(histories, np.full(len(users), 3), items, np.array(users))
    for place, user in enumerate(users):
        for item in range(ITEMS):
            expected = twin(features, rows, attributes, histories[place].tolist(), item, rows[user])
            assert dict(zip(FEATURES, actual[place, item].tolist(), strict=True)) == pytest.approx(expected, abs=1e-5)


def test_without_users_the_history_is_taken_out() -> None:
    rows, attributes, texts = world()
    features = Features(ragged(rows), attributes, texts)
    seen = [row[:4] for row in rows if len(row) >= 4]
    actual = features.table(np.array(seen), np.full(len(seen), 4), np.tile(np.arange(ITEMS), (len(seen), 1)))
    for place, history in enumerate(seen):
        for item in range(ITEMS):
            expected = twin(features, rows, attributes, history, item, history)
            assert dict(zip(FEATURES, actual[place, item].tolist(), strict=True)) == pytest.approx(expected, abs=1e-5)


def test_a_history_may_hold_what_training_never_counted() -> None:
    features = Features(ragged([[0, 1], [1, 2]]), [[], [], [], []], ["", "", "", ""])
    table = features.table(np.array([[1, 3]]), np.array([2]), np.array([[3, 0]]))
    assert np.isfinite(table).all() and table[0, 0, FEATURES.index("popularity")] == 0.0


def test_a_users_own_interactions_do_not_move_what_is_said_of_their_target() -> None:
    """The features of a user's target are the same when the target was another: only other users speak."""
    rows, attributes, texts = world()
    user, names = 14, list(FEATURES)
    changed = [list(row) for row in rows]
    changed[user][-1] = ITEMS - 1  # an item that nobody has
    target = rows[user][-1]
    history = np.array([rows[user][:-1]])
    tables = []
    for sequences in (rows, changed):
        features = Features(ragged(sequences), attributes, texts)
        asked = np.array([[target]])
        tables.append(features.table(history, np.array([history.shape[1]]), asked, np.array([user]))[0, 0])
    for name in ("popularity", "knn_last", "knn_history", "next_last", "age"):
        assert tables[0][names.index(name)] == pytest.approx(tables[1][names.index(name)], abs=1e-6), name


def test_no_attributes_and_no_texts() -> None:
    features = Features(ragged([[0, 1], [1, 2]]), [[], [], []], ["", "", ""])
    actual = features.table(np.array([[1]]), np.array([1]), np.array([[0, -1, 2]]))
    names = list(FEATURES)
    for name in ("attributes_last", "attributes_history", "text_last", "text_history"):
        assert (actual[..., names.index(name)] == 0).all()
    assert np.isfinite(actual).all()


def test_a_user_without_training() -> None:
    features = Features(ragged([[], [0, 1], [0, 1]]), [[], []], ["", ""])
    actual = features.table(np.array([[0]]), np.array([1]), np.array([[1]]), np.array([0]))
    assert actual[0, 0, list(FEATURES).index("next_last")] == pytest.approx(2 / 3)


def test_a_recipe_names_every_feature_that_tells_items_apart() -> None:
    names = get_args(FeatureOptions.model_fields["name"].annotation)
    assert names == tuple(name for name in FEATURES if not name.startswith("history_"))


@pytest.mark.parametrize("user", [None, [0]])
def test_what_training_never_counted_is_not_taken_out_of_its_counts(user: list[int] | None) -> None:
    """A history may hold more than training does: that of a new user, or one that goes on after it."""
    features = Features(ragged([[0, 1, 2], [3, 1, 4]]), [[]] * 5, [""] * 5)
    for history in ([2, 0, 2], [4, 0, 1, 3]):
        asked = np.array([[0, 1, 3, 4]])
        table = features.table(np.array([history]), np.array([len(history)]), asked, user and np.array(user))
        assert np.isfinite(table).all()
        assert (table[..., [FEATURES.index("next_last"), FEATURES.index("age")]] >= 0).all()


def test_features_are_the_same_to_the_last_bit_beside_longer_histories() -> None:
    rows, attributes, texts = world()
    features, draw = Features(ragged(rows), attributes, texts), np.random.default_rng(5)
    items = np.tile(np.arange(ITEMS - 1), (2, 1))
    for length in range(1, 20):
        histories, lengths = draw.integers(0, ITEMS - 1, (2, 20)), np.array([length, 20])
        histories[0, length:] = 0
        alone = features.table(histories[:1, :length], lengths[:1], items[:1])
        np.testing.assert_array_equal(features.table(histories, lengths, items)[:1], alone)


def test_of_baskets_a_users_own_transitions_are_taken_out_too() -> None:
    """Items 0 and 1, then 2 and 3; another user 1, then 2 and 0: of the first user, only the second speaks."""
    training = Ragged(
        np.array([0, 1, 2, 3, 1, 0, 2], np.int32), np.array([0, 4, 7]), baskets=np.array([0, 0, 1, 1, 0, 1, 1])
    )
    features = Features(training, [[]] * 4, [""] * 4)
    table = features.table(np.array([[0, 1]]), np.array([2]), np.array([[0, 1, 2, 3]]), np.array([0]))
    assert table[0, :, FEATURES.index("next_last")].tolist() == pytest.approx([1 / 3, 0, 1 / 3, 0])
    alone = features.table(np.array([[1]]), np.array([1]), np.array([[0, 1, 2, 3]]), np.array([1]))
    assert alone[0, :, FEATURES.index("next_last")].tolist() == pytest.approx([0, 0, 1 / 3, 1 / 3])
