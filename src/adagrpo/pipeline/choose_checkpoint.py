"""Choose the checkpoint that a command uses."""

from __future__ import annotations

from math import inf
from pathlib import Path
from typing import Literal, NamedTuple

from adagrpo.errors import UserError
from adagrpo.pipeline.directory import RunDirectory, find_content, hash_of, kept, model_of, trained_arms, weights_of
from adagrpo.pipeline.json_files import read_json

Checkpoint = Literal["best", "final"]
MONITOR = "ndcg@10"  # also selects checkpoints in training


class Chosen(NamedTuple):
    """A checkpoint of a run."""

    arm: str  # or sft
    weights: Path  # its folder
    step: int
    why: str  # reason for the choice

    @property
    def stage(self) -> str:
        """The stage that made it."""
        return "sft" if self.arm == "sft" else f"train/{self.arm}"


def choose_checkpoint(run: RunDirectory, arm: str | None, checkpoint: Checkpoint) -> Chosen:
    """Return a checkpoint of an arm or `sft`; None takes the best by validation NDCG@10.

    Raises:
        UserError: there is no such arm or checkpoint, its weights were changed, or nothing was evaluated to choose by.
    """
    finished = set(trained_arms(run))
    trained = [name.name for name in run.config.train.arms if name.name in finished]
    why = "as named"
    if arm is None:
        of_sft = (hash_of(run, model_of("sft", name)) for name in ("best", "final"))  # only the best are evaluated
        start = ["sft"] if not trained or checkpoint == "best" or len({*of_sft}) == 1 else []
        arm, why = _best_on_validation(run, [*start, *trained], checkpoint)
    if arm != "sft" and arm not in trained:
        raise UserError(f"--arm {arm}: not trained in {run.directory}; there is {', '.join(['sft', *trained])}")
    weights = run.path(*weights_of(arm, checkpoint))
    for name in ("model.safetensors", "checkpoint.json"):
        hash_of(run, weights / name)  # raises if it is missing or changed
    return Chosen(arm, weights, read_json(weights / "checkpoint.json")["step"], why)


def _best_on_validation(run: RunDirectory, arms: list[str], checkpoint: str) -> tuple[str, str]:
    """The first arm with the best `MONITOR`, and the reason; only current weights and equal cases are compared."""
    contents = {arm: find_content(run, *evaluation_of(arm, checkpoint), "metrics.json") for arm in arms}
    found = {arm: content for arm, content in contents.items() if content is not None}
    outdated = [
        arm for arm in found if not of_these_weights(run, "/".join(evaluation_of(arm, checkpoint)), arm, checkpoint)
    ]
    found = {arm: content for arm, content in found.items() if arm not in outdated}
    values = {arm: float(content["validation"][MONITOR]) for arm, content in found.items()}
    narrowed = [arm for arm, content in found.items() if "eligible" in content]
    sampled = {arm: content["validation_sample"] for arm, content in found.items() if "validation_sample" in content}
    left_out = f"evaluated before being trained again: {', '.join(outdated)}"
    if not values and len(arms) > 1:
        nothing = f"nothing was evaluated in {run.directory}" + (f" as it is ({left_out})" if outdated else "")
        raise UserError(
            f"--arm: {nothing}, so none is the best of {', '.join(arms)};"
            f" name one, or run `adagrpo evaluate --run {run.directory}`"
        )
    if not values:
        return "sft", f"the only policy; {left_out if outdated else 'nothing was evaluated'}"
    others = [arm for arm in arms if arm not in values and arm not in outdated]
    apart = f"evaluated on part of the catalogue (evaluation.eligible): {', '.join(narrowed)}"
    if len(narrowed) < len(values):
        values = {arm: value for arm, value in values.items() if arm not in narrowed}
    most = max(sampled.get(arm, inf) for arm in values)  # number of cases
    few = [arm for arm in values if sampled.get(arm, inf) < most]
    values = {arm: value for arm, value in values.items() if arm not in few}
    best = max(values, key=lambda arm: values[arm])
    cases = f"{sampled[best]:,} cases of " if best in sampled else ""
    why = [f"NDCG@10 {values[best]:.4f} on {cases}validation, the best of {', '.join(values)}"]
    why += [apart] if narrowed else []
    why += [f"evaluated on fewer cases (evaluation.validation_users): {', '.join(few)}"] if few else []
    why += [f"not evaluated: {', '.join(others)}"] if others else []
    return best, "; ".join([*why, left_out] if outdated else why)


def evaluation_of(arm: str, checkpoint: str) -> tuple[str, ...]:
    """Return the folder of a policy's evaluation within a run."""
    return ("evaluate", arm) if arm == "sft" else ("evaluate", arm, checkpoint)


def of_these_weights(run: RunDirectory, stage: str, arm: str, checkpoint: str) -> bool:
    """Check that an evaluation used the current weights."""
    made_from = kept(run, stage)
    weights = model_of(arm, "best" if arm == "sft" else checkpoint)
    return made_from is None or hash_of(run, weights) in made_from.hashes.values()
