"""A simulated marketplace: true utility is known, and the logs are biased by exposure.

Items have a unit vector `v_i`, a quality and a popularity rank. A user's taste `x_u` drifts, and purchases pull it. An
examined item is wanted with probability

    utility(u, i) = sigmoid((sharpness * x_u . v_i + quality_i - threshold) / noise)

A visit's slate is drawn in order without replacement (Gumbel top-k on `log w_ui`), with weights

    w_ui = exp(targeting * x_u . shelf(i) + targeting_error * eps_u,shelf(i)) * (rank_i + V / 100) ** -exposure_bias

for released items that the user does not own; `eps` is standard normal per shelf and visit; cold items weigh 0.05 of
that. Slot `s` (from 0) is examined with probability `e_s = (1 / (s + 1)) ** position_bias`; the first examined and
wanted item is bought and ends the visit, `P(clicked_s) = e_s u_s prod_{r<s} (1 - e_r u_r)`. Source, but for that
end: Craswell et al. (2008).

The logged propensity, of being in the slate given this visit's weights, is `1 - exp(-w_ui t)`, with `t` such that its
sum over items is the slate size (Rosen, Annals of Mathematical Statistics 1972); its mean error is about 1 % for 10 of
1000 items, up to 3 % for 5 of 60.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.special import expit

from adagrpo.data.simulation.truth import Truth
from adagrpo.data.simulation.world import (
    OWN,
    WAVES,
    Catalogue,
    Marketplace,
    describe_items,
    make_catalogue,
    numbered_ids,
    unit,
)
from adagrpo.types import Floats, Ints

COLD_EXPOSURE = 0.05  # how much less often a cold item is shown, once released
ROUNDS = 6  # of drawing with replacement, before the few unfinished slates are drawn in one go
HEAD = 0.01  # share of the items that are about equally popular: a Zipf-Mandelbrot law of the rank


class Stock(NamedTuple):
    """The platform's item weights in one wave, sorted by shelf."""

    order: Ints  # (V,) the items
    starts: Ints  # (S + 1,) where each shelf's items begin
    weights: Floats  # (V,) rank ** -exposure_bias by item, 0 if not yet released
    cumulative: Floats  # (V + 1,) of the weights, in `order`
    grid: Floats  # (X,) ascending, evenly spaced
    log_shown: Floats  # (S, X) log of sum_i 1 - exp(-weight_i * exp(grid)) over the items of the shelf


def stock_shelves(world: Marketplace, catalogue: Catalogue, wave: int) -> Stock:
    """Collect the items that a wave can show, by shelf."""
    weights = np.asarray((catalogue.rank + HEAD * world.items) ** -world.exposure_bias, dtype=np.float64)
    weights[catalogue.wave > 0] *= COLD_EXPOSURE
    weights[catalogue.wave > wave] = 0.0
    order = np.argsort(catalogue.shelf, kind="stable")
    starts = np.searchsorted(catalogue.shelf[order], np.arange(len(catalogue.shelves) + 1))
    listed = weights[order]
    positive = listed[listed > 0]
    # From where every item is shown in proportion to its weight, to where every item is shown.
    grid = np.arange(np.log(1e-3 / positive.max()), np.log(20 / positive.min()) + 0.2, 0.2)
    shown = np.empty((len(catalogue.shelves), len(grid)))
    for column, x in enumerate(np.exp(grid)):
        shown[:, column] = np.diff(np.concatenate([[0.0], np.cumsum(-np.expm1(-x * listed))])[starts])
    log_shown = np.log(np.maximum(shown, 1e-300))  # an empty shelf never shows anything
    return Stock(order, starts, weights, np.concatenate([[0.0], np.cumsum(listed)]), grid, log_shown)


