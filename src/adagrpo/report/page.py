"""Builds a page, one HTML file that works offline and is reproducible byte for byte; and the files of a run for it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from adagrpo.config.yaml_text import read_yaml
from adagrpo.errors import UserError


class Block(NamedTuple):
    """A part of a section; one without content is left out.

    Content is a text ("p", "quiet", "absent", "arm", "h3", "h4", "pre", "link"), sentences of which the first stands
    out ("verdict"), sentences ("list"), pairs ("facts"), a `Table`, figures ("charts"), or blocks ("details").
    """

    kind: Literal[
        "p", "quiet", "absent", "arm", "h3", "h4", "pre", "link", "verdict", "list", "facts", "table", "charts",
        "details",
    ]  # fmt: skip
    content: Any
    note: str = ""  # label of a table, class of a verdict, address of a link, summary of details, verdict on an arm


class Section(NamedTuple):
    """A heading and what is below it; left out without content."""

    anchor: str
    title: str
    blocks: Sequence[Block]
    link: str = ""  # in the navigation


def page(title: str, heading: str, sections: Sequence[Section]) -> str:
    """Return a page as HTML; percentages are not broken, backticks left out."""
    loader, strict = PackageLoader("adagrpo.report", "."), StrictUndefined
    environment = Environment(loader=loader, autoescape=True, undefined=strict, trim_blocks=True, lstrip_blocks=True)
    environment.filters["together"] = lambda text: text.replace(" %", "\N{NO-BREAK SPACE}%").replace("`", "")
    shown = [one for one in sections if any(block.content for block in one.blocks)]
    return environment.get_template("page.html.j2").render(title=title, heading=heading, sections=shown)


class RunFiles:
    """The files of a run, without verification; `directory` is where the page goes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def find(self, *parts: str) -> Path | None:
        """Return a file of the run, or None."""
        path = self.directory.joinpath(*parts)
        return path if path.is_file() else None

    def trained(self) -> list[str]:
        """Return the folders of trained arms, sorted by name."""
        train = self.directory / "train"
        below = sorted(train.iterdir()) if train.is_dir() else []
        return [folder.name for folder in below if folder.is_dir() and not folder.name.startswith(".")]

    def events(self) -> Sequence[Mapping[str, Any]]:
        """Return rows of stage, event and seconds."""
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
