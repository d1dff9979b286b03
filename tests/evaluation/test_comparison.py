"""The statistics of a comparison on users whose gains are known, by hand and against slow twins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy import stats

from adagrpo.config import CompareConfig
from adagrpo.evaluation.comparison import Measured, compare, compare_pairs, give_verdicts, per_user
from adagrpo.metrics import RankedLists

OPTIONS = CompareConfig(margins={"hr@50": 0.05, "hallucination@10": 0.05}, resamples=500)
USERS = 400


def measured(
    hits: np.ndarray, *, deep: np.ndarray | None = None, invalid: float = 0.1, ids: list[Any] | None = None
) -> Measured:
    """A checkpoint with these hits at ten, and at fifty the same unless others are given."""
    users = pl.DataFrame({"user_id": list(range(len(hits))) if ids is None else ids})
    columns = {"hr@10": hits.astype(float), "hr@50": (hits if deep is None else deep).astype(float)}
    columns["hallucination@10"] = np.full(len(hits), invalid)
    users = users.with_columns(pl.Series(name, values) for name, values in columns.items())
    means = {name: float(values.mean()) for name, values in columns.items()} | {"coverage@10": 0.5}
    return Measured(users, means, means)


def baseline_hits(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(USERS) < 0.3


def gained(hits: np.ndarray, seed: int, count: int) -> np.ndarray:
    """The same hits and `count` more, of users who had none."""
    result = hits.copy()
    result[np.random.default_rng(seed).choice(np.flatnonzero(~hits), count, replace=False)] = True
    return result


def rows_of(measured: Mapping[Any, Any], seeds: int, options: CompareConfig = OPTIONS) -> dict[Any, dict[str, Any]]:
    return {(row["arm"], row["checkpoint"]): row for row in compare(measured, list(range(seeds)), options)}


def planted(seeds: int = 3) -> dict[tuple[str, str], list[Measured]]:
    base = [baseline_hits(seed) for seed in range(seeds)]
    return {
        ("sft", "best"): [measured(hits) for hits in base],
        ("nll", "best"): [measured(hits) for hits in base],
        ("nll", "final"): [measured(hits) for hits in base],
        ("gain", "best"): [measured(gained(hits, seed, 30 + seed)) for seed, hits in enumerate(base)],
        ("gain", "final"): [measured(hits) for hits in base],
        ("loss", "best"): [measured(hits & (np.arange(USERS) % 3 > 0)) for hits in base],
        ("equal", "best"): [measured(hits) for hits in base],
    }


def test_planted_gain_loss_and_equality_are_distinguished() -> None:
    rows = rows_of(planted(), 3)
    assert {point: row["verdict"] for point, row in rows.items()} == {
        ("sft", "best"): "not tested",
        ("nll", "best"): "baseline",
        ("nll", "final"): "baseline",
        ("gain", "best"): "significantly better",
        ("gain", "final"): "not distinguishable",
        ("loss", "best"): "significantly worse",
        ("equal", "best"): "not distinguishable",
    }
    gain = rows["gain", "best"]["against"]["hr@10"]
    assert gain["by_seed"] == pytest.approx([30 / USERS, 31 / USERS, 32 / USERS], rel=1e-12)
    assert gain["difference"] == pytest.approx(31 / USERS, rel=1e-12)
    base = np.mean([baseline_hits(seed).mean() for seed in range(3)])
    assert gain["relative"] == pytest.approx(31 / USERS / base, rel=1e-12)
    low, high = stats.t.interval(0.95, 2, loc=31 / USERS, scale=stats.sem(gain["by_seed"]))
    assert gain["seeds"] == pytest.approx([low, high], rel=1e-9)
    # users meet all seeds: the standard error is that of each user's mean over seeds
    per_user_means = np.mean([gained(baseline_hits(s), s, 30 + s) ^ baseline_hits(s) for s in range(3)], axis=0)
    half = 1.96 * per_user_means.std() / np.sqrt(USERS)
    assert gain["users"] == pytest.approx([31 / USERS - half, 31 / USERS + half], abs=0.15 * half)  # 500 resamples
    equal = rows["equal", "best"]["against"]["hr@10"]
    assert (equal["difference"], equal["users"], equal["p"]) == (0.0, [0.0, 0.0], 1.0)


def test_holm_counts_the_family_and_no_one_else() -> None:
    tests = planted()
    rows = rows_of(tests, 3)
    p = rows["gain", "best"]["against"]["hr@10"]["p"]
    assert 0 < p < 0.05
    assert rows["gain", "best"]["p_holm"] == pytest.approx(4 * p)  # gain twice, loss, equal
    assert rows["sft", "best"]["p_holm"] is None and rows["nll", "final"]["p_holm"] is None
    alone = rows_of(tests, 3, OPTIONS.model_copy(update={"family": ("gain",)}))
    assert alone["gain", "best"]["p_holm"] == pytest.approx(2 * p)
    assert alone["loss", "best"]["verdict"] == "not tested"
    assert alone["loss", "best"]["against"]["hr@10"]["difference"] < 0


def test_best_meets_best_and_final_meets_final() -> None:
    hits = [baseline_hits(seed) for seed in range(2)]
    tests = {
        ("nll", "best"): [measured(h) for h in hits],
        ("nll", "final"): [measured(gained(h, 5, 40)) for h in hits],
        ("arm", "best"): [measured(h) for h in hits],
        ("arm", "final"): [measured(h) for h in hits],
    }
    rows = rows_of(tests, 2)
    assert rows["arm", "best"]["against"]["hr@10"]["difference"] == 0
    assert rows["arm", "final"]["against"]["hr@10"]["difference"] == pytest.approx(-40 / USERS)
    single = {point: entries for point, entries in tests.items() if point != ("nll", "final")}
    assert rows_of(single, 2)["arm", "final"]["against"]["hr@10"]["difference"] == 0


def test_seeds_that_disagree_stop_a_claim_that_the_users_would_make() -> None:
    base = [baseline_hits(seed) for seed in range(3)]
    counts = (5, 5, 90)
    tests = {
        ("nll", "best"): [measured(hits) for hits in base],
        ("arm", "best"): [measured(gained(hits, 7, count)) for hits, count in zip(base, counts, strict=True)],
    }
    row = rows_of(tests, 3)["arm", "best"]
    against = row["against"]["hr@10"]
    assert row["p_holm"] > 0.05 and against["users"][0] > 0 > against["both"][0] and against["seeds"][0] < 0
    assert row["verdict"] == "significant over users only"


@pytest.mark.parametrize("both", [[0.0006, 0.0074], None])
def test_what_the_correction_takes_away_is_not_blamed_on_the_seeds(both: list[float] | None) -> None:
    against = {"difference": 0.004, "users": [0.0006, 0.0074], "seeds": [0.0038, 0.0042], "p": 0.02}
    found = {"arm": "arm", "checkpoint": "best", "against": {"hr@10": against | ({"both": both} if both else {})}}
    others = [{"arm": f"o{i}", "checkpoint": "best", "against": {"hr@10": against | {"p": 0.9}}} for i in range(4)]
    rows: list[dict[str, Any]] = [row | {"margins": {}, "p_holm": None} for row in (found, *others)]
    give_verdicts(rows, CompareConfig(margins={}))
    assert rows[0]["p_holm"] == pytest.approx(0.1)
    assert rows[0]["verdict"] == "not significant after correction"
    give_verdicts(rows[:1], CompareConfig(margins={}))
    assert rows[0]["verdict"] == "significantly better"


def test_a_gain_beyond_a_margin_says_so() -> None:
    base = [baseline_hits(seed) for seed in range(3)]
    deep = np.arange(USERS) % 2 == 0
    tests = {
        ("nll", "best"): [measured(hits, deep=hits | deep) for hits in base],
        ("tail lost", "best"): [
            measured(gained(hits, s, 40 + s), deep=gained(hits, s, 40 + s)) for s, hits in enumerate(base)
        ],
        ("invalid", "best"): [
            measured(gained(hits, s, 40 + s), deep=hits | deep, invalid=0.2) for s, hits in enumerate(base)
        ],
    }
    rows = rows_of(tests, 3)
    lost, invalid = rows["tail lost", "best"], rows["invalid", "best"]
    assert lost["verdict"] == invalid["verdict"] == "significantly better, margin not kept"
    assert not lost["margins"]["hr@50"]["kept"] and lost["margins"]["hallucination@10"]["kept"]
    assert lost["margins"]["hr@50"]["worst"] == -lost["against"]["hr@50"]["both"][0]
    assert invalid["margins"]["hr@50"]["kept"] and not invalid["margins"]["hallucination@10"]["kept"]
    assert invalid["margins"]["hallucination@10"]["worst"] == pytest.approx(0.1)


def test_lower_is_better_turns_the_verdict() -> None:
    hits = [baseline_hits(seed) for seed in range(2)]
    tests = {
        ("nll", "best"): [measured(h) for h in hits],
        ("cleaner", "best"): [measured(h, invalid=0.05) for h in hits],
        ("dirtier", "best"): [measured(h, invalid=0.11) for h in hits],
    }
    rows = rows_of(tests, 2, OPTIONS.model_copy(update={"metric": "hallucination@10"}))
    assert (
        rows["cleaner", "best"]["verdict"] == "significantly better"
        and rows["dirtier", "best"]["verdict"] == "significantly worse"
    )


def test_seeds_that_repeat_each_other_make_the_users_interval_no_narrower() -> None:
    hits = baseline_hits(0)

    def users(seeds: int) -> list[float]:
        tests = {("nll", "best"): [measured(hits)] * seeds, ("arm", "best"): [measured(gained(hits, 1, 30))] * seeds}
        return list(rows_of(tests, seeds)["arm", "best"]["against"]["hr@10"]["users"])

    assert users(3) == pytest.approx(users(1), rel=1e-12)


def test_users_of_several_seeds_are_one_unit_and_worlds_may_differ() -> None:
    """By a slow twin: each user's weighted sum over the seeds in which they occur."""
    arm = [measured(np.array([1, 0, 1]), ids=["a", "b", "c"]), measured(np.array([1, 1]), ids=["b", "d"])]
    base = [measured(np.array([0, 0, 1]), ids=["a", "b", "c"]), measured(np.array([0, 1]), ids=["b", "d"])]
    rows = rows_of({("nll", "best"): base, ("arm", "best"): arm}, 2)
    actual = rows["arm", "best"]["against"]["hr@10"]
    assert actual["by_seed"] == pytest.approx([1 / 3, 1 / 2])
    assert actual["difference"] == pytest.approx((1 / 3 + 1 / 2) / 2)
    # values 4 · (1/2) · d / n: a 2/3, b 1, c 0, d 0
    assert actual["users"][1] <= 1 and actual["users"][0] >= 0


