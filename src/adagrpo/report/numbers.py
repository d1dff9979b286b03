"""What went wrong with numbers while a run was trained: steps that were skipped, and rewards that said nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from adagrpo.report.figures import Log
from adagrpo.report.scales import is_finite
from adagrpo.report.tables import Table, format_metric

__all__ = ["numbers_table"]

COUNTED = "not_finite_"


def numbers_table(logs: Sequence[Log]) -> Table | None:
    """Skipped steps by cause, and the share of samples whose rewards were all the same; None where all went well."""
    rows = []
    for log in logs:
        causes = Counter(key.removeprefix(COUNTED) for row in log.steps for key in row if key.startswith(COUNTED))
        same = [row["constant_rewards"] for row in log.steps if is_finite(row.get("constant_rewards"))]
        share = sum(same) / len(same) if same else 0.0
        skipped = sum("skipped" in row for row in log.steps)
        if skipped or share:
            what = ", ".join(f"{name}: {count}" for name, count in causes.most_common())
            rows.append((log.arm, f"{len(log.steps):,}", f"{skipped:,}", what, format_metric("admission", share)))
    header = ("arm", "steps", "skipped", "not finite", "samples whose rewards were all the same")
    return Table(header, tuple(rows), ("left", "right", "right", "left", "right")) if rows else None
