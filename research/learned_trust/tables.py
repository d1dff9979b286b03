"""The tables of this study, `tables.md`, from its rows.

python -m research.learned_trust.tables        # writes them
python -m research.learned_trust.tables --check
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adagrpo.report import read_rows
from adagrpo.report.tables import MISSING, Table
from research.command import run
from research.marked_tables import keep_page, with_marked
from research.worlds_pooled import shown, signed

__all__ = ["arms_table", "over_table", "pressed_table", "real_table", "rerank_table", "written"]

HERE = Path(__file__).parent
WRONG = {"item_group": "half of the item groups", "exposure": "half of the items", "user_group": "half of the users"}
FILES = ("trust.jsonl", "real.jsonl")
UTILITY = "true_utility@10"


def _difference(values: list[float], scale: float = 1, digits: int = 4) -> str:
    mean, low, high = (signed(scale * value, digits) for value in values)
    return f"{mean} ({low} … {high})"


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


def over_table(rows: list[dict[str, Any]]) -> Table:
    """What learned weights re-rank above the best single one, over worlds."""
    ranked = [row for row in rows if "arms" not in row]
    cells = []
    for by in dict.fromkeys(row["by"] for row in ranked):
        found = [row["trusted_minus_one_weight"][UTILITY] for row in ranked if row["by"] == by]
        cells.append((WRONG.get(by, "nowhere"), _pooled(found), ", ".join(signed(entry[0], 4) for entry in found)))
    header = ("scores say nothing for", "learned less single", "in each world")
    return Table(header, tuple(cells), ("left", "right", "right"))


def arms_table(rows: list[dict[str, Any]]) -> Table:
    """True utility of arms trained at one lambda against continued NLL, world by world."""
    cells = [
        (
            row["world"],
            WRONG.get(row["by"], "nowhere"),
            name,
            _difference(result[UTILITY]),
            MISSING if name == "trusted" else _difference(row["trusted_minus"][name][UTILITY]),
        )
        for row in rows
        if "arms" in row and not _is_pressed(row)
        for name, result in row["arms"].items()
    ]
    header = ("world", "scores say nothing for", "arm", "against continued NLL", "trusted less this arm")
    return Table(header, tuple(cells), ("left", "left", "left", "right", "right"))


def pressed_table(rows: list[dict[str, Any]]) -> Table:
    """True utility of arms trained at one pressure, over worlds, and what the trusted one has above each in each."""
    pressed = [row for row in rows if "arms" in row and _is_pressed(row)]
    cells = []
    for by in dict.fromkeys(row["by"] for row in pressed):
        worlds = [row for row in pressed if row["by"] == by]
        for name in worlds[0]["arms"]:
            less = [row["trusted_minus"][name][UTILITY] for row in worlds] if name != "trusted" else []
            cells.append(
                (
                    WRONG.get(by, "nowhere"),
                    name,
                    _pooled([row["arms"][name][UTILITY] for row in worlds]),
                    _pooled(less),
                    ", ".join(signed(entry[0], 4) for entry in less) or MISSING,
                )
            )
    header = ("scores say nothing for", "arm", "against continued NLL", "trusted less this arm", "in each world")
    return Table(header, tuple(cells), ("left", "left", "right", "right", "right"))


def _is_pressed(row: dict[str, Any]) -> bool:
    return any(setting.startswith("objective.pressure=") for setting in row["set"])


def _pooled(values: list[list[float]]) -> str:
    """Of differences with their intervals over users, which are 1.96 standard errors to either side."""
    return shown([(mean, ((high - low) / 2 / 1.96) ** 2) for mean, low, high in values], 1, 4)


def real_table(rows: list[dict[str, Any]]) -> Table:
    """Hits of re-ranking real lists, a row a set, over users and seeds."""
    cells = [
        (
            row["set"],
            f"{row['users']:,}",
            ", ".join(row["decisions"]),
            ", ".join(f"{weight:.3g}" for weight in row["best_weights"]),
            f"{100 * row['policy']:.2f} %",
            *(_difference(row[name], 100, 2) for name in ("one_weight", "trusted", "trusted_minus_one_weight")),
        )
        for row in rows
    ]
    header = ("data set", "test users", "fitted, by seed", "single weight, by seed", "HR@10 of the policy")
    header += ("best single weight, points", "learned weights, points", "learned less single, points")
    return Table(header, tuple(cells), ("left", "right", "left", "right", "right", "right", "right", "right"))


def written(text: str, rows: list[dict[str, Any]], real: list[dict[str, Any]]) -> str:
    """The text with its tables as the rows of the worlds and those of the real sets have them."""
    made = {"rerank": rerank_table, "over": over_table, "pressed": pressed_table, "arms": arms_table}
    tables = {name: table(rows) for name, table in made.items()} | {"real": real_table(real)}
    return with_marked(text, "trust", tables)


def main() -> None:
    """Write the tables, or say that they are out of date."""
    page = HERE / "tables.md"
    worlds, real = (list(map(dict, read_rows(HERE / file))) for file in FILES)
    keep_page(page, written(page.read_text(encoding="utf-8"), worlds, real), __doc__)


if __name__ == "__main__":
    run(main)