def draw_slates(
    rng: np.random.Generator,
    catalogue: Catalogue,
    stock: Stock,
    log_mass: Floats,  # (N, S) log weight of each shelf, the largest about 0
    owned: Ints,  # (N, O) never shown, -1 is no item
    size: int,
) -> Ints:  # (N, size)
    """Sample without replacement by skipping repeats."""
    count, shelf_count = log_mass.shape
    slate = np.full((count, size), -1, dtype=np.int64)
    totals = np.diff(stock.cumulative[stock.starts])
    mass = np.cumsum(np.exp(log_mass) * totals, axis=1)
    edges = (mass / mass[:, -1:] + np.arange(count)[:, None]).ravel()  # ascending through all rows
    filled, todo = np.zeros(count, dtype=np.int64), np.arange(count)
    earlier = np.tri(2 * size, k=-1, dtype=np.bool_)
    for _ in range(ROUNDS):
        if not len(todo):
            return slate
        where = np.searchsorted(edges, todo[:, None] + rng.random((len(todo), 2 * size)), side="right")
        shelf = np.minimum(where - shelf_count * todo[:, None], shelf_count - 1)
        begin, end = stock.starts[shelf], stock.starts[shelf + 1]
        point = stock.cumulative[begin] + totals[shelf] * rng.random(shelf.shape)
        index = np.clip(np.searchsorted(stock.cumulative, point, side="right") - 1, begin, end - 1)
        drawn = stock.order[index]  # (n, 2 size)
        known = np.concatenate([owned[todo], slate[todo]], axis=1)
        repeat = (drawn[:, :, None] == known[:, None, :]).any(axis=2)
        repeat |= ((drawn[:, :, None] == drawn[:, None, :]) & earlier).any(axis=2)
        slot = filled[todo, None] + np.cumsum(~repeat, axis=1) - 1
        row, column = np.nonzero(~repeat & (slot < size))
        slate[todo[row], slot[row, column]] = drawn[row, column]
        filled[todo] = np.minimum(size, slot[:, -1] + 1)
        todo = todo[filled[todo] < size]
    with np.errstate(divide="ignore"):
        log_weights = np.log(stock.weights)
    for user in todo:  # few, unless the weights are extreme: the rest of the slate by Gumbel top-k over the catalogue
        scores = log_weights + log_mass[user, catalogue.shelf] + rng.gumbel(size=len(log_weights))
        scores[owned[user][owned[user] >= 0]] = -np.inf
        scores[slate[user, : filled[user]]] = -np.inf
        slate[user, filled[user] :] = np.argsort(-scores, kind="stable")[: size - filled[user]]
    return slate


# log_mass (N, S), owned (N, O), slate (N, k) -> (N, k)
def propensities(catalogue: Catalogue, stock: Stock, log_mass: Floats, owned: Ints, slate: Ints) -> Floats:
    """Return inclusion probabilities `1 - exp(-w t)` of shown items."""

    def rates(items: Ints) -> Floats:  # (N, any) w t, by the latest log_time
        shelf_rates = np.exp(np.take_along_axis(log_mass, catalogue.shelf[items], axis=1) + log_time)
        return np.asarray(stock.weights[items] * shelf_rates)

    size, spacing = slate.shape[1], stock.grid[1] - stock.grid[0]
    flat, width = stock.log_shown.ravel(), len(stock.grid)
    row_start = np.arange(len(stock.log_shown)) * width
    totals = np.diff(stock.cumulative[stock.starts])
    # If all weights were small: a lower bound.
    log_time = np.log(size) - np.log(np.exp(log_mass) @ totals)[:, None]
    for _ in range(50):
        position = (log_mass + log_time - stock.grid[0]) / spacing  # (N, S)
        left = np.clip(position, 0, width - 2).astype(np.int64) + row_start
        slope = flat[left + 1] - flat[left]
        # Below the grid the line goes on, which is exact; above it all is shown, and the last slope is 0.
        shown = np.exp(flat[left] + slope * (position - (left - row_start)))
        rate = np.where(owned >= 0, rates(np.maximum(owned, 0)), 0.0)
        sum_shown = shown.sum(axis=1, keepdims=True) + np.expm1(-rate).sum(axis=1, keepdims=True)
        sum_shown = np.maximum(sum_shown, 1e-2)  # interpolation may leave nothing where all that is likely is owned
        rise = (shown * slope).sum(axis=1, keepdims=True) / spacing - (rate * np.exp(-rate)).sum(axis=1, keepdims=True)
        off = np.log(size / sum_shown)
        log_time = log_time + np.clip(off * sum_shown / np.maximum(rise, 0.02 * sum_shown), -3, 3)
        if np.abs(off).max() < 1e-4:
            break
    return -np.expm1(-rates(slate))


__all__ = ["Marketplace", "Truth"]

CHUNK = 4096  # users that are handled at once; part of what the seed means
COLD_FROM = 0.7  # the first wave, as a share of the log's length
MEMORY = 0.3  # how much of the older pull is left after a purchase
RESTED = 0.8  # how much of the satiation is left at the next visit
DWELL_SLOPE, DWELL_SPREAD = 0.15, 1.0  # of log seconds: by the logit of the utility, and about it


class Simulation(NamedTuple):
    """A simulated log (`clicked` is 1 for a purchase, at most one per visit) and its world."""

    impressions: pl.DataFrame  # user_id, item_id, timestamp (step), slot, clicked, propensity; by user, time and slot
    items: pl.DataFrame  # item_id, title, attributes
    truth: Truth


class Users(NamedTuple):
    """State of the users, changed in place."""

    taste: Floats  # (U, D) long-term part, unit vectors
    pull: Floats  # (U, D) left by purchases
    last: Floats  # (U, D) whole taste at the last purchase
    owned: Ints  # (U, longest) purchases in their order, -1 from there on
    bought: Ints  # (U,) how many
    moments: list[tuple[Ints, Floats]]  # of each step: who bought, and their whole taste before it
    visits: Ints  # (U,)
    tired: Floats  # (U, C) recent purchases of each category; (U, 0) in a world without satiation


