"""Turn MiniOneRec's sliding-window samples into a log: python minionerec_logs.py TRAIN.csv VALID.csv TEST.csv --out LOG

Its CSV files hold a row for each target, with the at most ten items before it, in the order of time. A log holds each
interaction once. The time written is the place of the row in the three files, from 1000 on, and what stands before a
user's first target is given the times 0 to 9. The two places that split the log are printed for the recipe.
"""

from __future__ import annotations

import argparse
import ast
from pathlib import Path

import polars as pl

FIRST = 1000


def to_log(files: list[Path]) -> tuple[pl.DataFrame, list[int]]:
    """The log of train, validation and test files, and the times at which validation and test begin."""
    rows: list[tuple[str, int, int]] = []
    starts: list[int] = []
    known: set[str] = set()
    time = FIRST
    for file in files:
        starts.append(time)
        table = pl.read_csv(file, columns=["user_id", "history_item_id", "item_id"], infer_schema=False)
        for user, history, item in table.iter_rows():
            if user not in known:
                known.add(user)
                rows += [(user, int(before), place) for place, before in enumerate(ast.literal_eval(history))]
            rows.append((user, int(item), time))
            time += 1
    return pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row"), starts[1:]


def main() -> None:
    """Read the arguments, write the log, print the split."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs=3, type=Path, metavar="CSV")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    log, (validation, test) = to_log(arguments.files)
    log.write_parquet(arguments.out)
    print(f"{len(log):,} interactions of {log['user_id'].n_unique():,} users")
    print(f"data.split: {{kind: temporal, validation_from: {validation}, test_from: {test}}}")


if __name__ == "__main__":
    main()
