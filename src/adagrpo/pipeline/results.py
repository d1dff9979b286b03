"""Return types of `Run`, and short summaries of finished stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any, Self

import polars as pl

from adagrpo.data.columns import ITEM_ID
from adagrpo.lists.query import Source
from adagrpo.pipeline.directory import RunDirectory, trained_arms
from adagrpo.pipeline.json_files import read_rows
from adagrpo.report.decision import list_advice
from adagrpo.report.diagnosis_page import weight_figures
from adagrpo.types import ItemId


@dataclass(frozen=True)
class Chart:
    """A chart that notebooks display.

    Example:
        >>> Chart("<svg></svg>")._repr_svg_()
        '<svg></svg>'
    """

    svg: str

    def _repr_svg_(self) -> str:
        return self.svg

    def save(self, path: str | Path) -> None:
        """Write the chart as an SVG file."""
        Path(path).write_text(self.svg, encoding="utf-8")


@dataclass(frozen=True)
class Diagnosis:
    """Whether re-ranking by the reward helps, and whether its sign is right.

    Attributes:
        verdict: `use` or `do_not_use`.
        sentences: reasons, and the list to serve.
        content: content of `diagnose/diagnose.json`.
        serve: command that serves the decision; None without one.
    """

    verdict: str
    sentences: tuple[str, ...]
    content: Mapping[str, Any]
    serve: str | None = None

    @classmethod
    def of(cls, content: Mapping[str, Any], decision: Mapping[str, Any] | None, called: Path) -> Self:
        """Build the diagnosis from the contents of diagnose.json and decision.json, None if missing or stale."""
        verdict = content["verdict"]
        sentences = (*verdict["sentences"], *list_advice(content, decision, called))
        return cls(verdict["decision"], sentences, content, None if decision is None else decision["serve"])

    def plot(self) -> Chart:
        """Return the chart of reward weights from diagnose.html."""
        return Chart(weight_figures(self.content["weights"])[0].svg)

    def _repr_html_(self) -> str:
        lines = "".join(f"<li>{escape(sentence)}</li>" for sentence in self.sentences)
        return f"<p><b>{escape(self.verdict)}</b></p><ul>{lines}</ul>{self.plot().svg}"


@dataclass(frozen=True)
class Recommended:
    """Lists for some histories, best item first.

    Attributes:
        items: one list per history, in ids of the input data.
        scores: log-probabilities in nats; with a reward weight, plus weight x reward / within-list standard deviation.
        codes: Semantic ID of each item.
        unknown: dropped ids per history; with no known item left, the list is empty.
        about: checkpoint and precision.
        sources: `policy` or `popular` per history.
    """

    items: list[list[ItemId]]
    scores: list[list[float]]
    codes: list[list[list[int]]]
    unknown: list[list[ItemId]]
    about: Mapping[str, Any]
    sources: list[Source] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.items)

    @property
    def unknown_ids(self) -> int:
        """Number of unknown ids in the histories."""
        return sum(map(len, self.unknown))

    @property
    def frame(self) -> pl.DataFrame:
        """One row per item: history (its index in the input), rank from 1, item_id, score.

        Example:
            >>> lists = Recommended([["b", "a"], []], [[-0.5, -1.0], []], [[[0], [1]], []], [[], ["x"]], {})
            >>> lists.frame.rows(), lists.unknown_ids
            ([(0, 1, 'b', -0.5), (0, 2, 'a', -1.0)], 1)
        """
        lengths = [len(items) for items in self.items]
        return pl.DataFrame(
            {
                "history": [row for row, length in enumerate(lengths) for _ in range(length)],
                "rank": [rank for length in lengths for rank in range(1, length + 1)],
                ITEM_ID: [item for items in self.items for item in items],
                "score": [score for scores in self.scores for score in scores],
            },
            schema_overrides={"history": pl.Int64, "rank": pl.Int64, "score": pl.Float64},
        )

    def _repr_html_(self) -> str:
        said = f"<p>{self.unknown_ids} ids of the histories name no item.</p>" if self.unknown_ids else ""
        return said + str(self.frame._repr_html_())


def metrics_table(content: Mapping[str, Any]) -> pl.DataFrame:
    """Return one row per value: stage, checkpoint, split, metric, value."""
    measured: list[tuple[str, str | None, Any]] = [
        (name, None, splits) for name, splits in content.get("baselines", {}).items()
    ]
    for name, entry in content.get("stages", {}).items():
        measured += (
            [(name, kind, entry[kind]) for kind in ("best", "final")] if "best" in entry else [(name, None, entry)]
        )
    rows = [
        (stage, checkpoint, split, metric, value)
        for stage, checkpoint, splits in measured
        for split in ("validation", "test")
        for metric, value in splits.get(split, {}).items()
    ]
    schema = dict.fromkeys(("stage", "checkpoint", "split", "metric"), pl.String) | {"value": pl.Float64}
    return pl.DataFrame(rows, schema=schema, orient="row")


def catalog_outcome(run: RunDirectory) -> dict[str, Any]:
    """Summarize `tokenize`: items, levels, codes per level, collisions before resolution, density."""
    audit = run.content("tokenize", "audit.json")
    names = ("items", "distinct_sequences", "collision_rate", "largest_collision", "density")
    levels = [{"size": level["size"], "codes_used": level["codes_used"]} for level in audit["per_level"]]
    return {name: audit[name] for name in names} | {"levels": levels}


def fit_outcome(run: RunDirectory, stage: str) -> dict[str, Any]:
    """Summarize a fit: `steps`, first and last `loss` of each term, `best_step` and `validation` there."""
    parts = stage.split("/")
    steps = read_rows(run.checked(*parts, "steps.jsonl"))
    validations = read_rows(run.checked(*parts, "validation.jsonl"))
    best = run.content(*parts, "best", "checkpoint.json")["step"]
    validation = next((row for row in validations if row["step"] == best), {})
    name = "nll" if any("nll" in row for row in steps) else "loss"
    values = [row[name] for row in steps if name in row]
    return {
        "steps": len(steps),
        "loss": {name: [values[0], values[-1]]} if values else {},
        "best_step": best,
        "validation": {key: value for key, value in validation.items() if key != "step"},
    }


def trained_outcomes(run: RunDirectory) -> dict[str, dict[str, Any]]:
    """Return `fit_outcome` of sft, then of each trained arm, by name."""
    trained = set(trained_arms(run))
    names = [arm.name for arm in run.config.train.arms if arm.name in trained]
    return {"sft": fit_outcome(run, "sft")} | {name: fit_outcome(run, f"train/{name}") for name in names}
