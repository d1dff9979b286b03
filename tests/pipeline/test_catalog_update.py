"""Versions of the catalogue: what leaves is gone at once, what comes can be recommended, without training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from typer.testing import CliRunner

import adagrpo
from adagrpo.cli import app
from adagrpo.errors import UserError
from adagrpo.lists import Query, Recommender
from adagrpo.pipeline import (
    CatalogVersion,
    ListOptions,
    Run,
    catalog_diff,
    catalog_versions,
    evaluate_with,
    open_version,
    recommend_users,
    update_catalog,
)
from adagrpo.pipeline import catalog_update as updating
from adagrpo.pipeline import make as making
from adagrpo.pipeline import recommend as recommending
from adagrpo.pipeline.directory import path_of
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.list_makers import ListMaker
from adagrpo.pipeline.serve import recommender
from adagrpo.pipeline.stages.fuse import fit_sources
from adagrpo.pipeline.staleness import parts_of
from adagrpo.semantic_ids.catalog import Catalog
from adagrpo.types import Histories

ITEMS = [10 * number + 3 for number in range(30)]
SHAPES = ("round", "long", "flat", "tall", "wide")
DESCRIBED = {"path": "items.csv", "text": ["title"], "attributes": ["shape"]}


def title(number: int) -> str:
    return f"ring place{number % 30} tenth{number % 30 // 3}"


def write_items(path: Path, items: dict[int, str]) -> Path:
    """A table of items: their titles, and the shape of their number."""
    rows = "".join(f"{item},{text},{SHAPES[item % 5]}\n" for item, text in items.items())
    path.write_text("item_id,title,shape\n" + rows, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def trained(world: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the hybrid policy over items that have texts; to be read only."""
    folder = tmp_path_factory.mktemp("described")
    world.write(folder)
    write_items(folder / "items.csv", {item: title(number) for number, item in enumerate(ITEMS)})
    run = world.run(
        folder / "run",
        folder,
        data={"items": DESCRIBED},
        policy={"kind": "hybrid", "item_negatives": 0},
        tokenizer={"vectors": {"text": 1.0, "cooccurrence": 1.0}},
    )
    for make in (Run.prepare, Run.tokenize, Run.sft, Run.ranker):
        make(run)
    return Path(folder / "run")


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Run:
    return Run.open(Path(shutil.copytree(trained, tmp_path / "run")))


def histories(count: int) -> list[list[int]]:
    """Random histories."""
    generator = np.random.default_rng(3)
    return [generator.choice(ITEMS, generator.integers(1, 9)).tolist() for _ in range(count)]


def query(served: Recommender, history: list[int], **options: Any) -> Query:
    return Query(served.known(history)[0], **options)


def test_what_is_delisted_is_in_no_list_and_still_understood_in_histories(run: Run) -> None:
    before, _ = recommender(run, ListOptions())
    version, made = update_catalog(run, delist=["3,13", "23", "293"])
    assert made and version.number == 1 and version.codes.listed.sum() == 26
    served, about = recommender(run, ListOptions())
    assert about["catalog_version"] == served.catalog_version == version.name != before.catalog_version
    assert (about["items"], about["listed"]) == (30, 26)
    gone, asked = {3, 13, 23, 293}, [query(served, history) for history in histories(2000)]
    lists = served.recommend(asked)
    assert all(len(one.items) == 10 and not gone & {*one.items} for one in lists)
    assert any(gone & {*one.items} for one in before.recommend(asked))
    left_out = served.known([53, 3])[0]
    masked = served.recommend([one._replace(exclude_history=True, without=left_out) for one in asked])
    assert not any({53, *gone} & {*one.items} for one in masked)  # 53, and 3 that is gone anyway
    names = torch.tensor(served.item_ids)
    odd = served.catalog.trie.eligible(names % 20 == 13)  # 13, which is gone, is one of them
    narrowed = served.recommend([one._replace(eligible=odd) for one in asked[:200]])
    assert all({*one.items} <= {*ITEMS[1::2]} - gone and len(one.items) == 10 for one in narrowed)
    assert not gone & {*served.recommend([Query([])])[0].items}  # the most popular
    # a history that ends with a delisted item is not answered as one without it
    assert served.known([3, 43, 999]) == (served.known([3])[0] + served.known([43])[0], [999])
    assert served.recommend([query(served, [43, 3])])[0].scores != served.recommend([query(served, [43])])[0].scores


