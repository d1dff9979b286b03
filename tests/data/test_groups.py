"""Named groups of items, from the item table to the prepared items."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from adagrpo.data.dataset import build_dataset
from adagrpo.data.groups import ItemGroups, UnknownGroup
from adagrpo.data.logs.interactions import Columns, read_logs
from adagrpo.data.logs.items import read_items
from adagrpo.data.prepared import load_items, write_prepared
from adagrpo.data.splits import leave_one_out
from adagrpo.errors import UserError

TABLE = {
    "item_id": [3, 1, 2],
    "category": ["toys", "games", None],
    "in_stock": [True, False, True],
    "age": [3, 12, 3],
    "markets": [["de", "fr"], ["de"], []],
    "price": [1.5, 2.5, 3.5],
}


def items(path: Path, *groups: str) -> pl.DataFrame:
    pl.DataFrame(TABLE).write_parquet(path / "items.parquet")
    return read_items(path / "items.parquet", attribute_columns=["category"], group_columns=groups)


def test_columns_of_all_kinds_become_groups_of_the_prepared_items(tmp_path: Path) -> None:
    """Item 2 is in no log, so that the table's rows and the numbers of items differ."""
    logs = tmp_path / "logs.csv"
    logs.write_text("user_id,item_id,timestamp\n" + "".join(f"{u},{i},{i}\n" for u in "ab" for i in (1, 3)))
    table = items(tmp_path, "in_stock", "age", "markets")
    assert table["groups"].to_list()[0] == ["in_stock=true", "age=3", "markets=de", "markets=fr"]
    dataset = build_dataset(read_logs([logs], Columns(timestamp="timestamp")), table)
    write_prepared(dataset, leave_one_out(pl.Series([2, 2]).to_numpy()), tmp_path / "prepare")
    groups = ItemGroups(load_items(tmp_path / "prepare"))  # item 1 is number 0, item 3 number 1
    assert groups.names == ["age", "category", "in_stock", "markets"]
    assert groups.items("in_stock", True).tolist() == [1] and groups.items("in_stock", False).tolist() == [0]
    assert groups.items("age", 3).tolist() == groups.items("age", "3").tolist() == [1]
    assert groups.items("markets", "de").tolist() == [0, 1] and groups.items("markets", "fr").tolist() == [1]
    assert groups.items("category", "games").tolist() == [0]  # an attribute of single values


def test_without_groups_the_prepared_items_are_as_before(tmp_path: Path) -> None:
    assert items(tmp_path).columns == ["item_id", "text", "attributes"]


def test_what_is_no_group_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"items.parquet: column 'price' holds Float64; a group .* whole numbers"):
        items(tmp_path, "price")
    table = pl.DataFrame({"item": [0, 1], "attributes": [["category=toys", "plain"], ["category=games=x"]]})
    groups = ItemGroups(table)
    assert groups.names == ["category"] and groups.values("category") == ["games=x", "toys"]
    with pytest.raises(UserError, match=r"^include.category: no item has the value 'toyz'; did you mean 'toys'\?$"):
        groups.items("category", "toyz", "include.category")
    with pytest.raises(UnknownGroup) as found:
        groups.items("category", "toyz", "include.category")
    assert found.value.public_message == "include.category: no item has one of the values"
    with pytest.raises(UnknownGroup) as found:
        groups.check("brnd", "include.brnd")
    assert found.value.public_message == "include: names a group that the items do not have; known: category"
    with pytest.raises(UnknownGroup, match=r"'x{60}[.]{3}'; known"):
        groups.items("category", "x" * 100_000)
    with pytest.raises(UserError, match=r"^brand: the items have no group 'brand'; known: category$"):
        groups.items("brand", "acme")
    with pytest.raises(UserError, match=r"^brand: .*data.items.groups names columns of the item table$"):
        ItemGroups(table.drop("attributes")).values("brand")


@pytest.mark.parametrize("spelling", ["true", "True", "TRUE", "1"])
def test_true_is_found_as_other_programs_spell_it(spelling: str) -> None:
    table = pl.DataFrame({"item": [0, 1], "groups": [[f"in_stock={spelling}"], ["in_stock=no"]]})
    assert ItemGroups(table).items("in_stock", True).tolist() == [0]


def test_all_spellings_of_true_are_found_where_a_table_came_in_parts() -> None:
    listed = [["in_stock=1"], ["in_stock=false"], ["in_stock=True"], ["in_stock=true"], ["in_stock=0"]]
    groups = ItemGroups(pl.DataFrame({"item": [*range(5)], "groups": listed}))
    assert (groups.items("in_stock", True).tolist(), groups.items("in_stock", False).tolist()) == ([0, 2, 3], [1, 4])
    assert groups.items("in_stock", "true").tolist() == [3]
