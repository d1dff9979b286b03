"""The stage `reranking`: choose reward weights from a grid, on the starting policy's validation beams.

weight.json holds

    spread     σ, the unit of every weight of this run's reward
    rerank     the weight with the highest NDCG@10, cases weighted by `RunData.case_weights`
    distill    the smallest weight indistinguishable from the best, 0 where the reward adds nothing
    warning    set if a weight is at the grid's upper edge, else null
    members    each σ_k of an unweighted sum Σ r_k / σ_k
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from adagrpo import metrics
from adagrpo.evaluation.predictions import ranks_in, reordered
from adagrpo.evaluation.reranking import WEIGHTS, best_weight, edge_warning, least_of_the_best, within_list_std
from adagrpo.pipeline.directory import RunDirectory, model_of
from adagrpo.pipeline.factories import REWARD_WEIGHTS, Models, RewardWeights
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.json_files import write_json
from adagrpo.pipeline.stage import Declaration
from adagrpo.pipeline.stages.fitting import DECODING, NOT_FITTED, progress

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
            spreads = [within_list_std(beams.items, values) for values in rewards]
            summed = np.tensordot([1 / spread for spread in spreads], np.stack(rewards).astype(np.float64), 1)
            beams, members = beams._replace(rewards=summed.astype(np.float32)), {"members": spreads}
        assert beams.rewards is not None, "predicted with a reward"
        spread = within_list_std(beams.items, beams.rewards)
        ranks = {w: ranks_in(reordered(beams, w, spread).items, cases) for w in WEIGHTS}
        weighted = data.case_weights(cases)
        by_weight = {weight: weighted * metrics.ndcg(rank, 10, cases.sizes) for weight, rank in ranks.items()}
        found = RewardWeights(spread, best_weight(by_weight), least_of_the_best(by_weight))
        warning = edge_warning(found.rerank)
        if warning is not None:
            run.console.note(f"{STAGE}: {warning}")
        tried = {str(weight): float(values.mean()) for weight, values in by_weight.items()}
        content = found._asdict() | members | {"warning": warning, "ndcg@10": tried, "cases": len(cases)}
        write_json(work / FILE, content)

    return Declaration(
        build,
        reads,
        files=(FILE,),
        settings=(*DECODING, *models.reward_reads, "decide"),
        but=NOT_FITTED,
        also={"weights": list(WEIGHTS)},
        version=3,
    )
