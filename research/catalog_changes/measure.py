"""How well new items are recommended without training, by age, against a policy that was trained again with them.

    python -m research.catalog_changes.measure research/catalog_changes/recipe.yaml \
        --data DIR/amazon18-scientific --out runs/changes --share 0.2 \
        --results research/catalog_changes/scientific.jsonl

New are the items that stand latest in their users' histories, on the mean: these logs have an order and no time. Half
of the users are cases: their logs end before their first new item, and each of their new items is a target. The others
are those who saw the new items first; an item of age `a` was seen by `a` of them, drawn at random. A policy trains on
what is left of the logs without new items. `adagrpo catalog update` then adds the items by their texts, and by the logs
of those who saw them. Against it stands a policy that trains on the same logs with those interactions in them.

An item is a target only if five others saw it, so that the cases of all ages are the same.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from adagrpo.config import load_config
from adagrpo.console import StderrConsole
from adagrpo.pipeline import CatalogVersion, Run, open_version, update_catalog
from adagrpo.pipeline.directory import events_of
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.storage.hashes import hash_file
from adagrpo.types import Cases, Ragged
from research.command import run
from research.rows import add_row

AGES = (0, 1, 2, 5)
LEAST_SEEN = max(AGES)
Case = tuple[list[int], int]  # history and target, in ids


@dataclass(frozen=True)
class World:
    """The logs, cut into what is known and what is new."""

    sequences: dict[int, list[int]]  # of each user, the oldest first, up to the first new item of a case
    new: frozenset[int]
    seen: dict[int, list[tuple[int, int]]]  # user and place of who saw a new item, in the order in which they did
    cases: list[Case]  # with new targets
    watched: frozenset[int]  # users who are cases

    @classmethod
    def cut(cls, interactions: pl.DataFrame, share: float, seed: int) -> World:
        """Choose the new items, and who sees them."""
        draw = np.random.default_rng(seed)
        table = interactions.sort("user_id", "position")
        place = (pl.col("position") / (pl.len().over("user_id") - 1)).alias("place")
        late = table.with_columns(place).group_by("item_id").agg(pl.col("place").mean())
        late = late.sort("place", "item_id", descending=[True, False])
        new = frozenset(late["item_id"][: round(share * len(late))].to_list())
        grouped = table.group_by("user_id", maintain_order=True).agg("item_id")
        sequences = dict(grouped.rows())
        users = list(sequences)
        watched = frozenset(user for user, coin in zip(users, draw.random(len(users)), strict=True) if coin < 0.5)
        seen: dict[int, list[tuple[int, int]]] = {}
        for user in draw.permutation(users).tolist():
            for at, item in enumerate(sequences[user]):
                if item in new and user not in watched:
                    seen.setdefault(item, []).append((user, at))
        cases: list[Case] = []
        kept = dict(sequences)
        for user in sorted(watched):
            places = [at for at, item in enumerate(sequences[user]) if item in new]
            if places:
                kept[user] = sequences[user][: places[0]]
            targets = [at for at in places if at >= 2 and len(seen.get(sequences[user][at], [])) >= LEAST_SEEN]
            cases += [(sequences[user][:at], sequences[user][at]) for at in targets]
        return cls(kept, new, seen, cases, watched)

    def log(self, age: int, users: bool = True) -> pl.DataFrame:
        """The logs in which new items are of an age; without `users`, of those alone who saw one."""
        shown = {entry for entries in self.seen.values() for entry in entries[:age]}
        rows = []
        for user, sequence in self.sequences.items():
            kept = [item for at, item in enumerate(sequence) if item not in self.new or (user, at) in shown]
            if users or any(item in self.new for item in kept):
                rows += [(user, item, place) for place, item in enumerate(kept)]
        return pl.DataFrame(rows, schema={"user_id": pl.Int32, "item_id": pl.Int32, "position": pl.Int16}, orient="row")


def main() -> None:
    """Measure what is not in the results yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--share", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--retrain", type=int, nargs="*", default=[LEAST_SEEN], help="Ages to train again at.")
    options = parser.parse_args()
    world = World.cut(pl.read_parquet(options.data / "interactions.parquet"), options.share, options.seed)
    out = options.out / f"new-{options.share}-seed-{options.seed}"
    common = {"dataset": load_config(options.recipe).name, "share": options.share, "seed": options.seed}
    common |= {"new_items": len(world.new), "data_hash": hash_file(options.data / "interactions.parquet")}
    base = _trained(options, world, out / "without", 0)
    old = _old_cases(base, world)
    reference = _lists(base, open_version(base, "0"), [history for history, _ in old])
    row = common | {"arm": "without", "age": 0} | _known(reference, reference, old)
    add_row(options.results, row | {"seconds": _seconds(base)})
    for age in AGES:
        started = time.monotonic()
        version = _updated(options, world, base, out, age)
        seconds = time.monotonic() - started
        found = _measured(base, version, world, old, reference)
        add_row(options.results, common | {"arm": "updated", "age": age} | found | {"seconds": seconds})
    for age in options.retrain:
        again = _trained(options, world, out / f"again-{age}", age)
        found = _measured(again, open_version(again, "0"), world, old, reference)
        add_row(options.results, common | {"arm": "trained again", "age": age} | found | {"seconds": _seconds(again)})


