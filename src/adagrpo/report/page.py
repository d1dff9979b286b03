"""The report of a run: one HTML file that works offline, without scripts, and is reproducible byte for byte."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from adagrpo.errors import UserError
from adagrpo.metrics import ReportPart
from adagrpo.report import figures
from adagrpo.report.decision import decision_sentences, decision_table, list_advice
from adagrpo.report.figures import Log
from adagrpo.report.numbers import numbers_table
from adagrpo.report.paired_tables import REFERENCES, paired_figures, paired_table
from adagrpo.report.ranker_tables import (
    calibration_text,
    exposure_figures,
    exposure_table,
    ranking_table,
    strata_table,
)
from adagrpo.report.reward_curves import of_this_reward
from adagrpo.report.run_facts import as_yaml, code_levels, facts, stage_table
from adagrpo.report.run_files import LooseFiles, RunFiles, read_mapping, read_rows
from adagrpo.report.summary import summary_sentences
from adagrpo.report.tables import START, Split, Table, checkpoints, results_table, shown_columns
from adagrpo.storage.writing import write_file

Section = TypeVar("Section")
SECTIONS = (
    ("decision", "Decision"),
    ("exposures", "Held-out impressions"),
    ("verdict", "Verdict"),
    ("results", "Results"),
    ("curves", "Learning curves"),
    ("admission", "Admission"),
    ("ranker", "Ranker"),
    ("data", "Data and catalogue"),
    ("configuration", "Configuration"),
    ("stages", "Stages"),
)

SPLITS: tuple[Split, ...] = ("test", "validation")


def write_report(run: RunFiles | Path, notes: Sequence[str] = ()) -> Path:
    """Write `report.html` into a run directory, atomically; see `build_report`."""
    files = _files(run)
    path = files.directory / "report.html"
    write_file(path, build_report(files, notes))
    return path


def write_figures(run: RunFiles | Path, directory: Path) -> list[Path]:
    """Write the charts of a report as SVG files."""
    files = _files(run)
    drawn = _figures(files, _metrics(files))
    written = []
    for name, plots in drawn.items():
        figures = plots if isinstance(plots, list) else [plots] if plots is not None else []
        for number, figure in enumerate(figures, start=1):
            written.append(directory / f"{name}-{number}.svg")
            write_file(written[-1], figure.svg)
    return written


def build_report(run: RunFiles | Path, notes: Sequence[str] = ()) -> str:
    """Return the report of a run as HTML.

    Args:
        notes: sentences on what is left out, and why.

    Raises:
        UserError: `metrics.json` is missing, or a file cannot be read.
    """
    files = _files(run)
    metrics = _metrics(files)
    path = files.find("run.yaml")
    described = read_mapping(path) if path is not None else {}
    decision = _decision(files)
    shown = dict(
        name=metrics.get("name") or files.directory.resolve().name,
        config_hash=metrics.get("config_hash"),
        notes=[keep_together(note) for note in notes],
        decision=decision,
        diagnosis=_diagnosis(files, decision),
        summary=[keep_together(sentence) for sentence in summary_sentences(metrics, baselines=decision is None)],
        results=[(split, table) for split in SPLITS if (table := _results(metrics, split))],
        paired=_paired(files),
        breadth=_breadth(metrics),
        **_figures(files, metrics),
        numbers=numbers_table(_logs(files, metrics)),
        dataset=facts(metrics.get("dataset")),
        catalog=facts(metrics.get("catalog")),
        levels=code_levels(metrics.get("catalog")),
        ranking=[(split, table) for split in SPLITS if (table := ranking_table(metrics, split))],
        exposures=exposure_table(metrics["exposures"]) if "exposures" in metrics else None,
        exposed=exposure_figures(metrics["exposures"]) if "exposures" in metrics else [],
        quality=_quality(files),
        stages=stage_table(files.events()),
        versions=facts(described.get("versions")),
        threads=described.get("threads"),
        data_files=as_yaml(described.get("data")),
        config=as_yaml(described.get("config")),
    )
    filled = shown | {
        "verdict": shown["exposures"] is None,
        "curves": shown["curves"] or shown["supervised"],
        "ranker": shown["ranking"] or shown["quality"],
        "data": shown["dataset"] or shown["catalog"],
        "configuration": shown["config"] or shown["versions"] or shown["data_files"],
    }
    shown["sections"] = [(anchor, text) for anchor, text in SECTIONS if filled[anchor]]
    return template("page.html.j2").render(shown)


def _files(run: RunFiles | Path) -> RunFiles:
    return LooseFiles(run) if isinstance(run, Path) else run


def _metrics(files: RunFiles) -> Mapping[str, Any]:
    path = files.find("metrics.json")
    if path is None:
        where = files.directory / "metrics.json"
        raise UserError(f"{where}: not there; the report is made from it, evaluate the run first")
    return read_mapping(path)


def keep_together(sentence: str) -> str:
    """Prepare a sentence for HTML: unbroken percentages, no backticks."""
    return sentence.replace(" %", "\N{NO-BREAK SPACE}%").replace("`", "")


def template(name: str) -> Template:
    """Load a template with escaping; undefined variables are errors."""
    environment = Environment(
        loader=PackageLoader("adagrpo.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def _figures(files: RunFiles, metrics: Mapping[str, Any]) -> dict[str, Any]:
    logs, elsewhere = of_this_reward(_logs(files, metrics), metrics)
    return {
        "elsewhere": elsewhere,
        "curves": figures.learning_curves(logs),
        "supervised": figures.supervised_curves(logs),
        "signals": figures.training_signals(logs),
        "admission": figures.admission_figures(logs, metrics),
        "frontier": figures.frontier_figure(metrics),
        "utility": figures.utility_figure(metrics),
    }


def _logs(files: RunFiles, metrics: Mapping[str, Any]) -> list[Log]:
    points = checkpoints(metrics)
    best = {point.arm: point.step for point in points if point.kind == "best"}
    folders = {START: ("sft",)} | {arm: ("train", arm) for arm in files.trained()}
    arms = list(dict.fromkeys([START, *(point.arm for point in points), *folders]))

    def rows(arm: str, name: str) -> list[Mapping[str, Any]]:
        path = files.find(*folders[arm], name)
        return [] if path is None else read_rows(path)

    def lost(arm: str) -> Mapping[str, Any] | None:
        path = files.find(*folders[arm], "lost.json")
        return None if path is None else read_mapping(path)

    return [
        Log(arm, rows(arm, "steps.jsonl"), rows(arm, "validation.jsonl"), best.get(arm), lost(arm))
        for arm in arms
        if arm in folders
    ]


def _results(metrics: Mapping[str, Any], split: Split) -> Table | None:
    measured = any(point.value(split, "hr@10") is not None for point in checkpoints(metrics))
    return results_table(metrics, split) if measured else None


def _breadth(metrics: Mapping[str, Any]) -> tuple[Split, Table] | None:
    points = checkpoints(metrics)
    for split in SPLITS:
        columns = shown_columns(points, split, ReportPart.BREADTH)
        if columns:
            return split, results_table(metrics, split, columns)
    return None


def _read(files: RunFiles, path: Sequence[str], show: Callable[[Mapping[str, Any]], Section]) -> Section | None:
    found = files.find(*path)
    if found is None:
        return None
    try:
        return show(read_mapping(found))
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        raise UserError(f"{found}: damaged ({type(error).__name__}: {error}); delete its folder") from error


def _decision(files: RunFiles) -> dict[str, Any] | None:
    def show(content: Mapping[str, Any]) -> dict[str, Any]:
        said = [keep_together(sentence) for sentence in decision_sentences(content)]
        return {**content, "sentences": said, "table": decision_table(content)}

    return _read(files, ("decision.json",), show)


def _diagnosis(files: RunFiles, decision: Mapping[str, Any] | None) -> dict[str, Any] | None:
    def show(content: Mapping[str, Any]) -> dict[str, Any]:
        verdict = content["verdict"]
        return {
            "decision": str(verdict["decision"]),
            "sentences": [
                keep_together(text)
                for text in (*verdict["sentences"][:2], *list_advice(content, decision, files.directory))
            ],
            "page": (files.directory / "diagnose.html").is_file(),
        }

    return _read(files, ("diagnose", "diagnose.json"), show)


def _paired(files: RunFiles) -> dict[str, Any] | None:
    def show(content: Mapping[str, Any]) -> dict[str, Any]:
        tables = [(REFERENCES[name], paired_table(content, name)) for name in REFERENCES]
        figures = [figure for name in REFERENCES for figure in paired_figures(content, name)]
        return {"users": content["users"], "tables": [pair for pair in tables if pair[1]], "figures": figures}

    return _read(files, ("report", "paired", "paired.json"), show)


def _quality(files: RunFiles) -> dict[str, Any] | None:
    return _read(
        files,
        ("ranker", "report", "report.json"),
        lambda report: {
            "strata": strata_table(report),
            "calibration": calibration_text(report),
        },
    )
