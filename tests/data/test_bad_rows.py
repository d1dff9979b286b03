"""Bad rows of twelve kinds and more, in three formats: each is rejected, and read = accepted + rejected."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adagrpo import cli
from adagrpo.data.logs.interactions import Columns, Refusals, read_logs
from adagrpo.errors import UserError
from adagrpo.readers import chunks
from adagrpo.readers.chunks import read_chunks

sys.path.insert(0, str(Path(__file__).parent.parent.parent))
from benchmarks.reliability.bad_rows import AFTER, ITEMS, KINDS, write_log

FORMATS = ["csv", "jsonl", "parquet"]
REFUSE = Refusals(pl.Series([f"i{n}" for n in range(ITEMS)]), AFTER, repeats=True)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("seed", [0, 1])
def test_every_bad_row_is_rejected_and_nothing_else(tmp_path: Path, suffix: str, seed: int) -> None:
    path = tmp_path / f"log.{suffix}"
    written = write_log(path, 1500, 130, seed)
    assert set(written.bad.values()) == set(KINDS)
    logs = read_logs([path], Columns(), max_bad_rows=130, refuse=REFUSE)
    rejects = {row - 1: reason for file, row, reason in logs.rejects.rows() if file == str(path)}
    assert list(rejects) == sorted(written.bad)
    for row, kind in written.bad.items():
        assert KINDS[kind][1] in rejects[row], kind
        assert len(rejects[row]) < 200 and "\n" not in rejects[row] and "\x00" not in rejects[row]
    assert logs.interactions.rows() == written.good
    assert logs.rows_read == 1500 == len(logs.interactions) + len(logs.rejects)
    with pytest.raises(
        UserError, match=r"the first of 130 bad rows; data\.max_bad_rows is 129; prepare, .* --max-bad-rows 130\)$"
    ):
        read_logs([path], Columns(), max_bad_rows=129, refuse=REFUSE)


@pytest.mark.parametrize("suffix", FORMATS)
def test_the_command_keeps_rejects_with_file_row_and_reason(tmp_path: Path, suffix: str, monkeypatch: Any) -> None:
    log, items = tmp_path / f"log.{suffix}", tmp_path / "items.csv"
    written = write_log(log, 1500, 130)
    items.write_text("item_id\n" + "".join(f"i{n}\n" for n in range(ITEMS)))
    refuse = f"data.refuse={{unknown_items: true, repeats: true, after: {AFTER}}}"

    def prepare(out: str, limit: int) -> int:
        rules = ["--set", refuse, "--set", f"data.items={{path: {items}}}", "--max-bad-rows", str(limit)]
        monkeypatch.setattr(
            sys, "argv", ["adagrpo", "prepare", str(log), "--out", str(tmp_path / out), "--quiet", *rules]
        )
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0)

    assert prepare("enough", 130) == 0
    rejects = pl.read_parquet(tmp_path / "enough" / "prepare" / "rejects.parquet")
    assert rejects.columns == ["file", "row", "reason"]
    assert rejects["row"].to_list() == [row + 1 for row in sorted(written.bad)]
    assert set(rejects["file"]) == {str(log.resolve())} and rejects["reason"].null_count() == 0
    assert prepare("too-few", 129) == 2
    assert not (tmp_path / "too-few" / "prepare").exists()


def test_without_rules_such_rows_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("user_id,item_id,timestamp\na,x,1\na,x,1\nb,unknown,4000000000\n")
    logs = read_logs([path], Columns())
    assert len(logs.interactions) == 3 and not len(logs.rejects)


def test_repeats_are_found_over_files_and_in_the_fields_that_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("user_id,item_id,timestamp,r,n\n1,1,1,5,a\n1,1,1,4,b\n")
    (tmp_path / "b.csv").write_text("user_id,item_id,timestamp,r,n\n2,1,1,5,a\n1,1,1,5,c\n")
    paths = [tmp_path / "a.csv", tmp_path / "b.csv"]
    rated = read_logs(paths, Columns(rating="r"), max_bad_rows=9, refuse=Refusals(repeats=True))
    assert rated.rejects.rows() == [(str(paths[1]), 2, "repeats an earlier row")]
    plain = read_logs(paths, Columns(), max_bad_rows=9, refuse=Refusals(repeats=True))
    assert [row[:2] for row in plain.rejects.rows()] == [(str(paths[0]), 2), (str(paths[1]), 2)]


def test_the_number_of_bad_rows_that_would_pass_is_named_or_said_to_be_more(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("user_id,item_id,timestamp\n1,1,1\n1,1,1\n1,,1\n1,2,never\n1,2,1\n")
    for limit, repeats, said in ((0, False, "2"), (1, False, "2"), (0, True, "2 or more"), (2, True, "3")):
        with pytest.raises(UserError, match=rf"--max-bad-rows {said}\)$"):
            read_logs([tmp_path / "a.csv"], Columns(), max_bad_rows=limit, refuse=Refusals(repeats=repeats))
    assert len(read_logs([tmp_path / "a.csv"], Columns(), max_bad_rows=3, refuse=Refusals(repeats=True)).rejects) == 3


def test_the_latest_time_needs_times(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("user_id,item_id,position\n1,1,1\n")
    with pytest.raises(UserError, match=r"data\.refuse\.after: needs data\.columns\.timestamp"):
        read_logs([tmp_path / "a.csv"], Columns(), refuse=Refusals(after=3.0))


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("user_id", "[1]", "user_id is of type list"),
        ("item_id", '{"a": 1}', "item_id is of type dict"),
        ("user_id", "true", "user_id is of type bool"),
        ("user_id", "1.5", "user_id is 1.5, expected a whole number or text"),
        ("item_id", "1e300", "item_id is 1e+300, expected a whole number or text"),
        ("timestamp", "[5]", "timestamp is of type list"),
        ("timestamp", "true", "timestamp is 'true', expected a number"),
        ("user_id", r'"a\u0000"', "user_id holds a control character (U+0000), expected an id"),
        ("item_id", "null", "item_id is empty"),
        ("item_id", r'"\ud83d"', "not a JSON object"),  # half of a surrogate pair
        ("timestamp", "NaN", "not a JSON object"),
        ("item_id", "1e400", "item_id is inf, expected a whole number or text"),
    ],
)
def test_a_value_of_another_type_in_json_never_passes_for_its_text(
    tmp_path: Path, field: str, value: str, reason: str
) -> None:
    good = {"user_id": '"u"', "item_id": '"[1]"', "timestamp": "1"}  # text that looks like a list is text
    lines = [
        "{" + ", ".join(f'"{name}": {text}' for name, text in row.items()) + "}"
        for row in (good, good | {field: value})
    ]
    path = tmp_path / "log.jsonl"
    path.write_text("\n".join(lines))
    logs = read_logs([path], Columns(), max_bad_rows=1)
    assert logs.interactions.rows() == [("u", "[1]", 1)]
    assert logs.rejects["row"].to_list() == [2] and reason in logs.rejects["reason"][0]


@pytest.mark.parametrize("suffix", FORMATS)
def test_no_more_is_held_of_bad_rows_than_may_be(tmp_path: Path, suffix: str, monkeypatch: Any) -> None:
    """Of a file of nothing but bad rows, the first is kept and the others are counted."""
    path = tmp_path / f"log.{suffix}"
    table = pl.DataFrame({"user_id": ["u"] * 5000, "item_id": ["i"] * 5000, "timestamp": ["never"] * 5000})
    {"csv": table.write_csv, "jsonl": table.write_ndjson, "parquet": table.write_parquet}[suffix](path)
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 2000)
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 100)
    concat, most = pl.concat, [0]

    def watched(parts: Any, **options: Any) -> Any:
        most[0] = max(most[0], sum(map(len, parts)))
        return concat(parts, **options)

    monkeypatch.setattr(pl, "concat", watched)
    with pytest.raises(UserError, match=r"row 1: .* \(the first of 5000 bad rows"):
        read_logs([path], Columns(), max_bad_rows=3)
    assert most[0] <= 10


CELLS = st.sampled_from(["a", "b1", "", '"q"', '"x,y"', '"two\nlines"', '"un', 'mid"dle', '""', "\u00fc", '"a""b"'])


@settings(max_examples=150)
@given(rows=st.lists(st.lists(CELLS, min_size=1, max_size=4), max_size=25), size=st.integers(1, 60), end=st.booleans())
def test_where_chunks_end_does_not_change_what_is_read(tmp_path_factory: Any, rows: Any, size: int, end: bool) -> None:
    path = tmp_path_factory.mktemp("pieces") / "log.csv"
    path.write_text("x,y,z\n" + "\n".join(",".join(row) for row in rows) + ("\n" if end else ""), encoding="utf-8")

    def read(piece_bytes: int, record_lines: int) -> tuple[list[Any], list[Any]]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(chunks, "CHUNK_BYTES", piece_bytes)
            patch.setattr(chunks, "RECORD_LINES", record_lines)
            patch.setattr(chunks, "_fast", lambda *_: None)  # where it is sure, it reads what the slow one reads
            actual = [*read_chunks(path, ["x", "z"])]
        table, problems = [], []
        for chunk in actual:
            assert chunk.first == len(table)
            table += chunk.table.rows()
            problems += chunk.problem.to_list() if chunk.problem is not None else [None] * len(chunk.table)
        return table, problems

    assert read(size, 5) == read(10**6, 5)


@settings(max_examples=150)
@given(rows=st.lists(st.lists(CELLS, min_size=1, max_size=4), min_size=1, max_size=8))
def test_where_the_fast_reader_is_sure_it_reads_what_the_slow_one_reads(rows: Any) -> None:
    block = "".join(",".join(row) + "\n" for row in rows).encode()
    fast = chunks._fast(b"x,y,z\n", block, ["x", "z"])
    if fast is not None:
        lines = chunks.lines_of(block)
        table, problem, read = chunks._one_by_one(lines, len(lines), ["x", "y", "z"], ["x", "z"])
        blank = [tuple(cell or None for cell in row) for row in fast.rows()]
        assert blank == [tuple(cell or None for cell in row) for row in table.rows()]
        assert problem.null_count() == len(rows) and read == len(lines)


@pytest.mark.parametrize("end", ["", "\n", "\r\n\r\n"])
def test_empty_lines_around_the_rows_are_none(tmp_path: Path, end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [(f"u{n}", f"i{n}", str(n)) for n in range(40)]
    names = ["user_id", "item_id", "timestamp"]
    text = "".join(",".join(row) + "\n" for row in [names, *rows])
    (tmp_path / "log.csv").write_text("\n" + text + end)
    (tmp_path / "quoted.csv").write_text(text + '"u\n40",i,1\n' + end)
    lines = [json.dumps(dict(zip(names, row, strict=True))) for row in rows]
    (tmp_path / "log.jsonl").write_text("\n".join([*lines[:3], "", *lines[3:]]) + "\n" + end)
    for size in (2**20, 7):  # also where the empty lines are a block of their own
        monkeypatch.setattr(chunks, "CHUNK_BYTES", size)
        for file, count in (("log.csv", 40), ("quoted.csv", 41), ("log.jsonl", 40)):
            found = list(chunks.read_chunks(tmp_path / file, names))
            assert sum(len(chunk.table) for chunk in found) == count, file
            assert all(chunk.problem is None or chunk.problem.is_null().all() for chunk in found), file
