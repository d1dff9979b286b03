"""Base class of configuration sections, and one-line messages of their errors."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator, model_validator

from adagrpo.config.yaml_text import read_yaml
from adagrpo.errors import UserError
from adagrpo.types import Finite, NonNegativeFloat, Positive, PositiveFloat, Share

__all__ = ["Finite", "NonNegativeFloat", "Positive", "PositiveFloat", "Section", "Share"]

M = TypeVar("M", bound=BaseModel)


class Section(BaseModel):
    """An immutable section that rejects unknown keys.

    `not_of_the_result` names keys without influence on results; `tags` names discriminators, never omitted as defaults.
    A partly given section keeps its parent's defaults: `train.fit: {epochs: 4}` has the learning rate of `train.fit`.
    """

    not_of_the_result: ClassVar[frozenset[str]] = frozenset()
    tags: ClassVar[frozenset[str]] = frozenset()
    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _keep_defaults_of_the_parent(cls, content: Any) -> Any:
        if not isinstance(content, Mapping):
            return content
        kept = dict(content)
        for name, field in cls.model_fields.items():
            given = content.get(name)
            if isinstance(field.default, Section) and isinstance(given, Mapping):
                parent = {key: getattr(field.default, key) for key in field.default.model_fields_set}
                kept[name] = parent | dict(given)
        return kept

    @field_validator("*", mode="before")
    @classmethod
    def _is_no_yes_or_no(cls, value: Any, info: ValidationInfo) -> Any:
        given = value.values() if isinstance(value, Mapping) else [value]
        if any(isinstance(one, bool) for one in given):
            kinds = _kinds(cls.model_fields[str(info.field_name)].annotation)
            if kinds & {int, float} and not kinds & {bool, Any}:
                raise ValueError(f"is a number; yes, on and true are none (found {value!r})")
        return value


def _kinds(annotation: Any) -> set[Any]:
    if get_origin(annotation) is Literal:
        return {type(choice) for choice in get_args(annotation)}
    if get_origin(annotation) is Annotated:
        return _kinds(get_args(annotation)[0])
    parts = get_args(annotation)
    return set().union(*map(_kinds, parts)) if parts else {annotation}


SHOWN = 200  # characters of a key or value in a message
RENAMED = {"mask_history": "exclude_history"}  # keys of earlier recipes that no similar name would be found for


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """Format one problem of a validation error, with the key's path and the nearest valid name."""
    errors = error.errors()
    # a misspelt key comes first: where it was a required one, its absence is a consequence
    first = next((entry for entry in errors if entry["type"] == "extra_forbidden"), errors[0])
    path, _ = _locate(model, first["loc"])
    if first["type"] == "extra_forbidden":
        section = _locate(model, first["loc"][:-1])[1]
        names = [field.alias or name for name, field in section.model_fields.items()]
        key = str(first["loc"][-1])[:SHOWN]
        near = [RENAMED[key]] if RENAMED.get(key) in names else difflib.get_close_matches(key, names, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else f"; valid keys here: {', '.join(names) or 'none'}"
        return f"unknown key '{_short(path)}'{hint}"
    message = first["msg"].removeprefix("Value error, ").replace(" using _kind()", " as kind")
    if first["type"] == "union_tag_not_found":
        message = "a mapping with the key `kind`"
    return (
        (f"{_short(path)}: " if path else "")
        + message
        + (f" (found {_short(repr(first['input']))})" if first["type"] not in ("missing", "value_error") else "")
    )


def read_section(path: Path, model: type[M], what: str, *, may_be_empty: bool = False) -> M:
    """Read a YAML file of settings; UserError if missing, not YAML, or with an unknown key or invalid value."""
    try:
        return model.model_validate(read_mapping(path, what, may_be_empty=may_be_empty))
    except ValidationError as error:
        raise UserError(f"{path}: {explain(error, model)}") from error


def read_mapping(
    path: Path, what: str, of: str = "", form: str = "a mapping", *, may_be_empty: bool = False
) -> dict[str, Any]:
    """Read a YAML file; UserError, which `of` ends, if it is missing, not YAML, or no mapping."""
    try:
        content = read_yaml(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such {what}{of}") from error
    except (yaml.YAMLError, UnicodeDecodeError, IsADirectoryError) as error:
        raise UserError(f"{path}: not a YAML file ({' '.join(str(error).split())}){of}") from error
    content = {} if content is None and may_be_empty else content
    if not isinstance(content, dict):
        raise UserError(f"{path}: a {what} is {form}, this is {type(content).__name__}{of}")
    return content


def nearest(name: str, names: Iterable[str], more: str = "") -> str:
    """Suggest the most similar name, or list all."""
    names = list(names)
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean '{near[0]}'?" if near else f"known: {', '.join(names)}{more}"


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _locate(model: type[BaseModel], location: tuple[int | str, ...]) -> tuple[str, Any]:
    """Return an error location's path as written in a recipe, without pydantic's union tags, and its section."""
    written: list[str] = []
    section: Any = model
    for part in location:
        if isinstance(section, list):
            kinds = [getattr(kind, "model_fields", {}).get("kind") for kind in section]
            named = zip(section, kinds, strict=True)
            section = next((one for one, kind in named if kind is not None and kind.default == part), None)
            continue
        written.append(str(part))
        if isinstance(part, int) and get_args(section):
            section = _plain(get_args(section)[0])
        elif get_origin(section) is dict:
            section = _plain(get_args(section)[1])
        else:
            known = getattr(section, "model_fields", {}).get(part)
            section = None if known is None else _plain(known.annotation)
    return ".".join(written), section


def _plain(annotation: Any) -> Any:
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) not in (Union, UnionType):
        return annotation
    options = [_plain(option) for option in get_args(annotation) if option is not type(None)]
    return options[0] if len(options) == 1 else options
