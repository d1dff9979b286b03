"""Refuse stale stages that a command reads, `--set` keys that it does not, and early, files that later stages lack."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from adagrpo.config import Change, dump_config, read_settings
from adagrpo.config.reward import CallableOptions, FactoryOptions, ModelFileOptions, RewardOptions
from adagrpo.errors import UserError
from adagrpo.pipeline.directory import ALWAYS, RunDirectory, by_label, command, hash_of, kept, remake_command
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.stage import MEASURES_REWARD, STRATA, Part, names_key, sources_of
from adagrpo.pipeline.stages.prepare import log_source
from adagrpo.pipeline.stages.tokenize import language_model_folder, reads_texts
from adagrpo.pipeline.staleness import finished_arms, parts_of
from adagrpo.rewards import load_function, load_model
from adagrpo.semantic_ids.catalog import Catalog
from adagrpo.semantic_ids.language import check_model
from adagrpo.storage.hashes import cached_hash

MEASURES = ("diagnose", STRATA, "evaluate", "serve", "export", "report")  # no training depends on their results
DECIDES = ("prepare", "tokenize", "sft", "ranker", "evaluate", "decide")  # commands whose stages `decide` makes
ALL_OTHERS = ("diagnose", STRATA, "evaluate")  # their `--set` may not make a finished stage stale


def check(run: RunDirectory, verb: str, stages: Iterable[str] = ()) -> None:
    """Refuse a command whose inputs, `stages` besides the usual ones, are stale, or whose settings are not its own."""
    parts, config = parts_of(run, measuring=verb in MEASURES), run.config
    makes = DECIDES if verb == "decide" else (verb,)
    rows = {name: run.stages.row(name) for name in parts}
    made = {name for name, row in rows.items() if row is not None and any(map(row.made_by, makes))}
    read = [*stages, *(reward_stages(run) if verb in MEASURES_REWARD else [])]
    if verb in run.stages.commands:
        arms = finished_arms(run) if verb in ("evaluate", "decide") else None
        for declare in run.stages.declared(config, [verb], arms).values():
            with suppress(UserError, OSError):  # the command reports it itself
                read += sources_of(declare(run).reads)
    else:
        read.append("tokenize")
    wanted, found = [name for name in read if name not in made], set[str]()
    while wanted:
        if (name := wanted.pop()) in parts and name not in found:
            found.add(name)
            wanted += parts[name].sources
    needed = [part for name, part in parts.items() if name in found]
    keys = [text.partition("=")[0] for text in run.overrides]
    if run.described is not None:
        before, now = dump_config(run.described), dump_config(config)
        keys = [key for key in keys if _value(before, key) != _value(now, key)]

    def asked_for(part: Part) -> tuple[Change | None, str]:
        """Return the first change by `--set` that makes a stage stale."""
        found = ((change, key) for change in part.changes for key in keys if names_key(change.key, key))
        return next(found, (None, ""))

    for part in needed:
        if part.state == "damaged":
            raise UserError(part.why)
        if part.there and not part.usable:
            change, key = asked_for(part)
            again = remake_command(run, part.name)
            if change is None:
                raise UserError(f"{run.called}: {part.name} is stale: {part.why}; run {again}")
            was = f"{change.key}={change.before}"
            raise UserError(f"--set {key}: {part.name} reads it too, and was made with {was}; run {again} first")

    for key in keys:
        read_here = run.stages.reads_key(verb, key)
        if verb == "ranker" and names_key(key, "reward") and not config.without_order:
            read_here = config.reward.holds("lambdarank")  # other kinds do not concern the ranker
        if verb == "serve" and names_key(key, "rules"):  # no stage of a list depends on them
            read_here = True
        if key not in ALWAYS and not read_here:
            others = [f"`adagrpo {other}`" for other in run.stages.commands if run.stages.reads_key(other, key)]
            do = f"{', '.join(others)} {'do' if len(others) > 1 else 'does'}" if others else "no command of a run does"
            raise UserError(f"--set {key}: {verb} does not read it; {do}")

    if verb in ALL_OTHERS and run.directory == run.called:
        for part in parts.values():
            _, key = asked_for(part)
            if key and part.there and part not in needed and part.name not in made:
                given = [text for text in run.overrides if names_key(text.partition("=")[0], key)]
                folder = f"{run.called.name}-{verb.split()[-1].lstrip('-')}"
                elsewhere = command(run, verb, given, out=run.called.with_name(folder))
                trains = part.name.startswith("train/") and verb == "evaluate"
                first = f"{remake_command(run, part.name)} first, or " if trains else ""
                raise UserError(
                    f"--set {key}: {part.name} was made with another one, and would be stale; run {first}{elsewhere},"
                    f" which leaves {run.called} as it is"
                )


def reward_stages(run: RunDirectory) -> list[str]:
    """Return the stages that the reward reads."""
    models = Models(RunData(run))
    try:
        return sources_of([*models.reward_files, *models.group_reward_files])
    except (UserError, OSError):  # the command reports it itself
        return []


def _value(content: Mapping[str, Any], key: str) -> Any:
    value: Any = content
    for name in key.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


MADE = {"marketplace": "simulated logs", "exposures": "the log of a service"}  # generated logs, by key of `data`
ASK_REWARD = {"train", "diagnose", STRATA, "evaluate"}


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
    """Import a reward's functions, and read its model files."""
    if isinstance(options, CallableOptions | FactoryOptions):
        load_function(options.function, run.code)
    if isinstance(options, ModelFileOptions):
        load_model(run.data / options.model)
    for part in options.parts:
        check_reward_files(run, part)


def features_named(run: RunDirectory, options: RewardOptions) -> set[str]:
    """Return the features that a reward's model files name, also without `item.`."""
    own = load_model(run.data / options.model).names if isinstance(options, ModelFileOptions) else ()
    names = {*own, *(name.removeprefix("item.") for name in own)}
    return names.union(*(features_named(run, part) for part in options.parts))


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
    """Refuse to rebuild a run from other logs; impressions or an item table may be added.

    Logs that a run makes itself only have to be of the same kind.
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
