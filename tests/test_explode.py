"""Inputs that explode: refused in one line that names file and reason, in a process that lives, in bounded memory."""

from __future__ import annotations

import gzip
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

from adagrpo.config.recipe import load_config
from adagrpo.config.section import SHOWN
from adagrpo.config.yaml_text import parse_yaml
from adagrpo.data.logs.interactions import Columns, read_logs
from adagrpo.data.logs.items import read_items
from adagrpo.errors import UserError
from adagrpo.readers import formats
from adagrpo.readers.chunks import read_table
from adagrpo.readers.formats import LONGEST_LINE, read_blocks
from adagrpo.semantic_ids.published import import_semantic_ids

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.reliability.explode import BOMBS, prepared, refusal, write_bomb

SLOW = (
    "13 GB after a million rows",
    "items in a csv.gz",
    "equal ids in Parquet",
)  # seconds to make; the benchmark has them
TIMES = Columns(timestamp="timestamp")


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What one child process said of all bombs; lines are of 64 MB in place of 1 GB, which is only longer to hash."""
    work = tmp_path_factory.mktemp("bombs")
    names = [name for name in BOMBS if name not in SLOW]
    for place, name in enumerate(names):
        write_bomb(work / str(place), name)
        if "1 GB" in name:
            os.truncate(work / str(place) / BOMBS[name].file, 2**26)
    return dict(zip(names, prepared([work / str(place) for place in range(len(names))], timeout=120), strict=False))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in BOMBS if name not in SLOW])
def test_a_bomb_is_refused_and_the_process_lives(refusals: dict[str, dict[str, Any]], name: str) -> None:
    assert name in refusals, "the process has ended"
    assert refusal(name, refusals[name]), refusals[name]


# ---------------------------------------------------------------- what may unpack


def test_a_gzip_file_of_usual_rows_reads_as_its_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "ALWAYS", 2**12)  # judged over and over
    rows = "".join(f"u{n % 97},i{n * 7919 % 1009},{10 * n}\n" for n in range(20_000))
    (tmp_path / "log.csv").write_text(f"user_id,item_id,timestamp\n{rows}")
    (tmp_path / "log.csv.gz").write_bytes(gzip.compress((tmp_path / "log.csv").read_bytes()))
    plain, packed = (read_logs([tmp_path / name], TIMES).interactions for name in ("log.csv", "log.csv.gz"))
    assert packed.equals(plain) and len(plain) == 20_000


def test_the_bound_can_be_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A megabyte of equal rows is about 500 times what it packs to; as a log and as an item table."""
    monkeypatch.setattr(formats, "ALWAYS", 2**12)
    log, items = tmp_path / "log.csv.gz", tmp_path / "items.csv.gz"
    log.write_bytes(gzip.compress(b"user_id,item_id,timestamp\n" + b"u1,i1,1\n" * 2**17))
    items.write_bytes(gzip.compress(b"item_id,title\n" + b"".join(b"%d,%s\n" % (n, b"x" * 5000) for n in range(200))))
    with pytest.raises(UserError, match=r"log\.csv\.gz: unpacks to more than 100 times .* raise data\.max_expansion"):
        read_logs([log], TIMES)
    assert len(read_logs([log], TIMES, max_expansion=5000).interactions) == 2**17
    with pytest.raises(UserError, match=r"items\.csv\.gz: unpacks to more than 100 times"):
        read_items(items, text_columns=["title"])
    assert len(read_items(items, text_columns=["title"], max_expansion=5000)) == 200


def test_a_bomb_behind_a_large_part_of_usual_rows_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the whole it is not 100 times as large: what counts is each stretch."""
    monkeypatch.setattr(formats, "ALWAYS", 2**18)
    path = tmp_path / "log.csv.gz"
    noise = np.random.default_rng(0).bytes(2**18).hex()
    usual = "\n".join(noise[at : at + 99] for at in range(0, len(noise), 99)) + "\n"
    path.write_bytes(gzip.compress(usual.encode()) + gzip.compress(b"u1,i1,1\n" * 2**18))
    assert path.stat().st_size * 100 > len(usual) + 2**21
    with pytest.raises(UserError, match="unpacks to more than 100 times"):
        for _ in read_blocks(path, 2**16):
            pass


def test_a_line_that_does_not_end_is_named(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes(b"a\n" + b"x" * LONGEST_LINE + b"\nb")
    assert [*read_blocks(path, 3)] == [(path.read_bytes()[:-1], False), (b"b", True)]
    path.write_bytes(b"a\n" + b"x" * (LONGEST_LINE + 4) + b"\nb")
    with pytest.raises(UserError, match=r"log\.csv, line 2: is longer than 2 MB"):
        [*read_blocks(path, 3)]


def test_parquet_is_bounded_by_its_rows_and_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "ALWAYS", 2**12)
    path = tmp_path / "log.parquet"
    draw = np.random.default_rng(0).integers(0, 2**62, 10_000)
    # 80 kB of random numbers; ones and equal texts take next to nothing, but count for 80 kB each and 7 MB
    pl.DataFrame({"one": 1, "text": "x" * 700, "other": draw}).write_parquet(path)
    assert len(read_table(path, ["one", "text", "other"])) == 10_000
    assert len(read_table(path, ["one"], 1)) == 10_000
    for columns, limit in ((["one", "other"], 1), (["text"], 80)):
        with pytest.raises(UserError, match=rf"log\.parquet: unpacks to more than {limit} times"):
            read_table(path, columns, limit)
    with pytest.raises(UserError, match="unpacks to more than 1 times"):
        import_semantic_ids(path, pl.Series([1]), column="one", id_column="other", max_expansion=1)


# ---------------------------------------------------------------- messages and YAML


def test_names_and_values_in_a_message_are_few_and_short(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    for text in (f"name: [{', '.join(['x'] * 5000)}]\ndata: {{logs: [a.csv]}}", f"{'k' * 5000}: 1"):
        recipe.write_text(text)
        with pytest.raises(UserError) as error:
            load_config(recipe)
        assert len(str(error.value)) < len(str(recipe)) + 2 * SHOWN + 400
    (tmp_path / "a.csv").write_text(",".join([f"{'c' * 10_000}{n}" for n in range(30)]) + "\n")
    with pytest.raises(UserError, match=r"no column 'user_id'; the columns are c{80}\.\.\., .* and 10 more") as error:
        read_logs([tmp_path / "a.csv"], TIMES)
    assert len(str(error.value)) < len(str(tmp_path)) + 2000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 51 + "]" * 51, "more than 50 levels deep"),
        ("- " * 60 + "x", "more than 50 levels deep"),
        ("a: &a [*a]", r"the alias \*a stands for what it is a part of"),
        ("a: *b", r"the alias \*b stands for .* nothing"),
        (f"a: &a {'x' * 1000}\nb: [{', '.join(['*a'] * 1100)}]", "stands for more than 1 MB"),
        ("2001-99-99", "month must be in 1..12"),
    ],
)
def test_yaml_that_is_more_than_a_recipe_is_refused(text: str, message: str) -> None:
    begun = time.monotonic()
    with pytest.raises(yaml.YAMLError, match=message):
        parse_yaml(text)
    assert time.monotonic() - begun < 3


def test_usual_aliases_are_read() -> None:
    assert parse_yaml("a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: [*a, *a]") == {
        "a": {"x": 1},
        "b": {"x": 1, "y": 2},
        "c": [{"x": 1}, {"x": 1}],
    }
    assert parse_yaml("[" * 50 + "]" * 50)
