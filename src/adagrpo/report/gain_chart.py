"""One picture of a diagnosis: what the reward adds to the policy's lists, over all cases and in each cell known ahead.

A row is a cell; its point is the change of NDCG@10 that re-ranking by policy and reward brings, its line the interval.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adagrpo.report import drawing as draw

__all__ = ["gain_chart"]

WIDEST = 330  # pixels for the names of the rows
NDCG = "ndcg@10"
INK = "#1a1a1a"

Row = Mapping[str, Any]


def gain_chart(result: Row, title: str) -> str:
    """An `<svg>` element.

    Args:
        result: content of `diagnose/diagnose.json`.
        title: of the chart.
    """
    rows = [result["all"], *result["serving"]]
    gains = [row["minus_policy"]["mix"][NDCG] for row in rows]
    ends = [float(gain[end]) for gain in gains for end in ("low", "high")]
    labels = 20 + min(WIDEST, max(draw.text_width(row["cell"]) for row in rows))
    axis = draw.make_axis([0.0, *ends], labels + 24, draw.RIGHT_EDGE - 10, percent=False, cover=True)
    step = (draw.BOTTOM - draw.TOP) / len(rows)
    parts = []
    for value, text in zip(axis.ticks, axis.texts(), strict=True):
        x = axis.at(value)
        width = 1.5 if value == 0 else 0.5
        parts.append(
            f'<path d="M{x:.1f} {draw.TOP}V{draw.BOTTOM}" stroke="{INK}" stroke-width="{width}" opacity=".4"/>'
        )
        parts.append(_text(x, draw.BOTTOM + 19, text, "middle"))
    parts.append(_text(draw.RIGHT_EDGE, draw.BOTTOM + 39, "change of NDCG@10 by the reward, with its interval", "end"))
    for place, (row, gain) in enumerate(zip(rows, gains, strict=True)):
        y = draw.TOP + step * (place + 0.5)
        mean, low, high = (axis.at(float(gain[name])) for name in ("mean", "low", "high"))
        ink = draw.color(1 if gain["low"] > 0 else 2 if gain["high"] < 0 else 0)
        tip = f"{row['cell']}: {gain['mean']:+.4f} ({gain['low']:+.4f} to {gain['high']:+.4f}), {row['cases']:,} cases"
        parts.append(_text(labels, y + 4, row["cell"], "end"))
        parts.append(
            f'<g stroke="{ink}" stroke-width="2" fill="{ink}"><title>{draw.clean(tip)}</title>'
            f'<path d="M{low:.1f} {y:.1f}H{high:.1f}"/><circle cx="{mean:.1f}" cy="{y:.1f}" r="4"/></g>'
        )
    texts = "; ".join(f"{row['cell']} {gain['mean']:+.4f}" for row, gain in zip(rows, gains, strict=True))
    return draw.svg(title, f"Change of NDCG@10 by cell: {texts}", "", parts)


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{INK}">{draw.clean(text)}</text>'
