"""The table of a `results/*.jsonl` file for documents: one row a data set, arm and checkpoint, means over the seeds.

    mean ± t_{S-1} s / √S      over the S seeds of a row, see `adagrpo.statistics.seed_interval`; one seed has no ±

It reads the rows that a run or a comparison left in `results.jsonl`. A seed that is there twice counts once, by its
last row, so that a file may be appended to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adagrpo.errors import UserError
from adagrpo.report.page import read_rows
from adagrpo.report.tables import MISSING, RATES, Alignment, Split, Table, format_metric, metric_label
from adagrpo.statistics import seed_interval

__all__ = ["results_file_table"]

COLUMNS = ("hr@10", "ndcg@10", "hr@10_unmasked", "ndcg@10_unmasked", "hr@50", "hallucination@10", "true_utility@10")


def results_file_table(path: Path, split: Split = "test") -> Table:
    """The table of a results file.

    Args:
        path: JSON lines with dataset, arm (or objective), checkpoint, seed, split, metrics.
        split: which rows.

    Raises:
        UserError: no such file, a line that is no such row, or no row of the split.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file (--results)")
    groups: dict[tuple[str, str, str], dict[int, Mapping[str, float]]] = {}
    for number, row in enumerate(read_rows(path), start=1):
        try:
            key = (row["dataset"], row.get("arm", row["objective"]), row["checkpoint"])
            if row["split"] == split:
                groups.setdefault(key, {})[row["seed"]] = row["metrics"]
        except KeyError as error:
            raise UserError(f"{path}: line {number} has no {error}; rows are those of results.jsonl") from error
    if not groups:
        raise UserError(f"{path}: no row of the {split} cases")
    measured = {name for seeds in groups.values() for values in seeds.values() for name in values}
    columns = [name for name in COLUMNS if name in measured]
    rows = tuple(
        (*key, *(_cell(name, [v[name] for v in seeds.values() if name in v]) for name in columns), str(len(seeds)))
        for key, seeds in groups.items()
    )
    right: list[Alignment] = ["right"] * (len(columns) + 1)
    header = ("data set", "arm", "checkpoint", *map(metric_label, columns), "seeds")
    return Table(header, rows, ("left", "left", "left", *right))


def _cell(name: str, values: Sequence[Any]) -> str:
    """`12.18 % ± 0.40`; the half-width of a rate is in points."""
    if not values:
        return MISSING
    interval = seed_interval([float(value) for value in values])
    text = format_metric(name, interval.mean)
    if len(values) == 1:
        return text
    half = interval.high - interval.mean
    return f"{text} ± " + (f"{100 * half:.2f}" if name.partition("@")[0] in RATES else f"{half:.4f}")
