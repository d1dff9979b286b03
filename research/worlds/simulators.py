"""Simulated shops of six kinds; in each another list is good, for a reason of its own.

The truth is a row of items for each visit, what the user would have got from each: in shops of orders the probability
that a line of that visit is the item, in shops that show slates the probability that the user takes an item that they
look at. Nothing here is shared with `adagrpo.data.simulation`.

Time goes by days. A visitor's own past (`Past`) decides repeats, what is bought with what, and what is bought once.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

DAY, BEGINNING = 86_400, 1_767_225_600  # seconds; 1 January 2026
DAYS = 90  # that a shop is watched
NO_ITEM = -1
LAST = 3  # purchases that `Past` keeps in order
REMEMBERED = 0.9  # what a day leaves of the wish for something that was bought

Ints = NDArray[np.int64]
Values = NDArray[np.float64]
Flags = NDArray[np.bool_]


class World(NamedTuple):
    """A shop's files, and the truth, which is in none of them."""

    files: dict[str, pl.DataFrame]  # orders.csv or impressions.csv or both, and items.csv
    users: list[str]
    items: list[str]
    visits: list[tuple[int, int, NDArray[np.float32]]]  # user, time and (V,) truth of each with a purchase or click

    def write(self, folder: Path) -> list[Path]:
        """Write the files as a team has them, and say where."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, table in self.files.items():
            table.write_csv(folder / name)
        return [folder / name for name in self.files]

    def truth(self, since: float | None) -> Values:
        """(U, V) at each user's first visit from a time on, or at the last one where there is none or no time."""
        found = np.zeros((len(self.users), len(self.items)))
        first: set[int] = set()
        for user, time, row in self.visits:  # in the order of time
            if user not in first:
                found[user] = row
            if since is not None and time >= since:
                first.add(user)
        return found

    def utility(self, truth: Values, users: pl.Series, items: pl.Series) -> Values:
        """(N,) what each user would have got from an item beside them, by (U, V) `truth`."""
        row, column = (
            one.replace_strict(names, range(len(names)), return_dtype=pl.Int64).to_numpy()
            for one, names in ((users, self.users), (items, self.items))
        )
        return np.asarray(truth[row, column])


class Past:
    """What each user has taken."""

    def __init__(self, users: int, items: int) -> None:
        self.day = np.full((users, items), -1, np.int16)  # of the last time; -1: never
        self.last = np.full((users, LAST), NO_ITEM, np.int64)  # latest first

    def add(self, user: int, item: int, day: int) -> None:
        """Take one item more."""
        self.day[user, item] = day
        self.last[user] = [item, *self.last[user, :-1]]

    def owned(self, users: Ints) -> Flags:
        """(N, V) True for what the users have had."""
        return self.day[users] >= 0


class Visit(NamedTuple):
    """What `N` visitors of a day were shown and took."""

    bought: Ints  # (N, B), -1 for none
    shown: Ints | None = None  # (N, S) by slot, -1 for none
    clicked: Flags | None = None  # (N, S)


class Shop(Protocol):
    """A kind of shop."""

    groups: Ints  # (V,) the category that the item table says
    rate: float  # visits of a user a day, on average

    def utility(self, day: int, users: Ints, past: Past) -> Values:
        """(N, V) the truth of the visitors of a day."""
        ...

    def visit(self, day: int, users: Ints, utility: Values, past: Past) -> Visit:
        """Let them shop."""
        ...


class Seasons:
    """Clusters of items, whose season comes and goes, and users whose liking moves on; some of what is bought is old.

    Args:
        taste: log of how much better the best liked cluster is than one that is not liked.
        drift: share of users a day whose liking for two clusters is exchanged.
        repeats: share of purchases of what the user has had.
    """

    rate = 0.2

    def __init__(
        self, draw: np.random.Generator, users: int, items: int, *, taste: float, drift: float, repeats: float
    ) -> None:
        clusters = 12
        self.draw, self.drift, self.repeats = draw, drift, repeats
        self.groups = draw.integers(clusters, size=items)
        self.quality, self.phase = draw.lognormal(0, 0.8, items), draw.random(clusters)
        self.liking = draw.permuted(np.tile(np.exp(-taste * np.arange(clusters).clip(max=4) / 4), (users, 1)), axis=1)
        self.today = 0

    def utility(self, day: int, users: Ints, past: Past) -> Values:
        """Shares of what is new by liking, quality and season, and of what is old by how long ago it was bought."""
        if day > self.today:
            moved, self.today = np.flatnonzero(self.draw.random(len(self.liking)) < self.drift), day
            one, other = self.draw.integers(self.liking.shape[1], size=(2, len(moved)))
            self.liking[moved, one], self.liking[moved, other] = self.liking[moved, other], self.liking[moved, one]
        season = np.exp(np.sin(2 * np.pi * (day / 45 + self.phase)))
        owned = past.owned(users)
        new = np.where(owned, 0, (self.liking[users] * season)[:, self.groups] * self.quality)
        old = np.where(owned, REMEMBERED ** (day - past.day[users]), 0)
        share = np.where(owned.any(1), self.repeats, 0)[:, None]
        return (1 - share) * _shares(new) + share * _shares(old)

    def visit(self, day: int, users: Ints, utility: Values, past: Past) -> Visit:
        """Buy one thing."""
        return Visit(_chosen(self.draw, utility, 1))


