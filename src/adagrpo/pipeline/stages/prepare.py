"""The stages `simulate`, `exposures` and `prepare`: from logs to interactions and a split."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, assert_never

import numpy as np
import polars as pl
from numpy.typing import NDArray

from adagrpo.config import ItemTable
from adagrpo.config.data import DataConfig, ExposuresConfig, ImpressionsConfig, SplitConfig, seconds_of
from adagrpo.data import splits
from adagrpo.data.columns import BASKET, CLICKED, ITEM_ID, USER_ID
from adagrpo.data.dataset import Dataset, build_dataset, shuffle_ties
from adagrpo.data.exposures import RANDOM, impressions_of, random_exposures
from adagrpo.data.logs.interactions import Columns, Logs, Refusals, read_logs, with_impressions
from adagrpo.data.logs.items import read_columns, read_items
from adagrpo.data.logs.log_fields import UNITS, moment, two_units
from adagrpo.data.logs.question import duplicates_note, ids_note
from adagrpo.data.prepared import (
    DAYS_OF,
    ITEM_COLUMNS,
    SHOWN_LATER,
    load_item_ids,
    load_user_ids,
    write_item_columns,
    write_prepared,
)
from adagrpo.data.simulation.marketplace import Marketplace, simulate, write_simulation
from adagrpo.errors import UserError
from adagrpo.exposures.exposure_store import KIND, REMEDY, close_part, parts_of, read_parts, refused_rows
from adagrpo.exposures.user_hash import VARIABLE, read_key
from adagrpo.pipeline.directory import RunDirectory, read_of
from adagrpo.pipeline.json_files import read_json, write_json
from adagrpo.pipeline.stage import Declaration
from adagrpo.readers.formats import NOT_UTF_8, SAVE_AS_UTF_8, encoding_of, file_format, kind_of
from adagrpo.storage.artifacts import manifest
from adagrpo.storage.marks import check_kind, is_marked
from adagrpo.trainer.processes import processes

MARKETPLACE_ITEMS = ItemTable(path="items.parquet", text=("title",), attributes=("attributes",))
LOGGED_COLUMNS = Columns(timestamp="timestamp", clicked="clicked", slot="slot", propensity="propensity")


PREPARED = (
    *("users.parquet", "items.parquet", "train.parquet", "validation.parquet", "test.parquet", "later.parquet"),
    *(*DAYS_OF.values(), "training_logs.parquet", ITEM_COLUMNS, "impressions.parquet", "held_out.parquet"),
    *(RANDOM, SHOWN_LATER, "rejects.parquet", "summary.json"),
)


def simulated(run: RunDirectory) -> Declaration:
    """Declare the simulated logs."""
    options = run.config.data.marketplace
    assert options is not None, "the recipe names one"
    world = Marketplace(**{"seed": run.config.seed} | options.model_dump(exclude_none=True))
    files = ("logs.parquet", "items.parquet", "users.parquet", "truth.safetensors")
    settings = ("data.marketplace",) if options.seed is not None else ("data.marketplace", "seed")
    return Declaration(lambda work: write_simulation(simulate(world), work), [], files, settings)


def exposure_parts(run: RunDirectory, options: ExposuresConfig) -> list[Path]:
    """Return an exposure log's parts, oldest first; UserError if there are none."""
    directory = run.data / options.path
    parts = parts_of(directory, options.through)
    if not parts:
        raise UserError(
            f"data.exposures.path: {directory} has no parts of an exposure log; `adagrpo prepare --exposures"
            f" {directory} --out RUN` makes one of what was logged so far"
        )
    return parts


