"""The study of the paper's gate: places, strata and codes by hand, the rule of thresholds, tables of the frontier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from adagrpo.diagnosis.strata import strata_of
from adagrpo.errors import UserError
from adagrpo.objective import Evidence
from research.pages.frontier import alone_table, frontier_pairs, frontier_table
from research.pages.gate_ratio import beside_curve
from research.paper_gate.admission import OFF, admission_rows, chosen_thresholds
from research.paper_gate.alone import arms_of
from research.paper_gate.moved import distance, leaves_at
from research.paper_gate.ratio import primary_test

NAN = float("nan")


@pytest.fixture
def evidence() -> Evidence:
    return Evidence(
        above_policy=torch.tensor([0.9, 0.9, 0.9, 0.1]),
        above_reward=torch.tensor([0.1, 0.9, 0.1, 0.1]),
        negatives_above=torch.tensor([[0.8, NAN], [0.8, 0.9], [0.1, 0.9], [0.8, 0.9]]),
        miss=torch.ones(4),
        q=torch.ones(4),
        degenerate=torch.zeros(4, dtype=torch.bool),
        reward_std=torch.ones(4),
    )


def test_strata_and_admission_follow_the_gate(evidence: Evidence) -> None:
    strata = strata_of(evidence, {"tau": 0.5, "rho": 0.3})
    assert strata["admitted"].tolist() == [True, False, False, False]
    assert strata["hard, suppressed"].tolist() == [True, True, False, False]
    (row,) = admission_rows(evidence, evidence, {"tau": [0.5], "rho": [0.3]})
    assert (row["gate"], row["hard_alone"], row["known_alone"], row["suppressed_alone"]) == (0.25, 0.75, 0.75, 0.75)
    assert (row["without_hard"], row["without_known"], row["without_suppressed"]) == (0.5, 0.5, 0.5)


def test_thresholds_outside_the_range_are_the_nearest_to_its_middle() -> None:
    rows = [{"tau": 0.2, "rho": rho, "gate": gate, "gate_shuffled": 0.1} for rho, gate in ((0.2, 0.4), (0.5, 0.02))]
    assert chosen_thresholds(rows, {"admission": [0.05, 0.15]}) == {"tau": 0.2, "rho": 0.5}


def test_codes_leave_the_catalogue_where_no_item_begins_so() -> None:
    items = np.array([[1, 2, 0], [1, 2, 1], [3, 4, 0]])
    codes = np.array([[1, 2, 1], [1, 2, 2], [1, 4, 0], [2, 2, 0]])
    assert leaves_at(codes, items).tolist() == [0, 3, 2, 1]


def test_distance_of_weights_by_hand(tmp_path: Path) -> None:
    for name, values in (("a", [3.0, 0.0]), ("b", [0.0, 4.0])):
        save_file({"w": np.array(values, np.float32), "same": np.ones(3, np.float32)}, tmp_path / name)
    assert distance(tmp_path / "a", tmp_path / "b") == pytest.approx(5.0)


def against(hit: float, wrong: float, p: float) -> dict[str, Any]:
    values = {"hr@10": hit, "hallucination@10": wrong}
    return {
        name: {"difference": value, "both": [value - 0.01, value + 0.01], "users": [value, value], "p": p}
        for name, value in values.items()
    }


def trial(p: float) -> dict[str, Any]:
    def row(arm: str, hit: float, samples: list[float]) -> dict[str, Any]:
        test: dict[str, Any] = {"hr@10": {"mean": hit}, "hallucination@10": {"mean": 0.005}}
        test["invalid_samples"] = {"mean": float(np.mean(samples)), "by_seed": samples}
        return {"arm": arm, "checkpoint": "final", "test": test, "against": against(hit - 0.1, 0.002, 0.5)}

    arms = ["beam-paper-p1", "beam-random-p1", "beam-none-p1"]
    pairs = [{"arm": arms[0], "other": other, "checkpoint": "final"} for other in arms[1:]]
    return {
        "seeds": [1, 2, 3],
        "arms": {arm: {"admission": [0.1, None, 0.2]} for arm in arms},
        "rows": [row("nll", 0.1, [0.1, 0.1, 0.1]), *(row(arm, 0.11, [0.1, 0.12, 0.14]) for arm in arms)],
        "pairs": [pair | {"against": against(-0.01, 0.03, q)} for pair, q in zip(pairs, (p, 0.04), strict=True)],
    }


def test_the_frontier_has_both_axes_and_samples_over_seeds() -> None:
    baseline, paper, *_ = frontier_table(trial(0.03)).rows
    assert baseline == ("nll", "final", "–", "10.00 %", "–", "0.50 %", "–", "10.00 %", "–")
    hit, wrong = "+1.00 (0.00 … +2.00)", "+0.20 (−0.80 … +1.20)"
    sampled = "+2.00 (−2.97 … +6.97)"  # t of two degrees, 4.303, times .02 over the root of 3
    assert paper == ("beam-paper-p1", "final", "15.0 %", "11.00 %", hit, "0.50 %", wrong, "12.00 %", sampled)


def test_pairs_are_corrected_on_each_axis() -> None:
    first, second = frontier_pairs(trial(0.03)).rows
    assert first[0] == "beam-paper-p1 minus beam-random-p1"
    assert (first[3], first[5], second[3], second[5]) == ("0.060", "0.060", "0.060", "0.060")


def test_a_test_by_itself_is_read_against_its_random_gate() -> None:
    plan = {"rollouts": {"samples": {"rollout": "sample"}}, "gates": {"paper": {"objective": "adagrpo"}}}
    plan["gates"]["random"] = {"objective": "adagrpo", "gate": "random"}
    arms = {arm["name"]: arm["options"] for arm in arms_of(plan, {"tau": 0.2, "rho": 0.5})}
    assert arms["known-paper"] == arms["known-random"] == {"rollout": "sample", **OFF, "tau_reward": 0.2}
    rows: list[dict[str, Any]] = [
        {"arm": "known-random", "metrics": {"hallucination@10": 0.01}},
        {"arm": "known-paper", "metrics": {"hallucination@10": 0.012}, "admission": 0.25},
    ]
    rows[1]["less_random"] = {"hr@10": [0.0, 0.0], "hallucination@10": [0.002, 1e-6]}
    (line,) = alone_table(rows).rows
    assert line == ("known", "25.0 %", "1.20 %", "1.00 %", "0.00 (0.00 … 0.00)", "+0.20 (0.00 … +0.40)")


def ratio_rows(name: str, counts: dict[int, dict[str, tuple[int, int]]]) -> list[dict[str, Any]]:
    """Rows of a set; an arm's counts are of samples and of beams."""
    return [
        {"dataset": name, "seed": seed, "rollouts": rollouts, "arm": arm, "invalid": count}
        for seed, arms in counts.items()
        for arm, values in ({"none-1": (0, 0)} | arms).items()
        for rollouts, count in zip(("samples", "beam"), values, strict=True)
    ]


