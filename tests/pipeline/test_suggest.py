"""Sizes of a first recipe by their rules, and that `inspect`, `init` and the recipe run on logs as shops have them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from adagrpo.config import load_config
from adagrpo.config.models import PublishedIds, TokenizerConfig
from adagrpo.config.yaml_text import json_text
from adagrpo.data.logs.preview import preview_items, preview_logs
from adagrpo.data.simulation.marketplace import Marketplace, simulate
from adagrpo.errors import UserError
from adagrpo.pipeline import Run, Silent
from adagrpo.pipeline.directory import locked
from adagrpo.pipeline.suggest import sizes_for, sizes_note

from ..command_line import command


@pytest.mark.parametrize(
    ("settings", "items", "said"),
    [
        ({}, 800, "3 levels of 256 codes; for 800 items `adagrpo init` chooses 2 levels of 32"),
        ({}, 500_000, None),  # init takes the default
        ({"codes": 32}, 800, None),  # somebody chose
        ({"published": PublishedIds(path="ids.json")}, 800, None),
    ],
)
def test_logs_prepared_without_a_recipe_are_told_of_sizes(settings: Any, items: int, said: str | None) -> None:
    note = sizes_note(TokenizerConfig(**settings), items)
    assert note is None if said is None else note is not None and note.endswith(said)


@pytest.mark.parametrize(
    ("items", "tokenizer"),
    [  # K² >= 1.25 V
        (2, (2, 4, "balanced_kmeans", "nearest")),
        (204, (2, 16, "balanced_kmeans", "nearest")),
        (205, (2, 32, "balanced_kmeans", "nearest")),
        (800, (2, 32, "balanced_kmeans", "nearest")),
        (5_000, (2, 128, "balanced_kmeans", "nearest")),
        (50_000, (2, 256, "balanced_kmeans", "nearest")),
        (1_000_000, (3, 256, "kmeans", "level")),
    ],
)
def test_codes_follow_from_items(items: int, tokenizer: tuple[object, ...]) -> None:
    assert sizes_for(users=3000, items=items, longest=20, repeats=0.0)[:4] == tokenizer


def test_the_other_sizes_follow_from_users_lengths_and_repeats() -> None:
    small = sizes_for(users=100, items=30, longest=3, repeats=0.2)
    assert (small.batch_size, small.epochs, small.beam_width) == (128, 60, 30)
    assert (small.exclude_history, small.max_history) == (False, 5)
    large = sizes_for(users=1_000_000, items=90_000, longest=400, repeats=0.001)
    assert (large.batch_size, large.epochs, large.beam_width) == (256, 10, 50)
    assert (large.exclude_history, large.max_history) == (True, 50)
    assert sizes_for(users=10_000, items=90, longest=9, repeats=0.0).epochs == 26  # 2000 steps of 128


def shop(path: Path) -> Path:
    """The clicks of a simulated shop as CSV with semicolons in UTF-16, or as nested JSON lines."""
    world = simulate(Marketplace(users=80, items=100)).impressions
    clicks = world.filter(pl.col("clicked").cast(pl.Boolean))
    seconds = clicks["timestamp"].cast(pl.Int64) * 3600 + 1_700_000_000
    times = pl.select(pl.from_epoch(seconds).dt.strftime("%Y-%m-%d %H:%M:%S")).to_series()
    if path.suffix == ".csv":
        table = pl.DataFrame({"Customer ID": clicks["user_id"], "sku": clicks["item_id"], "created_at": times})
        path.write_text(table.write_csv(separator=";") + ";lost;never\n", encoding="utf-16")
        return path
    rows = zip(clicks["user_id"], clicks["item_id"], times, strict=True)
    lines = [json.dumps({"user": {"id": user}, "product": {"sku": item}, "ts": time}) for user, item, time in rows]
    path.write_text("\n".join(lines))
    return path


@pytest.mark.parametrize("name", ["shop.csv", pytest.param("shop.jsonl", marks=pytest.mark.slow)])
def test_a_recipe_from_own_logs_runs(tmp_path: Path, name: str) -> None:
    log, recipe = shop(tmp_path / name), tmp_path / "mine.yaml"
    looked = command("inspect", log, "--json")
    assert looked.status == 0, looked.err
    actual: dict[str, Any] = json.loads(looked.out)
    assert actual["missing"] == [] and actual["next"][0] == f"adagrpo init {log} --out recipe.yaml"
    made = command("init", log, "--out", recipe, "--json")
    assert made.status == 0 and json.loads(made.out)["recipe"] == str(recipe)
    content = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    assert content["data"]["columns"] == actual["mapping"]
    assert content["data"].get("max_bad_rows", 0) == (name == "shop.csv")
    again = command("init", log, "--out", recipe)
    assert again.status == 2 and again.err == f"adagrpo: {recipe}: is there already; give another name with --out\n"
    short = ["sft.epochs=1", "ranker.fit.epochs=1", "train.fit.epochs=1", "train.arms=[nll]", "threads=1"]
    run = Run(tmp_path / "run", load_config(recipe, short), Path(), Silent())
    with locked(run):
        run.complete()
    assert run.path("report.html").is_file() and run.results
    sizes = json.loads(run.path("tokenize", "codes.json").read_text(encoding="utf-8"))["level_sizes"]
    assert len(sizes) == 2 and max(sizes) <= content["tokenizer"]["codes"]


@pytest.mark.parametrize("user", ["customer_no", "Customer Number", "buyer_id", "shopper"])
@pytest.mark.parametrize("item", ["sku", "product_code", "article_no"])
def test_names_that_shops_give(tmp_path: Path, user: str, item: str) -> None:
    log = tmp_path / "a.csv"
    log.write_text(f"{user};{item};ordered_at\nK-1;S1;2026-01-01T10:00:00\nK-2;S2;2026-01-02T10:00:00\n")
    assert preview_logs([log])["mapping"] == {"user": user, "item": item, "timestamp": "ordered_at"}


def test_an_item_table_goes_into_the_recipe(tmp_path: Path) -> None:
    log, items = shop(tmp_path / "shop.csv"), tmp_path / "products.csv"
    rows = [f"i{number:05};Lamp {number};{'oak' if number % 2 else 'steel'};{number}" for number in range(100)]
    items.write_text("sku;title;finish;price\n" + "\n".join(rows) + "\n")
    made = command("init", log, "--items", items, "--out", tmp_path / "r.yaml")
    assert made.status == 0, made.err
    text = (tmp_path / "r.yaml").read_text(encoding="utf-8")
    table = {"path": str(items), "id_column": "sku", "text": ["title"], "attributes": ["finish"]}
    assert yaml.safe_load(text)["data"]["items"] == table
    assert "# add text: 1.0, attributes: 1.0 to let items" in text
    load_config(tmp_path / "r.yaml")
    items.write_text("sku;title\ni00001;Lamp\ni00001;Lamp in oak\n")
    refused = command("init", log, "--items", items, "--out", tmp_path / "s.yaml")
    assert refused.status == 2 and "rows 1 and 2: both are item 'i00001'" in refused.err
    items.write_text("name;price\nLamp;3\n")
    refused = command("init", log, "--items", items, "--out", tmp_path / "s.yaml")
    assert refused.status == 2 and "no column looks like the ids of the items; rename it as in the logs, sku, of" in (
        refused.err
    )


def test_prices_with_decimal_commas_are_numbers_and_said(tmp_path: Path) -> None:
    """They were text like titles where most differ, and an attribute for each price where they come again."""
    log, items = shop(tmp_path / "shop.csv"), tmp_path / "products.csv"
    columns: dict[str, Callable[[int], str]] = {
        "sku": lambda n: f"i{n:05}",
        "title": lambda n: f"Lamp {n}",
        "price": lambda n: f"{n},{n % 90 + 10}" if n % 20 else "",
        "list_price": lambda n: f"1.{n % 3}00,50",
        "weight": lambda n: f"{n % 5},5" if n % 3 else f"{n % 5}",
        "categories": lambda n: ",".join(map(str, range(1, 2 + n % 3))),  # a list
        "shelf": lambda n: f"{n % 3},{n % 12}",
        "size": lambda n: f"{n % 4} x 2,5",
    }
    rows = [";".join(value(n) for value in columns.values()) for n in range(100)]
    items.write_text(";".join(columns) + "\n" + "\n".join(rows) + "\n")
    found = preview_items(items, "sku")
    assert (found["text"], found["attributes"]) == (["title"], ["categories", "shelf", "size"])
    assert found["commas"] == {"price": "1,11", "list_price": "1.000,50", "weight": "1,5"}
    made = command("init", log, "--items", items, "--out", tmp_path / "r.yaml")
    said = f"note: column 'price' of {items} looks like numbers with decimal commas, such as 1,11; it is left out"
    assert made.status == 0 and said in made.err
    assert load_config(tmp_path / "r.yaml").data.items is not None
    read = ["user_id,item_id,timestamp,rating", *(f'u{n % 9},i{n},{n},"{n % 5},5"' for n in range(90))]
    log.write_text("\n".join(read) + "\n")
    rating = next(one for one in preview_logs([log])["columns"] if one["name"] == "rating")
    assert rating["type"] == "numbers with decimal commas"


def test_lists_of_an_item_table_are_attributes(tmp_path: Path) -> None:
    """Of two columns of numbers neither: attribute 3 of one would be attribute 3 of the other."""
    ids = [f"i{number:05}" for number in range(100)]
    rows: dict[str, Any] = {"sku": ids, "tags": [["oak", "old"]] * 100, "sizes": [[1, 2]] * 100, "price": [3] * 100}
    pl.DataFrame(rows).write_parquet(tmp_path / "one.parquet")
    pl.DataFrame(rows | {"colours": [[2]] * 100}).write_parquet(tmp_path / "two.parquet")
    found = [preview_items(tmp_path / f"{name}.parquet", "sku")["attributes"] for name in ("one", "two")]
    assert found == [["tags", "sizes"], ["tags"]]


def test_what_is_missing_is_asked_for_in_one_line(tmp_path: Path) -> None:
    log = tmp_path / "a.csv"
    log.write_text("uid,thing,when\na,x,1\na,y,2\na,x,3\n")
    refused = command("init", log, "--out", tmp_path / "r.yaml")
    assert refused.status == 2 and "no column looks like the item; say which it is, --set" in refused.err
    columns = ["--set", "data.columns.item=thing", "--set", "data.columns.timestamp=when"]
    assert command("init", log, "--out", tmp_path / "r.yaml", *columns).status == 0
    shown = command("inspect", log, *columns)
    assert shown.status == 0 and "these are interactions" in shown.out
    wrong = command("inspect", log, "--set", "data.columns.thing=item")
    assert wrong.status == 2 and "the roles are user, item, timestamp" in wrong.err


@pytest.mark.parametrize("user", ["0", "User #", "user: id", "*user", "on", "null", "'u'", "😀\x85"])
def test_what_inspect_prints_can_be_typed(tmp_path: Path, user: str) -> None:
    log, recipe = tmp_path / "😀.csv", tmp_path / "r.yaml"
    log.write_text(f"{user},sku,time\na,x,1\nb,y,2\na,y,3\nb,x,4\na,x,5\n", encoding="utf-8")
    given = f"data.columns.user={json_text(user)}"
    looked = command("inspect", log, "--json", "--set", given)
    assert looked.status == 0, looked.err
    init, decide = (shlex.split(line)[1:] for line in json.loads(looked.out)["next"])
    made = command(*(str(recipe) if word == "recipe.yaml" else word for word in init))
    assert made.status == 0, made.err
    assert load_config(recipe).data.columns.user == user and load_config(recipe).data.logs == (str(log),)
    decided = command(*(str(tmp_path / "run") if word == "runs/mine" else word for word in decide))
    assert decided.status == 2 and "one validation case compares no lists" in decided.err  # all of it was read
    assert Run.open(tmp_path / "run").config.data.columns.user == user


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="a folder that takes no files")
def test_a_recipe_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    log = shop(tmp_path / "shop.csv")
    refused = command("init", log, "--out", "/proc/x.yaml")
    assert refused.status == 2 and "give another name with --out" in refused.err


def test_a_column_that_is_named_like_a_role_and_does_not_fit_is_said(tmp_path: Path) -> None:
    log = tmp_path / "a.csv"
    rows = [f"u{n % 9},i{n % 30},{n},{'yes' if n % 2 else 'no'}" for n in range(90)]
    log.write_text("user_id,item_id,timestamp,click\n" + "\n".join(rows) + "\n")
    assert preview_logs([log])["passed_over"] == [
        {"column": "click", "role": "clicked", "needs": "1 and 0, or true and false"}
    ]
    assert "not read: clicked needs 1 and 0, or true and false" in command("inspect", log).out
    made = command("init", log, "--out", tmp_path / "r.yaml")
    assert made.status == 0 and "'click' is named like clicked and is not read" in made.err
    log.write_text(log.read_text().replace("yes", "1").replace("no", "0"))
    assert preview_logs([log])["passed_over"] == []


def test_kinds_of_events_and_what_one_time_holds_are_said(tmp_path: Path) -> None:
    log = tmp_path / "a.csv"
    rows = [f"u{n % 9},i{n % 30},{n // 18},{'view' if n % 3 else 'click'}" for n in range(90)]
    log.write_text("user_id,item_id,timestamp,event_type\n" + "\n".join(rows) + "\n")
    said = command("inspect", log).out
    assert "kinds of events: view, click; all are read; --set 'data.keep_events=[KIND]' reads some" in said
    assert "same user and time as another: 90" in said
    assert command("init", log, "--out", tmp_path / "r.yaml").status == 0
    text = (tmp_path / "r.yaml").read_text()
    assert (
        '  # all kinds of events count; to read some: --set \'data.keep_events=[KIND]\', of ["view", "click"]' in text
    )
    assert "    baskets: true" in text and "  # 90 rows, 9 users" in text  # lines of one time are one basket
    assert load_config(tmp_path / "r.yaml", []).data.split.baskets
    log.write_text("user_id,item_id,timestamp\n" + "".join(f"u{n % 9},i{n % 30},{n}\n" for n in range(90)))
    said = command("inspect", log).out
    assert "kinds of events" not in said and "same user and time as another: 0" in said


def test_sizes_are_of_the_events_that_count(tmp_path: Path) -> None:
    log = tmp_path / "a.csv"
    rows = [f"u{n % 9},i{n % (30 if n % 5 else 6)},{n},{'view' if n % 5 else 'click'}" for n in range(450)]
    log.write_text("user_id,item_id,timestamp,event_type\n" + "\n".join(rows) + "\n")
    keep = ("--set", "data.keep_events=[click]")
    said = command("inspect", log, *keep).out
    assert "kinds of events: view, click; read: click" in said and "\ninteractions: 90\n" in said
    assert said.count("""--set 'data.keep_events=["click"]'""") == 2  # of init and of decide
    assert command("init", log, "--out", tmp_path / "r.yaml", *keep).status == 0
    text = (tmp_path / "r.yaml").read_text()
    assert "max_history: 10  # 95 % of the users have at most 10 interactions" in text
    assert '  keep_events: ["click"]  # of ["view", "click"]' in text
    assert load_config(tmp_path / "r.yaml").data.keep_events == ("click",)
    assert preview_logs([log])["counts"]["interactions"] == 450
    refused = command("inspect", log, "--set", "data.keep_events=click")
    assert refused.status == 2 and "write data.keep_events=[KIND, KIND]" in refused.err
    refused = command("inspect", log, "--set", "data.keep_events=[buy]")
    assert refused.status == 2 and "\n" not in refused.err.strip()


def test_a_file_without_a_line_of_names_is_said(tmp_path: Path) -> None:
    log = tmp_path / "a.csv"
    log.write_text("".join(f"{n % 9},{100 + n % 30},pv,{1511544070 + n}\n" for n in range(90)))
    hint = "the first line holds numbers; if they are values, write a line of names above them"
    assert hint in command("inspect", log).out
    refused = command("init", log, "--out", tmp_path / "r.yaml")
    assert refused.status == 2 and refused.err.strip().endswith(hint)
    log.write_text("7,7,pv,1511544070\n" + log.read_text())
    refused = command("inspect", log)
    assert refused.status == 2 and refused.err.strip().endswith(f"the header names '7' 2 times; {hint}")
    log.write_text("who,sku,what,at\n" + log.read_text())
    assert hint not in command("inspect", log).out


def test_kinds_of_events_may_be_numbers(tmp_path: Path) -> None:
    log = tmp_path / "a.csv"
    rows = [f"u{n % 9},i{n % 30},{n},{1 if n % 5 else 4}" for n in range(450)]
    log.write_text("user_id,item_id,timestamp,behavior_type\n" + "\n".join(rows) + "\n")
    given = ("--set", "data.columns.event=behavior_type", "--set", "data.keep_events=[4]")
    assert command("init", log, "--out", tmp_path / "r.yaml", *given).status == 0
    assert load_config(tmp_path / "r.yaml").data.keep_events == ("4",)
    config = load_config(tmp_path / "r.yaml", ["data.keep_events=[4, 1]"])
    assert config.data.keep_events == ("4", "1")
    with pytest.raises(UserError, match=r"data\.keep_events\.0: .*string"):
        load_config(tmp_path / "r.yaml", ["data.keep_events=[on]"])
    assert command("inspect", log, *given[:3], "data.keep_events=[on]").status == 2


def test_items_that_are_lists_are_said(tmp_path: Path) -> None:
    log = tmp_path / "a.csv"
    log.write_text("user_id,shown,timestamp\n" + "".join(f'u{n % 9},"[""a{n}"", ""b""]",{n}\n' for n in range(90)))
    said = (
        "shown holds lists, each of which would be one item; a row is one item: write a row for each item of the list"
    )
    seen = command("inspect", log, "--set", "data.columns.item=shown").out
    assert said in seen and "adagrpo" not in seen  # nothing to type next, which would be refused
    refused = command("init", log, "--out", tmp_path / "r.yaml", "--set", "data.columns.item=shown")
    assert refused.status == 2 and f"{log}: {said}" in refused.err and not (tmp_path / "r.yaml").exists()
    log.write_text("user_id,shown,timestamp\n" + "".join(f"u{n % 9},[a{n},{n}\n" for n in range(90)))
    assert "holds lists" not in command("inspect", log, "--set", "data.columns.item=shown").out


def test_a_first_recipe_of_a_small_catalogue_can_be_compared(tmp_path: Path) -> None:
    log = tmp_path / "a.csv"
    log.write_text("user_id,item_id,timestamp\n" + "".join(f"u{n % 9},i{n % 30},{n}\n" for n in range(90)))
    assert command("init", log, "--out", tmp_path / "r.yaml").status == 0
    config = load_config(tmp_path / "r.yaml")
    assert config.evaluation.beam_width == 30 and dict(config.compare.margins) == {"hallucination@10": 0.005}
    planned = command("compare", tmp_path / "r.yaml", "--seeds", "1", "--out", tmp_path / "c", "--dry-run")
    assert planned.status == 0, planned.err


def test_a_log_of_single_events_gets_no_recipe(tmp_path: Path) -> None:
    log = tmp_path / "a.csv"
    log.write_text("user_id,item_id,timestamp\n" + "".join(f"u{n},i{n % 30},{n}\n" for n in range(90)))
    made = command("init", log, "--out", tmp_path / "r.yaml")
    assert made.status == 2 and "no user has three interactions" in made.err
    assert not (tmp_path / "r.yaml").exists()


def test_what_inspect_says_of_logs_without_order_can_be_typed(tmp_path: Path) -> None:
    log = tmp_path / "shown.csv"
    rows = "".join(f"u{n % 9},i{n % 7},{n % 5},{n % 2}\n" for n in range(63))
    log.write_text("user_id,item_id,position,clicked\n" + rows, encoding="utf-8")
    (said,) = json.loads(command("inspect", log, "--json").out)["next"]
    assert said.endswith("--set data.columns.slot=position --set data.split.kind=impressions")
    prepared = command(*(str(tmp_path / "run") if word == "runs/mine" else word for word in shlex.split(said)[1:]))
    assert prepared.status == 0, prepared.err
