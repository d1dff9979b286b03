"""The stage `ranker`: the reward model, of all users and of each fold."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adagrpo.data.columns import PROPENSITY
from adagrpo.data.prepared import load_impressions
from adagrpo.data.sequences import emptied
from adagrpo.errors import UserError
from adagrpo.evaluation.predictions import rank_by_ranker, sample_cases, select_cases
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.run import Run
from adagrpo.pipeline.stages.exposure_report import examined, exposed
from adagrpo.pipeline.stages.fit_lambdarank import fit_second_ranker
from adagrpo.pipeline.stages.fitting import fit_model
from adagrpo.rewards.sequential import SequentialRanker
from adagrpo.trainer import RankerFit
from adagrpo.trainer.ranker_fit import Impressions
from adagrpo.types import Cases

__all__ = ["fit_ranker"]

Validate = Callable[[], dict[str, float]]
Examine = Callable[[SequentialRanker], dict[str, dict[str, float]]]


def fit_ranker(run: Run) -> None:
    """The reward model: of all users and, for cross-fitting, one a fold that is fitted on the users of the others."""
    _fit_ranker(run, "ranker", None)
    for fold, name in enumerate(RunData(run).fold_names):
        _fit_ranker(run, name, fold)
    fit_second_ranker(run)


def _fit_ranker(run: Run, name: str, fold: int | None) -> None:
    """Fit and select a ranker without the users of a fold: not one of their interactions is read for either."""
    data, options = RunData(run), run.config.ranker
    models = Models(data)
    settings, without_order = options.fit, run.config.without_order
    inputs = list(data.training_files) + ([data.prepared / "held_out.parquet"] if without_order else [])
    shown = data.prepared / "impressions.parquet"
    if shown.is_file():
        inputs.append(shown)
    kind = options.loss
    if kind == "auto":
        kind = "impressions" if shown.is_file() else "cross_entropy"
    if kind == "impressions" and not shown.is_file():
        raise UserError("ranker.loss: impressions needs a clicked column in the logs (data.columns.clicked)")
    if options.propensity != "ignore" and kind != "impressions":
        raise UserError(f"ranker.propensity: {options.propensity} weighs impressions, and the loss is '{kind}'")

    def build(work: Path) -> None:
        ranker = models.ranker()
        left_out = data.withheld if fold is None else data.withheld | (data.fold_of_user == fold)
        schedule = replace(models.schedule(settings), training=emptied(data.training, left_out))
        impressions = _impressions(data, kind)
        validate, examine = _examination(data, ranker) if without_order else _retrieval(data, ranker, left_out, fold)
        task = RankerFit(
            ranker,
            schedule,
            loss=kind,
            steps=max(1, round(settings.epochs * schedule.steps_per_epoch)),
            validate=validate,
            impressions=impressions,
            self_normalised=options.propensity == "snips",
            negatives=options.negatives,
            monitor="auc" if without_order else "ndcg@10",
        )
        result = fit_model(data, name, ranker, task, settings, work)
        if not run.processes.leads:
            return
        summary: dict[str, object] = {"loss": kind, "best_step": result.best_step}
        summary |= examine(models.ranker(work / "best"))
        (work / "metrics.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")

    examined_by = "evaluation.batch_size" if without_order else "evaluation.mask_history"
    run.stage(
        name,
        reads=("ranker", "seed", "max_history", examined_by),
        but=("ranker.lambdarank", *(("ranker.folds",) if fold is None else ())),
        also=None if fold is None else {"fold": fold},
        schema=2,
        inputs=inputs,
        build=build,
        together=True,
    )


def _retrieval(
    data: RunData, ranker: SequentialRanker, left_out: NDArray[np.bool_], fold: int | None
) -> tuple[Validate, Examine]:
    """How a ranker is validated while it is fitted, and what is said of the best one: its own retrieval."""
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
            mask_history=config.evaluation.mask_history,
        )

    def examine(best: SequentialRanker) -> dict[str, dict[str, float]]:
        groups = {"validation": seen, "left_out": unseen}
        return {name: retrieve(best, select_cases(everyone, rows)) for name, rows in groups.items() if len(rows)}

    return lambda: retrieve(ranker, cases), examine


def _examination(data: RunData, ranker: SequentialRanker) -> tuple[Validate, Examine]:
    """The same for impressions without order: the order of what was shown to a user, held out for validation."""
    held_out = exposed(data, "validation")
    return lambda: examined(data, ranker, held_out), lambda best: {"validation": examined(data, best, held_out)}


def _impressions(data: RunData, loss: str) -> Impressions | None:
    """What the ranker is fitted on, weighted as the recipe says; None where that is logged next items."""
    table = load_impressions(data.prepared) if loss == "impressions" else None
    if table is None:
        return None
    options = data.config.ranker
    if options.propensity == "ignore":
        return Impressions.from_table(table, len(data.training))
    if PROPENSITY not in table.columns:
        raise UserError(f"ranker.propensity: {options.propensity} needs data.columns.propensity in the logs")
    missing = int((table[PROPENSITY].is_null() | (table[PROPENSITY] <= 0)).sum())
    if missing:
        raise UserError(f"ranker.propensity: {missing:,} impressions have no propensity above 0")
    return Impressions.from_table(table, len(data.training), options.propensity_floor)
