"""Every relative link of a page leads to a file, and to a heading of it where it names one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("research/**/*.md")]
TOCTREE = re.compile(r"^```\{toctree\}\n(.*?)^```", re.MULTILINE | re.DOTALL)
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def links(page: Path) -> list[str]:
    """The targets of a page's links and pictures, less those of the web."""
    result = LINK.findall(FENCED.sub("", page.read_text(encoding="utf-8")))
    return [target for target in result if not re.match(r"[a-z]+:", target)]


def contents(page: Path) -> list[Path]:
    """The pages in the toctrees of a page, as Sphinx finds them."""
    entries = [line for tree in TOCTREE.findall(page.read_text(encoding="utf-8")) for line in tree.splitlines()]
    names = [entry for entry in entries if entry and not entry.startswith(":")]
    return [found for name in names for found in sorted(page.parent.glob(f"{name}.md"))]


def anchors(page: Path) -> set[str]:
    """The headings of a page as GitHub names them: small letters, no punctuation, hyphens for spaces."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for target in links(page):
        path, _, anchor = target.partition("#")
        goal = (page.parent / path).resolve() if path else page
        assert goal.exists(), target
        assert not anchor or anchor in anchors(goal), target


def test_every_page_is_linked_to_from_another() -> None:
    reached = {(page.parent / target.partition("#")[0]).resolve() for page in PAGES for target in links(page)}
    reached |= {found.resolve() for page in PAGES for found in contents(page)}
    assert {page for page in PAGES if page.resolve() not in reached} == set()