def exposures(run: RunDirectory) -> Declaration:
    """Declare the conversion of an exposure log."""
    options = run.config.data.exposures
    assert options is not None, "the recipe names one"
    parts = exposure_parts(run, options)

    def build(work: Path) -> None:
        how = {name: getattr(options, name) for name in ("clicks", "within_seconds", "only_sampled")}
        table, counts = impressions_of(*read_parts(parts), **how)
        table.write_parquet(work / "logs.parquet")
        write_json(work / "summary.json", counts | {"rows_refused": len(refused_rows(parts))})

    # parts never change, so the last one identifies all; removing older ones makes nothing stale
    last = manifest(parts[-1], REMEDY)
    also = {"last": [parts[-1].name, None if last is None else last["sha256"]]}
    but = ("data.exposures.path", "data.exposures.user_key_file")
    return Declaration(build, [], ("logs.parquet", "summary.json"), ("data.exposures",), but, also, version=2)


class ShownSource(NamedTuple):
    """Impression files and how to read them."""

    name: str  # the recipe key
    files: Sequence[Path]
    options: ImpressionsConfig

    def read(self, data: DataConfig, refuse: Refusals, *, ordered: bool = True) -> Logs:
        """Read the impressions."""
        options = {name: getattr(data, name) for name in ("max_bad_rows", "max_expansion")}
        options |= {name: getattr(self.options, name) for name in ("keep_events", "click_rating")}
        once = data.drop_duplicates and ordered
        return read_logs(
            self.files, self.options.columns, **options, drop_duplicates=once, ordered=ordered, refuse=refuse
        )


class LogSource(NamedTuple):
    """Log files and item table, and how to read them."""

    options: DataConfig
    logs: Sequence[Path]
    columns: Columns
    described: ItemTable | None
    items: Path | None
    attribute_names: Path | None
    shown: Sequence[ShownSource] = ()
    served: Path | None = None  # the impressions of a service
    key: Path | None = None  # for the hashes of its users

    @property
    def files(self) -> list[Path]:
        """List all files that are read."""
        one = (self.served, self.items, self.attribute_names)
        shown = [file for source in self.shown for file in source.files]
        return [*self.logs, *shown, *(path for path in one if path is not None)]

    def read_items(self) -> pl.DataFrame | None:
        """Read the item table, if there is one."""
        if self.described is None or self.items is None:
            return None
        return read_items(
            self.items,
            id_column=self.described.id_column,
            text_columns=self.described.text,
            attribute_columns=self.described.attributes,
            group_columns=self.described.groups,
            attribute_names=self.attribute_names,
            max_expansion=self.options.max_expansion,
        )

    def read_columns(self) -> pl.DataFrame | None:
        """Read the item table's columns as they are, if any."""
        if self.described is None or self.items is None:
            return None
        id_column, option = self.described.id_column, "data.items.id_column"
        return read_columns(self.items, id_column, "item", option, self.options.max_expansion)

    def refusals(self, table: pl.DataFrame | None) -> Refusals:
        """Return which readable rows to reject, given the item table."""
        refuse = self.options.refuse
        known = table[ITEM_ID].cast(pl.String) if refuse.unknown_items and table is not None else None
        return Refusals(known, refuse.after, refuse.repeats)

    def read_logs(self, refuse: Refusals, *, ordered: bool = True) -> Logs:
        """Read the logs; `ordered` if rows have an order in time."""
        bounds = ("max_bad_rows", "max_expansion")
        names = ("keep_events", "min_rating", "click_rating", "drop_duplicates", "drop_items", *bounds)
        options = {name: getattr(self.options, name) for name in names}
        return read_logs(self.logs, self.columns, **options, ordered=ordered, refuse=refuse)

    def data_set(self, table: pl.DataFrame | None) -> Dataset:
        """Return numbered, ordered interactions, given the item table."""
        refuse = self.refusals(table)
        logs = self.read_logs(refuse)
        for source in self.shown:
            logs = with_impressions(logs, source.read(self.options, refuse), source.name)
        if self.served is not None:
            logs = with_impressions(logs, _served(self.served, logs, self.key), "data.exposures")
        names = ("min_user_interactions", "min_item_interactions", "keep_unseen_items")
        options = {name: getattr(self.options, name) for name in names}
        dataset = build_dataset(logs, table, **options, baskets=self.options.split.baskets)
        if not (self.shown or self.served):
            return dataset
        assert logs.impressions is not None, "they were joined"
        counts = {}
        for kind, column, ids in (
            ("items", ITEM_ID, dataset.items[ITEM_ID]),
            ("users", USER_ID, dataset.users[USER_ID]),
        ):
            unknown = ~logs.impressions[column].cast(pl.String).is_in(ids.cast(pl.String).implode())
            counts[f"impressions_of_unknown_{kind}"] = int(unknown.fill_null(True).sum())
        return dataclasses.replace(dataset, summary=dataset.summary | counts)


