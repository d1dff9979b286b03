"""The λ that a trained arm had: as the recipe gives it, or as its pressure came to."""

from __future__ import annotations

import json

from adagrpo.config import ArmConfig
from adagrpo.pipeline.directory import RunDirectory
from adagrpo.trainer.pressure import FILE


def weight_used(run: RunDirectory, arm: ArmConfig) -> float | None:
    """λ; None for an arm without a reward, and where validation found no use for the reward of a pressed arm."""
    common = run.config.objective
    if arm.term is None or arm.pressure_of(common) is None:
        return None if arm.term is None else arm.weight_of(common)
    path = run.find("train", arm.name, FILE)
    return None if path is None else float(json.loads(path.read_text(encoding="utf-8"))["lambda_"])
