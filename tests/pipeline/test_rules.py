"""Rules of a shop: lists under them by hand, what is served equal to what was measured, and what they cost."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

from adagrpo.data.prepared import load_cases, load_impressions, load_item_ids, load_user_ids
from adagrpo.errors import UserError
from adagrpo.lists import Query
from adagrpo.pipeline import ListOptions, Run
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.list_makers import load_matrix
from adagrpo.pipeline.list_parts import LoggedHistories
from adagrpo.pipeline.list_rules import end_of_training, measure_under_rules
from adagrpo.pipeline.make import make
from adagrpo.pipeline.outputs import keep_settings
from adagrpo.pipeline.serve import Operation, _Wanted, recommender
from adagrpo.report.decision import decision_table, decision_text
from adagrpo.serving.model_manager import Asked

from ..command_line import command

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks.rules import RULES, products, write_shop

DAY, ITEMS, USERS = 86_400, 60, 300


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run, dict[str, Any]]:
    """A shop of 300 customers, decided under rules."""
    folder = tmp_path_factory.mktemp("shop")
    done = command(*write_shop(folder, USERS, ITEMS), "--json")
    assert done.status == 0, done.err
    return folder, Run.open(folder / "run"), json.loads(done.out)


def histories(run: Run) -> tuple[list[str], list[list[str]], list[list[float]], list[float]]:
    """Users of the test cases, their histories, when these were, in seconds, and the time of the case."""
    prepared = run.path("prepare")
    cases, items, users = load_cases(prepared, "test"), load_item_ids(prepared), load_user_ids(prepared)
    rows, had = range(len(cases)), cases.histories
    assert had.days is not None and cases.days is not None
    times = [(DAY * had.days[slice(*had.offsets[row : row + 2])]).tolist() for row in rows]
    asked = [items.gather(had.row(row)).to_list() for row in rows]
    return users.gather(cases.users).to_list(), asked, times, (DAY * cases.days).tolist()


def lists_in(folder: Path) -> dict[str, list[str]]:
    table = pl.read_parquet(folder / "predictions.parquet").sort("rank")
    return dict(table.group_by("user_id", maintain_order=True).agg("item_id").iter_rows())


@pytest.mark.slow
def test_what_is_served_under_rules_is_what_was_measured(shop: tuple[Path, Run, dict[str, Any]]) -> None:
    _, run, content = shop
    measured, users = lists_in(run.path("rules", content["chosen"])), histories(run)
    assert len(users[0]) == USERS
    for moment in {*users[3]}:
        asked = [one[:3] for one in zip(*users, strict=True) if one[3] == moment]
        when = {"times": [times for *_, times in asked], "now": moment, "users": [user for user, *_ in asked]}
        found = run.recommend([history for _, history, _ in asked], 10, as_measured=True, **when)
        assert found.items == [measured[user][:10] for user, *_ in asked]
    served = Run.open(run.directory, ["rules=null"])  # one sees the rules
    without = served.recommend(users[1][:1], 10, times=users[2][:1], now=users[3][0], as_measured=True)
    assert without.items[0] != measured[users[0][0]][:10]


@pytest.mark.slow
def test_the_service_answers_with_the_measured_lists(shop: tuple[Path, Run, dict[str, Any]]) -> None:
    _, run, content = shop
    measured, users = lists_in(run.path("rules", content["chosen"])), histories(run)
    serving = _Wanted(Run.open(run.directory), ListOptions(as_measured=True)).load(Operation())
    assert serving.about["rules"] == content["under_rules"]["rules"]
    known = serving.recommender.known
    queries = [
        Query(known(history)[0], days=[at / DAY for at in times], now=now / DAY, user=user)
        for user, history, times, now in zip(*users, strict=True)
    ]
    answers = [
        one
        for first in range(0, USERS, 64)
        for one in serving.answer([Asked(serving, q) for q in queries[first : first + 64]])
    ]
    assert [answer.list.items for answer in answers] == [measured[user] for user in users[0]]
    open_lists = _Wanted(Run.open(run.directory, ["rules=null"]), ListOptions()).load(Operation())
    assert open_lists.versions["model"] != serving.versions["model"]


@pytest.mark.slow
def test_a_thousand_users_get_the_measured_lists(shop: tuple[Path, Run, dict[str, Any]], tmp_path: Path) -> None:
    write_shop(tmp_path, 1500, ITEMS)  # `benchmarks.rules` answers five times as many
    recipe = shop[1].recipe
    recipe["data"] |= {"logs": [tmp_path / "orders.csv"]}
    recipe["data"]["items"] |= {"path": tmp_path / "products.parquet"}
    run = Run.create(recipe, tmp_path / "run", settings={"sft.epochs": 1})
    run.prepare()
    run.tokenize()
    run.sft()
    run.stage("item_knn")  # lists of a policy and fused ones: 300 users, above
    measured = lists_in(make(run, "rules/item_knn", measure_under_rules(run, "item_knn")))
    served, _ = recommender(run, ListOptions("item_knn"))
    users, *rest = histories(run)
    queries = [
        Query(served.known(history)[0], days=[at / DAY for at in times], now=now / DAY)
        for history, times, now in zip(*rest, strict=True)
    ]
    firsts = range(0, len(queries), 64)
    answers = [one.items for first in firsts for one in served.recommend(queries[first : first + 64])]
    assert len(users) > 1000 and answers == [measured[user] for user in users]


@pytest.mark.slow
def test_every_list_keeps_the_rules_and_some_would_not_without(shop: tuple[Path, Run, dict[str, Any]]) -> None:
    _, run, content = shop
    table = {row["product_id"]: row for row in products(ITEMS).iter_rows(named=True)}
    broken = {"stock": 0, "dates": 0, "late": 0, "category": 0, "brand": 0}
    for place, under in (("rules", True), ("evaluate", False)):
        lists, pinned = lists_in(run.path(place, content["chosen"])), 0
        for user, history, times, now in zip(*histories(run), strict=True):
            shown, day = lists[user][:10], datetime.fromtimestamp(now, UTC).date()
            rows = [table[item] for item in shown]
            gone = [r for r in rows if (r["available_from"] or day) > day or (r["available_to"] or day) < day]
            late = {item for item, at in zip(history, times, strict=True) if now - at <= 15 * DAY}
            most = {name: max(Counter(row[name] for row in rows).values()) for name in ("category", "brand")}
            found = {
                "stock": any(row["in_stock"] == "no" for row in rows),
                "dates": bool(gone),
                "late": bool(late & {*shown}),
                "category": most["category"] > 2,
                "brand": most["brand"] > 5,
            }
            if under:
                assert not any(found.values()), (user, found)
                assert (shown[2] == "p7") == ("p7" not in late)
                assert "p59" not in shown  # it comes after all cases
                pinned += shown[2] == "p7"
            broken = {name: count + found[name] for name, count in broken.items()}
        assert not under or 0 < pinned < USERS
    assert min(broken.values()) > 0, broken


@pytest.mark.slow
def test_the_cost_is_the_difference_of_two_evaluations(shop: tuple[Path, Run, dict[str, Any]]) -> None:
    _, run, content = shop
    data = RunData(run)
    cases, ids = data.cases("test"), data.item_ids.to_list()
    values = {}
    for place in ("rules", "evaluate"):
        lists = lists_in(run.path(place, content["chosen"]))
        gains, tail = [], []
        for row, user in enumerate(load_user_ids(run.path("prepare")).gather(cases.users).to_list()):
            wanted = {ids[item] for item in cases.relevant.row(row)}  # type: ignore[union-attr]
            ideal = sum(1 / np.log2(rank + 2) for rank in range(min(10, len(wanted))))
            gains.append(
                sum((item in wanted) / np.log2(rank + 2) for rank, item in enumerate(lists[user][:10])) / ideal
            )
            tail += [data.tail[ids.index(item)] for item in lists[user][:10]]
        coverage = len({item for found in lists.values() for item in found[:10]}) / ITEMS
        values[place] = np.array([np.mean(gains), coverage, np.mean(tail)])
    names = ("ndcg@10", "coverage@10", "tail_share@10")
    change = content["under_rules"]["change"]
    assert [change[name] for name in names] == pytest.approx(values["rules"] - values["evaluate"], abs=1e-9)
    assert change["ndcg@10"] < -0.01
    row = next(row for row in decision_table(content).rows if row[0] == f"{content['chosen']} under rules")
    assert f"{values['rules'][0]:.4f}" in row and f"{100 * values['rules'][1]:.1f} %" in row
    said = f"by {change['ndcg@10']:+.4f} NDCG@10, {100 * change['coverage@10']:+.1f} points of coverage"
    assert said in decision_text(content)


@pytest.mark.slow
def test_recommend_takes_a_file_of_other_rules(shop: tuple[Path, Run, dict[str, Any]], tmp_path: Path) -> None:
    folder = shop[0]
    pl.DataFrame({"user_id": [f"u{user}" for user in range(20)]}).write_csv(tmp_path / "users.csv")
    (tmp_path / "pin.yaml").write_text("pins: [{item: p3, rank: 1}]", encoding="utf-8")
    (tmp_path / "none.yaml").write_text("", encoding="utf-8")
    found = {}
    for name in ("pin", "none"):
        out = tmp_path / name
        given = ("--users", tmp_path / "users.csv", "--rules", tmp_path / f"{name}.yaml", "--out", out)
        done = command("recommend", "--run", folder / "run", *given)
        assert done.status == 0, done.err
        found[name] = pl.read_parquet(out / "part-00000.parquet")["items"].to_list()
    assert all(
        shown == ["p3", *[item for item in plain if item != "p3"]][:10]
        for shown, plain in zip(*found.values(), strict=True)
    )
    assert "p3" not in {plain[0] for plain in found["none"]} or len({plain[0] for plain in found["none"]}) > 1
    again = ("--users", tmp_path / "users.csv", "--out", tmp_path / "none")
    refused = command("recommend", "--run", folder / "run", *again)  # by the rules of the run
    assert refused.status == 2 and "holds lists of another" in refused.err


@pytest.mark.slow
def test_reasons_are_those_of_the_list(shop: tuple[Path, Run, dict[str, Any]], tmp_path: Path) -> None:
    """Each item's features add up to its score, and it stands elsewhere without the rules that are said to move it."""
    folder, run, _ = shop
    users = [f"u{user}" for user in range(12)]
    pl.DataFrame({"user_id": users}).write_csv(tmp_path / "users.csv")
    common = ("recommend", "--run", folder / "run", "--users", tmp_path / "users.csv", "--arm", "fuse")
    done = command(*common, "--explain", "--out", tmp_path / "told")
    assert done.status == 0, done.err
    assert command(*common, "--out", tmp_path / "plain").status == 0
    told, plain = (pl.read_parquet(tmp_path / name / "part-00000.parquet") for name in ("told", "plain"))
    assert told.drop("reasons").equals(plain)
    lists = {}
    for off in ("pins", "boosts", "at_most", "diversity"):
        text = yaml.safe_dump({name: rule for name, rule in yaml.safe_load(RULES).items() if name != off})
        (tmp_path / f"{off}.yaml").write_text(text, encoding="utf-8")
        assert command(*common, "--rules", tmp_path / f"{off}.yaml", "--k", 50, "--out", tmp_path / off).status == 0
        lists[off] = pl.read_parquet(tmp_path / off / "part-00000.parquet")["items"].to_list()
    near = load_matrix(run.path("item_knn", "neighbours.safetensors"))
    number = {name: item for item, name in enumerate(load_item_ids(run.path("prepare")).to_list())}
    logs, moved, matched = LoggedHistories(RunData(run)), Counter[str](), 0
    for row, (user, items, scores, texts) in enumerate(told.iter_rows()):
        reasons = [json.loads(text) for text in texts]
        found = [(score, one) for score, one in zip(scores, reasons, strict=True) if one["features"]]
        assert len(found) >= len(items) - 1  # the pin alone may be no candidate
        mean = np.mean([score for score, _ in found])
        for score, one in found:
            assert sum(one["features"].values()) == pytest.approx(score - mean, abs=1e-4) and one["sources"]
            assert not {"ease", "user_knn", "content"} & {*one["sources"]}  # features alone, which propose nothing
        had = {*logs.of(user)}  # type: ignore[misc]
        for rank, (item, one) in enumerate(zip(items, reasons, strict=True)):
            for before in one["history"].get("item_knn", []):
                assert number[before] in had and near[number[before], number[item]] > 0
                matched += 1
            elsewhere = {name for name, other in lists.items() if item not in other[row] or other[row][rank] != item}
            assert elsewhere == {*one["rules"]} & {*lists}
            moved.update(one["rules"])
    assert matched and all(moved[name] for name in ("pins", "boosts", "at_most", "exclude"))


