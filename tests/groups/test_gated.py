"""The four steps in order: the same groups whoever asks, in a fixed order of draws, and no state but what is passed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from adagrpo.config import ObjectiveConfig
from adagrpo.groups.draw import draw_groups, undivided
from adagrpo.groups.gated import GatedGroups, gate_by_evidence, gated_groups, gather_evidence, summary
from adagrpo.groups.score import score_groups
from adagrpo.policies import CompactPolicy
from adagrpo.semantic_ids.catalog import Catalog
from adagrpo.semantic_ids.trie import Trie
from adagrpo.types import Histories

ITEMS, SAMPLES = 20, 12
OPTIONS = {"num_generations": 6, "negatives": 3, "tau": 0.5, "rho": 0.2, "miss_min": 0.5, "q_min": 0.5}


class LastTimesItem:
    """Sine of (last item + 1) · (item + 1): tells apart every history and item, in no order of either."""

    def score(self, histories: Histories, items: Tensor) -> Tensor:
        last = histories.items.gather(1, histories.lengths.unsqueeze(1) - 1)
        return ((last + 1) * (items + 1)).float().sin()


@dataclass
class World:
    policy: CompactPolicy
    catalog: Catalog
    histories: Histories
    targets: Tensor

    def gated(
        self,
        *,
        gate: Any = "adagrpo",
        running_std: float = 0.0,
        seed: int = 0,
        reward: Any = None,
        division: Any = undivided,
        reference: bool = False,
        **options: Any,
    ) -> GatedGroups:
        settings = ObjectiveConfig(**OPTIONS | options)
        targets = torch.full_like(self.targets, -1) if settings.rl_positions == "end" else self.targets
        generator = torch.Generator().manual_seed(seed)
        return gated_groups(
            self.policy,
            self.catalog,
            reward or LastTimesItem(),
            self.histories,
            targets,
            settings,
            generator,
            gate=gate,
            running_std=running_std,
            reference=self.policy if reference else None,
            division=division,
        )


@pytest.fixture(scope="module")
def world() -> World:
    catalog = Catalog.from_codes(torch.tensor([[i // 5, i % 5] for i in range(ITEMS)]), (4, 6))
    sizes = {"width": 8, "layers": 1, "heads": 2, "decoder_hidden": 8, "max_history": 6, "dropout": 0.0, "seed": 1}
    policy = CompactPolicy(catalog.codes, catalog.level_sizes, **sizes).eval()
    generator = torch.Generator().manual_seed(3)
    items = torch.randint(0, ITEMS, (SAMPLES, 4), generator=generator)
    histories = Histories(items, torch.full((SAMPLES,), 4), torch.arange(SAMPLES))
    return World(policy, catalog, histories, torch.randint(0, ITEMS, (SAMPLES,), generator=generator))


@pytest.mark.parametrize("rollout", ["sample", "beam"])
def test_a_diagnosis_and_training_see_the_same_groups(world: World, rollout: str) -> None:
    """The first two steps by themselves, as a diagnosis takes them, from a generator in the same state."""
    gated = world.gated(rollout=rollout, seed=4)
    options, generator = ObjectiveConfig(**OPTIONS, rollout=rollout), torch.Generator().manual_seed(4)
    arguments = (world.policy, world.catalog, world.histories, world.targets, options, generator)
    scored = score_groups(LastTimesItem(), draw_groups(*arguments, score_targets=True), options.negatives, generator)
    for name in ("items", "codes", "log_probs"):
        assert torch.equal(getattr(scored.rollouts, name), getattr(gated.rollouts, name))
    assert torch.equal(scored.negatives, gated.scored.negatives)
    for one, other in (
        (scored.rewards, gated.scored.rewards),
        (scored.shuffled_rewards, gated.scored.shuffled_rewards),
    ):
        torch.testing.assert_close(tuple(one), tuple(other), rtol=0, atol=0, equal_nan=True)
    assert scored.target_log_probs is not None and gated.scored.target_log_probs is not None
    assert torch.equal(scored.target_log_probs, gated.scored.target_log_probs)
    evidence = gather_evidence(scored, scored.rewards, options, running_std=torch.tensor(gated.running_std))
    assert torch.equal(gate_by_evidence("adagrpo", evidence, options).admitted, gated.decision.admitted)


@pytest.mark.parametrize("options", [{}, {"rollout": "beam"}, {"inject_target": True}, {"constrained": True}])
def test_ranks_among_the_rollouts_follow_the_loop(world: World, options: dict[str, Any]) -> None:
    """The paper's diagnostics, one group and one rollout after another."""
    gated = world.gated(seed=2, **options)
    scored, evidence = gated.scored, gated.evidence
    drawn = scored.sampled.log_probs.double().sum(2).tolist()
    assert scored.target_log_probs is not None
    own = scored.target_log_probs.double().sum(1).tolist()

    def above(values: list[float], items: list[int], value: float, item: int) -> float:
        points = [(0.5 if v == value else float(v > value)) for v, i in zip(values, items, strict=True) if i != item]
        return sum(points) / len(values)

    for row, target in enumerate(world.targets.tolist()):
        items = scored.sampled.items[row].tolist()
        assert evidence.above_policy[row] == pytest.approx(above(drawn[row], items, own[row], target))
        items, rewards = scored.rollouts.items[row].tolist(), scored.rewards.rollouts[row].tolist()
        known = above(rewards, items, float(scored.rewards.target[row]), target)
        assert evidence.above_reward[row] == pytest.approx(known)
        for place, item in enumerate(scored.negatives[row].tolist()):
            own_reward = float(scored.rewards.negatives[row, place])
            share = above(rewards, items, own_reward, item) if item >= 0 else torch.nan
            assert evidence.negatives_above[row, place] == pytest.approx(share, nan_ok=True)
            others = torch.cat([scored.sampled.items[:row], scored.sampled.items[row + 1 :]])
            assert item < 0 or (bool((others == item).any()) and item != target)


