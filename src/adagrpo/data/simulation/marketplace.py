"""A simulated marketplace: true utility is known, and the logs that it leaves are biased by exposure.

An item `i` has a vector `v_i` (its category, its style and a part of its own, unit length), a quality and a rank in
popularity. A user has a taste `x_u` (unit length): a slowly drifting long-term part, and a pull left by the purchases,
away from what was just bought and toward what goes with it: the complementary category, the same style, and the
item's own part turned by one axis. Sequences therefore carry signal beyond popularity and long-term taste.

Whoever examines an item wants it with probability

    utility(u, i) = sigmoid((sharpness * x_u . v_i + quality_i - threshold) / noise)

At a visit the platform shows a slate, drawn without replacement with probabilities proportional to

    w_ui = exp(targeting * x_u . shelf(i) + targeting_error * eps_u,shelf(i)) * (rank_i + V / 100) ** -exposure_bias

among the released items that the user does not own; a shelf is a category and style, `eps` is fresh standard normal
noise, one draw a shelf and visit; a cold item weighs 0.05 of that. This is the law of Gumbel top-k on `log w_ui`; slots
are in order of the draw. It is carried out by drawing with replacement (shelf, then item) and skipping repeats, which
costs nothing per catalogue item. Slot `s` (from 0) is examined with probability `(1 / (s + 1)) ** position_bias`. The
first examined and wanted item is bought, which ends the visit: `P(clicked_s) = e_s u_s prod_{r<s} (1 - e_r u_r)`.
Nothing is shown again once bought.

The logged propensity is the probability that the item is in the slate, in whatever slot, given the weights of this
visit (the platform's noise and what the user owns included): `1 - exp(-w_ui t)`, where `t` makes the sum over all items
the slate size (Rosen, Asymptotic theory for successive sampling with varying probabilities without replacement, 1972).
Against 200,000 Monte Carlo slates: 10 of 1000 items, about 1 % or less on average in every class of probability; 5 of
60 items, up to 2.6 % too low for one that is nearly always shown and 2-3 % too high, on average, for those below 0.1.

The source of the click model is Craswell et al., An experimental comparison of click position-bias models, 2008
(examination times attraction); we depart from it in that the first purchase ends the visit.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.special import expit

from adagrpo.data.simulation.truth import Truth
from adagrpo.errors import UserError

__all__ = ["Marketplace", "Simulation", "Truth", "simulate", "write_simulation"]

CHUNK = 4096  # users that are handled at once; part of what the seed means
WAVES = 4  # cold items are released at this many points in time
COLD_FROM = 0.7  # the first wave, as a share of the log's length
COLD_EXPOSURE = 0.05  # how much less often a cold item is shown, once released
ROUNDS = 6  # of drawing with replacement, before the few unfinished slates are drawn in one go
CENTRE, STYLE, OWN = 1.0, 0.7, 0.7  # lengths of the parts of an item's vector, before it is scaled to 1
MEMORY = 0.3  # how much of the older pull is left after a purchase
HEAD = 0.01  # share of the items that are about equally popular: a Zipf-Mandelbrot law of the rank
QUALITY = 0.5  # standard deviation of quality, in logits
POPULARITY_QUALITY = 0.5  # correlation of quality with what the popularity rank is made from

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Marketplace:
    """The parameters of a world and of its platform.

    Attributes:
        users: how many users.
        items: how many items.
        factors: length of the taste and item vectors.
        categories: how many categories; each has one that complements it.
        styles: how many styles, shared by the categories.
        steps: mean number of visits a user; they vary (Gamma-Poisson), and every user is there at the end.
        slate_size: items shown at a visit.
        exposure_bias: exponent of the popularity rank in the platform's weights; 0 ignores it, 1 is strong.
        targeting: weight of the user's taste in the platform's weights.
        targeting_error: standard deviation of the platform's error about it, in the same (log) unit.
        position_bias: exponent of the fall of examination with the slot; 0 examines everything.
        sharpness: weight of taste in the utility, in logits.
        threshold: what taste and quality must overcome, in logits.
        noise: scale of the users' logistic error; below .001 counts as .001, which leaves nothing to chance.
        carry: length of the pull of recent purchases, against a long-term taste of length 1.
        drift: length of the random change of long-term taste a visit, against a taste of length 1.
        cold_share: share of the items that are released late and then hardly ever shown.
        seed: of everything. Users and items do not depend on the platform's parameters.

    Raises:
        UserError: a parameter is out of range, or the catalogue is too small to fill the slates.
    """

    users: int = 2000
    items: int = 1000
    factors: int = 16
    categories: int = 20
    styles: int = 5
    steps: float = 25.0
    slate_size: int = 10
    exposure_bias: float = 0.5
    targeting: float = 6.0
    targeting_error: float = 0.5
    position_bias: float = 0.5
    sharpness: float = 14.0
    threshold: float = 10.0
    noise: float = 1.0
    carry: float = 1.5
    drift: float = 0.1
    cold_share: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("users", "items", "categories", "styles", "slate_size", "steps"):
            if not getattr(self, name) > 0:
                raise UserError(f"marketplace.{name}: {getattr(self, name)}, must be above 0")
        for name in ("exposure_bias", "targeting_error", "position_bias", "noise", "carry", "drift", "seed"):
            if not getattr(self, name) >= 0:
                raise UserError(f"marketplace.{name}: {getattr(self, name)}, must be 0 or more")
        if self.factors < 2:
            raise UserError(f"marketplace.factors: {self.factors}, must be 2 or more")
        if not 0 <= self.cold_share < 1:
            raise UserError(f"marketplace.cold_share: {self.cold_share}, must be at least 0 and below 1")
        needed = self.slate_size + self.longest
        if self.items - round(self.cold_share * self.items) < needed:
            raise UserError(f"marketplace.items: {self.items}, slates and visits need {needed} that are not cold")

    @property
    def longest(self) -> int:
        """The most visits a user can have: the length of the log, in steps."""
        return max(1, round(2.5 * self.steps))


class Simulation(NamedTuple):
    """A simulated log and the world behind it."""

    impressions: pl.DataFrame  # user_id, item_id, timestamp (step), slot, clicked, propensity; by user, time and slot
    items: pl.DataFrame  # item_id, title, attributes
    truth: Truth


class _Catalogue(NamedTuple):
    """The items, and the shelves (a category and style each) that the platform takes them from."""

    shelves: Floats  # (S, D) unit vectors
    shelf: Ints  # (V,)
    brand: Ints  # (V,)
    own: Floats  # (V, D) the part of the vector that is the item's own
    vectors: Floats  # (V, D)
    pull: Floats  # (V, D) where a purchase draws the taste to, unit vectors
    bias: Floats  # (V,)
    rank: Ints  # (V,) 1 is the most popular
    wave: Ints  # (V,) 0 is there from the start


class _Stock(NamedTuple):
    """The platform's item weights in one wave of releases. Items are listed shelf by shelf here."""

    order: Ints  # (V,) the items
    starts: Ints  # (S + 1,) where each shelf's items begin
    weights: Floats  # (V,) rank ** -exposure_bias by item, 0 if not yet released
    cumulative: Floats  # (V + 1,) of the weights, in `order`
    grid: Floats  # (X,) ascending, evenly spaced
    log_shown: Floats  # (S, X) log of sum_i 1 - exp(-weight_i * exp(grid)) over the items of the shelf


