"""Do choices at an earlier position of each user help to fit a fused list? On validation cases alone.

    python -m research.decisions.earlier --data DIR --out runs/earlier --sets lastfm amazon18-scientific
    python -m research.decisions.earlier --table

A set is prepared, and policy, ranker and sources fitted, twice: as it is, and without each user's last interaction, so
that the validation items there are the choices before. Orders, without a reward, are cross-fitted over users, from the
choices of one position or of both, and measured on the later one; a row has NDCG@10 of each, and what both have more,
with its 95 % interval over users:

    weights     the weighted sum alone
    fused       weights and network, as in the package
    trees       LambdaRank on what the network reads, one setting, not tuned

Primary: `fused`. With the 1,090 users of LastFM a difference of about .005 would be found, of 8,442 .0015.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml
from numpy.typing import NDArray

from adagrpo.config import Config
from adagrpo.console import StderrConsole
from adagrpo.lists.fit_fusion import Choices, fit_weights
from adagrpo.lists.names import FUSE_WITHOUT_REWARD, START, ListName
from adagrpo.lists.table import SOURCES
from adagrpo.metrics import ndcg
from adagrpo.pipeline import Run
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.list_makers import ListMaker
from adagrpo.pipeline.stages.fuse import validation_cases
from adagrpo.statistics import mean_interval
from research.command import run
from research.decisions.network import weights_alone
from research.decisions.richer import choices_in, trees
from research.decisions.sets import HERE, TRIAL, arguments, measured
from research.fair_trial.tune import folder_of, recipe_of

RESULTS = HERE / "earlier.jsonl"
ORDERS = ("weights", "fused", "trees")


def main() -> None:
    """Measure what is missing, or print the table of what is there."""
    given = arguments(__doc__).parse_args()
    print(table(measured(RESULTS, given, lambda name, seed: _measure(name, seed, given.data, given.out))))


def _measure(name: str, seed: int, data: Path, out: Path) -> dict[str, Any]:
    plan, trial = (yaml.safe_load(path.read_text("utf-8")) for path in (HERE / "sets.yaml", TRIAL))
    recipe = partial(recipe_of, trial, name, *plan["settings"], *plan["untrained"], f"seed={seed}", "threads=1")
    made = Run(out / f"{name}-{seed}", recipe(), folder_of(trial, name, data), StderrConsole())
    made.prepare()
    shorter = _without_last(made, out / f"{name}-{seed}-shorter", recipe)
    shorter.prepare()
    now, features = _choices(made)
    before, _ = _choices(shorter)
    ids = {user: row for row, user in enumerate(RunData(made).user_ids)}  # users of one row are of one fold
    known = RunData(shorter).user_ids
    before = before._replace(users=np.array([ids[known[row]] for row in before.users.tolist()]))
    both, cases, optional = _stacked(now, before), len(now.users), [one for one in features if _optional(one)]
    found: dict[str, Any] = {"cases": cases, "earlier": len(before.users)}
    for order in ORDERS:
        values = []
        for choices in (now, both):
            if order == "trees":
                ranks = trees(choices, seed)
            elif order == "weights":
                with weights_alone():
                    ranks = fit_weights(choices, features, features, seed, optional=optional).ranks
            else:
                ranks = fit_weights(choices, features, features, seed, optional=optional).ranks
            values.append(ndcg(ranks[:cases], 10))
        one, two = values
        found[order] = {"ndcg@10": [float(one.mean()), float(two.mean())], "gained": list(mean_interval(two - one)[:3])}
    return found


def _optional(feature: str) -> bool:
    return feature in SOURCES and SOURCES[feature].optional


def _without_last(made: Run, folder: Path, remake: Callable[..., Config]) -> Run:
    """The same run of the interactions before each user's test item."""
    data = RunData(made)
    log = pl.concat(
        [pl.read_parquet(made.path("prepare", f"{name}.parquet")) for name in ("train", "validation")], how="diagonal"
    )
    table = pl.DataFrame(
        [
            pl.Series(data.user_ids).gather(log["user"]).alias("user_id"),
            data.item_ids.gather(log["item"]).alias("item_id"),
            log["position"],
        ]
    )
    folder.mkdir(parents=True, exist_ok=True)
    table.write_parquet(folder / "log.parquet")
    items = made.config.data.items
    options = ["data.logs=[log.parquet]", "data.columns={order: position}"]
    options += [] if items is None else [f"data.items.path={(made.data / items.path).resolve()}"]
    return Run(folder / "run", remake(*options), folder, StderrConsole())


def _choices(made: Run) -> tuple[Choices, Sequence[str]]:
    made.tokenize()
    made.sft()
    made.ranker()
    for stage in dict.fromkeys(str(SOURCES[name].stage) for name in SOURCES if SOURCES[name].fit is not None):
        if any(source.stage == stage and source.when(made.config) for source in SOURCES.values()):
            made.stage(stage)
    data = RunData(made)
    maker = ListMaker(Models(data))
    fusion = maker.fusion(ListName(START, FUSE_WITHOUT_REWARD))
    return choices_in(maker, fusion, data, validation_cases(data)), fusion.features


def _stacked(one: Choices, other: Choices) -> Choices:
    wide = max(part.items.shape[1] for part in (one, other))

    def padded(part: NDArray[Any], fill: float) -> NDArray[Any]:
        more = [(0, 0), (0, wide - part.shape[1]), *[(0, 0)] * (part.ndim - 2)]
        return np.pad(part, more, constant_values=fill)

    return Choices(
        np.concatenate([padded(part.items, -1) for part in (one, other)]),
        np.concatenate([padded(part.features, 0) for part in (one, other)]),
        *(
            np.concatenate([getattr(part, name) for part in (one, other)])
            for name in ("targets", "users", "case_weights")
        ),
    )


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """NDCG@10 from the choices of one position, and what those of two have more, in thousandths."""
    lines = ["| set | choices | and earlier | " + " | ".join(ORDERS) + " |", "|---|--:|--:|" + "--:|" * len(ORDERS)]
    for row in rows:
        cells = [
            f"{row[order]['ndcg@10'][0]:.4f}, "
            + "{:+.1f} ({:+.1f} to {:+.1f})".format(*(1000 * end for end in row[order]["gained"]))
            for order in ORDERS
        ]
        lines.append(f"| {row['set']} | {row['cases']:,} | {row['earlier']:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
