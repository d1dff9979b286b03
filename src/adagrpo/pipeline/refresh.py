"""`adagrpo refresh`: take newer rows into the served list, if it is not worse with them.

1. All rows so far are prepared, items keeping their numbers (`RUN/refresh/NNNN/list/prepare`).
2. Of the rows that the served list has not seen, the newer half are cases. What the list is made of is fitted on all
   rows before them (`trial`), weights from those of the served list, for `GOING_ON` of the epochs of the refit. Both
   lists answer each user's first interaction of the newer half.
3. The served list stays if the other's NDCG@10 is lower by more than `decide.margin` of its own and the 95 % interval
   of the difference is below zero; or that interval reaches below a loss of `UNSEEN` of it; or with fewer than
   `FEWEST` cases. The rows are kept all the same, and so the next comparison has more cases.
4. Else the parts are fitted on all rows (`list`), weights from those of `trial`, and served: one rename.

Impressions are kept and taken in the same way; cases are then weighted by `decide.exposure_power`. An item that the
list has not been admitted to hold waits until it has `m` interactions, that of `LEAST` with the highest NDCG@10 on the
cases if items wait until then; none, where no `m` is above leaving all of them out.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from adagrpo.data import splits
from adagrpo.data.columns import BASKET, ITEM, ITEM_ID, TIMESTAMP, USER
from adagrpo.data.dataset import Dataset, build_dataset, in_hash_order
from adagrpo.data.logs.interactions import Logs
from adagrpo.data.prepared import TRAINING_LOGS, load_items, write_item_columns, write_prepared
from adagrpo.errors import UserError
from adagrpo.evaluation.predictions import eligible_cases, ranks_in, sample_cases, select_cases
from adagrpo.lists.table import SOURCES
from adagrpo.metrics import ndcg
from adagrpo.pipeline.catalog_update import codes_near, likeness, neighbours_of
from adagrpo.pipeline.directory import REFRESH, RunDirectory, command, locked, path_of, weights_of
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import CatalogVersion, RunData
from adagrpo.pipeline.list_makers import ListMaker, lists_of
from adagrpo.pipeline.make import make
from adagrpo.pipeline.named_lists import Answering, ListOptions, answering, decision_now
from adagrpo.pipeline.new_rows import ROWS, SHOWN, NewRows, of_rows, time_said, with_new_rows
from adagrpo.pipeline.refit import (
    ABOUT,
    about_refresh,
    decided_by,
    fitted_stages,
    refresh_of,
    refreshes,
    serve_refresh,
    write_refresh,
)
from adagrpo.pipeline.stage import Declaration
from adagrpo.pipeline.stages.prepare import PREPARED, log_source
from adagrpo.pipeline.stages.tokenize import ENCODED, language_model_folder, reads_texts
from adagrpo.pipeline.versions import open_version
from adagrpo.rewards.reranking import case_weights
from adagrpo.semantic_ids.catalog import Catalog
from adagrpo.semantic_ids.language import language_vectors
from adagrpo.semantic_ids.placement import seen_together
from adagrpo.statistics import Interval, all_pairs
from adagrpo.storage.hashes import cached_hash
from adagrpo.storage.writing import remove
from adagrpo.types import Ragged

TOP = 10
FEWEST, MOST = 30, 4_000  # cases of a comparison: with fewer the served list stays, more are sampled
UNSEEN = 0.2  # of the NDCG@10: a loss that the cases of a comparison must exclude
LEAST = (1, 2, 5, 10, 20, 50)  # interactions that an item may have to have, before it is in lists


def refresh(run: RunDirectory, logs: Sequence[Path]) -> dict[str, Any]:
    """Take the new rows of logs into the served list, and return the content of refresh.json.

    Raises:
        UserError: the run has no refit list, or the logs have no newer rows of it.
    """
    started = time.monotonic()
    with locked(run):
        if not run.config.decide.refit or decision_now(run) is None:
            raise UserError(
                f"{REFRESH}: goes on from the refit of the list that decide chose, and there is none; run"
                f" {command(run, 'decide')}"
            )
        old = answering(run, ListOptions())
        if not old.refit:
            raise UserError(f"{REFRESH}: {old.note}")
        if run.config.data.exposures is not None:
            raise UserError(
                f"{REFRESH}: {run.called} reads what a service showed, and rows of files cannot be added to that;"
                " decide again with all logs"
            )
        served, last = refreshes(run)
        served = 0 if old.run.begun is None else served
        of, number = decided_by(run, str(old.name)), last + 1
        goes_on = last > 0 and about_refresh(run, last)["of"] == of  # else its rows are of other logs
        files = sorted(cached_hash(path) for path in logs)
        done = about_refresh(run, last) if goes_on else {}
        if done.get("logs") == files and served == (last if done["takes_over"] else done["before"]):
            run.console.note(f"{REFRESH}: refresh {last} is of these files; nothing is made again")
            return done  # killed, or not waited for, when it had nothing left to do but to say so
        known = old.run.path("prepare", TRAINING_LOGS)
        if goes_on:
            known = refresh_of(run, last).directory / "prepare" / ROWS
            if not known.is_file():
                folder = run.directory / REFRESH
                raise UserError(f"{known}: missing; delete {folder}, and give all rows since the decision")
        left = done.get("takes_over", False) and served != last  # gone back from, or a part of it is missing
        found = with_new_rows(run, logs, known, _seen_to(old.run) if left else None)
        run.console.note(f"{REFRESH}: {'; '.join(of_rows(found.about))}")
        whole, trial = refresh_of(run, number), refresh_of(run, number, "trial")
        old.run.catalog = old.version.number
        trial.begun, whole.begun = old.run, trial
        waiting = about_refresh(run, served)["waiting"] if served else []
        data, start, items_before = _numbered(run, old, found)
        reads = [*logs, known, *(path for path in [known.with_name(SHOWN)] if path.is_file())]
        lengths = np.bincount(data.interactions[USER].to_numpy(), minlength=len(data.users))
        make(whole, "prepare", _prepared(whole, data, splits.everything(lengths), reads, {}, found))
        offsets, times = np.append(0, lengths.cumsum()).astype(np.int64), data.interactions[TIMESTAMP].to_numpy()
        split = splits.temporal(times, offsets, validation_from=start, test_from=np.inf)
        if run.config.data.split.baskets:
            split = splits.with_baskets(split, data.interactions[BASKET].to_numpy(), offsets)
        split = dataclasses.replace(split, trained_before=None)
        shown = None if data.impressions is None else data.impressions.filter(pl.col(ITEM) < items_before)
        seen = dataclasses.replace(data, items=data.items.head(items_before), impressions=shown)
        make(trial, "prepare", _prepared(trial, seen, split, reads, {"from": start}))
        make(trial, "tokenize", _placed(run, trial, old.version, waiting, 0))
        _fit(trial, str(old.name))
        compared = _compare(run, old, trial, waiting)
        about = {"number": number, "before": served, "of": of, "catalog": open_version(run).name, **found.about}
        about |= {"logs": files, "list": str(old.name), "cases_from": time_said(start, found.unit)}
        about |= {**compared, "waiting": waiting}
        if compared["takes_over"]:
            base = CatalogVersion(trial, 0)
            make(whole, "tokenize", _placed(run, whole, base, waiting, compared["least"], old.version))
            _fit(whole, str(old.name))
            candidates = _candidates(whole, len(old.version.items), waiting)
            listed = CatalogVersion(whole, 0).codes.listed.numpy()
            names = load_items(whole.path("prepare"))[ITEM_ID].to_list()
            about["waiting"] = [names[item] for item in np.flatnonzero(candidates & ~listed)]
            about["items_admitted"] = int((candidates & listed).sum())
        about["seconds"] = round(time.monotonic() - started, 1)
        write_refresh(run, number, about)
        now = number if compared["takes_over"] else served
        serve_refresh(run, now, number)
        kept = {number, now, about_refresh(run, now)["before"] if now else 0}
        for folder in (run.directory / REFRESH).glob("[0-9]*"):
            if int(folder.name) not in kept:
                remove(folder, lambda name: True)
    return about


def serve_before(run: RunDirectory) -> dict[str, Any]:
    """Serve what was served before the current refresh; return both numbers, 0 for the refit."""
    with locked(run):
        number, last = refreshes(run)
        if not number:
            raise UserError(f"{run.called}: serves no refresh, so there is none to go back from")
        before = int(about_refresh(run, number)["before"])
        if before and not (run.directory / REFRESH / f"{before:04d}" / ABOUT).is_file():
            raise UserError(f"{run.called}: refresh {before}, served before {number}, is not kept any more")
        serve_refresh(run, before, last)
    return {"number": before, "instead_of": number}


def sentences(about: Mapping[str, Any]) -> list[str]:
    """Return a refresh in words."""
    said = of_rows(about)
    if "gain" in about:
        means = about["ndcg@10"]
        mean, low, high = about["gain"]
        metric = "weighted NDCG@10" if about.get("exposure_weighted") else "NDCG@10"
        said.append(
            f"on {about['cases']:,} cases from {about['cases_from']}: {metric} {means['refreshed']:.4f} refreshed,"
            f" {means['served']:.4f} as served, {mean:+.4f} [{low:+.4f}, {high:+.4f}]"
        )
    if about.get("candidates"):
        least = about["least"]
        of = "in lists from the next refresh that shows them to be taken"
        what = of if least is None else f"in lists with at least {least} interaction{'' if least == 1 else 's'}"
        said.append(f"items that were not in lists: {what}")
    if about["takes_over"]:
        served = f"refresh {about['number']} of {about['list']} is served from now on: {about['why']}"
        return [*said, f"{served}; services take it at a reload", f"took {about['seconds']:.0f} s"]
    stays = f"refresh {about['before']}" if about["before"] else "the refit"
    return [*said, f"{stays} of {about['list']} stays: {about['why']}", f"took {about['seconds']:.0f} s"]


def _seen_to(made: RunDirectory) -> Any:
    """Return the time of a fit's last row."""
    return pl.read_parquet(made.path("prepare", TRAINING_LOGS), columns=[TIMESTAMP])[TIMESTAMP].max()


