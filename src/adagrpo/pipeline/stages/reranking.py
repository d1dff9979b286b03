"""Re-ordering of a policy's beam by the reward at serving time, which trains nothing.

The stage `reranking` chooses reward weights from a grid, on the starting policy's validation beams; weight.json holds

    spread     σ, the unit of every weight of this run's reward
    rerank     the weight with the highest NDCG@10, cases weighted by `RunData.case_weights`
    distill    the smallest weight indistinguishable from the best, 0 where the reward adds nothing
    warning    set if a weight is at the grid's upper edge, else null
    members    each σ_k of an unweighted sum Σ r_k / σ_k

The list `rerank` has the starting policy and that weight; `<arm>+rerank` a trained arm and the weight with the highest
NDCG@10 on its own validation lists.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adagrpo.evaluation.predictions import Predictions, ranks_in, reordered, summarise
from adagrpo.lists.names import RERANK, START, parse_list
from adagrpo.metrics import measured, ndcg
from adagrpo.pipeline.directory import RunDirectory, model_of, path_of, weights_of
from adagrpo.pipeline.factories import REWARD_WEIGHTS, Models, read_reward_weights
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.json_files import write_json
from adagrpo.pipeline.stage import Declaration, Declare
from adagrpo.pipeline.stages.evaluate import EVALUATED, copy_equal, write_predictions
from adagrpo.pipeline.stages.fitting import DECODING, NOT_FITTED, progress
from adagrpo.pipeline.stages.fuse import VALIDATION, validation_cases, write_ranks
from adagrpo.rewards.reranking import WEIGHTS, best_weight, edge_warning, least_of_the_best, within_list_std
from adagrpo.types import Cases

STAGE, FILE = REWARD_WEIGHTS.split(":")


def reranking(run: RunDirectory) -> Declaration:
    """Declare the choice of weights."""
    data = RunData(run)
    models = Models(data)
    options = run.config.reward
    reads = [*data.training_files, *data.shown_files, *data.catalog_files, model_of("sft")]
    reads += [*models.files_of(options), *models.probe_files]

    def build(work: Path) -> None:
        cases = data.cases("validation")
        reward = None if options.in_list_stds else models.reward()
        beams = models.predict(models.policy(run.path("sft", "best")), cases, reward, progress(run, STAGE))
        members = {}
        if options.in_list_stds:
            rewards = [models.score_lists(member, cases, beams.items) for member in models.members()]
            stds = [within_list_std(beams.items, values) for values in rewards]
            summed = np.tensordot([1 / one for one in stds], np.stack(rewards).astype(np.float64), 1)
            beams, members = beams._replace(rewards=summed.astype(np.float32)), {"members": stds}
        assert beams.rewards is not None, "predicted with a reward"
        std = within_list_std(beams.items, beams.rewards)
        values = _ndcg(data, cases, _by_weight(beams, cases, std))
        rerank = best_weight(values)
        content: dict[str, Any] = {"spread": std, "rerank": rerank, "distill": least_of_the_best(values)}
        content |= members | _noted(run, STAGE, rerank)
        write_json(work / FILE, content | {"ndcg@10": _means(values), "cases": len(cases)})

    return Declaration(
        build,
        reads,
        files=(FILE,),
        settings=(*DECODING, *models.reward_reads, "decide"),
        but=NOT_FITTED,
        also={"weights": list(WEIGHTS)},
        version=3,
    )


def re_rankings(name: str) -> dict[str, Declare]:
    """Return the stages of a re-ranked list by name; none for other lists."""
    called = parse_list(name)
    if called.order != RERANK:
        return {}
    if called.policy == START:
        return {f"evaluate/{RERANK}": partial(_rerank, arm=START)}
    return {
        f"evaluate/{name}/{kind}": partial(_rerank, arm=str(called.policy), checkpoint=kind)
        for kind in ("best", "final")
    }


def _rerank(run: RunDirectory, arm: str, checkpoint: str = "best") -> Declaration:
    data, weights = RunData(run), run.path(*weights_of(arm, checkpoint))
    label = f"evaluate/{RERANK}" if arm == START else f"evaluate/{arm}+{RERANK}/{checkpoint}"
    models, file = Models(data), path_of(run, REWARD_WEIGHTS)
    reads = [*data.training_files, "prepare:test.parquet", *data.catalog_files, model_of(arm, checkpoint)]
    reads += [REWARD_WEIGHTS, *models.reward_files, *data.shown_files, *data.truth_files]

    def build(work: Path) -> None:
        if copy_equal(run, declared, work):
            return
        policy, reward = models.policy(weights), models.reward()
        split_cases, beams = {}, {}
        for split in ("validation", "test"):
            split_cases[split], report = data.measured_cases(split), progress(run, f"{label} {split}")
            beams[split] = models.predict(policy, split_cases[split], reward, report, eligible=data.eligible)
        known, cases, test = read_reward_weights(file), split_cases["validation"], split_cases["test"]
        ranks = _by_weight(beams["validation"], cases, known.within_list_std)
        values = _ndcg(data, cases, ranks)
        chosen = known.rerank if arm == START else best_weight(values)
        content: dict[str, Any] = {"weight": chosen, "spread": known.within_list_std} | _noted(run, label, chosen)
        lists = {split: reordered(found, chosen, known.within_list_std) for split, found in beams.items()}
        content |= {
            "tried": _means(values),
            "validation": summarise(lists["validation"], cases, tail=data.tail),
            "test": summarise(lists["test"], test, tail=data.tail, utility=data.utility_at(test)),
        }
        write_predictions(data, test, lists["test"], work)
        compared = np.isin(cases.users, validation_cases(data).users)  # as for other lists
        sizes = None if cases.sizes is None else cases.sizes[compared]
        write_ranks(work, {RERANK: ranks[chosen][compared]}, data.ids_of(cases.users[compared]), sizes)
        write_json(work / "metrics.json", content)

    declared = Declaration(
        build,
        reads,
        files=(*EVALUATED, VALIDATION),
        settings=(*DECODING, *models.reward_reads, "decide"),
        also={"weights": list(WEIGHTS), "metrics": measured(run.config.data.split.baskets)}
        | data.truth_read
        | data.validation_draw,
        version=7,
    )
    return declared


def _by_weight(beams: Predictions, cases: Cases, std: float) -> dict[float, NDArray[np.int64]]:
    return {weight: ranks_in(reordered(beams, weight, std).items, cases) for weight in WEIGHTS}


def _ndcg(data: RunData, cases: Cases, ranks: dict[float, NDArray[np.int64]]) -> dict[float, NDArray[np.float64]]:
    weighted = data.case_weights(cases)
    return {weight: weighted * ndcg(found, 10, cases.sizes) for weight, found in ranks.items()}


def _means(values: dict[float, NDArray[np.float64]]) -> dict[str, float]:
    return {str(weight): float(found.mean()) for weight, found in values.items()}


def _noted(run: RunDirectory, label: str, weight: float) -> dict[str, str | None]:
    warning = edge_warning(weight)
    if warning is not None:
        run.console.note(f"{label}: {warning}")
    return {"warning": warning}
