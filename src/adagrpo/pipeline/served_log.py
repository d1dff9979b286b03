"""A service's exposure log as data of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adagrpo.errors import UserError
from adagrpo.exposures.exposure_store import KIND, close_part, parts_of
from adagrpo.pipeline.directory import RunDirectory
from adagrpo.storage.marks import check_kind, is_marked
from adagrpo.trainer.processes import processes


def latest_exposures(directory: str | Path, *, publish: bool) -> dict[str, Any]:
    """Return `data.exposures` of a recipe, up to the log's newest part.

    Args:
        directory: of the log; a service may be writing to it.
        publish: first move rows in no part yet into one.
    """
    directory = Path(directory)
    if not directory.is_dir() or not check_kind(directory, KIND, "--exposures"):
        raise UserError(f"{directory}: no exposure log; give the folder that `adagrpo serve` logs into")
    if publish:
        close_part(directory)
    parts = parts_of(directory)
    if not parts:
        found = "nothing was logged there yet" if publish else "has no part yet; without --dry-run one is made"
        raise UserError(f"{directory}: {found}")
    return {"path": str(directory.resolve()), "through": int(parts[-1].name)}


def publish_first(run: RunDirectory) -> None:
    """Move rows in no part yet into one, before a recipe first reads the log."""
    options = run.config.data.exposures
    if options is None or options.through is not None or run.path("exposures").exists():
        return
    directory = run.data / options.path
    if processes().is_main_process and is_marked(directory) and check_kind(directory, KIND, "data.exposures.path"):
        close_part(directory)
