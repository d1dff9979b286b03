"""A simulated shop whose list is refreshed every night, against its first list and item-kNN rebuilt each night.

    python -m research.nights --out runs/nights
    python -m research.nights --out runs/nights --shops turnover --seeds 1    # a part of it
    python -m research.nights --table    # writes the table of README.md

`plan.yaml` is the plan. A row of `rows.jsonl` is a shop and a seed: each night's refresh, and the true utility@10 of
the three lists by user. What has its row is not measured again.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
import yaml
from numpy.typing import NDArray

from adagrpo.cli.log_commands import recipe_of_logs
from adagrpo.cli.log_roles import by_role
from adagrpo.config.yaml_text import parse_yaml
from adagrpo.lists.query import Query, past_of_queries
from adagrpo.lists.sources import NearestItems, similarities
from adagrpo.pipeline import Run
from adagrpo.report.page import read_rows
from adagrpo.statistics import crossed_interval, crossed_parts
from adagrpo.storage.writing import write_file
from adagrpo.types import Histories, Ragged
from research.command import run
from research.refit.__main__ import with_rows
from research.rows import add_row
from research.worlds.simulators import BEGINNING, DAY, World, simulate

HERE = Path(__file__).parent
ROWS = HERE / "rows.jsonl"
TOP = 10
LISTS = ("refreshed", "first", "item_knn")


def main() -> None:
    """Measure what is missing, and write the table."""
    plan = yaml.safe_load((HERE / "plan.yaml").read_text(encoding="utf-8"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/nights"), help="where runs are made; each goes again")
    parser.add_argument("--shops", nargs="+", choices=plan["shops"], default=list(plan["shops"]))
    parser.add_argument("--seeds", nargs="+", type=int, choices=plan["seeds"], default=plan["seeds"])
    parser.add_argument("--table", action="store_true", help="write and print the table alone")
    given = parser.parse_args()
    if not given.table:
        for seed in given.seeds:
            for shop in given.shops:
                measure(plan, shop, seed, given.out)
    text = table(list(read_rows(ROWS)))
    page = HERE / "README.md"
    write_file(page, with_rows(page.read_text(encoding="utf-8"), text))
    print(text)


def measure(plan: Mapping[str, Any], shop: str, seed: int, out: Path) -> None:
    """Decide on the first days, refresh night by night, and write the row, unless it is there."""
    if any((row["shop"], row["seed"]) == (shop, seed) for row in read_rows(ROWS)):
        return
    knobs = dict(plan["shops"][shop])
    world = simulate(shop, knobs.pop("world"), **knobs)
    folder = out / f"{shop}-{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    orders = world.files["orders.csv"]
    items, log = folder / "items.csv", folder / "orders.csv"
    world.files["items.csv"].write_csv(items)
    now = BEGINNING + DAY * plan["days"]
    orders.filter(pl.col("time") < now).write_csv(log)
    recipe, *_ = recipe_of_logs(by_role([log, items]), folder.name, ())
    made = Run.create(parse_yaml(recipe), folder / "run", settings=[*plan["settings"], f"seed={seed}"])
    started = time.process_time()
    content = made.decide()
    of_decide = time.process_time() - started
    first = Run.open(shutil.copytree(folder / "run", folder / "first"))
    nights, values = [], []
    for night in range(1, plan["nights"] + 1):
        rows = folder / f"night-{night}.csv"
        orders.filter(pl.col("time").is_between(now, now + DAY, closed="left")).write_csv(rows)
        now += DAY
        started = time.process_time()
        about = made.refresh([rows])
        taken = time.process_time() - started
        found = utilities(made, first, world, orders, now)
        values.append(found)
        kept = ("rows", "new_items", "cases", "takes_over", "least", "items_admitted", "ndcg@10", "gain", "by_least")
        nights.append(
            {name: about[name] for name in kept if name in about}
            | {"utility": {name: round(float(found[name].mean()), 5) for name in LISTS}}
            | {"visits": len(found), "processor_seconds": round(taken, 1)}
        )
        print(f"{folder.name}, night {night}: {nights[-1]}", flush=True)
    by_user = pl.concat(values).group_by("user").agg(pl.col(LISTS).mean()).sort("user")
    row = {"shop": shop, "seed": seed, "chosen": content["chosen"], "decide_processor_seconds": round(of_decide, 1)}
    row |= {"baskets": made.config.data.split.baskets, "nights": nights}
    row |= {"users": by_user["user"].to_list(), "values": {name: by_user[name].round(5).to_list() for name in LISTS}}
    add_row(ROWS, row)
    shutil.rmtree(folder)


def utilities(made: Run, first: Run, world: World, orders: pl.DataFrame, now: int) -> pl.DataFrame:
    """True utility@10 of the three lists at each visit of the day that begins now: user, and a column a list."""
    visits = [one for one in world.visits if now <= one[1] < now + DAY]
    users, times = [world.users[one[0]] for one in visits], [one[1] for one in visits]
    past = orders.filter(pl.col("time") < now + DAY).sort("time", maintain_order=True)
    had = {str(user): rows for (user,), rows in past.group_by("user", maintain_order=True)}
    before = [had[user].filter(pl.col("time") < at) for user, at in zip(users, times, strict=True)]
    histories, moments = [one["item"].to_list() for one in before], [one["time"].to_list() for one in before]
    lists = {"item_knn": nearest(made, orders.filter(pl.col("time") < now), histories, moments, times)}
    for name, which in (("refreshed", made), ("first", first)):  # asked for at the end of the day
        given = {"times": moments, "now": now + DAY, "users": users, "popular": True}
        lists[name] = [[str(item) for item in one] for one in which.recommend(histories, TOP, **given).items]
    place = {item: number for number, item in enumerate(world.items)}
    found = {
        name: [sum(float(truth[place[i]]) for i in one) / TOP for (*_, truth), one in zip(visits, own, strict=True)]
        for name, own in lists.items()
    }
    return pl.DataFrame({"user": users} | found)


def nearest(
    made: Run, orders: pl.DataFrame, histories: Sequence[list[str]], moments: Sequence[list[int]], times: Sequence[int]
) -> list[list[str]]:
    """Lists of item-kNN counted on all orders so far, of all items sold so far; where nothing is near, popular ones."""
    counts = orders["item"].value_counts(sort=True)
    ids = counts["item"].sort().to_list()
    place = {item: number for number, item in enumerate(ids)}
    sequences = (
        orders.sort("user", "time", maintain_order=True).group_by("user", maintain_order=True).agg("item")["item"]
    )
    rows = [[place[item] for item in one] for one in sequences.to_list()]
    training = Ragged.of(np.concatenate(rows).astype(np.int32), np.array([len(one) for one in rows]))
    source = NearestItems(similarities(training, len(ids)))
    popular = [str(item) for item in counts["item"].to_list()]
    grouped, excluded = made.config.data.split.baskets, made.config.evaluation.exclude_history
    found = []
    for history, moment, at in zip(histories, moments, times, strict=True):
        known = [number for number, item in enumerate(history) if item in place]
        had = [place[history[number]] for number in known][-(10**6 if grouped else made.config.max_history) :]
        listed: list[str] = []
        if had:
            query = Query(had, days=[moment[number] / DAY for number in known][-len(had) :], now=at / DAY)
            batch = Histories(torch.tensor([had]), torch.tensor([len(had)]))
            if grouped:
                batch = batch._replace(past=past_of_queries([query], grouped))
            scores = source.scores(batch)[0].numpy()
            order = np.argsort(-scores, kind="stable")
            listed = [ids[item] for item in order if np.isfinite(scores[item])]
        listed += [item for item in popular if item not in set(listed)]
        found.append([item for item in listed if not (excluded and item in history)][:TOP])
    return found


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line a shop: true utility@10 of the three lists, and differences with intervals over users and seeds."""
    if not rows:
        return "no rows yet"
    lines = [
        "| shop | list | first day's | item-kNN rebuilt | refreshed | less the first day's | less item-kNN |"
        " took over | time, of `decide` | seeds |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for shop in dict.fromkeys(row["shop"] for row in rows):
        own = [row for row in rows if row["shop"] == shop]
        values = {name: [np.array(row["values"][name]) for row in own] for name in LISTS}
        means = {name: float(np.mean([column.mean() for column in columns])) for name, columns in values.items()}
        nights = [night for row in own for night in row["nights"]]
        shares = [
            night["processor_seconds"] / row["decide_processor_seconds"] for row in own for night in row["nights"]
        ]
        cells = [
            shop,
            ", ".join(dict.fromkeys(row["chosen"] for row in own)),
            *(f"{means[name]:.4f}" for name in ("first", "item_knn", "refreshed")),
            *(_difference(values["refreshed"], values[name]) for name in ("first", "item_knn")),
            f"{sum(night['takes_over'] for night in nights)} of {len(nights)}",
            f"{100 * np.mean(shares):.0f} %",
            str(len(own)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _difference(one: Sequence[NDArray[np.float64]], other: Sequence[NDArray[np.float64]]) -> str:
    gained = [after - before for after, before in zip(one, other, strict=True)]
    text = f"{np.mean([column.mean() for column in gained]):+.4f}"
    if len(gained) == 1:
        half = 1.959964 * gained[0].std(ddof=1) / np.sqrt(len(gained[0]))
        return f"{text} (± {half:.4f})"
    _, low, high, _ = crossed_interval(crossed_parts(gained))
    return f"{text} ({low:+.4f} to {high:+.4f})"


if __name__ == "__main__":
    run(main)
