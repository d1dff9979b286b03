"""The figure of the README: what `diagnose` said of eleven rewards, and what training on each then did to users.

A row a reward, in the order of its quality (`research.pages.quality`), grouped by what `diagnose` said before training.
A mark an arm: its true utility@10 at the last step less that of continued NLL, with the interval over users. Marks have
a shape and a lane each, so that none needs its colour. `grpo` alone is left out: its losses would leave the others no
room. The recommended arm is distillation with the weight of validation and without a margin. Where validation chose
weight 0 it is continued NLL, as the arm with the margin is, and their difference is 0; two rewards have a run of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from adagrpo.errors import UserError
from adagrpo.evaluation.comparison import reported
from adagrpo.report import read_comparison, read_rows
from adagrpo.report.interval_charts import ForestRow, IntervalMark, forest_chart

__all__ = ["Effect", "effects", "overview_figure", "sources"]

METRIC = "true_utility@10"
MAP = "quality-marketplace.jsonl"
RECOMMENDED = {  # reward of the map: the comparison that has the arm without the margin under it
    "trees": "marketplace-margin-trees.comparison.json",
    "impressions": "marketplace-margin-impressions.comparison.json",
}
WITH_MARGIN, WITHOUT_MARGIN = "distill-chosen", "chosen-without-margin"
ARMS = {
    "mixture": "mixture, λ 1",
    "adagrpo": "the earlier gate, λ 1",
    "distill-ends": "distillation, fixed weight",
    WITHOUT_MARGIN: "distillation, weight from validation",
}
SAID = {"use": "use", "rerank_only": "re-rank only", "do_not_use": "do not use"}
NAMES = {  # of rewards, in print
    "trees": "trees on impressions",
    "impressions": "ranker on impressions",
    "impressions weighted by propensity": "ranker, propensity weights",
    "impressions without sampled items": "ranker, shown items alone",
    "five epochs": "ranker, five epochs",
    "one epoch": "ranker, one epoch",
    "a tenth of the users": "ranker, a tenth of the users",
    "noise as large as the scores": "ranker plus as much noise",
    "noise of three times the scores": "ranker, three times the noise",
}


class Effect(NamedTuple):
    """What one arm did under one reward, in true utility; the ends are those of the interval over users."""

    reward: str
    said: str  # by diagnose, before training
    arm: str
    difference: float
    low: float
    high: float


def sources(results: Path) -> list[Path]:
    """The files that the figure is drawn from; empty if one of them is not there."""
    found = [next(iter(results.rglob(name)), None) for name in (MAP, *RECOMMENDED.values())]
    return [path for path in found if path is not None] if None not in found else []


def effects(results: Path) -> list[Effect]:
    """The marks of the figure, rewards from what is said best of to worst, and then by quality.

    Raises:
        UserError: a file is damaged, or an arm under a reward is not in it.
    """
    files = {path.name: path for path in sources(results)}
    rows = read_rows(files[MAP])
    order = list(SAID)
    rows.sort(key=lambda row: (order.index(row["diagnosis"]["decision"]), -_quality(row)))
    marks = []
    for row in rows:
        reward, said = str(row["variant"]), str(row["diagnosis"]["decision"])
        for arm in ARMS:
            result = _recommended(row, files) if arm == WITHOUT_MARGIN else _against(row["arms"], arm, files[MAP])
            if result is not None:
                low, high = reported(result)
                marks.append(Effect(reward, said, arm, result["difference"], low, high))
    return marks


def overview_figure(marks: Sequence[Effect]) -> str:
    """Draw the figure.

    Args:
        marks: of `effects`.
    """
    rewards = list(dict.fromkeys(mark.reward for mark in marks))
    rows = []
    for reward in rewards:
        own = {mark.arm: mark for mark in marks if mark.reward == reward}
        said = SAID[next(iter(own.values())).said]
        found = {arm: IntervalMark(mark.difference, mark.low, mark.high) for arm, mark in own.items()}
        rows.append(ForestRow(NAMES.get(reward, reward), found, f"diagnose: {said}"))
    without = sum(WITHOUT_MARGIN not in row.marks for row in rows)
    notes = (
        f"{len(rewards)} rewards in a simulated shop, where it is known what users would like: what diagnose said of"
        " each before training, and what training on it then did to the lists. One world, one seed. Lines are 95 %"
        " intervals over users. GRPO without NLL lies further left."
    )
    return forest_chart(
        rows,
        title="A wrong reward makes the recommender worse.",
        x_label="true utility@10 against continued NLL, points",
        percent_points=True,
        names=ARMS,
        notes=notes + (f" The recommended arm was not run under {without} of the rewards." if without else ""),
    )


def _recommended(row: Mapping[str, Any], files: Mapping[str, Path]) -> Mapping[str, Any] | None:
    """The recommended arm under a reward, or None where no run has it."""
    reward = row["variant"]
    if reward in RECOMMENDED:
        path = files[RECOMMENDED[reward]]
        return _against(read_comparison(path)["rows"], WITHOUT_MARGIN, path)
    with_margin = _against(row["arms"], WITH_MARGIN, files[MAP])
    weight_is_0 = with_margin["difference"] == 0 and list(with_margin["users"]) == [0, 0]
    return with_margin if weight_is_0 else None


def _against(rows: Sequence[Mapping[str, Any]], arm: str, path: Path) -> Mapping[str, Any]:
    """The last checkpoint of an arm against the baseline."""
    for row in rows:
        if row["arm"] == arm and row["checkpoint"] == "final" and METRIC in row["against"]:
            return dict(row["against"][METRIC])
    raise UserError(f"{path}: no {METRIC} of the arm {arm} at its last step")


def _quality(row: Mapping[str, Any]) -> float:
    return float(row["diagnosis"]["minus_policy"]["mix"]["ndcg@10"]["mean"])
