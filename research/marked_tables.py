"""Tables of a study's own page, written between markers from its rows, and nothing else of the page."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from adagrpo.report.tables import Table, to_markdown

__all__ = ["keep_page", "with_marked"]


def with_marked(text: str, label: str, tables: Mapping[str, Table]) -> str:
    """The page with each table between `<!-- LABEL: NAME -->` and `<!-- end of LABEL: NAME -->`.

    Args:
        text: of the page.
        label: of the study's markers.
        tables: by name.

    Raises:
        ValueError: the page has no place for one of them.
    """
    for name, table in tables.items():
        begin, end = f"<!-- {label}: {name} -->", f"<!-- end of {label}: {name} -->"
        if begin not in text or end not in text:
            raise ValueError(f"the page has no {begin}, or no {end}")
        inner = f"{begin}\n\n{to_markdown(table)}\n\n{end}"
        text = re.sub(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _, inner=inner: inner, text, flags=re.DOTALL)
    return text


def keep_page(page: Path, new: str, about: str | None) -> None:
    """Write a page, or with `--check` end with 1 where it is not what the rows say.

    Args:
        page: of the study.
        new: what it should hold.
        about: the module's text, for `--help`.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    if parser.parse_args().check:
        sys.exit(0 if new == page.read_text(encoding="utf-8") else f"{page.name} is not what the rows say")
    page.write_text(new, encoding="utf-8")
