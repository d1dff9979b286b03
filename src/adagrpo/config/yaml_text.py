"""YAML from users, with bounds on size, depth and alias expansion.

Aliases can expand a kilobyte to billions of values, so events are counted before anything is built. Duplicate keys are
rejected, and `1e-6` is a number, unlike in PyYAML.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

Settings = Mapping[str, Any] | Sequence[str]

LARGEST = 2**20  # bytes; the longest recipe has some thousands
DEEPEST = 50
MERGE = "tag:yaml.org,2002:merge"
A_VALUE = 20  # bytes that a value counts in addition to its text: at most 52,000 values a file
FLOAT = re.compile(r"^[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+$")
HALF = re.compile(r"\\u[dD][89a-fA-F]")  # of a character, as in paths that are not UTF-8; libyaml refuses it
UNSAFE = re.compile("[\x7f-\xa0\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")  # in YAML no part of a line


class _Loader(yaml.SafeLoader):
    """SafeLoader that parses `1e-6` as a number."""


class _Quick(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """The same by libyaml where available: ten times faster, but more lenient."""


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes the text `1e-6`."""


for _kind in (_Loader, _Quick, _Dumper):
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+0123456789"))


def read_yaml(path: Path) -> Any:
    """Read a YAML file; YAMLError if it is none, exceeds a bound or repeats a key, OSError, UnicodeDecodeError."""
    return parse_yaml(read_text(path))


def read_text(path: Path) -> str:
    """Read the text of a YAML file; errors as in `read_yaml`."""
    with path.open("rb") as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise yaml.YAMLError(f"larger than {LARGEST // 2**20} MB")
    return content.decode("utf-8")


def parse_yaml(text: str, *, ours: bool = False) -> Any:
    """Parse a YAML text, of `ours`, written by `dump_yaml`, by a faster parser; errors as in `read_yaml`."""
    kind = _Quick if ours and not HALF.search(text) else _Loader
    _bound(text, kind)
    loader = kind(text)
    try:
        node = loader.get_single_node()
        _check_keys(node, set())
        return None if node is None else loader.construct_document(node)
    except ValueError as error:  # an invalid date, a number of thousands of digits
        raise yaml.YAMLError(str(error)) from error
    finally:
        loader.dispose()


def dump_yaml(value: Any, *, allow_unicode: bool = False) -> str:
    """Format a value as YAML for `parse_yaml`, keys in order."""
    text: str = yaml.dump_all([value], Dumper=_Dumper, sort_keys=False, allow_unicode=allow_unicode)
    return text


def json_text(value: Any) -> str:
    """Format a value as one line of JSON that YAML reads identically; unknown types become text.

    >>> json_text({"path": "😀.csv"}), json_text("a\\x85b")
    ('{"path": "😀.csv"}', '"a\\\\u0085b"')
    """
    return UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(value, ensure_ascii=False, default=str))


def column_name(text: str) -> str | None:
    """Parse the value of `--set data.columns.ROLE=`: literal text unless quoted; null or empty is None.

    >>> column_name("user: id"), column_name("0"), column_name('"null"'), column_name("null"), column_name("")
    ('user: id', '0', 'null', None, None)
    """
    if text.strip() in ("", "null"):
        return None
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        try:
            quoted = parse_yaml(text)
        except yaml.YAMLError:
            return text
        return quoted if isinstance(quoted, str) else text
    return text


def _check_keys(node: yaml.Node | None, checked: set[int]) -> None:
    if not isinstance(node, yaml.CollectionNode) or id(node) in checked:
        return
    checked.add(id(node))
    marks: dict[tuple[str, str], yaml.Mark] = {}  # first occurrence of each key
    for entry in node.value:
        key, value = entry if isinstance(node, yaml.MappingNode) else (None, entry)
        if isinstance(key, yaml.ScalarNode) and key.tag != MERGE:  # of two of these, both count
            first = marks.setdefault((key.tag, key.value), key.start_mark)
            if first is not key.start_mark:
                found = f"line {key.start_mark.line + 1}: the key '{' '.join(key.value[:40].split())}'"
                raise yaml.YAMLError(f"{found} is given twice, first in line {first.line + 1}; give it once")
        _check_keys(value, checked)


def _bound(text: str, kind: type[yaml.SafeLoader]) -> None:
    sizes: dict[str, int] = {}  # of each anchor, with all below it
    open_: list[tuple[str | None, int]] = []  # anchor of each collection that is not closed, and the size before it
    size = 0
    for event in yaml.parse(text, Loader=kind):
        if isinstance(event, yaml.CollectionStartEvent):
            open_.append((event.anchor, size))
            size += A_VALUE
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_.pop()
            if anchor is not None:
                sizes[anchor] = size - before
        elif isinstance(event, yaml.AliasEvent):
            name = str(event.anchor)
            if name not in sizes:
                raise yaml.YAMLError(f"the alias *{name[:40]} stands for what it is a part of, or for nothing")
            size += sizes[name]
        elif isinstance(event, yaml.ScalarEvent):
            size += A_VALUE + len(event.value)
            if event.anchor is not None:
                sizes[event.anchor] = A_VALUE + len(event.value)
        if len(open_) > DEEPEST:
            raise yaml.YAMLError(f"more than {DEEPEST} levels deep")
        if size > LARGEST:
            raise yaml.YAMLError(f"stands for more than {LARGEST // 2**20} MB")


def as_overrides(settings: Settings) -> list[str]:
    """Convert settings to `--set` arguments.

    >>> as_overrides({"objective.lambda": 0.5, "reward": {"kind": "noise"}}), as_overrides(["seed=3"])
    (['objective.lambda=0.5', 'reward={"kind": "noise"}'], ['seed=3'])
    """
    if isinstance(settings, Mapping):
        return [f"{key}={json_text(value)}" for key, value in settings.items()]
    return list(settings)
