"""The stages that the page alone shows: `ranker/report` is reward quality by stratum on validation cases, with a known
truth also its correlation with utilities; `report/paired` each evaluated checkpoint against sft and continued NLL.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from adagrpo.data.prepared import load_user_ids
from adagrpo.data.sequences import pad
from adagrpo.evaluation.comparison import START, Measured, paired_outcomes, per_user
from adagrpo.evaluation.predictions import ranks_in, sample_cases
from adagrpo.evaluation.reward_quality import (
    CaseQuality,
    band,
    band_names,
    calibration_bins,
    case_quality,
    expected_calibration_error,
    interval,
    popularity_bands,
    rank_correlation,
)
from adagrpo.metrics import RankedLists, measured
from adagrpo.objective import nll as nll_of
from adagrpo.pipeline.directory import RunDirectory, hash_of, model_of
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import CatalogVersion, RunData
from adagrpo.pipeline.json_files import read_json, write_json
from adagrpo.pipeline.stage import Declaration
from adagrpo.pipeline.stages.evaluate import by_case, read_lists
from adagrpo.pipeline.stages.impressions import ACTIVITIES, EXPOSURES, loss_of
from adagrpo.policies import Policy
from adagrpo.rewards.protocol import Reward
from adagrpo.rewards.sequential import SequentialRanker
from adagrpo.types import Cases, Histories

THIRDS = ("easiest third", "middle third", "hardest third")
ORDER = dict.fromkeys(["all", "head", "middle", "tail", *THIRDS, *band_names(EXPOSURES), *band_names(ACTIVITIES)])
TRUTH_USERS = 2000  # a fixed sample, since the truth ranks the whole catalogue for each
PAIRS, PAIRS_AT_ONCE = 2_000_000, 200_000  # scored by a pairwise reward, in total and per batch
NOT_A_PROBABILITY = {
    "sampled": "its softmax was fitted against sampled items, so it is not a probability over the catalogue",
    "impressions": "it was fitted to clicks on what was shown, so a softmax over the catalogue is not a probability",
}
NOT_KNOWN_AS_ONE = "its scores are not known to be the logits of a probability over the catalogue"
Strata = dict[str, NDArray[np.str_]]


def report_ranker(run: RunDirectory) -> Declaration:
    """Declare the report."""
    data = RunData(run, CatalogVersion(run, run.catalog))
    models = Models(data)
    start = run.path("sft", "best")
    reads = [*data.training_files, *data.catalog_files, model_of("sft"), *models.reward_files]
    reads += data.shown_files
    if data.truth_files:
        reads += [*data.truth_files, "prepare:test.parquet"]

    def build(work: Path) -> None:
        content = _quality(data, models.reward(), models.policy(start).eval(), loss_of(data))
        write_json(work / "report.json", content)

    return Declaration(
        build,
        reads,
        files=("report.json",),
        settings=("policy", *models.reward_reads, "seed", "max_history"),
        also=data.truth_read or None,
    )


def _catalogue_scores(data: RunData, reward: Reward, histories: Histories) -> NDArray[np.float32]:
    """(B, V) scores of every item."""
    if isinstance(reward, SequentialRanker):
        reward.eval()
        scores: NDArray[np.float32] = reward.catalogue_scores(reward.last_states(histories)).cpu().numpy()
        return scores
    everything = torch.arange(data.num_items, device=data.device)
    parts, at_once = [], max(1, PAIRS_AT_ONCE // data.num_items)
    rows = torch.arange(len(histories.lengths), device=data.device)
    for first in range(0, len(rows), at_once):
        part = histories.rows(rows[first : first + at_once])
        parts.append(reward.score(part, everything.expand(len(part.lengths), -1)).float().cpu().numpy())
    return np.concatenate(parts)


def _affordable(data: RunData, reward: Reward, cases: Cases) -> Cases:
    if isinstance(reward, SequentialRanker):
        return cases
    return sample_cases(cases, max(1, PAIRS // data.num_items), data.config.seed)


@torch.no_grad()
def _quality(data: RunData, reward: Reward, policy: Policy[Any, Any], loss: str) -> dict[str, Any]:
    cases = _affordable(data, reward, data.cases("validation"))
    parts: list[CaseQuality] = []
    nll = np.empty(len(cases))
    for rows, histories in _batches(data, cases):
        targets = cases.targets[rows].astype(np.int64)
        parts.append(case_quality(_catalogue_scores(data, reward, histories), targets))
        codes = data.catalog.codes[torch.from_numpy(targets).to(data.device)]
        nll[rows] = nll_of(policy.score(policy.encode(histories), codes.unsqueeze(1)).squeeze(1)).cpu().numpy()
    quality = CaseQuality(*(np.concatenate(fields) for fields in zip(*parts, strict=True)))
    of_item = {"item popularity": popularity_bands(data.training.counts(data.num_items))}  # (V,) names by division
    if data.times_shown is not None:
        of_item["item exposure"] = band(data.times_shown, EXPOSURES)
    thirds = np.array(THIRDS)[np.searchsorted(np.quantile(nll, [1 / 3, 2 / 3]), nll, side="right")]  # (N,) names
    of_case = {"history length": band(cases.histories.lengths, ACTIVITIES), "policy difficulty": thirds}
    truth = _truth(data, reward, cases, of_item, of_case) if data.truth_knows_all else {}
    strata = {"all": np.full(len(cases), "all")} | {by: names[cases.targets] for by, names in of_item.items()} | of_case
    table = []
    for by, names in strata.items():
        for name in _ordered(names):
            kept = names == name
            row: dict[str, Any] = {"by": by, "stratum": name, "cases": int(kept.sum())}
            row |= {"auc": interval(quality.auc[kept], cases.users[kept])}
            row |= {"ndcg@10": interval(quality.ndcg[kept], cases.users[kept])}
            if loss == "cross_entropy":
                row |= {"ece": expected_calibration_error(quality.confidence[kept], quality.hit[kept])}
            if truth:
                row |= {"true_correlation": truth[by, name]}
            table.append(row)
    content: dict[str, Any] = {"split": "validation", "loss": loss, "strata": table}
    if loss != "cross_entropy":
        return content | {"calibration": NOT_A_PROBABILITY.get(loss, NOT_KNOWN_AS_ONE)}
    return content | {"calibration": calibration_bins(quality.confidence, quality.hit)}


def _truth(data: RunData, reward: Reward, cases: Cases, of_item: Strata, of_case: Strata) -> dict[tuple[str, str], Any]:
    """Correlation of scores and utilities just before the test purchase, by item and case stratum."""
    truth, last = data.truth(), sample_cases(data.cases("test"), TRUTH_USERS, data.config.seed)
    last = _affordable(data, reward, last)
    everything = np.arange(data.num_items)
    correlations: dict[tuple[str, str], NDArray[np.float64]] = {}
    groups = {(by, name): names == name for by, names in of_item.items() for name in _ordered(names)}
    for rows, histories in _batches(data, last):
        scores = _catalogue_scores(data, reward, histories)
        users, bought = last.users[rows].astype(np.int64), last.targets[rows].astype(np.int64)
        utilities = truth.utility_before(users, bought, np.broadcast_to(everything, (len(rows), len(everything))))
        for key, kept in {("all", "all"): everything >= 0, **groups}.items():
            values = correlations.setdefault(key, np.full(len(last), np.nan))
            values[rows] = rank_correlation(scores[:, kept], utilities[:, kept])
    result = {key: interval(values, last.users) for key, values in correlations.items()}
    for by, names in of_case.items():
        of_user = dict(zip(cases.users.tolist(), names.tolist(), strict=True))
        stratum_of = np.array([of_user.get(user, "") for user in last.users.tolist()])
        for name in _ordered(names):
            result[by, name] = interval(correlations["all", "all"][stratum_of == name], last.users[stratum_of == name])
    return result


def _batches(data: RunData, cases: Cases) -> Iterator[tuple[NDArray[np.int64], Histories]]:
    size = data.config.evaluation.batch_size
    for first in range(0, len(cases), size):
        rows = np.arange(first, min(first + size, len(cases)))
        yield rows, pad(cases.histories, rows, data.config.max_history).to(data.device)


def _ordered(names: NDArray[np.str_]) -> list[str]:
    occurring = set(names.tolist())
    return [name for name in ORDER if name in occurring]


FILES = ("predictions.parquet", "free.parquet", "metrics.json")


def pair_outcomes(run: RunDirectory, arms: Sequence[str]) -> Declaration:
    """Declare the comparison of the arms by user."""
    data = RunData(run, CatalogVersion(run, run.catalog))
    points: dict[tuple[str, str], tuple[str, ...]] = {(START, "start"): (START,)}
    points |= {(arm, kind): (arm, kind) for arm in arms for kind in ("best", "final")}

    def build(work: Path) -> None:
        users = {point: read_measured(data, run.path("evaluate", *parts)).users for point, parts in points.items()}
        write_json(work / "paired.json", paired_outcomes(users), allow_nan=False)

    reads = [*data.training_files, "prepare:test.parquet"]
    reads += [f"evaluate/{'/'.join(parts)}:{name}" for parts in points.values() for name in FILES]
    return Declaration(
        build,
        reads=[*reads, *data.truth_files],
        files=("paired.json",),
        settings=("evaluation.beam_width",),
        version=2,
        also={"metrics": measured(run.config.data.split.baskets), "arms": list(arms)} | data.truth_read,
    )


def read_measured(data: RunData, folder: Path) -> Measured:
    """Read per-user results; UserError if a file is missing or changed."""
    cases = data.measured_cases("test")
    for name in FILES:
        hash_of(data.run, folder / name)
    width = data.config.evaluation.beam_width
    items, valid = read_lists(data, cases, folder, width), np.zeros((len(cases), width), dtype=np.bool_)
    free = by_case(data, cases, folder / "free.parquet", "valid", width)  # True where a sequence names an item
    valid[free["case"].to_numpy(), free["rank"].to_numpy() - 1] = free["valid"].to_numpy()
    lists = RankedLists(
        ranks_in(items, cases),
        width,
        items=items,
        valid=valid,
        tail=data.tail,
        utility=data.utility_at(cases),
        sizes=cases.sizes,
    )
    users = per_user(load_user_ids(data.prepared).gather(cases.users), lists)
    values = read_json(folder / "metrics.json")
    return Measured(users, values["test"], values["validation"])
