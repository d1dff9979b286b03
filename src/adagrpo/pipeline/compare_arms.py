"""Arms of a comparison by their names: which are lists of others, where each was measured, and what came of it.

An arm that is matched to another one is called otherwise in a run: `names` maps the names of a comparison to those.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adagrpo.config import ArmConfig
from adagrpo.lists.names import FUSE, FUSE_WITHOUT_REWARD, RERANK, START, ListName, parse_list
from adagrpo.pipeline.directory import RunDirectory
from adagrpo.pipeline.json_files import read_json, read_rows
from adagrpo.pipeline.matching import MATCHED


def base_of(name: str) -> str | None:
    """Return the arm whose beam a list of this name has; None of an arm itself."""
    called = parse_list(name)
    return None if called.order == "policy" else called.policy


def is_named_here(name: str) -> bool:
    """Check whether an arm is none that a recipe names: it is matched to another one, or a list of one."""
    return name in MATCHED or base_of(name) is not None


def names_in_run(matched: Mapping[str, ArmConfig]) -> dict[str, str]:
    """Map the names of matched arms, and of their lists, to those in a run."""
    names = {name: arm.name for name, arm in matched.items()}
    orders = (RERANK, FUSE, FUSE_WITHOUT_REWARD)
    return names | {
        str(ListName(name, order)): str(ListName(arm, order)) for name, arm in names.items() for order in orders
    }


def checkpoints_of(arm: str) -> tuple[str, ...]:
    """The checkpoints that are measured: one evaluation is both of the starting policy and of every fused list."""
    once = arm == START or base_of(arm) == START or parse_list(arm).order in (FUSE, FUSE_WITHOUT_REWARD)
    return ("best",) if once else ("best", "final")


def evaluation_folder(run: RunDirectory, name: str, checkpoint: str) -> Path:
    """Return the folder of the evaluation of an arm's checkpoint."""
    return run.path("evaluate", name, *(() if len(checkpoints_of(name)) == 1 else (checkpoint,)))


def facts_of_arm(runs: Sequence[tuple[RunDirectory, str]]) -> dict[str, list[Any]]:
    """Lambda, pressure, admission, the weight of validation, and where the policy was lost, of an arm a seed."""
    facts: dict[str, list[Any]] = {name: [] for name in ("lambda", "pressure", "admission", "weight", "lost")}
    for run, name in runs:
        re_ordered = base_of(name) is not None
        path = evaluation_folder(run, name, "best") / "metrics.json" if re_ordered else run.path("metrics.json")
        run.hash_input(path)
        values = read_json(path) if re_ordered else read_json(path)["stages"][name]
        for fact, listed in facts.items():
            listed.append(values.get(fact))
    if not any(facts["lost"]):
        del facts["lost"]
    return facts


def result_rows(run: RunDirectory, names: Mapping[str, str], arms: Sequence[str]) -> str:
    """The rows of a seed's results.jsonl under the names of this comparison, and those of re-ranking."""
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
    """The arms that a run's arm is here: two matched ones may be one mixture, or one that was asked for as well."""
    own_names = [arm for arm, name in names.items() if name == folder]
    return [folder, *own_names] if folder in arms or not own_names else own_names
