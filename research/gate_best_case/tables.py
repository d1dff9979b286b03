"""The tables of this study, `tables.md`, from its rows.

python -m research.gate_best_case.tables        # writes them
python -m research.gate_best_case.tables --check
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adagrpo.report.page import read_rows
from adagrpo.report.tables import MISSING, Table
from research.command import run
from research.marked_tables import keep_page, with_marked
from research.worlds_pooled import shown, signed

__all__ = ["arms_table", "pairs_table", "written"]

HERE = Path(__file__).parent
UTILITY, HITS = "true_utility@10", "hr@10"


def _by(rows: Sequence[Mapping[str, Any]], part: str) -> list[tuple[str, str, list[Mapping[str, Any]]]]:
    """Reward, name, and what each world has of it, in the order of the rows."""
    rewards = list(dict.fromkeys(row["reward"] for row in rows))
    names = list(dict.fromkeys(name for row in rows for name in row[part]))
    return [
        (reward, name, [row[part][name] for row in rows if row["reward"] == reward])
        for reward in rewards
        for name in names
    ]


def pairs_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """One gate against another: true utility, over all worlds and in each, and hit rate in points."""
    cells = [
        (
            reward,
            name,
            shown([entry[UTILITY] for entry in entries], 1, 4),
            ", ".join(signed(entry[UTILITY][0], 4) for entry in entries),
            shown([entry[HITS] for entry in entries], 100, 2),
        )
        for reward, name, entries in _by(rows, "pairs")
    ]
    header = ("reward", "arms", "true utility@10", "in each world", "HR@10, points")
    return Table(header, tuple(cells), ("left", "left", "right", "right", "right"))


def arms_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Each arm against continued NLL, with what share it admitted."""
    cells = [
        (
            reward,
            name,
            _mean(entries, "admission", 100, "{:.0f} %"),
            _mean(entries, "pressure", 1, "{:.2f}"),
            shown([entry[UTILITY] for entry in entries], 1, 4),
            shown([entry[HITS] for entry in entries], 100, 2),
        )
        for reward, name, entries in _by(rows, "arms")
    ]
    header = ("reward", "arm", "admitted", "reward strength over the fit", "true utility@10", "HR@10, points")
    return Table(header, tuple(cells), ("left", "left", "right", "right", "right", "right"))


def _mean(entries: Sequence[Mapping[str, Any]], name: str, scale: float, form: str) -> str:
    """Of the worlds whose arm has it: one without a teacher is continued NLL, and admits nothing."""
    found = [float(entry[name]) for entry in entries if entry[name] is not None]
    return form.format(scale * sum(found) / len(found)) if found else MISSING


def written(text: str, rows: Sequence[Mapping[str, Any]], group: str = "gates") -> str:
    """The text with the tables of a group as its rows have them."""
    return with_marked(text, group, {"pairs": pairs_table(rows), "arms": arms_table(rows)})


def main() -> None:
    """Write the tables, or say that they are out of date."""
    page = HERE / "tables.md"
    text = page.read_text(encoding="utf-8")
    for group in ("gates", "paper"):
        text = written(text, list(read_rows(HERE / f"{group}.jsonl")), group)
    keep_page(page, text, __doc__)


if __name__ == "__main__":
    run(main)
