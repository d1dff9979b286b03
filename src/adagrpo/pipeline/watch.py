"""Daily monitoring of a service's exposure log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from adagrpo.data.sequences import pad
from adagrpo.decoding import beam_search_both
from adagrpo.errors import UserError
from adagrpo.exposures.exposure_log import FAILED
from adagrpo.exposures.exposure_store import parts_of, read_parts
from adagrpo.monitoring import SIGNS, SignRule, Visits, daily_signs, first_on, signs_against
from adagrpo.pipeline.directory import (
    RunDirectory,
    hash_of,
    kept,
    label_of,
    path_of,
    remake_command,
    trained_arms,
    weights_of,
)
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.stages.prepare import latest_exposures
from adagrpo.policies.policy import Policy
from adagrpo.rewards.sequential import SequentialRanker
from adagrpo.semantic_ids.catalog import Catalog
from adagrpo.types import Histories, Ragged

DAY = 86_400
ASKED = 200  # histories for the share of invalid codes
TOP = 10
CLICKS = ("click", "purchase")  # feedback that counts
BATCH = 1024  # lists per batch

Floats = NDArray[np.float64]


def watch(
    directory: Path,
    run: RunDirectory | None = None,  # whose ranker predicts clicks; None omits the signs that need it
    *,
    rule: SignRule | None = None,
    arm: str | None = None,  # whose lists alone are read
    against: str | None = None,  # arm to compare with on the same days; None: the baseline days
    since: int | None = None,  # first day, in days since 1970
) -> dict[str, Any]:
    """Compare each day of an exposure log with its first days or another arm.

    Returns:
        `days`, one row each, None for unknown values; `signs`, the first day of each or None, without those unknown on
        all days; with a run `invalid`, see `invalid_lists`, of sft and each arm.
    """
    if run is not None:
        _check_together(run)
    latest_exposures(directory, publish=True)
    exposures, feedback = read_parts(parts_of(directory))
    exposures = exposures.unique("request_id", keep="first", maintain_order=True)
    exposures = exposures.filter(pl.col("source") != FAILED)  # no list was shown
    items = exposures.select("request_id", pl.col("slate").alias("item")).explode("item").unique()
    feedback = feedback.filter(pl.col("kind").is_in(CLICKS))  # of the list that it names
    feedback = feedback.join(items, on=["request_id", "item"], how="semi", maintain_order="left")
    if against is not None and arm in (None, against):
        raise UserError(f"--against: name another arm by --arm, to compare with '{against}'")
    for option, name in (("--arm", arm), ("--against", against)):
        if name is not None and name not in exposures["arm"]:
            names = ", ".join(sorted(exposures["arm"].unique()))
            raise UserError(f"{option}: {directory} has no list of '{name}'; it has {names}")
    shown = exposures.filter(pl.col("arm").is_in([arm, against])) if arm is not None else exposures
    shown = shown.with_columns((pl.col("time") // DAY).cast(pl.Int64).alias("day"))
    shown = shown if since is None else shown.filter(pl.col("day") >= since)
    clicked = shown["request_id"].is_in(feedback["request_id"].unique().to_list()).cast(pl.Float64).to_numpy()
    predicted, unknown = np.full(len(shown), np.nan), ""
    if run is not None and (loss := RunData(run).ranker_loss) != "impressions":
        unknown = f"the ranker was fitted by '{loss}' and not on impressions, so its scores are no click probabilities"
    elif run is not None:
        predicted = _predicted(run, shown, exposures, feedback)
        if np.isnan(predicted).all():
            unknown = (
                "no list has a user who clicked in an earlier one of this log, so none has a history to predict from"
            )
    if run is not None and unknown:
        run.console.note(f"note: {unknown}; `predicted` and the signs that need it are left out")
    rule = rule or SignRule()
    numbers = {name: place for place, name in enumerate(sorted(shown["slate"].explode().drop_nulls().unique()))}
    visits = Visits(shown["day"].to_numpy(), clicked, predicted, _numbers(shown["slate"], numbers))
    mine = (shown["arm"] == arm).to_numpy() if against is not None else None
    try:
        found = (
            daily_signs(visits, rule) if mine is None else signs_against(visits.only(mine), visits.only(~mine), rule)
        )
        if not found:
            raise ValueError("want two lists a window, found one at most")
    except ValueError as error:
        hint = "watch longer, or give a shorter --baseline" if mine is None else "give arms that were served together"
        raise UserError(f"{directory}: {error}; {hint}") from error
    days = [
        {name: None if isinstance(one, float) and not np.isfinite(one) else one for name, one in look._asdict().items()}
        for look in found
    ]
    result: dict[str, Any] = {"rule": asdict(rule), "days": days}
    reads = ("reward", "feedback", "calibration", "concentration")
    known = [any(day[name] is not None for day in days) for name in reads]
    result["signs"] = {sign: first_on(found, sign) for sign, is_known in zip(SIGNS, known, strict=True) if is_known}
    if run is not None:
        result["invalid"] = _invalid(run)
    return result


@torch.no_grad()
def predicted_clicks(
    ranker: SequentialRanker, histories: list[NDArray[np.int64]], items: NDArray[np.int64], max_history: int
) -> Floats:
    """Return (N,) mean click probabilities of lists, each item at its position; NaN for an empty history.

    Args:
        histories: `N`, oldest item first.
        items: (N, k), -1 for padding.
    """
    known = [row for row, history in enumerate(histories) if len(history)]
    result = np.full(len(histories), np.nan)
    if not known:
        return result
    device = ranker.slot_bias.weight.device
    places = torch.arange(items.shape[1], device=device).clamp(max=len(ranker.slot_bias.weight) - 1)
    for first in range(0, len(known), BATCH):
        rows = known[first : first + BATCH]
        batch = batch_of([histories[row] for row in rows], max_history).to(device)
        chosen = torch.from_numpy(items[rows]).to(device)
        scores = ranker.score(batch, chosen.clamp(min=0)) + ranker.slot_bias.weight[places, 0]
        chances = torch.where(chosen >= 0, torch.sigmoid(scores), 0.0)
        result[rows] = (chances.sum(dim=1) / (chosen >= 0).sum(dim=1)).cpu().numpy()
    return result


def batch_of(histories: list[NDArray[np.int64]], max_history: int) -> Histories:
    """Return non-empty histories as a batch."""
    offsets = np.cumsum([0, *map(len, histories)]).astype(np.int64)
    ragged = Ragged(np.concatenate(histories).astype(np.int32), offsets)
    return pad(ragged, np.arange(len(histories)), max_history)


@torch.no_grad()
def invalid_lists(policy: Policy[Any, Any], catalog: Catalog, histories: Histories, width: int) -> float:
    """Return the share of histories with an invalid item in the unconstrained top ten."""
    policy = policy.eval().frozen()
    context = policy.encode(histories)
    _, free = beam_search_both(policy, context, width, trie=catalog.trie, constrained_width=width, excluded=None)
    valid = catalog.lookup(free.codes[:, :TOP]) >= 0
    return float((~valid.all(dim=1)).float().mean())


def _check_together(run: RunDirectory) -> None:
    """Refuse weights made from files that have changed in the run."""
    arms = {arm.name for arm in run.config.train.arms}
    for name in ("sft", "ranker", *(f"train/{arm}" for arm in trained_arms(run) if arm in arms)):
        if (why := _made_otherwise(run, name)) is not None:
            raise UserError(f"{run.called}: {name} is stale: {why}; run {remake_command(run, name)}")


def _made_otherwise(run: RunDirectory, name: str) -> str | None:
    found = kept(run, name)
    for read, digest in ({} if found is None else found.reads).items():
        if path_of(run, read).is_file() and hash_of(run, read) != digest:
            return f"made from another {label_of(run, read)} than is there now"
    return None


def _predicted(run: RunDirectory, shown: pl.DataFrame, exposures: pl.DataFrame, feedback: pl.DataFrame) -> Floats:
    data = RunData(run)
    ranker = Models(data).ranker(run.path("ranker", "best"))
    numbers = {str(name): item for item, name in enumerate(data.item_ids.to_list())}
    once = feedback.unique(["request_id", "item"], keep="first", maintain_order=True)  # buy + click is one, as trained
    clicks = once.join(exposures.select("request_id", "user_hash", pl.col("time").alias("shown")), on="request_id")
    by_user: dict[str, list[tuple[float, int]]] = {}
    for user, when, item in clicks.sort("shown", maintain_order=True).select("user_hash", "shown", "item").iter_rows():
        if user is not None and item in numbers:
            by_user.setdefault(user, []).append((when, numbers[item]))
    histories = []
    for user, when in shown.select("user_hash", "time").iter_rows():
        past = [item for moment, item in by_user.get(user or "", []) if moment < when]
        histories.append(np.array(past[-run.config.max_history :], np.int64))
    return predicted_clicks(ranker, histories, _numbers(shown["slate"], numbers), run.config.max_history)


def _invalid(run: RunDirectory) -> dict[str, float]:
    data = RunData(run)
    models, cases = Models(data), data.cases("validation")
    rows = range(min(ASKED, len(cases)))
    batch = batch_of([cases.histories.row(row).astype(np.int64) for row in rows], run.config.max_history).to(
        data.device
    )
    arms = [arm for arm in trained_arms(run) if _made_otherwise(run, f"train/{arm}") is None]
    places = {arm: run.path(*weights_of(arm)) for arm in ("sft", *arms)}
    width = run.config.evaluation.beam_width
    return {arm: invalid_lists(models.policy(path), data.catalog, batch, width) for arm, path in places.items()}


def _numbers(slates: pl.Series, numbers: Mapping[str, int]) -> NDArray[np.int64]:
    """Return (N, k) item indices, -1 for unknown ids and padding."""
    widest = max(int(slates.list.len().max() or 0), 1)  # type: ignore[arg-type]
    return np.array([[numbers.get(i, -1) for i in one] + [-1] * (widest - len(one)) for one in slates.to_list()])
