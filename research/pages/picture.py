"""Pieces of the figures of the README: text, marks that need no colour, and a frame that follows the reader's scheme.

The SVG follows the colour scheme of the reader by a media query, and its background does too.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

__all__ = ["mark_at", "picture", "text_at"]

SHAPES = (
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z",
    "M0 -4.6L4.2 3.4H-4.2z",
    "M-3.4 -3.4h6.8v6.8h-6.8z",
    "M0 -5.2L4.6 0L0 5.2L-4.6 0z",
)
STYLE = """
.back{fill:#ffffff}.ink{fill:#1f2328}.quiet{fill:#59636e}.grid{stroke:#d8dee4}.zero{stroke:#59636e}
.a0{fill:#b35900;stroke:#b35900}.a1{fill:#6e40c9;stroke:#6e40c9}.a2{fill:#cf222e;stroke:#cf222e}.a3{fill:#0969da;stroke:#0969da}
@media (prefers-color-scheme:dark){
.back{fill:#0d1117}.ink{fill:#e6edf3}.quiet{fill:#9198a1}.grid{stroke:#30363d}.zero{stroke:#9198a1}
.a0{fill:#e3a04f;stroke:#e3a04f}.a1{fill:#b692f6;stroke:#b692f6}.a2{fill:#ff7b72;stroke:#ff7b72}.a3{fill:#6cb6ff;stroke:#6cb6ff}}
"""


def picture(title: str, parts: Sequence[str], width: int, height: float) -> str:
    """The SVG of some parts."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="560" role="img"'
        f' aria-label="{escape(title)}" font-family="system-ui, sans-serif" font-size="13">'
        f"<title>{escape(title)}</title><style>{STYLE}</style>"
        f'<rect class="back" width="{width}" height="{height}"/>{"".join(parts)}</svg>'
    )


def mark_at(lane: int, x: float, y: float) -> str:
    """The mark of a lane, 0 to 3."""
    return f'<path class="a{lane}" transform="translate({x:.1f} {y:.1f})" d="{SHAPES[lane]}"/>'


def text_at(
    x: float, y: float, text: str, kind: str, anchor: str = "start", *, size: int = 0, bold: bool = False, of: str = ""
) -> str:
    """A text of a kind: `ink` or `quiet`; `of` is what it stands for, told on hovering."""
    more = (f' font-size="{size}"' if size else "") + (' font-weight="600"' if bold else "")
    shown = f"<title>{escape(of)}</title>" if of else ""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{shown}{escape(text)}</text>'
