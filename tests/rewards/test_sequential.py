"""The sequential ranker's score and its three losses against loops."""

from __future__ import annotations

import math

import pytest
import torch

from adagrpo.rewards.sequential import SequentialRanker
from adagrpo.types import Histories

HISTORIES = Histories(torch.tensor([[1, 5, 3], [7, 2, 0], [4, 0, 0]]), torch.tensor([3, 2, 1]))
ROWS, POSITIONS = torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([0, 1, 2, 0, 1, 0])


def make_ranker(dropout: float = 0.0) -> SequentialRanker:
    ranker = SequentialRanker(9, width=8, layers=1, heads=2, max_history=3, dropout=dropout, slots=3)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in ranker.parameters():
            parameter.add_(0.4 * torch.randn(parameter.shape, generator=generator))
    return ranker


@pytest.fixture
def ranker() -> SequentialRanker:
    return make_ranker()


def slow_score(ranker: SequentialRanker, history: list[int], item: int) -> float:
    """`h · e_i + b_i` of one history cut to its length, summed by hand."""
    state = ranker.encoder(ranker.items(torch.tensor([history])))[0, -1].tolist()
    products = (a * b for a, b in zip(state, ranker.items.weight[item].tolist(), strict=True))
    return sum(products) + float(ranker.bias.weight[item])


def seen(row: int, position: int) -> list[int]:
    return HISTORIES.items[row, : position + 1].tolist()


@torch.no_grad()
def test_score_is_a_dot_product_and_a_bias(ranker):
    items = torch.tensor([[0, 8, 3, 3], [1, -1, 7, 2], [-1, -1, 5, 4]])
    scores = ranker.score(HISTORIES, items)
    assert scores.shape == (3, 4) and scores.dtype == torch.float32
    for row in range(3):
        history = HISTORIES.items[row, : HISTORIES.lengths[row]].tolist()
        for column, item in enumerate(items[row].tolist()):
            if item >= 0:
                assert math.isclose(scores[row, column], slow_score(ranker, history, item), rel_tol=1e-5, abs_tol=1e-5)


@torch.no_grad()
def test_all_ways_to_score_agree(ranker):
    ranker.eval()
    everything = torch.arange(9).expand(3, 9)
    expected = ranker.score(HISTORIES, everything)
    states = ranker.last_states(HISTORIES)
    torch.testing.assert_close(ranker.catalogue_scores(states), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ranker.candidate_scores(states, everything), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_score_is_deterministic_without_gradient_and_leaves_the_mode_as_it_was(training):
    ranker = make_ranker(dropout=0.5).train(training)
    items = torch.arange(9).expand(3, 9)
    first = ranker.score(HISTORIES, items)
    assert torch.equal(first, ranker.score(HISTORIES, items)) and not first.requires_grad
    assert all(module.training == training for module in ranker.modules())


@torch.no_grad()
def test_next_item_loss_is_cross_entropy_over_the_catalogue(ranker):
    targets = torch.tensor([5, 3, 8, 2, 0, 1])
    losses = ranker.next_item_loss(ranker.states_at(HISTORIES, ROWS, POSITIONS), targets)
    for n in range(6):
        scores = [slow_score(ranker, seen(ROWS[n], POSITIONS[n]), item) for item in range(9)]
        expected = -math.log(math.exp(scores[targets[n]]) / sum(map(math.exp, scores)))
        assert math.isclose(losses[n], expected, rel_tol=1e-5, abs_tol=1e-5)


@torch.no_grad()
def test_sampled_loss_masks_accidental_hits_and_counts_repeated_negatives(ranker):
    targets, negatives = torch.tensor([5, 3, 8, 2, 0, 1]), torch.tensor([3, 6, 6, 0, 7])
    losses = ranker.sampled_loss(ranker.states_at(HISTORIES, ROWS, POSITIONS), targets, negatives)
    for n in range(6):
        history, target = seen(ROWS[n], POSITIONS[n]), int(targets[n])
        own = math.exp(slow_score(ranker, history, target))
        others = sum(math.exp(slow_score(ranker, history, item)) for item in negatives.tolist() if item != target)
        assert math.isclose(losses[n], -math.log(own / (own + others)), rel_tol=1e-5, abs_tol=1e-5)


def test_sampled_loss_is_0_where_every_negative_is_the_target(ranker):
    losses = ranker.sampled_loss(
        ranker.states_at(HISTORIES, ROWS, POSITIONS), torch.full((6,), 4), torch.tensor([4, 4])
    )
    assert torch.equal(losses, torch.zeros(6))
    losses.sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in ranker.parameters() if p.grad is not None)


@torch.no_grad()
def test_impression_loss_adds_the_slot_and_scoring_leaves_it_out(ranker):
    items, slots = torch.tensor([0, 8, 3, 3, 7, 1]), torch.tensor([0, 1, 2, 0, 1, 2])
    clicked = torch.tensor([True, False, False, True, True, False])
    losses = ranker.impression_loss(ranker.states_at(HISTORIES, ROWS, POSITIONS), items, slots, clicked)
    for n in range(6):
        logit = slow_score(ranker, seen(ROWS[n], POSITIONS[n]), int(items[n])) + float(
            ranker.slot_bias.weight[slots[n]]
        )
        probability = 1 / (1 + math.exp(-logit))
        expected = -math.log(probability if clicked[n] else 1 - probability)
        assert math.isclose(losses[n], expected, rel_tol=1e-5, abs_tol=1e-5)
    before = ranker.score(HISTORIES, torch.arange(9).expand(3, 9))
    ranker.slot_bias.weight += 3.0
    assert torch.equal(ranker.score(HISTORIES, torch.arange(9).expand(3, 9)), before)


def test_losses_use_dropout_in_training():
    ranker, targets = make_ranker(dropout=0.5).train(), torch.tensor([5, 3, 8, 2, 0, 1])
    first, second = (ranker.next_item_loss(ranker.states_at(HISTORIES, ROWS, POSITIONS), targets) for _ in range(2))
    assert not torch.equal(first, second)