class _Users(NamedTuple):
    """State of the users, changed in place."""

    taste: Floats  # (U, D) long-term part, unit vectors
    pull: Floats  # (U, D) left by purchases
    last: Floats  # (U, D) whole taste at the last purchase
    owned: Ints  # (U, longest) purchases in their order, -1 from there on
    bought: Ints  # (U,) how many
    moments: list[tuple[Ints, Floats]]  # of each step: who bought, and their whole taste before it
    visits: Ints  # (U,)


def simulate(world: Marketplace) -> Simulation:
    """Run a marketplace. The same parameters give the same result with the same version of numpy.

    Args:
        world: the parameters.

    Returns:
        Impressions (`timestamp` is the step of the log, `slot` counts from 0, `clicked` is 1 for a purchase and 0
        otherwise, at most one a visit), items and the truth.

    Example:
        >>> simulation = simulate(Marketplace(users=5, items=50, steps=3, slate_size=4))
        >>> simulation.impressions.columns
        ['user_id', 'item_id', 'timestamp', 'slot', 'clicked', 'propensity']
        >>> simulation.items.item(0, "item_id"), simulation.truth.user_ids[-1]
        ('i00000', 'u00004')
    """
    rng_items, rng_users, rng_log = (np.random.default_rng(s) for s in np.random.SeedSequence(world.seed).spawn(3))
    catalogue = _make_catalogue(world, rng_items)
    users = _make_users(world, catalogue, rng_users)
    first_wave = round(COLD_FROM * world.longest)
    waves = (first_wave + (world.longest - first_wave) * np.arange(WAVES) / WAVES).astype(np.int64)
    wave, stock = 0, _stock_shelves(world, catalogue, 0)
    parts: list[dict[str, NDArray[np.generic]]] = []
    for step in range(world.longest):
        released = int(np.searchsorted(waves, step, side="right"))
        if released != wave and world.cold_share:
            wave, stock = released, _stock_shelves(world, catalogue, released)
        present = np.flatnonzero(users.visits >= world.longest - step)
        chunks = (present[start : start + CHUNK] for start in range(0, len(present), CHUNK))
        parts += [_visit(world, catalogue, stock, users, rows, step, rng_log) for rows in chunks]
    user_ids, item_ids = _ids("u", world.users), _ids("i", world.items)
    log = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    by_user = np.argsort(log["user_id"], kind="stable")
    impressions = pl.DataFrame({name: column[by_user] for name, column in log.items()}).with_columns(
        user_id=pl.lit(user_ids).gather(pl.col("user_id")), item_id=pl.lit(item_ids).gather(pl.col("item_id"))
    )
    return Simulation(impressions, _describe(world, catalogue, item_ids), _truth(world, catalogue, users))