def simulate(world: Marketplace) -> Simulation:
    """Run a marketplace, reproducibly for a given version of numpy."""
    return simulate_with_users(world)[0]


def simulate_with_users(world: Marketplace) -> tuple[Simulation, Catalogue, Users]:
    """Run a marketplace; return also its items and final users."""
    rng_items, rng_users, rng_log = (np.random.default_rng(s) for s in np.random.SeedSequence(world.seed).spawn(3))
    catalogue = make_catalogue(world, rng_items)
    users = _make_users(world, catalogue, rng_users)
    first_wave = round(COLD_FROM * world.longest)
    waves = (first_wave + (world.longest - first_wave) * np.arange(WAVES) / WAVES).astype(np.int64)
    wave, stock = 0, stock_shelves(world, catalogue, 0)
    parts: list[dict[str, NDArray[np.generic]]] = []
    for step in range(world.longest):
        released = int(np.searchsorted(waves, step, side="right"))
        if released != wave and world.cold_share:
            wave, stock = released, stock_shelves(world, catalogue, released)
        present = np.flatnonzero(users.visits >= world.longest - step)
        chunks = (present[start : start + CHUNK] for start in range(0, len(present), CHUNK))
        parts += [_visit(world, catalogue, stock, users, rows, step, rng_log) for rows in chunks]
    user_ids, item_ids = numbered_ids("u", world.users), numbered_ids("i", world.items)
    log = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    by_user = np.argsort(log["user_id"], kind="stable")
    impressions = pl.DataFrame({name: column[by_user] for name, column in log.items()}).with_columns(
        user_id=pl.lit(user_ids).gather(pl.col("user_id")), item_id=pl.lit(item_ids).gather(pl.col("item_id"))
    )
    simulation = Simulation(impressions, describe_items(world, catalogue, item_ids), _truth(world, catalogue, users))
    return simulation, catalogue, users


def write_simulation(simulation: Simulation, directory: Path) -> None:
    """Write logs.parquet, items.parquet and the folder truth/."""
    directory.mkdir(parents=True, exist_ok=True)
    simulation.impressions.write_parquet(directory / "logs.parquet")
    simulation.items.write_parquet(directory / "items.parquet")
    simulation.truth.save(directory / "truth")


def _make_users(world: Marketplace, catalogue: Catalogue, rng: np.random.Generator) -> Users:
    # One to three favourite shelves; a user is a weighted mean of them and of a part of their own.
    favourites = rng.integers(len(catalogue.shelves), size=(world.users, 3))
    shares = rng.gamma(1.0, size=(world.users, 3)) * (np.arange(3) < rng.integers(1, 4, size=(world.users, 1)))
    shares /= shares.sum(axis=1, keepdims=True)
    mean = unit(np.einsum("uf,ufd->ud", shares, catalogue.shelves[favourites]))
    taste = unit(mean + OWN * unit(rng.normal(size=mean.shape)))
    shape = 8.0  # of the Gamma: visits vary by about 40 %
    visits = rng.poisson(world.steps * rng.gamma(shape, 1 / shape, size=world.users))
    return Users(
        taste=taste,
        pull=np.zeros_like(taste),
        last=np.pad(taste, ((0, 0), (0, world.categories if world.satiation else 0))),
        owned=np.full((world.users, world.longest), -1, dtype=np.int64),
        bought=np.zeros(world.users, dtype=np.int64),
        moments=[],
        visits=np.clip(visits, 1, world.longest),
        tired=np.zeros((world.users, world.categories if world.satiation else 0)),
    )


