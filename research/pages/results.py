"""Tables of rows in `<name>.jsonl`, for documents.

    mean ± t_{S-1} s / √S      over the S seeds of a row, see `seed_interval` of `adagrpo.statistics`

One seed has no ±.

They read the rows that a run or a comparison left in `results.jsonl`. A seed that is there twice counts once, by its
last row, so that a file may be appended to.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from adagrpo.errors import UserError
from adagrpo.metrics import is_rate
from adagrpo.report.page import read_rows
from adagrpo.report.tables import (
    MISSING,
    START,
    Alignment,
    Split,
    Table,
    format_metric,
    metric_label,
    results_table,
)
from adagrpo.statistics import Interval, seed_interval

__all__ = ["ablation_table", "arms_table", "find", "results_file_table", "starting_table"]

COLUMNS = ("hr@10", "ndcg@10", "hr@10_unmasked", "ndcg@10_unmasked", "hr@50", "hallucination@10", "true_utility@10")
STARTING = (  # heading, arm, suffix of the metrics
    ("policy", START, ""),
    ("without masking", START, "_unmasked"),
    ("SASRec", "ranker", ""),
    ("item-kNN", "item_knn", ""),
    ("popularity", "popularity", ""),
)
Row = Mapping[str, Any]
Key = tuple[str, str, str]  # data set, arm, checkpoint


def find(results: Path, name: str) -> Path:
    """The file of that name in the folder or below it; where there is none, the path that it would have there.

    Raises:
        UserError: several files have the name.
    """
    result = sorted(results.rglob(name))
    if len(result) > 1:
        raise UserError(f"{name}: there are several, {', '.join(map(str, result))}; results are told apart by name")
    return result[0] if result else results / name


def results_file_table(path: Path, split: Split = "test") -> Table:
    """One row a data set, arm and checkpoint: means over the seeds.

    Args:
        path: JSON lines with dataset, arm (or objective), checkpoint, seed, split, metrics.
        split: which rows.

    Raises:
        UserError: no such file, a line that is no such row, or no row of the split.
    """
    groups = {key: [row["metrics"] for row in seeds.values()] for key, seeds in _groups(path, split).items()}
    measured = {name for seeds in groups.values() for values in seeds for name in values}
    columns = [name for name in COLUMNS if name in measured]
    rows = tuple(
        (*key, *(_cell(name, [v[name] for v in seeds if name in v]) for name in columns), str(len(seeds)))
        for key, seeds in groups.items()
    )
    right: list[Alignment] = ["right"] * (len(columns) + 1)
    header = ("data set", "arm", "checkpoint", *map(metric_label, columns), "seeds")
    return Table(header, rows, ("left", "left", "left", *right))


def arms_table(
    path: Path, seed: int | None = None, columns: Sequence[str] | None = None, checkpoint: str | None = None
) -> Table:
    """The arms of one seed as the run's own report shows them: test cases, one row a checkpoint.

    Args:
        path: rows of `results.jsonl`; baselines and re-ranking, which have no step, are left out.
        seed: which one, where the file has arms of several.
        columns: as in `results_table`.
        checkpoint: "best" or "final" alone, or both.

    Raises:
        UserError: the file is not of such rows, has no arm of that seed, or of several and none was named.
    """
    result = _groups(path, "test")
    seeds = sorted({number for (_, arm, _), rows in result.items() if arm == START for number in rows})
    if seed is None and len(seeds) > 1:
        raise UserError(f"{path}: has seeds {', '.join(map(str, seeds))}; say which one, as in seed={seeds[0]}")
    seed = seeds[0] if seed is None and seeds else seed
    stages: dict[str, dict[str, Any]] = {}
    for (_, arm, kind), rows in result.items():
        row = rows.get(seed) if seed is not None else None
        if row is None:
            continue
        if arm == START:
            stages[arm] = {"test": row["metrics"]}
        elif row.get("step") is not None and checkpoint in (None, kind):
            point = {"step": row["step"], "test": row["metrics"]}
            stages.setdefault(arm, {"admission": row.get("admission")})[kind] = point
    if not stages:
        raise UserError(f"{path}: no arm of seed {seed}")
    return results_table({"stages": stages}, columns=columns)


def starting_table(results: Path, names: Iterable[str]) -> Table:
    """The starting policies beside the baselines and published figures: HR@10 / NDCG@10 of the test cases.

    Args:
        results: the folder below which `<name>.jsonl` lie; `published.jsonl` has rows of dataset, model, metrics and
            source.
        names: of files, in order; signs after a name, such as †, are put behind its rows.

    Returns:
        One row a file and seed, and one of the mean where a file has several seeds.

    Raises:
        UserError: a file is missing or is not of such rows.
    """
    published = _published(results)
    models = list(dict.fromkeys(model for result in published.values() for model in result))
    cells = []
    for values in names:
        name = values.rstrip("†‡*")
        path, mark = find(results, f"{name}.jsonl"), f" {values[len(name) :]}".rstrip()
        by_arm = {arm: rows for (_, arm, kind), rows in _groups(path, "test").items() if kind == "best"}
        seeds = sorted(by_arm.get(START, {}))
        if not seeds:
            raise UserError(f"{path}: no starting policy ({START})")
        beside = [_pair([published.get(name, {}).get(model)], "") for model in models]
        for label, part in [*((str(seed), [seed]) for seed in seeds), (f"mean of {len(seeds)} seeds", seeds)]:
            if part is seeds and len(seeds) == 1:
                continue
            chosen = {arm: [rows[s]["metrics"] if s in rows else None for s in part] for arm, rows in by_arm.items()}
            own = [_pair(chosen.get(arm, [None]), suffix) for _, arm, suffix in STARTING]
            cells.append((f"{name}, {label}{mark}", *own, *beside))
    header = ("data set, seed", *(title for title, _, _ in STARTING), *(f"{model}, as published" for model in models))
    right: list[Alignment] = ["right"] * (len(header) - 1)
    return Table(header, tuple(cells), ("left", *right))


def ablation_table(rows: Sequence[Row]) -> Table:
    """One row a variant, the reference first: values with masking, and the paired difference over users.

    Args:
        rows: variant; metrics and worth, by "masked" and "unmasked".
    """
    header = ("variant", "HR@10", "NDCG@10", "Δ HR@10", "Δ NDCG@10")
    cells = []
    for number, row in enumerate(rows):
        values, worth = row["metrics"]["masked"], row["worth"]["masked"]
        changes = ["reference"] * 2 if number == 0 else [change(worth[name]) for name in ("hr@10", "ndcg@10")]
        cells.append((row["variant"], f"{values['hr@10']:.4f}", f"{values['ndcg@10']:.4f}", *changes))
    right: list[Alignment] = ["right"] * (len(header) - 1)
    return Table(header, tuple(cells), ("left", *right))


def _published(results: Path) -> dict[str, dict[str, Mapping[str, float]]]:
    """Data set -> model -> metrics that its authors printed, of `published.jsonl`; nothing where there is no file."""
    result: dict[str, dict[str, Mapping[str, float]]] = {}
    for row in read_rows(find(results, "published.jsonl")):
        result.setdefault(row["dataset"], {})[row["model"]] = row["metrics"]
    return result


def _groups(path: Path, split: Split) -> dict[Key, dict[int, Row]]:
    """The last row of each data set, arm, checkpoint and seed."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    groups: dict[Key, dict[int, Row]] = {}
    for number, row in enumerate(read_rows(path), start=1):
        try:
            key = (row["dataset"], row["arm"] if "arm" in row else row["objective"], row["checkpoint"])
            if row["split"] == split:
                groups.setdefault(key, {})[row["seed"]] = {"metrics": row["metrics"], **row}
        except KeyError as error:
            raise UserError(f"{path}: line {number} has no {error}; rows are those of results.jsonl") from error
    if not groups:
        raise UserError(f"{path}: no row of the {split} cases")
    return groups


def _cell(name: str, values: Sequence[Any]) -> str:
    """`12.18 % ± 0.40`; the half-width of a rate is in points."""
    if not values:
        return MISSING
    interval = seed_interval([float(value) for value in values])
    text = format_metric(name, interval.mean)
    if len(values) == 1:
        return text
    half = interval.high - interval.mean
    return f"{text} ± " + (f"{100 * half:.2f}" if is_rate(name) else f"{half:.4f}")


def _pair(metrics: Sequence[Mapping[str, float] | None], suffix: str) -> str:
    """`.0824 / .0466`: HR@10 / NDCG@10, means; of values that are not all there nothing is said."""
    names = [f"{name}@10{suffix}" for name in ("hr", "ndcg")]
    if any(result is None or name not in result for result in metrics for name in names):
        return MISSING
    means = [fmean(result[name] for result in metrics if result is not None) for name in names]
    return " / ".join(f"{mean:.4f}".lstrip("0") for mean in means)


def change(worth: Mapping[str, float]) -> str:
    result = Interval(**worth)
    return f"{result.mean:+.4f} ({result.low:+.4f} to {result.high:+.4f})"
