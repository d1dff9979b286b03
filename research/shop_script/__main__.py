"""Lists of `adagrpo decide`, out of the box, against a script of half an hour, in simulated shops.

    python -m research.shop_script --out runs/shop-script    # the same command continues
    python -m research.shop_script --table    # writes tables.md

`plan.yaml` is the plan. A row of `rows.jsonl` is a shop: HR@10 and true utility@10 of each list, and, of the primary
comparisons, the mean and the sum of squares of the differences.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml
from numpy.typing import NDArray

from adagrpo.cli.log_commands import recipe_of_logs
from adagrpo.cli.log_roles import by_role
from adagrpo.config.data import seconds_of
from adagrpo.config.yaml_text import parse_yaml
from adagrpo.pipeline import Run
from adagrpo.pipeline.files import RunData
from adagrpo.report.page import read_rows
from adagrpo.storage.writing import write_file
from research.command import run
from research.rows import add_row
from research.shop_script import script
from research.shop_script.shop import Shop, simulate, write

HERE = Path(__file__).parent
RESULTS = HERE / "rows.jsonl"
TOP, MONTH = 10, 30 * 86_400
EASE_AND_TASTES, LAMBDARANK, CLICKS = "EASE and tastes", "LambdaRank", "click model"
Values = NDArray[np.float64]


def main() -> None:
    """Measure what is missing, or print the table of what is there."""
    plan: dict[str, Any] = yaml.safe_load((HERE / "plan.yaml").read_text(encoding="utf-8"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/shop-script"), help="where runs are made; each goes again"
    )
    parser.add_argument("--table", action="store_true", help="write and print the table alone")
    given = parser.parse_args()
    done = {row["shop"] for row in read_rows(RESULTS)}
    for number in [] if given.table else plan["shops"]:
        if number not in done:
            add_row(RESULTS, measure(number, plan["settings"], given.out / f"shop-{number}"))
    text = table(list(read_rows(RESULTS)))
    write_file(HERE / "tables.md", f"# A script of half an hour: tables\n\n{text}\n")
    print(text)


def measure(number: int, settings: Sequence[str], folder: Path) -> dict[str, Any]:
    """Decide from a shop's files as the command line does, and ask the script for the same users and times."""
    shop = simulate(number)
    recipe, *_ = recipe_of_logs(by_role(write(shop, folder / "files")), folder.name, ())
    made = Run.create(parse_yaml(recipe), folder / "run", settings=[*settings, f"seed={number}"])
    content = made.decide()
    split, data = made.config.data.split, RunData(made)
    cases = data.measured_cases("test")
    users = [data.user_ids[user] for user in cases.users.tolist()]
    relevant = [{data.item_ids[item] for item in row if item >= 0} for row in cases.logged.tolist()]
    lists = {
        one["list"]: _top(made.checked("evaluate", one["list"], "predictions.parquet")) for one in content["contenders"]
    }
    lists |= script_lists(shop, seconds_of(str(split.validation_from)), seconds_of(str(split.test_from)), number)
    values = {name: _values(shop, users, relevant, found) for name, found in lists.items()}
    shutil.rmtree(folder)
    return {
        "shop": number,
        "chosen": content["chosen"],
        "cases": len(users),
        "hr": {name: float(hits.mean()) for name, (hits, _) in values.items()},
        "utility": {name: float(utility.mean()) for name, (_, utility) in values.items()},
        "primary": {
            "hr": _difference(values[content["chosen"]][0] - values[EASE_AND_TASTES][0]),
            "utility": _difference(values[content["chosen"]][1] - values[LAMBDARANK][1]),
        },
    }


def script_lists(shop: Shop, validation: float, test: float, seed: int) -> dict[str, dict[str, list[str]]]:
    """The script's lists of ten, by user."""
    before, middle, now = (
        script.known(shop.files, shop.users, shop.items, time) for time in (validation - MONTH, validation, test)
    )
    later = now.shown - before.shown, now.clicked - before.clicked
    scores = {
        "EASE": script.ease(now.bought),
        EASE_AND_TASTES: script.mixed(now),
        LAMBDARANK: script.lambdarank(middle, now, now.bought - middle.bought, seed),
        CLICKS: script.click_model(before, now, later, seed),
    }
    found = {}
    for name, of_all in scores.items():
        order = np.argsort(-np.where(now.bought > 0, -np.inf, of_all), axis=1)[:, :TOP]
        found[name] = {user: [shop.items[item] for item in row] for user, row in zip(shop.users, order, strict=True)}
    return found


def _top(path: Path) -> dict[str, list[str]]:
    table = pl.read_parquet(path).filter(pl.col("rank") <= TOP).sort("rank")
    return dict(table.group_by("user_id", maintain_order=True).agg("item_id").iter_rows())


def _values(
    shop: Shop, users: Sequence[str], relevant: Sequence[set[str]], lists: Mapping[str, Sequence[str]]
) -> tuple[Values, Values]:  # (N,) hits and mean utilities
    rows = {user: row for row, user in enumerate(shop.users)}
    columns = {item: column for column, item in enumerate(shop.items)}
    hits = [bool(wanted & {*lists.get(user, ())}) for user, wanted in zip(users, relevant, strict=True)]
    utility = [sum(shop.truth[rows[user], columns[item]] for item in lists.get(user, ())) / TOP for user in users]
    return np.array(hits, float), np.array(utility, float)


def _difference(values: Values) -> dict[str, float]:
    return {"mean": float(values.mean()), "squares": float((values**2).sum())}


def pooled(rows: Sequence[Mapping[str, Any]], metric: str) -> tuple[float, float, float]:
    """The mean difference over users and shops together, and its 95 % interval."""
    counts = np.array([row["cases"] for row in rows])
    mean = float(np.average([row["primary"][metric]["mean"] for row in rows], weights=counts))
    squares = sum(row["primary"][metric]["squares"] for row in rows)
    half = 1.96 * float(np.sqrt((squares / counts.sum() - mean**2) / counts.sum()))
    return mean, mean - half, mean + half


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Means over shops of each list, and the primary comparisons."""
    if not rows:
        return "no row yet"
    lines = ["| list | HR@10 | true utility@10 |", "|---|--:|--:|"]
    for name in rows[0]["hr"]:
        hr, utility = (np.mean([row[metric][name] for row in rows]) for metric in ("hr", "utility"))
        lines.append(f"| {name} | {hr:.4f} | {utility:.4f} |")
    lines += ["", "| shop | cases | chosen |", "|--:|--:|---|"]
    lines += [f"| {row['shop']} | {row['cases']:,} | {row['chosen']} |" for row in rows]
    lines += ["", "| the chosen list less | in | difference |", "|---|---|--:|"]
    for metric, name, rival in (("hr", "HR@10", EASE_AND_TASTES), ("utility", "true utility@10", LAMBDARANK)):
        mean, low, high = pooled(rows, metric)
        lines.append(f"| {rival} | {name} | {mean:+.4f} ({low:+.4f} to {high:+.4f}) |")
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
