"""Early checks of files that later stages need."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np

from adagrpo.config import read_settings
from adagrpo.config.reward import CallableOptions, FactoryOptions, ModelFileOptions, RewardOptions, SequentialOptions
from adagrpo.errors import UserError
from adagrpo.pipeline.directory import RunDirectory, by_label, hash_of, kept
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.stages.prepare import log_source
from adagrpo.pipeline.stages.tokenize import language_model_folder, reads_texts
from adagrpo.rewards import load_function, load_model, module_files
from adagrpo.semantic_ids import Catalog
from adagrpo.semantic_ids.language import check_model
from adagrpo.storage.hashes import cached_hash

MADE = {"marketplace": "simulated logs", "exposures": "the log of a service"}  # generated logs, by key of `data`
ASK_REWARD = {"train", "diagnose", "evaluate"}


def check_named(data: RunData, parts: Collection[str]) -> None:
    """Refuse a missing text encoder, reward file or measured group."""
    run, config = data.run, data.config
    if config.without_order:
        return
    if "tokenize" in parts and reads_texts(config):
        check_model(language_model_folder(run))
    if ASK_REWARD & set(parts):
        for file in Models(data).reward_files:
            if isinstance(file, Path):  # not made by the run
                hash_of(run, file)
    if "evaluate" in parts and config.evaluation.eligible is not None:  # the items do not depend on their codes
        data.narrowed(Catalog.from_codes(np.arange(data.num_items)[:, None], (data.num_items,)))


def check_reward_files(run: RunDirectory, options: RewardOptions) -> None:
    """Import the functions of a reward and its members, and read their model files."""
    if isinstance(options, CallableOptions | FactoryOptions):
        load_function(options.function, run.code)
    if isinstance(options, ModelFileOptions):
        load_model(run.data / options.model)
    for part in options.parts:
        check_reward_files(run, part)


def features_named(run: RunDirectory, options: RewardOptions) -> set[str]:
    """Return the features that the model files of a reward and its members name, also without `item.`."""
    own = load_model(run.data / options.model).names if isinstance(options, ModelFileOptions) else ()
    names = {*own, *(name.removeprefix("item.") for name in own)}
    return names.union(*(features_named(run, part) for part in options.parts))


def files_named_by(options: RewardOptions, run: RunDirectory) -> list[Path]:
    """Return a reward's external files: modules, models, checkpoints of other runs."""
    match options:
        case CallableOptions() | FactoryOptions():
            own = [*module_files(options.function, run.code), *(run.data / name for name in options.files)]
        case ModelFileOptions():
            own = [run.data / name for name in (options.model, options.users) if name is not None]
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


def check_logs(run: RunDirectory) -> None:
    """Refuse to rebuild a run from other logs, which would replace its results.

    Original files must be unchanged and no log added; impressions or an item table may be added. Logs that a run makes
    itself only have to be of the same kind.
    """
    known = kept(run, "prepare")
    if known is None:
        return
    was, now = known.settings.get("data", {}), read_settings(run.config, known.keys, known.but).get("data", {})
    before, reads = known.files, run.stages.declared(run.config, ["prepare"])["prepare"](run).reads
    given = {label: path for label, path in by_label(run, reads).items() if isinstance(path, Path)}
    if not all(path.is_file() for path in given.values()):
        return  # the command reports it itself
    digests = {label: cached_hash(path) for label, path in given.items()}
    changed = [label for label, digest in before.items() if digests.get(label, digest) != digest]
    logs = [digests[label] for label, path in given.items() if path in log_source(run).logs]
    if (
        bool(was.get("marketplace")) == bool(now.get("marketplace"))
        and {*before.values()} <= {*digests.values()}
        and {*logs} <= {*before.values()}
    ):
        return
    said = [
        " and ".join([*labels, *(what for key, what in MADE.items() if data.get(key))])
        for labels, data in ((before, was), (given, now))
    ]
    differs = f"another {changed[0]} than the file is now" if changed else f"{said[0]}, not from {said[1]}"
    raise UserError(
        f"{run.called}: was made from {differs}; --replace makes all of it again in place, or give another --out"
    )
