"""How pages read: words a sentence, long sentences, numbers a sentence, one sentence a line; the README's length.

What counts is prose: paragraphs and list items, without headings, tables, code blocks, comments and pictures. A link
counts as its text and code in a line as one word. A sentence ends with `.`, `!` or `?` before a space, or with its
paragraph or list item. A number is a token of digits that is not part of a name (`HR@10`, `distill-2`) and not code.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
READ_FIRST = [ROOT / "README.md", *sorted(ROOT.glob("docs/[teh]*/**/*.md"))]  # tutorial, explanation, how-to
STUDIES = sorted(ROOT.glob("research/*/README.md"))
STUDY_WORDS = 17.0  # tables of figures stand beside; how many are in a sentence is not held
WORDS, LONG, LONG_SHARE, NUMBERS, README_WORDS = 16.0, 35, 0.04, 0.4, 900

LEFT_OUT = re.compile(r"^```.*?^```|<!--.*?-->|^\|.*?$|^#.*?$|!\[.*?\]\(.*?\)", re.MULTILINE | re.DOTALL)
ITEM = re.compile(r"^\s*(?:[-*]|\d+\.)\s+")
END = re.compile(r"(?<=[.!?])[*_)\"]*\s+")
NUMBER = re.compile(r"(?<![\w@.-])[−+-]?\.?\d[\d,.]*(?!\w)")


def blocks(page: str) -> list[list[str]]:
    """The lines of each paragraph and list item."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", LEFT_OUT.sub("", page))
    text = re.sub(r"`[^`]+`", "CODE", text)
    result: list[list[str]] = []
    continued = False
    for line in text.split("\n"):
        if not line.strip():
            continued = False
        elif ITEM.match(line) or not continued:
            result.append([ITEM.sub("", line).strip()])
            continued = True
        else:
            result[-1].append(line.strip())
    return result


def sentences(page: str) -> list[str]:
    return [sentence for block in blocks(page) for sentence in END.split(" ".join(block)) if re.search(r"\w", sentence)]


def words(text: str) -> int:
    return sum(bool(re.search(r"\w", word)) for word in text.split())


def measure(page: str) -> tuple[float, float, float]:
    """Words a sentence, the share of long sentences, numbers a sentence."""
    found = sentences(page)
    lengths = [words(sentence) for sentence in found]
    numbers = sum(len(NUMBER.findall(sentence)) for sentence in found)
    return sum(lengths) / len(found), sum(length > LONG for length in lengths) / len(found), numbers / len(found)


@pytest.mark.parametrize("page", READ_FIRST, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_pages_read_easily(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    long = [sentence for sentence in sentences(text) if words(sentence) > LONG]
    mean, share, numbers = measure(text)
    assert share <= LONG_SHARE, long
    assert mean <= WORDS
    assert numbers <= NUMBERS


@pytest.mark.parametrize("page", STUDIES, ids=lambda page: page.parent.name)
def test_studies_read_easily(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    mean, share, _ = measure(text)
    assert mean <= STUDY_WORDS
    assert share <= LONG_SHARE, [sentence for sentence in sentences(text) if words(sentence) > LONG]


@pytest.mark.parametrize("page", READ_FIRST, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_line_holds_one_sentence(page: Path) -> None:
    lines = [line for block in blocks(page.read_text(encoding="utf-8")) for line in block]
    assert [line for line in lines if re.search(r"\w[.!?][)\"*]* +[A-Z`]", line)] == []


def test_the_readme_is_short() -> None:
    found = blocks((ROOT / "README.md").read_text(encoding="utf-8"))
    assert sum(words(line) for block in found for line in block) < README_WORDS


def test_what_is_measured() -> None:
    page = (
        "# No. 1 heading\n\nIt takes 5 minutes, HR@10 is .38. See [the page](x.md#a.b), `a b c`.\nA third one here\n\n"
        "- one item of 2,000\n- another.\n\n| 1 | 2 |\n\n```sh\nls. la\n```\n<!-- run -->\n![a long text](x.svg)\n"
    )
    assert sentences(page) == [
        "It takes 5 minutes, HR@10 is .38.",
        "See the page, CODE.",
        "A third one here",
        "one item of 2,000",
        "another.",
    ]
    assert measure(page) == (pytest.approx((7 + 4 + 4 + 4 + 1) / 5), 0.0, 3 / 5)


def test_pages_are_found() -> None:
    names = {page.relative_to(ROOT).as_posix() for page in READ_FIRST}
    assert {"README.md", "docs/tutorial/first-hour.md", "docs/how-to/own-logs.md", "docs/explanation/gate.md"} <= names
