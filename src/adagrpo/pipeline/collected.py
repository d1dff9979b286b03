"""What metrics.json was gathered from: the fingerprint of each stage that it holds something of, in run.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adagrpo.pipeline.description import DESCRIPTION, read_description
from adagrpo.pipeline.run import Run
from adagrpo.storage.artifacts import manifest

__all__ = ["collected", "gathered_stages", "note_collected"]

COLLECTED = "collected"


def gathered_stages(metrics: Mapping[str, Any]) -> list[str]:
    """The stages that a metrics.json holds something of, in the order of the work."""
    if "stages" not in metrics:  # logs without order
        return ["prepare", "ranker", "ranker/exposures"]
    arms = [name for name in metrics["stages"] if name != "sft"]
    trained = [f"train/{arm}" for arm in arms]
    evaluated = [f"evaluate/{arm}/{kind}" for arm in arms for kind in ("best", "final")]
    return ["prepare", "tokenize", "sft", "ranker", *trained, "evaluate/sft", "evaluate/baselines", *evaluated]


def note_collected(run: Run, metrics: Mapping[str, Any]) -> None:
    """Note from what a metrics.json that was just written was gathered."""
    found = {name: manifest(run.path(*name.split("/"))) for name in gathered_stages(metrics)}
    run.record(COLLECTED, {name: content["fingerprint"] for name, content in found.items() if content is not None})


def collected(run: Run) -> dict[str, str] | None:
    """The fingerprints of what the run's metrics.json was gathered from; None where nothing was noted."""
    found = read_description(run.path(DESCRIPTION).parent).get(COLLECTED)
    return None if found is None else dict(found)
