"""Compare the chosen list as measured with the same list refit on all interactions.

    python -m research.refit --data DIR --out runs/refit
    python -m research.refit --data DIR --out runs/refit --sets ml-100k --seeds 1    # a part of it
    python -m research.refit --table    # writes the table of README.md

`plan.yaml` is the plan. A row of `rows.jsonl` is a run: metrics of the list and its parts, as measured and refit, and
each user's values of the list. What has its row is not measured again; a run that was killed goes on.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import polars as pl
import yaml
from numpy.typing import NDArray

from adagrpo.cli.log_commands import recipe_of_logs
from adagrpo.cli.log_roles import by_role
from adagrpo.config.data import seconds_of
from adagrpo.config.yaml_text import parse_yaml
from adagrpo.data import splits
from adagrpo.data.logs.log_fields import UNITS
from adagrpo.data.prepared import load_cases, load_item_ids, load_user_ids
from adagrpo.data.simulation.marketplace import simulate
from adagrpo.data.simulation.world import Marketplace
from adagrpo.errors import UserError
from adagrpo.evaluation.predictions import ranks_in
from adagrpo.lists.names import parse_list
from adagrpo.metrics import hit_rate, ndcg, recall
from adagrpo.pipeline import Run
from adagrpo.pipeline.directory import RunDirectory, weights_of
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.list_makers import ListMaker, lists_of
from adagrpo.pipeline.refit import make_refit, refit_of
from adagrpo.report.page import read_rows
from adagrpo.statistics import crossed_interval, crossed_parts
from adagrpo.storage.writing import write_file
from adagrpo.types import Cases, Ragged
from research.command import run
from research.rows import add_row

HERE = Path(__file__).parent
ROWS = HERE / "rows.jsonl"
TOP = 10
PARTS = ("sft", "ranker", "item_knn")  # of a fused list, each also by itself
BEGIN, END = "<!-- rows -->", "<!-- end of rows -->"
DAY = 86_400
FIRST = 1_700_000_000 // DAY * DAY  # of the simulated shop, in seconds since 1970


def main() -> None:
    """Measure what is missing, and write the table."""
    plan = yaml.safe_load((HERE / "plan.yaml").read_text(encoding="utf-8"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the folder of the sets")
    parser.add_argument("--out", type=Path, default=Path("runs/refit"), help="where runs are made; each goes again")
    parser.add_argument("--sets", nargs="+", choices=plan["sets"], default=list(plan["sets"]))
    parser.add_argument("--seeds", nargs="+", type=int, choices=plan["seeds"], default=plan["seeds"])
    parser.add_argument("--table", action="store_true", help="write and print the table alone")
    given = parser.parse_args()
    if not given.table:
        if given.data is None:
            parser.error("--data: the folder of the sets")
        for name in given.sets:
            for seed in given.seeds:
                measure(name, plan["sets"][name], seed, plan["settings"], given.data, given.out)
    text = table(list(read_rows(ROWS)))
    page = HERE / "README.md"
    write_file(page, with_rows(page.read_text(encoding="utf-8"), text))
    print(text)


def with_rows(page: str, text: str) -> str:
    """The page with the text between its two marks."""
    head, _, rest = page.partition(BEGIN)
    return f"{head}{BEGIN}\n\n{text}\n\n{END}{rest.partition(END)[2]}"


def measure(name: str, about: Mapping[str, Any], seed: int, settings: list[str], data: Path, out: Path) -> None:
    """Decide as the command line does, refit, answer the later events, and write the row, unless it is there."""
    if any((row["set"], row["seed"]) == (name, seed) for row in read_rows(ROWS)):
        return
    folder = out / f"{name}-{seed}"
    whole = log_of(about, data, folder)
    if about.get("last"):
        made = run_of(whole, folder / "run", [*settings, f"seed={seed}", "decide.refit=false"])
        decision = made.decide()
        with patch.object(splits, "everything", until_last):  # the test items stay unseen
            refit = make_refit(made, decision["chosen"])
        cases = RunData(made).cases("test")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        seen, until = folder / "seen.parquet", about["until"]
        limit: str | float = str(until)  # of times as text
        if "unit" in about:
            limit = seconds_of(str(until)) * UNITS[about["unit"]]
        pl.read_parquet(whole).filter(pl.col(about["times"]) < limit).write_parquet(seen)
        made = run_of(seen, folder / "run", [*settings, f"seed={seed}"])
        decision = made.decide()
        refit = decision["refit"]
        parts = f"validation_from: {until - timedelta(days=7)}, test_from: {until}"
        baskets = str(made.config.data.split.baskets).lower()
        later = run_of(whole, folder / "later", [f"data.split={{kind: temporal, {parts}, baskets: {baskets}}}"])
        later.prepare()
        cases = as_numbered(load_cases(later.path("prepare"), "test"), later, made)
    chosen = decision["chosen"]
    names = list(dict.fromkeys([chosen, *(PARTS if parse_list(chosen).order.startswith("fuse") else ())]))
    found = {
        kind: {one: values_of(which, one, cases) for one in names}
        for kind, which in (("measured", made), ("refit", refit_of(made)))
    }
    trained = made.content("prepare", "summary.json")["training_interactions"]
    row = {"set": name, "seed": seed, "chosen": chosen, "why": decision["why"], "cases": len(cases)}
    row |= {"interactions": {"measured": trained, "refit": len(RunData(refit_of(made)).training.values)}}
    row |= {"refit_seconds": refit["seconds"]}
    row["means"] = {
        kind: {
            one: {metric: float(column.mean()) for metric, column in values.items()} for one, values in lists.items()
        }
        for kind, lists in found.items()
    }
    row["values"] = {
        kind: {metric: column.round(4).tolist() for metric, column in lists[chosen].items()}
        for kind, lists in found.items()
    }
    add_row(ROWS, row)
    shutil.rmtree(folder)
    print(f"{folder.name}: {chosen}", flush=True)


def log_of(about: Mapping[str, Any], data: Path, folder: Path) -> Path:
    """The whole log of a set; a simulated shop's is written first, a step of its users a day."""
    if "log" in about:
        found: Path = data / about["log"]
        return found
    path = folder / "log.parquet"
    folder.mkdir(parents=True, exist_ok=True)
    shown = simulate(Marketplace(**about["world"])).impressions
    shown.with_columns(timestamp=FIRST + DAY * pl.col("timestamp")).write_parquet(path)
    return path


