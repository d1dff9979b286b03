"""Recipes of the project: all load, and say how they are run."""

from __future__ import annotations

from pathlib import Path

import pytest

from adagrpo.config import load_config

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("path", sorted([*ROOT.glob("recipes/*.yaml"), *ROOT.glob("research/*/recipe.yaml")]), ids=str)
def test_a_recipe_loads_and_says_how_to_run_it(path: Path) -> None:
    load_config(path)
    assert path.relative_to(ROOT).as_posix() in path.read_text(encoding="utf-8").splitlines()[0]
