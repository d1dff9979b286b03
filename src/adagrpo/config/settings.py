"""Settings that determine a stage's result. Defaults are omitted, so that new options invalidate no stage."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cache
from typing import Any, NamedTuple

from adagrpo.config.section import Section

NO_DEFAULT = object()


class Change(NamedTuple):
    """A key with two values."""

    key: str
    before: Any
    now: Any


def read_settings(config: Section, reads: Collection[str], but: Collection[str] = ()) -> dict[str, Any]:
    """Return the non-default settings below some dotted keys, by field name, without those below `but`, JSON-able.

    Raises:
        KeyError: a key is unknown.
        ValueError: a key is in `not_of_the_result`.

    Example:
        >>> from adagrpo.config import Config
        >>> config = Config.model_validate({"data": {"logs": ["a.csv"]}, "seed": 3, "evaluation": {"beam_width": 20}})
        >>> read_settings(config, ["seed", "max_history", "evaluation"])
        {'seed': 3, 'evaluation': {'beam_width': 20}}
    """
    kept: dict[str, Any] = {}
    but = tuple(but)
    for key in reads:
        *above, name = key.split(".")
        section: Any = config
        for part in [*above, name]:
            if part not in type(section).model_fields:
                raise KeyError(f"the configuration has no key '{key}'")
            section, parent = getattr(section, part), section
        section = parent
        if name in section.not_of_the_result:
            raise ValueError(f"'{key}' decides no result, so no stage reads it")
        value, default = _of_field(section, name, key, but)
        if value != default:
            kept[key] = value
    return kept


def changed_settings(config: Section, before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """Compare two results of `read_settings` by key, the second of `config`; omitted keys have their defaults.

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
    if not isinstance(value, Mapping):
        return {key: value}
    return {name: leaf for below, part in value.items() for name, leaf in _leaves(part, f"{key}.{below}").items()}


def _default(config: Section, key: str, *, of_place: bool = False) -> Any:
    """Return the default of a key; with `of_place` that of an absent section."""
    *above, name = key.split(".")
    section: Any = type(config).model_construct() if of_place else config
    for part in above:
        section = getattr(section, part, None)
    if of_place:
        return _reduced(getattr(section, name, None), key, ())
    if not isinstance(section, Section) or name not in type(section).model_fields:
        return None
    default = _reduced_default(type(section), name, key, ())
    return None if default is NO_DEFAULT else default


def _of_field(section: Section, name: str, key: str, but: tuple[str, ...]) -> tuple[Any, Any]:
    default = NO_DEFAULT if name in section.tags else _reduced_default(type(section), name, key, but)
    return _reduced(getattr(section, name), key, but), default


@cache
def _reduced_default(kind: type[Section], name: str, key: str, but: tuple[str, ...]) -> Any:
    field = kind.model_fields[name]
    return NO_DEFAULT if field.is_required() else _reduced(field.get_default(call_default_factory=True), key, but)


def _reduced(value: Any, key: str, but: tuple[str, ...]) -> Any:
    """Drop defaults, `but` and keys in `not_of_the_result`."""
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
