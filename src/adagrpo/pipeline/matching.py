"""The λ that an arm had, and arms whose λ is that of another: mixtures, as strong as the gate lets through.

    mixture-matched         a · λ, a and λ being the mean admission and the λ of `adagrpo`: the same effective weight
    mixture-norm-matched    λ · |g_adagrpo| / |g_mixture|, mean gradient norms of the reward term; λ of `mixture`

Admission and norm do not agree: the gradient of a step averages the samples of a batch, so that the noise of a tenth of
them is more than a tenth of the noise of all. The norms are those of every `train.gradient_norms_every` steps; where
nothing was admitted the norm is 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from adagrpo.config import ArmConfig
from adagrpo.config.training import MATCHED as NAMES
from adagrpo.errors import UserError
from adagrpo.pipeline.directory import RunDirectory
from adagrpo.pipeline.json_files import read_rows
from adagrpo.trainer.pressure import FILE

MATCHED_BY_ADMISSION, NORM = NAMES
MATCHED = {MATCHED_BY_ADMISSION: ("adagrpo",), NORM: ("adagrpo", "mixture")}  # and the arms that each is made from
MEASURED, REWARD = "grad_norm_nll", "grad_norm_grpo"


def weight_used(run: RunDirectory, arm: ArmConfig) -> float | None:
    """λ, given or computed from the pressure; None for an arm without a reward, or one that validation gave no use."""
    common = run.config.objective
    if arm.term is None or arm.pressure_of(common) is None:
        return None if arm.term is None else arm.weight_of(common)
    pressed = run.find_content("train", arm.name, FILE)
    return None if pressed is None else float(pressed["lambda_"])


def check_matched(arms: Sequence[str]) -> None:
    """Refuse a matched arm without those that it is made from.

    Raises:
        UserError: naming what is to be added.
    """
    for name, sources in MATCHED.items():
        missing = [source for source in sources if source not in arms]
        if name in arms and missing:
            raise UserError(
                f"--objectives: {name} takes its lambda from {' and '.join(sources)}; add {' and '.join(missing)}"
            )


def matched_arm(name: str, run: RunDirectory, metrics: Mapping[str, Any]) -> ArmConfig:
    """The mixture that an arm of this kind is under a seed; four digits, so that its name says all of lambda.

    Raises:
        UserError: no norm was measured, or the mixture's is 0.
    """
    stages = metrics["stages"]
    if name == MATCHED_BY_ADMISSION:
        weight, share = stages["adagrpo"]["lambda"], float(stages["adagrpo"]["admission"])
    else:
        weight = stages["mixture"]["lambda"]
        gated, uniform = (_mean_norm(run, arm) for arm in MATCHED[NORM])
        if not uniform:
            raise UserError(f"{run.path('train', 'mixture', 'steps.jsonl')}: its reward term has no gradient to match")
        share = gated / uniform
    return ArmConfig.model_validate({"objective": "mixture", "lambda": f"{share * weight:.4g}"})


def _mean_norm(run: RunDirectory, arm: str) -> float:
    """Of the reward term, over the steps at which norms were measured."""
    rows = read_rows(run.checked("train", arm, "steps.jsonl"))
    norms = [row.get(REWARD, 0.0) for row in rows if MEASURED in row]
    return sum(norms) / len(norms) if norms else 0.0
