"""The stages of a run, from logs to checkpoints. Each says what it reads; nothing before `evaluate` reads test data."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from torch import nn

from adagrpo.artifacts import write_file
from adagrpo.config import ArmConfig, FitConfig, ItemTable, RefuseConfig
from adagrpo.data import splits
from adagrpo.data.columns import ITEM_ID, PROPENSITY
from adagrpo.data.dataset import Dataset, build_dataset
from adagrpo.data.interactions import ColumnMapping, Refusals, read_logs
from adagrpo.data.items import read_items
from adagrpo.data.marketplace import Marketplace, simulate, write_simulation
from adagrpo.data.prepared import load_impressions, load_user_ids, write_prepared
from adagrpo.data.sequences import emptied
from adagrpo.data.ties import shuffle_ties
from adagrpo.errors import UserError
from adagrpo.evaluation import rank_by_ranker, sample_cases, select_cases
from adagrpo.pipeline.lambdarank import fit_second_ranker
from adagrpo.pipeline.models import Workbench
from adagrpo.pipeline.run import Run
from adagrpo.rewards.ranker import SequentialRanker
from adagrpo.trainer import Arm, Diverged, FitResult, PostTraining, RankerFit, Supervised, Task, fit
from adagrpo.trainer.ranker import Impressions
from adagrpo.types import Cases

__all__ = ["fit_arm", "fit_ranker", "fit_sft", "prepare", "simulate_marketplace"]

MARKETPLACE_ITEMS = ItemTable(path="items.parquet", text=("title",), attributes=("attributes",))
MARKETPLACE_COLUMNS = ColumnMapping(timestamp="timestamp", clicked="clicked", slot="slot", propensity="propensity")


def simulate_marketplace(run: Run) -> None:
    """Make the logs, where the recipe asks for a simulated marketplace."""
    options = run.config.data.marketplace
    if options is None:
        return
    given = options.model_dump(exclude_none=True)
    world = Marketplace(**given, seed=run.config.seed)
    run.stage("simulate", config=asdict(world), inputs=[], build=lambda work: write_simulation(simulate(world), work))


def prepare(run: Run) -> None:
    """Logs to interactions: filter, number users and items, split."""
    options = run.config.data
    described, root = options.items, run.data
    columns = ColumnMapping(**options.columns.model_dump())
    logs = [root / path for path in options.logs]
    if options.marketplace is not None:
        described, root, columns = MARKETPLACE_ITEMS, run.path("simulate"), MARKETPLACE_COLUMNS
        logs = [root / "logs.parquet"]
    items = root / described.path if described else None
    names = root / described.attribute_names if described and described.attribute_names else None

    def build(work: Path) -> None:
        table = None
        if described is not None and items is not None:
            table = read_items(
                items,
                id_column=described.id_column,
                text_columns=described.text,
                attribute_columns=described.attributes,
                attribute_names=names,
            )
        refuse = Refusals(
            table[ITEM_ID].cast(pl.String) if options.refuse.unknown_items and table is not None else None,
            options.refuse.after,
            options.refuse.repeats,
        )
        read = read_logs(
            logs,
            columns,
            keep_events=options.keep_events,
            min_rating=options.min_rating,
            max_bad_rows=options.max_bad_rows,
            refuse=refuse,
        )
        dataset = build_dataset(
            read,
            table,
            min_user_interactions=options.min_user_interactions,
            min_item_interactions=options.min_item_interactions,
        )
        if options.shuffle_ties is not None:
            column = options.shuffle_ties.sorted_by
            name = described.id_column if described else ITEM_ID
            dataset = shuffle_ties(dataset, seed=run.config.seed, table=items, id_column=name, column=column)
        write_prepared(dataset, _split(run, dataset), work)

    inputs = [*logs, *(path for path in (items, names) if path is not None)]
    without = {"refuse"} if options.refuse == RefuseConfig() else set()
    config = [options.model_dump(mode="json", exclude=without), run.config.seed if options.shuffle_ties else None]
    run.stage("prepare", config=config, inputs=inputs, build=build)
    run.write_description({path.name: run.hash_input(path) for path in inputs})


def _split(run: Run, dataset: Dataset) -> splits.Split:
    options = run.config.data.split
    interactions = dataset.interactions
    lengths = np.bincount(interactions["user"].to_numpy(), minlength=len(dataset.users))
    if options.kind == "leave_one_out":
        return splits.leave_one_out(lengths)
    if "timestamp" not in interactions.columns:
        raise UserError("data.split.kind: temporal needs data.columns.timestamp")
    offsets = np.concatenate([[0], lengths.cumsum()]).astype(np.int64)
    assert options.validation_from is not None and options.test_from is not None  # the configuration checks it
    return splits.temporal(
        interactions["timestamp"].to_numpy(),
        offsets,
        validation_from=options.validation_from,
        test_from=options.test_from,
    )


def fit_sft(run: Run) -> None:
    """The starting policy: NLL from scratch."""
    bench, settings = Workbench(run), run.config.sft

    def build(work: Path) -> None:
        policy = bench.policy()
        schedule = replace(bench.schedule(settings), rl_split=run.config.train.rl_split)
        task = Supervised(
            policy,
            bench.catalog.codes,
            schedule,
            steps=max(1, round(settings.epochs * schedule.steps_per_epoch)),
            validate=bench.validator(policy, settings),
        )
        _fit(bench, "sft", policy, task, settings, work)

    config = [_fit_config(settings), *_policy_config(run)]
    if run.config.train.rl_split:
        config += [{"rl_split": run.config.train.rl_split}]
    inputs = [*bench.training_files, *bench.catalog_files, *bench.language_model_files]
    run.stage("sft", config=config, inputs=inputs, build=build)


def fit_ranker(run: Run) -> None:
    """The reward model: of all users and, for cross-fitting, one a fold that is fitted on the users of the others."""
    _fit_ranker(run, "ranker", None)
    for fold, name in enumerate(Workbench(run).fold_names):
        _fit_ranker(run, name, fold)
    fit_second_ranker(run)


def _fit_ranker(run: Run, name: str, fold: int | None) -> None:
    """Fit and select a ranker without the users of a fold: not one of their interactions is read for either."""
    bench, options = Workbench(run), run.config.ranker
    settings = options.fit
    inputs = list(bench.training_files)
    shown = bench.prepared / "impressions.parquet"
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
        ranker = bench.ranker()
        left_out = np.zeros(len(bench.training), dtype=np.bool_) if fold is None else bench.fold_of_user == fold
        schedule = replace(bench.schedule(settings), training=emptied(bench.training, left_out))
        everyone = bench.cases("validation")
        seen, unseen = (np.flatnonzero(left_out[everyone.users] == out) for out in (False, True))
        if not len(seen):
            raise UserError(f"ranker.folds: without fold {fold} no validation case is left; take fewer folds")
        cases = sample_cases(select_cases(everyone, seen), settings.validation_users, run.config.seed)
        impressions = _impressions(bench, kind)
        evaluation = run.config.evaluation

        def retrieve(ranker: SequentialRanker, cases: Cases) -> dict[str, float]:
            return rank_by_ranker(
                ranker,
                cases,
                batch_size=evaluation.batch_size,
                max_history=run.config.max_history,
                mask_history=evaluation.mask_history,
            )

        task = RankerFit(
            ranker,
            schedule,
            loss=kind,
            steps=max(1, round(settings.epochs * schedule.steps_per_epoch)),
            validate=lambda: retrieve(ranker, cases),
            impressions=impressions,
            self_normalised=options.propensity == "snips",
            negatives=options.negatives,
        )
        result = _fit(bench, name, ranker, task, settings, work)
        best = bench.ranker(work / "best")
        summary: dict[str, object] = {"loss": kind, "best_step": result.best_step}
        for label, rows in (("validation", seen), ("left_out", unseen)):
            if len(rows):
                summary[label] = retrieve(best, select_cases(everyone, rows))
        (work / "metrics.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")

    without = {"folds", "lambdarank"} | (
        {"propensity", "propensity_floor"} if options.propensity == "ignore" else set()
    )
    config = [
        options.model_dump(mode="json", exclude=without),
        kind,
        run.config.seed,
        run.config.max_history,
    ]
    config.append(run.config.evaluation.mask_history)
    if fold is not None:
        config += [{"fold": fold, "folds": options.folds}]
    run.stage(name, config=config, inputs=inputs, build=build)


def _impressions(bench: Workbench, loss: str) -> Impressions | None:
    """What the ranker is fitted on, weighted as the recipe says; None where that is logged next items."""
    table = load_impressions(bench.prepared) if loss == "impressions" else None
    if table is None:
        return None
    options = bench.config.ranker
    if options.propensity == "ignore":
        return Impressions.from_table(table, len(bench.training))
    if PROPENSITY not in table.columns:
        raise UserError(f"ranker.propensity: {options.propensity} needs data.columns.propensity in the logs")
    missing = int((table[PROPENSITY].is_null() | (table[PROPENSITY] <= 0)).sum())
    if missing:
        raise UserError(f"ranker.propensity: {missing:,} impressions have no propensity above 0")
    return Impressions.from_table(table, len(bench.training), options.propensity_floor)


def fit_arm(run: Run, arm: ArmConfig) -> None:
    """Post-train one arm from the best sft checkpoint."""
    bench, options, objective = Workbench(run), run.config.train, arm.seen_by(run.config.objective)
    settings = options.fit
    start = run.path("sft", "best")
    inputs = [*bench.training_files, *bench.catalog_files, start / "model.safetensors"]
    for path in [*inputs, *bench.reward_files]:
        run.hash_input(path)  # nll reports rewards too, but is not trained again when the ranker changes
    if arm.objective != "nll":
        # the log of validation while training holds rewards by the ranker of all users
        inputs += dict.fromkeys([*bench.reward_files, *bench.judge_files])
    if arm.gate == "oracle":
        bench.truth()  # or say at once that there is none
        inputs += bench.truth_files

    def build(work: Path) -> None:
        policy = bench.policy(start)
        schedule = replace(bench.schedule(settings), rl_split=options.rl_split, rl_split_nll=options.rl_split_nll)
        steps = max(1, round(settings.epochs * schedule.steps_per_epoch))
        validate = bench.validator(policy, settings, bench.reward())
        task: Supervised | PostTraining
        if arm.objective == "nll":
            steps *= objective.num_iterations  # the same budget as the arms that use each batch that often
            task = Supervised(policy, bench.catalog.codes, schedule, steps=steps, validate=validate)
        else:
            task = PostTraining(
                policy,
                bench.catalog,
                bench.judge(),
                schedule,
                objective,
                _arm(arm, objective.lambda_),
                steps=steps,
                validate=validate,
                term_norms_every=options.gradient_norms_every,
                true_utility=bench.true_utility() if arm.gate == "oracle" else None,
            )
        _fit(bench, f"train/{arm.name}", policy, task, settings, work)

    described = arm.model_dump(mode="json", by_alias=True, exclude={"own_name", "options"})
    config = [_fit_config(settings), *_policy_config(run), described]
    if options.rl_split:
        config += [{"rl_split": options.rl_split, "nll": options.rl_split_nll}]
    if arm.objective != "nll":
        # what decides nothing here is left out: a new option does not train anew what was trained without it
        without = {"oracle_agreement", "distill_weight"} | (set() if objective.exclude_history else {"exclude_history"})
        config += [objective.model_dump(mode="json", by_alias=True, exclude=without)]
        config += [options.gradient_norms_every]
        if arm.gate == "oracle":
            config += [{"oracle_agreement": objective.oracle_agreement}]
        if arm.objective == "distill":
            config += [{"distill_weight": objective.distill_weight}]
        if bench.fold_names:
            config += [{"folds": len(bench.fold_names)}]
        config += bench.reward_config
    run.stage(f"train/{arm.name}", config=config, inputs=inputs, build=build)


def _arm(arm: ArmConfig, default_lambda: float) -> Arm:
    """What an objective's name means: `grpo` has no NLL, `nll` is no arm with a reward."""
    assert arm.admits is not None, "an arm without a reward is fitted by Supervised"
    term: Literal["grpo", "distill", "best_of_n"] = "grpo"
    if arm.objective in ("distill", "best_of_n"):
        term = arm.objective
    return Arm(arm.objective != "grpo", default_lambda if arm.lambda_ is None else arm.lambda_, arm.admits, term)


