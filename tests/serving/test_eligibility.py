"""Filters of requests to masks: what they mean, what is kept of them, and what is refused."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import polars as pl
import pytest
import torch

from adagrpo.data.groups import ItemGroups
from adagrpo.errors import UserError
from adagrpo.lists.eligibility import OVERHEAD, Eligibility, Narrowing, parse_filter, why_short
from adagrpo.semantic_ids.catalog import Catalog
from adagrpo.semantic_ids.trie import Eligible

CATEGORIES = ("toys", "games", "books")
ITEMS = 600


def item_groups() -> ItemGroups:
    """Item `i` is of category `i % 3` and brand `i % 7`, and in stock where it is even."""
    stock = ("true", "false")
    listed = [[f"category={CATEGORIES[i % 3]}", f"brand={i % 7}", f"in_stock={stock[i % 2]}"] for i in range(ITEMS)]
    return ItemGroups(pl.DataFrame({"item": range(ITEMS), "groups": listed}))


def eligibility(listed: torch.Tensor | None = None, **options: object) -> Eligibility:
    space = torch.cartesian_prod(torch.arange(10), torch.arange(10), torch.arange(10))
    codes = space[torch.randperm(1000, generator=torch.Generator().manual_seed(0))[:ITEMS]]
    catalog = Catalog.from_codes(codes, (10, 10, 10), listed)

    def known(ids):  # type: ignore[no-untyped-def]
        return [int(name) for name in ids if str(name).isdigit() and int(name) < ITEMS], []

    return Eligibility(catalog, item_groups, known, **options)  # type: ignore[arg-type]


def eligibility_of(brands: Iterable[int], **options: object) -> Eligibility:
    """One that was asked for each of some brands."""
    made = eligibility(**options)  # type: ignore[arg-type]
    for brand in brands:
        made.resolve({"brand": brand})
    return made


def left(narrowing: Narrowing) -> set[int]:
    assert narrowing.eligible is None or not narrowing.without
    kept = range(ITEMS) if narrowing.eligible is None else narrowing.eligible.items.nonzero().squeeze(1).tolist()
    result = set(kept) - set(narrowing.without)
    assert narrowing.left == len(result)
    return result


def test_include_needs_every_column_and_exclude_any() -> None:
    resolve, every = eligibility().resolve, set(range(ITEMS))
    assert left(resolve()) == every and resolve().eligible is None
    assert left(resolve({"category": "toys"})) == {i for i in every if i % 3 == 0}
    stocked = {i for i in every if i % 3 != 1 and i % 2 == 0}
    assert left(resolve({"category": ["toys", "books"], "in_stock": True})) == stocked
    assert left(resolve(None, {"category": "toys", "brand": [3, "5"]})) == {
        i for i in every if i % 3 != 0 and i % 7 not in (3, 5)
    }
    assert left(resolve({"brand": 1}, {"item_id": [8, "1", 2]})) == {i for i in every if i % 7 == 1} - {1, 8}
    assert left(resolve([5, "7", "gone"])) == {5, 7} and left(resolve([5, 7], {"brand": 5})) == {7}
    assert left(resolve({"category": []})) == left(resolve([])) == left(resolve({"item_id": ["gone"]})) == set()
    assert left(resolve({"category": list(CATEGORIES)})) == every


def test_a_few_single_items_need_no_mask_and_many_share_one() -> None:
    made = eligibility()
    few = made.resolve(None, ["9", 4, 4, "gone"])
    assert few == Narrowing((4, 9), None, ITEMS - 2) and made.kept == 0
    many = made.resolve(None, list(range(400)))
    assert many.without == () and left(many) == set(range(400, ITEMS)) and made.kept == 1


def test_a_mask_is_made_once_for_a_filter_however_it_is_written() -> None:
    made = eligibility()
    first = made.resolve({"category": ["toys", "games"], "in_stock": True}, {"brand": 3})
    again = made.resolve({"in_stock": [True], "category": ["games", "toys", "toys"]}, {"brand": ["3"]})
    assert again.eligible is first.eligible and made.kept == 1
    assert made.resolve({"brand": "1"}).eligible is made.resolve({"brand": 1}).eligible
    table = ItemGroups(pl.DataFrame({"item": [0, 1, 2], "groups": [["b=1"], ["b=true"], ["b=0"]]}))
    three = Eligibility(Catalog.from_codes(torch.tensor([[0], [1], [2]]), (3,)), lambda: table, lambda ids: ([], []))
    found = [three.resolve({"b": value}).eligible.items.tolist() for value in (1, True)]
    assert found == [[True, False, False], [True, True, False]]  # a number is not what is true


def test_the_masks_that_were_used_last_are_kept_within_the_room() -> None:
    size = eligibility().resolve({"brand": 1}).eligible.memory
    made = eligibility(memory=3 * (size + OVERHEAD))
    masks = [made.resolve({"brand": brand}).eligible for brand in range(3)]
    assert made.kept == 3 and made.resolve({"brand": 0}).eligible is masks[0]
    made.resolve({"brand": 4})  # in the place of 1, which was not used since
    assert made.kept == 3 and made.resolve({"brand": 0}).eligible is masks[0]
    assert made.resolve({"brand": 1}).eligible is not masks[1]
    narrow = eligibility(memory=0)
    assert narrow.resolve({"brand": 1}).left == 86 and narrow.kept == 1
    assert eligibility_of(range(3), memory=3 * size + 2 * OVERHEAD).kept == 2  # what is beside the tensors counts


def test_there_is_a_bound_on_how_many_masks_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adagrpo.lists.eligibility.MOST", 4)
    assert eligibility_of(range(7)).kept == 4


def test_a_new_mask_costs_the_same_however_many_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    memory = Eligible.memory.fget
    assert memory is not None
    monkeypatch.setattr(Eligible, "memory", property(lambda mask: asked.append(1) or memory(mask)))
    made = eligibility()
    for first in range(50):
        made.resolve([first, first + 1])
    assert made.kept == len(asked) == 50
    assert {len(key) for key in made._masks} == {32}  # a filter of thousands of ids is not kept with its mask


def test_what_was_delisted_is_never_eligible() -> None:
    made = eligibility(torch.arange(ITEMS) % 2 == 0)
    assert made.resolve() == Narrowing((), None, 300) and made.resolve(None, [3, 4]).left == 299
    toys = made.resolve({"category": "toys"})
    assert toys.left == 100 and toys.eligible is not None and toys.eligible.count == 100
    assert made.resolve({"in_stock": True}).eligible is None  # all that is listed
    assert made.resolve({"in_stock": False}).left == 0


@pytest.mark.parametrize(
    ("include", "exclude", "said"),
    [
        ({"categry": "toys"}, None, r"^include.categry: the items have no group 'categry'; did you mean 'category'\?$"),
        ({"category": "toyz"}, None, r"^include.category: no item has the value 'toyz'; did you mean 'toys'\?$"),
        (None, {"brand": [1, 99]}, r"^exclude.brand: no item has the value '99'; known: 0, 1, 2, 3, 4, 5, 6$"),
        (None, {"nothing": []}, r"^exclude.nothing: the items have no group"),
        ("toys", None, r"^include: is 'toys'; give item ids, or columns such as"),
        ({"category": [1.5]}, None, r"^include.category: 1.5 is no text, whole number, true or false$"),
        (None, [None], r"^exclude: None is no text"),
    ],
)
def test_what_the_items_do_not_have_is_refused_by_name(include: object, exclude: object, said: str) -> None:
    with pytest.raises(UserError, match=said):
        eligibility().resolve(include, exclude)  # type: ignore[arg-type]


def test_why_a_list_is_short() -> None:
    assert why_short(Narrowing((), None, 7), 5, 5) is None
    assert why_short(Narrowing((), None, 0), 5, 0) == "no item is eligible"
    assert why_short(Narrowing((), None, 9), 5, 4) == "only 4 eligible items are left"
    assert why_short(Narrowing((), None, 9), 5, 4, True) == "rules and the history leave 4 of the 9 eligible items"
    assert why_short(None, 5, 4, True) == "rules and the history leave 4 items" and why_short(None, 5, 4) is None
    assert why_short(Narrowing((), None, 4), 5, 4, True) == "only 4 eligible items are left"
    assert why_short(Narrowing((), None, 1), 5, 0) == "no eligible item is left"  # the history held it


def test_filters_of_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("17\n\n a1 \n")
    (tmp_path / "filter.json").write_text('{"in_stock": true, "category": ["toys"]}')
    words = ["category=books", str(tmp_path / "filter.json"), str(tmp_path / "ids.txt")]
    expected = {"category": ["books", "toys"], "in_stock": [True], "item_id": ["17", "a1"]}
    assert parse_filter(words, "--include") == expected and parse_filter([], "--include") is None
    with pytest.raises(UserError, match=r"^--include gone.txt: is no column=value and no readable file"):
        parse_filter(["gone.txt"], "--include")
    long = "x" * 5000  # no file has so long a name
    assert parse_filter([f"brand={long}"], "--include") == {"brand": [long]}
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(UserError, match=r"^--exclude .*bad.json: is no JSON"):
        parse_filter([str(tmp_path / "bad.json")], "--exclude")
