"""The tables of the page of this study, from its rows.

python -m research.gate_best_case.tables        # writes them into README.md
python -m research.gate_best_case.tables --check
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adagrpo.evaluation.comparison import over_both
from adagrpo.report import read_rows
from adagrpo.report.tables import MISSING, Table
from research.marked_tables import keep_page, with_marked

__all__ = ["arms_table", "over_worlds", "pairs_table", "written"]

HERE = Path(__file__).parent
UTILITY, HITS = "true_utility@10", "hr@10"


def over_worlds(values: Sequence[Sequence[float]]) -> tuple[float, float, float] | None:
    """The mean over worlds, with its 95 % interval over users and worlds; None for a single world.

    Args:
        values: a mean and its variance over users of each world, whose users are not those of another.
    """
    means, variances = [value[0] for value in values], [value[1] for value in values]
    if len(values) < 2:
        return None
    users = sum(variances) / len(values) ** 2
    low, high = over_both(means, users, users, 0.95)["both"]
    return sum(means) / len(means), low, high


def _shown(values: Sequence[Sequence[float]], scale: float, digits: int) -> str:
    found = over_worlds(values)
    if found is None:
        return MISSING
    mean, low, high = (_signed(scale * value, digits) for value in found)
    return f"{mean} ({low} … {high})"


def _signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


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
            _shown([entry[UTILITY] for entry in entries], 1, 4),
            ", ".join(_signed(entry[UTILITY][0], 4) for entry in entries),
            _shown([entry[HITS] for entry in entries], 100, 2),
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
            _shown([entry[UTILITY] for entry in entries], 1, 4),
            _shown([entry[HITS] for entry in entries], 100, 2),
        )
        for reward, name, entries in _by(rows, "arms")
    ]
    header = ("reward", "arm", "admitted", "pressure over the fit", "true utility@10", "HR@10, points")
    return Table(header, tuple(cells), ("left", "left", "right", "right", "right", "right"))


def _mean(entries: Sequence[Mapping[str, Any]], name: str, scale: float, form: str) -> str:
    """Of the worlds whose arm has it: one without a teacher is continued NLL, and admits nothing."""
    found = [float(entry[name]) for entry in entries if entry[name] is not None]
    return form.format(scale * sum(found) / len(found)) if found else MISSING


def written(text: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """The page with its tables as the rows have them."""
    return with_marked(text, "gates", {"pairs": pairs_table(rows), "arms": arms_table(rows)})


def main() -> None:
    """Write the tables, or say that they are out of date."""
    page = HERE / "README.md"
    keep_page(page, written(page.read_text(encoding="utf-8"), list(read_rows(HERE / "gates.jsonl"))), __doc__)


if __name__ == "__main__":
    main()
