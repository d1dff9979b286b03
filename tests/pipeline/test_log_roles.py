"""Orders, impressions and the exposure log of a service in one run: one catalogue, one numbering, no leak."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import pytest
import yaml

from adagrpo.config import resolve_config
from adagrpo.data.simulation.marketplace import Marketplace, simulate
from adagrpo.errors import UserError
from adagrpo.exposures.exposure_log import Exposure, Feedback
from adagrpo.exposures.exposure_store import LocalExposureLog
from adagrpo.exposures.user_hash import read_key
from adagrpo.pipeline import Run
from adagrpo.report.decision import decision_sentences

from ..command_line import Answer, command

SMALL = [
    *("max_history=6", "threads=1", "tokenizer.levels=2", "tokenizer.codes=16", "tokenizer.width=8"),
    *("policy={width: 16, layers: 1, heads: 2, decoder_hidden: 16}", "evaluation.beam_width=20"),
    *("sft={epochs: 1, batch_size: 32, validations: 1}", "ranker.width=16", "ranker.layers=1"),
    "ranker.fit={epochs: 1, batch_size: 32, validations: 1}",
]
SETTINGS = [part for setting in SMALL for part in ("--set", setting)]
COLUMNS = ["user=customer_id", "item=sku", "timestamp=created_at"]
OF_ORDERS = [part for column in COLUMNS for part in ("--set", f"data.columns.{column}")]
SAME = ("users.parquet", "items.parquet", "train.parquet", "validation.parquet", "test.parquet")


class Shop(NamedTuple):
    orders: Path
    impressions: Path


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """What a simulated shop showed, in milliseconds, and ten minutes after each click an order, as a date."""
    folder = tmp_path_factory.mktemp("shop")
    world = simulate(Marketplace(users=80, items=100)).impressions
    seconds = world["timestamp"].cast(pl.Int64) * 3600 + 1_700_000_000
    shown = world.with_columns((seconds * 1000).alias("timestamp"))
    shown.write_parquet(folder / "impressions.parquet")
    clicks = world.with_columns(seconds.alias("at")).filter(pl.col("clicked").cast(pl.Boolean))
    orders = clicks.select(
        customer_id="user_id",
        sku="item_id",
        created_at=pl.from_epoch(pl.col("at") + 600).dt.strftime("%Y-%m-%d %H:%M:%S"),
    )
    orders.write_csv(folder / "orders.csv")
    return Shop(folder / "orders.csv", folder / "impressions.parquet")


@pytest.fixture(scope="module")
def prepared(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Answer]:
    out = tmp_path_factory.mktemp("prepared") / "run"
    said = command("prepare", *shop, "--out", out, *OF_ORDERS, *SETTINGS)
    assert said.status == 0, said.err
    return out / "prepare", said


def test_parts_of_several_roles_in_one_folder(prepared: tuple[Path, Answer], shop: Shop, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    orders, shown = pl.read_csv(shop.orders), pl.read_parquet(shop.impressions)
    for number in range(3):
        orders[number::3].write_csv(logs / f"orders-{number}.csv")
        shown[number::3].write_parquet(logs / f"shown-{number}.parquet")
    orders.head(0).write_csv(logs / "a.csv")  # without a row its values do not say which column is which
    shown.head(0).write_parquet(logs / "b.parquet")
    said = command("prepare", logs, "--out", tmp_path / "run", *OF_ORDERS, *SETTINGS)
    assert said.status == 0, said.err
    assert "orders-0.csv and 2 more have no column of clicks: they are taken for --orders" in said.err
    assert "shown-0.parquet and 2 more have a column of clicks, 'clicked': they are taken for --impressions" in said.err
    assert f"note: {logs / 'a.csv'} has no rows" in said.err and f"note: {logs / 'b.parquet'} has no rows" in said.err
    for name in SAME:
        assert pl.read_parquet(tmp_path / "run" / "prepare" / name).equals(pl.read_parquet(prepared[0] / name))
    for number in range(2):
        pl.DataFrame({"sku": [number], "title": [f"t{number}"]}).write_csv(logs / f"z-{number}.csv")
    said = command("prepare", logs, "--out", tmp_path / "other", *OF_ORDERS, *SETTINGS)
    assert (
        said.status == 2 and "z-1.csv: has no column of users, as " in said.err and "one table of the items" in said.err
    )


def test_a_folder_of_a_run_is_no_exposure_log(prepared: tuple[Path, Answer], shop: Shop, tmp_path: Path) -> None:
    said = command("prepare", shop.orders, prepared[0].parent, "--out", tmp_path / "run", *OF_ORDERS, *SETTINGS)
    assert said.status == 2 and "run: a folder; give a file that ends in" in said.err


def test_orders_alone_and_with_impressions_are_the_same_interactions(
    prepared: tuple[Path, Answer], shop: Shop, tmp_path: Path
) -> None:
    folder, said = prepared
    assert "orders.csv has no column of clicks: it is taken for --orders" in said.err
    assert "impressions.parquet has a column of clicks, 'clicked': it is taken for --impressions" in said.err
    alone = command("prepare", shop.orders, "--out", tmp_path / "run", *OF_ORDERS, *SETTINGS)
    assert alone.status == 0, alone.err
    for name in SAME:
        assert (folder / name).read_bytes() == (tmp_path / "run" / "prepare" / name).read_bytes(), name
    shown = pl.read_parquet(folder / "impressions.parquet")
    assert 0 < shown["clicked"].sum() < len(shown) / 2 and {"slot", "propensity"} <= {*shown.columns}


def test_impressions_of_unknown_items_and_users_are_counted_aloud(prepared: tuple[Path, Answer], shop: Shop) -> None:
    folder, said = prepared
    shown, orders = pl.read_parquet(shop.impressions), pl.read_csv(shop.orders)
    unknown = {
        "items": len(shown.filter(~pl.col("item_id").is_in(orders["sku"].implode()))),
        "users": len(shown.filter(~pl.col("user_id").is_in(orders["customer_id"].implode()))),
    }
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    for kind, count in unknown.items():
        assert count > 0 and summary[f"impressions_of_unknown_{kind}"] == count
    assert f"{unknown['items']:,} of items that are not in the catalogue" in said.err
    assert f"{unknown['users']:,} of users without an interaction" in said.err
    assert summary["impressions"] + summary["impressions_later"] + summary["impressions_dropped"] == len(shown)


def test_no_impression_at_or_after_a_held_out_order_reaches_a_ranker(
    prepared: tuple[Path, Answer], shop: Shop, tmp_path: Path
) -> None:
    """Whatever is shown from the validation order on, the ranker's table is the same, byte for byte."""
    orders = pl.read_csv(shop.orders).with_columns(
        at=pl.col("created_at").str.to_datetime("%Y-%m-%d %H:%M:%S").dt.epoch("ms")
    )
    sorted_orders = orders.sort("customer_id", "at", maintain_order=True)
    held = sorted_orders.group_by("customer_id").agg(pl.col("at").get(-2, null_on_oob=True), pl.len())
    held = held.filter(pl.col("len") >= 3).select(user_id="customer_id", held="at")
    shown = pl.read_parquet(shop.impressions).join(held, on="user_id", how="left", maintain_order="left")
    late = (pl.col("timestamp") >= pl.col("held")).fill_null(False)
    assert shown.select(late.sum()).item() > 1000
    for name, changed in {
        "flipped": shown.with_columns(clicked=pl.when(late).then(1 - pl.col("clicked")).otherwise("clicked")),
        "gone": shown.filter(~late),
    }.items():
        log, out = tmp_path / f"{name}.parquet", tmp_path / name
        changed.drop("held").cast({"clicked": pl.Int8}).write_parquet(log)
        made = command("prepare", shop.orders, "--impressions", log, "--out", out, *OF_ORDERS, *SETTINGS)
        assert made.status == 0, made.err
        ours, theirs = (path / "impressions.parquet" for path in (prepared[0], out / "prepare"))
        assert ours.read_bytes() == theirs.read_bytes(), name


