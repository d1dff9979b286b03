"""The table of sets, how what was made is compared with it, and the folder that is written."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from adagrpo.errors import UserError
from adagrpo.storage.artifacts import manifest, verify
from examples.datasets import SETS, Check, PublicSet, convert, described, listing
from examples.datasets.numbering import hash_lines, hashes_of
from examples.datasets.published import SAID

RECIPES = Path(__file__).parents[3] / "recipes"
SHARED = Path(__file__).parents[4] / "shared" / "data"


def test_the_entries_are_whole() -> None:
    for name, one in SETS.items():
        assert name == one.name and one.downloads and one.terms and one.counts
        assert all(file.address.startswith("https://") for file in one.downloads) and one.page.startswith("https://")
        assert one.recipe is None or (RECIPES / one.recipe).is_file()
        assert one.checks
        for check in one.checks:
            assert check.hashes.keys() <= SAID.keys()
            assert all(re.fullmatch("[0-9a-f]{64}", value) for value in check.hashes.values())
    others = {"marketplace", "amazon18-scientific-qwen3"}
    recipes = {path.stem for path in RECIPES.glob("*.yaml") if not path.stem.startswith("adagrpo-")}  # of a trial
    assert recipes - others <= SETS.keys()


def test_every_set_is_listed_with_its_addresses_and_terms() -> None:
    entries = described()
    text = listing(entries)
    for one in SETS.values():
        assert one.what in text and one.terms in text and one.page in text
        assert all(file.address in text for file in one.downloads)
    assert json.loads(json.dumps(entries)) == entries
    assert [entry["name"] for entry in described(["coat"])] == ["coat"]
    with pytest.raises(UserError, match="nothing: no such set; there are amazon-beauty, "):
        described(["nothing"])


def test_hashes_are_of_lines() -> None:
    """sha256 of 'b a\\nc\\n', by coreutils."""
    assert hash_lines(["b a", "c"]) == "d656238070c2c3ab1f89df9c1a58d9f4a32b0be7a3da92e6a51da2e0b494e649"


def test_hashes_see_less_and_less() -> None:
    one, users, ties, other = (
        hashes_of(s) for s in ([["b", "a"], ["c"]], [["c"], ["b", "a"]], [["a", "b"], ["c"]], [["a"], ["b", "c"]])
    )
    assert one["numbering"] != users["numbering"] and one["sequences"] == users["sequences"]
    assert one["sequences"] != ties["sequences"] and one["contents"] == ties["contents"]
    assert one["contents"] != other["contents"]


# ---------------------------------------------------------------- a tiny set of the table's kind

RATINGS = [(user, film, 3, film) for user in range(1, 6) for film in (3, 7)]
MOVIES = ["3::A (1990)::War", "7::B (1991)::War"]
USERS = [f"{user}::F::25::1::0" for user in range(1, 6)]
SEQUENCES = [["3", "7"]] * 5


@pytest.fixture
def zipped(standins: Any, tmp_path: Path) -> Path:
    path: Path = standins.movielens(tmp_path / "other.zip", RATINGS, MOVIES, USERS)
    return path


def tiny(counts: dict[str, int] | None = None, *checks: Check) -> dict[str, PublicSet]:
    entry = SETS["ml-1m"]
    small = dataclasses.replace(
        entry, counts=counts or {"users": 5, "items": 2, "interactions": 10}, checks=checks, recipe="ml.yaml"
    )
    return {"ml-1m": small}


def test_the_folder_is_sealed_and_says_what_it_was_made_from(zipped: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    made = convert("ml-1m", tiny(None, Check("sequences", hashes_of(SEQUENCES))), [zipped], out)
    assert made["notes"] == ["sequences: as published, numbers included"] and made["problems"] == []
    assert made["next"] == f"adagrpo run recipes/ml.yaml --data {out} --out runs/ml-1m"
    assert verify(out).keys() == {"interactions.parquet", "items.parquet", "users.parquet", "source.json"}
    source = json.loads((out / "source.json").read_text(encoding="utf-8"))
    assert source["from"]["other.zip"]["size"] == zipped.stat().st_size
    before = manifest(out)
    convert("ml-1m", tiny(), [zipped], out)  # its own folder is replaced
    after = manifest(out)
    assert before is not None and after is not None and before["fingerprint"] == after["fingerprint"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.zip", "out"]


@pytest.mark.parametrize(
    ("agreeing", "said"),
    [
        ("numbering", "as published, numbers included"),
        ("sequences", "users are numbered in another order"),
        ("contents", "but for the order of some interactions"),
    ],
)
def test_the_strictest_hash_that_agrees_is_said(agreeing: str, said: str, zipped: Path, tmp_path: Path) -> None:
    own = hashes_of(SEQUENCES)
    names = list(own)
    hashes = {name: own[name] if names.index(name) >= names.index(agreeing) else "0" * 64 for name in names}
    made = convert("ml-1m", tiny(None, Check("sequences", hashes)), [zipped], tmp_path / "out")
    assert len(made["notes"]) == 1 and said in made["notes"][0]


OTHER = Check("sequences", {"contents": "0" * 64})


@pytest.mark.parametrize(
    ("counts", "checks", "problem"),
    [
        ({"users": 6, "items": 2, "interactions": 10}, (OTHER,), "5 users, published are 6"),
        (None, (OTHER,), "the sequences are not the published ones, though their counts are"),
    ],
)
def test_another_content_is_refused_unless_unchecked(
    counts: dict[str, int] | None, checks: tuple[Check, ...], problem: str, zipped: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError, match=rf"ml-1m: {problem}; .*expected ml-1m.zip from https.*--unchecked writes it"):
        convert("ml-1m", tiny(counts, *checks), [zipped], out)
    assert not out.exists()
    made = convert("ml-1m", tiny(counts, *checks), [zipped], out, unchecked=True)
    assert made["problems"] == [problem]
    assert json.loads((out / "source.json").read_text(encoding="utf-8"))["problems"] == [problem]


def test_an_archive_under_the_published_name_must_have_the_published_md5(standins: Any, tmp_path: Path) -> None:
    path = standins.movielens(tmp_path / "ml-1m.zip", RATINGS, MOVIES, USERS)
    with pytest.raises(
        UserError, match=r"ml-1m.zip has md5 [0-9a-f]{32}, published is c4d9eecfca2ab87c1945afe126590906"
    ):
        convert("ml-1m", tiny(), [path], tmp_path / "out")


def test_only_a_folder_of_its_own_is_replaced(zipped: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "mine.txt").write_text("x", encoding="utf-8")
    with pytest.raises(UserError, match=r"mine.txt: not made by this program"):
        convert("ml-1m", tiny(), [zipped], foreign)
    with pytest.raises(UserError, match=r"mine.txt: is a file"):
        convert("ml-1m", tiny(), [zipped], foreign / "mine.txt")
    run = tmp_path / "run"
    run.mkdir()
    (run / ".adagrpo").write_text('{"kind": "run", "schema_version": 1}', encoding="utf-8")
    with pytest.raises(UserError, match="holds 'run', not 'public data'"):
        convert("ml-1m", tiny(), [zipped], run)
    out = tmp_path / "out"
    convert("ml-1m", tiny(), [zipped], out)
    (out / "notes.txt").write_text("x", encoding="utf-8")
    with pytest.raises(UserError, match=r"notes.txt: not made by this program"):
        convert("ml-1m", tiny(), [zipped], out)


def test_a_failure_leaves_what_was_there(zipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    convert("ml-1m", tiny(), [zipped], out)
    before = (out / "manifest.json").read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pl.DataFrame, "write_parquet", full)
    with pytest.raises(OSError, match="No space left"):
        convert("ml-1m", tiny(), [zipped], out)
    assert (out / "manifest.json").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.zip", "out"]


# ---------------------------------------------------------------- at full size


@pytest.mark.slow
@pytest.mark.shared_data
@pytest.mark.skipif(not SHARED.is_dir(), reason="the research data are not here")
@pytest.mark.parametrize(
    ("name", "category"), [("amazon-beauty", "Beauty"), ("amazon-office", "Office_Products")], ids=["beauty", "office"]
)
def test_a_stand_in_of_full_size_gives_the_published_sequences(
    name: str, category: str, standins: Any, tmp_path: Path
) -> None:
    """Reviews of the official format with the published content, whose times are made up."""
    items = pl.read_parquet(SHARED / name / "items.parquet")
    published = pl.read_parquet(SHARED / name / "interactions.parquet")
    asins = published.join(items.select("item_id", "asin"), on="item_id", maintain_order="left")
    sequences = asins.group_by("user_id", maintain_order=True).agg("asin")["asin"].to_list()
    records = ({"asin": asin, "title": title} for asin, title in items.select("asin", "title").iter_rows())
    standins.amazon_2014(tmp_path, category, sequences, records)
    made = convert(name, SETS, [tmp_path], tmp_path / "out")
    assert "sequences: as published, numbers included" in made["notes"]
    assert pl.read_parquet(tmp_path / "out" / "interactions.parquet").equals(published)
    assert pl.read_parquet(tmp_path / "out" / "items.parquet")["asin"].equals(items["asin"])
