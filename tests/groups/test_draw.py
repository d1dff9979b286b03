"""Groups of rollouts, on a policy whose next code depends on the last one only."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from adagrpo.config import ObjectiveConfig
from adagrpo.groups.draw import beam_rollouts, draw_groups, draw_rollouts, inject_target
from adagrpo.policies.compact import CompactPolicy
from adagrpo.semantic_ids.catalog import Catalog
from adagrpo.semantic_ids.trie import Trie
from adagrpo.types import Histories, Rollouts

SIZES = (3, 4)
CODES = torch.tensor([[0, 1], [0, 2], [2, 3], [1, 0]])  # items 0 .. 3


@dataclass(frozen=True)
class ChainState:
    logits: Tensor  # (B, W, K) of the next code
    rows: Tensor  # (B,)
    level: int


class ChainPolicy:
    """A context is the (B,) rows of two tables: first codes (rows, 3), second after first (rows, 3, 4)."""

    level_sizes = SIZES

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.first = torch.randn(2, 3, generator=generator)
        self.second = torch.randn(2, 3, 4, generator=generator)

    def start(self, context: Tensor) -> ChainState:
        return ChainState(self.first[context].unsqueeze(1), context, 0)

    def logits(self, state: ChainState) -> Tensor:
        return state.logits

    def advance(self, state: ChainState, parents: Tensor, codes: Tensor) -> ChainState:
        return ChainState(self.second[state.rows.unsqueeze(1), codes], state.rows, 1)

    def score(self, context: Tensor, codes: Tensor, *, temperature: float = 1.0) -> Tensor:
        rows = context.unsqueeze(1)
        first = (self.first / temperature).log_softmax(-1)[rows, codes[..., 0]]
        second = (self.second / temperature).log_softmax(-1)[rows, codes[..., 0], codes[..., 1]]
        return torch.stack([first, second], dim=-1)


@pytest.fixture
def policy() -> ChainPolicy:
    return ChainPolicy()


@pytest.fixture
def trie() -> Trie:
    return Trie.build(CODES, SIZES)


CONTEXT = torch.tensor([1, 0])


def items_of(codes: Tensor) -> list[list[int]]:
    """Items of (B, G, L) codes, by looking through the catalogue."""
    catalogue = CODES.tolist()
    return [[catalogue.index(row) if row in catalogue else -1 for row in group] for group in codes.tolist()]


@pytest.mark.parametrize("temperature", [1.0, 1.6])
def test_free_rollouts_keep_codes_that_name_no_item(policy, trie, temperature):
    uniforms = torch.rand(2, 64, 2, generator=torch.Generator().manual_seed(1))
    rollouts = draw_rollouts(policy, CONTEXT, trie, uniforms, temperature=temperature)
    assert rollouts.items.tolist() == items_of(rollouts.codes)
    assert rollouts.valid.any() and not rollouts.valid.all()
    expected = policy.score(CONTEXT, rollouts.codes, temperature=temperature)
    torch.testing.assert_close(rollouts.log_probs, expected, rtol=1e-5, atol=1e-6)


def test_constrained_rollouts_are_items_with_the_constrained_probabilities(policy, trie):
    uniforms = torch.rand(2, 64, 2, generator=torch.Generator().manual_seed(1))
    rollouts = draw_rollouts(policy, CONTEXT, trie, uniforms, constrained=True)
    assert rollouts.valid.all()
    assert rollouts.items.tolist() == items_of(rollouts.codes)
    # every first code begins an item, so it is as likely as in the free policy; after 1 and 2 one code is left
    free = policy.score(CONTEXT, rollouts.codes)
    torch.testing.assert_close(rollouts.log_probs[..., 0], free[..., 0], rtol=1e-5, atol=1e-6)
    alone = rollouts.codes[..., 0] != 0
    assert (rollouts.log_probs[..., 1][alone] == 0).all()
    pair = torch.stack([policy.second[CONTEXT, 0, 1], policy.second[CONTEXT, 0, 2]], dim=-1).log_softmax(-1)
    both = pair.gather(1, (rollouts.codes[..., 1] - 1).clamp(0, 1))
    torch.testing.assert_close(rollouts.log_probs[..., 1][~alone], both[~alone], rtol=1e-5, atol=1e-6)


def test_beam_rollouts_are_the_most_probable_sequences(policy, trie):
    rollouts = beam_rollouts(policy, CONTEXT, trie, 5)
    space = torch.cartesian_prod(torch.arange(3), torch.arange(4)).expand(2, 12, 2)
    log_probs = policy.score(CONTEXT, space)
    best = log_probs.sum(-1).argsort(dim=1, descending=True)[:, :5, None].expand(-1, -1, 2)
    assert torch.equal(rollouts.codes, space.gather(1, best))
    torch.testing.assert_close(rollouts.log_probs, log_probs.gather(1, best), rtol=1e-5, atol=1e-6)
    assert rollouts.items.tolist() == items_of(rollouts.codes)


@pytest.mark.parametrize("constrained", [False, True])
def test_a_beam_is_not_scored_once_more(policy, trie, constrained, monkeypatch):
    expected = beam_rollouts(policy, CONTEXT, trie, 4, constrained=constrained)
    monkeypatch.setattr(ChainPolicy, "score", None)
    actual = beam_rollouts(policy, CONTEXT, trie, 4, constrained=constrained)
    assert torch.equal(actual.log_probs, expected.log_probs)


def test_unused_hypotheses_of_a_constrained_beam_are_invalid(policy):
    codes = torch.tensor([[0, 0], [2, 3]])  # item 0 has the very codes that unused hypotheses are filled with
    rollouts = beam_rollouts(policy, CONTEXT, Trie.build(codes, SIZES), 4, constrained=True)
    assert rollouts.items[:, :2].sort(dim=1).values.tolist() == [[0, 1], [0, 1]]
    assert (rollouts.items[:, 2:] == -1).all()
    assert (rollouts.codes >= 0).all()
    torch.testing.assert_close(rollouts.log_probs, policy.score(CONTEXT, rollouts.codes), rtol=1e-5, atol=1e-6)


def test_inject_replaces_the_last_rollout_only_where_the_target_is_missing():
    rollouts = Rollouts(
        codes=torch.arange(12).view(2, 3, 2),
        items=torch.tensor([[5, -1, 7], [5, -1, 7]]),
        log_probs=-torch.arange(12.0).view(2, 3, 2),
    )
    before = [value.clone() for value in rollouts[:3]]
    injected = inject_target(
        rollouts, torch.tensor([5, 9]), torch.tensor([[1, 1], [2, 3]]), torch.tensor([[-0.1, -0.1], [-0.2, -0.3]])
    )
    assert injected.items.tolist() == [[5, -1, 7], [5, -1, 9]]
    assert injected.codes.tolist() == [[[0, 1], [2, 3], [4, 5]], [[6, 7], [8, 9], [2, 3]]]
    expected = before[2].clone()
    expected[1, 2] = torch.tensor([-0.2, -0.3])
    assert torch.equal(injected.log_probs, expected)
    assert all(torch.equal(now, then) for now, then in zip(rollouts[:3], before, strict=True))


def test_inject_into_a_group_of_one():
    rollouts = Rollouts(torch.zeros(1, 1, 2, dtype=torch.int64), torch.tensor([[-1]]), torch.zeros(1, 1, 2))
    injected = inject_target(rollouts, torch.tensor([4]), torch.tensor([[2, 1]]), torch.tensor([[-1.0, -2.0]]))
    assert injected.items.tolist() == [[4]]
    assert injected.codes.tolist() == [[[2, 1]]]
    assert injected.log_probs.tolist() == [[[-1.0, -2.0]]]


def test_a_logged_item_of_the_history_is_taught_where_it_is_injected() -> None:
    catalog = Catalog.from_codes(CODES, SIZES)
    policy = CompactPolicy(CODES, SIZES, width=8, layers=1, heads=2, decoder_hidden=8, dropout=0.0).eval()
    histories, targets = Histories(torch.tensor([[2, 1]]), torch.tensor([2])), torch.tensor([2])
    options = ObjectiveConfig(rollout="beam", constrained=True, num_generations=4, exclude_history=True)
    plain = draw_groups(policy, catalog, histories, targets, options, torch.Generator()).rollouts
    assert sorted(plain.items[0].tolist()) == [-1, -1, 0, 3]  # the logged one is in the history, as the item 1 is
    taught = options.model_copy(update={"inject_target": True})
    group = draw_groups(policy, catalog, histories, targets, taught, torch.Generator()).rollouts
    assert sorted(group.items[0].tolist()) == [-1, 0, 2, 3]


@pytest.mark.parametrize("scored", [{"inject_target": True}, {"inject_target": False}])
def test_a_delisted_item_among_constrained_samples_is_named(scored: dict[str, bool]) -> None:
    catalog = Catalog.from_codes(CODES, SIZES, listed=torch.tensor([True, True, False, True]))
    policy = CompactPolicy(CODES, SIZES, width=8, layers=1, heads=2, decoder_hidden=8, dropout=0.0).eval()
    histories, targets = Histories(torch.tensor([[3], [1]]), torch.tensor([1, 1])), torch.tensor([0, 2])
    options, asked = ObjectiveConfig(constrained=True, num_generations=2, **scored), not scored["inject_target"]
    with pytest.raises(ValueError, match="targets hold item 2, which is delisted"):
        draw_groups(policy, catalog, histories, targets, options, torch.Generator(), score_targets=asked)
    for free in ({"constrained": False}, {"rollout": "beam"}):  # the policy's own probability of an item is there
        drawn = draw_groups(
            policy,
            catalog,
            histories,
            targets,
            options.model_copy(update=free),
            torch.Generator(),
            score_targets=asked,
        )
        assert drawn.target_log_probs is not None and bool(drawn.target_log_probs.isfinite().all())
