"""Which checkpoint of a run is meant, by commands that take one."""

from __future__ import annotations

from math import inf
from pathlib import Path
from typing import Literal, NamedTuple

from adagrpo.errors import UserError
from adagrpo.pipeline.directory import RunDirectory
from adagrpo.pipeline.json_files import read_json
from adagrpo.storage.artifacts import manifest

SHOWN = 12  # digits of a sha256 that name a version
Checkpoint = Literal["best", "final"]
MONITOR = "ndcg@10"  # by which checkpoints are selected while a policy is trained, too


class Chosen(NamedTuple):
    """A checkpoint of a run."""

    arm: str  # or sft
    weights: Path  # its folder
    step: int
    why: str  # this one and no other

    @property
    def stage(self) -> str:
        """The stage that it is of."""
        return "sft" if self.arm == "sft" else f"train/{self.arm}"

    def versions(self, run: RunDirectory, checkpoint: str, catalog: str) -> dict[str, str]:
        """Return the versions that answers name; `run` is the run of the checkpoint."""
        model = run.hash_input(self.weights / "model.safetensors")[:SHOWN]
        return {"model": model, "catalog": catalog, "arm": f"{self.arm}/{checkpoint}"}


def choose_checkpoint(run: RunDirectory, arm: str | None, checkpoint: Checkpoint) -> Chosen:
    """The checkpoint of an arm.

    Args:
        arm: a trained arm, or `sft`; None: the one of the best NDCG@10 on validation among those that were evaluated.

    Raises:
        UserError: there is no such arm or checkpoint, its weights are not what they were, or none is named where there
            are several and no evaluation to choose by.
    """
    finished = set(run.trained())
    trained = [name.name for name in run.config.train.arms if name.name in finished]
    why = "as named"
    if arm is None:
        start = ["sft"] if not trained or checkpoint == "best" or _ends_at_its_best(run) else []
        arm, why = _best_on_validation(run, [*start, *trained], checkpoint)
    if arm != "sft" and arm not in trained:
        raise UserError(f"--arm {arm}: not trained in {run.directory}; there is {', '.join(['sft', *trained])}")
    weights = run.weights_of(arm, checkpoint)
    for name in ("model.safetensors", "checkpoint.json"):
        run.hash_input(weights / name)  # or say that it is missing, or not what it was
    return Chosen(arm, weights, read_json(weights / "checkpoint.json")["step"], why)


def _best_on_validation(run: RunDirectory, arms: list[str], checkpoint: str) -> tuple[str, str]:
    """The arm of the best `MONITOR` on all validation cases, the first of equals, and why it is that one.

    An evaluation speaks of the weights that it read. Of an arm that was trained again since, it says nothing. One that
    `evaluation.eligible` narrowed is of other cases: it is not compared with those of all cases, and the reason says
    so. So is one of a sample of them, `evaluation.validation_users`.
    """
    values: dict[str, float] = {}
    outdated: list[str] = []
    narrowed: list[str] = []
    sampled: dict[str, int] = {}
    for arm in arms:
        metrics = run.find(*evaluation_of(arm, checkpoint), "metrics.json")
        if metrics is None:
            continue
        if not of_these_weights(run, metrics.parent, arm, checkpoint):
            outdated.append(arm)
            continue
        content = read_json(metrics)
        values[arm] = content["validation"][MONITOR]
        if "eligible" in content:
            narrowed.append(arm)
        if "validation_sample" in content:
            sampled[arm] = content["validation_sample"]
    left_out = f"evaluated before being trained again: {', '.join(outdated)}"
    if not values and len(arms) > 1:
        found = f"nothing was evaluated in {run.directory}" + (f" as it is ({left_out})" if outdated else "")
        raise UserError(
            f"--arm: {found}, so none is the best of {', '.join(arms)};"
            f" name one, or run `adagrpo evaluate --run {run.directory}`"
        )
    if not values:
        return "sft", f"the only policy; {left_out if outdated else 'nothing was evaluated'}"
    others = [arm for arm in arms if arm not in values and arm not in outdated]
    apart = f"evaluated on part of the catalogue (evaluation.eligible): {', '.join(narrowed)}"
    if len(narrowed) < len(values):
        values = {arm: value for arm, value in values.items() if arm not in narrowed}
    most = max(sampled.get(arm, inf) for arm in values)  # cases
    few = [arm for arm in values if sampled.get(arm, inf) < most]
    values = {arm: value for arm, value in values.items() if arm not in few}
    best = max(values, key=lambda arm: values[arm])
    cases = f"{sampled[best]:,} cases of " if best in sampled else ""
    why = [f"NDCG@10 {values[best]:.4f} on {cases}validation, the best of {', '.join(values)}"]
    why += [apart] if narrowed else []
    why += [f"evaluated on fewer cases (evaluation.validation_users): {', '.join(few)}"] if few else []
    why += [f"not evaluated: {', '.join(others)}"] if others else []
    return best, "; ".join([*why, left_out] if outdated else why)


def _ends_at_its_best(run: RunDirectory) -> bool:
    """Check that the last weights of sft are its best, which alone are evaluated."""
    first, last = (run.hash_input(run.path("sft", name, "model.safetensors")) for name in ("best", "final"))
    return first == last


def evaluation_of(arm: str, checkpoint: str) -> tuple[str, ...]:
    """Return the folder of the evaluation of a policy, in a run."""
    return ("evaluate", arm) if arm == "sft" else ("evaluate", arm, checkpoint)


def of_these_weights(run: RunDirectory, evaluation: Path, arm: str, checkpoint: str) -> bool:
    """Check that an evaluation read the weights that are there."""
    made_from = (manifest(evaluation) or {}).get("made_from")
    weights = run.weights_of(arm, "best" if arm == "sft" else checkpoint)
    return made_from is None or run.hash_input(weights / "model.safetensors") in made_from["inputs"].values()
