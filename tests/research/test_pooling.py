"""Comparisons under different seeds as one: what that of all seeds would have, and what no file says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
import pytest

from adagrpo.config import CompareConfig
from adagrpo.evaluation.comparison import Measured, compare, compare_pairs
from research.pages.pooling import pool

OPTIONS = CompareConfig(margins={"hr@50": 0.05, "hallucination@10": 0.05}, resamples=500)
USERS = 400


def measured(hits: np.ndarray) -> Measured:
    """A checkpoint with these hits at ten, and the same at fifty."""
    columns = {"hr@10": hits.astype(float), "hr@50": hits.astype(float), "hallucination@10": np.full(len(hits), 0.1)}
    users = pl.DataFrame({"user_id": list(range(len(hits)))} | columns)
    means = {name: float(values.mean()) for name, values in columns.items()} | {"coverage@10": 0.5}
    return Measured(users, means, means)


def gained(hits: np.ndarray, seed: int, count: int) -> np.ndarray:
    """The same hits and `count` more, of users who had none."""
    result = hits.copy()
    result[np.random.default_rng(seed).choice(np.flatnonzero(~hits), count, replace=False)] = True
    return result


def planted(seeds: int = 3) -> dict[tuple[str, str], list[Measured]]:
    """An arm that gains some users' hits, one that loses a third of the users', and one that changes nothing."""
    base = [np.random.default_rng(seed).random(USERS) < 0.3 for seed in range(seeds)]
    return {
        ("sft", "best"): [measured(hits) for hits in base],
        ("nll", "best"): [measured(hits) for hits in base],
        ("nll", "final"): [measured(hits) for hits in base],
        ("gain", "best"): [measured(gained(hits, seed, 30 + seed)) for seed, hits in enumerate(base)],
        ("gain", "final"): [measured(hits) for hits in base],
        ("loss", "best"): [measured(hits & (np.arange(USERS) % 3 > 0)) for hits in base],
        ("equal", "best"): [measured(hits) for hits in base],
    }


def content_of(tests: Mapping[Any, Any], seeds: list[int], options: CompareConfig) -> dict[str, Any]:
    rows = compare(tests, seeds, options)
    return {"name": "x", "seeds": seeds, "users": USERS, "plan": options.model_dump(mode="json"), "rows": rows}


def pooled_parts(
    tests: Mapping[Any, Any], cut: int, options: CompareConfig
) -> tuple[dict[Any, dict[str, Any]], dict[Any, dict[str, Any]]]:
    """The rows of one comparison of all seeds, and those of two that are pooled."""
    seeds = list(range(len(next(iter(tests.values())))))
    parts = [
        content_of({point: entries[part] for point, entries in tests.items()}, seeds[part], options)
        for part in (slice(0, cut), slice(cut, None))
    ]
    whole = {(row["arm"], row["checkpoint"]): row for row in compare(tests, seeds, options)}
    together = pool(parts)
    assert (together["seeds"], together["users"], together["plan"]) == (seeds, USERS, parts[0]["plan"])
    return whole, {(row["arm"], row["checkpoint"]): row for row in together["rows"]}


def test_pooled_comparisons_are_one_of_all_seeds_but_for_users_intervals_that_are_no_narrower() -> None:
    options = OPTIONS.model_copy(update={"family": ("gain", "loss", "equal"), "resamples": 2000})
    whole, pooled = pooled_parts(planted(5), 3, options)
    assert whole.keys() == pooled.keys()
    for point, row in whole.items():
        actual = pooled[point]
        assert actual["verdict"] == row["verdict"], point
        assert actual["test"]["hr@10"]["by_seed"] == row["test"]["hr@10"]["by_seed"]
        assert actual["test"]["coverage@10"]["mean"] == pytest.approx(0.5)
        assert actual["validation"]["hr@10"] == pytest.approx(row["validation"]["hr@10"])
        for metric, expected in row["against"].items():
            difference = actual["against"][metric]
            for key in ("difference", "relative", "seeds", "by_seed"):
                assert difference[key] == pytest.approx(expected[key], rel=1e-9, abs=1e-12), (point, metric, key)
            width, least = np.diff(difference["users"])[0], np.diff(expected["users"])[0]
            assert width >= 0.97 * least, (point, metric)  # the ends of a bootstrap are known to a few per cent
        assert {name: margin["kept"] for name, margin in actual["margins"].items()} == {
            name: margin["kept"] for name, margin in row["margins"].items()
        }
    # gains of independent users under each seed: the bound is at its widest, 1 against 1 / sqrt 2 for halves
    gain = pooled["gain", "best"]["against"]["hr@10"], whole["gain", "best"]["against"]["hr@10"]
    assert 1.1 < np.diff(gain[0]["users"])[0] / np.diff(gain[1]["users"])[0] < 1.6


@pytest.mark.slow  # 200 trials
def test_a_pooled_p_value_does_not_claim_more_than_one_of_all_seeds_would() -> None:
    options = OPTIONS.model_copy(update={"resamples": 400})
    generator = np.random.default_rng(3)
    halves = [(slice(0, 2), [0, 1]), (slice(2, 4), [2, 3])]
    claimed = 0
    for _ in range(200):
        base = generator.random(USERS) < 0.3
        tests: dict[tuple[str, str], list[Measured]] = {("nll", "best"): [measured(base) for _ in range(4)]}
        # no gain, and the same users win and lose under every seed, which is where the bound is not wide
        changed = generator.random(USERS) < 0.15
        arm = np.where(changed, generator.random(USERS) < 0.3, base)
        tests["arm", "best"] = [measured(arm) for _ in range(4)]
        parts = [content_of({p: e[cut] for p, e in tests.items()}, seeds, options) for cut, seeds in halves]
        row = next(row for row in pool(parts)["rows"] if row["arm"] == "arm")
        claimed += row["against"]["hr@10"]["p"] <= 0.05
    assert 1 <= claimed <= 20  # 10 of 200 are expected


def test_what_cannot_be_pooled_is_refused() -> None:
    first = content_of(planted(), [0, 1, 2], OPTIONS)
    with pytest.raises(ValueError, match=r"the seeds \[0, 1, 2, 0, 1, 2\] are not all different"):
        pool([first, first])
    other = first | {"seeds": [3, 4, 5]}
    with pytest.raises(ValueError, match="their plans differ"):
        pool([first, other | {"plan": first["plan"] | {"baseline": "sft"}}])
    with pytest.raises(ValueError, match="their names differ"):
        pool([first, other | {"name": "y"}])


def test_files_of_several_seeds_say_how_users_go_together_and_the_interval_over_both_is_that_of_all_seeds() -> None:
    """To within what the covariances differ between the two parts: here a user's draw is new under each seed."""
    whole, pooled = pooled_parts(planted(6), 3, OPTIONS)
    expected, actual = (rows["gain", "best"]["against"]["hr@10"] for rows in (whole, pooled))
    assert actual["difference"] == pytest.approx(expected["difference"])
    halves = [(ends["both"][1] - ends["both"][0]) / 2 for ends in (expected, actual)]
    assert halves[1] == pytest.approx(halves[0], rel=0.15)
    single, _ = pooled_parts(planted(2), 1, OPTIONS)
    assert "both" in single["gain", "best"]["against"]["hr@10"]
    assert "both" not in pooled_parts(planted(2), 1, OPTIONS)[1]["gain", "best"]["against"]["hr@10"]


