"""The tables of the page of this study, from its rows.

python -m research.learned_trust.tables        # writes them into README.md
python -m research.learned_trust.tables --check
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adagrpo.report import read_rows
from adagrpo.report.tables import MISSING, Table
from research.marked_tables import keep_page, with_marked

__all__ = ["arms_table", "rerank_table", "written"]

HERE = Path(__file__).parent
WRONG = {"item_group": "half of the item groups", "exposure": "half of the items", "user_group": "half of the users"}
UTILITY = "true_utility@10"


def _difference(values: list[float], scale: float = 1.0) -> str:
    mean, low, high = (f"{scale * value:+.4f}" for value in values)
    return f"{mean} ({low} … {high})".replace("-", "\N{MINUS SIGN}")


def rerank_table(rows: list[dict[str, Any]]) -> Table:
    """True utility of re-ranking, by world and by where the reward says nothing."""
    cells = [
        (
            row["world"],
            WRONG.get(row["by"], "nowhere"),
            f"{row['accuracy']['right part']:.3f}",
            f"{row['accuracy']['wrong part']:.3f}" if "wrong part" in row["accuracy"] else MISSING,
            row["trust"]["decision"],
            _difference(row["rerank"]["one weight"][UTILITY]),
            _difference(row["rerank"]["trusted"][UTILITY]),
            _difference(row["trusted_minus_one_weight"][UTILITY]),
        )
        for row in rows
        if "arms" not in row
    ]
    header = ("world", "scores say nothing for", "pairs right, right part", "wrong part", "fitted")
    header += ("best single weight", "learned weights", "learned less single")
    return Table(header, tuple(cells), ("left", "left", "right", "right", "left", "right", "right", "right"))


def arms_table(rows: list[dict[str, Any]]) -> Table:
    """True utility of trained arms against continued NLL."""
    cells = [
        (
            row["world"],
            WRONG.get(row["by"], "nowhere"),
            name,
            _difference(result[UTILITY]),
            MISSING if name == "trusted" else _difference(row["trusted_minus"][name][UTILITY]),
        )
        for row in rows
        if "arms" in row
        for name, result in row["arms"].items()
    ]
    header = ("world", "scores say nothing for", "arm", "against continued NLL", "trusted less this arm")
    return Table(header, tuple(cells), ("left", "left", "left", "right", "right"))


def written(text: str, rows: list[dict[str, Any]]) -> str:
    """The page with its tables as the rows have them."""
    return with_marked(text, "trust", {"rerank": rerank_table(rows), "arms": arms_table(rows)})


def main() -> None:
    """Write the tables, or say that they are out of date."""
    page = HERE / "README.md"
    keep_page(page, written(page.read_text(encoding="utf-8"), list(read_rows(HERE / "trust.jsonl"))), __doc__)


if __name__ == "__main__":
    main()
