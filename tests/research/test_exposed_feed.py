"""Orders of exposures: against slow twins, and the policy's probabilities against a walk over single items."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from numpy.typing import NDArray

from adagrpo.data.sequences import pad
from adagrpo.pipeline import Run
from adagrpo.policies.compact import CompactPolicy
from adagrpo.semantic_ids.catalog import Catalog
from adagrpo.types import Histories, Ragged
from research.exposed_feed import orders
from research.exposed_feed.judges import TABLE, Judge, Judges
from research.exposed_feed.orders import auc_of, differences, judge_order, means, policy_scores, reward_scores

RNG = np.random.default_rng(3)
USERS = np.repeat(np.arange(40) * 2, RNG.integers(1, 12, 40)).astype(np.int64)
SCORES = RNG.integers(0, 5, len(USERS)).astype(np.float64)  # many ties
CHOSEN = RNG.random(len(USERS)) < 0.4


def slow_auc(scores: NDArray[np.float64], chosen: NDArray[np.bool_]) -> float | None:
    pairs = [(a > b) + (a == b) / 2 for a in scores[chosen] for b in scores[~chosen]]
    return sum(pairs) / len(pairs) if pairs else None


def slow_top(scores: NDArray[np.float64], chosen: NDArray[np.bool_], k: int) -> float | None:
    """The mean over many random orders of what is level."""
    if len(scores) <= k:
        return None
    rng, hits = np.random.default_rng(0), 0.0
    for _ in range(1000):
        order = np.lexsort((rng.random(len(scores)), -scores))
        hits += chosen[order[:k]].mean()
    return hits / 1000


def test_measures_are_those_of_a_slow_twin() -> None:
    judgement = judge_order(SCORES, CHOSEN, USERS)
    assert judgement.users["user"].to_list() == np.unique(USERS).tolist()
    for row in judgement.users.iter_rows(named=True):
        mine = row["user"] == USERS
        expected = slow_auc(SCORES[mine], CHOSEN[mine])
        assert (row["auc"] is None) == (expected is None)
        assert expected is None or row["auc"] == pytest.approx(expected)
        for k in (1, 5):
            rate = slow_top(SCORES[mine], CHOSEN[mine], k)
            assert (row[f"top@{k}"] is None) == (rate is None)
            assert rate is None or row[f"top@{k}"] == pytest.approx(rate, abs=0.06)  # 1,000 orders


def test_means_differences_and_parts() -> None:
    one, other = judge_order(SCORES, CHOSEN, USERS), judge_order(-SCORES, CHOSEN, USERS)
    known = [row["auc"] for row in one.users.iter_rows(named=True) if row["auc"] is not None]
    found = means(one.users)["auc"]
    assert found is not None and found["mean"] == pytest.approx(np.mean(known)) and found["users"] == len(known)
    difference = differences(one.users, other.users)["auc"]
    assert difference is not None and difference["mean"] == pytest.approx(
        2 * np.mean(known) - 1
    )  # AUC of -s is 1 - AUC
    whole = auc_of(np.ones(len(USERS), dtype=np.bool_), one.auc, USERS)
    assert whole is not None and whole["mean"] == pytest.approx(found["mean"])
    assert auc_of(np.zeros(len(USERS), dtype=np.bool_), one.auc, USERS) is None
    with pytest.raises(ValueError, match="other users"):
        differences(one.users, other.users.head(3))


def test_probabilities_are_those_of_single_items(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orders, "CELLS", 7)  # several blocks, and users alone in one
    codes = np.array([[0, 0], [0, 1], [1, 0], [1, 1], [2, 1], [2, 0]])
    catalog = Catalog.from_codes(codes)
    policy = CompactPolicy(
        catalog.codes,
        catalog.level_sizes,
        width=8,
        layers=1,
        heads=2,
        decoder_hidden=8,
        max_history=3,
        dropout=0.5,
        seed=1,
    )
    histories = Ragged(np.array([0, 1, 2, 5, 4, 3, 2], np.int32), np.array([0, 4, 5, 7]))
    users = np.array([0, 0, 0, 1, 2, 2, 2, 2, 2], np.int64)
    items = np.array([3, 5, 0, 1, 2, 4, 0, 5, 3], np.int64)
    found = policy_scores(policy, catalog, histories, users, items, max_history=3)
    with torch.no_grad():
        for user, item, score in zip(users, items, found, strict=True):
            context = policy.eval().encode(pad(histories, np.array([user]), 3))
            expected = policy.score(context, catalog.codes[[item]][None].long()).sum()
            assert score == pytest.approx(float(expected), rel=1e-5)


class Twice:
    """A reward that knows the user and the item."""

    def score(self, histories: Histories, items: torch.Tensor) -> torch.Tensor:
        assert histories.users is not None
        return histories.users[:, None] * 10.0 + items


def test_rewards_are_asked_for_each_user() -> None:
    histories = Ragged(np.array([0, 1], np.int32), np.array([0, 1, 2]))
    users, items = np.array([0, 1, 1], np.int64), np.array([4, 2, 5], np.int64)
    scores = reward_scores(Twice(), histories, users, items, max_history=2, device=torch.device("cpu"))
    assert scores.tolist() == [4.0, 12.0, 15.0]


@pytest.mark.slow
def test_judges_of_a_run_report_what_follows_from_scores_and_exposures(world: Any, copied: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [
        (user, int(item) * 10 + 3, bool(item % 2), bool(rng.random() < 0.5))
        for user in sorted(world.sequences)
        for item in rng.permutation(30)[:12]
    ]
    table = pl.DataFrame(rows, schema=["user_id", "item_id", "odd", "click"], orient="row")
    run = Run.open(copied)
    table.write_parquet(copied.parent / "shown.parquet")
    judges = Judges(run, {"later": Judge(str(copied.parent / "shown.parquet"), ("odd", "click"), users=40)})
    judges.exposures()
    judges.counts()
    judges.reward()
    judges.checkpoint("sft", run.path("sft", "best"))
    judges.checkpoint("nll/final", run.path("train", "nll", "final"))
    shown = pl.read_parquet(copied / "judges/exposures" / TABLE)
    assert shown["user"].n_unique() == 40 and judges.load()["later"].users.tolist() == shown["user"].to_list()
    scores = pl.read_parquet(copied / "judges/nll/final/predictions.parquet")["score"].to_numpy()
    order = judge_order(scores, shown["odd"].to_numpy().astype(bool), shown["user"].to_numpy().astype(np.int64))
    report = judges.report("nll", "final")["later"]["odd"]
    assert report["auc"]["mean"] == pytest.approx(order.users["auc"].mean())
    start = judges.report("sft")["later"]["odd"]
    assert "difference" not in start
    change = report["auc"]["mean"] - start["auc"]["mean"]
    assert report["difference"]["auc"]["mean"] == pytest.approx(change) and change != 0
    assert set(judges.report("counts")) == {"popularity"} and "auc" in judges.report("reward")["later"]["click"]
