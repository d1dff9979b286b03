"""Results of a finished stage, as few numbers as a person needs to go on."""

from __future__ import annotations

from typing import Any

from adagrpo.pipeline.directory import RunDirectory
from adagrpo.pipeline.json_files import read_rows


def catalog_outcome(run: RunDirectory) -> dict[str, Any]:
    """Of `tokenize`: items, levels, codes of each level, collisions before they were resolved, density."""
    audit = run.content("tokenize", "audit.json")
    names = ("items", "distinct_sequences", "collision_rate", "largest_collision", "density")
    levels = [{"size": level["size"], "codes_used": level["codes_used"]} for level in audit["per_level"]]
    return {name: audit[name] for name in names} | {"levels": levels}


def fit_outcome(run: RunDirectory, stage: str) -> dict[str, Any]:
    """Of a stage that fitted a model: steps, the loss of the first and the last one, and the best checkpoint.

    Returns:
        `steps`; `loss`, the first and the last value of each loss term; `best_step`; `validation`, its metrics there.
    """
    parts = stage.split("/")
    steps = read_rows(run.checked(*parts, "steps.jsonl"))
    validations = read_rows(run.checked(*parts, "validation.jsonl"))
    best = run.content(*parts, "best", "checkpoint.json")["step"]
    validation = next((row for row in validations if row["step"] == best), {})
    name = "nll" if any("nll" in row for row in steps) else "loss"
    values = [row[name] for row in steps if name in row]
    return {
        "steps": len(steps),
        "loss": {name: [values[0], values[-1]]} if values else {},
        "best_step": best,
        "validation": {key: value for key, value in validation.items() if key != "step"},
    }


def trained_outcomes(run: RunDirectory) -> dict[str, dict[str, Any]]:
    """`fit_outcome` of the arms of the recipe that were trained, by name, behind that of sft."""
    trained = set(run.trained())
    names = [arm.name for arm in run.config.train.arms if arm.name in trained]
    return {"sft": fit_outcome(run, "sft")} | {name: fit_outcome(run, f"train/{name}") for name in names}