def test_pairs_and_what_is_known_of_arms_are_pooled_where_all_files_have_them() -> None:
    options = OPTIONS.model_copy(update={"pairs": (("gain", "loss"), ("equal", "gain"))})
    tests, seeds = planted(5), list(range(5))
    whole = {(row["arm"], row["checkpoint"]): row for row in compare_pairs(tests, options)}
    parts = []
    for cut in (slice(0, 3), slice(3, None)):
        mine = {point: entries[cut] for point, entries in tests.items()}
        known = {"pairs": compare_pairs(mine, options), "arms": {"gain": {"lambda": seeds[cut]}}}
        parts.append(content_of(mine, seeds[cut], options) | known)
    together = pool(parts)
    assert together["arms"] == {"gain": {"lambda": seeds}}
    pairs = {(row["arm"], row["checkpoint"]): row for row in together["pairs"]}
    assert pairs.keys() == whole.keys() and {row["other"] for row in together["pairs"]} == {"loss", "gain"}
    for point, row in pairs.items():
        for key in ("difference", "relative", "by_seed", "seeds"):
            found, expected = (one["against"]["hr@10"][key] for one in (row, whole[point]))
            assert found == pytest.approx(expected, rel=1e-9, abs=1e-12), (point, key)
        assert "both" in row["against"]["hr@10"] and row["p_holm"] >= row["against"]["hr@10"]["p"]
    assert {*pool([{k: v for k, v in part.items() if k != "arms"} for part in parts])} == {*together} - {"arms"}


def test_an_arm_that_lost_its_policy_under_a_seed_of_one_file_is_pooled_all_the_same() -> None:
    lost = {"step": 3, "why": "reward"}
    first = content_of(planted(2), [0, 1], OPTIONS) | {"arms": {"loss": {"lambda": [1.0, 2.0]}}}
    second = first | {"seeds": [2, 3], "arms": {"loss": {"lambda": [3.0, 4.0], "lost": [None, lost]}}}
    assert pool([first, second])["arms"]["loss"] == {"lambda": [1.0, 2.0, 3.0, 4.0], "lost": [None, None, None, lost]}
    assert pool([second, first])["arms"]["loss"]["lost"] == [None, lost, None, None]