@pytest.mark.slow
def test_what_was_shown_of_late_is_in_no_list_measured_or_served(tmp_path: Path) -> None:
    words = write_shop(tmp_path, 60, 30)
    orders = pl.read_csv(tmp_path / "orders.csv")
    shown = orders.select("customer_id", "time", clicked=pl.int_range(pl.len()) % 10 // 9).with_columns(
        pl.col("time") + 5 * DAY, product_id=pl.concat_str(pl.lit("p"), pl.col("time") // DAY % 30)
    )
    shown.write_csv(tmp_path / "shown.csv")
    (tmp_path / "rules.yaml").write_text("shown_within_days: 30", encoding="utf-8")
    done = command(*words, "--impressions", tmp_path / "shown.csv", "--set", "decide.refit=false", "--json")
    assert done.status == 0, done.err
    run, chosen = Run.open(tmp_path / "run"), json.loads(done.out)["chosen"]
    measured, users = lists_in(run.path("rules", chosen)), histories(run)
    late: dict[str, set[str]] = {}
    trained = len(load_impressions(run.path("prepare")))  # type: ignore[arg-type]
    at = shown.sort("time").head(trained)["time"].max()
    for user, when, _, item in shown.filter(pl.col("time") <= at).iter_rows():
        now = users[3][users[0].index(user)] if user in users[0] else 0
        if 0 <= now - when <= 30 * DAY:
            late.setdefault(user, set()).add(item)
    assert len(late) > 10 and not any(late[user] & {*measured[user]} for user in late)
    open_lists = lists_in(run.path("evaluate", chosen))
    assert any(late[user] & {*open_lists[user][:10]} for user in late)
    for user, history, times, now in list(zip(*users, strict=True))[:20]:
        found = run.recommend([history], times=[times], now=now, users=[user], arm=chosen)
        assert found.items[0] == measured[user][:10]


@pytest.mark.slow
def test_drawn_lists_are_refused(shop: tuple[Path, Run, dict[str, Any]], tmp_path: Path) -> None:
    folder, _, _ = shop
    done = command("serve", "--run", folder / "run", "--explore", 1, "--exposures", tmp_path / "exposures")
    assert done.status == 2 and "--explore: a drawn list has known probabilities only" in done.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("pin: []", "rules.yaml: unknown key 'pin'; did you mean 'pins'?"),
        (
            "at_most: [{column: category, n: 0}]",
            "rules.yaml: at_most.0.n: Input should be greater than or equal to 1 (found 0)",
        ),
        ("pins: [{item: p1, rank: 2}, {item: p2, rank: 2}]", "rules.yaml: pins: rank 2 is there twice"),
        (
            "boosts: [{range: {price: {blow: 3}}, by: 1}]",
            "rules.yaml: unknown key 'boosts.0.range.price.blow'; did you mean 'below'?",
        ),
        ("boosts: [{range: {price: {}}, by: 1}]", "boosts.0.range.price: a range has at_least, below or both"),
        ("[1]", "rules.yaml: a file of rules is a mapping, this is list"),
        ("a: [", "rules.yaml: not a YAML file"),
    ],
)
def test_a_wrong_file_is_refused_before_anything_is_made(
    shop: tuple[Path, Run, dict[str, Any]], tmp_path: Path, text: str, said: str
) -> None:
    (tmp_path / "rules.yaml").write_text(text, encoding="utf-8")
    given = ("--items", shop[0] / "products.parquet", "--rules", tmp_path / "rules.yaml", "--out", tmp_path / "run")
    done = command("decide", shop[0] / "orders.csv", *given)
    last = done.err.strip().splitlines()[-1]
    assert done.status == 2 and said in last and not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "pins: [{item: p999, rank: 1}]",
            "rules.pins.0.item: 'p999' is not in the catalogue; it takes ids as the logs have",
        ),
        (
            "at_most: [{column: categry, n: 2}]",
            "rules.at_most.0.column: the items have no group 'categry'; did you mean",
        ),
        (
            "boosts: [{range: {brand: {below: 3}}, by: 1}]",
            "rules.boosts.0.range.brand: brand holds 'acme', which is no number",
        ),
        ("shown_within_days: 3", "rules.shown_within_days: the logs do not say what was shown and when since 1970"),
        ("available: {from: title}", "rules.available.from: the items have no group 'title'"),
        ("available: {from: brand}", "rules.available.from: brand holds 'acme', which is no date such as 2026-01-31"),
    ],
)
@pytest.mark.parametrize("verb", ["decide", "recommend"])
def test_rules_that_do_not_fit_the_run_are_refused(
    shop: tuple[Path, Run, dict[str, Any]], tmp_path: Path, verb: str, text: str, said: str
) -> None:
    (tmp_path / "rules.yaml").write_text(text, encoding="utf-8")
    (tmp_path / "users.csv").write_text("user_id\nu1\n", encoding="utf-8")
    more = () if verb == "decide" else ("--users", tmp_path / "users.csv", "--out", tmp_path / "lists")
    done = command(verb, "--run", shop[0] / "run", "--rules", tmp_path / "rules.yaml", *more)
    assert done.status == 2 and said in done.err.strip().splitlines()[-1]
    assert Run.open(shop[0] / "run").config.rules == shop[1].config.rules


