"""The page of a run: everything a reader needs to judge it, in one HTML file that works offline.

It reads `metrics.json`, which must be there, and whatever else the run directory holds: `run.yaml`, `events.jsonl`, and
the `steps.jsonl` and `validation.jsonl` of `sft/` and of each arm below `train/`. What is absent is said to be absent.
We depart from dashboards in that nothing is loaded from elsewhere, no script runs, and the same run gives the same
bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from adagrpo.config.yaml_text import read_yaml
from adagrpo.errors import UserError
from adagrpo.metrics import Shown, shown
from adagrpo.report import figures
from adagrpo.report.figures import Log
from adagrpo.report.numbers import numbers_table
from adagrpo.report.ranker_tables import (
    calibration_text,
    every_gate_table,
    exposure_table,
    gate_table,
    strata_table,
)
from adagrpo.report.summary import arm_sentences, rerank_rows, summary_sentences
from adagrpo.report.tables import (
    MISSING,
    START,
    Alignment,
    Split,
    Table,
    checkpoints,
    format_number,
    metric_table,
    results_table,
    shown_columns,
)
from adagrpo.storage.artifacts import write_file

__all__ = ["build_report", "keep_together", "read_rows", "template", "write_figures", "write_report"]

LEVEL_COLUMNS = {
    "size": "codes",
    "codes_used": "used",
    "entropy_share": "entropy, share of the most",
    "prefixes": "prefixes",
}
SPLITS: tuple[Split, ...] = ("test", "validation")


class RunFiles(Protocol):
    """What a page reads of a run."""

    directory: Path  # where the page goes

    def find(self, *parts: str) -> Path | None:
        """A file of the run; None where there is none."""
        ...

    def trained(self) -> list[str]:
        """The folders of trained arms, by name."""
        ...

    def events(self) -> Sequence[Mapping[str, Any]]:
        """Rows of stage, event and seconds."""
        ...


class LooseFiles:
    """The files of a folder as they are, held against nothing."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def find(self, *parts: str) -> Path | None:
        """See `RunFiles`."""
        path = self.directory.joinpath(*parts)
        return path if path.is_file() else None

    def trained(self) -> list[str]:
        """See `RunFiles`."""
        train = self.directory / "train"
        below = sorted(train.iterdir()) if train.is_dir() else []
        return [folder.name for folder in below if folder.is_dir() and not folder.name.startswith(".")]

    def events(self) -> Sequence[Mapping[str, Any]]:
        """See `RunFiles`."""
        return read_rows(self.directory / "events.jsonl")


def write_report(run: RunFiles | Path, notes: Sequence[str] = ()) -> Path:
    """Write `report.html` into a run directory; a crash leaves the old page or the new one.

    Args:
        run: or a folder of the files of one.
        notes: sentences on what is left out of it, and why.

    Returns:
        The path of the page.

    Raises:
        UserError: as `build_report`.
    """
    files = _files(run)
    path = files.directory / "report.html"
    write_file(path, build_report(files, notes))
    return path


def write_figures(run: RunFiles | Path, directory: Path) -> list[Path]:
    """Write the charts of a run's report as SVG files of their own, for documents.

    Args:
        run: or a folder of the files of one.
        directory: of the charts.

    Returns:
        Their paths: `<what it shows>-<number>.svg`.

    Raises:
        UserError: as `build_report`.
    """
    files = _files(run)
    drawn = _figures(files, _metrics(files))
    written = []
    for name, plots in drawn.items():
        figures = plots if isinstance(plots, list) else [plots] if plots is not None else []
        for number, figure in enumerate(figures, start=1):
            written.append(directory / f"{name}-{number}.svg")
            write_file(written[-1], figure.svg + "\n")
    return written


