"""Lists of a run by their names: which is meant, whether what it is made of is up to date, and what that is."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

from adagrpo.errors import UserError
from adagrpo.lists.names import RERANK, ListName, parse_list
from adagrpo.pipeline.checks import check, reward_stages
from adagrpo.pipeline.choose_checkpoint import Chosen
from adagrpo.pipeline.directory import RunDirectory
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.list_makers import ListMaker
from adagrpo.pipeline.rewards import describe_reward
from adagrpo.pipeline.versions import CatalogVersion


def named_list(arm: str | None, chosen: Chosen, reward_weight: float) -> ListName:
    """The list that an arm and a weight of the reward name.

    Raises:
        UserError: the weight is none, or the list of the arm has no place for one.
    """
    if not (isinstance(reward_weight, Real) and math.isfinite(reward_weight) and reward_weight >= 0):
        raise UserError(f"reward_weight: {reward_weight!r} is no weight; give a finite number of at least 0")
    name = ListName(chosen.arm, "policy") if arm is None else parse_list(arm)
    if reward_weight > 0 and name.order == "policy":
        return name._replace(order=RERANK)
    if reward_weight > 0 and name.order != RERANK:
        raise UserError(f"reward_weight: the list {name} has weights of its own; give a policy, such as sft")
    return name


def check_served(run: RunDirectory, chosen: Chosen, version: CatalogVersion, name: ListName) -> None:
    """Refuse to answer with what is stale.

    Raises:
        UserError: of the checkpoint, the catalogue, the reward or another part of the list, with the command that makes
            it again.
    """
    maker = ListMaker(Models(RunData(run)))
    reward = reward_stages(run) if maker.asks_reward(name) else []
    check(run, "serve", [chosen.stage, version.stage, *reward, *maker.stages(name)])


def list_read(run: RunDirectory, name: ListName, weight: float) -> dict[str, Any]:
    """Describe what a list reads beside its policy: the reward and hashes of files; nothing for a policy's own."""
    maker = ListMaker(Models(RunData(run)))
    files = {run.label(path): run.hash_input(path) for path in maker.files(name)}
    if not files:
        return {}
    reward = describe_reward(maker.models) if maker.asks_reward(name) else {}
    return {"list": str(name), "weight": weight, "files": files, "reward": reward}
