"""Tables beside the logs: no row is lost in silence, and what cannot be read is named by file, row and column."""

from __future__ import annotations

from pathlib import Path

import pytest

from adagrpo.data import ColumnMapping, read_items, read_logs
from adagrpo.data.logs.tables import read_table
from adagrpo.errors import UserError


def write(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "rows",
    [
        '1,Lamp\n2,"Monitor 24" black"\n3,Chair\n4,"Monitor 27" white"\n',
        '1,Lamp\n2,"open\n3,Chair\n4,"closed"\n',
        "1,Lamp\n2,Monitor,24\n",
    ],
)
def test_a_malformed_record_of_a_csv_table_is_named(tmp_path: Path, rows: str) -> None:
    path = write(tmp_path / "items.csv", f"item_id,title\n{rows}")
    with pytest.raises(UserError, match=r"items\.csv, row 1: has (a quote that is not closed or|3 fields)"):
        read_items(path, text_columns=["title"])


def test_a_quote_within_a_field_is_a_character(tmp_path: Path) -> None:
    path = write(tmp_path / "items.csv", 'item_id,title\n1,24" tv\n2,"a ""b"", c"\n3,""\n')
    assert read_table(path, ["title", "item_id"]).rows() == [('24" tv', "1"), ('a "b", c', "2"), (None, "3")]


@pytest.mark.parametrize("ids", [["5.0", "7"], ['"5.0"', '"7"'], ["12345678901234567890123", "7"]])
def test_an_id_of_json_is_what_it_is_in_a_log(tmp_path: Path, ids: list[str]) -> None:
    lines = [f'{{"item_id": {item}, "user_id": 1, "timestamp": 1, "title": "a"}}' for item in ids]
    path = write(tmp_path / "both.jsonl", "\n\n".join(lines))
    logs = read_logs([write(tmp_path / "log.jsonl", "\n".join(lines))], ColumnMapping())
    assert read_items(path)["item_id"].to_list() == logs.interactions["item_id"].to_list()
    broken = write(tmp_path / "broken.jsonl", f'{lines[0]}\n\n{{"item_id": 1.5, "title": "a"}}\n')
    with pytest.raises(UserError, match=r"broken\.jsonl, row 1: item_id is 1\.5, expected a whole number or text"):
        read_items(broken)


def test_a_name_with_brackets_is_no_pattern(tmp_path: Path) -> None:
    write(tmp_path / "items1.jsonl", '{"item_id": "other"}\n')
    path = write(tmp_path / "items[1].jsonl", '{"item_id": "own"}\n')
    assert read_items(path)["item_id"].to_list() == ["own"]
