from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from adagrpo.errors import UserError
from examples.datasets import Downloads
from examples.datasets.amazon import AttributeRule, Table2014, read_2014, read_2018
from examples.datasets.numbering import interaction_table

COLUMNS = ("item_id", "asin", "short_text", "attributes", "title", "categories", "brand")
TABLE = Table2014(COLUMNS, AttributeRule(least=2, skip=1))
A, B, C, D = (f"B00000000{letter}" for letter in "ABCD")
SEQUENCES = [[B, A, C], [A, C], [D, B]]  # the first user's A is a day after B; C is the same day as A
RECORDS = [
    {"asin": C, "title": "Nail  Polish &amp; <b>Remover</b>", "brand": "OPI", "categories": [["Beauty", "Nails"]]},
    {"asin": "B000000999", "title": "of another shop", "categories": [["Beauty", "Nails"]]},
    {"asin": A, "title": "Comb", "categories": [["Beauty", "Hair", "Combs"], ["Home", "Hair"]]},
    {"asin": B, "brand": "OPI", "categories": [["Beauty", "Nails", "Tips"]]},
]


def made(standins: Any, folder: Path, records: Any = RECORDS, table: Table2014 = TABLE) -> Any:
    return read_2014(Downloads(standins.amazon_2014(folder, "Beauty", SEQUENCES, records), []), "Beauty", table)


def test_users_and_items_are_numbered_as_they_first_occur(standins: Any, tmp_path: Path) -> None:
    """In the order of ASINs the file begins with A: users 0 and 1, then B with users 0 and 2."""
    result = made(standins, tmp_path)
    expected = {"user_id": [0, 0, 0, 1, 1, 2, 2], "item_id": [0, 1, 2, 1, 2, 3, 0], "position": [0, 1, 2, 0, 1, 0, 1]}
    assert result.tables["interactions.parquet"].to_dict(as_series=False) == expected
    assert result.tables["items.parquet"]["asin"].to_list() == [B, A, C, D]
    assert result.counts == {"users": 3, "items": 4, "interactions": 7}


def test_items_have_texts_and_attributes_in_the_order_of_the_metadata(standins: Any, tmp_path: Path) -> None:
    """OPI twice, Nails twice, Hair twice; Combs and Tips once, which is too few, and Beauty is left out."""
    result = made(standins, tmp_path)
    items = result.tables["items.parquet"].sort("asin")
    assert items.columns == list(COLUMNS)
    assert result.tables["attributes.parquet"]["name"].to_list() == ["OPI", "Nails", "Hair"]
    assert items["attributes"].to_list() == [[2, 2], [0, 1], [0, 1], []]
    assert items["title"].to_list() == ["Comb", None, "Nail Polish & Remover", None]
    assert items["short_text"].to_list() == ["comb", "opi tips", "nail polish remover", ""]
    assert items["categories"].to_list()[0] == ["Beauty", "Hair", "Combs", "Home"]
    assert result.notes == ("1 items have no record in meta_Beauty.json.gz",)


@pytest.mark.parametrize(
    "line",
    [
        "{'asin': 'B00000000A', 'title': __import__('os').getcwd()}",
        "{'asin': 'B00000000A', 'title': " + "[" * 5000,
        "{'asin': 'B00000000A', 'title': " + "-" * 100_000 + "1}",
        "{'asin': 'B00000000A', 'title': 'cut o",
        "{'asin': 'B00000000A', 'title': '" + "x" * 2**20 + "'}",
        "['asin']",
    ],
    ids=["call", "brackets", "signs", "cut", "long", "list"],
)
def test_a_line_that_is_no_record_is_refused_and_never_run(line: str, standins: Any, tmp_path: Path) -> None:
    paths = standins.amazon_2014(tmp_path, "Beauty", SEQUENCES, RECORDS[:1])
    standins.write_lines(paths[1], [repr(RECORDS[0]), line])
    with pytest.raises(UserError, match=r"meta_Beauty.json.gz, line 2: is n"):
        read_2014(Downloads([tmp_path], []), "Beauty", TABLE)


def test_a_user_with_more_than_a_position_counts_is_refused() -> None:
    assert interaction_table([[0] * 3, [1]])["position"].to_list() == [0, 1, 2, 0]
    with pytest.raises(UserError, match="a user has 32,768 interactions"):
        interaction_table([[0] * 32_768])


# ---------------------------------------------------------------- 2018


def record_2018(asin: str, **fields: object) -> dict[str, object]:
    return {"category": ["Industrial & Scientific", "Screws "], "title": f"item {asin}", "asin": asin} | fields


Reading = Callable[..., Any]


@pytest.fixture
def read(standins: Any, tmp_path: Path) -> Reading:
    def reading(reviews: list[tuple[str, str, int]], records: list[dict[str, object]]) -> Any:
        paths = standins.amazon_2018(tmp_path, "Industrial_and_Scientific", reviews, records)
        return read_2018(Downloads(paths, []), "Industrial_and_Scientific")

    return reading


def core(items: str = "abcde", users: str = "uvwxy") -> list[tuple[str, str, int]]:
    """Every user has every item: at the same time, in falling order of items."""
    return [(user, item, 9) for user in users for item in reversed(items)]


def test_of_2018_the_core_is_taken_anew_without_repeats_and_unknown_items(read: Reading) -> None:
    """User z has five reviews, of which one is a repeat; item f is unknown; g has four users."""
    reviews = [("z", "a", 1), ("z", "a", 2), ("z", "b", 1), ("z", "c", 1), ("z", "d", 1)]
    reviews += [(user, "f", 1) for user in "uvwxy"] + [(user, "g", 1) for user in "uvwx"] + core()
    result = read(reviews, [record_2018(asin) for asin in "abcdeg"])
    assert result.counts == {"users": 5, "items": 5, "interactions": 25}
    # equal times are in the order of ASINs
    assert result.tables["items.parquet"]["asin"].to_list() == list("abcde")
    assert result.tables["interactions.parquet"]["item_id"].to_list() == [0, 1, 2, 3, 4] * 5


def test_of_2018_the_earliest_review_of_an_item_stays_and_orders_the_users(read: Reading) -> None:
    """User y's first kept row is before all others; v's e is moved to the front by a later, earlier review."""
    reviews = [("y", "a", 9), *core(), ("v", "e", 2), ("u", "e", 9)]
    table = read(reviews, [record_2018(asin) for asin in "abcde"]).tables["interactions.parquet"]
    sequences = table.group_by("user_id", maintain_order=True).agg("item_id")["item_id"].to_list()
    assert sequences == [[0, 1, 2, 3, 4]] * 2 + [[4, 0, 1, 2, 3]] + [[0, 1, 2, 3, 4]] * 2


def test_texts_of_2018(read: Reading) -> None:
    records = [record_2018(asin) for asin in "bcde"]
    records.append(
        record_2018("a", title="A &quot;3/8&quot; <b>bolt</b>...", brand="by\n Ace ", description=["one", "x" * 9])
    )
    records[0]["description"] = ["y" * 2000]
    records[1]["category"] = ["Screws", "<span>x</span>", "never"]
    del records[2]["title"]
    items = read(core(), records).tables["items.parquet"]
    assert items.row(0, named=True) | {"asin": "a"} == {
        "item_id": 0,
        "title": "A 3/8 bolt.",
        "brand": "Ace",
        "categories": "Industrial & Scientific,Screws",
        "description": f"one {'x' * 9}.",
        "asin": "a",
    }
    assert items["description"].to_list()[1:3] == ["", "."]
    assert items["categories"][2] == "Screws" and items["title"][3] == "."
    assert items.schema["item_id"] == pl.Int32
