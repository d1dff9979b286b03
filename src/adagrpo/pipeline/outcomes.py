"""Short summaries of finished stages."""

from __future__ import annotations

from typing import Any

from adagrpo.pipeline.directory import RunDirectory, trained_arms
from adagrpo.pipeline.json_files import read_rows


def catalog_outcome(run: RunDirectory) -> dict[str, Any]:
    """Summarize `tokenize`: items, levels, codes per level, collisions before resolution, density."""
    audit = run.content("tokenize", "audit.json")
    names = ("items", "distinct_sequences", "collision_rate", "largest_collision", "density")
    levels = [{"size": level["size"], "codes_used": level["codes_used"]} for level in audit["per_level"]]
    return {name: audit[name] for name in names} | {"levels": levels}


def fit_outcome(run: RunDirectory, stage: str) -> dict[str, Any]:
    """Summarize a fit: `steps`, first and last `loss` of each term, `best_step` and `validation` there."""
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
    """Return `fit_outcome` of sft, then of each trained arm, by name."""
    trained = set(trained_arms(run))
    names = [arm.name for arm in run.config.train.arms if arm.name in trained]
    return {"sft": fit_outcome(run, "sft")} | {name: fit_outcome(run, f"train/{name}") for name in names}
