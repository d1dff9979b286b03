"""Arms of a comparison by name. `names` maps matched arms to their names within a run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adagrpo.config import ArmConfig
from adagrpo.lists.names import FUSE, FUSE_WITHOUT_REWARD, RERANK, START, ListName, parse_list
from adagrpo.pipeline.directory import RunDirectory, hash_of
from adagrpo.pipeline.json_files import read_json, read_rows
from adagrpo.pipeline.matching import MATCHED


def base_of(name: str) -> str | None:
    """Return the arm whose beam a list re-orders; None for an arm itself."""
    called = parse_list(name)
    return None if called.order == "policy" else called.policy


def is_named_here(name: str) -> bool:
    """Return whether an arm is matched, or a list of one, and so in no recipe."""
    return name in MATCHED or base_of(name) is not None


def names_in_run(matched: Mapping[str, ArmConfig]) -> dict[str, str]:
    """Map matched arms and their lists to names in a run."""
    names = {name: arm.name for name, arm in matched.items()}
    orders = (RERANK, FUSE, FUSE_WITHOUT_REWARD)
    return names | {
        str(ListName(name, order)): str(ListName(arm, order)) for name, arm in names.items() for order in orders
    }


def checkpoints_of(arm: str) -> tuple[str, ...]:
    """Return the measured checkpoints, a single one for sft and fused lists."""
    once = arm == START or base_of(arm) == START or parse_list(arm).order in (FUSE, FUSE_WITHOUT_REWARD)
    return ("best",) if once else ("best", "final")


def evaluation_folder(run: RunDirectory, name: str, checkpoint: str) -> Path:
    """Return the folder of an arm's evaluation."""
    return run.path("evaluate", name, *(() if len(checkpoints_of(name)) == 1 else (checkpoint,)))


def facts_of_arm(runs: Sequence[tuple[RunDirectory, str]]) -> dict[str, list[Any]]:
    """Return λ, pressure, admission, validation weight and collapse, a value per seed."""
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
    lines = list(trained)
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
