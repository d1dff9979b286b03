"""Files of a run for pages, found by name and, if the run has hashes, verified."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import yaml

from adagrpo.config.yaml_text import read_yaml
from adagrpo.errors import UserError


class RunFiles(Protocol):
    """Protocol for the files of a run."""

    directory: Path  # where the page goes

    def find(self, *parts: str) -> Path | None:
        """Return a file of the run, or None."""
        ...

    def trained(self) -> list[str]:
        """Return the folders of trained arms, sorted by name."""
        ...

    def events(self) -> Sequence[Mapping[str, Any]]:
        """Return rows of stage, event and seconds."""
        ...


class LooseFiles:
    """The files of a folder, without verification."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def find(self, *parts: str) -> Path | None:
        """See `RunFiles`."""
        path = self.directory.joinpath(*parts)
        return path if path.is_file() else None

    def trained(self) -> list[str]:
        """See `RunFiles`."""
        train = self.directory / "train"
        below = sorted(train.iterdir()) if train.is_dir() else []
        return [folder.name for folder in below if folder.is_dir() and not folder.name.startswith(".")]

    def events(self) -> Sequence[Mapping[str, Any]]:
        """See `RunFiles`."""
        return read_rows(self.directory / "events.jsonl")


def read_mapping(path: Path) -> Mapping[str, Any]:
    """Read a mapping from a JSON or YAML file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.suffix == ".json" else read_yaml(path)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: is {type(content).__name__}, a mapping would be right")
    return content


def read_rows(path: Path) -> list[Mapping[str, Any]]:
    """Read a JSON-lines file, if it exists, without a truncated last line."""
    if not path.is_file():
        return []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error})") from error
    rows = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: line {number} is not JSON ({error})") from error
        if not isinstance(row, Mapping):
            raise UserError(f"{path}: line {number} is {type(row).__name__}, an object would be right")
        rows.append(row)
    return rows