def log_source(run: RunDirectory) -> LogSource:
    """Find the logs, in the data folder or made by `simulate` or `exposures`."""
    options = run.config.data
    described, root, logs = options.items, run.data, [run.data / path for path in options.logs]
    columns = options.columns
    if options.marketplace is not None:
        described, root, columns = MARKETPLACE_ITEMS, run.path("simulate"), LOGGED_COLUMNS
        logs = [root / "logs.parquet"]
    shown, served, key = list[ShownSource](), None, None
    if options.impressions is not None:
        files = [run.data / path for path in options.impressions.logs]
        shown.append(ShownSource("data.impressions", files, options.impressions))
    if options.exposures is not None:
        served = run.path("exposures", "logs.parquet")
        if not options.logs:
            columns, logs, served = LOGGED_COLUMNS, [served], None
        elif options.exposures.user_key_file is not None:
            key = run.data / options.exposures.user_key_file
    items = root / described.path if described else None
    names = root / described.attribute_names if described and described.attribute_names else None
    return LogSource(options, logs, columns, described, items, names, shown, served, key)


def prepare(run: RunDirectory) -> Declaration:
    """Declare the preparation: filter, number users and items, split."""
    options, source = run.config.data, log_source(run)

    def build(work: Path) -> None:
        items = source.read_items()
        dataset = source.data_set(items)
        if options.shuffle_ties is not None:
            dataset = shuffle_ties(
                dataset,
                seed=run.config.seed,
                table=source.items,
                id_column=source.described.id_column if source.described else ITEM_ID,
                column=options.shuffle_ties.sorted_by,
                max_expansion=options.max_expansion,
            )
        if run.measured is not None:  # a refit: the run's own stage has said all of the logs
            write_prepared(dataset, _split(run, dataset), work)
            return
        shown = random_logs(run, Refusals())  # refusals apply to the log's times and repeats
        if shown is not None:
            read, rejected, left = shown.rows_read, len(shown.rejects), shown.rows_filtered
            counts = {"rows_read": read, "rows_rejected": rejected, "rows_filtered": left}
            summary = {name: dataset.summary.get(name, 0) + count for name, count in counts.items()}
            rejects = pl.concat([dataset.rejects, shown.rejects])
            dataset = dataclasses.replace(dataset, rejects=rejects, summary=dataset.summary | summary)
        write_prepared(dataset, _split(run, dataset), work)
        if (columns := source.read_columns()) is not None:
            write_item_columns(columns, dataset.items[ITEM_ID], work)
        if shown is not None:
            table, counts = random_exposures(shown, work)
            table.write_parquet(work / RANDOM)
            write_json(work / "summary.json", read_json(work / "summary.json") | counts)
            if (unknown := counts["random_exposures_unknown"]) > 0:
                run.console.note(f"note: {unknown:,} items shown at random are left out: of unknown users or items")
            kept, logged = counts["random_clicks"], counts["random_clicks_logged"]
            if logged > kept:
                run.console.note(
                    f"note: {logged:,} of {kept + logged:,} clicks on items shown at random stand in the logs or"
                    " impressions too and are left out; what is left may stand for few of them"
                )
        note_described(run, source, dataset.summary, dataset.interactions["item"].n_unique())
        note_ids(run, work, items)
        if (repeated := duplicates_note(dataset.summary["exact_duplicates"])) is not None:
            run.console.note(repeated)
        found = dataset.summary
        lost_items, lost_users = (found.get(f"impressions_of_unknown_{kind}", 0) for kind in ("items", "users"))
        if lost_items or lost_users:
            run.console.note(
                f"note: {found['impressions_dropped']:,} impressions are left out: {lost_items:,} of items that are not"
                f" in the catalogue, {lost_users:,} of users without an interaction. Ids are compared as they are"
                " written"
            )
        if (mixed := two_units(dataset.understood.get("time", {}))) is not None:
            run.console.note(f"note: of the times of the logs {mixed}")

    files = [*source.files, *random_files(run)]
    return prepared(run, files, build, drawn=bool(options.shuffle_ties or options.split.users))