def test_gates_that_read_no_logged_item_score_none(world: World) -> None:
    for gate in ("all", "none", "bernoulli"):
        gated = world.gated(gate=gate)
        assert gated.scored.target_log_probs is None and gated.shuffled_decision is None
    assert world.gated(gate="rollout_miss").scored.target_log_probs is None
    assert world.gated(gate="random").scored.target_log_probs is not None
    assert world.gated(gate="random", control_of="rollout_miss").scored.target_log_probs is None


@pytest.mark.parametrize("gate", ["all", "none", "difficulty", "discriminability", "random", "inverted", "shuffled"])
def test_the_gate_changes_nothing_that_is_drawn_before_it(world: World, gate: str) -> None:
    one, other = world.gated(), world.gated(gate=gate)
    assert torch.equal(one.rollouts.codes, other.rollouts.codes)
    assert torch.equal(one.scored.negatives, other.scored.negatives)
    rewards = (one.scored.shuffled_rewards.rollouts, other.scored.shuffled_rewards.rollouts)
    torch.testing.assert_close(*rewards, rtol=0, atol=0, equal_nan=True)
    own = other.scored.shuffled_rewards if gate == "shuffled" else other.scored.rewards
    torch.testing.assert_close(other.rewards, own.rollouts, rtol=0, atol=0, equal_nan=True)


def test_the_spread_is_passed_in_and_comes_back(world: World) -> None:
    fresh = world.gated()
    rewards = fresh.scored.rewards.rollouts[fresh.rollouts.valid]
    assert fresh.running_std == pytest.approx(float(rewards.std()))
    assert world.gated(running_std=2.0).running_std == pytest.approx(0.9 * 2.0 + 0.1 * float(rewards.std()))
    assert world.gated().running_std == fresh.running_std  # nothing is remembered
    wide = world.gated(running_std=1e9)
    assert wide.decision.degenerate.all() and not fresh.decision.degenerate.all()


def test_without_a_reference_policy_nothing_is_scored_by_it(world: World) -> None:
    gated = world.gated()
    assert gated.reference is None and summary(gated).kl is None


def test_at_the_ends_of_histories_there_is_no_evidence_of_logged_items(world: World) -> None:
    gated = world.gated(gate="all", rl_positions="end")
    assert gated.scored.negatives.shape == (SAMPLES, 0) and gated.shuffled_decision is None
    assert all(share.isnan().all() for share in gated.evidence[:-2])
    assert torch.equal(gated.decision.admitted, ~gated.evidence.degenerate)
    assert (summary(gated).contains_target, summary(gated).shuffled_admission) == (None, None)
    assert torch.equal(gated.rollouts.codes, world.gated().rollouts.codes)  # the rollouts are the same draws


