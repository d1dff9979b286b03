"""What a round learns from the log: a run of its own, whose policy goes on from the one that was served.

prepare     the exposure log, as `adagrpo prepare --exposures` reads it
tokenize    taken over: an item keeps its Semantic ID, and only what is listed now can be written
sft         taken over: the policy that was served
ranker      fitted on what was shown; one for all arms of a market
train/ARM   the arm
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from adagrpo.config import ArmConfig
from adagrpo.pipeline.directory import checked_stage, locked
from adagrpo.pipeline.make import make
from adagrpo.pipeline.run import Run
from adagrpo.pipeline.stage import Declaration
from adagrpo.pipeline.staleness import stages_of
from research.closed_loop.beginnings import Beginning, learning_config

__all__ = ["learn"]


def learn(
    beginning: Beginning,
    folder: Path,
    number: int,
    *,
    exposures: Path,
    through: int,
    arm: ArmConfig | None,
    served: Path,
    ranker: Run | None,
) -> Run:
    """Fit what an arm serves in a round, or what is missing of it.

    Args:
        beginning: of the world.
        folder: of the run.
        number: of the round; it seeds what is drawn.
        exposures: the log of the market.
        through: its last part that is read.
        arm: to train; None fits the ranker alone.
        served: folder of the weights that are served until now.
        ranker: another run on the same log, whose ranker is taken over.
    """
    config = learning_config(beginning.config, exposures, through, seed=beginning.config.seed + number)
    arms = () if arm is None else (arm,)
    config = config.model_copy(update={"train": config.train.model_copy(update={"arms": arms})})
    run = Run(folder, config, beginning.folder)
    with locked(run):
        run.prepare()
        _take_over(run, "tokenize", beginning.catalogue(number))
        _take_over(run, "sft", sorted(path for path in served.iterdir() if path.is_file()), "best")
        if ranker is None:
            _make(run, "ranker")
        else:
            weights = sorted((checked_stage(ranker, "ranker") / "best").iterdir())
            _take_over(run, "ranker", weights, "best")
        if arm is not None:
            _make(run, "train")
    return run


def _make(run: Run, command: str) -> None:
    """Make the stages of a command from what was taken over, which the recipe of the run does not make."""
    for name, declare in stages_of(run, [command]).items():
        make(run, name, declare(run))


def _take_over(run: Run, stage: str, files: Sequence[Path], folder: str = "") -> None:
    """Make a stage of files that were made elsewhere."""

    def build(work: Path) -> None:
        (work / folder).mkdir(exist_ok=True)
        for file in files:
            shutil.copyfile(file, work / folder / file.name)

    names = tuple(file.name for file in files)
    make(run, stage, Declaration(build, list(files), names, also={"taken_over": True}))
