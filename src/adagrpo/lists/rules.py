"""A shop's rules of lists, applied in one place to what is measured and to what is served: `Recommender.recommend`.

    before the search   include, exclude, available, had_within_days, shown_within_days: items that no list may hold
    after the scores    pins, boosts, at_most and diversity, rank by rank over the list that was found:

        the item at a rank is its pin, if the list may hold that one, else of the items that `at_most` leaves the one of

            (1 - d) (s_i - min s) / (max s - min s) - d max_j cos(v_i, v_j),   j the items of the ranks above,

        with d = `diversity` and s_i the score plus boosts times the standard deviation of the list's scores. Where
        `at_most` leaves none, the list ends, but for pins. Pins count in `at_most`, and are never left out by it.

Maximal marginal relevance: Carbonell and Goldstein (SIGIR 1998).
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from adagrpo.config.rules import RangeConfig, RulesConfig
from adagrpo.data.groups import ItemGroups
from adagrpo.errors import UserError
from adagrpo.lists.eligibility import Eligibility
from adagrpo.lists.query import Query
from adagrpo.semantic_ids.catalog import Catalog
from adagrpo.semantic_ids.trie import Eligible
from adagrpo.types import ItemId

DAY = 86_400.0  # seconds
MASKS = 64  # that are kept
FILTERS = ("include", "exclude", "available", "had_within_days", "shown_within_days")


class Moved(NamedTuple):
    """What rules did to an item of a list."""

    by: list[str]  # the rules without which it would stand at another rank
    rank: int | None  # without any rules, from 1; None: not in that list


class AtMost(NamedTuple):
    """At most `n` items of one value among the first `within`."""

    values: Mapping[int, tuple[int, ...]]  # of an item; one without any is not limited
    n: int
    within: int


@dataclass
class Rules:
    """Rules resolved for one version of a catalogue."""

    catalog: Catalog
    kept: NDArray[np.bool_] | None  # (V,) what `include` and `exclude` leave; None: all
    opens: NDArray[np.float64] | None  # (V,) days since 1970 from which an item may be listed; None: no dates
    closes: NDArray[np.float64]  # (V,) days from which it may not any more
    had_within_days: float | None
    pins: Mapping[int, int]  # item by rank, from 0
    boosts: NDArray[np.float64] | None  # (V,) in standard deviations; None: none
    at_most: Sequence[AtMost]
    diversity: float
    vectors: NDArray[np.float32]  # (V, D) of length 1; read with `diversity`
    filters: Sequence[str] = ()  # names of the rules that leave items out before the search
    shown_within_days: float | None = None
    shown: Mapping[str, tuple[NDArray[np.int64], NDArray[np.float64]]] = field(default_factory=dict)
    # items that the logs say each user was shown, by the text of the id, and when, in days since 1970
    _bounds: NDArray[np.float64] = field(init=False)  # moments at which an item comes or leaves
    _masks: OrderedDict[tuple[int, int], tuple[Eligible | None, Eligible]] = field(init=False)
    _lock: Lock = field(default_factory=Lock)

    def __post_init__(self) -> None:
        dated = [] if self.opens is None else [self.opens, self.closes]
        self._bounds = np.unique(np.concatenate([*dated, np.empty(0)]))
        self._masks = OrderedDict()

    @property
    def reads_time(self) -> bool:
        """Whether lists depend on the time of their query."""
        return any(one is not None for one in (self.opens, self.had_within_days, self.shown_within_days))

    def narrow(self, query: Query) -> Query:
        """Return the query without what no list may hold; by default of now."""
        now = 0.0
        if self.reads_time:
            now = time.time() / DAY if query.now is None else query.now
        if self.had_within_days is not None:
            days = query.days  # where these are not known, all of the history was had of late
            had = [
                item
                for index, item in enumerate(query.history)
                if days is None or now - days[index] <= self.had_within_days
            ]
            query = query._replace(without=[*query.without, *had])
        if (within := self.shown_within_days) is not None:
            items, at = self.shown.get(str(query.user), (np.empty(0, np.int64), np.empty(0)))
            late = items[(at <= now) & (now - at <= within)].tolist()
            told: Sequence[float | None] = [None] * len(query.shown) if query.shown_days is None else query.shown_days
            late += [item for item, when in zip(query.shown, told, strict=True) if when is None or now - when <= within]
            query = query._replace(without=[*query.without, *dict.fromkeys(late)])
        return query if self.kept is None and self.opens is None else query._replace(eligible=self._mask(query, now))

    def _mask(self, query: Query, now: float) -> Eligible:
        given, interval = query.eligible, int(np.searchsorted(self._bounds, now, side="right"))
        key = (id(given), interval)
        with self._lock:
            if key in self._masks:
                self._masks.move_to_end(key)
                return self._masks[key][1]
        kept = np.ones(len(self.closes), np.bool_) if self.kept is None else self.kept.copy()
        if self.opens is not None:
            kept &= (self.opens <= now) & (now < self.closes)
        items = torch.from_numpy(kept).to(self.catalog.codes.device)
        made = self.catalog.trie.eligible(items if given is None else items & given.items)
        with self._lock:
            self._masks[key] = given, made  # holds the mask that it is keyed by
            while len(self._masks) > MASKS:
                self._masks.popitem(last=False)
        return made

    def order(
        self, items: Sequence[int], scores: Sequence[float], width: int, may_hold: Callable[[int], bool]
    ) -> list[int]:
        """Return a list under the rules, of at most `width` items.

        Args:
            items: best first, with their scores.
            may_hold: whether the query leaves an item, to pin it.
        """
        pins = {rank: item for rank, item in sorted(self.pins.items()) if may_hold(item)}
        value = np.asarray(scores, np.float64)
        if self.boosts is not None and len(items):
            value = value + self.boosts[list(items)] * (value.std() or 1.0)
        by_value = np.argsort(-value, kind="stable")
        items, value, pinned = [items[index] for index in by_value], value[by_value], {*pins.values()}
        share = (value - value.min()) / (np.ptp(value) or 1.0) if items else value
        taken = np.array([item in pinned for item in items], np.bool_)
        alike = np.full(len(items), -1.0)  # to the most similar item above
        vectors = self.vectors[items] if self.diversity else self.vectors
        counts = [Counter[int]() for _ in self.at_most]
        for rule, counted in zip(self.at_most, counts, strict=True):
            counted.update(
                one for rank, item in pins.items() if rank < rule.within for one in rule.values.get(item, ())
            )
        made: list[int] = []
        while len(made) < width and (pins or not taken.all()):
            rank = len(made)
            if rank in pins:
                made.append(pins.pop(rank))
            else:
                order = range(len(items))
                if self.diversity and made:
                    order = np.argsort(self.diversity * alike - (1 - self.diversity) * share, kind="stable").tolist()
                limits = [one for one in zip(self.at_most, counts, strict=True) if rank < one[0].within]
                free = (
                    index
                    for index in order
                    if not taken[index]
                    and all(
                        counted[value] < rule.n
                        for rule, counted in limits
                        for value in rule.values.get(items[index], ())
                    )
                )
                best = next(free, None)
                if best is None:  # pins alone are left
                    return [*made, *pins.values()]
                taken[best] = True
                made.append(items[best])
                for rule, counted in zip(self.at_most, counts, strict=True):
                    counted.update(rule.values.get(made[-1], ()))
            if self.diversity:
                alike = np.maximum(alike, vectors @ self.vectors[made[-1]])
        return made

    def moved(
        self, items: Sequence[int], scores: Sequence[float], width: int, may_hold: Callable[[int], bool]
    ) -> dict[int, list[str]]:
        """Return each item of `order`, and the rules without which its rank would differ."""
        ordered = self.order(items, scores, width, may_hold)
        moved: dict[int, list[str]] = {item: [] for item in ordered}
        off: dict[str, Any] = {"pins": {}, "boosts": None, "at_most": (), "diversity": 0.0}
        for name, value in off.items():
            without = replace(self, **{name: value}).order(items, scores, width, may_hold)
            rank = {item: index for index, item in enumerate(without)}
            for index, item in enumerate(ordered):
                moved[item] += [] if rank.get(item) == index else [name]
        return moved


def resolve_rules(
    options: RulesConfig,
    catalog: Catalog,
    eligibility: Eligibility,
    known: Callable[[Sequence[ItemId]], tuple[list[int], list[ItemId]]],
    *,
    width: int,
    vectors: Callable[[], NDArray[np.float32]],  # (V, D), called with `diversity`
    shown: Callable[[], Mapping[str, tuple[NDArray[np.int64], NDArray[np.float64]]]] = dict,  # see `Rules`
) -> Rules:
    """Resolve the rules of a recipe for a catalogue.

    Args:
        known: see `Recommender.known`.
        width: of the beam, the last rank of a pin.

    Raises:
        UserError: a column, value or range without items, a pin outside catalogue or beam, an invalid date or number.
    """
    groups, count = eligibility.groups, len(catalog.listed)
    narrowing = eligibility.resolve(options.include or None, options.exclude)
    if narrowing.left == 0:
        raise UserError("include, exclude: no item is left; see which values the item table has")
    kept = None
    if options.include or options.exclude:
        kept = np.ones(count, np.bool_) if narrowing.eligible is None else narrowing.eligible.items.cpu().numpy().copy()
        kept[list(narrowing.without)] = False
    dated = options.available
    opens, closes = np.full(count, -np.inf), np.full(count, np.inf)
    for name, column, moments in (("from", dated.from_, opens), ("to", dated.to, closes)):
        if column is None:
            continue
        groups.check(column, f"available.{name}")
        for value in groups.values(column):  # ISO 8601, UTC without an offset
            try:
                moment = datetime.fromisoformat(value.strip())
            except ValueError:
                moment = None
            if moment is None or value.strip().isdecimal():
                problem = f"{column} holds {value[:60]!r}, which is no date such as 2026-01-31"
                raise UserError(f"available.{name}: {problem}") from None
            moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
            if name == "to" and len(value.strip()) == len("2026-01-31"):  # over at midnight
                moment += timedelta(days=1)
            moments[groups.items(column, value)] = moment.timestamp() / DAY
    pins = {}
    for number, pin in enumerate(options.pins):
        found, _ = known([pin.item])
        if not found:
            raise UserError(
                f"pins.{number}.item: {pin.item!r} is not in the catalogue; it takes ids as the logs have them"
            )
        if pin.rank > width:
            raise UserError(f"pins.{number}.rank: {pin.rank} is none of 1 to {width}, the beam (evaluation.beam_width)")
        pins[pin.rank - 1] = found[0]
    boosts = np.zeros(count)
    for number, boost in enumerate(options.boosts):
        matching = eligibility.matching(boost.where, f"boosts.{number}.where")
        for name, limits in boost.range.items():
            matching &= _in_range(groups, name, limits, f"boosts.{number}.range.{name}", count)
        boosts[matching] += boost.by
    caps = []
    for number, rule in enumerate(options.at_most):
        groups.check(rule.column, f"at_most.{number}.column")
        values: dict[int, tuple[int, ...]] = {}
        for index, value in enumerate(groups.values(rule.column)):
            for item in groups.items(rule.column, value).tolist():
                values[item] = (*values.get(item, ()), index)
        caps.append(AtMost(values, rule.n, rule.within))
    units = np.empty((0, 0), np.float32)
    if options.diversity:
        units = vectors()
        units = units / np.maximum(np.linalg.norm(units, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return Rules(
        catalog,
        kept,
        opens if dated.columns else None,
        closes,
        options.had_within_days,
        pins,
        boosts if options.boosts else None,
        caps,
        options.diversity,
        units.astype(np.float32),
        [name for name in options.named if name in FILTERS],
        options.shown_within_days,
        {} if options.shown_within_days is None else shown(),
    )


def _in_range(groups: ItemGroups, column: str, bounds: RangeConfig, field: str, count: int) -> NDArray[np.bool_]:
    """Return (V,) whether an item's number is in a range."""
    groups.check(column, field)
    numbers = np.full(count, np.nan)
    for value in groups.values(column):
        try:
            numbers[groups.items(column, value)] = float(value)
        except ValueError:
            raise UserError(f"{field}: {column} holds {value[:60]!r}, which is no number") from None
    low = -np.inf if bounds.at_least is None else bounds.at_least
    high = np.inf if bounds.below is None else bounds.below
    found = (numbers >= low) & (numbers < high)
    if not found.any():
        raise UserError(
            f"{field}: no item is in the range; they are from {np.nanmin(numbers):g} to {np.nanmax(numbers):g}"
        )
    return np.asarray(found)