def _numbered(run: RunDirectory, old: Answering, found: NewRows) -> tuple[Dataset, float, int]:
    """Return all interactions, the time of the first cases, and the number of items before.

    Items keep the numbers that they have in the served list; behind them come those that are new before the cases, and
    then those that are new after.
    """
    source, options = log_source(run), run.config.data
    first = old.version.items.drop(ITEM)
    table = source.read_items() if source.items is not None and source.items.is_file() else None
    if table is not None:
        ids = table[ITEM_ID].cast(first.schema[ITEM_ID], strict=False)
        table = table.with_columns(ids).filter(ids.is_not_null() & ~ids.is_in(first[ITEM_ID].implode()))
        first = pl.concat([first, table], how="diagonal_relaxed")
    understood = {"time": {"unit": found.unit}}
    logs = Logs(found.rows, found.shown, pl.DataFrame(), len(found.rows), 0, understood=understood)
    names = ("min_user_interactions", "min_item_interactions", "keep_unseen_items")
    counted = {name: getattr(options, name) for name in names} | {"baskets": options.split.baskets}
    numbered, ids = partial(build_dataset, logs, first, **counted), old.version.item_ids
    data = numbered(numbered_before=ids)
    times = data.interactions[TIMESTAMP]
    unseen = times.filter(times > _seen_to(old.run)).sort()
    if not len(unseen):
        raise UserError(f"{REFRESH}: no new row is left by data.min_user_interactions and data.min_item_interactions")
    start = float(unseen[len(unseen) // 2])
    came = data.interactions.filter((pl.col(ITEM) >= len(ids)) & (times < start))[ITEM].unique()
    before = pl.concat([ids, in_hash_order(data.items[ITEM_ID].gather(came))]) if len(came) else ids
    return (numbered(numbered_before=before) if len(came) else data), start, len(before)


def _prepared(
    made: RunDirectory,
    data: Dataset,
    split: splits.Split,
    reads: Sequence[Path],
    also: dict[str, Any],
    found: NewRows | None = None,
) -> Declaration:
    source = log_source(made)

    def build(work: Path) -> None:
        write_prepared(data, split, work)
        if source.items is not None and source.items.is_file() and (columns := source.read_columns()) is not None:
            write_item_columns(columns, data.items[ITEM_ID], work)
        for table, name in () if found is None else ((found.rows, ROWS), (found.shown, SHOWN)):
            if table is not None:
                table.write_parquet(work / name)

    tables = [path for path in (source.items, source.attribute_names) if path is not None and path.is_file()]
    return Declaration(build, [*reads, *tables], (*PREPARED, ROWS, SHOWN), ("data",), also=also)


def _candidates(made: RunDirectory, known: int, waiting: Sequence[Any]) -> NDArray[np.bool_]:
    """Return (V,) whether an item was not in the served list: new, or waiting."""
    ids = load_items(made.path("prepare"))[ITEM_ID]
    waits = ids.is_in(pl.Series(waiting, dtype=ids.dtype).implode()).to_numpy()
    return np.asarray((np.arange(len(ids)) >= known) | waits)


def _placed(
    run: RunDirectory,
    made: RunDirectory,
    base: CatalogVersion,
    waiting: Sequence[Any],
    least: int | None,
    served: CatalogVersion | None = None,
) -> Declaration:
    """Declare the codes: those of `base`, and for later items free ones near similar items.

    An item that is not in the catalogue `served`, or else `base`, is in lists with `least` interactions; None: in none.
    """
    known = len((served or base).items)

    def build(work: Path) -> None:
        data = RunData(made)
        items, codes = load_items(data.prepared), base.codes.codes.numpy()
        new = np.arange(len(codes), len(items))
        together = seen_together(data.training, CatalogVersion(run, 0).trained, len(items), run.config.tokenizer.window)
        near = base.neighbours
        if len(new):
            weights = likeness(run, items, new, together)
            near = pl.concat([near, neighbours_of(new, weights)])
            codes = np.concatenate([codes, codes_near(run, weights, codes)])
        listed = np.append(base.codes.listed.numpy(), np.ones(len(new), np.bool_))
        counts = data.training.counts(len(items))
        listed[_candidates(made, known, waiting)] = True
        listed &= ~_candidates(made, known, waiting) | (least is not None and counts >= (least or 0))
        Catalog.from_codes(codes, base.codes.level_sizes, listed).write(work / "codes.parquet")
        near.write_parquet(work / "neighbours.parquet")

    files = [path_of(base.run, file) for file in base.files]
    return Declaration(
        build,
        ["prepare:items.parquet", "prepare:train.parquet", *files],
        ("codes.parquet", "codes.json", "neighbours.parquet"),
        ("tokenizer", "seed"),
        also={"least": least, "waiting": [*waiting], "served": known},
    )


def _fit(made: RunDirectory, chosen: str) -> None:
    stages = fitted_stages(made, chosen)
    vectors = any("vectors" in source.reads for source in SOURCES.values() if source.stage in stages)
    if vectors and reads_texts(made.config) and made.begun is not None:
        before = made.begun.path(*ENCODED)

        def encode(work: Path) -> None:
            table = pl.read_parquet(before)
            texts = load_items(made.path("prepare"))["text"].to_list()[len(table) :]
            if texts:
                vectors = language_vectors(texts, language_model_folder(made), device=str(RunData(made).device))
                numbers = np.arange(len(table), len(table) + len(texts), dtype=np.int32)
                table = pl.concat([table, pl.DataFrame([pl.Series(ITEM, numbers), pl.Series("vector", vectors)])])
            table.write_parquet(work / ENCODED[1])

        make(made, ENCODED[0], Declaration(encode, ["prepare:items.parquet", before], ENCODED[1:]))
    for name, declare in stages.items():
        if name != "prepare":
            make(made, name, declare(made))


def _compare(run: RunDirectory, old: Answering, trial: RunDirectory, waiting: Sequence[Any]) -> dict[str, Any]:
    data, known = RunData(trial), len(old.version.items)
    try:
        cases = data.cases("validation")
    except UserError:
        return {"cases": 0, "takes_over": False, "least": None, "why": "no case: no new row is of a user who was known"}
    if data.eligible is not None:
        mask = data.eligible.items.cpu().numpy()
        later = int(max(cases.targets.max(), cases.logged.max())) + 1 - len(mask)  # items, not eligible
        cases = eligible_cases(cases, np.pad(mask, (0, max(0, later))))
    cases = sample_cases(cases, MOST, run.config.seed)
    if len(cases) < FEWEST:
        why = f"{len(cases)} cases are too few to compare two lists; the rows are kept for the next refresh"
        return {"cases": len(cases), "takes_over": False, "least": None, "why": why}
    name = old.name
    weights_in = weights_of(name.policy or "sft")
    served = ListMaker(Models(data)).recommender(name, trial.path(*weights_in))
    answers = lists_of(served, data, cases).items
    candidates = _candidates(trial, known, waiting)
    counts = data.training.counts(data.num_items)
    values: dict[int | None, NDArray[np.float64]] = {}
    shown = np.zeros(1, np.int64) if data.times_shown is None else np.append(data.times_shown, 0)  # of items and others
    weights = case_weights(shown[np.minimum(cases.targets, len(shown) - 1)], data.exposure_power)
    for least in (None, *reversed(LEAST)):  # of equal ones the most cautious
        kept = ~candidates if least is None else ~candidates | (counts >= least)
        values[least] = weights * ndcg(ranks_in(_without(answers, kept), cases), TOP, cases.sizes)
    chosen = max(values, key=lambda least: float(values[least].mean()))
    of_old = np.zeros(len(cases))
    whole = cases.histories
    below = whole.values < known
    counted = np.bincount(np.repeat(np.arange(len(whole)), whole.lengths)[below], minlength=len(whole))
    parts = {part: value[below] for part in ("baskets", "days") if (value := getattr(whole, part)) is not None}
    histories = dataclasses.replace(Ragged.of(whole.values[below], counted), **parts)
    asked = np.flatnonzero(counted)  # the served list knows some item of the history
    theirs = select_cases(dataclasses.replace(cases, histories=histories), asked)
    of = RunData(old.run, old.version)
    served = ListMaker(Models(of)).recommender(name, old.run.path(*weights_in))
    before = lists_of(served, data, theirs, of=of).items
    of_old[asked] = weights[asked] * ndcg(ranks_in(before[:, :TOP], theirs), TOP, theirs.sizes)
    gain, takes_over, why = _verdict(values[chosen], of_old, run.config.decide.margin)
    return {
        "cases": len(cases),
        "exposure_weighted": data.times_shown is not None and data.exposure_power > 0,
        f"ndcg@{TOP}": {"served": float(of_old.mean()), "refreshed": float(values[chosen].mean())},
        "gain": [*gain[:3]],
        "takes_over": takes_over,
        "why": why,
        "least": chosen,
        "candidates": int(candidates.sum()),
        "by_least": {str(least): float(found.mean()) for least, found in values.items()},
    }


def _verdict(new: NDArray[np.float64], old: NDArray[np.float64], margin: float) -> tuple[Interval, bool, str]:
    """Return what a list gains by its cases (N,), whether it takes over, and why."""
    gain, served = all_pairs({"new": new, "old": old})["new", "old"], float(old.mean())
    larger = max(served, float(new.mean()))
    unseen = max(0.0, -gain.low) / larger if larger else 0.0
    if gain.high < 0 and -gain.mean > margin * served:
        lost = f"{-gain.mean:.4f} less than it, more than {margin * served:.4f}, {margin:.2g} of its own"
        return gain, False, f"it has {lost}"
    if unseen > max(UNSEEN, margin):
        kept = "the rows are kept for the next refresh"
        return gain, False, f"the cases do not exclude a loss of {100 * unseen:.0f} %; {kept}"
    if gain.low > 0:
        return gain, True, "the cases show it to be better"
    return gain, True, f"the cases do not show it to be worse, and exclude a loss of more than {100 * unseen:.0f} %"


def _without(lists: NDArray[np.int64], kept: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the first items of (N, W) lists, of those kept."""
    stay = (lists >= 0) & kept[lists]
    order = np.argsort(~stay, axis=1, kind="stable")
    moved = np.take_along_axis(np.where(stay, lists, -1), order, axis=1)
    return np.asarray(moved[:, :TOP])
