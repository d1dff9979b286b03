"""The study of the verdict: pairs that lack one are named; its taste reward against the truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adagrpo.data.simulation.marketplace import Marketplace, simulate
from adagrpo.errors import UserError
from research.pages.documents import with_tables
from research.pages.verdicts import joined
from research.verdict import taste

ROOT = Path(__file__).parents[2]


def outcome(reward: str, half: str, mixture: float, tuned: float) -> dict[str, Any]:
    """A pair whose arms change true utility by so much, give or take .002."""
    arms = {"mixture": mixture, "distill-tuned": tuned}
    ends = {name: {"true_utility@10": [mean, mean - 0.002, mean + 0.002]} for name, mean in arms.items()}
    return {"world": half[0], "reward": reward, "half": half, "arms": ends, "rerank": ends["mixture"]}


def verdict(reward: str, half: str, decisions: list[str], one_draw: list[str]) -> dict[str, Any]:
    evidence = {name: {"mean": 0.01} for name in ("adds", "leads", "leads_as_logged")}
    said = {"decisions": decisions, "strengths": ["strong"] * 4, "one_draw": one_draw, "evidence": evidence}
    return {"world": half[0], "reward": reward} | said


DEVELOPMENT, HELD_OUT = "development", "held-out"
OUTCOMES = [
    outcome("good", DEVELOPMENT, 0.003, 0.005),
    outcome("bad", DEVELOPMENT, -0.004, 0.0),
    outcome("wrong", HELD_OUT, -0.003, -0.003),
    outcome("missed", HELD_OUT, 0.001, 0.004),
]
VERDICTS = [
    verdict("good", DEVELOPMENT, ["use"] * 4, ["use"] * 3 + ["rerank_only"]),
    verdict("bad", DEVELOPMENT, ["do_not_use"] * 4, ["do_not_use"] * 4),
    verdict("wrong", HELD_OUT, ["use"] * 4, ["use", "rerank_only"] * 2),
    verdict("missed", HELD_OUT, ["rerank_only"] * 3 + ["use"], ["rerank_only"] * 4),
]


def test_pairs_that_were_not_judged_are_named() -> None:
    with pytest.raises(ValueError, match=r"h, missed: has no verdict"):
        joined(OUTCOMES, VERDICTS[:-1])
    with pytest.raises(ValueError, match="judged twice"):
        joined(OUTCOMES, [*VERDICTS, VERDICTS[0]])
    with pytest.raises(UserError, match="is of outcomes and verdicts, 1 files are named"):
        with_tables("<!-- table: verdicts outcomes -->\n<!-- end of table -->\n", ROOT / "research")


def test_the_taste_reward_orders_items_as_the_true_utility_of_the_moment_does() -> None:
    simulation = simulate(Marketplace(users=40, items=150, steps=25, slate_size=10, noise=2))
    truth = simulation.truth
    taste.register("test", truth, {truth.item_ids[0]: 9})
    users, items = np.divmod(truth.purchases, len(truth.item_ids))
    rows = np.flatnonzero(users == np.bincount(users).argmax())
    history, bought = items[rows[:-1]], items[rows[-1:]]
    assert len(history) >= taste.LAST  # long enough for no other user to have the same
    candidates = np.setdiff1d(np.arange(len(truth.item_ids)), items[rows])
    ids = [[truth.item_ids[item] for item in some] for some in (history, candidates)]
    scores = np.array(taste.test_taste([ids[0]], [ids[1]])[0])
    utility = truth.utility_before(users[rows[-1:]], bought, candidates[None])[0]
    assert np.argsort(scores).tolist() == np.argsort(utility).tolist()
    shown = taste.test_shown([ids[0]], [[truth.item_ids[0], truth.item_ids[1], truth.item_ids[2]]])[0]
    assert shown[0] > shown[1] == shown[2]
    with pytest.raises(AttributeError):
        taste.other_taste  # noqa: B018
    with pytest.raises(UserError, match="no user of test has a history that ends with i00000"):
        taste.test_taste([["i00000"] * 6], [ids[1]])