@pytest.mark.slow
def test_a_list_is_decided_and_served_from_orders_and_impressions(shop: Shop, tmp_path: Path) -> None:
    out = tmp_path / "run"
    settings = [*SETTINGS, "--set", "tokenizer.quantizer=kmeans", "--set", "tokenizer.collisions=level"]
    decided = command("decide", *shop, "--out", out, "--reward", "feature", "--json", *settings)
    assert decided.status == 0, decided.err
    content = json.loads(decided.out)
    run = Run.open(out)
    assert json.loads(run.path("ranker", "metrics.json").read_text(encoding="utf-8"))["loss"] == "impressions"
    assert run.config.reward.kind == "feature"
    item = pl.read_csv(shop.orders)["sku"][0]
    (served,) = run.recommend([[item]], arm=content["chosen"]).items
    assert len(served) == 10 and {*served} <= {*pl.read_csv(shop.orders)["sku"]}

    assert content["exposure_weighted"]  # a choice counts less the more often its item was shown
    shown = pl.read_parquet(out / "prepare" / "impressions.parquet")["item"].value_counts(name="times")
    cases = pl.read_parquet(out / "prepare" / "validation.parquet").filter("target").join(shown, on="item", how="left")
    table = pl.read_parquet(out / "fuse" / "sft" / "validation.parquet")
    times = cases["times"].cast(pl.Float64)  # null where it was never shown
    expected = 1 / times.clip(lower_bound=times.quantile(0.1, "linear")).sqrt()
    assert table["weight"].to_list() == pytest.approx((expected / expected.mean()).fill_null(1.0).to_list())
    gained = (1 / (table["policy"] + 1).log(2)).set(~table["policy"].is_between(1, 10), 0.0)
    row = next(row for row in content["contenders"] if row["list"] == "sft")
    assert row["validation"]["ndcg@10"] == pytest.approx((gained * table["weight"]).mean())
    assert row["validation"]["ndcg@10_as_logged"] == pytest.approx(gained.mean())

    alike = Run.open(out, ["decide.exposure_power=0"]).decide()
    assert not alike["exposure_weighted"]
    table = pl.read_parquet(out / "fuse" / "sft" / "validation.parquet")
    assert table["weight"].to_list() == [1.0] * len(table)


