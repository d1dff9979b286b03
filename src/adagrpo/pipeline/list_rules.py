"""The rules of a run (`rules` of its recipe), and the stage `rules/<list>`: a list's test cases measured under them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from adagrpo.data.columns import DAYS, ITEM, TIMESTAMP, USER
from adagrpo.data.groups import UnknownGroup
from adagrpo.data.logs.log_fields import UNITS
from adagrpo.data.prepared import DAYS_OF, TRAINING_LOGS, load_impressions
from adagrpo.errors import UserError
from adagrpo.lists import Recommender
from adagrpo.lists.eligibility import Eligibility
from adagrpo.lists.names import START, parse_list
from adagrpo.lists.rules import DAY, Rules, resolve_rules
from adagrpo.metrics import measured
from adagrpo.pipeline.directory import RunDirectory, model_of, weights_of
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.json_files import write_json
from adagrpo.pipeline.list_makers import ListMaker, lists_of
from adagrpo.pipeline.make import make
from adagrpo.pipeline.stage import Declaration
from adagrpo.pipeline.stages.evaluate import write_lists
from adagrpo.pipeline.stages.evaluate_list import on_test
from adagrpo.pipeline.stages.fitting import DECODING, progress
from adagrpo.pipeline.stages.tokenize import VECTOR_FILE, item_vectors

RULES = "rules"


def rules_set(run: RunDirectory) -> list[str]:
    """Return the names of a run's rules."""
    return [] if run.config.rules is None else run.config.rules.named


def set_rules(served: Recommender, data: RunData) -> None:
    """Let a recommender's lists follow its run's rules."""
    if rules_set(data.run):
        served.rules = _resolved(data, served.eligibility, _vectors)


def check_rules(run: RunDirectory) -> None:
    """Refuse rules that do not fit catalogue or logs."""
    if not rules_set(run):
        return
    data = RunData(run)
    rules = _resolved(
        data, Eligibility(data.catalog, data.groups, data.known), lambda data: np.ones((1, 1), np.float32)
    )
    if rules.reads_time and data.cases("validation").days is None:
        end_of_training(data)


def _resolved(data: RunData, eligibility: Eligibility, vectors: Callable[[RunData], NDArray[np.float32]]) -> Rules:
    options, width = data.config.rules, data.config.evaluation.beam_width
    assert options is not None, "there are rules"
    try:
        given: dict[str, Any] = {"vectors": lambda: vectors(data), "shown": lambda: _shown(data)}
        return resolve_rules(options, data.catalog, eligibility, data.known, width=width, **given)
    except UnknownGroup as error:
        raise UserError(
            f"{RULES}.{error}; data.items.groups names the columns of the item table that are kept"
        ) from error
    except UserError as error:
        raise UserError(f"{RULES}.{error}") from error


def _shown(data: RunData) -> dict[str, tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """Return the items that each user was shown in training, and when, by id as text."""
    table, when = load_impressions(data.prepared), data.run.find("prepare", DAYS_OF["impressions"])
    if table is None or when is None:
        raise UserError(
            "shown_within_days: the logs do not say what was shown and when since 1970; name impressions with times"
            " (--impressions), or send what was shown as `exclude`"
        )
    table = table.select(USER, ITEM).with_columns(pl.read_parquet(when)).sort(USER, maintain_order=True)
    users, firsts = np.unique(table[USER].to_numpy(), return_index=True)
    columns = (table[ITEM].to_numpy().astype(np.int64), table[DAYS].to_numpy().astype(np.float64))
    items, days = (np.split(column, firsts[1:]) for column in columns)
    return {str(data.user_ids[user]): one for user, *one in zip(users.tolist(), items, days, strict=True)}  # type: ignore[misc]


def _vectors(data: RunData) -> NDArray[np.float32]:
    known, borrowed = item_vectors(data.run), data.version.borrowed
    return known if borrowed is None else np.concatenate([known, (borrowed @ known).astype(np.float32)])


def measure_under_rules(run: RunDirectory, name: str) -> Declaration:
    """Declare the measurement of a list under the run's rules."""
    data, called = RunData(run), parse_list(name)
    models = Models(data)
    maker, arm = ListMaker(models), called.policy or START
    reads = [*data.training_files, "prepare:test.parquet", f"prepare:{TRAINING_LOGS}", *data.catalog_files]
    reads += [*data.truth_files, *maker.files(called), model_of(arm), VECTOR_FILE]
    if run.config.rules is not None and run.config.rules.shown_within_days is not None:
        reads += [*data.shown_files, f"prepare:{DAYS_OF['impressions']}"]

    def build(work: Path) -> None:
        served, cases = maker.recommender(called, run.path(*weights_of(arm))), data.measured_cases("test")
        set_rules(served, data)
        assert served.rules is not None, "it is asked for with rules"
        now = end_of_training(data) if served.rules.reads_time and cases.days is None else None
        lists = lists_of(served, data, cases, progress(run, f"{RULES}/{name}"), now=now)
        write_lists(data, cases, lists.items, lists.scores, work)
        write_json(work / "metrics.json", {"test": on_test(data, cases, lists)})

    return Declaration(
        build,
        reads,
        files=("metrics.json", "predictions.parquet"),
        settings=(*DECODING, RULES, *(models.reward_reads if maker.asks_reward(called) else ())),
        also={"metrics": measured(run.config.data.split.baskets)} | data.truth_read,
    )


def cost_of_rules(run: RunDirectory, chosen: str, without: Mapping[str, float]) -> dict[str, Any]:
    """Measure a list under the rules: its test metrics, and their difference from `without`."""
    make(run, f"{RULES}/{chosen}", measure_under_rules(run, chosen))
    found = run.content(RULES, chosen, "metrics.json")["test"]
    kept = {metric: found[metric] for metric in without if metric in found}
    return {"rules": rules_set(run), "test": kept, "change": {key: kept[key] - without[key] for key in kept}}


def end_of_training(data: RunData) -> float:
    """Return when training ends, in days since 1970."""
    unit = data.run.content("prepare", "summary.json").get("understood", {}).get("time", {}).get("unit")
    table = pl.read_parquet(data.run.checked("prepare", TRAINING_LOGS))
    if unit is None or TIMESTAMP not in table.columns:
        raise UserError(f"{RULES}: the logs have no times since 1970, so no list can be measured on its date")
    return float(table[TIMESTAMP].max()) / UNITS[unit] / DAY  # type: ignore[arg-type]
