"""Early checks of files that later stages need."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np

from adagrpo.config.reward import CallableOptions, FactoryOptions, LightGBMOptions, RewardOptions, SequentialOptions
from adagrpo.errors import UserError
from adagrpo.pipeline.directory import RunDirectory
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.stages.tokenize import language_model_folder, reads_texts
from adagrpo.rewards import load_function, module_files
from adagrpo.semantic_ids import Catalog
from adagrpo.semantic_ids.language import check_model

ASK_REWARD = {"train", "diagnose", "evaluate"}


def check_named(data: RunData, parts: Collection[str]) -> None:
    """Refuse a missing text encoder, reward file or measured group."""
    run, config = data.run, data.config
    if config.without_order:
        return
    if "tokenize" in parts and reads_texts(config):
        check_model(language_model_folder(run))
    if ASK_REWARD & set(parts):
        for path in Models(data).reward_files:
            if not path.is_relative_to(run.directory):  # not made by the run
                run.hash_input(path)
    if "evaluate" in parts and config.evaluation.eligible is not None:  # the items do not depend on their codes
        data.narrowed(Catalog.from_codes(np.arange(data.num_items)[:, None], (data.num_items,)))


def check_functions(run: RunDirectory, options: RewardOptions) -> None:
    """Import the functions of a reward and its members."""
    if isinstance(options, CallableOptions | FactoryOptions):
        load_function(options.function, run.code)
    for part in options.parts:
        check_functions(run, part)


def files_named_by(options: RewardOptions, run: RunDirectory) -> list[Path]:
    """Return a reward's external files: modules, models, checkpoints of other runs."""
    match options:
        case CallableOptions() | FactoryOptions():
            own = [*module_files(options.function, run.code), *(run.data / name for name in options.files)]
        case LightGBMOptions():
            own = [run.data / options.model]
        case SequentialOptions(checkpoint=str(folder)):
            own = [run.data / folder / "model.safetensors"]
        case _:
            own = []
    return own + [path for part in options.parts for path in files_named_by(part, run)]


def check_test_cases(run: RunDirectory) -> None:
    """Refuse a temporal split without test cases."""
    prepared = run.content("prepare", "summary.json")
    split = run.config.data.split
    if split.kind == "temporal" and not prepared["test_cases"]:
        last = prepared.get("understood", {}).get("time", {}).get("last", "unknown")
        raise UserError(
            f"data.split.test_from: no user with a history has an interaction at or after {split.test_from} to be"
            f" tested on; the last time of the logs is {last}"
        )
