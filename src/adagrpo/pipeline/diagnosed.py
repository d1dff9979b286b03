"""The diagnosis of the reward to train on, valid for the policy and reward whose hashes it names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adagrpo.diagnosis.verdict import INVERTED, leak_reason
from adagrpo.errors import UserError
from adagrpo.pipeline.directory import RunDirectory, find_content, folder_of, hash_of, model_of, trained_arms
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.rewards import describe_reward

LEAKS = "it has probably seen the held-out items"
NO_GAIN = "no gain of re-ranking by it is shown"


def diagnosed_models(models: Models) -> dict[str, Any]:
    """Identify the policy and reward of a diagnosis, JSON-able."""
    return {"policy": hash_of(models.run, model_of("sft")), "reward": describe_reward(models)}


def is_diagnosed(run: RunDirectory, content: Mapping[str, Any]) -> bool:
    """Return whether diagnose.json is of the current policy and reward."""
    return bool(content.get("of") == diagnosed_models(Models(RunData(run))))


def why_refused(content: Mapping[str, Any]) -> str | None:
    """Return why diagnose.json forbids training (leak, inversion), else None."""
    if leak_reason(content.get("leak")) is not None:
        return LEAKS
    return INVERTED if content["verdict"].get("inverted") else None


def check_diagnosis(run: RunDirectory, *, anyway: bool) -> None:
    """Refuse to train on a leaking or inverted reward, else note the verdict; skipped if no arm reads a reward.

    Args:
        anyway: note instead of refusing.

    Raises:
        UserError: the reward is refused by a current diagnosis.
    """
    trained = trained_arms(run)
    if all(arm.term is None for arm in run.config.train.arms) or not folder_of(run, "sft").is_dir():
        return
    diagnose = f"adagrpo diagnose --run {run.called}"
    content = find_content(run, "diagnose", "diagnose.json")
    if content is None and all(arm.name in trained for arm in run.config.train.arms):
        return
    if content is None:
        run.console.note(f"note: the reward was not diagnosed; `{diagnose}` says whether it leaks or has a wrong sign")
        return
    if not is_diagnosed(run, content):
        run.console.note(f"note: the diagnosis is of another policy or reward; `{diagnose}` makes it again")
        return
    decision, refused = content["verdict"]["decision"], why_refused(content)
    said = f"{run.called}: diagnose says {decision} of this reward"
    if refused is not None and not anyway:
        raise UserError(f"{said}: {refused}; `adagrpo train --run {run.called} --anyway` trains on it anyway")
    if refused is not None:
        run.console.note(f"note: {said}: {refused}")
    elif decision == "do_not_use":
        run.console.note(f"note: {said}: {NO_GAIN}; `adagrpo decide --run {run.called} --train` measures training")