class Bundles:
    """After an item come others that go with it, which do not lead back to it; everything is bought once.

    Args:
        share: of purchases that go with one of the last ones, where something does.
        fan: items that go with an item.
        spread: log-spread of how often the other purchases are of an item.
    """

    rate = 0.11

    def __init__(
        self, draw: np.random.Generator, users: int, items: int, *, share: float, fan: int, spread: float
    ) -> None:
        self.draw, self.share = draw, share
        self.groups = draw.integers(12, size=items)  # of no use: what goes together is of different ones
        self.start = draw.lognormal(0, spread, items)
        ring = draw.permutation(items)  # what goes with an item is of the next quarter, so that nothing leads back
        self.after = np.empty((items, fan), np.int64)
        for place, item in enumerate(ring):
            self.after[item] = ring[(place + draw.choice(np.arange(1, items // 4), fan, replace=False)) % items]

    def utility(self, day: int, users: Ints, past: Past) -> Values:
        """Shares of what goes with the last purchases, the latest most, and of anything else."""
        owned, last = past.owned(users), past.last[users]
        going = np.zeros(owned.shape)
        rows = np.arange(len(users))[:, None]
        for place in range(LAST):
            there = last[:, place] != NO_ITEM
            going[rows[there], self.after[last[there, place]]] += 0.5**place
        going[owned] = 0
        share = np.where(going.any(1), self.share, 0)[:, None]
        return (1 - share) * _shares(np.where(owned, 0, self.start)) + share * _shares(going)

    def visit(self, day: int, users: Ints, utility: Values, past: Past) -> Visit:
        """Buy one thing."""
        return Visit(_chosen(self.draw, utility, 1))


class Placements:
    """Some items are much better than others, for all, and the shop shows the worse ones more, as if paid for.

    Args:
        taste: log of what liking a category, or not, does to an item.
        against: log-odds of being shown that a standard deviation of quality takes away.
        quality: mean probability of a click where one looks.
    """

    rate = 0.22

    def __init__(
        self, draw: np.random.Generator, users: int, items: int, *, taste: float, against: float, quality: float
    ) -> None:
        self.draw = draw
        self.groups = draw.integers(10, size=items)
        self.quality = draw.beta(1, 1 / quality - 1, items)
        self.liking = np.exp(taste * draw.integers(-1, 2, (users, 10)))
        standard = (self.quality - self.quality.mean()) / self.quality.std()
        self.shown = np.exp(-against * standard + draw.normal(0, 0.5, items))

    def utility(self, day: int, users: Ints, past: Past) -> Values:
        """The probability of a click, once."""
        return np.where(past.owned(users), 0, (self.liking[users][:, self.groups] * self.quality).clip(0, 1))

    def visit(self, day: int, users: Ints, utility: Values, past: Past) -> Visit:
        """Look at ten items, the lower ones less."""
        shown = _chosen(self.draw, np.where(past.owned(users), 0, self.shown), 10)
        return _clicks(self.draw, utility, shown, 0.9 ** np.arange(10))


class Turnover:
    """Items come and go; what is new is wanted, and within days by fewer.

    Args:
        life: days that an item is sold.
        hype: days in which wanting it falls to a third.
        taste: log of what liking a category, or not, does to an item.
    """

    rate = 0.2

    def __init__(
        self, draw: np.random.Generator, users: int, items: int, *, life: float, hype: float, taste: float
    ) -> None:
        self.draw, self.hype = draw, hype
        self.groups = draw.integers(10, size=items)
        self.begins = draw.uniform(-life, DAYS, items)
        self.ends = self.begins + life * draw.uniform(0.6, 1.4, items)
        self.quality = draw.beta(1.2, 3, items)
        self.liking = np.exp(taste * draw.integers(-1, 2, (users, 10)))

    def utility(self, day: int, users: Ints, past: Past) -> Values:
        """The probability of a purchase, once, of what is sold."""
        sold = (self.begins <= day) & (day < self.ends)
        wanted = np.where(sold, self.quality * np.exp(-(day - self.begins).clip(0) / self.hype), 0)
        return np.where(past.owned(users), 0, (self.liking[users][:, self.groups] * wanted).clip(0, 1))

    def visit(self, day: int, users: Ints, utility: Values, past: Past) -> Visit:
        """Look at ten items of those that are sold, whichever; search for one that is wanted, in half of the visits."""
        sold = (self.begins <= day) & (day < self.ends)
        shown = _chosen(self.draw, np.where(past.owned(users), 0, sold.astype(float)), 10)
        seen = _clicks(self.draw, utility, shown, 0.9 ** np.arange(10))
        assert seen.clicked is not None
        searched = _chosen(self.draw, utility, 1)
        searched[(self.draw.random(len(users)) < 0.5)[:, None] | (shown == searched).any(1, keepdims=True)] = NO_ITEM
        return seen._replace(bought=np.hstack([seen.bought, searched]))


class Slots:
    """A page for each category, in an order that hardly changes, of which few see more than the top.

    Args:
        examination: exponent of the slot by which looking falls.
        against: log-odds of a high slot that a standard deviation of quality takes away.
        taste: log of how much better the best liked category is than one that is not liked.
    """

    rate = 0.22

    def __init__(
        self, draw: np.random.Generator, users: int, items: int, *, examination: float, against: float, taste: float
    ) -> None:
        categories = 10
        self.draw = draw
        self.examined = np.arange(1.0, 16) ** -examination
        self.groups = draw.integers(categories, size=items)
        self.quality = draw.beta(1.2, 2, items)
        standard = (self.quality - self.quality.mean()) / self.quality.std()
        self.order = np.exp(-against * standard + draw.normal(0, 2, items))  # which the shop's pages follow
        self.liking = draw.permuted(np.tile(np.exp(-taste * np.arange(categories).clip(max=3)), (users, 1)), axis=1)

    def utility(self, day: int, users: Ints, past: Past) -> Values:
        """The probability of a click where one looks, once."""
        return np.where(past.owned(users), 0, self.liking[users][:, self.groups] * self.quality)

    def visit(self, day: int, users: Ints, utility: Values, past: Past) -> Visit:
        """Open the page of a category, a liked one mostly, and look at its fifteen items, the lower ones less."""
        page = _chosen(self.draw, _shares(self.liking[users] + 0.02), 1)
        there = (self.groups == page) & ~past.owned(users)
        shown = _chosen(self.draw, np.where(there, self.order, 0), len(self.examined), sharpness=3.0)
        return _clicks(self.draw, utility, shown, self.examined)


class Staples:
    """Baskets of what a customer always buys, and some of what all buy.

    Args:
        staples: of a customer.
        others: lines of a basket that are no staples, on average.
        replaced: share of the customers a day who exchange a staple for a new one.
    """

    rate = 0.09

    def __init__(
        self, draw: np.random.Generator, users: int, items: int, *, staples: int, others: float, replaced: float
    ) -> None:
        self.draw, self.others, self.replaced = draw, others, replaced
        self.groups = draw.integers(12, size=items)
        self.popular = _shares(draw.lognormal(0, 1.0, (1, items)))
        self.staples = _chosen(draw, np.tile(np.sqrt(self.popular), (users, 1)), staples)
        self.needs = draw.beta(2, 3, (users, staples))
        self.today = 0

    def utility(self, day: int, users: Ints, past: Past) -> Values:
        """The probability that the basket holds the item."""
        if day > self.today:
            changing, self.today = np.flatnonzero(self.draw.random(len(self.staples)) < self.replaced), day
            new = self.draw.integers(self.popular.shape[1], size=len(changing))
            fresh = ~(self.staples[changing] == new[:, None]).any(1)
            self.staples[changing[fresh], self.draw.integers(self.staples.shape[1], size=fresh.sum())] = new[fresh]
        needed = np.zeros((len(users), self.popular.shape[1]))
        np.put_along_axis(needed, self.staples[users], self.needs[users], axis=1)
        return 1 - (1 - needed) * (1 - (self.others * self.popular).clip(0, 1))

    def visit(self, day: int, users: Ints, utility: Values, past: Past) -> Visit:
        """Fill a basket, in no order."""
        basket = self.draw.random(utility.shape) < utility
        places = np.where(basket, self.draw.random(utility.shape), 2).argsort(axis=1)[:, : basket.sum(1).max(initial=1)]
        return Visit(np.where(np.take_along_axis(basket, places, 1), places, NO_ITEM))


KINDS: dict[str, Callable[..., Shop]] = {
    "seasons": Seasons,
    "bundles": Bundles,
    "placements": Placements,
    "turnover": Turnover,
    "slots": Slots,
    "staples": Staples,
}


def simulate(kind: str, seed: int, *, users: int, items: int, **knobs: float) -> World:
    """A shop of a kind; equal arguments make equal shops.

    Args:
        knobs: of the kind, see its class.
    """
    draw = np.random.default_rng([seed, *kind.encode()])
    shop, past = KINDS[kind](draw, users, items, **knobs), Past(users, items)
    visits: list[tuple[int, int, NDArray[np.float32]]] = []
    habits = (shop.rate * draw.lognormal(-0.125, 0.5, users)).clip(max=0.9)
    orders: list[tuple[int, int, int]] = []
    impressions: list[tuple[int, int, int, int, int]] = []
    for day in range(DAYS):
        visitors = draw.permutation(np.flatnonzero(draw.random(users) < habits))
        utility = shop.utility(day, visitors, past)
        visit = shop.visit(day, visitors, utility, past)
        times = BEGINNING + DAY * day + np.sort(draw.integers(DAY, size=len(visitors)))
        for row, (user, time) in enumerate(zip(visitors.tolist(), times.tolist(), strict=True)):
            if visit.shown is not None and visit.clicked is not None:
                seen = zip(visit.shown[row].tolist(), visit.clicked[row].tolist(), strict=True)
                impressions += [(user, i, time, slot, int(c)) for slot, (i, c) in enumerate(seen, 1) if i != NO_ITEM]
            for item in visit.bought[row].tolist():
                if item != NO_ITEM:
                    orders.append((user, item, time))
                    past.add(user, item, day)
            if (visit.bought[row] != NO_ITEM).any():
                visits.append((user, time, utility[row].astype(np.float32)))
    names = [f"u{user:04}" for user in range(users)], [f"i{item:03}" for item in range(items)]
    return World(_files(kind, shop, draw, names, orders, impressions), *names, visits)


def _files(
    kind: str,
    shop: Shop,
    draw: np.random.Generator,
    names: tuple[list[str], list[str]],
    orders: list[tuple[int, int, int]],
    impressions: list[tuple[int, int, int, int, int]],
) -> dict[str, pl.DataFrame]:
    """What the shop's team has: clicks of slates are orders too in `turnover`, elsewhere there are no others."""
    who, what = (pl.Series(one) for one in names)
    found = {}
    if not impressions or kind == "turnover":
        user, item, time = zip(*orders, strict=True)
        found["orders.csv"] = pl.DataFrame({"user": who.gather(user), "item": what.gather(item), "time": time})
    if impressions:
        user, item, time, slot, clicked = zip(*impressions, strict=True)
        columns = {"user": who.gather(user), "item": what.gather(item), "time": time, "slot": slot, "clicked": clicked}
        found["impressions.csv"] = pl.DataFrame(columns)
    titles = [f"article {number} of category {group}" for number, group in enumerate(shop.groups.tolist())]
    prices = draw.lognormal(3, 0.7, len(what)).round(2)
    categories = [f"category {group}" for group in shop.groups.tolist()]
    found["items.csv"] = pl.DataFrame({"item": what, "title": titles, "category": categories, "price": prices})
    return found


def _shares(values: Values) -> Values:
    """(N, V) of which each row's sum is 1, or 0."""
    return np.asarray(values / np.maximum(values.sum(axis=1, keepdims=True), 1e-12))


def _chosen(draw: np.random.Generator, weights: Values, count: int, sharpness: float = 1.0) -> Ints:
    """(N, count) draws of (N, V) weights to the power of `sharpness`, none twice; -1 where no weight is left."""
    with np.errstate(divide="ignore"):
        keys = sharpness * np.log(weights) + draw.gumbel(size=weights.shape)
    best = np.argsort(-keys, axis=1)[:, :count]
    return np.where(np.take_along_axis(weights, best, 1) > 0, best, NO_ITEM)


def _clicks(draw: np.random.Generator, utility: Values, shown: Ints, examined: Values) -> Visit:
    """A click on each shown item that is looked at and wanted."""
    wanted = np.take_along_axis(utility, shown.clip(0), 1) * examined
    clicked = (draw.random(shown.shape) < wanted) & (shown != NO_ITEM)
    return Visit(np.where(clicked, shown, NO_ITEM), shown, clicked)