def build_report(run: RunFiles | Path, notes: Sequence[str] = ()) -> str:
    """The page of a run.

    Args:
        run: or a folder that holds `metrics.json` and, optionally, the other files.
        notes: see `write_report`.

    Returns:
        HTML.

    Raises:
        UserError: `metrics.json` is not there, or a file is there but cannot be read.
    """
    files = _files(run)
    metrics = _metrics(files)
    path = files.find("run.yaml")
    described = _load(path) if path is not None else {}
    return template("page.html.j2").render(
        name=metrics.get("name") or files.directory.resolve().name,
        config_hash=metrics.get("config_hash"),
        notes=[keep_together(note) for note in notes],
        summary=[keep_together(sentence) for sentence in summary_sentences(metrics)],
        arms=[(arm, keep_together(sentence)) for arm, sentence in arm_sentences(metrics)],
        results=[(split, _results(metrics, split)) for split in SPLITS],
        breadth=_breadth(metrics),
        **_figures(files, metrics),
        numbers=numbers_table(_logs(files, metrics)),
        dataset=_facts(metrics.get("dataset")),
        catalog=_facts(metrics.get("catalog")),
        levels=_levels(metrics.get("catalog")),
        ranker=_ranker(metrics),
        exposures=exposure_table(metrics["exposures"]) if "exposures" in metrics else None,
        quality=_quality(files.find("ranker", "report", "report.json")),
        stages=_stages(files.events()),
        versions=_facts(described.get("versions")),
        threads=described.get("threads"),
        data_files=_dump(described.get("data")),
        config=_dump(described.get("config")),
    )


def _files(run: RunFiles | Path) -> RunFiles:
    return LooseFiles(run) if isinstance(run, Path) else run


def _metrics(files: RunFiles) -> Mapping[str, Any]:
    path = files.find("metrics.json")
    if path is None:
        where = files.directory / "metrics.json"
        raise UserError(f"{where}: not there; the report is made from it, evaluate the run first")
    return _load(path)


def keep_together(sentence: str) -> str:
    """No line break between a number and its per cent sign."""
    return sentence.replace(" %", "\N{NO-BREAK SPACE}%")


