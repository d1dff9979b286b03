"""What metrics.json was gathered from: the fingerprint of each stage that it holds something of, in run.yaml."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adagrpo.pipeline.description import DESCRIPTION, read_description
from adagrpo.pipeline.run import Run
from adagrpo.pipeline.stage import Part
from adagrpo.storage.artifacts import manifest

__all__ = ["metrics_are_stale", "note_collected"]

COLLECTED = "collected"


def note_collected(run: Run, metrics: Mapping[str, Any]) -> None:
    """Note from what a metrics.json that was just written was gathered."""
    found = {name: manifest(run.folder(name)) for name in _gathered(metrics)}
    run.record(COLLECTED, {name: content["fingerprint"] for name, content in found.items() if content is not None})


def metrics_are_stale(run: Run, parts: Mapping[str, Part], metrics: Path) -> str:
    """Why a metrics.json is not of the stages that are there and up to date; empty where it is.

    Args:
        run: that has it.
        parts: of the run, see `adagrpo.pipeline.chain.parts_of`.
        metrics: the file.
    """
    try:
        stages = _gathered(json.loads(metrics.read_text(encoding="utf-8")))
    except (ValueError, TypeError, RecursionError):
        return ""  # the page says what is wrong with it
    noted = read_description(run.path(DESCRIPTION).parent).get(COLLECTED)
    for name in stages:
        content = manifest(run.folder(name))
        if noted is not None and (content is None or noted.get(name) != content["fingerprint"]):
            return f"{name} was made again since" if content else f"{name} is missing"
        part = parts.get(name)
        if part is not None and part.there and not part.usable:
            return f"{name} is {part.state} ({part.why})"
    return ""


def _gathered(metrics: Mapping[str, Any]) -> list[str]:
    """The stages that a metrics.json holds something of, in the order of the work."""
    if "stages" not in metrics:  # logs without order
        return ["prepare", "ranker", "ranker/exposures"]
    arms = [name for name in metrics["stages"] if name != "sft"]
    trained = [f"train/{arm}" for arm in arms]
    evaluated = [f"evaluate/{arm}/{kind}" for arm in arms for kind in ("best", "final")]
    return ["prepare", "tokenize", "sft", "ranker", *trained, "evaluate/sft", "evaluate/baselines", *evaluated]