def test_groups_are_those_of_the_version(run: Run, tmp_path: Path) -> None:
    """Filters see new items and no delisted ones; what is left is counted so."""
    new = {1043: title(4), 1203: title(20)}
    update_catalog(run, delist=["3"], items=write_items(tmp_path / "new.csv", new))
    served, _ = recommender(run, ListOptions())
    shape = SHAPES[1043 % 5]
    alike = {item for item in [*ITEMS, *new] if SHAPES[item % 5] == shape} - {3}
    narrowing = served.eligibility.resolve({"shape": shape})
    assert narrowing.left == len(alike) < 32 and 1043 in alike
    found = served.recommend([query(served, [13, 23], eligible=narrowing.eligible)])[0].items
    assert {*found} <= alike and len(found) == min(10, len(alike))
    assert served.eligibility.resolve(exclude=[3, 13]).left == 30  # of 31 listed


def test_what_comes_back_has_the_groups_that_it_has_now(world: Any, tmp_path: Path) -> None:
    def table(name: str, rows: str) -> Path:
        (tmp_path / name).write_text("item_id,title,market\n" + rows, encoding="utf-8")
        return tmp_path / name

    world.write(tmp_path)
    table("items.csv", "".join(f"{item},{title(number)},de\n" for number, item in enumerate(ITEMS)))
    described = {"path": "items.csv", "text": ["title"], "groups": ["market"]}
    vectors = {"text": 1.0, "cooccurrence": 1.0}
    run = world.run(tmp_path / "run", tmp_path, data={"items": described}, tokenizer={"vectors": vectors})
    run.prepare(), run.tokenize()
    update_catalog(run, delist=["3", "13"])
    version, _ = update_catalog(run, items=table("back.csv", f"3,another title,fr\n13,,\n1043,{title(4)},fr\n"))
    rows = {item: (text, groups) for item, text, groups in version.items.select("item_id", "text", "groups").rows()}
    assert rows[3] == (title(0), ["market=fr"]) and rows[13] == (title(1), [])  # codes are of the text that they had
    assert rows[23] == (title(2), ["market=de"]) and rows[1043] == (title(4), ["market=fr"])
    assert version.items["item"].to_list() == list(range(31))
    update_catalog(run, delist=["3"])
    with pytest.raises(UserError, match=r"--delist: '3' is in .*back\.csv too; an item comes or leaves"):
        update_catalog(run, items=table("back.csv", "3,another title,fr\n"), delist=["3"])


def test_a_list_after_a_delisting_is_the_rest_of_a_search_that_saw_all(run: Run) -> None:
    """By the decoder alone the scores of other items do not change; a beam of 30 holds the whole catalogue."""
    update_catalog(run, delist=["3", "153"])
    before, after = (recommender(run, ListOptions(catalog=one, precision="float32"))[0] for one in ("0", "1"))
    for served in (before, after):
        served.width, served.policy.item_weight = 30, 0.0
    asked = [query(before, history) for history in histories(20)]
    for old, new in zip(before.recommend(asked), after.recommend(asked), strict=True):
        kept = [(item, score) for item, score in zip(old.items, old.scores, strict=True) if item not in (3, 153)]
        assert new.items == [item for item, _ in kept]
        assert new.scores == pytest.approx([score for _, score in kept], abs=1e-4)


