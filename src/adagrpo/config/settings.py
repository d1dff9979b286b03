"""Settings of a configuration that a stage reads, and that decide its result, by the keys that it declares.

A key that has its default is left out. So a new option with a default makes no stage
again, and neither does a default that is written down. What is left out is the same for every stage: defaults, and the
keys that a section declares as `not_of_the_result`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from adagrpo.config.section import Section

NO_DEFAULT = object()


class Change(NamedTuple):
    """A key of the configuration with two values."""

    key: str
    before: Any
    now: Any


def read_settings(config: Section, reads: Collection[str], but: Collection[str] = ()) -> dict[str, Any]:
    """The settings below some keys of a configuration, JSON-able.

    Args:
        reads: dotted keys, of values or of whole sections, by the names of the fields.
        but: dotted keys below those that are not read.

    Returns:
        What differs from its default, by the keys of `reads`. A section is held against the default of its place: two
        sections of the same class may have different ones.

    Raises:
        KeyError: a key names nothing.
        ValueError: a key is one that decides nothing.

    Example:
        >>> from adagrpo.config import Config
        >>> config = Config.model_validate({"data": {"logs": ["a.csv"]}, "seed": 3, "evaluation": {"beam_width": 20}})
        >>> read_settings(config, ["seed", "max_history", "evaluation"])
        {'seed': 3, 'evaluation': {'beam_width': 20}}
    """
    kept: dict[str, Any] = {}
    for key in reads:
        *above, name = key.split(".")
        section: Any = config
        for part in above:
            section = getattr(section, part) if part in type(section).model_fields else _unknown(key)
        if name not in type(section).model_fields:
            _unknown(key)
        if name in section.not_of_the_result:
            raise ValueError(f"'{key}' decides no result, so no stage reads it")
        value, default = _of_field(section, name, key, but)
        if value != default:
            kept[key] = value
    return kept


def changed_settings(config: Section, before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """Compare two results of `read_settings`, key by key, with defaults where one of them has nothing.

    Args:
        config: to which `now` belongs.
        before: of an earlier configuration of the same keys.
        now: of this one.

    Example:
        >>> from adagrpo.config import Config
        >>> config = Config.model_validate({"data": {"logs": ["a.csv"]}, "tokenizer": {"codes": 16}})
        >>> changed_settings(config, {"seed": 3}, read_settings(config, ["tokenizer", "seed"]))
        [Change(key='seed', before=3, now=0), Change(key='tokenizer.codes', before=256, now=16)]
    """
    changes = []
    for read in dict.fromkeys([*before, *now]):
        sides = [_leaves(side[read], read) if read in side else None for side in (before, now)]
        found = []
        for key in dict.fromkeys(key for side in sides for key in side or ()):
            old, new = (
                _default(config, key, of_place=True) if side is None else side.get(key, NO_DEFAULT) for side in sides
            )
            old, new = (_default(config, key) if value is NO_DEFAULT else value for value in (old, new))
            found += [Change(key.replace("lambda_", "lambda"), old, new)] if old != new else []
        if not found and before.get(read, NO_DEFAULT) != now.get(read, NO_DEFAULT):
            found = [Change(read, before.get(read), now.get(read))]
        changes += found
    return changes


def _leaves(value: Any, key: str) -> dict[str, Any]:
    """The values below a key, by their whole keys."""
    if not isinstance(value, Mapping):
        return {key: value}
    return {name: leaf for below, part in value.items() for name, leaf in _leaves(part, f"{key}.{below}").items()}


def _default(config: Section, key: str, *, of_place: bool = False) -> Any:
    """Return the default of a key: in its section, or where the section is not given either."""
    *above, name = key.split(".")
    section: Any = type(config).model_construct() if of_place else config
    for part in above:
        section = getattr(section, part, None)
    if of_place:
        return _reduced(getattr(section, name, None), key, ())
    field = getattr(type(section), "model_fields", {}).get(name)
    if field is None or field.is_required():
        return None
    return _reduced(field.get_default(call_default_factory=True), key, ())


def _of_field(section: Section, name: str, key: str, but: Collection[str]) -> tuple[Any, Any]:
    """A value and its default, both reduced."""
    field = type(section).model_fields[name]
    default = NO_DEFAULT
    if not field.is_required() and name not in section.tags:
        default = _reduced(field.get_default(call_default_factory=True), key, but)
    return _reduced(getattr(section, name), key, but), default


def _reduced(value: Any, key: str, but: Collection[str]) -> Any:
    """A value without what is as by default below it, without `but`, and without what decides nothing."""
    if isinstance(value, Section):
        kept = {}
        for name in type(value).model_fields:
            below = f"{key}.{name}"
            if name in value.not_of_the_result or below in but:
                continue
            part, default = _of_field(value, name, below, but)
            if part != default:
                kept[name] = part
        return kept
    if isinstance(value, Mapping):
        return {name: _reduced(part, key, but) for name, part in value.items()}
    if isinstance(value, tuple | list):
        return [_reduced(part, key, but) for part in value]
    return value


def _unknown(key: str) -> Any:
    raise KeyError(f"the configuration has no key '{key}'")
