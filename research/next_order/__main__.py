"""Measure `decide` under both questions.

    python -m research.next_order --data DIR --out runs/next-order
    python -m research.next_order --table    # writes the tables of README.md

`plan.yaml` is the plan. A row of `rows.jsonl` is a run: metrics on test of every list, and of the primary's runs the
values of each user. What has its row is not measured again.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml
from numpy.typing import NDArray

from adagrpo.cli.log_commands import recipe_of_logs
from adagrpo.cli.log_roles import by_role
from adagrpo.config.yaml_text import parse_yaml
from adagrpo.data.logs.question import question_lines
from adagrpo.data.prepared import load_cases, load_item_ids, load_user_ids
from adagrpo.metrics import hit_rate, recall, target_rank_in
from adagrpo.pipeline import Run
from adagrpo.report.page import read_rows
from adagrpo.statistics import crossed_interval, crossed_parts
from adagrpo.storage.writing import write_file
from research.command import run
from research.rows import add_row

HERE = Path(__file__).parent
ROWS = HERE / "rows.jsonl"
OWN, TOP = "own", 10
BEGIN, END = "<!-- rows -->", "<!-- end of rows -->"
PRIMARY = ("online-retail", "next basket by time")
SHOWN = ("hr@10", "recall@10", "ndcg@10")


def main() -> None:
    """Measure what is missing, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the folder of the sets")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/next-order"), help="where runs are made; each goes again"
    )
    parser.add_argument("--table", action="store_true", help="write and print the tables alone")
    given = parser.parse_args()
    plan = yaml.safe_load((HERE / "plan.yaml").read_text(encoding="utf-8"))
    if not given.table:
        if given.data is None:
            parser.error("--data: the folder of the sets")
        for name, one in plan["sets"].items():
            for asked, settings in one["asked"].items():
                for seed in one.get("seeds", {}).get(asked, plan["seeds"][:1]):
                    logs = [given.data / path for path in one["logs"]]
                    measure((name, asked, seed), logs, [*plan["settings"], *settings], given.out)
    text = "\n\n".join(tables(list(read_rows(ROWS))))
    page = HERE / "README.md"
    write_file(page, with_rows(page.read_text(encoding="utf-8"), text))
    print(text)


def with_rows(page: str, text: str) -> str:
    """The page with the text between its two marks."""
    head, _, rest = page.partition(BEGIN)
    return f"{head}{BEGIN}\n\n{text}\n\n{END}{rest.partition(END)[2]}"


def measure(key: tuple[str, str, int], logs: list[Path], settings: list[str], out: Path) -> None:
    """Decide as the command line does, and write the row, unless it is there."""
    name, asked, seed = key
    if any((row["set"], row["asked"], row["seed"]) == key for row in read_rows(ROWS)):
        return
    folder = out / f"{name}-{asked.replace(' ', '-')}-{seed}"
    recipe, _, question = recipe_of_logs(by_role(logs), name, ())
    content = parse_yaml(recipe)
    content["data"].pop("max_bad_rows", None)
    made = Run.create(content, folder, settings=[*settings, f"seed={seed}"])
    decision = made.decide()
    lists = {row["list"]: row["test"] for row in decision["contenders"]}
    row = {"set": name, "asked": asked, "seed": seed, "chosen": decision["chosen"], "why": decision["why"]}
    row |= {"cases": decision["cases"], "test": lists}
    row["notes"] = question_lines(question, made.config.data.split)[:1] if question is not None else []
    row["milliseconds"] = {one["list"]: one["processor_milliseconds"] for one in decision["contenders"]}
    if (name, asked) == PRIMARY:
        row["values"] = {one: values_of(made, one) for one in dict.fromkeys((decision["chosen"], OWN))}
    add_row(ROWS, row)
    shutil.rmtree(folder)
    print(f"{folder.name}: {row['chosen']}", flush=True)


def values_of(made: Run, name: str) -> dict[str, list[float]]:
    """Each user's HR@10 and recall@10, in the order of the test cases."""
    prepared = made.path("prepare")
    cases, users = load_cases(prepared, "test"), load_user_ids(prepared)
    assert cases.sizes is not None, "a case is a basket"
    numbers = pl.DataFrame([load_item_ids(prepared)]).with_row_index("item")
    rows = pl.DataFrame([users.gather(cases.users).alias("user_id")]).with_row_index("row")
    found = pl.read_parquet(made.checked("evaluate", name, "predictions.parquet")).filter(pl.col("rank") <= TOP)
    found = found.join(numbers, on="item_id").join(rows, on="user_id")
    items = np.full((len(cases), TOP), -1, np.int64)
    items[found["row"].to_numpy(), found["rank"].to_numpy() - 1] = found["item"].to_numpy()
    ranks = target_rank_in(items, cases.logged)
    values = {"hr@10": hit_rate(ranks, TOP), "recall@10": recall(ranks, TOP, cases.sizes)}
    return {metric: column.round(4).tolist() for metric, column in values.items()}


def tables(rows: list[dict[str, Any]]) -> list[str]:
    """The primary test, then every list of each question."""
    if not rows:
        return ["no rows yet"]
    return [*primary(rows), *(of_question(part) for part in _questions(rows).values())]


def primary(rows: list[dict[str, Any]]) -> list[str]:
    """The chosen list less the user's own items, of whole seeds."""
    own = [row for row in rows if (row["set"], row["asked"]) == PRIMARY]
    if len(own) < 2:
        return []
    lines = []
    for metric in ("recall@10", "hr@10"):
        gained = [_values(row, row["chosen"], metric) - _values(row, OWN, metric) for row in own]
        mean, low, high, _ = crossed_interval(crossed_parts(gained))
        lines.append(f"{metric}, chosen less own: {mean:+.4f} ({low:+.4f} to {high:+.4f}), {len(own)} seeds")
    return ["\n".join([f"chosen: {', '.join(row['chosen'] for row in own)}", *lines])]


def _values(row: Mapping[str, Any], name: str, metric: str) -> NDArray[np.float64]:
    return np.array(row["values"][name][metric])


def _questions(rows: list[dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["set"], row["asked"]), []).append(row)
    return found


def of_question(rows: list[dict[str, Any]]) -> str:
    """Means over the seeds of each list, the best first by NDCG@10."""
    names = [name for name in rows[0]["test"] if all(name in row["test"] for row in rows)]
    means = {
        name: {
            metric: np.mean([row["test"][name][metric] for row in rows])
            for metric in SHOWN
            if metric in rows[0]["test"][name]
        }
        for name in names
    }
    shown = [metric for metric in SHOWN if metric in means[names[0]]]
    head = f"{rows[0]['set']}, {rows[0]['asked']}: {rows[0]['cases']:,} validation cases, chosen {rows[0]['chosen']}"
    lines = [f"| list | {' | '.join(shown)} |", f"|---|{'--:|' * len(shown)}"]
    ordered = sorted(names, key=lambda one: -means[one]["ndcg@10"])
    lines += [f"| {name} | {' | '.join(f'{means[name][metric]:.4f}' for metric in shown)} |" for name in ordered]
    return "\n".join([head, "", *lines])


if __name__ == "__main__":
    run(main)