def test_the_primary_test_pools_rollouts_and_corrects_over_sets() -> None:
    plan = {
        "seeds": {"primary": [1, 2, 3]},
        "rollouts": {"samples": {}, "beam": {}},
        "arms": {"primary": ["none-1", "random-a", "paper-a"]},
        "wanted": 2,
    }
    # (x + .5) / (y + .5) is 1/9, 1/3 and 1: mean log -log 3, standard deviation log 3, t = -sqrt(3), p = .2254
    lower = ratio_rows(
        "lower",
        {
            1: {"random-a": (3, 1), "paper-a": (0, 0)},
            2: {"random-a": (1, 0), "paper-a": (0, 0)},
            3: {"random-a": (0, 4), "paper-a": (2, 2)},
        },
    )
    equal = ratio_rows(
        "equal", {seed: {"random-a": (1, seed), "paper-a": (1, 4 - seed)} for seed in plan["seeds"]["primary"]}
    )
    first, second = primary_test(plan, [*lower, *equal])
    assert first["ratio"] == pytest.approx(1 / 3) and first["p"] == pytest.approx(0.225403, abs=1e-6)
    assert second["ratio"] == pytest.approx(1.0) and second["p"] == pytest.approx(1.0)
    assert (first["p_holm"], second["p_holm"]) == (pytest.approx(2 * 0.225403, abs=1e-6), pytest.approx(1.0))
    with pytest.raises(UserError, match=r"^lower, seed 3: beam-paper-a is not measured yet$"):
        primary_test(plan, [*lower[:-1], *equal])
    with pytest.raises(UserError, match=r"^1 of 2 sets have rows"):
        primary_test(plan, lower)


def test_a_gate_is_compared_with_no_gate_of_a_lower_weight_and_as_many_invalid_ids() -> None:
    def rows_of(seed: int, gained: float) -> list[dict[str, Any]]:
        places = {"nll": (0.0, 0.1), "none-0.1": (0.1, 0.11), "none-0.3": (0.2, 0.12), "none-1": (0.4, 0.14)}
        places |= {"paper-b": (0.3, 0.13 + gained), "random-b": (0.3, 0.13)}
        about = {"dataset": "lastfm", "seed": seed}
        return [
            about
            | {"arm": arm, "rollouts": None if arm == "nll" else "beam"}
            | {"metrics": {"hallucination@10": invalid, "hr@10": hits}}
            for arm, (invalid, hits) in places.items()
        ]

    paper, random = beside_curve([*rows_of(1, 0.01), *rows_of(2, 0.03)], short=True).rows
    assert paper[3].startswith("+2.00 (") and random[3] == "+0.00 (+0.00 to +0.00)"
