"""RUN/refit and RUN/refresh: the list that `decide` chose, its parts fitted once more on all interactions.

A run inside the run, without cases; each fit takes as many epochs as validation found best in the run's own. All else
is read from the run. RUN/refresh/served.json names the refresh to serve, 0 for the refit, and the last finished one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from adagrpo.errors import UserError
from adagrpo.lists.names import FUSE, FUSE_WITHOUT_REWARD, START, parse_list
from adagrpo.lists.table import SOURCES, fused
from adagrpo.pipeline.directory import REFIT, REFRESH, RunDirectory, hash_of
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import CatalogVersion, RunData
from adagrpo.pipeline.json_files import read_events, read_json, write_json
from adagrpo.pipeline.list_makers import ListMaker
from adagrpo.pipeline.make import make
from adagrpo.pipeline.stage import RUN, Declare, sources_of
from adagrpo.pipeline.staleness import states_of
from adagrpo.pipeline.versions import open_version
from adagrpo.storage.artifacts import manifest
from adagrpo.storage.hashes import hash_json, with_hash, without_hash
from adagrpo.storage.writing import MANIFEST, write_file

SERVED, ABOUT = "served.json", "refresh.json"  # of RUN/refresh, and of a refresh


def refit_of(run: RunDirectory) -> RunDirectory:
    """Return the directory of a run's refit, perhaps missing."""
    return run_within(run, run.directory / REFIT)


def run_within(run: RunDirectory, folder: Path, begun: RunDirectory | None = None) -> RunDirectory:
    """Return a run inside a run that reads all else from it; `begun` is the fit it goes on from."""
    made = type(run)(folder, run.config, run.data, run.console, run.code, measured=run, begun=begun)
    made.called, made.described, made.overrides = run.called, run.described, run.overrides  # of messages
    return made


def make_refit(run: RunDirectory, chosen: str) -> dict[str, Any]:
    """Fit a list's parts on all interactions; return their number and the seconds taken."""
    refit = refit_of(run)
    stages = fitted_stages(refit, chosen)
    run.console.note(f"{REFIT}: the parts of {chosen} are fitted once more, on all interactions")
    for name, declare in stages.items():
        make(refit, name, declare(refit))
    interactions = refit.content("prepare", "summary.json")["interactions"]
    ended = {row["stage"]: row["seconds"] for row in read_events(refit.directory) if row["event"] == "end"}
    return {"interactions": interactions, "seconds": round(sum(ended.get(name, 0.0) for name in stages), 1)}


def why_not_refit(refit: RunDirectory, chosen: str) -> str:
    """Return why a refit cannot be served; empty if it can."""
    stages, why = _parts(refit, chosen)
    if why:
        return why
    parts = states_of(refit, stages).values()
    return next((f"is stale: its {part.name} is {part.state} ({part.why})" for part in parts if not part.usable), "")


def _parts(made: RunDirectory, chosen: str, *more: str) -> tuple[dict[str, Declare], str]:
    """Return a list's stages in a refit, or a refresh with `more`, and why it lacks one; empty if it has all."""
    try:
        stages = fitted_stages(made, chosen)
    except (UserError, OSError) as error:
        return {}, f"cannot be read: {error}"
    missing = [name for name in (*stages, *more) if not (made.directory / name / MANIFEST).is_file()]
    return stages, f"is not finished: it has no {missing[0]}" if missing else ""


def fitted_stages(refit: RunDirectory, chosen: str) -> dict[str, Declare]:
    """Return a list's stages that read training interactions, in execution order."""
    called = parse_list(chosen)
    maker = ListMaker(Models(RunData(refit)))
    wanted = set(sources_of(maker.files(called)))
    if called.order in (FUSE, FUSE_WITHOUT_REWARD):
        kept = maker.fused_sources(maker.fitted(called))
        wanted -= {str(SOURCES[name].stage) for name in fused(refit.config) if name not in kept}
        wanted |= {stage for name in kept if (stage := SOURCES[name].stage) is not None}
    wanted.add("prepare")
    if called.policy is not None:
        wanted.add("sft" if called.policy == START else f"train/{called.policy}")
    arms = [arm.name for arm in refit.config.train.arms]
    declared = refit.stages.declared(refit.config, (*RUN, "decide"), arms)
    fitted = {name: declare for name, declare in declared.items() if (row := refit.stages.row(name)) and row.refit}
    for name in reversed(fitted):  # a stage reads those before it
        if name in wanted:
            wanted.update(sources_of(fitted[name](refit).reads))
    return {name: declare for name, declare in fitted.items() if name in wanted}


def refresh_of(run: RunDirectory, number: int, which: Literal["list", "trial"] = "list") -> RunDirectory:
    """Return a refresh's directory, perhaps missing; `trial` is fitted without the rows of the comparison."""
    return run_within(run, run.directory / REFRESH / f"{number:04d}" / which, refit_of(run))


def refreshes(run: RunDirectory) -> tuple[int, int]:
    """Return the numbers of the refresh to serve, 0 for the refit, and the last finished one."""
    path = run.directory / REFRESH / SERVED
    content = _as_written(run, path) if path.is_file() else {"number": 0, "last": 0}
    return int(content["number"]), int(content["last"])


def serve_refresh(run: RunDirectory, number: int, last: int) -> None:
    """Serve another refresh from now on, 0 for the refit; `last` is finished."""
    content = with_hash({"number": number, "last": last})
    write_file(run.directory / REFRESH / SERVED, json.dumps(content) + "\n")


def about_refresh(run: RunDirectory, number: int) -> dict[str, Any]:
    """Return the content of a finished refresh's refresh.json."""
    return _as_written(run, run.directory / REFRESH / f"{number:04d}" / ABOUT)


def write_refresh(run: RunDirectory, number: int, about: dict[str, Any]) -> None:
    """Write refresh.json of a refresh."""
    write_json(run.directory / REFRESH / f"{number:04d}" / ABOUT, with_hash(about))


def _as_written(run: RunDirectory, path: Path) -> dict[str, Any]:
    try:
        return without_hash(read_json(path))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        folder = run.directory / REFRESH
        raise UserError(
            f"{path}: missing, or not as it was written; delete {folder}, and the refit is served"
        ) from error


def decided_by(run: RunDirectory, chosen: str) -> str:
    """Return the hash of what a refresh is of: the list and its fits."""
    refit = refit_of(run)
    files = [file for file in ListMaker(Models(RunData(refit))).files(parse_list(chosen)) if isinstance(file, str)]
    fits = {
        name: (manifest(refit.path(*name.split("/"))) or {})["fingerprint"] for name in fitted_stages(refit, chosen)
    }
    return hash_json([chosen, fits, {file: hash_of(refit, file) for file in [*files, *CatalogVersion(run, 0).files]}])


def served_refresh(run: RunDirectory, chosen: str) -> tuple[dict[str, Any] | None, str]:
    """Return refresh.json of the refresh that answers, None for the refit, and why not the one that should."""
    number, _ = refreshes(run)
    if not number:
        return None, ""
    about = about_refresh(run, number)
    if about["of"] != decided_by(run, chosen):
        return None, f"refresh {number} is of an earlier decision"
    if about["catalog"] != open_version(run).name:
        return None, f"refresh {number} is of version {about['catalog']} of the catalogue, which is not the latest"
    if why := _parts(refresh_of(run, number), chosen, "tokenize")[1]:
        return None, f"refresh {number} {why}"
    return about, ""