@pytest.mark.slow
def test_cases_without_a_time_are_at_the_end_of_training(shop: tuple[Path, Run, dict[str, Any]], copied: Path) -> None:
    last = pl.read_parquet(shop[1].path("prepare", "training_logs.parquet"))["timestamp"].max()
    assert end_of_training(RunData(shop[1])) == last / DAY  # type: ignore[operator]
    with pytest.raises(UserError, match=r"^rules: the logs have no times since 1970"):  # theirs count from 1000
        Run.open(copied, ['rules={"had_within_days": 3}']).decide()


@pytest.mark.slow
def test_rules_hold_in_a_later_version_of_the_catalogue(shop: tuple[Path, Run, dict[str, Any]], tmp_path: Path) -> None:
    run = Run.open(shutil.copytree(shop[0] / "run", tmp_path / "run"))
    new = products(ITEMS)[:2].with_columns(product_id=pl.Series(["p60", "p61"]), category=pl.lit("new"))
    new.write_parquet(tmp_path / "new.parquet")
    run.update_catalog(items=tmp_path / "new.parquet", delist=["p0"])
    rules = {"pins": [{"item": "p60", "rank": 2}, {"item": "p0", "rank": 1}], "diversity": 0.3}
    rules["at_most"] = [{"column": "category", "n": 1, "within": 4}]
    served = Run.open(tmp_path / "run", [f"rules={json.dumps(rules)}"])
    found = served.recommend([["p1", "p2"], ["p3"]])
    category = {row["product_id"]: row["category"] for row in products(ITEMS).iter_rows(named=True)} | {"p60": "new"}
    for items in found.items:
        assert items[1] == "p60" and "p0" not in items and len(items) == 10
        assert len({category[item] for item in items[:4]}) == 4 and "p61" not in items[:4]
    with pytest.raises(UserError, match=r"^rules.pins.0.item: 'p60' is not in the catalogue"):
        served.recommend([["p1"]], catalog=0)


