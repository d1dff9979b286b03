"""What another family of rankers says of the lists: a gain in the trained reward alone may be that reward's own taste.

`second_reward` of the configuration judges the first ten items of every list of a comparison (`second_reward@10`). If
there is none and no part of the reward is a sequential ranker, the run's own does, which is fitted whatever the reward.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from adagrpo.config import Config
from adagrpo.config.reward import RewardOptions, SequentialOptions
from adagrpo.data.columns import USER_ID
from adagrpo.data.prepared import load_user_ids
from adagrpo.evaluation import rewards_of
from adagrpo.pipeline.evaluate import read_lists
from adagrpo.pipeline.models import Workbench
from adagrpo.pipeline.rewards import build_reward, reward_inputs
from adagrpo.pipeline.run import Run

__all__ = ["SECOND", "judge_lists", "judged_lists"]

SECOND = "second_reward@10"
FILE = "second_reward.parquet"
LENGTH = 10


def judge_lists(bench: Workbench, evaluated: Path) -> None:
    """Judge the test lists in an evaluation's folder: a stage under `second_reward/`; none where there is no second."""
    run, lists, second = bench.run, evaluated / "predictions.parquet", _second(bench.config)
    if second is None:
        return

    def build(work: Path) -> None:
        cases, users = bench.cases("test"), load_user_ids(bench.prepared)
        items = read_lists(bench, cases, evaluated, LENGTH)
        found = rewards_of(
            build_reward(bench, second),
            cases,
            items,
            batch_size=run.config.evaluation.batch_size,
            max_history=run.config.max_history,
            device=bench.device,
        )
        means = np.nanmean(found.astype(np.float64), axis=1)
        table = pl.DataFrame([users.gather(cases.users).alias(USER_ID), pl.Series(SECOND, means)])
        table.write_parquet(work / FILE)

    inputs = [bench.prepared / "test.parquet", bench.training_files[0], lists, *reward_inputs(bench, second)]
    config = [LENGTH, run.config.max_history, second.identity()]
    run.stage(_stage(run, evaluated), config=config, inputs=list(dict.fromkeys(inputs)), build=build)


def judged_lists(run: Run, evaluated: Path) -> pl.DataFrame | None:
    """user_id and the mean second reward of the first ten items of the list, as `judge_lists` found; None without."""
    return pl.read_parquet(run.checked(*_stage(run, evaluated).split("/"), FILE)) if _second(run.config) else None


def _second(config: Config) -> RewardOptions | None:
    if config.second_reward is None and not _is_sequential(config.reward):
        return SequentialOptions()
    return config.second_reward


def _is_sequential(reward: RewardOptions) -> bool:
    """The reward, or one that it is made of, is a sequential ranker."""
    return isinstance(reward, SequentialOptions) or any(map(_is_sequential, reward.parts))


def _stage(run: Run, evaluated: Path) -> str:
    return f"second_reward/{evaluated.relative_to(run.path('evaluate')).as_posix()}"
