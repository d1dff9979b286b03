"""Lists of a run by name."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any, NamedTuple

from adagrpo.config.section import nearest
from adagrpo.errors import UserError
from adagrpo.lists.names import RERANK, START, ListName, parse_list, reward_number
from adagrpo.networks import Precision
from adagrpo.pipeline.checks import check, reward_stages
from adagrpo.pipeline.choose_checkpoint import Checkpoint, Chosen, choose_checkpoint
from adagrpo.pipeline.directory import (
    RunDirectory,
    command,
    find_content,
    finished_stages,
    hash_of,
    label_of,
    trained_arms,
    weights_of,
)
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import CatalogVersion, RunData
from adagrpo.pipeline.json_files import read_json
from adagrpo.pipeline.list_makers import ListMaker, contenders, rewards_alone
from adagrpo.pipeline.outputs import DECIDED, is_stale
from adagrpo.pipeline.refit import refit_of, refresh_of, served_refresh, why_not_refit
from adagrpo.pipeline.rewards import describe_reward
from adagrpo.pipeline.staleness import parts_of
from adagrpo.pipeline.versions import LATEST, open_version
from adagrpo.storage.hashes import hash_json

DECISION = "decision.json"  # has `chosen`
SHOWN = 12  # digits of a sha256 in a version name


@dataclass(frozen=True)
class ListOptions:
    """A requested list and its overrides of the recipe."""

    arm: str | None = None  # a list, see `adagrpo.lists.names`; None: see `served_list`
    checkpoint: Checkpoint = "best"
    # above 0, re-rank the policy's beam with it, in within-list standard deviations; at 0 by the validated weight
    reward_weight: float = 0.0
    exclude_history: bool | None = None  # default of requests; None: as in the run's evaluation
    precision: Precision | None = None  # of the policy; None: `evaluation.precision`
    catalog: str = LATEST  # see `adagrpo.pipeline.versions.open_version`
    as_measured: bool = False  # do not answer by the refit of the list, see `adagrpo.pipeline.refit`


class Answering(NamedTuple):
    """What a request for a list is answered by."""

    run: RunDirectory  # the run, its refit or a refresh
    name: ListName
    chosen: Chosen
    version: CatalogVersion
    note: str = ""  # why the refit or refresh that should answer does not
    refresh: int = 0  # its number; 0: none

    @property
    def refit(self) -> bool:
        """Whether it is fitted on all interactions."""
        return self.run.measured is not None


def answering(run: RunDirectory, asked: ListOptions) -> Answering:
    """Return what answers, the refit for the list that `decide` chose; refuse stale parts.

    Raises:
        UserError: see `served_list` and `check_served`.
    """
    name, chosen = served_list(run, asked.arm, asked.checkpoint, asked.reward_weight)
    may_be_refit = not (asked.as_measured or asked.checkpoint != "best" or asked.reward_weight)
    decided = decision_now(run) if may_be_refit and run.config.decide.refit else None
    is_chosen = decided is not None and parse_list(decided["chosen"]) == name
    not_refit = why_not_refit(refit_of(run), str(name)) if is_chosen else ""
    about, not_fresh = served_refresh(run, str(name)) if is_chosen and not not_refit else (None, "")
    fresh = None if about is None else CatalogVersion(refresh_of(run, about["number"]), 0)
    if fresh is not None and asked.catalog not in (LATEST, fresh.name):
        fresh = None
    version = open_version(run, asked.catalog if fresh is None else LATEST)
    check_served(run, chosen, version, name, asked.checkpoint)
    if not is_chosen:
        return Answering(run, name, chosen, version)
    if not_refit:
        again = command(run, "decide")
        said = f"the refit of {name} {not_refit}, so the list is served as measured; run {again}"
        return Answering(run, name, chosen, version, said)
    answers, why = fresh or CatalogVersion(refit_of(run), version.number), "refit on all interactions"
    if fresh is not None and about is not None:
        why = f"refreshed by interactions to {about['last']}"
    number = 0 if fresh is None or about is None else int(about["number"])
    weights = answers.run.path(*weights_of(chosen.arm))
    step = read_json(weights / "checkpoint.json")["step"]
    said = f"{not_fresh}, so its refit is served; run {command(run, 'refresh')}" if not_fresh else ""
    return Answering(
        answers.run, name, Chosen(chosen.arm, weights, step, f"{chosen.why}, {why}"), answers, said, number
    )


def served_list(
    run: RunDirectory, arm: str | None, checkpoint: Checkpoint, reward_weight: float = 0.0
) -> tuple[ListName, Chosen]:
    """Return the list for a name and a reward weight, and its policy's checkpoint.

    Without a name the decision's list or, without one or for a checkpoint other than the best, the best arm on
    validation.
    """
    if not (isinstance(reward_weight, Real) and math.isfinite(reward_weight) and reward_weight >= 0):
        raise UserError(f"reward_weight: {reward_weight!r} is no weight; give a finite number of at least 0")
    by_decision = arm is None and checkpoint == "best" and reward_weight == 0
    content = find_content(run, DECISION) if by_decision else None
    if content is not None and (why := is_stale(run, DECIDED, parts_of(run, measuring=True))):
        raise UserError(
            f"{run.called}: {DECISION} is stale: {why}; run {command(run, 'decide', ())}, or name a list by --arm"
        )
    decided = None if content is None else str(content["chosen"])
    called = decided or arm
    name = None if called is None else parse_list(called)
    arms = [arm.name for arm in run.config.train.arms if arm.name in trained_arms(run)]
    if name is not None and name.policy not in (None, START, *arms):
        maker, finished = ListMaker(Models(RunData(run))), {*finished_stages(run, "*", "*/*", "*/*/*")}
        every = [START, *arms, *(f"{arm}+{RERANK}" for arm in arms), *contenders(run.config, arms)]
        there = [one for one in dict.fromkeys(every) if {*maker.stages(parse_list(one))} <= finished]
        near = nearest(str(called), there)
        hint = "" if near.startswith("known") else f"; {near}"
        raise UserError(f"--arm {called}: no list of {run.called}; there is {', '.join(there)}{hint}")
    chosen = choose_checkpoint(run, None if name is None else name.policy or START, checkpoint)
    if decided is not None:
        chosen = chosen._replace(why="what `adagrpo decide` chose")
    name = name or ListName(chosen.arm, "policy")
    alone = rewards_alone(run.config.reward)
    if reward_number(name.order) is not None and name.order not in alone:
        has = f"it has {', '.join(alone)}" if alone else "its reward is its own ranker: ranker"
        raise UserError(f"--arm {name}: no reward of this run; {has}")
    if reward_weight > 0 and name.order == "policy":
        name = name._replace(order=RERANK)
    if reward_weight > 0 and name.order != RERANK:
        raise UserError(f"reward_weight: the list {name} has weights of its own; give a policy, such as sft")
    if name.order not in ("policy", RERANK) and checkpoint != "best":
        raise UserError(f"--checkpoint {checkpoint}: the list {name} is of the best one")
    return name, chosen


def decision_now(run: RunDirectory) -> dict[str, Any] | None:
    """Return the content of decision.json; None if missing or stale."""
    decided = find_content(run, DECISION)
    return None if decided is None or is_stale(run, DECIDED, parts_of(run, measuring=True)) else decided


def check_served(
    run: RunDirectory, chosen: Chosen, version: CatalogVersion, name: ListName, checkpoint: Checkpoint = "best"
) -> None:
    """Refuse stale parts of a list, naming the command to run."""
    maker = ListMaker(Models(RunData(run)), checkpoint=checkpoint)
    reward = reward_stages(run) if maker.asks_reward(name) else []
    check(run, "serve", [chosen.stage, version.stage, *reward, *maker.stages(name)])


def list_read(run: RunDirectory, name: ListName, weight: float, checkpoint: Checkpoint = "best") -> dict[str, Any]:
    """Return reward, rules and file hashes that a list reads besides its policy."""
    maker = ListMaker(Models(RunData(run)), checkpoint=checkpoint)
    files = {label_of(run, file): hash_of(run, file) for file in maker.files(name)}
    reward = describe_reward(maker.models) if maker.asks_reward(name) else {}
    rules = {} if run.config.rules is None else run.config.rules.model_dump(mode="json", exclude_defaults=True)
    if not files and not reward and not rules:
        return {}
    read = {"list": str(name), "weight": weight, "files": files, "reward": reward}
    return read | ({"rules": rules} if rules else {})


def list_versions(
    run: RunDirectory, name: ListName, chosen: Chosen, checkpoint: Checkpoint, weight: float, catalog: str
) -> dict[str, str]:
    """Return the versions in answers; `model` changes with any part of the list."""
    model, read = hash_of(run, chosen.weights / "model.safetensors")[:SHOWN], list_read(run, name, weight, checkpoint)
    model = hash_json([model, read])[:SHOWN] if read else model
    return {"model": model, "catalog": catalog, "arm": f"{name}/{checkpoint}"}