def test_init_writes_the_roles_into_the_recipe(shop: Shop, tmp_path: Path) -> None:
    made = command("init", *shop, "--out", tmp_path / "r.yaml")
    assert made.status == 0 and "it is taken for --impressions" in made.err
    data = yaml.safe_load((tmp_path / "r.yaml").read_text(encoding="utf-8"))["data"]
    assert data["logs"] == [str(shop.orders)] and data["columns"]["user"] == "customer_id"
    assert data["impressions"]["logs"] == [str(shop.impressions)]
    assert data["impressions"]["columns"]["clicked"] == "clicked"


def test_items_shown_at_random_have_a_role_of_their_own(shop: Shop, tmp_path: Path) -> None:
    pl.read_parquet(shop.impressions).select("user_id", "item_id", "clicked").write_parquet(tmp_path / "random.parquet")
    made = command("init", *shop, "--random", tmp_path / "random.parquet", "--out", tmp_path / "r.yaml")
    assert made.status == 0, made.err
    data = yaml.safe_load((tmp_path / "r.yaml").read_text(encoding="utf-8"))["data"]
    columns = {"user": "user_id", "item": "item_id", "clicked": "clicked"}
    assert data["random"] == {"logs": [str(tmp_path / "random.parquet")], "columns": columns}
    said = command("prepare", *shop, "--out", tmp_path / "run", *OF_ORDERS, *SETTINGS)
    assert said.status == 0, said.err
    train = (tmp_path / "run/prepare/train.parquet").read_bytes()
    joined = command("prepare", "--random", tmp_path / "random.parquet", "--out", tmp_path / "run")
    assert joined.status == 0, joined.err
    assert (tmp_path / "run/prepare/train.parquet").read_bytes() == train
    judges, learnt = (pl.read_parquet(tmp_path / f"run/prepare/{name}.parquet") for name in ("random", "impressions"))
    assert len(judges) > 1000 and judges.join(learnt, on=["user", "item"], how="semi").is_empty()
    both = command("init", *shop, "--random", shop.impressions, "--out", tmp_path / "both.yaml")
    assert both.status == 2 and "nothing may learn from what judges lists" in both.err


