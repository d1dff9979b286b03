"""Where all markets of a world begin: its log in an exposure log, the starting policy and ranker, and the catalogues.

WORLD/items.parquet            the item table, with the items that come later
WORLD/population.safetensors   the users as the log leaves them
WORLD/exposures/               the platform's log, as an exposure log
WORLD/run/                     an ordinary run on it: Semantic IDs, policy, ranker, a version of the catalogue a round
WORLD/begun.json               written last
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from adagrpo.config import Config, dump_config, resolve_config
from adagrpo.console import Console
from adagrpo.data.columns import ITEM_ID, USER_ID
from adagrpo.data.simulation.marketplace import Simulation
from adagrpo.data.simulation.world import Marketplace
from adagrpo.exposures.exposure_log import Exposure, Feedback
from adagrpo.exposures.exposure_store import LocalExposureLog
from adagrpo.exposures.user_hash import UserHash
from adagrpo.pipeline.catalog_update import update_catalog
from adagrpo.pipeline.directory import locked, path_of
from adagrpo.pipeline.run import Run
from adagrpo.pipeline.stages.prepare import MARKETPLACE_ITEMS, latest_exposures
from adagrpo.pipeline.versions import catalog_versions
from adagrpo.storage.writing import write_file
from research.closed_loop.plan import LoopPlan, WorldPlan
from research.closed_loop.population import Population, populate

__all__ = ["CLICK", "DAY", "HASH", "Beginning", "begin_world", "learning_config"]

DAY = 86_400  # seconds
CLICK = "click"
HASH = UserHash(b"users of a simulated world")  # they have no secrets, and each has one hash in all markets
PLATFORM = "platform"


@dataclass(frozen=True)
class Beginning:
    """What all markets of a world begin with."""

    name: str
    folder: Path
    world: Marketplace
    config: Config  # of its run, the log aside

    @cached_property
    def run(self) -> Run:
        """The run on the platform's log."""
        return Run.open(self.folder / "run")

    @property
    def exposures(self) -> Path:
        """The platform's log."""
        return self.folder / "exposures"

    def population(self) -> Population:
        """The users as the platform's log leaves them."""
        return Population.load(self.world, self.folder / "population.safetensors")

    def catalogue(self, number: int) -> list[Path]:
        """The files of the catalogue that is served in a round."""
        versions = catalog_versions(self.run)
        version = versions[min(1 + number, len(versions) - 1)]  # without later items there is version 0 alone
        return [path_of(self.run, file) for file in version.files]


def learning_config(config: Config, exposures: Path, through: int, **changes: Any) -> Config:
    """The recipe of a run on an exposure log whose items are those of the simulation."""
    content = dump_config(config)
    logged = {"path": str(exposures.resolve()), "through": through, "clicks": [CLICK]}
    content["data"] |= {"marketplace": None, "exposures": logged, "keep_unseen_items": True}
    content["data"]["items"] = MARKETPLACE_ITEMS.model_dump(mode="json")
    return resolve_config(content | changes, (), "the recipe of the loop")


def begin_world(plan: LoopPlan, config: Config, name: str, folder: Path, console: Console) -> Beginning:
    """Simulate a world up to the first day of its markets, unless it is there; a killed attempt goes on."""
    chosen = plan.worlds[name]
    given = _given(config) | _given(chosen)
    world = Marketplace(**given, seed=chosen.seed)
    begun = Beginning(name, folder, world, config.model_copy(update={"seed": chosen.seed}))
    if (folder / "begun.json").is_file():
        return begun
    folder.mkdir(parents=True, exist_ok=True)
    simulation, population = populate(world)
    simulation.items.write_parquet(folder / "items.parquet")
    population.save(folder / "population.safetensors")
    through = _log_platform(simulation, begun.exposures)
    run = Run(folder / "run", learning_config(begun.config, begun.exposures, through), folder, console)
    with locked(run):
        run.prepare()
        run.tokenize()
        run.sft()
        run.ranker()
        _list_in_waves(plan, run, simulation, population, folder)
    write_file(folder / "begun.json", json.dumps({"world": given, "through": through}) + "\n")
    return begun


def _given(section: Config | WorldPlan) -> dict[str, Any]:
    """The parameters of a marketplace that a recipe or a plan gives."""
    options = section.data.marketplace if isinstance(section, Config) else section.marketplace
    return {} if options is None else options.model_dump(exclude_none=True)


def _log_platform(simulation: Simulation, directory: Path) -> int:
    """The platform's lists and clicks as an exposure log; the number of its last part."""
    log = LocalExposureLog(directory, rotate_rows=10**9)
    visits = simulation.impressions.group_by("timestamp", USER_ID, maintain_order=True).agg(ITEM_ID, "clicked")
    exposures, feedback = [], []
    for step, user, items, clicked in visits.sort("timestamp", maintain_order=True).iter_rows():
        row = int(user[1:])
        request, moment = f"p{step}-{user}", float(step * DAY + row)
        exposures.append(
            Exposure(
                request_id=request,
                time=moment,
                slate=tuple(items),
                arm=PLATFORM,
                model_version=PLATFORM,
                catalog_version=PLATFORM,
                user_hash=HASH(user),
                key_version=HASH.fingerprint,
                source=PLATFORM,
            )
        )
        bought = [item for item, click in zip(items, clicked, strict=True) if click]
        feedback += [Feedback(request_id=request, item=item, kind=CLICK, time=moment + 60) for item in bought]
    log.write(exposures)
    log.feedback(feedback)
    log.close()
    return int(latest_exposures(directory, publish=True)["through"])


def _list_in_waves(plan: LoopPlan, run: Run, simulation: Simulation, population: Population, folder: Path) -> None:
    """A version of the catalogue without the items that come later, then one a round with some more of them."""
    later = population.later
    if not len(later):
        return
    made = len(catalog_versions(run)) - 1  # by an attempt that was killed
    if made == 0:
        update_catalog(run, delist=[population.item_ids[item] for item in later])
    order = np.random.default_rng(population.world.seed).permutation(later)
    waves = [wave for wave in np.array_split(order, plan.rounds) if len(wave)]
    for number, wave in enumerate(waves, 1):
        if number < made:
            continue
        path = folder / f"wave-{number:04d}.parquet"
        ids = [population.item_ids[item] for item in sorted(wave)]
        simulation.items.filter(pl.col(ITEM_ID).is_in(ids)).write_parquet(path)
        update_catalog(run, items=path)
