"""What a stage reads of a configuration: the settings that decide its result, by the keys that it declares.

A key that is as it would be if nobody had said anything is left out. So a new option with a default makes no stage
again, and neither does a default that is written down. What is left out is the same for every stage: defaults, and the
keys that a section declares as `not_of_the_result`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from adagrpo.config.section import Section

__all__ = ["read_settings"]

NO_DEFAULT = object()


def read_settings(config: Section, reads: Collection[str], but: Collection[str] = ()) -> dict[str, Any]:
    """The settings below some keys of a configuration, JSON-able.

    Args:
        config: the configuration.
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