@pytest.mark.slow
def test_items_shown_at_random_choose_the_power_of_exposure(shop: Shop, tmp_path: Path) -> None:
    """The fused list of each power orders their clicks as the file says, and the best one's cases weigh so."""
    sold = pl.read_csv(shop.orders)
    users, items = sold["customer_id"].unique().sort(), sold["sku"].unique().sort()
    draw = np.random.default_rng(3)
    rows = [
        (user, items[int(item)], int(draw.random() < 0.4))
        for user in users
        for item in draw.integers(len(items), size=6)
    ]
    table = pl.DataFrame(rows, schema=["user_id", "item_id", "clicked"], orient="row").unique(["user_id", "item_id"])
    table.write_parquet(tmp_path / "random.parquet")
    out = tmp_path / "run"
    settings = [*SETTINGS, "--set", "tokenizer.quantizer=kmeans", "--set", "tokenizer.collisions=level"]
    random = ["--random", tmp_path / "random.parquet"]
    made = command("decide", *shop, *random, "--out", out, "--reward", "feature", "--json", *settings)
    assert made.status == 0, made.err
    content = json.loads(made.out)
    tuned = content["exposure_power"]
    assert [*tuned["auc"]] == ["0.5", "0.0", "1.0"] and len({*tuned["auc"].values()}) == 3
    assert tuned["power"] == float(max(tuned["auc"], key=lambda power: tuned["auc"][power]))
    assert tuned["power"] not in map(float, tuned["against"]) and all(
        found[0] < 0 for found in tuned["against"].values()
    )
    assert f"to the power {tuned['power']:g}: its fused list" in " ".join(decision_sentences(content))

    def weights() -> list[float]:
        return pl.read_parquet(out / "fuse" / "sft" / "validation.parquet")["weight"].to_list()

    chosen = weights()
    for power, auc in tuned["auc"].items():
        fixed = Run.open(out, [f"decide.exposure_power={power}"]).decide()
        assert fixed["exposure_power"] is None
        row = next(row for row in fixed["contenders"] if row["list"] == "fuse")
        assert row["random"]["auc"] == pytest.approx(auc)
        assert (weights() == chosen) == (float(power) == tuned["power"])


def test_random_exposures_that_the_log_holds_judge_nothing_and_are_refused(shop: Shop, tmp_path: Path) -> None:
    orders = pl.read_csv(shop.orders, schema_overrides={"sku": pl.String})
    orders.select("customer_id", "sku", clicked=pl.lit(1)).write_csv(tmp_path / "random.csv")
    said = command("prepare", shop.orders, "--random", tmp_path / "random.csv", "--out", tmp_path / "run", *OF_ORDERS)
    assert said.status == 2 and "data.random: judges nothing" in said.err and said.err.count("\n") == 1


def test_rows_that_cannot_be_read_end_decide_as_they_end_prepare(shop: Shop, tmp_path: Path) -> None:
    (tmp_path / "orders.csv").write_text(shop.orders.read_text(encoding="utf-8") + "u1,i00001,soon\n", encoding="utf-8")
    said = command("decide", tmp_path / "orders.csv", "--out", tmp_path / "run", *SETTINGS)
    assert said.status == 2 and "created_at is 'soon'" in said.err and "data.max_bad_rows is 0" in said.err
    assert "--max-bad-rows 1)" in said.err and not (tmp_path / "run" / "prepare").exists()


