"""Tables of a run, by arm and checkpoint, as Markdown, plain text or HTML cells.

The relative change of an arm is `HR@10 / HR@10(sft) - 1`. The best checkpoint was chosen on validation, the final one
was not.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self, TypeGuard

from adagrpo.errors import UserError
from adagrpo.metrics import ReportPart, lookup, metric_names

MISSING = "–"
START = "sft"

Alignment = Literal["left", "right"]
Split = Literal["test", "validation"]


@dataclass(frozen=True)
class Table:
    """Text cells, with column alignments and the best cells of each column."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    alignment: tuple[Alignment, ...]
    best: frozenset[tuple[int, int]] = frozenset()  # (row, column)

    @classmethod
    def of(
        cls,
        header: Sequence[str],
        rows: Iterable[tuple[str, ...]],
        left: int = 1,
        last: int = 0,
        best: Iterable[tuple[int, int]] = (),
    ) -> Self:
        """Build a table with `left` and `last` text columns around numbers."""
        text: tuple[Alignment, ...] = ("left",)
        number: tuple[Alignment, ...] = ("right",)
        sides = text * left + number * (len(header) - left - last) + text * last
        return cls(tuple(header), tuple(rows), sides, frozenset(best))


@dataclass(frozen=True)
class Checkpoint:
    """The policy of an arm at one step; `sft` has only the checkpoint `start`."""

    arm: str
    kind: str  # "start", "best" or "final"
    step: int | None
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # split -> metric -> value
    admission: float | None = None
    gate: str | None = None

    def value(self, split: str, name: str) -> float | None:
        """Return a metric, or None if missing or not finite."""
        return self.admission if name == "admission" else _finite(self.metrics.get(split, {}).get(name))


def checkpoints(metrics: Mapping[str, Any]) -> list[Checkpoint]:
    """Return the checkpoints of `metrics.json`: sft, then each arm's best and final; UserError if it is malformed."""
    stages = _mapping(metrics.get("stages", {}), "stages")
    points = []
    if START in stages:
        points.append(Checkpoint(START, "start", 0, _splits(_mapping(stages[START], START), START)))
    for arm, content in stages.items():
        stage = _mapping(content, arm)
        for kind in ("best", "final"):
            if arm == START or stage.get(kind) is None:
                continue
            point = _mapping(stage[kind], f"{arm}.{kind}")
            splits = _splits(point, f"{arm}.{kind}")
            points.append(
                Checkpoint(arm, kind, point.get("step"), splits, _finite(stage.get("admission")), stage.get("gate"))
            )
    return points


def results_table(metrics: Mapping[str, Any], split: Split = "test", columns: Sequence[str] | None = None) -> Table:
    """Tabulate `metrics.json` by arm and checkpoint, with the relative change of `hr@10`."""
    points = checkpoints(metrics)
    if columns is None:
        columns = shown_columns(points, split, ReportPart.RESULTS)
    steps = ("" if one.kind == "start" or one.step is None else f", step {one.step}" for one in points)
    names = [(one.arm, one.kind + step) for one, step in zip(points, steps, strict=True)]
    values = [[point.value(split, name) for name in columns] for point in points]
    table = metric_table(("arm", "checkpoint"), names, values, columns)
    if "hr@10" not in columns:
        return table
    start = next((point.value(split, "hr@10") for point in points if point.arm == START), None)
    hits = (None if point.arm == START else point.value(split, "hr@10") for point in points)
    changes = [format_relative(value, start) for value in hits]
    at = 3 + list(columns).index("hr@10")
    rows = [(*row[:at], change, *row[at:]) for row, change in zip(table.rows, changes, strict=True)]
    best = {(row, column + (column >= at)) for row, column in table.best}
    return Table.of((*table.header[:at], "vs sft", *table.header[at:]), rows, 2, best=best)


def shown_columns(points: Sequence[Checkpoint], split: Split, where: ReportPart) -> list[str]:
    """Return the metrics of a table that any checkpoint has."""
    return [name for name in metric_names(where) if any(point.value(split, name) is not None for point in points)]


def metric_table(
    headings: Sequence[str],
    names: Sequence[Sequence[str]],
    values: Sequence[Sequence[float | None]],
    columns: Sequence[str],
) -> Table:
    """Tabulate metrics of named rows, marking the best of each column."""
    known = [[_finite(value) for value in row] for row in values]
    cells = [[format_metric(name, value) for name, value in zip(columns, row, strict=True)] for row in known]
    best = set()
    for column, name in enumerate(columns):
        numbers = [value for value in (line[column] for line in known) if value is not None]
        texts, better = [line[column] for line in cells], lookup(name).better
        if better and numbers and len({*texts} - {MISSING}) > 1:
            top = format_metric(name, min(numbers) if better == "lower" else max(numbers))
            best |= {(row, len(headings) + column) for row, text in enumerate(texts) if text == top}
    rows = [(*name, *line) for name, line in zip(names, cells, strict=True)]
    return Table.of((*headings, *map(metric_label, columns)), rows, len(headings), best=best)


