"""The terms of other papers: twins in plain numpy, edge groups, and their registration from outside the package."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adagrpo.objective import group_advantages
from adagrpo.objective.terms import TermInputs
from research.field_arms import measure, terms
from research.field_arms.terms import EXTENSIONS, awr, goalrank, grp, gryphon, gspo, injected, rloo, s_dpo

NAN = float("nan")
TARGETS = [3, 9, 5, 4, -1, 2]
ITEMS = [
    [4, 7, 4, 3],  # the logged item last: injected; one item twice
    [1, 2, -1, 6],  # the logged item is not there
    [-1, -1, -1, -1],  # nothing is valid
    [4, 4, 4, 4],  # one item alone, the logged one
    [8, -1, 1, 2],  # no item follows
    [6, 2, -1, 5],  # the logged item was drawn
]


@pytest.fixture
def groups() -> TermInputs:
    """Six groups of four rollouts of two codes; equal items have equal codes and rewards."""
    generator = torch.Generator().manual_seed(3)
    items = torch.tensor(ITEMS)
    shape = (*items.shape, 2)
    table = torch.rand(3, 6, 11, 2, generator=generator).clamp(min=0.05).log()  # of each item, and of -1 the last
    now, old, start = (table[k].gather(1, (items % 11).unsqueeze(-1).expand(shape)) for k in range(3))
    rewards = torch.randn(6, 11, generator=generator).gather(1, items % 11)
    return TermInputs(
        now.requires_grad_(),
        old,
        rewards.masked_fill(items < 0, NAN),
        items,
        torch.stack([items % 11, items % 11], -1),
        items >= 0,
        start,
        torch.tensor(TARGETS),
    )


def twin(groups: TermInputs, of_group: Callable[..., float]) -> torch.Tensor:
    """The losses of a function of one group, whose log-probabilities are now, when drawn and at the start (G, L)."""
    arrays = [part.detach().double().numpy() for part in (*groups[:3], groups.reference)]  # type: ignore[union-attr]
    rows = zip(*arrays, groups.items.tolist(), TARGETS, strict=True)
    return torch.tensor([of_group(*row) for row in rows], dtype=torch.float32)


def standardised(rewards: Any, counted: list[int], penalty: float, size: int) -> list[float]:
    known = [rewards[g] for g in counted]
    return [(rewards[g] - np.mean(known)) / (np.std(known) + 1e-4) if g in counted else -penalty for g in range(size)]


def clipped(ratio: float, advantage: float, low: float, high: float) -> float:
    return -min(ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage)


def grp_twin(now: Any, old: Any, rewards: Any, start: Any, items: list[int], target: int) -> float:
    apart = 3 if target >= 0 and items.count(target) == 1 and items[3] == target else None
    drawn = [g for g in range(4) if items[g] >= 0 and g != apart]
    advantages = standardised(rewards, drawn, 1.0, 4)
    loss = 0.0
    for g in range(4):
        for code in range(2):
            if g != apart:
                loss += clipped(math.exp(now[g][code] - old[g][code]), advantages[g], 0.2, 0.2) / 8
    if target >= 0 and target in items:
        place = items.index(target)
        loss += 2.0 * max(0.0, sum(start[place]) - 0.1 - sum(now[place]))
    return loss


def gryphon_twin(now: Any, old: Any, rewards: Any, start: Any, items: list[int], target: int) -> float:
    valid = [g for g in range(4) if items[g] >= 0]
    if not valid:
        return 0.0
    level, worth = np.mean([sum(now[g]) for g in valid]), np.mean([rewards[g] for g in valid])
    return float(np.mean([(sum(now[g]) - level - 0.5 * (rewards[g] - worth)) ** 2 for g in valid]))


def rloo_twin(now: Any, old: Any, rewards: Any, start: Any, items: list[int], target: int) -> float:
    valid, loss = [g for g in range(4) if items[g] >= 0], 0.0
    for g in range(4):
        others = [rewards[h] for h in valid if h != g]
        advantage = -1.0 if g not in valid else rewards[g] - np.mean(others) if others else 0.0
        loss -= advantage * sum(now[g]) / 4
    return float(loss)


def gspo_twin(now: Any, old: Any, rewards: Any, start: Any, items: list[int], target: int) -> float:
    advantages = standardised(rewards, [g for g in range(4) if items[g] >= 0], 1.0, 4)
    ratios = [math.exp((sum(now[g]) - sum(old[g])) / 2) for g in range(4)]
    return sum(clipped(ratios[g], advantages[g], 0.1, 0.3) for g in range(4)) / 4


def s_dpo_twin(chosen: str) -> Callable[..., float]:
    def of_group(now: Any, old: Any, rewards: Any, start: Any, items: list[int], target: int) -> float:
        first = [g for g in range(4) if items[g] >= 0 and items[g] not in items[:g]]
        if chosen == "best":
            taken = max(first, key=lambda g: rewards[g]) if first else None
        else:
            taken = items.index(target) if target >= 0 and target in items else None
        rejected = [g for g in first if g != taken]
        if taken is None or not rejected:
            return 0.0
        ratios = [sum(now[g]) - sum(start[g]) for g in range(4)]
        inner = -math.log(sum(math.exp(0.7 * (ratios[g] - ratios[taken])) for g in rejected))
        return -math.log(1 / (1 + math.exp(-inner)))

    return of_group


def awr_twin(now: Any, old: Any, rewards: Any, start: Any, items: list[int], target: int) -> float:
    valid = [g for g in range(4) if items[g] >= 0]
    advantages = standardised(rewards, valid, 1.0, 4)
    weights = [min(math.exp(advantages[g] / 0.5), 4.0) for g in range(4)]
    return -sum(weights[g] * sum(now[g]) / 2 for g in valid) / max(len(valid), 1)


def goalrank_twin(now: Any, old: Any, rewards: Any, start: Any, items: list[int], target: int) -> float:
    first = [g for g in range(4) if items[g] >= 0 and items[g] not in items[:g]]
    advantages = standardised(rewards, first, 1.0, 4)
    total = sum(math.exp(advantages[g]) for g in first)
    return -sum(math.exp(advantages[g]) / total * sum(now[g]) for g in first)


CASES: dict[str, tuple[Callable[..., Any], dict[str, Any], Callable[..., float]]] = {
    "grp": (grp, {"margin_weight": 2.0, "slack": 0.1}, grp_twin),
    "gryphon": (gryphon, {"reward_weight": 0.5}, gryphon_twin),
    "rloo": (rloo, {}, rloo_twin),
    "gspo": (gspo, {"epsilon": 0.1, "epsilon_high": 0.3}, gspo_twin),
    "s_dpo best": (s_dpo, {"beta": 0.7}, s_dpo_twin("best")),
    "s_dpo logged": (s_dpo, {"beta": 0.7, "chosen": "logged"}, s_dpo_twin("logged")),
    "awr": (awr, {"beta": 0.5, "max_weight": 4.0}, awr_twin),
    "goalrank": (goalrank, {}, goalrank_twin),
}


@pytest.mark.parametrize("case", CASES)
def test_each_term_is_its_formula_and_has_a_finite_gradient(groups: TermInputs, case: str) -> None:
    term, options, slow = CASES[case]
    losses = term(groups, **options).losses
    torch.testing.assert_close(losses, twin(groups, slow), rtol=1e-4, atol=1e-5)
    assert len(set(losses.tolist())) > 2, "groups of the fixture tell the terms' parts apart"
    (gradient,) = torch.autograd.grad(losses.sum(), groups.log_probs)
    assert bool(gradient.isfinite().all())


def test_every_extension_has_a_twin() -> None:
    assert {one.name for one in EXTENSIONS} == {case.partition(" ")[0] for case in CASES}
    assert all(one.anchored and one.gate == "all" for one in EXTENSIONS)


def test_the_margin_has_no_gradient_where_the_logged_item_is_at_its_reference(groups: TermInputs) -> None:
    start = groups._replace(reference=groups.log_probs.detach(), old_log_probs=groups.log_probs.detach())
    first, second = (
        torch.autograd.grad(grp(start, margin_weight=w).losses.sum(), groups.log_probs)[0] for w in (0.0, 9.0)
    )
    torch.testing.assert_close(first, second)
    assert injected(groups).tolist() == [[False, False, False, row == 0] for row in range(6)]


def test_where_all_is_valid_rloo_and_dr_grpo_have_the_same_direction(groups: TermInputs) -> None:
    rewards = torch.tensor([[0.5, 2.0, -1.0, 0.0]]).expand(6, 4)
    valid = groups._replace(items=torch.arange(24).view(6, 4), rewards=rewards)
    (direction,) = torch.autograd.grad(rloo(valid).losses.sum(), groups.log_probs)
    centred = group_advantages(rewards, valid.items >= 0, scale_rewards=False)
    torch.testing.assert_close(direction, (-centred * 4 / 3 / 4).unsqueeze(-1).expand(6, 4, 2))


def test_what_a_term_needs_is_asked_for(groups: TermInputs) -> None:
    with pytest.raises(ValueError, match="targets: the term needs it"):
        grp(groups._replace(targets=None))
    with pytest.raises(ValueError, match="reference: the term needs it"):
        s_dpo(groups._replace(reference=None))


REGISTERED = """
from pathlib import Path
import yaml
from research.field_arms.terms import EXTENSIONS, register_all
from adagrpo.objective.terms import Objective, register
register_all()
try:
    register(EXTENSIONS[0])
