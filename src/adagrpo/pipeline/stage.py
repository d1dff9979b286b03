"""What a stage of a run is: a row of the table of stages, what one is made from, and its state."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from adagrpo.config import Change, Config
from adagrpo.storage.hashes import hash_json
from adagrpo.storage.writing import MANIFEST

RUN = ("prepare", "tokenize", "sft", "ranker", "train", "evaluate")  # commands of `adagrpo run`
STRATA = "diagnose --strata"  # a command of its own, since it reads more settings
MEASURES_REWARD = ("diagnose", STRATA, "train", "evaluate", "decide")
# files of a fit: log, best and final weights, and the state to resume from
CHECKPOINTS = (
    *("steps.jsonl", "validation.jsonl", "model.safetensors", "checkpoint.json"),
    *("lost.json", "pressure.json", "thresholds.json"),
    *("best.safetensors", "average.safetensors", "optimizer.safetensors", "progress.json"),
    *("semantic_ids.json", "config.json"),
)

Read = str | Path  # `stage:file`, such as `sft:best/model.safetensors`, or a file outside the run
State = Literal["done", "stale", "missing", "interrupted", "damaged", "unused"]


@dataclass(frozen=True)
class Declaration:
    """What a stage reads and how it is built; declaring opens no files."""

    build: Callable[[Path], None]  # writes the files into a folder, which may hold an interrupted attempt
    reads: Sequence[Read]  # files of other stages, which must be unchanged, and files outside the run
    files: Sequence[str]  # names of the files written, at any depth
    settings: Sequence[str] = ()  # recipe keys and sections that affect the result
    but: Sequence[str] = ()  # keys below them that do not
    also: Any = None  # JSON-able further inputs, such as the arm
    version: int = 1  # increased when the same inputs give another result
    together: bool = False  # fits a model in all processes; only the main one writes
    changed: Callable[[Path], str] = lambda there: ""  # what changed otherwise since a folder was built, in words

    def writes(self, name: str) -> bool:
        """Return whether a path may be one of those written."""
        return Path(name).name in (*self.files, MANIFEST)


Declare = Callable[[Any], Declaration]  # of a `RunDirectory`
Members = Callable[[Config, Sequence[str]], Mapping[str, Declare]]  # of a recipe and arms, by name


class MadeFrom(NamedTuple):
    """What a stage is made from, as in its manifest."""

    version: int
    settings: dict[str, Any]  # non-default settings, see `read_settings`
    also: Any
    reads: dict[str, str]  # sha256 of `stage:file`
    files: dict[str, str]  # sha256 of files outside the run, by label
    keys: Sequence[str] = ()  # that `settings` are below
    but: Sequence[str] = ()  # keys below them that are not read

    @classmethod
    def of(cls, content: Mapping[str, Any], stages: StageTable) -> MadeFrom | None:
        """Read a manifest's content; None if unknown."""
        made_from = content.get("made_from") or {}
        if made_from.keys() == {*cls._fields}:
            return cls(**made_from)
        if "inputs" not in made_from:
            return None
        reads, files = dict[str, str](), dict[str, str]()
        for label, digest in made_from["inputs"].items():  # earlier versions had one mapping of paths
            read = stages.named(label)
            (files if read is None else reads)[read or label] = digest
        keys, but = (made_from.get(name, ()) for name in ("reads", "but"))
        return cls(made_from["schema"], made_from["settings"], made_from["also"], reads, files, keys, but)

    @property
    def hashes(self) -> dict[str, str]:
        """The sha256 of everything that it reads, by label."""
        return {**self.reads, **self.files}

    @property
    def sources(self) -> list[str]:
        """The stages that it reads."""
        return sources_of(self.reads)

    def equals(self, other: MadeFrom | None) -> bool:
        """Return whether the result would be the same."""
        return other is not None and self[:5] == other[:5]

    def fingerprint(self, stage: str) -> str:
        """Return the hash by which other files refer to this result."""
        return hash_json({"stage": stage, **dict(zip(self._fields[:5], self[:5], strict=True))})


def sources_of(reads: Iterable[Read]) -> list[str]:
    """Return the stages whose files are read.

    >>> sources_of(["sft:best/model.safetensors", "prepare:train.parquet", "sft:steps.jsonl", Path("log.csv")])
    ['sft', 'prepare']
    """
    return list(dict.fromkeys(read.partition(":")[0] for read in reads if isinstance(read, str)))


