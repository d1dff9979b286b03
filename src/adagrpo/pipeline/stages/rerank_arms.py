"""Arms that train nothing: a policy's beam re-ordered by the reward at serving time.

`rerank` has the starting policy and the weight of the stage `reranking`; `<arm>+rerank` a trained arm and the weight
with the highest NDCG@10 on its own validation lists.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from adagrpo.evaluation.predictions import ranks_in, reordered, summarise
from adagrpo.evaluation.reranking import WEIGHTS, best_weight, edge_warning
from adagrpo.lists.names import RERANK, START, parse_list
from adagrpo.metrics import measured, ndcg
from adagrpo.pipeline.directory import RunDirectory, model_of, place_of, weights_of
from adagrpo.pipeline.factories import REWARD_WEIGHTS, Models, read_reward_weights
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.json_files import write_json
from adagrpo.pipeline.stage import Declaration, Declare
from adagrpo.pipeline.stages.evaluate import EVALUATED, copy_equal, write_predictions
from adagrpo.pipeline.stages.fitting import DECODING, progress
from adagrpo.pipeline.stages.fuse import VALIDATION, validation_cases, write_ranks


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
    models, file = Models(data), place_of(run, REWARD_WEIGHTS)
    reads = [*data.training_files, "prepare:test.parquet", *data.catalog_files, model_of(arm, checkpoint)]
    reads += [REWARD_WEIGHTS, *models.reward_files, *data.shown_files, *data.truth_files]

    def build(work: Path) -> None:
        if copy_equal(run, declared, work):
            return
        policy, reward = models.policy(weights), models.reward()
        cases, beams = {}, {}
        for split in ("validation", "test"):
            cases[split], report = data.measured_cases(split), progress(run, f"{label} {split}")
            beams[split] = models.predict(policy, cases[split], reward, report, eligible=data.eligible)
        known, sizes = read_reward_weights(file), cases["validation"].sizes
        tried = {weight: reordered(beams["validation"], weight, known.spread) for weight in WEIGHTS}
        importance = data.case_weights(cases["validation"])
        ranks = {weight: ranks_in(lists.items, cases["validation"]) for weight, lists in tried.items()}
        values = {weight: importance * ndcg(found, 10, sizes) for weight, found in ranks.items()}
        chosen = known.rerank if arm == START else best_weight(values)
        warning = edge_warning(chosen)
        if warning is not None:
            run.console.note(f"{label}: {warning}")
        lists = reordered(beams["test"], chosen, known.spread)
        content: dict[str, Any] = {
            "weight": chosen,
            "spread": known.spread,
            "warning": warning,
            "tried": {str(weight): float(found.mean()) for weight, found in values.items()},
            "validation": summarise(tried[chosen], cases["validation"], tail=data.tail),
            "test": summarise(lists, cases["test"], tail=data.tail, utility=data.utility_at(cases["test"])),
        }
        write_predictions(data, cases["test"], lists, work)
        compared = np.isin(cases["validation"].users, validation_cases(data).users)  # as for other lists
        write_ranks(
            work,
            {RERANK: ranks[chosen][compared]},
            data.ids_of(cases["validation"].users[compared]),
            None if sizes is None else sizes[compared],
        )
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