def template(name: str) -> Template:
    """A page's template; text that is filled in is escaped, and what is missing is an error."""
    environment = Environment(
        loader=PackageLoader("adagrpo.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def _figures(files: RunFiles, metrics: Mapping[str, Any]) -> dict[str, Any]:
    logs = _logs(files, metrics)
    return {
        "curves": figures.learning_curves(logs),
        "supervised": figures.supervised_curves(logs),
        "signals": figures.training_signals(logs),
        "admission": figures.admission_figures(logs, metrics),
        "frontier": figures.frontier_figure(metrics),
        "utility": figures.utility_figure(metrics),
    }


def _logs(files: RunFiles, metrics: Mapping[str, Any]) -> list[Log]:
    """The logs of sft and of each folder below `train/`, in the order of `metrics.json`, then by name."""
    points = checkpoints(metrics)
    best = {point.arm: point.step for point in points if point.kind == "best"}
    folders = {START: ("sft",)} | {arm: ("train", arm) for arm in files.trained()}
    arms = list(dict.fromkeys([START, *(point.arm for point in points), *folders]))

    def rows(arm: str, name: str) -> list[Mapping[str, Any]]:
        path = files.find(*folders[arm], name)
        return [] if path is None else read_rows(path)

    return [
        Log(arm, style, rows(arm, "steps.jsonl"), rows(arm, "validation.jsonl"), best.get(arm))
        for style, arm in enumerate(arms)
        if arm in folders
    ]


def _results(metrics: Mapping[str, Any], split: Split) -> Table | None:
    """The table of a split, or None where nobody measured it."""
    measured = any(point.value(split, "hr@10") is not None for point in checkpoints(metrics))
    return results_table(metrics, split) if measured else None


def _breadth(metrics: Mapping[str, Any]) -> tuple[Split, Table] | None:
    """What stands behind HR@10: a gain at the head can be a loss in the tail."""
    points = checkpoints(metrics)
    for split in SPLITS:
        columns = shown_columns(points, split, Shown.BREADTH)
        if columns:
            return split, results_table(metrics, split, columns)
    return None


def _ranker(metrics: Mapping[str, Any]) -> Table | None:
    """The ranker's own retrieval, the re-ranked beam and the baselines beside the starting policy."""
    ranker = metrics.get("ranker")
    if not isinstance(ranker, Mapping):
        return None
    rows: list[tuple[str, Mapping[str, Any]]] = [
        ("policy (sft), no ranker", point.metrics.get("validation", {}))
        for point in checkpoints(metrics)
        if point.arm == START
    ]
    rows += [("ranker alone, full catalogue", ranker.get("validation") or {})]
    rows += [(f"sft beam re-ranked: {name}", values) for name, values in rerank_rows(metrics)]
    for name, splits in (metrics.get("baselines") or {}).items():
        wanted = SPLITS if name != "ranker" else SPLITS[:1]  # its validation is above
        rows += [(f"{name.replace('_', '-')} ({split})", splits.get(split) or {}) for split in wanted]
    rows = [(name, values) for name, values in rows if values]
    columns = [name for name in shown(Shown.RANKING) if any(values.get(name) is not None for _, values in rows)]
    values = [[row.get(name) for name in columns] for _, row in rows]
    return metric_table(("ranking",), [(name,) for name, _ in rows], values, columns) if columns else None


def _quality(path: Path | None) -> dict[str, Any] | None:
    """The tables of the ranker's report, or None where it was not made."""
    if path is None:
        return None
    report = _load(path)
    try:
        return {
            "strata": strata_table(report),
            "gate": gate_table(report),
            "gates": every_gate_table(report),
            "calibration": calibration_text(report),
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: damaged ({type(error).__name__}: {error}); delete its folder") from error


def _levels(catalog: Any) -> Table | None:
    """The codes of each level; both names of the list are read."""
    levels = (catalog.get("per_level") or catalog.get("level")) if isinstance(catalog, Mapping) else None
    if not levels:
        return None
    known = [key for key in LEVEL_COLUMNS if any(level.get(key) is not None for level in levels)]
    rows = tuple((str(i + 1), *(_fact(key, level.get(key)) for key in known)) for i, level in enumerate(levels))
    alignment: list[Alignment] = ["right"] * (1 + len(known))
    return Table(("level", *(LEVEL_COLUMNS[key] for key in known)), rows, tuple(alignment))


def _facts(values: Any) -> list[tuple[str, str]]:
    """Names and texts of the plain values of a mapping."""
    if not isinstance(values, Mapping):
        return []
    plain = [(key, value) for key, value in values.items() if isinstance(value, str | int | float)]
    return [(str(key).replace("_", " "), _fact(str(key), value)) for key, value in plain]


def _fact(key: str, value: Any) -> str:
    if value is None:
        return MISSING
    if isinstance(value, str | bool):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{100 * value:.2f} %" if key.endswith(("_rate", "_share")) else format_number(value)


def _stages(events: Sequence[Mapping[str, Any]]) -> Table | None:
    """The duration of the last run of each stage, and what happened to the stage last."""
    seconds: dict[str, float] = {}
    last: dict[str, str] = {}
    for event in events:
        stage = str(event.get("stage", MISSING))
        last[stage] = str(event.get("event", MISSING))
        if last[stage] == "end" and isinstance(event.get("seconds"), int | float):
            seconds[stage] = event["seconds"]
    rows = [(stage, _duration(seconds.get(stage)), what) for stage, what in last.items()]
    if not rows:
        return None
    total = ("all", _duration(sum(seconds.values())), "")
    return Table(("stage", "duration", "last event"), (*rows, total), ("left", "right", "left"))


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return MISSING
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _dump(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True) if value else ""


def _load(path: Path) -> Mapping[str, Any]:
    """A mapping from a JSON or YAML file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.suffix == ".json" else read_yaml(path)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: is {type(content).__name__}, a mapping would be right")
    return content


def read_rows(path: Path) -> list[Mapping[str, Any]]:
    """The rows of a JSON-lines file, none if it is absent; a last line that a crash cut short is dropped."""
    if not path.is_file():
        return []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error})") from error
    rows = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: line {number} is not JSON ({error})") from error
        if not isinstance(row, Mapping):
            raise UserError(f"{path}: line {number} is {type(row).__name__}, an object would be right")
        rows.append(row)
    return rows
