"""Slates without replacement, and their propensities (`adagrpo.data.simulation.marketplace`)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from adagrpo.data.simulation.world import Catalogue, Marketplace

COLD_EXPOSURE = 0.05  # how much less often a cold item is shown, once released
ROUNDS = 6  # of drawing with replacement, before the few unfinished slates are drawn in one go
HEAD = 0.01  # share of the items that are about equally popular: a Zipf-Mandelbrot law of the rank

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


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
    """Return inclusion probabilities `1 - exp(-w t)` of shown items; `t` by Newton's method in logarithms."""

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