def test_what_comes_is_recommended_where_what_it_is_like_is(run: Run, tmp_path: Path) -> None:
    """A twin of item 43 has its neighbours' codes, and comes where 43 comes."""
    table = write_items(tmp_path / "new.csv", {1043: title(4), 1203: title(20)})
    version, made = update_catalog(run, items=table)
    assert made and version.item_ids.to_list()[30:] == [1043, 1203] and version.codes.num_items == 32
    old = open_version(run, "0")
    assert version.codes.codes[:30].equal(old.codes.codes) and version.codes.level_sizes == old.codes.level_sizes
    assert version.codes.codes[30, 0] == version.codes.codes[row(version, 43), 0]
    served, about = recommender(run, ListOptions())
    assert (about["items"], about["listed"]) == (32, 32)
    lists = [one.items for one in served.recommend([query(served, [13, 23, 33]), query(served, [173, 183, 193])])]
    assert 1043 in lists[0] and 1203 in lists[1]
    assert served.recommend([query(served, [13, 23, 1043])])[0].items  # and is understood in a history
    run.stage("reranking")
    rewarded, _ = recommender(run, ListOptions(None, "best", 1.0))  # the ranker knows it too
    assert {1043, 1203} & {
        item for one in rewarded.recommend([query(rewarded, one) for one in histories(50)]) for item in one.items
    }


def test_features_of_the_items_that_a_model_was_fitted_on_stay_as_they_are(run: Run, tmp_path: Path) -> None:
    """Texts of new items decided what words weigh, and so what trees read of all others."""
    before = RunData(run)
    histories, lengths = np.arange(12).reshape(4, 3), np.full(4, 3)
    items = np.tile(np.arange(30), (4, 1))
    table = write_items(tmp_path / "new.csv", {900 + place: f"ring ring place{place % 3}" for place in range(9)})
    version, _ = update_catalog(run, items=table)
    tables = [Models(data).features.table(histories, lengths, items) for data in (before, RunData(run, version))]
    np.testing.assert_array_equal(tables[1], tables[0])


def test_interactions_say_better_what_an_item_is_like(run: Run, tmp_path: Path) -> None:
    """An item whose text is that of 43, and which is seen beside 203 alone, moves there."""
    update_catalog(run, items=write_items(tmp_path / "new.csv", {1043: title(4)}))
    rows = [("a", 193, 1), ("a", 1043, 2), ("a", 203, 3), ("b", 203, 1), ("b", 1043, 2), ("c", 213, 1), ("c", 1043, 2)]
    log = tmp_path / "fresh.csv"
    log.write_text("user_id,item_id,timestamp\n" + "".join(f"{u},{i},{t}\n" for u, i, t in rows * 1))
    version, made = update_catalog(run, interactions=[log])
    assert made and version.number == 2
    weights = dict(version.neighbours.filter(pl.col("item") == 30).select("neighbour", "weight").rows())
    seen = {row(version, item): count for item, count in {193: 1, 203: 2, 213: 1}.items()}  # within a window of 3
    assert {place: weights[place] for place in seen} == pytest.approx(
        {place: count / (updating.PRIOR + 4) for place, count in seen.items()}
    )
    assert sum(weights.values()) == pytest.approx(1)
    difference = catalog_diff(open_version(run, "1"), version)
    assert not difference["added"] and [one["item_id"] for one in difference["moved"]] in ([1043], [])
    log.write_text("user_id,item_id,timestamp\na,x43,1\na,x203,2\n")  # ids that are written otherwise
    with pytest.raises(UserError, match="none of 2 interactions is of an item of the catalogue"):
        update_catalog(run, interactions=[log])