def random_files(run: RunDirectory) -> list[Path]:
    """List the logs of items shown at random, if any."""
    options = run.config.data.random
    return [run.data / path for path in options.logs] if options else []


def random_logs(run: RunDirectory, refuse: Refusals) -> Logs | None:
    """Read the logs of items shown at random, if any."""
    options = run.config.data.random
    if options is None:
        return None
    return ShownSource("data.random", random_files(run), options).read(run.config.data, refuse, ordered=False)


def note_described(run: RunDirectory, source: LogSource, summary: Mapping[str, Any], items: int) -> None:
    """Note items missing from the item table, and undecodable characters."""
    if source.items is None:
        return
    note_lost(run, source.items)
    described = summary.get("items_described")
    if described is None or described >= items:
        return
    found = f"none of the {items:,}" if described == 0 else f"{described:,} of the {items:,}"
    run.console.note(
        f"note: {source.items.name} describes {found} items of the logs; an item without a row there has neither text"
        " nor attributes. Ids are compared as they are written"
    )


def note_ids(run: RunDirectory, prepared: Path, table: pl.DataFrame | None) -> None:
    """Note ids that are probably one id spelled differently."""
    items = load_item_ids(prepared)
    if table is not None and table[ITEM_ID].dtype == items.dtype:
        items = pl.concat([items, table[ITEM_ID]])
    if (said := ids_note(load_user_ids(prepared), items)) is not None:
        run.console.note(said)


def _served(path: Path, logs: Logs, key: Path | None) -> Logs:
    """Impressions with user hashes mapped back to ids, null if unknown."""
    if key is None and os.environ.get(VARIABLE) is None:
        raise UserError(
            "data.exposures.user_key_file: the users of an exposure log are hashes; name the key that the service had,"
            f" --user-key-file FILE, or set {VARIABLE}"
        )
    if key is not None and not key.is_file():
        raise UserError(f"data.exposures.user_key_file: {key} is not there; it is the key that the service had")
    user_hash, users = read_key(key), logs.interactions[USER_ID].unique()
    own = pl.DataFrame({USER_ID: [user_hash(user) for user in users.to_list()], "own": users})
    table = pl.read_parquet(path).with_columns(pl.col(USER_ID).cast(pl.String), pl.col(CLICKED).cast(pl.Boolean))
    joined = table.join(own, on=USER_ID, how="left", maintain_order="left")
    if not joined["own"].count():
        raise UserError(
            f"data.exposures: none of its {table[USER_ID].n_unique():,} users is one of the logs under this key, whose"
            f" fingerprint is {user_hash.fingerprint}; key_version of the log says which one the service had"
        )
    shown = joined.with_columns(pl.col("own").alias(USER_ID)).drop("own", "request_id")
    understood = {"files": [file_format(path) | {"rows": len(table)}], "time": {"unit": "seconds"}}
    return Logs(shown, shown, logs.rejects.clear(), len(table), 0, understood=understood)


def note_lost(run: RunDirectory, table: Path) -> None:
    """Note an item table that is not UTF-8; it is still read."""
    if kind_of(table) == "CSV" and encoding_of(table) == NOT_UTF_8:
        lost = "what cannot be decoded is lost from texts and attributes"
        run.console.note(f"note: {table.name} is {NOT_UTF_8}: {lost}; {SAVE_AS_UTF_8}")


