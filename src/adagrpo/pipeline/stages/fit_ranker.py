"""The stages `ranker`, the reward model, on all users and per fold, and `ranker/lambdarank`, trees if a reward asks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from adagrpo.data.columns import CLICKED, HISTORY_LENGTH, PROPENSITY
from adagrpo.data.prepared import load_impressions
from adagrpo.data.sequences import emptied
from adagrpo.errors import UserError
from adagrpo.evaluation.predictions import rank_by_ranker, sample_cases, select_cases
from adagrpo.pipeline.directory import MEASURED, RunDirectory, path_of
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.json_files import read_json, write_json
from adagrpo.pipeline.stage import CHECKPOINTS, Declaration
from adagrpo.pipeline.stages.fitting import fit_model, measured_fit
from adagrpo.pipeline.stages.tokenize import VECTOR_FILE, VECTORS, encoded_files, start_from_vectors
from adagrpo.rewards.features import FEATURES
from adagrpo.rewards.model_files import require
from adagrpo.rewards.sequential import SequentialRanker
from adagrpo.trainer import RankerFit
from adagrpo.trainer.lambdarank import (
    NegativeSampler,
    RankingGroups,
    fit_lambdarank,
    logged_groups,
    shown_groups,
    validation_groups,
)
from adagrpo.trainer.processes import processes
from adagrpo.trainer.ranker_fit import Impressions
from adagrpo.types import Cases

Validate = Callable[[], dict[str, float]]
Examine = Callable[[SequentialRanker], dict[str, dict[str, float]]]


# given the ranker to fit and (U,) users hidden from it
Begin = Callable[[RunData, SequentialRanker, NDArray[np.bool_]], tuple[Validate, Examine]]


def ranker(run: RunDirectory, fold: int | None = None) -> Declaration:
    """Declare the fit on all users, or without those of `fold`."""
    return sequential_ranker(run, partial(_retrieval, fold), "ndcg@10", "evaluation.exclude_history", fold=fold)


def sequential_ranker(
    run: RunDirectory,
    begin: Begin,
    monitor: str,  # a metric returned by `Validate`
    setting: str,  # configuration key besides `ranker`
    files: Sequence[str] = (),  # prepared files besides the training files
    fold: int | None = None,
) -> Declaration:
    """Declare a fit and selection without any interaction of the users of `fold`."""
    data, options = RunData(run), run.config.ranker
    models, settings = Models(data), options.fit
    name = "ranker" if fold is None else f"ranker/fold-{fold}"
    kind = data.ranker_loss
    reads = [*data.training_files, *(f"prepare:{name}" for name in files), *data.shown_files]
    if kind == "impressions" and run.path("prepare", "train.parquet").is_file() and not data.shown_files:
        raise UserError(
            "ranker.loss: impressions needs a clicked column in the logs (data.columns.clicked), or data.impressions"
        )
    if options.propensity != "ignore" and kind != "impressions":
        raise UserError(f"ranker.propensity: {options.propensity} weighs impressions, and the loss is '{kind}'")

    # not measured for impressions, and logs without order have no vectors
    starts_from_vectors = kind != "impressions" and run.begun is None
    if starts_from_vectors:
        reads += [VECTOR_FILE, *encoded_files(run)]
    reads += measured_fit(run, name)

    def build(work: Path) -> None:
        ranker = models.ranker()
        left_out = data.withheld if fold is None else data.withheld | (data.fold_of_user == fold)
        if starts_from_vectors:
            start_from_vectors(run, ranker.items, emptied(data.training, left_out) if left_out.any() else None)
        schedule = replace(models.schedule(settings), left_out=left_out if left_out.any() else None)
        impressions = _impressions(data, kind)
        validate, examine = (dict, lambda best: {}) if run.measured is not None else begin(data, ranker, left_out)
        task = RankerFit(
            ranker,
            schedule,
            loss=kind,
            steps=max(1, round(settings.epochs * schedule.steps_per_epoch)),
            validate=validate,
            impressions=impressions,
            self_normalised=options.propensity == "snips",
            negatives=options.negatives,
            monitor=monitor,
        )
        result = fit_model(data, name, ranker, task, settings, work)
        if not processes().is_main_process:
            return
        summary: dict[str, object] = {"loss": kind, "best_step": result.best_step}
        summary |= examine(models.ranker(work / "best"))
        write_json(work / "metrics.json", summary)

    also: dict[str, object] = {} if fold is None else {"fold": fold}
    if kind == "impressions" and run.config.data.split.kind == "temporal":
        also["shown"] = "after the last interaction too"  # an earlier version did not fit these impressions
    return Declaration(
        build,
        reads,
        files=(*CHECKPOINTS, "metrics.json"),
        settings=("ranker", "seed", "max_history", setting, *(VECTORS if starts_from_vectors else ())),
        but=("ranker.lambdarank", *(("ranker.folds",) if fold is None else ())),
        also=also or None,
        version=5 if starts_from_vectors else 4,
        together=True,
    )


def _retrieval(
    fold: int | None, data: RunData, ranker: SequentialRanker, left_out: NDArray[np.bool_]
) -> tuple[Validate, Examine]:
    config = data.config
    everyone = data.cases("validation")
    seen, unseen = (np.flatnonzero(left_out[everyone.users] == out) for out in (False, True))
    if not len(seen):
        change = "raise ranker.user_share" if fold is None else "take fewer folds"
        raise UserError(f"ranker: no user of a validation case is among those it is fitted on; {change}")
    cases = sample_cases(select_cases(everyone, seen), config.ranker.fit.validation_users, config.seed)

    def retrieve(ranker: SequentialRanker, cases: Cases) -> dict[str, float]:
        return rank_by_ranker(
            ranker,
            cases,
            batch_size=config.evaluation.batch_size,
            max_history=config.max_history,
            exclude_history=config.evaluation.exclude_history,
        )

    def examine(best: SequentialRanker) -> dict[str, dict[str, float]]:
        groups = {"validation": seen, "left_out": unseen}
        return {name: retrieve(best, select_cases(everyone, rows)) for name, rows in groups.items() if len(rows)}

    return lambda: retrieve(ranker, cases), examine


def _impressions(data: RunData, loss: str) -> Impressions | None:
    """Weighted impressions; None if fitted to next items."""
    table = load_impressions(data.prepared) if loss == "impressions" else None
    if table is None:
        return None
    options = data.config.ranker
    known = table.filter(pl.col(HISTORY_LENGTH) > 0)
    if not known[CLICKED].any():  # the weights would stay at their random initialisation
        raise UserError(
            f"ranker.loss: of {len(table):,} impressions in training {len(known):,} come after an interaction of their"
            " user, and none of these was clicked: there is nothing to learn from; take ranker.loss: cross_entropy, or"
            " logs of more of what was shown"
        )
    if options.propensity == "ignore":
        return Impressions.from_table(table, len(data.training))
    if PROPENSITY not in table.columns:
        raise UserError(f"ranker.propensity: {options.propensity} needs data.columns.propensity in the logs")
    missing = int((table[PROPENSITY].is_null() | (table[PROPENSITY] <= 0)).sum())
    if missing:
        raise UserError(f"ranker.propensity: {missing:,} impressions have no propensity above 0")
    return Impressions.from_table(table, len(data.training), options.propensity_floor)


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
            chosen["trees"] = read_json(path_of(run, measured))["trees"]
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