def is_finite(value: Any) -> TypeGuard[float]:
    """Return whether a value is a finite number, and not too large to subtract."""
    return isinstance(value, int | float) and abs(value) < 1e100


def to_markdown(table: Table) -> str:
    """Format as a GitHub-flavoured Markdown table, best values in bold."""
    lines = [
        [_markdown(cell) for cell in table.header],
        *(
            [f"**{_markdown(cell)}**" if (i, j) in table.best else _markdown(cell) for j, cell in enumerate(row)]
            for i, row in enumerate(table.rows)
        ),
    ]
    texts = ["| " + " | ".join(cells) + " |" for cells in lines]
    rule = "|" + "|".join("--:" if side == "right" else "---" for side in table.alignment) + "|"
    return "\n".join([texts[0], rule, *texts[1:]])


def to_text(table: Table) -> str:
    """Format as plain text; the best values of a column are starred."""
    starred = {column for _, column in table.best}
    grid = [[_printable(cell) + (" " if j in starred else "") for j, cell in enumerate(table.header)]]
    for i, row in enumerate(table.rows):
        marks = [("*" if (i, j) in table.best else " ") if j in starred else "" for j in range(len(row))]
        grid.append([_printable(cell) + mark for cell, mark in zip(row, marks, strict=True)])
    widths = [max(len(row[j]) for row in grid) for j in range(len(table.header))]
    grid.insert(1, ["-" * width for width in widths])
    lines = []
    for line in grid:
        cells = zip(line, widths, table.alignment, strict=True)
        padded = [cell.rjust(width) if side == "right" else cell.ljust(width) for cell, width, side in cells]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def metric_label(name: str) -> str:
    """Return the label of a metric.

    >>> metric_label("hr@10"), metric_label("ndcg@10_unmasked"), metric_label("true_utility@10")
    ('HR@10', 'NDCG@10 unmasked', 'true utility@10')
    """
    _, at, cut = name.partition("@")
    return lookup(name).label + at + cut.replace("_", " ")


def format_p(value: float) -> str:
    """Format a p-value.

    >>> format_p(0.0004), format_p(0.0005), format_p(1.0)
    ('< 0.001', '0.001', '1.000')
    """
    return "< 0.001" if value < 0.0005 else f"{value:.3f}"


def format_metric(name: str, value: float | None) -> str:
    """Format a metric: rates in per cent, NDCG with four decimals, reward with four figures."""
    if _finite(value) is None or value is None:
        return MISSING
    form = lookup(name).form
    if form == "number":
        return format_number(value)
    return f"{value:.4f}" if form == "decimals" else f"{100 * value:.{2 if form == 'rate' else 1}f} %"


def format_number(value: float) -> str:
    """Format four significant figures; whole numbers get separators from 10,000 on."""
    if value == 0 or 1e4 <= abs(value) < 1e9:
        return f"{value:,.0f}"
    return f"{value:#.4g}".rstrip(".")


def format_interval(interval: Mapping[str, float] | None, form: str, factor: float = 1.0) -> str:
    """Format the mean and both ends of an interval.

    >>> format_interval({"mean": 0.02, "low": -0.01, "high": 0.05}, "+.1f", 100)
    '+2.0 (-1.0 to +5.0)'
    """
    if interval is None:
        return MISSING
    mean, low, high = (f"{factor * interval[name]:{form}}" for name in ("mean", "low", "high"))
    return f"{mean} ({low} to {high})"


def format_relative(value: float | None, reference: float | None) -> str:
    """Format `value / reference - 1` as a signed percentage."""
    if value is None or reference is None or reference <= 0:
        return MISSING
    return f"{100 * (value / reference - 1):+.1f} %"


def _splits(point: Mapping[str, Any], path: str) -> dict[str, Mapping[str, float]]:
    return {name: _mapping(point[name], f"{path}.{name}") for name in ("validation", "test") if point.get(name)}


def _mapping(value: Any, path: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise UserError(f"metrics.json: '{_printable(path)}' is {type(value).__name__}, a mapping would be right")
    return value


def _finite(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _printable(text: str) -> str:
    """Replace control characters, which could move the terminal's cursor."""
    return "".join(character if character.isprintable() else " " for character in text)


def _markdown(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", _printable(text))
