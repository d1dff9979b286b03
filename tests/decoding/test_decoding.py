"""Sampling and beam search against loops and enumeration, on a policy that is one random table over prefixes."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from adagrpo.decoding import (
    Beams,
    DeadEnd,
    Samples,
    beam_search,
    beam_search_and_score,
    beam_search_both,
    sample,
    score_sequences,
)
from adagrpo.decoding.beams import _best_continuations, top, top_of_many
from adagrpo.errors import NotFinite
from adagrpo.semantic_ids.trie import Branches, Trie

SIZES = (4, 3, 5)


@dataclass(frozen=True)
class TableState:
    rows: Tensor  # (B,)
    prefixes: Tensor  # (B, W), mixed-radix number of the codes written
    level: int


@dataclass
class TablePolicy:
    """Logits of the next code looked up by prefix; a context is the (B,) rows of the table."""

    tables: list[Tensor]  # level l: (rows, K_1 * .. * K_{l-1}, K_l)
    shapes: list[tuple[int, ...]] = field(default_factory=list)  # of all logits asked for

    @classmethod
    def random(cls, sizes: tuple[int, ...], rows: int = 3, seed: int = 0, scale: float = 1.5) -> TablePolicy:
        generator = torch.Generator().manual_seed(seed)
        prefixes = [math.prod(sizes[:level]) for level in range(len(sizes))]
        return cls([torch.randn(rows, p, k, generator=generator) * scale for p, k in zip(prefixes, sizes, strict=True)])

    @property
    def level_sizes(self) -> tuple[int, ...]:
        return tuple(table.shape[-1] for table in self.tables)

    def start(self, context: Tensor) -> TableState:
        return TableState(context, torch.zeros(len(context), 1, dtype=torch.int64), 0)

    def logits(self, state: TableState) -> Tensor:
        logits = self.tables[state.level][state.rows.unsqueeze(1), state.prefixes]
        self.shapes.append(tuple(logits.shape))
        return logits

    def advance(self, state: TableState, parents: Tensor, codes: Tensor) -> TableState:
        assert int(codes.min()) >= 0  # even hypotheses that are dead must hold a code the policy can read
        prefixes = state.prefixes.gather(1, parents) * self.level_sizes[state.level] + codes
        return TableState(state.rows, prefixes, state.level + 1)

    def score(self, context: Tensor, codes: Tensor, *, temperature: float = 1.0) -> Tensor:
        """Free log-probabilities, read off the tables."""
        prefixes, scores = torch.zeros_like(codes[..., 0]), []
        for level, table in enumerate(self.tables):
            log_probs = (table / temperature).log_softmax(-1)
            scores.append(log_probs[context.unsqueeze(1), prefixes, codes[..., level]])
            prefixes = prefixes * self.level_sizes[level] + codes[..., level]
        return torch.stack(scores, dim=-1)

    def row_logits(self, row: int, prefix: tuple[int, ...]) -> list[float]:
        """The logits after a prefix, for the loops."""
        number = 0
        for level, code in enumerate(prefix):
            number = number * self.level_sizes[level] + code
        return self.tables[len(prefix)][row, number].tolist()


def log_softmax(logits: list[float]) -> list[float]:
    top = max(logits)
    total = top + math.log(sum(math.exp(z - top) for z in logits))
    return [z - total for z in logits]


def log_probability(policy: TablePolicy, row: int, codes: tuple[int, ...]) -> float:
    return sum(log_softmax(policy.row_logits(row, codes[:level]))[code] for level, code in enumerate(codes))


def ranked(policy: TablePolicy, row: int, sequences: list[tuple[int, ...]]) -> list[tuple[float, tuple[int, ...]]]:
    return sorted(((log_probability(policy, row, codes), codes) for codes in sequences), key=lambda pair: -pair[0])


def everything(sizes: tuple[int, ...]) -> list[tuple[int, ...]]:
    return list(itertools.product(*(range(size) for size in sizes)))


def catalogue(sizes: tuple[int, ...], count: int, seed: int) -> Tensor:
    """(count, L) distinct codes."""
    space = torch.tensor(everything(sizes))
    return space[torch.randperm(len(space), generator=torch.Generator().manual_seed(seed))[:count]]


def assert_beams(beams: Beams, policy: TablePolicy, rows: list[int], sequences: list[tuple[int, ...]], width: int):
    """The beams are exactly the best of all sequences, and unused hypotheses are marked."""
    assert beams.codes.shape == (len(rows), width, len(policy.level_sizes))
    for index, row in enumerate(rows):
        best = ranked(policy, row, sequences)[:width]
        result = len(best)
        assert [tuple(codes) for codes in beams.codes[index, :result].tolist()] == [codes for _, codes in best]
        expected = torch.tensor([score for score, _ in best])
        torch.testing.assert_close(beams.scores[index, :result], expected, rtol=1e-5, atol=1e-5)
        assert (beams.codes[index, result:] == -1).all()
        assert (beams.scores[index, result:] == -torch.inf).all()


# ---------------------------------------------------------------- beam search


@pytest.mark.parametrize("width", [12, 13, 60, 61, 100])  # 12 prefixes of two codes, 60 sequences
def test_a_beam_as_wide_as_the_prefixes_is_exact(width):
    policy = TablePolicy.random(SIZES)
    beams = beam_search(policy, torch.tensor([2, 0, 1]), width)
    assert beams.scores.dtype == torch.float32
    assert_beams(beams, policy, [2, 0, 1], everything(SIZES), width)


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple),
    share=st.floats(0.0, 1.0),
    extra=st.integers(0, 5),
    seed=st.integers(0, 10_000),
)
def test_a_constrained_beam_is_exact_on_any_trie(sizes, share, extra, seed):
    total = math.prod(sizes)
    codes = catalogue(sizes, max(1, round(share * total)), seed)
    policy = TablePolicy.random(sizes, seed=seed)
    width = len(codes) + extra
    trie = Trie.build(codes, sizes)
    beams = beam_search(policy, torch.tensor([0, 1, 2]), width, trie=trie)
    assert_beams(beams, policy, [0, 1, 2], [tuple(row) for row in codes.tolist()], width)
    assert torch.equal(trie.leaf_items(beams.leaves), trie.lookup(beams.codes))


@pytest.mark.parametrize("constrained", [False, True])
@pytest.mark.parametrize("width", [1, 2, 5])
def test_a_narrow_beam_follows_the_loop(width, constrained):
    sizes = (6, 4, 7)
    policy = TablePolicy.random(sizes, seed=3)
    codes = catalogue(sizes, 40, seed=4)
    items = [tuple(row) for row in codes.tolist()]
    trie = Trie.build(codes, sizes) if constrained else None
    beams = beam_search(policy, torch.tensor([0, 1]), width, trie=trie)
    for row in range(2):
        hypotheses: list[tuple[int, ...]] = [()]
        for level in range(3):
            grown = [(*hypothesis, code) for hypothesis in hypotheses for code in range(sizes[level])]
            if constrained:
                grown = [hypothesis for hypothesis in grown if any(item[: level + 1] == hypothesis for item in items)]
            hypotheses = [hypothesis for _, hypothesis in ranked(policy, row, grown)[:width]]
        assert [tuple(hypothesis) for hypothesis in beams.codes[row].tolist()] == hypotheses


@pytest.mark.parametrize("width", [1, 2, 5, 40])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 1.0])
def test_excluded_items_cost_no_hypothesis(width, share):
    sizes = (6, 4, 7)
    policy = TablePolicy.random(sizes, seed=3)
    codes = catalogue(sizes, 40, seed=4)
    trie = Trie.build(codes, sizes)
    drawn = torch.rand(3, 40, generator=torch.Generator().manual_seed(5)) < torch.tensor([[share], [share], [0.0]])
    excluded = trie.excluding(torch.arange(40).expand(3, -1).masked_fill(~drawn, -1))
    beams = beam_search(policy, torch.arange(3), width, trie=trie, excluded=excluded)
    for row in range(3):
        left = [tuple(item) for item, out in zip(codes.tolist(), drawn[row].tolist(), strict=True) if not out]
        hypotheses: list[tuple[int, ...]] = [()]
        for level in range(3):  # a search in the catalogue of the others
            grown = {(*hypothesis, code) for hypothesis in hypotheses for code in range(sizes[level])}
            grown &= {item[: level + 1] for item in left}
            hypotheses = [hypothesis for _, hypothesis in ranked(policy, row, sorted(grown))[:width]]
        assert len(hypotheses) == min(width, len(left))
        expected = [list(hypothesis) for hypothesis in hypotheses] + [[-1] * 3] * (width - len(hypotheses))
        assert beams.codes[row].tolist() == expected
        assert beams.scores[row].isfinite().tolist() == [True] * len(hypotheses) + [False] * (width - len(hypotheses))
    with pytest.raises(ValueError, match="of a trie"):
        beam_search(policy, torch.arange(3), width, excluded=excluded)


@pytest.mark.parametrize("width", [1, 5, 40])
def test_what_is_scored_beside_a_search_gets_its_own_probability_and_changes_no_beam(width):
    sizes = (6, 4, 7)
    policy = TablePolicy.random(sizes, seed=3)
    codes = catalogue(sizes, 40, seed=4)
    trie, rows = Trie.build(codes, sizes), torch.tensor([0, 2])
    asked = torch.stack([codes[[3, 3, 31]], codes[[0, 17, 39]]])
    found, scores = beam_search_and_score(policy, rows, width, asked, trie=trie)
    for alone, both in zip(beam_search(policy, rows, width, trie=trie), found, strict=True):
        assert torch.equal(alone, both)
    everywhere = beam_search(policy, rows, 40, trie=trie)
    known = [
        dict(zip(map(tuple, places), values, strict=True))
        for places, values in zip(everywhere.codes.tolist(), everywhere.scores.tolist(), strict=True)
    ]
    expected = [
        [by_codes[tuple(one)] for one in wanted] for by_codes, wanted in zip(known, asked.tolist(), strict=True)
    ]
    torch.testing.assert_close(scores, torch.tensor(expected))


def test_constrained_scores_are_the_free_probabilities():
    # one level, three codes of probability 1/2, 1/4, 1/4; only the last two are items
    policy = TablePolicy([torch.tensor([[[0.5, 0.25, 0.25]]]).log()])
    beams = beam_search(policy, torch.tensor([0]), 3, trie=Trie.build(torch.tensor([[2], [1]]), (3,)))
    assert beams.codes.tolist() == [[[1], [2], [-1]]]
    torch.testing.assert_close(beams.scores, torch.tensor([[0.25, 0.25, 0.0]]).log(), rtol=1e-6, atol=0)


def test_equal_scores_come_in_lexicographic_order():
    policy = TablePolicy([torch.zeros(1, math.prod(SIZES[:level]), SIZES[level]) for level in range(3)])
    beams = beam_search(policy, torch.tensor([0]), 20)
    assert [tuple(codes) for codes in beams.codes[0].tolist()] == everything(SIZES)[:20]


def test_sequences_of_probability_zero_are_not_found():
    policy = TablePolicy.random((3, 2))
    policy.tables[0][0, 0, 1] = -torch.inf
    beams = beam_search(policy, torch.tensor([0]), 6)
    possible = [codes for codes in everything((3, 2)) if codes[0] != 1]
    assert_beams(beams, policy, [0], possible, 6)


def test_beams_do_not_depend_on_the_batch_split():
    policy = TablePolicy.random((8, 8, 8), rows=8)
    trie = Trie.build(catalogue((8, 8, 8), 100, seed=1), (8, 8, 8))
    whole = beam_search(policy, torch.arange(8), 7, trie=trie)
    halves = [beam_search(policy, torch.arange(8)[part], 7, trie=trie) for part in (slice(0, 3), slice(3, 8))]
    for name in Beams._fields:
        assert torch.equal(getattr(whole, name), torch.cat([getattr(half, name) for half in halves]))


@settings(max_examples=40, deadline=None)
@given(
    hypotheses=st.integers(1, 9),
    size=st.sampled_from([1, 7, 32, 33, 64, 96, 256]),
    width=st.integers(1, 12),
    levels=st.sampled_from([2, 5, 1000]),  # how many different values: few make many ties
    seed=st.integers(0, 10_000),
)
def test_best_continuations_are_those_of_a_full_sort(hypotheses, size, width, levels, seed):
    generator = torch.Generator().manual_seed(seed)
    # sixteenths, so that sums are exact and ties are real
    log_probs = torch.randint(-levels, 1, (3, hypotheses, size), generator=generator) / 16
    scores = torch.randint(-levels, 1, (3, hypotheses), generator=generator) / 16
    log_probs = log_probs.masked_fill(torch.rand(3, hypotheses, size, generator=generator) < 0.2, -torch.inf)
    scores = scores.masked_fill(torch.rand(3, hypotheses, generator=generator) < 0.2, -torch.inf)
    flat = (log_probs + scores.unsqueeze(-1)).flatten(1)
    values, index = flat.sort(dim=1, descending=True, stable=True)
    kept = min(width, hypotheses * size)
    # the same hypotheses, also where they stand elsewhere, in another order, among others
    order = torch.stack([torch.randperm(hypotheses + 2, generator=generator)[:hypotheses] for _ in range(3)])
    elsewhere = torch.zeros(3, hypotheses + 2, size)
    elsewhere[torch.arange(3).unsqueeze(1), order] = log_probs
    for actual in (
        _best_continuations(log_probs, scores, width),
        _best_continuations(elsewhere, scores, width, order),
    ):
        assert torch.equal(actual.scores, values[:, :kept])
        assert torch.equal(actual.parents * size + actual.codes, index[:, :kept])


@pytest.mark.parametrize("numbers", [8, 96, 400])
@pytest.mark.parametrize("count", [1, 3, 8])
def test_the_highest_of_many_are_those_of_a_stable_sort(numbers, count):
    generator = torch.Generator().manual_seed(numbers)
    values = torch.randint(-6, 1, (5, numbers), generator=generator) / 4  # most are equal to others
    values = values.masked_fill(torch.rand(5, numbers, generator=generator) < 0.3, -torch.inf)
    values[0] = -torch.inf
    expected = values.sort(dim=1, descending=True, stable=True).indices[:, :count]
    assert torch.equal(top(values, count), expected)
    assert torch.equal(top_of_many(values, count), expected)


@pytest.mark.parametrize("size", [37, 257])  # primes above a span: filled up with codes that cannot be
@pytest.mark.parametrize("width", [3, 50, 200])
def test_a_prime_number_of_codes_is_searched_the_same(size, width):
    generator = torch.Generator().manual_seed(size)
    log_probs = torch.randint(-40, 1, (2, 3, size), generator=generator) / 16
    scores = torch.tensor([[0.0, -0.5, -torch.inf], [-0.25, -0.25, -torch.inf]])
    best, parents, codes = _best_continuations(log_probs, scores, width)
    flat = (log_probs + scores.unsqueeze(-1)).flatten(1)
    values, index = flat.sort(dim=1, descending=True, stable=True)
    kept, real = min(width, 3 * size), values[:, : min(width, 3 * size)] > -torch.inf
    assert torch.equal(best, values[:, :kept])
    assert torch.equal((parents * size + codes)[real], index[:, :kept][real])
    assert int(codes.max()) < size


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple),
    share=st.floats(0.0, 1.0),
    width=st.integers(1, 9),
    constrained_width=st.integers(1, 12),
    ties=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_both_searches_at_once_find_what_each_finds(sizes, share, width, constrained_width, ties, seed):
    policy = TablePolicy.random(sizes, seed=seed)
    if ties:
        policy.tables = [table.round() for table in policy.tables]
    trie = Trie.build(catalogue(sizes, max(1, round(share * math.prod(sizes))), seed), sizes)
    context = torch.tensor([2, 0, 1])
    held, free = beam_search_both(policy, context, width, trie=trie, constrained_width=constrained_width)
    for actual, expected in (
        (held, beam_search(policy, context, constrained_width, trie=trie)),
        (free, beam_search(policy, context, width)),
    ):
        assert torch.equal(actual.codes, expected.codes)
        assert torch.equal(actual.scores, expected.scores)
        assert torch.equal(actual.log_probs, expected.log_probs)
        assert torch.equal(actual.leaves, expected.leaves)
        real = actual.codes[..., 0] >= 0
        scored = score_sequences(policy, context, actual.codes.clamp(min=0))
        torch.testing.assert_close(actual.log_probs[real], scored[real], rtol=1e-6, atol=1e-6)
        assert (actual.log_probs[~real] == -torch.inf).all()
    assert torch.equal(trie.leaf_items(held.leaves), trie.lookup(held.codes)) and (free.leaves == -1).all()


def test_both_searches_meet_each_prefix_once():
    sizes = (6, 5, 4)
    policy, trie = TablePolicy.random(sizes), Trie.build(catalogue(sizes, 100, seed=1), sizes)
    beam_search_both(policy, torch.arange(3), 5, trie=trie, constrained_width=8)
    hypotheses = [shape[1] for shape in policy.shapes]
    assert hypotheses[:2] == [1, 6]  # all six first codes, which both searches look at
    assert 8 <= hypotheses[2] < 13  # and not 8 + 5


def test_a_free_hypothesis_that_the_held_search_has_dropped_goes_on():
    # the held search keeps 01 and 10, of probability .30 and .25; the free one also 02 (.28), which no item has
    first = torch.tensor([[[0.65, 0.35]]]).log()
    second = torch.tensor([[[0.1, 0.47, 0.43], [0.72, 0.14, 0.14]]]).log()
    policy = TablePolicy([first, second, torch.full((1, 6, 2), 0.5).log()])
    trie = Trie.build(torch.tensor([[0, 1, 0], [1, 0, 1]]), (2, 3, 2))
    held, free = beam_search_both(policy, torch.tensor([0]), 3, trie=trie)
    assert held.codes[0].tolist() == [[0, 1, 0], [1, 0, 1], [-1, -1, -1]]
    assert free.codes[0].tolist() == [[0, 1, 0], [0, 1, 1], [0, 2, 0]]
    assert policy.shapes[-1] == (1, 3, 2)


# ---------------------------------------------------------------- sampling


@pytest.mark.parametrize("constrained", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_samples_follow_the_loop(temperature, constrained):
    policy = TablePolicy.random(SIZES)
    codes = catalogue(SIZES, 17, seed=5)
    items = [tuple(row) for row in codes.tolist()]
    uniforms = torch.rand(3, 40, 3, generator=torch.Generator().manual_seed(6))
    trie = Trie.build(codes, SIZES) if constrained else None
    samples = sample(policy, torch.arange(3), uniforms, temperature=temperature, trie=trie)
    assert samples.log_probs.dtype == torch.float32
    for row, hypothesis in itertools.product(range(3), range(40)):
        prefix: tuple[int, ...] = ()
        for level in range(3):
            logits = [z / temperature for z in policy.row_logits(row, prefix)]
            if constrained:
                heads = {item[: level + 1] for item in items}
                logits = [z if (*prefix, code) in heads else -math.inf for code, z in enumerate(logits)]
            log_probs = log_softmax(logits)
            draw, cumulative, code = float(uniforms[row, hypothesis, level]), 0.0, -1
            while cumulative <= draw:
                code += 1
                cumulative += math.exp(log_probs[code])
            assert int(samples.codes[row, hypothesis, level]) == code
            assert float(samples.log_probs[row, hypothesis, level]) == pytest.approx(
                log_probs[code], rel=1e-5, abs=1e-6
            )
            prefix = (*prefix, code)
    if constrained:
        assert {tuple(drawn) for drawn in samples.codes.flatten(0, 1).tolist()} <= set(items)


@pytest.mark.parametrize("constrained", [False, True])
def test_a_grid_of_uniforms_gives_the_exact_frequencies(constrained):
    sizes, side = (4, 3), 300
    policy = TablePolicy.random(sizes, seed=8)
    codes = catalogue(sizes, 7, seed=9)
    trie = Trie.build(codes, sizes) if constrained else None
    axis = (torch.arange(side) + 0.5) / side
    uniforms = torch.cartesian_prod(axis, axis).unsqueeze(0)  # (1, side * side, 2)
    samples = sample(policy, torch.tensor([1]), uniforms, trie=trie)
    drawn = samples.codes[0, :, 0] * 3 + samples.codes[0, :, 1]
    probabilities = torch.zeros(12).scatter(0, drawn, samples.log_probs[0].sum(-1).exp())
    frequencies = drawn.bincount(minlength=12) / side**2
    # the grid cuts each of the two conditional probabilities with an error of at most one cell
    torch.testing.assert_close(frequencies, probabilities, rtol=0, atol=2 / side)
    assert float(probabilities.sum()) == pytest.approx(1, abs=1e-5)
    if constrained:
        expected = set((codes[:, 0] * 3 + codes[:, 1]).tolist())
        assert set(drawn.tolist()) == expected


@pytest.mark.parametrize("allowed", [[0], [3], [1, 2], [0, 4]])
def test_extreme_uniforms_never_draw_a_masked_code(allowed):
    policy = TablePolicy.random((5,), rows=1, scale=4.0)
    trie = Trie.build(torch.tensor(allowed).unsqueeze(1), (5,))
    largest = torch.nextafter(torch.tensor(1.0), torch.tensor(0.0))
    samples = sample(policy, torch.tensor([0]), torch.stack([torch.tensor(0.0), largest]).view(1, 2, 1), trie=trie)
    assert samples.codes.flatten().tolist() == [allowed[0], allowed[-1]]
    assert samples.log_probs.isfinite().all()


def test_a_uniform_that_rounds_to_one_draws_the_last_code():
    # 256 equal probabilities: u * total rounds to total in float32, and float64 uniforms round to 1
    policy = TablePolicy([torch.linspace(0, 3, 256).view(1, 1, 256)])
    uniforms = torch.full((1, 1, 1), 1 - 2**-53, dtype=torch.float64)
    assert sample(policy, torch.tensor([0]), uniforms).codes.item() == 255


@pytest.mark.parametrize("constrained", [False, True])
def test_samples_do_not_depend_on_the_batch_split(constrained):
    policy = TablePolicy.random((8, 8, 8), rows=8)
    trie = Trie.build(catalogue((8, 8, 8), 100, seed=1), (8, 8, 8)) if constrained else None
    uniforms = torch.rand(8, 6, 3, generator=torch.Generator().manual_seed(2))
    whole = sample(policy, torch.arange(8), uniforms, trie=trie)
    halves = [sample(policy, torch.arange(8)[p], uniforms[p], trie=trie) for p in (slice(0, 3), slice(3, 8))]
    for name in Samples._fields:
        assert torch.equal(getattr(whole, name), torch.cat([getattr(half, name) for half in halves]))


def test_the_first_level_is_read_once_a_sample():
    policy = TablePolicy.random(SIZES)
    sample(policy, torch.arange(3), torch.rand(3, 16, 3))
    beam_search(policy, torch.arange(3), 6)
    assert policy.shapes == [(3, 1, 4), (3, 16, 3), (3, 16, 5), (3, 1, 4), (3, 4, 3), (3, 6, 5)]


def test_one_sample_one_hypothesis_one_level():
    policy = TablePolicy([torch.tensor([[[0.5, 0.5]]]).log()])
    samples = sample(policy, torch.tensor([0]), torch.tensor([[[0.5]]]))  # F_0 = 0.5 does not exceed 0.5
    assert samples.codes.tolist() == [[[1]]]
    assert samples.log_probs.item() == pytest.approx(math.log(0.5), rel=1e-6)


# ---------------------------------------------------------------- scoring given codes


@pytest.mark.parametrize("constrained", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_scores_are_those_of_the_distribution_that_is_sampled(temperature, constrained):
    policy = TablePolicy.random(SIZES)
    trie = Trie.build(catalogue(SIZES, 17, seed=5), SIZES) if constrained else None
    uniforms = torch.rand(3, 40, 3, generator=torch.Generator().manual_seed(6))
    samples = sample(policy, torch.arange(3), uniforms, temperature=temperature, trie=trie)
    scores = score_sequences(policy, torch.arange(3), samples.codes, temperature=temperature, trie=trie)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, samples.log_probs, rtol=1e-5, atol=1e-6)


def test_constrained_probabilities_of_the_catalogue_sum_to_one():
    codes = catalogue(SIZES, 17, seed=5).expand(3, 17, 3)
    scores = score_sequences(TablePolicy.random(SIZES), torch.arange(3), codes, trie=Trie.build(codes[0], SIZES))
    torch.testing.assert_close(scores.sum(-1).exp().sum(-1), torch.ones(3), rtol=1e-5, atol=0)


def test_constrained_scores_carry_the_gradient_of_the_allowed_softmax():
    # one level, items 0 and 2: d log p(0) / dz = 1[k = 0] - p(k), with p = (1/4, 0, 3/4)
    table = torch.tensor([[[0.0, 5.0, math.log(3)]]], requires_grad=True)
    trie = Trie.build(torch.tensor([[0], [2]]), (3,))
    scores = score_sequences(TablePolicy([table]), torch.tensor([0]), torch.tensor([[[0]]]), trie=trie)
    assert scores.item() == pytest.approx(math.log(0.25), rel=1e-6)
    scores.sum().backward()
    torch.testing.assert_close(table.grad, torch.tensor([[[0.75, 0.0, -0.75]]]), rtol=1e-5, atol=1e-7)


def test_a_sequence_outside_the_trie_cannot_be_scored():
    trie = Trie.build(torch.tensor([[1, 1, 1], [2, 0, 1]]), SIZES)
    with pytest.raises(DeadEnd, match="level 2"):
        score_sequences(TablePolicy.random(SIZES), torch.tensor([0]), torch.tensor([[[1, 1, 1], [2, 1, 1]]]), trie=trie)


def test_score_sequences_says_what_is_wrong():
    policy = TablePolicy.random(SIZES)
    with pytest.raises(ValueError, match=r"codes must be \(B, G, 3\), got \(3, 3\)"):
        score_sequences(policy, torch.arange(3), torch.zeros(3, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="temperature must be above 0"):
        score_sequences(policy, torch.arange(3), torch.zeros(3, 1, 3, dtype=torch.int64), temperature=-1.0)


# ---------------------------------------------------------------- errors


class BrokenTrie:
    """Allows every first code and then nothing."""

    level_sizes = SIZES

    def allowed(self, level: int, nodes: Tensor) -> Tensor:
        return torch.full((*nodes.shape, SIZES[level]), level == 0)

    def child(self, level: int, nodes: Tensor, codes: Tensor) -> Tensor:
        return codes

    def branches(self, level: int, nodes: Tensor) -> Branches:
        counts = torch.full((nodes.numel(),), SIZES[level] if level == 0 else 0)
        codes = torch.arange(SIZES[level]).repeat(nodes.numel() if level == 0 else 0)
        return Branches(counts, torch.repeat_interleave(counts), codes, codes)


def test_a_prefix_without_continuation_is_a_dead_end():
    policy = TablePolicy.random(SIZES)
    with pytest.raises(DeadEnd, match="level 2"):
        sample(policy, torch.arange(3), torch.rand(3, 2, 3), trie=BrokenTrie())
    with pytest.raises(DeadEnd, match="level 2"):
        beam_search(policy, torch.arange(3), 2, trie=BrokenTrie())
    with pytest.raises(DeadEnd, match="level 2"):
        beam_search_both(policy, torch.arange(3), 2, trie=BrokenTrie())


def test_a_policy_that_rules_out_all_that_is_allowed_is_a_dead_end():
    policy = TablePolicy.random((3,), rows=1)
    policy.tables[0][0, 0, 1] = -torch.inf
    with pytest.raises(DeadEnd, match="level 1"):
        sample(policy, torch.tensor([0]), torch.rand(1, 2, 1), trie=Trie.build(torch.tensor([[1]]), (3,)))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_logits_that_are_not_finite_are_refused(bad):
    policy = TablePolicy.random((3,), rows=1)
    policy.tables[0][0, 0, 1] = bad
    with pytest.raises(NotFinite, match="NaN"):
        sample(policy, torch.tensor([0]), torch.rand(1, 2, 1))
    with pytest.raises(NotFinite, match="NaN"):
        beam_search(policy, torch.tensor([0]), 2)
    with pytest.raises(NotFinite, match="NaN"):
        beam_search(policy, torch.tensor([0]), 2, trie=Trie.build(torch.tensor([[1], [2]]), (3,)))


@pytest.mark.parametrize(
    ("uniforms", "options", "message"),
    [
        (torch.zeros(3, 2, 4), {}, r"uniforms must be \(B, G, 3\), got \(3, 2, 4\)"),
        (torch.zeros(3, 3), {}, "uniforms must be"),
        (torch.zeros(2, 2, 3), {}, "uniforms has 2 samples, the context has 3"),
        (torch.ones(3, 2, 3), {}, "uniforms must lie in"),
        (torch.full((3, 2, 3), -0.1), {}, "uniforms must lie in"),
        (torch.zeros(3, 2, 3), {"temperature": 0.0}, "temperature must be above 0"),
        (torch.zeros(3, 2, 3), {"trie": Trie.build(torch.tensor([[1, 1]]), (2, 2))}, "the trie has levels"),
    ],
)
def test_sample_says_what_is_wrong(uniforms, options, message):
    with pytest.raises(ValueError, match=message):
        sample(TablePolicy.random(SIZES), torch.arange(3), uniforms, **options)


def test_beam_search_says_what_is_wrong():
    policy = TablePolicy.random(SIZES)
    with pytest.raises(ValueError, match="width must be at least 1, got 0"):
        beam_search(policy, torch.arange(3), 0)
    with pytest.raises(ValueError, match="constrained_width must be at least 1, got 0"):
        trie = Trie.build(torch.tensor([[1, 1, 1]]), SIZES)
        beam_search_both(policy, torch.arange(3), 2, trie=trie, constrained_width=0)
    with pytest.raises(ValueError, match="the trie has levels"):
        beam_search(policy, torch.arange(3), 2, trie=Trie.build(torch.tensor([[1, 1]]), (2, 2)))


def test_nothing_carries_a_gradient():
    policy = TablePolicy.random(SIZES)
    policy.tables = [table.requires_grad_() for table in policy.tables]
    samples = sample(policy, torch.arange(3), torch.rand(3, 2, 3))
    assert not samples.log_probs.requires_grad and not samples.log_probs.is_inference()
    assert not beam_search(policy, torch.arange(3), 2).scores.requires_grad