def run_of(log: Path, folder: Path, settings: Sequence[str]) -> Run:
    """A run of the recipe that `adagrpo decide` makes of a log."""
    recipe, _, _ = recipe_of_logs(by_role([log]), folder.parent.name, ())
    content = parse_yaml(recipe)
    content["data"].pop("max_bad_rows", None)
    return Run.create(content, folder, settings=settings)


def until_last(lengths: NDArray[np.int64]) -> splits.Split:
    """All but what leave-one-out tests on is for training."""
    kept = np.where(lengths >= 3, lengths - 1, lengths)
    none = np.full_like(lengths, -1)
    return splits.Split(kept, none, none, np.inf)


def as_numbered(cases: Cases, theirs: RunDirectory, ours: RunDirectory) -> Cases:
    """The cases of another run in the items and users of ours.

    An item that ours lacks is one that no list holds; a user that it lacks is -1.
    """
    items = load_item_ids(ours.path("prepare")).cast(pl.String)
    place = {item: number for number, item in enumerate(items.to_list())}
    names = load_item_ids(theirs.path("prepare")).cast(pl.String).to_list()
    number = np.array([place.get(item, len(place)) for item in names], np.int32)
    histories = replace(cases.histories, values=number[cases.histories.values])
    if (histories.values == len(place)).any():
        raise UserError("a history holds an item that the log before T2 lacks")
    relevant = None if cases.relevant is None else Ragged(number[cases.relevant.values], cases.relevant.offsets)
    known = {user: row for row, user in enumerate(load_user_ids(ours.path("prepare")).cast(pl.String).to_list())}
    asked = load_user_ids(theirs.path("prepare")).cast(pl.String).gather(cases.users).to_list()
    users = np.array([known.get(user, -1) for user in asked], np.int32)
    return replace(cases, users=users, histories=histories, targets=number[cases.targets], relevant=relevant)


def values_of(which: RunDirectory, name: str, cases: Cases) -> dict[str, NDArray[np.float64]]:
    """Each case's metrics of a list."""
    data, called = RunData(which), parse_list(name)
    data.user_ids = [*data.user_ids, None]  # -1 is a user that nobody knows
    served = ListMaker(Models(data)).recommender(called, which.path(*weights_of(called.policy or "sft")))
    ranks, sizes = ranks_in(lists_of(served, data, cases).items, cases), cases.sizes
    hits = hit_rate(ranks, TOP)
    found = hits if sizes is None else recall(ranks, TOP, sizes)
    return {"ndcg@10": ndcg(ranks, TOP, sizes), "recall@10": found, "hr@10": hits}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line a set and metric: as measured, refit, and the difference with its interval over users and seeds."""
    if not rows:
        return "no rows yet"
    lines = [
        "| set | list | as measured | refit | refit less as measured | seeds | users |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for name in dict.fromkeys(row["set"] for row in rows):
        own = [row for row in rows if row["set"] == name]
        chosen = ", ".join(dict.fromkeys(row["chosen"] for row in own))
        for metric in ("ndcg@10", "recall@10", "hr@10"):
            values = {kind: [np.array(row["values"][kind][metric]) for row in own] for kind in ("measured", "refit")}
            gained = [after - before for before, after in zip(values["measured"], values["refit"], strict=True)]
            means = [f"{np.mean([column.mean() for column in values[kind]]):.4f}" for kind in ("measured", "refit")]
            text = f"{np.mean([column.mean() for column in gained]):+.4f}"
            if len(own) > 1:
                _, low, high, _ = crossed_interval(crossed_parts(gained))
                text += f" ({low:+.4f} to {high:+.4f})"
            cells = (f"{name}, {metric}", chosen, *means, text, str(len(own)), f"{own[0]['cases']:,}")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
