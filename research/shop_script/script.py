"""What a good engineer writes in half an hour for a shop with orders, impressions, categories and prices.

Three lists, from what was logged before a time: EASE with a ridge regression of each user's tastes on what he was
shown; LightGBM's LambdaRank over the best items of both, its cases weighted by one over the root of exposures; and its
click model, of what was shown in the last month by what was known before. The script knows nothing of `adagrpo`.
"""

from __future__ import annotations

from typing import NamedTuple

import lightgbm
import numpy as np
import polars as pl
from numpy.typing import NDArray

CANDIDATES, PRICE_BINS = 60, 8
Values = NDArray[np.float64]


class Known(NamedTuple):
    """What was logged before a time, as numbers."""

    bought: Values  # (U, V) 1 where bought
    shown: Values  # (U, V) times
    clicked: Values  # (U, V) times
    items: Values  # (V, D) features
    log_price: Values  # (V,)
    category: NDArray[np.int64]  # (V,)


def known(files: dict[str, pl.DataFrame], users: list[str], items: list[str], before: float) -> Known:
    """Read what was logged before a time."""

    def table(name: str, weight: str | None = None) -> Values:
        rows = files[name].filter(pl.col("timestamp") < before)
        row, column = (
            rows[key].replace_strict(ids, range(len(ids)), return_dtype=pl.Int64).to_numpy()
            for key, ids in (("user_id", users), ("item_id", items))
        )
        made = np.zeros((len(users), len(items)))
        np.add.at(made, (row, column), 1.0 if weight is None else rows[weight].to_numpy())
        return made

    products = files["products.csv"]
    log_price = np.log(products["price"].to_numpy())
    _, category = np.unique(products["category"].to_numpy(), return_inverse=True)
    bins = np.digitize(log_price, np.quantile(log_price, np.linspace(0, 1, PRICE_BINS + 1)[1:-1]))
    features = np.hstack([np.eye(category.max() + 1)[category], np.eye(PRICE_BINS)[bins]])
    bought = np.minimum(table("orders.csv"), 1)
    return Known(bought, table("impressions.csv"), table("impressions.csv", "clicked"), features, log_price, category)


def ease(bought: Values, penalty: float = 30.0) -> Values:
    """(U, V) scores."""
    inverse = np.linalg.inv(bought.T @ bought + penalty * np.eye(bought.shape[1]))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    return np.asarray(bought @ weights)


def tastes(data: Known, penalty: float = 10.0) -> Values:
    """(U, V) scores of a ridge regression of each user's clicks, beyond the items' own rates, on what he was shown."""
    mean = data.clicked.sum() / data.shown.sum()
    rate = (data.clicked.sum(0) + 20 * mean) / (data.shown.sum(0) + 20)
    made = np.zeros(data.shown.shape)
    for user in range(len(made)):
        seen = np.flatnonzero(data.shown[user])
        if len(seen):
            x, y = data.items[seen], data.clicked[user, seen] - data.shown[user, seen] * rate[seen]
            weights = np.linalg.solve((x.T * data.shown[user, seen]) @ x + penalty * np.eye(x.shape[1]), x.T @ y)
            made[user] = data.items @ weights
    return made


def _scaled(scores: Values) -> Values:
    return np.asarray((scores - scores.mean(1, keepdims=True)) / scores.std(1, keepdims=True).clip(1e-9))


def mixed(data: Known, share: float = 1.0) -> Values:
    """(U, V) scores of EASE and tastes, both scaled for each user."""
    return _scaled(ease(data.bought)) + share * _scaled(tastes(data))


def _features(data: Known) -> tuple[Values, Values]:  # (U, V, F) and (U, V) scores for candidates
    by_category = data.bought @ np.eye(data.category.max() + 1)[data.category]
    counts = data.bought.sum(1, keepdims=True).clip(1)
    mean_price = (data.bought @ data.log_price)[:, None] / counts
    rate = (data.clicked.sum(0) + 1) / (data.shown.sum(0) + 20)
    popular, both = np.log1p(data.bought.sum(0)), mixed(data)
    columns = [
        ease(data.bought),
        tastes(data),
        np.broadcast_to(popular, both.shape),
        np.broadcast_to(rate, both.shape),
        (by_category / counts)[:, data.category],
        np.abs(mean_price - data.log_price),
        data.shown - data.clicked,
    ]
    return np.stack(columns, axis=-1), both


def lambdarank(earlier: Known, now: Known, next_bought: Values, seed: int) -> Values:
    """(U, V) scores, fitted to what was bought between two times.

    Args:
        earlier: logged before the first time.
        now: logged before the second.
        next_bought: (U, V) 1 where bought between.
    """
    features, both = _features(earlier)
    masked = np.where(earlier.bought > 0, -np.inf, both)
    order = np.argsort(-masked, axis=1)[:, :CANDIDATES]
    label = np.take_along_axis(next_bought, order, 1)
    kept = label.any(1)
    rows = np.take_along_axis(features, order[..., None], 1)[kept]
    exposed = np.take_along_axis(np.broadcast_to(earlier.shown.sum(0), both.shape), order, 1)[kept]
    weights = np.where(label[kept] > 0, 1 / np.sqrt(1 + exposed), 0).max(1)
    ranker = lightgbm.LGBMRanker(
        n_estimators=150,
        learning_rate=0.05,
        num_leaves=15,
        min_child_samples=20,
        random_state=seed,
        n_jobs=1,
        verbose=-1,
    )
    each = np.repeat(weights / weights.mean(), CANDIDATES)
    ranker.fit(
        rows.reshape(-1, rows.shape[-1]), label[kept].ravel(), sample_weight=each, group=[CANDIDATES] * len(rows)
    )
    features, both = _features(now)
    order = np.argsort(-np.where(now.bought > 0, -np.inf, both), axis=1)[:, :CANDIDATES]
    rows = np.take_along_axis(features, order[..., None], 1)
    scores = np.full(both.shape, -np.inf)
    found = np.asarray(ranker.predict(rows.reshape(-1, rows.shape[-1]))).reshape(order.shape)
    np.put_along_axis(scores, order, found, 1)
    return scores


def click_model(earlier: Known, now: Known, later: tuple[Values, Values], seed: int) -> Values:
    """(U, V) chances of a click.

    Args:
        earlier: logged before the first time.
        now: logged before the second.
        later: (U, V) times shown, and clicked, between.
    """
    features, _ = _features(earlier)
    row, column = np.nonzero(later[0])
    model = lightgbm.LGBMClassifier(
        n_estimators=200,
        learning_rate=0.05,
        num_leaves=15,
        min_child_samples=50,
        random_state=seed,
        n_jobs=1,
        verbose=-1,
    )
    model.fit(features[row, column], later[1][row, column] > 0)
    features, _ = _features(now)
    chances = np.asarray(model.predict_proba(features.reshape(-1, features.shape[-1])))[:, 1]
    return chances.reshape(features.shape[:2])
