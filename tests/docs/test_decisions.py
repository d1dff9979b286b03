"""Decisions name the alternative, the reason and what follows."""

from __future__ import annotations

from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "docs" / "decisions"
PAGES = sorted(page for page in FOLDER.glob("*.md") if page.name != "index.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_decision_names_its_alternative_reason_and_consequence(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    parts = [text.index(f"\n\n**{part}.** ") for part in ("Instead of", "Why", "What follows")]
    assert parts == sorted(parts)