def test_the_gate_of_a_fixed_rate_decides_at_the_ends_too(world: World) -> None:
    """It admits as many as elsewhere, of the same draws, since it looks at nothing."""
    admitted = {}
    for place in ("random", "end"):
        for rate in (0.5, 1.0):
            gated = world.gated(gate="bernoulli", rl_positions=place, admission_rate=rate)
            admitted[place, rate] = gated.decision.admitted
            assert not bool((gated.decision.admitted & gated.evidence.degenerate).any())
        assert bool((admitted[place, 0.5] <= admitted[place, 1.0]).all())
        assert 0 < int(admitted[place, 0.5].sum()) < int(admitted[place, 1.0].sum())
    assert torch.equal(world.gated(gate="all").decision.admitted, admitted["random", 1.0])


def test_one_outcome_a_sample_is_logged(world: World) -> None:
    values = summary(world.gated(gate="random")).to_json()
    shares = [value for name, value in values.items() if name == "admission" or name.startswith("rejected_")]
    assert len(shares) == 5 and sum(shares) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "gate", ["adagrpo", "all", "none", "difficulty", "random", "bernoulli", "shuffled", "inverted"]
)
def test_groups_without_an_item_are_counted_and_admitted_by_no_gate(world: World, gate: str) -> None:
    nowhere = World(world.policy, Catalog.from_codes(torch.tensor([[3, 5]]), (4, 6)), world.histories, world.targets)
    everything = torch.zeros_like(world.targets)
    groups = World(nowhere.policy, nowhere.catalog, nowhere.histories, everything).gated(gate=gate, running_std=0.7)
    empty = ~groups.rollouts.valid.any(1)
    assert bool(empty.any()) and not bool(groups.decision.admitted[empty].any())
    assert bool(groups.evidence.degenerate[empty].all()) and summary(groups).empty_groups == int(empty.sum())


@pytest.mark.parametrize("rollout", ["sample", "beam"])
def test_a_whole_step_without_an_item_leaves_the_spread_as_it_was(
    world: World, rollout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trie, "lookup", lambda self, codes: torch.full(codes.shape[:-1], -1))
    groups = world.gated(gate="all", running_std=0.7, rollout=rollout, rl_positions="end", exclude_history=True)
    assert groups.running_std == 0.7 and not bool(groups.decision.admitted.any())
    logged = summary(groups)
    assert (logged.empty_groups, logged.invalid_share, logged.scored_pairs) == (SAMPLES, 1.0, 0.0)
    assert logged.reward is None


class InParts:
    """Rows of a step as processes have them, here one after the other."""

    parts = (torch.tensor([0, 3, 4, 9]), torch.tensor([1, 2, 5, 6, 7, 8, 10, 11]))

    def __call__(self, wholes: Any, compute: Any) -> Any:
        for rows in self.parts:
            for whole, part in zip(wholes, compute(rows), strict=True):
                assert len(part) == len(rows)
                whole[rows] = part
        return wholes


class Counting(LastTimesItem):
    def __init__(self) -> None:
        self.asked: list[int] = []  # who was asked about, in order

    def score(self, histories: Histories, items: Tensor) -> Tensor:
        assert histories.users is not None
        self.asked += histories.users.tolist()
        return super().score(histories, items)


@pytest.mark.parametrize(
    "options",
    [
        {"gate": "random", "inject_target": True, "reference": True},
        {"gate": "shuffled", "rollout": "beam"},
        {"gate": "all", "rl_positions": "end", "constrained": True},
        {"exclude_history": True},
    ],
)
def test_groups_are_the_same_however_they_are_divided(world: World, options: dict[str, Any]) -> None:
    whole, divided = Counting(), Counting()
    one = world.gated(reward=whole, **options)
    other = world.gated(reward=divided, division=InParts(), **options)
    assert divided.asked == [*InParts.parts[0].tolist(), *InParts.parts[1].tolist()], "each group is asked for once"
    assert sorted(divided.asked) == whole.asked
    assert torch.equal(one.rollouts.items, other.rollouts.items)
    assert torch.equal(one.rollouts.codes, other.rollouts.codes)
    assert torch.equal(one.scored.negatives, other.scored.negatives)
    assert torch.equal(one.decision.admitted, other.decision.admitted)
    assert one.running_std == pytest.approx(other.running_std, rel=1e-6)
    torch.testing.assert_close(one.rewards, other.rewards, equal_nan=True)
    torch.testing.assert_close(one.rollouts.log_probs, other.rollouts.log_probs, rtol=1e-5, atol=1e-6)
    assert (one.reference is None) == (other.reference is None) == ("reference" not in options)
    if one.reference is not None:
        torch.testing.assert_close(one.reference, other.reference, rtol=1e-5, atol=1e-6)
    assert summary(one).to_json() == pytest.approx(summary(other).to_json(), rel=1e-5, abs=1e-6)
