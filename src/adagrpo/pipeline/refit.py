"""RUN/refit: the list that `decide` chose, its parts fitted once more on all interactions.

A run inside the run, without cases; each fit takes as many epochs as validation found best in the run's own. All else
is read from the run: Semantic IDs, versions of the catalogue, the weights of fused lists and of rewards.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adagrpo.errors import UserError
from adagrpo.lists.names import FUSE, FUSE_WITHOUT_REWARD, START, parse_list
from adagrpo.lists.table import SOURCES, fused
from adagrpo.pipeline.directory import REFIT, RunDirectory
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.json_files import read_events
from adagrpo.pipeline.list_makers import ListMaker
from adagrpo.pipeline.make import make
from adagrpo.pipeline.stage import RUN, Declare, sources_of
from adagrpo.pipeline.staleness import states_of
from adagrpo.storage.writing import MANIFEST


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
    try:
        stages = fitted_stages(refit, chosen)
    except (UserError, OSError) as error:
        return f"cannot be read: {error}"
    if any(not (refit.directory / name / MANIFEST).is_file() for name in stages):
        return "is not finished"
    parts = states_of(refit, stages).values()
    return next((f"is stale: its {part.name} is {part.state} ({part.why})" for part in parts if not part.usable), "")


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