def test_versions_are_kept_compared_and_named(run: Run, tmp_path: Path) -> None:
    first = open_version(run)
    assert (first.number, first.name[:5], first.about["parent"]) == (0, "0000-", None)
    new = write_items(tmp_path / "new.csv", {1043: title(4), 1203: title(20)})
    second, _ = update_catalog(run, items=new, delist=["3"])
    third, _ = update_catalog(run, items=write_items(tmp_path / "back.csv", {3: "again"}), delist=["1043"])
    assert [one.name for one in catalog_versions(run)] == [first.name, second.name, third.name]
    assert catalog_diff(first, third) == {
        "before": first.name,
        "after": third.name,
        "added": [1203],
        "removed": [],
        "delisted": [],
        "relisted": [],
        "moved": [],
    }
    both = catalog_diff(second, third)
    assert (both["added"], both["delisted"], both["relisted"]) == ([], [1043], [3])
    assert catalog_diff(third, second)["relisted"] == [1043]
    assert catalog_diff(third, first)["removed"] == [1203]
    assert third.codes.codes[:30].equal(first.codes.codes)  # what comes back has the codes that it had
    back, made = update_catalog(run, delist=["13"], start="1")
    assert made and back.about["parent"] == second.name and 3 not in _listed(back)
    for name in ("3", "0003", back.name, "latest"):
        assert open_version(run, name).name == back.name
    for wrong, why in (
        ("7", "there is 0 to 3"),
        ("0003-aaaaaaaaaaaa", "is 0003-"),
        ("x", "no such version"),
        ("9" * 5000, "no such"),
    ):
        with pytest.raises(UserError, match=why):
            open_version(run, wrong)


def row(version: CatalogVersion, item: int) -> int:
    return version.item_ids.to_list().index(item)


def _listed(version: CatalogVersion) -> set[int]:
    return set(version.item_ids.filter(pl.Series(version.codes.listed.numpy())).to_list())


def test_equal_requests_give_equal_versions_and_the_same_again_gives_none(
    trained: Path, tmp_path: Path, contents: Any
) -> None:
    made = []
    for name in ("one", "other"):
        run = Run.open(Path(shutil.copytree(trained, tmp_path / name)))
        table = write_items(tmp_path / "new.csv", {1043: title(4), 1203: title(20)})
        update_catalog(run, items=table, delist=["33"])
        assert update_catalog(run, items=table, delist=["33"])[1] is False
        assert update_catalog(run, delist=["33"])[1] is False  # nothing is left to do
        folder = run.directory / "catalogs"
        made.append({path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()})
        assert [path.name for path in folder.iterdir()] == ["0001"]
    assert made[0] == made[1]


def test_a_long_list_of_ids_is_no_name_of_a_file(run: Run) -> None:
    leaving = [str(item) for item in ITEMS[:20]]
    version, made = update_catalog(run, delist=[",".join(leaving * 20)])
    assert made and _listed(version) == {*ITEMS[20:]}


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("point", ["codes.parquet", "neighbours.parquet", "manifest.json", "published"])
def test_an_update_that_was_cut_off_leaves_a_whole_catalogue_and_the_same_command_ends_it(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    table = write_items(tmp_path / "new.csv", {1043: title(4)})
    steps = {
        "codes.parquet": (Catalog, "write"),
        "neighbours.parquet": (updating, "write_json"),
        "manifest.json": (making, "publish"),
        "published": (making, "log_event"),
    }
    owner, name = steps[point]
    real = getattr(owner, name)

    def cut_off(*given: Any, **options: Any) -> None:
        if point == "published" and "end" not in given:
            return real(*given, **options)
        if point == "neighbours.parquet" and given[0].name != "version.json":
            return real(*given, **options)
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(owner, name, cut_off)
        update_catalog(run, items=table, delist=["3"])
    number = 1 if point == "published" else 0
    assert open_version(run).number == number
    assert (3 in _listed(open_version(run))) == (number == 0) and len(
        recommender(run, ListOptions())[0].item_ids
    ) == 30 + number
    version, made = update_catalog(Run.open(run.directory), items=table, delist=["3"])
    assert made == (number == 0) and version.number == 1 and 1043 in _listed(version) and 3 not in _listed(version)
    assert {path.name for path in (run.directory / "catalogs").iterdir()} == {"0001"}


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        ({}, "nothing to change"),
        ({"delist": ["3", "4", "5"]}, "not in the catalogue: '4' and 1 more"),
        ({"delist": [",".join(map(str, ITEMS))]}, "no item would be left"),
        ({"items": {3: title(0)}}, "in the catalogue already: item '3';"),
        ({"items": {1003: "qqqq"}, "shape": False}, "nothing says what it is like"),
        ({"items": {1043: title(4)}, "delist": ["1043"]}, "is in .*new.csv too"),
        ({"items": Path("nowhere.csv")}, "nowhere.csv: no such file"),
        ({"interactions": [Path("nowhere.csv")]}, "nowhere.csv: no such file"),
        ({"delist": ["3"], "start": "4"}, "no such version"),
    ],
)
def test_a_bad_request_is_one_line(run: Run, tmp_path: Path, request_: dict[str, Any], says: str) -> None:
    request_ = dict(request_)
    shape = request_.pop("shape", True)
    if isinstance(request_.get("items"), dict):
        path = write_items(tmp_path / "new.csv", request_["items"])
        if not shape:
            path.write_text(path.read_text().replace(SHAPES[1003 % 5], "unheard-of"))
        request_["items"] = path
    with pytest.raises(UserError, match=says) as found:
        update_catalog(run, **request_)
    assert "\n" not in str(found.value)
    assert open_version(run).number == 0


