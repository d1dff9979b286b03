"""Is the user's own list as strong as it can be made? Counts that decay, by baskets or by days, chosen on validation.

    python -m research.next_order.own --data DIR --out runs/own

A row of `own.jsonl` is an order of a user's own items, completed by popularity. Test is read for `own` and for the best
one on validation.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from adagrpo.cli.log_commands import recipe_of_logs
from adagrpo.cli.log_roles import by_role
from adagrpo.config.yaml_text import parse_yaml
from adagrpo.evaluation.predictions import ranks_in
from adagrpo.lists.own import OwnItems, _summed, past_of
from adagrpo.lists.query import past_of_queries, query_of
from adagrpo.metrics import hit_rate, ndcg, recall
from adagrpo.pipeline import Run
from adagrpo.pipeline.files import RunData
from adagrpo.types import Cases, Histories
from research.command import run
from research.rows import add_row

ROWS = Path(__file__).parent / "own.jsonl"
TOP, BATCH = 10, 256
BASKETS, DAYS = (0.5, 0.7, 0.8, 0.9, 0.95), (15, 30, 60, 120, 240)  # decay a basket, half-lives

Order = Callable[[Histories], Tensor]


def main() -> None:
    """Measure all orders on validation, and two on test."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of the sets")
    parser.add_argument("--out", type=Path, default=Path("runs/own"))
    given = parser.parse_args()
    recipe, *_ = recipe_of_logs(by_role([given.data / "online-retail/orders.parquet"]), "online-retail", ())
    content = parse_yaml(recipe)
    content["data"].pop("max_bad_rows", None)
    made = Run.create(content, given.out)
    made.prepare()
    data = RunData(made)
    counts = data.training.counts(data.num_items)
    usual = OwnItems(counts)

    def decayed(weight: Callable[[Histories], Tensor]) -> Order:
        def scores(histories: Histories) -> Tensor:
            found = _summed(past_of(histories), weight(histories), data.num_items).double()
            ties = 1e-9 * usual.scores(histories)
            return torch.where(found > 0, found + ties, ties - 1.0)

        return scores

    orders: dict[str, Order] = {"own": usual.scores}
    orders |= {f"{base:g} a basket": decayed(lambda h, base=base: base ** past_of(h).baskets) for base in BASKETS}  # type: ignore[misc]
    orders |= {f"half-life {half} days": decayed(lambda h, half=half: 0.5 ** (past_of(h).days / half)) for half in DAYS}  # type: ignore[misc]
    ROWS.unlink(missing_ok=True)
    cases = data.cases("validation")
    found = {name: _measured(cases, order) for name, order in orders.items()}
    best = max((name for name in found if name != "own"), key=lambda name: found[name]["ndcg@10"])
    test = data.cases("test")
    for name, metrics in found.items():
        row = {"order": name, "validation": metrics}
        row |= {"test": _measured(test, orders[name])} if name in ("own", best) else {}
        add_row(ROWS, row)
        print(row, flush=True)


def _measured(cases: Cases, order: Order) -> dict[str, float]:
    parts = []
    for first in range(0, len(cases), BATCH):
        queries = [query_of(cases, row) for row in range(first, min(first + BATCH, len(cases)))]
        none = torch.zeros(len(queries), 1, dtype=torch.int64)
        histories = Histories(none, none[:, 0] + 1, past=past_of_queries(queries, grouped=True))
        parts.append(order(histories).topk(TOP).indices.numpy())
    assert cases.sizes is not None, "a case is a basket"
    ranks = ranks_in(np.concatenate(parts), cases)
    values = {"hr@10": hit_rate(ranks, TOP), "recall@10": recall(ranks, TOP, cases.sizes)}
    values["ndcg@10"] = ndcg(ranks, TOP, cases.sizes)
    return {name: round(float(column.mean()), 4) for name, column in values.items()}


if __name__ == "__main__":
    run(main)