@pytest.mark.slow
def test_a_service_that_loads_again_takes_the_rules_of_the_run(
    shop: tuple[Path, Run, dict[str, Any]], tmp_path: Path
) -> None:
    wanted = _Wanted(Run.open(shutil.copytree(shop[0] / "run", tmp_path / "run")), ListOptions())
    before = wanted.load(Operation())
    keep_settings(Run.open(tmp_path / "run", ['rules={"pins": [{"item": "p3", "rank": 1}]}']))  # as `decide` does
    after = wanted.load(Operation())
    assert "pins" in before.about["rules"] and after.about["rules"] == ["pins"]
    assert before.versions["model"] != after.versions["model"]
    assert after.recommender.recommend([Query([0])])[0].items[0] == "p3"


@pytest.mark.parametrize("name", ["sft", "popularity", "item_knn"])
def test_lists_of_the_next_item_are_served_as_measured_too(copied: Path, name: str) -> None:
    rules = {"pins": [{"item": 13, "rank": 2}], "diversity": 0.4, "exclude": {"item_id": [23, 43]}}
    run = Run.open(copied, [f"rules={json.dumps(rules)}"])
    measured = lists_in(make(run, f"rules/{name}", measure_under_rules(run, name)))
    cases, ids = load_cases(run.path("prepare"), "test"), load_item_ids(run.path("prepare"))
    users = load_user_ids(run.path("prepare")).gather(cases.users).to_list()
    histories = [ids.gather(cases.histories.row(row)).to_list() for row in range(len(cases))]
    assert run.recommend(histories, arm=name).items == [measured[user] for user in users]
    assert all(items[1] == 13 and not {23, 43} & {*items} for items in measured.values())


def test_a_run_without_rules_does_not_know_them(copied: Path) -> None:
    run = Run.open(copied)
    assert "rules" not in run.recipe
    served = run.recommend([["13", "23"]]).items
    assert Run.open(copied, ["rules={}"]).recommend([["13", "23"]]).items == served