def test_a_table_without_its_columns_and_a_foreign_id_are_refused(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "new.csv"
    for text, says in (
        ("item_id,shape\n1043,flat\n", "title"),
        ("item_id,title,shape\nabc,ring,flat\n", "item 'abc': the ids of the catalogue are whole numbers"),
        ("item_id,title,shape\n003,ring,flat\n", "item '003': the ids of the catalogue are whole numbers"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=says):
            update_catalog(run, items=path)


def test_a_table_that_was_cut_off_is_refused_and_one_that_is_not_utf_8_is_said_to_be(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(run.console, "note", said.append)
    path = tmp_path / "new.csv"
    path.write_text(f"item_id,title,shape\n1043,{title(4)},flat\n1053,ring pl")
    with pytest.raises(UserError, match=r"new\.csv, row 2: has 2 of 3 fields"):
        update_catalog(run, items=path)
    assert open_version(run).number == 0 and not said
    path.write_bytes(f"item_id,title,shape\n1043,{title(4)} é,flat\n".encode("latin-1"))
    assert update_catalog(run, items=path)[1]
    assert len(said) == 1 and "new.csv is not UTF-8: what cannot be decoded is lost" in said[0]


def test_ids_to_delist_come_in_files_of_any_kind(run: Run, tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("\ufeff3\n\n13\n")
    pl.DataFrame({"item_id": [23, 33]}).write_parquet(tmp_path / "ids.parquet")
    version, _ = update_catalog(run, delist=[str(tmp_path / "ids.txt"), str(tmp_path / "ids.parquet"), "43"])
    assert {*ITEMS} - _listed(version) == {3, 13, 23, 33, 43}
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(UserError, match=r"latin\.txt: cannot be read as UTF-8"):
        update_catalog(run, delist=[str(tmp_path / "latin.txt")])
    with pytest.raises(UserError, match=r"gone\.csv: no such file"):
        update_catalog(run, delist=[str(tmp_path / "gone.csv")])


def test_going_back_to_an_earlier_version_makes_it_the_latest(run: Run) -> None:
    first, _ = update_catalog(run, delist=["3"])
    update_catalog(run, delist=["13"])
    third, made = update_catalog(run, delist=["3"], start="1")
    assert made and third.number == 3 and _listed(third) == _listed(first)
    assert catalog_versions(run)[-1].number == 3
    again, made = update_catalog(run, delist=["3"], start="1")
    assert not made and again.number == 3


def test_a_version_of_other_codes_is_stale_and_refused(run: Run, tmp_path: Path) -> None:
    update_catalog(run, delist=["3"], start="0")
    assert parts_of(run)["catalogs/0001"].state == "done"
    other = Run.open(run.directory, ["tokenizer.codes=7"])
    other.tokenize()
    Run.open(run.directory).sft()
    assert parts_of(Run.open(run.directory))["catalogs/0001"].state == "stale"
    with pytest.raises(UserError, match=r"stale.*`adagrpo catalog update .*--from 0` with .* or .*--catalog 0$"):
        recommender(Run.open(run.directory), ListOptions())
    listed = command("catalog", "list", "--run", str(run.directory), "--quiet")[1].splitlines()
    assert [line.endswith(", stale") for line in listed] == [False, True]
    assert recommender(Run.open(run.directory), ListOptions(catalog="0"))[1]["listed"] == 30
    again = ("catalog", "update", "--run", str(run.directory), "--delist", "3", "--from", "0", "--json", "--quiet")
    for made in (True, False):  # what the refusal names; the first version was made by the same words
        said = json.loads(command(*again)[1])
        assert (said["made"], said["version"][:4], said["delisted"]) == (made, "0002", [3])
    assert recommender(Run.open(run.directory), ListOptions())[1]["listed"] == 29


def test_a_changed_file_of_a_version_is_refused(run: Run) -> None:
    version, _ = update_catalog(run, delist=["3"])
    path = path_of(version.run, version.files[0])
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"codes\.parquet"):
        recommender(Run.open(run.directory), ListOptions())


def test_lists_for_users_name_their_version(run: Run, tmp_path: Path) -> None:
    rows = "".join(f"u{item},{item} {(item + 10) % 300} {(item + 20) % 300}\n" for item in ITEMS)
    (tmp_path / "users.csv").write_text("user_id,history\n" + rows)
    version, _ = update_catalog(run, delist=["63"], items=write_items(tmp_path / "new.csv", {1043: title(4)}))
    summary = recommend_users(run, tmp_path / "users.csv", tmp_path / "out")
    assert summary["catalog_version"] == version.name
    table = pl.read_parquet(tmp_path / "out/part-00000.parquet")
    found = {*table["items"].explode()}
    assert 63 not in found and 1043 in found
    old = recommend_users(run, tmp_path / "users.csv", tmp_path / "old", ListOptions(catalog="0"))
    assert old["catalog_version"] == open_version(run, "0").name


def test_a_version_that_comes_meanwhile_is_in_no_part(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "users.csv").write_text("user_id,history\n" + "".join(f"u{item},{item}\n" for item in ITEMS))
    before = recommend_users(run, tmp_path / "users.csv", tmp_path / "before")
    table = pl.read_parquet(tmp_path / "before/part-00000.parquet")
    make, item = recommending._make, str(table["items"].explode()[0])

    def late(run: Run, wanted: Any, worker: Any, ray_actors: Any, finished: Any) -> int:
        update_catalog(run, delist=[item])
        return make(run, wanted, wanted.worker, ray_actors, finished)  # what an actor does: it opens the run again

    monkeypatch.setattr(recommending, "_make", late)
    summary = recommend_users(run, tmp_path / "users.csv", tmp_path / "lists")
    assert summary["catalog_version"] == before["catalog_version"] != open_version(run).name
    assert pl.read_parquet(tmp_path / "lists/part-00000.parquet").equals(table)


def command(*words: str) -> tuple[int, str]:
    found = CliRunner().invoke(app, words)
    return (2 if isinstance(found.exception, UserError) else found.exit_code), found.stdout or str(found.exception)


def test_the_verb(run: Run, tmp_path: Path) -> None:
    place = str(run.directory)
    table = write_items(tmp_path / "new.csv", {1043: title(4)})
    status, text = command(
        "catalog", "update", "--run", place, "--items", str(table), "--delist", "3", "--json", "--quiet"
    )
    said = json.loads(text)
    assert status == 0 and (said["added"], said["delisted"], said["made"]) == ([1043], [3], True)
    listed = command("catalog", "list", "--run", place)[1]
    assert [line.split()[0] for line in listed.splitlines()] == [said["before"], said["after"]]
    different = command("catalog", "diff", "0", "latest", "--run", place)[1]
    assert different.splitlines() == [f"{said['before']} to {said['after']}", "added 1: 1043", "delisted 1: 3"]
    for words, says in (
        (("diff", "0"), "takes 2 versions"),
        (("list", "--delist", "3"), "are for update alone"),
        (("update", "--delist", "9"), "not in the catalogue"),
    ):
        status, text = command("catalog", *words, "--run", place)
        assert status == 2 and says in text and "\n" not in text


def test_an_evaluation_of_a_version_is_a_run_of_its_own(run: Run, tmp_path: Path) -> None:
    update_catalog(run, delist=["3", "153"])
    with pytest.raises(UserError, match=r"--catalog: .* give --out"):
        evaluate_with(Run.open(run.directory), "1")
    update_catalog(run, items=write_items(tmp_path / "new.csv", {1043: title(4)}))
    for again in (False, True):
        other = Run.open(run.directory, out=tmp_path / "later")
        evaluate_with(other, "latest")
        other.evaluate()
        other.stage("ranker/report")
        metrics = other.results
        assert bool(other.made) != again
    table = pl.read_parquet(tmp_path / "later/evaluate/sft/predictions.parquet")
    assert not {3, 153} & {*table["item_id"].to_list()} and 1043 in table["item_id"].to_list()
    assert metrics["stages"]["sft"]["test"]["hr@10"] > 0
    reopened = Run.open(tmp_path / "later")
    assert reopened.catalog == 2 and parts_of(reopened)["evaluate/sft"].state == "done"
    with pytest.raises(UserError, match="is about version 2"):
        evaluate_with(reopened, "1")
    assert not (run.directory / "evaluate").exists()


def test_lists_in_python_are_of_the_latest_version_at_once(run: Run, tmp_path: Path) -> None:
    opened = adagrpo.Run.open(run.directory)
    before = opened.recommend([[13, 23, 33]])
    gone = before.items[0][0]
    assert opened.update_catalog(delist=[gone])["delisted"] == [gone]
    after = opened.recommend([[13, 23, 33]])
    assert gone not in after.items[0] and after.about["catalog_version"] != before.about["catalog_version"]
    assert opened.recommend([[13, 23, 33]], catalog="0").items == before.items


def test_an_item_that_comes_later_is_as_popular_as_the_least_known_one(run: Run, tmp_path: Path) -> None:
    update_catalog(run, items=write_items(tmp_path / "new.csv", {1043: title(4)}))
    data = RunData(run, open_version(run, "latest"))
    histories = Histories(torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, dtype=torch.int64))
    shares = ListMaker(Models(data)).source("popularity").scores(histories)[0]
    assert data.num_items == data.version.trained + 1 and shares[-1] == shares[:-1].min()


@pytest.mark.parametrize("kind", ["item_knn", "successors"])
def test_an_item_that_comes_later_is_as_near_as_what_it_is_like(run: Run, tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "item_knn"
    folder.mkdir()
    fit_sources(run, "item_knn").build(folder)
    shutil.copytree(folder, run.path("item_knn"))
    version, _ = update_catalog(run, items=write_items(tmp_path / "new.csv", {1043: title(4), 1203: title(20)}))
    maker = ListMaker(Models(RunData(run, version)))
    maker.models.run.checked = maker.models.run.path  # type: ignore[method-assign]  # no stage made it here
    near = maker.source(kind).near.toarray()  # type: ignore[attr-defined]
    old = near[:30, :30]
    shares = np.zeros((32, 30))
    shares[:30] = np.eye(30)
    for item, neighbour, weight in version.neighbours.iter_rows():
        shares[item, neighbour] = weight
    assert old.any() and np.allclose(near, shares @ old @ shares.T, atol=1e-6)
    assert near[30].any() and near[:30, 31].any()
