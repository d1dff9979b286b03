"""Links of pages to files of the repository that are no pages: studies, recipes, source, the changelog.

On the hosting site they are relative and work as they stand. In the built site they lead to `SOURCE_URL`, an
environment variable such as `https://host/owner/adagrpo/blob/main`, or without it to the checkout in which the site was
built.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.transforms import SphinxTransform
from sphinx.util import logging

__all__ = ["setup"]

logger = logging.getLogger(__name__)

FENCED = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((\.\./[^)\s]+)\)")


class RepositoryLinks(SphinxTransform):
    """Turns a download of a file outside the documentation into a link; one that is missing is a warning."""

    default_priority = 5

    def apply(self, **_: Any) -> None:
        """See the class."""
        docs = Path(self.env.srcdir)
        page = Path(self.env.doc2path(self.env.docname))
        for node in list(self.document.findall(addnodes.download_reference)):
            target, _, anchor = node["reftarget"].partition("#")
            goal = _resolved(page, target)
            if not goal.exists():
                logger.warning("no such file in the repository: %s", target, location=node)
            inside = goal.relative_to(docs.parent).as_posix() + (f"#{anchor}" if anchor else "")
            base = os.environ.get("SOURCE_URL")
            steps = len(page.relative_to(docs).parts) + 2  # from docs/_build/html/<page> to the repository
            link = nodes.reference("", "", refuri=f"{base}/{inside}" if base else "../" * steps + inside)
            link += node.children
            node.replace_self(link)


def _resolved(page: Path, target: str) -> Path:
    return Path(os.path.normpath(page.parent / target))


def _leave(app: Any, name: str, source: list[str]) -> None:
    """Mark links that leave the documentation, since a Markdown file out there is taken for a missing page.

    Pictures are copied into the site as they stand.
    """
    docs, page = Path(app.srcdir), Path(app.env.doc2path(name))

    def marked(link: re.Match[str]) -> str:
        inside = _resolved(page, link.group(1).partition("#")[0]).is_relative_to(docs)
        return link.group(0) if inside or link.group(1).endswith(".svg") else f"](path:{link.group(1)})"

    parts = FENCED.split(source[0])
    source[0] = "".join(part if part.startswith("```") else LINK.sub(marked, part) for part in parts)


def setup(app: Any) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("source-read", _leave)
    app.add_transform(RepositoryLinks)
    return {"parallel_read_safe": True}
