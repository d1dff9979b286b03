"""Builds a page: one HTML file that works offline, without scripts, and is reproducible byte for byte."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined


class Block(NamedTuple):
    """A part of a section; one without content is left out.

    Content is a text ("p", "quiet", "absent", "arm", "h3", "h4", "pre", "link"), sentences of which the first stands
    out ("verdict"), sentences ("list"), pairs ("facts"), a `Table`, figures ("charts"), or blocks ("details").
    """

    kind: Literal[
        "p", "quiet", "absent", "arm", "h3", "h4", "pre", "link", "verdict", "list", "facts", "table", "charts",
        "details",
    ]  # fmt: skip
    content: Any
    note: str = ""  # label of a table, class of a verdict, address of a link, summary of details, verdict on an arm


class Section(NamedTuple):
    """A heading and what is below it; one without any content is left out."""

    anchor: str
    title: str
    blocks: Sequence[Block]
    link: str = ""  # in the navigation


def page(title: str, heading: str, sections: Sequence[Section]) -> str:
    """Return a page as HTML; percentages are not broken, backticks left out."""
    environment = Environment(
        loader=PackageLoader("adagrpo.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["together"] = lambda text: text.replace(" %", "\N{NO-BREAK SPACE}%").replace("`", "")
    shown = [one for one in sections if any(block.content for block in one.blocks)]
    return environment.get_template("page.html.j2").render(title=title, heading=heading, sections=shown)
