"""The reward that a configuration names: the files that decide it, the reward itself, and a first look at it.

The look is the stage `reward`: it asks about a few validation cases before anything is trained, so that a reward that
fails, is not finite or says the same of every item is refused at once. `reward.json` keeps the spread of its scores and
of its members', the standard deviation within a case: what to divide by to bring members on one scale.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from adagrpo.config.reward import (
    CallableOptions,
    HttpOptions,
    LambdaRankOptions,
    LightGBMOptions,
    MeanOptions,
    NoiseOptions,
    RewardOptions,
    SequentialOptions,
)
from adagrpo.data.prepared import load_item_ids
from adagrpo.data.sequences import pad
from adagrpo.errors import NotFinite, ServiceError, UserError
from adagrpo.evaluation.predictions import sample_cases
from adagrpo.groups.score import distinct_candidates
from adagrpo.rewards import (
    BoostedReward,
    CallableReward,
    HttpReward,
    MeanReward,
    NoiseReward,
    Reward,
    WeightedReward,
    ask_reward,
    find_module,
    load_function,
    load_model,
)
from adagrpo.storage.artifacts import write_file
from adagrpo.types import Cases, Histories

if TYPE_CHECKING:
    from adagrpo.pipeline.models import Workbench

__all__ = ["build_reward", "check_reward", "describe_reward", "reward_inputs"]

LOOK_CASES, LOOK_ITEMS = 64, 50


def reward_inputs(bench: Workbench, options: RewardOptions) -> list[Path]:
    """The files that decide a reward, each once."""
    run, found = bench.run, []
    match options:
        case SequentialOptions():
            folder = run.path("ranker", "best") if options.checkpoint is None else run.data / options.checkpoint
            found = [folder / "model.safetensors"]
        case CallableOptions():
            found = [find_module(options.function, run.code), *(run.data / name for name in options.files)]
        case HttpOptions() | NoiseOptions():
            pass
        case LightGBMOptions() | LambdaRankOptions():
            found = [_model_file(bench, options), *bench.training_files[:2]]  # the features count in these
        case _:
            found = [path for part in options.parts for path in reward_inputs(bench, part)]
    return list(dict.fromkeys(found))


def _model_file(bench: Workbench, options: LightGBMOptions | LambdaRankOptions) -> Path:
    if isinstance(options, LightGBMOptions):
        return bench.run.data / options.model
    return bench.run.path("ranker", "lambdarank", "model.txt")


def build_reward(bench: Workbench, options: RewardOptions) -> Reward:
    """Make a reward ready to score."""
    match options:
        case SequentialOptions():
            return bench.ranker(reward_inputs(bench, options)[0].parent)
        case CallableOptions():
            ids = load_item_ids(bench.prepared).to_list()
            return CallableReward(options.function, load_function(options.function, bench.run.code), ids)
        case HttpOptions():
            given = options.model_dump(exclude={"kind", "version"})
            return HttpReward(**given, ids=load_item_ids(bench.prepared).to_list())
        case LightGBMOptions():
            return BoostedReward(load_model(_model_file(bench, options)), bench.features)
        case LambdaRankOptions():
            return BoostedReward(load_model(_model_file(bench, options)), bench.ranker_features)
        case NoiseOptions():
            return NoiseReward(options.seed)
        case MeanOptions():
            return MeanReward([build_reward(bench, part) for part in options.parts])
        case _:
            return WeightedReward([build_reward(bench, part) for part in options.parts], options.weights)


def check_reward(bench: Workbench, *, note: bool = True) -> None:
    """Look at the reward before it is used, and note in run.yaml what it is.

    Args:
        bench: of the run.
        note: False writes nothing into the run.

    Raises:
        UserError: it says the same of every item, is not finite, or is otherwise wrong in a way that the user can mend.
        ServiceError: an endpoint failed, or what it answers is wrong.
    """
    run, options = bench.run, bench.config.reward
    for path in [*bench.training_files, *bench.catalog_files, run.path("sft", "best", "model.safetensors")]:
        run.hash_input(path)  # of the stages that are missing, the first is named
    if note:
        run.record("reward", describe_reward(bench))
    cases = sample_cases(bench.cases("validation"), LOOK_CASES, run.config.seed)
    if options == SequentialOptions():  # fitted and validated by the run itself: nothing is kept of the look
        _spread(bench, cases, bench.judge(), options)
        return
    if not note:
        _spread(bench, cases, bench.reward(), options)
        return

    def build(work: Path) -> None:
        reward = build_reward(bench, options)
        content: dict[str, Any] = {"cases": len(cases), "spread": _spread(bench, cases, reward, options)}
        if isinstance(reward, MeanReward | WeightedReward):
            parts = zip(reward.members, options.parts, strict=True)
            content["members"] = [_spread(bench, cases, member, part) for member, part in parts]
        write_file(work / "reward.json", json.dumps(content, indent=1) + "\n")

    config = [options.identity(), run.config.seed, run.config.max_history]
    run.stage("reward", config=config, inputs=[*bench.training_files, *reward_inputs(bench, options)], build=build)


def _spread(bench: Workbench, cases: Cases, reward: Reward, options: RewardOptions) -> float:
    """The root of the mean variance of the scores within a case, over the logged item and items drawn at random."""
    draw = np.random.default_rng(bench.config.seed)
    found = pad(cases.histories, np.arange(len(cases)), bench.config.max_history)
    users = torch.from_numpy(cases.users.astype(np.int64))
    histories = Histories(*(part.to(bench.device) for part in (found.items, found.lengths, users)))
    drawn = torch.from_numpy(draw.integers(0, bench.num_items, (len(cases), LOOK_ITEMS - 1))).to(bench.device)
    targets = torch.from_numpy(cases.targets.astype(np.int64)).to(bench.device)
    candidates = distinct_candidates(targets, drawn, drawn[:, :0])
    try:
        scores = ask_reward(reward, histories, candidates.items).double().cpu().numpy()
    except NotFinite as error:
        raise UserError(f"reward {_name(options)}: {error}") from error
    if not _differ(scores):
        words = f"reward {_name(options)}: gives every item of a case the same score; there is nothing to learn from it"
        raise ServiceError(words) if _asks_a_service(options) else UserError(words)
    return float(np.sqrt(np.nanvar(scores, axis=1).mean()))


def _differ(scores: NDArray[np.float64]) -> bool:
    return bool((np.nanmax(scores, axis=1) > np.nanmin(scores, axis=1)).any())


def describe_reward(bench: Workbench) -> dict[str, Any]:
    """What the reward is, JSON-able: its options and the sha256 of each file that decides it."""
    options, run = bench.config.reward, bench.run
    files = {run.label(path): run.hash_input(path) for path in reward_inputs(bench, options)}
    return {**options.identity(), "files": files}


def _name(options: RewardOptions) -> str:
    match options:
        case CallableOptions():
            return options.function
        case HttpOptions():
            return options.url
        case _:
            return options.kind


def _asks_a_service(options: RewardOptions) -> bool:
    return isinstance(options, HttpOptions) or any(map(_asks_a_service, options.parts))
