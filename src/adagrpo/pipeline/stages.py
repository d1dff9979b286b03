"""The first stages of a run, from logs to a starting policy. Each says what it reads; none reads test data."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from adagrpo.config import ItemTable, RefuseConfig
from adagrpo.config.data import SplitConfig
from adagrpo.data import splits
from adagrpo.data.columns import ITEM_ID
from adagrpo.data.dataset import Dataset, build_dataset
from adagrpo.data.exposures import write_exposures
from adagrpo.data.interactions import ColumnMapping, Logs, Refusals, read_logs
from adagrpo.data.items import read_items
from adagrpo.data.marketplace import Marketplace, simulate, write_simulation
from adagrpo.data.prepared import write_prepared
from adagrpo.data.ties import shuffle_ties
from adagrpo.errors import UserError
from adagrpo.pipeline.fitting import fit_config, fit_model, needs_order, policy_config
from adagrpo.pipeline.models import Workbench
from adagrpo.pipeline.run import Run
from adagrpo.trainer import Supervised

__all__ = ["fit_sft", "prepare", "simulate_marketplace"]

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
    random = [run.data / path for path in options.random.logs] if options.random else []
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
                max_expansion=options.max_expansion,
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
            click_rating=options.click_rating,
            ordered=not run.config.without_order,
            max_bad_rows=options.max_bad_rows,
            refuse=refuse,
            max_expansion=options.max_expansion,
            drop_duplicates=options.drop_duplicates,
        )
        if run.config.without_order:
            at_random = _random_logs(run, random, refuse)
            share, seed = options.split.held_out, run.config.seed
            write_exposures(read, at_random, table, work, held_out=share, seed=seed)
            return
        dataset = build_dataset(
            read,
            table,
            min_user_interactions=options.min_user_interactions,
            min_item_interactions=options.min_item_interactions,
        )
        del read  # as large as what was made of it
        if options.shuffle_ties is not None:
            column = options.shuffle_ties.sorted_by
            name = described.id_column if described else ITEM_ID
            dataset = shuffle_ties(
                dataset,
                seed=run.config.seed,
                table=items,
                id_column=name,
                column=column,
                max_expansion=options.max_expansion,
            )
        write_prepared(dataset, _split(run, dataset), work)

    inputs = list(dict.fromkeys([*logs, *random, *(path for path in (items, names) if path is not None)]))
    content = options.model_dump(mode="json")
    del content["max_expansion"]  # whether a file is read, not what is read of it
    for key, default in (
        ("refuse", RefuseConfig().model_dump(mode="json")),
        ("click_rating", None),
        ("random", None),
        ("drop_duplicates", False),
    ):
        if content[key] == default:
            del content[key]
    if not run.config.without_order:
        del content["split"]["held_out"]
    if options.split.users is None:
        del content["split"]["users"]
    seeded = options.shuffle_ties or options.split.users or run.config.without_order
    config = [content, run.config.seed if seeded else None]
    run.stage("prepare", config=config, inputs=inputs, build=build)
    run.write_description({path.name: run.hash_input(path) for path in inputs})


def _random_logs(run: Run, paths: list[Path], refuse: Refusals) -> Logs | None:
    """What was shown at random, if the recipe names such logs."""
    options = run.config.data.random
    if options is None:
        return None
    return read_logs(
        paths,
        ColumnMapping(**options.columns.model_dump()),
        keep_events=options.keep_events,
        click_rating=options.click_rating,
        ordered=False,
        max_bad_rows=run.config.data.max_bad_rows,
        refuse=refuse,
        max_expansion=run.config.data.max_expansion,
    )


def _split(run: Run, dataset: Dataset) -> splits.Split:
    """The cut of each user; targets for all users, or for as many as the configuration says."""
    options = run.config.data.split
    lengths = np.bincount(dataset.interactions["user"].to_numpy(), minlength=len(dataset.users))
    whole = options.kind == "leave_one_out"
    found = splits.leave_one_out(lengths) if whole else _temporal(options, dataset, lengths)
    if options.users is None:
        return found
    return splits.for_some_users(found, options.users, run.config.seed, lengths if whole else None)


def _temporal(options: SplitConfig, dataset: Dataset, lengths: NDArray[np.int64]) -> splits.Split:
    interactions = dataset.interactions
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
    needs_order(run)
    bench, settings = Workbench(run), run.config.sft

    def build(work: Path) -> None:
        policy = bench.policy()
        schedule = replace(bench.schedule(settings), rl_split=run.config.train.rl_split)
        frozen_epochs = run.config.policy.lm.frozen_epochs if run.config.policy.lm else 0.0
        task = Supervised(
            policy,
            bench.catalog.codes,
            schedule,
            steps=max(1, round(settings.epochs * schedule.steps_per_epoch)),
            validate=bench.validator(policy, settings),
            waiting=getattr(policy, "body_parameters", ()),
            waiting_steps=round(frozen_epochs * schedule.steps_per_epoch),
        )
        fit_model(bench, "sft", policy, task, settings, work)

    config = [fit_config(settings), *policy_config(run)]
    if run.config.train.rl_split:
        config += [{"rl_split": run.config.train.rl_split}]
    inputs = [*bench.training_files, *bench.catalog_files, *bench.language_model_files]
    run.stage("sft", config=config, inputs=inputs, build=build, together=True)
