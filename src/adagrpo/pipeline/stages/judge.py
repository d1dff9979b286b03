"""The stages `judges/..`: every checkpoint, the reward and plain counts against exposures that nothing was fitted on.

    judges/exposures            what the recipe's `judges` name, in the numbers of the run
    judges/counts               popularity; of impressions, how often an item was shown and how often it was then chosen
    judges/reward, judges/sft   the reward, and the starting policy
    judges/rerank               log π + w · reward, where validation chose a weight w for an arm
    judges/ARM/best, /final     the checkpoints of an arm; differences from the starting policy over the same users

A folder of orders holds `users.parquet` (a row a judge, label and user), `scores.parquet` (a row an exposure, in the
order of judges/exposures) and `report.json`. Histories are all of a user's interactions in the logs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from adagrpo.config.judges import JudgeConfig
from adagrpo.data.columns import CLICKED, ITEM
from adagrpo.data.judged import Judged, as_judged, read_judged
from adagrpo.data.prepared import load_impressions, load_until_test
from adagrpo.evaluation.judging import auc_of, differences, judge_order, means, policy_scores, reward_scores
from adagrpo.evaluation.reward_quality import band, band_names
from adagrpo.pipeline.directory import RunDirectory
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.stages.choose_weight import chosen_weight
from adagrpo.pipeline.stages.evaluate import progress
from adagrpo.storage.writing import write_file

__all__ = ["collect_judgements", "judge", "judgements"]

EXPOSURES = (1, 10, 100, 1000)  # edges of the bands of items, by how often training showed them
PRIOR = 10  # exposures at the mean rate that every item starts with
TABLE, JUDGE = "exposures.parquet", "judge"
READS = ("judges", "max_history")
Scores = dict[str, NDArray[np.float64]]  # (N,) of each judge


def judge(run: RunDirectory, arms: list[str]) -> None:
    """Hold what a run has against the judges of its recipe; nothing where it names none."""
    for _, declare in judgements(run, arms):
        declare(run)


def judgements(run: RunDirectory, arms: list[str]) -> Iterator[tuple[str, Callable[[RunDirectory], None]]]:
    """The stages of the judges, by name and in the order of the work, and what makes each; none without judges."""
    if not run.config.judges:
        return
    yield "judges/exposures", judge_exposures
    yield "judges/counts", judge_counts
    yield "judges/reward", judge_reward
    yield "judges/sft", partial(judge_checkpoint, name="sft", weights=run.path("sft", "best"))
    if any(_left_to_validation(run, arm) for arm in arms):
        yield "judges/rerank", judge_reranking
    for arm in arms:
        for kind in ("best", "final"):
            weights = run.path("train", arm, kind)
            yield f"judges/{arm}/{kind}", partial(judge_checkpoint, name=f"{arm}/{kind}", weights=weights)


def judge_exposures(run: RunDirectory) -> None:
    """The exposures of every judge, numbered: the stage `judges/exposures`."""
    data, judges = RunData(run), run.config.judges
    unread = ("rejects.parquet", "later.parquet")
    prepared = [path for path in sorted(data.prepared.glob("*.parquet")) if path.name not in unread]

    def build(work: Path) -> None:
        counts, tables = {}, []
        for name, options in judges.items():
            table, counts[name] = _read(run, data, options)
            tables.append(table.with_columns(pl.lit(name).alias(JUDGE)))
        pl.concat(tables, how="diagonal").write_parquet(work / TABLE)
        write_file(work / "counts.json", json.dumps(counts, indent=1) + "\n")

    inputs = [*prepared, *(run.data / options.path for options in judges.values())]
    run.stage("judges/exposures", reads=("judges", "seed"), inputs=list(dict.fromkeys(inputs)), build=build)


def _read(run: RunDirectory, data: RunData, options: JudgeConfig) -> tuple[pl.DataFrame, dict[str, int]]:
    return read_judged(
        run.data / options.path,
        data.prepared,
        user=options.user,
        item=options.item,
        labels=options.labels,
        some_users=options.users,
        seed=run.config.seed,
        max_expansion=run.config.data.max_expansion,
    )


def judge_counts(run: RunDirectory) -> None:
    """Orders that know the item alone: the stage `judges/counts`."""
    data = RunData(run)
    bought = data.training.counts(data.num_items).astype(np.float64)
    exposed, rate = _exposure_counts(data)
    counts = {"popularity": bought} | ({} if exposed is None else {"exposures": exposed, "chosen_rate": rate})

    def build(work: Path) -> None:
        judged, reports, tables = _load(run), {}, []
        for name, values in counts.items():
            scores = {judge: values[found.items] for judge, found in judged.items()}
            reports[name], users = _judged(data, judged, scores)
            tables.append(users.with_columns(pl.lit(name).alias("order")))
        pl.concat(tables).write_parquet(work / "users.parquet")
        write_file(work / "report.json", json.dumps(reports, indent=1) + "\n")

    run.stage("judges/counts", reads=READS, also={"prior": PRIOR}, inputs=_inputs(run, data), build=build)


def judge_reward(run: RunDirectory) -> None:
    """The reward: the stage `judges/reward`."""
    data = RunData(run)
    models = Models(data)
    reward = cache(models.reward)

    def score(judged: Judged) -> NDArray[np.float64]:
        seen = load_until_test(data.prepared)
        where = (seen, judged.users, judged.items)
        return reward_scores(reward(), *where, max_history=run.config.max_history, device=data.device)

    _order(run, data, "judges/reward", (*READS, *models.reward_reads), models.reward_files, score)


def judge_checkpoint(run: RunDirectory, name: str, weights: Path) -> None:
    """One checkpoint: the stage `judges/NAME`."""
    data = RunData(run)
    model, policy = weights / "model.safetensors", cache(partial(Models(data).policy, weights))

    def score(judged: Judged) -> NDArray[np.float64]:
        return policy_scores(
            policy(),
            data.catalog,
            load_until_test(data.prepared),
            judged.users,
            judged.items,
            max_history=run.config.max_history,
            report=progress(run, f"judges/{name}"),
        )

    reference = None if name == "sft" else run.path("judges", "sft", "users.parquet")
    inputs = [*data.catalog_files, model]
    _order(run, data, f"judges/{name}", (*READS, "policy"), inputs, score, reference)


def judge_reranking(run: RunDirectory) -> None:
    """The order of re-ranking at the weight that validation chose: the stage `judges/rerank`."""
    data, weight = RunData(run), run.path("teacher", "weight.json")
    sides = [run.path("judges", side, "scores.parquet") for side in ("sft", "reward")]
    reference = run.path("judges", "sft", "users.parquet")

    def build(work: Path) -> None:
        for path in (*sides, weight, reference):
            run.hash_input(path)
        first, second = (pl.read_parquet(path) for path in sides)
        both = first["score"] + chosen_weight(weight) * second["score"]
        found = pl.DataFrame([first[JUDGE], both])
        scores = {name: found.filter(pl.col(JUDGE) == name)["score"].to_numpy() for name in run.config.judges}
        _write(run, data, scores, reference, work)

    run.stage("judges/rerank", reads=READS, inputs=[*_inputs(run, data), *sides, weight, reference], build=build)


def collect_judgements(run: RunDirectory, arms: list[str]) -> dict[str, Any]:
    """What metrics.json holds of the judges: by judge, label and order; nothing where the recipe names none."""
    if not run.config.judges:
        return {}

    def read(*parts: str) -> dict[str, Any]:
        return dict(json.loads(run.checked("judges", *parts).read_text(encoding="utf-8")))

    orders = dict(read("counts", "report.json"))
    orders |= {name: read(name, "report.json") for name in ("reward", "sft")}
    if any(_left_to_validation(run, arm) for arm in arms):
        orders["rerank"] = read("rerank", "report.json")
    for arm in arms:
        orders |= {f"{arm}/{kind}": read(arm, kind, "report.json") for kind in ("best", "final")}
    counts = read("exposures", "counts.json")
    return {
        name: {
            "exposures": counts[name],
            "labels": {
                label: {order: report[name][label] for order, report in orders.items()} for label in options.labels
            },
        }
        for name, options in run.config.judges.items()
    }


def _left_to_validation(run: RunDirectory, name: str) -> bool:
    arm = next(arm for arm in run.config.train.arms if arm.name == name)
    return arm.left_to_validation(run.config.objective) is not None


def _order(
    run: RunDirectory,
    data: RunData,
    name: str,
    reads: tuple[str, ...],
    inputs: list[Path],
    score: Callable[[Judged], NDArray[np.float64]],
    reference: Path | None = None,
) -> None:
    """Make the stage of one order."""

    def build(work: Path) -> None:
        scores = {judge: score(judged) for judge, judged in _load(run).items()}
        _write(run, data, scores, reference, work)

    made_of = [*_inputs(run, data), *inputs, *([] if reference is None else [reference])]
    run.stage(name, reads=reads, inputs=list(dict.fromkeys(made_of)), build=build)


def _write(run: RunDirectory, data: RunData, scores: Scores, reference: Path | None, work: Path) -> None:
    report, users = _judged(data, _load(run), scores)
    if reference is not None:
        run.hash_input(reference)
        start = pl.read_parquet(reference)
        for name, labels in report.items():
            for label, entry in labels.items():
                mine = (pl.col(JUDGE) == name) & (pl.col("label") == label)
                entry["difference"] = differences(users.filter(mine), start.filter(mine))
    parts = [pl.DataFrame({JUDGE: [name] * len(values), "score": values}) for name, values in scores.items()]
    pl.concat(parts).write_parquet(work / "scores.parquet")
    users.write_parquet(work / "users.parquet")
    write_file(work / "report.json", json.dumps(report, indent=1) + "\n")


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
    bands = band(exposed.astype(np.int64), EXPOSURES)[found.items]
    return {
        name: {
            "exposures": int(kept.sum()),
            "rate": float(chosen[kept].mean()),
            "auc": auc_of(kept, auc, found.users),
        }
        for name in band_names(EXPOSURES)
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


def _load(run: RunDirectory) -> dict[str, Judged]:
    """The exposures of every judge."""
    table = pl.read_parquet(run.checked("judges", "exposures", TABLE))
    return {
        name: as_judged(table.filter(pl.col(JUDGE) == name), options.labels)
        for name, options in run.config.judges.items()
    }


def _inputs(run: RunDirectory, data: RunData) -> list[Path]:
    """What every order is made of."""
    shown = data.prepared / "impressions.parquet"
    logs = [*data.training_files, data.prepared / "test.parquet", *([shown] if shown.is_file() else [])]
    return [*logs, run.path("judges", "exposures", TABLE)]
