"""Which checkpoint of a run is meant, by verbs that take one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, NamedTuple

from adagrpo.errors import UserError
from adagrpo.pipeline.run import Run

__all__ = ["Chosen", "choose_checkpoint"]


class Chosen(NamedTuple):
    """A checkpoint of a run."""

    arm: str  # or sft
    weights: Path  # its folder
    step: int

    @property
    def stage(self) -> str:
        """The stage that it is of."""
        return "sft" if self.arm == "sft" else f"train/{self.arm}"


def choose_checkpoint(run: Run, arm: str | None, checkpoint: Literal["best", "final"]) -> Chosen:
    """The checkpoint of an arm.

    Args:
        run: the run.
        arm: a trained arm, or `sft`; None: the last arm of the recipe that is trained, or `sft`.
        checkpoint: of that arm.

    Raises:
        UserError: there is no such arm or checkpoint, or its weights are not what they were.
    """
    finished = set(run.trained())
    trained = [name.name for name in run.config.train.arms if name.name in finished]
    arm = arm or ["sft", *trained][-1]
    if arm != "sft" and arm not in trained:
        raise UserError(f"--arm {arm}: not trained in {run.directory}; there is {', '.join(['sft', *trained])}")
    weights = run.path("sft", checkpoint) if arm == "sft" else run.path("train", arm, checkpoint)
    for name in ("model.safetensors", "checkpoint.json"):
        run.hash_input(weights / name)  # or say that it is missing, or not what it was
    return Chosen(arm, weights, json.loads((weights / "checkpoint.json").read_text(encoding="utf-8"))["step"])
