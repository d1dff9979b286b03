"""The order of a list under rules: by hand, and equal to a slow twin for thousands of random lists."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from adagrpo.config.rules import RulesConfig
from adagrpo.data.groups import ItemGroups
from adagrpo.errors import UserError
from adagrpo.lists.eligibility import Eligibility
from adagrpo.lists.query import Query
from adagrpo.lists.rules import Rules, resolve_rules
from adagrpo.semantic_ids.catalog import Catalog

ITEMS = 12
CATALOG = Catalog.from_codes(torch.cartesian_prod(torch.arange(4), torch.arange(3)), (4, 3))
# category a: items 0 to 5, b: 6 to 9; 10 and 11 have none. brands x and y by turns. Item 3 is of a and of b
TABLE = pl.DataFrame(
    {
        "item": pl.Series(range(ITEMS), dtype=pl.Int32),
        "groups": [
            [
                *(["category=a"] if item < 6 else ["category=b"] if item < 10 else []),
                *(["category=b"] if item == 3 else []),
                f"brand={'xy'[item % 2]}",
                *(["from=2026-01-10"] if item == 0 else []),
                *(["to=2026-01-10"] if item == 1 else []),
                *(["when=soon"] if item == 2 else []),
                *([f"price={item}.50"] if item < 8 else []),
            ]
            for item in range(ITEMS)
        ],
    }
)
VECTORS = np.random.default_rng(0).normal(size=(ITEMS, 3)).astype(np.float32)


def known(ids: Sequence[int | str]) -> tuple[list[int], list[int | str]]:
    return [int(one) for one in ids if 0 <= int(one) < ITEMS], [one for one in ids if not 0 <= int(one) < ITEMS]


def rules(**options: Any) -> Rules:
    eligibility = Eligibility(CATALOG, lambda: ItemGroups(TABLE), known)
    made = RulesConfig.model_validate(options)
    return resolve_rules(made, CATALOG, eligibility, known, width=ITEMS, vectors=lambda: VECTORS)


def ordered(scores: dict[int, float], width: int = ITEMS, without: Sequence[int] = (), **options: Any) -> list[int]:
    items = sorted(scores, key=lambda item: -scores[item])
    return rules(**options).order(items, [scores[item] for item in items], width, lambda item: item not in without)


def test_pins_stand_at_their_rank_and_the_rest_keep_their_order() -> None:
    scores = {0: 4.0, 1: 3.0, 2: 2.0, 3: 1.0}
    pins = [{"item": 9, "rank": 2}, {"item": 0, "rank": 4}]
    assert ordered(scores, 4, pins=pins) == [1, 9, 2, 0]
    assert ordered(scores, 6, pins=pins) == [1, 9, 2, 0, 3]
    assert ordered(scores, 4, without=[9], pins=pins) == [1, 2, 3, 0]  # a list that may not hold it goes on without
    assert ordered({}, 4, pins=pins) == [9, 0]  # nothing else was found


def test_at_most_skips_what_is_too_much_and_ends_where_nothing_is_left() -> None:
    scores = {0: 6.0, 1: 5.0, 2: 4.0, 6: 3.0, 10: 2.0, 4: 1.0}
    assert ordered(scores, at_most=[{"column": "category", "n": 2, "within": 4}]) == [0, 1, 6, 10, 2, 4]
    assert ordered(scores, at_most=[{"column": "category", "n": 1}]) == [0, 6, 10]
    # item 3 is of both categories: after it neither is free
    assert ordered({3: 3.0, 0: 2.0, 6: 1.5, 10: 1.0}, at_most=[{"column": "category", "n": 1}]) == [3, 10]
    # a pin at a later rank counts from the start, and is never left out itself
    capped = {"at_most": [{"column": "category", "n": 1}], "pins": [{"item": 5, "rank": 3}, {"item": 4, "rank": 4}]}
    assert ordered(scores, **capped) == [6, 10, 5, 4]


def test_boosts_by_ranges_of_a_number() -> None:
    scores = {0: 3.0, 1: 2.0, 2: 1.0, 9: 0.0}  # deviation 1.118; item 9 has no price
    above = {"price": {"at_least": 1.5}}
    assert ordered(scores, boosts=[{"range": above, "by": 1}]) == [1, 0, 2, 9]  # 3.12, 3, 2.12, 0
    assert ordered(scores, boosts=[{"range": {"price": {"below": 1.5}}, "by": -3}]) == [1, 2, 9, 0]
    both = {"range": {"price": {"at_least": 1, "below": 2.5}}, "where": {"brand": "y"}}  # 1.50 alone
    assert ordered(scores, boosts=[both | {"by": -4}]) == [0, 2, 9, 1]


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ({"price": {"at_least": 7.6}}, "boosts.0.range.price: no item is in the range; they are from 0.5 to 7.5"),
        ({"brand": {"below": 3}}, "boosts.0.range.brand: brand holds 'x', which is no number"),
        ({"cost": {"below": 3}}, "boosts.0.range.cost: the items have no group 'cost'"),
        ({"price": {}}, "a range has at_least, below or both"),
        ({"price": {"at_least": 3, "below": 3}}, "no number is at least 3 and below 3"),
        ({"price": {"under": 3}}, "under"),
        ({}, "a boost has where, range or both"),
    ],
)
def test_a_wrong_range_is_said(numbers: Any, said: str) -> None:
    with pytest.raises((UserError, ValueError)) as error:
        rules(boosts=[{"range": numbers, "by": 1}])
    assert said in str(error.value)


def test_what_was_shown_of_late_is_left_out() -> None:
    logged = {"7": (np.array([1, 2, 3]), np.array([90.0, 97.0, 101.0]))}
    eligibility = Eligibility(CATALOG, lambda: ItemGroups(TABLE), known)
    made = resolve_rules(
        RulesConfig(shown_within_days=3),
        CATALOG,
        eligibility,
        known,
        width=ITEMS,
        vectors=lambda: VECTORS,
        shown=lambda: logged,
    )
    asked = Query([0], without=[5], user=7, now=100.0)
    assert made.reads_time and made.narrow(asked).without == [5, 2]  # 1 is too long ago, 3 was shown later
    assert made.narrow(asked._replace(user="8")).without == [5]
    told = asked._replace(shown=[4, 2, 6], shown_days=[99.0, 99.5, 96.9])
    assert made.narrow(told).without == [5, 2, 4]
    assert made.narrow(told._replace(shown_days=None)).without == [5, 2, 4, 6]


def test_boosts_are_in_deviations_of_the_list() -> None:
    scores = {0: 3.0, 1: 2.0, 2: 1.0}  # deviation .816
    assert ordered(scores, boosts=[{"where": {"brand": "y"}, "by": 1.3}]) == [1, 0, 2]  # 2 + 1.06
    assert ordered(scores, boosts=[{"where": {"brand": "y"}, "by": 1.2}]) == [0, 1, 2]  # 2 + .98
    assert ordered(scores, boosts=[{"where": {"item_id": [0]}, "by": -3}]) == [1, 2, 0]  # 3 - 2.45
    both = [{"where": {"brand": "x", "category": "a"}, "by": -1}, {"where": {"item_id": 2}, "by": 3}]
    assert ordered(scores, boosts=both) == [2, 0, 1]  # 3 - .82, 2, 1 - .82 + 2.45


def test_diversity_is_maximal_marginal_relevance_by_hand() -> None:
    made = rules(diversity=0.5)
    made.vectors = np.zeros((ITEMS, 2), np.float32)
    made.vectors[[0, 1]], made.vectors[2], made.vectors[3] = (1, 0), (0, 1), (-1, 0)
    # shares 1, .9, .4, 0: after 0, item 1 has .45 - .5, item 2 .2 - 0, item 3 0 + .5; then 1 -.05, 2 .2
    assert made.order([0, 1, 2, 3], [10.0, 9.0, 4.0, 0.0], 4, lambda item: True) == [0, 3, 2, 1]


def test_random_lists_equal_a_slow_twin() -> None:
    draw = np.random.default_rng(1)
    brands = [item % 2 for item in range(ITEMS)]
    categories = [
        {"a", "b"} if item == 3 else {"a"} if item < 6 else {"b"} if item < 10 else set() for item in range(ITEMS)
    ]
    unit = VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)
    ended = 0
    for _ in range(400):
        count, width = int(draw.integers(1, ITEMS)), int(draw.integers(1, ITEMS + 1))
        items = draw.permutation(ITEMS)[:count].tolist()
        scores = np.sort(draw.integers(0, 5, count).astype(float))[::-1].tolist()  # with ties
        out = {*draw.integers(0, ITEMS, 3).tolist()} - {*items}
        options: dict[str, Any] = {"diversity": float(draw.choice([0.0, 0.3, 1.0]))}
        pinned = [
            (int(rank), int(item)) for rank, item in zip(draw.permutation(width), draw.permutation(ITEMS), strict=False)
        ][:2]
        options["pins"] = [{"rank": rank + 1, "item": item} for rank, item in pinned]
        n, within = int(draw.integers(1, 4)), int(draw.integers(1, 8))
        options["at_most"] = [{"column": "category", "n": n, "within": within}]
        options["boosts"] = [{"where": {"brand": "y"}, "by": 0.7}]
        found = rules(**options).order(items, scores, width, lambda item, out=out: item not in out)  # type: ignore[misc]
        pins = {rank: item for rank, item in pinned if item not in out}
        value = np.array(scores) + 0.7 * (np.std(scores) or 1.0) * np.array([brands[item] for item in items])
        share = (value - value.min()) / ((value.max() - value.min()) or 1.0)
        made: list[int] = []
        while len(made) < width:
            rank, best = len(made), None
            if rank in pins:
                made.append(pins[rank])
                continue
            coming = {item for place, item in pins.items() if place >= rank}
            for place, item in sorted(enumerate(items), key=lambda one: -value[one[0]]):
                if item in made or item in coming:
                    continue
                above = made[:within] + [i for p, i in pins.items() if rank <= p < within]
                held = [sum(category in categories[other] for other in above) for category in categories[item]]
                if rank < within and any(number >= n for number in held):
                    continue
                alike = max((float(unit[item] @ unit[other]) for other in made), default=0.0)
                worth = (
                    share[place]
                    if not made
                    else (1 - options["diversity"]) * share[place] - options["diversity"] * alike
                )
                if best is None or worth > best[0] + 1e-6:
                    best = worth, item
            if best is None:
                made += [item for place, item in sorted(pins.items()) if place >= rank]
                break
            made.append(best[1])
        assert found == made, (options, items, scores)
        ended += len(found) < min(width, len({*items, *pins.values()}))
    assert ended > 20  # lists that the cap ended


def test_what_no_list_may_hold_depends_on_the_time_of_the_query() -> None:
    made = rules(include={"category": "a"}, exclude={"item_id": [4]}, available={"from": "from", "to": "to"})
    day = 20_463.0  # 2026-01-10

    def kept(now: float, **query: Any) -> list[int]:
        found = made.narrow(Query([0], now=now, **query)).eligible
        assert found is not None
        return found.items.nonzero().flatten().tolist()

    assert kept(day - 0.01) == [1, 2, 3, 5]  # item 0 comes at midnight,
    assert kept(day) == [0, 1, 2, 3, 5] == kept(day + 0.99)
    assert kept(day + 1) == [0, 2, 3, 5]  # and the last day of item 1 is over at the next
    own = CATALOG.trie.eligible(torch.arange(ITEMS) < 3)
    assert kept(day, eligible=own) == [0, 1, 2]  # with the filter of a request
    assert made.narrow(Query([0], now=day)).eligible is made.narrow(Query([5], now=day + 0.5)).eligible


def test_what_was_had_of_late_is_left_out() -> None:
    made = rules(had_within_days=2)
    assert made.narrow(Query([4, 5, 6], without=[1], days=[10.0, 12.0, 13.0], now=14.0)).without == [1, 5, 6]
    assert made.narrow(Query([4, 5], now=14.0)).without == [4, 5]  # at unknown times
    assert made.narrow(Query([4, 5], days=[10.0, 12.0])).without == []  # it is now


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"include": {"market": "de"}}, "include.market: the items have no group 'market'; known: brand, category"),
        ({"exclude": {"brand": "z"}}, "exclude.brand: no item has the value 'z'; known: x, y"),
        (
            {"at_most": [{"column": "brnd", "n": 1}]},
            "at_most.0.column: the items have no group 'brnd'; did you mean 'brand'",
        ),
        ({"boosts": [{"where": {"brand": "v"}, "by": 1}]}, "boosts.0.where.brand: no item has the value 'v'"),
        ({"pins": [{"item": 77, "rank": 1}]}, "pins.0.item: 77 is not in the catalogue"),
        ({"pins": [{"item": 1, "rank": 13}]}, "pins.0.rank: 13 is none of 1 to 12, the beam"),
        ({"available": {"from": "when"}}, "available.from: when holds 'soon', which is no date such as 2026-01-31"),
        ({"include": {"item_id": [99]}}, "include, exclude: no item is left"),
    ],
)
def test_what_does_not_fit_the_catalogue_is_said_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        rules(**options)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)
