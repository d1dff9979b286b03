"""Failures in training: skipped steps, uninformative rewards, empty groups, collapsed policies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from adagrpo.report.figures import Log
from adagrpo.report.tables import MISSING, Alignment, Table, format_metric, is_finite

COUNTED = "not_finite_"


def numbers_table(logs: Sequence[Log]) -> Table | None:
    """Tabulate failures, one arm per row; None if there were none."""
    rows = []
    for log in logs:
        causes = Counter(key.removeprefix(COUNTED) for row in log.steps for key in row if key.startswith(COUNTED))
        same = [one.constant_rewards for one in log.groups if is_finite(one.constant_rewards)]
        share = sum(same) / len(same) if same else 0.0
        skipped = sum("skipped" in row for row in log.steps)
        empty = sum(int(one.empty_groups or 0) for one in log.groups)
        if skipped or share or empty or log.lost:
            what = ", ".join(f"{name}: {count}" for name, count in causes.most_common())
            lost = f"step {log.lost['step']}: {log.lost['why']}" if log.lost else MISSING
            counts = (f"{len(log.steps):,}", f"{skipped:,}", what, format_metric("admission", share), f"{empty:,}")
            rows.append((log.arm, *counts, lost))
    header = ("arm", "steps", "skipped", "not finite", "samples with equal rewards")
    more = ("groups without an item", "policy lost")
    right: tuple[Alignment, ...] = ("right", "right", "left", "right", "right")
    return Table((*header, *more), tuple(rows), ("left", *right, "left")) if rows else None
