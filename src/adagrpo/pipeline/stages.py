"""The stages of a run, from logs to checkpoints. Each says what it reads; nothing before `evaluate` reads test data."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import polars as pl

from adagrpo.config import ArmConfig, FitConfig, ItemTable
from adagrpo.data import splits
from adagrpo.data.columns import ITEM_ID
from adagrpo.data.dataset import Dataset, build_dataset
from adagrpo.data.interactions import ColumnMapping, read_items, read_logs
from adagrpo.data.marketplace import Marketplace, simulate, write_simulation
from adagrpo.data.prepared import load_impressions, load_item_ids, load_items, write_prepared
from adagrpo.data.ties import shuffle_ties
from adagrpo.errors import UserError
from adagrpo.evaluation import rank_by_ranker, sample_cases
from adagrpo.pipeline.models import Workbench
from adagrpo.pipeline.run import Run
from adagrpo.rewards.ranker import SequentialRanker
from adagrpo.semantic_ids import (
    Catalog,
    attribute_vectors,
    audit,
    cooccurrence_vectors,
    import_semantic_ids,
    mix,
    residual_kmeans,
    resolve_collisions,
    text_vectors,
)
from adagrpo.trainer import Arm, PostTraining, RankerFit, Supervised, fit
from adagrpo.trainer.ranker import Impressions
from adagrpo.types import Cases, Ragged

__all__ = ["fit_arm", "fit_ranker", "fit_sft", "prepare", "simulate_marketplace", "tokenize"]

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
        read = read_logs(
            logs,
            columns,
            keep_events=options.keep_events,
            min_rating=options.min_rating,
            max_bad_rows=options.max_bad_rows,
        )
        table = None
        if described is not None and items is not None:
            table = read_items(
                items,
                id_column=described.id_column,
                text_columns=described.text,
                attribute_columns=described.attributes,
                attribute_names=names,
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
    config = [options.model_dump(mode="json"), run.config.seed if options.shuffle_ties else None]
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


def tokenize(run: Run) -> None:
    """Items to Semantic IDs."""
    bench, options = Workbench(run), run.config.tokenizer
    published = run.data / options.published.path if options.published else None
    inputs = bench.training_files[:2] + ([published] if published else [])

    def build(work: Path) -> None:
        if options.published is not None and published is not None:
            codes = import_semantic_ids(
                published,
                load_item_ids(bench.prepared),
                column=options.published.column,
                id_column=options.published.id_column,
            )
        else:
            vectors = _item_vectors(run, load_items(bench.prepared), bench.training)
            codes = residual_kmeans(vectors, levels=options.levels, codes=options.codes, seed=run.config.seed).codes
        unique = len(np.unique(codes, axis=0)) == len(codes)
        catalog = Catalog.from_codes(codes if unique else resolve_collisions(codes))
        catalog.write(work / "codes.parquet")
        (work / "audit.json").write_text(json.dumps(audit(codes, catalog), indent=1) + "\n", encoding="utf-8")

    run.stage("tokenize", config=[options.model_dump(mode="json"), run.config.seed], inputs=inputs, build=build)


def _item_vectors(run: Run, items: pl.DataFrame, training: Ragged) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    options = run.config.tokenizer
    makers: dict[str, Callable[[], np.ndarray[tuple[int, int], np.dtype[np.float32]]]] = {
        "attributes": lambda: attribute_vectors(items["attributes"].to_list(), width=options.width),
        "text": lambda: text_vectors(items["text"].to_list(), width=options.width),
        "cooccurrence": lambda: cooccurrence_vectors(training, len(items), window=options.window, width=options.width),
    }
    weights: dict[str, float] = dict(options.vectors.items())
    return mix({name: makers[name]() for name in weights}, weights, seed=run.config.seed)


def fit_sft(run: Run) -> None:
    """The starting policy: NLL from scratch."""
    bench, settings = Workbench(run), run.config.sft

    def build(work: Path) -> None:
        policy = bench.policy()
        schedule = bench.schedule(settings)
        task = Supervised(
            policy,
            bench.catalog.codes,
            schedule,
            steps=max(1, round(settings.epochs * schedule.steps_per_epoch)),
            validate=bench.validator(policy, settings),
        )
        fit(policy, task, settings, work, seed=run.config.seed, report=_report(run, "sft"))

    config = [_fit_config(settings), *_policy_config(run)]
    run.stage("sft", config=config, inputs=bench.training_files + bench.catalog_files, build=build)


def fit_ranker(run: Run) -> None:
    """The reward model."""
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

    def build(work: Path) -> None:
        ranker = bench.ranker()
        schedule = bench.schedule(settings)
        everyone = bench.cases("validation")
        cases = sample_cases(everyone, settings.validation_users, run.config.seed)
        table = load_impressions(bench.prepared) if kind == "impressions" else None
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
            impressions=None if table is None else Impressions.from_table(table, len(bench.training)),
            negatives=options.negatives,
        )
        result = fit(ranker, task, settings, work, seed=run.config.seed, report=_report(run, "ranker"))
        best = bench.ranker(work / "best")
        summary = {"loss": kind, "best_step": result.best_step, "validation": retrieve(best, everyone)}
        (work / "metrics.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")

    config = [options.model_dump(mode="json"), kind, run.config.seed, run.config.max_history]
    config.append(run.config.evaluation.mask_history)
    run.stage("ranker", config=config, inputs=inputs, build=build)


def fit_arm(run: Run, arm: ArmConfig) -> None:
    """Post-train one arm from the best sft checkpoint."""
    bench, settings, objective = Workbench(run), run.config.train.fit, run.config.objective
    start, reward = run.path("sft", "best"), run.path("ranker", "best")
    inputs = [*bench.training_files, *bench.catalog_files, start / "model.safetensors"]
    for path in [*inputs, reward / "model.safetensors"]:
        run.hash_input(path)  # nll reports rewards too, but is not trained again when the ranker changes
    if arm.objective != "nll":
        inputs.append(reward / "model.safetensors")

    def build(work: Path) -> None:
        policy, schedule = bench.policy(start), bench.schedule(settings)
        ranker = bench.ranker(reward)
        steps = max(1, round(settings.epochs * schedule.steps_per_epoch))
        validate = bench.validator(policy, settings, ranker)
        task: Supervised | PostTraining
        if arm.objective == "nll":
            steps *= objective.num_iterations  # the same budget as the arms that use each batch that often
            task = Supervised(policy, bench.catalog.codes, schedule, steps=steps, validate=validate)
        else:
            task = PostTraining(
                policy,
                bench.catalog,
                ranker,
                schedule,
                objective,
                _arm(arm, objective.lambda_),
                steps=steps,
                validate=validate,
                term_norms_every=run.config.train.gradient_norms_every,
            )
        fit(policy, task, settings, work, seed=run.config.seed, report=_report(run, arm.name))

    config = [_fit_config(settings), *_policy_config(run), arm.model_dump(mode="json", by_alias=True)]
    if arm.objective != "nll":
        config += [objective.model_dump(mode="json", by_alias=True), run.config.train.gradient_norms_every]
    run.stage(f"train/{arm.name}", config=config, inputs=inputs, build=build)


def _arm(arm: ArmConfig, default_lambda: float) -> Arm:
    """What an objective's name means: `grpo` has no NLL, `nll` is no arm with a reward."""
    assert arm.admits is not None, "an arm without a reward is fitted by Supervised"
    return Arm(arm.objective != "grpo", default_lambda if arm.lambda_ is None else arm.lambda_, arm.admits)


def _policy_config(run: Run) -> list[object]:
    config = run.config
    return [
        config.policy.model_dump(mode="json"),
        config.evaluation.model_dump(mode="json"),
        config.seed,
        config.max_history,
    ]


def _fit_config(settings: FitConfig) -> dict[str, object]:
    """What of a fit's settings decides its result: not how often it is saved."""
    return settings.model_dump(mode="json", exclude={"checkpoint_seconds"})


def _report(run: Run, label: str) -> Callable[[int, int, Mapping[str, float]], None]:
    return lambda step, steps, values: run.console.progress(label, step, steps, values)
