"""A shop that shows slates of ten: who looks how far, likes which category and style, and pays which price.

A visitor scrolls past the next place with probability `SCROLL`; of what he looks at he takes an item, once ever, with
probability `sigmoid(3 style·taste + 1.5 liking of the category - 1.6 |log price - his| + quality - 2.2)`. A third of
a slate is what has been taken most, four places are like the last thing he took, the rest by chance. The truth is that
probability. Nothing here is shared with `adagrpo.data.simulation` or `research.worlds`.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

USERS, ITEMS, CATEGORIES, STYLES = 2_500, 600, 15, 6
SLATE, SCROLL, DAYS, VISITS = 10, 0.85, 120, 16
BEGINNING = 1_767_225_600  # 1 January 2026


class Shop(NamedTuple):
    """Files, and the truth that none of them holds."""

    files: dict[str, pl.DataFrame]
    truth: NDArray[np.float32]  # (U, V)
    users: list[str]
    items: list[str]


def simulate(seed: int) -> Shop:
    """Simulate a shop."""
    draw = np.random.default_rng(seed)
    category = draw.integers(CATEGORIES, size=ITEMS)
    style = draw.normal(size=(CATEGORIES, STYLES))[category] + draw.normal(size=(ITEMS, STYLES))
    style /= np.linalg.norm(style, axis=1, keepdims=True)
    log_price = draw.normal(0, 0.5, CATEGORIES)[category] + draw.normal(3, 0.6, ITEMS)
    quality = draw.normal(0, 0.6, ITEMS)
    begins = np.where(draw.random(ITEMS) < 0.8, 0, draw.integers(DAYS - 20, size=ITEMS))
    taste = draw.normal(size=(USERS, STYLES))
    taste /= np.linalg.norm(taste, axis=1, keepdims=True)
    liking = draw.normal(size=(USERS, CATEGORIES))
    pays = draw.normal(3, 0.6, USERS)
    utility = 3.0 * taste @ style.T + 1.5 * liking[:, category] - 1.6 * np.abs(log_price - pays[:, None])
    chance = 1 / (1 + np.exp(-(utility + quality - 2.2)))
    near = style @ style.T + 1.0 * (category[:, None] == category)

    taken, last = np.zeros((USERS, ITEMS), np.bool_), np.full(USERS, -1)
    counts, orders, shown = np.zeros(ITEMS), [], []
    days = np.sort(draw.integers(DAYS, size=(USERS, VISITS)), axis=1)
    visits = sorted((int(day), user) for user in range(USERS) for day in days[user])
    for number, (day, user) in enumerate(visits):
        second = BEGINNING + 86_400 * day + number % 80_000
        there = (begins <= day) & ~taken[user]
        popular = np.log1p(counts) + draw.gumbel(0, 1.0, ITEMS)
        like = near[last[user]] + draw.gumbel(0, 0.5, ITEMS) if last[user] >= 0 else draw.random(ITEMS)
        slate: list[int] = []
        for scores, until in ((popular, 3), (like, 7), (draw.random(ITEMS), SLATE)):
            order = np.argsort(-np.where(there, scores, -np.inf))
            slate += [int(item) for item in order if item not in slate and there[item]][: until - len(slate)]
        looked = 1 + int((draw.random(SLATE - 1) >= SCROLL).argmax()) if (slate := list(draw.permutation(slate))) else 0
        for place, item in enumerate(slate):
            bought = place < looked and draw.random() < chance[user, item]
            shown.append((user, int(item), second, place, int(bought)))
            if bought:
                orders.append((user, int(item), second))
                taken[user, item], last[user] = True, item
                counts[item] += 1
    users, items = [f"C{user:05d}" for user in range(USERS)], [f"P{item:04d}" for item in range(ITEMS)]
    names = ["user_id", "item_id", "timestamp"]
    made = {
        "orders.csv": pl.DataFrame(orders, names, orient="row"),
        "impressions.csv": pl.DataFrame(shown, [*names, "position", "clicked"], orient="row"),
    }
    for name, table in made.items():
        named = (
            pl.col(column).replace_strict(list(range(len(ids))), ids, return_dtype=pl.String)
            for column, ids in (("user_id", users), ("item_id", items))
        )
        made[name] = table.with_columns(*named)
    made["products.csv"] = pl.DataFrame(
        {
            "item_id": items,
            "title": [f"{['red', 'blue', 'green'][i % 3]} thing {i}" for i in range(ITEMS)],
            "category": [f"category {one}" for one in category],
            "price": np.exp(log_price).round(2),
        }
    )
    return Shop(made, chance.astype(np.float32), users, items)


def write(shop: Shop, folder: Path) -> list[Path]:
    """Write the files as a team has them, and say where."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in shop.files.items():
        table.write_csv(folder / name)
    return [folder / name for name in shop.files]
