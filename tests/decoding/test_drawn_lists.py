"""Drawn lists against enumeration: the law of lists, their probabilities, and weights that are to be unbiased."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from adagrpo.decoding import (
    Slates,
    beam_search,
    draw_slates,
    inclusion_log_prob,
    rank_log_probs,
    slate_log_probs,
)
from adagrpo.decoding.drawn_lists import _followed, _gumbel
from adagrpo.errors import NotFinite
from adagrpo.semantic_ids.trie import Trie

SIZES = (3, 4)
CODES = torch.tensor([[0, 0], [0, 3], [1, 1], [2, 0], [2, 1], [2, 3], [1, 2]])
TEMPERATURE = 0.7


@dataclass(frozen=True)
class State:
    rows: Tensor  # (B,)
    prefixes: Tensor  # (B, W)
    level: int


@dataclass(frozen=True)
class TablePolicy:
    """Logits of two levels by row and first code; a context is the rows."""

    first: Tensor  # (rows, K_1)
    second: Tensor  # (rows, K_1, K_2)

    @property
    def level_sizes(self) -> tuple[int, int]:
        return self.second.shape[1], self.second.shape[2]

    def start(self, context: Tensor) -> State:
        return State(context, torch.zeros(len(context), 1, dtype=torch.int64), 0)

    def logits(self, state: State) -> Tensor:
        rows = state.rows.unsqueeze(1)
        return self.first[rows] if state.level == 0 else self.second[rows, state.prefixes]

    def advance(self, state: State, parents: Tensor, codes: Tensor) -> State:
        return State(state.rows, codes, 1)


def first_log_probs(policy: TablePolicy, rows: Tensor, items: Tensor, trie: Trie, **options: Any) -> Tensor:
    """(B, N) of each item to be drawn first."""
    return _followed(policy, rows, items, trie, options.get("temperature", 1.0), options.get("excluded"))[0]


@pytest.fixture(scope="module")
def policy() -> TablePolicy:
    generator = torch.Generator().manual_seed(3)
    return TablePolicy(torch.randn(2, 3, generator=generator), torch.randn(2, 3, 4, generator=generator) * 1.5)


def probabilities(policy: TablePolicy, row: int, items: list[int], temperature: float = TEMPERATURE) -> list[float]:
    """Of each item of `items`: each level a softmax over the codes that lead to one of them."""
    codes = [tuple(CODES[item].tolist()) for item in items]

    def share(logits: list[float], allowed: set[int], code: int) -> float:
        return math.exp(logits[code] / temperature) / sum(math.exp(logits[k] / temperature) for k in allowed)

    result = []
    for one, two in codes:
        first = share(policy.first[row].tolist(), {c for c, _ in codes}, one)
        second = share(policy.second[row, one].tolist(), {d for c, d in codes if c == one}, two)
        result.append(first * second)
    return result


def drawn(policy: TablePolicy, count: int, draws: int, without: list[int], row: int = 1) -> Slates:
    trie = Trie.build(CODES, SIZES)
    excluded = trie.excluding(torch.tensor([without] * draws)) if without else None
    context, seeds = torch.full((draws,), row), torch.arange(draws) * 7919 + 11
    return draw_slates(policy, context, count, seeds, trie=trie, temperature=TEMPERATURE, excluded=excluded)


@pytest.mark.parametrize("without", [[], [4], [0, 1, 6]])
def test_log_probs_are_those_of_the_items_that_may_be_drawn(policy: TablePolicy, without: list[int]) -> None:
    allowed = [item for item in range(len(CODES)) if item not in without]
    slates = drawn(policy, len(allowed), 5, without)
    expected = dict(zip(allowed, probabilities(policy, 1, allowed), strict=True))
    for items, log_probs in zip(slates.items.tolist(), slates.log_probs.tolist(), strict=True):
        assert sorted(items[:-1]) == allowed and items[-1] == -1 and log_probs[-1] == -math.inf
        np.testing.assert_allclose(np.exp(log_probs[:-1]), [expected[item] for item in items[:-1]], rtol=1e-12)
    np.testing.assert_allclose(sum(expected.values()), 1.0, rtol=1e-12)


def law(chances: dict[int, float], count: int) -> dict[tuple[int, ...], float]:
    """The probability of each list, one item drawn after the other."""
    result = {}
    for items in itertools.permutations(chances, count):
        probability, left = 1.0, 1.0
        for item in items:
            probability *= chances[item] / left
            left -= chances[item]
        result[items] = probability
    return result


@pytest.mark.parametrize("without", [[], [4], [0, 1, 6]])
def test_lists_are_as_frequent_as_they_are_probable(policy: TablePolicy, without: list[int]) -> None:
    allowed, draws = [item for item in range(len(CODES)) if item not in without], 40_000
    slates = drawn(policy, 2, draws, without)
    expected = law(dict(zip(allowed, probabilities(policy, 1, allowed), strict=True)), 2)
    counted = Counter(map(tuple, slates.items[:, :2].tolist()))
    assert counted.keys() <= expected.keys()
    common = [items for items, probability in expected.items() if probability * draws >= 10]
    rare = [items for items in expected if items not in common]
    observed = [counted[items] for items in common] + ([sum(counted[items] for items in rare)] if rare else [])
    wanted = [expected[items] for items in common] + ([sum(expected[items] for items in rare)] if rare else [])
    assert chisquare(observed, np.array(wanted) * draws).pvalue > 0.01


def test_places_multiply_to_the_probability_of_the_list(policy: TablePolicy) -> None:
    allowed = list(range(len(CODES)))
    slates = drawn(policy, 3, 50, [])
    expected = law(dict(zip(allowed, probabilities(policy, 1, allowed), strict=True)), 3)
    places = rank_log_probs(slates.log_probs, slates.rest)[:, :3]
    for items, total in zip(slates.items[:, :3].tolist(), places.sum(1).tolist(), strict=True):
        np.testing.assert_allclose(math.exp(total), expected[tuple(items)], rtol=1e-10)


def inclusions_of(slates: Slates, count: int) -> Tensor:
    """(B, count)"""
    rows = zip(slates.log_probs.tolist(), slates.keys.tolist(), strict=True)
    return torch.tensor(
        [[inclusion_log_prob(phi, keys[count]) for phi in phis[:count]] for phis, keys in rows]
    ).double()


def test_weights_of_one_over_the_inclusion_are_unbiased(policy: TablePolicy) -> None:
    draws, allowed = 15_000, [0, 1, 2, 3, 5, 6]
    slates = drawn(policy, 2, draws, [4])
    inclusions = inclusions_of(slates, 2)
    weights = torch.zeros(draws, len(CODES), dtype=torch.float64)
    weights.scatter_(1, slates.items[:, :2], (-inclusions).exp())
    error = weights.std(0) / math.sqrt(draws)
    assert bool(((weights.mean(0) - 1).abs() < 4 * error)[allowed].all())
    assert bool((weights[:, 4] == 0).all())
    for phi, key, result in zip(slates.log_probs[0, :2], slates.keys[0, 2:].expand(2), inclusions[0], strict=True):
        np.testing.assert_allclose(math.exp(result), 1 - math.exp(-math.exp(phi - key)), rtol=1e-6)


def test_a_list_is_of_its_seed_and_not_of_its_batch(policy: TablePolicy) -> None:
    trie, seeds, rows = Trie.build(CODES, SIZES), torch.tensor([5, -(2**62), 5, 2**63 - 1]), torch.tensor([0, 1, 0, 1])
    together = draw_slates(policy, rows, 3, seeds, trie=trie)
    assert together.items[0].tolist() == together.items[2].tolist()
    for place in range(4):
        alone = draw_slates(policy, rows[place : place + 1], 3, seeds[place : place + 1], trie=trie)
        assert torch.equal(alone.items[0], together.items[place])
        assert torch.equal(alone.keys[0], together.keys[place])
    shorter = draw_slates(policy, rows, 1, seeds, trie=trie)
    assert torch.equal(shorter.items, together.items[:, :2])  # the first places of a longer list


def test_the_noise_is_that_of_splitmix64() -> None:
    def word(seed: int, place: int) -> int:
        mask = 2**64 - 1
        z = (seed + 0x9E3779B97F4A7C15 * (place + 1)) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    assert word(0, 0) == 0xE220A8397B1DCDAF  # the first output that the generator is known by
    for seed, place in itertools.product((0, 1, -1, 2**63 - 1, -(2**63)), (0, 1, 2**40)):
        expected = -math.log(-math.log(((word(seed, place) >> 11) + 0.5) / 2**53))
        actual = _gumbel(torch.tensor([seed]), torch.tensor([place])).item()
        np.testing.assert_allclose(actual, expected, rtol=1e-12)


def test_cold_draws_are_the_beam(policy: TablePolicy) -> None:
    trie, rows = Trie.build(CODES, SIZES), torch.tensor([0, 1])
    slates = draw_slates(policy, rows, 1, torch.tensor([1, 2]), trie=trie, temperature=1e-4)
    greedy = beam_search(policy, rows, 1, trie=trie)  # a chain of best codes, as a softmax without noise draws
    assert slates.items[:, 0].tolist() == trie.lookup(greedy.codes)[:, 0].tolist()


def test_a_list_of_everything_includes_each_item_for_sure(policy: TablePolicy) -> None:
    slates = drawn(policy, len(CODES), 3, [])
    assert bool((inclusions_of(slates, len(CODES)) == 0).all())
    assert inclusion_log_prob(-1.0, -5000.0) == 0.0 and inclusion_log_prob(-5000.0, -1.0) == -4999.0
    nothing = drawn(policy, 2, 3, list(range(len(CODES))))
    assert bool((nothing.items == -1).all()) and bool((nothing.log_probs == -torch.inf).all())
    assert bool((rank_log_probs(nothing.log_probs, nothing.rest) == -torch.inf).all())


def test_nothing_is_drawn_where_every_item_is_delisted(policy: TablePolicy) -> None:
    trie, rows = Trie.build(CODES[:0], SIZES), torch.tensor([0, 1])
    slates = draw_slates(policy, rows, 3, torch.tensor([1, 2]), trie=trie)
    assert slates.items.tolist() == [[-1] * 4] * 2
    assert bool((slates.log_probs == -torch.inf).all()) and bool((slates.keys == -torch.inf).all())
    found = first_log_probs(policy, rows, torch.tensor([[0, -1], [6, 99]]), trie=trie)
    assert found.tolist() == [[-math.inf] * 2] * 2 and found.dtype == torch.float64


def test_nearly_all_of_the_probability_on_one_item_leaves_finite_places() -> None:
    peaked = torch.tensor([[0.0, -60.0, -61.0]], dtype=torch.float64)
    places = rank_log_probs(peaked, torch.tensor([-61.0]).double())
    np.testing.assert_allclose(places[0, 1:], [-math.log(1 + 2 * math.exp(-1)), -math.log(2)], rtol=1e-9)


@pytest.mark.parametrize("temperature", [0.7, 0.02, 0.001])
def test_places_of_cold_lists_have_all_their_digits(policy: TablePolicy, temperature: float) -> None:
    """Against all items, in logarithms: those above have nearly all of the probability, or all that 64 bits hold."""
    trie, rows = Trie.build(CODES, SIZES), torch.tensor([0, 1])
    options = {"trie": trie, "temperature": temperature, "excluded": trie.excluding(torch.tensor([[6], [-1]]))}
    slates = draw_slates(policy, rows, 4, torch.tensor([1, 2]), **options)
    every = first_log_probs(policy, rows, torch.arange(len(CODES)).expand(2, -1), **options)
    expected = torch.empty(2, 4, dtype=torch.float64)
    for row, items in enumerate(slates.items[:, :4].tolist()):
        for place, item in enumerate(items):
            left = [other for other in range(len(CODES)) if other not in items[:place]]
            expected[row, place] = every[row, item] - every[row, left].logsumexp(0)
    found = rank_log_probs(slates.log_probs, slates.rest)[:, :4]
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(
        slate_log_probs(policy, rows, slates.items[:, :4], **options), found, rtol=1e-10, atol=1e-12
    )
    padded = torch.cat([slates.items[:, :2], torch.full((2, 1), -1)], 1)
    given = slate_log_probs(policy, rows, padded, **options)
    torch.testing.assert_close(given[:, :2], expected[:, :2], rtol=1e-10, atol=1e-12)
    assert bool((given[:, 2] == -torch.inf).all())


def test_what_cannot_be_drawn_is_refused(policy: TablePolicy) -> None:
    trie, rows = Trie.build(CODES, SIZES), torch.tensor([0])
    with pytest.raises(ValueError, match="count must be at least 1"):
        draw_slates(policy, rows, 0, torch.tensor([1]), trie=trie)
    with pytest.raises(ValueError, match="seeds must be"):
        draw_slates(policy, rows, 1, torch.tensor([1.0]), trie=trie)
    with pytest.raises(ValueError, match="temperature must be above 0"):
        draw_slates(policy, rows, 1, torch.tensor([1]), trie=trie, temperature=0.0)
    broken = TablePolicy(torch.full((1, 3), torch.nan), policy.second)
    with pytest.raises(NotFinite):
        draw_slates(broken, rows, 1, torch.tensor([1]), trie=trie)


@pytest.mark.parametrize("without", [[], [4], [0, 1, 6]])
def test_given_items_have_the_probability_that_they_are_drawn_with(policy: TablePolicy, without: list[int]) -> None:
    trie, rows = Trie.build(CODES, SIZES), torch.tensor([0, 1])
    excluded = trie.excluding(torch.tensor([without] * 2)) if without else None
    options = {"trie": trie, "temperature": TEMPERATURE, "excluded": excluded}
    every = torch.tensor([[*range(len(CODES)), -1]] * 2)
    found = first_log_probs(policy, rows, every, **options)
    allowed = [item for item in range(len(CODES)) if item not in without]
    for row in range(2):
        expected = torch.full((len(CODES) + 1,), -torch.inf, dtype=torch.float64)
        expected[allowed] = torch.tensor(probabilities(policy, row, allowed), dtype=torch.float64).log()
        torch.testing.assert_close(found[row], expected, rtol=1e-10, atol=1e-10)
    drawn_lists = draw_slates(policy, rows, 3, torch.tensor([1, 2]), **options)
    again = first_log_probs(policy, rows, drawn_lists.items, **options)
    torch.testing.assert_close(again, drawn_lists.log_probs, rtol=1e-12, atol=0)


@pytest.mark.parametrize("gone", [[1, 4], [5, 6]])  # in the middle, and behind the last item that is left
def test_an_item_that_left_the_catalogue_cannot_be_drawn(policy: TablePolicy, gone: list[int]) -> None:
    left = [item for item in range(len(CODES)) if item not in gone]
    trie = Trie.build(CODES[left], SIZES).named(torch.tensor(left))
    items = torch.arange(-1, len(CODES)).unsqueeze(0)
    found = first_log_probs(policy, torch.tensor([1]), items, trie=trie, temperature=TEMPERATURE)[0].exp().tolist()
    expected = dict(zip(left, probabilities(policy, 1, left), strict=True))
    np.testing.assert_allclose(found, [expected.get(item, 0.0) for item in range(-1, len(CODES))], rtol=1e-12)
