"""The README's picture and pages are there; its prose, commands and tables are held by other tests.

Length and sentences: `test_prose.py`. Commands: `test_commands.py`. Tables and picture: `research/test_documents.py`.
"""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_it_begins_with_what_it_is_for_and_a_picture_with_words():
    opening = README.split("## ")[0]
    words, path = re.search(r"!\[(.*?)\]\((.*?)\)", opening).groups()  # type: ignore[union-attr]
    assert (ROOT / path).is_file() and len(words.split()) > 20


def test_use_comes_before_results():
    headings = re.findall(r"^## (.*)$", README, re.MULTILINE)
    order = ["Install", "Your own logs", "What we found", "Where it does not help", "Limits", "Documentation"]
    assert headings == order
