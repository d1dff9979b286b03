"""The stage `reranking`: how much of the reward goes into an order, chosen on the starting policy's lists.

The validation cases' beams are re-ordered with each weight of `adagrpo.evaluation.reranking.WEIGHTS`, so what a weight
is worth is seen before anything is trained. weight.json holds

    spread     σ, the unit of every weight of this run's reward
    rerank     the weight of the highest NDCG@10, cases weighted by `RunData.case_weights`: what `diagnose` advises, and
               `evaluate` and the arm `rerank` measure
    distill    the least weight that validation cannot tell from the best one: what the target of `distill` takes where
               `objective.distill.reward_weight` is `validation`. A reward that adds nothing gets 0, and its arm is
               continued NLL
    warning    where a weight is the largest that is tried; else null
    members    of a sum of rewards without weights, σ of each: the sum is Σ r_k / σ_k wherever it is asked
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from adagrpo import metrics
from adagrpo.evaluation.predictions import reordered
from adagrpo.evaluation.reranking import WEIGHTS, best_weight, edge_warning, least_of_the_best, reward_spread
from adagrpo.pipeline.directory import RunDirectory
from adagrpo.pipeline.factories import REWARD_WEIGHTS, Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.json_files import read_json, write_json
from adagrpo.pipeline.stage import Declaration
from adagrpo.pipeline.stages.fitting import DECODING, NOT_FITTED, progress

STAGE, FILE = REWARD_WEIGHTS


class RewardWeights(NamedTuple):
    """Weights of the reward that the stage chose, in spreads."""

    spread: float
    rerank: float
    distill: float


def reranking(run: RunDirectory) -> Declaration:
    """The spread of the reward, and the weights that the starting policy's beams on validation cases choose."""
    data, weights = RunData(run), run.path("sft", "best")
    models = Models(data)
    options = run.config.reward
    inputs = [*data.training_files, *data.shown_files, *data.catalog_files]
    inputs += [weights / "model.safetensors", *models.files_of(options), *models.probe_files]

    def build(work: Path) -> None:
        cases = data.cases("validation")
        reward = None if options.in_spreads else models.reward()
        beams = models.predict(models.policy(weights), cases, reward, progress(run, STAGE))
        members = {}
        if options.in_spreads:
            rewards = [models.score_lists(member, cases, beams.items) for member in models.members()]
            spreads = [reward_spread(beams.items, values) for values in rewards]
            summed = np.tensordot([1 / spread for spread in spreads], np.stack(rewards).astype(np.float64), 1)
            beams, members = beams._replace(rewards=summed.astype(np.float32)), {"members": spreads}
        assert beams.rewards is not None, "predicted with a reward"
        spread, targets = reward_spread(beams.items, beams.rewards), cases.targets.astype(np.int64)
        ranks = {w: metrics.target_rank_in(reordered(beams, w, spread).items, targets) for w in WEIGHTS}
        weighted = data.case_weights(cases)
        by_weight = {weight: weighted * metrics.ndcg(rank, 10) for weight, rank in ranks.items()}
        found = RewardWeights(spread, best_weight(by_weight), least_of_the_best(by_weight))
        warning = edge_warning(found.rerank)
        if warning is not None:
            run.console.note(f"{STAGE}: {warning}")
        tried = {str(weight): float(values.mean()) for weight, values in by_weight.items()}
        content = found._asdict() | members | {"warning": warning, "ndcg@10": tried, "cases": len(cases)}
        write_json(work / FILE, content)

    return Declaration(
        build,
        inputs,
        files=(FILE,),
        settings=(*DECODING, *models.reward_reads, "decide"),
        but=NOT_FITTED,
        also={"weights": list(WEIGHTS)},
        schema=3,
    )


def read_reward_weights(file: Path) -> RewardWeights:
    """The weights that a file of the stage holds."""
    content = read_json(file)
    return RewardWeights(*(float(content[name]) for name in RewardWeights._fields))
