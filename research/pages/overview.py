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
from research.pages.picture import mark_at, picture, text_at

__all__ = ["Effect", "effects", "overview_figure", "sources"]

METRIC = "true_utility@10"
MAP = "quality-marketplace.jsonl"
RECOMMENDED = {  # reward of the map: the comparison that has the arm without the margin under it
    "trees": "marketplace-margin-trees.comparison.json",
    "impressions": "marketplace-margin-impressions.comparison.json",
}
WITH_MARGIN, WITHOUT_MARGIN = "distill-chosen", "chosen-without-margin"
ARMS = {
    "mixture": "GRPO beside NLL, λ 1",
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
WIDTH, LEFT, RIGHT = 480, 204, 462
ROW, HEAD, LANE = 34, 24, 7  # of a reward, of what was said of it, between two arms


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
    """The SVG.

    Args:
        marks: of `effects`.
    """
    rewards = list(dict.fromkeys(mark.reward for mark in marks))
    said = {mark.reward: mark.said for mark in marks}
    top = 114 + 18 * len(ARMS)
    bottom = top + ROW * len(rewards) + HEAD * len(set(said.values()))
    low = min(mark.low for mark in marks)
    first = int(low * 100) - 1

    def x(value: float) -> float:
        return LEFT + (100 * value - first) / (1 - first) * (RIGHT - LEFT)

    parts = [
        text_at(12, 28, "A wrong reward makes the recommender worse.", "ink", size=17, bold=True),
        text_at(12, 50, f"{len(rewards)} rewards in a simulated shop, where it is known what", "quiet"),
        text_at(12, 68, "users would like: what diagnose said of each, and what", "quiet"),
        text_at(12, 86, "training on it then did to the lists.", "quiet"),
    ]
    for lane, (arm, name) in enumerate(ARMS.items()):
        y = 112 + 18 * lane
        parts += [mark_at(lane, 20, y - 4), text_at(34, y, name, "ink", of=arm)]
    for points in range(first, 2):
        place = x(points / 100)
        kind = "zero" if points == 0 else "grid"
        parts.append(f'<path class="{kind}" d="M{place:.1f} {top - 6}V{bottom}" fill="none"/>')
        parts.append(
            text_at(place, bottom + 18, f"{points:+d}".replace("-", "−") if points else "0", "quiet", "middle")
        )
    parts.append(text_at(RIGHT, bottom + 38, "true utility@10 against continued NLL, points", "quiet", "end"))
    previous, y = "", top - ROW
    for reward in rewards:
        y += ROW
        if said[reward] != previous:
            previous = said[reward]
            parts.append(f'<path class="zero" d="M12 {y}H{RIGHT}" fill="none" stroke-opacity=".6"/>')
            parts.append(text_at(12, y + 18, f"diagnose: {SAID[previous]}", "ink", bold=True))
            y += HEAD
        parts.append(text_at(12, y + 21, NAMES.get(reward, reward), "ink"))
        for mark in (mark for mark in marks if mark.reward == reward):
            lane = list(ARMS).index(mark.arm)
            height = y + 6 + LANE * lane
            shown = f'<path class="a{lane}" d="M{x(mark.low):.1f} {height}H{x(mark.high):.1f}" stroke-width="1.5"/>'
            parts += [shown, mark_at(lane, x(mark.difference), height)]
    without = sum(WITHOUT_MARGIN not in {mark.arm for mark in marks if mark.reward == reward} for reward in rewards)
    notes = ["One world, one seed. Lines are 95 % intervals over users.", "GRPO without NLL lies further left."]
    notes += [f"The recommended arm was not run under {without} of the rewards."] if without else []
    parts += [text_at(12, bottom + 60 + 16 * i, note, "quiet", size=12) for i, note in enumerate(notes)]
    title = "What training on eleven rewards did to true utility, by what diagnose had said"
    return picture(title, parts, WIDTH, bottom + 58 + 16 * len(notes))


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
