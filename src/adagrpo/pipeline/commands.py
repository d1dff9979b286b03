"""Which verb makes which stage and which settings it reads, so that a message names a command that mends the fault.

A command that is named repeats what the user has set for it: `adagrpo train --set reward.kind=lambdarank` that lacks
the trees is told to run `adagrpo ranker --set reward.kind=lambdarank`, since run.yaml does not say so yet.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from adagrpo.config import Config

__all__ = [
    "ALWAYS",
    "READS",
    "command",
    "data_settings",
    "fits_trees",
    "names_key",
    "readers",
    "reads_key",
    "remake",
    "stage_at",
    "verb_for",
]

FOLDS = "ranker.folds"
DECODING = ("policy", "evaluation", "max_history")
# the keys of the configuration, of values or of sections, that decide what a verb makes; in the order of the work
READS: dict[str, tuple[str, ...]] = {
    "prepare": ("data", "seed"),
    "tokenize": ("tokenizer", "seed"),
    "sft": ("sft", *DECODING, "seed", "train.rl_split"),
    "ranker": ("ranker", "reward", "seed", "max_history", "evaluation.mask_history", "evaluation.batch_size"),
    "diagnose": (*DECODING, "objective", "ranker", "reward", "seed"),
    "train": ("train", "objective", "reward", *DECODING, "seed", FOLDS),
    "evaluate": ("evaluation", "objective", "train", "reward", "policy", "max_history", "seed", FOLDS),
}
ALWAYS = ("name", "threads")  # they decide no result, and every verb goes by them
PLACES = ("data.exposures.path", "data.exposures.through")  # where logs are, and up to where
OUTPUTS = ("metrics.json", "results.jsonl")


class Called(Protocol):
    """What a message says of a run: how the user calls it, and what was set for this command."""

    directory: Path
    source: Path | None
    called: Path
    overrides: tuple[str, ...]
    config: Config
    described: Config | None


def names_key(key: str, other: str) -> bool:
    """Whether one of two dotted keys is the other or a section above it.

    >>> names_key("train", "train.arms"), names_key("train.arms", "train"), names_key("train.fit", "train.arms")
    (True, True, False)
    """
    one, two = (name.replace("lambda_", "lambda").split(".") for name in (key, other))
    return one[: len(two)] == two[: len(one)]


def reads_key(verb: str, key: str) -> bool:
    """Whether a verb reads a key of the configuration, or something below it."""
    return any(names_key(key, read) for read in READS[verb])


def readers(key: str) -> list[str]:
    """The verbs that read a key, in the order of the work."""
    return [verb for verb in READS if reads_key(verb, key)]


def stage_at(run: Called, path: Path) -> str:
    """The stage that a file or folder of a run belongs to, or its name where it belongs to none."""
    roots = [root for root in (run.directory, run.source) if root is not None and path.is_relative_to(root)]
    parts = path.relative_to(roots[0]).parts if roots else path.parts[-1:]
    match parts:
        case ("train", arm, *_):
            return f"train/{arm}"
        case ("evaluate", name, kind, *_) if name not in ("sft", "baselines", "rerank"):
            return f"evaluate/{name}/{kind}"
        case ("evaluate" | "report", name, *_):
            return f"{parts[0]}/{name}"
        case ("ranker", inner, *_) if inner in ("report", "exposures", "lambdarank") or inner.startswith("fold-"):
            return f"ranker/{inner}"
        case _:
            return str(parts[0])


def verb_for(stage: str, *, without_order: bool = False) -> str:
    """The verb that makes a stage, or a file that belongs to none."""
    if stage in OUTPUTS:
        return "ranker" if without_order else "evaluate"
    if stage in ("simulate", "ranker/report"):
        return {"simulate": "run", "ranker/report": "evaluate"}[stage]
    first = stage.partition("/")[0]
    others = {"encode": "tokenize", "reranking": "diagnose", "reward": "train", "report": "evaluate"}
    return (others | {"catalogs": "catalog update", "exposures": "prepare"}).get(first, first)


def command(run: Called, verb: str, overrides: Iterable[str] = (), *, out: Path | None = None) -> str:
    """A verb on a run as the user would type it, in backticks.

    Args:
        run: on which.
        verb: to be carried out.
        overrides: for its `--set`.
        out: another run, for what it writes.
    """
    place = shlex.quote(str(run.called))
    if verb in ("prepare", "run"):
        recipe = f"`adagrpo run RECIPE --out {place}`"
        simulated = run.config.data.marketplace is not None
        exposures = run.config.data.exposures
        logs = "LOGS" if exposures is None else f"--exposures {shlex.quote(exposures.path)}"
        if verb == "run" or simulated:
            return recipe
        given = "".join(f" --set {key}=..." for key in data_settings(run.config))
        if given:  # else `prepare` would go by the defaults
            return f"{recipe} or `adagrpo prepare {logs} --out {place}{given}`"
        return f"`adagrpo prepare {logs} --out {place}` or {recipe}"
    words = ["adagrpo", verb, "--run", place, *(() if out is None else ("--out", shlex.quote(str(out))))]
    return f"`{' '.join([*words, *(word for text in overrides for word in ('--set', shlex.quote(text)))])}`"


def data_settings(config: Config) -> dict[str, Any]:
    """What the section `data` says beside where the logs are, by key: all that is not as by default.

    >>> config = Config.model_validate({"data": {"logs": ["a.csv"], "columns": {"user": "uid"}, "max_bad_rows": 3}})
    >>> data_settings(config)
    {'data.columns.user': 'uid', 'data.max_bad_rows': 3}
    """
    said = config.data.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    found: dict[str, Any] = {}
    for name, value in said.items():
        if name in ("columns", "split", "refuse", "exposures"):
            found |= {f"data.{name}.{inner}": content for inner, content in value.items()}
        elif name not in ("logs", "marketplace"):
            found[f"data.{name}"] = value
    return {key: value for key, value in found.items() if key not in PLACES}


def remake(run: Called, place: Path | str) -> str:
    """The command that makes a stage, or the stage of a file, with what was set for it."""
    stage = stage_at(run, place) if isinstance(place, Path) else place
    if stage.startswith("evaluate/") and "rerank" in stage:
        return "`adagrpo compare`, which alone re-ranks arms,"
    if stage.startswith("catalogs/"):  # what was asked for is not kept; the latest version is stale itself
        return (
            f"`adagrpo catalog update --run {shlex.quote(str(run.called))} --from 0` with --items or --delist,"
            " or read the catalogue of training with --catalog 0"
        )
    verb = verb_for(stage, without_order=run.config.without_order)
    given = [text for text in run.overrides if verb in READS and reads_key(verb, text.partition("=")[0])]
    kind, _, name = stage.partition("/")
    if kind == "train" and name and name not in [arm.name for arm in run.config.train.arms]:
        given.append(f"train.arms=[{name}]")
    if name.startswith("fold-") and not any(text.startswith("ranker.folds=") for text in given):
        least = int(name.removeprefix("fold-")) + 1
        given += [f"ranker.folds={max(2, least)}"] if run.config.ranker.folds < least else []
    if name == "lambdarank" and run.described is not None and not given and not fits_trees(run.described.reward):
        given.append("reward.kind=lambdarank")
    return command(run, verb, given)


def fits_trees(options: object) -> bool:
    """Whether a reward, or one that it is made of, is what `ranker/lambdarank` holds."""
    kind, parts = getattr(options, "kind", None), getattr(options, "parts", ())
    return kind == "lambdarank" or any(map(fits_trees, parts))
