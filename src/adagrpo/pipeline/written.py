"""The names of the files that stages write: in a stage's work folder a file of any other name is somebody else's."""

from __future__ import annotations

from pathlib import Path

from adagrpo.storage.removal import MANIFEST

__all__ = ["WRITTEN", "is_written"]

# the files that stages write, in whatever folder below their own; an attempt that holds any other is not touched
WRITTEN = frozenset(
    {
        *("logs.parquet", "truth.safetensors"),  # simulate
        *("users.parquet", "items.parquet", "train.parquet", "validation.parquet", "test.parquet"),  # prepare
        *("later.parquet", "impressions.parquet", "held_out.parquet", "rejects.parquet", "summary.json"),
        *("vectors.parquet", "codes.parquet", "codes.json", "audit.json"),  # encode, tokenize
        *("steps.jsonl", "validation.jsonl", "model.safetensors", "checkpoint.json", "lost.json"),  # whatever fits
        "pressure.json",
        *("best.safetensors", "average.safetensors", "optimizer.safetensors", "progress.json"),
        *("semantic_ids.json", "config.json", "metrics.json", "model.txt", "weight.json", "reward.json"),
        *("predictions.parquet", "free.parquet"),  # evaluate
        *("neighbours.parquet", "version.json"),  # catalogs
        *("report.json", "diagnose.json", "paired.json", "rollouts.json", MANIFEST),
    }
)


def is_written(name: str) -> bool:
    """Whether a file of a stage, by its path, has a name that stages write."""
    return Path(name).name in WRITTEN
