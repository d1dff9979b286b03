"""Arms of a comparison by name. `names` maps matched arms to their names within a run.

`mixture-matched` has the effective weight of `adagrpo`, its λ times its mean admission; `mixture-norm-matched` has
λ · |g_adagrpo| / |g_mixture|, λ of `mixture` and mean gradient norms of the reward term (0 where nothing was admitted).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adagrpo.config import ArmConfig
from adagrpo.config.training import MATCHED as NAMES
from adagrpo.errors import UserError
from adagrpo.lists.names import FUSE, FUSE_WITHOUT_REWARD, RERANK, START, ListName, parse_list
from adagrpo.pipeline.directory import RunDirectory, find_content, hash_of
from adagrpo.pipeline.json_files import read_json, read_rows
from adagrpo.trainer.pressure import FILE


def base_of(name: str) -> str | None:
    """Return the arm that a list re-orders; None for an arm."""
    called = parse_list(name)
    return None if called.order == "policy" else called.policy


def is_named_here(name: str) -> bool:
    """Return whether an arm is matched, or a list of one."""
    return name in MATCHED or base_of(name) is not None


def names_in_run(matched: Mapping[str, ArmConfig]) -> dict[str, str]:
    """Map matched arms and their lists to names in a run."""
    names = {name: arm.name for name, arm in matched.items()}
    orders = (RERANK, FUSE, FUSE_WITHOUT_REWARD)
    return names | {
        str(ListName(name, order)): str(ListName(arm, order)) for name, arm in names.items() for order in orders
    }


def checkpoints_of(arm: str) -> tuple[str, ...]:
    """Return the measured checkpoints, one for sft and fused lists."""
    once = arm == START or base_of(arm) == START or parse_list(arm).order in (FUSE, FUSE_WITHOUT_REWARD)
    return ("best",) if once else ("best", "final")


def evaluation_folder(run: RunDirectory, name: str, checkpoint: str) -> Path:
    """Return the folder of an arm's evaluation."""
    return run.path("evaluate", name, *(() if len(checkpoints_of(name)) == 1 else (checkpoint,)))


def facts_of_arm(runs: Sequence[tuple[RunDirectory, str]]) -> dict[str, list[Any]]:
    """Return λ, pressure, admission, validation weight and collapse by seed."""
    facts: dict[str, list[Any]] = {name: [] for name in ("lambda", "pressure", "admission", "weight", "lost")}
    for run, name in runs:
        re_ordered = base_of(name) is not None
        path = evaluation_folder(run, name, "best") / "metrics.json" if re_ordered else run.path("metrics.json")
        hash_of(run, path)
        values = read_json(path) if re_ordered else read_json(path)["stages"][name]
        for fact, listed in facts.items():
            listed.append(values.get(fact))
    if not any(facts["lost"]):
        del facts["lost"]
    return facts


def result_rows(run: RunDirectory, names: Mapping[str, str], arms: Sequence[str]) -> str:
    """Return a seed's results.jsonl under the comparison's names, with re-ranking."""
    rows = read_rows(run.checked("results.jsonl"))
    trained = [row | {"arm": arm} for row in rows for arm in arms_called(row["arm"], names, arms)]
    lines = [*trained]
    for arm in arms:
        if (base := base_of(arm)) is not None:
            for row in trained:
                if row["arm"] == base and row["checkpoint"] in checkpoints_of(arm):
                    values = read_json(evaluation_folder(run, names.get(arm, arm), row["checkpoint"]) / "metrics.json")
                    entry = {"objective": parse_list(arm).order, "arm": arm, "seconds": None}
                    entry |= {"weight": values["weight"]} if "weight" in values else {}
                    lines.append(row | entry | {"metrics": values[row["split"]]})
    return "".join(json.dumps(line) + "\n" for line in lines)


def arms_called(folder: str, names: Mapping[str, str], arms: Sequence[str]) -> list[str]:
    """Return the comparison's names for a run's arm; mixtures may coincide."""
    own_names = [arm for arm, name in names.items() if name == folder]
    return [folder, *own_names] if folder in arms or not own_names else own_names


MATCHED_BY_ADMISSION, NORM = NAMES
MATCHED = {MATCHED_BY_ADMISSION: ("adagrpo",), NORM: ("adagrpo", "mixture")}  # and the arms that each needs
MEASURED, REWARD = "grad_norm_nll", "grad_norm_grpo"


def weight_used(run: RunDirectory, arm: ArmConfig) -> float | None:
    """Return λ, given or from the pressure; None if unused."""
    common = run.config.objective
    if arm.term is None or arm.pressure_of(common) is None:
        return None if arm.term is None else arm.weight_of(common)
    pressed = find_content(run, "train", arm.name, FILE)
    return None if pressed is None else float(pressed["lambda_"])


def matched_arm(name: str, run: RunDirectory, metrics: Mapping[str, Any]) -> ArmConfig:
    """Return the matched mixture, λ rounded to four digits.

    Raises:
        UserError: no norm was measured, or the mixture's is 0.
    """
    stages = metrics["stages"]
    if name == MATCHED_BY_ADMISSION:
        weight, share = stages["adagrpo"]["lambda"], float(stages["adagrpo"]["admission"])
    else:
        weight, means = stages["mixture"]["lambda"], []
        for arm in MATCHED[NORM]:
            rows = read_rows(run.checked("train", arm, "steps.jsonl"))
            norms = [row.get(REWARD, 0.0) for row in rows if MEASURED in row]
            means.append(sum(norms) / len(norms) if norms else 0.0)
        gated, uniform = means
        if not uniform:
            raise UserError(f"{run.path('train', 'mixture', 'steps.jsonl')}: its reward term has no gradient to match")
        share = gated / uniform
    return ArmConfig.model_validate({"objective": "mixture", "lambda": f"{share * weight:.4g}"})