except ValueError as error:
    print(error)
from adagrpo.config import ArmConfig, ObjectiveConfig
arm = ArmConfig.parse("s_dpo-random-pressure0.3")
print(arm.name, arm.term, arm.admits, ObjectiveConfig().of_term("s_dpo"))
own = ArmConfig(objective="grp", name="own", options={"grp": {"margin_weight": 3}})
print(own.settings(ObjectiveConfig())["grp"]["margin_weight"], "awr" in own.settings(ObjectiveConfig()))
plan = yaml.safe_load(Path("research/field_arms/plan.yaml").read_text())
for name, entry in (plan["arms"] | plan["controls"]).items():
    ArmConfig.model_validate(entry | {"name": f"{name}-p1", "pressure": 1})
try:
    register(Objective("late"))
except ValueError as error:
    print(error)
"""


@pytest.mark.slow
def test_registered_terms_are_sections_and_arms_of_a_recipe() -> None:
    script = [sys.executable, "-c", REGISTERED]
    done = subprocess.run(script, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == [
        "objective 'grp': it or its term has the name of another",
        "s_dpo-random-pressure0.3 s_dpo random {'beta': 1.0, 'chosen': 'best'}",
        "3.0 False",
        "objective 'late': register it before adagrpo.config is imported",
    ], done.stderr


def test_a_registration_after_the_recipes_is_refused() -> None:
    import adagrpo.config  # noqa: F401

    with pytest.raises(ValueError, match=r"before adagrpo\.config is imported"):
        terms.register_all()


def rows(reward: str, *utility: float, hr: float = 0.02) -> list[dict[str, Any]]:
    """An arm under three seeds whose true utility moved so far, with a variance of a hundredth squared."""
    about = {"reward": reward, "arm": "x", "pressure": 1, "metrics": {"hallucination@10": 0.05}}
    moved = [{"hr@10": [hr, 1e-4], "true_utility@10": [one, 1e-4], "reward@10": [0.1, 1e-4]} for one in utility]
    against = [one | {"ndcg@10": [0, 1e-4], "hallucination@10": [0, 1e-4]} for one in moved]
    return [about | {"seed": seed, "against": one} for seed, one in enumerate(against)]


def test_a_difference_is_clear_where_students_interval_over_worlds_excludes_zero() -> None:
    # mean -.02, standard deviation .01, so half is 4.3027 * .01 / sqrt(3), however sure each world is of its own users
    found = measure.pooled(rows("good", -0.01, -0.02, -0.03), "true_utility@10") or pytest.fail()
    assert found == pytest.approx((-0.02, 0.0248414), abs=1e-6) and not found.clear
    assert (measure.pooled(rows("good", -0.019, -0.02, -0.021), "true_utility@10") or pytest.fail()).clear
    alone = measure.pooled(rows("good", -0.02), "true_utility@10")  # one world: over its users
    assert alone == pytest.approx((-0.02, 0.0196)) and alone is not None and alone.clear
    assert measure.pooled(rows("good", 0.1), "mrr@10") is None


def test_the_table_names_what_is_hacked_and_leaves_out_what_was_refused() -> None:
    plan = {
        "worlds": {"w": {"rewards": {"good": [], "wrong": []}, "pressures": [1]}},
        "arms": {"x": {}, "y": {}},
        "controls": {},
    }
    refused = {"reward": "wrong", "arm": "y", "pressure": 1, "refused": "no gradient"}
    lines = measure.table([*rows("good", 0.02, 0.03), *rows("wrong", -0.025, -0.026), refused], plan, "w")
    assert len(lines) == 4
    assert lines[2] == (  # of two worlds: 12.706 * .0071 / sqrt(2) = .0635
        "| good | 1 | x | 2 | **+2.00 ± 0.00** | +0.00 ± 0.00 | +0.0250 ± 0.0635 | +0.00 ± 0.00 | 5.00% "
        "| **+0.100 ± 0.000** |  |"
    )
    assert lines[3].endswith("| hacked |")


def test_the_summary_is_of_one_strength_and_says_over_how_many_worlds() -> None:
    stronger = [row | {"pressure": 2} for row in rows("good", -0.02, -0.03, -0.04)]
    table = measure.summary([*rows("good", 0.02, 0.03), *rows("wrong", -0.025, -0.026), *stronger])
    assert table.header[:2] == ("arm, over 2 worlds", "HR@10, good")
    (line,) = table.rows
    assert line[:4] == ("x", "+2.0 ± 0.0", "+0.0 ± 0.0", "+25.0 ± 63.5") and line[6] == "−25.5 ± 6.4"
    assert table.best == {(0, 1), (0, 5), (0, 6)}


def test_arms_of_a_plan_have_controls_at_pressure_one_alone() -> None:
    plan: dict[str, Any] = {"worlds": {"w": {"pressures": [1, 0.3]}}, "arms": {"x": {"objective": "grp"}}}
    plan["controls"] = {"c": {"objective": "mixture"}}
    names = [arm.get("name") for arm in measure.arms_of(plan, "w")]
    assert names == [None, "nll-twice", "x-p1", "c-p1", "x-p0.3"]
