"""Every checkpoint, the reward and plain counts against exposures that nothing was fitted on, as stages of a run.

    judges/exposures            the tables of the judges, in the numbers of the run
    judges/counts               popularity; of impressions, how often an item was shown and how often it was then chosen
    judges/reward, judges/sft   the reward, and the starting policy
    judges/ARM/final            the last checkpoint of an arm; differences from the starting policy over the same users

A folder of orders holds `users.parquet` (a row a judge, label and user), `predictions.parquet` (a score an exposure, in
the order of judges/exposures) and `report.json`. Histories are all of a user's interactions in the logs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from adagrpo.data.columns import CLICKED, ITEM
from adagrpo.data.prepared import load_impressions, load_until_test
from adagrpo.evaluation.reward_quality import band, band_names
from adagrpo.pipeline.directory import hash_of
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.make import make
from adagrpo.pipeline.run import Run
from adagrpo.pipeline.stage import Declaration, Read
from adagrpo.pipeline.stages.evaluate import progress
from adagrpo.storage.writing import write_file
from research.exposed_feed.judged import Judged, as_judged, read_judged
from research.exposed_feed.orders import auc_of, differences, judge_order, means, policy_scores, reward_scores

__all__ = ["JUDGE", "SCORES", "TABLE", "Judge", "Judges"]

BANDS = (1, 10, 100, 1000)  # edges of the bands of items, by how often training showed them
PRIOR = 10  # exposures at the average rate that every item starts with
FILES = ("impressions.parquet", "predictions.parquet", "users.parquet", "report.json", "summary.json")
TABLE, SCORES, JUDGE = "impressions.parquet", "predictions.parquet", "judge"
Scores = dict[str, NDArray[np.float64]]  # (N,) of each judge


class Judge(NamedTuple):
    """A table of exposures: a row is a user, an item, and for each label whether it came to that."""

    path: str  # below the data
    labels: tuple[str, ...]  # columns of true and false
    users: int | None = None  # at most, drawn by the seed


class Judges:
    """The judges of a run, by name."""

    def __init__(self, run: Run, judges: Mapping[str, Judge]) -> None:
        self.run, self.judges, self.data = run, judges, RunData(run)
        self.also = {name: judge._asdict() for name, judge in judges.items()}

    def exposures(self) -> None:
        """Read the exposures of every judge: the stage `judges/exposures`."""
        run, data = self.run, self.data
        unread = ("rejects.parquet", "later.parquet")
        prepared = [path for path in sorted(data.prepared.glob("*.parquet")) if path.name not in unread]

        def build(work: Path) -> None:
            counts, tables = {}, []
            for name, judge in self.judges.items():
                table, counts[name] = read_judged(
                    run.data / judge.path,
                    data.prepared,
                    user="user_id",
                    item="item_id",
                    labels=judge.labels,
                    some_users=judge.users,
                    seed=run.config.seed,
                    max_expansion=run.config.data.max_expansion,
                )
                tables.append(table.with_columns(pl.lit(name).alias(JUDGE)))
            pl.concat(tables, how="diagonal").write_parquet(work / TABLE)
            write_file(work / "summary.json", json.dumps(counts, indent=1) + "\n")

        inputs = [*prepared, *(run.data / judge.path for judge in self.judges.values())]
        make(run, "judges/exposures", self._stage(build, inputs, ("seed",), self.also))

    def counts(self) -> None:
        """Judge orders that know the item alone: the stage `judges/counts`."""
        bought = self.data.training.counts(self.data.num_items).astype(np.float64)
        exposed, rate = _exposure_counts(self.data)
        counts = {"popularity": bought} | ({} if exposed is None else {"exposures": exposed, "chosen_rate": rate})

        def build(work: Path) -> None:
            judged, reports, tables = self.load(), {}, []
            for name, values in counts.items():
                scores = {judge: values[found.items] for judge, found in judged.items()}
                reports[name], users = _judged(self.data, judged, scores)
                tables.append(users.with_columns(pl.lit(name).alias("order")))
            pl.concat(tables).write_parquet(work / "users.parquet")
            write_file(work / "report.json", json.dumps(reports, indent=1) + "\n")

        also = {"prior": PRIOR, "judges": self.also}
        make(self.run, "judges/counts", self._stage(build, self._inputs(), ("max_history",), also))

    def reward(self) -> None:
        """Judge the reward: the stage `judges/reward`."""
        models = Models(self.data)
        reward = cache(models.reward)

        def score(judged: Judged) -> NDArray[np.float64]:
            seen = load_until_test(self.data.prepared)
            where = (seen, judged.users, judged.items)
            return reward_scores(reward(), *where, max_history=self.run.config.max_history, device=self.data.device)

        self._order("judges/reward", models.reward_reads, models.reward_files, score)

    def checkpoint(self, name: str, weights: Path) -> None:
        """Judge one checkpoint: the stage `judges/NAME`; of another one than `sft`, less the starting policy too."""
        model, policy = weights / "model.safetensors", cache(partial(Models(self.data).policy, weights))

        def score(judged: Judged) -> NDArray[np.float64]:
            return policy_scores(
                policy(),
                self.data.catalog,
                load_until_test(self.data.prepared),
                judged.users,
                judged.items,
                max_history=self.run.config.max_history,
                report=progress(self.run, f"judges/{name}"),
            )

        reference = None if name == "sft" else self.run.path("judges", "sft", "users.parquet")
        self._order(f"judges/{name}", ("policy",), [*self.data.catalog_files, model], score, reference)

    def load(self) -> dict[str, Judged]:
        """Load the exposures of every judge."""
        table = pl.read_parquet(self.run.checked("judges", "exposures", TABLE))
        return {
            name: as_judged(table.filter(pl.col(JUDGE) == name), judge.labels) for name, judge in self.judges.items()
        }

    def report(self, *place: str) -> dict[str, Any]:
        """Load what the judges say of an order."""
        path = self.run.path("judges", *place, "report.json")
        return dict(json.loads(path.read_text(encoding="utf-8")))

    def _order(
        self,
        name: str,
        reads: tuple[str, ...],
        inputs: Sequence[Read],
        score: Callable[[Judged], NDArray[np.float64]],
        reference: Path | None = None,
    ) -> None:
        """Make the stage of one order."""

        def build(work: Path) -> None:
            judged = self.load()
            scores = {judge: score(found) for judge, found in judged.items()}
            self._write(judged, scores, reference, work)

        made_of = [*self._inputs(), *inputs, *([] if reference is None else [reference])]
        reads = ("max_history", *reads)
        make(self.run, name, self._stage(build, made_of, reads, self.also))

    def _stage(
        self, build: Callable[[Path], None], inputs: Sequence[Read], settings: Sequence[str], also: object
    ) -> Declaration:
        return Declaration(build, list(dict.fromkeys(inputs)), FILES, settings, also=also)

    def _write(self, judged: Mapping[str, Judged], scores: Scores, reference: Path | None, work: Path) -> None:
        report, users = _judged(self.data, judged, scores)
        if reference is not None:
            hash_of(self.run, reference)
            start = pl.read_parquet(reference)
            for name, labels in report.items():
                for label, entry in labels.items():
                    mine = (pl.col(JUDGE) == name) & (pl.col("label") == label)
                    entry["difference"] = differences(users.filter(mine), start.filter(mine))
        parts = [pl.DataFrame({JUDGE: [name] * len(values), "score": values}) for name, values in scores.items()]
        pl.concat(parts).write_parquet(work / SCORES)
        users.write_parquet(work / "users.parquet")
        write_file(work / "report.json", json.dumps(report, indent=1) + "\n")

    def _inputs(self) -> list[Read]:
        """The files that every order is made of."""
        shown = self.data.prepared / "impressions.parquet"
        logs = [*self.data.training_files, self.data.prepared / "test.parquet", *([shown] if shown.is_file() else [])]
        return [*logs, self.run.path("judges", "exposures", TABLE)]


def _judged(data: RunData, judged: Mapping[str, Judged], scores: Scores) -> tuple[dict[str, Any], pl.DataFrame]:
    """What an order is worth by each judge and label, and to each user."""
    exposed, _ = _exposure_counts(data)
    report: dict[str, Any] = {}
    tables = []
    for name, found in judged.items():
        report[name] = {}
        for label, chosen in found.labels.items():
            judgement = judge_order(scores[name], chosen, found.users)
            entry: dict[str, Any] = dict(means(judgement.users)) | {"rate": float(chosen.mean())}
            if exposed is not None:
                entry["by_exposure"] = _by_exposure(judgement.auc, chosen, found, exposed)
            report[name][label] = entry
            tables.append(judgement.users.with_columns(pl.lit(name).alias(JUDGE), pl.lit(label).alias("label")))
    return report, pl.concat(tables)


def _by_exposure(
    auc: NDArray[np.float64], chosen: NDArray[np.bool_], found: Judged, exposed: NDArray[np.float64]
) -> dict[str, Any]:
    """AUC of the chosen items of each band of exposure in training, among all that the same user left."""
    bands = band(exposed.astype(np.int64), BANDS)[found.items]
    return {
        name: {
            "exposures": int(kept.sum()),
            "rate": float(chosen[kept].mean()),
            "auc": auc_of(kept, auc, found.users),
        }
        for name in band_names(BANDS)
        if (kept := bands == name).any()
    }


def _exposure_counts(data: RunData) -> tuple[NDArray[np.float64] | None, NDArray[np.float64]]:
    """(V,) how often training showed an item, and how often it was then chosen; None where the logs do not say."""
    shown = load_impressions(data.prepared)
    if shown is None:
        return None, np.empty(0)
    items, chosen = shown[ITEM].to_numpy(), shown[CLICKED].to_numpy()
    counts = np.bincount(items, minlength=data.num_items).astype(np.float64)
    rate = (np.bincount(items, chosen, minlength=data.num_items) + PRIOR * chosen.mean()) / (counts + PRIOR)
    return counts, rate