def _visit(
    world: Marketplace,
    catalogue: Catalogue,
    stock: Stock,
    users: Users,
    rows: Ints,  # (N,) users who come at this step
    step: int,
    rng: np.random.Generator,
) -> dict[str, NDArray[np.generic]]:
    count, size = len(rows), world.slate_size
    taste = move_tastes(world, users, rows, rng.normal(size=(count, world.factors)))
    error = world.targeting_error * rng.normal(size=(count, len(catalogue.shelves)))
    log_mass = world.targeting * (taste @ catalogue.shelves.T) + error
    log_mass -= log_mass.max(axis=1, keepdims=True)
    owned = users.owned[rows, : max(1, int(users.bought[rows].max()))]
    slate = draw_slates(rng, catalogue, stock, log_mass, owned, size)
    propensity = propensities(catalogue, stock, log_mass, owned, slate)

    logits = utility_logits(world, catalogue, users, rows, taste, slate)
    clicked = choose(world, logits, rng.random((count, size)))
    dwell: dict[str, NDArray[np.generic]] = {}
    if world.dwell_seconds:
        seconds = dwell_times(world, logits[clicked], rng.normal(size=int(clicked.sum())))
        column = np.zeros((count, size), dtype=np.float32)
        column[clicked] = seconds
        dwell = {"dwell": column.ravel()}
    buys = clicked.any(axis=1)
    current = buys | (users.bought[rows] == 0)  # before the first purchase, every visit counts as the last
    whole = taste  # (N, D [+ C])
    if world.satiation:  # one more part, so that utilities remain dot products
        whole = np.concatenate([taste, -world.satiation / world.sharpness * users.tired[rows]], axis=1)
    users.last[rows[current]] = whole[current]
    users.moments.append((rows[buys], whole[buys]))
    buy(catalogue, users, rows[buys], slate[clicked])
    return {
        "user_id": np.repeat(rows, size).astype(np.int32),
        "item_id": slate.ravel().astype(np.int32),
        "timestamp": np.full(count * size, step, dtype=np.int64),
        "slot": np.tile(np.arange(size, dtype=np.int32), count),
        "clicked": clicked.ravel().astype(np.int8),
        "propensity": propensity.ravel().astype(np.float32),
        **dwell,
    }


# rows (N,), normal (N, D) -> (N, D)
def move_tastes(world: Marketplace, users: Users, rows: Ints, normal: Floats) -> Floats:
    """Update drift and satiation of visiting users; return their whole tastes."""
    users.taste[rows] = unit(users.taste[rows] + world.drift / np.sqrt(world.factors) * normal)
    users.tired[rows] *= RESTED
    return unit(users.taste[rows] + world.carry * users.pull[rows])


def utility_logits(
    world: Marketplace,
    catalogue: Catalogue,
    users: Users,
    rows: Ints,  # (N,)
    taste: Floats,  # (N, D) of `move_tastes`
    items: Ints,  # (N, k)
) -> Floats:  # (N, k)
    """Return utility logits, not yet divided by the noise."""
    logits = world.sharpness * np.einsum("nd,nkd->nk", taste, catalogue.vectors[items]) + catalogue.bias[items]
    if world.satiation:
        logits -= world.satiation * users.tired[rows[:, None], catalogue.category[items]]
    return np.asarray(logits)


# logits and uniforms (N, k) -> (N, k)
def choose(world: Marketplace, logits: Floats, uniforms: Floats) -> NDArray[np.bool_]:
    """Mark each slate's first examined and wanted item."""
    examination = (1.0 / (1.0 + np.arange(logits.shape[1]))) ** world.position_bias
    chosen = uniforms < examination * expit(logits / max(world.noise, 1e-3))
    return np.asarray(chosen & (np.cumsum(chosen, axis=1) == 1))


def buy(catalogue: Catalogue, users: Users, buyers: Ints, basket: Ints) -> None:  # buyers (N,), basket (N,)
    """Record purchases and their pull on the buyers' tastes."""
    users.owned[buyers, users.bought[buyers]] = basket
    users.bought[buyers] += 1
    users.pull[buyers] = unit(MEMORY * users.pull[buyers] + catalogue.pull[basket])
    if users.tired.shape[1]:
        users.tired[buyers, catalogue.category[basket]] += 1


def dwell_times(world: Marketplace, logits: Floats, normal: Floats) -> Floats:  # logits (N,), normal (N,) -> (N,)
    """Return dwell times of purchases, seconds."""
    log_seconds = DWELL_SLOPE * logits / max(world.noise, 1e-3) + DWELL_SPREAD * normal
    return np.asarray(world.dwell_seconds * np.exp(log_seconds))


def _truth(world: Marketplace, catalogue: Catalogue, users: Users) -> Truth:
    scale = 1 / max(world.noise, 1e-3)
    before_last = np.arange(world.longest) < users.bought[:, None] - 1
    row, column = np.nonzero(before_last)
    owner, position = np.nonzero(users.owned >= 0)  # by user and time, as the moments are once sorted by user
    buyers, tastes = (np.concatenate(parts) for parts in zip(*users.moments, strict=True))
    vectors = catalogue.vectors  # (V, D [+ C])
    if world.satiation:  # one-hot categories, to match the tastes
        vectors = np.concatenate([vectors, np.eye(world.categories)[catalogue.category]], axis=1)
    return Truth(
        user_ids=tuple(numbered_ids("u", world.users)),
        item_ids=tuple(numbered_ids("i", world.items)),
        users=(scale * world.sharpness * users.last).astype(np.float32),
        items=vectors.astype(np.float32),
        bias=(scale * catalogue.bias).astype(np.float32),
        owned=np.sort(row * world.items + users.owned[row, column]),
        purchases=owner * world.items + users.owned[owner, position],
        tastes=(scale * world.sharpness * tastes[np.argsort(buyers, kind="stable")]).astype(np.float32),
    )
