"""What an evaluated checkpoint did for each user, read from a run's files: what a comparison pairs."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np

from adagrpo.data.prepared import load_user_ids
from adagrpo.data.simulation.truth import Truth
from adagrpo.evaluation.comparison import Measured, per_user
from adagrpo.metrics import RankedLists, target_rank_in
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.run import Run
from adagrpo.pipeline.stages.evaluate import read_lists, read_valid
from adagrpo.pipeline.stages.reranking import RERANK

__all__ = ["evaluated_folder", "measured_users"]


def evaluated_folder(run: Run, name: str, checkpoint: str) -> Path:
    """Where an arm's checkpoint was evaluated."""
    return run.path("evaluate", name) if name in ("sft", RERANK) else run.path("evaluate", name, checkpoint)


def measured_users(data: RunData, truth: Truth | None, folder: Path) -> Measured:
    """What an evaluation's folder holds, user by user."""
    cases = data.cases("test")
    for name in ("predictions.parquet", "free.parquet", "metrics.json"):
        data.run.hash_input(folder / name)
    width = data.config.evaluation.beam_width
    items = read_lists(data, cases, folder, width)
    lists = RankedLists(
        target_rank_in(items, cases.targets.astype(np.int64)),
        width,
        items=items,
        valid=read_valid(data, cases, folder, width),
        tail=data.tail,
        utility=None if truth is None else partial(truth.utility, cases.users.astype(np.int64)),
    )
    users = per_user(load_user_ids(data.prepared).gather(cases.users), lists)
    values = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return Measured(users, values["test"], values["validation"])
