"""Mixture arms whose λ is matched to the gated arm's.

    mixture-matched         a · λ, a and λ being the mean admission and the λ of `adagrpo`: the same effective weight
    mixture-norm-matched    λ · |g_adagrpo| / |g_mixture|, mean gradient norms of the reward term; λ of `mixture`

They differ because batch averaging reduces the noise of all samples more than that of an admitted few. Norms are
measured every `train.gradient_norms_every` steps, and 0 where nothing was admitted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from adagrpo.config import ArmConfig
from adagrpo.config.training import MATCHED as NAMES
from adagrpo.errors import UserError
from adagrpo.pipeline.directory import RunDirectory, find_content
from adagrpo.pipeline.json_files import read_rows
from adagrpo.trainer.pressure import FILE

MATCHED_BY_ADMISSION, NORM = NAMES
MATCHED = {MATCHED_BY_ADMISSION: ("adagrpo",), NORM: ("adagrpo", "mixture")}  # and the arms that each needs
MEASURED, REWARD = "grad_norm_nll", "grad_norm_grpo"


def weight_used(run: RunDirectory, arm: ArmConfig) -> float | None:
    """Return λ, given or from the pressure; None without a reward or a use for it."""
    common = run.config.objective
    if arm.term is None or arm.pressure_of(common) is None:
        return None if arm.term is None else arm.weight_of(common)
    pressed = find_content(run, "train", arm.name, FILE)
    return None if pressed is None else float(pressed["lambda_"])


def check_matched(arms: Sequence[str]) -> None:
    """Refuse a matched arm without the arms it is derived from."""
    for name, sources in MATCHED.items():
        missing = [source for source in sources if source not in arms]
        if name in arms and missing:
            raise UserError(
                f"--objectives: {name} takes its lambda from {' and '.join(sources)}; add {' and '.join(missing)}"
            )


def matched_arm(name: str, run: RunDirectory, metrics: Mapping[str, Any]) -> ArmConfig:
    """Return the matched mixture, λ rounded to four digits.

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
    rows = read_rows(run.checked("train", arm, "steps.jsonl"))
    norms = [row.get(REWARD, 0.0) for row in rows if MEASURED in row]
    return sum(norms) / len(norms) if norms else 0.0
