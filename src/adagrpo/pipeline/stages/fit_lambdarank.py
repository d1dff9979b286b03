"""The stage `ranker/lambdarank`: the tree-based ranker, where the recipe's reward needs it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from adagrpo.data.prepared import load_impressions
from adagrpo.data.sequences import emptied
from adagrpo.errors import UserError
from adagrpo.evaluation.predictions import sample_cases, select_cases
from adagrpo.pipeline.directory import MEASURED, RunDirectory, place_of
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.json_files import read_json, write_json
from adagrpo.pipeline.stage import Declaration
from adagrpo.rewards.features import FEATURES
from adagrpo.rewards.model_files import require
from adagrpo.trainer.lambdarank import (
    NegativeSampler,
    RankingGroups,
    fit_lambdarank,
    logged_groups,
    shown_groups,
    validation_groups,
)
from adagrpo.trainer.ranker_fit import Impressions


def _logged_validation(data: RunData, sampler: NegativeSampler) -> RankingGroups:
    config = data.config
    everyone = data.cases("validation")
    seen = select_cases(everyone, np.flatnonzero(~data.withheld[everyone.users]))
    cases = sample_cases(seen, config.ranker.fit.validation_users, config.seed)
    return validation_groups(
        sampler, cases, negatives=config.ranker.lambdarank.negatives, max_history=config.max_history
    )


def lambdarank(
    run: RunDirectory,
    validation: Callable[[RunData, NegativeSampler], RankingGroups] = _logged_validation,
    reads: Sequence[str] = (),  # prepared files that `validation` needs besides the training files
) -> Declaration:
    """Declare the fit of LambdaRank, on impressions where there are some; `validation` selects the number of trees."""
    data, options = RunData(run), run.config.ranker.lambdarank
    read = [*data.training_files, *data.shown_files, *(f"prepare:{name}" for name in reads)]
    reach = run.config.max_history
    measured = f"{MEASURED}/ranker/lambdarank:metrics.json"  # has the number of trees that a refit fits
    read += [] if run.measured is None else [measured]

    def build(work: Path) -> None:
        require("lightgbm", "reward.kind: lambdarank")
        training = emptied(data.training, data.withheld)
        sampler = NegativeSampler(training, data.num_items, run.config.seed, options.sources)
        table = load_impressions(data.prepared)
        if table is None:
            arguments = {"positions": options.positions, "negatives": options.negatives}
            groups = logged_groups(sampler, **arguments, max_history=reach)
        else:
            impressions = Impressions.from_table(table, len(training))
            groups = shown_groups(sampler, impressions, negatives=options.negatives, max_history=reach)
        chosen = options.model_dump(exclude={"positions", "negatives", "sources"})
        held_out = None
        if run.measured is None:
            held_out = validation(data, sampler)
        else:
            chosen["trees"] = read_json(place_of(run, measured))["trees"]
        if not len(groups.items) or (held_out is not None and not len(held_out.items)):
            raise UserError("reward.kind: lambdarank finds no moment with one item chosen and another not")
        fitted = fit_lambdarank(
            Models(data).ranker_features,
            groups,
            held_out,
            **chosen,
            seed=run.config.seed,
            threads=torch.get_num_threads(),
            report=partial(run.console.progress, "ranker/lambdarank"),
        )
        fitted.model.save_model(work / "model.txt")
        gains = dict(zip(FEATURES, fitted.model.feature_importance("gain").tolist(), strict=True))
        summary = {
            "groups": "impressions" if table is not None else "logged",
            "group_count": fitted.groups,
            "rows": fitted.rows,
            "trees": fitted.trees,
            "ndcg@10_among_sampled": fitted.ndcg,
            "gain": dict(sorted(gains.items(), key=lambda entry: -entry[1])),
        }
        write_json(work / "metrics.json", summary)

    of_ranker = ("ranker.lambdarank", "ranker.user_share", "ranker.fit.validation_users")
    return Declaration(build, read, ("model.txt", "metrics.json"), (*of_ranker, "seed", "max_history"))