@dataclass(frozen=True)
class Stage:
    """A row of the table: a stage, or stages that differ in arm, fold or checkpoint."""

    name: str  # its folder; `*` matches any name, `a|b` either
    command: str  # `adagrpo <command>` makes it
    settings: tuple[str, ...] = ()  # recipe keys that its `Declaration` may read, and `--set` accepts
    declare: Declare | None = None  # None if that depends on more than the recipe
    when: Callable[[Config], bool] = lambda config: True  # whether a recipe needs it
    members: Members | None = None  # instead of `declare` and `when`: stages of a row with several, by name
    without_order: Declare | None = None  # instead of `declare` for logs without order; None: they do not need it
    unused: str = ""  # why a recipe does not need it; `{0}` is the match of `*`
    selects: bool = False  # chooses a checkpoint or weight on validation cases
    evaluation_only: tuple[str, ...] = ()  # prefixes of files that no fit reads, which may be stored elsewhere
    on_request: bool = False  # not made by `adagrpo run`
    also_by: tuple[str, ...] = ()  # commands that make it too, if they come first and read it
    page_only: bool = False  # shown in report.html, absent from metrics.json
    refit: bool = False  # made of training interactions, so that a refit makes it again

    def asked_for(self, config: Config, arms: Sequence[str]) -> Mapping[str, Declare]:
        """Return the declarations that a recipe needs, by name."""
        if self.members is not None and not config.without_order:
            return self.members(config, arms)
        declare = self.without_order if config.without_order else self.declare
        return {self.name: declare} if declare is not None and self.when(config) else {}

    def made_by(self, command: str) -> bool:
        """Return whether a command makes this row's stages."""
        return command == self.command or command in self.also_by

    def matches(self, name: str) -> bool:
        """Return whether a stage name belongs to this row."""
        return _pattern(self.name).fullmatch(name) is not None

    def why_unused(self, name: str, config: Config) -> str:
        """Return why a recipe does not need a stage, or empty."""
        arms = [arm.name for arm in config.train.arms]
        if name in self.asked_for(config, arms):
            return ""
        star = next((part for mine, part in zip(self.name.split("/"), name.split("/"), strict=True) if "*" in mine), "")
        arm = star.removesuffix("+rerank")
        return "" if self.on_request and arm in arms else self.unused.format(arm, config=config)


@cache
def _pattern(name: str) -> re.Pattern[str]:  # `*` is any part of a name, `|` separates options within a part
    parts = ("|".join(re.escape(option) for option in part.split("|")) for part in name.split("/"))
    return re.compile("/".join(f"(?:{part})" for part in parts).replace(r"\*", "[^/]*"))


class StageTable(tuple[Stage, ...]):
    """The rows in execution order."""

    def row(self, name: str) -> Stage | None:
        """Return the row of a stage; None for an unknown name."""
        return next((row for row in self if row.matches(name)), None)

    def named(self, path: str) -> str | None:
        """Return a path's `stage:file`; None if of no stage."""
        parts = path.split("/")
        ends = (end for end in range(len(parts) - 1, 0, -1) if self.row("/".join(parts[:end])) is not None)
        return next((f"{'/'.join(parts[:end])}:{'/'.join(parts[end:])}" for end in ends), None)

    def declared(
        self, config: Config, commands: Collection[str] = RUN, arms: Sequence[str] | None = None
    ) -> dict[str, Declare]:
        """Return a recipe's declarations by name, in execution order; `arms` are those to evaluate, None: all."""
        names = [arm.name for arm in config.train.arms] if arms is None else list(arms)
        rows = [row for row in self if any(map(row.made_by, commands))]
        return {name: declare for row in rows for name, declare in row.asked_for(config, names).items()}

    @property
    def commands(self) -> tuple[str, ...]:
        """The commands that read a recipe."""
        return tuple(dict.fromkeys(row.command for row in self if row.settings))

    def reads_key(self, command: str, key: str) -> bool:
        """Return whether a command reads a key or anything below it."""
        return any(names_key(key, read) for row in self if row.made_by(command) for read in row.settings)


def names_key(key: str, other: str) -> bool:
    """Return whether one of two dotted keys equals or contains the other.

    >>> names_key("train", "train.arms"), names_key("train.arms", "train"), names_key("train.fit", "train.arms")
    (True, True, False)
    """
    one, two = (name.replace("lambda_", "lambda").split(".") for name in (key, other))
    return one[: len(two)] == two[: len(one)]


@dataclass(frozen=True)
class Part:
    """State of a stage."""

    name: str
    state: State
    why: str = ""  # why it is not done
    changes: tuple[Change, ...] = ()  # settings that differ
    sources: tuple[str, ...] = ()  # stages that it reads
    there: bool = True  # finished at some time
    outdated: bool = False  # done, but a file outside the run has changed

    @property
    def usable(self) -> bool:
        """Whether the stage matches the run's current settings."""
        return self.state == "done"
