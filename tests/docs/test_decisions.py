"""Decisions have a number each, say whether they hold, and link to what replaced them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "docs" / "decisions"
PAGES = sorted(FOLDER.glob("[0-9]*.md"))


def test_a_number_has_one_decision() -> None:
    numbers = [int(page.name[:3]) for page in PAGES]
    assert numbers and len(set(numbers)) == len(numbers)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name[:3])
def test_a_decision_has_its_number_a_title_a_status_and_a_text(page: Path) -> None:
    title, status, text = page.read_text(encoding="utf-8").split("\n\n", 2)
    assert re.fullmatch(rf"# {int(page.name[:3])}\. \S.*[^.]", title)
    assert re.fullmatch(r"Status: (accepted|superseded by \[decision \d+\]\(\S+\.md\))(; .*)?\.", status)
    assert len(text.split()) > 5
    for number, target in re.findall(r"\[decision (\d+)\]\(([^)]+)\)", status + text):
        assert int(target[:3]) == int(number) and (FOLDER / target).is_file()
