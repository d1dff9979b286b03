"""The exposure log of a service as the data of a run: what was logged until now, and nothing that comes later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adagrpo.errors import UserError
from adagrpo.exposures.exposure_parts import KIND, close_part, parts_of
from adagrpo.pipeline.directory import RunDirectory
from adagrpo.storage.marks import check_kind, is_marked


def latest_exposures(directory: str | Path, *, publish: bool) -> dict[str, Any]:
    """`data.exposures` of a recipe: the log, up to the newest part that it has now.

    Args:
        directory: of the log; a service may be writing to it.
        publish: put what is in no part yet into one, so that it is read too.

    Raises:
        UserError: the folder is no exposure log, or nothing was logged.
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
    """Before the first run of a recipe on a log: put what is in no part yet into one, or it would be left out.

    Raises:
        UserError: it cannot be read.
    """
    options = run.config.data.exposures
    if options is None or options.through is not None or run.path("exposures").exists():
        return
    directory = run.data / options.path
    if run.processes.is_main_process and is_marked(directory) and check_kind(directory, KIND, "data.exposures.path"):
        close_part(directory)
