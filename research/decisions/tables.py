"""The tables of this study, `tables.md`, from its rows.

python -m research.decisions.tables        # writes them
python -m research.decisions.tables --check
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from adagrpo.report.page import read_rows
from adagrpo.report.tables import to_markdown
from research.command import run
from research.decisions import (
    earlier,
    exposure_weights,
    features,
    look_ups,
    network,
    richer,
    served,
    sets,
    shops,
    single_models,
    teacher,
)
from research.marked_tables import keep_page

__all__ = ["written"]

HERE = Path(__file__).parent


def _single_models(rows: Sequence[Mapping[str, Any]]) -> str:
    return to_markdown(single_models.table(rows))


TITLE = "# Which list to serve: tables"
# heading, the command that prints the table, the rows' file, and what makes the table of them
SECTIONS: tuple[tuple[str, str, str, Callable[[Sequence[Mapping[str, Any]]], str]], ...] = (
    ("Public logs", "sets", "sets", sets.table),
    ("What the fused list has more of HR@10, points", "", "sets", sets.gains),
    (
        "The fused list and the strongest single model",
        "single_models",
        "sets",
        lambda rows: to_markdown(single_models.table(rows)),
    ),
    ("November's public logs, with trained arms too", "", "sets-november", sets.table),
    ("What the best trained and fused list has more than the fused one", "", "sets-november", sets.trained),
    ("November's runs by weights alone", "", "sets-weights-alone", sets.table),
    ("What a part of the fused list gives, and another would, validation", "richer", "richer", richer.table),
    ("Optional features of the fused list, validation", "features", "features", features.table),
    ("Further look-ups in the fused list, validation", "look_ups", "look_ups", look_ups.table),
    ("Choices at an earlier position too, validation", "earlier", "earlier", earlier.table),
    ("Served lists that differ from the evaluated ones", "served", "served", served.table),
    ("Back into one policy", "teacher", "teacher", teacher.table),
    ("Simulated shops: true utility@10 of what was served, minus that of each list", "shops", "shops", shops.table),
    ("The same by kind of shop", "", "shops", shops.by_kind),
    ("What the reward adds to true utility@10, by the verdict of `diagnose`", "", "shops", shops.by_verdict),
    ("Does what re-ranking gains predict what training gains? Over worlds", "", "shops", shops.predicted),
    (
        "Exposure weights: test HR@10 of the logs / true utility@10",
        "exposure_weights",
        "exposure_weights",
        exposure_weights.table,
    ),
    ("The network in simulated shops: HR@10 of the logs / true utility@10", "network", "network", network.table),
)


def written() -> str:
    """The page."""
    parts = [TITLE]
    for heading, module, rows, table in SECTIONS:
        command = [f"```\npython -m research.decisions.{module} --table\n```"] if module else []
        parts += [f"## {heading}", *command, table(read_rows(HERE / f"{rows}.jsonl")).strip()]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Write the tables, or say that they are out of date."""
    keep_page(HERE / "tables.md", written(), __doc__)


if __name__ == "__main__":
    run(main)
