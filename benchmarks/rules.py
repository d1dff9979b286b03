"""Served lists under rules against measured ones, item by item, and what rules take for a list.

    python -m benchmarks.rules --users 7500 --items 1000 --out runs/rules

A simulated shop of repeated orders is decided under `RULES`; then every test user (5,250 of 7,500) is answered.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from adagrpo.data.prepared import load_user_ids
from adagrpo.pipeline import ListOptions, Run
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.serve import recommender

__all__ = ["main", "products", "write_shop"]

DAY, START = 86_400, 1_600_041_600  # the first midnight
SETTINGS = (
    *("sft={epochs: 2, batch_size: 64, learning_rate: 2.0e-3}", "ranker={fit: {epochs: 2}}"),
    *("policy={width: 16, heads: 2, decoder_hidden: 16}", "threads=1"),
)
RULES = """
exclude: {in_stock: "no"}
available: {from: available_from, to: available_to}
had_within_days: 15
pins: [{item: p7, rank: 3}, {item: p59, rank: 5}]
boosts:
  - {where: {brand: acme}, by: 0.5}
  - {where: {category: [c1, c2]}, by: -1}
at_most: [{column: category, n: 2, within: 10}, {column: brand, n: 5}]
diversity: 0.2
"""


def main() -> None:
    """Compare, and print a line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--users", type=int, default=7500)
    parser.add_argument("--items", type=int, default=1000)
    parser.add_argument("--out", type=Path, required=True, help="A new folder.")
    options = parser.parse_args()
    options.out.mkdir(parents=True)
    command = write_shop(options.out, options.users, options.items)
    done = subprocess.run([sys.executable, "-m", "adagrpo", *command, "--json"], check=True, stdout=subprocess.PIPE)
    decided = json.loads(done.stdout)
    run = Run.open(options.out / "run")
    table = pl.read_parquet(run.path("rules", decided["chosen"], "predictions.parquet")).sort("rank")
    measured = dict(table.group_by("user_id", maintain_order=True).agg("item_id").iter_rows())
    served, _ = recommender(run, ListOptions(as_measured=True))
    data = RunData(run)
    cases = data.cases("test")
    users = load_user_ids(run.path("prepare")).gather(cases.users).to_list()
    queries = data.queries_of(cases, np.arange(len(users)))
    seconds, answers = {}, []
    for name, rules in (("without", None), ("with", served.rules)):
        served.rules, begun = rules, time.process_time()
        answers = [one for first in range(0, len(queries), 64) for one in served.recommend(queries[first : first + 64])]
        seconds[name] = time.process_time() - begun
    equal = sum(answer.items == measured[user] for user, answer in zip(users, answers, strict=True))
    row: dict[str, Any] = {"list": decided["chosen"], "users": len(users), "equal": equal}
    row |= {f"cpu_ms_a_list_{name}": round(1000 * value / len(users), 3) for name, value in seconds.items()}
    print(json.dumps(row | decided["under_rules"]["change"]))


def write_shop(folder: Path, users: int, items: int) -> list[str]:
    """Write a shop's orders, products and rules, and return the words of the command that decides.

    Every ten days each user orders some of four products again, and one of anything.
    """
    draw = np.random.default_rng(0)
    own = [draw.choice(items, 4, replace=False) for _ in range(users)]
    lines = [
        (f"u{user}", f"p{item}", START + (10 * n + user % 10) * DAY, f"o{user}-{n}")
        for user in range(users)
        for n in range(10)
        for item in {*draw.choice(own[user], 2, replace=False).tolist(), int(draw.integers(items))}
    ]
    table = pl.DataFrame(lines, schema=["customer_id", "product_id", "time", "order_id"], orient="row")
    table.write_csv(folder / "orders.csv")
    products(items).write_parquet(folder / "products.parquet")
    (folder / "rules.yaml").write_text(RULES, encoding="utf-8")
    files = {"--items": "products.parquet", "--rules": "rules.yaml", "--out": "run"}
    given = [word for option, name in files.items() for word in (option, str(folder / name))]
    return ["decide", str(folder / "orders.csv"), *given, *(word for key in SETTINGS for word in ("--set", key))]


def products(items: int) -> pl.DataFrame:
    """Items in six categories and three brands; every tenth is out of stock, some come or leave during the log."""
    first = datetime.fromtimestamp(START, UTC).date()
    at = range(items)
    return pl.DataFrame(
        {
            "product_id": [f"p{item}" for item in at],
            "title": [f"thing number {item}" for item in at],
            "category": [f"c{item % 6}" for item in at],
            "brand": [("acme", "other", "third")[item % 3] for item in at],
            "in_stock": ["no" if item % 10 == 9 and item != 59 else "yes" for item in at],
            "available_from": [first + timedelta(60 + item % 60) if item % 7 == 3 else None for item in at],
            "available_to": [first + timedelta(50 + item % 60) if item % 7 == 5 else None for item in at],
        }
    )


if __name__ == "__main__":
    main()