def write_simulation(simulation: Simulation, directory: Path) -> None:
    """Write logs.parquet, items.parquet and the folder truth/, which only evaluation may read."""
    directory.mkdir(parents=True, exist_ok=True)
    simulation.impressions.write_parquet(directory / "logs.parquet")
    simulation.items.write_parquet(directory / "items.parquet")
    simulation.truth.save(directory / "truth")


def _make_catalogue(world: Marketplace, rng: np.random.Generator) -> _Catalogue:
    spread = _spread(rng.normal(size=(world.categories + world.styles, world.factors)))
    centres, styles = spread[: world.categories], spread[world.categories :]
    # A cycle through all categories: each is complemented by another one, as long as there are two.
    cycle = rng.permutation(world.categories)
    complement = np.empty_like(cycle)
    complement[cycle] = np.roll(cycle, -1)
    category = rng.integers(world.categories, size=world.items)
    style = rng.integers(world.styles, size=world.items)
    own = _unit(rng.normal(size=(world.items, world.factors)))
    shelves = _unit(CENTRE * centres[:, None] + STYLE * styles).reshape(-1, world.factors)
    brands = int(np.clip(world.items // (12 * world.categories), 2, 50))  # of each category
    brand = category * brands + rng.integers(brands, size=world.items)
    reputation = rng.normal(size=world.categories * brands)
    quality = 0.6 * reputation[brand] + 0.8 * rng.normal(size=world.items)
    chance = rng.normal(size=world.items)
    popularity = POPULARITY_QUALITY * quality + np.sqrt(1 - POPULARITY_QUALITY**2) * chance
    rank = np.empty(world.items, dtype=np.int64)
    rank[np.argsort(-popularity, kind="stable")] = np.arange(1, world.items + 1)
    wave = np.zeros(world.items, dtype=np.int64)
    cold = rng.permutation(world.items)[: round(world.cold_share * world.items)]
    wave[cold] = 1 + np.arange(len(cold)) % WAVES
    return _Catalogue(
        shelves=shelves,
        shelf=category * world.styles + style,
        brand=brand,
        own=own,
        vectors=_unit(CENTRE * centres[category] + STYLE * styles[style] + OWN * own),
        pull=_unit(CENTRE * centres[complement[category]] + STYLE * styles[style] + OWN * np.roll(own, 1, axis=1)),
        bias=QUALITY * quality - world.threshold,
        rank=rank,
        wave=wave,
    )


def _make_users(world: Marketplace, catalogue: _Catalogue, rng: np.random.Generator) -> _Users:
    # One to three favourite shelves; a user is a weighted mean of them and of a part of their own.
    favourites = rng.integers(len(catalogue.shelves), size=(world.users, 3))
    shares = rng.gamma(1.0, size=(world.users, 3)) * (np.arange(3) < rng.integers(1, 4, size=(world.users, 1)))
    shares /= shares.sum(axis=1, keepdims=True)
    mean = _unit(np.einsum("uf,ufd->ud", shares, catalogue.shelves[favourites]))
    taste = _unit(mean + OWN * _unit(rng.normal(size=mean.shape)))
    shape = 8.0  # of the Gamma: visits vary by about 40 %
    visits = rng.poisson(world.steps * rng.gamma(shape, 1 / shape, size=world.users))
    return _Users(
        taste=taste,
        pull=np.zeros_like(taste),
        last=taste.copy(),
        owned=np.full((world.users, world.longest), -1, dtype=np.int64),
        bought=np.zeros(world.users, dtype=np.int64),
        moments=[],
        visits=np.clip(visits, 1, world.longest),
    )


def _visit(
    world: Marketplace,
    catalogue: _Catalogue,
    stock: _Stock,
    users: _Users,
    rows: Ints,  # (N,) users who come at this step
    step: int,
    rng: np.random.Generator,
) -> dict[str, NDArray[np.generic]]:
    """One visit of each of these users; changes their state and returns the columns of the log, `N * k` rows."""
    count, size = len(rows), world.slate_size
    drifted = users.taste[rows] + world.drift / np.sqrt(world.factors) * rng.normal(size=(count, world.factors))
    users.taste[rows] = _unit(drifted)
    taste = _unit(users.taste[rows] + world.carry * users.pull[rows])
    error = world.targeting_error * rng.normal(size=(count, len(catalogue.shelves)))
    log_mass = world.targeting * (taste @ catalogue.shelves.T) + error
    log_mass -= log_mass.max(axis=1, keepdims=True)
    owned = users.owned[rows, : max(1, int(users.bought[rows].max()))]
    slate = _draw_slates(rng, catalogue, stock, log_mass, owned, size)
    propensity = _propensities(catalogue, stock, log_mass, owned, slate)

    logits = world.sharpness * np.einsum("nd,nkd->nk", taste, catalogue.vectors[slate]) + catalogue.bias[slate]
    examination = (1.0 / (1.0 + np.arange(size))) ** world.position_bias
    chosen = rng.random((count, size)) < examination * expit(logits / max(world.noise, 1e-3))
    clicked = chosen & (np.cumsum(chosen, axis=1) == 1)

    buys = chosen.any(axis=1)
    buyers, basket = rows[buys], slate[clicked]
    current = buys | (users.bought[rows] == 0)  # before the first purchase, every visit counts as the last
    users.last[rows[current]] = taste[current]
    users.owned[buyers, users.bought[buyers]] = basket
    users.moments.append((buyers, taste[buys]))
    users.bought[buyers] += 1
    users.pull[buyers] = _unit(MEMORY * users.pull[buyers] + catalogue.pull[basket])
    return {
        "user_id": np.repeat(rows, size).astype(np.int32),
        "item_id": slate.ravel().astype(np.int32),
        "timestamp": np.full(count * size, step, dtype=np.int64),
        "slot": np.tile(np.arange(size, dtype=np.int32), count),
        "clicked": clicked.ravel().astype(np.int8),
        "propensity": propensity.ravel().astype(np.float32),
    }


def _stock_shelves(world: Marketplace, catalogue: _Catalogue, wave: int) -> _Stock:
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
    return _Stock(order, starts, weights, np.concatenate([[0.0], np.cumsum(listed)]), grid, log_shown)


def _draw_slates(
    rng: np.random.Generator,
    catalogue: _Catalogue,
    stock: _Stock,
    log_mass: Floats,  # (N, S) log weight of each shelf, the largest about 0
    owned: Ints,  # (N, O) never shown, -1 is no item
    size: int,
) -> Ints:  # (N, size)
    """Successive draws without replacement: draws with replacement, of which the repeats are skipped."""
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
        place = np.clip(np.searchsorted(stock.cumulative, point, side="right") - 1, begin, end - 1)
        drawn = stock.order[place]  # (n, 2 size)
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


def _propensities(
    catalogue: _Catalogue,
    stock: _Stock,
    log_mass: Floats,  # (N, S)
    owned: Ints,  # (N, O)
    slate: Ints,  # (N, k)
) -> Floats:  # (N, k)
    """Inclusion probabilities `1 - exp(-w t)` of the shown items, with `t` from Newton's method in logarithms."""

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


def _truth(world: Marketplace, catalogue: _Catalogue, users: _Users) -> Truth:
    scale = 1 / max(world.noise, 1e-3)
    before_last = np.arange(world.longest) < users.bought[:, None] - 1
    row, column = np.nonzero(before_last)
    owner, place = np.nonzero(users.owned >= 0)  # by user and time, as the moments are once sorted by user
    buyers, tastes = (np.concatenate(parts) for parts in zip(*users.moments, strict=True))
    return Truth(
        user_ids=tuple(_ids("u", world.users)),
        item_ids=tuple(_ids("i", world.items)),
        users=(scale * world.sharpness * users.last).astype(np.float32),
        items=catalogue.vectors.astype(np.float32),
        bias=(scale * catalogue.bias).astype(np.float32),
        owned=np.sort(row * world.items + users.owned[row, column]),
        purchases=owner * world.items + users.owned[owner, place],
        tastes=(scale * world.sharpness * tastes[np.argsort(buyers, kind="stable")]).astype(np.float32),
    )


def _describe(world: Marketplace, catalogue: _Catalogue, item_ids: pl.Series) -> pl.DataFrame:
    """Titles and attributes. Style and features are words for the vector: attributes carry signal."""
    strongest = np.argsort(-np.abs(catalogue.own), axis=1, kind="stable")[:, :2]  # (V, 2)
    feature = 2 * strongest + (np.take_along_axis(catalogue.own, strongest, 1) > 0)
    texts = pl.DataFrame(
        {
            "item_id": item_ids,
            "category": _words(catalogue.shelf // world.styles, 2, 11),
            "brand": _words(catalogue.brand, 3, 23),
            "style": _words(catalogue.shelf % world.styles, 2, 2003),
            "feature": _words(feature[:, 0], 2, 4001),
            "second": _words(feature[:, 1], 2, 4001),
        }
    )
    title = pl.concat_str("brand", "feature", "second", "style", "category", separator=" ")
    named = [pl.format("{}={}", pl.lit(name), name) for name in ("category", "brand", "style", "feature")]
    attributes = pl.concat_list(*named, pl.format("feature={}", "second"))
    return texts.select("item_id", title=title, attributes=attributes)


def _words(index: Ints, syllables: int, first: int) -> pl.Series:
    """A made-up word for each number, the same for the same number; different ones below 75 ** syllables."""
    table = np.array([consonant + vowel for consonant in "bdfgklmnprstvwz" for vowel in "aeiou"])
    total = len(table) ** syllables
    code, word = (first + 7919 * index) % total, np.array("")  # 7919 is prime to 75, so no two numbers meet
    for _ in range(syllables):
        word, code = np.strings.add(word, table[code % len(table)]), code // len(table)
    return pl.Series(word.tolist())


def _ids(letter: str, count: int) -> pl.Series:
    width = max(5, len(str(count - 1)))
    return pl.Series([f"{letter}{index:0{width}d}" for index in range(count)])


def _spread(vectors: Floats) -> Floats:  # (n, D)
    """Unit vectors pushed apart, so that no world has categories that are one by accident."""
    for _ in range(200):
        vectors = _unit(vectors)
        cosines = vectors @ vectors.T
        np.fill_diagonal(cosines, 0.0)
        vectors = vectors - 0.2 * cosines**3 @ vectors
    return _unit(vectors)


def _unit(vectors: Floats) -> Floats:  # (..., D)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True))
