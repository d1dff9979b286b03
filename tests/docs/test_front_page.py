"""The first screen says the same everywhere, and what the demo measured."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import adagrpo

ROOT = Path(__file__).parents[2]


def plain(text: str) -> str:
    return " ".join(text.replace("`", "").replace("*", "").split())


def test_one_sentence_joins_method_and_lists_wherever_a_reader_enters() -> None:
    said = plain(adagrpo.__doc__ or "")
    assert said.startswith("AdaGRPO adds GRPO")
    assert tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["description"] == said
    for page in ("README.md", "docs/index.md"):
        assert said in plain((ROOT / page).read_text(encoding="utf-8")), page


def test_the_first_screen_has_the_figures_of_the_demo() -> None:
    good, wrong = json.loads((ROOT / "research/demo/demo.training.json").read_text(encoding="utf-8")).values()
    own, shuffled = wrong["admission"]["adagrpo"]
    grpo = next(row for row in wrong["rows"] if row["arm"] == "grpo")["against"]["hr@10"]["difference"]
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"{100 * own:.0f} %" == f"{100 * shuffled:.0f} %"
    assert (
        f"as many samples as by a shuffled one ({100 * own:.0f} %), and `grpo` loses {-100 * grpo:.0f} points" in page
    )
    assert good["admission"]["adagrpo"][0] > 3 * good["admission"]["adagrpo"][1]  # and by the good one it does not