def _trained(options: argparse.Namespace, world: World, folder: Path, age: int) -> Run:
    """A policy over the logs at an age; at 0 the new items are not in the item table either."""
    folder.mkdir(parents=True, exist_ok=True)
    log = world.log(age)
    if not (folder / "interactions.parquet").is_file():
        log.write_parquet(folder / "interactions.parquet")
        items = pl.read_parquet(options.data / "items.parquet")
        items.filter(pl.col("item_id").is_in(log["item_id"].unique().implode())).write_parquet(folder / "items.parquet")
    config = load_config(options.recipe, [f"seed={options.seed}"])
    run = Run(folder / "run", config, folder, StderrConsole())
    for stage in (Run.prepare, Run.tokenize, Run.sft):
        stage(run)
    return Run.open(folder / "run")


def _updated(options: argparse.Namespace, world: World, base: Run, out: Path, age: int) -> CatalogVersion:
    """The catalogue with the new items, placed by their texts and what is known of them at an age."""
    items = out / "new.parquet"
    table = pl.read_parquet(options.data / "items.parquet")
    table.filter(pl.col("item_id").is_in(sorted(world.new))).write_parquet(items)
    log = out / f"seen-{age}.parquet"
    world.log(age, users=False).write_parquet(log)
    return update_catalog(base, items=items, interactions=[log] if age else [], start="0")[0]


def _old_cases(run: Run, world: World) -> list[Case]:
    """The test cases, of users who are watched, whose logs no age changes."""
    data = RunData(run)
    cases, names = data.cases("test"), data.item_ids.to_list()
    ids = pl.read_parquet(data.prepared / "users.parquet")["user_id"].to_list()
    return [
        ([names[item] for item in cases.histories.row(row)], names[cases.targets[row]])
        for row in range(len(cases))
        if ids[cases.users[row]] in world.watched
    ]


def _lists(run: Run, version: CatalogVersion, histories: Sequence[list[int]], width: int = 50) -> NDArray[np.int64]:
    """(N, width) ids of the lists, -1 where there is none. Items that the version does not know are left out."""
    data = RunData(run, version)
    names = data.item_ids.to_numpy()
    rows = {name: row for row, name in enumerate(names.tolist())}
    known = [[rows[item] for item in history if item in rows] for history in histories]
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in known])]).astype(np.int64)
    values = np.array([item for row in known for item in row], np.int32)
    nobody = np.zeros(len(known), np.int32)
    models = Models(data)
    cases = Cases(nobody, Ragged(values, offsets), nobody)
    found = models.predict(models.policy(run.path("sft", "best")), cases, None).items[:, :width]
    return np.where(found >= 0, names[found], -1)


def _measured(
    run: Run, version: CatalogVersion, world: World, old: list[Case], reference: NDArray[np.int64]
) -> dict[str, Any]:
    """What a policy does for new targets and for old ones."""
    lists = _lists(run, version, [history for history, _ in world.cases])
    targets = np.array([target for _, target in world.cases])
    hits = {k: (lists[:, :k] == targets[:, None]).any(1) for k in (10, 50)}
    kinds = [hits[10][targets == target].mean() for target in np.unique(targets)]
    new = np.isin(lists[:, :10], sorted(world.new))
    found = {"cases": len(targets), "targets": len(kinds), "hr@10": float(hits[10].mean())}
    found |= {"hr@50": float(hits[50].mean()), "hr@10_by_item": float(np.mean(kinds)), "new@10": float(new.mean())}
    found |= {"error": float(hits[10].std() / np.sqrt(len(targets)))}
    others = _lists(run, version, [history for history, _ in old])
    return (
        found
        | _known(others, reference, old)
        | {"new@10_old": float(np.isin(others[:, :10], sorted(world.new)).mean())}
    )


def _known(lists: NDArray[np.int64], reference: NDArray[np.int64], old: list[Case]) -> dict[str, Any]:
    """Of old targets: how often they are found, and how much of the lists is as it was."""
    targets = np.array([target for _, target in old])
    same = [len({*row} & {*was}) / 10 for row, was in zip(lists[:, :10], reference[:, :10], strict=True)]
    hits = (lists[:, :10] == targets[:, None]).any(1)
    return {"old_cases": len(old), "hr@10_old": float(hits.mean()), "same@10": float(np.mean(same))}


def _seconds(run: Run) -> float:
    return sum(row["seconds"] for row in events_of(run) if row["event"] == "end")


if __name__ == "__main__":
    run(main)
