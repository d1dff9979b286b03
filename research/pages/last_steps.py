"""The arms of a demo at their last steps: what training on each reward did to the next choice and to true utility.

Every row is an arm's last checkpoint, against continued NLL, which reads no reward. The best checkpoint by validation
is left out here: it hides what pressing on did. What `diagnose` said before training stands beside what came out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adagrpo.evaluation.comparison import reported
from adagrpo.metrics import lookup
from adagrpo.report.comparison_page import format_difference, format_ends
from adagrpo.report.tables import MISSING, Table, format_metric, metric_label

HIT, NO_ITEM, UTILITY = "hr@10", "hallucination@10", "true_utility@10"
LABELS = (metric_label(HIT), "vs nll, points", lookup(NO_ITEM).label, metric_label(UTILITY), "vs nll")


def trial_table(content: Mapping[str, Any]) -> Table:
    """One row an arm and reward.

    Args:
        content: of demo.json.
    """
    rows = []
    for row in content["rows"]:
        reward, _, arm = row["arm"].rpartition(": ")
        said = content["rewards"][reward]["decision"] if reward else MISSING
        values = [format_metric(name, row["test"][name]["mean"]) for name in (HIT, NO_ITEM, UTILITY)]
        rows.append(
            (reward or MISSING, said, arm, values[0], _against(row, HIT), values[1], values[2], _against(row, UTILITY))
        )
    return Table(("reward", "diagnose", "arm", *LABELS), tuple(rows), ("left",) * 3 + ("right",) * 5)


def _against(row: Mapping[str, Any], name: str) -> str:
    """The difference with its interval over users; nothing for the baseline itself."""
    if not row["against"]:
        return MISSING
    against = row["against"][name]
    return f"{format_difference(name, against['difference'])} ({format_ends(name, reported(against))})"
