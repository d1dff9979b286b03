"""What `adagrpo decide` serves on public logs, and what every other list would have given there.

    python -m research.decisions.sets --data DIR --out runs/decisions --sets lastfm
    python -m research.decisions.sets --table

DIR holds the sets as `examples.datasets` writes them; recipes are those of `research.fair_trial`. A row of `sets.jsonl`
has what was chosen and, for every contender, HR@10 and NDCG@10 on validation and test. `--train` lets the trained arms
of `sets.yaml` compete too. What has its row is not measured again.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from adagrpo.console import StderrConsole
from adagrpo.pipeline import Run
from adagrpo.report import read_rows
from research.command import run
from research.fair_trial.tune import folder_of, recipe_of
from research.rows import add_row

HERE = Path(__file__).parent
RESULTS = HERE / "sets.jsonl"
KEY = ("set", "seed", "trained")


def main() -> None:
    """Measure what is missing, or print the table of what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the folder of all sets")
    parser.add_argument("--out", type=Path, help="where runs are made")
    parser.add_argument("--sets", nargs="+", default=[])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--train", action="store_true", help="trained arms compete too")
    parser.add_argument("--table", action="store_true", help="print the table alone")
    given = parser.parse_args()
    if not given.table:
        for seed in given.seeds:
            for name in given.sets:
                _measure(name, seed, given.train, given.data, given.out)
    print(table(read_rows(RESULTS)))


def _measure(name: str, seed: int, train: bool, data: Path, out: Path) -> None:
    key = dict(zip(KEY, (name, seed, train), strict=True))
    if any(all(row[part] == value for part, value in key.items()) for row in read_rows(RESULTS)):
        return
    plan, trial = (yaml.safe_load(path.read_text("utf-8")) for path in (HERE / "sets.yaml", _TRIAL))
    own = plan["sets"].get(name, {})
    config = recipe_of(trial, name, *plan["settings"], *own.get("settings", []), f"seed={seed}")
    made = Run(out / f"{name}-{seed}", config, folder_of(trial, name, data), StderrConsole())
    content = made.decide(train=train)
    contenders = {
        row["list"]: {part: row[part] for part in ("validation", "test", "milliseconds")}
        for row in content["contenders"]
    }
    cases = {"cases": content["cases"], "doubts": content["doubts"]}
    add_row(RESULTS, key | {"chosen": content["chosen"], "best": content["best"]} | cases | {"contenders": contenders})


_TRIAL = HERE.parent / "fair_trial" / "plan.yaml"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """HR@10 / NDCG@10 on test of every contender, the mean over seeds; what was chosen is in bold."""
    names = list(dict.fromkeys(name for row in rows for name in row["contenders"]))
    lines = ["| set | seeds | " + " | ".join(names) + " |", "|---|--:|" + "--:|" * len(names)]
    for found in dict.fromkeys(row["set"] for row in rows):
        own = [row for row in rows if row["set"] == found]
        chosen = {row["chosen"] for row in own}
        cells = []
        for name in names:
            tests = [row["contenders"][name]["test"] for row in own if name in row["contenders"]]
            means = [np.mean([test[metric] for test in tests]) for metric in ("hr@10", "ndcg@10")] if tests else []
            text = " / ".join(f"{mean:.4f}".removeprefix("0") for mean in means) or "–"
            cells.append(f"**{text}**" if name in chosen else text)
        lines.append(f"| {found} | {len({row['seed'] for row in own})} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
