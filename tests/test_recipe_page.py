"""docs/reference/recipe.md has every key of a recipe, and no other, with its default."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from adagrpo.config import ArmConfig, Config, ObjectiveConfig
from adagrpo.config.models import FitConfig
from adagrpo.config.reward import RewardOptions

DOCS = Path(__file__).parents[1] / "docs"
sys.path.insert(0, str(DOCS / "_extensions"))

from generated import written  # noqa: E402 (after the path)

PAGE = DOCS / "reference" / "recipe.md"
REWARDS = PAGE.parents[1] / "how-to" / "own-reward.md"
# as a mapping of their own on the page; `random` and `impressions` repeat keys of `data`, rewards have another page
OF_LOGS = ("columns", "keep_events", "click_rating")
ELSEWHERE = {f"data.{shown}.{key}" for shown in ("random", "impressions") for key in OF_LOGS} | {"reward"}


def sections(annotation: Any) -> list[type[BaseModel]]:
    result = [annotation, *get_args(annotation)]
    return [one for one in result if isinstance(one, type) and issubclass(one, BaseModel)]


def keys(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, Any]]:
    """Every key that is no section, and its default as YAML has it."""
    for name, field in model.model_fields.items():
        key = path + (field.alias or name)
        inner = sections(field.annotation)
        if key in ELSEWHERE or inner == [FitConfig]:
            continue
        if inner and model is not ArmConfig:
            yield from keys(inner[0], f"{key}.")
        else:
            default = field.get_default(call_default_factory=True)
            if isinstance(default, ObjectiveConfig):
                default = {}
            yield key, list(default) if isinstance(default, tuple) else default


def documented() -> dict[str, str]:
    rows = re.findall(r"^\| `([a-z_.]+)` \| (.*?) \|", written(PAGE.read_text(encoding="utf-8")), re.MULTILINE)
    assert len({key for key, _ in rows}) == len(rows)
    return dict(rows)


def value(cell: str) -> Any:
    return PydanticUndefined if cell == "*required*" else yaml.safe_load(cell.strip("`"))


def test_every_key_is_there_with_its_default() -> None:
    actual = documented()
    fit = {name: field.get_default() for name, field in FitConfig.model_fields.items()}
    arms = [("train.arms", ["nll", "mixture", "adagrpo"])]
    arms += [(f"train.arms.{key}", default) for key, default in keys(ArmConfig)]
    expected = dict(keys(Config)) | fit | dict(arms)
    expected = {key: default for key, default in expected.items() if not key.startswith("train.arms.options.")}
    assert actual.keys() == expected.keys()
    assert {key: value(cell) for key, cell in actual.items()} == expected


def test_every_key_of_a_reward_is_on_its_page_with_its_default() -> None:
    text = REWARDS.read_text(encoding="utf-8").partition("## Every key")[2].partition("\n## ")[0]
    actual, kind = {}, ""
    for found, key, cell in re.findall(r"^\| (?:`([a-z]+)`)? ?\| `([a-z_]+)` \| (.*?) \|", text, re.MULTILINE):
        kind = found or kind
        actual[kind, key] = value(cell)
    expected = {}
    for options in get_args(get_args(RewardOptions)[0]):
        name = options.model_fields["kind"].default
        for key, field in options.model_fields.items():
            if key != "kind":
                default = field.get_default(call_default_factory=True)
                expected[name, key] = list(default) if isinstance(default, tuple) else default
    assert actual == expected and len({name for name, _ in expected}) >= 8


def test_what_is_said_of_the_three_fits_is_so() -> None:
    config = Config.model_validate({"data": {"logs": ["a.csv"]}})
    changed = [
        {key: getattr(fit, key) for key, field in FitConfig.model_fields.items() if getattr(fit, key) != field.default}
        for fit in (config.sft, config.ranker.fit, config.train.fit)
    ]
    assert changed == [
        {"epochs": 60, "patience": 3},
        {"epochs": 20, "batch_size": 64, "learning_rate": 2e-3, "average": 0.999},
        {"epochs": 2, "learning_rate": 0.0002, "validations": 8},
    ]
    assert [arm.name for arm in config.train.arms] == ["nll", "mixture", "adagrpo"]
