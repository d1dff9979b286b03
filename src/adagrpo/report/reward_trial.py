"""The table of the demo: lists by reward, which one `decide` chose, and their true utility on test.

Trained arms are at their best validation checkpoint; the sentences report the last step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adagrpo.evaluation.comparison import reported
from adagrpo.lists.table import LISTED
from adagrpo.report.tables import MISSING, Table, format_metric, metric_label

HIT, RANK, UTILITY = "hr@10", "ndcg@10", "true_utility@10"
SHOWN = (HIT, RANK, UTILITY)
FREE = (*LISTED, "sft", "nll", "fuse-without-reward")  # lists without a reward
RANKER = "The sequential ranker is fitted on shown items alone here, on purpose: it is the second reward, a wrong one."


def contenders_table(content: Mapping[str, Any]) -> Table:
    """Tabulate lists by reward from demo.json, the simplest first."""
    rows: dict[tuple[str, str], tuple[str, ...]] = {}
    chosen: dict[tuple[str, str], list[str]] = {}
    for reward, decision in content["decisions"].items():
        for row in decision["contenders"]:
            place = (MISSING if row["list"] in FREE else reward, row["list"])
            values = (*(format_metric(name, row["test"][name]) for name in SHOWN), f"{row['milliseconds']:.1f}")
            rows.setdefault(place, values)
            if row["list"] == decision["chosen"]:
                chosen.setdefault(place, []).append(reward)
    ordered = sorted(rows, key=lambda place: [MISSING, *content["decisions"]].index(place[0]))
    body = tuple((*place, *rows[place][:-1], ", ".join(chosen.get(place, [])), rows[place][-1]) for place in ordered)
    header = ("reward", "list", *map(metric_label, SHOWN), "chosen under", "ms")
    return Table(header, body, ("left", "left", "right", "right", "right", "left", "right"))


def trial_sentences(content: Mapping[str, Any]) -> list[str]:
    """Return for each reward the advice, what is served, and the effect of training to the end."""
    sentences = []
    for reward, verdict in content["rewards"].items():
        decision, weights = content["decisions"][reward], content["fused_weights"][reward]
        tested = {row["list"]: row["test"] for row in decision["contenders"]}
        served, start = (
            {name: format_metric(name, tested[key][name]) for name in SHOWN}
            for key in (decision["chosen"], decision["control"])
        )
        sentences.append(
            f"{reward}: diagnose says {verdict['decision']}. {verdict['sentences'][1]} decide serves"
            f" {decision['chosen']}, with true utility {served[UTILITY]} and HR@10 {served[HIT]}; {decision['control']}"
            f" has {start[UTILITY]} and {start[HIT]}. In fuse the reward has weight {weights['reward']:.2f} and the"
            f" policy {weights['policy']:.2f}, in spreads. {_trained(content['rows'], reward)}"
        )
    return [*sentences, RANKER]


def _trained(rows: Any, reward: str) -> str:
    moved: dict[str, list[str]] = {"raised it": [], "lowered it": [], "did not change it": []}
    for row in rows:
        name, _, arm = row["arm"].rpartition(": ")
        if name == reward:
            low, high = reported(row["against"][UTILITY])
            verb = "raised it" if low > 0 else "lowered it" if high < 0 else "did not change it"
            moved[verb].append(arm)
    parts = [f"{', '.join(arms)} {verb}" for verb, arms in moved.items() if arms]
    return f"True utility of training alone, last step against nll: {'; '.join(parts)}."