def prepared(run: RunDirectory, files: Sequence[Path], build: Callable[[Path], None], *, drawn: bool) -> Declaration:
    """Declare the stage `prepare`; `drawn` if it reads the seed."""
    # earlier versions had no later.parquet and cut impressions at a user's last interaction
    also = "later, shown before the cut" if run.config.data.split.kind == "temporal" else None
    also = also if run.measured is None else "everything"
    settings = ("data", "seed") if drawn else ("data",)
    return Declaration(
        build, [read_of(run, file) for file in dict.fromkeys(files)], PREPARED, settings, also=also, version=4
    )


def _split(run: RunDirectory, dataset: Dataset) -> splits.Split:
    options = run.config.data.split
    lengths = np.bincount(dataset.interactions["user"].to_numpy(), minlength=len(dataset.users))
    if run.measured is not None:
        return splits.everything(lengths)
    offsets = np.append(0, lengths.cumsum()).astype(np.int64)
    baskets = dataset.interactions[BASKET].to_numpy() if options.baskets else None
    whole: NDArray[np.int64] | None = None
    match options.kind:
        case "leave_one_out" if baskets is not None:
            split, whole = splits.last_baskets(baskets, offsets), lengths
        case "leave_one_out":
            split, whole = splits.leave_one_out(lengths), lengths
        case "temporal":
            split = _temporal(options, dataset, offsets)
            split = split if baskets is None else splits.with_baskets(split, baskets, offsets)
        case "impressions":
            raise ValueError("impressions without order are not cut by time, see `write_exposures`")
        case _:
            assert_never(options.kind)
    if options.users is None:
        return split
    return splits.for_some_users(split, options.users, run.config.seed, whole)


def _temporal(options: SplitConfig, dataset: Dataset, offsets: NDArray[np.int64]) -> splits.Split:
    interactions = dataset.interactions
    if "timestamp" not in interactions.columns:
        raise UserError("data.split.kind: temporal needs data.columns.timestamp")
    times = interactions["timestamp"].to_numpy()
    unit = dataset.understood.get("time", {}).get("unit")
    points: dict[str, float] = {}
    for name in ("validation_from", "test_from"):
        point = getattr(options, name)
        if isinstance(point, str) and unit is None:
            raise UserError(
                f"data.split.{name}: {point} is a date, and of which unit the times of the logs are is not known; give"
                " a number in their unit"
            )
        points[name] = seconds_of(point) * UNITS[str(unit)] if isinstance(point, str) else point
    split = splits.temporal(times, offsets, **points)
    first, last = times.min(), times.max()
    dates = f" ({moment(first, unit)} to {moment(last, unit)})" if unit else ""
    span = f"the times of the interactions are {first} to {last}{dates}"
    if not split.train_lengths.any():
        raise UserError(
            f"data.split.validation_from: no interaction is before {points['validation_from']:.15g}; {span}"
        )
    if not (split.validation_positions >= 0).any():
        within = " and before ".join(f"{point:.15g}" for point in points.values())
        raise UserError(
            f"data.split: no user with a history has an interaction from {within} to be validated on; {span}"
        )
    return split


def latest_exposures(directory: str | Path, *, publish: bool) -> dict[str, Any]:
    """Return `data.exposures` of a recipe, up to the log's newest part; `publish` first moves rows in none into one."""
    directory = Path(directory)
    if not directory.is_dir() or not check_kind(directory, KIND, "--exposures"):
        raise UserError(f"{directory}: no exposure log; give the folder that `adagrpo serve` logs into")
    if publish:
        close_part(directory)
    parts = parts_of(directory)
    if not parts:
        found = "nothing was logged there yet" if publish else "has no part yet; without --dry-run one is made"
        raise UserError(f"{directory}: {found}")
    return {"path": str(directory.resolve()), "through": int(parts[-1].name)}


def publish_first(run: RunDirectory) -> None:
    """Move rows in no part into one, before the log is first read."""
    options = run.config.data.exposures
    if options is None or options.through is not None or run.path("exposures").exists():
        return
    directory = run.data / options.path
    if processes().is_main_process and is_marked(directory) and check_kind(directory, KIND, "data.exposures.path"):
        close_part(directory)