def _policy_config(run: Run) -> list[object]:
    config = run.config
    return [
        config.policy.model_settings(),
        config.evaluation.model_dump(mode="json"),
        config.seed,
        config.max_history,
    ]


def _fit_config(settings: FitConfig) -> dict[str, object]:
    """What of a fit's settings decides its result: not how often it is saved."""
    return settings.model_dump(mode="json", exclude={"checkpoint_seconds"})


def _fit(bench: Workbench, stage: str, model: nn.Module, task: Task[Any], settings: FitConfig, work: Path) -> FitResult:
    """Fit a model; where it ends in numbers that are not finite, `diverged.json` says what to look at.

    Raises:
        Diverged: with the ids of the users whose histories made up the last step.
    """
    run = bench.run
    found = run.path("diverged.json")
    found.unlink(missing_ok=True)
    try:
        return fit(model, task, settings, work, seed=run.config.seed, report=_report(run, stage.removeprefix("train/")))
    except Diverged as error:
        known = load_user_ids(bench.prepared)
        ids = [known[int(row)] for row in error.users]
        content = {"stage": stage, "not_finite": error.what, "step": error.step, "seed": error.seed, "users": ids}
        write_file(found, json.dumps(content, indent=1) + "\n")
        raise Diverged(
            f"{error.what} ({found} has all users; the same command repeats the step)", error.step, error.seed, ids
        ) from error


def _report(run: Run, label: str) -> Callable[[int, int, Mapping[str, float]], None]:
    return lambda step, steps, values: run.console.progress(label, step, steps, values)
