"""The stages of logs without order (`data.split.kind: impressions`): `prepare`, `ranker` and its two below.

There is no policy. `ranker/exposures` is how a reward ranks held-out impressions from all training clicks of the user.
AUC compares items of one user. Only a reward fitted to clicks alone has calibration, without the slot term.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit

from adagrpo.config.reward import SequentialOptions
from adagrpo.data.columns import CLICKED, EXPOSURE, ITEM, USER
from adagrpo.data.exposures import KINDS, load_held_out, write_exposures
from adagrpo.data.sequences import pad
from adagrpo.errors import UserError
from adagrpo.evaluation.reward_quality import (
    band,
    band_names,
    calibration_bins,
    expected_calibration_error,
    interval,
    popularity_bands,
    shown_quality,
)
from adagrpo.pipeline.description import config_hash
from adagrpo.pipeline.directory import RunDirectory
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.json_files import json_lines, read_json, write_json
from adagrpo.pipeline.outputs import write_output
from adagrpo.pipeline.rewards import describe_reward
from adagrpo.pipeline.stage import Declaration
from adagrpo.pipeline.stages.fit_ranker import Examine, Validate, lambdarank, sequential_ranker
from adagrpo.pipeline.stages.prepare import log_source, note_described, note_ids, prepared, random_files, random_logs
from adagrpo.rewards.protocol import Reward
from adagrpo.rewards.sequential import SequentialRanker
from adagrpo.trainer.lambdarank import NegativeSampler, RankingGroups, exposed_groups
from adagrpo.types import Histories

HELD_OUT = "held_out.parquet"


def prepare_impressions(run: RunDirectory) -> Declaration:
    """Declare the preparation; impressions are held out at random."""
    source, options = log_source(run), run.config.data

    def build(work: Path) -> None:
        table = source.read_items()
        refuse = source.refusals(table)
        shown = source.read_logs(refuse, ordered=False)
        random = random_logs(run, refuse)
        write_exposures(shown, random, table, work, held_out=options.split.held_out, seed=run.config.seed)
        summary = read_json(work / "summary.json")
        note_described(run, source, summary, summary["items"])
        note_ids(run, work, table)

    return prepared(run, [*source.files, *random_files(run)], build, drawn=True)


def fit_ranker(run: RunDirectory) -> Declaration:
    """Declare the ranker, selected on held-out impressions."""

    def begin(data: RunData, ranker: SequentialRanker, left_out: NDArray[np.bool_]) -> tuple[Validate, Examine]:
        held_out = exposed(data, "validation")
        return lambda: examined(data, ranker, held_out), lambda best: {"validation": examined(data, best, held_out)}

    return sequential_ranker(run, begin, "auc", "evaluation.batch_size", [HELD_OUT])


def fit_trees(run: RunDirectory) -> Declaration:
    """Declare LambdaRank, selected on held-out impressions."""

    def validation(data: RunData, sampler: NegativeSampler) -> RankingGroups:
        return exposed_groups(sampler, *exposed(data, "validation"), max_history=data.config.max_history)

    return lambdarank(run, validation, [HELD_OUT])


EXPOSURES, ACTIVITIES = (1, 10, 100, 1000), (5, 10, 20)
ORDER = ("all", "head", "middle", "tail", *band_names(EXPOSURES), *band_names(ACTIVITIES))


class Exposed(NamedTuple):
    """Held-out impressions of one kind, by user."""

    users: NDArray[np.int64]  # (N,) ascending
    items: NDArray[np.int64]  # (N,)
    clicked: NDArray[np.bool_]  # (N,)


def exposed(bench: RunData, exposure: str) -> Exposed:
    """Return the held-out impressions of one kind; UserError unless some, but not all, were clicked."""
    table = load_held_out(bench.prepared)
    rows = table.filter(table[EXPOSURE] == exposure)
    impressions = Exposed(
        rows[USER].to_numpy().astype(np.int64), rows[ITEM].to_numpy().astype(np.int64), rows[CLICKED].to_numpy()
    )
    if impressions.clicked.all() or not impressions.clicked.any():
        clicks = int(impressions.clicked.sum())
        raise UserError(
            f"{bench.prepared / 'held_out.parquet'}: {clicks} clicks in {len(rows)} {exposure} impressions;"
            " there is no order to examine (data.split.held_out says how many are held out)"
        )
    return impressions


def examined(bench: RunData, reward: Reward, impressions: Exposed) -> dict[str, float]:
    """Return AUC and NDCG@10, averaged over users with clicked and unclicked items."""
    quality = shown_quality(_scores(bench, reward, impressions), impressions.clicked, impressions.users)
    found = {
        name: interval(values, impressions.users) for name, values in zip(("auc", "ndcg@10"), quality, strict=True)
    }
    return {name: 0.0 if value is None else value["mean"] for name, value in found.items()}


def report_exposures(run: RunDirectory) -> Declaration:
    """Declare the report."""
    bench = RunData(run)
    models = Models(bench)
    reads = [*bench.training_files, "prepare:impressions.parquet", "prepare:held_out.parquet"]

    def build(work: Path) -> None:
        reward = models.reward()
        kinds = [kind for kind in KINDS if kind in set(load_held_out(bench.prepared)[EXPOSURE])]
        content = {"loss": _fitted_to(bench), "exposures": [_report(bench, reward, kind) for kind in kinds]}
        write_json(work / "report.json", content)

    reads += [file for file in models.reward_files if file not in reads]
    return Declaration(build, reads, ("report.json",), (*models.reward_reads, "seed", "max_history"))


def collect_exposures(run: RunDirectory) -> None:
    """Write metrics.json: the data, the ranker and its report."""
    content = {
        "name": run.config.name,
        "config_hash": config_hash(run.config),
        "dataset": {key: value for key, value in run.content("prepare", "summary.json").items() if key != "understood"},
        "ranker": run.content("ranker", "metrics.json"),
        "reward": describe_reward(Models(RunData(run))),
        "exposures": run.content("ranker", "exposures", "report.json"),
    }
    write_output(run, "metrics.json", json_lines(content))


def loss_of(data: RunData) -> str:
    """Return the loss of the reward, or its kind if the run did not fit it."""
    if data.config.reward != SequentialOptions():
        return data.config.reward.kind
    return str(data.run.content("ranker", "metrics.json")["loss"])


def _fitted_to(bench: RunData) -> str:
    loss = loss_of(bench)
    return "clicks" if loss == "impressions" and not bench.config.ranker.negatives else loss


def _report(bench: RunData, reward: Reward, exposure: str) -> dict[str, Any]:
    impressions = exposed(bench, exposure)
    scores = _scores(bench, reward, impressions)
    quality = shown_quality(scores, impressions.clicked, impressions.users)
    probability = expit(scores) if _fitted_to(bench) == "clicks" else None
    table = []
    assert bench.times_shown is not None, "made by `prepare`"
    strata = {
        "all": np.full(len(impressions.items), "all"),
        "item popularity": popularity_bands(bench.training.counts(bench.num_items))[impressions.items],
        "item exposure": band(bench.times_shown, EXPOSURES)[impressions.items],
        "clicks of the user": band(bench.training.lengths, ACTIVITIES)[impressions.users],
    }
    for by, names in strata.items():
        for name in (name for name in ORDER if name in set(names.tolist())):
            kept = names == name
            row: dict[str, Any] = {"by": by, "stratum": name, "impressions": int(kept.sum())}
            row |= {"click_rate": float(impressions.clicked[kept].mean())}
            row |= {"auc": interval(quality.auc[kept], impressions.users[kept])}
            if not by.startswith("item"):
                row |= {"ndcg@10": interval(quality.ndcg[kept], impressions.users[kept])}
            if probability is not None:
                row |= {"ece": expected_calibration_error(probability[kept], impressions.clicked[kept])}
            table.append(row)
    content: dict[str, Any] = {"exposure": exposure, "strata": table}
    if probability is not None:
        content |= {"calibration": calibration_bins(probability, impressions.clicked)}
    return content


@torch.no_grad()
def _scores(bench: RunData, reward: Reward, impressions: Exposed) -> NDArray[np.float64]:
    owners, row, counts = np.unique(impressions.users, return_inverse=True, return_counts=True)
    column = np.arange(len(impressions.users)) - (np.cumsum(counts) - counts)[row]
    scores = np.empty(len(impressions.users))
    size = bench.config.evaluation.batch_size
    for first in range(0, len(owners), size):
        mine = np.flatnonzero((row >= first) & (row < first + size))
        users = owners[first : first + size]
        items = np.full((len(users), int(counts[first : first + size].max())), -1, dtype=np.int64)
        items[row[mine] - first, column[mine]] = impressions.items[mine]
        seen = pad(bench.training, users, bench.config.max_history)
        histories = Histories(seen.items, seen.lengths, torch.from_numpy(users)).to(bench.device)
        scored = reward.score(histories, torch.from_numpy(items).to(bench.device)).double().cpu().numpy()
        scores[mine] = scored[row[mine] - first, column[mine]]
    return scores