def test_decide_takes_the_options_that_its_errors_name(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decide(run: Run, *_: object, **__: object) -> dict[str, object]:
        return {"rows": run.config.data.max_bad_rows, "reward": run.config.reward.identity()}

    monkeypatch.setattr(Run, "decide", decide)
    forest = ["--reward", "lightgbm", "--set", "reward.model=ranker.txt"]
    said = command("decide", shop.orders, "--out", tmp_path / "run", "--max-bad-rows", 3, *forest, "--json")
    assert json.loads(said.out) == {"rows": 3, "reward": {"kind": "lightgbm", "model": "ranker.txt"}}
    place = command("decide", tmp_path / "orders.2026.csv.gz")
    assert place.status == 2 and place.err.endswith("a new one such as --out runs/orders\n")
    unknown = command("decide", shop.orders, "--out", tmp_path / "new", "--reward", "ranker.txt")
    assert unknown.status == 2 and unknown.err.count("\n") == 1 and "tag" not in unknown.err
    assert "--reward ranker.txt: no such file" in unknown.err
    assert command("decide", "--reward", "lambdarank").err.startswith("adagrpo: decide: give log files and --out DIR")


def test_decide_names_the_columns_of_the_item_table_that_it_does_not_read(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Run, "decide", lambda *_, **__: {})
    items = tmp_path / "items.csv"
    rows = [f"i{n:05},Lamp {n},{n}.5,2026-01-0{1 + n % 9}\n" for n in range(100)]
    items.write_text("sku,title,price,available_from\n" + "".join(rows), encoding="utf-8")
    for more, unread in (([], "price, available_from"), (["--set", "data.items.groups=[available_from]"], "price")):
        said = command("decide", shop.orders, "--items", items, "--out", tmp_path / "run", *more, "--json")
        assert (
            said.status == 0 and f"note: neither texts nor attributes of items.csv: {unread}; they are kept" in said.err
        ), said.err


def test_what_can_be_read_and_may_be_wrong_is_said_once_each(tmp_path: Path) -> None:
    spelt = ("u1", "u1 ", "u1\u00a0")
    rows = [(spelt[n % 3] if n < 9 else f"u{n % 9}", f"i{n % 7}", f"2026-04-01 00:{n:02}") for n in range(60)]
    text = "".join(",".join(row) + "\n" for row in [*rows, rows[0], rows[20]])
    (tmp_path / "orders.csv").write_text("user_id,item_id,timestamp\n" + text, encoding="utf-8")
    (tmp_path / "items.csv").write_text("item_id,title\n" + "".join(f"i{n},t\n" for n in range(6)) + "i5 ,t\n")
    items = ["--set", f"data.items={{path: {tmp_path / 'items.csv'}, text: [title]}}"]
    said = command("prepare", tmp_path / "orders.csv", "--out", tmp_path / "run", *items)
    assert said.status == 0, said.err
    users = "note: several spellings of 1 user such as 'u1', 'u1 ', 'u1\\xa0'"
    repeats = "note: exact duplicates, of user, item and time: 2, each of which counts again;"
    missing = "note: items.csv describes 6 of the 7 items of the logs; an item without a row there has neither text"
    assert [said.err.count(line) for line in (f"{users}, of 1 item such as 'i5', 'i5 ': ", repeats, missing)] == [1] * 3
    looked = command("inspect", tmp_path / "orders.csv")
    assert [looked.out.count(line) for line in (f"{users}: they", repeats)] == [1] * 2
    assert json.loads(command("inspect", tmp_path / "orders.csv", "--json").out)["notes"][0].startswith(repeats)


@pytest.mark.parametrize("verb", ["init", "prepare", "decide"])
def test_files_whose_columns_differ_are_refused_without_roles(shop: Shop, tmp_path: Path, verb: str) -> None:
    other = tmp_path / "other.csv"
    other.write_text("customer_id,sku,created_at,event\nu1,i1,2026-01-01,view\n", encoding="utf-8")
    refused = command(verb, shop.orders, other, "--out", tmp_path / "made")
    assert refused.status == 2 and refused.err.count("\n") == 1 and not (tmp_path / "made").exists()
    assert f"{other}: has 'event' (event) where {shop.orders} has no event" in refused.err
    assert "--orders FILE, --impressions FILE, --items FILE" in refused.err
    clicks = command(verb, "--orders", shop.impressions, "--out", tmp_path / "made")
    assert clicks.status == 2 and "so not every row is an order; give --impressions" in clicks.err
    alone = command(verb, "--impressions", shop.impressions, "--out", tmp_path / "made")
    assert alone.status == 2 and "--orders FILE" in alone.err


def test_inspect_looks_at_files_of_one_role(shop: Shop, tmp_path: Path) -> None:
    items = tmp_path / "items.csv"
    pl.DataFrame({"item": [1], "title": ["a"]}).write_csv(items)
    for other in (shop.impressions, items):
        said = command("inspect", shop.orders, other)
        assert said.status == 2 and "inspect looks at files of one role" in said.err
    missing = command("inspect", shop.orders, "nowhere.csv")
    assert missing.status == 2 and "nowhere.csv" in missing.err and "one role" not in missing.err
    assert command("inspect", shop.impressions).status == 0


def test_an_item_table_among_the_files_is_seen(shop: Shop, tmp_path: Path) -> None:
    items = tmp_path / "items.csv"
    items.write_text("sku,title\n" + "".join(f"i{n:05},Lamp {n}\n" for n in range(100)), encoding="utf-8")
    made = command("init", shop.orders, items, "--out", tmp_path / "r.yaml")
    assert made.status == 0 and "has no column of users: it is taken for --items" in made.err
    assert yaml.safe_load((tmp_path / "r.yaml").read_text(encoding="utf-8"))["data"]["items"]["text"] == ["title"]


@pytest.mark.parametrize(
    ("column", "said"),
    [
        ("clicked", "no column of impressions looks like clicked"),
        ("timestamp", "no column of impressions looks like timestamp"),
    ],
)
def test_impressions_without_clicks_or_times_are_refused(shop: Shop, tmp_path: Path, column: str, said: str) -> None:
    log = tmp_path / "shown.parquet"
    pl.read_parquet(shop.impressions).drop(column).write_parquet(log)
    refused = command("init", shop.orders, "--impressions", log, "--out", tmp_path / "r.yaml")
    assert refused.status == 2 and refused.err.count("\n") == 1 and said in refused.err


def test_times_that_cannot_be_compared_are_refused(shop: Shop, tmp_path: Path) -> None:
    log = tmp_path / "shown.parquet"
    pl.read_parquet(shop.impressions).with_columns(pl.col("timestamp") // 3_600_000 - 470_000).write_parquet(log)
    refused = command("prepare", shop.orders, log, "--out", tmp_path / "run", *OF_ORDERS)
    assert refused.status == 2 and "are seconds since 1970, and these are of a unit that is not known" in refused.err


@pytest.fixture
def served(shop: Shop, tmp_path: Path) -> tuple[Path, Path]:
    """The log of a service that answered the shop's users, with hashes for ids, and its key."""
    key = tmp_path / "key"
    user_hash = read_key(key)
    log = LocalExposureLog(tmp_path / "exposures")
    shown = pl.read_parquet(shop.impressions).group_by("user_id", "timestamp", maintain_order=True)
    for place, ((user, time), rows) in enumerate(shown):
        name, at, slate = str(place), float(time) / 1000, tuple(rows["item_id"])  # type: ignore[arg-type]
        answer = Exposure(
            request_id=name,
            time=at,
            slate=slate,
            arm="sft",
            model_version="m",
            catalog_version="c",
            user_hash=user_hash(str(user)),
            key_version=user_hash.fingerprint,
        )
        log.write([answer])
        clicks = rows.filter(pl.col("clicked").cast(pl.Boolean))["item_id"]
        log.feedback([Feedback(request_id=name, item=item, kind="click", time=at + 5) for item in clicks])
        if place == 400:
            break
    log.close()
    return tmp_path / "exposures", key


def test_what_a_service_logged_joins_the_run_that_served_it(
    served: tuple[Path, Path], shop: Shop, tmp_path: Path
) -> None:
    (log, key), out = served, tmp_path / "run"
    free = ["--set", "tokenizer.collisions=level"]
    before = command("prepare", shop.orders, "--out", out, *OF_ORDERS, *SETTINGS, *free)
    assert before.status == 0, before.err
    Run.open(out).tokenize()
    Run.open(out).sft()
    bytes_before = {name: (out / "prepare" / name).read_bytes() for name in SAME}
    refused = command("prepare", "--exposures", log, "--out", out)
    assert refused.status == 2 and "--user-key-file FILE" in refused.err
    (tmp_path / "other").write_text("another key of thirty bytes here")
    (tmp_path / "other").chmod(0o600)
    other = command("prepare", "--exposures", log, "--user-key-file", tmp_path / "other", "--out", out)
    assert other.status == 2 and "users is one of the logs under this key" in other.err
    joined = command("prepare", "--exposures", log, "--user-key-file", key, "--out", out, "--json")
    assert joined.status == 0, joined.err
    summary = json.loads(joined.out)
    assert summary["exposures"]["answers"] == 401 and summary["impressions"] > 0
    assert {name: (out / "prepare" / name).read_bytes() for name in SAME} == bytes_before
    run = Run.open(out)
    assert run.config.data.columns.user == "customer_id" and run.config.data.exposures is not None
    run.tokenize()
    run.sft()
    assert run.made == []
    assert run.config.data.exposures.clicks == ("click", "purchase")
    assert key.read_text().strip() not in (out / "run.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"impressions": {"logs": ["b"]}, "marketplace": {}}, "give logs"),
        ({"logs": ["a"], "impressions": {"logs": ["a"]}}, "'a' is named twice"),
        ({"logs": ["a"], "impressions": {"logs": ["b"]}, "split": {"kind": "impressions"}}, "give them as logs alone"),
        ({"exposures": {"path": "x"}, "marketplace": {}}, "give either logs or marketplace or exposures"),
    ],
)
def test_sources_that_do_not_stand_beside_each_other_are_refused(data: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        resolve_config({"data": data}, [], "recipe")


def test_feedback_on_an_earlier_list_tells_no_ranker_of_a_held_out_order(
    served: tuple[Path, Path], shop: Shop, tmp_path: Path
) -> None:
    """Each held-out item was on the first list, and its purchase came when it was ordered."""
    (log, key), tables = served, list[bytes]()
    for late in (False, True):
        if late:
            orders = pl.read_csv(shop.orders).with_columns(
                at=pl.col("created_at").str.to_datetime("%Y-%m-%d %H:%M:%S").dt.epoch("s")
            )
            user_hash, store = read_key(key), LocalExposureLog(log)
            for (user,), rows in orders.sort("at", maintain_order=True).group_by("customer_id", maintain_order=True):
                if len(rows) < 4:
                    continue
                at, item = float(rows["at"][0]) + 1, rows["sku"][-2]
                name = f"late {user}"
                store.write(
                    [
                        Exposure(
                            request_id=name,
                            time=at,
                            slate=(item,),
                            arm="sft",
                            model_version="m",
                            catalog_version="c",
                            user_hash=user_hash(str(user)),
                            key_version=user_hash.fingerprint,
                        )
                    ]
                )
                store.feedback([Feedback(request_id=name, item=item, kind="purchase", time=float(rows["at"][-2]))])
            store.close()
        out = tmp_path / f"run-{late}"
        orders_and_log = [shop.orders, "--exposures", log, "--user-key-file", key]
        made = command("prepare", *orders_and_log, "--out", out, *OF_ORDERS, *SETTINGS, "--json")
        assert made.status == 0, made.err
        assert json.loads(made.out)["exposures"]["answers"] > (401 if late else 400)
        tables.append((out / "prepare" / "impressions.parquet").read_bytes())
    assert tables[0] == tables[1]
