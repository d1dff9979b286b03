"""Both themes of every page: each colour that a chart is drawn in, and what it turns into on a dark page.

A chart carries the colours of a light page as attributes, so that its SVG file stands alone in any program. On a page,
style rules take their place, since a rule goes before an attribute. `light-dark()` chooses by the scheme of the page:
that of the reader's system, or the one chosen at the top of the page.
"""

from __future__ import annotations

__all__ = ["COLORS", "GRID", "INK", "QUIET", "SURFACE", "chart_rules"]

INK, QUIET, GRID, SURFACE = "#1a1a1a", "#595959", "#e3e3e3", "#ffffff"
COLORS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe & Ito, less the yellow
# The same hues, lighter: each has a contrast of 4.5 or more against the dark surface.
DARK = {
    INK: "#ececec",
    QUIET: "#a8adb4",
    GRID: "#363b42",
    SURFACE: "#16191d",
    "#000000": "#ffffff",
    "#0072B2": "#4ba3e3",
    "#D55E00": "#f5803e",
    "#009E73": "#2fc79a",
    "#CC79A7": "#e39cc4",
    "#E69F00": "#f2b63c",
    "#56B4E9": "#93d3f7",
}


def chart_rules() -> str:
    """The style rules that give the charts of a page the colours of its scheme.

    Example:
        >>> chart_rules().splitlines()[0]
        'svg [fill="#1a1a1a"] { fill: light-dark(#1a1a1a, #ececec); }'
    """
    return "\n".join(
        f'svg [{name}="{light}"] {{ {name}: light-dark({light}, {dark}); }}'
        for light, dark in DARK.items()
        for name in ("fill", "stroke")
    )
