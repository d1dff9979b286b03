"""Off-policy evaluation on a service's log of drawn lists, with histories from a file by request id.

Where the weights that answered remain, logged probabilities are recomputed and mismatching lists dropped; if more than
`MOST_OTHERS` mismatch, nothing is estimated.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from adagrpo.data.histories import read_histories
from adagrpo.errors import UserError
from adagrpo.exposures.exposure_store import parts_of, read_parts
from adagrpo.lists import Query, Recommender
from adagrpo.off_policy import Drawn, summarise
from adagrpo.pipeline.choose_checkpoint import Checkpoint, choose_checkpoint
from adagrpo.pipeline.directory import RunDirectory, hash_of, trained_arms
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.named_lists import SHOWN, ListOptions
from adagrpo.pipeline.serve import recommender
from adagrpo.pipeline.stages.prepare import latest_exposures
from adagrpo.pipeline.versions import LATEST, open_version
from adagrpo.readers.formats import listed

BATCH = 64  # lists
REACH = 20  # items of the target's draw that the model's expectation covers
CLOSE = 0.05  # nats per rank, tolerance of recomputed log-probabilities
MOST_OTHERS = 0.01  # tolerated share of mismatching lists of a version


class _Lists(NamedTuple):
    rows: list[dict[str, Any]]  # log rows of drawn lists with a known history
    histories: list[list[int]]  # items
    clicks: set[tuple[str, str]]  # request and item
    counts: dict[str, int]


def estimate_policy(
    run: RunDirectory,
    exposures: Path,
    requests: Path,  # a file of request_id and history
    arm: str,
    checkpoint: Checkpoint = "best",
    *,
    temperature: float | None = None,  # None keeps that of each logged list
    reward: str = "click",  # kind of feedback, counted once per item
    exclude_history: bool | None = None,  # None as in the run's evaluation
    catalog: str = LATEST,
) -> dict[str, Any]:
    """Return estimates of the clicks under another policy, JSON: `policy`, `estimates` and `counts`.

    Raises:
        UserError: no drawn list with a known history, no such feedback, or mismatching histories.
    """
    latest_exposures(exposures, publish=True)
    served, about = recommender(run, ListOptions(arm, checkpoint, exclude_history=exclude_history, catalog=catalog))
    lists = _read(served, *read_parts(parts_of(exposures)), requests, reward)
    if len(set(_owners(lists))) < 2:
        raise UserError(
            f"--exposures: {len(lists.rows):,} drawn lists with a history are all of one user; an interval over users"
            " needs two"
        )
    lists, checked = _check(run, lists, served, Models(RunData(run, open_version(run, catalog))))
    log = _drawn(served, lists, temperature)
    estimates = []
    for row in summarise(log):
        content: dict[str, Any] = {"of": row.of, "estimator": row.estimator, "refused": row.refused}
        if row.estimate is not None:
            content |= {name: float(value) for name, value in row.estimate._asdict().items()}
        if row.overlap is not None:
            content["overlap"] = {name: float(value) for name, value in row.overlap._asdict().items()}
        estimates.append(content)
    return {
        "policy": about["versions"],
        "temperature": temperature,
        "reward": reward,
        "estimates": estimates,
        "counts": lists.counts | {"users": len(np.unique(log.users)), "probabilities_checked": checked},
    }


def _read(served: Recommender, exposures: pl.DataFrame, feedback: pl.DataFrame, requests: Path, reward: str) -> _Lists:
    answers = exposures.unique("request_id", keep="first", maintain_order=True)
    drawn = answers.filter(pl.col("log_propensities").list.len() > 0)
    if drawn.is_empty():
        raise UserError("--exposures: no list of the log was drawn; serve with --explore")
    if reward not in (kinds := sorted(feedback["kind"].unique())):
        raise UserError(
            f"--reward: the log has no feedback of kind '{reward}'; its kinds are {listed(kinds) or 'none'}"
        )
    narrowed = int(drawn["narrowed"].sum())  # the log does not record to which items
    drawn = drawn.filter(~pl.col("narrowed").fill_null(False))
    if drawn.is_empty():
        raise UserError(
            f"--exposures: all {narrowed:,} drawn lists are of requests with a filter or a rule of their own"
        )
    wanted = set(drawn["request_id"])
    known: dict[str, list[int]] = {}
    for part in read_histories(requests, 10_000, user="request_id"):
        if part.histories is None:
            raise UserError(f"{requests}: has no column history; give the items that each request named")
        for name, history in zip(part.users, part.histories, strict=True):
            if str(name) in wanted:
                known[str(name)] = served.known(history)[0]
    rows = [row for row in drawn.iter_rows(named=True) if known.get(row["request_id"])]
    kept = [row for row in rows if len(served.known(row["slate"])[0]) == len(row["slate"])]
    if len(kept) < 2:
        raise UserError(f"{requests}: knows the history of {len(kept)} of {len(drawn)} drawn lists; more are needed")
    said = feedback.filter(pl.col("kind") == reward).select("request_id", "item")
    counts = {
        "answers": len(answers),
        "drawn": len(drawn) + narrowed,
        "narrowed": narrowed,
        "without_history": len(drawn) - len(rows),
        "with_other_items": len(rows) - len(kept),
        "lists": len(kept),
    }
    return _Lists(kept, [known[row["request_id"]] for row in kept], set(said.iter_rows()), counts)


def _owners(lists: _Lists) -> list[str]:
    """User numbers; a list without a user is its own user."""
    return [row["user_hash"] or f"request {row['request_id']}" for row in lists.rows]


def _drawn(served: Recommender, lists: _Lists, temperature: float | None) -> Drawn:
    rows = lists.rows
    longest = max(len(row["slate"]) for row in rows)
    shape = (len(rows), longest)
    clicks, target, logged = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    first = np.zeros(len(rows), dtype=np.int64)
    drawn, weights = np.full((len(rows), REACH), -1), np.zeros((len(rows), REACH))
    for numbers, chances in _chances(served, lists, range(len(rows)), temperature):
        for index, number in enumerate(numbers):
            row, size = rows[number], len(rows[number]["slate"])
            first[number] = served.known(row["slate"])[0][0]
            clicks[number, :size] = [(row["request_id"], item) in lists.clicks for item in row["slate"]]
            target[number, :size] = chances.log_probs[index, :size]
            logged[number, :size] = row["log_propensities"]
            reach = chances.items.shape[1]
            drawn[number, :reach], weights[number, :reach] = chances.items[index], chances.weights[index]
    users = np.unique(_owners(lists), return_inverse=True)[1]
    return Drawn(clicks, target, logged, users, first, drawn, weights)


def _chances(
    served: Recommender, lists: _Lists, numbers: Iterable[int], temperature: float | None
) -> Iterable[tuple[Sequence[int], Any]]:
    alike: dict[float, list[int]] = {}
    for number in numbers:
        alike.setdefault(temperature or lists.rows[number]["temperature"], []).append(number)
    for heat, group in alike.items():
        for begin in range(0, len(group), BATCH):
            part = group[begin : begin + BATCH]
            queries = [Query(lists.histories[number], None, (), None, heat, number) for number in part]
            slates = [served.known(lists.rows[number]["slate"])[0] for number in part]
            yield part, served.list_propensities(queries, slates, REACH)


def _check(run: RunDirectory, lists: _Lists, served: Recommender, models: Models) -> tuple[_Lists, int]:
    """Drop lists whose recomputed probabilities mismatch, and count those recomputed."""
    by_version: dict[tuple[str, str], list[int]] = {}
    for number, row in enumerate(lists.rows):
        if row["catalog_version"] != models.data.version.name:
            continue  # drawn from other items
        by_version.setdefault((row["arm_version"] or row["arm"], row["model_version"]), []).append(number)
    checked, others = 0, set[int]()
    for (made_by, model), numbers in by_version.items():
        arm, _, checkpoint = made_by.rpartition("/")
        if arm not in ("sft", *trained_arms(run)) or checkpoint not in ("best", "final"):
            continue
        kind: Checkpoint = "best" if checkpoint == "best" else "final"
        chosen = choose_checkpoint(run, arm, kind)
        if hash_of(run, chosen.weights / "model.safetensors")[:SHOWN] != model:
            continue
        logging = served.with_policy(models.policy(chosen.weights), run.config.max_history)
        far = []
        for part, chances in _chances(logging, lists, numbers, None):
            for index, number in enumerate(part):
                own = lists.rows[number]["log_propensities"]
                if not float(np.abs(chances.log_probs[index, : len(own)] - own).mean()) <= CLOSE:
                    far.append(number)
        if len(far) > MOST_OTHERS * len(numbers):
            raise UserError(
                f"--requests: with these histories {made_by} would have drawn {len(far):,} of {len(numbers):,} lists "
                f"with other probabilities than the log says, such as that of {lists.rows[min(far)]['request_id']}; "
                "give the histories that were sent, and --exclude-history or --keep-history as the service had it"
            )
        others |= {*far}
        checked += len(numbers)
    kept = [number for number in range(len(lists.rows)) if number not in others]
    counts = lists.counts | {"with_other_probabilities": len(others), "lists": len(kept)}
    rows, histories = [lists.rows[number] for number in kept], [lists.histories[number] for number in kept]
    return _Lists(rows, histories, lists.clicks, counts), checked
