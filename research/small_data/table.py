"""The table of the study on small data, from its rows.

python -m research.small_data.table
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adagrpo.report.page import read_rows
from adagrpo.report.tables import Table, to_markdown
from research.command import run

HERE = Path(__file__).parent


def main() -> None:
    """Print it."""
    print(to_markdown(table(read_rows(HERE / "small-data.jsonl"))))


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """One row a set, seed and arm: NDCG@10 after the last step against the start and against continued NLL."""
    header = ("set", "seed", "arm", "start", "against start", "against nll", "invalid among free draws", "holds")
    cells = tuple(
        (
            row["set"],
            str(row["seed"]),
            row["arm"],
            f"{row['start']['ndcg@10']:.4f}",
            _ends(row["vs_start"]["ndcg@10"]),
            "" if row["arm"] == "nll" else _ends(row["vs_nll"]["ndcg@10"]),
            f"{100 * row['start']['invalid_samples']:.1f} → {100 * row['final']['invalid_samples']:.1f} %",
            "yes" if all(row[f"vs_{name}"]["ndcg@10"][2] >= 0 for name in ("start", "nll")) else "no",
        )
        for row in rows
    )
    return Table(header, cells, ("left", "right", "left", "right", "right", "right", "right", "left"))


def _ends(values: Sequence[float]) -> str:
    mean, low, high = values
    return f"{mean:+.4f} ({low:+.4f} … {high:+.4f})"


if __name__ == "__main__":
    run(main)
