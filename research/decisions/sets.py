"""What `adagrpo decide` serves on public logs, and what every other list would have given there.

    python -m research.decisions.sets --data DIR --out runs/decisions --sets lastfm
    python -m research.decisions.sets --table

DIR holds the sets as `examples.datasets` writes them; recipes are those of `research.fair_trial`. A row has
what was chosen and, for every contender, HR@10 and NDCG@10 on validation and test; `gained` is what the fused list has
more of HR@10 on test, with 95 % intervals over users; `seconds` are of runs that nobody interrupted. `--train` lets the
trained arms of `sets.yaml` compete too. What has its row is not measured again.
`sets-november.jsonl` has runs of November's code, before lists had optional features, with trained arms on two sets,
and `sets-weights-alone.jsonl` such ones before fused lists had a network and successors.
"""

from __future__ import annotations

import argparse
import base64
import re
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
import yaml
from numpy.typing import NDArray

from adagrpo.console import StderrConsole
from adagrpo.data.prepared import load_cases, load_item_ids, load_user_ids
from adagrpo.lists.names import FUSE, FUSE_WITHOUT_REWARD, RERANK, REWARD, START, parse_list
from adagrpo.metrics import hit_rate
from adagrpo.pipeline import Run
from adagrpo.report.page import read_rows
from adagrpo.report.tables import Table
from adagrpo.statistics import Interval, crossed_interval, crossed_parts, mean_interval
from research.command import run
from research.fair_trial.tune import folder_of, recipe_of
from research.figures.public_sets import SETS, label
from research.rows import add_row

HERE = Path(__file__).parent
RESULTS = HERE / "sets.jsonl"
KEY = ("set", "seed", "trained")
TOP = 10
SHOWN = {
    "popularity": "popularity",
    "item-kNN": "item_knn",
    "EASE": "ease",
    "sequential ranker": "ranker",
    "reward": REWARD,
    "policy": START,
    "re-ranked": RERANK,
    "fused, no reward": FUSE_WITHOUT_REWARD,
    "fused": FUSE,
}
LONG = ("popularity", "item-kNN", "fused, no reward")  # in the longer table alone


def main() -> None:
    """Measure what is missing, or print the table of what is there."""
    parser = arguments(__doc__)
    parser.add_argument("--train", action="store_true", help="trained arms compete too")
    given = parser.parse_args()
    if not given.table:
        for seed in given.seeds:
            for name in given.sets:
                _measure(name, seed, given.train, given.data, given.out)
    rows = read_rows(RESULTS)
    print(table(rows), gains(rows), trained(rows), sep="\n\n")


