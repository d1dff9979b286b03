"""The diagnosis of the reward that is about to be trained on.

A diagnosis names the policy and the reward that it is of, by the hashes of their files. One that is of others says
nothing here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adagrpo.diagnosis.sentences import INVERTED, leak_reason
from adagrpo.errors import UserError
from adagrpo.pipeline.directory import RunDirectory
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.rewards import describe_reward

LEAKS = "it has probably seen the held-out items"
NO_GAIN = "no gain of re-ranking by it is shown"


def diagnosed_models(models: Models) -> dict[str, Any]:
    """The policy and the reward that a diagnosis is of, JSON-able."""
    policy = models.run.path("sft", "best", "model.safetensors")
    return {"policy": models.run.hash_input(policy), "reward": describe_reward(models)}


def is_diagnosed(run: RunDirectory, content: Mapping[str, Any]) -> bool:
    """Check that a diagnosis, the content of diagnose.json, is of the policy and the reward that are there."""
    return bool(content.get("of") == diagnosed_models(Models(RunData(run))))


def why_refused(content: Mapping[str, Any]) -> str | None:
    """Say why a reward is not trained on, from the content of diagnose.json: it leaks or is inverted; else None."""
    if leak_reason(content.get("leak")) is not None:
        return LEAKS
    return INVERTED if content["verdict"].get("inverted") else None


def check_diagnosis(run: RunDirectory, *, anyway: bool) -> None:
    """Refuse to train on a reward that leaks or is inverted, or say in one line what the diagnosis said.

    Nothing is asked where no arm reads a reward. Whether training helps, no diagnosis says.

    Args:
        anyway: a note in place of the refusal.

    Raises:
        UserError: by the diagnosis of this policy and this reward it leaks or is inverted, and not `anyway`.
    """
    trained = run.trained()
    if all(arm.term is None for arm in run.config.train.arms) or not run.folder("sft").is_dir():
        return
    diagnose = f"adagrpo diagnose --run {run.called}"
    content = run.find_content("diagnose", "diagnose.json")
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