def test_one_seed_has_no_interval_over_seeds() -> None:
    rows = rows_of(planted(1), 1)
    gain = rows["gain", "best"]
    assert gain["against"]["hr@10"]["seeds"] is None and gain["test"]["hr@10"]["interval"] is None
    assert gain["verdict"] == "significantly better"


def test_what_does_not_fit_is_refused() -> None:
    tests = planted(2)
    with pytest.raises(ValueError, match=r"2 entries, expected one for each of seeds \[0\]"):
        compare(tests, [0], OPTIONS)
    tests["gain", "best"][1] = measured(np.zeros(USERS), ids=list(range(1, USERS + 1)))
    with pytest.raises(ValueError, match="same users"):
        compare(tests, [0, 1], OPTIONS)


def test_per_user_metrics_by_hand() -> None:
    """Width 50; u1 finds its item at rank 3, u2 at 50, u3 not at all."""
    valid = np.array([[False] * 4 + [True] * 6 + [False] * 40, [False] * 50, [True] * 50])
    actual = per_user(pl.Series(["u2", "u3", "u1"]), RankedLists(np.array([50, 0, 3]), 50, valid=valid))
    assert actual["user_id"].to_list() == ["u1", "u2", "u3"]
    assert actual["hr@1"].to_list() == [0, 0, 0]
    assert actual["hr@5"].to_list() == actual["hr@10"].to_list() == [1, 0, 0]
    assert actual["hr@50"].to_list() == [1, 1, 0]
    assert actual["ndcg@10"].to_list() == [0.5, 0, 0]
    assert actual["hallucination@10"].to_list() == [0.0, 0.4, 1.0]


def test_a_pair_has_the_interval_that_its_second_arm_as_the_baseline_would_give() -> None:
    entries = planted()
    pairs = (("gain", "loss"), ("gain", "nll"))
    rows = compare_pairs(entries, OPTIONS.model_copy(update={"pairs": pairs}))
    assert [(row["arm"], row["other"], row["checkpoint"]) for row in rows] == [
        ("gain", "loss", "best"),
        ("gain", "loss", "final"),
        ("gain", "nll", "best"),
        ("gain", "nll", "final"),
    ]
    against_loss = rows_of(entries, 3, OPTIONS.model_copy(update={"baseline": "loss"}))
    assert rows[0]["against"] == against_loss["gain", "best"]["against"]
    assert rows[1]["against"] == against_loss["gain", "final"]["against"]  # loss has no final: its best stands for it
    assert rows[2]["against"] == rows_of(entries, 3)["gain", "best"]["against"]
    assert rows[2]["p_holm"] >= rows[2]["against"]["hr@10"]["p"] and rows[3]["p_holm"] == 1