def arguments(description: str | None) -> argparse.ArgumentParser:
    """What the studies of public sets in this folder take."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the folder of all sets")
    parser.add_argument("--out", type=Path, help="where the runs of `research.decisions.sets` are, or are made")
    parser.add_argument("--sets", nargs="+", default=[])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--table", action="store_true", help="print the table alone")
    return parser


def measured(
    results: Path, given: argparse.Namespace, measure: Callable[[str, int], Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """Measure, by set and seed, what `arguments` name and has no row, unless the table alone is wanted; all rows."""
    if not given.table:
        torch.set_num_threads(1)
        done = {(row["set"], row["seed"]) for row in read_rows(results)}
        for seed in given.seeds:
            for name in given.sets:
                if (name, seed) not in done:
                    add_row(results, {"set": name, "seed": seed} | dict(measure(name, seed)))
    return list(read_rows(results))


def _measure(name: str, seed: int, train: bool, data: Path, out: Path) -> None:
    key = dict(zip(KEY, (name, seed, train), strict=True))
    if any(all(row[part] == value for part, value in key.items()) for row in read_rows(RESULTS)):
        return
    plan, trial = (yaml.safe_load(path.read_text("utf-8")) for path in (HERE / "sets.yaml", TRIAL))
    own = plan["sets"].get(name, {})
    of = own.get("of", name)
    config = recipe_of(
        trial,
        of,
        *plan["settings"],
        *plan["december"]["settings"],
        *own.get("settings", []),
        *plan["trained" if train else "untrained"],
        f"seed={seed}",
    )
    made = Run(out / f"{name}-{seed}", config, folder_of(trial, of, data), StderrConsole())
    started = time.process_time()
    content = made.decide(train=train)
    seconds = time.process_time() - started
    contenders = {
        row["list"]: {part: row[part] for part in ("validation", "test", "milliseconds")}
        for row in content["contenders"]
    }
    about = {name: content[name] for name in ("chosen", "best", "cases", "warning", "training", "doubts")}
    ranks = _ranks(made, list(contenders))
    hits = {name: (found > 0).astype(np.float64) for name, found in ranks.items()}
    gained = {name: list(mean_interval(hits[FUSE] - hit)[:3]) for name, hit in hits.items() if name != FUSE}
    measured = {"contenders": contenders, "gained": gained, "seconds": round(seconds, 1)}
    add_row(RESULTS, key | about | measured | {"ranks": {name: packed(found) for name, found in ranks.items()}})


def _ranks(made: Run, names: Sequence[str]) -> dict[str, NDArray[np.uint8]]:
    """The places 1 to 10 of the targets in lists, in the order of test cases; 0: not there."""
    prepared = made.path("prepare")
    cases, items, users = load_cases(prepared, "test"), load_item_ids(prepared), load_user_ids(prepared)
    targets = pl.DataFrame({"user_id": users.gather(cases.users), "item_id": items.gather(cases.targets)})

    def places(name: str) -> NDArray[np.uint8]:
        first = predictions(made, name).filter(pl.col("rank") <= 10).select("user_id", "item_id", "rank")
        found = targets.join(first, on=["user_id", "item_id"], how="left", maintain_order="left")
        return found["rank"].fill_null(0).to_numpy().astype(np.uint8)

    return {name: places(name) for name in names}


def packed(ranks: NDArray[np.uint8]) -> str:
    """Ranks (U,) as text: bytes, by zlib, in base 85."""
    return base64.b85encode(zlib.compress(ranks.tobytes(), 9)).decode("ascii")


def unpacked(text: str) -> NDArray[np.uint8]:
    """The ranks (U,) of such a text."""
    return np.frombuffer(zlib.decompress(base64.b85decode(text)), dtype=np.uint8)


def predictions(made: Run, name: str) -> pl.DataFrame:
    """The measured lists of test cases, a row an item, by the name of the list."""
    trained = name != START and parse_list(name).order == "policy"
    return pl.read_parquet(made.path("evaluate", name, *(["best"] if trained else []), "predictions.parquet"))


TRIAL = HERE.parent / "fair_trial" / "plan.yaml"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """HR@10 / NDCG@10 on test of every contender, the mean over seeds, of n if fewer have it; the chosen in bold."""
    names = list(dict.fromkeys(name for row in rows for name in row["contenders"]))
    lines = ["| set | seeds | " + " | ".join(names) + " |", "|---|--:|" + "--:|" * len(names)]
    for found in dict.fromkeys((row["set"], row["trained"]) for row in rows):
        own = [row for row in rows if (row["set"], row["trained"]) == found]
        chosen = {row["chosen"] for row in own}
        cells = []
        for name in names:
            tests = [row["contenders"][name]["test"] for row in own if name in row["contenders"]]
            means = [np.mean([test[metric] for test in tests]) for metric in ("hr@10", "ndcg@10")] if tests else []
            text = " / ".join(f"{mean:.4f}".removeprefix("0") for mean in means) or "–"
            text += f" ({len(tests)} of {len(own)})" if 0 < len(tests) < len(own) else ""
            cells.append(f"**{text}**" if name in chosen else text)
        label = f"{found[0]}, trained arms too" if found[1] else found[0]
        lines.append(f"| {label} | {len({row['seed'] for row in own})} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def lists(rows: Sequence[Mapping[str, Any]], short: bool = False) -> Table:
    """HR@10 on test of the lists of runs without trained arms, means over seeds, the best of a line in bold.

    *Served* is the list that each run chose. Differences have an interval as `difference` gives it. A list that was not
    measured with every seed has none of it.

    Args:
        rows: of `sets.jsonl`.
        short: without the lists of `LONG`, what was served, the differences, and variants.
    """
    names = [name for name in SHOWN if not (short and name in LONG)]
    variants = ("-ties", "-alike") if short else ("-ties",)
    measured = dict.fromkeys(row["set"] for row in rows if not row["set"].endswith(variants))
    places = [*SETS]
    lines, bold = [], set()
    for data in sorted(measured, key=lambda name: places.index(name.removesuffix("-alike"))):
        own = [row for row in rows if row["set"] == data and not row["trained"]]
        means = [_mean([row["contenders"].get(SHOWN[name]) for row in own]) for name in names]
        bold.add((len(lines), 1 + int(np.nanargmax(means))))
        cells = ["–" if np.isnan(value) else f"{value:.4f}".removeprefix("0") for value in means]
        if not short:
            served = _mean([row["contenders"][row["chosen"]] for row in own])
            cells.append(f"{served:.4f}".removeprefix("0"))
            for other in (RERANK, FUSE_WITHOUT_REWARD):
                gained = difference(
                    *([hit_rate(unpacked(row["ranks"][name]), TOP) for row in own] for name in (FUSE, other))
                )
                cells.append(interval(*(f"{100 * value:+.2f}" for value in gained[:3])))
        lines.append((label(data) + (f", {len(own)} seeds" if len(own) > 1 else ""), *cells))
    more = () if short else ("served", "fused over re-ranked, points", "over fused, no reward")
    return Table.of(("HR@10", *names, *more), lines, best=bold)


def _mean(found: Sequence[Mapping[str, Any] | None]) -> float:
    """The mean HR@10 on test of a contender over seeds; not a number where it was not measured."""
    return float(np.mean([np.nan if one is None else one["test"]["hr@10"] for one in found]))


def gains(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the fused list has more of HR@10 on test than each other list, points; a row a run without trained arms."""
    own = [row for row in rows if not row["trained"]]
    names = list(dict.fromkeys(name for row in own for name in row["gained"]))
    lines = ["| set | seed | " + " | ".join(f"over {name}" for name in names) + " |", "|---|--:|" + "--:|" * len(names)]
    for row in own:
        gained = [row["gained"].get(name) for name in names]  # the reward alone is left out where it is slow
        cells = ["–" if one is None else interval(*(f"{100 * end:+.2f}" for end in one)) for one in gained]
        lines.append(f"| {row['set']} | {row['seed']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def trained(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the best trained and fused list has more than the fused one: on validation, as `decide` says, and on test.

    The first interval is corrected for the number of trained lists; HR@10 is in points.
    """
    lines = ["| set | seed | chosen | best trained | NDCG@10, validation | HR@10, test |", "|---|--:|---|---|--:|--:|"]
    for row in (row for row in rows if row["trained"]):
        best, *ends = re.findall(r"(\S+) has (\S+) \[(\S+), (\S+)\]", row["training"])[0]
        found = -100 * np.array(row["gained"][best])[[0, 2, 1]]
        cells = row["set"], row["seed"], row["chosen"], best, interval(*ends), interval(*map("{:+.2f}".format, found))
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def difference(values: Sequence[NDArray[np.float64]], others: Sequence[NDArray[np.float64]]) -> Interval:
    """What lists have more than others, with a 95 % interval over users and seeds; of one seed, over its users.

    Args:
        values, others: (U,) of each seed.
    """
    differences = [a - b for a, b in zip(values, others, strict=True)]
    return mean_interval(differences[0]) if len(differences) == 1 else crossed_interval(crossed_parts(differences))


def interval(mean: str, low: str, high: str) -> str:
    """An estimate with its interval, from their texts."""
    return f"{mean} ({low} to {high})"


if __name__ == "__main__":
    run(main)
